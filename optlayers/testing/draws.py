"""Scores that contracts ask with: random, tied, equal, large, extreme, forbidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optlayers.polytope import Polytope

__all__ = ["SPECIAL", "draw", "extreme_scores", "with_scores"]

SPECIAL = (1, 2, 3)
"""The places of tied, equal and large scores among those that are drawn."""


def draw(shape: Sequence[int], samples: int, seed: int) -> Tensor:
    """Scores of unit size, then tied ones (few distinct values), then all equal, then large ones."""
    generator = torch.Generator("cpu").manual_seed(seed)
    scores = torch.randn(samples, *shape, generator=generator, dtype=torch.float64, device="cpu")
    if samples >= 4:
        scores[1] = torch.round(scores[1])
        scores[2] = 0.0
        scores[3] *= 1000.0
    return scores


def extreme_scores(shape: Sequence[int], samples: int, seed: int) -> Tensor:
    """Of unit size, then tied, equal, large and extreme ones, in turn, all negative and all positive ones among them;
    every third has forbidden parts."""
    scores = draw(shape, samples, seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    for k in range(4, samples):
        kind = k % 6
        if kind == 0:
            scores[k] = torch.round(scores[k])
        if kind == 1:
            scores[k] *= 1e9
        if kind == 2:
            scores[k] *= 1e-9
        if kind == 3:
            scores[k] *= torch.where(torch.rand(*shape, generator=generator, device="cpu") < 0.5, 1e9, 1.0)
        if kind == 4:  # as log-probabilities are: no structure scores more than nothing
            scores[k] = -scores[k].abs()
        if kind == 5:
            scores[k] = scores[k].abs()
        if k % 3 == 0:
            scores[k] = scores[k].masked_fill(torch.rand(*shape, generator=generator, device="cpu") < 0.15, -torch.inf)
    return scores


def with_scores(polytope: Polytope, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What is given by name, and drawn scores of the scored auxiliary variables that are not."""
    drawn = {
        v.name(): draw(tuple(v.shape), 1, seed + 1 + position)[0]
        for position, v in enumerate(polytope.scored)
        if v.name() not in given
    }
    return drawn | dict(given)
