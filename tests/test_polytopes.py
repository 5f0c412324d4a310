"""The catalogue against enumeration: plain cvxpy with HiGHS and itertools, none of the library's solvers."""

from __future__ import annotations

import itertools
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import POLYTOPES, Entry, other_sizes

import optlayers as ol
from polytopes import (
    arborescence,
    cube,
    edge_scores,
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


CASES = [*(e for e in POLYTOPES if e.polytope.oracle is not None), *other_sizes()]
each_case = pytest.mark.parametrize("case", CASES, ids=repr)


def declared(case: Entry) -> ol.Polytope:
    for parameter in case.polytope.parameters:
        parameter.value = case.parameters[parameter.name()]
    return case.polytope


@each_case
def test_as_many_structures_as_known(case):
    assert len(np.unique(case.vertices, axis=0)) == len(case.vertices) == case.count


@pytest.mark.many(10)
@each_case
def test_every_structure_is_feasible(case):
    polytope = declared(case)
    structures = case.vertices
    target = cp.Parameter(polytope.shape)
    problem = cp.Problem(cp.Minimize(0), [*polytope.constraints, polytope.variable == target])
    rng = np.random.default_rng(0)
    for k in rng.permutation(len(structures))[:60]:  # a sample of the many trees
        assert structures[k].shape == polytope.shape
        target.value = structures[k]
        problem.solve(solver=cp.HIGHS)
        assert problem.status == cp.OPTIMAL


@pytest.mark.many(8)
@pytest.mark.parametrize("case", [e for e in CASES if e.polytope.separate is None], ids=repr)
def test_linear_maxima_are_structures(case):
    """On random, on integer (tied) and on non-negative scores; at unique maxima the vertex is that structure."""
    polytope = declared(case)
    structures = case.vertices
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


def edges_of(path: tuple[int, ...], states: int) -> np.ndarray:
    x = np.zeros((len(path), states, states))
    for step, (before, state) in enumerate(zip((0, *path[:-1]), path, strict=True)):
        x[step, before, state] = 1
    return x


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
