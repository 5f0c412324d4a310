"""Best vertices with the derivative of the central path."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch
from catalogue import BY_CONSTRAINTS, Entry
from drawing import draw
from torch.autograd import gradcheck

import optlayers as ol
from optlayers.testing import check_rule, contains
from polytopes import arborescence, cube, matching, permutahedron, semantic_graph, simplex, subset

SMALL = {
    "simplex": simplex(4),
    "cube": cube(3),
    "matching": matching(3),
    "tree": arborescence(3),
    "ranking": permutahedron(3),
}
SEVERAL = [entry for entry in BY_CONSTRAINTS if entry.count > 1]


@pytest.mark.parametrize("name", SMALL)
def test_the_vertex_goes_forward_and_the_derivative_of_the_point_goes_back(name):
    polytope, signal = SMALL[name], draw(3, *SMALL[name].shape, seed=1)
    compiled, leaf = ol.compile_polytope(polytope), draw(3, *polytope.shape).requires_grad_()
    hard, soft = (ol.OptLayer(compiled, ol.CentralPath(mu=0.2, hard=hard)) for hard in (True, False))
    vertex, point = hard(leaf), soft(leaf)
    assert torch.equal(vertex, compiled.maximize(leaf.detach()).value)
    assert torch.equal(point, compiled.regularized(leaf.detach(), ol.Barrier(0.2)).value)
    assert torch.equal(*(torch.autograd.grad(found, leaf, signal)[0] for found in (vertex, point)))


@pytest.mark.many(3)
@pytest.mark.parametrize("mu", [1e-2, 0.2, 10.0])
@pytest.mark.parametrize("name", SMALL)
def test_derivatives_are_those_of_finite_differences(name, mu):
    layer = ol.OptLayer(SMALL[name], ol.CentralPath(mu=mu, hard=False))
    leaf = draw(2, *SMALL[name].shape, seed=3).requires_grad_()
    assert gradcheck(layer, leaf, eps=1e-5 * min(1.0, 10.0 * mu), atol=1e-6)


def test_the_point_on_the_cube_is_a_closed_form():
    """s + mu / z - mu / (1 - z) = 0 is a quadratic equation."""
    scores, mu = 3.0 * draw(4, 3), 0.3
    point = ol.compile_polytope(cube(3)).regularized(scores, ol.Barrier(mu)).check().value
    expected = (scores - 2.0 * mu + (scores.square() + 4.0 * mu**2).sqrt()) / (2.0 * scores)
    assert (point - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("mu", [1e-4, 1e-2, 1.0, 1e3])
def test_the_point_on_the_simplex_has_one_multiplier(mu, scale):
    """mu / z less the multiplier is minus the score: z is right if these differences agree."""
    scores = scale * draw(4, 5)
    point = ol.compile_polytope(simplex(5)).regularized(scores, ol.Barrier(mu)).check().value
    price = scores + mu / point
    assert ((price - price[:, :1]).abs() <= 1e-6 * price.abs()).all() and (point.sum(1) - 1.0).abs().max() <= 1e-12


@pytest.mark.parametrize("name", SMALL)
def test_small_mu_leaves_the_vertex(name):
    scores, compiled = draw(4, *SMALL[name].shape, seed=3), ol.compile_polytope(SMALL[name])
    vertex = compiled.maximize(scores).value
    off = [(compiled.regularized(scores, ol.Barrier(mu)).check().value - vertex).abs().max() for mu in (1e-2, 1e-6)]
    assert off[1] <= 1e-4 and off[1] <= off[0]


def test_parameters_have_gradients():
    mu = cp.Parameter(pos=True, name="mu")
    layer = ol.OptLayer(subset(4), ol.CentralPath(mu=mu, hard=False))
    numbers = torch.tensor([0.2, 0.5], dtype=torch.float64, requires_grad=True)
    budget = torch.tensor([1.4, 2.3], dtype=torch.float64, requires_grad=True)
    call = (draw(2, 4).requires_grad_(), budget, numbers)
    assert gradcheck(lambda s, b, m: layer(s, budget=b, mu=m), call, eps=1e-6, atol=1e-6)
    hard = ol.OptLayer(subset(4), ol.CentralPath(mu=0.2))
    soft = ol.OptLayer(subset(4), ol.CentralPath(mu=0.2, hard=False))
    whole = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    weights = draw(2, 4, seed=1)
    found, expected = (
        torch.autograd.grad((each(call[0], budget=whole) * weights).sum(), whole)[0] for each in (hard, soft)
    )
    assert torch.equal(found, expected)


@pytest.mark.many(3)
@pytest.mark.parametrize("entry", SEVERAL, ids=repr)
@pytest.mark.parametrize("rule", [ol.CentralPath(0.1), ol.CentralPath(0.1, hard=False)], ids=repr)
def test_the_contract_of_rules(rule, entry: Entry):
    check_rule(rule, entry.polytope, **entry.parameters)


@pytest.mark.many(3)
@pytest.mark.parametrize("entry", SEVERAL, ids=repr)
def test_points_lie_in_the_polytope(entry: Entry):
    scores = torch.cat([scale * draw(3, *entry.polytope.shape) for scale in (1e-3, 1.0, 30.0)])
    point = ol.compile_polytope(entry.polytope).regularized(scores, ol.Barrier(0.1), **entry.parameters).check().value
    assert contains(entry.polytope, point, **entry.parameters).all()


def test_a_forbidden_whole_takes_its_parts_along():
    """Inequalities between these have no room then, and count for nothing; what else there is does not see it."""
    polytope = semantic_graph(2, 1, 1)
    scores = draw(3, *polytope.shape)
    masked = scores.clone()
    masked[:, 0, 0, 0] = -torch.inf
    layer = ol.OptLayer(polytope, ol.CentralPath(mu=0.2, hard=False))
    found, apart = layer(masked), layer(scores)
    assert (found[:, 0] == 0.0).all() and (found[:, 1, 1, 0] > 0.0).all()
    torch.testing.assert_close(found[:, 1], apart[:, 1], atol=1e-9, rtol=0.0)
    assert gradcheck(
        lambda s: layer(torch.cat([masked[:, :1], s], 1)), scores[:, 1:].clone().requires_grad_(), fast_mode=True
    )


def test_a_mask_leaves_the_barrier_of_what_is_left():
    """Flows without room, and those that rows give one value beside them, count for nothing: as if never declared."""
    scores = draw(4, 3)

    def declared(parts: int) -> ol.Polytope:
        x, flow, sent = cp.Variable(parts, nonneg=True), cp.Variable((parts, 2), nonneg=True), cp.Variable()
        return ol.Polytope(x, [x == cp.sum(flow, axis=1), cp.sum(flow) == sent, sent <= 2, sent >= 1, flow <= 0.9])

    layer, smaller = (ol.OptLayer(declared(parts), ol.CentralPath(mu=0.1, hard=False)) for parts in (3, 2))
    masked = torch.cat([torch.full((4, 1), -torch.inf, dtype=torch.float64), scores[:, 1:]], 1)
    torch.testing.assert_close(layer(masked)[:, 1:], smaller(scores[:, 1:]), atol=1e-9, rtol=0.0)
    forbidden = torch.tensor([True, False, False])
    leaf = scores.clone().requires_grad_()
    assert gradcheck(lambda s: layer(s.masked_fill(forbidden, -torch.inf)), leaf, fast_mode=True)


@pytest.mark.many(4)
@pytest.mark.parametrize("entry", [e for e in SEVERAL if not e.polytope.scored], ids=repr)
def test_random_masks_have_answers(entry: Entry):
    generator = torch.Generator().manual_seed(3)
    vertices = torch.from_numpy(entry.vertices).reshape(len(entry.vertices), -1)
    mask = torch.rand(40, vertices.shape[1], generator=generator) < 0.3
    mask &= ((vertices[None] * mask[:, None]) == 0.0).all(2).any(1, keepdim=True)  # of those that leave a vertex
    scores = torch.randn(40, vertices.shape[1], generator=generator, dtype=torch.float64).masked_fill(mask, -torch.inf)
    compiled = ol.compile_polytope(entry.polytope)
    solution = compiled.regularized(scores.reshape(40, *compiled.shape), ol.Barrier(0.1), **entry.parameters)
    assert (~solution.ok).sum() <= 1  # one in some thousands has no verdict, for numerical reasons
    point, mask = solution.value[solution.ok], mask[solution.ok]
    assert (point.flatten(1)[mask] == 0.0).all() and contains(entry.polytope, point, **entry.parameters).all()


def test_inequalities_that_are_equalities_leave_no_point():
    x = cp.Variable(3, nonneg=True)
    disguised = ol.Polytope(x, [cp.sum(x) <= 1, cp.sum(x) >= 1])
    assert not ol.compile_polytope(disguised).regularized(draw(2, 3), ol.Barrier()).ok.any()


def test_forbidden_parts_have_no_barrier():
    scores = draw(2, 5)
    masked = scores.clone()
    masked[:, 1] = -torch.inf
    point = ol.compile_polytope(simplex(5)).regularized(masked, ol.Barrier(0.2)).check().value
    rest = [0, 2, 3, 4]
    smaller = ol.compile_polytope(simplex(4)).regularized(scores[:, rest], ol.Barrier(0.2)).value
    assert (point[:, 1] == 0.0).all() and (point[:, rest] - smaller).abs().max() <= 1e-10
