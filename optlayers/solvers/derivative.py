"""The derivative of the projection, once for all solvers that report an active set."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.certificate import times_transpose
from optlayers.solvers.kkt import KKT

__all__ = ["pull_back"]


def pull_back(
    kkt: KKT,
    answer: Answer,
    instances: Instances,
    direction: Float64[np.ndarray, "batch scored"],
    failed: Bool[np.ndarray, " batch"],
) -> tuple[Float64[np.ndarray, "batch scored"], Float64[np.ndarray, "batch parameters"], Bool[np.ndarray, " batch"]]:
    r"""Gradients of scores and of θ for the gradient ``direction`` of a projection, and which of them are right.

    They are 0 for instances that ``failed``, and where the linear system could not be solved.

    The adjoint of the active set's linear system (see :mod:`optlayers.solvers.kkt`). With :math:`(p, q)` its solution
    for the right-hand side ``(direction, 0)``, the gradient of the scores is p, that of b is q, that of an active bound
    is ``direction - Aᵀ q``, and that of A is ``-(y pᵀ + q zᵀ)``, where y is the dual point and z the answer.
    """
    form = kkt.form
    free = _free(answer) & ~failed[:, None]
    side = np.zeros(free.shape)
    side[:, : form.scored] = np.where(failed[:, None], 0.0, direction)
    p, q, solved = kkt.solve(instances, free, side, np.zeros((len(free), form.rows)), rescue=True)
    p, q = np.where(solved[:, None], p, 0.0), np.where(solved[:, None], q, 0.0)
    failed = failed | ~solved
    parameters = np.zeros((len(free), form.parameter_count))
    if form.parameter_count == 0:
        return p[:, : form.scored], parameters, ~failed
    parameters += form.rhs.transposed(q)
    pressed = np.where(free, 0.0, side - times_transpose(form, instances, q))
    if instances.forbidden is not None:
        pressed[instances.forbidden] = 0.0  # held at 0 by its score, not by a bound
    high = instances.upper - answer.point < answer.point - instances.lower
    parameters += form.lower.transposed(np.where(high, 0.0, pressed))
    parameters += form.upper.transposed(np.where(high, pressed, 0.0))
    if not form.matrix_is_constant:
        row, column = form.matrix.indices, form.entry_column
        entries = -(answer.dual[:, row] * p[:, column] + q[:, row] * answer.point[:, column])
        parameters += (form.matrix_map.T @ np.where(failed[:, None], 0.0, entries).T).T
    parameters[failed] = 0.0
    return p[:, : form.scored], parameters, ~failed


def _free(answer: Answer) -> Bool[np.ndarray, "batch columns"]:
    if answer.free is None:
        raise RuntimeError("a projection without an active set brings a pullback of its own")
    return answer.free
