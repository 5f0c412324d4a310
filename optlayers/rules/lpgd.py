"""LPGD: difference quotients of the solution, with respect to scores and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.hyperparameters import not_negative, positive
from optlayers.solution import Solution

__all__ = ["LPGD"]

SIDES = ("lower", "upper", "both")


@final
@dataclass(frozen=True)
class LPGD(AbstractRule):
    r"""The best vertex :math:`\hat z(s)`; backward a difference quotient of the solution, at scores moved by τg.

    Lagrangian proximal gradient descent takes the gradient of an envelope of the linearized loss. With the optimal
    value :math:`V(s, \theta) = \max_{z \in P(\theta)} \langle s, z \rangle` the lower one is, but for a constant,
    :math:`(V(s, \theta) - V(s - \tau g, \theta)) / \tau`. Its gradients are

    .. math:: \frac{\hat z(s) - \hat z(s - \tau g)}{\tau}, \qquad
              \frac{\partial_\theta V(s, \theta) - \partial_\theta V(s - \tau g, \theta)}{\tau}

    for the scores, where it is :class:`Interpolation`, and for every parameter of the polytope. The upper envelope has
    :math:`V(s + \tau g, \theta) - V(s, \theta)` in their place, and ``"both"`` is the mean of the two, a central
    difference. With smoothing ρ the moved solution pays :math:`\tfrac{\rho}{2} \|z - \hat z\|^2` for its distance from
    the decision, a projection: :math:`\Pi_P(\hat z + (s - \tau g) / \rho)`. It changes little by little with τ, where a
    best vertex jumps or stays. (The paper's ρ is 1 over this one.) Scored auxiliary variables get their part of the
    gradient, and pay nothing.

    The gradient of V comes from dual points. An oracle gives none, so where parameters want a gradient the constraints
    are solved beside it: three linear programs for each instance, which ``OptLayer(..., maximizer=ol.Auto())`` solves
    alone. Where V has a kink in θ, as at whole numbers where all vertices are integral, there are several dual points,
    and the quotient is that of the ones that were found.

    Parameters
    ----------
    strength : τ, positive: how far to look, in the units of the scores over those of g. Under ``loss.mean()`` g shrinks
        with the batch, and gradients become 0; ``OptLayer(..., gradient_unit="norm")`` makes τ independent of that.
    smoothing : ρ, not negative; 0 compares best vertices.
    side : ``"lower"``, ``"upper"`` or ``"both"``.

    References
    ----------
    Paulus, Martius and Musil (2024), LPGD: a general framework for backpropagation through embedded optimization
    layers, ICML. The gradient of V: Milgrom and Segal (2002), Envelope theorems for arbitrary choice sets,
    Econometrica.
    """

    strength: float
    smoothing: float = 0.0
    side: Literal["lower", "upper", "both"] = "lower"

    takes_any_gradient = True
    differentiates_parameters = True

    def __post_init__(self) -> None:
        positive(strength=self.strength)
        not_negative(smoothing=self.smoothing)
        if self.side not in SIDES:
            raise ValueError(f'side is "lower", "upper" or "both", but got {self.side!r}')

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The best vertex."""
        solution = polytope.maximize(scores.detach() if scores.requires_grad else scores)  # constant nearby
        # Also for the central difference, so that a polytope without dual points is refused before a loss is computed.
        slope = polytope.value_gradient(solution) if context.needs_parameters else {}
        return solution, (scores, solution.value, slope)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The difference quotients."""
        scores, vertex, slope = saved
        upper, lower = (vertex, slope), (vertex, slope)
        width = 2.0 * self.strength if self.side == "both" else self.strength
        if self.side != "lower":
            moved = self._solve(polytope, torch.add(scores, grad, alpha=self.strength), vertex)
            upper = moved.value, self._slope(polytope, moved, context)
        if self.side != "upper":
            moved = self._solve(polytope, torch.sub(scores, grad, alpha=self.strength), vertex)
            lower = moved.value, self._slope(polytope, moved, context)
        parameters = {name: (upper[1][name] - lower[1][name]) / width for name in slope}
        return Gradient(torch.sub(upper[0], lower[0]).div_(width), parameters)

    def _solve(self, polytope: AbstractBoundPolytope, scores: Tensor, vertex: Tensor) -> Solution:
        if self.smoothing == 0.0:
            return polytope.maximize(scores)
        return polytope.project(polytope.structure(vertex) + scores / self.smoothing, starts=vertex)

    def _slope(self, polytope: AbstractBoundPolytope, solution: Solution, context: Context) -> Mapping[str, Tensor]:
        """Of the moved value; that of a projection has the objective divided by ρ."""
        if not context.needs_parameters:
            return {}
        found = polytope.value_gradient(solution)
        return found if self.smoothing == 0.0 else {name: self.smoothing * value for name, value in found.items()}
