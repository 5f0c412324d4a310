"""Bound polytopes that record the solves which fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound import NO_REASONS, AbstractBoundPolytope, Marginals, Tangent
from optlayers.polytope import Polytope
from optlayers.solution import Failure, Solution, Status

__all__ = ["Recording", "failed_instances", "first_failures", "with_failures"]

TOO_DEPENDENT = (
    "its active constraints are too nearly dependent to differentiate; drop or rescale those that nearly repeat others"
)


@final
class Recording(AbstractBoundPolytope):
    """The polytopes of one call of a layer, as its rule gets them.

    Every solve of the rule that fails for some instance is recorded, of repeated and of relaxed polytopes too, and so
    is a derivative that there is none of. So no failure behind a structure or a gradient goes unseen, whether the rule
    speaks of it or not. Polytopes of a batch may be shared between calls; the record belongs to one.
    """

    def __init__(self, bound: AbstractBoundPolytope, failed: list[Solution] | None = None) -> None:
        self._bound = bound
        self.failed: list[Solution] = [] if failed is None else failed
        """The solves with failed instances, to be cleared when the rule is asked for something new."""

    def _seen(self, solution: Solution) -> Solution:
        if not solution.all_ok:
            self.failed.append(solution)
        return solution

    def maximize(self, scores: Float64[Tensor, "batch size"]) -> Solution:
        """A vertex per instance; see :class:`AbstractBoundPolytope`."""
        return self._seen(self._bound.maximize(scores))

    def project(
        self, scores: Float64[Tensor, "batch size"], starts: Float64[Tensor, "batch size"] | None = None
    ) -> Solution:
        """The nearest point per instance; see :class:`AbstractBoundPolytope`."""
        return self._seen(self._bound.project(scores, starts))

    def sample(
        self, scores: Float64[Tensor, "batch size"], samples: int, generator: torch.Generator | None
    ) -> Solution:
        """Vertices drawn exactly; see :class:`AbstractBoundPolytope`."""
        return self._seen(self._bound.sample(scores, samples, generator))

    def marginals(self, scores: Float64[Tensor, "batch size"], *, differentiable: bool = False) -> Marginals:
        """The means of vertices; see :class:`AbstractBoundPolytope`."""
        found = self._bound.marginals(scores, differentiable=differentiable)
        self._seen(found.solution)
        return found

    def verdict(
        self,
        marginals: Float64[Tensor, "batch size"],
        total: Float64[Tensor, " batch"],
        reasons: Mapping[int, str] = NO_REASONS,
    ) -> Solution:
        """Marginals with a verdict; see :class:`AbstractBoundPolytope`."""
        return self._seen(self._bound.verdict(marginals, total, reasons))

    def tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection; see :class:`AbstractBoundPolytope`."""
        tangent = self._bound.tangent(solution, direction)
        if not tangent.all_ok:
            self.failed.append(solution.failing(~tangent.ok, TOO_DEPENDENT))
        return tangent

    def value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values; see :class:`AbstractBoundPolytope`."""
        return self._bound.value_gradient(solution)

    def log_partition(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        """Log of the sum of ``exp <scores, v>`` over vertices; see :class:`AbstractBoundPolytope`."""
        return self._bound.log_partition(scores)

    def repeated(self, times: int) -> AbstractBoundPolytope:
        """The batch so many times, in the same record; see :class:`AbstractBoundPolytope`."""
        return self if times == 1 else Recording(self._bound.repeated(times), self.failed)

    def relaxed(self, relaxation: Polytope) -> AbstractBoundPolytope:
        """Another polytope for the same batch, in the same record; see :class:`AbstractBoundPolytope`."""
        return Recording(self._bound.relaxed(relaxation), self.failed)

    def structure(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """Scored vectors with 0 for auxiliary variables; see :class:`AbstractBoundPolytope`."""
        return self._bound.structure(values)

    @property
    def movable(self) -> Bool[Tensor, "batch_or_1 size"]:
        """Parts whose scores can matter; see :class:`AbstractBoundPolytope`."""
        return self._bound.movable

    @property
    def polyhedral(self) -> bool:
        """Whether the set is polyhedral; see :class:`AbstractBoundPolytope`."""
        return self._bound.polyhedral

    @property
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides alone; see :class:`AbstractBoundPolytope`."""
        return self._bound.parameters_shift


def failed_instances(solutions: Sequence[Solution], batch: int) -> Bool[Tensor, " batch"]:
    """Which instances of a batch fail in some solve of it, or of the batch so many times, one after the other."""
    return torch.cat([solution.status.reshape(-1, batch) != 0 for solution in solutions]).any(dim=0)


def first_failures(solutions: Sequence[Solution], batch: int) -> dict[int, Failure]:
    """What went wrong first with each instance that failed, by its place in the flat batch."""
    found: dict[int, Failure] = {}
    for solution in solutions:
        status = solution.status.reshape(-1)
        for row in torch.nonzero(status).flatten().tolist():
            verdict = Status(int(status[row]))
            reason = solution.reasons.get(row, verdict.meaning)
            found.setdefault(row % batch, Failure((row % batch,), verdict, reason))
    return found


def with_failures(solution: Solution, solutions: Sequence[Solution]) -> Solution:
    """The answers of a rule, of which those fail, too, that a solve behind them failed for."""
    status, reasons = solution.status.clone(), dict(solution.reasons)
    for row, failure in first_failures(solutions, len(status)).items():
        if status[row] == Status.OPTIMAL:
            status[row], reasons[row] = int(failure.status), failure.reason
    return replace(solution, status=status, reasons=reasons)
