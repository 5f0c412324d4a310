"""Ways to learn the costs of cells from true paths, and from true costs as a mark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import optlayers as ol

__all__ = ["RULES", "TWO_STAGE", "Known", "Loss"]


@dataclass(frozen=True)
class Known:
    """What is known of training maps, ``(batch, size, size)``. Only the mark, two-stage, uses the costs."""

    paths: Tensor
    costs: Tensor


Loss = Callable[[Tensor, Known, torch.Generator], Tensor]
"""From predicted costs ``(batch, size, size)`` to the sum of losses; noise is drawn from the generator."""


def _hamming(decided: Tensor, known: Known) -> Tensor:
    """In how many cells the decided paths differ from the true ones, as Vlastelica et al. (2020) train."""
    return (decided * (1 - known.paths) + (1 - decided) * known.paths).sum()


def _through(rule: ol.AbstractRule) -> Callable[[ol.CompiledPolytope], Loss]:
    """The Hamming loss of what a layer decides, with the gradient that its rule gives."""

    def make(polytope: ol.CompiledPolytope) -> Loss:
        decide = ol.OptLayer(polytope, rule)
        return lambda costs, known, generator: _hamming(
            decide(-costs, generator=generator if rule.draws else None), known
        )

    return make


def _perturbed(polytope: ol.CompiledPolytope) -> Loss:
    loss = ol.PerturbedFenchelYoungLoss(polytope, samples=5, scale=SCALE, reduction="sum", validate=False)
    return lambda costs, known, generator: loss(-costs, known.paths, generator=generator)


def _sparsemap(polytope: ol.CompiledPolytope) -> Loss:
    loss = ol.SparseMAPLoss(polytope, reduction="sum", validate=False)
    return lambda costs, known, _: loss(-costs, known.paths)


def _two_stage(_: ol.CompiledPolytope) -> Loss:
    return lambda costs, known, __: (costs - known.costs).square().sum()


TWO_STAGE = "two-stage"
"""Least squares on true costs: the mark of those who know them."""
SCALE = 0.3
"""Of noise."""
RULES: dict[str, Callable[[ol.CompiledPolytope], Loss]] = {
    "interpolation": _through(ol.Interpolation(strength=1.0)),
    "identity": _through(ol.Identity()),
    "i-mle": _through(ol.IMLE(strength=3.0, scale=SCALE)),
    "perturbed": _perturbed,
    "spigot": _through(ol.Spigot(step_size=1.0)),
    "sparsemap": _sparsemap,
    TWO_STAGE: _two_stage,
}
"""A new rule is a new line. Losses are sums over the maps, so that what a rule sees of a map does not depend on the
others of its batch: the strength 20 of Vlastelica et al. (2020), whose loss is the mean over 70 maps, would be 0.3.
Strengths, steps and scales were tried on 1,000 maps of a seed that is not reported (0.1 to 10 for interpolation, 0.1 to
3 for SPIGOT, 0.3 to 3 for I-MLE, scales of 0.1 to 1): I-MLE and the perturbed loss want little noise, and for
interpolation and SPIGOT the strength changed the share of cheapest paths by 2 points at most."""
