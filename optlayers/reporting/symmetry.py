"""Parts that do not depend on each other, and parts that may change places."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from optlayers.reporting.rows import Rows
from optlayers.reporting.statement import PROOF, Section, Statement

__all__ = ["interchangeable", "section_of"]

SHOWN = 6
MOST = 200
"""Swaps are tried between so many parts at most."""


def section_of(rows: Rows) -> Section:
    """Independent blocks and swaps, in words; of the rows as they are declared."""
    size = rows.scored
    pattern = sp.csr_array((np.ones(rows.matrix.nnz), rows.matrix.indices, rows.matrix.indptr), rows.matrix.shape)
    graph = sp.block_array([[None, pattern], [pattern.T, None]], format="csr")
    _, label = sp.csgraph.connected_components(graph, directed=False)
    of_part = label[rows.count : rows.count + size]
    blocks = [np.flatnonzero(of_part == k).tolist() for k in np.unique(of_part)]
    told = [Statement(_sizes(blocks), PROOF)] if len(blocks) > 1 else []
    if len(blocks) == 1:
        told.append(Statement("all parts depend on each other: there is one block", PROOF))
    groups = interchangeable(rows)
    if groups is not None:
        swapped = [g for g in groups if len(g) > 1]
        text = (
            "no two parts may change places"
            if not swapped
            else "parts that may change places: "
            + "; ".join(
                "{" + ", ".join(rows.parts[j] for j in g[:SHOWN]) + (", …" if len(g) > SHOWN else "") + "}"
                for g in swapped[:SHOWN]
            )
        )
        told.append(Statement(text, PROOF))
    facts = {
        "blocks": [[rows.parts[j] for j in block] for block in blocks],
        "interchangeable": None if groups is None else [[rows.parts[j] for j in g] for g in groups if len(g) > 1],
    }
    return Section("Blocks and symmetries", tuple(told), facts)


def _sizes(blocks: list[list[int]]) -> str:
    sizes = [len(block) for block in blocks]
    shown = ", ".join(map(str, sizes[:8])) + (", …" if len(sizes) > 8 else "")
    return f"there are {len(blocks)} independent blocks, of {shown} parts"


def interchangeable(rows: Rows) -> list[list[int]] | None:
    """Classes of parts of which any two may change places: the rows are the same afterwards, in another order.

    None where rows have auxiliary variables, or where there are too many parts. Other symmetries (of rows of a matrix,
    say) are not looked for.
    """
    if rows.auxiliary or rows.scored > MOST or not rows.exact:
        return None
    all_rows = {_key(rows, i): i for i in range(rows.count)}
    by_part: list[list[int]] = [[] for _ in range(rows.scored)]
    for i in range(rows.count):
        for j in rows.row(i):
            by_part[j].append(i)
    classes: list[list[int]] = []
    for part in range(rows.scored):
        for mine in classes:
            one = mine[0]  # swaps with one of a class are swaps with all of it
            if all(_key(rows, i, one, part) in all_rows for i in {*by_part[one], *by_part[part]}):
                mine.append(part)
                break
        else:
            classes.append([part])
    return classes


def _key(rows: Rows, index: int, one: int = 0, other: int = 0) -> tuple[object, ...]:
    swap = {one: other, other: one}
    entries = sorted((swap.get(j, j), a) for j, a in rows.row(index).items())
    side = int(rows.whole_sides[index])
    if rows.equality[index] and entries and entries[0][1] < 0:
        entries, side = [(j, -a) for j, a in entries], -side
    return bool(rows.equality[index]), tuple(entries), side
