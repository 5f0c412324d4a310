"""SPIGOT-EG: exponentiated gradient steps from the marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient
from optlayers.rules.hyperparameters import positive
from optlayers.rules.structured_attention import marginals

__all__ = ["SpigotEG"]


@final
@dataclass(frozen=True)
class SpigotEG(AbstractVertexRule):
    r"""The best vertex :math:`\hat z`; backward :math:`\mu(s) - \mu(s - \eta g)`.

    :class:`SpigotCE` with the projection in the geometry of the entropy: an exponentiated gradient step from the
    marginals μ of :class:`StructuredAttention`, which needs no projection. For short steps the gradient is η times that
    of ``Hard(StructuredAttention())``. The polytope brings ``log_partition=`` or has few vertices. Scored auxiliary
    variables have marginals, and get their part of the gradient.

    Parameters
    ----------
    step_size : η, positive.

    References
    ----------
    Mihaylova, Niculae and Martins (2020), Understanding the mechanics of SPIGOT: surrogate gradients for latent
    structure learning, EMNLP. Kivinen and Warmuth (1997), Exponentiated gradient versus gradient descent for linear
    predictors, Information and Computation.
    """

    step_size: float = 1.0

    differentiates_parameters = False

    def __post_init__(self) -> None:
        positive(step_size=self.step_size)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """By how much marginals change in the step."""
        scores, _ = saved
        before, after = marginals(polytope, scores), marginals(polytope, scores - self.step_size * grad)
        return Gradient(before.value - after.value)
