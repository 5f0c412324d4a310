"""A batch of polytopes on the CPU: what rules speak to when scores are solved there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int8, Int64
from torch import Tensor

from optlayers.bound.base import NO_REASONS, AbstractBoundPolytope, Marginals, theta_of
from optlayers.bound.dual_points import DualPoints
from optlayers.bound.host_evidence import HostEvidence
from optlayers.bound.numbers import AbstractNumbers
from optlayers.bound.on_host import OnHost
from optlayers.bound.regularized import regularized
from optlayers.common.tensors import all_finite_in
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.proofs.diagnosis import explain_infeasible, is_bounded, is_rounding
from optlayers.proofs.implied import fixed_between, implied_bounds, may_move
from optlayers.proofs.sections import beside, refused
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solution import Solution, Status
from optlayers.solvers.ask import Lineup, Verdict
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.batch import (
    broken_conditions,
    distance_from_rows,
    infeasible_instances,
    make_instances,
)
from optlayers.solvers.certify import certify
from optlayers.sums.marginals import LogPartition, judge_marginals
from optlayers.sums.sampling import sample

__all__ = ["HostPolytope"]

OPTIMAL = int(Status.OPTIMAL)
SURE = 1e-9
"""Points that miss constraints by less, relative to their terms, are in the polytope for sure."""
EXPLAINED = 3
"""So many instances of a batch that presolve shows to be empty get their reason; it costs a linear program."""


def _given(value: np.ndarray, _: bytes) -> np.ndarray:
    return value


@final
class HostPolytope(AbstractNumbers, OnHost):
    """Polytopes of one batch for the solvers of the CPU; see :class:`AbstractBoundPolytope`.

    ``instances`` are the numbers of the projector's form, ``vertex_instances`` those of the maximizer's,
    ``row_instances`` those of all rows that are built. ``precision`` is the machine epsilon of each entry of θ.
    """

    def __init__(
        self,
        prepared: AbstractPrepared,
        theta: Float64[np.ndarray, "batch parameters"],
        forbidden: Bool[np.ndarray, "batch size"] | None,
        precision: Float64[np.ndarray, " parameters"],
    ) -> None:
        self.prepared = prepared
        self.form = prepared.projection_form
        self.theta = theta
        self.batch = len(theta)
        self.compared = False
        """Whether vertices and projections are known to be those of one polytope."""
        self.forbidden = forbidden
        self.precision = precision
        self._movable: Bool[Tensor, "batch_or_1 size"] | None = None
        rows = prepared.rows or prepared.projection_form
        vertices = prepared.maximizer_form or rows
        made: dict[int, Instances] = {}
        for form in (prepared.projection_form, rows, vertices):
            if id(form) not in made:
                made[id(form)] = make_instances(form, theta, forbidden, precision)
        self.instances, self.row_instances, self.vertex_instances = (
            made[id(form)] for form in (prepared.projection_form, rows, vertices)
        )
        broken = broken_conditions(rows, theta, precision)
        self.broken = None if broken is None else broken[0]
        self.infeasible = infeasible_instances(rows, None if broken is None else broken[1], forbidden)

    def maximize(self, scores: Float64[Tensor, "batch size"], *, finite: bool = False) -> Solution:
        """A vertex per instance; see :meth:`CompiledPolytope.maximize`. Scores may be known to be ``finite``."""
        prepared = self.prepared
        lineup = prepared.maximizing
        if lineup is None:
            raise TypeError(
                "maximize needs a polyhedral set: this one is not, so it has no vertices; use a rule that projects, "
                "such as SparseMAP()"
            )
        instances = self.vertex_instances.with_scores(np.ascontiguousarray(scores.numpy()))
        solution = self._answered(lineup, instances, finite)
        if instances.forbidden is None:
            return solution
        section = prepared.without_a_face(lineup.form, prepared.maximizer, instances)
        return solution if section is None else self._of_section(solution, section, scores)

    def _of_section(
        self, solution: Solution, section: Bool[np.ndarray, " batch"], scores: Float64[Tensor, "batch size"]
    ) -> Solution:
        """With the vertices of sections, by the constraints."""
        other, index = self.prepared.by_rows, np.flatnonzero(section)
        if other is None:
            return refused(solution, section)
        return beside(solution, index, self.bound_to(other, index).maximize(scores[torch.from_numpy(index)]))

    def project(
        self,
        scores: Float64[Tensor, "batch size"],
        starts: Float64[Tensor, "batch size"] | None = None,
        *,
        finite: bool = False,
    ) -> Solution:
        """The nearest point; see :meth:`CompiledPolytope.project`. Scores may be known to be ``finite``."""
        prepared = self.prepared
        if len(self.theta) and not self.compared:
            prepared.refuse_two_polytopes(self.theta[0])
            self.compared = True
        begin = None if starts is None else np.ascontiguousarray(starts.numpy())
        instances = self.instances.with_scores(np.ascontiguousarray(scores.numpy()), begin)
        solution = self._answered(prepared.projecting, instances, finite)
        if instances.forbidden is None:
            return solution
        section = prepared.without_a_face(prepared.projection_form, prepared.projector, instances)
        return solution if section is None else refused(solution, section)

    def regularized(self, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer) -> Solution:
        """Regularized points, by the constraints; see :class:`AbstractBoundPolytope`."""
        return regularized(self, scores, regularizer)

    def holds(self, points: Float64[Tensor, "batch size"]) -> bool:
        """Whether all points are known to be in their polytopes, by what is declared of these, without a solve."""
        prepared, whole = self.prepared, np.ascontiguousarray(points.numpy())
        if prepared.rows_say_all and prepared.rows is not None and prepared.polyhedral and not prepared.rows.uncurved:
            relative = distance_from_rows(prepared.rows, self.row_instances, whole)[1]
            return bool(np.count_nonzero(relative <= SURE) == len(whole))
        lineup = prepared.maximizing
        if lineup is None or not prepared.membership_says_all or lineup.form.scored_auxiliaries:
            return False
        answer = Answer.of_whole(lineup.form, 0)
        answer.whole, answer.oracle, answer.status = whole, lineup.state.call, np.zeros(len(whole), dtype=np.int8)
        certificate = certify(lineup.form, self.vertex_instances.with_scores(whole), answer, projection=False)
        return certificate.all_hold(SURE)

    @property
    def movable(self) -> Bool[Tensor, "batch_or_1 size"]:
        """Parts whose scores can matter; see :class:`AbstractBoundPolytope`."""
        if self._movable is None:
            self._movable = torch.from_numpy(self._moving())
        return self._movable

    def _moving(self) -> Bool[np.ndarray, "batch_or_1 size"]:
        """Without what is fixed: for parameters by rows alone, as they are others in every call."""
        if self.forbidden is None:
            if self.theta.shape[1]:
                return self._bounded()[0]
            alone = HostPolytope(self.prepared, np.zeros((1, 0)), None, self.precision)
            return self.prepared.moving.get(b"", lambda _: alone._moving_anew())
        keys = [mask.tobytes() + one.tobytes() for mask, one in zip(self.forbidden, self.theta, strict=True)]
        kept = {key: self.prepared.moving.found(key) for key in keys}
        new: dict[bytes, int] = {}
        for k, key in enumerate(keys):
            if kept[key] is None:
                new.setdefault(key, k)
        if new:
            found = self._some(np.array(list(new.values())))._moving_anew()
            for key, moving in zip(new, found, strict=True):
                kept[key] = self.prepared.moving.get(key, partial(_given, moving))
        moves = np.zeros((self.batch, self.form.size), dtype=bool)
        for k, key in enumerate(keys):
            moves[k] = kept[key]
        return moves

    def _moving_anew(self) -> Bool[np.ndarray, "batch size"]:
        """By rows first, then by best vertices, and where many are needed by a point well inside."""
        prepared = self.prepared
        undecided, middle, room = self._bounded()
        if prepared.maximizing is None or not undecided.any():
            return undecided

        def inside(index: Int64[np.ndarray, " some"]) -> Float64[np.ndarray, "some size"]:
            solution = self._some(index).project(torch.from_numpy(middle[index]))
            points: np.ndarray = np.where(solution.ok.numpy()[:, None], solution.value.numpy(), np.nan)
            return points

        def best(
            index: Int64[np.ndarray, " some"], scores: Float64[np.ndarray, "some size"]
        ) -> tuple[Float64[np.ndarray, "some size"], Bool[np.ndarray, " some"]]:
            solution = self._some(index).maximize(torch.from_numpy(scores))
            return solution.value.numpy(), solution.ok.numpy()

        return may_move(best, room, undecided, inside if prepared.projects_on_rows and prepared.rows_say_all else None)

    def _some(self, index: Int64[np.ndarray, " some"]) -> HostPolytope:
        """Those of some instances, in the order of the batch."""
        if len(index) == self.batch:
            return self
        forbidden = None if self.forbidden is None else self.forbidden[index]
        return HostPolytope(self.prepared, self.theta[index], forbidden, self.precision)

    def _bounded(
        self,
    ) -> tuple[Bool[np.ndarray, "batch size"], Float64[np.ndarray, "batch size"], Float64[np.ndarray, "batch size"]]:
        """Parts that bounds do not fix, the middle between bounds, 0 for none, and how far these are apart."""
        form = self.prepared.rows or self.form
        lower, upper = (bounds[:, : form.scored] for bounds in implied_bounds(form, self.row_instances))
        undecided, middle, room = (np.zeros((self.batch, form.size), dtype=t) for t in (bool, float, float))
        undecided[:, form.kept] = ~fixed_between(lower, upper)
        with np.errstate(invalid="ignore"):  # of infinite bounds
            between = 0.5 * (lower + upper)
            room[:, form.kept] = upper - lower
        middle[:, form.kept] = np.where(np.isfinite(between), between, 0.0)
        if self.forbidden is not None:
            undecided &= ~self.forbidden
        return undecided, middle, room

    @property
    def given(self) -> Float64[Tensor, "batch parameters"]:
        """The parameters of every instance."""
        return torch.from_numpy(np.ascontiguousarray(self.theta))

    @property
    def hidden(self) -> Bool[Tensor, "batch size"] | None:
        """The forbidden parts, None for none."""
        return None if self.forbidden is None else torch.from_numpy(self.forbidden)

    def repeated(self, times: int) -> AbstractBoundPolytope:
        """The batch so many times; see :class:`AbstractBoundPolytope`."""
        if times == 1:
            return self
        theta = torch.from_numpy(np.tile(self.theta, (times, 1)))
        forbidden = None if self.forbidden is None else torch.from_numpy(np.tile(self.forbidden, (times, 1)))
        return self.prepared.bind_on_host(theta, forbidden, self.precision)

    def among(
        self, rows: Int64[Tensor, " rows"], forbidden: Bool[Tensor, "rows size"] | None = None
    ) -> AbstractNumbers:
        """The polytopes of some instances; see :class:`AbstractNumbers`."""
        hidden = self.hidden
        if hidden is not None:
            forbidden = hidden[rows] if forbidden is None else hidden[rows] | forbidden
        bound = self.prepared.bind_on_host(self.given[rows], forbidden, self.precision)
        assert isinstance(bound, AbstractNumbers)
        return bound

    def relaxed(self, relaxation: Polytope) -> AbstractBoundPolytope:
        """Another polytope for the same batch; see :class:`AbstractBoundPolytope`."""
        return self.bound_to(self.prepared.relaxation(relaxation), slice(None))

    def bound_to(self, other: AbstractPrepared, index: np.ndarray | slice) -> AbstractBoundPolytope:
        """Other polytopes for the instances ``index``."""
        theirs = theta_of(self.parameters, other.projection_form.parameters)
        forbidden = None if self.forbidden is None else torch.from_numpy(self.forbidden[index])
        return other.bind_on_host(torch.from_numpy(self.theta[index][:, theirs]), forbidden, self.precision[theirs])

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
        return LogPartition(self.prepared.projection_form, theta, forbidden, self.prepared.sums)

    def verdict(
        self,
        marginals: Float64[Tensor, "batch size"],
        total: Float64[Tensor, " batch"],
        reasons: Mapping[int, str] = NO_REASONS,
    ) -> Solution:
        """Marginals with their verdict; see :class:`AbstractBoundPolytope`."""
        solution = judge_marginals(self.prepared.projection_form, self.instances, marginals, total, reasons)
        if self.infeasible is not None:
            infeasible = torch.from_numpy(self.infeasible).to(solution.status.device)
            status = solution.status.masked_fill(infeasible, int(Status.INFEASIBLE))
            why = {k: reason for k, reason in solution.reasons.items() if not self.infeasible[k]}
            solution = replace(solution, status=status, reasons=why)
        return solution

    def _answered(self, lineup: Lineup, instances: Instances, finite: bool) -> Solution:
        """What solvers answer, with the verdict; scores are known to be ``finite`` or not."""
        form, projection = lineup.form, lineup.projection
        verdict = lineup.answer(instances, self.left_out(instances, finite))
        all_ok = not np.count_nonzero(verdict.status)
        value, status, reasons = self.judged(verdict, form, instances, projection=projection)
        answer, residual = verdict.answer, verdict.certificate.residual
        if self.broken is not None:
            residual = np.maximum(residual, self.broken)
        certificate = verdict.certificate
        certified = status == OPTIMAL
        evidence = HostEvidence(form, instances, answer, lineup.solver, projection, certified, certificate.exact)
        if answer.whole is not None and answer.of_value is None and form.parameter_count:
            evidence.dual_points = self._dual_points(instances, certified, value, projection)
        fields = {
            "value": torch.from_numpy(value),
            "status": torch.from_numpy(status),
            "primal_residual": torch.from_numpy(residual),
            "gap": torch.from_numpy(certificate.gap),
            "reasons": reasons,
            "evidence": evidence,
            "scored": {},
            "word": certificate.word,
        }
        if all_ok:
            fields["all_ok"] = True
        # A frozen record that sets its fields one by one takes three times as long to make.
        solution = object.__new__(Solution)
        object.__setattr__(solution, "__dict__", fields)
        return solution

    def _dual_points(
        self, instances: Instances, certified: Bool[np.ndarray, " batch"], value: np.ndarray, projection: bool
    ) -> DualPoints:
        """Of answers without, for gradients of parameters; their caller may write to its numbers before then."""
        numbers = self.theta.copy(), self.forbidden, self.precision, instances.whole.copy()
        return DualPoints(self.prepared, *numbers, value.copy(), certified, projection)

    def judged(
        self, verdict: Verdict, form: StandardForm, instances: Instances, *, projection: bool
    ) -> tuple[Float64[np.ndarray, "batch size"], Int8[np.ndarray, " batch"], dict[int, str]]:
        """Answers as scored vectors, their verdicts, and the reasons of those that failed."""
        status, reasons = verdict.status, verdict.reasons
        if np.count_nonzero(status):
            status, reasons = self._reasons(form, instances, verdict, projection=projection)
        if verdict.answer.whole is not None:
            return verdict.answer.whole, status, reasons
        scored = verdict.answer.point[:, : form.scored]
        return scored.copy() if form.keeps_all else form.expand(scored), status, reasons

    def left_out(self, instances: Instances, finite: bool = False) -> Bool[np.ndarray, " batch"] | None:
        """Instances that no solver need see; one that failed forward comes back here with NaN scores."""
        if finite or all_finite_in(instances.whole):
            return self.infeasible
        unknown: np.ndarray = ~np.isfinite(instances.whole).all(axis=1)
        return unknown if self.infeasible is None else self.infeasible | unknown

    def _reasons(
        self, form: StandardForm, instances: Instances, verdict: Verdict, *, projection: bool
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Why instances failed: what is said already, and what is proved, which corrects it.

        Whether a polytope is empty is never taken on trust of a solver: where no presolve shows it, a linear program
        tells.
        """
        reasons, status = dict(verdict.reasons), verdict.status
        rows = self.prepared.rows
        if rows is None:
            return status, reasons
        source = instances if form is rows else self.row_instances
        for k in np.flatnonzero(status == Status.UNBOUNDED):
            if (projection and form.curved == form.scored) or is_bounded(rows, source, int(k)):
                reasons[int(k)], status[k] = "a solver finds it unbounded, but it is not", Status.FAILED
        sees_all = not self.prepared.leaves_rows_to_oracle
        known = np.zeros(len(status), dtype=bool) if self.infeasible is None else self.infeasible
        failed = status != Status.OPTIMAL
        asked = failed & ~known & sees_all
        asked[np.flatnonzero(failed & ~asked)[:EXPLAINED]] = True
        told: dict[bytes, tuple[str | None, bool]] = {}  # instances of the same numbers share their linear program
        for k in np.flatnonzero(asked):
            reason, by_rounding = self._explain_forbidden(rows, int(k)), False
            if reason is None:
                numbers = source.numbers_of(int(k))
                if numbers not in told:
                    found = explain_infeasible(rows, source, int(k))
                    told[numbers] = found, found is not None and is_rounding(rows, source, int(k), self.precision)
                reason, by_rounding = told[numbers]
            if reason is not None and not known[k] and by_rounding:
                reasons[int(k)] = (
                    f"{reason}; that is no more than the rounding of its parameters: give them in a higher precision, "
                    "or make the constraints give way to it"
                )
                status[k] = Status.FAILED
            elif reason is not None:
                reasons[int(k)] = reason
                status[k] = Status.INFEASIBLE
            elif status[k] == Status.INFEASIBLE and self.prepared.rows_are_not_all:
                without = self.forbidden is not None and bool(self.forbidden[k].any())
                reasons[int(k)] = f"{self.prepared.nothing_satisfies}{' without the forbidden parts' * without}"
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
            f"{form.entry_name(part)} is forbidden by its score, but the constraints fix it at {form.fixed[part]:.6g}"
        )
