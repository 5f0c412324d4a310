"""From nearly optimal to exact: solve on the active set."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from optlayers.solution import Status
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.certificate import Certificate, times_transpose
from optlayers.solvers.dense import polish_densely
from optlayers.solvers.kernels import active_set
from optlayers.solvers.plan import Batch, Plan, plan_of
from optlayers.standard_form import StandardForm

__all__ = ["polish", "polish_some"]

SHARP = 1e-11
"""A polished answer with a larger relative error than this is compared with what it was made from."""


def polish(form: StandardForm, instances: Instances, answer: Answer) -> Answer:
    """Move projections onto their active set, and keep the result where its certificate is better.

    At an interior solution every bound has either room or a multiplier: the larger of the two tells whether the bound
    is active.
    """
    plan, batch = plan_of(form), Batch.of(plan_of(form), instances)
    if plan.dense:
        return polish_densely(form, instances, answer)
    failed = ~(np.isfinite(answer.point).all(axis=1) & np.isfinite(answer.dual).all(axis=1))
    answer.free = np.zeros(answer.point.shape, dtype=bool)
    answer.certificate = Certificate.empty(len(instances))
    solved = np.flatnonzero(~failed)
    low, high = _guess(form, instances, answer)
    plan.spread(lambda which: polish_some(form, plan, batch, solved[which], answer, low, high), len(solved), solves=4)
    # A certified point is an answer, whatever the solver thought of it.
    answer.status[solved] = np.where(answer.status[solved] == Status.INFEASIBLE, Status.INFEASIBLE, Status.OPTIMAL)
    return answer


def polish_some(
    form: StandardForm, plan: Plan, batch: Batch, which: np.ndarray, answer: Answer, low: np.ndarray, high: np.ndarray
) -> None:
    """Polish and certify the instances ``which`` of an answer, given which columns are at a bound."""
    if answer.free is None or answer.certificate is None:
        raise RuntimeError("an answer is polished into arrays of its own")
    point, dual = answer.point[which], answer.dual[which]
    exact = np.zeros(len(answer.point), dtype=bool)
    answer.free[which] = ~(low[which] | high[which])
    active_set.polish(
        plan.system,
        plan.slack_row,
        plan.varies,
        batch.matrix,
        batch.scores,
        plan.curvature,
        batch.rhs,
        batch.lower,
        batch.upper,
        which,
        answer.point,
        answer.dual,
        low,
        high,
        answer.free,
        exact,
    )
    answer.certificate.judge(form, plan, batch, True, which, answer.point, answer.dual)
    doubtful = answer.certificate.relative[which] > SHARP
    if doubtful.any():
        _keep_the_better(form, plan, batch, which[doubtful], answer, point[doubtful], dual[doubtful], ~(low | high))


def _keep_the_better(
    form: StandardForm,
    plan: Plan,
    batch: Batch,
    which: np.ndarray,
    answer: Answer,
    point: np.ndarray,
    dual: np.ndarray,
    guessed: Bool[np.ndarray, "batch columns"],
) -> None:
    if answer.free is None or answer.certificate is None:
        raise RuntimeError("an answer is polished into arrays of its own")
    relative = answer.certificate.relative[which]
    polished = answer.point[which], answer.dual[which], answer.free[which]
    answer.point[which], answer.dual[which], answer.free[which] = point, dual, guessed[which]
    answer.certificate.judge(form, plan, batch, True, which, answer.point, answer.dual)
    better = ~(answer.certificate.relative[which] < relative)
    back = which[better]
    answer.point[back], answer.dual[back], answer.free[back] = (part[better] for part in polished)
    answer.certificate.judge(form, plan, batch, True, back, answer.point, answer.dual)


def _guess(
    form: StandardForm, instances: Instances, answer: Answer
) -> tuple[Bool[np.ndarray, "batch columns"], Bool[np.ndarray, "batch columns"]]:
    with np.errstate(invalid="ignore"):  # failed instances hold NaN
        reduced = -times_transpose(form, instances, answer.dual)
        reduced[:, : form.scored] += instances.scores
        reduced[:, : form.curved] -= answer.point[:, : form.curved]
        low = answer.point - instances.lower < -reduced
        high = (instances.upper - answer.point < reduced) & ~low
    together = instances.lower == instances.upper
    return low | together, high & ~together
