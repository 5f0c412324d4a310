"""One polytope per layer: rows that are a relaxation of what an oracle knows are found, or declared."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch
from exact_hulls import nearest_of

import optlayers as ol
from optlayers.testing import check_oracle, check_rule


def structures(parts, exclusive):
    """All 0/1 vectors without two parts that exclude each other."""
    every = np.array(list(itertools.product((0.0, 1.0), repeat=parts)))
    for i, j in exclusive:
        every = every[every[:, i] + every[:, j] <= 1]
    return every


def crossing_or_touching(nodes):
    """Pairs of chords of a circle that cannot be drawn together."""
    chords = list(itertools.combinations(range(nodes), 2))
    pairs = []
    for (a, (i, j)), (b, (k, m)) in itertools.combinations(enumerate(chords), 2):
        if {i, j} & {k, m} or i < k < j < m or k < i < m < j:
            pairs.append((a, b))
    return len(chords), pairs


CONFLICTS = {
    "chords of 4": crossing_or_touching(4),
    "chords of 5": crossing_or_touching(5),
    "pentagon": (5, [(i, (i + 1) % 5) for i in range(5)]),
    "three in one of eight": (8, [(1, 4), (4, 6), (1, 6), (0, 2)]),
}
"""Odd cycles: half of each part satisfies the pairwise rows."""
EXACT = {"bipartite": (6, [(i, j) for i in (0, 1, 2) for j in (3, 4, 5)])}


def declared(parts, exclusive, *, limit=None, **more):
    """Parts of which some exclude each other, by a row for each pair; the oracle knows all structures."""
    every = structures(parts, exclusive)
    x = cp.Variable(parts, nonneg=True)
    rows = [x <= 1, *(x[i] + x[j] <= 1 for i, j in exclusive)]

    def best(scores, *parameters):
        usable = every if not parameters else every[every.sum(axis=1) <= parameters[0] + 1e-9]
        forbidden = np.isneginf(scores)
        values = usable @ np.where(forbidden, 0.0, scores)
        values[(usable[:, forbidden] > 0).any(axis=1)] = -np.inf
        return usable[np.argmax(values)]

    if limit is not None:
        rows.append(cp.sum(x) <= limit)
    return ol.Polytope(x, rows, oracle=best, integral=True, **more), every


@pytest.mark.parametrize("rows", [None, "relaxation"])
@pytest.mark.parametrize("name", CONFLICTS)
def test_projections_go_over_the_oracle_where_rows_are_a_relaxation(name, rows):
    polytope, every = declared(*CONFLICTS[name], rows=rows)
    compiled = ol.compile_polytope(polytope)
    scores = torch.cat([0.6 * torch.ones(1, polytope.shape[0]), torch.rand(6, *polytope.shape)]).double()
    found = compiled.project(scores).check().value
    for one, point in zip(scores, found, strict=True):
        np.testing.assert_allclose(point, nearest_of(every, one.numpy()), atol=1e-9)
    assert "a relaxation of what the oracle knows" in compiled.explain()


@pytest.mark.parametrize("rows", [None, "exact"])
def test_rows_that_describe_the_hull_are_projected_on(rows):
    polytope, every = declared(*EXACT["bipartite"], rows=rows)
    compiled = ol.compile_polytope(polytope)
    assert isinstance(compiled.projector, ol.Auto)
    assert "relaxation" not in compiled.explain()
    point = compiled.project(torch.full((6,), 0.6, dtype=torch.float64)).check().value
    np.testing.assert_allclose(point, nearest_of(every, np.full(6, 0.6)), atol=1e-9)


@pytest.mark.parametrize("projector", [ol.Clarabel(), ol.Auto(), ol.InteriorPoint(), ol.CvxpyLayers()])
@pytest.mark.parametrize("rows", [None, "relaxation"])
def test_a_projector_on_rows_that_are_a_relaxation_is_refused(projector, rows):
    polytope, _ = declared(*CONFLICTS["chords of 5"], rows=rows)
    with pytest.raises(ol.DeclarationError, match="are a relaxation of what the oracle knows"):
        ol.compile_polytope(polytope, projector=projector).project(torch.zeros(10))


@pytest.mark.parametrize("rows", [None, "relaxation"])
def test_a_maximizer_on_rows_beside_a_projector_over_the_oracle_is_refused(rows):
    polytope, _ = declared(*CONFLICTS["chords of 5"], rows=rows)
    with pytest.raises(ol.DeclarationError, match=r"Vertices would come from Highs.* and projections from ActiveSet"):
        ol.compile_polytope(polytope, maximizer=ol.Highs(), projector=ol.ActiveSet()).project(torch.zeros(10))


def test_without_the_oracle_the_relaxation_is_the_polytope():
    polytope, _ = declared(*CONFLICTS["pentagon"], rows="relaxation")
    for compiled in (
        ol.compile_polytope(polytope.without_oracle()),
        ol.compile_polytope(polytope, maximizer=ol.Auto()),
    ):
        solution = compiled.maximize(torch.ones(5)).check()
        torch.testing.assert_close(solution.value, torch.full((5,), 0.5))
        torch.testing.assert_close(compiled.project(torch.full((5,), 0.6)).check().value, torch.full((5,), 0.5))


def test_with_parameters_the_first_projection_tells():
    parts, exclusive = CONFLICTS["pentagon"]
    limit = cp.Parameter(name="limit", nonneg=True)
    polytope, every = declared(parts, exclusive, limit=limit)
    compiled = ol.compile_polytope(polytope)
    scores = torch.full((3, 5), 0.6, dtype=torch.float64)
    # A limit of 1 is a simplex, which the rows describe; one of 2 leaves room for halves.
    small = compiled.project(scores, limit=torch.ones(())).check().value
    torch.testing.assert_close(small, torch.full((3, 5), 0.2, dtype=torch.float64))
    with pytest.raises(ol.DeclarationError, match=r'score 2\.5 where .* has 2\..*rows="relaxation"'):
        compiled.project(scores, limit=torch.tensor(3.0))
    over_oracle, _ = declared(parts, exclusive, limit=limit, rows="relaxation")
    found = ol.compile_polytope(over_oracle).project(scores, limit=torch.tensor(3.0)).check().value
    np.testing.assert_allclose(found[0], nearest_of(every, np.full(5, 0.6)), atol=1e-9)


@pytest.mark.parametrize("rule", [ol.Spigot(), ol.SparseMAP(), ol.StructuredAttention()])
def test_rules_have_one_polytope(rule):
    polytope, _ = declared(*CONFLICTS["pentagon"])
    check_rule(rule, polytope)


def test_marginals_over_the_oracle_are_those_of_its_structures():
    polytope, every = declared(*CONFLICTS["three in one of eight"], rows="relaxation")
    scores = torch.randn(8, dtype=torch.float64)
    weights = torch.softmax(torch.from_numpy(every) @ scores, dim=0)
    found = ol.OptLayer(polytope, ol.StructuredAttention())(scores)
    torch.testing.assert_close(found, weights @ torch.from_numpy(every))


def test_a_relaxation_is_checked_by_branch_and_bound():
    polytope, _ = declared(*CONFLICTS["chords of 5"], rows="relaxation")
    check_oracle(polytope)

    def nothing(scores):
        return np.zeros(10)

    with pytest.raises(AssertionError, match="it misses the best score"):
        check_oracle(
            ol.Polytope(polytope.variable, polytope.constraints, oracle=nothing, integral=True, rows="relaxation")
        )


def test_what_rows_says_is_checked():
    x = cp.Variable(2, nonneg=True)
    with pytest.raises(ValueError, match='rows must be "exact", "relaxation" or None, but got True'):
        ol.Polytope(x, [cp.sum(x) == 1], rows=True)
    with pytest.raises(ValueError, match="is for declarations with an oracle"):
        ol.Polytope(x, [cp.sum(x) == 1], rows="relaxation")
