"""SPIGOT's relaxations, several steps and adaptive steps."""

import copy
import pickle
from functools import partial

import cvxpy as cp
import pytest
import torch
from catalogue import CATALOGUE
from hypothesis import given, settings
from hypothesis import strategies as st

import optlayers as ol
from optlayers.testing import check_rule
from polytopes import arborescence, cube, head_choice, linear_chain, matching, simplex, subset

entries = st.sampled_from([e for e in CATALOGUE if len(e.vertices) > 1])
seeds = st.integers(0, 10_000)
COMPILED = {e.name: ol.compile_polytope(e.polytope) for e in CATALOGUE}


def draw(shape, seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, *shape, generator=generator, dtype=torch.float64)


def through(layer, scores, signal, **given):
    leaf = scores.clone().requires_grad_()
    value = layer(leaf, **given)
    (found,) = torch.autograd.grad(value, leaf, signal)
    return value.detach(), found


def of_losses(layer, scores, function, **given):
    leaf = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(layer(leaf, objective=function, **given).sum(), leaf)
    return found


def towards(target):
    return lambda z: 0.5 * (z - target).square().flatten(1).sum(1)


# Relaxations


@pytest.mark.many(4)
@pytest.mark.parametrize("entry", [e for e in CATALOGUE if "four words" not in e.name], ids=repr)
def test_a_relaxation_that_equals_the_polytope_changes_nothing(entry):
    scores, signal = draw(entry.polytope.shape, 13)
    relaxed = ol.OptLayer(entry.polytope, ol.Spigot(0.7, relaxation=entry.polytope.without_oracle()))
    value, found = through(relaxed, scores, signal, **entry.parameters)
    best, expected = through(ol.OptLayer(entry.polytope, ol.Spigot(0.7)), scores, signal, **entry.parameters)
    assert torch.equal(value, best)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_heads_of_each_word_are_projected_onto_a_simplex():
    scores, signal = draw((4, 4), 1)
    value, found = through(ol.OptLayer(arborescence(3), ol.Spigot(relaxation=head_choice(3))), scores, signal)
    target, expected = value - signal, torch.zeros_like(value)
    for m in range(1, 4):
        others = [h for h in range(4) if h != m]
        near = ol.compile_polytope(simplex(3)).project(target[:, others, m]).value
        expected[:, others, m] = value[:, others, m] - near
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    _, exact = through(ol.OptLayer(arborescence(3), ol.Spigot()), scores, signal)
    assert (found - exact).abs().max() > 1e-2


def test_families_have_a_relaxation_for_each_size():
    rule = ol.Spigot(relaxation=ol.Family(head_choice))
    layer = ol.OptLayer(ol.Family(arborescence), rule)
    scores, signal = draw((6, 6), 2)
    _, found = through(layer, scores, signal, sizes=[5, 1, 3])
    assert torch.equal(through(pickle.loads(pickle.dumps(layer)), scores, signal, sizes=[5, 1, 3])[1], found)
    for k, words in enumerate([5, 1, 3]):
        room = slice(0, words + 1)
        alone = ol.OptLayer(arborescence(words), ol.Spigot(relaxation=head_choice(words)))
        mine = (k, room, room)
        torch.testing.assert_close(through(alone, scores[mine], signal[mine])[1], found[mine])
        assert (found[k, words + 1 :] == 0).all() and (found[k, :, words + 1 :] == 0).all()


@pytest.mark.parametrize(
    "rule", [ol.Spigot(relaxation=head_choice(4)), ol.Spigot(0.3, relaxation=head_choice(4), steps=2)]
)
def test_relaxed_rules_keep_their_contract(rule):
    check_rule(rule, arborescence(4))


def test_relaxations_get_the_parameters():
    x, budget = cp.Variable(4), cp.Parameter(name="budget", nonneg=True)
    looser = ol.Polytope(x, [x >= 0, cp.sum(x) == budget])
    scores, signal = draw((4,), 3)
    budgets = torch.tensor([1.0, 2.0, 3.0])
    value, found = through(ol.OptLayer(subset(4), ol.Spigot(relaxation=looser)), scores, signal, budget=budgets)
    moved = (value - found).sum(1)
    torch.testing.assert_close(moved, budgets.double(), atol=1e-8, rtol=0)


def test_relaxations_that_do_not_fit_are_refused_at_once():
    with pytest.raises(ValueError, match=r"relaxation has shape \(3, 3\), but the polytope has shape \(4, 4\)"):
        ol.OptLayer(arborescence(3), ol.Spigot(relaxation=head_choice(2)))
    with pytest.raises(ValueError, match="relaxation declares parameter budget"):
        ol.OptLayer(simplex(3), ol.Hard(ol.Spigot(relaxation=subset(3))))
    with pytest.raises(TypeError, match=r"relaxation is a Family\(head_choice\), but the layer has one polytope"):
        ol.OptLayer(arborescence(3), ol.Spigot(relaxation=ol.Family(head_choice)))
    with pytest.raises(TypeError, match="relaxation must be a Polytope or a Family, but got function"):
        ol.Spigot(relaxation=head_choice)


# Several steps


@pytest.mark.slow
@given(entries, seeds)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_steps_are_projected_gradient_descent(entry, seed):
    """Each step again by hand, and what descent of a convex quadratic promises for steps below 1 / curvature."""
    scores, target = draw(entry.polytope.shape, seed)
    function, step = towards(target), 0.4
    compiled = COMPILED[entry.name]
    layers = [ol.OptLayer(compiled, ol.Spigot(step, steps=k)) for k in (1, 2, 60)]
    found = [of_losses(layer, scores, function, **entry.parameters) for layer in layers]
    best = point = compiled.maximize(scores, **entry.parameters).value
    before = function(best)
    for displacement in found[:2]:
        point = compiled.project(point - step * (point - target), **entry.parameters).value
        torch.testing.assert_close(best - displacement, point, atol=1e-7, rtol=0)
        assert (function(point) <= before + 1e-9).all()
        before = function(point)
    nearest = compiled.project(target, **entry.parameters).value  # the minimizer over P
    torch.testing.assert_close(best - found[2], nearest, atol=1e-6, rtol=0)


def test_one_step_needs_no_objective_and_is_the_same_with_one():
    scores, target = draw((3, 3), 4)
    layer = ol.OptLayer(matching(3), ol.Spigot(steps=1))
    value = layer(scores)
    _, expected = through(layer, scores, value - target)
    torch.testing.assert_close(of_losses(layer, scores, towards(target)), expected)
    with pytest.raises(TypeError, match=r"steps=2.* works with losses: call layer\(scores, objective=f\)"):
        ol.OptLayer(matching(3), ol.Spigot(steps=2))(scores)
    with pytest.raises(TypeError, match=r"steps=2.* works with losses, which solve\(\) does not take"):
        ol.OptLayer(matching(3), ol.Spigot(steps=2)).solve(scores)


def test_steps_go_by_the_weight_of_each_loss_and_are_clipped():
    scores, target = draw((3, 3), 5)
    leaf = scores.clone().requires_grad_()
    layer = ol.OptLayer(matching(3), ol.Spigot(2.0, clip_norm=0.1, steps=2))
    layer(leaf, objective=towards(target)).mean().backward()  # each loss counts for a third
    compiled = layer.compiled()
    best = point = compiled.maximize(scores).value
    for _ in range(2):
        slope = (point - target) / 3
        slope = slope * (0.1 / slope.flatten(1).norm(dim=1).clamp_min(0.1))[:, None, None]
        point = compiled.project(point - 2.0 * slope).value
    torch.testing.assert_close(leaf.grad, best - point, atol=1e-8, rtol=0)


def test_steps_of_families_see_their_own_corner():
    scores, target = draw((5, 5), 6)
    layer = ol.OptLayer(ol.Family(arborescence), ol.Spigot(0.5, steps=3, relaxation=ol.Family(head_choice)))
    found = of_losses(layer, scores, towards(target), sizes=[4, 2, 3])
    alone = ol.OptLayer(arborescence(2), ol.Spigot(0.5, steps=3, relaxation=head_choice(2)))
    expected = of_losses(alone, scores[1:2, :3, :3], towards(target[1:2, :3, :3]))
    torch.testing.assert_close(found[1:2, :3, :3], expected)


def test_scored_auxiliaries_are_no_part_of_steps():
    scores, target = draw((3, 2), 7)
    transition = draw((3, 2, 2), 8)[0].requires_grad_()
    layer = ol.OptLayer(linear_chain(3, 2), ol.Spigot(0.4, steps=40))
    leaf = scores.clone().requires_grad_()
    layer(leaf, transition=transition, objective=towards(target)).sum().backward()
    zero = torch.zeros_like(transition)
    best = layer.compiled().maximize(scores, transition=transition).value
    nearest = layer.compiled().project(target, transition=zero).value
    torch.testing.assert_close(best - leaf.grad, nearest, atol=1e-6, rtol=0)
    assert (transition.grad == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_on_the_way_spoils_its_own_instance_alone(bad):
    scores, target = draw((3,), 9)

    def function(z, spoiled):
        away = (z.round() != z).any(dim=1) & spoiled  # at vertices all is well
        return towards(target)(z) * torch.where(away, bad, 1.0)

    layer = ol.OptLayer(simplex(3), ol.Spigot(0.3, steps=3))
    second = torch.tensor([False, True, False])
    found = of_losses(layer, scores, partial(function, spoiled=second))
    expected = of_losses(layer, scores, partial(function, spoiled=second & False))
    assert torch.isnan(found[1]).all()
    assert torch.equal(found[::2], expected[::2])


def test_instances_without_an_answer_get_no_gradient_with_several_steps():
    scores, target = draw((4,), 10)
    layer = ol.OptLayer(subset(4), ol.Spigot(0.3, steps=3), on_failure="nan")
    found = of_losses(layer, scores, towards(target), budget=torch.tensor([2.0, 9.0, 1.0]))
    assert (found[1] == 0).all() and torch.isfinite(found).all() and found[0].abs().max() > 0


# Adaptive steps


def adapted(start, scale, passes=200, target=0.5):
    """Step sizes and, in the last pass, which part of the steps was left, for gradients of this size."""
    layer = ol.OptLayer(matching(4), ol.Spigot(ol.AdaptiveStep(start=start, target=target)))
    sizes = [layer.rule_step_size.item()]
    for seed in range(passes):
        scores, signal = draw((4, 4), seed, count=8)
        step = layer.rule_step_size.item()
        _, found = through(layer, scores, scale * signal)
        left = found.square().sum() / (step * (found * scale * signal).sum())
        sizes.append(layer.rule_step_size.item())
    return sizes, left.item()


@pytest.mark.many(2)
@pytest.mark.parametrize(("start", "scale"), [(100.0, 1.0), (1e-3, 1.0), (1.0, 1e-3), (1.0, 100.0)])
def test_adaptive_steps_shrink_and_grow_to_the_same_part(start, scale):
    sizes, left = adapted(start, scale)
    expected, _ = adapted(1.0, 1.0)
    assert (sizes[-1] < sizes[0]) == (start * scale > 1.0)
    assert 0.3 < left < 0.7
    assert sizes[-1] * scale == pytest.approx(expected[-1], rel=0.3)  # steps, not step sizes, are of one length


def test_the_step_size_changes_by_the_formula_and_is_kept():
    scores, signal = draw((3, 3), 11)
    layer = ol.OptLayer(matching(3), ol.Spigot(ol.AdaptiveStep(start=2.0, target=0.4, rate=0.3)))
    before = copy.deepcopy(layer)
    _, found = through(layer, scores, signal)
    _, expected = through(ol.OptLayer(matching(3), ol.Spigot(2.0)), scores, signal)
    assert torch.equal(found, expected)
    left = found.square().sum() / (2.0 * (found * signal).sum())
    torch.testing.assert_close(layer.rule_step_size, 2.0 * torch.exp(0.3 * (left - 0.4)))
    assert before.rule_step_size == 2.0
    before.load_state_dict(layer.state_dict())
    assert before.rule_step_size == layer.rule_step_size
    assert not torch.equal(through(layer, scores, signal)[1], found)


def test_what_cannot_move_leaves_the_step_size_alone():
    layer = ol.OptLayer(matching(3), ol.Spigot(ol.AdaptiveStep()), on_failure="nan")
    scores, _ = draw((3, 3), 12)
    through(layer, scores, -layer(scores))  # the decision is the best already
    through(layer, scores, torch.zeros_like(scores))
    through(layer, scores, torch.full_like(scores, torch.nan))
    through(layer, scores[:0], scores[:0])
    assert layer.rule_step_size == 1.0
    for rule in (ol.Spigot(ol.AdaptiveStep(start=0.5)), ol.Hard(ol.Spigot(ol.AdaptiveStep(start=0.5)))):
        assert ol.OptLayer(cube(2), rule).rule_step_size == 0.5


def test_hyperparameters_are_checked():
    with pytest.raises(TypeError, match=r"step_size must be a number or a value AdaptiveStep\(\), but got 'adaptive'"):
        ol.Spigot("adaptive")
    with pytest.raises(TypeError, match="step_size must be a number"):
        ol.Spigot(None)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"steps must be at least 1, but got {bad}"):
            ol.Spigot(steps=bad)
    for bad in (1.5, True, "2"):
        with pytest.raises(TypeError, match="steps must be an int, but got"):
            ol.Spigot(steps=bad)
    for name, bad in (("start", 0.0), ("target", float("nan")), ("rate", -1.0), ("start", float("inf"))):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, but got {bad}"):
            ol.AdaptiveStep(**{name: bad})
    with pytest.raises(ValueError, match=r"target must be between 0 and 1, but got 1\.0"):
        ol.AdaptiveStep(target=1.0)
