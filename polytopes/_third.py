"""Third derivatives of a log-partition function whose first two are compiled: by torch, from a slower form of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["third_derivatives"]


def third_derivatives(
    log_partition: Callable[..., Tensor],
    scores: Sequence[Tensor],
    directions: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    r"""The gradient of :math:`\langle g, H(s) d \rangle`, H the Hessian: of the scores s, then of the directions d.

    ``log_partition`` must be differentiable as often as asked.
    """
    with torch.enable_grad():
        leaves = [s.detach().requires_grad_() for s in scores]
        turns = [d.detach().requires_grad_() for d in directions]
        marginals = torch.autograd.grad(log_partition(*leaves).sum(), leaves, create_graph=True, materialize_grads=True)
        along = torch.stack([(m * d).sum() for m, d in zip(marginals, turns, strict=True)]).sum()
        products = torch.autograd.grad(along, leaves, create_graph=True, materialize_grads=True)
        total = torch.stack([(p * g.detach()).sum() for p, g in zip(products, grads, strict=True)]).sum()
        if not total.requires_grad:  # marginals that no score moves
            return tuple(torch.zeros_like(t) for t in (*leaves, *turns))
        return torch.autograd.grad(total, [*leaves, *turns], materialize_grads=True)
