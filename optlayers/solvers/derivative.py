"""The derivative of the projection, once for all solvers that report an active set."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.certificate import times_transpose
from optlayers.solvers.dense import solve_densely
from optlayers.solvers.kernels import active_set, separable
from optlayers.solvers.kernels.batches import per_instance
from optlayers.solvers.plan import plan_of
from optlayers.solvers.rescue import solve_slowly
from optlayers.standard_form import StandardForm

__all__ = ["pull_back", "value_gradient"]


def pull_back(
    form: StandardForm,
    answer: Answer,
    instances: Instances,
    direction: Float64[np.ndarray, "batch scored"],
    failed: Bool[np.ndarray, " batch"] | None,
) -> tuple[Float64[np.ndarray, "batch scored"], Float64[np.ndarray, "batch parameters"], Bool[np.ndarray, " batch"]]:
    r"""Gradients of scores and of θ for the gradient ``direction`` of a projection, and which of them are right.

    They are 0 for instances that ``failed`` (None where none did), and where the linear system could not be solved.

    The adjoint of the active set's linear system (see :mod:`optlayers.solvers.kernels.active_set`). With
    :math:`(p, q)` its solution for the right-hand side ``(direction, 0)``, the gradient of the scores is p, of b it is
    q, of an active bound ``direction - Aᵀ q``, and that of A is ``-(y pᵀ + q zᵀ)``, where y is the dual point
    and z the answer.
    """
    if answer.free is None:
        raise RuntimeError("a projection without an active set brings a pullback of its own")
    free = answer.free
    if failed is not None:
        free, direction = free & ~failed[:, None], np.where(failed[:, None], 0.0, direction)
    p, q, solved = _solve(form, instances, free, direction)
    if np.count_nonzero(solved) < len(solved):
        p, q = np.where(solved[:, None], p, 0.0), np.where(solved[:, None], q, 0.0)
    right = solved if failed is None else solved & ~failed
    parameters = np.zeros((len(free), form.parameter_count))
    if form.parameter_count == 0:
        return p[:, : form.scored], parameters, right
    parameters += form.rhs.transposed(q)
    pressed = -times_transpose(form, instances, q)
    pressed[:, : form.scored] += direction
    pressed = np.where(free, 0.0, pressed)
    if instances.forbidden is not None:
        pressed[instances.forbidden] = 0.0  # held at 0 by its score, not by a bound
    high = instances.upper - answer.point < answer.point - instances.lower
    parameters += form.lower.transposed(np.where(high, 0.0, pressed))
    parameters += form.upper.transposed(np.where(high, pressed, 0.0))
    if not form.matrix_is_constant:
        row, column = form.matrix.indices, form.entry_column
        entries = -(answer.dual[:, row] * p[:, column] + q[:, row] * answer.point[:, column])
        parameters += (form.matrix_map.T @ np.where(right[:, None], entries, 0.0).T).T
    parameters[~right] = 0.0
    return p[:, : form.scored], parameters, right


def value_gradient(
    form: StandardForm, answer: Answer, instances: Instances, failed: Bool[np.ndarray, " batch"] | None, curved: int
) -> Float64[np.ndarray, "batch parameters"]:
    r"""The gradient of optimal values with respect to θ; 0 for instances that ``failed`` (None where none did).

    It is that of the bound :math:`b^\top y + \sum_i \max_{l_i \le z_i \le u_i} (c - A^\top y)_i z_i` at the optimal z
    and y (see :func:`optlayers.solvers.certificate.certify`): y for b, the reduced costs for the bounds that they point
    to, and :math:`-y z^\top` for A. The first ``curved`` columns have :math:`-\tfrac12 z_i^2` in the objective.
    """
    dual, point = answer.dual.copy(), answer.point
    dual[:, form.equalities :] = np.maximum(dual[:, form.equalities :], 0.0)
    if failed is not None:
        dual, point = np.where(failed[:, None], 0.0, dual), np.where(failed[:, None], 0.0, point)
    reduced = -times_transpose(form, instances, dual)
    reduced[:, : form.scored] += instances.scores
    reduced[:, :curved] -= point[:, :curved]
    if instances.forbidden is not None:
        reduced[instances.forbidden] = 0.0  # held at 0 by its score, not by a bound
    theta = form.rhs.transposed(dual)
    theta += form.upper.transposed(np.maximum(reduced, 0.0)) + form.lower.transposed(np.minimum(reduced, 0.0))
    if not form.matrix_is_constant:
        entries = -dual[:, form.matrix.indices] * point[:, form.entry_column]
        theta += (form.matrix_map.T @ entries.T).T
    if failed is not None:
        theta[failed] = 0.0
    return theta


def _solve(
    form: StandardForm,
    instances: Instances,
    free: Bool[np.ndarray, "batch columns"],
    direction: Float64[np.ndarray, "batch scored"],
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"], Bool[np.ndarray, " batch"]]:
    plan, count = plan_of(form), len(free)
    if plan.dense:
        return solve_densely(form, instances, free, direction)
    p, q = np.empty((count, form.columns)), np.empty((count, form.rows))
    matrix = plan.entries if instances.matrix is None else per_instance(instances.matrix)
    side = per_instance(direction)
    if plan.separable and form.slack == 0 and form.auxiliary == 0 and (len(side) == count or count == 0):
        plan.spread(
            lambda which: separable.pull_back(plan.system, plan.varies, matrix, free, side, which, p, q),
            count,
            solves=1,
        )
        return p, q, np.ones(count, dtype=bool)
    left, no_rows = np.empty(count), np.zeros((1, form.rows))

    def work(which: np.ndarray) -> None:
        active_set.solve_on_face(
            plan.system, plan.slack_row, plan.varies, matrix, free, plan.curvature, side, no_rows, which, p, q, left
        )

    plan.spread(work, count, solves=3)
    solved = left <= active_set.CONVERGED
    for k in np.flatnonzero(~solved):
        whole = np.zeros(form.columns)
        whole[: form.scored] = direction[k]
        p[k], q[k], solved[k] = solve_slowly(form, instances, int(k), free[k], whole)
    return p, q, solved
