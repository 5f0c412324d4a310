"""Sums over given vertices, and their derivatives, for a part of a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

__all__ = ["log_sum_over", "log_weights", "pieces"]

AT_ONCE = 2**21
"""Products of scores and vertices in memory at a time."""


def pieces(batch: int, vertices: int) -> Iterator[slice]:
    """Parts of a batch, of which the products with so many vertices are few enough; none for no vertices."""
    step = max(1, AT_ONCE // max(1, vertices))
    return (slice(start, start + step) for start in range(0, batch if vertices else 0, step))


def log_weights(
    vertices: Float64[Tensor, "vertices size"], scores: Float64[Tensor, "batch size"]
) -> Float64[Tensor, "batch vertices"]:
    """The products ``<scores, v>``; -inf for vertices that use a part of score -inf."""
    forbidden = torch.isneginf(scores)
    if not bool(forbidden.any()):
        return scores @ vertices.T
    values = scores.masked_fill(forbidden, 0.0) @ vertices.T
    used = (forbidden.to(values.dtype) @ (vertices != 0.0).to(values.dtype).T) > 0.5
    return values.masked_fill_(used, -torch.inf)


def log_sum_over(
    vertices: Float64[Tensor, "vertices size"], scores: Float64[Tensor, "batch size"]
) -> Float64[Tensor, " batch"]:
    """Log of the sum of ``exp <scores, v>``, differentiable to any order.

    Vertices that use a part of score -inf have none. Where none is left the sum is -inf, with derivatives of 0.
    """
    return _LogSum.apply(scores, vertices)  # type: ignore[no-any-return, no-untyped-call]


def _shares(vertices: Tensor, scores: Tensor) -> Tensor:
    """Of every vertex in the sum; 0 where the sum is."""
    weights = log_weights(vertices, scores)
    top = weights.amax(dim=1, keepdim=True)
    return torch.softmax(weights.sub_(torch.where(torch.isneginf(top), 0.0, top)), dim=1).nan_to_num_(nan=0.0)


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, vertices: Tensor) -> Tensor:
        ctx.save_for_backward(scores, vertices)
        total = scores.new_full((len(scores),), -torch.inf)
        for piece in pieces(len(scores), len(vertices)):
            total[piece] = torch.logsumexp(log_weights(vertices, scores[piece]), dim=1)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[:, None] * _Mean.apply(*ctx.saved_tensors), None  # type: ignore[no-untyped-call]


class _Mean(torch.autograd.Function):
    """The mean of the vertices, by their weights."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, vertices: Tensor) -> Tensor:
        ctx.save_for_backward(scores, vertices)
        mean = torch.zeros_like(scores)
        for piece in pieces(len(scores), len(vertices)):
            mean[piece] = _shares(vertices, scores[piece]) @ vertices
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        scores, vertices = ctx.saved_tensors
        return _Covariance.apply(scores, vertices, grad), None  # type: ignore[no-untyped-call]


class _Covariance(torch.autograd.Function):
    """The covariance of the vertices, applied to a direction."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, vertices: Tensor, direction: Tensor) -> Tensor:
        ctx.save_for_backward(scores, vertices, direction)
        turned = torch.zeros_like(scores)
        for piece in pieces(len(scores), len(vertices)):
            share = _shares(vertices, scores[piece])
            turned[piece] = (share * _centred(share, direction[piece] @ vertices.T)) @ vertices
        return turned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        """The third derivative: the mean of products of three deviations from the mean."""
        scores, vertices, direction = ctx.saved_tensors
        bent, along = [torch.zeros_like(scores[:0])], [torch.zeros_like(scores[:0])]
        for piece in pieces(len(scores), len(vertices)):
            share = _shares_with_graph(vertices, scores[piece])
            one = _centred(share, direction[piece] @ vertices.T)
            other = _centred(share, grad[piece] @ vertices.T)
            along.append((share * other) @ vertices)
            bent.append((share * _centred(share, one * other)) @ vertices)
        if len(bent) == 1:
            return torch.zeros_like(scores), None, torch.zeros_like(scores)
        return torch.cat(bent), None, torch.cat(along)


def _shares_with_graph(vertices: Tensor, scores: Tensor) -> Tensor:
    """The shares, as operations that torch differentiates."""
    weights = log_weights(vertices, scores)
    nothing = torch.isneginf(weights.detach().amax(dim=1, keepdim=True))
    return torch.softmax(weights.masked_fill(nothing, 0.0), dim=1).masked_fill(nothing, 0.0)


def _centred(share: Tensor, values: Tensor) -> Tensor:
    """Values of the vertices less their mean."""
    return values - (share * values).sum(dim=1, keepdim=True)
