"""SparseMAP: the projection, and its derivative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient, SecondGradient
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
    differentiates_parameters = True

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

    def second_backward(
        self,
        polytope: AbstractBoundPolytope,
        saved: Any,
        grad: Float64[Tensor, "batch size"],
        direction: Gradient,
        context: Context,
    ) -> SecondGradient:
        """J is constant nearby and symmetric, so the gradient depends on g alone, by J."""
        if not polytope.polyhedral:
            raise NotImplementedError(f"{self!r} has a second derivative on polyhedral sets only")
        structure = polytope.structure(direction.scores)
        found, auxiliary = polytope.tangent(saved, structure).scores, direction.scores - structure
        if direction.parameters or auxiliary.any():
            found = found + self._row_by_row(polytope, saved, auxiliary, direction.parameters)
        return SecondGradient(found, depends_on_parameters=not polytope.parameters_shift)

    def _row_by_row(
        self,
        polytope: AbstractBoundPolytope,
        solution: Solution,
        auxiliary: Float64[Tensor, "batch size"],
        parameters: Mapping[str, Tensor],
    ) -> Float64[Tensor, "batch size"]:
        """How the projection moves with parameters and auxiliary scores; solvers pull directions back only."""
        if parameters and not polytope.parameters_shift:
            raise NotImplementedError(
                f"{self!r} has no second derivative through the gradients of parameters that enter the constraint "
                "matrix or a curved constraint; detach them, or take one derivative only"
            )
        moved = torch.zeros_like(solution.value)
        for part in range(solution.value.shape[1]):
            row = torch.zeros_like(solution.value)
            row[:, part] = 1.0
            pulled_back = polytope.tangent(solution, row)
            moved[:, part] = (pulled_back.scores * auxiliary).sum(1)
            for name, along in parameters.items():
                moved[:, part] += (pulled_back.parameters[name] * along).flatten(1).sum(1)
        return moved
