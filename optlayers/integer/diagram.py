"""Decision diagrams: all integer points of some rows, as the paths of a small graph.

Columns are decided one after the other. What is left of a row after some of them is a number, its activity so far; two
choices of values that leave the same numbers have the same completions, and meet in one node. An activity that the
columns to come cannot bring beyond a side of its row says nothing more, so it is replaced by the least number of which
that is true (Behle, Binary decision diagrams and integer programming, 2007). Nodes that nothing completes go, nodes
with the same completions are one, and a column that is 0 in all completions of a node is not asked (zero suppression:
Minato, 1993). Auxiliary columns are decided too, and then forgotten: a node stands for the set of all that may go with
the scored columns so far, so that a point is one path, whatever goes with it (the subset construction of Rabin and
Scott, 1959).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int64

from optlayers.caches import cached_property
from optlayers.integer.program import NO_LIMIT, IntegerProgram

__all__ = ["END", "NODE_LIMIT", "DecisionDiagram", "TooWide", "compiled_diagram"]

NODE_LIMIT = 500_000
"""So many nodes may be met before those that nothing completes are taken out."""
SHORT = 2**62
"""Keys of states that are below this are numbers."""
NUMBERS = 2**26
"""So many activities are in memory at once."""
END, NO_POINTS = -1, -2
"""In place of the column of the last node."""

Order = Int64[np.ndarray, " columns"]


@final
class TooWide(ValueError):
    """There are more nodes than the limit in every order that was tried; the message says where."""


@final
@dataclass(frozen=True, eq=False)
class DecisionDiagram:
    """A directed graph without cycles, of which every path from node 0 to the last node is a point, and each once.

    Node ``u`` decides the entry ``column[u]`` of the point: arc ``a``, for ``start[u] <= a < start[u + 1]``, gives it
    ``value[a]`` and leads to ``child[a]``, which comes later. Entries that no node on a path decides are 0. The last
    node decides nothing: its ``column`` is :data:`END`. Without any points there is one node alone, with
    :data:`NO_POINTS` for its column.
    """

    column: Int64[np.ndarray, " nodes"]
    start: Int64[np.ndarray, " nodes_and_1"]
    value: Int64[np.ndarray, " arcs"]
    child: Int64[np.ndarray, " arcs"]
    width: int
    """The most nodes of one column."""

    @property
    def empty(self) -> bool:
        """Whether there are no points."""
        return bool(self.column[-1] == NO_POINTS)

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.column)

    @cached_property
    def count(self) -> int:
        """How many points there are."""
        if self.empty:
            return 0
        completions = [0] * self.nodes
        completions[-1] = 1
        start, child = self.start.tolist(), self.child.tolist()
        for node in range(self.nodes - 2, -1, -1):
            completions[node] = sum(completions[c] for c in child[start[node] : start[node + 1]])
        return completions[0]

    @cached_property
    def depth(self) -> int:
        """The most columns that one path decides."""
        longest = np.zeros(self.nodes, dtype=np.int64)
        for node in range(self.nodes - 2, -1, -1):
            longest[node] = 1 + longest[self.child[self.start[node] : self.start[node + 1]]].max()
        return int(longest[0])


def compiled_diagram(program: IntegerProgram, limit: int = NODE_LIMIT) -> DecisionDiagram:
    """The diagram of an integer program, of several orders of its columns the one with the fewest nodes.

    Raises
    ------
    TooWide : when every order needs more than ``limit`` nodes.
    """
    if program.is_empty:
        return _without_points()
    if program.columns == 0:
        possible = bool(((program.low <= 0) & (program.high >= 0)).all())
        return _of_one_point() if possible else _without_points()
    best: DecisionDiagram | None = None
    widest: TooWide | None = None
    most = limit
    for order in _orders(program):
        try:
            found = _in_order(program, order, most)
        except TooWide as error:
            widest = widest or error
            continue
        if best is None or found.nodes < best.nodes:
            best = found
        most = min(most, 4 * best.nodes)
        if best.empty:
            return best
    if best is None:
        assert widest is not None
        raise widest
    return best


def _without_points() -> DecisionDiagram:
    nothing = np.zeros(0, dtype=np.int64)
    return DecisionDiagram(np.full(1, NO_POINTS), np.zeros(2, dtype=np.int64), nothing, nothing, 0)


def _of_one_point() -> DecisionDiagram:
    nothing = np.zeros(0, dtype=np.int64)
    return DecisionDiagram(np.full(1, END), np.zeros(2, dtype=np.int64), nothing, nothing, 1)


def _orders(program: IntegerProgram) -> Iterator[Order]:
    """As declared, with auxiliary columns beside what they share rows with; and by the bandwidth of the rows."""
    rows = program.rows
    pattern = sp.csc_array((np.ones(rows.nnz), rows.indices, rows.indptr), shape=rows.shape)
    count = program.columns
    natural = _beside_scored(pattern, program.scored)
    seen = [natural]
    yield natural
    if rows.nnz == 0:
        return
    graph = sp.csr_array(pattern.T @ pattern)
    cuthill = sp.csgraph.reverse_cuthill_mckee(graph, symmetric_mode=True).astype(np.int64)
    for order in (cuthill, cuthill[::-1].copy(), _by_rows(pattern), np.arange(count)):
        if not any(np.array_equal(order, other) for other in seen):
            seen.append(order)
            yield order


def _beside_scored(pattern: sp.csc_array, scored: int) -> Order:
    """Scored columns as they come; an auxiliary column stands where the mean of those is that it shares rows with."""
    count = pattern.shape[1]
    place = np.full(count, np.nan)
    place[:scored] = np.arange(scored)
    by_row = sp.csr_array(pattern)
    for _ in range(count):
        open_columns = np.flatnonzero(np.isnan(place))
        if len(open_columns) == 0:
            break
        known = ~np.isnan(place)
        sums = by_row @ np.where(known, np.nan_to_num(place), 0.0)
        counts = by_row @ known.astype(float)
        mine = pattern[:, open_columns]
        total, weight = mine.T @ sums, mine.T @ counts
        if not (weight > 0).any():
            place[open_columns] = scored
            break
        reached = weight > 0
        place[open_columns[reached]] = total[reached] / weight[reached]
    return np.argsort(place, kind="stable").astype(np.int64)


def _by_rows(pattern: sp.csc_array) -> Order:
    """Row after row, the columns that are new in it."""
    by_row = sp.csr_array(pattern)
    _, first = np.unique(by_row.indices, return_index=True)
    seen = by_row.indices[np.sort(first)].astype(np.int64)
    rest = np.setdiff1d(np.arange(pattern.shape[1]), seen)
    return np.concatenate([seen, rest])


@final
@dataclass
class _Layer:
    """One column: from states before it to states behind it; -1 for a value that a state cannot take."""

    column: int
    values: Int64[np.ndarray, " values"]
    child: Int64[np.ndarray, "states values"]


def _in_order(program: IntegerProgram, order: Order, limit: int) -> DecisionDiagram:
    layers, last = _layers(program, order, limit)
    if last == 0 or not _take_out_dead_ends(layers):
        return _without_points()
    if program.scored < program.columns:
        layers = _forget_auxiliary(layers, program.scored, limit)
    return _joined(layers)


def _layers(program: IntegerProgram, order: Order, limit: int) -> tuple[list[_Layer], int]:
    """States that some choice of values leads to, column after column, and how many there are in the end."""
    rows = program.rows
    least, most = program.lower, program.upper
    to_come_low, to_come_high = np.zeros(rows.shape[0], np.int64), np.zeros(rows.shape[0], np.int64)
    ends = np.full(rows.shape[0], -1)
    for place, j in enumerate(order.tolist()):
        span = slice(int(rows.indptr[j]), int(rows.indptr[j + 1]))
        i, a = rows.indices[span], rows.data[span]
        to_come_low[i] += np.minimum(a * least[j], a * most[j])
        to_come_high[i] += np.maximum(a * least[j], a * most[j])
        ends[i] = place
    if ((to_come_low > program.high) | (to_come_high < program.low)).any():
        return [], 0
    open_rows = np.zeros(0, dtype=np.int64)
    states = np.zeros((1, 0), dtype=np.int64)
    layers: list[_Layer] = []
    nodes = 1
    for place, j in enumerate(order.tolist()):
        span = slice(int(rows.indptr[j]), int(rows.indptr[j + 1]))
        mine, entries = rows.indices[span].astype(np.int64), rows.data[span]
        mine, entries = mine[entries != 0], entries[entries != 0]
        new = np.setdiff1d(mine, open_rows)
        if len(new):
            open_rows = np.concatenate([open_rows, new])
            states = np.concatenate([states, np.zeros((len(states), len(new)), np.int64)], axis=1)
        sorter = np.argsort(open_rows)
        where = sorter[np.searchsorted(open_rows, mine, sorter=sorter)]
        to_come_low[mine] -= np.minimum(entries * least[j], entries * most[j])
        to_come_high[mine] -= np.maximum(entries * least[j], entries * most[j])
        wide = len(states) * int(most[j] - least[j] + 1)
        if wide > 2 * limit or wide * max(1, len(open_rows)) > NUMBERS:
            raise _too_wide(program, open_rows, place, wide, limit)
        values = np.arange(least[j], most[j] + 1)
        moved = np.repeat(states[:, None, :], len(values), axis=1)
        moved[:, :, where] += values[None, :, None] * entries[None, None, :]
        moved = moved.reshape(len(states) * len(values), len(open_rows))
        high = program.high[open_rows] - to_come_low[open_rows]  # an activity above it is too much already,
        low = program.low[open_rows] - to_come_high[open_rows]  # and one below this can no more become enough
        possible = ((moved <= high) & (moved >= low)).all(axis=1)
        # Where no completion can go wrong, one number stands for all.
        enough, sure = (
            program.high[open_rows] - to_come_high[open_rows],
            program.low[open_rows] - to_come_low[open_rows],
        )
        one_sided_high, one_sided_low = program.low[open_rows] <= -NO_LIMIT, program.high[open_rows] >= NO_LIMIT
        if one_sided_high.any():
            moved[:, one_sided_high] = np.maximum(moved[:, one_sided_high], enough[one_sided_high])
        if one_sided_low.any():
            moved[:, one_sided_low] = np.minimum(moved[:, one_sided_low], sure[one_sided_low])
        both = ~(one_sided_high | one_sided_low) & (sure <= enough)
        if both.any():
            inside = (moved[:, both] >= sure[both]) & (moved[:, both] <= enough[both])
            moved[:, both] = np.where(inside, sure[both], moved[:, both])
        stays = ends[open_rows] > place
        moved, open_rows = moved[:, stays], open_rows[stays]
        child = np.full(len(moved), -1)
        alive = np.flatnonzero(possible)
        if len(alive) == 0:
            return [], 0
        states, child[alive] = _distinct(moved[alive])
        nodes += len(states)
        if nodes > limit:
            raise _too_wide(program, open_rows, place, len(states), limit)
        layers.append(_Layer(int(j), values, child.reshape(-1, len(values))))
    return layers, len(states)


def _too_wide(program: IntegerProgram, open_rows: np.ndarray, place: int, width: int, limit: int) -> TooWide:
    names = list(dict.fromkeys(program.names[i] for i in open_rows.tolist()))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return TooWide(
        f"the decision diagram needs more than {limit} nodes: after {place + 1} of {program.columns} columns it is "
        f"{width} wide, with {len(open_rows)} open constraints: {shown}. Coarser coefficients, fewer constraints "
        "across far columns, or another order of the parts make it narrower"
    )


def _distinct(states: Int64[np.ndarray, "states rows"]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, and which of them every row is."""
    if states.shape[1] == 0:
        return states[:1], np.zeros(len(states), dtype=np.int64)
    least = states.min(axis=0)
    spread = (states.max(axis=0) - least + 1).tolist()
    total = 1
    for length in spread:
        total *= length
    if total < SHORT:
        key = np.zeros(len(states), dtype=np.int64)
        for k, length in enumerate(spread):
            key *= length
            key += states[:, k] - least[k]
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
    else:
        wide = np.ascontiguousarray(states).view(np.dtype((np.void, states.dtype.itemsize * states.shape[1]))).ravel()
        _, first, which = np.unique(wide, return_index=True, return_inverse=True)
    return states[first], which.reshape(-1)


def _take_out_dead_ends(layers: Sequence[_Layer]) -> bool:
    """Renumber what can be completed, from the end; False where that is nothing."""
    alive = np.ones(1, dtype=bool)
    for place, layer in enumerate(reversed(layers)):
        if place > 0:
            number = np.where(alive, np.cumsum(alive) - 1, -1)
            layer.child = np.where(layer.child >= 0, number[layer.child], -1)
        alive = np.asarray((layer.child >= 0).any(axis=1))
        layer.child = layer.child[alive]
    return bool(alive.all()) and len(alive) > 0


def _forget_auxiliary(layers: Sequence[_Layer], scored: int, limit: int) -> list[_Layer]:
    """Layers of scored columns alone, whose states are sets of states."""
    sets = [np.zeros(1, dtype=np.int64)]
    made: list[_Layer] = []
    nodes = 1
    for layer in layers:
        widths = len(layer.values)
        if layer.column >= scored:
            sets, again = _closed([np.unique(c[c >= 0]) for c in (layer.child[s] for s in sets)])
            if made:
                made[-1].child = np.where(made[-1].child >= 0, again[made[-1].child], -1)
            continue
        moved = [layer.child[s] for s in sets]
        parts = [np.unique(m[:, v][m[:, v] >= 0]) for m in moved for v in range(widths)]
        there = np.array([len(p) > 0 for p in parts])
        sets, which = _closed([p for p in parts if len(p)])
        child = np.full(len(parts), -1)
        child[there] = which
        nodes += len(sets)
        if nodes > limit:
            raise TooWide(
                f"the decision diagram needs more than {limit} nodes once auxiliary variables are forgotten: declare "
                "auxiliary variables that the structure determines"
            )
        made.append(_Layer(layer.column, layer.values, child.reshape(-1, widths)))
    return made


def _closed(sets: Sequence[np.ndarray]) -> tuple[list[np.ndarray], Int64[np.ndarray, " sets"]]:
    """The distinct sets, and which of them every set is."""
    known: dict[bytes, int] = {}
    distinct: list[np.ndarray] = []
    which = np.empty(len(sets), dtype=np.int64)
    for k, one in enumerate(sets):
        key = one.tobytes()
        place = known.get(key)
        if place is None:
            place = known[key] = len(distinct)
            distinct.append(one)
        which[k] = place
    return distinct, which


def _joined(layers: Sequence[_Layer]) -> DecisionDiagram:
    """Nodes with the same arcs are one, from the end; nodes whose only arc gives 0 are not there."""
    # Numbers count from the end: 0 is the last node.
    columns: list[np.ndarray] = [np.full(1, END)]
    arcs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    number, total, width = np.zeros(1, dtype=np.int64), 1, 1
    for layer in reversed(layers):
        child = np.where(layer.child >= 0, number[layer.child], -1)
        table, which = _distinct(child)
        only = (table >= 0).sum(axis=1) == 1
        passes = only & (layer.values[(table >= 0).argmax(axis=1)] == 0)
        mine = np.where(passes, table.max(axis=1), -1)
        real = np.flatnonzero(~passes)
        mine[real] = total + np.arange(len(real))
        node, place = np.nonzero(table[real] >= 0)
        arcs.append((total + node, layer.values[place], table[real][node, place]))
        columns.append(np.full(len(real), layer.column))
        width = max(width, len(real))
        total += len(real)
        number = mine[which]
    column = np.concatenate(columns)[::-1].copy()
    if not arcs:
        return _of_one_point()
    source, value, child = (np.concatenate(part) for part in zip(*arcs, strict=True))
    last = total - 1
    # The root may be below nodes that were passed by; nothing else is unreachable but what belongs to no path from it.
    source, child = last - source, last - child
    order = np.lexsort((value, source))
    source, value, child = source[order], value[order], child[order]
    start = np.searchsorted(source, np.arange(total + 1))
    return DecisionDiagram(column, start, value, child, width)
