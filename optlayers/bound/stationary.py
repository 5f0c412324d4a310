r"""Points and multipliers as functions of scores and parameters, differentiable to any order.

On an active set, with the columns N at bounds and the columns F free, a point z and the multipliers y of its rows are
given by

.. math:: s_F - \Omega'(z_F; \theta) - A_F(\theta)^\top y = 0, \qquad A(\theta) z = b(\theta), \qquad
          z_N = \text{bound}_N(\theta),

where Ω is the half squared norm for projections. These are smooth equations, and their solution has the derivative of
an implicit function: one more linear system (:mod:`optlayers.solvers.kernels.active_set`). That system is written here
as a function of its own right-hand side, its curvature and its entries, which has a derivative by one more system of
its kind, and so on. At ties, where active sets meet, these are the derivatives of one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.common.caches import cached_property
from optlayers.form.standard import StandardForm
from optlayers.solution import AbstractFunction
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import in_scaled_rows

__all__ = ["OnActiveSets", "Smooth"]

Solve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""From right-hand sides of columns and of rows to ``(p, q)``, and where these are right."""
OfColumns = Callable[[Tensor, Tensor], Tensor]
"""A function of columns and θ."""
Failed = Callable[[Bool[Tensor, " batch"]], None]


@final
class Smooth(NamedTuple):
    """What is solved on active sets: the linear systems, and the functions Ω' and Ω'' of columns, of which the latter
    is 0 where nothing moves; and Ω of columns where θ enters it, else None."""

    solve: Solve
    slope: OfColumns
    bend: OfColumns
    worth: OfColumns | None = None


@final
@dataclass(eq=False)
class OnActiveSets(AbstractFunction):
    """The answers of a batch on their active sets, as functions of scores and θ.

    ``point`` and ``dual`` are in rows of the form, with a graph.
    """

    sets: Sets
    scores: Float64[Tensor, "batch size"]
    theta: Float64[Tensor, "batch parameters"]
    point: Float64[Tensor, "batch columns"]
    dual: Float64[Tensor, "batch rows"]

    @classmethod
    def of(
        cls,
        form: StandardForm,
        instances: Instances,
        point: Float64[np.ndarray, "batch columns"],
        dual: Float64[np.ndarray, "batch rows"],
        free: Bool[np.ndarray, "batch columns"],
        smooth: Smooth,
        scores: Float64[Tensor, "batch size"],
        theta: Float64[Tensor, "batch parameters"],
        failed: Failed,
    ) -> OnActiveSets:
        """Of answers to instances, whose rows may be multiples of those of the form, as those of the systems are."""
        scale = instances.row_scale
        high = instances.upper - point < point - instances.lower
        held = ~free
        held[:, form.unslacked :] = False  # that a row has no slack is no number of an instance
        if instances.forbidden is not None:
            held &= ~instances.forbidden
        if scale is not None:
            point, dual = in_scaled_rows(form, point, dual, 1.0 / scale)
            smooth = smooth._replace(solve=partial(_in_rows_of_form, form, scale, smooth.solve))
        free, held, high = (np.ascontiguousarray(part) for part in (free, held, high))
        sets = Sets(form, smooth, torch.from_numpy(free), torch.from_numpy(held), torch.from_numpy(high), failed)
        numbers = torch.tensor(point, device="cpu"), torch.tensor(dual, device="cpu")
        return cls(sets, scores, theta, *_Points.apply(sets, *numbers, scores, theta))  # type: ignore[no-untyped-call]

    @property
    def value(self) -> Float64[Tensor, "batch size"]:
        """See :class:`AbstractFunction`."""
        return self.sets.expanded(self.point)

    def tangent(
        self, direction: Float64[Tensor, "batch size"]
    ) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, "batch parameters"]]:
        """See :class:`AbstractFunction`."""
        nothing = torch.zeros_like(self.dual)
        return self.sets.pulled_back(self.point, self.dual, self.theta, self.sets.gathered(direction), nothing)

    def value_gradient(self) -> Float64[Tensor, "batch parameters"]:
        """See :class:`AbstractFunction`."""
        return self.sets.value_gradient(self.point, self.dual, self.scores, self.theta)


@final
@dataclass(eq=False)
class Sets:
    """The active sets of a batch, and what is smooth on them.

    ``held`` marks the columns at a bound that a constraint sets, ``high`` of these the ones at an upper bound.
    ``failed`` is told for which instances a system has no solution. No tensor here has a graph, since what autograd
    remembers refers to it.
    """

    form: StandardForm
    smooth: Smooth
    free: Bool[Tensor, "batch columns"]
    held: Bool[Tensor, "batch columns"]
    high: Bool[Tensor, "batch columns"]
    failed: Failed

    def expanded(self, point: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch size"]:
        """Scored vectors from columns."""
        scored = point[:, : self.form.scored]
        if self.form.keeps_all:
            return scored
        whole = torch.from_numpy(self.form.fixed.copy()).expand(len(point), -1)
        return whole.index_copy(1, self._kept, scored)

    def gathered(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch columns"]:
        """Columns from scored vectors, 0 for those that are not scored."""
        scored = values if self.form.keeps_all else values.index_select(1, self._kept)
        return torch.nn.functional.pad(scored, (0, self.form.columns - self.form.scored))

    def pulled_back(
        self,
        point: Float64[Tensor, "batch columns"],
        dual: Float64[Tensor, "batch rows"],
        theta: Float64[Tensor, "batch parameters"],
        of_point: Float64[Tensor, "batch columns"],
        of_dual: Float64[Tensor, "batch rows"],
    ) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, "batch parameters"]]:
        """From gradients of points and multipliers to those of scores and θ, with a graph where one is recorded."""
        form = self.form
        bend = self.smooth.bend(point, theta)
        top = torch.where(self.free, of_point, 0.0)
        p, q = _Solved.apply(self, self._varying(theta), bend, top, of_dual)  # type: ignore[no-untyped-call]
        scores = torch.zeros(len(point), form.size, dtype=torch.float64, device="cpu")
        scores = scores.index_copy(1, self._kept, p[:, : form.scored])
        pressed = torch.where(self.held, of_point - self._prices(q, theta), 0.0)
        found = self._of_bounds(pressed) + self._times(self._rhs, q)
        if not form.matrix_is_constant:
            i, j = self._rows, self._columns
            found = found - self._times(self._matrix, p[:, j] * dual[:, i] + q[:, i] * point[:, j])
        if self.smooth.worth is not None:
            found = found - _by_theta(self.smooth.slope, point, theta, p)
        return scores, found

    def value_gradient(
        self,
        point: Float64[Tensor, "batch columns"],
        dual: Float64[Tensor, "batch rows"],
        scores: Float64[Tensor, "batch size"],
        theta: Float64[Tensor, "batch parameters"],
    ) -> Float64[Tensor, "batch parameters"]:
        """The gradient of optimal values with respect to θ."""
        reduced = self.gathered(scores) - self.smooth.slope(point, theta) - self._prices(dual, theta)
        found = self._of_bounds(torch.where(self.held, reduced, 0.0)) + self._times(self._rhs, dual)
        if self.smooth.worth is not None:
            found = found - _by_theta(self.smooth.worth, point, theta, torch.ones_like(point))
        if self.form.matrix_is_constant:
            return found
        return found - self._times(self._matrix, dual[:, self._rows] * point[:, self._columns])

    def _of_bounds(self, pressed: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch parameters"]:
        if self.form.bounds_are_constant:
            return torch.zeros(len(pressed), self.form.parameter_count, dtype=torch.float64, device="cpu")
        high = torch.where(self.high, pressed, 0.0)
        return self._times(self._upper, high) + self._times(self._lower, pressed - high)

    def _prices(self, dual: Float64[Tensor, "batch rows"], theta: Tensor) -> Float64[Tensor, "batch columns"]:
        """``Aᵀ y`` for the entries that A has at θ."""
        prices = self._times(self._constant, dual)
        if self.form.matrix_is_constant:
            return prices
        return prices.index_add(1, self._columns, self._varying(theta) * dual[:, self._rows])

    def _varying(self, theta: Tensor) -> Float64[Tensor, "batch entries"]:
        """What parameters add to those entries of A that they enter."""
        return (self._matrix.transpose(0, 1) @ theta.T).T

    @staticmethod
    def _times(matrix: Tensor, values: Float64[Tensor, "batch inner"]) -> Float64[Tensor, "batch outer"]:
        return (matrix @ values.T).T

    @cached_property
    def _kept(self) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.form.kept, dtype=np.int64))

    @cached_property
    def _entries(self) -> np.ndarray:
        """The places of the entries of A that parameters enter."""
        return np.flatnonzero(np.diff(self.form.matrix_map.indptr))

    @cached_property
    def _rows(self) -> Tensor:
        return torch.from_numpy(self.form.matrix.indices[self._entries].astype(np.int64))

    @cached_property
    def _columns(self) -> Tensor:
        return torch.from_numpy(self.form.entry_column[self._entries].astype(np.int64))

    @cached_property
    def _matrix(self) -> Tensor:
        return _sparse(self.form.matrix_map[self._entries].T)

    @cached_property
    def _constant(self) -> Tensor:
        return _sparse(self.form.matrix.T)

    @cached_property
    def _rhs(self) -> Tensor:
        return _sparse(self.form.rhs.matrix.T)

    @cached_property
    def _lower(self) -> Tensor:
        return _sparse(self.form.lower.matrix.T)

    @cached_property
    def _upper(self) -> Tensor:
        return _sparse(self.form.upper.matrix.T)


def _by_theta(
    function: OfColumns, point: Tensor, theta: Tensor, along: Float64[Tensor, "batch columns"]
) -> Float64[Tensor, "batch parameters"]:
    """The gradient by θ of a function along a direction, for points that stay where they are; with a graph."""
    with torch.enable_grad():
        here = theta.view_as(theta) if theta.requires_grad else theta.detach().requires_grad_()
        total = (function(point, here) * along).sum()
        found = (
            torch.autograd.grad(total, here, create_graph=True, allow_unused=True)[0] if total.requires_grad else None
        )
    return torch.zeros_like(theta) if found is None else found


def _sparse(matrix: sp.sparray) -> Tensor:
    whole = sp.coo_array(matrix)
    places = torch.from_numpy(np.stack([whole.coords[0], whole.coords[1]]).astype(np.int64))
    values = torch.from_numpy(whole.data.astype(np.float64))
    return torch.sparse_coo_tensor(places, values, whole.shape, check_invariants=True).coalesce()


def _in_rows_of_form(
    form: StandardForm, scale: Float64[np.ndarray, "batch rows"], solve: Solve, top: np.ndarray, bottom: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Systems in the rows of the form, by those in rows times ``scale``, which slack is counted in."""
    slack = scale[:, form.equalities :]
    top, bottom = top.copy(), bottom * scale
    top[:, form.unslacked :] /= slack
    p, q, right = solve(top, bottom)
    p[:, form.unslacked :] /= slack
    return p, q * scale, right


class _Points(torch.autograd.Function):
    """Points and multipliers, with their derivative by scores and θ."""

    @staticmethod
    def forward(
        ctx: Any, sets: Sets, point: Tensor, dual: Tensor, scores: Tensor, theta: Tensor
    ) -> tuple[Tensor, Tensor]:
        point, dual = point.clone(), dual.clone()
        ctx.sets = sets
        ctx.save_for_backward(point, dual, theta)
        return point, dual

    @staticmethod
    def backward(ctx: Any, of_point: Tensor, of_dual: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        return None, None, None, *ctx.sets.pulled_back(*ctx.saved_tensors, of_point, of_dual)


class _Solved(torch.autograd.Function):
    r"""The solution of the linear system on an active set, for right-hand sides of columns and rows.

    The matrix of the system is symmetric, so that gradients :math:`(a, c)` of the solution :math:`(p, q)` are pulled
    back by the same system, to :math:`(a', c')`, and to :math:`-a'_j p_j` for the curvature of a column and
    :math:`-(a'_j q_i + c'_i p_j)` for an entry.
    """

    @staticmethod
    def forward(
        ctx: Any, sets: Sets, varying: Tensor, bend: Tensor, top: Tensor, bottom: Tensor
    ) -> tuple[Tensor, Tensor]:
        p, q, right = sets.smooth.solve(top.detach().numpy(), bottom.detach().numpy())
        if not right.all():
            p, q = np.where(right[:, None], p, 0.0), np.where(right[:, None], q, 0.0)
            sets.failed(torch.from_numpy(~right))
        found = torch.from_numpy(np.where(sets.free.numpy(), p, 0.0)), torch.from_numpy(np.ascontiguousarray(q))
        ctx.sets = sets
        ctx.save_for_backward(varying, bend, *found)
        return found

    @staticmethod
    def backward(ctx: Any, of_p: Tensor, of_q: Tensor) -> tuple[Tensor | None, ...]:
        sets = ctx.sets
        varying, bend, p, q = ctx.saved_tensors
        top = torch.where(sets.free, of_p, 0.0)
        a, c = _Solved.apply(sets, varying, bend, top, of_q)  # type: ignore[no-untyped-call]
        i, j = sets._rows, sets._columns
        entries = -(a[:, j] * q[:, i] + c[:, i] * p[:, j]) if ctx.needs_input_grad[1] else None
        return None, entries, -a * p if ctx.needs_input_grad[2] else None, a, c
