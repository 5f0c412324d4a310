"""The modes that PyTorch may be in when a layer is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "is_differentiated",
    "mapped_over",
    "outside_graphs",
    "outside_inference_mode",
    "slice_by_slice",
    "transforms_active",
]

T = TypeVar("T")
P = ParamSpec("P")
Found = tuple[Tensor | None, ...]


def transforms_active() -> bool:
    """Whether this happens inside ``torch.func.vmap``, ``grad`` or another transform.

    PyTorch has no public question for it; this is the one that ``torch.autograd.Function.apply`` itself asks.
    """
    return bool(torch._C._are_functorch_transforms_active())


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a derivative by this tensor may be asked for: backward, or forward as it has a direction."""
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def outside_graphs(method: Callable[P, T]) -> Callable[P, T]:
    """Break the graph of ``torch.compile`` at a method, whose solves cannot be traced."""

    @wraps(method)
    def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(method)(*args, **kwargs)  # type: ignore[no-any-return, no-untyped-call]
        return method(*args, **kwargs)

    return whole


def slice_by_slice(function: Callable[..., Found], *tensors: Tensor | None) -> Found:
    """A function of tensors, slice by slice of those that ``torch.autograd.grad(is_grads_batched=True)`` maps over.

    That, and ``torch.autograd.functional.jacobian(vectorize=True)``, have a vmap of their own, older than that of
    ``torch.func``: no function can say what it is under it, and PyTorch has no public way to look behind its tensors.
    """
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # Of a tensor that is not mapped over, an only slice comes back, the same for all.
    whole = [None if tensor is None else torch._remove_batch_dim(tensor, level, 1, 0) for tensor in tensors]
    size = max(len(tensor) for tensor in whole if tensor is not None)
    slices = [[None] * size if tensor is None else [*tensor.expand(size, *tensor.shape[1:])] for tensor in whole]
    found = [function(*each) for each in zip(*slices, strict=True)]
    columns = [None if column[0] is None else torch.stack(column) for column in zip(*found, strict=True)]
    return tuple(None if column is None else torch._add_batch_dim(column, 0, level) for column in columns)


mapped_over: Callable[[Tensor], bool] = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)
"""Whether a tensor is one to be taken :func:`slice_by_slice`."""


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Make tensors that autograd takes, also within ``torch.inference_mode()``; no graph is recorded by itself.

    Marginals are derivatives, whatever the mode of the call, and what is cached may meet a gradient in a later call.
    """
    with torch.inference_mode(False), torch.no_grad():  # leaving the mode alone would turn gradients on
        yield
