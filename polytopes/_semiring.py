"""Sums over structures in the log domain, differentiable twice, with forbidden parts."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["finite_or_zero", "logsumexp"]


def logsumexp(values: Tensor, dim: int) -> Tensor:
    """``values.exp().sum(dim).log()``, -inf where all values are -inf, with zero gradients there instead of NaN."""
    result: Tensor = _LogSumExp.apply(values, dim)
    return result


def finite_or_zero(values: Tensor) -> Tensor:
    """Zero in place of -inf, to be subtracted."""
    return torch.where(values == -torch.inf, torch.zeros_like(values), values)


class _LogSumExp(torch.autograd.Function):
    """torch's own, but its derivative subtracts no infinities: the softmax of nothing is 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, dim: int) -> Tensor:
        return torch.logsumexp(values, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        values, ctx.dim = inputs
        ctx.save_for_backward(values, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, total = ctx.saved_tensors
        share = torch.exp(values - finite_or_zero(total).unsqueeze(ctx.dim))
        return grad.unsqueeze(ctx.dim) * share, None
