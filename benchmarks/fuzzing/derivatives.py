"""One-sided derivatives of nearest points and best values, by steps so short that they cross no kink.

Both are piecewise smooth in the scores and in right-hand sides, so a step of 2^-60 in exact arithmetic gives the
derivative on that side. At the edge of its domain a parameter has a derivative on one side alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fuzzing.nearest import dot
from fuzzing.truth import Truth

__all__ = ["SAMPLES", "Interval", "along", "between", "nearest_along", "nearest_nearby", "slopes"]

Point = tuple[Fraction, ...]
ROUNDINGS = Fraction(1, 2**50)
"""Next to a parameter: a domain with less room around it is a single point."""
STEP, LONG_STEP = Fraction(1, 2**60), Fraction(1, 2**26)
NEARBY = Fraction(1, 2**30)
SAMPLES = (16, 256)
"""So many points nearby tell what pieces meet at a kink; more of them before anything is called wrong."""


@dataclass(frozen=True)
class Interval:
    """What a derivative may be; a single number where there is no kink."""

    low: float
    high: float

    def misses(self, value: float) -> float:
        """By how much a value is outside."""
        return max(self.low - value, value - self.high, 0.0)


def along(scores: Point, direction: Sequence[Fraction], step: Fraction = STEP) -> Point:
    """A short step."""
    return tuple(s + step * d for s, d in zip(scores, direction, strict=True))


def nearest_along(truth: Truth, scores: Point, direction: Point) -> Point:
    """The derivative of the nearest point on one side."""
    here = truth.nearest(scores)
    there = truth.nearest(along(scores, direction))
    return tuple((b - a) / STEP for a, b in zip(here, there, strict=True))


def between(truth: Truth, scores: Point, direction: Point, seed: int) -> list[Interval]:
    """What the derivative of the nearest point may be, entry by entry: on both sides, and at points nearby."""
    backward = tuple(-d for d in direction)
    found = [nearest_along(truth, scores, direction)]
    found.append(tuple(-v for v in nearest_along(truth, scores, backward)))
    found += nearest_nearby(truth, scores, direction, seed, SAMPLES[0])
    return [Interval(float(min(entries)), float(max(entries))) for entries in zip(*found, strict=True)]


def nearest_nearby(truth: Truth, scores: Point, direction: Point, seed: int, samples: int) -> Iterator[Point]:
    """The derivative of the nearest point at points nearby, each of which is that of one piece."""
    for shifted in _nearby(scores, _radius(truth, scores), seed, samples):
        yield nearest_along(truth, shifted, direction)


def slopes(
    value: Callable[[Truth, Point], Fraction], truth: Truth, scores: Point, place: Sequence[int], wide: int, seed: int
) -> Interval | None:
    """What the derivative of a value by some entries of the parameters, all moved alike, may be; None for nothing.

    ``wide`` looks at so many points nearby, too, of scores and of parameters, and takes longer steps: a corner may be
    as small as the rounding of a number, and solvers see what is beyond it.
    """
    found = []
    if all(_moved(truth, _roundings(truth, place, sign)).empty for sign in (1, -1)):
        return None
    for near, shifted in _around(truth, scores, seed, wide) if wide else [(truth, scores)]:
        here = value(near, shifted)
        for step in (STEP, -STEP, LONG_STEP, -LONG_STEP)[: 4 if wide else 2]:
            moved = _moved(near, dict.fromkeys(place, step))
            if not moved.empty:
                found.append((value(moved, shifted) - here) / step)
    return Interval(float(min(found)), float(max(found))) if found else None


def _roundings(truth: Truth, place: Sequence[int], sign: int) -> dict[int, Fraction]:
    """Some roundings of each of these parameters."""
    return {k: sign * ROUNDINGS * max(Fraction(1), abs(Fraction(truth.theta[k]))) for k in place}


def _around(truth: Truth, scores: Point, seed: int, samples: int) -> Iterator[tuple[Truth, Point]]:
    """An instance, and instances nearby: at a kink a derivative may be that of any of them."""
    yield truth, scores
    generator = np.random.default_rng(seed)
    finite = [k for k, value in enumerate(truth.theta) if isinstance(value, Fraction) or math.isfinite(value)]
    directions = truth.shifts
    starts = [parameter.start for parameter in truth.declaration.parameters]
    groups = np.searchsorted(starts, [max(k for k, e in enumerate(way) if e) for way in directions], side="right") - 1
    for shifted in _nearby(scores, _radius(truth, scores), seed, samples):
        yield truth, shifted
        # Some parameters move far less than others: of many pieces that meet, each is found by some sample.
        sizes = 2 ** generator.integers(0, 17, max(len(starts), 1))
        shifts = generator.integers(-256, 257, len(directions)) * sizes[groups]
        for signed in (shifts, abs(shifts), -abs(shifts)):  # at an edge some of these lead out of the domain
            moves = [dot([Fraction(int(s)) for s in signed], entries) for entries in zip(*directions, strict=True)]
            near = _moved(truth, {k: NEARBY * moves[k] / max(2**24, *map(abs, moves)) for k in finite})
            if not near.empty:
                yield near, shifted
                break


def _moved(truth: Truth, steps: Mapping[int, Fraction]) -> Truth:
    theta = list(truth.theta)
    for entry, step in steps.items():
        theta[entry] = Fraction(theta[entry]) + step
    return Truth(truth.declaration, tuple(theta), truth.forbidden)


def _radius(truth: Truth, scores: Point) -> Fraction:
    """How far away is nearby: farther where scores are large, as they are rounded themselves."""
    nearest = truth.nearest(scores)
    used = max((abs(s) for s, x in zip(scores, nearest, strict=True) if x), default=Fraction(0))
    return NEARBY * (Fraction(truth.size) + used / 2**12)


def _nearby(scores: Point, radius: Fraction, seed: int, samples: int) -> Iterator[Point]:
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        shift = generator.integers(-256, 257, len(scores))
        yield tuple(s + radius * Fraction(int(e), 256) for s, e in zip(scores, shift, strict=True))


def value_of_nearest(gradient: Point) -> Callable[[Truth, Point], Fraction]:
    """The inner product of a gradient and the nearest point."""
    return lambda truth, scores: dot(gradient, truth.nearest(scores))


def best_value(truth: Truth, scores: Point) -> Fraction:
    """The value of the best vertex."""
    return truth.best(scores).value


def smoothed_value(vertex: Point, smoothing: Fraction) -> Callable[[Truth, Point], Fraction]:
    """The largest value less a price for the distance from a vertex."""

    def value(truth: Truth, scores: Point) -> Fraction:
        target = tuple(v + s / smoothing for v, s in zip(vertex, scores, strict=True))
        point = truth.nearest(target)
        apart = sum(((a - b) ** 2 for a, b in zip(point, vertex, strict=True)), Fraction(0))
        return dot(scores, point) - smoothing * apart / 2

    return value
