"""The polytopes that contracts are crossed over, at small sizes; and those of other sizes."""

from __future__ import annotations

import itertools
import math

import numpy as np

import polytopes
from catalogue.entries import (
    Entry,
    alignment_of,
    b_matching_of,
    bracketing_of,
    ctc_of,
    entry,
    grid_path_of,
    knapsack_of,
    local_alignment_of,
    noncrossing_of,
    partial_matching_of,
    projective_tree_of,
    rectangular_matching_of,
    segmentation_of,
    semantic_graph_of,
    spanning_tree_of,
    subset_of,
    tour_of,
    tree_of,
)
from catalogue.structures import (
    arc_paths,
    bits,
    full_matchings,
    head_choices,
    paths,
    rankings,
    tags,
    unit_vectors,
)

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


BY_CONSTRAINTS = [
    e for e in POLYTOPES if not e.polytope.has_integers and e.polytope.separate is None and not e.polytope.scored
]
"""Those that regularizers take, as constraints describe them."""
