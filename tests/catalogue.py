"""The catalogue at small sizes, with all structures by enumeration: what contracts are crossed over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

import optlayers as ol
import polytopes


@dataclass(frozen=True)
class Entry:
    """A polytope, values of its parameters, and its vertices."""

    name: str
    polytope: ol.Polytope
    vertices: np.ndarray
    parameters: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name


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


def entry(name: str, polytope: ol.Polytope, vertices: Iterator[np.ndarray], **parameters: float) -> Entry:
    return Entry(name, polytope, np.stack(list(vertices)), parameters)


# Listed so that the arcs of every path are in its order. Arcs 1 and 2 are parallel, arc 4 is on no path.
ARCS = np.array([(0, 1), (1, 2), (1, 2), (0, 2), (2, 3), (2, 4), (1, 4), (4, 5), (0, 5)])

CATALOGUE = [
    entry("simplex", polytopes.simplex(4), unit_vectors(4)),
    entry("simplex of one", polytopes.simplex(1), unit_vectors(1)),
    entry("cube", polytopes.cube(3), bits(3)),
    entry("subset", polytopes.subset(5), (x for x in bits(5) if x.sum() == 2), budget=2.0),
    entry("subset of none", polytopes.subset(3), (x for x in bits(3) if x.sum() == 0), budget=0.0),
    entry("subset of all", polytopes.subset(3), (x for x in bits(3) if x.sum() == 3), budget=3.0),
    entry("matching", polytopes.matching(3), matchings(3, 3, (1,), (1,))),
    entry("matching of one", polytopes.matching(1), matchings(1, 1, (1,), (1,))),
    entry("partial matching", polytopes.partial_matching(2, 3), matchings(2, 3, (0, 1), (0, 1))),
    entry("wide matching", polytopes.rectangular_matching(2, 3), matchings(2, 3, (1,), (0, 1))),
    entry("tall matching", polytopes.rectangular_matching(3, 2), matchings(3, 2, (0, 1), (1,))),
    entry("sequence", polytopes.sequence(3, 2), paths(3, 2)),
    entry("sequence of one step", polytopes.sequence(1, 3), paths(1, 3)),
    entry("sequence of one state", polytopes.sequence(3, 1), paths(3, 1)),
    entry("path", polytopes.dag_path(6, ARCS), arc_paths(6, ARCS)),
    entry("path of one arc", polytopes.dag_path(2, [(0, 1)]), arc_paths(2, np.array([(0, 1)]))),
    entry("grid path", polytopes.grid_path(3, 3), grid_paths(3, 3)),
    entry("grid path of one row", polytopes.grid_path(1, 4), grid_paths(1, 4)),
    entry("ranking", polytopes.permutahedron(4), rankings(4)),
    entry("ranking of one", polytopes.permutahedron(1), rankings(1)),
    entry("head choice", polytopes.head_choice(3), head_choices(3)),
    entry("tree", polytopes.arborescence(3), trees(3, True)),
    entry("tree of one word", polytopes.arborescence(1), trees(1, True)),
    entry("tree of four words", polytopes.arborescence(4), trees(4, True)),
    entry("tree of many roots", polytopes.arborescence(3, single_root=False), trees(3, False)),
    entry("projective tree", polytopes.projective_tree(3), projective_trees(3, True)),
    entry("projective tree of one word", polytopes.projective_tree(1), projective_trees(1, True)),
    entry("projective tree of four words", polytopes.projective_tree(4), projective_trees(4, True)),
    entry(
        "projective tree of many roots",
        polytopes.projective_tree(3, single_root=False),
        projective_trees(3, False),
    ),
]

DECLARED = [
    Entry(f"{e.name}, declared", e.polytope.without_oracle(), e.vertices, e.parameters)
    for e in CATALOGUE
    if not e.name.endswith((" one", "one word"))
]
"""The same without oracles, so that general solvers answer."""
