"""What a loss predicts for scores, and what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import Context
from optlayers.solution import Solution

__all__ = ["Contrast", "Prediction", "best_vertices"]


@final
@dataclass(frozen=True)
class Prediction:
    r"""The points z of a batch, flat, and :math:`\Omega^*(s) = \langle s, z \rangle - \Omega(z)`, whose gradient they
    are.

    Attributes
    ----------
    solution : ``value`` is ``(batch, size)``, the points; an instance that failed has no loss.
    value : ``(batch,)``, :math:`\Omega^*`.
    behind : the solution whose optimal values these are the mean of, where several were asked for each instance; None
        for ``solution`` itself. Gradients of parameters are those of its optimal values.
    differentiates_auxiliary : whether the points of auxiliary variables have a derivative by all scores.
    piecewise_constant : whether the points stay the same for all scores nearby, as best vertices do: second derivatives
        are then 0. Other points have a graph on the scores where these require a gradient.
    gradients : the gradients of the values by parameters, by name; filled in by the loss.
    """

    solution: Solution
    value: Float64[Tensor, " batch"]
    behind: Solution | None = None
    differentiates_auxiliary: bool = False
    piecewise_constant: bool = False
    gradients: Callable[[], Mapping[str, Tensor]] | None = None


@final
@dataclass(frozen=True)
class Contrast:
    r"""What is predicted and what is known of the same scores :math:`f s + c`: the difference of their values is the
    loss, and ``factor`` times that of their points the gradient of s.

    A ``known`` point without a verdict is given, and depends on nothing.
    """

    found: Prediction
    known: Prediction
    factor: float = 1.0


def best_vertices(
    polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
) -> Prediction:
    """The best vertices and their scores. They stay the same nearby."""
    scores = scores.detach() if scores.requires_grad else scores
    solution = polytope.maximize(scores)
    return Prediction(solution, (scores * solution.value).sum(dim=1), piecewise_constant=True)
