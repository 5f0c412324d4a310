"""Ready declarations, in the language that visitors type, and scores to begin with."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["READY", "Ready"]


@dataclass(frozen=True)
class Ready:
    """A declaration, the scores that it begins with, and what there is to see."""

    name: str
    about: str
    text: str
    scores: tuple[float, ...]


READY = (
    Ready(
        "A square without a corner",
        "The corner that is cut off makes two new vertices, which are fractional.",
        "x = Variable(2, nonneg=True)\nx <= 1\nsum(x) <= 1.5",
        (1.3, 0.9),
    ),
    Ready(
        "One choice of three (simplex)",
        "Projections are sparsemax, marginals are softmax.",
        "x = Variable(3, nonneg=True)\nsum(x) == 1",
        (1.0, 0.6, 0.1),
    ),
    Ready(
        "At most one of two neighbours",
        "Three nodes, each next to the others: rows for the edges leave room for (½, ½, ½).",
        "x = Variable(3, nonneg=True)\nx[0] + x[1] <= 1\nx[1] + x[2] <= 1\nx[0] + x[2] <= 1",
        (1.1, 0.8, 0.6),
    ),
    Ready(
        "The same, by booleans",
        "The hull of the integer points: no vertex is fractional.",
        "x = Variable(3, boolean=True)\nx[0] + x[1] <= 1\nx[1] + x[2] <= 1\nx[0] + x[2] <= 1",
        (1.1, 0.8, 0.6),
    ),
    Ready(
        "Rankings of three (a projection)",
        "Ranks are sums over a matching, whose nine parts are auxiliary variables.",
        "x = Variable(3)\nmatching = Variable((3, 3), nonneg=True)\nsum(matching, axis=0) == 1\n"
        "sum(matching, axis=1) == 1\nx == matching @ [1, 2, 3]",
        (2.6, 1.9, 1.2),
    ),
    Ready(
        "Three independent decisions (cube)",
        "Marginals are a sigmoid for each part.",
        "x = Variable(3)\n0 <= x <= 1",
        (0.8, 0.3, -0.4),
    ),
    Ready(
        "Integer points below a line",
        "The polytope is the hull of the integer points. The fractional corner of the two rows is no part of it.",
        "x = Variable(2, integer=True, bounds=[0, 6])\n3 * x[0] + 2 * x[1] <= 12.5\nx[1] - x[0] <= 2.5",
        (2.0, 3.5),
    ),
    Ready(
        "An octahedron (a norm)",
        "norm(x, 1) is piecewise linear, so that the set is a polytope.",
        "x = Variable(3)\nnorm(x, 1) <= 1",
        (1.0, 0.7, 0.2),
    ),
    Ready(
        "A disc with a flat side",
        "A curved set has projections, but no vertices and no marginals.",
        "x = Variable(2)\nnorm(x) <= 1\nx[0] <= 0.6",
        (1.3, 0.9),
    ),
)
