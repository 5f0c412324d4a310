"""What a prediction is compared with: a structure, or the parts that structures may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.inputs import all_finite, check_dense
from optlayers.layer import OptLayer
from optlayers.losses.question import Question, per_instance

__all__ = ["Target", "check_membership", "of_instance", "read_target"]

TOLERANCE = 1e-6
"""Targets may be so far from the polytope, relative to their norm; in coarse dtypes, as far as these round."""


@final
@dataclass(frozen=True)
class Target:
    """Either a point of the polytope, or the admissible parts. ``precision`` is that of the dtype it came in."""

    structure: Float64[Tensor, "*batch_and_shape"] | None
    admissible: Bool[Tensor, "*batch_and_shape"] | None
    precision: float = 0.0


def read_target(
    question: Question, target: Tensor, scores: Float64[Tensor, "*batch_and_shape"], name: str = "target"
) -> Target:
    """A target as losses compute with it: float64 on the device of the scores, 0 in padding and forbidden parts.

    Raises
    ------
    TypeError : no tensor, or of complex numbers.
    ValueError : of another shape than the scores; NaN or infinite; not 0 in the padding or where scores are -inf; one
        that requires a gradient.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but got {type(target).__name__}")
    check_dense(target, name)
    if target.is_complex():
        raise TypeError(f"{name} must be real, or boolean for a mask of admissible parts, but got {target.dtype}")
    if target.shape != scores.shape:
        raise ValueError(f"{name} has shape {tuple(target.shape)}, but the scores have {tuple(scores.shape)}")
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"losses have no gradient for their targets, but {name} requires one; pass {name}.detach()")
    if target.dtype == torch.bool:
        return Target(None, target.to(scores.device))
    structure = target.detach().to(scores.device, torch.float64)
    if not all_finite(structure):
        _refuse(question, structure, ~torch.isfinite(structure), f"{name} must be finite")
    if question.inside is not None:
        _refuse(question, structure, ~question.inside & (structure != 0), f"{name} must be 0 in the padding")
    if not all_finite(scores):
        forbidden = (scores.detach() == -torch.inf) & (structure != 0)
        _refuse(question, structure, forbidden, f"{name} must be 0 for parts that are forbidden by a score of -inf")
    precision = torch.finfo(target.dtype).eps if target.is_floating_point() else 0.0
    return Target(structure, None, precision)


def _refuse(question: Question, values: Tensor, bad: Tensor, what: str) -> None:
    if bool(bad.any()):
        where = tuple(torch.nonzero(bad)[0].tolist())
        head = len(question.batch)
        raise ValueError(
            f"{what}, but entry {list(where[head:])} {of_instance(where[:head])} is {values[where].item()}"
        )


def of_instance(index: tuple[int, ...]) -> str:
    """The instance in words."""
    if not index:
        return "of the instance"
    return f"of instance {index[0] if len(index) == 1 else index}"


@torch.no_grad()
def check_membership(
    question: Question, best: OptLayer | None, nearest: OptLayer, target: Target, accuracy: float, name: str
) -> None:
    r"""Refuse a target outside the polytope, saying by how much.

    A y of 0 and 1 is the only point of the unit cube with the largest :math:`\langle 2y - 1, z \rangle`. So where the
    best vertex is y itself, y is in the polytope, and in polytopes within the cube that is so for all of them. What is
    left over is projected. A projector of a coarse ``accuracy`` holds its gap to that, which bounds a squared distance.
    """
    y = target.structure
    question = question.without_auxiliary_scores()
    if y is None or y.numel() == 0:
        return
    batch = question.batch
    if best is not None and bool(per_instance(y == (y != 0), batch).all(-1).any()):
        missed = per_instance(question.ask(best, 2.0 * y - 1.0).structure - y, batch).abs().amax(-1)
        if bool((missed <= TOLERANCE).all()):
            return
    distance = per_instance(question.ask(nearest, y).structure - y, batch).norm(dim=-1)
    allowed = max(TOLERANCE, target.precision, math.sqrt(accuracy)) * per_instance(y, batch).norm(dim=-1).clamp_min(1.0)
    outside = distance > allowed
    if bool(outside.any()):
        where = tuple(torch.nonzero(outside)[0].tolist()) if batch else ()
        rest = int(outside.sum()) - 1
        others = f" (and {rest} more)" if rest else ""
        raise ValueError(
            f"{name} {of_instance(where)}{others} is not in the polytope: its distance from it is "
            f"{distance[where].item():.3g}. Targets are structures or mixtures of them, or "
            "boolean masks of admissible parts; validate=False skips this check"
        )
