"""The dimension of a polytope, the equations that all of its points satisfy, and what they say of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

import numpy as np
import scipy.optimize
import scipy.sparse as sp

from optlayers.reporting.linear_program import LinearProgram, proved_bound
from optlayers.reporting.rationals import LARGEST, Elimination, read_together
from optlayers.reporting.rows import Rows, expression
from optlayers.reporting.statement import EXHAUSTIVE, PROOF, ROUNDING, Section, Statement

__all__ = ["AffineHull", "Equation", "hull_of_points", "hull_of_rows", "section_of"]

STRICT = 0.5
"""Rows that some point satisfies strictly are those whose room, which is 0 or 1, is more than this."""
ONE = -1
"""The column of the constant in an elimination."""
SHOWN = 8


@final
@dataclass(frozen=True)
class Equation:
    """``sum(coefficients[j] * x[j]) == side``, in integers."""

    coefficients: Mapping[int, int]
    side: int

    @property
    def key(self) -> tuple[object, ...]:
        """What tells equations apart."""
        return (*sorted(self.coefficients.items()), self.side)

    def text(self, parts: tuple[str, ...]) -> str:
        """As cvxpy reads it; where numbers are no short fractions, to six digits."""
        largest = max([*map(abs, self.coefficients.values()), abs(self.side)])
        if largest < LARGEST:
            return f"{expression(self.coefficients, parts)} == {self.side}"
        unit = max(map(abs, self.coefficients.values()))
        told = {j: float(Fraction(a, unit)) for j, a in self.coefficients.items()}
        return f"{expression(told, parts)} == {float(Fraction(self.side, unit)):g}"


@final
@dataclass(frozen=True)
class AffineHull:
    """All equations of a polytope over its parts, and which inequality rows are equations in fact."""

    dimension: int
    equations: tuple[Equation, ...]
    implied: tuple[int, ...]
    """Inequality rows that all points satisfy as equalities."""
    fixed: Mapping[int, Fraction]
    equal: tuple[tuple[int, ...], ...]
    """Parts that are always equal to each other, those that are fixed left out."""
    known: str
    determined: Mapping[int, Mapping[int, Fraction]]
    """Parts that are sums of earlier ones (and of a constant, under -1)."""


def hull_of_rows(rows: Rows, program: LinearProgram) -> AffineHull:
    """The affine hull of what rows describe: of their equalities, and of inequalities that are never strict.

    That an inequality is never strict is shown by multipliers of rows, and that there are no others by a point.
    """
    implied, proved = _never_strict(rows, program)
    chosen = np.flatnonzero(rows.equality).tolist() + implied
    equations = [rows.row(i) | {ONE: rows.side(i)} for i in chosen]
    auxiliary = range(rows.scored, rows.columns)
    elimination = Elimination([*auxiliary, *reversed(range(rows.scored))])
    independent: list[Mapping[int, Any]] = [row for row in equations if elimination.add(row)]
    of_parts = {pivot: row for pivot, row in elimination.rows.items() if pivot < rows.scored}
    # Where there are no auxiliary variables, equations are shown as they were declared.
    shown = list(of_parts.values()) if rows.auxiliary else independent
    return _described(of_parts, shown, rows.scored, tuple(implied), PROOF if proved and rows.exact else ROUNDING)


def hull_of_points(points: np.ndarray, equations: Sequence[Equation] = ()) -> AffineHull:
    """The affine hull of points of integers; equations that are known already are shown as they are."""
    differences = Elimination(range(points.shape[1]))
    for point in points[1:]:
        differences.add({j: int(v) for j, v in enumerate((point - points[0]).tolist()) if v})
        if len(differences.rows) == points.shape[1]:
            break
    # Each column without a pivot is free in the orthogonal complement: one equation for each.
    found = []
    for column in range(points.shape[1]):
        if column not in differences.rows:
            row = {column: Fraction(1)} | {p: -r[column] for p, r in differences.rows.items() if column in r}
            found.append(row | {ONE: sum((a * int(points[0, j]) for j, a in row.items()), Fraction(0))})
    known = Elimination(reversed(range(points.shape[1])))
    told: list[Mapping[int, Any]] = [{**e.coefficients, ONE: e.side} for e in equations]
    shown = [row for row in [*told, *found] if known.add(row)]
    return _described(known.rows, shown, points.shape[1], (), EXHAUSTIVE)


def _described(
    reduced: Mapping[int, Mapping[int, Fraction]],
    shown: Iterable[Mapping[int, Any]],
    scored: int,
    implied: tuple[int, ...],
    known: str,
) -> AffineHull:
    of_part: dict[int, tuple[tuple[int, Fraction], ...]] = {j: ((j, Fraction(1)),) for j in range(scored)}
    for pivot, row in reduced.items():
        terms = {j: -a for j, a in row.items() if j not in (pivot, ONE)}
        if row.get(ONE):
            terms[ONE] = row[ONE]
        of_part[pivot] = tuple(sorted(terms.items()))
    fixed = {j: dict(t).get(ONE, Fraction(0)) for j, t in of_part.items() if all(k == ONE for k, _ in t)}
    groups: dict[tuple[tuple[int, Fraction], ...], list[int]] = {}
    for j, terms_of in of_part.items():
        if j not in fixed:
            groups.setdefault(terms_of, []).append(j)
    equal = tuple(tuple(g) for g in groups.values() if len(g) > 1)
    return AffineHull(
        scored - len(reduced),
        tuple(_in_integers(r) for r in shown),
        implied,
        fixed,
        equal,
        known,
        {p: dict(of_part[p]) for p in reduced},
    )


def _in_integers(row: Mapping[int, Any]) -> Equation:
    fractions = {j: Fraction(a) for j, a in row.items()}
    scale = math.lcm(*(a.denominator for a in fractions.values()))
    whole = {j: int(a * scale) for j, a in fractions.items()}
    divisor = math.gcd(*whole.values()) or 1
    columns = sorted(j for j in whole if j != ONE and whole[j])
    signs = sum(1 if whole[j] > 0 else -1 for j in columns)
    sign = -1 if signs < 0 or (signs == 0 and columns and whole[columns[0]] < 0) else 1
    return Equation({j: sign * whole[j] // divisor for j in columns}, sign * whole.get(ONE, 0) // divisor)


def _never_strict(rows: Rows, program: LinearProgram) -> tuple[list[int], bool]:
    """The inequality rows that no point satisfies strictly, and whether both sides of that are proved.

    Of all multiples of points, which form a cone, one has room in as many rows as possible; in each by 1 if by any.
    """
    loose = np.flatnonzero(~rows.equality)
    if len(loose) == 0:
        return [], rows.exact
    columns = rows.columns
    sides = sp.csr_array(rows.sides[:, None])
    room = sp.eye_array(len(loose), format="csr")
    strict = sp.hstack([rows.matrix[loose], -sides[loose], room])
    held = sp.hstack(
        [rows.matrix[rows.equality], -sides[rows.equality], sp.csr_array((int(rows.equality.sum()), len(loose)))]
    )
    bounds = [(None, None)] * columns + [(1.0, None)] + [(0.0, 1.0)] * len(loose)
    result = scipy.optimize.linprog(
        np.concatenate([np.zeros(columns + 1), -np.ones(len(loose))]),
        A_ub=strict,
        b_ub=np.zeros(len(loose)),
        A_eq=held if held.shape[0] else None,
        b_eq=np.zeros(held.shape[0]) if held.shape[0] else None,
        bounds=bounds,
        method="highs",
    )
    if result.status != 0:
        raise ValueError("the rows have no point, or too large numbers to find one")
    tight = loose[result.x[columns + 1 :] < STRICT]
    proved = _is_inside(rows, result.x[: columns + 1], np.setdiff1d(loose, tight))
    for i in tight.tolist():
        objective = -rows.matrix[[i]].toarray()[0]
        best = program.maximize(objective)
        bound = None if best is None else proved_bound(rows, objective, best.multipliers)
        proved &= bound == -rows.side(i)
    return tight.tolist(), proved


def _is_inside(rows: Rows, multiple: np.ndarray, strict: np.ndarray) -> bool:
    """Whether a multiple of a point, read as fractions, satisfies all rows, and some of them strictly."""
    for scale in (1.0, 1.0 / multiple[-1]):
        found = read_together(multiple * scale)
        if found is None or found[0][-1] <= 0:
            continue
        point, unit = found[0][:-1], int(found[0][-1])
        slack = rows.slacks(point, unit)
        if slack is not None and (slack[rows.equality] == 0).all() and (slack[~rows.equality] >= 0).all():
            return bool((slack[strict] > 0).all())
    return False


def section_of(hull: AffineHull, rows: Rows | None, parts: tuple[str, ...], what: str) -> Section:
    """What the affine hull says, in words."""
    size = len(parts)
    told = [Statement(f"{what} has dimension {hull.dimension} in {size} part{'s' * (size != 1)}", hull.known)]
    texts = [e.text(parts) for e in hull.equations if len(e.coefficients) > 1]  # fixed parts are told below
    if texts:
        more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        told.append(Statement(f"all points satisfy {'; '.join(texts[:SHOWN])}{more}", hull.known))
    if hull.implied and rows is not None:
        named = "; ".join(rows.named(hull.implied))
        told.append(Statement(f"inequalities that always hold as equalities: {named}", hull.known))
    if hull.fixed:
        told.append(
            Statement(
                f"fixed parts: {_listed([f'{parts[j]} = {_value(v)}' for j, v in hull.fixed.items()])}", hull.known
            )
        )
    for group in hull.equal[:SHOWN]:
        told.append(Statement(f"always equal: {' = '.join(parts[j] for j in group)}", hull.known))
    facts = {
        "dimension": hull.dimension,
        "equations": [e.text(parts) for e in hull.equations],
        "implied_equalities": [] if rows is None else rows.named(hull.implied),
        "fixed": {parts[j]: str(v) for j, v in hull.fixed.items()},
        "always_equal": [[parts[j] for j in group] for group in hull.equal],
    }
    return Section("Dimension", tuple(told), facts)


def _value(value: Fraction) -> str:
    return str(value) if value.denominator < LARGEST else f"{float(value):g}"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
