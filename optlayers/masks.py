"""Finite scores that stand for a forbidden part, as ``masked_fill(mask, torch.finfo(dtype).min)`` leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.inputs import any_below
from optlayers.solution import Solution, Status, any_of

__all__ = ["MASK", "answered"]

MASK = -1e8
"""A finite score may be a mask from here on,"""
BEYOND = 1e5
"""if it is so many times larger than all scores of its instance that are none. The lowest number of a dtype, in which
scores were given, is a mask"""
BEYOND_LOWEST = 1e2
"""if it is so many times larger: that of float16 is -65504."""

T = TypeVar("T")


def answered(
    bind: Callable[[Bool[Tensor, "batch size"] | None], AbstractBoundPolytope],
    scores: Float64[Tensor, "batch size"],
    forbidden: Bool[Tensor, "batch size"] | None,
    ask: Callable[[AbstractBoundPolytope, Float64[Tensor, "batch size"]], tuple[Solution, T]],
    dtype: torch.dtype,
    remember: Callable[[], Callable[[], None]] | None = None,
) -> tuple[AbstractBoundPolytope, Bool[Tensor, "batch size"] | None, Solution, T]:
    """Ask with masks for forbidden parts; where no structure does without them, they are the numbers that they are.

    Next to scores of ordinary size a part that scores -1e9 is in no structure that is looked for, as long as there is
    one without it; a solver that had to find that out would lose all digits of the other scores. So such a part is
    forbidden, as if its score were -inf: with the same answers, and no gradient.

    Parameters
    ----------
    bind : makes the polytopes of the batch, for the parts that are forbidden.
    scores : finite; 0 for parts that are forbidden already.
    forbidden : parts with a score of -inf; None for none.
    ask : the question, of polytopes and scores.
    dtype : in which the scores were given.
    remember : gives a function that takes random numbers back to where they are now: a second question meets the same
        ones, or the masks of one instance would change what is drawn for others.

    Returns
    -------
    The polytopes and the forbidden parts of the last question, and its answer.
    """
    masks = _masks(scores, forbidden, torch.finfo(dtype).min)
    if masks is None:
        bound = bind(forbidden)
        return bound, forbidden, *ask(bound, scores)
    hidden = masks if forbidden is None else masks | forbidden
    bound, take_back = bind(hidden), None if remember is None else remember()
    solution, more = ask(bound, scores.masked_fill(masks, 0.0))
    without = (solution.status == Status.INFEASIBLE).to(masks.device) & masks.any(dim=1)
    if any_of(without):
        masks = masks & ~without[:, None]
        hidden = masks if forbidden is None else masks | forbidden
        bound = bind(hidden)
        if take_back is not None:
            take_back()
        solution, more = ask(bound, scores.masked_fill(masks, 0.0))
    return bound, hidden, solution, more


def _masks(
    scores: Float64[Tensor, "batch size"], forbidden: Bool[Tensor, "batch size"] | None, lowest: float
) -> Bool[Tensor, "batch size"] | None:
    """Which parts are masked; None for none. Scores that are all as low are no masks, but scores of that size."""
    if not any_below(scores, max(MASK, lowest)):
        return None
    low = scores <= max(MASK, lowest)
    others = ~low if forbidden is None else ~(low | forbidden)
    largest = torch.where(others, scores.abs(), 0.0).amax(dim=1, keepdim=True)
    beyond = torch.where(scores == lowest, BEYOND_LOWEST, BEYOND)
    masks = low & (scores <= -beyond * largest) & others.any(dim=1, keepdim=True)
    return masks if any_of(masks) else None
