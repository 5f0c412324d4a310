"""How the loss really changes: gradients of the smoothed loss, and those of smooth forward maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from optlayers.auditing.estimate import Estimate
from optlayers.auditing.problem import Problem
from optlayers.layer import OptLayer
from optlayers.rules.noise import Gaussian

__all__ = ["directions_of", "own_gradient", "smoothed_gradient"]


def directions_of(problem: Problem, terms: int, generator: torch.Generator) -> Float32[Tensor, "terms instances size"]:
    """Normal random directions of the parts that can move."""
    drawn = Gaussian().draw((terms, *problem.numbers.shape), generator, torch.device("cpu"))
    return torch.where(problem.movable, drawn, 0.0).to(torch.float32)


def smoothed_gradient(
    problem: Problem,
    directions: Float32[Tensor, "terms instances size"],
    sigma: Float64[Tensor, " instances"],
    layer: OptLayer | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Estimate:
    r"""The gradient of :math:`\mathbb E[L(\hat z(s + \sigma Z))]`, Z standard normal, without bias.

    By the density of the noise, :math:`\mathbb E[L(\hat z(s + \sigma Z)) Z] / \sigma`, from pairs of Z and -Z: their
    difference cancels what is even in Z, of which a baseline would take off a part.
    """
    slopes = []
    step = max(1, len(directions) // 8)
    for some in (directions[k : k + step] for k in range(0, len(directions), step)):
        move = sigma[:, None] * some.to(torch.float64)
        up, down = (problem.losses_at(problem.numbers + sign * move, layer, parameters) for sign in (1.0, -1.0))
        slopes.append((up - down) / (2.0 * sigma))
    return Estimate.by_slopes(directions, torch.cat(slopes))


def own_gradient(
    problem: Problem,
    layer: OptLayer,
    parameters: Mapping[str, Any],
    directions: Float32[Tensor, "terms instances size"],
) -> Estimate:
    """The gradient of the loss of a smooth forward map, by central differences.

    Of one part after the other where there are no more than directions; else along these, with an error.
    """
    precision = torch.finfo(problem.scores.dtype).eps
    step = max(1e-5, precision**0.5) * problem.spread
    most = int(problem.movable.sum(dim=1).max())
    if most > len(directions):
        return smoothed_gradient(problem, directions, step, layer, parameters)
    mean, known = torch.zeros_like(problem.numbers), torch.ones(problem.count, dtype=torch.bool)
    places = [torch.nonzero(row).flatten() for row in problem.movable]
    at_once = 16
    for first in range(0, most, at_once):
        move = torch.zeros(min(at_once, most - first), *problem.numbers.shape, dtype=torch.float64)
        for i, mine in enumerate(places):
            some = mine[first : first + at_once]
            move[torch.arange(len(some)), i, some] = step[i]
        up, down = (problem.losses_at(problem.numbers + sign * move, layer, parameters) for sign in (1.0, -1.0))
        slopes = (up - down) / (2.0 * step)
        for i, mine in enumerate(places):
            some = mine[first : first + at_once]
            mean[i, some] = slopes[: len(some), i]
    known = torch.isfinite(mean).all(dim=1)
    return Estimate.exact(mean, known)
