"""Whether numbers are finite, and whether some are very low, in one pass over them."""

from __future__ import annotations

from pathlib import Path

from optlayers.kernel_cache import cached_njit

__all__ = ["all_finite", "any_below"]

# 0 times a number is 0, unless that is infinite or NaN. Reordered sums of such products fill vector registers.
_reordering = cached_njit(Path(__file__).parent, nogil=True, no_cfunc_wrapper=True, fastmath={"reassoc", "nsz"})


@_reordering("(float64[::1],)", "(float32[::1],)")
def all_finite(values):  # type: ignore[no-untyped-def]
    """Of a flat array of floats."""
    total = 0.0
    for i in range(len(values)):  # an iterator over the array would be left scalar
        total += values[i] * 0.0
    return total == 0.0


@_reordering("(float64[::1], float64)")
def any_below(values, limit):  # type: ignore[no-untyped-def]
    """Whether some number of a flat array of floats is at most ``limit``."""
    count = 0
    for i in range(len(values)):
        count += 1 if values[i] <= limit else 0
    return count > 0
