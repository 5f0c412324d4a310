r"""The derivative of the projection, once for all solvers that report an active set.

It is the adjoint of the active set's linear system (see :mod:`optlayers.solvers.kernels.active_set`). With
:math:`(p, q)` its solution for the right-hand side ``(direction, 0)``, the gradient of the scores is p, of b it is q,
of an active bound ``direction - Aᵀ q``, and that of A is ``-(y pᵀ + q zᵀ)``, where y is the dual point and z the
answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.dense import solve_densely
from optlayers.solvers.kernels import active_set, separable
from optlayers.solvers.kernels.batches import of_each, per_instance
from optlayers.solvers.plan import plan_of
from optlayers.solvers.slow_systems import solve_slowly

__all__ = ["PulledBack", "value_gradient", "value_gradient_of"]

ROOM = 1e-6
"""A row with more room than this, relative to its right-hand side, is far from binding: its price is 0."""


@final
@dataclass(slots=True)
class PulledBack:
    """A gradient of projections, pulled back: ``(p, q)``, 0 for instances for which it is not ``right``."""

    form: StandardForm
    instances: Instances
    free: Bool[np.ndarray, "batch columns"]
    direction: Float64[np.ndarray, "batch scored"]
    p: Float64[np.ndarray, "batch columns"]
    q: Float64[np.ndarray, "batch rows"]
    right: Bool[np.ndarray, " batch"]

    @classmethod
    def of(
        cls,
        form: StandardForm,
        instances: Instances,
        free: Bool[np.ndarray, "batch columns"],
        direction: Float64[np.ndarray, "batch scored"],
        ok: Bool[np.ndarray, " batch"],
    ) -> PulledBack:
        """Of a ``direction`` through projections with these active sets; instances that are not ``ok`` give 0."""
        if np.count_nonzero(ok) < len(ok):
            free, direction = free & ok[:, None], np.where(ok[:, None], direction, 0.0)
        p, q, solved = _solve(form, instances, free, direction)
        right = ok.copy() if solved is None else solved & ok
        if np.count_nonzero(right) < len(right):
            p, q = np.where(right[:, None], p, 0.0), np.where(right[:, None], q, 0.0)
        return cls(form, instances, free, direction, p, q, right)

    def where(self, index: Int64[np.ndarray, " some"], other: PulledBack) -> PulledBack:
        """These gradients, with those of ``other`` for the instances ``index``."""
        free, p, q, right = (np.array(part) for part in (self.free, self.p, self.q, self.right))
        free[index], p[index], q[index], right[index] = other.free, other.p, other.q, other.right
        return replace(self, free=free, p=p, q=q, right=right)

    @property
    def scores(self) -> Float64[np.ndarray, "batch scored"]:
        """The gradient of the scores."""
        return self.p[:, : self.form.scored]

    def parameters(
        self,
        point: Float64[np.ndarray, "batch columns"],
        dual: Float64[np.ndarray, "batch rows"],
        high: Bool[np.ndarray, "batch columns"],
    ) -> Float64[np.ndarray, "batch parameters"]:
        """The gradient of θ, for the projections, their dual points, and which columns their upper bound holds."""
        form, instances, p = self.form, self.instances, self.p
        q, dual = _in_rows_of_form(instances, self.q), _in_rows_of_form(instances, dual)
        theta = form.rhs.transposed(q)
        if not form.bounds_are_constant:
            pressed = -_prices(form, instances, self.q)
            pressed[:, : form.scored] += self.direction
            pressed = np.where(self.free, 0.0, pressed)
            if instances.forbidden is not None:
                pressed[instances.forbidden] = 0.0  # held at 0 by its score, not by a bound
            theta = theta + form.lower.transposed(np.where(high, 0.0, pressed))
            theta += form.upper.transposed(np.where(high, pressed, 0.0))
        if not form.matrix_is_constant:
            row, column = form.matrix.indices, form.entry_column
            entries = -(dual[:, row] * p[:, column] + q[:, row] * point[:, column])
            theta += (form.matrix_map.T @ np.where(self.right[:, None], entries, 0.0).T).T
        theta[~self.right] = 0.0
        return theta


def value_gradient(
    form: StandardForm,
    instances: Instances,
    point: Float64[np.ndarray, "batch columns"],
    dual: Float64[np.ndarray, "batch rows"],
    ok: Bool[np.ndarray, " batch"],
    curved: int,
) -> Float64[np.ndarray, "batch parameters"]:
    r"""The gradient of optimal values with respect to θ; 0 for instances that are not ``ok``.

    It is that of the bound :math:`b^\top y + \sum_i \max_{l_i \le z_i \le u_i} (c - A^\top y)_i z_i` at the optimal z
    and y (see :func:`optlayers.solvers.certify.certify`): y for b, the reduced costs for the bounds that they point
    to, and :math:`-y z^\top` for A. The first ``curved`` columns have :math:`-\tfrac12 z_i^2` in the objective.
    """
    slope = np.zeros(point.shape)
    slope[:, :curved] = point[:, :curved]
    return value_gradient_of(form, instances, point, dual, ok, slope)


def value_gradient_of(
    form: StandardForm,
    instances: Instances,
    point: Float64[np.ndarray, "batch columns"],
    dual: Float64[np.ndarray, "batch rows"],
    ok: Bool[np.ndarray, " batch"],
    slope: Float64[np.ndarray, "batch columns"],
    free: Bool[np.ndarray, "batch columns"] | None = None,
) -> Float64[np.ndarray, "batch parameters"]:
    """The gradient of optimal values as in :func:`value_gradient`, where the objective is less a function of each
    column that has this ``slope`` at the point; columns that are known to be ``free`` are held by no bound."""
    dual = np.where(ok[:, None], dual, 0.0)
    point = np.where(ok[:, None], point, 0.0)
    sides = np.abs(instances.rhs[:, form.equalities :])
    room = point[:, form.unslacked :] > ROOM * np.where(sides > 1.0, sides, 1.0)
    dual[:, form.equalities :] = np.where(room | np.isinf(sides), 0.0, np.maximum(dual[:, form.equalities :], 0.0))
    reduced = -_prices(form, instances, dual)
    reduced[:, : form.scored] += instances.scores
    reduced -= np.where(ok[:, None], slope, 0.0)
    if free is not None:
        reduced[free] = 0.0
    if instances.forbidden is not None:
        reduced[instances.forbidden] = 0.0  # held at 0 by its score, not by a bound
    dual = _in_rows_of_form(instances, dual)
    theta = form.rhs.transposed(dual)
    theta += form.upper.transposed(np.maximum(reduced, 0.0)) + form.lower.transposed(np.minimum(reduced, 0.0))
    if not form.matrix_is_constant:
        entries = -dual[:, form.matrix.indices] * point[:, form.entry_column]
        theta += (form.matrix_map.T @ entries.T).T
    theta[~ok] = 0.0
    return theta


def _solve(
    form: StandardForm,
    instances: Instances,
    free: Bool[np.ndarray, "batch columns"],
    direction: Float64[np.ndarray, "batch scored"],
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"], Bool[np.ndarray, " batch"] | None]:
    """``(p, q)``, and which of them are solved, None where all are."""
    plan, count = plan_of(form), len(free)
    if plan.dense:
        return solve_densely(form, instances, free, direction)
    p, q = np.empty((count, form.columns)), np.empty((count, form.rows))
    matrix = plan.entries if instances.matrix is None else instances.shared.matrix
    if plan.separable and form.slack == 0 and form.auxiliary == 0:
        each = of_each(direction)
        if count < plan.certified_alone:
            separable.pull_back(plan.system.table, plan.varies, matrix, free, each, np.arange(count), p, q)
        else:
            by_row = partial(separable.pull_back, plan.system.table, plan.varies, matrix, free, each)
            plan.spread(lambda which: by_row(which, p, q), count, solves=1)
        return p, q, None
    side = per_instance(direction)
    left, no_rows = np.empty(count), np.zeros((1, form.rows))

    def work(which: np.ndarray) -> None:
        active_set.solve_on_face(
            plan.system.table,
            plan.slack_row,
            plan.varies,
            matrix,
            free,
            plan.curvature,
            side,
            no_rows,
            which,
            p,
            q,
            left,
        )

    plan.spread(work, count, solves=3)
    solved = left <= active_set.CONVERGED
    for k in np.flatnonzero(~solved):
        whole = np.zeros(form.columns)
        whole[: form.scored] = direction[k]
        p[k], q[k], solved[k] = solve_slowly(form, instances, int(k), free[k], whole)
    return p, q, solved


def _prices(
    form: StandardForm, instances: Instances, dual: Float64[np.ndarray, "batch rows"]
) -> Float64[np.ndarray, "batch columns"]:
    """``Aᵀ y`` for every instance."""
    plan = plan_of(form)
    return plan.prices(plan.entries if instances.matrix is None else instances.matrix, dual)


def _in_rows_of_form(instances: Instances, dual: np.ndarray) -> np.ndarray:
    """Multipliers of the rows of instances, which may be scaled, as those of the rows of the form."""
    return dual if instances.row_scale is None else dual * instances.row_scale
