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
]

POLYTOPES = [*_EVERY, *(e.declared for e in _EVERY if not e.name.endswith((" one", "one word")))]
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
    ]


SOLVERS: list[ol.AbstractSolver] = [
    ol.Auto(),
    ol.Highs(),
    ol.Clarabel(),
    ol.CvxpyLayers(),
    ol.InteriorPoint(),
    ol.Dense(),
    ol.DualNewton(),
    ol.ActiveSet(),
    ol.Oracle(lambda *arrays: arrays[0]),  # stands for the one of the declaration
]


HIDDEN = ("partial", "wide", "tall", "ranking", "tree", "projective", "chain")
"""The names of polytopes with auxiliary variables, or with inequalities between parts, begin like this."""


def solvers_of(entry: Entry) -> Iterator[ol.AbstractSolver]:
    """Those that take a polytope."""
    oracle = entry.polytope.oracle
    for solver in SOLVERS:
        if isinstance(solver, ol.Oracle):
            if oracle is not None:
                yield ol.Oracle(oracle)
        elif isinstance(solver, ol.ActiveSet):
            if oracle is not None and not entry.parameters:
                yield solver
        elif isinstance(solver, ol.CvxpyLayers):
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
    ol.GumbelStraightThrough(temperature=0.5),
    ol.PerturbedAdditive(samples=2),
    ol.PerturbedMultiplicative(samples=2),
    ol.PerturbAndMAP(ol.Spigot(), noise=ol.SumOfGamma(3)),
    ol.PerturbAndMAP(ol.SparseMAP()),
    ol.IMLE(samples=2),
    ol.AdaptiveIMLE(samples=2, symmetric=True),
    ol.ScoreFunction(samples=2),
]


@dataclass(frozen=True)
class LossCase:
    """A loss, and what :func:`optlayers.testing.check_loss` is told of it."""

    make: Any
    told: dict[str, Any] = field(default_factory=dict)
    binary: bool = False
    """Whether it is for parts between 0 and 1 alone."""

    def __repr__(self) -> str:
        return self.kind.__name__

    @property
    def kind(self) -> type[ol.AbstractLoss]:
        """The class of the loss."""
        return self.make.func if isinstance(self.make, partial) else self.make

    def takes(self, entry: Entry) -> bool:
        """Whether the loss is for a polytope."""
        return not (self.binary and entry.name.startswith("ranking"))


LOSSES = [
    LossCase(ol.StructuredPerceptronLoss),
    LossCase(ol.StructuredHingeLoss, binary=True),
    LossCase(ol.SparseMAPLoss),
    LossCase(ol.CRFLoss),
    LossCase(partial(ol.PerturbedFenchelYoungLoss, samples=2), {"nonnegative": False, "zero": False}),
    LossCase(ol.SPOPlusLoss, {"target": "scores"}),
]
