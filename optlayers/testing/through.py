"""Through a layer and back, and whether the same comes out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from optlayers.layer import OptLayer

__all__ = ["same", "through"]


def through(layer: OptLayer, scores: Tensor, weights: Tensor, parameters: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Structures (several of an instance as ``(batch, apart, *shape)``) and the gradient of <weights, structure>.

    From the state that the layer is in, which stays as it is.
    """
    if layer.rule.initial_state():
        layer = copy.deepcopy(layer)
    leaf, seen = scores.detach().requires_grad_(), []

    def linear(structures: Tensor) -> Tensor:
        seen.append(structures.detach())
        return (structures * weights).flatten(1).sum(1)

    generator = torch.Generator("cpu").manual_seed(0) if layer.rule.draws else None
    losses = layer(leaf, objective=linear, generator=generator, **parameters)
    values = seen[0] if layer.rule.apart is None else torch.stack(seen[: layer.rule.apart], dim=1)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return values, gradient


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    """Hold answers and gradients to those that are expected, up to rounding."""
    for mine, theirs, name in zip(found, expected, ("answers", "gradients")[: len(found)], strict=True):
        moved = float((mine - theirs).abs().max()) if mine.numel() else 0.0
        size = 1 + (float(theirs.abs().max()) if theirs.numel() else 0.0)
        assert moved <= 1e-6 * size, f"{what} gives other {name}: they moved by {moved:.3g}"
