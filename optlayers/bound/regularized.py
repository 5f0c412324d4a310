"""Regularized points of a batch on the CPU, and what belongs to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound.curved import RegularizedEvidence, on_form
from optlayers.bound.declared import ConeEvidence, Program, ProgramEvidence, worth_at
from optlayers.bound.dense_program import DenseEvidence, EvidenceOfParts, matrix_span, solved_densely
from optlayers.bound.nowhere import explained
from optlayers.bound.on_host import OnHost
from optlayers.bound.smooth import PartByPart
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.cones import program_of
from optlayers.form.quadratic import QuadraticProgram
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.proofs.always_tight import always_tight
from optlayers.proofs.diagnosis import explain_infeasible
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.regularizers.declared import Declared
from optlayers.solution import AbstractEvidence, Solution, Status
from optlayers.solvers.ask import Verdict
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import distance_from_rows
from optlayers.solvers.certify import Certificate, certify
from optlayers.solvers.cone_newton import answer_over_cones
from optlayers.solvers.conic import CONE_WORD, ConicProgram
from optlayers.solvers.curves import Curves
from optlayers.solvers.declared import distance_from_declared
from optlayers.solvers.dense_program import DenseProgram
from optlayers.solvers.kernels.curves import QUADRATIC
from optlayers.solvers.regularized import Regularizing, certify_regularized
from optlayers.solvers.roots import roots_of

__all__ = [
    "by_constraints",
    "columns_without_choice",
    "has_negative",
    "of_parts",
    "on_device",
    "regularized",
    "whole_worth",
]


NEGATIVE = "a part of it is always negative"
NO_ROWS = (
    "regularized points need constraints that describe the polytope, and this one is known by its structures alone: "
    "SparseMAP() projects onto it, StructuredAttention() has its marginals"
)


def by_constraints(prepared: AbstractPrepared) -> AbstractPrepared:
    """The polytope by constraints that describe it: rows, or cones where it is not polyhedral.

    Raises
    ------
    DeclarationError : where it is known by its structures alone.
    """
    if not prepared.polyhedral or (prepared.projects_on_rows and prepared.rows_are != "relaxation"):
        return prepared
    other = prepared.by_rows
    if other is None:
        raise DeclarationError(NO_ROWS)
    return other


def regularized(polytope: OnHost, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer) -> Solution:
    r"""The points :math:`\operatorname{argmax}_{z \in P} \langle s, z \rangle - \Omega(z)` of a batch."""
    if regularizer.projects == 1.0:
        return polytope.project(scores.detach())
    prepared = by_constraints(polytope.prepared)
    if isinstance(regularizer, Declared):
        return explained(polytope, _declared(polytope, scores, regularizer), regularizer)
    if not prepared.polyhedral:
        return _over_cones(polytope, scores, regularizer)
    if not prepared.projection_form.unslacked:
        return _single(polytope, scores, regularizer, prepared.projection_form)
    if prepared is not polytope.prepared:
        return polytope.bound_to(prepared, slice(None)).regularized(scores, regularizer)
    form, given = polytope.form, np.ascontiguousarray(scores.detach().numpy())
    theta = torch.from_numpy(np.ascontiguousarray(polytope.instances.parameters)) if form.parameters else None
    instances, curves = polytope.instances.with_scores(given), regularizer.curves(form, theta)
    left_out = polytope.left_out(instances)
    nowhere = _nowhere_finite(form, instances, curves)
    aside = nowhere if left_out is None else nowhere | left_out
    if aside.any():
        instances = polytope.instances.with_scores(np.where(aside[:, None], 0.0, given))
    fixed, at = (_inside_of if curves.has_barrier else columns_without_choice)(polytope, instances)
    solved = Regularizing.of(form, instances, curves, fixed, at, prepared.tolerance)
    certificate = certify_regularized(solved)
    _hold_to_own_bounds(certificate, instances, solved)
    certificate.error[aside] = np.inf
    verdict = Verdict.of(solved.answer, certificate, prepared.tolerance)
    verdict.status[aside] = Status.INFEASIBLE
    value, status, reasons = polytope.judged(verdict, form, instances, projection=True)
    for k in np.flatnonzero((status != Status.OPTIMAL) & (nowhere | (status != Status.INFEASIBLE))).tolist():
        why = NEGATIVE if nowhere[k] else _outside_of_domain(solved, k)
        if why is not None:
            status[k], reasons[k] = Status.INFEASIBLE, f"{regularizer!r} is finite nowhere on the polytope: {why}"
    residual = certificate.residual if polytope.broken is None else np.maximum(certificate.residual, polytope.broken)
    return Solution(
        torch.from_numpy(value),
        torch.from_numpy(status),
        torch.from_numpy(residual),
        torch.from_numpy(certificate.gap),
        reasons,
        RegularizedEvidence(form, solved, regularizer, theta),
    )


def _hold_to_own_bounds(certificate: Certificate, instances: Instances, solved: Regularizing) -> None:
    """Of columns that stay where they are, too, which problems are given as bounds that meet there."""
    point = solved.answer.point[:, : solved.form.unslacked]
    lower, upper = (bound[:, : solved.form.unslacked] for bound in (instances.lower, instances.upper))
    outside = np.maximum(lower - point, point - upper).max(axis=1, initial=0.0)
    certificate.residual = np.maximum(certificate.residual, outside)
    certificate.error = np.maximum(certificate.error, outside)


def _declared(polytope: OnHost, scores: Float64[Tensor, "batch size"], regularizer: Declared) -> Solution:
    """Those of an expression, in the way that its terms and the polytope allow."""
    if not by_constraints(polytope.prepared).polyhedral:
        return _over_cones(polytope, scores, regularizer)
    program = regularizer.over(polytope.prepared.polytope)
    if isinstance(program, ConicProgram):
        return _by_cones(polytope, scores, program)
    return _by_program(polytope, scores, program)


def _by_program(
    polytope: OnHost, scores: Float64[Tensor, "batch size"], declared: QuadraticProgram, *, densely: bool = True
) -> Solution:
    """Those where the regularizer is a quadratic program over the polytope."""
    if not polytope.form.unslacked:  # a single point
        return polytope.project(scores.detach())
    given, prepared = np.ascontiguousarray(scores.detach().numpy()), polytope.prepared
    if densely and (found := _densely(polytope, scores, declared)) is not None:
        return found
    program = Program.of(declared, polytope.form.parameters, polytope.theta, polytope.forbidden, polytope.precision)
    left_out = polytope.left_out(polytope.instances.with_scores(given))
    aside = np.zeros(len(given), dtype=bool) if left_out is None else left_out
    form, instances = declared.form, program.with_scores(np.where(aside[:, None], 0.0, given))
    solved = Regularizing.of(form, instances, program.curves, None, None, prepared.tolerance)
    certificate = certify_regularized(solved)
    certificate.error[aside] = np.inf
    verdict = Verdict.of(solved.answer, certificate, prepared.tolerance)
    verdict.status[aside] = Status.INFEASIBLE
    value, status, reasons = polytope.judged(verdict, form, instances, projection=True)
    residual = certificate.residual if polytope.broken is None else np.maximum(certificate.residual, polytope.broken)
    return Solution(
        torch.from_numpy(np.ascontiguousarray(value[:, : given.shape[1]])),
        torch.from_numpy(status),
        torch.from_numpy(residual),
        torch.from_numpy(certificate.gap),
        reasons,
        ProgramEvidence(polytope.form, program, solved),
    )


def _densely(polytope: OnHost, scores: Float64[Tensor, "batch size"], declared: QuadraticProgram) -> Solution | None:
    """Those of one quadratic form by active sets, and the instances that these do not certify in the other way; None
    where there are none of the former. In which way an instance is solved depends on its own numbers alone."""
    given, prepared, term = np.ascontiguousarray(scores.detach().numpy()), polytope.prepared, declared.dense
    if term is None or not len(given) or not prepared.projects_on_rows or prepared.rows_are == "relaxation":
        return None
    if not DenseProgram.takes(polytope.form):
        return None
    instances, spec = polytope.instances.with_scores(given), matrix_span(polytope.form, term)
    solved = solved_densely(polytope.form, instances, term, polytope.theta)
    good = solved.error <= prepared.tolerance
    # The first step factors the matrix where all parts may move. Elsewhere an answer may look best on its active set
    # though the matrix is not positive semidefinite.
    if spec is not None and not (good.all() and (instances.lower < instances.upper).all()):
        roots_of(spec, polytope.theta[:, spec.span], float(polytope.precision[spec.span].max()))
    if (left_out := polytope.left_out(instances)) is not None:
        good &= ~left_out
    if polytope.broken is not None:
        good &= polytope.broken <= prepared.tolerance
    evidence: AbstractEvidence = DenseEvidence(polytope.form, solved, term)
    value, status = solved.point.copy(), np.zeros(len(given), dtype=np.int8)
    parts, reasons = (value, status, solved.residual, solved.gap), dict[int, str]()
    if not good.any():
        return None
    if not good.all():
        mine, rest = np.flatnonzero(good), np.flatnonzero(~good)
        others = polytope.among(torch.from_numpy(rest))
        assert isinstance(others, OnHost)
        found = _by_program(others, scores[torch.from_numpy(rest)], declared, densely=False)
        theirs = found.value, found.status, found.primal_residual, found.gap
        for part, other in zip(parts, theirs, strict=True):
            part[rest] = other.numpy()
        assert found.evidence is not None
        own = DenseEvidence(polytope.form, solved.take(mine), term)
        evidence = EvidenceOfParts(polytope.form, [(mine, own), (rest, found.evidence)])
        reasons = {int(rest[k]): reason for k, reason in found.reasons.items()}
    points, verdicts, residual, gap = (torch.from_numpy(part) for part in parts)
    return Solution(points, verdicts, residual, gap, reasons, evidence)


def _over_cones(polytope: OnHost, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer) -> Solution:
    """Those over a set that is not polyhedral, with their certificate."""
    form, declaration = polytope.form, polytope.prepared.polytope
    program = regularizer.over_cones(declaration)
    if isinstance(program, ConicProgram):
        return _by_cones(polytope, scores, program)
    weights, terms = None, None
    if program is None:
        program = program_of(declaration)
        theta = torch.from_numpy(np.ascontiguousarray(polytope.theta)) if form.parameters else None
        number = regularizer.checked(form, theta)
        weights = np.broadcast_to(number, (len(number), form.size))
        terms = next(((s.span, s.size == 1) for s in form.parameters if s.name in names_of(regularizer)), None)
    given = np.ascontiguousarray(scores.detach().numpy())
    left_out = polytope.left_out(polytope.instances.with_scores(given))
    aside = np.zeros(len(given), dtype=bool) if left_out is None else left_out
    instances = polytope.instances.with_scores(np.where(aside[:, None], 0.0, given))
    answer = answer_over_cones(form, program, instances, weights, weight_terms=terms)
    certificate = certify(form, instances, answer, projection=True)
    certificate.error[aside] = np.inf
    verdict = Verdict.of(answer, certificate, polytope.prepared.tolerance)
    verdict.status[aside] = Status.INFEASIBLE
    value, status, reasons = polytope.judged(verdict, form, instances, projection=True)
    return Solution(
        torch.from_numpy(value),
        torch.from_numpy(status),
        torch.from_numpy(certificate.residual),
        torch.from_numpy(certificate.gap),
        reasons,
        ConeEvidence(form, answer),
    )


def names_of(regularizer: AbstractRegularizer) -> set[str]:
    """The names of the parameters that are the number of a regularizer."""
    return {parameter.name() for parameter in regularizer.parameters}


def _by_cones(polytope: OnHost, scores: Float64[Tensor, "batch size"], declared: ConicProgram) -> Solution:
    """Those where the regularizer needs a cone solver: what points miss is certified, that they are best its word."""
    given, prepared = np.ascontiguousarray(scores.detach().numpy()), polytope.prepared
    left_out = polytope.left_out(polytope.instances.with_scores(given))
    aside = np.zeros(len(given), dtype=bool) if left_out is None else left_out
    form, instances = polytope.row_form, polytope.row_instances.with_scores(np.where(aside[:, None], 0.0, given))
    answer = declared.answer(form, instances, ~aside)
    whole = answer.whole
    assert whole is not None
    if prepared.polyhedral:
        residual, error = distance_from_rows(form, instances, np.where(np.isfinite(whole), whole, 0.0))
    else:
        residual, error = distance_from_declared(form, instances, answer)
    nothing = np.full(len(given), np.nan)
    error[answer.status != Status.OPTIMAL] = np.inf
    certificate = Certificate(residual, nothing, error, np.ones(len(given), dtype=bool), CONE_WORD)
    verdict = Verdict.of(answer, certificate, max(prepared.tolerance, declared.accuracy))
    verdict.status[aside] = Status.INFEASIBLE
    value, status, reasons = polytope.judged(verdict, form, instances, projection=True)
    return Solution(
        torch.from_numpy(value),
        torch.from_numpy(status),
        torch.from_numpy(residual if polytope.broken is None else np.maximum(residual, polytope.broken)),
        torch.from_numpy(nothing),
        reasons,
        ConeEvidence(polytope.form, answer),
        word=CONE_WORD,
    )


def whole_worth(
    polytope: OnHost, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, "batch parameters"]]:
    """Ω at points of the polytopes of a batch, of a declared regularizer that is a quadratic program, and its gradient
    with respect to θ.

    Raises
    ------
    DeclarationError : for other regularizers that are no sum over parts.
    """
    prepared = by_constraints(polytope.prepared)
    declared = regularizer.over(polytope.prepared.polytope) if prepared.polyhedral else None
    if not isinstance(declared, QuadraticProgram):
        raise DeclarationError(
            f"losses and optimal values need the value of {regularizer!r} at structures, which is known for sums over "
            "parts and for expressions that are quadratic programs over a polytope"
        )
    program = Program.of(declared, polytope.form.parameters, polytope.theta, None, polytope.precision)
    found = worth_at(program, points.detach().cpu().numpy(), prepared.tolerance)
    worth, gradient = (torch.from_numpy(np.ascontiguousarray(part)).to(points.device) for part in found)
    return worth, gradient


def of_parts(
    prepared: AbstractPrepared,
    points: Float64[Tensor, "batch size"],
    regularizer: AbstractRegularizer,
    function: PartByPart,
    theta: Float64[Tensor, "batch parameters"] | None,
) -> Float64[Tensor, "batch size"]:
    """A function of the regularizer at every part of points, 0 for auxiliary variables."""
    form = (prepared if regularizer.projects is not None else by_constraints(prepared)).projection_form
    return on_form(form, points, regularizer, function, theta)


def _nowhere_finite(form: StandardForm, instances: Instances, curves: Curves) -> Bool[np.ndarray, " batch"]:
    """Instances that have points by their bounds, and none in the domain of the regularizer."""
    lower, upper = curves.domain(instances.lower, instances.upper)
    crossed = (lower > upper).any(axis=1) & ~(instances.lower > instances.upper).any(axis=1)
    never = not curves.takes_negative and has_negative(form)
    return np.broadcast_to(crossed | never, (len(instances),)).copy()


def has_negative(form: StandardForm) -> bool:
    """Whether a part of the structure that has no column, as constraints fix it, is negative."""
    fixed = np.ones(form.size, dtype=bool)
    fixed[form.kept] = False
    return bool((form.fixed[: form.structure_size] < 0.0)[fixed[: form.structure_size]].any())


def _outside_of_domain(solved: Regularizing, k: int) -> str | None:
    """Which constraints leave an instance no point where the regularizer is finite, None where they leave one."""
    if solved.curves.takes_negative or solved.curves.has_barrier:
        return None
    found = explain_infeasible(solved.form, solved.instances, k)
    return None if found is None else f"for parts that are not negative, {found}"


def _single(
    polytope: OnHost, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer, form: StandardForm
) -> Solution:
    """Of a polytope of one point that point, whatever the regularizer."""
    solution = polytope.project(scores.detach())
    if regularizer.kind_of_fixed <= QUADRATIC or not has_negative(form):
        return solution
    status = torch.full_like(solution.status, int(Status.INFEASIBLE))
    reason = f"{regularizer!r} is finite nowhere on the polytope: {NEGATIVE}"
    return replace(solution, status=status, reasons=dict.fromkeys(range(len(status)), reason))


def columns_without_choice(
    polytope: OnHost, instances: Instances
) -> tuple[Bool[np.ndarray, "batch columns"] | None, Float64[np.ndarray, "batch columns"] | None]:
    """The columns of what is scored that constraints leave one value, and these values."""
    form, count = polytope.form, len(instances)
    moves = np.broadcast_to(polytope.movable.numpy(), (count, form.size))[:, form.kept]
    if moves.all():
        return None, None
    fixed, at = np.zeros((count, form.columns), dtype=bool), np.zeros((count, form.columns))
    fixed[:, : form.scored] = ~moves
    known = np.zeros(moves.shape, dtype=bool) if polytope.forbidden is None else polytope.forbidden[:, form.kept]
    rows = np.flatnonzero((~moves & ~known).any(axis=1))
    if len(rows):
        nothing = torch.zeros(len(rows), form.size, dtype=torch.float64, device="cpu")
        vertices = polytope.among(torch.from_numpy(rows)).maximize(nothing)
        at[rows, : form.scored] = vertices.value.numpy()[:, form.kept]
        empty = rows[~vertices.ok.numpy()]  # whose columns have no value at all
        fixed[empty, : form.scored] = known[empty]
        at[:, : form.scored][known] = 0.0
        at[empty] = 0.0
    return fixed, at


def _inside_of(
    polytope: OnHost, instances: Instances
) -> tuple[Bool[np.ndarray, "batch columns"] | None, Float64[np.ndarray, "batch columns"] | None]:
    """What stays where it is, for a barrier: beside forbidden parts also auxiliary variables, and inequalities without
    room, which the mask leaves no choice."""
    form, (fixed, at) = polytope.form, columns_without_choice(polytope, instances)
    if polytope.forbidden is None or fixed is None or at is None:
        return fixed, at
    told: dict[bytes, tuple[np.ndarray, np.ndarray] | None] = {}  # instances of the same numbers share a program
    for k in np.flatnonzero(polytope.forbidden.any(axis=1)).tolist():
        numbers = instances.numbers_of(k)
        if numbers not in told:
            told[numbers] = always_tight(form, instances, k)
        if (found := told[numbers]) is not None:
            at[k] = np.where(fixed[k], at[k], found[1])
            fixed[k] |= found[0]
    return fixed, at


def on_device(solution: Solution, device: torch.device) -> Solution:
    """Answers of the CPU where their scores live."""
    parts = (solution.value, solution.status, solution.primal_residual, solution.gap)
    value, status, residual, gap = (part.to(device) for part in parts)
    return replace(solution, value=value, status=status, primal_residual=residual, gap=gap)
