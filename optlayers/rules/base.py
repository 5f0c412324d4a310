"""What a backward rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.solution import Solution

__all__ = ["AbstractRule", "AbstractVertexRule", "Gradient"]


@final
@dataclass(frozen=True)
class Gradient:
    """What a rule sends back: the gradient of the scores ``(batch, size)``, and of parameters where it has one.

    ``solutions`` are the solves behind it: instances that failed in one of them get no gradient.
    """

    scores: Float64[Tensor, "batch size"]
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    solutions: tuple[Solution, ...] = ()


class AbstractRule(ABC):
    """A forward map from scores to structures and a gradient for it.

    A rule is a value: a frozen dataclass whose fields are its hyperparameters. It speaks to ``maximize``, ``project``
    and ``tangent`` of a :class:`optlayers.AbstractBoundPolytope`, in which parameters and forbidden parts are filled in
    already. All tensors are ``(batch, size)`` float64 on the CPU.
    """

    maximizes: bool = True
    """Whether the rule asks for vertices; sets that are not polyhedral have none."""

    @abstractmethod
    def forward(self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"]) -> tuple[Solution, Any]:
        """The structures with their verdicts, and what ``backward`` needs."""

    @abstractmethod
    def backward(self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"]) -> Gradient:
        """From the gradient of the loss with respect to the structures to that of the scores."""


class AbstractVertexRule(AbstractRule):
    """A rule whose forward map is the best vertex; it saves ``(scores, vertex)``."""

    def forward(self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"]) -> tuple[Solution, Any]:
        """The best vertex."""
        solution = polytope.maximize(scores)
        return solution, (scores, solution.value)
