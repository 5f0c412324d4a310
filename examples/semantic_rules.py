"""The backward rules that syntax_to_semantics.py compares, with what may be chosen for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from halton import log_points

import optlayers as ol
from polytopes import head_choice

__all__ = ["MARKS", "RULES", "Choice", "tries"]

SIGNALS = (0.01, 3.0)
"""Of this range are the factors on a gradient that are tried, evenly on a logarithmic scale."""
STEPS = (0.03, 30.0)
"""Step sizes, likewise."""


@dataclass(frozen=True)
class Choice:
    """A rule, ``make(step)``, and what it takes by default: ``signal`` is the factor on the gradient that leaves it.

    ``steps`` says whether the rule has a step size, ``sends`` whether it sends a gradient at all. With ``in_units`` the
    rule sees the gradient of every sentence in units of its norm. ``soft`` rules hand a mixture of trees to the roles.
    """

    make: Callable[[float], ol.AbstractRule]
    signal: float = 1.0
    step: float = 1.0
    steps: bool = False
    sends: bool = True
    in_units: bool = False
    soft: bool = False


RULES: dict[str, Choice] = {
    "pipeline": Choice(lambda _: ol.Pipeline(), sends=False),
    "ste": Choice(lambda _: ol.StraightThrough(), signal=0.03),
    "structured_attention": Choice(lambda _: ol.StructuredAttention(), soft=True),
    "spigot": Choice(lambda step: ol.Spigot(step_size=step), signal=0.1, steps=True),
    "sparsemap": Choice(lambda _: ol.SparseMAP(), soft=True),
    "spigot_eg": Choice(lambda step: ol.SpigotEG(step_size=step), signal=0.1, steps=True),
    "spigot_in_units": Choice(lambda step: ol.Spigot(step_size=step), signal=0.1, steps=True, in_units=True),
    "spigot_of_heads": Choice(
        lambda step: ol.Spigot(step_size=step, relaxation=ol.Family(head_choice)), signal=0.1, steps=True
    ),
}
"""A new rule is a new line. ``spigot_of_heads`` projects onto the simplex of every word's heads, as the paper does."""
MARKS = ("no tree", "gold tree")
"""What the roles reach without any tree, and with the true one: the room in which rules compete."""


def tries(name: str, count: int, default: tuple[float, float]) -> list[tuple[float, float]]:
    """So many pairs of a signal factor and a step size for a rule: the default, and points of a Halton sequence.

    A rule without a step size keeps that of the default; one that sends no gradient has nothing to choose.
    """
    choice = RULES[name]
    if not choice.sends:
        return [default]
    points = log_points(count - 1, [SIGNALS, STEPS], seed=0)
    return [default, *((signal, step if choice.steps else default[1]) for signal, step in points)]
