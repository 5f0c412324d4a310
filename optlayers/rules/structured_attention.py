"""Structured attention: marginals, and their derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Gradient
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
    of the scores. ``Hard(StructuredAttention())`` decides for the best vertex and learns through marginals.

    References
    ----------
    Kim, Denton, Hoang and Rush (2017), Structured attention networks, ICLR.
    """

    maximizes = False

    def forward(self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"]) -> tuple[Solution, Any]:
        """The marginals; where gradients are recorded, with the graph of how they came about."""
        recorded = torch.is_grad_enabled()
        total, marginals, leaf = _marginals(polytope, scores, differentiable=recorded)
        # What the caller gets, and may write to, is not what the graph holds.
        value = marginals.detach().clone() if recorded else marginals
        return polytope.verdict(value, total), (marginals, leaf) if recorded else scores

    def backward(self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"]) -> Gradient:
        """The covariance applied to the gradient."""
        if isinstance(saved, Tensor):
            _, marginals, leaf = _marginals(polytope, saved, differentiable=True)
        else:
            marginals, leaf = saved
        if not marginals.requires_grad:  # one structure, or none: marginals do not depend on the scores
            return Gradient(torch.zeros_like(grad))
        (product,) = torch.autograd.grad(marginals, leaf, grad, retain_graph=True)
        return Gradient(product)


def _marginals(
    polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], *, differentiable: bool
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, "batch size"], Float64[Tensor, "batch size"]]:
    """Log sums, marginals, and the scores that these are differentiable with respect to."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        total = polytope.log_partition(leaf)
        (marginals,) = torch.autograd.grad(total, leaf, torch.ones_like(total), create_graph=differentiable)
    return total.detach(), marginals, leaf
