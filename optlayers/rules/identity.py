"""Identity with projection: straight-through behind what leaves the best vertex alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution, all_of

if TYPE_CHECKING:
    from optlayers.compilation.compiled import CompiledPolytope

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
    different numbers of parts, centring changes decisions, and the
    paper leaves it out.

    Parts that are forbidden or fixed, by the constraints or by what is forbidden beside them, have no influence and get
    0; which they are is decided by some more best vertices, where a mask is new. (What parameters fix is found where a
    constraint shows it alone, or beside forbidden parts.) Scored auxiliary variables are scaled with the rest, so that
    the best vertex stays the same, but not centred. Where no score is left, as all are equal, there is no direction to
    keep: w is 0, the vertex is the one for equal scores, and the gradient is Cg.

    Parameters
    ----------
    center : whether scores are centred. None, the default, does so where the declaration shows that all structures have
        the same sum of parts. True does so in any case; where decisions change by it, a warning says so when the layer
        is made.
    normalize : whether scores are scaled to norm 1, True by default. With neither, this is :class:`StraightThrough`.

    References
    ----------
    Sahoo, Paulus, Vlastelica, Musil, Kuleshov and Martius (2023), Backpropagation through combinatorial algorithms:
    identity with projection works, ICLR.
    """

    center: bool | None = None
    normalize: bool = True

    takes_any_gradient = True
    has_jacobian = True
    differentiates_parameters = False

    def __post_init__(self) -> None:
        if self.center is not None and not isinstance(self.center, bool):
            raise TypeError(f"center must be True, False or None, but got {self.center!r}")
        if not isinstance(self.normalize, bool):
            raise TypeError(f"normalize must be True or False, but got {self.normalize!r}")

    def remark(self, compiled: CompiledPolytope) -> str | None:
        """Where centring changes decisions."""
        if not self.center or compiled.equally_long:
            return None
        return (
            f"{self!r} changes decisions: the structures of this polytope are not known to have the same number of "
            "parts, so that the best one for centred scores is another one; center=None centres where it changes "
            "nothing"
        )

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The best vertex for the centred and normalized scores."""
        centres = polytope.equally_long if self.center is None else self.center
        parts = _Parts.of(polytope) if centres else None
        movable = None if all_of(polytope.movable) else polytope.movable.to(torch.float64)
        kept = _at(movable, scores)
        scale: Tensor | float = 1.0
        if self.normalize:  # by the largest first, so that squares neither over- nor underflow
            largest = kept.abs().amax(dim=1, keepdim=True)
            scale = torch.where(largest > 0.0, largest, 1.0)
            kept = kept / scale
        direction = kept if parts is None else parts.centred(kept)
        if not self.normalize:
            return polytope.maximize(direction), (parts, movable, direction, None)
        norm = direction.norm(dim=1, keepdim=True)
        left = norm > NOTHING_LEFT * kept.norm(dim=1, keepdim=True)
        size = torch.where(left, norm, 1.0)
        direction = torch.where(left, direction / size, 0.0)
        return polytope.maximize(direction), (parts, movable, direction, torch.where(left, size * scale, 1.0))

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The derivative of centring and normalizing, applied to the gradient."""
        parts, movable, direction, size = saved
        moving = _at(movable, grad)
        if self.normalize:
            moving = torch.addcmul(moving, torch.linalg.vecdot(moving, direction)[:, None], direction, value=-1.0)
        if parts is not None:
            moving = parts.centred(moving)
        return Gradient(moving if size is None else moving / size)


def _at(movable: Float64[Tensor, "batch_or_1 size"] | None, values: Tensor) -> Float64[Tensor, "batch size"]:
    """The values where they count, 0 elsewhere. A product takes a third of ``masked_fill``."""
    return values if movable is None else values * movable


@final
@dataclass(frozen=True)
class _Parts:
    """The parts of structures whose scores can matter, 1 where they are, and how many each instance has."""

    there: Float64[Tensor, "batch_or_1 size"]
    count: Float64[Tensor, "batch_or_1 1"]

    @classmethod
    def of(cls, polytope: AbstractBoundPolytope) -> _Parts:
        """Those of a batch."""
        there = polytope.structure(polytope.movable.to(torch.float64))
        return cls(there, there.sum(dim=1, keepdim=True).clamp_min(1.0))

    def centred(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """Without the mean over these parts; other parts of the structure are 0 already."""
        mean = torch.linalg.vecdot(values, self.there)[:, None] / self.count
        return torch.addcmul(values, mean, self.there, value=-1.0)
