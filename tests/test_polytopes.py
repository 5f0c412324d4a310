"""The catalogue against enumeration: plain cvxpy with HiGHS and itertools, none of the library's solvers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol
import polytopes
from polytopes import (
    arborescence,
    cube,
    dag_path,
    edge_scores,
    grid_arcs,
    grid_path,
    head_choice,
    linear_chain,
    matching,
    partial_matching,
    permutahedron,
    projective_tree,
    rectangular_matching,
    sequence,
    simplex,
    states_of,
    subset,
)

pytestmark = pytest.mark.filterwarnings("ignore:The problem has an expression with dimension greater than 2")


def choices(size: int) -> Iterator[np.ndarray]:
    yield from np.eye(size)


def decisions(size: int) -> Iterator[np.ndarray]:
    yield from (np.array(bits, dtype=float) for bits in itertools.product([0, 1], repeat=size))


def subsets(size: int, budget: int) -> Iterator[np.ndarray]:
    yield from (bits for bits in decisions(size) if bits.sum() == budget)


def heads(words: int) -> Iterator[np.ndarray]:
    for chosen in itertools.product(range(words + 1), repeat=words):
        if all(h != m for m, h in enumerate(chosen, start=1)):
            x = np.zeros((words + 1, words + 1))
            x[list(chosen), np.arange(1, words + 1)] = 1
            yield x


def partial_matchings(rows: int, columns: int) -> Iterator[np.ndarray]:
    # A matching gives every row a column of its own, or None.
    for partner in itertools.product([None, *range(columns)], repeat=rows):
        taken = [j for j in partner if j is not None]
        if len(set(taken)) == len(taken):
            x = np.zeros((rows, columns))
            x[[i for i, j in enumerate(partner) if j is not None], taken] = 1
            yield x


def full_matchings(rows: int, columns: int) -> Iterator[np.ndarray]:
    yield from (x for x in partial_matchings(rows, columns) if x.sum() == min(rows, columns))


def edges_of(path: tuple[int, ...], states: int) -> np.ndarray:
    x = np.zeros((len(path), states, states))
    for step, (before, state) in enumerate(zip((0, *path[:-1]), path, strict=True)):
        x[step, before, state] = 1
    return x


def tags(steps: int, states: int) -> Iterator[np.ndarray]:
    yield from (np.eye(states)[list(path)] for path in itertools.product(range(states), repeat=steps))


def paths(steps: int, states: int) -> Iterator[np.ndarray]:
    yield from (edges_of(path, states) for path in itertools.product(range(states), repeat=steps))


def arc_paths(nodes: int, arcs: np.ndarray) -> Iterator[np.ndarray]:
    def onwards(node: int, used: tuple[int, ...]) -> Iterator[np.ndarray]:
        if node == nodes - 1:
            x = np.zeros(len(arcs))
            x[list(used)] = 1
            yield x
        for arc, (tail, head) in enumerate(arcs):
            if tail == node:
                yield from onwards(head, (*used, arc))

    return onwards(0, ())


def rankings(size: int) -> Iterator[np.ndarray]:
    yield from (np.array(ranks, dtype=float) for ranks in itertools.permutations(range(1, size + 1)))


def trees(words: int, *, single_root: bool) -> Iterator[np.ndarray]:
    for heads in itertools.product(range(words + 1), repeat=words):
        if all(reaches_root(heads, word) for word in range(1, words + 1)) and (not single_root or heads.count(0) == 1):
            x = np.zeros((words + 1, words + 1))
            x[heads, np.arange(1, words + 1)] = 1
            yield x


def reaches_root(heads: tuple[int, ...], node: int) -> bool:
    for _ in heads:
        node = heads[node - 1]
        if node == 0:
            return True
    return False


@dataclass
class Case:
    """A declaration, all its structures, and how many there should be by a closed formula."""

    name: str
    declare: Callable[[], ol.Polytope]
    structures: Callable[[], Iterator[np.ndarray]]
    count: int
    parameters: dict[str, float] = field(default_factory=dict)


def tree_case(words: int, *, single_root: bool) -> Case:
    # Cayley: n^(n-1) trees with one word under the root, (n+1)^(n-1) with any number.
    return Case(
        f"arborescence({words}, single_root={single_root})",
        partial(arborescence, words, single_root=single_root),
        partial(trees, words, single_root=single_root),
        words ** (words - 1) if single_root else (words + 1) ** (words - 1),
    )


def projective_trees(words: int, *, single_root: bool) -> Iterator[np.ndarray]:
    """Every node's descendants are consecutive together with it."""
    for tree in trees(words, single_root=single_root):
        below = np.linalg.matrix_power(tree + np.eye(words + 1), words + 1) > 0
        if all((np.diff(np.flatnonzero(row)) == 1).all() for row in below):
            yield tree


def projective_case(words: int, *, single_root: bool) -> Case:
    # 1, 2, 7, 30, 143 (OEIS A006013) and 1, 3, 12, 55, 273 (A001764: ternary trees).
    return Case(
        f"projective_tree({words}, single_root={single_root})",
        partial(projective_tree, words, single_root=single_root),
        partial(projective_trees, words, single_root=single_root),
        math.comb(3 * words - 2, words - 1) // words if single_root else math.comb(3 * words, words) // (2 * words + 1),
    )


def partial_matching_count(rows: int, columns: int) -> int:
    return sum(math.comb(rows, k) * math.perm(columns, k) for k in range(min(rows, columns) + 1))


ALL_PAIRS = np.array(list(itertools.combinations(range(5), 2)))

CASES = [
    *[Case(f"simplex({n})", partial(simplex, n), partial(choices, n), n) for n in (1, 2, 5)],
    *[Case(f"cube({n})", partial(cube, n), partial(decisions, n), 2**n) for n in (1, 4)],
    *[
        Case(f"subset({n}) of {k}", partial(subset, n), partial(subsets, n, k), math.comb(n, k), {"budget": k})
        for n, k in ((1, 1), (4, 0), (4, 4), (5, 2))
    ],
    *[Case(f"head_choice({n})", partial(head_choice, n), partial(heads, n), n**n) for n in (1, 2, 3)],
    *[
        Case(f"matching({n})", partial(matching, n), partial(full_matchings, n, n), math.factorial(n))
        for n in (1, 2, 3, 4)
    ],
    *[
        Case(
            f"partial_matching({r}, {c})",
            partial(partial_matching, r, c),
            partial(partial_matchings, r, c),
            partial_matching_count(r, c),
        )
        for r, c in ((1, 1), (2, 3), (3, 3), (4, 2))
    ],
    *[
        Case(
            f"rectangular_matching({r}, {c})",
            partial(rectangular_matching, r, c),
            partial(full_matchings, r, c),
            math.perm(max(r, c), min(r, c)),
        )
        for r, c in ((1, 3), (2, 4), (3, 3), (4, 2))
    ],
    *[
        Case(f"sequence({t}, {s})", partial(sequence, t, s), partial(paths, t, s), s**t)
        for t, s in ((1, 1), (1, 3), (4, 1), (2, 2), (3, 3))
    ],
    *[
        Case(f"linear_chain({t}, {s})", partial(linear_chain, t, s), partial(tags, t, s), s**t)
        for t, s in ((1, 1), (1, 3), (4, 1), (2, 2), (3, 3))
    ],
    Case("dag_path(5, all pairs)", partial(dag_path, 5, ALL_PAIRS), partial(arc_paths, 5, ALL_PAIRS), 2**3),
    *[
        Case(
            f"grid_path({r}, {c})",
            partial(grid_path, r, c),
            partial(arc_paths, r * c, grid_arcs(r, c)),
            math.comb(r + c - 2, r - 1),
        )
        for r, c in ((1, 2), (3, 1), (2, 3), (4, 4))
    ],
    *[
        Case(f"permutahedron({n})", partial(permutahedron, n), partial(rankings, n), math.factorial(n))
        for n in (1, 2, 4)
    ],
    *[tree_case(words, single_root=single) for words in (1, 2, 3, 4) for single in (True, False)],
    tree_case(5, single_root=True),
    *[projective_case(words, single_root=single) for words in (1, 2, 3, 4) for single in (True, False)],
    projective_case(5, single_root=True),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def declared(case: Case) -> ol.Polytope:
    polytope = case.declare()
    for parameter in polytope.parameters:
        parameter.value = case.parameters[parameter.name()]
    return polytope


@each_case
def test_as_many_structures_as_known(case):
    assert sum(1 for _ in case.structures()) == case.count


@pytest.mark.many(10)
@each_case
def test_every_structure_is_feasible(case):
    polytope = declared(case)
    structures = list(case.structures())
    target = cp.Parameter(polytope.shape)
    problem = cp.Problem(cp.Minimize(0), [*polytope.constraints, polytope.variable == target])
    rng = np.random.default_rng(0)
    for k in rng.permutation(len(structures))[:60]:  # a sample of the many trees
        assert structures[k].shape == polytope.shape
        target.value = structures[k]
        problem.solve(solver=cp.HIGHS)
        assert problem.status == cp.OPTIMAL


@pytest.mark.many(8)
@each_case
def test_linear_maxima_are_structures(case):
    """On random, on integer (tied) and on non-negative scores; at unique maxima the vertex is that structure."""
    polytope = declared(case)
    structures = np.stack(list(case.structures()))
    scores = cp.Parameter(polytope.shape)
    objective = cp.Maximize(cp.sum(cp.multiply(scores, polytope.variable)))
    problem = cp.Problem(objective, list(polytope.constraints))
    rng = np.random.default_rng(1)
    for k in range(24):
        draw = rng.standard_normal(polytope.shape)
        scores.value = [draw, np.round(draw), np.abs(draw)][k % 3]
        problem.solve(solver=cp.HIGHS)
        values = np.tensordot(structures, scores.value, axes=scores.ndim)
        assert problem.value == pytest.approx(values.max(), abs=1e-7)
        if len(values) == 1 or np.diff(np.sort(values)[-2:])[0] > 1e-6:
            np.testing.assert_allclose(polytope.variable.value, structures[values.argmax()], atol=1e-7)


def test_the_whole_catalogue_is_enumerated():
    helpers = {"edge_scores", "grid_arcs", "states_of"}
    assert {case.name.split("(")[0] for case in CASES} == set(polytopes.__all__) - helpers


@pytest.mark.parametrize(
    ("factory", "size", "shape"),
    [
        (simplex, (3,), (3,)),
        (cube, (3,), (3,)),
        (subset, (3,), (3,)),
        (matching, (3,), (3, 3)),
        (partial_matching, (2, 3), (2, 3)),
        (rectangular_matching, (2, 3), (2, 3)),
        (partial(sequence, states=5), (4,), (4, 5, 5)),
        (partial(linear_chain, states=5), (4,), (4, 5)),
        (grid_path, (3, 4), (17,)),
        (permutahedron, (3,), (3,)),
        (head_choice, (3,), (4, 4)),
        (arborescence, (3,), (4, 4)),
        (partial(arborescence, single_root=False), (3,), (4, 4)),
        (projective_tree, (3,), (4, 4)),
    ],
)
def test_families(factory, size, shape):
    assert ol.Family(factory)(*size).shape == shape
    with pytest.raises(ValueError, match="must be at least 1, but got 0"):
        factory(*(0 for _ in size))


@pytest.mark.parametrize("budget", [0.5, 1.5, 2.25])
def test_a_fractional_budget_is_kept(budget):
    polytope = subset(4)
    polytope.parameters[0].value = budget
    scores = np.array([3.0, 1.0, 2.0, -1.0])
    cp.Problem(cp.Maximize(scores @ polytope.variable), list(polytope.constraints)).solve(solver=cp.HIGHS)
    expected = np.clip(budget - np.array([0, 2, 1, 3]), 0, 1)
    np.testing.assert_allclose(polytope.variable.value, expected, atol=1e-7)


def path_score(path, unary, transition, start):
    return (
        sum(unary[t, j] for t, j in enumerate(path))
        + sum(transition[i, j] for i, j in itertools.pairwise(path))
        + start[path[0]]
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("with_start", [True, False])
def test_edge_scores_score_paths(steps, with_start):
    states, batch = 3, 2
    generator = torch.Generator().manual_seed(steps)
    unary = torch.randn(batch, steps, states, generator=generator, dtype=torch.float64)
    transition = torch.randn(states, states, generator=generator, dtype=torch.float64)
    start = torch.randn(batch, states, generator=generator, dtype=torch.float64)
    scores = edge_scores(unary, transition, start if with_start else None)
    assert scores.shape == (batch, steps, states, states)
    for k, path in itertools.product(range(batch), itertools.product(range(states), repeat=steps)):
        expected = path_score(path, unary[k], transition, start[k] if with_start else torch.zeros(states))
        found = (scores[k] * torch.from_numpy(edges_of(path, states))).sum()
        torch.testing.assert_close(found, expected.to(torch.float64))


def test_edge_scores_take_a_transition_and_a_start_for_all_or_for_each():
    generator = torch.Generator().manual_seed(0)
    unary = torch.randn(2, 3, 4, 5, generator=generator)
    transition, start = torch.randn(5, 5, generator=generator), torch.randn(5, generator=generator)
    shared = edge_scores(unary, transition, start)
    each = edge_scores(unary, transition.expand(2, 3, 5, 5), start.expand(2, 3, 5))
    mixed = edge_scores(unary, transition, start.expand(2, 3, 5))
    assert shared.shape == (2, 3, 4, 5, 5)
    assert torch.equal(shared, each) and torch.equal(shared, mixed)


def test_edge_scores_have_gradients():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 3), (3, 3), (3,)]
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(edge_scores, leaves)


def test_edge_scores_refuse_another_number_of_states():
    with pytest.raises(ValueError, match=r"transition ends in \(2, 2\) but there are 3 states"):
        edge_scores(torch.zeros(4, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"start ends in \(2,\) but there are 3 states"):
        edge_scores(torch.zeros(4, 3), torch.zeros(3, 3), torch.zeros(2))


def test_states_of_reads_paths():
    for path in itertools.product(range(3), repeat=4):
        found = states_of(torch.from_numpy(edges_of(path, 3)))
        assert torch.equal(found, torch.eye(3, dtype=torch.float64)[list(path)])
