"""Polytopes with all of their structures, and how many these are by a closed formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import optlayers as ol
import polytopes
from catalogue.structures import (
    alignments,
    arc_paths,
    b_matchings,
    bits,
    bracketings,
    full_matchings,
    local_alignments,
    noncrossing_pairs,
    partial_matchings,
    positions_in_time,
    projective_trees,
    round_trips,
    segmentations,
    semantic_graphs,
    sets_held,
    spanning_trees,
    trees,
)


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
