"""SPIGOT-CE: projected steps from the marginals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient
from optlayers.rules.hyperparameters import positive
from optlayers.rules.marginal_steps import At, check_at, nan_where, slope_at
from optlayers.rules.spigot import kept_of_step
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
    step_size : η, positive. Under ``loss.mean()`` gradients shrink with the batch, and steps with them;
        ``OptLayer(..., gradient_unit="norm")`` makes a step independent of that.
    at : where the gradient g of the loss is taken. ``"vertex"``, the default, at ẑ, which goes forward, as for any
        other rule. ``"marginals"``, at μ, as the code of the authors does: the layer is then called with the loss,
        ``layer(scores, objective=f)``, whose gradient is asked for there. Parts of the model behind it get theirs at ẑ.

    References
    ----------
    Mihaylova, Niculae and Martins (2020), Understanding the mechanics of SPIGOT: surrogate gradients for latent
    structure learning, EMNLP.
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

    def kept(
        self, sent: Float64[Tensor, "batch size"], grad: Float64[Tensor, "batch size"], state: Mapping[str, Tensor]
    ) -> Float64[Tensor, " batch"] | None:
        """Which part of its step every instance was left; not known where the gradient is taken at the marginals."""
        return kept_of_step(sent, self.step_size * grad) if self.at == "vertex" else None

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The displacement of the projected step."""
        scores, vertex = saved
        start = polytope.structure(marginals(polytope, scores).value)
        slope, finite = slope_at(self.at, context, start, grad)
        pulled_back = polytope.project(start - self.step_size * slope, starts=vertex)
        return Gradient(nan_where(finite, start - polytope.structure(pulled_back.value)))
