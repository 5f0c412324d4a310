"""What contracts are crossed over: polytopes at small sizes with all of their structures, solvers, rules, losses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

import optlayers as ol
import polytopes


@dataclass(frozen=True)
class Entry:
    """A polytope, its vertices, values of its parameters, and the function that declares it.

    ``vertices`` are None where auxiliary variables have scores too.
    """

    name: str
    polytope: ol.Polytope
    vertices: np.ndarray | None
    parameters: dict[str, float] = field(default_factory=dict)
    declare: Callable[..., ol.Polytope] | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def declared(self) -> Entry:
        """The same without its oracle, so that general solvers answer."""
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


def arc_paths(nodes: int, arcs: np.ndarray) -> Iterator[np.ndarray]:
    for x in bits(len(arcs)):
        used = [(t, h) for (t, h), on in zip(arcs.tolist(), x, strict=True) if on]
        if used and used[0][0] == 0 and used[-1][1] == nodes - 1 and all(a[1] == b[0] for a, b in pairwise(used)):
            yield x


def grid_paths(rows: int, columns: int) -> Iterator[np.ndarray]:
    arcs = [tuple(arc) for arc in polytopes.grid_arcs(rows, columns).tolist()]
    for down in itertools.combinations(range(rows + columns - 2), rows - 1):
        steps = [columns if k in down else 1 for k in range(rows + columns - 2)]
        cells = [0, *itertools.accumulate(steps)]
        used = set(pairwise(cells))
        yield np.array([float(arc in used) for arc in arcs])


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


def matchings(rows: int, columns: int, row_ok: tuple[int, ...], column_ok: tuple[int, ...]) -> Iterator[np.ndarray]:
    for x in bits(rows, columns):
        if set(x.sum(1)) <= set(row_ok) and set(x.sum(0)) <= set(column_ok):
            yield x


def entry(
    name: str,
    declare: Callable[..., ol.Polytope],
    given: Sequence[Any],
    vertices: Iterator[np.ndarray] | None,
    **parameters: float,
) -> Entry:
    every = None if vertices is None else np.stack(list(vertices))
    return Entry(name, declare(*given), every, parameters, declare.func if isinstance(declare, partial) else declare)


# Listed so that the arcs of every path are in its order. Arcs 1 and 2 are parallel, arc 4 is on no path.
ARCS = np.array([(0, 1), (1, 2), (1, 2), (0, 2), (2, 3), (2, 4), (1, 4), (4, 5), (0, 5)])

_EVERY = [
    entry("simplex", polytopes.simplex, [4], unit_vectors(4)),
    entry("simplex of one", polytopes.simplex, [1], unit_vectors(1)),
    entry("cube", polytopes.cube, [3], bits(3)),
    entry("subset", polytopes.subset, [5], (x for x in bits(5) if x.sum() == 2), budget=2.0),
    entry("subset of none", polytopes.subset, [3], (x for x in bits(3) if x.sum() == 0), budget=0.0),
    entry("subset of all", polytopes.subset, [3], (x for x in bits(3) if x.sum() == 3), budget=3.0),
    entry("matching", polytopes.matching, [3], matchings(3, 3, (1,), (1,))),
    entry("matching of one", polytopes.matching, [1], matchings(1, 1, (1,), (1,))),
    entry("partial matching", polytopes.partial_matching, [2, 3], matchings(2, 3, (0, 1), (0, 1))),
    entry("wide matching", polytopes.rectangular_matching, [2, 3], matchings(2, 3, (1,), (0, 1))),
    entry("tall matching", polytopes.rectangular_matching, [3, 2], matchings(3, 2, (0, 1), (1,))),
    entry("sequence", polytopes.sequence, [3, 2], paths(3, 2)),
    entry("sequence of one step", polytopes.sequence, [1, 3], paths(1, 3)),
    entry("sequence of one state", polytopes.sequence, [3, 1], paths(3, 1)),
    entry("path", polytopes.dag_path, [6, ARCS], arc_paths(6, ARCS)),
    entry("path of one arc", polytopes.dag_path, [2, [(0, 1)]], arc_paths(2, np.array([(0, 1)]))),
    entry("grid path", polytopes.grid_path, [3, 3], grid_paths(3, 3)),
    entry("grid path of one row", polytopes.grid_path, [1, 4], grid_paths(1, 4)),
    entry("ranking", polytopes.permutahedron, [4], rankings(4)),
    entry("ranking of one", polytopes.permutahedron, [1], rankings(1)),
    entry("head choice", polytopes.head_choice, [3], head_choices(3)),
    entry("tree", polytopes.arborescence, [3], trees(3, True)),
    entry("tree of one word", polytopes.arborescence, [1], trees(1, True)),
    entry("tree of four words", polytopes.arborescence, [4], trees(4, True)),
    entry("tree of many roots", partial(polytopes.arborescence, single_root=False), [3], trees(3, False)),
    entry("projective tree", polytopes.projective_tree, [3], projective_trees(3, True)),
    entry("projective tree of one word", polytopes.projective_tree, [1], projective_trees(1, True)),
    entry("projective tree of four words", polytopes.projective_tree, [4], projective_trees(4, True)),
    entry(
        "projective tree of many roots",
        partial(polytopes.projective_tree, single_root=False),
        [3],
        projective_trees(3, False),
    ),
    entry("chain", polytopes.linear_chain, [3, 2], None),
    entry("chain of one step", polytopes.linear_chain, [1, 3], None),
]

POLYTOPES = [*_EVERY, *(e.declared for e in _EVERY if not e.name.endswith((" one", "one word")))]
"""All that contracts are crossed over: polytopes with their oracles, then without."""

CATALOGUE = [e for e in _EVERY if e.vertices is not None]
"""Those of them with oracles whose structures are all known."""

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
