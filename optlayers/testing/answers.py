"""Answers with their auxiliary variables: in a row, what they score, and whether projections are optimal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optlayers.compilation.compiled import CompiledPolytope, compile_polytope
from optlayers.solution import Solution

__all__ = ["check_projection", "in_a_row", "total"]


def in_a_row(structure: Tensor, auxiliary: Mapping[str, Tensor]) -> Tensor:
    """Structures and their auxiliary variables, flat, ``(samples, size)``."""
    return torch.cat([structure.flatten(1), *(a.flatten(1) for a in auxiliary.values())], dim=1)


def total(scores: Tensor, named: Mapping[str, Any], solution: Solution) -> Tensor:
    """What the answers ``(samples, *shape)`` score, with their auxiliary variables."""
    found = (scores * solution.value).flatten(1).sum(1)
    for name, values in solution.scored.items():
        found = found + (named[name] * values).reshape(len(scores), -1).sum(1)
    return found


def check_projection(compiled: CompiledPolytope, scores: Tensor, near: Solution, parameters: dict[str, Any]) -> None:
    """Hold points to the variational inequality ``<s - x, v - x> <= 0``, for the best v."""
    step = scores - near.value
    best = compile_polytope(compiled.polytope).maximize(step, **parameters).check()
    gain = total(step, parameters, best) - total(step, parameters, near)
    size = 1 + step.flatten(1).norm(dim=1)
    assert bool((gain <= 1e-7 * size).all()), f"a projection is {float(gain.max()):.3g} from optimal"
