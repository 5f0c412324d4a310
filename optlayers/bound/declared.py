"""Regularized points of a batch where the regularizer is a quadratic program, and what belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.form.quadratic import QuadraticProgram
from optlayers.form.standard import ParameterSpec, StandardForm
from optlayers.solution import AbstractEvidence, Proof
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.batch import make_instances
from optlayers.solvers.curves import Curves
from optlayers.solvers.derivative import PulledBack, value_gradient_of
from optlayers.solvers.kernels.curves import LINEAR, QUADRATIC
from optlayers.solvers.regularized import Regularizing, certify_regularized, pull_back
from optlayers.solvers.roots import roots_of

__all__ = ["ConeEvidence", "Program", "ProgramEvidence"]

ONCE = "the derivative of points with a declared regularizer has no derivative here; take one derivative only"
OVER_CONES = "the derivative of points by a cone solver has no derivative here; take one derivative only"
TIED = (
    "several points are best, or its active constraints are too nearly dependent to differentiate; a strictly convex "
    "term in the regularizer, such as 1e-3 * cp.sum_squares(x), leaves one"
)


@final
@dataclass(frozen=True, eq=False)
class Program:
    """A quadratic program with the numbers of a batch: its instances, costs and weights.

    ``theta`` are its parameters, of which some are entries of roots, ``given`` those of the polytope.
    """

    program: QuadraticProgram
    specs: tuple[ParameterSpec, ...]
    given: Float64[np.ndarray, "batch parameters"]
    theta: Float64[np.ndarray, "batch others"]
    instances: Instances
    curves: Curves

    @classmethod
    def of(
        cls,
        program: QuadraticProgram,
        specs: tuple[ParameterSpec, ...],
        given: Float64[np.ndarray, "batch parameters"],
        forbidden: Bool[np.ndarray, "batch size"] | None,
        precision: Float64[np.ndarray, " parameters"],
    ) -> Program:
        """For the parameters ``given`` of a polytope and its forbidden parts.

        Raises
        ------
        ValueError : for a matrix that is not positive semidefinite, naming the instance.
        """
        form, count = program.form, len(given)
        theta, epsilon = np.empty((count, form.parameter_count)), np.empty(form.parameter_count)
        spans = {spec.name: spec for spec in specs}
        matrices = {root.entries: root.matrix for root in program.roots}
        for spec in form.parameters:
            if spec.name in matrices:
                matrix = spans[matrices[spec.name]]
                theta[:, spec.span] = roots_of(matrix, given[:, matrix.span], float(precision[matrix.span].max()))
                epsilon[spec.span] = precision[matrix.span].max()
            else:
                span = spans[spec.name].span
                theta[:, spec.span], epsilon[spec.span] = given[:, span], precision[span]
        hidden = None
        if forbidden is not None:
            hidden = np.zeros((count, form.size), dtype=bool)
            hidden[:, : forbidden.shape[1]] = forbidden
        instances = make_instances(form, theta, hidden, epsilon)
        weights = program.weight(theta)[:, form.kept]
        kind, weight = np.full(form.columns, LINEAR, dtype=np.int64), np.ones((count, form.columns))
        squared = (program.weight.constant != 0.0) | (np.diff(program.weight.matrix.indptr) > 0)
        kind[: form.scored][squared[form.kept]] = QUADRATIC
        weight[:, : form.scored] = np.where(squared[form.kept], weights, 1.0)
        curves = Curves(kind, weight, np.full(weight.shape, 2.0), np.zeros(count))
        return cls(program, specs, given, theta, instances, curves)

    def with_scores(self, scores: Float64[np.ndarray, "batch size"]) -> Instances:
        """The instances for scores of the polytope, less the costs."""
        whole = -self.program.cost(self.theta)
        whole[:, : scores.shape[1]] += scores
        return self.instances.with_scores(whole)

    def of_parameters(
        self,
        inner: Float64[np.ndarray, "batch others"],
        point: Float64[np.ndarray, "batch entries"],
        moved: Float64[np.ndarray, "batch entries"],
    ) -> Float64[np.ndarray, "batch parameters"]:
        r"""The gradient of the parameters of the polytope, from that of those of the program by rows and bounds.

        For the ``point`` z and the ``moved`` p, a cost has the gradient :math:`-p`, a weight :math:`-p z`, and Q in
        :math:`\tfrac a2 v^\top Q v` has :math:`-\tfrac a2 (p_v v^\top + v p_v^\top)`.
        """
        program = self.program
        inner = inner - program.cost.transposed(moved) - program.weight.transposed(moved * point)
        found = np.zeros(self.given.shape)
        spans, weights = {spec.name: spec for spec in self.specs}, program.weight(self.theta)
        entries = {root.entries for root in program.roots}
        for spec in program.form.parameters:
            if spec.name not in entries:
                found[:, spans[spec.name].span] = inner[:, spec.span]
        for root in program.roots:
            outer = moved[:, root.of, None] * point[:, None, root.of]
            both = -0.5 * weights[:, root.root][:, :1, None] * (outer + outer.transpose(0, 2, 1))
            found[:, spans[root.matrix].span] += both.reshape(len(both), -1)
        return found


def worth_at(
    program: Program, points: Float64[np.ndarray, "batch size"], tolerance: float
) -> tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, "batch parameters"]]:
    """Ω at points of the polytope, and its gradient with respect to the parameters of the polytope.

    What the program has besides the structure is chosen for the least Ω, so that its gradient is that of the program at
    this choice (envelope theorem). NaN where it is not found.
    """
    declared, form = program.program, program.program.form
    instances, cut = program.with_scores(np.zeros(points.shape)), form.curved
    lower, upper = np.array(instances.lower), np.array(instances.upper)
    lower[:, :cut] = upper[:, :cut] = points[:, form.kept[:cut]]
    held = replace(instances, lower=lower, upper=upper)
    solved = Regularizing.of(form, held, program.curves, None, None, tolerance)
    right = certify_regularized(solved).error <= tolerance
    whole = form.expand(solved.answer.point[:, : form.scored])
    terms = declared.cost(program.theta) * whole + 0.5 * declared.weight(program.theta) * whole**2
    worth = terms.sum(axis=1) + declared.offset(program.theta)[:, 0]
    gradient = -ProgramEvidence(form, program, solved).of_theta(right)
    return np.where(right, worth, np.nan), np.where(right[:, None], gradient, np.nan)


@final
@dataclass(eq=False)
class ProgramEvidence(AbstractEvidence):
    """What belongs to points with a declared regularizer: those of its program, and their active sets."""

    form: StandardForm
    program: Program
    solved: Regularizing
    once = ONCE
    without_derivative = TIED

    @property
    def proof(self) -> Proof:
        """The points of the program; see :class:`AbstractEvidence`."""
        answer = self.solved.answer
        return Proof(answer.point, answer.dual, answer.free, np.ones(len(answer.point), dtype=bool))

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """On the active sets of the program; see :class:`AbstractEvidence`."""
        form, solved, device = self.solved.form, self.solved, direction.device
        size = direction.shape[1]
        whole = np.zeros((len(direction), form.size))
        whole[:, :size] = direction.detach().cpu().numpy()
        mine = whole[:, form.kept]
        good = np.ones(len(mine), dtype=bool) if ok is None else ok.cpu().numpy()
        p, q, right = pull_back(solved, mine, good)
        moved = np.zeros((len(mine), form.size))
        moved[:, form.kept] = p[:, : form.scored]

        def of_parameters() -> Tensor:
            answer, instances = solved.answer, solved.instances
            assert answer.free is not None
            found = PulledBack(form, instances, answer.free, mine, p, q, right)
            high = instances.upper - answer.point < answer.point - instances.lower
            theta = self._finite(found.parameters(answer.point, answer.dual, high))
            point = np.where(right[:, None], form.expand(answer.point[:, : form.scored]), 0.0)
            return torch.from_numpy(self.program.of_parameters(theta, point, moved)).to(device)

        return torch.from_numpy(moved[:, :size].copy()).to(device), of_parameters, torch.from_numpy(right).to(device)

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """From dual points; see :class:`AbstractEvidence`."""
        return torch.from_numpy(self.of_theta(ok.cpu().numpy())).to(ok.device)

    def of_theta(self, good: Bool[np.ndarray, " batch"]) -> Float64[np.ndarray, "batch parameters"]:
        """The gradient of optimal values; 0 for instances that are not ``good``."""
        solved = self.solved
        answer, form = solved.answer, solved.form
        assert answer.free is not None
        slope = np.where(answer.free, 0.0, solved.curves.slope(answer.point))
        found = value_gradient_of(form, solved.instances, answer.point, answer.dual, good, slope, answer.free)
        theta = self._finite(found)
        point = np.where(good[:, None], form.expand(answer.point[:, : form.scored]), 0.0)
        program = self.program
        # The value moves with weights by -z² / 2, as points moved by z / 2 do, but with costs by -z.
        constant = program.program.offset.transposed(good[:, None].astype(np.float64))
        theta = theta - 0.5 * program.program.cost.transposed(point) - constant
        return program.of_parameters(theta, point, 0.5 * point)

    def _finite(self, theta: Float64[np.ndarray, "batch others"]) -> Float64[np.ndarray, "batch others"]:
        """Infinite parameters are limits that do not bind: their gradient is 0."""
        found: np.ndarray = np.where(np.isinf(self.program.theta), 0.0, theta)
        return found


@final
@dataclass(eq=False)
class ConeEvidence(AbstractEvidence):
    """What belongs to points by a cone solver: its own derivative, or that of cvxpylayers."""

    form: StandardForm
    answer: Answer
    once = OVER_CONES
    without_derivative = (
        "no derivative of its point is found: several points are best, or constraints depend on each other"
    )

    @property
    def proof(self) -> Proof:
        """There is none: see :class:`AbstractEvidence`."""
        raise ValueError("points by a cone solver have no proof")

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """By what the solver gave; see :class:`AbstractEvidence`."""
        assert self.answer.pullback is not None
        good = np.ones(len(direction), dtype=bool) if ok is None else ok.cpu().numpy()
        wanted = np.where(good[:, None], direction.detach().cpu().numpy(), 0.0)
        scores, theta, right = self.answer.pullback(wanted)
        right &= good
        scores, theta = np.where(right[:, None], scores, 0.0), np.where(right[:, None], theta, 0.0)
        device = direction.device
        return (
            torch.from_numpy(scores).to(device),
            lambda: torch.from_numpy(theta).to(device),
            torch.from_numpy(right).to(device),
        )

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """By prices, where points have some; see :class:`AbstractEvidence`."""
        if self.answer.of_value is None:
            raise ValueError("gradients of optimal values need a dual point, and a cone solver gives none")
        good = ok.cpu().numpy()
        return torch.from_numpy(np.where(good[:, None], self.answer.of_value(), 0.0)).to(ok.device)
