"""SparseMAP: the projection, and its derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.regularizers.euclidean import Euclidean
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution

__all__ = ["SparseMAP"]


@final
@dataclass(frozen=True)
class SparseMAP(AbstractRule):
    r"""The nearest point :math:`\Pi_P(s) = \operatorname{argmax}_{x \in P} \langle s, x \rangle - \tfrac12 \|x\|^2`.

    A mixture of few structures, exact zeros elsewhere; backward is its true derivative, with respect to the scores
    and to every parameter. On the simplex it is sparsemax. The temperature is the scale of the scores.

    References
    ----------
    Niculae, Martins, Blondel and Cardie (2018), SparseMAP: differentiable sparse structured inference, ICML.
    Martins and Astudillo (2016), From softmax to sparsemax, ICML.
    """

    maximizes = False
    has_jacobian = True
    differentiates_parameters = True
    optimizes = True
    omega = Euclidean()

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The projection."""
        solution = polytope.project(scores)
        return solution, solution

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The derivative of the projection, applied to the gradient."""
        tangent = polytope.tangent(saved, grad)
        return Gradient(tangent.scores, tangent.parameters)
