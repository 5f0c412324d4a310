"""Best vertices by an interior point method: the optimal face, and a decision where it is no vertex."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optlayers.solvers.kernels import active_set, interior_point
from optlayers.solvers.plan import Batch, Plan

__all__ = ["Found", "best_vertices"]

STAGES = 6
"""How many scales of scores one instance may hold; what one scale leaves undecided is the next one's problem."""


@final
@dataclass(frozen=True)
class Found:
    """Vertices with their multipliers; NaN where none could be made out. ``steps`` are negative at the limit."""

    point: Float64[np.ndarray, "batch columns"]
    dual: Float64[np.ndarray, "batch rows"]
    steps: Int64[np.ndarray, " batch"]


@final
@dataclass(frozen=True)
class _Face:
    """A point of each optimal face, the columns that are at a bound all over it, and which faces are no vertices."""

    found: Found
    held: Bool[np.ndarray, "batch columns"]
    bound: Float64[np.ndarray, "batch columns"]
    tied: Bool[np.ndarray, " batch"]
    rest: Float64[np.ndarray, "batch columns"]
    """Where tied, what is left of the objective along the face, of unit size."""
    scale: Float64[np.ndarray, " batch"]


def best_vertices(plan: Plan, batch: Batch, limit: int, tolerance: float, stages: int = STAGES) -> Found:
    """A best vertex per instance, decided by the instance alone.

    The interior point ends in the middle of the optimal face: columns with more room than multiplier are free on it
    (strict complementarity), the others are at their bounds all over the face. Next to large scores small ones vanish
    below the tolerance, and leave columns free that they would decide: what is left of the scores along the face is
    maximized over it at its own scale, until it is constant there. If the face is still no vertex, the generic
    objective has a single best vertex on it.
    """
    face = _optimal_face(plan, batch, limit, tolerance)
    found, tied = face.found, np.flatnonzero(face.tied)
    if len(tied) == 0:
        return found
    if stages == 0:
        found.point[tied] = np.nan
        return found
    rest, scale = face.rest[tied], face.scale[tied]
    undecided = np.abs(rest).max(axis=1, initial=0.0) == 0.0
    rest[undecided], scale[undecided] = plan.generic, 0.0  # generic multipliers prove nothing
    smaller = _held(batch.take(tied), face.held[tied], face.bound[tied], rest)
    again = best_vertices(plan, smaller, limit, tolerance, stages - 1)
    found.point[tied] = np.where((again.steps >= 0)[:, None], again.point, np.nan)
    found.dual[tied] += scale[:, None] * again.dual
    return found


def _optimal_face(plan: Plan, batch: Batch, limit: int, tolerance: float) -> _Face:
    count, columns = len(batch.scores), len(plan.curvature)
    which = np.arange(count)
    found = Found(
        np.empty((count, columns)), np.empty((count, len(plan.system.order))), np.zeros(count, dtype=np.int64)
    )
    low, high = np.zeros((count, columns), dtype=bool), np.zeros((count, columns), dtype=bool)
    tied, rest, scale = np.zeros(count, dtype=bool), np.zeros((count, columns)), np.ones(count)
    shared = plan.system, plan.varies, batch.matrix, batch.scores
    bounds = batch.rhs, batch.lower, batch.upper, which
    interior_point.optimize(
        *shared, np.zeros(columns), *bounds, limit, tolerance, found.point, found.dual, low, high, found.steps
    )
    active_set.vertex(*shared, plan.generic, *bounds, low, high, found.point, found.dual, tied, rest, scale)
    bound = np.where(low, batch.lower, batch.upper)
    return _Face(found, low | high, bound, tied, rest, scale)


def _held(batch: Batch, held: np.ndarray, bound: np.ndarray, costs: Float64[np.ndarray, "batch scored"]) -> Batch:
    """The same problems on their faces, with other costs."""
    lower, upper = np.where(held, bound, batch.lower), np.where(held, bound, batch.upper)
    return replace(batch, scores=costs, lower=lower, upper=upper)
