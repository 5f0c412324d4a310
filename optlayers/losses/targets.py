"""What a prediction is compared with: a structure, or the parts that structures may have."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.common.modes import is_differentiated
from optlayers.common.tensors import all_finite, check_dense, check_scores
from optlayers.losses.prediction import Prediction, best_vertices
from optlayers.losses.question import Question
from optlayers.rules.base import Context

__all__ = ["TOLERANCE", "check_membership", "check_numbers", "check_target", "check_true_scores"]

TOLERANCE = 1e-6
"""Targets may be so far from the polytope, relative to their norm; in coarse dtypes, as far as these round."""


def check_target(target: Any, scores: Tensor, batch: torch.Size, name: str) -> Tensor:
    """A target as it may be handed in: like the scores, of numbers, or boolean for a mask.

    Raises
    ------
    TypeError : no tensor, or of complex numbers.
    ValueError : of another shape than the scores; one that requires a gradient.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but got {type(target).__name__}")
    check_dense(target, name)
    if target.is_complex():
        raise TypeError(f"{name} must be real, or boolean for a mask of admissible parts, but got {target.dtype}")
    if target.shape != scores.shape:
        raise ValueError(f"{name} has shape {tuple(target.shape)}, but the scores have {tuple(scores.shape)}")
    if is_differentiated(target):
        raise ValueError(f"losses have no gradient for their targets, but {name} requires one; pass {name}.detach()")
    return target.detach()


def check_true_scores(values: Any, scores: Tensor, batch: torch.Size, name: str) -> Tensor:
    """True scores beside predicted ones."""
    check_scores(values, name)
    if values.shape != scores.shape:
        raise ValueError(f"{name} have shape {tuple(values.shape)}, but the predicted ones {tuple(scores.shape)}")
    if is_differentiated(values):
        raise ValueError(f"there is no gradient for true scores, but {name} require one; detach() them")
    alone: Tensor = values.detach()
    return alone


def check_numbers(question: Question, structure: Float64[Tensor, "batch structure_size"], name: str) -> None:
    """Refuse targets that are not finite, and such as have parts that scores forbid."""
    if not all_finite(structure):
        _refuse(question, structure, ~torch.isfinite(structure), f"{name} must be finite")
    if question.forbidden is not None:
        bad = question.structure(question.forbidden) & (structure != 0)
        _refuse(question, structure, bad, f"{name} must be 0 for parts that are forbidden by a score of -inf")


def _refuse(question: Question, values: Tensor, bad: Tensor, what: str) -> None:
    if bool(bad.any()):
        k, entry = torch.nonzero(bad)[0].tolist()
        raise ValueError(
            f"{what}, but entry {question.entry(entry)} {question.instance(k)} is {values[k, entry].item()}"
        )


def check_membership(
    question: Question, y: Float64[Tensor, "batch structure_size"], precision: float, name: str
) -> None:
    r"""Refuse a target outside the polytope, saying by how much. ``precision`` is that of the dtype that it came in.

    Targets are held to the constraints, or to a membership function, where these say what is in the polytope. Else a y
    of 0 and 1 is the only point of the unit cube with the largest :math:`\langle 2y - 1, z \rangle`. So where the best
    vertex is y itself, y is in the polytope, and in polytopes within the cube that is so for all of them. What is left
    over is projected. A projector of a coarse accuracy holds its gap to that, which bounds a squared distance.
    """
    if y.numel() and not question.knows(y):
        _hold_to_solvers(question, y, precision, name)


@torch.no_grad()
def _hold_to_solvers(
    question: Question, y: Float64[Tensor, "batch structure_size"], precision: float, name: str
) -> None:
    """Refuse a target that is no best vertex for itself, and is not its own nearest point."""
    compiled = question.share.compiled
    if compiled.has_vertices and bool((y == (y != 0)).all(dim=1).any()):
        best = question.ask(best_vertices, question.whole(2.0 * y - 1.0)).solution.value
        if bool(((question.structure(best) - y).abs() <= TOLERANCE).all()):
            return
    nearest = question.ask(_nearest, question.whole(y)).solution.value
    distance = (question.structure(nearest) - y).norm(dim=1)
    allowed = max(TOLERANCE, precision, math.sqrt(compiled.projector.accuracy)) * y.norm(dim=1).clamp_min(1.0)
    outside = distance > allowed
    if bool(outside.any()):
        k = int(torch.nonzero(outside)[0, 0])
        rest = int(outside.sum()) - 1
        others = f" (and {rest} more)" if rest else ""
        raise ValueError(
            f"{name} {question.instance(k)}{others} is not in the polytope: its distance from it is "
            f"{distance[k].item():.3g}. Targets are structures or mixtures of them, or "
            "boolean masks of admissible parts; validate=False skips this check"
        )


def _nearest(polytope: Any, scores: Tensor, context: Context) -> Prediction:
    solution = polytope.project(scores)
    return Prediction(solution, solution.gap)
