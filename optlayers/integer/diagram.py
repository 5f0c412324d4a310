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
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int64

from optlayers.common.caches import cached_property
from optlayers.integer.program import NO_LIMIT, IntegerProgram
from optlayers.solvers.kernels import layers

__all__ = ["END", "NODE_LIMIT", "DecisionDiagram", "TooWide", "compiled_diagram"]

NODE_LIMIT = 1_000_000
"""So many nodes may be met before those that nothing completes are taken out."""
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
    def pairs(self) -> Int64[np.ndarray, " nodes_or_none"]:
        """For every node its child by 0, and its child by 1 in the upper half, where arcs have no other values; the
        number of nodes stands for no child. Else nothing."""
        if self.empty or ((self.value != 0) & (self.value != 1)).any():
            return np.zeros(0, dtype=np.int64)
        found = np.full((2, self.nodes), self.nodes)
        found[self.value, np.repeat(np.arange(self.nodes), np.diff(self.start))] = self.child
        pairs: np.ndarray = found[0] | (found[1] << np.int64(32))
        return pairs

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
    rows = program.rows.copy()
    rows.eliminate_zeros()
    program = replace(program, rows=rows)
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
    rows = program.rows
    start, row = rows.indptr.astype(np.int64), rows.indices.astype(np.int64)
    least, values = program.lower[order], program.upper[order] - program.lower[order] + 1
    ends = program.low, program.high, program.lower, program.upper
    what, place, width, begin, child = layers.build(order, start, row, rows.data, *ends, limit, NUMBERS, NO_LIMIT)
    if what in (layers.WIDE, layers.MANY_STATES):
        raise _too_wide(program, _open_rows(rows, order, place, what == layers.WIDE), place, width, limit)
    if what == layers.NOTHING_LEFT:
        return _without_points()
    if program.scored < program.columns:
        made = [
            _Layer(
                j,
                np.arange(least[k], least[k] + values[k]),
                child[begin[k] : begin[k + 1]].reshape(-1, values[k]).astype(int),
            )
            for k, j in enumerate(order.tolist())
        ]
        if not _take_out_dead_ends(made):
            return _without_points()
        made = _forget_auxiliary(made, program.scored, limit)
        if not made:
            return _of_one_point()
        order = np.array([layer.column for layer in made])
        least, values = program.lower[order], program.upper[order] - program.lower[order] + 1
        begin = np.concatenate([[0], np.cumsum([layer.child.size for layer in made])])
        child = np.concatenate([layer.child.ravel() for layer in made]).astype(np.int32)
        width = int(child[begin[-2] :].max()) + 1
    layer, begin, value, child, width = layers.join(begin, values, least, child, width)
    if len(layer) == 0:
        return _without_points()
    return DecisionDiagram(np.append(order, END)[layer], begin, value, child, width)


def _open_rows(rows: sp.csc_array, order: Order, place: int, before: bool) -> Int64[np.ndarray, " rows"]:
    """The rows that have columns up to a place and behind it, or right at it and ``before`` it is done, in the order in
    which they come."""
    columns = np.repeat(np.arange(rows.shape[1]), np.diff(rows.indptr))
    where = np.empty(len(order), np.int64)
    where[order] = np.arange(len(order))
    first, last = np.full(rows.shape[0], len(order)), np.full(rows.shape[0], -1)
    np.minimum.at(first, rows.indices, where[columns])
    np.maximum.at(last, rows.indices, where[columns])
    found = np.flatnonzero((first <= place) & (last >= place if before else last > place))
    return found[np.argsort(first[found], kind="stable")]


def _too_wide(program: IntegerProgram, open_rows: np.ndarray, place: int, width: int, limit: int) -> TooWide:
    names = list(dict.fromkeys(program.names[i] for i in open_rows.tolist()))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    among = f" with {len(open_rows)} open constraints: {shown}" if names else " without an open constraint"
    return TooWide(
        f"the decision diagram needs more than {limit} nodes: after {place + 1} of {program.columns} columns it is "
        f"{width} wide,{among}. Coarser coefficients, fewer constraints "
        "across far columns, or another order of the parts make it narrower"
    )


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
