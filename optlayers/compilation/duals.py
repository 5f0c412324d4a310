"""Multipliers of the constraints of a declaration, for the answers of a batch."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.polytope import BoundPolytope, numbers_of
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.shifted import shifted

__all__ = ["duals"]


def duals(
    prepared: AbstractPrepared,
    of_shifts: AbstractPrepared,
    scores: Float64[Tensor, "batch size"],
    theta: Float64[Tensor, "batch parameters"] | None,
    forbidden: Tensor | None,
    precision: np.ndarray,
    regularizer: AbstractRegularizer | None,
) -> list[Float64[Tensor, "batch *shape"]]:
    r"""The multipliers of every constraint: what :math:`\max_{z \in P} \langle s, z \rangle - \Omega(z)` gains by a
    shift of its right-hand side, Ω = 0 where there is no regularizer.

    ``of_shifts`` is the polytope whose constraints can be shifted, which is asked once more, with shifts of 0. Where
    scores or θ have a graph, so do multipliers of regularized points. Instances without an answer get NaN.
    """
    specs, count = of_shifts.entries.parameters, len(scores)
    given = {spec.name: spec for spec in prepared.entries.parameters}
    parts, rounding = [], [np.zeros(0)]
    for spec in specs:
        old = given.get(spec.name)
        if old is None or theta is None:
            parts.append(torch.zeros(count, spec.size, dtype=torch.float64, device=scores.device))
            rounding.append(np.full(spec.size, torch.finfo(torch.float64).eps))
        else:
            parts.append(theta[:, old.span])
            rounding.append(precision[old.span])
    whole = torch.cat(parts, dim=1) if parts else torch.zeros(count, 0, dtype=torch.float64, device=scores.device)
    graph = torch.is_grad_enabled() and (scores.requires_grad or whole.requires_grad)
    numbers = numbers_of(of_shifts, whole.detach(), forbidden, count, np.concatenate(rounding), scores.device)
    bound = BoundPolytope(numbers, whole if graph else None)
    weight = 1.0
    if regularizer is None:
        solution = bound.maximize(scores)
    elif regularizer.projects is not None:
        weight = regularizer.projects
        solution = bound.project(scores / weight)
    else:
        solution = bound.regularized(scores, regularizer)
    found = bound.multipliers(solution)
    ok = solution.ok.to(scores.device)
    shown = []
    for shift in shifted(prepared.polytope).shifts:
        mine = weight * found[shift.name()]
        shown.append(torch.where(ok.reshape(-1, *[1] * (mine.ndim - 1)), mine, torch.nan))
    return shown
