"""Losses, what rules send back for them, and where a step against it leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from playground.scene import REGULARIZERS, TROUBLE, Scene
from torch import Tensor

import optlayers as ol

__all__ = ["LOSSES", "RULES", "Sent", "loss_at", "sent_back"]

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared distance to the target": lambda z, target: (z - target).square().sum(-1),
    "absolute distance to the target": lambda z, target: (z - target).abs().sum(-1),
    "minus the inner product with the target": lambda z, target: -(z * target).sum(-1),
}
RULES: dict[str, Callable[[str], ol.AbstractRule]] = {
    "Pipeline()": lambda _: ol.Pipeline(),
    "StraightThrough()": lambda _: ol.StraightThrough(),
    "Spigot(1.0)": lambda _: ol.Spigot(1.0),
    "SpigotCE(1.0)": lambda _: ol.SpigotCE(1.0),
    "SparseMAP()": lambda _: ol.SparseMAP(),
    "Regularized(Ω)": lambda regularizer: ol.Regularized(REGULARIZERS[regularizer]),
    "StructuredAttention()": lambda _: ol.StructuredAttention(),
    "Hard(StructuredAttention())": lambda _: ol.Hard(ol.StructuredAttention()),
    "Interpolation(1.0)": lambda _: ol.Interpolation(1.0),
    "LPGD(1.0)": lambda _: ol.LPGD(1.0),
    "Identity()": lambda _: ol.Identity(),
    "CentralPath(0.1)": lambda _: ol.CentralPath(0.1),
    "PerturbedAdditive(samples=100)": lambda _: ol.PerturbedAdditive(samples=100),
    "IMLE(samples=20)": lambda _: ol.IMLE(samples=20),
}
"""Rules, for the name of the regularizer that is chosen."""


@dataclass(frozen=True)
class Sent:
    """The gradient that a rule sends back, the loss of what it sends forward, and that loss after a step."""

    rule: str
    gradient: np.ndarray
    loss: float
    after: float
    scores_after: np.ndarray


def loss_at(loss: str, target: np.ndarray, point: np.ndarray) -> float:
    """The loss of a point."""
    return float(LOSSES[loss](torch.tensor(point), torch.tensor(target)))


def sent_back(
    scene: Scene,
    rule: str,
    scores: np.ndarray,
    loss: str,
    target: np.ndarray,
    *,
    step_size: float,
    regularizer: str,
    temperature: float,
) -> Sent | str:
    """What a rule sends back for scores, or why it cannot. Rules that draw have the same noise every time."""
    wanted = torch.tensor(target)
    scale = temperature if rule == "Regularized(Ω)" else 1.0  # argmax ⟨s, z⟩ − t Ω(z) is the point of s / t

    def losses(at: Tensor) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return layer(at / scale, objective=lambda z: LOSSES[loss](z, wanted), generator=noise)

    try:
        layer = ol.OptLayer(scene.compiled, RULES[rule](regularizer))
        asked = torch.tensor(scores).requires_grad_()
        now = losses(asked)
        (gradient,) = torch.autograd.grad(now, asked)
        moved = asked.detach() - step_size * gradient
        with torch.no_grad():
            after = losses(moved)
    except TROUBLE as error:
        return str(error).removeprefix(repr(RULES[rule](regularizer))).strip()
    return Sent(rule, gradient.numpy(), float(now.detach()), float(after), moved.numpy())
