"""Structured attention: marginals, and their derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution
from optlayers.sums.marginals import derivative_failures

__all__ = ["StructuredAttention", "marginals"]


def marginals(polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"]) -> Solution:
    """The marginals with their verdict, without a graph."""
    return polytope.marginals(scores).solution


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
    has_jacobian = True
    differentiates_parameters = False

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The marginals; where a gradient may be asked for, with the graph of how they came about."""
        if not context.needs_gradient:
            return marginals(polytope, scores), (None, scores)
        leaf = _leaf(scores)
        means, _, solution = polytope.marginals(leaf, differentiable=True)
        return solution, (means, leaf)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The covariance applied to the gradient."""
        means, leaf = _with_graph(polytope, saved)
        if not means.requires_grad:  # one structure, or none: marginals do not depend on the scores
            return Gradient(torch.zeros_like(grad))
        graph = torch.is_grad_enabled()
        (product,) = torch.autograd.grad(means, leaf, grad, retain_graph=True, create_graph=graph)
        if graph and leaf.requires_grad and not _depends_on(product, leaf):
            raise NotImplementedError(
                f"{self!r} has a second derivative where the log-partition function is differentiable three times, "
                "but that of this polytope is not"
            )
        return Gradient(product, solutions=derivative_failures(product))


def _with_graph(
    polytope: AbstractBoundPolytope, saved: tuple[Tensor | None, Tensor]
) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, "batch size"]]:
    """Marginals with a graph, and the scores that they are differentiable with respect to."""
    means, scores = saved
    if means is not None:
        return means, scores
    leaf = _leaf(scores)
    return polytope.marginals(leaf, differentiable=True).means, leaf


def _leaf(scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
    """Scores that marginals are differentiated by: these themselves where autograd asks for a higher derivative."""
    return scores if torch.is_grad_enabled() and scores.requires_grad else scores.detach().requires_grad_()


def _depends_on(product: Tensor, leaf: Tensor) -> bool:
    """Whether there is a graph between them."""
    if not product.requires_grad:
        return False
    (found,) = torch.autograd.grad(product.sum(), leaf, allow_unused=True, retain_graph=True)
    return found is not None
