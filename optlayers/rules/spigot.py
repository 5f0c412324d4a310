"""SPIGOT: a projected step, pulled back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient, SecondGradient
from optlayers.rules.sparsemap import differentiate

__all__ = ["Spigot"]


@final
@dataclass(frozen=True)
class Spigot(AbstractVertexRule):
    r"""The best vertex :math:`\hat z`; backward :math:`\hat z - \Pi_P(\hat z - \eta g)`.

    A step against the gradient from the decision that was made, projected back onto the polytope: the displacement
    is the gradient. Where the step stays inside, it is :math:`\eta g`, the straight-through gradient; where it
    leaves the polytope, it asks only for what some structure (in the convex hull) can give. Over an oracle the
    projection starts from the decision. Scored auxiliary variables are no part of distances and get no gradient.

    Parameters
    ----------
    step_size : η, positive. The paper takes 1.
    clip_norm : clip the Euclidean norm of each instance's g to this before the step, as the paper does; None does not.

    References
    ----------
    Peng, Thomson and Smith (2018), Backpropagating through structured argmax using a SPIGOT, ACL.
    """

    step_size: float = 1.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be positive and finite, but got {self.step_size}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None, but got {self.clip_norm}")

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The displacement of the projected step."""
        _, vertex = saved
        step = self.step_size * self._clipped(grad)
        structure = polytope.structure(vertex)
        pulled_back = polytope.project(structure - step, starts=vertex)
        return Gradient(structure - polytope.structure(pulled_back.value), solutions=(pulled_back,))

    def _clipped(self, grad: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        if self.clip_norm is None:
            return grad
        norm = grad.norm(dim=1, keepdim=True).clamp_min(self.clip_norm)
        return grad * (self.clip_norm / norm)

    def second_backward(
        self,
        polytope: AbstractBoundPolytope,
        saved: Any,
        grad: Float64[Tensor, "batch size"],
        direction: Gradient,
        context: Context,
    ) -> SecondGradient:
        """The decision is constant nearby, and the pulled back step moves by the derivative of the projection."""
        _, vertex = saved
        structure = polytope.structure(vertex)
        with torch.enable_grad():
            leaf = grad.detach().requires_grad_()
            step = self.step_size * self._clipped(leaf)
        pulled_back = polytope.project(structure - step.detach(), starts=vertex)
        tangent, verdict = differentiate(polytope, pulled_back, polytope.structure(direction.scores))
        (found,) = torch.autograd.grad(step, leaf, polytope.structure(tangent.scores))
        return SecondGradient(found, depends_on_parameters=True, solutions=(verdict,))
