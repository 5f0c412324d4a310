"""Parts that do not depend on each other, and parts that may change places."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from optlayers.reporting.affine_hull import ONE, AffineHull
from optlayers.reporting.rationals import Elimination
from optlayers.reporting.redundancy import Redundancy
from optlayers.reporting.rows import Rows
from optlayers.reporting.statement import PROOF, ROUNDING, Section, Statement

__all__ = ["CanonicalRows", "blocks_of", "canonical_rows", "interchangeable", "section_of"]

SHOWN = 6
MOST = 200
"""Swaps are tried between so many parts at most."""
DENSE = 2000
"""Equations are taken out of each other for so many columns at most."""
Key = tuple[tuple[int, int], ...]


@final
@dataclass(frozen=True)
class CanonicalRows:
    """What describes a set in one way only: its equations, each solved for a variable, and its facets without these.

    A set is a product of two sets exactly where no equation and no facet has variables of both.
    """

    equations: Elimination
    facets: tuple[Key, ...]
    """Integers by their columns, and the right-hand side under -1."""


def canonical_rows(rows: Rows, hull: AffineHull, redundant: Redundancy) -> CanonicalRows:
    """The rows that are left when redundant ones are dropped, with the equations taken out of the inequalities."""
    equations = Elimination(range(rows.columns))
    for i in range(rows.count):
        if rows.equality[i] or i in hull.implied:
            equations.add(rows.row(i) | {ONE: rows.side(i)})
    left = [i for i in range(rows.count) if not rows.equality[i] and i not in {*hull.implied, *redundant.dropped}]
    return CanonicalRows(equations, tuple(_key(equations.rest_of(rows.row(i) | {ONE: rows.side(i)})) for i in left))


def blocks_of(canonical: CanonicalRows, columns: int) -> list[list[int]]:
    """Columns that equations and facets do not connect. A fixed one is alone."""
    leader = list(range(columns))

    def find(j: int) -> int:
        while leader[j] != j:
            leader[j] = leader[leader[j]]
            j = leader[j]
        return j

    for row in [*(r.keys() for r in canonical.equations.rows.values()), *(dict(k).keys() for k in canonical.facets)]:
        connected = [j for j in row if j != ONE]
        for j in connected[1:]:
            leader[find(j)] = find(connected[0])
    blocks: dict[int, list[int]] = {}
    for j in range(columns):
        blocks.setdefault(find(j), []).append(j)
    return list(blocks.values())


def interchangeable(
    rows: Rows, canonical: CanonicalRows, fixed: Mapping[int, Fraction], late: Callable[[], bool]
) -> list[list[int]] | None:
    """Classes of parts of which any two may change places: equations and facets are the same afterwards.

    None where rows have auxiliary variables, too many parts, or there is no time. Parts that are fixed are left out;
    other symmetries (of rows of a matrix, say) are not looked for.
    """
    if rows.auxiliary or rows.scored > MOST or not rows.exact:
        return None
    facets, equations = set(canonical.facets), canonical.equations
    by_part: list[list[Key]] = [[] for _ in range(rows.scored)]
    for key in canonical.facets:
        for j, _ in key:
            if j != ONE:
                by_part[j].append(key)
    held = [{pivot, *row} - {ONE} for pivot, row in equations.rows.items()]

    def may(one: int, other: int) -> bool:
        swap = {one: other, other: one}
        for place, (pivot, row) in enumerate(equations.rows.items()):
            del pivot
            if held[place] & {one, other} and equations.rest_of({swap.get(j, j): a for j, a in row.items()}):
                return False
        touched = {*by_part[one], *by_part[other]}
        return all(_key(equations.rest_of({swap.get(j, j): a for j, a in key})) in facets for key in touched)

    classes: list[list[int]] = []
    for part in range(rows.scored):
        if part in fixed:
            continue
        for mine in classes:
            if late():
                return None
            if may(mine[0], part):  # swaps with one of a class are swaps with all of it
                mine.append(part)
                break
        else:
            classes.append([part])
    return classes


def _key(row: Mapping[int, Fraction]) -> Key:
    """A row in its smallest integers."""
    scale = math.lcm(*(a.denominator for a in row.values())) if row else 1
    whole = {j: int(a * scale) for j, a in row.items() if a}
    divisor = math.gcd(*whole.values()) or 1
    return tuple(sorted((j, a // divisor) for j, a in whole.items()))


def section_of(
    rows: Rows, hull: AffineHull, redundant: Redundancy, late: Callable[[], bool], left_out: list[str]
) -> Section | None:
    """Independent blocks and swaps, in words; of the rows that are left when redundant ones are dropped."""
    if rows.columns > DENSE:
        left_out.append(f"blocks and symmetries: {rows.columns} variables are more than {DENSE}")
        return None
    canonical = canonical_rows(rows, hull, redundant)
    blocks = [[j for j in block if j < rows.scored] for block in blocks_of(canonical, rows.columns)]
    blocks = [block for block in blocks if block]
    free = [block for block in blocks if block[0] not in hull.fixed]
    same = PROOF if rows.exact and redundant.proved and hull.known == PROOF else ROUNDING
    # That there are no smaller blocks takes that no row is redundant that was kept.
    all_needed = same == PROOF and redundant.needed and not redundant.open and not rows.auxiliary
    told = []
    count = len(blocks) - len(free)
    if count:
        parts = "1 part is fixed" if count == 1 else f"{count} parts are fixed"
        told.append(Statement(f"{parts}, and depend{'s' * (count == 1)} on nothing", same))
    others = "the others" if count else "all parts"
    if len(free) > 1:
        which = "" if not count else " of the others"
        told.append(Statement(f"there are {len(free)} independent blocks{which}, {_sizes(free)}", same))
    elif len(free) == 1 and all_needed:
        told.append(Statement(f"{others} depend on each other: they form one block", PROOF))
    elif len(free) == 1:
        told.append(Statement(f"the rows that are left connect {others} to one block", ROUNDING))
    groups = interchangeable(rows, canonical, hull.fixed, late)
    if groups is not None:
        swapped = [g for g in groups if len(g) > 1]
        none = "no two parts may change places" if all_needed else "no swap of two parts was found in the rows"
        text = (
            f"{none}; other symmetries are not looked for"
            if not swapped
            else "parts that may change places: "
            + "; ".join(
                "{" + ", ".join(rows.parts[j] for j in g[:SHOWN]) + (", …" if len(g) > SHOWN else "") + "}"
                for g in swapped[:SHOWN]
            )
            + (f" and {len(swapped) - SHOWN} more such sets" if len(swapped) > SHOWN else "")
        )
        told.append(Statement(text, same if swapped or all_needed else ROUNDING))
    elif rows.auxiliary == 0 and rows.exact:
        why = f"more than {MOST} parts" if rows.scored > MOST else "for want of time"
        left_out.append(f"parts that may change places: {why}")
    facts = {
        "blocks": [[rows.parts[j] for j in block] for block in blocks],
        "interchangeable": None if groups is None else [[rows.parts[j] for j in g] for g in groups if len(g) > 1],
    }
    return Section("Blocks and symmetries", tuple(told), facts)


def _sizes(blocks: list[list[int]]) -> str:
    sizes = [len(block) for block in blocks]
    if len(set(sizes)) == 1:
        return f"of {sizes[0]} part{'s' * (sizes[0] != 1)} each"
    return "of " + ", ".join(map(str, sizes[:8])) + (", …" if len(sizes) > 8 else "") + " parts"
