"""Calls as PyTorch differentiates them: forward, the gradients that a call knows, and what follows from these.

Derivatives of higher order, and forward mode, come from :mod:`optlayers.autograd.higher_order`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from optlayers.autograd.calls import AbstractCall
from optlayers.autograd.higher_order import Derived, in_front
from optlayers.common.modes import mapped_over, outside_inference_mode, slice_by_slice

__all__ = ["Plain", "applied"]

T = TypeVar("T")


class _Applied(torch.autograd.Function):
    """A call; its tensors are scores, then for each part scores of auxiliary variables and parameters."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if mapped_over(grad):
            return slice_by_slice(partial(_Applied.backward, ctx), grad)
        if grad.layout is not torch.strided:
            grad = grad.to_dense()
        call, wanted = ctx.call, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return None, *Derived.apply(call.transposed(wanted), grad, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu"):
            return None, *_exactly(partial(call.pull_back, wanted, grad), call)
        return None, *call.pull_back(wanted, grad)

    @staticmethod
    def jvp(ctx: Any, _: None, *directions: Tensor | None) -> Tensor:
        given = ctx.saved_tensors
        if any(d is not None and mapped_over(d) for d in directions):
            (mapped,) = slice_by_slice(lambda *each: (_Applied.jvp(ctx, None, *each),), *directions)
            assert mapped is not None
            return mapped
        direction: Tensor
        (direction,) = Derived.apply(ctx.call.pushed(len(given)), *directions, *given)  # type: ignore[no-untyped-call]
        return direction

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], call: AbstractCall, *tensors: Tensor) -> tuple[Tensor, int]:
        size, dims = info.batch_size, in_dims[1:]
        call.inside = call.under_vmap(size, info.randomness, [dim is not None for dim in dims])
        moved_tensors = [in_front(t, dim, size) for t, dim in zip(tensors, dims, strict=True)]
        return applied(call.inside, *moved_tensors), call.result_place


@final
class Plain(_Applied):
    """Outside of transforms."""

    @staticmethod
    def forward(ctx: Any, call: AbstractCall, *tensors: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu"):
            return _exactly(partial(call.forward, tensors), call)
        return call.forward(tensors)


@final
class _Transformed(_Applied):
    """Inside transforms."""

    @staticmethod
    def forward(call: AbstractCall, *tensors: Tensor) -> Tensor:
        return _exactly(partial(call.forward, tensors), call)

    @staticmethod
    def setup_context(ctx: Any, given: tuple[Any, ...], output: Tensor) -> None:
        ctx.call = given[0]
        ctx.save_for_backward(*given[1:])
        ctx.save_for_forward(*given[1:])


def applied(call: AbstractCall, *tensors: Tensor) -> Tensor:
    """The result of a call."""
    # The way through transforms binds its arguments by inspection: 40 µs, a third of a small call.
    if not torch._C._are_functorch_transforms_active():
        return Plain.apply(call, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    call.retained = True  # tensors within transforms do not say whether a gradient may follow
    return _Transformed.apply(call, *tensors)  # type: ignore[no-any-return, no-untyped-call]


def _exactly(function: Callable[[], T], call: AbstractCall) -> T:
    """Without autocast, which would let functions of users run in a low precision, and with tensors for autograd."""
    if torch.is_inference_mode_enabled():
        with outside_inference_mode():
            return _exactly(function, call)
    with torch.autocast(call.home.type, enabled=False):
        return function()
