"""The function of a declaration that brings constraints on demand, and what it may return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, final

import numpy as np
from jaxtyping import Float64

from optlayers.compiled_oracle import name_of
from optlayers.polytope import Polytope

__all__ = ["ADVICE", "SATISFIED", "Cut", "Separation", "SeparationError", "WrongSeparation"]

ADVICE = "see optlayers.testing.check_separation"
SATISFIED = 1e-8
"""An inequality counts as violated by more than this, relative to the size of its terms: solvers satisfy rows to a
little less."""
ROUNDING = 1e-12
"""An inequality that a point satisfies by more than this, relative to the size of its terms, does not cut it off."""


class SeparationError(RuntimeError):
    """There is no answer, for a reason that has to do with the function that separates."""


@final
class WrongSeparation(SeparationError):
    """The function that separates returned what it must not return."""


@final
@dataclass(eq=False, slots=True)
class Cut:
    """``coefficients @ x <= bound`` for flat scored vectors x, brought to a size of about 1 by ``scale``."""

    coefficients: Float64[np.ndarray, " size"]
    bound: float
    scale: float
    used: int = 0
    """When it was found, or was tight at an answer, the last time."""

    @property
    def key(self) -> bytes:
        """What makes it the same as another one."""
        return self.coefficients.tobytes() + np.float64(self.bound).tobytes()

    def violation(self, point: Float64[np.ndarray, " size"]) -> float:
        """By how much a point violates it, relative to the size of its terms."""
        terms = self.coefficients * point
        least = float(np.abs(self.coefficients).max(initial=0.0)) * min(1.0, float(np.abs(point).max(initial=0.0)))
        size = float(np.abs(terms).sum()) + abs(self.bound) + least
        missed = float(terms.sum()) - self.bound
        return missed / size if size > 0.0 else missed


@final
class Separation:
    """The function that separates, with the shapes of what it is given and of what it returns."""

    def __init__(self, polytope: Polytope) -> None:
        assert polytope.separate is not None
        self.polytope = polytope
        self.function = polytope.separate
        self.shapes = [polytope.shape, *(tuple(v.shape) for v in polytope.scored)]
        self.parameters = [tuple(p.shape) for p in polytope.parameters]

    def __str__(self) -> str:
        return f"separate={name_of(self.function)}"

    def cuts(self, point: Float64[np.ndarray, " size"], theta: Float64[np.ndarray, " parameters"]) -> list[Cut]:
        """The inequalities that a point violates, none of which it satisfies by more than rounding.

        Raises
        ------
        SeparationError : when the function raises an exception, whose own words are in the message.
        WrongSeparation : when it returns something else, NaN, other shapes, or an inequality that the point satisfies.
        """
        given = [*_split(point, self.shapes), *_split(theta, self.parameters)]
        try:
            found = self.function(*given)
        except Exception as error:
            raise SeparationError(f"{self} raised {type(error).__name__}: {error}") from error
        cuts = [self._cut(pair) for pair in self._pairs(found)]
        for cut in cuts:
            violation = cut.violation(point)
            if violation < -ROUNDING or (violation <= 0.0 and not cut.coefficients.any()):
                raise WrongSeparation(
                    f"{self} returned an inequality that does not cut off the point that it was given: the terms sum "
                    f"to {float(cut.coefficients @ point) / cut.scale:.6g}, the bound is "
                    f"{cut.bound / cut.scale:.6g}; it returns what the point violates, or None; {ADVICE}"
                )
        return cuts

    def _pairs(self, found: Any) -> list[tuple[Any, Any]]:
        if found is None:
            return []
        if isinstance(found, tuple) and len(found) == 2 and _is_number(found[1]):
            return [found]
        if not isinstance(found, (list, tuple)):
            raise self._wrong(f"returned {type(found).__name__}")
        for pair in found:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise self._wrong(f"returned a list with {type(pair).__name__} in it")
        return [(pair[0], pair[1]) for pair in found]

    def _cut(self, pair: tuple[Any, Any]) -> Cut:
        parts, bound = (pair[0] if len(self.shapes) > 1 else (pair[0],)), pair[1]
        if not isinstance(parts, (tuple, list)) or len(parts) != len(self.shapes):
            raise self._wrong(f"returned coefficients that are no tuple of {len(self.shapes)} arrays")
        flat = []
        for part, shape in zip(parts, self.shapes, strict=True):
            try:
                array = np.asarray(part)
            except ValueError:
                raise self._wrong(f"returned coefficients that are no array of shape {shape}") from None
            if array.dtype.kind not in "biuf":
                raise self._wrong(f"returned coefficients of dtype {array.dtype}")
            if array.shape != shape:
                raise self._wrong(f"returned coefficients of shape {array.shape} where {shape} is expected")
            flat.append(array.astype(np.float64).reshape(-1))
        if not _is_number(bound):
            raise self._wrong(f"returned a bound of type {type(bound).__name__}")
        coefficients, limit = np.concatenate(flat), float(bound)
        if not (np.isfinite(coefficients).all() and np.isfinite(limit)):
            raise self._wrong("returned coefficients or a bound that are not finite")
        largest = float(np.abs(coefficients).max(initial=0.0))
        scale = float(np.exp2(-np.round(np.log2(largest)))) if largest > 0.0 else 1.0
        return Cut(coefficients * scale, limit * scale, scale)

    def _wrong(self, what: str) -> WrongSeparation:
        return WrongSeparation(
            f"{self} {what}; it returns (coefficients, bound) with coefficients in the shape of the structure and a "
            f"number, a list of such pairs, or None; {ADVICE}"
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.shape == () and value.dtype.kind in "biuf"
    return isinstance(value, Real)


def _split(flat: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Arrays of their own in these shapes, which a function may write to."""
    parts, start = [], 0
    for shape in shapes:
        end = start + int(np.prod(shape, dtype=int))
        parts.append(np.array(flat[start:end]).reshape(shape))
        start = end
    return parts
