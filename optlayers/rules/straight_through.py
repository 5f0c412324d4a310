"""Straight-through: pretend that the argmax is the identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient

__all__ = ["StraightThrough"]


@final
@dataclass(frozen=True)
class StraightThrough(AbstractVertexRule):
    r"""The best vertex :math:`\hat z`; backward :math:`g`, as if the argmax were the identity.

    It costs nothing, and ignores the polytope: the step that it asks for may lead far outside.

    References
    ----------
    Hinton (2012), Neural Networks for Machine Learning, lecture 9; Bengio, Léonard and Courville (2013), Estimating
    or propagating gradients through stochastic neurons for conditional computation.
    """

    takes_any_gradient = True
    has_jacobian = True
    differentiates_parameters = False

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The gradient as it arrived."""
        return Gradient(grad)
