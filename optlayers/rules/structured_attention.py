"""Structured attention: marginals, and their derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient, SecondGradient
from optlayers.solution import Solution

__all__ = ["StructuredAttention"]


@final
@dataclass(frozen=True)
class StructuredAttention(AbstractRule):
    r"""Marginals :math:`\mu(s) = \mathbb E[z]` under :math:`p(z) \propto e^{\langle s, z \rangle}` over the vertices.

    They are the gradient of the log-partition function, and backward is its Hessian applied to the gradient,
    :math:`\operatorname{Cov}[z]\, g`; both are exact. The polytope brings the function with its declaration
    (``log_partition=``), or its vertices are enumerated, up to a stated number. Every part that some structure has is
    positive: dense where :class:`SparseMAP` is sparse. On the simplex it is the softmax. The temperature is the scale
    of the scores. ``Hard(StructuredAttention())`` decides for the best vertex and learns through marginals. A second
    derivative (``create_graph=True``) takes the third one of the log-partition function.

    References
    ----------
    Kim, Denton, Hoang and Rush (2017), Structured attention networks, ICLR.
    """

    maximizes = False

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The marginals."""
        with torch.enable_grad():
            leaf = scores.detach().requires_grad_()
            total = polytope.log_partition(leaf)
            (marginals,) = torch.autograd.grad(total.sum(), leaf)
        return polytope.verdict(marginals, total.detach()), scores

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The covariance applied to the gradient."""
        with torch.enable_grad():
            leaf = saved.detach().requires_grad_()
            (marginals,) = torch.autograd.grad(polytope.log_partition(leaf).sum(), leaf, create_graph=True)
        if not marginals.requires_grad:  # one structure, or none: marginals do not depend on the scores
            return Gradient(torch.zeros_like(grad))
        (product,) = torch.autograd.grad(marginals, leaf, grad)
        return Gradient(product)

    def second_backward(
        self,
        polytope: AbstractBoundPolytope,
        saved: Any,
        grad: Float64[Tensor, "batch size"],
        direction: Gradient,
        context: Context,
    ) -> SecondGradient:
        """The covariance applied to the direction, and the third derivative of the log-partition function."""
        with torch.enable_grad():
            leaf = saved.detach().requires_grad_()
            (marginals,) = torch.autograd.grad(polytope.log_partition(leaf).sum(), leaf, create_graph=True)
            if not marginals.requires_grad:
                return SecondGradient(torch.zeros_like(grad), depends_on_parameters=True)
            # A function that is differentiable just twice says so when its direction has a gradient.
            along = direction.scores.detach().requires_grad_()
            (product,) = torch.autograd.grad(marginals, leaf, along, create_graph=True)
            (bent,) = torch.autograd.grad((product * grad).sum(), leaf, allow_unused=True)
        if bent is None:
            raise NotImplementedError(
                f"{self!r} has a second derivative where the log-partition function is differentiable three times, "
                "but that of this polytope is not"
            )
        return SecondGradient(product.detach(), bent, depends_on_parameters=True)
