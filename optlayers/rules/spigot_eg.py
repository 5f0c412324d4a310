"""SPIGOT-EG: exponentiated gradient steps from the marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient
from optlayers.rules.hyperparameters import positive
from optlayers.rules.marginal_steps import At, check_at, nan_where, slope_at
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
    step_size : η, positive. Under ``loss.mean()`` gradients shrink with the batch, and steps with them;
        ``OptLayer(..., gradient_unit="norm")`` makes a step independent of that.
    at : where the gradient g of the loss is taken. ``"vertex"``, the default, at ẑ, which goes forward, as for any
        other rule. ``"marginals"``, at μ, as the code of the authors does: the layer is then called with the loss,
        ``layer(scores, objective=f)``, whose gradient is asked for there. Parts of the model behind it get theirs at ẑ.

    References
    ----------
    Mihaylova, Niculae and Martins (2020), Understanding the mechanics of SPIGOT: surrogate gradients for latent
    structure learning, EMNLP. Kivinen and Warmuth (1997), Exponentiated gradient versus gradient descent for linear
    predictors, Information and Computation.
    """

    step_size: float = 1.0
    at: At = "vertex"

    differentiates_parameters = False

    def __post_init__(self) -> None:
        positive(step_size=self.step_size)
        check_at(self.at)

    @property
    def needs_objective(self) -> bool:  # type: ignore[override]
        """Whether the gradient is taken elsewhere than at the vertex, by the loss."""
        return self.at == "marginals"

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """By how much marginals change in the step."""
        scores, _ = saved
        before = marginals(polytope, scores).value
        slope, finite = slope_at(self.at, context, before, grad)
        after = marginals(polytope, scores - self.step_size * slope).value
        return Gradient(nan_where(finite, before - after))
