"""The certificate of points of sets with cones: what they miss, and for which scores they are best."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from optlayers.form.cones import ConeLayout, ConeNumbers
from optlayers.solvers.cone_projections import onto_dual

__all__ = ["cones_hold_together", "judge_cones", "times", "transposed"]

UNITS = 1000.0
"""As for polytopes, a distance counts over so many units: 1, or the largest entry of the point."""
LEAST = 1e-6
"""Right-hand sides of 0 count as much of what variables of size 1 can change them by."""
SMALL = 1e-4
"""Costs that are smaller count as so much, where there are no squares."""
ROUNDING = 1000.0 * np.finfo(np.float64).eps
"""A change of the declared numbers by as much of themselves is rounding."""
BEYOND = 1e6
"""Where constraints hold together at no point of this size, next to 1 and the right-hand sides, they are infeasible."""

Found = Float64[np.ndarray, " batch"]


def judge_cones(
    layout: ConeLayout,
    numbers: ConeNumbers,
    z: Float64[np.ndarray, "batch columns"],
    y: Float64[np.ndarray, "batch rows"],
) -> tuple[Found, Found, Found]:
    r"""Residual, gap and relative error of points z with dual points y.

    Let :math:`\sigma = b - A z` and :math:`w = y - \sigma`. By Moreau's theorem w is a point :math:`y^+` of the dual
    cones less a point :math:`\sigma^+` of the cones, orthogonal to each other. So z is best, exactly, for constraints
    whose right-hand sides differ by :math:`e = \sigma^+ - \sigma` and costs that differ by
    :math:`r = -(P z + q + A^\top y^+)`. The error is the largest of

    - e, relative to the largest term of its cone;
    - how far that can move the point: where columns have a square, by no more than r over its weight; what others leave
      of the gap adds its root, where r is more than rounding of its own terms. Both count over 1000 units.

    Where the objective has no squares, as for best values, r counts relative to the costs instead.

    What is taken off y and added to slacks depends on the units of y, and proves the same in all of them: y is brought
    to the size of the right-hand sides, and to 1, and the smaller error of both counts.
    """
    matrix = numbers.matrix
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        slack = numbers.rhs - times(matrix, z)
        terms = np.abs(numbers.rhs) + times(np.abs(matrix), np.abs(z))
        # Of a slack σ, the part outside of the cones is that of -σ inside of their duals.
        outside = onto_dual(layout, np.where(np.isfinite(slack), -slack, 0.0))
        residual = np.abs(outside).max(axis=1, initial=0.0)
        largest = np.maximum(_of_blocks(layout, terms), LEAST * np.abs(matrix).max(axis=2))
        most = terms.max(axis=1, initial=0.0)
        gap, error = _apart(layout, numbers, (z, y, slack), largest, np.maximum(most, LEAST))
        other_gap, other = _apart(layout, numbers, (z, y, slack), largest, np.maximum(most, 1.0))
        better = other < error
        gap, error = np.where(better, other_gap, gap), np.where(better, other, error)
    good = np.isfinite(error) & np.isfinite(z).all(axis=1)
    return np.where(good, residual, np.nan), np.where(good, gap, np.nan), np.where(good, error, np.inf)


def _apart(
    layout: ConeLayout,
    numbers: ConeNumbers,
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    largest: Float64[np.ndarray, "batch rows"],
    size: Found,
) -> tuple[Found, Found]:
    """Gap and error of points, dual points and slacks, with dual points of this size."""
    z, y, slack = points
    matrix = numbers.matrix
    unit = size / np.abs(y).max(axis=1, initial=0.0)
    unit = np.where(np.isfinite(unit) & (unit > 0.0), unit, 1.0)[:, None]
    scaled = unit * y
    near = onto_dual(layout, np.where(np.isfinite(scaled - slack), scaled - slack, 0.0))
    missed = (np.abs(near - scaled) / np.where(largest > 0.0, largest, 1.0)).max(axis=1, initial=0.0)
    near = near / unit
    left = times(numbers.curvature, z) + numbers.cost + transposed(matrix, near)
    of_terms = times(np.abs(numbers.curvature), np.abs(z)) + np.abs(numbers.cost)
    of_terms += transposed(np.abs(matrix), np.abs(near))
    reach = np.maximum(1.0, np.abs(z))
    squares = np.diagonal(numbers.curvature, axis1=1, axis2=2)
    alone = (np.abs(numbers.curvature).sum(axis=2) == squares) & (squares > 0.0)
    steep = np.broadcast_to(alone, left.shape)
    away = np.where(steep, np.abs(left) / np.where(alone, squares, 1.0), 0.0)
    beside = np.where(steep, 0.0, np.maximum(np.abs(left) - ROUNDING * of_terms, 0.0))
    distance = np.sqrt(np.square(away).sum(axis=1)) + np.sqrt(2.0 * (beside * reach).sum(axis=1))
    of_costs = beside.max(axis=1, initial=0.0) / of_terms.max(axis=1, initial=SMALL)
    dual = np.where(steep.any(axis=1), distance / (UNITS * reach.max(axis=1)), of_costs)
    gap = np.abs((near * slack).sum(axis=1)) + (np.abs(left) * reach).sum(axis=1)
    return gap, np.maximum(missed, dual)


def cones_hold_together(
    layout: ConeLayout, numbers: ConeNumbers, y: Float64[np.ndarray, "batch rows"]
) -> Bool[np.ndarray, " batch"]:
    r"""Whether dual points do not prove (Farkas) that there is no point: for y of the dual cones, every point has
    :math:`\langle A^\top y, z \rangle \le \langle b, y \rangle`, which a negative right-hand side contradicts for all
    z that are not very large."""
    near = onto_dual(layout, np.where(np.isfinite(y), y, 0.0))
    value, pull = (numbers.rhs * near).sum(axis=1), transposed(numbers.matrix, near)
    size = np.maximum(1.0, np.abs(numbers.rhs).max(axis=1, initial=0.0))
    rounding = ROUNDING * np.abs(numbers.rhs * near).sum(axis=1)
    proves: np.ndarray = -value - rounding > BEYOND * size * np.abs(pull).sum(axis=1)
    return ~proves


def times(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """A times the vectors of a batch; A may be shared."""
    found: np.ndarray = (matrix @ vectors[:, :, None])[:, :, 0] if len(matrix) > 1 else vectors @ matrix[0].T
    return found


def transposed(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The transpose of A times the vectors of a batch."""
    found: np.ndarray = (vectors[:, None, :] @ matrix)[:, 0] if len(matrix) > 1 else vectors @ matrix[0]
    return found


def _of_blocks(layout: ConeLayout, terms: np.ndarray) -> np.ndarray:
    """The largest term of the cone that each row is in."""
    if not len(layout.block):
        return terms
    starts = np.flatnonzero(np.diff(layout.block, prepend=-1))
    return np.maximum.reduceat(terms, starts, axis=1)[:, layout.block]
