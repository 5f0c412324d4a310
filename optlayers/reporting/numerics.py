"""What may go wrong with the numbers of a declaration, and what to change."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from optlayers.reporting.linear_program import LinearProgram
from optlayers.reporting.rows import Rows, expression
from optlayers.reporting.statement import PROOF, ROUNDING, Section, Statement

__all__ = ["section_of"]

APART = 1e6
"""Coefficients of one row that are so far apart in size are worth a word."""
LARGE = 20.0
"""A coefficient that is so many times the others of its row looks like a big M."""
NEARLY, RANK = 1e-6, 1e-10
"""Rows are nearly dependent when a singular value of theirs is between these, next to the largest."""
DENSE = 1000
TIGHTER = 0.9
"""A big M is worth a word where it may be less than this times what it is."""


def section_of(rows: Rows, program: LinearProgram, dropped: Collection[int]) -> Section:
    """Warnings about scales, dependence and big-M rows. ``dropped`` are rows that say nothing new."""
    told: list[Statement] = []
    if not rows.exact:
        told.append(
            Statement(
                f"nothing is proved, as numbers of these rows are no fractions with small denominators: "
                f"{'; '.join(rows.named(rows.unread))}. A number such as 1/3 is read as one where it is given to full "
                "precision, or where its row is multiplied by 3; for a number such as π nothing helps",
                ROUNDING,
            )
        )
    large = _big_m(rows, program, dropped, told)
    for i in range(rows.count):
        span = slice(rows.matrix.indptr[i], rows.matrix.indptr[i + 1])
        sizes = np.abs(rows.matrix.data[span])
        if len(sizes) and sizes.max() > APART * sizes.min() and i not in large:
            told.append(
                Statement(
                    f"{rows.named([i])[0]} has coefficients from {sizes.min() / rows.units[i]:.3g} to "
                    f"{sizes.max() / rows.units[i]:.3g}: measure its variables in other units, so that they are of "
                    "similar size",
                    PROOF,
                )
            )
    equal = rows.matrix[rows.equality].toarray() if 1 < rows.equality.sum() <= DENSE else np.zeros((0, 1))
    if len(equal):
        length = np.linalg.norm(equal, axis=1, keepdims=True)
        singular = np.linalg.svd(equal / np.where(length > 0.0, length, 1.0), compute_uv=False)
        odd = singular[(singular < NEARLY * singular[0]) & (singular > RANK * singular[0])]
        if len(odd):
            told.append(
                Statement(
                    f"{len(odd)} equality row{'s are' if len(odd) > 1 else ' is'} nearly a combination of others (to "
                    f"{odd.min() / singular[0]:.1g}): leave it out, or give its numbers to full precision",
                    ROUNDING,
                )
            )
    warned = len(told)
    if not told:
        told.append(Statement("nothing is wrong with the scales of the rows, and no big M was found", ROUNDING))
    facts = {"warnings": [s.text for s in told[:warned]], "big_m": [rows.name(i) for i in large]}
    return Section("Numbers", tuple(told), facts)


def _big_m(
    rows: Rows, program: LinearProgram, dropped: Collection[int], told: list[Statement]
) -> dict[int, float | None]:
    """Rows with one large coefficient, which an indicator of 0 and 1 has: where it may be smaller, or the row go."""
    found: dict[int, float | None] = {}
    for i in np.flatnonzero(~rows.equality).tolist():
        span = slice(rows.matrix.indptr[i], rows.matrix.indptr[i + 1])
        columns, data = rows.matrix.indices[span], rows.matrix.data[span]
        if len(data) == 0:
            continue
        place = int(np.abs(data).argmax())
        others = np.delete(np.abs(data), place)
        rest, unit = float(others.max(initial=0.0)), float(rows.units[i])
        side = float(rows.sides[i])
        loose = len(others) == 0 or len(np.unique(np.abs(data))) == 1
        if i in dropped and abs(side) >= LARGE * np.abs(data).max() and loose:
            found[i] = None
            told.append(
                Statement(
                    f"{rows.named([i])[0]} has a bound of {side / unit:g}, which is never reached: leave it out",
                    ROUNDING,
                )
            )
            continue
        if rest == 0.0 or abs(data[place]) < LARGE * rest:
            continue
        if i in dropped:
            found[i] = None
            told.append(
                Statement(
                    f"{rows.named([i])[0]} is a big-M row (a coefficient of {abs(data[place]) / unit:g} beside "
                    f"{rest / unit:g}) that the other rows imply: leave it out",
                    ROUNDING,
                )
            )
            continue
        smaller = _smaller(rows, program, i, int(columns[place]), float(data[place]))
        if smaller is not None:
            coefficient, side = smaller
            entries = dict(zip(columns.tolist(), (data / unit).tolist(), strict=True))
            entries[int(columns[place])] = coefficient / unit
            found[i] = abs(coefficient) / unit
            has_auxiliary = bool((columns >= rows.scored).any())
            line = "" if has_auxiliary else f": {expression(entries, rows.parts)} <= {side / unit:g}"
            told.append(
                Statement(
                    f"{rows.named([i])[0]} is a big-M row: its coefficient of {abs(data[place]) / unit:g} may be "
                    f"{abs(coefficient) / unit:g}, which cuts off fractional points{line}",
                    ROUNDING,
                )
            )
    return found


def _smaller(rows: Rows, program: LinearProgram, row: int, column: int, value: float) -> tuple[float, float] | None:
    """A smaller coefficient of an indicator, and the right-hand side that goes with it; None where there is none.

    Where the indicator makes the row loose, the row may be as tight as what its other entries reach there.
    """
    unit = np.zeros(rows.columns)
    unit[column] = 1.0
    high, low = program.maximize(unit), program.maximize(-unit)
    if high is None or low is None or abs(high.value - 1.0) > 1e-7 or abs(low.value) > 1e-7:
        return None
    rest = rows.matrix[[row]].toarray()[0]
    rest[column] = 0.0
    loose_at = 1.0 if value < 0 else 0.0
    program.fix(column, loose_at)
    best = program.maximize(rest)
    program.free(column)
    if best is None:
        return None
    room = float(rows.sides[row]) - value * loose_at - best.value
    if room <= (1.0 - TIGHTER) * abs(value):
        return None
    side = float(rows.sides[row])
    return (value + room, side) if value < 0 else (value - room, side - room)
