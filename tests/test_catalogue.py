"""Every polytope of the catalogue against enumeration."""

import numpy as np
import pytest
import torch
from catalogue import CATALOGUE, POLYTOPES, Entry
from exact_hulls import nearest_of

import optlayers as ol
import polytopes
from optlayers.testing import contains, is_vertex

each_polytope = pytest.mark.parametrize("entry", CATALOGUE, ids=repr)
each_declaration = pytest.mark.parametrize("entry", [e for e in POLYTOPES if not e.polytope.scored], ids=repr)


def scores_for(entry: Entry, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *entry.polytope.shape, generator=generator, dtype=torch.float64)


@pytest.mark.many(9)
@each_declaration
def test_best_vertex_is_the_best_of_all_structures(entry):
    scores = scores_for(entry, 40)
    found = ol.compile_polytope(entry.polytope).maximize(scores, **entry.parameters).check().value
    values = scores.reshape(40, -1).numpy() @ entry.vertices.reshape(len(entry.vertices), -1).T
    np.testing.assert_allclose(found.numpy(), entry.vertices[values.argmax(axis=1)], atol=1e-12)


@pytest.mark.many(7)
@each_declaration
def test_ties_are_decided_for_a_vertex_and_always_the_same_one(entry):
    compiled = ol.compile_polytope(entry.polytope)
    scores = scores_for(entry, 12).round()
    scores[0] = 0.0
    found = compiled.maximize(scores, **entry.parameters).check().value
    rows = {tuple(v) for v in entry.vertices.reshape(len(entry.vertices), -1)}
    assert all(tuple(x) in rows for x in found.reshape(12, -1).numpy())
    for k in reversed(range(12)):
        assert torch.equal(compiled.maximize(scores[k], **entry.parameters).value, found[k])


@pytest.mark.many(4)
@each_polytope
def test_every_structure_is_a_vertex(entry):
    points = torch.tensor(entry.vertices)
    some = points[:: max(1, len(points) // 12)]
    assert contains(entry.polytope, some, **entry.parameters).all()
    assert is_vertex(ol.compile_polytope(entry.polytope), some, **entry.parameters).all()
    if len(points) > 1:
        middle = points.mean(dim=0, keepdim=True)
        assert not is_vertex(ol.compile_polytope(entry.polytope), middle, **entry.parameters).any()
        assert not contains(entry.polytope, 2 * points[:1] - middle + 0.1, **entry.parameters).any()


@pytest.mark.many(9)
@each_declaration
def test_projection_equals_that_onto_the_convex_hull(entry):
    scores = scores_for(entry, 3, seed=1)
    found = ol.compile_polytope(entry.polytope).project(scores, **entry.parameters).check()
    for point, target in zip(found.value, scores, strict=True):
        np.testing.assert_allclose(point, nearest_of(entry.vertices, target.numpy()), atol=1e-9)
    assert (found.gap <= 1e-9).all()


@pytest.mark.many(7)
@each_declaration
def test_projection_gradient_by_finite_differences(entry):
    layer = ol.OptLayer(entry.polytope, ol.SparseMAP())
    scores = scores_for(entry, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: layer(s, **entry.parameters), (scores,), eps=1e-6, atol=1e-5)


def test_budget_gradient_by_finite_differences():
    layer = ol.OptLayer(polytopes.subset(5), ol.SparseMAP())
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    budget = torch.tensor([1.3, 2.0, 3.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: layer(scores, budget=b), (budget,), eps=1e-6, atol=1e-5)


def test_projection_onto_the_simplex_is_sparsemax():
    scores = 2 * torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ordered = scores.sort(dim=1, descending=True).values
    count = torch.arange(1, 9)
    support = (1 + count * ordered > ordered.cumsum(1)).sum(1, keepdim=True)
    threshold = (ordered.cumsum(1).gather(1, support - 1) - 1) / support
    found = ol.OptLayer(polytopes.simplex(8), ol.SparseMAP())(scores)
    torch.testing.assert_close(found, (scores - threshold).clamp_min(0.0), atol=1e-12, rtol=0)
    assert ((found == 0) == (scores <= threshold)).all()  # zeros are exact


def test_edge_scores_and_states_of_sequences():
    generator = torch.Generator().manual_seed(0)
    unary = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    transition = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    start = torch.randn(3, generator=generator, dtype=torch.float64)
    edges = ol.OptLayer(polytopes.sequence(4, 3), ol.Pipeline())(polytopes.edge_scores(unary, transition, start))
    path = polytopes.states_of(edges).argmax(-1)
    for b in range(5):
        best = max(
            np.ndindex(3, 3, 3, 3),
            key=lambda p, b=b: float(
                start[p[0]]
                + sum(unary[b, t, p[t]] for t in range(4))
                + sum(transition[p[t - 1], p[t]] for t in (1, 2, 3))
            ),
        )
        assert tuple(path[b].tolist()) == best


@pytest.mark.parametrize("make", [polytopes.simplex, polytopes.matching, polytopes.arborescence, polytopes.cube])
def test_sizes_below_one_are_refused(make):
    with pytest.raises(ValueError, match="must be at least 1, but got 0"):
        make(0)


def test_trees_of_ten_words_are_certified():
    compiled = ol.compile_polytope(polytopes.arborescence(10), maximizer=ol.Auto())
    scores = torch.randn(3, 11, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best, near = compiled.maximize(scores).check(), compiled.project(scores).check()
    assert ((best.value == 0) | (best.value == 1)).all() and (best.value.sum((1, 2)) == 10).all()
    assert torch.equal(
        best.value, ol.compile_polytope(polytopes.arborescence(10)).maximize(scores).value
    )  # its oracle's
    assert (best.gap <= 1e-9).all() and (near.gap <= 1e-9).all() and (near.primal_residual <= 1e-9).all()
