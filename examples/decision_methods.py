"""Ways to learn scores for a linear program: losses, and rules beneath the loss of the decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import optlayers as ol

__all__ = ["METHODS", "TWO_STAGE", "Known", "Loss", "least_squares", "through"]

TWO_STAGE = "two-stage"
"""Least squares first, decisions afterwards: the mark that the others are measured against."""


@dataclass(frozen=True)
class Known:
    """What is known of training instances: scores and their best decisions, ``(*batch, parts)``."""

    scores: Tensor
    decisions: Tensor


Loss = Callable[[Tensor, Known, torch.Generator], Tensor]
"""From predicted scores ``(*batch, parts)`` to the sum of losses; noise is drawn from the generator."""


def spo_plus(polytope: ol.CompiledPolytope) -> Loss:
    """The convex bound of the regret."""
    loss = ol.SPOPlusLoss(polytope, reduction="sum", validate=False)
    return lambda predicted, known, _: loss(predicted, known.scores, decisions=known.decisions)


def perturbed(polytope: ol.CompiledPolytope, scale: float) -> Loss:
    """The loss of decisions under noise, against the best decision; the true scores are not used."""
    loss = ol.PerturbedFenchelYoungLoss(polytope, samples=3, scale=scale, reduction="sum", validate=False)
    return lambda predicted, known, generator: loss(predicted, known.decisions, generator=generator)


def sparsemap(polytope: ol.CompiledPolytope) -> Loss:
    """The loss of the nearest point, against the best decision; the true scores are not used."""
    loss = ol.SparseMAPLoss(polytope, reduction="sum", validate=False)
    return lambda predicted, known, _: loss(predicted, known.decisions)


def regret(decided: Tensor, known: Known) -> Tensor:
    """What the decision misses of the true scores; its gradient is theirs, negated."""
    return (known.scores * (known.decisions - decided)).sum()


def hamming(decided: Tensor, known: Known) -> Tensor:
    """In how many parts the decision differs from the best one, as Vlastelica et al. (2020) train."""
    return (decided * (1 - known.decisions) + (1 - decided) * known.decisions).sum()


def through(
    polytope: ol.CompiledPolytope,
    rule: ol.AbstractRule,
    measure: Callable[[Tensor, Known], Tensor] = regret,
    *,
    in_units: bool = False,
) -> Loss:
    """The loss of the decision itself, with the gradient that a rule gives.

    With ``in_units`` the rule sees the gradient of each instance in units of its norm.
    """
    decide = ol.OptLayer(polytope, rule, gradient_unit="norm" if in_units else None)
    return lambda predicted, known, _: measure(decide(predicted), known)


def least_squares(features: Tensor, scores: Tensor) -> Tensor:
    """The linear model ``(parts, features)`` nearest to the scores, whatever is decided by it."""
    return torch.linalg.lstsq(features, scores).solution.mT


RULES: dict[str, dict[str, ol.AbstractRule]] = {
    "blackbox": {f"strength {s:g}": ol.Interpolation(strength=s) for s in (1.0, 3.0, 10.0)},
    # center=None, the default, is one of both: True for paths, which are equally long, and False for knapsacks.
    "identity": {f"center {center}": ol.Identity(center=center) for center in (True, False)},
    "spigot": {f"step {s:g}": ol.Spigot(step_size=s) for s in (0.1, 1.0, 10.0)},
}

METHODS: dict[str, dict[str, Callable[[ol.CompiledPolytope], Loss]]] = {
    "spo+": {"": spo_plus},
    "perturbed": {f"scale {s:g}": partial(perturbed, scale=s) for s in (0.3, 1.0, 3.0)},
    "sparsemap": {"": sparsemap},
    **{name: {v: partial(through, rule=r) for v, r in rules.items()} for name, rules in RULES.items()},
    **{
        f"{name}-units": {v: partial(through, rule=r, in_units=True) for v, r in RULES[name].items()}
        for name in ("blackbox", "spigot")
    },
    **{
        f"{name}-hamming": {v: partial(through, rule=r, measure=hamming) for v, r in rules.items()}
        for name, rules in RULES.items()
    },
}
"""Every method with its variants, among which the dev set chooses. A new method is a new line."""
