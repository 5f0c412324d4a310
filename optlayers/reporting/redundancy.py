"""Rows that say nothing new: those that repeat another one, and those that the others imply."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np

from optlayers.reporting.affine_hull import AffineHull
from optlayers.reporting.linear_program import LinearProgram, Optimum, basis_point, proved_bound
from optlayers.reporting.rationals import Elimination, read_together
from optlayers.reporting.rows import Rows
from optlayers.reporting.statement import LEFT_OUT, PROOF, ROUNDING, Section, Statement

__all__ = ["Redundancy", "redundancy_of", "section_of"]

WITHIN = 1e-7
"""A row that the others keep to within so much of its right-hand side is implied by them, to rounding."""


@final
@dataclass(frozen=True)
class Redundancy:
    """What may be left out: all of these rows together, and the rest describes the same set."""

    duplicates: tuple[tuple[int, int], ...]
    """Rows, and the row that says as much or more in the same direction."""
    redundant: tuple[int, ...]
    dependent: tuple[int, ...]
    """Equalities that others imply."""
    proved: bool
    needed: bool
    """Whether points prove of all others that they cannot be left out."""
    open: int
    """How many rows nobody looked at, for want of time."""

    @property
    def dropped(self) -> set[int]:
        """All rows that may be left out together."""
        return {*self.redundant, *self.dependent, *(i for i, _ in self.duplicates)}


def redundancy_of(rows: Rows, program: LinearProgram, late: Callable[[], bool]) -> Redundancy:
    """Look at every row, the last one first; what is found is left out of the next question."""
    duplicates, dropped = _duplicates(rows), set[int]()
    dropped |= {i for i, _ in duplicates}
    dependent = _dependent(rows) if rows.exact else []
    for i in dropped:
        program.bound_row(i, None)
    redundant: list[int] = []
    proved, needed, left = rows.exact, rows.exact, 0
    order = [i for i in range(rows.count - 1, -1, -1) if not rows.equality[i] and i not in dropped]
    for place, i in enumerate(order):
        if late():
            left = len(order) - place
            break
        side = float(rows.sides[i])
        further = side + 1.0 + abs(side)
        program.bound_row(i, further)
        objective = rows.matrix[[i]].toarray()[0]
        best = program.maximize(objective)
        bound = None
        is_needed = best is None or best.value > side + WITHIN * (1.0 + abs(side))
        shown = is_needed and best is not None and _shows_need(rows, program, i, best, further, {*dropped, *redundant})
        if not is_needed:
            program.bound_row(i, None)
            best = program.maximize(objective)  # by the others alone, whose multipliers are the proof
            bound = None if best is None else proved_bound(rows, objective, best.multipliers)
            # What is too little to be told from rounding is told by fractions.
            shown = best is not None and _shows_need(rows, program, i, best, further, {*dropped, *redundant})
            is_needed = shown or (bound is not None and bound > rows.side(i))
        if is_needed:
            program.restore(i)
            needed &= shown
            continue
        redundant.append(i)
        proved &= bound is not None
    for i in [*dropped, *redundant]:
        program.restore(i)
    return Redundancy(tuple(duplicates), tuple(sorted(redundant)), tuple(dependent), proved, needed, left)


def _shows_need(rows: Rows, program: LinearProgram, row: int, best: Optimum, further: float, dropped: set[int]) -> bool:
    """Whether a point of fractions violates one row and satisfies all that are left: the best one for the row when its
    right-hand side is ``further`` away, read as short fractions or from its basis."""
    for by_basis in (False, True):
        found = basis_point(rows, program, best, {row: Fraction(further)}) if by_basis else read_together(best.point)
        slack = None if found is None else rows.slacks(*found)
        if slack is None:
            continue
        satisfied = np.where(rows.equality, slack == 0, slack >= 0)
        satisfied[[*dropped, row]] = True
        if satisfied.all() and slack[row] < 0:
            return True
    return False


def _duplicates(rows: Rows) -> list[tuple[int, int]]:
    """Inequalities of one direction, of which the narrowest one says all; and equalities that are written twice."""
    seen: dict[tuple[object, ...], int] = {}
    found: list[tuple[int, int]] = []
    for i in range(rows.count):
        columns, direction, mine = _direction(rows, i)
        if not columns:
            continue
        key = (bool(rows.equality[i]), columns, direction)
        other = seen.setdefault(key, i)
        if other == i:
            continue
        kept = _direction(rows, other)[2]
        if rows.equality[i]:
            if mine == kept:
                found.append((i, other))
        elif mine >= kept:
            found.append((i, other))
        else:
            seen[key] = i
            found = [(a, i if b == other else b) for a, b in found] + [(other, i)]
    return sorted(found)


def _direction(rows: Rows, i: int) -> tuple[tuple[int, ...], tuple[float, ...], Fraction | float]:
    """The columns of a row; its entries by their common divisor, or by the largest one where they are no integers; and
    its right-hand side by the same."""
    span = slice(rows.matrix.indptr[i], rows.matrix.indptr[i + 1])
    columns, data, side = rows.matrix.indices[span].tolist(), rows.matrix.data[span].tolist(), float(rows.sides[i])
    if not columns:
        return (), (), side
    sign = -1 if rows.equality[i] and data[0] < 0 else 1
    if rows.exact:
        whole = [int(v) for v in data]
        unit = sign * math.gcd(*whole)
        return tuple(columns), tuple(v // unit for v in whole), Fraction(int(side), unit)
    largest = sign * max(map(abs, data))
    return tuple(columns), tuple(round(v / largest, 12) for v in data), side / largest


def _dependent(rows: Rows) -> list[int]:
    elimination = Elimination(range(rows.columns))
    return [i for i in np.flatnonzero(rows.equality).tolist() if not elimination.add(rows.row(i))]


def section_of(found: Redundancy, rows: Rows, hull: AffineHull, is_relaxation: bool) -> Section:
    """What may be left out, in words. Inequalities that always hold as equalities are no facets."""
    told = []
    known = PROOF if found.proved else ROUNDING
    pairs = [(i, j) for i, j in found.duplicates if i not in found.dependent]
    for i, j in pairs[:6]:
        told.append(
            Statement(
                f"{rows.name(i)}, row {rows.text(i)}, says no more than {rows.name(j)}, row {rows.text(j)}", known
            )
        )
    if len(pairs) > 6:
        told.append(Statement(f"and {len(pairs) - 6} more such pairs", known))
    if found.redundant:
        named = "; ".join(rows.named(found.redundant))
        told.append(Statement(f"redundant, as the other rows imply them: {named}", known))
    if found.dependent:
        named = "; ".join(rows.named(found.dependent))
        told.append(Statement(f"equalities that follow from the others: {named}", PROOF))
    if not told:
        what = "no row can be left out" if not found.open else "none of the rows that were looked at can be left out"
        told.append(Statement(what, PROOF if found.needed else ROUNDING))
    elif not found.open:
        told.append(Statement("none of the other rows can be left out", PROOF if found.needed else ROUNDING))
    if found.open:
        told.append(
            Statement(
                f"{found.open} row{'s were' if found.open > 1 else ' was'} not looked at, for want of time", LEFT_OUT
            )
        )
    facets = None
    if not rows.auxiliary and not found.open:
        # A row that cannot be left out, and is sometimes strict, is a facet, and each facet has such a row.
        facets = sum(
            not rows.equality[i] and i not in found.dropped and i not in hull.implied for i in range(rows.count)
        )
        known = PROOF if found.needed and found.proved and hull.known == PROOF else ROUNDING
        whose = "the relaxation has" if is_relaxation else "there are"
        count = f"{facets} facets, one for each inequality that is left" if facets != 1 else "1 facet"
        told.append(Statement(f"{whose} {count}".replace("there are 1 facet", "there is 1 facet"), known))
    facts = {
        "facets_of_rows": facets,
        "duplicates": [[rows.text(i), rows.text(j)] for i, j in found.duplicates],
        "redundant": rows.named(found.redundant),
        "redundant_rows": [rows.text(i) for i in found.redundant],
        "dependent": rows.named(found.dependent),
    }
    return Section("Rows that may be left out", tuple(told), facts)
