"""The polytopes of one call: every question is recorded, and every answer can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.batch.entries import Packed
from optlayers.bound.base import (
    NO_REASONS,
    AbstractBoundPolytope,
    Best,
    Marginals,
    Tangent,
    by_name,
    tangent_of,
    theta_of,
)
from optlayers.bound.device import DevicePolytope
from optlayers.bound.graphs import (
    VALUES,
    OfValues,
    OnCurve,
    Projected,
    PulledThrough,
    RegularizedPoints,
    Underived,
)
from optlayers.bound.host import HostPolytope
from optlayers.bound.numbers import AbstractNumbers
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.standard import ParameterSpec
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solution import Failure, Solution, Status

__all__ = [
    "BoundPolytope",
    "failed_instances",
    "first_failures",
    "numbers_of",
    "plain_on_host",
    "with_failures",
]

JUMPS = (
    "best vertices and drawn structures jump from one to the next as scores change; go through projections or "
    "marginals, as SparseMAP(), StructuredAttention(), Spigot() and Hard(...) of these do"
)

OF_CURVED_PARAMETERS = (
    "gradients of regularized points with respect to parameters have no derivative; detach the parameters, or take one "
    "derivative only"
)


@final
class BoundPolytope(AbstractBoundPolytope):
    """A compiled polytope with the parameters and the forbidden parts of one call filled in; what rules speak to.

    *Recorded.* Every solve that fails for some instance is in ``failed``, those of repeated and of relaxed polytopes
    too, and so is a derivative that does not exist. No failure behind a structure or a gradient goes unseen, whether
    a rule speaks of it or not.

    *Differentiable.* Where gradients are enabled and scores (or ``theta``) require one, ``project``, ``tangent``,
    ``marginals``, ``log_partition`` and the gradients of optimal values are differentiable to any order by autograd,
    in forward mode too where PyTorch derives it from the backward one. Best vertices and samples jump; a derivative
    through them is refused when it is taken.

    Parameters
    ----------
    numbers : the batch of polytopes that answers; calls may share it.
    theta : the parameters ``(batch, parameters)`` where these are to be differentiated, None for none.
    failed : the record to go on with, a new one by default.
    """

    __slots__ = ("failed", "finite", "form", "numbers", "theta")

    def __init__(
        self,
        numbers: AbstractBoundPolytope,
        theta: Float64[Tensor, "batch parameters"] | None = None,
        failed: list[Solution] | None = None,
        finite: Tensor | None = None,
    ) -> None:
        self.numbers = numbers
        self.form = numbers.form
        self.theta = theta
        self.failed: list[Solution] = [] if failed is None else failed
        self.finite = finite
        """Scores that have been looked at already."""

    @classmethod
    def of(
        cls, prepared: AbstractPrepared, packed: Packed, forbidden: Bool[Tensor, "batch size"] | None
    ) -> BoundPolytope:
        """The polytopes of a batch of numbers, with these forbidden parts, for a call of its own."""
        last, scores = prepared.last_plain, packed.scores
        plain = forbidden is None and packed.theta is None and scores.is_cpu
        if plain and last is not None and last.batch == scores.shape[0]:
            return cls(last, None, None, scores)
        numbers = numbers_of(prepared, packed.theta, forbidden, scores.shape[0], packed.precision, scores.device)
        return cls(numbers, None, None, scores)

    def seen(self, solution: Solution) -> Solution:
        """Record a solution if some instance failed."""
        if not solution.all_ok:
            self.failed.append(solution)
        return solution

    def _has_graph(self, scores: Tensor) -> bool:
        return torch.is_grad_enabled() and (scores.requires_grad or self.theta is not None)

    def maximize(self, scores: Float64[Tensor, "batch size"]) -> Solution:
        """A vertex per instance; see :class:`AbstractBoundPolytope`."""
        plain, numbers = scores.detach() if scores.requires_grad else scores, self.numbers
        if scores is self.finite and isinstance(numbers, HostPolytope):
            solution = numbers.maximize(plain, finite=True)
        else:
            solution = numbers.maximize(plain)
        if not solution.all_ok:
            self.failed.append(solution)
        return self._jumping(solution, scores) if self._has_graph(scores) else solution

    def project(
        self, scores: Float64[Tensor, "batch size"], starts: Float64[Tensor, "batch size"] | None = None
    ) -> Solution:
        """The nearest point per instance; see :class:`AbstractBoundPolytope`."""
        plain = scores.detach() if scores.requires_grad else scores
        numbers, begin = self.numbers, None if starts is None else starts.detach()
        if scores is self.finite and isinstance(numbers, HostPolytope):
            solution = numbers.project(plain, begin, finite=True)
        else:
            solution = numbers.project(plain, begin)
        if not solution.all_ok:
            self.failed.append(solution)
        if not self._has_graph(scores):
            return solution
        traced = self._as_function(solution, scores)
        if traced is not None:
            return traced
        value = Projected.apply(self, solution, scores, self.theta)  # type: ignore[no-untyped-call]
        return replace(solution, value=value, asked=scores)

    def _as_function(self, solution: Solution, scores: Tensor) -> Solution | None:
        """An answer with a graph, and as a function of scores and θ; None where it is not known as one of θ."""
        evidence, theta = solution.evidence, self.theta
        if evidence is None or (theta is None and evidence.once is None):
            return None
        if theta is None:
            if not isinstance(self.numbers, AbstractNumbers):
                return None
            theta = self.numbers.given.detach()

        def failed(which: Tensor) -> None:
            self.failed.append(solution.failing(which, evidence.without_derivative))

        function = evidence.function(scores, theta, failed)
        if function is None:
            return None
        return replace(solution, value=function.value, function=function)

    def regularized(self, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer) -> Solution:
        """Regularized points; see :class:`AbstractBoundPolytope`."""
        solution = self.seen(self.numbers.regularized(scores.detach() if scores.requires_grad else scores, regularizer))
        if not self._has_graph(scores):
            return solution
        traced = self._as_function(solution, scores)
        if traced is not None:
            return traced
        return replace(solution, value=RegularizedPoints.apply(self, solution, scores, self.theta))  # type: ignore[no-untyped-call]

    def worth(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Float64[Tensor, "batch size"]:
        """What parts contribute to a regularizer; see :class:`AbstractBoundPolytope`."""
        return self.numbers.worth(points, regularizer)

    def slope(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Float64[Tensor, "batch size"]:
        """The gradient of a regularizer; see :class:`AbstractBoundPolytope`."""
        return self.numbers.slope(points, regularizer)

    def worth_gradient(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Mapping[str, Tensor]:
        """The gradient of Ω at points with respect to every parameter, ``(batch, *shape)``."""
        return self.numbers.worth_gradient(points, regularizer)

    def pulled_back(
        self, solution: Solution, direction: Float64[Tensor, "batch size"], at: Tensor | None
    ) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, "batch parameters"] | None]:
        """Gradients of scores and of θ, with a graph where gradients are enabled; ``at`` is what the projection has its
        graph by."""
        tangent = self.plain_tangent(solution, direction.detach())
        if not torch.is_grad_enabled():
            return tangent.scores, None if self.theta is None else tangent.theta()
        return PulledThrough.apply(self, solution, tangent, direction, at, self.theta)  # type: ignore[no-any-return, no-untyped-call]

    def pushed(
        self, solution: Solution, of_auxiliary: Float64[Tensor, "batch size"], of_theta: Tensor | None
    ) -> Float64[Tensor, "batch size"]:
        """How a projection moves with the scores of auxiliary variables and with θ.

        Evidence pulls directions back, so that this takes one row of the derivative after the other.
        """
        moved = torch.zeros_like(of_auxiliary)
        for part in range(moved.shape[1]):
            row = torch.zeros_like(moved)
            row[:, part] = 1.0
            tangent = self.plain_tangent(solution, row)
            moved[:, part] = (tangent.scores * of_auxiliary).sum(1)
            if of_theta is not None:
                moved[:, part] += (tangent.theta() * of_theta).sum(1)
        return moved

    def sample(
        self, scores: Float64[Tensor, "batch size"], samples: int, generator: torch.Generator | None
    ) -> Solution:
        """Vertices drawn exactly; see :class:`AbstractBoundPolytope`."""
        solution = self.seen(self.numbers.sample(scores.detach(), samples, generator))
        return self._jumping(solution, scores) if self._has_graph(scores) else solution

    def log_count(self) -> Marginals:
        """The log of the number of vertices; see :class:`AbstractBoundPolytope`."""
        counted = self.numbers.log_count()
        self.seen(counted.solution)
        return counted

    def best(self, scores: Float64[Tensor, "batch size"], k: int) -> Best:
        """The k best vertices, without a graph; see :class:`AbstractBoundPolytope`."""
        best = self.numbers.best(scores.detach(), k)
        self.seen(best.solution)
        return best

    def are_vertices(
        self, points: Float64[Tensor, "batch size"], tolerance: float, *, structures_alone: bool
    ) -> tuple[Bool[Tensor, " batch"], Solution]:
        """Which points are vertices; see :class:`AbstractBoundPolytope`."""
        inside, solution = self.numbers.are_vertices(points.detach(), tolerance, structures_alone=structures_alone)
        return inside, self.seen(solution)

    def completing(
        self, scores: Float64[Tensor, "batch size"], structures: Float64[Tensor, "batch size"]
    ) -> tuple[BoundPolytope, Float64[Tensor, " batch"]]:
        """Polytopes of those vertices alone that have a structure; see :class:`AbstractBoundPolytope`."""
        within, added = self.numbers.completing(scores, structures)
        return BoundPolytope(within, None, self.failed), added

    def support(self) -> list[Float64[Tensor, "vertices size"]]:
        """All vertices of every instance; see :class:`AbstractBoundPolytope`."""
        return self.numbers.support()

    def _jumping(self, solution: Solution, scores: Tensor) -> Solution:
        return replace(solution, value=Underived.apply(JUMPS, solution.value, scores, self.theta))  # type: ignore[no-untyped-call]

    def marginals(self, scores: Float64[Tensor, "batch size"], *, differentiable: bool = False) -> Marginals:
        """The means of vertices; see :class:`AbstractBoundPolytope`."""
        differentiable = differentiable or self._has_graph(scores)
        marginals = self.numbers.marginals(scores, differentiable=differentiable)
        self.seen(marginals.solution)
        if not self._has_graph(scores):
            return marginals
        return Marginals(marginals.means, marginals.total, replace(marginals.solution, value=marginals.means))

    def verdict(
        self,
        marginals: Float64[Tensor, "batch size"],
        total: Float64[Tensor, " batch"],
        reasons: Mapping[int, str] = NO_REASONS,
    ) -> Solution:
        """Marginals with a verdict; see :class:`AbstractBoundPolytope`."""
        return self.seen(self.numbers.verdict(marginals, total, reasons))

    def tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection; see :class:`AbstractBoundPolytope`."""
        if not (torch.is_grad_enabled() and (direction.requires_grad or solution.value.requires_grad)):
            return self.plain_tangent(solution, direction)
        if solution.function is not None:
            found, of_theta = solution.function.tangent(direction)
            return Tangent(found, by_name(self.parameters, of_theta), torch.ones_like(solution.ok))
        once = None if solution.evidence is None else solution.evidence.once
        if once is not None:
            plain, by = self.plain_tangent(solution, direction.detach()), (direction, solution.value, self.theta)
            scores = Underived.apply(once, plain.scores, *by)  # type: ignore[no-untyped-call]
            named = {name: Underived.apply(once, value, *by) for name, value in plain.parameters.items()}  # type: ignore[no-untyped-call]
            return Tangent(scores, named, plain.ok)
        curvature = None if solution.evidence is None else solution.evidence.curvature
        if curvature is not None:
            return self._tangent_with_graph(solution, direction, curvature(solution.value, self.theta))
        scores, theta = self.pulled_back(solution, direction, solution.value)
        named = {} if theta is None else by_name(self.numbers.parameters, theta)
        return Tangent(scores, named, torch.ones_like(solution.ok))

    def _tangent_with_graph(self, solution: Solution, direction: Tensor, curvature: Tensor) -> Tangent:
        """That of regularized points, which changes with their curvature."""
        scores = OnCurve.apply(self, solution, direction, curvature)  # type: ignore[no-untyped-call]
        named: dict[str, Tensor] = {}
        if self.theta is not None and solution.evidence is not None:
            plain = self.plain_tangent(solution, direction.detach()).parameters
            named = {
                name: Underived.apply(OF_CURVED_PARAMETERS, value, direction, solution.value, self.theta)  # type: ignore[no-untyped-call]
                for name, value in plain.items()
            }
            # By the number of the regularizer: an expression in points, direction and θ, for θ at this place alone.
            here = self.theta.view_as(self.theta)
            for spec in solution.evidence.of_regularizer:
                slope = (solution.evidence.slope(solution.value, here) * scores).sum()
                (found,) = torch.autograd.grad(slope, here, create_graph=True)
                named[spec.name] = -found[:, spec.span].reshape(len(found), *spec.shape)
        return Tangent(scores, named, torch.ones_like(solution.ok))

    def plain_tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection, without a graph; that one does not exist is recorded."""
        tangent = tangent_of(self.numbers.form, solution, direction)
        if not tangent.all_ok:
            assert solution.evidence is not None
            self.failed.append(solution.failing(~tangent.ok, solution.evidence.without_derivative))
        return tangent

    def value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values; see :class:`AbstractBoundPolytope`."""
        gradients = self.plain_value_gradient(solution)
        if not (gradients and torch.is_grad_enabled() and solution.value.requires_grad):
            return gradients
        if solution.function is not None:
            return by_name(self.parameters, solution.function.value_gradient())
        scores = solution.asked
        if scores is None:  # best vertices
            return {
                name: Underived.apply(VALUES, value, solution.value, self.theta)  # type: ignore[no-untyped-call]
                for name, value in gradients.items()
            }
        count = len(solution.value)
        theta = torch.cat([gradients[spec.name].reshape(count, spec.size) for spec in self.parameters], dim=1)
        return by_name(self.parameters, OfValues.apply(self, solution, theta, scores, self.theta))  # type: ignore[no-untyped-call]

    def plain_value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values, without a graph; that one does not exist is recorded."""
        gradients = self.numbers.value_gradient(solution)
        missing = {} if solution.evidence is None else solution.evidence.without_value_gradient
        if missing:
            self.failed.append(solution.failing_each(missing))
        return gradients

    def multipliers(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values by the dual points that were found, where there may be several.

        It has a graph where the solution is known as a function of scores and θ.
        """
        if solution.function is not None:
            return by_name(self.parameters, solution.function.value_gradient())
        if solution.evidence is None:
            raise ValueError("multipliers are those of solutions that maximize() or project() returned")
        return by_name(self.parameters, solution.evidence.multipliers(solution.ok.reshape(-1)))

    def log_partition(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        """Log of the sum of ``exp <scores, v>`` over vertices; see :class:`AbstractBoundPolytope`."""
        return self.numbers.log_partition(scores)

    def repeated(self, times: int) -> BoundPolytope:
        """The batch so many times, in the same record; see :class:`AbstractBoundPolytope`."""
        if times == 1:
            return self
        theta = None if self.theta is None else self.theta.repeat(times, 1)
        return BoundPolytope(self.numbers.repeated(times), theta, self.failed)

    def relaxed(self, relaxation: Polytope) -> BoundPolytope:
        """Another polytope for the same batch, in the same record; see :class:`AbstractBoundPolytope`."""
        other = self.numbers.relaxed(relaxation)
        theta = None if self.theta is None else self.theta[:, theta_of(self.numbers.parameters, other.parameters)]
        return BoundPolytope(other, theta, self.failed)

    def structure(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """Scored vectors with 0 for auxiliary variables; see :class:`AbstractBoundPolytope`."""
        return self.numbers.structure(values)

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """What has numbers besides scores; see :class:`AbstractBoundPolytope`."""
        return self.numbers.parameters

    @property
    def movable(self) -> Bool[Tensor, "batch_or_1 size"]:
        """Parts whose scores can matter; see :class:`AbstractBoundPolytope`."""
        return self.numbers.movable

    @property
    def binary(self) -> bool:
        """Whether structures are known to be of 0 and 1; see :class:`AbstractBoundPolytope`."""
        return self.numbers.binary

    @property
    def equally_long(self) -> bool:
        """Whether all structures have the same sum of parts; see :class:`AbstractBoundPolytope`."""
        return self.numbers.equally_long

    @property
    def polyhedral(self) -> bool:
        """Whether the set is polyhedral; see :class:`AbstractBoundPolytope`."""
        return self.numbers.polyhedral

    @property
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides alone; see :class:`AbstractBoundPolytope`."""
        return self.numbers.parameters_shift


def numbers_of(
    prepared: AbstractPrepared,
    theta: Float64[Tensor, "batch parameters"] | None,
    forbidden: Bool[Tensor, "batch size"] | None,
    batch: int,
    precision: Float64[np.ndarray, " parameters"],
    device: torch.device,
) -> AbstractBoundPolytope:
    """The polytopes of a batch where its scores are solved. Without parameters and forbidden parts all batches of one
    size are one on the CPU, and some are kept."""
    if prepared.stays_on(device):
        whole = torch.zeros(batch, 0, dtype=torch.float64, device=device) if theta is None else theta
        return DevicePolytope(prepared, whole, forbidden, precision)
    if theta is not None or forbidden is not None:
        whole = torch.zeros(batch, 0, dtype=torch.float64, device="cpu") if theta is None else theta
        return prepared.bind_on_host(whole, forbidden, precision)
    return plain_on_host(prepared, batch)


def plain_on_host(prepared: AbstractPrepared, batch: int) -> HostPolytope:
    """The polytopes of a batch without parameters and forbidden parts, for the solvers of the CPU."""
    plain: HostPolytope = prepared.plain.get(batch, partial(_plain, prepared))
    prepared.last_plain = plain
    return plain


def _plain(prepared: AbstractPrepared, batch: int) -> HostPolytope:
    return HostPolytope(prepared, np.zeros((batch, 0)), None, np.zeros(0))


def failed_instances(solutions: Sequence[Solution], batch: int) -> Bool[Tensor, " batch"]:
    """Which instances of a batch fail in some solve of it, or of the batch so many times, one after the other."""
    return torch.cat([solution.status.reshape(-1, batch) != 0 for solution in solutions]).any(dim=0)


def first_failures(solutions: Sequence[Solution], batch: int) -> dict[int, Failure]:
    """What went wrong first with each instance that failed, by its place in the flat batch."""
    failures: dict[int, Failure] = {}
    for solution in solutions:
        status = solution.status.reshape(-1)
        for row in torch.nonzero(status).flatten().tolist():
            verdict = Status(int(status[row]))
            reason = solution.reasons.get(row, verdict.meaning)
            failures.setdefault(row % batch, Failure((row % batch,), verdict, reason))
    return failures


def with_failures(solution: Solution, solutions: Sequence[Solution]) -> Solution:
    """The answers of a rule, of which those fail, too, that a solve behind them failed for."""
    status, reasons = solution.status.clone(), dict(solution.reasons)
    for row, failure in first_failures(solutions, len(status)).items():
        if status[row] == Status.OPTIMAL:
            status[row], reasons[row] = int(failure.status), failure.reason
    return replace(solution, status=status, reasons=reasons)
