"""Identity with projection: straight-through behind what leaves the best vertex alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution

__all__ = ["Identity"]

NOTHING_LEFT = 1e-12
"""Scores whose norm falls below this part of what it was when they are centred were all equal, but for rounding."""


@final
@dataclass(frozen=True)
class Identity(AbstractRule):
    r"""The best vertex for :math:`w = Cs / \|Cs\|`; backward the derivative of :math:`s \mapsto w` applied to g.

    C subtracts the mean. Straight-through behind a normalization: the argmax counts as the identity, and the gradient

    .. math:: C \, (g - \langle w, g \rangle w) / \|Cs\|

    never asks to add a constant to all scores or to scale them, which would change no decision where all structures
    have as many parts, but lets scores collapse or grow under a plain straight-through gradient. Where structures have
    different numbers of parts, centring changes decisions, and the paper leaves it out: ``center=False``.

    Parts that are forbidden or fixed by the constraints have no influence and get 0. Scored auxiliary variables are
    scaled with the rest, so that the best vertex stays the same, but not centred. Where no score is left, as all are
    equal, there is no direction to keep: w is 0, the vertex is the one for equal scores, and the gradient is Cg.

    Parameters
    ----------
    center, normalize : whether to do so; with neither, this is :class:`StraightThrough`.

    References
    ----------
    Sahoo, Paulus, Vlastelica, Musil, Kuleshov and Martius (2023), Backpropagation through combinatorial algorithms:
    identity with projection works, ICLR.
    """

    center: bool = True
    normalize: bool = True

    def __post_init__(self) -> None:
        for name, value in (("center", self.center), ("normalize", self.normalize)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, but got {value!r}")

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The best vertex for the centred and normalized scores."""
        movable = polytope.movable
        kept = scores.masked_fill(~movable, 0.0)
        largest = kept.abs().amax(dim=1, keepdim=True)
        scale = (
            torch.where(largest > 0.0, largest, 1.0) if self.normalize else 1.0
        )  # squares neither over- nor underflow
        kept = kept / scale
        direction = self._centred(polytope, kept, movable)
        if not self.normalize:
            return polytope.maximize(direction), (direction, None)
        norm = direction.norm(dim=1, keepdim=True)
        left = norm > NOTHING_LEFT * kept.norm(dim=1, keepdim=True)
        size = torch.where(left, norm, 1.0)
        direction = torch.where(left, direction / size, 0.0)
        return polytope.maximize(direction), (direction, torch.where(left, size * scale, 1.0))

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The derivative of centring and normalizing, applied to the gradient."""
        direction, size = saved
        movable = polytope.movable
        moving = grad.masked_fill(~movable, 0.0)
        if self.normalize:
            moving = (moving - (moving * direction).sum(dim=1, keepdim=True) * direction) / size
        return Gradient(self._centred(polytope, moving, movable))

    def _centred(
        self,
        polytope: AbstractBoundPolytope,
        values: Float64[Tensor, "batch size"],
        movable: Bool[Tensor, "batch_or_1 size"],
    ) -> Float64[Tensor, "batch size"]:
        """Without the mean of the structure's movable parts; the others are 0 already."""
        if not self.center:
            return values
        parts = polytope.structure(movable.to(values.dtype))
        mean = (values * parts).sum(dim=1, keepdim=True) / parts.sum(dim=1, keepdim=True).clamp_min(1.0)
        return values - mean * parts
