"""Through a layer and back, and whether the same comes out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from optlayers.layer import OptLayer

__all__ = ["forward", "same", "through", "with_gradients"]


def through(layer: OptLayer, scores: Tensor, weights: Tensor, parameters: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Structures (several of an instance as ``(batch, apart, *shape)``) and the gradient of <weights, structure>.

    From the state that the layer is in, which stays as it is.
    """
    values, gradients = with_gradients(layer, scores, weights, parameters, ())
    assert gradients[0] is not None
    return values, gradients[0]


def forward(layer: OptLayer, scores: Tensor, parameters: dict[str, Any]) -> Tensor:
    """The structures alone, where nobody waits for a gradient."""
    if layer.rule.initial_state():
        layer = copy.deepcopy(layer)
    seen: list[Tensor] = []

    def kept(structures: Tensor) -> Tensor:
        seen.append(structures.detach())
        return structures.flatten(1).sum(1)

    generator = torch.Generator("cpu").manual_seed(0) if layer.rule.draws else None
    with torch.no_grad():
        layer(scores.detach(), objective=kept, generator=generator, **parameters)
    return seen[0] if layer.rule.apart is None else torch.stack(seen[: layer.rule.apart], dim=1)


def with_gradients(
    layer: OptLayer, scores: Tensor, weights: Tensor, parameters: dict[str, Any], others: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Structures, and the gradients of <weights, structure> by the scores and by ``others``, None for none."""
    if layer.rule.initial_state():
        layer = copy.deepcopy(layer)
    leaf, seen = scores.detach().requires_grad_(), []

    def linear(structures: Tensor) -> Tensor:
        seen.append(structures.detach())
        return (structures * weights).flatten(1).sum(1)

    generator = torch.Generator("cpu").manual_seed(0) if layer.rule.draws else None
    losses = layer(leaf, objective=linear, generator=generator, **parameters)
    values = seen[0] if layer.rule.apart is None else torch.stack(seen[: layer.rule.apart], dim=1)
    return values, torch.autograd.grad(losses.sum(), (leaf, *others), allow_unused=bool(others))


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    """Hold answers and gradients to those that are expected, up to rounding."""
    for mine, theirs, name in zip(found, expected, ("answers", "gradients")[: len(found)], strict=True):
        moved = float((mine - theirs).abs().max()) if mine.numel() else 0.0
        size = 1 + (float(theirs.abs().max()) if theirs.numel() else 0.0)
        assert moved <= 1e-6 * size, f"{what} gives other {name}: they moved by {moved:.3g}"
