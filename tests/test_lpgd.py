"""LPGD and what it rests on: gradients of optimal values with respect to parameters."""

import cvxpy as cp
import pytest
import torch
from catalogue import CATALOGUE
from drawing import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from random_polytopes import random_case

import optlayers as ol
from optlayers.bound.device import DevicePolytope
from polytopes import linear_chain, matching, subset

entries = st.sampled_from([e for e in CATALOGUE if len(e.vertices) > 1])
seeds = st.integers(0, 10_000)
COMPILED = {e.name: ol.compile_polytope(e.polytope) for e in CATALOGUE}
SIDES = ("lower", "upper", "both")


def review() -> ol.Polytope:
    x, load = cp.Variable((6, 4)), cp.Parameter(4, name="load", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x, axis=1) == 2, cp.sum(x, axis=0) <= load])


def knapsack() -> ol.Polytope:
    """Parameters in a right-hand side, in both bounds, and twice in the matrix; an auxiliary variable."""
    x, spare = cp.Variable(5), cp.Variable(2, nonneg=True)
    weight, profit = cp.Parameter((2, 5), name="weight"), cp.Parameter(5, name="profit")
    room, low, high = (cp.Parameter(n, name=name) for n, name in ((2, "room"), (5, "low"), (5, "high")))
    rows = [weight @ x + spare == room, spare <= 3 * room, profit @ x >= 0.8]
    return ol.Polytope(x, [x >= low, x <= high, *rows])


def uniform(low, high, *shape, seed=0):
    found = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return low + (high - low) * found


def parameters_of(name, count):
    if name == "subset":
        return {"budget": uniform(0.2, 4.8, count)}
    if name == "review":
        return {"load": uniform(3.1, 4.9, count, 4)}
    return {
        "weight": uniform(0.3, 1.5, count, 2, 5),
        "profit": uniform(0.3, 1.5, count, 5, seed=1),
        "room": uniform(1.0, 2.0, count, 2, seed=2),
        "low": uniform(0.0, 0.1, count, 5, seed=3),
        "high": uniform(0.6, 1.2, count, 5, seed=4),
    }


POLYTOPES = {"subset": subset(5).without_oracle(), "review": review(), "knapsack": knapsack()}
each_polytope = pytest.mark.parametrize("name", POLYTOPES)


def bound(compiled, parameters, count, forbidden=None):
    return compiled.bind({n: v.reshape(count, -1) for n, v in parameters.items()}, forbidden, count).numbers


def value_of(solution, scores, smooth):
    values = (scores * solution.value).sum(1)
    return values - 0.5 * solution.value.square().sum(1) if smooth else values


def quotient(function, given, name, step):
    """Central differences of ``function(given) -> (batch,)`` in every entry of one parameter."""
    base = given[name].reshape(len(given[name]), -1)
    columns = []
    for k in range(base.shape[1]):
        moved = torch.zeros_like(base)
        moved[:, k] = step
        ends = [function(given | {name: (base + sign * moved).reshape(given[name].shape)}) for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(columns, dim=1).reshape(given[name].shape)


# Gradients of optimal values


@each_polytope
@pytest.mark.parametrize("smooth", [False, True], ids=["maximize", "project"])
def test_value_gradients_by_finite_differences(name, smooth):
    compiled, count = ol.compile_polytope(POLYTOPES[name]), 8
    given = parameters_of(name, count)
    scores = draw(count, compiled.projection_form.size, seed=5)

    def solved(polytope):
        return (polytope.project(scores) if smooth else polytope.maximize(scores)).check()

    host = bound(compiled, given, count)
    found = host.value_gradient(solved(host))
    for which in given:
        expected = quotient(lambda p: value_of(solved(bound(compiled, p, count)), scores, smooth), given, which, 1e-4)
        assert expected.abs().max() > 1e-2
        # A value is exact to 1e-9 or so; that of a linear program is linear next to it.
        torch.testing.assert_close(found[which].reshape(expected.shape), expected, atol=2e-4, rtol=1e-3)
    reference = ol.compile_polytope(POLYTOPES[name], maximizer=ol.Highs(), projector=ol.Clarabel())
    device = DevicePolytope(compiled, torch.from_numpy(host.theta), None, host.precision)
    for other in (bound(reference, given, count), device):
        again = other.value_gradient(solved(other))
        for which, gradient in found.items():
            torch.testing.assert_close(again[which], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("smooth", [False, True], ids=["maximize", "project"])
def test_at_kinks_a_supergradient_is_given(smooth):
    """Optimal values are concave in right-hand sides, so V(θ + d) <= V(θ) + <gradient, d>, near and far."""
    generator = torch.Generator().manual_seed(0)
    for name, whole in (("subset", {"budget": torch.tensor([1.0, 2.0, 3.0, 4.0] * 2)}), ("review", {"load": 4.0})):
        compiled, count = ol.compile_polytope(POLYTOPES[name]), 8
        given = {n: torch.as_tensor(v).double().expand(parameters_of(name, count)[n].shape) for n, v in whole.items()}
        scores = draw(count, compiled.projection_form.size, seed=6).round(decimals=1)
        polytope = bound(compiled, given, count)
        solution = polytope.project(scores) if smooth else polytope.maximize(scores)
        here, gradient = value_of(solution, scores, smooth), polytope.value_gradient(solution)
        for size in (1e-3, 0.3, 0.9):
            moves = {n: size * (2 * torch.rand(v.shape, generator=generator).double() - 1) for n, v in given.items()}
            there = bound(compiled, {n: v + moves[n] for n, v in given.items()}, count)
            moved = (there.project(scores) if smooth else there.maximize(scores)).check()
            promise = sum((gradient[n] * move).reshape(count, -1).sum(1) for n, move in moves.items())
            assert (value_of(moved, scores, smooth) <= here + promise + 1e-7).all()


@pytest.mark.many(8)
@pytest.mark.parametrize("seed", [s for s in range(40) if random_case(s).parameters])
@pytest.mark.parametrize("smooth", [False, True], ids=["maximize", "project"])
def test_value_gradients_of_random_declarations(seed, smooth):
    """On host and device, by differences along a random direction, where the value has no kink."""
    case, count = random_case(seed), 4
    compiled = ol.compile_polytope(case.polytope)
    given = {
        n: v[None].expand(count, *v.shape) + 0.05 * uniform(0, 1, count, *v.shape) for n, v in case.parameters.items()
    }
    scores = draw(count, compiled.projection_form.size, seed=seed)
    direction = {n: draw(*v.shape, seed=seed + 1) for n, v in given.items()}

    def answer(polytope):
        return (polytope.project(scores) if smooth else polytope.maximize(scores)).check()

    def solved(step):
        moved = {n: v + step * direction[n] for n, v in given.items()}
        polytope = bound(compiled, moved, count)
        return polytope, answer(polytope)

    polytope, near = solved(0.0)
    device = DevicePolytope(compiled, torch.from_numpy(polytope.theta), None, polytope.precision)
    step = 1e-4
    ahead, back = solved(step)[1], solved(-step)[1]
    here, after, before = (value_of(s, scores, smooth) for s in (near, ahead, back))
    even = (after + before - 2 * here).abs() < 1e-2 * step
    assert even.any()
    for gradient in (polytope.value_gradient(near), device.value_gradient(answer(device))):
        along = sum((gradient[n] * v).reshape(count, -1).sum(1) for n, v in direction.items())
        torch.testing.assert_close(along[even], ((after - before) / (2 * step))[even], atol=1e-4, rtol=1e-3)


def test_forbidden_parts_and_failed_instances_give_parameters_nothing():
    x, high = cp.Variable(3), cp.Parameter(3, name="high")
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= high, cp.sum(x) >= 1]))
    forbidden = torch.tensor([[False, True, False], [False, False, False], [False, False, False]])
    caps = torch.tensor([[2.0, 2.0, 2.0], [0.1, 0.1, 0.1], [2.0, 2.0, 2.0]], dtype=torch.float64)
    scores = torch.tensor([[-2.0, 0.0, -3.0], [1.0, 1.0, 1.0], [3.0, 2.0, -1.0]], dtype=torch.float64)
    host = bound(compiled, {"high": caps}, 3, forbidden)
    for polytope in (host, DevicePolytope(compiled, torch.from_numpy(host.theta), forbidden, host.precision)):
        for solve in (polytope.maximize, polytope.project):
            solution = solve(scores)
            assert solution.ok.tolist() == [True, False, True]
            found = polytope.value_gradient(solution)["high"]
            assert (found[1] == 0).all() and found[0, 1] == 0
        linear = polytope.value_gradient(polytope.maximize(scores))["high"]
        torch.testing.assert_close(linear[2], torch.tensor([3.0, 2.0, 0.0]).double())


# The rule


def through(compiled, rule, scores, signal, **given):
    leaf = scores.clone().requires_grad_()
    value = ol.OptLayer(compiled, rule)(leaf, **given)
    (found,) = torch.autograd.grad(value, leaf, signal)
    return value.detach(), found


@given(entries, seeds, st.sampled_from([0.3, 3.0]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_sides_and_smoothing(entry, seed, strength):
    compiled, given = COMPILED[entry.name], entry.parameters
    scores, signal = draw(2, 3, *entry.polytope.shape, seed=seed)
    value, lower = through(compiled, ol.LPGD(strength), scores, signal, **given)
    _, upper = through(compiled, ol.LPGD(strength, side="upper"), scores, signal, **given)
    _, both = through(compiled, ol.LPGD(strength, side="both"), scores, signal, **given)
    assert torch.equal(lower, through(compiled, ol.Interpolation(strength), scores, signal, **given)[1])
    ahead = compiled.maximize(scores + strength * signal, **given).value
    torch.testing.assert_close(upper, (ahead - value) / strength)
    torch.testing.assert_close(both, (lower + upper) / 2)
    for found in (lower, upper, both):
        assert ((found * signal).flatten(1).sum(1) >= -1e-9).all()
    smoothing = 0.7
    _, smooth = through(compiled, ol.LPGD(strength, smoothing), scores, signal, **given)
    near = compiled.project(value + (scores - strength * signal) / smoothing, **given).value
    torch.testing.assert_close(smooth, (value - near) / strength, atol=1e-7, rtol=0)
    # Much smoothing leaves nothing but a projected step of size τ / ρ, as scores of a vertex point out of the polytope.
    _, little = through(compiled, ol.LPGD(strength, 1e-6), scores, signal, **given)
    torch.testing.assert_close(little, lower, atol=1e-3, rtol=0)


@pytest.mark.many(2)
@each_polytope
@pytest.mark.parametrize("smoothing", [0.0, 0.6])
@pytest.mark.parametrize("side", SIDES)
def test_gradients_are_those_of_the_envelope(name, smoothing, side):
    """Finite differences of (V(upper) - V(lower)) / width, with the decision in the proximal term held."""
    compiled, count, strength = ol.compile_polytope(POLYTOPES[name]), 6, 1.5
    given = parameters_of(name, count)
    scores, signal = draw(2, count, compiled.projection_form.size, seed=8)
    vertex = bound(compiled, given, count).maximize(scores).value

    def moved_value(polytope, moved):
        if smoothing == 0.0:
            return value_of(polytope.maximize(moved), moved, False)
        point = vertex + moved / smoothing
        constant = 0.5 * smoothing * vertex.square().sum(1)
        return smoothing * value_of(polytope.project(point), point, True) - constant

    def envelope(everything):
        s = everything["scores"]
        polytope = bound(compiled, {n: v for n, v in everything.items() if n != "scores"}, count)
        base = value_of(polytope.maximize(s), s, False)
        upper = moved_value(polytope, s + strength * signal) if side != "lower" else base
        lower = moved_value(polytope, s - strength * signal) if side != "upper" else base
        return (upper - lower) / (2 * strength if side == "both" else strength)

    leaves = {n: v.clone().requires_grad_() for n, v in given.items()}
    leaf = scores.reshape(count, *compiled.shape).clone().requires_grad_()
    value = ol.OptLayer(compiled, ol.LPGD(strength, smoothing, side))(leaf, **leaves)
    found = torch.autograd.grad(value, [leaf, *leaves.values()], signal.reshape(leaf.shape))
    everything = {"scores": scores} | given
    for which, gradient in zip(everything, found, strict=True):
        expected = quotient(envelope, everything, which, 1e-4)
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(gradient.reshape(expected.shape), expected, atol=5e-4, rtol=1e-3)


def test_parameters_given_once_get_the_sum_over_the_batch():
    layer = ol.OptLayer(POLYTOPES["review"], ol.LPGD(1.0))
    scores, signal = draw(2, 5, 6, 4, seed=9)
    one = uniform(3.1, 4.9, 4).requires_grad_()
    each = one.detach().expand(5, 4).clone().requires_grad_()
    (together,) = torch.autograd.grad(layer(scores, load=one), one, signal)
    (apart,) = torch.autograd.grad(layer(scores, load=each), each, signal)
    torch.testing.assert_close(together, apart.sum(0))
    assert apart.abs().max() > 1e-2


def test_gradients_of_a_parameter_point_where_a_linear_loss_goes_up():
    """They resemble the true slopes, which the budget of a fractional vertex has."""
    layer = ol.OptLayer(POLYTOPES["subset"], ol.LPGD(5.0, side="both"))
    scores, signal = draw(2, 60, 5, seed=10)
    budget = uniform(0.6, 4.4, 60, seed=11).requires_grad_()
    value = layer(scores, budget=budget)
    (slope,) = torch.autograd.grad(value, budget, signal)
    true = quotient(lambda p: (layer(scores, **p) * signal).sum(1), {"budget": budget.detach()}, "budget", 1e-3)
    assert torch.nn.functional.cosine_similarity(slope, true, dim=0) > 0.5


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_parameters_of_oracles_get_what_those_of_general_solvers_get(smoothing):
    scores, budget, found = draw(3, 5), torch.tensor([2.0, 1.0, 3.0]), []
    for solvers in ({"projector": ol.ActiveSet()}, {"maximizer": ol.Auto()}):
        leaf, layer = budget.clone().requires_grad_(), ol.OptLayer(subset(5), ol.LPGD(1.0, smoothing), **solvers)
        with torch.no_grad():
            layer(scores, budget=leaf)
        value = layer(scores, budget=leaf)
        found.append(torch.autograd.grad(value, leaf, draw(3, 5, seed=1).to(value.dtype))[0])
    torch.testing.assert_close(*found)
    assert torch.isfinite(found[0]).all() and found[0].abs().max() > 0


def test_scored_auxiliaries_get_their_part():
    chain = ol.compile_polytope(linear_chain(3, 2))
    scores, signal = draw(2, 3, 3, 2, seed=12)
    pairs = draw(3, 3, 2, 2, seed=13)
    for smoothing in (0.0, 0.5):
        leaves = scores.clone().requires_grad_(), pairs.clone().requires_grad_()
        value = ol.OptLayer(chain, ol.LPGD(4.0, smoothing))(leaves[0], transition=leaves[1])
        found = torch.autograd.grad(value, leaves, signal)
        before, moved = chain.maximize(scores, transition=pairs), scores - 4.0 * signal
        if smoothing == 0.0:
            after = chain.maximize(moved, transition=pairs)
        else:
            after = chain.project(before.value + moved / smoothing, transition=pairs / smoothing)
        torch.testing.assert_close(found[0], (before.value - after.value) / 4.0)
        torch.testing.assert_close(found[1], (before.scored["transition"] - after.scored["transition"]) / 4.0)
        assert found[1].abs().max() > 0


def test_infeasible_instances_leave_the_others_their_gradients():
    layer = ol.OptLayer(POLYTOPES["review"], ol.LPGD(1.0, smoothing=0.3), on_failure="nan")
    scores, signal = draw(2, 3, 6, 4, seed=14)
    load = uniform(3.1, 4.9, 3, 4)
    expected = load.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(layer(scores, load=expected), expected, signal)
    load[1] = 2.0
    leaf = load.requires_grad_()
    (found,) = torch.autograd.grad(layer(scores, load=leaf), leaf, signal)
    assert (found[1] == 0).all() and wanted[::2].abs().max() > 0
    torch.testing.assert_close(found[::2], wanted[::2])


def test_hyperparameters_are_checked():
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"strength must be positive and finite, but got {bad}"):
            ol.LPGD(bad)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"smoothing must be finite and not negative, but got {bad}"):
            ol.LPGD(1.0, bad)
    with pytest.raises(TypeError, match="smoothing must be a number, but got None"):
        ol.LPGD(1.0, None)
    with pytest.raises(ValueError, match='side is "lower", "upper" or "both", but got \'left\''):
        ol.LPGD(1.0, side="left")
    assert ol.OptLayer(matching(2), ol.Hard(ol.LPGD(1.0))).rule.rule.side == "lower"
