"""The rules that the study compares, each with the values tried for its one hyperparameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import optlayers as ol

__all__ = ["MARKS", "RULES", "Choice"]


@dataclass(frozen=True)
class Choice:
    """``make(strength)`` is a rule; ``strengths`` are the values of a grid, the middle one where nothing is chosen.

    A rule without a hyperparameter has no strengths, and is made with NaN. With ``in_units`` it sees the gradient of
    each instance in units of its norm, so that a strength does not depend on the size of the batch.
    """

    make: Callable[[float], ol.AbstractRule]
    strengths: tuple[float, ...] = ()
    in_units: bool = False


RULES: dict[str, Choice] = {
    "pipeline": Choice(lambda _: ol.Pipeline()),
    "straight-through": Choice(lambda _: ol.StraightThrough()),
    "identity": Choice(lambda _: ol.Identity()),
    "hard sparsemap": Choice(lambda _: ol.Hard(ol.SparseMAP())),
    "hard marginals": Choice(lambda _: ol.Hard(ol.StructuredAttention())),
    "spigot": Choice(lambda step: ol.Spigot(step_size=step), (0.1, 1.0, 10.0)),
    "spigot, adaptive": Choice(lambda part: ol.Spigot(step_size=ol.AdaptiveStep(target=part)), (0.25, 0.5, 0.75)),
    "spigot, 5 steps": Choice(lambda step: ol.Spigot(step_size=step, steps=5), (0.1, 1.0, 10.0)),
    "spigot-ce": Choice(lambda step: ol.SpigotCE(step_size=step), (0.1, 1.0, 10.0)),
    "spigot-eg": Choice(lambda step: ol.SpigotEG(step_size=step), (0.1, 1.0, 10.0)),
    "interpolation": Choice(lambda strength: ol.Interpolation(strength), (1.0, 10.0, 100.0)),
    "lpgd": Choice(lambda strength: ol.LPGD(strength, smoothing=1.0), (0.1, 1.0, 10.0)),
    "sparsemap": Choice(lambda _: ol.SparseMAP()),
    "structured attention": Choice(lambda _: ol.StructuredAttention()),
    "perturbed": Choice(lambda scale: ol.PerturbedAdditive(samples=5, scale=scale), (0.3, 1.0, 3.0)),
    "perturbed, times": Choice(lambda scale: ol.PerturbedMultiplicative(samples=5, scale=scale), (0.1, 0.3, 1.0)),
    "perturb-and-map": Choice(lambda scale: ol.PerturbAndMAP(scale=scale), (0.3, 1.0, 3.0)),
    "gumbel": Choice(lambda temperature: ol.GumbelStraightThrough(temperature), (0.3, 1.0, 3.0)),
    "i-mle": Choice(lambda strength: ol.IMLE(strength=strength), (1.0, 10.0, 100.0)),
    "adaptive i-mle": Choice(lambda target: ol.AdaptiveIMLE(target=target), (0.3, 1.0, 3.0)),
    "spigot, in units": Choice(lambda step: ol.Spigot(step_size=step), (0.1, 1.0, 10.0), in_units=True),
    "spigot-ce, in units": Choice(lambda step: ol.SpigotCE(step_size=step), (0.1, 1.0, 10.0), in_units=True),
    "spigot-eg, in units": Choice(lambda step: ol.SpigotEG(step_size=step), (0.1, 1.0, 10.0), in_units=True),
    "interpolation, in units": Choice(lambda strength: ol.Interpolation(strength), (0.1, 1.0, 10.0), in_units=True),
    "lpgd, in units": Choice(lambda strength: ol.LPGD(strength, smoothing=1.0), (0.1, 1.0, 10.0), in_units=True),
    "i-mle, in units": Choice(lambda strength: ol.IMLE(strength=strength), (0.1, 1.0, 10.0), in_units=True),
    "score function": Choice(lambda _: ol.ScoreFunction(samples=5)),
}
"""A new rule is a new line. Under ``pipeline`` the encoder stays as it was drawn: random structures."""

MARKS = ("no structure", "true scorer", "true structure")
"""The room in which rules compete.

The decoder with the mean of all parts, with the structure that a perfect scorer finds, and with the true structure.
"""
