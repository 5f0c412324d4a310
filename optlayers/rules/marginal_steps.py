"""Where rules that step from the marginals take the gradient of the loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.common.tensors import all_finite
from optlayers.rules.base import Context

__all__ = ["At", "check_at", "nan_where", "slope_at"]

At = Literal["vertex", "marginals"]


def check_at(at: Any) -> None:
    """Refuse what is no place."""
    if at not in ("vertex", "marginals"):
        raise ValueError(f'at is "vertex" or "marginals", but got {at!r}')


def slope_at(
    at: At, context: Context, means: Float64[Tensor, "batch size"], grad: Float64[Tensor, "batch size"]
) -> tuple[Float64[Tensor, "batch size"], Tensor | None]:
    """The gradient of the loss at the vertex, which is ``grad``, or at the marginals ``means``, by the objective.

    With it, the instances for which it is finite, None for all; it is 0 for the others.
    """
    if at == "vertex":
        return grad, None
    if context.objective is None:
        raise TypeError('at="marginals" works with losses: call layer(scores, objective=f)')
    slope = context.objective.gradient(means)
    if all_finite(slope):
        return slope, None
    finite = torch.isfinite(slope).all(dim=1)
    return slope.masked_fill(~finite[:, None], 0.0), finite


def nan_where(finite: Tensor | None, gradient: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
    """NaN for instances whose loss has no finite gradient."""
    return gradient if finite is None else gradient.masked_fill(~finite[:, None], torch.nan)
