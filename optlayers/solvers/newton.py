"""DualNewton: projections by a compiled semismooth Newton method, for equalities and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from optlayers.solution import Status
from optlayers.solvers.base import AbstractProjector, Answer, Instances
from optlayers.solvers.certificate import Certificate
from optlayers.solvers.kernels import newton
from optlayers.solvers.kernels.lanes import LANES
from optlayers.solvers.kernels.normal_equations import factor_size
from optlayers.solvers.plan import Batch, plan_of
from optlayers.standard_form import DeclarationError, StandardForm

__all__ = ["DualNewton"]

GUESSED_STEPS = 8
"""What is told to the thread pool about the work of one instance."""


@final
@dataclass(frozen=True)
class DualNewton(AbstractProjector):
    """Project by a semismooth Newton method on the dual problem, four instances at a time in compiled code.

    For forms in which every column is scored and every row an equality: simplices, matchings, sequences, subsets,
    flows. It ends on the exact active set, so its answers are exact to rounding. (Qi and Sun, 1993; Li, Sun and Toh,
    2020; the formulas are in :mod:`optlayers.solvers.kernels.newton`.)

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
        """Whether a form has scored columns and equalities only."""
        return form.auxiliary == 0 and form.slack == 0

    def prepare(self, form: StandardForm) -> _State:
        if not self.takes(form):
            raise DeclarationError(
                f"DualNewton takes equalities and bounds on the scored variable, but this polytope has {form.slack} "
                f"inequality rows and {form.auxiliary} auxiliary columns; use InteriorPoint() or Auto()"
            )
        return _State(form)

    def project(self, state: _State, instances: Instances) -> Answer:
        form, plan, count = state.form, state.plan, len(instances)
        batch = Batch.of(plan, instances)
        answer = Answer.empty(form, count)
        free = answer.free = np.empty(answer.point.shape, dtype=bool)
        certificate = answer.certificate = Certificate.empty(count)
        steps = np.zeros(count, dtype=np.int64)

        def work(which: np.ndarray) -> None:
            newton.project(
                plan.system,
                state.factor,
                plan.varies,
                batch.matrix,
                batch.scores,
                batch.rhs,
                batch.lower,
                batch.upper,
                which,
                self.iteration_limit,
                answer.point,
                answer.dual,
                free,
                steps,
            )
            certificate.judge(form, plan, batch, True, which, answer.point, answer.dual)

        plan.spread(work, count, GUESSED_STEPS)
        answer.status[steps < 0] = Status.LIMIT
        return answer


@final
class _State:
    def __init__(self, form: StandardForm) -> None:
        self.form = form
        self.plan = plan_of(form)
        self.factor = np.empty(LANES * factor_size(self.plan.system))
        newton.unbounded_factor(self.plan.system, self.factor)
