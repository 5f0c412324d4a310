"""What contracts are crossed over: polytopes at small sizes with all of their structures, solvers, rules, losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

import optlayers as ol
import polytopes


@dataclass(frozen=True)
class Entry:
    """A polytope, all of its structures, and how many these should be by a closed formula.

    ``parameters`` are values of its parameters, ``declare`` is the function that declares it. Where auxiliary variables
    have scores too, structures are the vertices without these.
    """

    name: str
    polytope: ol.Polytope
    vertices: np.ndarray
    count: int
    parameters: dict[str, float]
    declare: Callable[..., ol.Polytope]

    def __repr__(self) -> str:
        return self.name

    @property
    def declared(self) -> Entry:
        """The entry without its oracle, so that general solvers answer."""
        return replace(self, name=f"{self.name}, declared", polytope=self.polytope.without_oracle())


def unit_vectors(size: int) -> Iterator[np.ndarray]:
    yield from np.eye(size)


def bits(*shape: int) -> Iterator[np.ndarray]:
    for values in itertools.product((0.0, 1.0), repeat=int(np.prod(shape))):
        yield np.array(values).reshape(shape)


def paths(steps: int, states: int) -> Iterator[np.ndarray]:
    for path in itertools.product(range(states), repeat=steps):
        edges = np.zeros((steps, states, states))
        for step, state in enumerate(path):
            edges[step, path[step - 1] if step else 0, state] = 1.0
        yield edges


def tags(steps: int, states: int) -> Iterator[np.ndarray]:
    yield from (np.eye(states)[list(path)] for path in itertools.product(range(states), repeat=steps))


def arc_paths(nodes: int, arcs: np.ndarray) -> Iterator[np.ndarray]:
    def onwards(node: int, used: tuple[int, ...]) -> Iterator[np.ndarray]:
        if node == nodes - 1:
            x = np.zeros(len(arcs))
            x[list(used)] = 1.0
            yield x
        for arc, (tail, head) in enumerate(arcs):
            if tail == node:
                yield from onwards(head, (*used, arc))

    yield from onwards(0, ())


def rankings(size: int) -> Iterator[np.ndarray]:
    for ranks in itertools.permutations(range(1, size + 1)):
        yield np.array(ranks, dtype=np.float64)


def trees(words: int, single_root: bool) -> Iterator[np.ndarray]:
    for heads in itertools.product(range(words + 1), repeat=words):
        if single_root and heads.count(0) != 1:
            continue
        if all(_reaches_root(heads, word) for word in range(1, words + 1)):
            tree = np.zeros((words + 1, words + 1))
            tree[list(heads), np.arange(1, words + 1)] = 1.0
            yield tree


def head_choices(words: int) -> Iterator[np.ndarray]:
    """Also with cycles."""
    for heads in itertools.product(range(words + 1), repeat=words):
        if all(head != word for word, head in enumerate(heads, start=1)):
            choice = np.zeros((words + 1, words + 1))
            choice[list(heads), np.arange(1, words + 1)] = 1.0
            yield choice


def projective_trees(words: int, single_root: bool) -> Iterator[np.ndarray]:
    """Trees without crossing arcs, the root in front."""
    for tree in trees(words, single_root):
        spans = [(min(arc), max(arc)) for arc in np.argwhere(tree).tolist()]
        if not any(a < c < b < d for (a, b), (c, d) in itertools.permutations(spans, 2)):
            yield tree


def _reaches_root(heads: tuple[int, ...], word: int) -> bool:
    for _ in range(len(heads) + 1):
        if word == 0:
            return True
        word = heads[word - 1]
    return False


def partial_matchings(rows: int, columns: int) -> Iterator[np.ndarray]:
    """Each row with a column of its own, or with none."""
    for partner in itertools.product([None, *range(columns)], repeat=rows):
        taken = [j for j in partner if j is not None]
        if len(set(taken)) == len(taken):
            x = np.zeros((rows, columns))
            x[[i for i, j in enumerate(partner) if j is not None], taken] = 1.0
            yield x


def full_matchings(rows: int, columns: int) -> Iterator[np.ndarray]:
    yield from (x for x in partial_matchings(rows, columns) if x.sum() == min(rows, columns))


def segmentations(steps: int, labels: int, longest: int) -> Iterator[np.ndarray]:
    """All ways to cut between tokens, with all labels."""
    for cuts in itertools.product((False, True), repeat=steps - 1):
        bounds = [0, *(t for t, cut in enumerate(cuts, start=1) if cut), steps]
        lengths = np.diff(bounds)
        if lengths.max() <= longest:
            for chosen in itertools.product(range(labels), repeat=len(lengths)):
                x = np.zeros((steps, longest, labels))
                x[bounds[:-1], lengths - 1, list(chosen)] = 1.0
                yield x


def alignments(rows: int, columns: int) -> Iterator[np.ndarray]:
    """All words of moves that lead from the first cell to the last."""
    for length in range(rows + columns - 1):
        yield from (x for x, end in _walks(rows, columns, (0, 0), length) if end == (rows - 1, columns - 1))


def local_alignments(rows: int, columns: int) -> Iterator[np.ndarray]:
    """None, and all words of moves from all cells that do not leave the grid."""
    yield np.zeros((rows, columns, 3))
    for start in np.ndindex(rows, columns):
        for length in range(rows + columns - 1):
            yield from (x for x, _ in _walks(rows, columns, start, length))


def _walks(
    rows: int, columns: int, start: tuple[int, ...], length: int
) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    for moves in itertools.product(range(3), repeat=length):
        x = np.zeros((rows, columns, 3))
        i, j = start
        x[i, j, 1] = 1.0
        for m in moves:
            i, j = i + (m > 0), j + (m < 2)
            if i >= rows or j >= columns:
                break
            x[i, j, m] = 1.0
        else:
            yield x, (i, j)


def positions_in_time(steps: int, positions: int, skips: bool) -> Iterator[np.ndarray]:
    most = 2 if skips else 1
    for path in itertools.product(range(positions), repeat=steps):
        moves = np.diff([-1, *path, positions])
        if moves.min() >= 0 and moves.max() <= most and moves[0] > 0 and moves[-1] > 0:
            x = np.zeros((steps, positions, most + 1))
            x[np.arange(steps), path, moves[:-1]] = 1.0
            yield x


def upper_pairs(size: int, chosen: Sequence[tuple[int, int]]) -> np.ndarray:
    x = np.zeros((size, size))
    for i, j in chosen:
        x[i, j] = 1.0
    return x


def bracketings(words: int) -> Iterator[np.ndarray]:
    """All choices of words - 1 spans of which no two overlap without one being within the other."""
    for spans in itertools.combinations(itertools.combinations(range(words), 2), words - 1):
        if not any(a < c <= b < d for (a, b), (c, d) in itertools.permutations(spans, 2)):
            yield upper_pairs(words, spans)


def noncrossing_pairs(size: int, gap: int, perfect: bool) -> Iterator[np.ndarray]:
    """All choices of pairs in which nobody is twice and no two cross."""
    far = [(i, j) for i, j in itertools.combinations(range(size), 2) if j - i >= gap]
    for count in [size // 2] if perfect else range(size // 2 + 1):
        for pairs in itertools.combinations(far, count):
            alone = len({point for pair in pairs for point in pair}) == 2 * count
            if alone and not any(a < c < b < d for (a, b), (c, d) in itertools.permutations(pairs, 2)):
                yield upper_pairs(size, pairs)


def spanning_trees(nodes: int) -> Iterator[np.ndarray]:
    """All choices of nodes - 1 edges over which everyone reaches everyone."""
    for edges in itertools.combinations(itertools.combinations(range(nodes), 2), nodes - 1):
        x = upper_pairs(nodes, edges)
        if (np.linalg.matrix_power(np.eye(nodes) + x + x.T, nodes) > 0).all():
            yield x


def round_trips(cities: int) -> Iterator[np.ndarray]:
    """All choices of edges with two at every city over which everyone reaches everyone."""
    for edges in itertools.combinations(itertools.combinations(range(cities), 2), cities):
        x = upper_pairs(cities, edges)
        both = x + x.T
        if (both.sum(0) == 2).all() and (np.linalg.matrix_power(np.eye(cities) + both, cities) > 0).all():
            yield x


def sets_held(weights: Sequence[int], capacity: int) -> Iterator[np.ndarray]:
    yield from (x for x in bits(len(weights)) if x @ weights <= capacity)


def b_matchings(rows: Sequence[int], columns: Sequence[int]) -> Iterator[np.ndarray]:
    for x in bits(len(rows), len(columns)):
        if (x.sum(1) <= rows).all() and (x.sum(0) <= columns).all():
            yield x


def semantic_graphs(words: int, core: int, others: int) -> Iterator[np.ndarray]:
    def of(predicate: int) -> Iterator[np.ndarray]:
        yield np.zeros((words, core + others))
        arguments = [a for a in range(words) if a != predicate]
        for filled in itertools.product(range(-1, core + others), repeat=len(arguments)):
            if all(filled.count(role) <= 1 for role in range(core)):
                x = np.zeros((words, core + others))
                x[predicate, 0] = 1.0
                for argument, role in zip(arguments, filled, strict=True):
                    x[argument, role] = float(role >= 0)
                yield x

    for graph in itertools.product(*(list(of(predicate)) for predicate in range(words))):
        yield np.stack(graph)


def entry(
    name: str,
    declare: Callable[..., ol.Polytope],
    given: Sequence[Any],
    vertices: Iterator[np.ndarray],
    count: int,
    **parameters: float,
) -> Entry:
    function = declare.func if isinstance(declare, partial) else declare
    return Entry(name, declare(*given), np.stack(list(vertices)), count, parameters, function)


def subset_of(size: int, budget: int, name: str) -> Entry:
    chosen = (x for x in bits(size) if x.sum() == budget)
    return entry(name, polytopes.subset, [size], chosen, math.comb(size, budget), budget=float(budget))


def partial_matching_of(rows: int, columns: int, name: str) -> Entry:
    count = sum(math.comb(rows, k) * math.perm(columns, k) for k in range(min(rows, columns) + 1))
    return entry(name, polytopes.partial_matching, [rows, columns], partial_matchings(rows, columns), count)


def rectangular_matching_of(rows: int, columns: int, name: str) -> Entry:
    count = math.perm(max(rows, columns), min(rows, columns))
    return entry(name, polytopes.rectangular_matching, [rows, columns], full_matchings(rows, columns), count)


def grid_path_of(rows: int, columns: int, name: str) -> Entry:
    every = arc_paths(rows * columns, polytopes.grid_arcs(rows, columns))
    return entry(name, polytopes.grid_path, [rows, columns], every, math.comb(rows + columns - 2, rows - 1))


def tree_of(words: int, single_root: bool, name: str) -> Entry:
    """Cayley: n^(n-1) trees with one word under the root, (n+1)^(n-1) with any number."""
    count = words ** (words - 1) if single_root else (words + 1) ** (words - 1)
    declare = partial(polytopes.arborescence, single_root=single_root)
    return entry(name, declare, [words], trees(words, single_root), count)


def projective_tree_of(words: int, single_root: bool, name: str) -> Entry:
    """1, 2, 7, 30, 143 (OEIS A006013) with one word under the root, 1, 3, 12, 55, 273 (A001764) with any number."""
    one = math.comb(3 * words - 2, words - 1) // words
    count = one if single_root else math.comb(3 * words, words) // (2 * words + 1)
    declare = partial(polytopes.projective_tree, single_root=single_root)
    return entry(name, declare, [words], projective_trees(words, single_root), count)


def segmentation_of(steps: int, labels: int, longest: int, name: str) -> Entry:
    counts = [1]
    for t in range(1, steps + 1):
        counts.append(labels * sum(counts[max(0, t - longest) :]))
    every = segmentations(steps, labels, longest)
    return entry(name, polytopes.semi_markov, [steps, labels, longest], every, counts[-1])


def delannoy(m: int, n: int) -> int:
    return sum(math.comb(m, k) * math.comb(n, k) * 2**k for k in range(min(m, n) + 1))


def alignment_of(rows: int, columns: int, name: str) -> Entry:
    count = delannoy(rows - 1, columns - 1)
    return entry(name, polytopes.monotone_alignment, [rows, columns], alignments(rows, columns), count)


def local_alignment_of(rows: int, columns: int, name: str) -> Entry:
    count = 1 + sum((rows - a) * (columns - b) * delannoy(a, b) for a, b in np.ndindex(rows, columns))
    declare = partial(polytopes.monotone_alignment, local=True)
    return entry(name, declare, [rows, columns], local_alignments(rows, columns), count)


def ctc_of(steps: int, positions: int, skips: bool, name: str) -> Entry:
    """The coefficients of (z + z²)² (1 + z + z²)^(steps - 1), without skips those of z² (1 + z)^(steps - 1)."""
    end, inner = ([0, 1, 1], [1, 1, 1]) if skips else ([0, 1], [1, 1])
    count = np.polymul(end[::-1], end[::-1])
    for _ in range(steps - 1):
        count = np.polymul(count, inner)
    every = positions_in_time(steps, positions, skips)
    declare = partial(polytopes.ctc_alignment, skips=skips)
    return entry(name, declare, [steps, positions], every, int(count[::-1][positions + 1]))


def catalan(n: int) -> int:
    return math.comb(2 * n, n) // (n + 1)


def bracketing_of(words: int, name: str) -> Entry:
    return entry(name, polytopes.constituency_tree, [words], bracketings(words), catalan(words - 1))


def noncrossing_of(size: int, name: str, *, gap: int = 1, perfect: bool = False) -> Entry:
    """Motzkin numbers (OEIS A001006), those of secondary structures for a gap of 2 (A004148) or 3 (A023421)."""
    numbers = {1: (1, 1, 2, 4, 9, 21, 51), 2: (1, 1, 1, 2, 4, 8, 17), 3: (1, 1, 1, 1, 2, 4, 8)}
    count = catalan(size // 2) if perfect else numbers[gap][size]
    declare = partial(polytopes.noncrossing_matching, gap=gap, perfect=perfect)
    return entry(name, declare, [size], noncrossing_pairs(size, gap, perfect), count)


def spanning_tree_of(nodes: int, name: str) -> Entry:
    """Cayley."""
    return entry(name, polytopes.spanning_tree, [nodes], spanning_trees(nodes), nodes ** max(0, nodes - 2))


def b_matching_of(rows: Sequence[int], columns: Sequence[int], count: int, name: str) -> Entry:
    declare = partial(polytopes.b_matching, row_capacity=rows, column_capacity=columns)
    return entry(name, declare, [len(rows), len(columns)], b_matchings(rows, columns), count)


def semantic_graph_of(words: int, core: int, others: int, name: str) -> Entry:
    """Of every word by itself: no predicate, or k core roles filled, and for the other words another role or none."""
    rest = words - 1
    each = sum(math.comb(rest, k) * math.perm(core, k) * (1 + others) ** (rest - k) for k in range(min(rest, core) + 1))
    every = semantic_graphs(words, core, others)
    return entry(name, polytopes.semantic_graph, [words, core, others], every, (1 + each) ** words)


def tour_of(cities: int, name: str) -> Entry:
    return entry(name, polytopes.tour, [cities], round_trips(cities), math.factorial(cities - 1) // 2)


def knapsack_of(weights: Sequence[int], capacity: int, count: int, name: str) -> Entry:
    every = sets_held(weights, capacity)
    return entry(name, polytopes.knapsack, [weights], every, count, capacity=float(capacity))


# Listed so that the arcs of every path are in its order. Arcs 1 and 2 are parallel, arc 4 is on no path.
ARCS = np.array([(0, 1), (1, 2), (1, 2), (0, 2), (2, 3), (2, 4), (1, 4), (4, 5), (0, 5)])

_EVERY = [
    entry("simplex", polytopes.simplex, [4], unit_vectors(4), 4),
    entry("simplex of one", polytopes.simplex, [1], unit_vectors(1), 1),
    entry("cube", polytopes.cube, [3], bits(3), 2**3),
    subset_of(5, 2, "subset"),
    subset_of(3, 0, "subset of none"),
    subset_of(3, 3, "subset of all"),
    entry("matching", polytopes.matching, [3], full_matchings(3, 3), math.factorial(3)),
    entry("matching of one", polytopes.matching, [1], full_matchings(1, 1), 1),
    partial_matching_of(2, 3, "partial matching"),
    rectangular_matching_of(2, 3, "wide matching"),
    rectangular_matching_of(3, 2, "tall matching"),
    entry("sequence", polytopes.sequence, [3, 2], paths(3, 2), 2**3),
    entry("sequence of one step", polytopes.sequence, [1, 3], paths(1, 3), 3),
    entry("sequence of one state", polytopes.sequence, [3, 1], paths(3, 1), 1),
    entry("path", polytopes.dag_path, [6, ARCS], arc_paths(6, ARCS), 5),
    entry("path of one arc", polytopes.dag_path, [2, [(0, 1)]], arc_paths(2, np.array([(0, 1)])), 1),
    grid_path_of(3, 3, "grid path"),
    grid_path_of(1, 4, "grid path of one row"),
    entry("ranking", polytopes.permutahedron, [4], rankings(4), math.factorial(4)),
    entry("ranking of one", polytopes.permutahedron, [1], rankings(1), 1),
    entry("head choice", polytopes.head_choice, [3], head_choices(3), 3**3),
    tree_of(3, True, "tree"),
    tree_of(1, True, "tree of one word"),
    tree_of(4, True, "tree of four words"),
    tree_of(3, False, "tree of many roots"),
    projective_tree_of(3, True, "projective tree"),
    projective_tree_of(1, True, "projective tree of one word"),
    projective_tree_of(4, True, "projective tree of four words"),
    projective_tree_of(3, False, "projective tree of many roots"),
    entry("chain", polytopes.linear_chain, [3, 2], tags(3, 2), 2**3),
    entry("chain of one step", polytopes.linear_chain, [1, 3], tags(1, 3), 3),
    segmentation_of(3, 2, 2, "segmentation"),
    alignment_of(2, 3, "alignment"),
    local_alignment_of(2, 2, "local alignment"),
    ctc_of(4, 3, False, "alignment in time"),
    ctc_of(3, 3, True, "alignment in time with skips"),
    bracketing_of(4, "bracketing"),
    noncrossing_of(4, "noncrossing matching"),
    noncrossing_of(5, "noncrossing matching with a gap", gap=2),
    noncrossing_of(4, "noncrossing perfect matching", perfect=True),
    spanning_tree_of(4, "spanning tree"),
    semantic_graph_of(2, 1, 1, "semantic graph"),
]

_WITHOUT_ORACLE = [
    b_matching_of([2, 1], [1, 1, 1], 19, "b-matching"),
    tour_of(5, "tour"),
    knapsack_of([3, 4, 5, 2], 7, 9, "knapsack"),
]

POLYTOPES = [*_EVERY, *(e.declared for e in _EVERY if not e.name.endswith((" one", "one word"))), *_WITHOUT_ORACLE]
"""All that contracts are crossed over: polytopes with their oracles, then without."""

CATALOGUE = [e for e in _EVERY if not e.polytope.scored]
"""Those of them with oracles in which structures alone have scores."""


def other_sizes() -> list[Entry]:
    """Further sizes of the same polytopes, which are enumerated but not crossed with anything."""
    pairs = np.array(list(itertools.combinations(range(5), 2)))
    return [
        *(entry(f"simplex({n})", polytopes.simplex, [n], unit_vectors(n), n) for n in (2, 5)),
        *(entry(f"cube({n})", polytopes.cube, [n], bits(n), 2**n) for n in (1, 4)),
        *(subset_of(n, k, f"subset({n}) of {k}") for n, k in ((1, 1), (4, 0), (4, 4))),
        *(entry(f"head choice({n})", polytopes.head_choice, [n], head_choices(n), n**n) for n in (1, 2)),
        *(entry(f"matching({n})", polytopes.matching, [n], full_matchings(n, n), math.factorial(n)) for n in (2, 4)),
        *(partial_matching_of(r, c, f"partial matching({r}, {c})") for r, c in ((1, 1), (3, 3), (4, 2))),
        *(rectangular_matching_of(r, c, f"matching({r}, {c})") for r, c in ((1, 3), (2, 4), (3, 3), (4, 2))),
        *(
            entry(f"sequence({t}, {s})", polytopes.sequence, [t, s], paths(t, s), s**t)
            for t, s in ((1, 1), (4, 1), (2, 2), (3, 3))
        ),
        *(
            entry(f"chain({t}, {s})", polytopes.linear_chain, [t, s], tags(t, s), s**t)
            for t, s in ((1, 1), (4, 1), (2, 2), (3, 3))
        ),
        entry("path of all pairs", polytopes.dag_path, [5, pairs], arc_paths(5, pairs), 2**3),
        *(grid_path_of(r, c, f"grid path({r}, {c})") for r, c in ((1, 2), (3, 1), (2, 3), (4, 4))),
        entry("ranking(2)", polytopes.permutahedron, [2], rankings(2), 2),
        tree_of(2, True, "tree(2)"),
        tree_of(5, True, "tree(5)"),
        *(tree_of(n, False, f"tree({n}) of many roots") for n in (1, 2, 4)),
        projective_tree_of(2, True, "projective tree(2)"),
        projective_tree_of(5, True, "projective tree(5)"),
        *(projective_tree_of(n, False, f"projective tree({n}) of many roots") for n in (1, 2, 4)),
        *(segmentation_of(*size, f"segmentation{size}") for size in ((1, 1, 1), (2, 1, 3), (4, 2, 3), (5, 1, 2))),
        *(alignment_of(r, c, f"alignment({r}, {c})") for r, c in ((1, 1), (1, 3), (2, 2), (3, 3), (4, 2))),
        *(local_alignment_of(r, c, f"local alignment({r}, {c})") for r, c in ((1, 1), (1, 3), (3, 2), (3, 3))),
        *(ctc_of(t, p, False, f"alignment in time({t}, {p})") for t, p in ((1, 1), (3, 1), (4, 2), (3, 3), (5, 3))),
        *(
            ctc_of(t, p, True, f"alignment in time({t}, {p}) with skips")
            for t, p in ((1, 1), (1, 2), (1, 3), (3, 1), (3, 2), (2, 5), (4, 5), (5, 3))
        ),
        *(bracketing_of(n, f"bracketing({n})") for n in (1, 2, 3, 5)),
        *(noncrossing_of(n, f"noncrossing matching({n})") for n in (1, 2, 3, 5)),
        *(
            noncrossing_of(n, f"noncrossing matching({n}) with a gap of {g}", gap=g)
            for n, g in ((1, 2), (6, 2), (6, 3))
        ),
        *(noncrossing_of(n, f"noncrossing perfect matching({n})", perfect=True) for n in (2, 6)),
        *(spanning_tree_of(n, f"spanning tree({n})") for n in (1, 2, 3, 5)),
        *(
            semantic_graph_of(*size, f"semantic graph{size}")
            for size in ((1, 1, 0), (1, 2, 1), (2, 2, 1), (2, 0, 2), (3, 1, 0), (3, 2, 0))
        ),
        partial_matching_as_b_matching(),
        b_matching_of([1, 0], [2, 2], 3, "b-matching with a row of none"),
        b_matching_of([2, 2, 2], [3, 3], 2**6, "b-matching of all pairs"),
        *(tour_of(n, f"tour({n})") for n in (3, 4, 6)),
        knapsack_of([3, 4], 0, 1, "knapsack of nothing"),
        knapsack_of([2], 5, 2, "knapsack of one"),
    ]


def partial_matching_as_b_matching() -> Entry:
    count = sum(math.comb(3, k) * math.perm(3, k) for k in range(4))
    return b_matching_of([1, 1, 1], [1, 1, 1], count, "b-matching of one for each")


SOLVERS: list[ol.AbstractSolver] = [
    ol.Auto(),
    ol.Highs(),
    ol.Clarabel(),
    ol.ConeNewton(),
    ol.CvxpyLayers(),
    ol.InteriorPoint(),
    ol.Dense(),
    ol.DualNewton(),
    ol.ActiveSet(),
    ol.Oracle(lambda *arrays: arrays[0]),  # stands for the one of the declaration
]


INTEGER_SOLVERS: list[ol.AbstractSolver] = [ol.Diagram(), ol.BranchAndBound()]
"""Those of hulls of integer points."""
HIDDEN = (
    *("partial", "wide", "tall", "ranking", "tree", "projective", "chain"),
    *("local", "bracketing", "noncrossing", "spanning", "b-matching", "tour", "knapsack", "semantic"),
)
"""The names of polytopes with auxiliary variables, or with inequalities between parts, begin like this."""


def solvers_of(entry: Entry) -> Iterator[ol.AbstractSolver]:
    """Those that take a polytope."""
    oracle = entry.polytope.oracle
    if entry.polytope.has_integers:
        rows_say_all = entry.polytope.separate is None
        yield from (solver for solver in INTEGER_SOLVERS if rows_say_all or not isinstance(solver, ol.Diagram))
        return
    for solver in SOLVERS:
        if isinstance(solver, ol.Oracle):
            if oracle is not None:
                yield ol.Oracle(oracle)
        elif isinstance(solver, ol.ActiveSet):
            if oracle is not None and not entry.parameters:
                yield solver
        elif isinstance(solver, (ol.ConeNewton, ol.CvxpyLayers)):
            if not entry.polytope.scored:
                yield solver
        elif not isinstance(solver, ol.DualNewton) or not entry.name.startswith(HIDDEN):
            yield solver


RULES: list[ol.AbstractRule] = [
    ol.Pipeline(),
    ol.StraightThrough(),
    ol.Identity(),
    ol.Interpolation(2.0),
    ol.Spigot(),
    ol.Spigot(0.5, steps=3),
    ol.Spigot(ol.AdaptiveStep(), clip_norm=2.0),
    ol.SpigotCE(0.7),
    ol.SpigotEG(0.7),
    ol.SpigotCE(0.7, at="marginals"),
    ol.SpigotEG(0.7, at="marginals"),
    ol.LPGD(0.8),
    ol.LPGD(0.8, smoothing=0.5, side="both"),
    ol.SparseMAP(),
    ol.StructuredAttention(),
    ol.Hard(ol.SparseMAP()),
    ol.Hard(ol.StructuredAttention()),
    ol.WithParameters(ol.Spigot()),
    ol.GumbelStraightThrough(temperature=0.5),
    ol.PerturbedAdditive(samples=2),
    ol.PerturbedMultiplicative(samples=2),
    ol.PerturbAndMAP(ol.Spigot(), noise=ol.SumOfGamma(3)),
    ol.PerturbAndMAP(ol.SparseMAP()),
    ol.IMLE(samples=2),
    ol.AdaptiveIMLE(samples=2, symmetric=True),
    ol.ScoreFunction(samples=2),
    ol.SampledMarginals(),
]

BY_CONSTRAINTS = [
    e for e in POLYTOPES if not e.polytope.has_integers and e.polytope.separate is None and not e.polytope.scored
]
"""Those that regularizers take, as constraints describe them."""
RULES_BY_CONSTRAINTS: list[ol.AbstractRule] = [
    ol.Regularized(ol.Entropy(0.5)),
    ol.Regularized(ol.Tsallis(1.5)),
    ol.CentralPath(0.1),
    ol.MirrorSpigot(ol.Tsallis(1.5), step_size=0.5),
]
"""Their rules."""


@dataclass(frozen=True)
class LossCase:
    """A loss, and what :func:`optlayers.testing.check_loss` is told of it."""

    make: Any
    told: dict[str, Any] = field(default_factory=dict)
    binary: bool = False
    """Whether it is for parts between 0 and 1 alone."""
    by_constraints: bool = False
    """Whether it is for polytopes that constraints describe."""

    def __repr__(self) -> str:
        return self.kind.__name__

    @property
    def kind(self) -> type[ol.AbstractLoss]:
        """The class of the loss."""
        return self.make.func if isinstance(self.make, partial) else self.make

    def takes(self, entry: Entry) -> bool:
        """Whether the loss is for a polytope."""
        if self.by_constraints and not any(entry is other for other in BY_CONSTRAINTS):
            return False
        return not (self.binary and entry.name.startswith("ranking"))


LOSSES = [
    LossCase(ol.StructuredPerceptronLoss),
    LossCase(ol.StructuredHingeLoss, binary=True),
    LossCase(ol.SparseMAPLoss),
    LossCase(ol.CRFLoss),
    LossCase(partial(ol.PerturbedFenchelYoungLoss, samples=2), {"nonnegative": False, "zero": False}),
    LossCase(ol.SPOPlusLoss, {"target": "scores"}),
    LossCase(partial(ol.FenchelYoungLoss, regularizer=ol.Entropy()), binary=True, by_constraints=True),
]
