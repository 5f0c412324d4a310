"""Sums of exponentials whose derivatives, of any order, stay finite where every term is forbidden (-inf).

``torch.logsumexp`` has NaN for a gradient there, as has ``torch.logaddexp``; here it is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["finite_or_zero", "log_add", "log_sum"]


def log_sum(terms: Tensor, dim: int) -> Tensor:
    r""":math:`\log \sum \exp` over one dimension; -inf where all terms are."""
    return _LogSum.apply(terms, dim)


def log_add(first: Tensor, second: Tensor) -> Tensor:
    r""":math:`\log (e^a + e^b)` of tensors that broadcast; -inf where both are."""
    return _LogAdd.apply(*torch.broadcast_tensors(first, second))


def finite_or_zero(values: Tensor) -> Tensor:
    """Zero in place of -inf, to be subtracted."""
    return values.masked_fill(values == -torch.inf, 0.0)


def _shares(terms: Tensor, total: Tensor) -> Tensor:
    """Of every term in a total, 0 where there is none; differentiable itself."""
    return torch.exp(terms - finite_or_zero(total))


class _LogSum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(terms: Tensor, dim: int) -> Tensor:
        return torch.logsumexp(terms, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        terms, ctx.dim = inputs
        ctx.save_for_backward(terms, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        terms, total = ctx.saved_tensors
        return grad.unsqueeze(ctx.dim) * _shares(terms, total.unsqueeze(ctx.dim)), None


class _LogAdd(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(first: Tensor, second: Tensor) -> Tensor:
        return torch.logaddexp(first, second)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        first, second, total = ctx.saved_tensors
        return grad * _shares(first, total), grad * _shares(second, total)
