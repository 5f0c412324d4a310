"""Auxiliary variables that are scored but count for nothing in distances (LP-SparseMAP)."""

from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol
import polytopes
from optlayers.testing import check_polytope

CHAIN = polytopes.linear_chain(4, 3)
BOTH = pytest.mark.parametrize("polytope", [CHAIN, CHAIN.without_oracle()], ids=["oracle", "rows"])


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, 4, 3, generator=generator, dtype=torch.float64)
    transition = torch.randn(count, 4, 3, 3, generator=generator, dtype=torch.float64)
    return scores.requires_grad_(), transition.requires_grad_()


@BOTH
def test_projections_maximize_what_they_are_defined_by(polytope):
    """Against cvxpy, which solves the definition as it stands."""
    scores, transition = (t.detach() for t in draw(4))
    found = ol.compile_polytope(polytope).project(scores, transition=transition).check()
    x, v = CHAIN.variable, CHAIN.scored[0]
    for k in range(4):
        gain = cp.sum(cp.multiply(scores[k].numpy(), x)) + cp.sum(cp.multiply(transition[k].numpy(), v))
        problem = cp.Problem(cp.Maximize(gain - 0.5 * cp.sum_squares(x)), CHAIN.constraints)
        problem.solve(
            solver=cp.CLARABEL,
            canon_backend=cp.SCIPY_CANON_BACKEND,
            tol_gap_abs=1e-12,
            tol_gap_rel=1e-12,
            tol_feas=1e-12,
        )
        np.testing.assert_allclose(found.value[k], x.value, atol=1e-6)
        np.testing.assert_allclose(found.scored["transition"][k], v.value, atol=1e-6)


def test_oracle_and_rows_agree_in_values_and_gradients():
    scores, transition = draw(20)
    weights = draw(20, seed=1)[0].detach()
    values, gradients = [], []
    for polytope in (CHAIN, CHAIN.without_oracle()):
        value = ol.OptLayer(polytope, ol.SparseMAP())(scores, transition=transition)
        values.append(value.detach())
        gradients.append(torch.autograd.grad((value * weights).sum(), (scores, transition)))
    assert (values[0] - values[1]).abs().max() <= 1e-7
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine - theirs).abs().max() <= 1e-6
    assert gradients[0][1].abs().max() > 1e-2


@BOTH
def test_gradients_by_finite_differences(polytope):
    for rule in (ol.SparseMAP(), ol.StructuredAttention()):
        layer = ol.OptLayer(polytope, rule)
        assert torch.autograd.gradcheck(lambda s, t, layer=layer: layer(s, transition=t), draw(3), eps=1e-6, atol=1e-5)


def test_weights_have_a_gradient_for_auxiliary_scores_too():
    layer, (scores, transition) = ol.OptLayer(CHAIN, ol.SparseMAP()), draw(1, seed=4)

    def point(s, t):
        solution = layer.solve(s, transition=t)
        return torch.einsum("bk,bktc->btc", solution.weights, solution.vertices)

    assert torch.autograd.gradcheck(point, (scores, transition), eps=1e-6, atol=1e-5)
    solution = layer.solve(scores, transition=transition)
    assert (solution.scored["transition"].sum((2, 3)) - 1).abs().max() <= 1e-12


@BOTH
@pytest.mark.parametrize("rule", [ol.Pipeline(), ol.StraightThrough(), ol.Spigot(0.5)], ids=repr)
def test_decisions_count_transitions(polytope, rule):
    scores, transition = draw(6)
    layer = ol.OptLayer(polytope, rule)
    found = layer(scores, transition=transition)
    edges = polytopes.edge_scores(scores, torch.zeros(3, 3, dtype=torch.float64)) + transition
    best = polytopes.states_of(ol.OptLayer(polytopes.sequence(4, 3), ol.Pipeline())(edges))
    assert torch.equal(found, best)
    found.square().sum().backward()
    assert (transition.grad == 0).all()  # nothing was asked of the edges
    assert torch.isfinite(scores.grad).all() and (scores.grad.abs().max() > 0) == (rule != ol.Pipeline())


def test_one_transition_matrix_for_all_collects_the_gradients_of_all():
    layer = ol.OptLayer(CHAIN, ol.SparseMAP())
    scores, transition = draw(5)
    shared = transition[0].detach().requires_grad_()
    layer(scores, transition=shared).square().sum().backward()
    each = transition[0].detach().expand(5, 4, 3, 3).clone().requires_grad_()
    layer(scores, transition=each).square().sum().backward()
    assert (shared.grad - each.grad.sum(0)).abs().max() <= 1e-12


def test_chains_of_mixed_length():
    layer = ol.OptLayer(ol.Family(partial(polytopes.linear_chain, states=3)), ol.SparseMAP())
    scores, transition = draw(4)
    value = layer(scores, sizes=[4, 1, 2, 1], transition=transition)
    for k, size in enumerate([4, 1, 2, 1]):
        alone = ol.OptLayer(polytopes.linear_chain(size, 3), ol.SparseMAP())
        assert torch.equal(alone(scores[k, :size], transition=transition[k, :size]), value[k, :size])
        assert (value[k, size:] == 0).all()
    value.square().sum().backward()
    assert (transition.grad[0] != 0).any() and (transition.grad[2, 2:] == 0).all()


@BOTH
def test_forbidden_transitions(polytope):
    scores, transition = (t.detach().clone() for t in draw(3))
    transition[:, :, 0, 1] = -torch.inf
    transition[2, 1:] = -torch.inf
    solution = ol.compile_polytope(polytope).project(scores, transition=transition)
    assert solution.status.tolist() == [ol.Status.OPTIMAL, ol.Status.OPTIMAL, ol.Status.INFEASIBLE]
    assert (solution.scored["transition"][:2, 1:, 0, 1] == 0).all()


@pytest.mark.parametrize("rule", [ol.Spigot(), ol.SparseMAP()], ids=repr)
def test_a_single_number_may_be_scored(rule):
    """The largest entry of the structure, at a price: the budget that a choice needs."""
    x, most = cp.Variable(3, bounds=[0, 1]), cp.Variable(name="most", bounds=[0, 1])
    layer = ol.OptLayer(ol.Polytope(x, [x <= most], scored=[most]), rule)
    scores = torch.tensor([[0.9, 0.6, -1.0], [0.4, 0.3, 0.1]], dtype=torch.float64)
    prices = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    value, found = layer.lifted(scores, most=prices)
    # Of the first: (0.9 + 0.6 - 1)/2 = 0.25 maximizes 1.5 m - m^2 - m.
    expected = [[1.0, 1.0, 0.0], [0.0] * 3] if rule == ol.Spigot() else [[0.25, 0.25, 0.0], [0.0] * 3]
    assert (value - torch.tensor(expected)).abs().max() <= 1e-9
    assert (found["most"] - torch.tensor(expected)[:, 0]).abs().max() <= 1e-9
    (slope,) = torch.autograd.grad(value.sum(), prices)
    assert (slope - torch.tensor([0.0 if rule == ol.Spigot() else 1.0, 0.0])).abs().max() <= 1e-9
    one = layer(scores[0], most=torch.tensor(-1.0, dtype=torch.float64))
    assert torch.equal(one, value[0].detach())
    solution = layer.solve(scores[0], most=prices[0].detach())
    assert solution.scored["most"].shape == () and torch.equal(solution.scored["most"], found["most"][0])
    assert layer(scores[:0], most=prices[:0]).shape == (0, 3)


def test_lifted_points_are_those_of_solve():
    scores, transition = (t.detach() for t in draw(4))
    for polytope in (CHAIN, CHAIN.without_oracle()):
        layer = ol.OptLayer(polytope, ol.SparseMAP())
        value, found = layer.lifted(scores, transition=transition)
        solution = layer.solve(scores, transition=transition)
        assert torch.equal(value, solution.value) and list(found) == ["transition"]
        assert torch.equal(found["transition"], solution.scored["transition"])
    shared = layer.lifted(scores.reshape(2, 2, 4, 3), transition=transition[0])[1]["transition"]
    assert shared.shape == (2, 2, 4, 3, 3)
    assert ol.OptLayer(polytopes.matching(3), ol.Spigot()).lifted(torch.zeros(3, 3))[1] == {}


def test_lifted_points_of_mixed_length():
    family = ol.Family(partial(polytopes.linear_chain, states=3))
    scores, transition = (t.detach() for t in draw(4))
    value, found = ol.OptLayer(family, ol.Spigot()).lifted(scores, sizes=[4, 0, 2, 4], transition=transition)
    for k, size in enumerate([4, 0, 2, 4]):
        edges = found["transition"][k]
        assert (edges[size:] == 0).all() and torch.equal(edges[:size].sum(1), value[k, :size])
    single = ol.OptLayer(family, ol.Spigot()).lifted(scores, sizes=[1, 1, 1, 1], transition=transition[0, :2].float())
    assert single[1]["transition"].shape == (4, 2, 3, 3) and single[1]["transition"].dtype == torch.float64


def test_lifted_points_that_are_missing_are_nan():
    scores, transition = (t.detach().clone() for t in draw(3))
    transition[2, 1:] = -torch.inf
    layer = ol.OptLayer(CHAIN, ol.SparseMAP(), on_failure="nan")
    value, found = layer.lifted(scores, transition=transition)
    assert value[2].isnan().all() and found["transition"][2].isnan().all()
    assert value[:2].isfinite().all() and found["transition"][:2].isfinite().all()
    with pytest.raises(ol.SolveError, match="instance 2 is INFEASIBLE"):
        ol.OptLayer(CHAIN, ol.SparseMAP()).lifted(scores, transition=transition)


def test_lifted_points_have_bounds_of_use():
    scores, transition = (t.detach() for t in draw(3))
    layer = ol.OptLayer(CHAIN, ol.SparseMAP())
    with pytest.raises(NotImplementedError, match=r"lifted\(\) cannot be transformed"):
        torch.func.vmap(lambda s: layer.lifted(s, transition=transition[0])[0])(scores)
    with pytest.raises(TypeError, match=r"works with losses, which lifted\(\) does not take"):
        ol.OptLayer(CHAIN, ol.ScoreFunction()).lifted(scores, transition=transition)
    with pytest.raises(TypeError, match="sizes= is for layers over a Family"):
        layer.lifted(scores, sizes=[1, 2, 3], transition=transition)


def test_a_declaration_with_fractional_vertices_is_found_out():
    """Three bits of which every two differ, as far as pairs can say: all of them are halves then."""
    x, v = cp.Variable(3, bounds=[0, 1]), cp.Variable(3, nonneg=True, name="both")
    one, other = x[[0, 1, 2]], x[[1, 2, 0]]
    triangle = [v <= one, v <= other, v >= one + other - 1]
    apart = -torch.ones(3, dtype=torch.float64)
    best = ol.compile_polytope(ol.Polytope(x, triangle, scored=[v])).maximize(-apart, both=3.0 * apart)
    assert best.value.tolist() != best.value.round().tolist()
    with pytest.raises(AssertionError, match="integral=True, but vertices are fractional"):
        check_polytope(ol.Polytope(x, triangle, scored=[v], integral=True), both=3.0 * apart, samples=40)


def test_what_is_given_wrongly_is_named():
    layer = ol.OptLayer(CHAIN, ol.SparseMAP())
    scores, transition = (t.detach() for t in draw(2))
    with pytest.raises(TypeError, match=r"scores of transition are missing: give transition=, of shape \(4, 3, 3\)"):
        layer(scores)
    with pytest.raises(ValueError, match=r"transition has shape \(3, 3\), but it is declared with shape \(4, 3, 3\)"):
        layer(scores, transition=transition[0, 0])
    wrong = transition.clone()
    wrong[1, 2, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"transition hold nan at batch index 1, entry \[2, 0, 1\]"):
        layer(scores, transition=wrong)
    with pytest.raises(TypeError, match=r"transition must be real and floating-point .* got torch.int64"):
        layer(scores, transition=transition.long())
    x, v = cp.Variable(2, nonneg=True), cp.Variable(2, nonneg=True)
    with pytest.raises(ValueError, match=r"scored\[0\] of shape \(2,\) has no name"):
        ol.Polytope(x, [cp.sum(x) == 1, v == x], scored=[v])
    with pytest.raises(ValueError, match="no auxiliary variable of the constraints"):
        ol.Polytope(x, [cp.sum(x) == 1], scored=[cp.Variable(2, name="w")])
    w = cp.Variable(2, nonneg=True, name="w")
    with pytest.raises(ol.DeclarationError, match="'w' is taken by an argument of the layer or a scored variable"):
        ol.compile_polytope(ol.Polytope(x, [cp.sum(x) == cp.Parameter(name="w"), w == x], scored=[w]))
    report = ol.compile_polytope(CHAIN).explain()
    assert "Scored besides, but not regularized: transition (4, 3, 3)" in report


def test_general_solvers_agree_on_scored_variables():
    polytope = CHAIN.without_oracle()
    scores, transition = (t.detach() for t in draw(6))
    expected = ol.compile_polytope(polytope).project(scores, transition=transition).check().value
    for projector in (ol.InteriorPoint(), ol.Clarabel(), ol.Dense()):
        found = ol.compile_polytope(polytope, projector=projector).project(scores, transition=transition).check()
        assert (found.value - expected).abs().max() <= 1e-6, projector
    best = ol.compile_polytope(polytope).maximize(scores, transition=transition).check().value
    for maximizer in (ol.InteriorPoint(), ol.Highs(), ol.Dense()):
        found = ol.compile_polytope(polytope, maximizer=maximizer).maximize(scores, transition=transition).check()
        assert torch.equal(found.value, best), maximizer
    with pytest.raises(ol.DeclarationError, match="auxiliary columns; use InteriorPoint"):
        ol.compile_polytope(polytope, projector=ol.DualNewton())
    with pytest.raises(ol.DeclarationError, match=r"\['transition'\] are scored too"):
        ol.compile_polytope(polytope, projector=ol.CvxpyLayers())
