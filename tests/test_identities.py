"""What holds exactly, for SPIGOT and for the projection (Peng et al., 2018; the design's section on rules)."""

import cvxpy as cp
import pytest
import torch
from catalogue import CATALOGUE
from hypothesis import given, settings
from hypothesis import strategies as st

import optlayers as ol
from polytopes import cube, simplex

entries = st.sampled_from([e for e in CATALOGUE if len(e.vertices) > 1])
seeds = st.integers(0, 10_000)
COMPILED = {e.name: ol.compile_polytope(e.polytope) for e in CATALOGUE}


def draw(entry, seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, *entry.polytope.shape, generator=generator, dtype=torch.float64)


def gradient(entry, rule, scores, signal):
    leaf = scores.clone().requires_grad_()
    value = ol.OptLayer(COMPILED[entry.name], rule)(leaf, **entry.parameters)
    (found,) = torch.autograd.grad(value, leaf, signal)
    return value.detach(), found


@given(entries, seeds, st.sampled_from([0.01, 0.3, 1.0, 5.0]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_spigot_is_a_descent_direction_within_the_polytope(entry, seed, step):
    scores, signal = draw(entry, seed)
    vertex, found = gradient(entry, ol.Spigot(step), scores, signal)
    inner = (found * signal).flatten(1).sum(1)
    assert (inner >= found.flatten(1).square().sum(1) / step - 1e-8).all()
    # ẑ - ∂s is a point of P, so differences along equalities vanish: it is the projection of itself.
    moved = vertex - found
    back = COMPILED[entry.name].project(moved, **entry.parameters).check().value
    torch.testing.assert_close(back, moved, atol=1e-7, rtol=0)


@given(entries, seeds)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_spigot_equals_straight_through_exactly_where_the_step_stays_inside(entry, seed):
    scores, signal = draw(entry, seed)
    compiled, step = COMPILED[entry.name], 0.1
    vertex = compiled.maximize(scores, **entry.parameters).value
    inside = compiled.maximize(torch.randn_like(scores), **entry.parameters).value
    towards = (vertex - inside) / step * 0.3  # a step of 0.3 along the segment to another vertex stays in P
    _, found = gradient(entry, ol.Spigot(step), scores, towards)
    torch.testing.assert_close(found, step * towards, atol=1e-7, rtol=0)
    _, elsewhere = gradient(entry, ol.Spigot(step), scores, signal)
    target = vertex - step * signal
    stays = (compiled.project(target, **entry.parameters).value - target).flatten(1).norm(dim=1) < 1e-9
    same = (elsewhere - step * signal).flatten(1).norm(dim=1) < 1e-9
    assert torch.equal(stays, same)


@given(entries, seeds)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_spigot_with_a_long_step_goes_to_the_worst_structure(entry, seed):
    scores, signal = draw(entry, seed)
    step = 1e5
    vertex, found = gradient(entry, ol.Spigot(step), scores, signal)
    worst = COMPILED[entry.name].maximize(-signal, **entry.parameters).value
    # A step is long enough once the worst structure is the projection: <target - worst, u - worst> <= 0 for all u.
    aside = torch.tensor(entry.vertices).flatten(1) - worst.flatten(1)[:, None]
    push = (vertex - step * signal - worst).flatten(1)
    arrived = torch.einsum("bvn,bn->bv", aside, push).amax(1) <= 0
    torch.testing.assert_close(found[arrived], (vertex - worst)[arrived], atol=1e-6, rtol=0)


@given(entries, seeds)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_short_projected_steps_tend_to_the_tangent(entry, seed):
    scores, signal = draw(entry, seed)
    compiled = COMPILED[entry.name]
    near = compiled.project(scores, **entry.parameters).check()
    step = 1e-6
    moved = compiled.project(scores - step * signal, **entry.parameters).check().value
    tangent = compiled.tangent(near, signal).scores
    ahead = compiled.project(scores + step * signal, **entry.parameters).check().value
    smooth = (ahead + moved - 2 * near.value).flatten(1).norm(dim=1) < 1e-9
    torch.testing.assert_close(((near.value - moved) / step)[smooth], tangent[smooth], atol=1e-5, rtol=1e-5)


@given(entries, seeds)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_jacobian_of_the_projection_is_an_orthogonal_projection(entry, seed):
    scores, signal = draw(entry, seed)
    compiled = COMPILED[entry.name]
    near = compiled.project(scores, **entry.parameters).check()
    once = compiled.tangent(near, signal).scores
    twice = compiled.tangent(near, once).scores
    torch.testing.assert_close(twice, once, atol=1e-8, rtol=0)
    other = torch.randn_like(signal)
    left = (once * other).sum()
    torch.testing.assert_close(left, (signal * compiled.tangent(near, other).scores).sum(), atol=1e-8, rtol=1e-8)


@given(entries, seeds)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_projections_are_nonexpansive_and_leave_points_of_the_polytope_alone(entry, seed):
    first, second = draw(entry, seed)
    compiled = COMPILED[entry.name]
    a = compiled.project(first, **entry.parameters).value
    b = compiled.project(second, **entry.parameters).value
    assert ((a - b).flatten(1).norm(dim=1) <= (first - second).flatten(1).norm(dim=1) + 1e-9).all()
    middle = (a + b) / 2
    torch.testing.assert_close(compiled.project(middle, **entry.parameters).value, middle, atol=1e-9, rtol=0)


def test_in_a_box_that_is_never_left_spigot_is_straight_through():
    x = cp.Variable(4)
    layer = ol.OptLayer(ol.Polytope(x, [x >= -1e3, x <= 1e3]), ol.Spigot(0.5))
    leaf = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    value = layer(leaf)
    signal = value.detach().sign() * torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(value, leaf, signal)
    torch.testing.assert_close(found, 0.5 * signal)


def test_clipping_acts_on_each_instance():
    entry = next(e for e in CATALOGUE if e.name == "matching")
    scores, signal = draw(entry, 0)
    signal[0] *= 100.0
    signal[1] *= 1e-3
    norms = signal.flatten(1).norm(dim=1).clamp_min(0.7)[:, None, None]
    _, clipped = gradient(entry, ol.Spigot(0.9, clip_norm=0.7), scores, signal)
    _, expected = gradient(entry, ol.Spigot(0.9), scores, signal * (0.7 / norms))
    torch.testing.assert_close(clipped, expected)


def test_hard_takes_the_gradient_of_the_wrapped_rule():
    for entry in CATALOGUE:
        scores, signal = draw(entry, 4)
        vertex, found = gradient(entry, ol.Hard(ol.SparseMAP()), scores, signal)
        _, soft = gradient(entry, ol.SparseMAP(), scores, signal)
        torch.testing.assert_close(found, soft)
        best, straight = gradient(entry, ol.Hard(ol.StraightThrough()), scores, signal)
        torch.testing.assert_close(best, vertex)
        torch.testing.assert_close(straight, signal)


def test_the_derivative_at_the_middle_of_a_square_is_the_identity():
    """Where the vertex form of the Jacobian is wrong: it gives all entries 1/2."""
    layer = ol.OptLayer(cube(2), ol.SparseMAP())
    middle = torch.tensor([0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.functional.jacobian(layer, middle), torch.eye(2, dtype=torch.float64))


def test_auxiliary_variables_do_not_pass_for_constraints():
    """A tall lift of a simplex: a rank decision near rounding would lose the derivative by O(1)."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(40, 30, generator=generator, dtype=torch.float64).numpy()
    x, w = cp.Variable(5, nonneg=True), cp.Variable(30)
    lift = [cp.sum(x) == 1, mixing @ w == mixing[:, :5] @ x, w <= 3, w >= -3]
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    for polytope, reference in ((ol.Polytope(x, lift), simplex(5)),):
        found = [
            torch.autograd.functional.jacobian(ol.OptLayer(p, ol.SparseMAP()), scores) for p in (polytope, reference)
        ]
        torch.testing.assert_close(found[0], found[1], atol=1e-8, rtol=0)


def test_step_and_clip_must_be_positive():
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="step_size must be positive"):
            ol.Spigot(bad)
    with pytest.raises(ValueError, match="clip_norm must be positive"):
        ol.Spigot(clip_norm=0.0)
