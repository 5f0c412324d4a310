"""WithParameters: a gradient for parameters of the polytope, besides that of another rule for the scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.hyperparameters import positive
from optlayers.rules.lpgd import LPGD
from optlayers.rules.wrapper import AbstractWrapper
from optlayers.solution import Solution

__all__ = ["WithParameters"]

WAYS = ("projection", "target")


@final
@dataclass(frozen=True)
class WithParameters(AbstractWrapper):
    r"""The wrapped rule, with a surrogate gradient for the parameters θ of the polytope.

    Most rules that decide have a gradient for scores alone, as a best vertex jumps with these. With right-hand sides,
    limits and entries of rows it moves, too, and what stands for that is asked for here. With g the gradient that
    arrives, s the scores and :math:`\Pi_\theta` the projection onto the polytope, parameters get

    - ``by="projection"``: :math:`\partial_\theta \langle g, \Pi_\theta(s) \rangle`, the derivative of the nearest
      point. At scores so large that this is the best vertex it is how the vertex itself moves with its constraints.
    - ``by="target"``: the same for :math:`\hat z - \Pi_\theta(\hat z - \eta g)` in place of g, the displacement that
      SPIGOT pulls back: what a step towards the desired point can change within the polytope as it is. It is never
      larger than the polytope, but says nothing of what constraints would have to give way for.
    - ``by=LPGD(strength)``: what :class:`LPGD` gives them, a difference of the gradients of two optimal values.

    A gradient for parameters that the wrapped rule has itself is not used.

    Parameters
    ----------
    rule : the rule whose forward map and whose gradient for the scores are taken.
    by : ``"projection"``, ``"target"`` or an :class:`LPGD`.
    step_size : η of ``"target"``, positive.

    References
    ----------
    Amos and Kolter (2017), OptNet: differentiable optimization as a layer in neural networks, ICML (the derivative).
    Peng, Thomson and Smith (2018), Backpropagating through structured argmax using a SPIGOT, ACL (the displacement).
    Paulus, Martius and Musil (2024), LPGD: a general framework for backpropagation through embedded optimization
    layers, ICML.

    Examples
    --------
    >>> import cvxpy as cp, torch
    >>> from optlayers import OptLayer, Polytope, Spigot
    >>> x, budget = cp.Variable(3, nonneg=True), cp.Parameter(name="budget")
    >>> layer = OptLayer(Polytope(x, [cp.sum(x) <= budget, x <= 1]), WithParameters(Spigot()))
    >>> limit = torch.tensor(1.5, requires_grad=True)
    >>> z = layer(torch.tensor([9.0, 5.0, 1.0]), budget=limit)
    >>> z.detach(), torch.autograd.grad(z[1], limit)
    (tensor([1.0000, 0.5000, 0.0000]), (tensor(1.),))
    """

    rule: AbstractRule
    by: Literal["projection", "target"] | LPGD = "projection"
    step_size: float = 1.0

    differentiates_parameters = True

    def __post_init__(self) -> None:
        self.check_rule("Spigot()")
        positive(step_size=self.step_size)
        if not isinstance(self.by, LPGD) and self.by not in WAYS:
            raise ValueError(f'by is "projection", "target" or an LPGD(strength), but got {self.by!r}')

    @property
    def maximizes(self) -> bool:  # type: ignore[override]
        """Whether vertices are asked for."""
        return self.rule.maximizes or self.by != "projection"

    @property
    def optimizes(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule does."""
        return self.rule.optimizes

    @property
    def omega(self) -> AbstractRegularizer | None:  # type: ignore[override]
        """That of the wrapped rule."""
        return self.rule.omega

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """That of the wrapped rule."""
        solution, saved = self.rule.forward(polytope, scores, replace(context, needs_parameters=False))
        of_lpgd = None
        if isinstance(self.by, LPGD) and context.needs_parameters:
            of_lpgd = self.by.forward(polytope, scores, context)[1]
        return solution, (saved, scores, of_lpgd)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The wrapped rule's gradient of the scores, and the surrogate for parameters."""
        inner, scores, of_lpgd = saved
        gradient = self.rule.backward(polytope, inner, grad, replace(context, needs_parameters=False))
        if not context.needs_parameters:
            return replace(gradient, parameters={})
        if isinstance(self.by, LPGD):
            return replace(gradient, parameters=self.by.backward(polytope, of_lpgd, grad, context).parameters)
        direction = grad
        if self.by == "target":
            vertex = polytope.maximize(scores.detach() if scores.requires_grad else scores).value
            step = polytope.structure(vertex) - self.step_size * grad
            direction = polytope.structure(vertex - polytope.project(step, starts=vertex).value)
        tangent = polytope.tangent(polytope.project(scores), direction)
        return replace(gradient, parameters=tangent.parameters)
