"""The nearest point of a polytope without rounding: Wolfe's method over its exact best vertices.

It asks for best vertices alone, so it does not matter whether a polytope is given by rows, by the shadow of rows, or by
its vertices (Wolfe, Finding the nearest point in a polytope, 1976).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from fuzzing.exact import solve

__all__ = ["dot", "nearest"]

Point = tuple[Fraction, ...]


def dot(left: Sequence[Fraction], right: Sequence[Fraction]) -> Fraction:
    """The inner product."""
    return sum((a * b for a, b in zip(left, right, strict=True) if a and b), Fraction(0))


def nearest(best: Callable[[Point], Point], target: Sequence[Fraction]) -> Point:
    """The point that is nearest to ``target``, in a polytope whose best vertex for an objective is ``best``."""
    target = tuple(target)
    corral = [best(target)]
    weights = [Fraction(1)]
    point = corral[0]
    while True:
        ahead = tuple(t - x for t, x in zip(target, point, strict=True))
        vertex = best(ahead)
        if dot(ahead, vertex) <= dot(ahead, point):
            return point
        corral.append(vertex)
        weights.append(Fraction(0))
        while True:
            wished = _affine(corral, target)
            if all(w > 0 for w in wished):
                weights = wished
                break
            step = min(
                (old / (old - new) for old, new in zip(weights, wished, strict=True) if new <= 0),
            )
            weights = [old + step * (new - old) for old, new in zip(weights, wished, strict=True)]
            kept = [k for k, w in enumerate(weights) if w > 0]
            corral, weights = [corral[k] for k in kept], [weights[k] for k in kept]
        point = tuple(
            sum((w * v[i] for w, v in zip(weights, corral, strict=True) if v[i]), Fraction(0))
            for i in range(len(target))
        )


def _affine(corral: Sequence[Point], target: Point) -> list[Fraction]:
    """Weights, of any sign, of the point of the affine hull that is nearest."""
    first = corral[0]
    edges = [tuple(a - b for a, b in zip(v, first, strict=True)) for v in corral[1:]]
    ahead = tuple(t - x for t, x in zip(target, first, strict=True))
    others = solve([[dot(e, f) for f in edges] for e in edges], [dot(e, ahead) for e in edges])
    return [1 - sum(others, Fraction(0)), *others]
