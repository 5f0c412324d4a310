"""A batch of polytopes on the CPU: what rules speak to when scores are solved there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers import inputs
from optlayers.bound import NO_REASONS, AbstractBoundPolytope, Marginals, Tangent
from optlayers.diagnosis import explain_infeasible
from optlayers.marginals import LogPartition, judge_marginals
from optlayers.polytope import Polytope
from optlayers.sampling import sample
from optlayers.solution import Solution, Status
from optlayers.solvers.base import AbstractSolver, Answer, Instances
from optlayers.solvers.batch import impossible_instances, make_instances, solve_possible
from optlayers.solvers.certified import maximize_certified, project_certified
from optlayers.solvers.derivative import value_gradient
from optlayers.standard_form import StandardForm

if TYPE_CHECKING:
    from optlayers.compiled import CompiledPolytope

__all__ = ["BoundPolytope", "movable_parts"]

EXPLAINED = 3
"""So many infeasible instances of a batch are explained; an explanation costs a linear program."""


@final
class BoundPolytope(AbstractBoundPolytope):
    """Polytopes of one batch for the solvers of the CPU; see :class:`AbstractBoundPolytope`.

    ``instances`` are the numbers of the
    projector's form, ``vertex_instances`` those of the maximizer's, ``row_instances`` those of all rows that are built.
    """

    def __init__(
        self, compiled: CompiledPolytope, theta: np.ndarray, forbidden: np.ndarray | None, precision: float
    ) -> None:
        self.compiled = compiled
        self.theta = theta
        self.forbidden = forbidden
        self.precision = precision
        rows = compiled.rows or compiled.projection_form
        vertices = compiled.maximizer_form or rows
        made: dict[int, Instances] = {}
        for form in (compiled.projection_form, rows, vertices):
            if id(form) not in made:
                made[id(form)] = make_instances(form, theta, forbidden)
        self.instances, self.row_instances, self.vertex_instances = (
            made[id(form)] for form in (compiled.projection_form, rows, vertices)
        )
        checked = len(rows.consistency_names) > 0
        self.broken = np.abs(rows.consistency(theta)).max(axis=1, initial=0.0) if checked else None
        self.impossible = impossible_instances(rows, theta, self.broken, forbidden, precision)

    def maximize(self, scores: Float64[Tensor, "batch size"]) -> Solution:
        """A vertex per instance; see :meth:`CompiledPolytope.maximize`."""
        compiled = self.compiled
        form = compiled.maximizer_form
        if form is None:
            raise TypeError(
                "maximize needs a polyhedral set: this one is not, so it has no vertices; use a rule that projects, "
                "such as SparseMAP()"
            )
        instances = self.vertex_instances.with_scores(_in_memory(scores))
        hopeless = self._hopeless(instances)
        answer = solve_possible(
            form,
            instances,
            hopeless,
            lambda some: maximize_certified(compiled.maximizer, compiled.maximizer_state, form, some),
        )
        return self._verdict(compiled.maximizer, form, instances, answer, hopeless, projection=False)

    def project(
        self, scores: Float64[Tensor, "batch size"], starts: Float64[Tensor, "batch size"] | None = None
    ) -> Solution:
        """The nearest point per instance; see :meth:`CompiledPolytope.project`."""
        compiled = self.compiled
        form = compiled.projection_form
        instances = self.instances.with_scores(_in_memory(scores), None if starts is None else _in_memory(starts))
        projector, state = compiled.projector, compiled.projector_state
        tolerance = max(compiled.tolerance, projector.accuracy)
        hopeless = self._hopeless(instances)
        answer = solve_possible(
            form,
            instances,
            hopeless,
            lambda some: project_certified(projector, state, form, some, tolerance),
        )
        return self._verdict(projector, form, instances, answer, hopeless, projection=True)

    def tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection, applied to a flat direction; see :meth:`CompiledPolytope.tangent`."""
        return self.compiled.flat_tangent(solution, direction)

    def value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values with respect to parameters; see :class:`AbstractBoundPolytope`."""
        answer, instances, form = solution.answer, solution.instances, solution.form
        if not isinstance(answer, Answer) or not isinstance(instances, Instances) or form is None:
            raise ValueError("value_gradient takes a solution that maximize() or project() returned")
        if answer.whole is not None or answer.residual is not None:
            what = "projector" if solution.projects else "maximizer"
            solver = self.compiled.projector if solution.projects else self.compiled.maximizer
            raise ValueError(
                f"gradients of parameters need the dual point of an answer, and {solver!r} gives none: ask for a "
                f"solver that does by {what}=ol.Auto(), or detach the parameters"
            )
        failed = None if solution.all_ok else ~solution.ok.numpy()
        theta = torch.from_numpy(value_gradient(form, answer, instances, failed, form.curved * solution.projects))
        return {s.name: theta[:, s.span].reshape(len(theta), *s.shape) for s in form.parameters}

    @property
    def movable(self) -> Bool[Tensor, "batch_or_1 size"]:
        """Parts whose scores can matter; see :class:`AbstractBoundPolytope`."""
        return movable_parts(self.compiled.projection_form, self.forbidden)

    @property
    def polyhedral(self) -> bool:
        """Whether the set is polyhedral; see :class:`AbstractBoundPolytope`."""
        return self.compiled.polyhedral

    @property
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides alone; see :class:`AbstractBoundPolytope`."""
        return self.compiled.parameters_shift

    def repeated(self, times: int) -> BoundPolytope:
        """The batch so many times; see :class:`AbstractBoundPolytope`."""
        if times == 1:
            return self
        if self.forbidden is None and not self.compiled.projection_form.parameters:
            return self.compiled.bind_plain(times * len(self.theta))
        forbidden = None if self.forbidden is None else np.tile(self.forbidden, (times, 1))
        return BoundPolytope(self.compiled, np.tile(self.theta, (times, 1)), forbidden, self.precision)

    def relaxed(self, relaxation: Polytope) -> AbstractBoundPolytope:
        """Another polytope for the same batch; see :class:`AbstractBoundPolytope`."""
        forbidden = None if self.forbidden is None else torch.from_numpy(self.forbidden)
        return self.compiled.bind_relaxed(relaxation, torch.from_numpy(self.theta), forbidden, self.precision)

    def structure(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """The same values with 0 for scored auxiliary variables; see :class:`AbstractBoundPolytope`."""
        size = self.compiled.projection_form.structure_size
        return values if values.shape[1] == size else torch.cat([values[:, :size], 0.0 * values[:, size:]], dim=1)

    def log_partition(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        """Log of the sum of ``exp <scores, v>`` over vertices; see :class:`AbstractBoundPolytope`."""
        return self._sums().value(scores, {})

    def marginals(self, scores: Float64[Tensor, "batch size"], *, differentiable: bool = False) -> Marginals:
        """The means of vertices with a verdict; see :class:`AbstractBoundPolytope`."""
        return self._sums().marginals(scores, self.verdict, differentiable=differentiable)

    def sample(
        self, scores: Float64[Tensor, "batch size"], samples: int, generator: torch.Generator | None
    ) -> Solution:
        """Vertices drawn exactly; see :class:`AbstractBoundPolytope`."""
        return sample(self._sums(), scores, samples, generator, self.verdict)

    def _sums(self) -> LogPartition:
        theta = torch.from_numpy(np.ascontiguousarray(self.theta))
        forbidden = None if self.forbidden is None else torch.from_numpy(self.forbidden)
        return LogPartition(self.compiled.projection_form, theta, forbidden, self.compiled.vertices)

    def verdict(
        self,
        marginals: Float64[Tensor, "batch size"],
        total: Float64[Tensor, " batch"],
        reasons: Mapping[int, str] = NO_REASONS,
    ) -> Solution:
        """Marginals with their verdict; see :class:`AbstractBoundPolytope`."""
        solution = judge_marginals(self.compiled.projection_form, self.instances, marginals, total, reasons)
        if self.impossible is not None:
            impossible = torch.from_numpy(self.impossible)
            status = solution.status.masked_fill(impossible, int(Status.INFEASIBLE))
            why = {k: reason for k, reason in solution.reasons.items() if not self.impossible[k]}
            solution = replace(solution, status=status, reasons=why)
        return solution

    def _hopeless(self, instances: Instances) -> np.ndarray | None:
        """Instances that no solver need see; one that failed forward comes back here with NaN scores."""
        if inputs.all_finite_in(instances.whole):
            return self.impossible
        unknown = ~np.isfinite(instances.whole).all(axis=1)
        return unknown if self.impossible is None else self.impossible | unknown

    def _verdict(
        self,
        solver: AbstractSolver,
        form: StandardForm,
        instances: Instances,
        answer: Answer,
        hopeless: np.ndarray | None,
        *,
        projection: bool,
    ) -> Solution:
        tolerance = max(self.compiled.tolerance, solver.accuracy)
        if answer.certificate is not None:
            residual, gap = answer.certificate.residual, answer.certificate.gap
            holds = answer.certificate.holds(tolerance)
        else:
            objective = instances.scores.copy()
            if projection:
                objective[:, : form.curved] -= answer.point[:, : form.curved]
            residual, gap, holds = _own_word(answer, objective, tolerance)
        if self.broken is not None:
            residual = np.maximum(residual, self.broken)
        status, reasons = np.zeros(len(holds), dtype=np.int8), dict(answer.reasons)
        if np.count_nonzero(holds) < len(holds) or hopeless is not None:
            status = np.where(holds & (answer.status != Status.INFEASIBLE), Status.OPTIMAL, answer.status)
            status = np.where(~holds & (status == Status.OPTIMAL), Status.INACCURATE, status)
            status, reasons = self._reasons(form, instances, status, answer.reasons)
        return Solution(
            torch.from_numpy(form.expand(answer.point[:, : form.scored]) if answer.whole is None else answer.whole),
            torch.from_numpy(status.astype(np.int8, copy=False)),
            torch.from_numpy(residual),
            torch.from_numpy(gap),
            reasons,
            answer,
            instances,
            form,
            projects=projection,
        )

    def _reasons(
        self, form: StandardForm, instances: Instances, status: np.ndarray, told: Mapping[int, str]
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Why instances failed: the solver's word, and for the first few what is proved, which corrects the status."""
        reasons = dict(told)
        rows = self.compiled.rows
        if rows is None:
            return status, reasons
        source = instances if form is rows else self.row_instances
        sees_all = not self.compiled.leaves_rows_to_oracle
        for k in np.flatnonzero(status != Status.OPTIMAL)[:EXPLAINED]:
            reason = self._explain_forbidden(rows, int(k)) or explain_infeasible(rows, source, int(k))
            if reason is not None:
                reasons[int(k)] = reason
                status[k] = Status.INFEASIBLE
            elif status[k] == Status.INFEASIBLE and sees_all:
                reasons[int(k)] = "the solver finds it infeasible, but its constraints can hold together"
                status[k] = Status.FAILED
        return status, reasons

    def _explain_forbidden(self, form: StandardForm, k: int) -> str | None:
        if self.forbidden is None:
            return None
        fixed = np.flatnonzero(self.forbidden[k] & (form.fixed != 0))
        if len(fixed) == 0:
            return None
        part = int(fixed[0])
        return (
            f"{form.entry_name(part)} is forbidden (its score is -inf), but the constraints fix it at "
            f"{form.fixed[part]:.6g}"
        )


def movable_parts(
    form: StandardForm, forbidden: Bool[np.ndarray, "batch size"] | None
) -> Bool[Tensor, "batch_or_1 size"]:
    """Parts that are neither forbidden nor fixed by the constraints, on the CPU."""
    kept = np.zeros((1, form.size), dtype=bool)
    kept[:, form.kept] = True
    return torch.from_numpy(kept if forbidden is None else kept & ~forbidden)


def _in_memory(scores: Float64[Tensor, "batch size"]) -> Float64[np.ndarray, "batch size"]:
    """The same numbers in NumPy, a row per instance in memory."""
    return np.ascontiguousarray(scores.numpy())


def _own_word(answer: Answer, objective: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residual, gap and verdict of answers whose solver brings its own residual and, perhaps, its own gap."""
    if answer.residual is None or answer.gap is None:
        raise RuntimeError("a solver without dual points reports residual and gap itself")
    scale = 1 + np.sum(np.abs(objective) * np.maximum(1.0, np.abs(answer.point[:, : objective.shape[1]])), axis=1)
    with np.errstate(invalid="ignore"):
        closed = np.isnan(answer.gap) | (answer.gap <= tolerance * scale)
        holds = (answer.status == Status.OPTIMAL) & (answer.residual <= tolerance * scale) & closed
    return answer.residual, answer.gap, holds
