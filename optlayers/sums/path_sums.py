"""Sums over the paths of a decision diagram, and their derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.solvers.diagram import Passes
from optlayers.solvers.kernels import diagrams as kernels
from optlayers.sums.logspace import log_sum

__all__ = ["log_sum_over_paths"]


def log_sum_over_paths(passes: Passes, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
    """Log of the sum of ``exp <scores, v>`` over the points of a diagram, differentiable to any order.

    Points that use a part of score -inf do not count; where none are left the sum is -inf, with derivatives of 0. The
    value, the means and their derivative come from compiled passes, on the CPU; further derivatives, and those on other
    devices, from the operations of torch, column by column.
    """
    if not scores.is_cpu:
        return _by_columns(passes, scores)
    return _LogSum.apply(scores, passes)  # type: ignore[no-any-return, no-untyped-call]


def _rows(scores: Tensor) -> np.ndarray:
    return scores.detach().contiguous().numpy()


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, passes: Passes) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.passes = passes
        asked, out = _rows(scores), np.empty(len(scores))

        def work(which: np.ndarray) -> None:
            kernels.sums(*passes.arrays, passes.reach, passes.spread, asked, which, out)

        passes.pace_of_sums.spread(work, len(out))
        return torch.from_numpy(out) + passes.constant(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[:, None] * _Mean.apply(*ctx.saved_tensors, ctx.passes), None  # type: ignore[no-untyped-call]


class _Mean(torch.autograd.Function):
    """The mean of the points, by their weights."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, passes: Passes) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.passes = passes
        asked, out = _rows(scores), np.empty(scores.shape)

        def work(which: np.ndarray) -> None:
            kernels.marginals(*passes.arrays, passes.reach, passes.spread, passes.fixed, asked, which, out)

        passes.pace_of_means.spread(work, len(out))
        mean, constant = torch.from_numpy(out), passes.constant(scores)
        if isinstance(constant, float):
            return mean
        return torch.where(torch.isneginf(constant)[:, None], 0.0, mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        return _Covariance.apply(scores, grad, ctx.passes), None  # type: ignore[no-untyped-call]


class _Covariance(torch.autograd.Function):
    """The covariance of the points, applied to a direction."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, direction: Tensor, passes: Passes) -> Tensor:
        ctx.save_for_backward(scores, direction)
        ctx.passes = passes
        asked, along, out = _rows(scores), _rows(direction), np.empty(scores.shape)

        def work(which: np.ndarray) -> None:
            kernels.covariances(*passes.arrays, passes.reach, passes.spread, asked, along, which, out)

        passes.pace_of_means.spread(work, len(out))
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        scores, direction = ctx.saved_tensors
        along = _Covariance.apply(scores, grad, ctx.passes)  # type: ignore[no-untyped-call]
        return _third(ctx.passes, scores, direction, grad), along, None


def _third(passes: Passes, scores: Tensor, direction: Tensor, other: Tensor) -> Tensor:
    """The third derivative of the sum, in two directions."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = scores if scores.requires_grad else scores.detach().requires_grad_()
        total = _by_columns(passes, leaf).sum()
        for given in (direction, other):
            (slope,) = torch.autograd.grad(total, leaf, create_graph=True)
            if not slope.requires_grad:
                return torch.zeros_like(scores)
            total = (slope * given).sum()
        (bent,) = torch.autograd.grad(total, leaf, create_graph=further, allow_unused=True)
    return torch.zeros_like(scores) if bent is None else bent


def _by_columns(passes: Passes, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
    """The sum by operations of torch, for all nodes of a column at once, from the last column to the first."""
    if passes.diagram.empty:
        return 0.0 * scores.masked_fill(torch.isneginf(scores), 0.0).sum(dim=1) - torch.inf
    totals = scores.new_zeros(len(scores), 1)  # of the last node; those of nodes before it are put in front
    last = passes.diagram.nodes - 1
    for column, value, child in passes.by_columns(scores.device):
        # Places count from the end, as nodes are put in front of those that are there.
        score = scores[:, column, None, None]
        used = value != 0.0
        forbidden = torch.isneginf(score) & used
        gain = torch.where(used, score.masked_fill(forbidden, 0.0) * value, 0.0)
        following = totals[:, totals.shape[1] - 1 - (last - torch.where(child < 0, last, child))]
        terms = (gain + following).masked_fill(forbidden | (child < 0), -torch.inf)
        totals = torch.cat([log_sum(terms), totals], dim=1)
    return totals[:, 0] + passes.constant(scores)
