"""Finite scores that stand for a forbidden part, as ``masked_fill(mask, torch.finfo(dtype).min)`` leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.batch.entries import MASK, Packed
from optlayers.bound.polytope import BoundPolytope
from optlayers.solution import Solution, Status, any_of

__all__ = ["answered"]

BEYOND = 1e5
"""A finite score as low as :data:`optlayers.batch.entries.MASK` is a mask if it is so many times larger than all scores
of its instance that are none. The lowest number of a dtype, in which scores were given, is a mask"""
BEYOND_LOWEST = 1e2
"""if it is so many times larger: that of float16 is -65504."""

T = TypeVar("T")


def answered(
    bind: Callable[[Bool[Tensor, "batch size"] | None], BoundPolytope],
    packed: Packed,
    ask: Callable[[BoundPolytope, Float64[Tensor, "batch size"]], tuple[Solution, T]],
    remember: Callable[[], Callable[[], None]] | None = None,
) -> tuple[BoundPolytope, Bool[Tensor, "batch size"] | None, Float64[Tensor, "batch size"], Solution, T]:
    """Ask with masks for forbidden parts; where no structure does without them, they are the numbers that they are.

    Next to scores of ordinary size a part that scores -1e9 is in no structure that is looked for, as long as there is
    one without it; a solver that had to find that out would lose all digits of the other scores. So such a part is
    forbidden, as if its score were -inf: with the same answers, and no gradient.

    Parameters
    ----------
    bind : makes the polytopes of the batch, for the parts that are forbidden.
    packed : the numbers of the batch.
    ask : the question, of polytopes and scores.
    remember : gives a function that takes random numbers back to where they are now: a second question meets the same
        ones, or the masks of one instance would change what is drawn for others.

    Returns
    -------
    The polytopes, the forbidden parts and the scores of the last question, and its answer.
    """
    scores, forbidden = packed.scores, packed.forbidden
    masks = _masks(scores, forbidden, packed.lowest) if packed.low else None
    if masks is None:
        bound = bind(forbidden)
        return bound, forbidden, scores, *ask(bound, scores)
    hidden = masks if forbidden is None else masks | forbidden
    bound, take_back = bind(hidden), None if remember is None else remember()
    asked = scores.masked_fill(masks, 0.0)
    solution, more = ask(bound, asked)
    without = (solution.status == Status.INFEASIBLE).to(masks.device) & masks.any(dim=1)
    if any_of(without):
        masks = masks & ~without[:, None]
        hidden = masks if forbidden is None else masks | forbidden
        bound, asked = bind(hidden), scores.masked_fill(masks, 0.0)
        if take_back is not None:
            take_back()
        solution, more = ask(bound, asked)
    return bound, hidden, asked, solution, more


def _masks(
    scores: Float64[Tensor, "batch size"], forbidden: Bool[Tensor, "batch size"] | None, lowest: float
) -> Bool[Tensor, "batch size"] | None:
    """Which parts are masked; None for none. Scores that are all as low are no masks, but scores of that size."""
    low = scores <= max(MASK, lowest)
    others = ~low if forbidden is None else ~(low | forbidden)
    largest = torch.where(others, scores.abs(), 0.0).amax(dim=1, keepdim=True)
    beyond = torch.where(scores == lowest, BEYOND_LOWEST, BEYOND)
    masks = low & (scores <= -beyond * largest) & others.any(dim=1, keepdim=True)
    return masks if any_of(masks) else None
