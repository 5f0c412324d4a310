"""Forbidden parts that can be below and above 0: no face, so vertices are others than those that an oracle knows."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import torch

import optlayers as ol

CROSS = np.array([*np.eye(3), *-np.eye(3)])
SIGNS = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
TILTED = np.array([[-1.0, 2.0, 0.0], [1.0, 1.0, 1.0], [2.0, -1.0, 2.0], [-1.0, -1.0, -2.0]])
"""A tetrahedron."""


def declared(vertices: np.ndarray, *, hidden: bool = False, rows: str | None = None) -> ol.Polytope:
    """The hull of vertices by its facets, or by the weights of its vertices, with an oracle over them."""

    def best(scores: np.ndarray) -> np.ndarray:
        blocked = ((vertices != 0) & np.isneginf(scores)).any(axis=1)
        values = vertices @ np.where(np.isneginf(scores), 0.0, scores)
        return np.full(3, np.nan) if blocked.all() else vertices[np.argmax(np.where(blocked, -np.inf, values))]

    x = cp.Variable(3)
    if hidden:
        weight = cp.Variable(len(vertices), nonneg=True)
        return ol.Polytope(x, [x == vertices.T @ weight, cp.sum(weight) == 1], oracle=best, rows=rows)
    matrix, room = facets(vertices)
    return ol.Polytope(x, [matrix @ x <= room], oracle=best, rows=rows)


def facets(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    equations = scipy.spatial.ConvexHull(vertices).equations
    return equations[:, :3], -equations[:, 3]


def best_value(vertices: np.ndarray, scores: np.ndarray) -> float | None:
    """By a linear program over the weights of vertices; None where no point has 0 at the forbidden parts."""
    forbidden = np.isneginf(scores)
    finite = np.where(forbidden, 0.0, scores)
    equal = np.vstack([np.ones(len(vertices)), vertices[:, forbidden].T])
    found = scipy.optimize.linprog(-vertices @ finite, A_eq=equal, b_eq=[1.0] + [0.0] * int(forbidden.sum()))
    return None if found.status == 2 else -found.fun


def some_scores(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return scores.masked_fill(torch.rand(count, 3, generator=generator) < 0.4, -torch.inf)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("vertices", [CROSS, SIGNS, TILTED], ids=["cross", "signs", "tetrahedron"])
def test_best_vertices_are_those_of_the_section(vertices, hidden):
    compiled, scores = ol.compile_polytope(declared(vertices, hidden=hidden)), some_scores(40)
    solution = compiled.maximize(scores)
    for k, row in enumerate(scores.numpy()):
        best = best_value(vertices, row)
        if best is None:
            assert solution.status[k] == ol.Status.INFEASIBLE
            continue
        value = solution.value[k].numpy()
        assert solution.status[k] == ol.Status.OPTIMAL and not value[np.isneginf(row)].any()
        assert value @ np.where(np.isneginf(row), 0.0, row) == pytest.approx(best, abs=1e-9)
        alone = compiled.maximize(scores[k : k + 1])
        torch.testing.assert_close(alone.value[0], solution.value[k], atol=1e-12, rtol=0.0)
        torch.testing.assert_close(alone.gap[0], solution.gap[k], atol=1e-12, rtol=0.0, equal_nan=True)


@pytest.mark.parametrize("ask", ["maximize", "project"])
def test_where_rows_are_a_relaxation_nobody_knows_the_section(ask):
    compiled = ol.compile_polytope(declared(SIGNS, rows="relaxation"))
    solution = getattr(compiled, ask)(torch.tensor([[-torch.inf, 1.0, 0.3], [0.5, 1.0, 0.3]], dtype=torch.float64))
    assert solution.status.tolist() == [ol.Status.FAILED, ol.Status.OPTIMAL]
    assert "not known to keep its sign" in solution.reasons[0]


def test_projections_over_an_oracle_are_refused():
    compiled = ol.compile_polytope(declared(CROSS), projector=ol.ActiveSet())
    solution = compiled.project(torch.tensor([[-torch.inf, 1.0, 0.3], [0.5, 1.0, 0.3]], dtype=torch.float64))
    assert solution.status.tolist() == [ol.Status.FAILED, ol.Status.OPTIMAL]


def test_signs_that_only_the_oracle_knows_are_no_obstacle():
    """Parts are at least 0 by other variables alone: forbidding one leaves a face, and the oracle answers."""
    asked = []

    def best(scores):
        asked.append(scores.copy())
        return np.eye(3)[np.argmax(scores)]

    x, weight = cp.Variable(3), cp.Variable(3, nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [x == weight, cp.sum(x) == 1], oracle=best))
    solution = compiled.maximize(torch.tensor([[-torch.inf, 1.0, 0.3]], dtype=torch.float64))
    assert solution.value.tolist() == [[0.0, 1.0, 0.0]] and any(np.isneginf(s).any() for s in asked)


def test_parts_that_hidden_rows_fix_cannot_be_forbidden():
    """Nor does it matter who else is in the batch."""
    x, y = cp.Variable(3), cp.Variable(2)
    vertices = np.array([[1.0, a, b] for a in (-1.0, 1.0) for b in (-0.5, 0.5)])
    hidden = [x[0] + y[0] == 2, y[0] + y[1] == 3, y[1] == 2, cp.abs(x[1]) <= 1, cp.abs(x[2]) <= 0.5]
    polytope = ol.Polytope(x, hidden, oracle=declared(vertices, hidden=True).oracle)
    compiled, none = ol.compile_polytope(polytope), -torch.inf
    scores = torch.tensor([[none, none, 0.3], [none, 1.0, 0.3], [0.1, none, 0.3]], dtype=torch.float64)
    solution = compiled.maximize(scores)
    assert solution.status.tolist() == [ol.Status.INFEASIBLE, ol.Status.INFEASIBLE, ol.Status.OPTIMAL]
    assert solution.value[2].tolist() == [1.0, 0.0, 0.5]
    assert compiled.maximize(scores[1:2]).status.tolist() == [ol.Status.INFEASIBLE]
