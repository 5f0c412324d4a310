"""The facets of the convex hull of points of 0 and 1, in whole numbers and so without rounding."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

__all__ = ["TooManyFacets", "half_spaces_of"]

FACETS = 20_000
"""So many facets may there be at a time, on the way too."""
COMPARISONS = 5 * 10**8
"""So many words of incidences are compared at most, at one time and on the whole way."""
AT_ONCE = 2**22
"""Words of memory for comparisons."""
LARGEST = 2**30
"""Entries of facets; larger ones could not be multiplied."""
DEPENDENT = 1e-9


class TooManyFacets(Exception):
    """The hull has more facets, or larger numbers in them, than can be worked out."""


def half_spaces_of(
    points: Int64[np.ndarray, "points size"],
) -> tuple[Float64[np.ndarray, "half_spaces size"], Float64[np.ndarray, " half_spaces"]]:
    r"""Normals c and offsets b of the hull of the points: those x with :math:`c \cdot x \le b` for all of them.

    For each facet one, and two for each equation that all points satisfy.

    By double description (Motzkin, Raiffa, Thompson and Thrall, 1953): the facets of the hull of some of the points are
    known; another point cuts those that it violates, and the new ones pass through it and a ridge between a facet that
    it violates and one that it satisfies. Two facets meet in a ridge when no third one has all points that both have
    (Fukuda and Prodon, 1996). Points are taken in their order, of which the lexicographic one is a good one.

    Raises
    ------
    TooManyFacets : when that becomes too much.
    """
    axes, first = _frame(points)
    facets = _facets(np.concatenate([np.ones((len(points), 1), np.int64), points[:, axes]], axis=1), first)
    normals, offsets = np.zeros((len(facets), points.shape[1])), facets[:, 0].astype(np.float64)
    normals[:, axes] = -facets[:, 1:]
    others = np.setdiff1d(np.arange(points.shape[1]), axes)
    lifted = np.concatenate([np.ones((len(first), 1)), points[first][:, axes]], axis=1)
    # Every other coordinate is a sum of a constant and multiples of these.
    terms = np.linalg.solve(lifted, points[first][:, others].astype(np.float64))
    equations = np.zeros((len(others), points.shape[1]))
    equations[np.arange(len(others)), others] = 1.0
    equations[:, axes] = -terms[1:].T
    if (np.abs(points @ equations.T - terms[0]) > DEPENDENT).any():
        raise TooManyFacets  # dimensions that rounding hides
    return np.vstack([normals, equations, -equations]), np.concatenate([offsets, terms[0], -terms[0]])


def _facets(lifted: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Rows h such that ``h @ (1, x) >= 0``, from points with a 1 in front; the ``first`` ones are a simplex."""
    if lifted.shape[1] == 1:
        return np.zeros((0, 1), np.int64)
    lifted = lifted[np.concatenate([first, np.setdiff1d(np.arange(len(lifted)), first)])]
    facets = _of_simplex(lifted[: len(first)])
    met = _Incidences(facets @ lifted[: len(first)].T == 0, len(lifted))
    left = COMPARISONS
    for place in range(len(first), len(lifted)):
        value = facets @ lifted[place]
        good, bad = np.flatnonzero(value > 0), np.flatnonzero(value < 0)
        if len(bad):
            one, other, spent = met.ridges(good, bad, lifted.shape[1] - 1, left)
            left -= spent
            new = value[one, None] * facets[other] - value[other, None] * facets[one]
            new //= np.gcd.reduce(new, axis=1, keepdims=True)
            staying = np.flatnonzero(value >= 0)
            if len(staying) + len(new) > FACETS or np.abs(new).max(initial=0) > LARGEST // lifted.shape[1]:
                raise TooManyFacets
            facets = np.concatenate([facets[staying], new])
            met.replace(staying, one, other)
        met.mark(place, facets @ lifted[place] == 0)
    return facets


def _frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates that tell the points apart as well as all do, and the first points in general position, one more."""
    centred = (points - points[0]).astype(np.float64)
    axes: list[int] = []
    first = [0]
    for place in range(1, len(points)):
        rest = centred[place]
        largest = int(np.abs(rest).argmax())
        if abs(rest[largest]) <= DEPENDENT:
            continue
        first.append(place)
        axes.append(largest)
        # Elimination: what is left of all others has nothing in this coordinate.
        centred[place + 1 :] -= np.outer(centred[place + 1 :, largest] / rest[largest], rest)
    return np.array(sorted(axes), np.int64), np.array(first)


def _of_simplex(corners: np.ndarray) -> np.ndarray:
    """The facet opposite to each corner of a simplex, by Cramer's rule."""
    size = np.rint(np.linalg.det(corners.astype(np.float64)))
    if not 0.0 < abs(size) < LARGEST:
        raise TooManyFacets
    facets: np.ndarray = np.rint(np.linalg.inv(corners.astype(np.float64)).T * abs(size)).astype(np.int64)
    if (np.abs(facets) > LARGEST).any():
        raise TooManyFacets
    if not np.array_equal(facets @ corners.T, int(abs(size)) * np.eye(len(corners), dtype=np.int64)):
        raise TooManyFacets  # determinants too large for floating point
    facets //= np.gcd.reduce(facets, axis=1, keepdims=True)
    return facets


class _Incidences:
    """Which facets have which points, in words of 64 points."""

    def __init__(self, met: np.ndarray, points: int) -> None:
        self.words = np.zeros((len(met), -(-points // 64)), np.uint64)
        for place, column in enumerate(met.T):
            self.mark(place, column)

    def mark(self, place: int, which: np.ndarray) -> None:
        """That some facets have a point."""
        self.words[which, place // 64] |= np.uint64(1) << np.uint64(place % 64)

    def replace(self, staying: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
        """Some facets stay, and new ones have the points that two of the old ones had."""
        self.words = np.concatenate([self.words[staying], self.words[one] & self.words[other]])

    def ridges(
        self, good: np.ndarray, bad: np.ndarray, dimensions: int, left: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Pairs of a good and a bad facet that meet in a ridge, and how many words were compared for that."""
        words = self.words
        width = words.shape[1]
        ones: list[np.ndarray] = []
        others: list[np.ndarray] = []
        spent = 0
        step = max(1, AT_ONCE // max(1, len(bad) * width))
        for start in range(0, len(good), step):
            mine = good[start : start + step]
            common = words[mine][:, None, :] & words[bad][None, :, :]
            spent += common.size
            enough = np.bitwise_count(common).sum(axis=2) >= dimensions - 1
            row, column = np.nonzero(enough)
            spent += len(row) * len(words) * width
            if spent > left:
                raise TooManyFacets
            alone = self._alone(common[row, column])
            ones.append(mine[row[alone]])
            others.append(bad[column[alone]])
        return np.concatenate(ones or [good[:0]]), np.concatenate(others or [bad[:0]]), spent

    def _alone(self, common: np.ndarray) -> np.ndarray:
        """Which sets of points no more than two facets have."""
        count = np.zeros(len(common), np.int64)
        step = max(1, AT_ONCE // max(1, self.words.size))
        for start in range(0, len(common), step):
            piece = common[start : start + step, None, :]
            count[start : start + step] = ((piece & ~self.words) == 0).all(axis=2).sum(axis=1)
        ridges: np.ndarray = count == 2
        return ridges
