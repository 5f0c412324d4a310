"""InteriorPoint: projections and best vertices by a compiled predictor-corrector method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, Answer, Instances
from optlayers.solvers.certificate import Certificate
from optlayers.solvers.kernels import interior_point
from optlayers.solvers.plan import Batch, Plan, plan_of
from optlayers.solvers.polish import polish_some
from optlayers.solvers.vertices import best_vertices
from optlayers.standard_form import StandardForm

__all__ = ["InteriorPoint"]

GUESSED_STEPS = 12
"""What is told to the thread pool about the work of one instance."""
STAGES = 6
"""How many scales of scores one instance may hold."""
LARGE = 1e3
"""Scores that exceed others by this factor are a scale of their own."""
DECIDED = 1e-6
"""A multiplier above this, relative to the largest score, leaves no doubt that its bound is active."""


@final
@dataclass(frozen=True)
class _Near:
    """Interior solutions with the bounds that they are near to; ``steps`` are negative at the limit."""

    point: np.ndarray
    dual: np.ndarray
    low: np.ndarray
    high: np.ndarray
    steps: np.ndarray

    def replace(self, index: np.ndarray, other: _Near, held: np.ndarray) -> None:
        """Take over solutions in which the columns ``held`` kept the bound that they are near to here."""
        self.point[index], self.dual[index], self.steps[index] = other.point, other.dual, other.steps
        self.low[index] = np.where(held, self.low[index], other.low)
        self.high[index] = np.where(held, self.high[index], other.high)


def _prices(plan: Plan, batch: Batch, dual: np.ndarray) -> np.ndarray:
    """``Aᵀ y`` for every instance."""
    return (plan.column_sums @ (batch.matrix * dual[:, plan.row]).T).T


@final
@dataclass(frozen=True)
class InteriorPoint(AbstractMaximizer, AbstractProjector):
    """Solve by Mehrotra's predictor-corrector method (1992), four instances at a time in compiled code.

    It takes every standard form, for projections and for best vertices; 8 to 12 steps are usual at any scale of
    scores. Projections are then solved exactly on their active set. For best vertices the columns that the optimal
    face leaves free are found; if they determine the structure it is the unique best vertex, and is computed exactly.
    If not, several vertices are best: the one is returned that maximizes a second, fixed and generic objective over
    the optimal face, as :class:`optlayers.Highs` does. It depends on the scores of the instance alone.

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

    def project(self, state: StandardForm, instances: Instances) -> Answer:
        form, plan, count = state, plan_of(state), len(instances)
        batch = Batch.of(plan, instances)
        answer = Answer.empty(form, count)
        answer.free = np.empty(answer.point.shape, dtype=bool)
        answer.certificate = Certificate.empty(count)
        low, high = np.empty(answer.point.shape, dtype=bool), np.empty(answer.point.shape, dtype=bool)
        steps = np.zeros(count, dtype=np.int64)

        def work(which: np.ndarray) -> None:
            found = self._near(plan, batch.take(which))
            answer.point[which], answer.dual[which], steps[which] = found.point, found.dual, found.steps
            low[which], high[which] = found.low, found.high
            polish_some(form, plan, batch, which, answer, low, high)

        plan.spread(work, count, GUESSED_STEPS)
        answer.status[steps < 0] = Status.LIMIT
        return answer

    def _near(self, plan: Plan, batch: Batch, stages: int = STAGES) -> _Near:
        """Interior solutions, scale by scale.

        Next to scores of 1e9 (finite masks, say) others vanish below the tolerance. What large scores decide beyond
        doubt is held at its bound, and the rest solved again at its own scale.
        """
        count, columns = len(batch.scores), len(plan.curvature)
        found = _Near(
            np.empty((count, columns)),
            np.empty((count, len(plan.system.order))),
            np.zeros((count, columns), dtype=bool),
            np.zeros((count, columns), dtype=bool),
            np.zeros(count, dtype=np.int64),
        )
        interior_point.optimize(
            plan.system,
            plan.varies,
            batch.matrix,
            batch.scores,
            plan.curvature,
            batch.rhs,
            batch.lower,
            batch.upper,
            np.arange(count),
            self.iteration_limit,
            self.tolerance,
            found.point,
            found.dual,
            found.low,
            found.high,
            found.steps,
        )
        size = np.abs(batch.scores).max(axis=1, initial=0.0)
        large = np.flatnonzero((size > LARGE) & (found.steps >= 0))
        if len(large) == 0 or stages == 0:
            return found
        width = batch.scores.shape[1]
        some, bound = batch.take(large), np.where(found.low, batch.lower, batch.upper)[large]
        reduced = some.scores - found.point[large, :width] - _prices(plan, some, found.dual[large])[:, :width]
        decided = (found.low | found.high)[large]
        decided[:, width:] = False
        decided[:, :width] &= np.abs(reduced) > DECIDED * size[large, None]
        rest = np.where(decided[:, :width], 0.0, some.scores)
        smaller = np.abs(rest).max(axis=1, initial=0.0) * LARGE < size[large]
        again, decided, bound = large[smaller], decided[smaller], bound[smaller]
        if len(again) == 0:
            return found
        held = replace(
            batch.take(again),
            scores=rest[smaller],
            lower=np.where(decided, bound, batch.take(again).lower),
            upper=np.where(decided, bound, batch.take(again).upper),
        )
        found.replace(again, self._near(plan, held, stages - 1), decided)
        return found

    def maximize(self, state: StandardForm, instances: Instances) -> Answer:
        form, plan, count = state, plan_of(state), len(instances)
        batch = Batch.of(plan, instances)
        answer = Answer.empty(form, count)
        certificate = answer.certificate = Certificate.empty(count)

        def work(which: np.ndarray) -> None:
            found = best_vertices(plan, batch.take(which), self.iteration_limit, self.tolerance)
            answer.point[which], answer.dual[which] = found.point, found.dual
            answer.status[which[found.steps < 0]] = Status.LIMIT
            certificate.judge(form, plan, batch, False, which, answer.point, answer.dual)

        plan.spread(work, count, GUESSED_STEPS)
        return answer
