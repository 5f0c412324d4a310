"""Sums of exponentials whose derivatives, of any order, stay finite where every term is forbidden (-inf)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["finite_or_zero", "log_add", "log_sum"]


def log_sum(terms: Tensor, dim: int | Sequence[int] = -1, *, keepdim: bool = False) -> Tensor:
    r"""The logarithm of a sum of exponentials, :math:`\log \sum_i e^{s_i}`, for log-partition functions.

    Where all terms are -inf the sum is -inf, and its derivatives, of any order, are 0. Those of ``torch.logsumexp`` are
    NaN there, and NaN goes on to everything that such a sum is a term of: one forbidden block spoils the gradient of a
    whole structure.

    Parameters
    ----------
    terms : ``(*shape)``, real; -inf for what does not exist.
    dim : the dimension that is summed over, or several.
    keepdim : whether these dimensions stay, with length 1.

    Returns
    -------
    ``terms.shape`` without these dimensions. It can be differentiated as often as one likes, and mapped by ``vmap``.

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]], requires_grad=True)
    >>> total = log_sum(log_sum(scores))
    >>> total.item(), torch.autograd.grad(total, scores)[0].tolist()
    (0.6931471824645996, [[0.5, 0.5], [0.0, 0.0]])
    """
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    total: Tensor = _LogSum.apply(terms, dims)  # type: ignore[no-untyped-call]
    return total if keepdim else total.squeeze(dims)


def log_add(first: Tensor, second: Tensor) -> Tensor:
    r"""The logarithm of a sum of two exponentials, :math:`\log (e^a + e^b)`, for log-partition functions.

    Where both are -inf it is -inf, and its derivatives, of any order, are 0; those of ``torch.logaddexp`` are NaN.

    Parameters
    ----------
    first, second : real tensors that broadcast; -inf for what does not exist.

    Returns
    -------
    A tensor of the common shape. It can be differentiated as often as one likes, and mapped by ``vmap``.

    Examples
    --------
    >>> import torch
    >>> one, other = torch.full((2,), -torch.inf, requires_grad=True), torch.tensor([0.0, -torch.inf])
    >>> total = log_add(one, other)
    >>> total.tolist(), torch.autograd.grad(total.sum(), one)[0].tolist()
    ([0.0, -inf], [0.0, 0.0])
    """
    total: Tensor = _LogAdd.apply(*torch.broadcast_tensors(first, second))  # type: ignore[no-untyped-call]
    return total


def finite_or_zero(values: Tensor) -> Tensor:
    """Zero in place of -inf, to be subtracted."""
    return values.masked_fill(values == -torch.inf, 0.0)


def _shares(terms: Tensor, total: Tensor) -> Tensor:
    """Of every term in a total, 0 where there is none; differentiable itself."""
    return torch.exp(terms - finite_or_zero(total))


class _LogSum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(terms: Tensor, dims: tuple[int, ...]) -> Tensor:
        return torch.logsumexp(terms, dims, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        terms, total = ctx.saved_tensors
        return grad * _shares(terms, total), None


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
