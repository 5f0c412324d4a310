"""InteriorPoint: projections and best vertices by a compiled predictor-corrector method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from optlayers.form.standard import StandardForm
from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, Answer, Instances
from optlayers.solvers.block_units import InBlockUnits
from optlayers.solvers.kernels import interior_point
from optlayers.solvers.plan import KernelInput, Plan, plan_of
from optlayers.solvers.vertices import Near, best_vertices

__all__ = ["InteriorPoint"]

GUESSED_STEPS = 12
"""What is told to the thread pool about the work of one instance."""
STAGES = 6
"""How many scales of scores one instance may hold."""
LARGE = 1e3
"""Scores that exceed others by this factor are a scale of their own."""
DECIDED = 1e-6
"""A multiplier above this, relative to the largest score, leaves no doubt that its bound is active."""


def _continue(near: Near, index: np.ndarray, other: Near, held: np.ndarray) -> None:
    """Take over solutions in which the columns ``held`` kept the bound that they are near to, and add multipliers."""
    near.point[index], near.steps[index] = other.point, other.steps
    near.dual[index] += other.dual
    near.low[index] = np.where(held, near.low[index], other.low)
    near.high[index] = np.where(held, near.high[index], other.high)


@final
@dataclass(frozen=True)
class InteriorPoint(AbstractMaximizer, AbstractProjector):
    """Solve by Mehrotra's predictor-corrector method (1992), four instances at a time in compiled code.

    It takes every standard form, for projections and for best vertices; 8 to 12 steps are usual at any scale of
    scores. Projections are then solved exactly on their active set. For best vertices the columns that the optimal
    face leaves free are found; if they determine the structure it is the unique best vertex, and is computed exactly.
    If not, several vertices are best, and fixed objectives decide among them
    (:mod:`optlayers.solvers.kernels.ties`), the same ones in all solvers: which vertex that is depends on the scores of
    the instance alone.

    Parameters
    ----------
    tolerance : relative residuals and gap at which the interior point ends and its active set is taken.
    iteration_limit : interior point steps per instance.
    """

    tolerance: float = 1e-9
    iteration_limit: int = 60
    manner = "a compiled interior point method, exact on its active set"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, but got {self.tolerance}")
        if self.iteration_limit < 1:
            raise ValueError(f"iteration_limit must be positive, but got {self.iteration_limit}")

    def prepare(self, form: StandardForm) -> StandardForm:
        plan_of(form)
        return form

    def projectors_in_turn(self, state: StandardForm) -> Iterator[tuple[AbstractProjector, StandardForm]]:
        yield self, state
        yield InBlockUnits(self), state

    def project(self, state: StandardForm, instances: Instances) -> Answer:
        form, plan, count = state, plan_of(state), len(instances)
        batch, answer = KernelInput.of(plan, instances), Answer.to_fill(form, count)
        steps = np.zeros(count, dtype=np.int64)
        low, high = np.empty(answer.point.shape, dtype=bool), np.empty(answer.point.shape, dtype=bool)

        def work(which: np.ndarray) -> None:
            near = self._near(plan, batch.take(which))
            answer.point[which], answer.dual[which], steps[which] = near.point, near.dual, near.steps
            low[which], high[which] = near.low, near.high

        plan.spread(work, count, GUESSED_STEPS)
        answer.low, answer.high = low, high
        answer.status[steps < 0] = Status.LIMIT
        return answer

    def _near(self, plan: Plan, batch: KernelInput, stages: int = STAGES) -> Near:
        """Interior solutions, scale by scale.

        Next to scores of 1e9 (finite masks, say) others vanish below the tolerance. What large scores decide beyond
        doubt is held at its bound, and the rest solved again at its own scale.
        """
        near, columns = self._optimize(plan, batch, plan.curvature), len(plan.curvature)
        size = np.abs(batch.scores).max(axis=1, initial=0.0)
        large = np.flatnonzero((size > LARGE) & (near.steps >= 0))
        if len(large) == 0 or stages == 0:
            return near
        some = batch.take(large)
        costs = np.zeros((len(large), columns))
        costs[:, : some.scores.shape[1]] = some.scores
        # On the rows the objective c - Aᵀ y differs from c by a constant; its multipliers come on top of y.
        rest = costs - plan.prices(some.matrix, near.dual[large])
        pressed = rest - plan.curvature * near.point[large]
        decided = (near.low | near.high)[large] & (np.abs(pressed) > DECIDED * size[large, None])
        smaller = np.abs(np.where(decided, 0.0, costs)).max(axis=1, initial=0.0) * LARGE < size[large]
        again, decided, some = large[smaller], decided[smaller], some.take(np.flatnonzero(smaller))
        if len(again) == 0:
            return near
        bound = np.where(near.low[again], some.lower, some.upper)
        held = replace(
            some,
            scores=np.where(decided, 0.0, rest[smaller]),
            lower=np.where(decided, bound, some.lower),
            upper=np.where(decided, bound, some.upper),
        )
        _continue(near, again, self._near(plan, held, stages - 1), decided)
        return near

    def maximize(self, state: StandardForm, instances: Instances) -> Answer:
        form, plan, count = state, plan_of(state), len(instances)
        batch, answer = KernelInput.of(plan, instances), Answer.to_fill(form, count)

        def work(which: np.ndarray) -> None:
            near = best_vertices(
                plan, batch.take(which), lambda some: self._optimize(plan, some, np.zeros(form.columns))
            )
            answer.point[which], answer.dual[which] = near.point, near.dual
            late = near.steps < 0
            if np.count_nonzero(late):
                answer.status[which[late]] = Status.LIMIT

        plan.spread(work, count, GUESSED_STEPS)
        return answer

    def _optimize(self, plan: Plan, batch: KernelInput, curvature: np.ndarray) -> Near:
        near = Near.empty(plan, len(batch.scores))
        interior_point.optimize(
            plan.system.table,
            plan.varies,
            batch.matrix,
            batch.scores,
            curvature,
            batch.rhs,
            batch.lower,
            batch.upper,
            np.arange(len(batch.scores)),
            self.iteration_limit,
            self.tolerance,
            near.point,
            near.dual,
            near.low,
            near.high,
            near.steps,
        )
        return near
