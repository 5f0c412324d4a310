"""Third and higher derivatives of a log-partition function whose first two are compiled: by torch, from a slower form
of it."""

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

    ``log_partition`` must be differentiable as often as asked. Where gradients are enabled, so are these: of any order.
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves, turns, outer = (
            [t if graph and t.requires_grad else t.detach().requires_grad_() for t in part]
            for part in (scores, directions, grads)
        )
        marginals = torch.autograd.grad(log_partition(*leaves).sum(), leaves, create_graph=True, materialize_grads=True)
        along = torch.stack([(m * d).sum() for m, d in zip(marginals, turns, strict=True)]).sum()
        products = torch.autograd.grad(along, leaves, create_graph=True, materialize_grads=True)
        total = torch.stack([(p * g).sum() for p, g in zip(products, outer, strict=True)]).sum()
        if not total.requires_grad:  # marginals that no score moves
            return tuple(torch.zeros_like(t) for t in (*leaves, *turns))
        return torch.autograd.grad(total, [*leaves, *turns], create_graph=graph, materialize_grads=True)
