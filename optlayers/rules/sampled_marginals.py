"""A structure that is drawn exactly, and the derivative of the marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.structured_attention import StructuredAttention
from optlayers.solution import Solution

__all__ = ["SampledMarginals"]


@final
@dataclass(frozen=True)
class SampledMarginals(AbstractRule):
    r"""A structure drawn from :math:`p(z) \propto e^{\langle s, z \rangle}`, and the derivative of its mean backward.

    The structure that goes forward is drawn exactly. Backward the gradient of the loss at this structure is taken for
    that at the marginals :math:`\mu(s)`, and goes through their exact derivative, :math:`\operatorname{Cov}[z]\, g`, as
    in :class:`StructuredAttention`. The mean of what goes forward is μ, so this is a straight-through gradient whose
    two halves agree. For a loss that is linear in the structure it is the gradient of the expected loss; for others it
    has a bias, and a smaller variance than :class:`ScoreFunction`, which has none. The temperature is the scale of the
    scores. Structures and sums come from the log-partition function of the declaration, or from all vertices.

    References
    ----------
    Ahmed, Zeng, Niepert and Van den Broeck (2023), SIMPLE: a gradient estimator for k-subset sampling, ICLR.

    Examples
    --------
    >>> import torch, optlayers as ol
    >>> from polytopes import subset
    >>> layer, scores = ol.OptLayer(subset(4), SampledMarginals()), torch.zeros(4, requires_grad=True)
    >>> structure = layer(scores, budget=2.0, generator=torch.Generator().manual_seed(0))
    >>> structure.sum().item(), torch.autograd.grad(structure[0], scores)[0]
    (2.0, tensor([ 0.2500, -0.0833, -0.0833, -0.0833]))
    """

    maximizes = False
    draws = True
    differentiates_parameters = False

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """A structure per instance; the marginals are left to the backward pass."""
        drawn = polytope.sample(scores.detach(), 1, context.generator)
        solution = Solution(drawn.value[0], drawn.status, drawn.primal_residual, drawn.gap, drawn.reasons)
        return solution, (None, scores)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The covariance applied to the gradient."""
        return StructuredAttention().backward(polytope, saved, grad, context)
