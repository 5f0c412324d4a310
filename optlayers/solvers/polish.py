"""From nearly optimal to exact: projections solved on their active set."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.dense import polish_densely
from optlayers.solvers.kernels import active_set
from optlayers.solvers.kernels import optimality as kernel
from optlayers.solvers.kernels.batches import per_instance
from optlayers.solvers.plan import KernelInput, plan_of

__all__ = ["polish", "refine"]

NEAR = (1e-8, 1e-6, 1e-10)
"""Where such a guess leads nowhere, the next ones are that columns are at bounds which they are so near to."""
REFINEMENTS = 2
"""Each takes what rounding left of the systems from 1e-16 to the square of that, as far as they can be solved."""


def polish(form: StandardForm, instances: Instances, answer: Answer) -> Answer:
    """The projections of an answer on their exact active sets, as an answer of its own.

    A bound is guessed to be active where the solver says so, else where it has less room than its multiplier says: at
    an interior solution the larger of the two tells. Bounds that the solution violates are added, multipliers of the
    wrong sign released, and the system is solved again. Where that does not end, the points stay what they were.
    """
    plan = plan_of(form)
    if plan.dense:
        return polish_densely(form, instances, answer)
    batch, point, dual = KernelInput.of(plan, instances), answer.point.copy(), answer.dual.copy()
    low, high = _guess(form, instances, answer)
    free, exact = ~(low | high), np.zeros(len(instances), dtype=bool)
    finite = np.flatnonzero(np.isfinite(point).all(axis=1) & np.isfinite(dual).all(axis=1))

    def on_guess(some: np.ndarray) -> None:
        def work(which: np.ndarray) -> None:
            active_set.polish(
                plan.system.table,
                plan.slack_row,
                plan.varies,
                batch.matrix,
                batch.scores,
                plan.curvature,
                batch.rhs,
                batch.lower,
                batch.upper,
                some[which],
                point,
                dual,
                low,
                high,
                free,
                exact,
            )

        plan.spread(work, len(some), solves=4)

    on_guess(finite)
    for near in NEAR:
        left = finite[~exact[finite]]
        if len(left) == 0:
            break
        # Next to a bound that a column is not at, its multiplier may tell nothing: a row that only such columns could
        # meet has none that is free.
        room_low, room_high = answer.point[left] - instances.lower[left], instances.upper[left] - answer.point[left]
        low[left] = room_low <= np.minimum(room_high, near)
        high[left] = (room_high <= near) & ~low[left]
        on_guess(left)
    return Answer(point, dual, answer.status, free=free, reasons=answer.reasons)


def _guess(
    form: StandardForm, instances: Instances, answer: Answer
) -> tuple[Bool[np.ndarray, "batch columns"], Bool[np.ndarray, "batch columns"]]:
    if answer.low is not None and answer.high is not None:
        return answer.low.copy(), answer.high.copy()
    plan = plan_of(form)
    with np.errstate(invalid="ignore"):  # failed instances hold NaN
        reduced = -plan.prices(plan.entries if instances.matrix is None else instances.matrix, answer.dual)
        reduced[:, : form.scored] += instances.scores
        reduced[:, : form.curved] -= answer.point[:, : form.curved]
        low = answer.point - instances.lower < -reduced
        high = (instances.upper - answer.point < reduced) & ~low
    together = instances.lower == instances.upper
    return low | together, high & ~together


def refine(
    form: StandardForm, instances: Instances, answer: Answer
) -> tuple[Answer, Float64[np.ndarray, "batch rows"]] | None:
    """Projections whose systems are solved beyond the rounding of float64, and the low parts of their dual points.

    Next to large scores the rounding of a dual point hides whether its point is right. What is left of the system on
    the active set is computed in twice the precision, and solved for once more (iterative refinement; Wilkinson, 1963).
    None where the answer has no active set, or the constraints are too many to do so.
    """
    plan = plan_of(form)
    if plan.dense or answer.free is None:
        return None
    batch, free, count = KernelInput.of(plan, instances), answer.free, len(instances)
    point, dual, low = answer.point.copy(), answer.dual.copy(), np.zeros_like(answer.dual)
    of_rows, of_columns = np.empty_like(dual), np.empty_like(point)
    p, q, left = np.empty_like(point), np.empty_like(dual), np.empty(count)

    def work(which: Int64[np.ndarray, " some"]) -> None:
        for _ in range(REFINEMENTS):
            kernel.missing(
                plan.start,
                plan.row,
                batch.matrix,
                batch.scores,
                plan.curvature,
                batch.rhs,
                which,
                point,
                dual,
                low,
                of_rows,
                of_columns,
            )
            of_rows[which] = np.where(np.isinf(of_rows[which]), 0.0, of_rows[which])  # rows without limit lack nothing
            active_set.solve_on_face(
                plan.system.table,
                plan.slack_row,
                plan.varies,
                batch.matrix,
                free,
                plan.curvature,
                of_columns,
                of_rows,
                which,
                p,
                q,
                left,
            )
            point[which] += np.where(free[which], p[which], 0.0)
            dual[which], low[which] = _two_sum(dual[which], q[which] + low[which])

    plan.spread(work, count, solves=4 * REFINEMENTS)
    within = np.clip(point, per_instance(instances.lower), per_instance(instances.upper))
    return Answer(within, dual, answer.status, free=free, reasons=answer.reasons), low


def _two_sum(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounded sum, and what rounding lost (Knuth, TAOCP 2, 4.2.2)."""
    with np.errstate(invalid="ignore"):  # failed instances hold infinite numbers
        total = first + second
        other = total - first
        return total, (first - (total - other)) + (second - other)
