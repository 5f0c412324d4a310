"""DualNewton: projections and best vertices by a compiled semismooth Newton method, for equalities and bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np

from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, Answer, Instances
from optlayers.solvers.kernels import newton, separable
from optlayers.solvers.kernels.batches import of_each
from optlayers.solvers.kernels.lanes import LANES
from optlayers.solvers.kernels.normal_equations import factor_size
from optlayers.solvers.plan import KernelInput, plan_of
from optlayers.solvers.vertices import Near, best_vertices

__all__ = ["DualNewton"]

GUESSED_STEPS = 8
"""What is told to the thread pool about the work of one instance."""
PROXIMAL_STEPS = 60
"""How many projections one linear program may take."""
STEP = 1e3
"""Length of a proximal step along costs of unit size."""
STILL = 1e-11
"""A point that moves less than this is the end of the proximal steps."""
PRICED = 1e-9
"""Reduced costs above this, at costs of unit size, keep their column at its bound."""


@final
@dataclass(frozen=True)
class DualNewton(AbstractMaximizer, AbstractProjector):
    """Solve by a semismooth Newton method on the dual problem, four instances at a time in compiled code.

    For forms in which every column is scored and every row an equality: simplices, matchings, sequences, subsets,
    flows. Where no two rows share a column, every row is solved on its own. It ends on the exact active set, so its
    answers are exact to rounding. (Qi and Sun, 1993; Li, Sun and Toh, 2020; the formulas are in
    :mod:`optlayers.solvers.kernels.newton`.) Best vertices come from a few projections of far points, and ties are
    decided as by :class:`InteriorPoint`.

    Parameters
    ----------
    iteration_limit : Newton steps per instance; 5 to 10 are usual, 50 next to scores of 1000.
    """

    iteration_limit: int = 100
    manner = "a compiled Newton method on the dual, exact on its active set"

    def __post_init__(self) -> None:
        if self.iteration_limit < 1:
            raise ValueError(f"iteration_limit must be positive, but got {self.iteration_limit}")

    @staticmethod
    def takes(form: StandardForm) -> bool:
        """Whether a form has columns with curvature and equalities only."""
        return form.uncurved == 0 and form.slack == 0

    def prepare(self, form: StandardForm) -> _State:
        if not self.takes(form):
            raise DeclarationError(
                f"DualNewton takes equalities and bounds on the scored variable, but this polytope has {form.slack} "
                f"inequality rows and {form.uncurved} auxiliary columns; use InteriorPoint() or Auto()"
            )
        return _State(form)

    def project(self, state: _State, instances: Instances) -> Answer:
        plan, form, count = state.plan, state.form, len(instances.whole)
        rhs, lower, upper, matrix = instances.shared
        batch = KernelInput(of_each(instances.scores), rhs, lower, upper, plan.entries if matrix is None else matrix)
        steps, free = np.zeros(count, np.int64), np.empty((count, form.columns), dtype=bool)
        point, dual = np.empty((count, form.columns)), np.empty((count, form.rows))
        answer = Answer(point, dual, np.zeros(count, dtype=np.int8), free)
        if count < state.worth_threads:
            self._solve(state, batch, np.arange(count), point, dual, free, steps)
        else:
            solve = partial(self._solve, state, batch, point=point, dual=dual, free=free, steps=steps)
            plan.spread(solve, count, state.solves)
        late = steps < 0
        if np.count_nonzero(late):
            answer.status[late] = Status.LIMIT
        return answer

    def maximize(self, state: _State, instances: Instances) -> Answer:
        plan, count = state.plan, len(instances)
        batch, answer = KernelInput.of(plan, instances), Answer.to_fill(state.form, count)

        def work(which: np.ndarray) -> None:
            near = best_vertices(plan, batch.take(which), partial(self._near, state))
            answer.point[which], answer.dual[which] = near.point, near.dual
            answer.status[which[near.steps < 0]] = Status.LIMIT

        plan.spread(work, count, 3 * GUESSED_STEPS)
        return answer

    def _near(self, state: _State, batch: KernelInput) -> Near:
        """Linear programs by proximal steps: a point that is the projection of ``point + STEP * costs`` is optimal.

        There are finitely many such steps (Rockafellar, 1976; Ferris, 1991), and usually two. The multipliers of the
        projection, divided by the step, are those of the linear program.
        """
        plan, count = state.plan, len(batch.scores)
        near = Near.empty(plan, count)
        free = np.empty(near.point.shape, dtype=bool)
        size = np.abs(batch.scores).max(axis=1, initial=0.0, keepdims=True)
        size[size == 0.0] = 1.0
        costs = batch.scores / size
        point, going = np.zeros(near.point.shape), np.arange(count)
        for _ in range(PROXIMAL_STEPS):
            target = replace(batch, scores=point + STEP * costs)
            self._solve(state, target, going, near.point, near.dual, free, near.steps)
            moved = np.abs(near.point[going] - point[going]).max(axis=1, initial=0.0)
            point[going] = near.point[going]
            going = going[
                (moved > STILL * (1.0 + np.abs(point[going]).max(axis=1, initial=0.0))) & (near.steps[going] >= 0)
            ]
            if len(going) == 0:
                break
        near.steps[going] = -PROXIMAL_STEPS
        prices = near.dual / STEP
        reduced = costs - plan.prices(batch.matrix, prices)
        together = batch.lower == batch.upper
        near.low[:] = (reduced < -PRICED) | together
        near.high[:] = (reduced > PRICED) & ~together
        near.dual[:] = prices * size
        return near

    def _solve(
        self,
        state: _State,
        batch: KernelInput,
        which: np.ndarray,
        point: np.ndarray,
        dual: np.ndarray,
        free: np.ndarray,
        steps: np.ndarray,
    ) -> None:
        plan = state.plan
        problem = batch.matrix, batch.scores, batch.rhs, batch.lower, batch.upper, which, self.iteration_limit
        if plan.separable:
            separable.project(plan.system.table, plan.varies, *problem, point, dual, free, steps)
        else:
            newton.project(plan.system.table, state.factor, plan.varies, *problem, point, dual, free, steps)


@final
class _State:
    def __init__(self, form: StandardForm) -> None:
        self.form = form
        self.plan = plan_of(form)
        self.solves = 1 if self.plan.separable else GUESSED_STEPS
        self.worth_threads = self.plan.worth_threads(self.solves)
        self.factor = np.empty(LANES * factor_size(self.plan.system))
        if not self.plan.separable:
            newton.unbounded_factor(self.plan.system.table, self.factor)
