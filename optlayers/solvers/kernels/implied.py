"""Bounds that rows imply, one row after the other, in plain scalar loops."""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.lanes import jit, part

__all__ = ["SAME", "tighten"]

ROUNDS = 1000
"""So often are all rows looked at, at most."""
SAME = 1e-9
"""Bounds that are so near to each other, next to their size, are one number; smaller steps are none."""


@part
def _ends(entry, low, high):  # type: ignore[no-untyped-def]
    """Between what a term of a row lies."""
    first, second = entry * low, entry * high
    return min(first, second), max(first, second)


@jit(
    "(int32[::1], int32[::1], int32[::1], float64[:, ::1], boolean[::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, ::1])"
)
def tighten(start, column, place, matrix, skipped, rhs, lower, upper):  # type: ignore[no-untyped-def]
    """Make bounds narrower, in place, by rows that are not ``skipped``, until nothing changes.

    Rows are given by where each of them begins, by columns, and by the places of their entries.
    """
    for k in range(len(lower)):
        entries, b = matrix[k if len(matrix) > 1 else 0], rhs[k if len(rhs) > 1 else 0]
        for _ in range(ROUNDS):
            changed = False
            for i in range(len(start) - 1):
                if skipped[i]:
                    continue
                least, most, below, above = 0.0, 0.0, 0, 0  # of the row, and how many terms have no limit
                for t in range(start[i], start[i + 1]):
                    entry, j = entries[place[t]], column[t]
                    if entry == 0.0:
                        continue
                    low, high = _ends(entry, lower[k, j], upper[k, j])
                    if np.isinf(low):
                        below += 1
                    else:
                        least += low
                    if np.isinf(high):
                        above += 1
                    else:
                        most += high
                if below > 1 and above > 1:
                    continue
                for t in range(start[i], start[i + 1]):
                    entry, j = entries[place[t]], column[t]
                    if entry == 0.0:
                        continue
                    low, high = _ends(entry, lower[k, j], upper[k, j])
                    # What the others leave, from above and from below; nothing where one of them has no limit.
                    at_most, at_least = np.inf, -np.inf
                    if below == 0:
                        at_most = b[i] - (least - low)
                    elif below == 1 and np.isinf(low):
                        at_most = b[i] - least
                    if above == 0:
                        at_least = b[i] - (most - high)
                    elif above == 1 and np.isinf(high):
                        at_least = b[i] - most
                    narrow = at_least / entry if entry > 0.0 else at_most / entry
                    wide = at_most / entry if entry > 0.0 else at_least / entry
                    if narrow > lower[k, j] + SAME * max(1.0, abs(narrow)) and not np.isinf(narrow):
                        lower[k, j], changed = narrow, True
                    if wide < upper[k, j] - SAME * max(1.0, abs(wide)) and not np.isinf(wide):
                        upper[k, j], changed = wide, True
            if not changed:
                break
