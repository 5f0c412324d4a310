"""The rules that the study compares, each with the values tried for its one hyperparameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import optlayers as ol

__all__ = ["MARKS", "RULES", "Choice"]


@dataclass(frozen=True)
class Choice:
    """``make(strength)`` is a rule; ``strengths`` are the values of a grid, the middle one where nothing is chosen.

    A rule without a hyperparameter has no strengths, and is made with NaN.
    """

    make: Callable[[float], ol.AbstractRule]
    strengths: tuple[float, ...] = ()


RULES: dict[str, Choice] = {
    "pipeline": Choice(lambda _: ol.Pipeline()),
    "straight-through": Choice(lambda _: ol.StraightThrough()),
    "hard sparsemap": Choice(lambda _: ol.Hard(ol.SparseMAP())),
    "hard marginals": Choice(lambda _: ol.Hard(ol.StructuredAttention())),
    "spigot": Choice(lambda step: ol.Spigot(step_size=step), (0.1, 1.0, 10.0)),
    "sparsemap": Choice(lambda _: ol.SparseMAP()),
    "structured attention": Choice(lambda _: ol.StructuredAttention()),
}
"""A new rule is a new line. Under ``pipeline`` the encoder stays as it was drawn: random structures."""

MARKS = ("no structure", "true scorer", "true structure")
"""The room in which rules compete.

The decoder with the mean of all parts, with the structure that a perfect scorer finds, and with the true structure.
"""
