"""A batch of polytopes on an accelerator: what rules speak to when scores live there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound import NO_REASONS, AbstractBoundPolytope, Marginals, Tangent
from optlayers.marginals import LogPartition
from optlayers.polytope import Polytope
from optlayers.sampling import sample
from optlayers.solution import Solution, Status
from optlayers.solvers.base import Answer
from optlayers.solvers.batch import CONSISTENT
from optlayers.solvers.dense import pieces
from optlayers.solvers.kernels import dense
from optlayers.solvers.kernels.dense import DenseAnswer, DenseProblem
from optlayers.standard_form import AffineMap, StandardForm

if TYPE_CHECKING:
    from optlayers.compiled import CompiledPolytope

__all__ = ["DeviceArrays", "DevicePolytope", "pull_back_on_device"]


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
        self.maps = {
            name: self._map(part, device)
            for name, part in (
                ("rhs", form.rhs),
                ("lower", form.lower),
                ("upper", form.upper),
                ("consistency", form.consistency),
            )
        }

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
class DeviceInstances:
    """The numbers of a batch on its device, and which columns are held at 0 by a score of -inf."""

    problem: DenseProblem
    masked: Bool[Tensor, "batch columns"] | None


@final
class DevicePolytope(AbstractBoundPolytope):
    """Polytopes of one batch on the device of their scores; the twin of :class:`optlayers.BoundPolytope`.

    Nothing leaves the device but the instances that are not certified there; the solvers of the CPU have the last word
    on these.
    """

    def __init__(
        self,
        compiled: CompiledPolytope,
        theta: Float64[Tensor, "batch parameters"],
        forbidden: Bool[Tensor, "batch size"] | None,
        precision: float,
    ) -> None:
        if compiled.rows is None:
            raise TypeError("sets that are not polyhedral are solved on the CPU")
        self.compiled = compiled
        self.theta = theta
        self.forbidden = forbidden
        self.precision = precision
        self.form = compiled.rows
        self.arrays = arrays = compiled.device_arrays(theta.device)
        self.rhs = arrays.values("rhs", theta)
        self.lower, self.upper = arrays.values("lower", theta), arrays.values("upper", theta)
        self.masked = None
        if forbidden is not None:
            self.masked = torch.zeros_like(self.lower, dtype=torch.bool)
            self.masked[:, : self.form.scored] = forbidden[:, arrays.kept]
            self.lower = torch.where(self.masked, self.lower.clamp(min=0.0), self.lower)
            self.upper = torch.where(self.masked, self.upper.clamp(max=0.0), self.upper)
        self.matrix = arrays.matrix
        if not self.form.matrix_is_constant:
            self.matrix = arrays.matrix.expand(len(theta), -1, -1).clone()
            self.matrix[:, arrays.row, arrays.column] += theta @ arrays.matrix_map.mT
        self.possible = self._possible()

    def _possible(self) -> Bool[Tensor, " batch"]:
        """Instances that do not break what presolve took for granted, by far more than rounding."""
        broken = self.arrays.values("consistency", self.theta).abs()
        size = 1 + _largest(self.rhs)
        possible = _largest(broken) <= max(CONSISTENT, 64 * self.precision) * size
        possible &= (self.lower <= self.upper).all(dim=1)
        if self.forbidden is not None:
            possible &= ~(self.forbidden & (self.arrays.fixed != 0)).any(dim=1)
        return possible

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
        if form.columns:
            parts = [solve(_slice(problem, piece)) for piece in pieces(form, len(scores))]
            answer = _joined(parts, problem)
        else:
            answer = _joined([], problem)
        value = self.arrays.fixed.expand(len(scores), -1).clone()
        value[:, self.arrays.kept] = answer.point[:, : form.scored]
        good = (answer.relative <= self.compiled.tolerance) & self.possible & known
        status = torch.where(good, 0, 5).to(torch.int8)
        solution = Solution(value, status, answer.residual, answer.gap, {}, answer, None, form)
        solution = replace(solution, instances=DeviceInstances(problem, self.masked), projects=projection)
        open_ones = torch.nonzero(~good)[:, 0]
        return self._on_the_host(solution, scores, open_ones, projection=projection) if len(open_ones) else solution

    def _problem(self, scores: Tensor, *, projection: bool) -> DenseProblem:
        linear = torch.zeros_like(self.lower)
        linear[:, : self.form.scored] = scores[:, self.arrays.kept]
        curvature = self.lower.new_zeros(self.form.columns)
        curvature[: self.form.curved] = float(projection)
        # Crossed bounds are infeasible; they must not keep the other instances from being solved.
        return DenseProblem(self.matrix, self.rhs, self.lower, torch.maximum(self.lower, self.upper), linear, curvature)

    def _on_the_host(self, solution: Solution, scores: Tensor, index: Tensor, *, projection: bool) -> Solution:
        """Ask the solvers of the CPU about some instances, and put their answers in."""
        device, answer = scores.device, solution.answer
        if not isinstance(answer, DenseAnswer):
            raise RuntimeError("answers of a device are dense")
        forbidden = None if self.forbidden is None else self.forbidden[index].cpu()
        bound = self.compiled.bind_on_host(self.theta[index].cpu(), forbidden, self.precision)
        asked = bound.project if projection else bound.maximize
        other = asked(scores[index].cpu())
        for mine, theirs in (
            (solution.value, other.value),
            (solution.status, other.status),
            (solution.primal_residual, other.primal_residual),
            (solution.gap, other.gap),
        ):
            mine[index] = theirs.to(device)
        if other.answer is None or not isinstance(other.answer, Answer):
            raise RuntimeError("the solvers of the CPU give answers of their own kind")
        answer.point[index] = torch.from_numpy(np.ascontiguousarray(other.answer.point)).to(device)
        answer.dual[index] = torch.from_numpy(np.ascontiguousarray(other.answer.dual)).to(device)
        if other.answer.free is not None:
            answer.free[index] = torch.from_numpy(other.answer.free).to(device)
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
        return self.compiled.polyhedral

    @property
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides alone; see :class:`AbstractBoundPolytope`."""
        return self.compiled.parameters_shift

    def repeated(self, times: int) -> DevicePolytope:
        """The batch so many times; see :class:`AbstractBoundPolytope`."""
        forbidden = None if self.forbidden is None else self.forbidden.repeat(times, 1)
        return DevicePolytope(self.compiled, self.theta.repeat(times, 1), forbidden, self.precision)

    def relaxed(self, relaxation: Polytope) -> AbstractBoundPolytope:
        """Another polytope for the same batch; see :class:`AbstractBoundPolytope`."""
        return self.compiled.bind_relaxed(relaxation, self.theta, self.forbidden, self.precision)

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
        return LogPartition(self.form, self.theta, self.forbidden, self.compiled.vertices)

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
        host = self.compiled.bind_on_host(self.theta.cpu(), forbidden, self.precision)
        judged = host.verdict(marginals, total, reasons)
        return replace(judged, status=judged.status.masked_fill(~self.possible, int(Status.INFEASIBLE)))

    def value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values with respect to parameters; see :class:`AbstractBoundPolytope`."""
        theta = value_gradient_on_device(self.arrays, solution)
        return {s.name: theta[:, s.span].reshape(len(theta), *s.shape) for s in self.form.parameters}

    def tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection, for a flat direction; see :meth:`optlayers.CompiledPolytope.tangent`."""
        return self.compiled.flat_tangent(solution, direction)


def pull_back_on_device(
    arrays: DeviceArrays,
    solution: Solution,
    direction: Float64[Tensor, "batch size"],
) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, "batch parameters"], Bool[Tensor, " batch"]]:
    """Gradients of scores and of θ, and which are right; the formulas are in :mod:`optlayers.solvers.derivative`."""
    form, answer, instances = arrays.form, solution.answer, solution.instances
    if not isinstance(answer, DenseAnswer) or not isinstance(instances, DeviceInstances):
        raise RuntimeError("answers of a device are dense")
    problem, masked = instances.problem, instances.masked
    good = solution.status.reshape(-1) == 0
    side = torch.zeros_like(problem.linear)
    side[:, : form.scored] = torch.where(good[:, None], direction[:, arrays.kept], 0.0)
    answer = replace(answer, free=answer.free & good[:, None])
    p, q, ok = torch.zeros_like(side), torch.zeros_like(problem.rhs), good.clone()
    if form.columns:
        found = [
            dense.pull_back(_slice(problem, piece), _slice_answer(answer, piece), side[piece])
            for piece in pieces(form, len(side))
        ]
        if found:
            p, q, solved = (torch.cat(part) for part in zip(*found, strict=True))
            ok &= solved
    p, q = torch.where(ok[:, None], p, 0.0), torch.where(ok[:, None], q, 0.0)
    scores = torch.zeros_like(direction)
    scores[:, arrays.kept] = p[:, : form.scored]
    theta = arrays.transposed("rhs", q)
    prices = (q[:, None, :] @ problem.matrix)[:, 0, :]
    pressed = torch.where(answer.free | ~ok[:, None], 0.0, side - prices)
    if masked is not None:
        pressed = pressed.masked_fill(masked, 0.0)
    high = problem.upper - answer.point < answer.point - problem.lower
    theta = theta + arrays.transposed("lower", torch.where(high, 0.0, pressed))
    theta = theta + arrays.transposed("upper", torch.where(high, pressed, 0.0))
    if not form.matrix_is_constant:
        dual, point = answer.dual.nan_to_num(), answer.point.nan_to_num()
        entries = -(dual[:, arrays.row] * p[:, arrays.column] + q[:, arrays.row] * point[:, arrays.column])
        theta = theta + entries @ arrays.matrix_map
    return scores, theta, ok


def value_gradient_on_device(arrays: DeviceArrays, solution: Solution) -> Float64[Tensor, "batch parameters"]:
    """The gradient of optimal values with respect to θ; the formulas are in :mod:`optlayers.solvers.derivative`."""
    form, answer, instances = arrays.form, solution.answer, solution.instances
    if not isinstance(answer, DenseAnswer) or not isinstance(instances, DeviceInstances):
        raise RuntimeError("answers of a device are dense")
    problem, good = instances.problem, (solution.status == 0)[:, None]
    dual, point = torch.where(good, answer.dual, 0.0), torch.where(good, answer.point, 0.0)
    dual[:, form.equalities :].clamp_(min=0.0)
    reduced = problem.linear - problem.curvature * point - (dual[:, None, :] @ problem.matrix)[:, 0, :]
    if instances.masked is not None:
        reduced = reduced.masked_fill(instances.masked, 0.0)
    theta = arrays.transposed("rhs", dual)
    theta = theta + arrays.transposed("upper", reduced.clamp(min=0.0))
    theta = theta + arrays.transposed("lower", reduced.clamp(max=0.0))
    if not form.matrix_is_constant:
        theta = theta - (dual[:, arrays.row] * point[:, arrays.column]) @ arrays.matrix_map
    return torch.where(good, theta, 0.0)


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
