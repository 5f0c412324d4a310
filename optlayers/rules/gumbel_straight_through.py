"""Gumbel straight-through: a structure drawn at random, and the gradient of marginals at its noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient
from optlayers.rules.hard import Hard
from optlayers.rules.hyperparameters import positive
from optlayers.rules.noise import AbstractNoise, Gumbel, check_noise
from optlayers.rules.structured_attention import StructuredAttention
from optlayers.solution import Solution

__all__ = ["GumbelStraightThrough"]


@final
@dataclass(frozen=True)
class GumbelStraightThrough(AbstractVertexRule):
    r"""A random structure :math:`\hat z(s + G)`; backward the gradient of the marginals :math:`\mu((s + G)/\tau)`.

    G is noise for every part, the same forward and backward. With Gumbel noise on the simplex this is the
    straight-through Gumbel softmax (``torch.nn.functional.gumbel_softmax`` with ``hard=True``), and structures are
    drawn from the softmax; elsewhere they are drawn from another distribution than that of Gibbs:
    ``docs/results.md``, "Noise", says how far off they are. Use it where one discrete structure must go forward,
    exploration helps, and marginals are at hand.

    Parameters
    ----------
    temperature : τ, 1.0 by default. A smaller one makes the gradient less biased and more variable.
    noise : :class:`Gumbel` by default; :class:`Logistic` where parts are bits of their own.

    References
    ----------
    Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-softmax, ICLR. Maddison, Mnih and Teh (2017),
    The concrete distribution, ICLR. Corro and Titov (2019), Differentiable perturb-and-parse, ICLR (structures).
    """

    temperature: float = 1.0
    noise: AbstractNoise = field(default_factory=Gumbel)

    draws = True
    optimizes = False
    differentiates_parameters = False

    def __post_init__(self) -> None:
        positive(temperature=self.temperature)
        check_noise(self.noise)

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The best vertex under noise."""
        noise = self.noise.draw(scores.shape, context.generator, scores.device)
        return super().forward(polytope, scores + noise, context)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The covariance of structures at the perturbed scores over τ, applied to the gradient."""
        perturbed, vertex = saved
        soft = Hard(StructuredAttention()).backward(polytope, (perturbed / self.temperature, vertex), grad, context)
        return replace(soft, scores=soft.scores / self.temperature)
