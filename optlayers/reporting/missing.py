"""What a declaration lacks: the facets of the hull of its integer points that its rows do not imply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, final

import cvxpy as cp
import numpy as np

from optlayers.reporting.affine_hull import AffineHull, Equation
from optlayers.reporting.fractional import Witness, witness_of
from optlayers.reporting.linear_program import LinearProgram, exact_point, proved_bound
from optlayers.reporting.rows import Rows, expression
from optlayers.reporting.statement import PROOF, ROUNDING
from optlayers.vertices.facets import half_spaces_of

__all__ = ["Facets", "MissingInequality", "facets_of", "kind_of", "lacking", "line_of", "simplified"]

BEYOND = 1e-7
STEPS = (1, -1, 2, -2)


@final
@dataclass(frozen=True)
class MissingInequality:
    """An inequality (or an equation) that all integer points satisfy and that the declared rows do not imply.

    ``line`` is a constraint to paste into the declaration, ``cuts_off`` a point of the rows that violates it.
    """

    coefficients: Mapping[int, int]
    """Of the flat parts, in C order."""
    side: int
    is_equation: bool
    line: str
    kind: str
    """What it has in common with others: the same up to a permutation of parts."""
    cuts_off: tuple[Fraction, ...]
    known: str
    witness: Witness | None = field(default=None, repr=False)

    def constraint(self, variable: cp.Variable) -> cp.Constraint:
        """The constraint over a cvxpy variable of the declared shape.

        Raises
        ------
        ValueError : when it has parts of auxiliary variables that are scored, or of another shape; see ``line``.
        """
        if max(self.coefficients, default=0) >= variable.size:
            raise ValueError(
                f"{self.line} has parts beyond the {variable.size} of this variable: paste the line instead"
            )
        flat = cp.vec(variable, order="C") if variable.ndim else cp.reshape(variable, (1,), order="C")
        total = sum(a * flat[j] for j, a in self.coefficients.items())
        return total == self.side if self.is_equation else total <= self.side

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "line": self.line,
            "kind": self.kind,
            "cuts_off": [str(v) for v in self.cuts_off],
            "known": self.known,
        }


@final
@dataclass(frozen=True)
class Facets:
    """The facets of the hull of integer points: inequalities ``coefficients @ x <= side``, without rounding."""

    coefficients: np.ndarray
    sides: np.ndarray

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.sides)


def facets_of(points: np.ndarray, hull: AffineHull) -> Facets:
    """The facets of the hull of integer points.

    They are worked out in integers (:mod:`optlayers.vertices.facets`), and each is held to all points here once more.

    Raises
    ------
    TooManyFacets : where they cannot be worked out.
    """
    points = points[np.lexsort(points.T[::-1])]
    normals, offsets = half_spaces_of(points)
    count = len(normals) - 2 * len(hull.equations)  # behind the facets stand equations, in both directions
    whole, sides = np.rint(normals[:count]).astype(np.int64), np.rint(offsets[:count]).astype(np.int64)
    assert bool((points @ whole.T <= sides).all()), "an inequality that a point violates is no facet"
    return Facets(whole, sides)


def simplified(row: np.ndarray, equations: np.ndarray) -> np.ndarray:
    """An inequality with multiples of equations added to it while that makes it shorter."""

    def cost(candidate: np.ndarray) -> tuple[int, int, int]:
        body = candidate[:-1]
        return int(np.count_nonzero(body)), int(np.abs(body).sum()), int((body < 0).sum())

    best, price = row, cost(row)
    improved = True
    while improved:
        improved = False
        for equation in equations:
            for step in STEPS:
                candidate = best + step * equation
                other = cost(candidate)
                if other < price:
                    best, price, improved = candidate, other, True
    divisor = int(np.gcd.reduce(best)) or 1
    return best // divisor


def lacking(
    rows: Rows,
    program: LinearProgram,
    facets: Facets,
    equations: Sequence[Equation],
    known: Sequence[Equation],
    late: Callable[[], bool],
    rng: np.random.Generator,
) -> tuple[list[MissingInequality], bool, int]:
    """The facets, and equations, that the rows do not imply; whether all others are proved to be implied; and how many
    nobody looked at, for want of time.

    Equations that are ``known`` hold for all points of the rows, and make what is missing shorter.
    """
    held = np.zeros((len(known), rows.scored + 1), dtype=np.int64)
    for place, equation in enumerate(known):
        held[place, list(equation.coefficients)] = list(equation.coefficients.values())
        held[place, -1] = equation.side
    found: list[MissingInequality] = []
    proved = True
    asked = [(dict(e.coefficients), e.side, True) for e in equations]
    for body, side in zip(facets.coefficients, facets.sides.tolist(), strict=True):
        asked.append(({j: int(body[j]) for j in np.flatnonzero(body).tolist()}, int(side), False))
    for place, (coefficients, side, is_equation) in enumerate(asked):
        if late():
            return found, False, len(asked) - place
        for sign in (1, -1) if is_equation else (1,):
            objective = np.zeros(rows.columns)
            objective[list(coefficients)] = [sign * a for a in coefficients.values()]
            best = program.maximize(objective)
            if best is None:
                proved = False
                continue
            bound = proved_bound(rows, objective, best.multipliers)
            # What is too little to be told from rounding is told by fractions.
            beyond = bound is not None and bound > sign * side
            if beyond or best.value > sign * side + BEYOND * (1.0 + abs(side)):
                told, bound_of_told = coefficients, side
                if not is_equation:
                    short = simplified(np.append(objective[: rows.scored].astype(np.int64), side), held)
                    told = {j: int(short[j]) for j in np.flatnonzero(short[:-1]).tolist()}
                    bound_of_told = int(short[-1])
                found.append(_missing(rows, program, told, bound_of_told, is_equation, sign, rng))
                break
            proved &= bound is not None
    return found, proved, 0


def _missing(
    rows: Rows,
    program: LinearProgram,
    coefficients: Mapping[int, int],
    side: int,
    is_equation: bool,
    sign: int,
    rng: np.random.Generator,
) -> MissingInequality:
    """With a vertex that it cuts off. The best points of its normal may be a face, so the normal is turned a little."""
    witness = None
    objective = np.zeros(rows.columns)
    objective[list(coefficients)] = [sign * a for a in coefficients.values()]
    for turn in (0.0, 1e-3, 1e-2):
        turned = objective.copy()
        turned[: rows.scored] += turn * rng.standard_normal(rows.scored)
        best = program.maximize(turned)
        if best is None or float(objective @ best.point) <= sign * side:
            continue
        witness = witness_of(rows, program, best, turned[: rows.scored], rng)
        if witness is not None and _violates(witness.point, coefficients, side, is_equation):
            break
        witness = None
    point = () if witness is None else witness.point
    proved = witness is not None and witness.inside
    if witness is None:  # an integer point of the rows, say, which is no point of the polytope
        best = program.maximize(objective)
        exact = None if best is None else exact_point(rows, program, best)
        if exact is not None:
            other = tuple(Fraction(int(a), exact[1]) for a in exact[0][: rows.scored])
            proved = _violates(other, coefficients, side, is_equation)
            point = other if proved else ()
    return MissingInequality(
        coefficients,
        side,
        is_equation,
        line_of(coefficients, side, is_equation, rows.parts),
        kind_of(coefficients, side, is_equation),
        point,
        PROOF if proved else ROUNDING,
        witness,
    )


def _violates(point: tuple[Fraction, ...], coefficients: Mapping[int, int], side: int, is_equation: bool) -> bool:
    total = sum((a * point[j] for j, a in coefficients.items()), Fraction(0))
    return total != side if is_equation else total > side


def _as_written(coefficients: Mapping[int, int], side: int, is_equation: bool) -> tuple[Mapping[int, int], str, int]:
    """Without negative numbers alone before the parts."""
    if not is_equation and all(a < 0 for a in coefficients.values()):
        return {j: -a for j, a in coefficients.items()}, ">=", -side
    return coefficients, "==" if is_equation else "<=", side


def line_of(coefficients: Mapping[int, int], side: int, is_equation: bool, parts: tuple[str, ...]) -> str:
    """An inequality, or an equation, as cvxpy reads it."""
    told, sign, bound = _as_written(coefficients, side, is_equation)
    return f"{expression(told, parts)} {sign} {bound}"


def kind_of(coefficients: Mapping[int, int], side: int, is_equation: bool) -> str:
    """What inequalities have in common that differ by a permutation of parts."""
    coefficients, sign, side = _as_written(coefficients, side, is_equation)
    counted: dict[int, int] = {}
    for a in sorted(coefficients.values(), reverse=True):
        counted[a] = counted.get(a, 0) + 1
    told = " and ".join(f"{count} coefficient{'s' * (count != 1)} of {a}" for a, count in counted.items())
    return f"{told}, {sign} {side}"
