"""A batch of polytopes on an accelerator: what rules speak to when scores live there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.bound.accelerated import OnDevice, regularized_on_device
from optlayers.bound.arrays import DeviceArrays, finite
from optlayers.bound.base import NO_REASONS, AbstractBoundPolytope, Marginals, theta_of
from optlayers.bound.host_evidence import HostEvidence
from optlayers.bound.numbers import AbstractNumbers
from optlayers.common.caches import cached_property
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solution import AbstractEvidence, Proof, Solution, Status
from optlayers.solvers.batch import CONSISTENT, ROUNDINGS, balancing, in_scaled_rows, make_instances
from optlayers.solvers.dense import pieces
from optlayers.solvers.derivative import PulledBack
from optlayers.solvers.faces import faces
from optlayers.solvers.kernels import dense
from optlayers.solvers.kernels.dense import DenseAnswer, DenseProblem
from optlayers.solvers.kernels.optimality import AWAY, FLOOR, LEFT, TOUCHES
from optlayers.solvers.shadows import IDLE
from optlayers.sums.marginals import LogPartition
from optlayers.sums.sampling import sample

__all__ = ["DevicePolytope"]


@final
@dataclass(frozen=True)
class DeviceEvidence(AbstractEvidence):
    """What belongs to answers that were found on a device.

    Gradients of scores are worked out there. Those of parameters are worked out on the CPU by
    :class:`optlayers.bound.host.HostEvidence`, which knows of kinks and edges, and come back to the device.
    """

    polytope: DevicePolytope
    scores: Float64[Tensor, "batch size"]
    problem: DenseProblem
    answer: DenseAnswer
    certified: Bool[Tensor, " batch"]
    exact: Bool[Tensor, " batch"]
    projects: bool

    @property
    def form(self) -> StandardForm:  # type: ignore[override]
        """The form that was solved."""
        return self.polytope.form

    @property
    def proof(self) -> Proof:
        """In the rows of the form, which those of the device may be multiples of."""
        answer, scale = self.answer, self.polytope.scale
        point, dual = in_scaled_rows(
            self.form, _on_cpu(answer.point), _on_cpu(answer.dual), None if scale is None else 1.0 / _on_cpu(scale)
        )
        return Proof(point, dual, _on_cpu(answer.free) if self.projects else None, _on_cpu(self.exact))

    @cached_property
    def on_host(self) -> HostEvidence:
        """These answers as evidence of the CPU."""
        polytope = self.polytope
        forbidden = None if polytope.forbidden is None else _on_cpu(polytope.forbidden)
        instances = make_instances(self.form, _on_cpu(polytope.theta), forbidden).with_scores(_on_cpu(self.scores))
        solver = polytope.prepared.projector if self.projects else polytope.prepared.maximizer
        return HostEvidence.of_proof(self.form, instances, self.proof, solver, certified=_on_cpu(self.certified))

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """By the system on the active set; the formulas are in :mod:`optlayers.solvers.derivative`."""
        arrays, form, problem = self.polytope.arrays, self.form, self.problem
        if not self.projects and form.curved:
            raise ValueError("tangent takes a solution that project() returned, not one of maximize()")
        good = self.exact if ok is None else ok & self.exact
        side = torch.zeros_like(problem.linear)
        side[:, : form.scored] = torch.where(good[:, None], direction[:, arrays.kept], 0.0)
        answer = replace(self.answer, free=self.answer.free & good[:, None])
        p, q, right = torch.zeros_like(side), torch.zeros_like(problem.rhs), good
        if form.columns and len(side):
            found = [
                dense.pull_back(problem.take(piece), _slice_answer(answer, piece), side[piece])
                for piece in pieces(form, len(side))
            ]
            p, q, solved = (torch.cat(part) for part in zip(*found, strict=True))
            index, on_faces = self._on_faces(p, answer.free)
            if len(index):
                answer.free[index] = on_faces
                again = dense.pull_back(problem.take(index), _slice_answer(answer, index), side[index])
                p[index], q[index], solved[index] = again
            right = good & solved
        p, q = torch.where(right[:, None], p, 0.0), torch.where(right[:, None], q, 0.0)
        scores = torch.zeros_like(direction)
        scores[:, arrays.kept] = p[:, : form.scored]
        mine = side[:, : form.scored]
        return scores, lambda: self._of_parameters(answer.free, mine, p, q, right), right

    def _on_faces(self, p: Tensor, free: Tensor) -> tuple[Int64[Tensor, " some"], Bool[Tensor, "some columns"]]:
        """The instances at a tie whose active sets are no faces, and faces in their place, which the CPU finds."""
        answer, problem = self.answer, self.problem
        size = torch.clamp(torch.abs(finite(answer.point)), min=1.0)
        near = TOUCHES * size + LEFT * torch.abs(problem.linear).amax(dim=1, keepdim=True)
        meets = (answer.point - problem.lower <= near) | (problem.upper - answer.point <= near)
        moves = torch.abs(p) > AWAY * torch.abs(p).amax(dim=1, keepdim=True)
        doubtful, form = (meets & free & moves).any(dim=1), self.form
        if form.unslacked > form.scored:  # what is held beside auxiliary columns may be so for nothing
            doubtful |= (self._idle & ~free).any(dim=1)
        index = torch.nonzero(doubtful)[:, 0]
        if len(index) == 0:
            return index, free[index]
        host, some = self.on_host, _on_cpu(index)
        point, dual = host.answer.point[some], host.answer.dual[some]
        found = torch.from_numpy(faces(form, host.instances.take(some), point, dual, _on_cpu(free[index])))
        on_faces = found.to(free.device)
        changed = (on_faces != free[index]).any(dim=1)
        return index[changed], on_faces[changed]

    @property
    def _idle(self) -> Bool[Tensor, "batch columns"]:
        """As :func:`optlayers.solvers.shadows.idle_beside_others`: columns without a price beside auxiliary ones."""
        form, problem, dual = self.form, self.problem, self.answer.dual
        beside = problem.matrix[..., form.scored : form.unslacked]
        price = torch.zeros_like(problem.linear).fill_(torch.inf)
        price[:, form.scored : form.unslacked] = torch.abs((dual[:, None] @ beside)[:, 0])
        touches = (beside != 0.0).any(dim=-1)[..., form.equalities :]
        price[:, form.unslacked :] = torch.where(touches, torch.abs(dual[:, form.equalities :]), torch.inf)
        most = torch.maximum(torch.abs(problem.linear).amax(dim=1), torch.abs(dual).amax(dim=1))
        most = most.clamp(min=FLOOR / IDLE)  # prices of rounding, next to scores of 0
        return (price <= IDLE * most[:, None]) & (problem.lower < problem.upper)

    def _of_parameters(
        self, free: Tensor, direction: Tensor, p: Tensor, q: Tensor, right: Tensor
    ) -> Float64[Tensor, "batch parameters"]:
        host, scale, mine = self.on_host, self.polytope.scale, _on_cpu(direction)
        of_rows = _on_cpu(q if scale is None else q * scale)
        if host.instances.row_scale is not None:
            of_rows = of_rows / host.instances.row_scale
        pulled_back = PulledBack(self.form, host.instances, _on_cpu(free), mine, _on_cpu(p), of_rows, _on_cpu(right))
        return torch.from_numpy(host.of_parameters(pulled_back, mine)).to(q.device)

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """From dual points, on the CPU."""
        return self.on_host.value_gradient(ok.cpu()).to(ok.device)


@final
class DevicePolytope(AbstractNumbers, OnDevice):
    """Polytopes of one batch on the device of their scores; the twin of :class:`optlayers.bound.host.HostPolytope`.

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
        self._movable: Bool[Tensor, "batch_or_1 size"] | None = None
        self.form = prepared.rows
        self.arrays = arrays = DeviceArrays.of(prepared, theta.device)
        self.rhs = arrays.values("rhs", theta)
        self.lower, self.upper = arrays.values("lower", theta), arrays.values("upper", theta)
        self.masked = None
        if forbidden is not None:
            self.masked = torch.zeros_like(self.lower, dtype=torch.bool)
            self.masked[:, : self.form.scored] = forbidden[:, arrays.kept]
            self.lower = torch.where(self.masked, self.lower.clamp(min=0.0), self.lower)
            self.upper = torch.where(self.masked, self.upper.clamp(max=0.0), self.upper)
        self.matrix = arrays.matrix
        self.scale: Float64[Tensor, "batch rows"] | None = None
        if not self.form.matrix_is_constant:
            self._fill_matrix()
        if arrays.limitless:
            self._free_slack()
        self.feasible = self._feasible(finite(theta))

    def _fill_matrix(self) -> None:
        """The matrices, their rows scaled as those of :func:`optlayers.solvers.batch.make_instances` are; ``scale`` is
        by how much. Slack columns keep an entry of 1."""
        arrays, cut = self.arrays, self.form.unslacked
        matrix = arrays.matrix.expand(len(self.theta), -1, -1).clone()
        matrix[:, arrays.row, arrays.column] += finite(self.theta) @ arrays.matrix_map.mT
        scale: Tensor = balancing(matrix[:, :, :cut].abs().amax(dim=2), torch)
        matrix[:, :, :cut] *= scale[:, :, None]
        self.matrix, self.rhs, self.scale = matrix, self.rhs * scale, scale

    def _free_slack(self) -> None:
        """Rows without a limit say nothing: their slack may be anything."""
        first = self.form.equalities
        endless = torch.isposinf(self.rhs[:, first:])
        self.rhs[:, first:] = torch.where(endless, 0.0, self.rhs[:, first:])
        slack = self.lower[:, self.form.unslacked :]
        self.lower[:, self.form.unslacked :] = torch.where(endless, -torch.inf, slack)

    def _feasible(self, theta: Float64[Tensor, "batch parameters"]) -> Bool[Tensor, " batch"]:
        """Instances that do not break what presolve took for granted, by more than rounding; see
        :func:`optlayers.solvers.batch.broken_conditions`."""
        constant, matrix = self.arrays.maps["consistency"]
        missing, terms = self._inconsistency(theta), matrix.abs().mT
        rounding = torch.from_numpy(0.5 * self.precision).to(theta.device)
        allowed = CONSISTENT * (constant.abs() + theta.abs() @ terms) + ROUNDINGS * (theta.abs() * rounding) @ terms
        feasible = (missing <= allowed).all(dim=1) & (self.lower <= self.upper).all(dim=1)
        if self.forbidden is not None:
            feasible &= ~(self.forbidden & (self.arrays.fixed != 0)).any(dim=1)
        return feasible

    def _inconsistency(self, theta: Float64[Tensor, "batch parameters"]) -> Float64[Tensor, "batch dropped"]:
        """By how much parameters violate the rows that presolve dropped."""
        constant, matrix = self.arrays.maps["consistency"]
        return (constant + theta @ matrix.mT).abs()

    def maximize(self, scores: Float64[Tensor, "batch size"]) -> Solution:
        """A vertex per instance; see :meth:`optlayers.CompiledPolytope.maximize`."""
        return self._solve(scores, lambda some: dense.best_vertex(some, self.form.scored), projection=False)

    def project(
        self, scores: Float64[Tensor, "batch size"], starts: Float64[Tensor, "batch size"] | None = None
    ) -> Solution:
        """The nearest point per instance; see :meth:`optlayers.CompiledPolytope.project`. Starts are of no use here."""
        curved = self.form.uncurved == 0 and self.form.slack == 0
        return self._solve(scores, dense.dual_newton if curved else dense.interior_point, projection=True)

    def regularized(self, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer) -> Solution:
        """Regularized points; see :class:`AbstractBoundPolytope`."""
        return (
            self.project(scores.detach())
            if regularizer.projects == 1.0
            else regularized_on_device(self, scores, regularizer)
        )

    def residual(self, point: Float64[Tensor, "batch columns"]) -> Float64[Tensor, " batch"]:
        """The largest violation of a constraint, in the units of the declaration."""
        return self._residual(
            self._problem(torch.zeros_like(point[:, :1]).expand(-1, self.form.size), projection=False), point
        )

    def _solve(self, scores: Tensor, solve: Callable[[DenseProblem], DenseAnswer], *, projection: bool) -> Solution:
        form = self.form
        known = torch.isfinite(scores).all(dim=1)
        problem = self._problem(torch.where(known[:, None], scores, 0.0), projection=projection)
        parts = [solve(problem.take(piece)) for piece in pieces(form, len(scores))] if form.columns else []
        answer = _joined(parts, problem)
        answer.dual[:, form.equalities :].clamp_(min=0.0)
        _, gap, error = dense.certify(problem, answer.point, answer.dual)
        residual = self._residual(problem, answer.point)
        good = (error <= self.prepared.tolerance) & self.feasible & known
        exact = torch.ones_like(good)
        if projection:
            exact = dense.are_exact(problem, answer.point, answer.dual, answer.free)
        elif form.scored:
            good &= dense.are_vertices(problem, answer.point, answer.dual, form.scored)
        value = self.arrays.fixed.expand(len(scores), -1).clone()
        value[:, self.arrays.kept] = answer.point[:, : form.scored]
        status = torch.where(good, 0, 5).to(torch.int8)
        solution = Solution(value, status, residual, gap)
        open_ones = torch.nonzero(~(good & exact))[:, 0]
        if len(open_ones):
            solution = self._on_the_host(solution, answer, exact, scores, open_ones, projection=projection)
        evidence = DeviceEvidence(self, scores, problem, answer, solution.ok, exact, projection)
        return replace(solution, evidence=evidence)

    def _residual(self, problem: DenseProblem, point: Float64[Tensor, "batch columns"]) -> Float64[Tensor, " batch"]:
        """The largest violation of a constraint, in the units of the declaration."""
        first, cut = self.form.equalities, self.form.unslacked
        left = problem.rhs - problem.activity(point)
        left[:, first:] -= torch.maximum(left[:, first:], problem.lower[:, cut:])
        rows = left.abs() / self.arrays.row_scale
        if self.scale is not None:
            rows = rows / self.scale
        bounds = torch.maximum(problem.lower - point, point - problem.upper)[:, :cut]
        dropped = self._inconsistency(finite(self.theta))
        return torch.cat([rows, bounds.clamp(min=0.0), dropped, torch.zeros_like(rows.sum(1))[:, None]], dim=1).amax(1)

    def _problem(self, scores: Tensor, *, projection: bool) -> DenseProblem:
        linear = torch.zeros_like(self.lower)
        linear[:, : self.form.scored] = scores[:, self.arrays.kept]
        curvature = self.lower.new_zeros(self.form.columns)
        curvature[: self.form.curved] = float(projection)
        # Crossed bounds are infeasible; they must not keep the other instances from being solved.
        upper = torch.maximum(self.lower, self.upper)
        return DenseProblem(self.matrix, self.rhs, self.lower, upper, linear, curvature, self.form.slack)

    def _on_the_host(
        self,
        solution: Solution,
        answer: DenseAnswer,
        exact: Bool[Tensor, " batch"],
        scores: Float64[Tensor, "batch size"],
        index: Int64[Tensor, " some"],
        *,
        projection: bool,
    ) -> Solution:
        """Ask the solvers of the CPU about some instances, and put their answers in."""
        device = scores.device
        forbidden = None if self.forbidden is None else self.forbidden[index].cpu()
        bound = self.prepared.bind_on_host(self.theta[index].cpu(), forbidden, self.precision)
        asked = bound.project if projection else bound.maximize
        other = asked(scores[index].cpu())
        if other.evidence is None:
            raise RuntimeError("the solvers of the CPU give evidence")
        proof, scale = other.evidence.proof, None if self.scale is None else _on_cpu(self.scale[index])
        point, dual = in_scaled_rows(self.form, proof.point, proof.dual, scale)
        for mine, theirs in (
            (solution.value, other.value),
            (solution.status, other.status),
            (solution.primal_residual, other.primal_residual),
            (solution.gap, other.gap),
            (answer.point, torch.from_numpy(point)),
            (answer.dual, torch.from_numpy(dual)),
            (exact, torch.from_numpy(proof.exact)),
        ):
            mine[index] = theirs.to(device)
        if proof.free is not None:
            answer.free[index] = torch.from_numpy(proof.free).to(device)
        reasons = {int(index[k]): reason for k, reason in other.reasons.items()}
        return replace(solution, reasons=reasons)

    @property
    def movable(self) -> Bool[Tensor, "batch_or_1 size"]:
        """Parts whose scores can matter; see :class:`AbstractBoundPolytope`."""
        if self._movable is None:
            parts = torch.zeros_like(self.arrays.fixed, dtype=torch.bool)[None]
            parts[:, self.arrays.kept] = True
            if self.forbidden is not None or self.theta.shape[1]:
                forbidden = None if self.forbidden is None else self.forbidden.to("cpu")
                on_host = self.prepared.bind_on_host(self.theta.detach().to("cpu"), forbidden, self.precision)
                parts = on_host.movable.to(self.theta.device)
            self._movable = parts
        return self._movable

    @property
    def given(self) -> Float64[Tensor, "batch parameters"]:
        """The parameters of every instance."""
        return self.theta

    @property
    def hidden(self) -> Bool[Tensor, "batch size"] | None:
        """The forbidden parts, None for none."""
        return self.forbidden

    def repeated(self, times: int) -> DevicePolytope:
        """The batch so many times; see :class:`AbstractBoundPolytope`."""
        forbidden = None if self.forbidden is None else self.forbidden.repeat(times, 1)
        return DevicePolytope(self.prepared, self.theta.repeat(times, 1), forbidden, self.precision)

    def among(self, rows: Int64[Tensor, " rows"], forbidden: Bool[Tensor, "rows size"] | None = None) -> DevicePolytope:
        """The polytopes of some instances; see :class:`AbstractNumbers`."""
        hidden = self.forbidden
        if hidden is not None:
            forbidden = hidden[rows] if forbidden is None else hidden[rows] | forbidden
        return DevicePolytope(self.prepared, self.theta[rows], forbidden, self.precision)

    def relaxed(self, relaxation: Polytope) -> AbstractBoundPolytope:
        """Another polytope for the same batch; see :class:`AbstractBoundPolytope`."""
        other = self.prepared.relaxation(relaxation)
        theirs = theta_of(self.parameters, other.projection_form.parameters)
        return DevicePolytope(other, self.theta[:, theirs], self.forbidden, self.precision[theirs])

    def marginals(self, scores: Float64[Tensor, "batch size"], *, differentiable: bool = False) -> Marginals:
        """The means of vertices with a verdict; see :class:`AbstractBoundPolytope`."""
        return self._sums().marginals(scores, self.verdict, differentiable=differentiable)

    def _sums(self) -> LogPartition:
        return LogPartition(self.form, self.theta, self.forbidden, self.prepared.sums)

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


def _on_cpu(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor in an array of their own, a row per instance in memory."""
    return np.array(tensor.cpu().numpy(), order="C")


def _slice_answer(answer: DenseAnswer, piece: slice | Tensor) -> DenseAnswer:
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
