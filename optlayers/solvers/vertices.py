"""Best vertices from solved linear programs: the optimal face, and a decision where it is no vertex."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optlayers.solvers.kernels import active_set, ties
from optlayers.solvers.kernels.ties import ROUNDS
from optlayers.solvers.plan import KernelInput, Plan

__all__ = ["Near", "best_vertices"]

STAGES = 6 + ROUNDS
"""How often a face may be made smaller: by scores of several scales, and by the objectives that decide ties."""

ROUNDING = 64 * np.finfo(np.float64).eps
"""Differences of scores below this, relative to the numbers they come from, are rounding."""


@final
@dataclass(frozen=True)
class Near:
    """Points near a solution, and the bounds that are active there; ``steps`` are negative at the limit."""

    point: Float64[np.ndarray, "batch columns"]
    dual: Float64[np.ndarray, "batch rows"]
    low: Bool[np.ndarray, "batch columns"]
    high: Bool[np.ndarray, "batch columns"]
    steps: Int64[np.ndarray, " batch"]

    @classmethod
    def empty(cls, plan: Plan, count: int) -> Near:
        """To be written to, all of it."""
        columns = len(plan.curvature)
        return cls(
            np.empty((count, columns)),
            np.empty((count, len(plan.system.order))),
            np.empty((count, columns), dtype=bool),
            np.empty((count, columns), dtype=bool),
            np.zeros(count, dtype=np.int64),
        )


@final
@dataclass(frozen=True)
class _Face:
    """A point of each optimal face, the columns that are at a bound all over it, and which faces are no vertices."""

    near: Near
    held: Bool[np.ndarray, "batch columns"]
    bound: Float64[np.ndarray, "batch columns"]
    tied: Bool[np.ndarray, " batch"]
    rest: Float64[np.ndarray, "batch columns"]
    """Where tied, what is left of the objective along the face, of unit size."""
    scale: Float64[np.ndarray, " batch"]


def best_vertices(plan: Plan, batch: KernelInput, near: Callable[[KernelInput], Near]) -> Near:
    """A best vertex per instance, decided by the instance alone; NaN where none could be made out.

    ``near`` solves linear programs. Columns with a multiplier are at their bounds all over the optimal face
    (complementary slackness, whichever optimal multipliers are at hand), the others are free on it. Next to large
    scores small ones vanish below the tolerance, and leave columns free that they would decide: what is left of the
    scores along the face is maximized over it at its own scale, until it is constant there. If the face is still no
    vertex, the objectives of :mod:`optlayers.solvers.kernels.ties` decide, in turn.
    """
    noise = ROUNDING * np.abs(batch.scores).max(axis=1, initial=0.0)
    return _best(plan, batch, near, noise, np.zeros(len(batch.scores), dtype=np.int64), STAGES)


def _best(
    plan: Plan,
    batch: KernelInput,
    near: Callable[[KernelInput], Near],
    noise: Float64[np.ndarray, " batch"],
    rounds: Int64[np.ndarray, " batch"],
    stages: int,
) -> Near:
    """The best vertices of instances for which so many objectives have decided already.

    ``noise`` is the rounding of the scores, which grows when what is left of them is taken to unit size.
    """
    face = _optimal_face(plan, batch, near(batch))
    best, tied = face.near, np.flatnonzero(face.tied)
    if len(tied) == 0:
        return best
    rest, scale, rounds = face.rest[tied], face.scale[tied], rounds[tied]
    noise = noise[tied] / scale
    rest[np.abs(rest) <= noise[:, None]] = 0.0
    undecided = np.abs(rest).max(axis=1, initial=0.0) == 0.0
    if stages == 0 or (rounds[undecided] >= ROUNDS).any():
        best.point[tied] = np.nan
        return best
    for round_ in np.unique(rounds[undecided]):
        rest[undecided & (rounds == round_)] = ties.objective(int(round_), plan.scored, len(plan.curvature))
    scale[undecided] = 0.0  # multipliers of these objectives prove nothing
    noise = np.where(undecided, 0.0, noise) + ROUNDING
    smaller = _held(batch.take(tied), face.held[tied], face.bound[tied], rest)
    again = _best(plan, smaller, near, noise, rounds + undecided, stages - 1)
    best.point[tied] = np.where((again.steps >= 0)[:, None], again.point, np.nan)
    best.dual[tied] += scale[:, None] * again.dual
    return best


def _optimal_face(plan: Plan, batch: KernelInput, near: Near) -> _Face:
    count, columns = near.point.shape
    tied, rest, scale = np.zeros(count, dtype=bool), np.zeros((count, columns)), np.ones(count)
    active_set.vertex(
        plan.system.table,
        plan.varies,
        batch.matrix,
        batch.scores,
        ties.probe(plan.scored, len(plan.curvature)),
        plan.scored,
        batch.rhs,
        batch.lower,
        batch.upper,
        np.arange(count),
        near.low,
        near.high,
        near.point,
        near.dual,
        tied,
        rest,
        scale,
    )
    return _Face(near, near.low | near.high, np.where(near.low, batch.lower, batch.upper), tied, rest, scale)


def _held(
    batch: KernelInput, held: np.ndarray, bound: np.ndarray, costs: Float64[np.ndarray, "batch scored"]
) -> KernelInput:
    """Problems on the faces where columns are held at bounds, with other costs."""
    lower, upper = np.where(held, bound, batch.lower), np.where(held, bound, batch.upper)
    return replace(batch, scores=costs, lower=lower, upper=upper)
