"""A batch of polytopes on an accelerator: what rules speak to when scores live there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound import NO_REASONS, AbstractBoundPolytope, Marginals, Tangent, tangent_of
from optlayers.marginals import LogPartition
from optlayers.on_host import HostEvidence, theta_of
from optlayers.polytope import Polytope
from optlayers.prepared import AbstractPrepared
from optlayers.sampling import sample
from optlayers.solution import AbstractEvidence, Solution, Status
from optlayers.solvers.batch import CONSISTENT, ROUNDINGS
from optlayers.solvers.dense import pieces
from optlayers.solvers.kernels import dense
from optlayers.solvers.kernels.dense import DenseAnswer, DenseProblem
from optlayers.standard_form import AffineMap, StandardForm

__all__ = ["DevicePolytope"]

NO_LIMIT = 1e30
"""Infinite parameters are this: products of 0 and an infinite number are none."""


@final
class DeviceArrays:
    """The arrays of a standard form as dense tensors on a device, made once."""

    def __init__(self, form: StandardForm, device: torch.device) -> None:
        self.form = form
        self.kept = torch.from_numpy(form.kept).to(device)
        self.fixed = torch.from_numpy(form.fixed).to(device)
        self.matrix = torch.from_numpy(form.matrix.toarray()).to(device)
        self.row = torch.from_numpy(form.matrix.indices.astype(np.int64)).to(device)
        self.column = torch.from_numpy(form.entry_column.astype(np.int64)).to(device)
        self.matrix_map = torch.from_numpy(form.matrix_map.toarray()).to(device)
        self.row_scale = torch.from_numpy(form.row_scale).to(device)
        self.maps = {
            name: self._map(part, device)
            for name, part in (
                ("rhs", form.rhs),
                ("lower", form.lower),
                ("upper", form.upper),
                ("consistency", form.consistency),
            )
        }

    @classmethod
    def of(cls, prepared: AbstractPrepared, device: torch.device) -> DeviceArrays:
        """Those of a polytope, made when they are first asked for."""
        if prepared.rows is None:
            raise TypeError("sets that are not polyhedral are solved on the CPU")
        arrays: DeviceArrays = prepared.on_devices.get(device, partial(cls, prepared.rows))
        return arrays

    @staticmethod
    def _map(part: AffineMap, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(part.constant).to(device), torch.from_numpy(part.matrix.toarray()).to(device)

    def values(self, name: str, theta: Float64[Tensor, "batch parameters"]) -> Float64[Tensor, "batch entries"]:
        """The numbers of every instance."""
        constant, matrix = self.maps[name]
        return constant + theta @ matrix.mT

    def transposed(self, name: str, gradient: Float64[Tensor, "batch entries"]) -> Float64[Tensor, "batch parameters"]:
        """The gradient that reaches the parameters."""
        return gradient @ self.maps[name][1]


@final
@dataclass(frozen=True)
class DeviceEvidence(AbstractEvidence):
    """What belongs to answers that were found on a device; ``masked`` columns are held at 0 by a score of -inf."""

    arrays: DeviceArrays
    answer: DenseAnswer
    problem: DenseProblem
    masked: Bool[Tensor, "batch columns"] | None

    @property
    def form(self) -> StandardForm:  # type: ignore[override]
        """The form that was solved."""
        return self.arrays.form

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"]
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """By the system on the active set; the formulas are in :mod:`optlayers.solvers.derivative`."""
        arrays, form, problem = self.arrays, self.form, self.problem
        if not bool((problem.curvature > 0).any()) and form.curved:
            raise ValueError("tangent takes a solution that project() returned, not one of maximize()")
        side = torch.zeros_like(problem.linear)
        side[:, : form.scored] = torch.where(ok[:, None], direction[:, arrays.kept], 0.0)
        answer = replace(self.answer, free=self.answer.free & ok[:, None])
        p, q, right = torch.zeros_like(side), torch.zeros_like(problem.rhs), ok.clone()
        if form.columns:
            found = [
                dense.pull_back(_slice(problem, piece), _slice_answer(answer, piece), side[piece])
                for piece in pieces(form, len(side))
            ]
            if found:
                p, q, solved = (torch.cat(part) for part in zip(*found, strict=True))
                right &= solved
        p, q = torch.where(right[:, None], p, 0.0), torch.where(right[:, None], q, 0.0)
        scores = torch.zeros_like(direction)
        scores[:, arrays.kept] = p[:, : form.scored]
        theta = arrays.transposed("rhs", q)
        prices = (q[:, None, :] @ problem.matrix)[:, 0, :]
        pressed = torch.where(answer.free | ~right[:, None], 0.0, side - prices)
        if self.masked is not None:
            pressed = pressed.masked_fill(self.masked, 0.0)
        high = problem.upper - answer.point < answer.point - problem.lower
        theta = theta + arrays.transposed("lower", torch.where(high, 0.0, pressed))
        theta = theta + arrays.transposed("upper", torch.where(high, pressed, 0.0))
        if not form.matrix_is_constant:
            dual, point = answer.dual.nan_to_num(), answer.point.nan_to_num()
            entries = -(dual[:, arrays.row] * p[:, arrays.column] + q[:, arrays.row] * point[:, arrays.column])
            theta = theta + entries @ arrays.matrix_map
        return scores, lambda: theta, right

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """From dual points; the formulas are in :mod:`optlayers.solvers.derivative`."""
        arrays, form, problem, good = self.arrays, self.form, self.problem, ok[:, None]
        dual, point = torch.where(good, self.answer.dual, 0.0), torch.where(good, self.answer.point, 0.0)
        dual[:, form.equalities :].clamp_(min=0.0)
        reduced = problem.linear - problem.curvature * point - (dual[:, None, :] @ problem.matrix)[:, 0, :]
        if self.masked is not None:
            reduced = reduced.masked_fill(self.masked, 0.0)
        theta = arrays.transposed("rhs", dual)
        theta = theta + arrays.transposed("upper", reduced.clamp(min=0.0))
        theta = theta + arrays.transposed("lower", reduced.clamp(max=0.0))
        if not form.matrix_is_constant:
            theta = theta - (dual[:, arrays.row] * point[:, arrays.column]) @ arrays.matrix_map
        return torch.where(good, theta, 0.0)


@final
class DevicePolytope(AbstractBoundPolytope):
    """Polytopes of one batch on the device of their scores; the twin of :class:`optlayers.BoundPolytope`.

    Nothing leaves the device but the instances that are not certified there; the solvers of the CPU have the last word
    on these.
    """

    def __init__(
        self,
        prepared: AbstractPrepared,
        theta: Float64[Tensor, "batch parameters"],
        forbidden: Bool[Tensor, "batch size"] | None,
        precision: Float64[np.ndarray, " parameters"],
    ) -> None:
        if prepared.rows is None:
            raise TypeError("sets that are not polyhedral are solved on the CPU")
        self.prepared = prepared
        self.theta = theta
        self.forbidden = forbidden
        self.precision = precision
        self.form = prepared.rows
        self.arrays = arrays = DeviceArrays.of(prepared, theta.device)
        numbers = theta.clamp(-NO_LIMIT, NO_LIMIT)
        self.rhs = arrays.values("rhs", numbers)
        self.lower, self.upper = arrays.values("lower", numbers), arrays.values("upper", numbers)
        self.masked = None
        if forbidden is not None:
            self.masked = torch.zeros_like(self.lower, dtype=torch.bool)
            self.masked[:, : self.form.scored] = forbidden[:, arrays.kept]
            self.lower = torch.where(self.masked, self.lower.clamp(min=0.0), self.lower)
            self.upper = torch.where(self.masked, self.upper.clamp(max=0.0), self.upper)
        self.matrix = arrays.matrix
        if not self.form.matrix_is_constant:
            self.matrix = arrays.matrix.expand(len(theta), -1, -1).clone()
            self.matrix[:, arrays.row, arrays.column] += numbers @ arrays.matrix_map.mT
        self.feasible = self._feasible(numbers)

    def _feasible(self, theta: Float64[Tensor, "batch parameters"]) -> Bool[Tensor, " batch"]:
        """Instances that do not break what presolve took for granted, by more than rounding; see
        :func:`optlayers.solvers.batch.broken_conditions`."""
        constant, matrix = self.arrays.maps["consistency"]
        missing, terms = (constant + theta @ matrix.mT).abs(), matrix.abs().mT
        rounding = torch.from_numpy(0.5 * self.precision).to(theta.device)
        allowed = CONSISTENT * (constant.abs() + theta.abs() @ terms) + ROUNDINGS * (theta.abs() * rounding) @ terms
        feasible = (missing <= allowed).all(dim=1) & (self.lower <= self.upper).all(dim=1)
        if self.forbidden is not None:
            feasible &= ~(self.forbidden & (self.arrays.fixed != 0)).any(dim=1)
        return feasible

    def maximize(self, scores: Float64[Tensor, "batch size"]) -> Solution:
        """A vertex per instance; see :meth:`optlayers.CompiledPolytope.maximize`."""
        return self._solve(scores, lambda some: dense.best_vertex(some, self.form.scored), projection=False)

    def project(
        self, scores: Float64[Tensor, "batch size"], starts: Float64[Tensor, "batch size"] | None = None
    ) -> Solution:
        """The nearest point per instance; see :meth:`optlayers.CompiledPolytope.project`. Starts are of no use here."""
        curved = self.form.uncurved == 0 and self.form.slack == 0
        return self._solve(scores, dense.dual_newton if curved else dense.interior_point, projection=True)

    def _solve(self, scores: Tensor, solve: Callable[[DenseProblem], DenseAnswer], *, projection: bool) -> Solution:
        form = self.form
        known = torch.isfinite(scores).all(dim=1)
        problem = self._problem(torch.where(known[:, None], scores, 0.0), projection=projection)
        parts = [solve(_slice(problem, piece)) for piece in pieces(form, len(scores))] if form.columns else []
        answer = _joined(parts, problem)
        residual, gap, error = dense.certify(problem, answer.point, answer.dual)
        good = (error <= self.prepared.tolerance) & self.feasible & known
        if not projection and form.scored:
            good &= dense.are_vertices(problem, answer.point, form.scored)
        value = self.arrays.fixed.expand(len(scores), -1).clone()
        value[:, self.arrays.kept] = answer.point[:, : form.scored]
        status = torch.where(good, 0, 5).to(torch.int8)
        evidence = DeviceEvidence(self.arrays, answer, problem, self.masked)
        solution = Solution(value, status, residual, gap, {}, evidence)
        open_ones = torch.nonzero(~good)[:, 0]
        if len(open_ones) == 0:
            return solution
        return self._on_the_host(solution, answer, scores, open_ones, projection=projection)

    def _problem(self, scores: Tensor, *, projection: bool) -> DenseProblem:
        linear = torch.zeros_like(self.lower)
        linear[:, : self.form.scored] = scores[:, self.arrays.kept]
        curvature = self.lower.new_zeros(self.form.columns)
        curvature[: self.form.curved] = float(projection)
        # Crossed bounds are infeasible; they must not keep the other instances from being solved.
        return DenseProblem(self.matrix, self.rhs, self.lower, torch.maximum(self.lower, self.upper), linear, curvature)

    def _on_the_host(
        self, solution: Solution, answer: DenseAnswer, scores: Tensor, index: Tensor, *, projection: bool
    ) -> Solution:
        """Ask the solvers of the CPU about some instances, and put their answers in."""
        device = scores.device
        forbidden = None if self.forbidden is None else self.forbidden[index].cpu()
        bound = self.prepared.bind_on_host(self.theta[index].cpu(), forbidden, self.precision)
        asked = bound.project if projection else bound.maximize
        other = asked(scores[index].cpu())
        for mine, theirs in (
            (solution.value, other.value),
            (solution.status, other.status),
            (solution.primal_residual, other.primal_residual),
            (solution.gap, other.gap),
        ):
            mine[index] = theirs.to(device)
        found = other.evidence
        if not isinstance(found, HostEvidence):
            raise RuntimeError("the solvers of the CPU give evidence of their own kind")
        answer.point[index] = torch.from_numpy(np.ascontiguousarray(found.answer.point)).to(device)
        answer.dual[index] = torch.from_numpy(np.ascontiguousarray(found.answer.dual)).to(device)
        if found.answer.free is not None:
            answer.free[index] = torch.from_numpy(found.answer.free).to(device)
        reasons = {int(index[k]): reason for k, reason in other.reasons.items()}
        return replace(solution, reasons=reasons)

    @property
    def movable(self) -> Bool[Tensor, "batch_or_1 size"]:
        """Parts whose scores can matter; see :class:`AbstractBoundPolytope`."""
        parts = torch.zeros_like(self.arrays.fixed, dtype=torch.bool)[None]
        parts[:, self.arrays.kept] = True
        return parts if self.forbidden is None else parts & ~self.forbidden

    @property
    def polyhedral(self) -> bool:
        """Whether the set is polyhedral; see :class:`AbstractBoundPolytope`."""
        return self.prepared.polyhedral

    @property
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides alone; see :class:`AbstractBoundPolytope`."""
        return self.prepared.parameters_shift

    def repeated(self, times: int) -> DevicePolytope:
        """The batch so many times; see :class:`AbstractBoundPolytope`."""
        forbidden = None if self.forbidden is None else self.forbidden.repeat(times, 1)
        return DevicePolytope(self.prepared, self.theta.repeat(times, 1), forbidden, self.precision)

    def relaxed(self, relaxation: Polytope) -> AbstractBoundPolytope:
        """Another polytope for the same batch; see :class:`AbstractBoundPolytope`."""
        other = self.prepared.relaxation(relaxation)
        theirs = theta_of(self.form, other.projection_form)
        return DevicePolytope(other, self.theta[:, theirs], self.forbidden, self.precision[theirs])

    def structure(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """The same values with 0 for scored auxiliary variables; see :class:`AbstractBoundPolytope`."""
        size = self.form.structure_size
        return values if values.shape[1] == size else torch.cat([values[:, :size], 0.0 * values[:, size:]], dim=1)

    def log_partition(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        """Log of the sum of ``exp <scores, v>`` over vertices; see :class:`AbstractBoundPolytope`."""
        return self._sums().value(scores, {})

    def marginals(self, scores: Float64[Tensor, "batch size"], *, differentiable: bool = False) -> Marginals:
        """The means of vertices with a verdict; see :class:`AbstractBoundPolytope`."""
        return self._sums().marginals(scores, self.verdict, differentiable=differentiable)

    def _sums(self) -> LogPartition:
        return LogPartition(self.form, self.theta, self.forbidden, self.prepared.vertices)

    def sample(
        self, scores: Float64[Tensor, "batch size"], samples: int, generator: torch.Generator | None
    ) -> Solution:
        """Vertices drawn exactly; see :class:`AbstractBoundPolytope`."""
        return sample(self._sums(), scores, samples, generator, self.verdict)

    def verdict(
        self,
        marginals: Float64[Tensor, "batch size"],
        total: Float64[Tensor, " batch"],
        reasons: Mapping[int, str] = NO_REASONS,
    ) -> Solution:
        """Marginals with their verdict; see :class:`AbstractBoundPolytope`."""
        forbidden = None if self.forbidden is None else self.forbidden.cpu()
        host = self.prepared.bind_on_host(self.theta.cpu(), forbidden, self.precision)
        judged = host.verdict(marginals, total, reasons)
        return replace(judged, status=judged.status.masked_fill(~self.feasible, int(Status.INFEASIBLE)))

    def value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values with respect to parameters; see :class:`AbstractBoundPolytope`."""
        if solution.evidence is None:
            raise ValueError("value_gradient takes a solution that maximize() or project() returned")
        theta = solution.evidence.value_gradient(solution.ok)
        return {s.name: theta[:, s.span].reshape(len(theta), *s.shape) for s in self.form.parameters}

    def tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection, for a flat direction; see :meth:`optlayers.CompiledPolytope.tangent`."""
        return tangent_of(self.form, solution, direction)


def _slice(problem: DenseProblem, piece: slice) -> DenseProblem:
    matrix = problem.matrix if problem.matrix.ndim == 2 else problem.matrix[piece]
    rhs, lower, upper = problem.rhs[piece], problem.lower[piece], problem.upper[piece]
    return DenseProblem(matrix, rhs, lower, upper, problem.linear[piece], problem.curvature)


def _slice_answer(answer: DenseAnswer, piece: slice) -> DenseAnswer:
    return DenseAnswer(
        answer.point[piece],
        answer.dual[piece],
        answer.free[piece],
        answer.residual[piece],
        answer.gap[piece],
        answer.relative[piece],
        answer.iterations[piece],
    )


def _joined(parts: list[DenseAnswer], problem: DenseProblem) -> DenseAnswer:
    if not parts:
        nothing = torch.zeros_like(problem.rhs[:, :1]).sum(dim=1)
        verdict = dense.certify(problem, problem.linear, problem.rhs) if len(problem) else (nothing,) * 3
        return DenseAnswer(problem.linear, torch.zeros_like(problem.rhs), problem.movable, *verdict, nothing.long())
    return DenseAnswer(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("point", "dual", "free", "residual", "gap", "relative", "iterations")
        )
    )


def _largest(values: Tensor) -> Tensor:
    return values.abs().amax(dim=1) if values.shape[1] else values.new_zeros(len(values))
