"""SPIGOT-CE: projected steps from the marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient
from optlayers.rules.hyperparameters import positive
from optlayers.rules.structured_attention import marginals

__all__ = ["SpigotCE"]


@final
@dataclass(frozen=True)
class SpigotCE(AbstractVertexRule):
    r"""The best vertex :math:`\hat z`; backward :math:`\mu(s) - \Pi_P(\mu(s) - \eta g)`.

    The intermediate loss of :class:`Spigot` is a perceptron's, that of SPIGOT-CE the cross entropy: the gradient leads
    from the marginals μ of :class:`StructuredAttention` to those after a projected step from where they are. Marginals
    are needed in the backward pass, so the polytope brings ``log_partition=`` or has few vertices. Scored auxiliary
    variables are no part of distances and get no gradient.

    Parameters
    ----------
    step_size : η, positive.

    References
    ----------
    Mihaylova, Niculae and Martins (2020), Understanding the mechanics of SPIGOT: surrogate gradients for latent
    structure learning, EMNLP.
    """

    step_size: float = 1.0

    differentiates_parameters = False

    def __post_init__(self) -> None:
        positive(step_size=self.step_size)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The displacement of the projected step."""
        scores, vertex = saved
        start = polytope.structure(marginals(polytope, scores).value)
        pulled_back = polytope.project(start - self.step_size * grad, starts=vertex)
        return Gradient(start - polytope.structure(pulled_back.value))
