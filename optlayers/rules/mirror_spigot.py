"""SPIGOT in the geometry of a regularizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import cvxpy as cp
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.rules.base import AbstractVertexRule, Context, Gradient
from optlayers.rules.hyperparameters import not_negative, positive
from optlayers.rules.regularized import Regularized

if TYPE_CHECKING:
    from optlayers.compilation.compiled import CompiledPolytope

__all__ = ["MirrorSpigot"]


@final
@dataclass(frozen=True)
class MirrorSpigot(AbstractVertexRule):
    r"""SPIGOT with the step and the projection of mirror descent: the best vertex forward, :math:`p - p^+` backward.

    :math:`p^+ = \operatorname{argmin}_{z \in P} \eta \langle g, z \rangle + D_\Omega(z, p)` is a step against the
    gradient g from p, projected by the Bregman divergence of Ω. With :class:`Euclidean` and p the vertex it is
    :class:`Spigot`; with :class:`Entropy` it is a step of exponentiated gradient, projected back as Sinkhorn's
    iteration does. Entropies have no slope at a vertex, where parts are 0: so p lies ``inside``, on the way to the
    point of least Ω.

    Parameters
    ----------
    regularizer : Ω.
    step_size : η, positive.
    inside : how much of the way from the vertex to the point of least Ω: 0 for the vertex itself, for regularizers with
        finite slopes (:class:`Euclidean`, :class:`Tsallis`), up to below 1.

    References
    ----------
    Peng, Thomson and Smith (2018), Backpropagating through structured argmax using a SPIGOT, ACL. Beck and Teboulle
    (2003), Mirror descent and nonlinear projected subgradient methods, Oper. Res. Lett.

    Examples
    --------
    >>> from optlayers import Entropy, OptLayer
    >>> from polytopes import simplex
    >>> scores = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    >>> vertex = OptLayer(simplex(3), MirrorSpigot(Entropy(), step_size=1.0, inside=0.3))(scores)
    >>> torch.autograd.grad(vertex[0], scores)[0]
    tensor([ 0.2046, -0.1023, -0.1023])
    """

    regularizer: AbstractRegularizer
    step_size: float = 1.0
    inside: float = 0.1
    differentiates_parameters = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "regularizer", Regularized(self.regularizer).regularizer)
        positive(step_size=self.step_size)
        not_negative(inside=self.inside)
        if not self.inside < 1.0:
            raise ValueError(f"inside must be below 1, where every vertex is the same point, but got {self.inside}")
        if not self.regularizer.of_parts:
            raise ValueError(f"{self.regularizer!r} has no slope at a structure: take Euclidean, Entropy or Tsallis")

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """Those of the regularizer."""
        return self.regularizer.parameters

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse a polytope that the regularizer does not fit."""
        super().check(compiled)
        Regularized(self.regularizer).check(compiled)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """From a point near the vertex to the end of the step."""
        _, point = saved
        if self.inside > 0.0:
            least = polytope.regularized(torch.zeros_like(point), self.regularizer).value
            point = point + self.inside * (least - point)
        mirrored = polytope.slope(point, self.regularizer)
        moves = torch.isfinite(mirrored)
        scores = torch.where(moves, mirrored - self.step_size * grad, 0.0)
        moved = polytope.regularized(scores, self.regularizer).value
        return Gradient(torch.where(moves, point - moved, 0.0))
