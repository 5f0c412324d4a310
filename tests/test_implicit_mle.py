"""I-MLE and its adaptive step."""

import math

import pytest
import torch
from drawing import draw

import optlayers as ol
import polytopes


def through(layer, scores, direction, seed=0):
    leaf = scores.detach().clone().requires_grad_()
    value = layer(leaf, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad((value * direction).sum(), leaf)
    return value.detach(), gradient


def best(polytope, scores):
    return ol.compile_polytope(polytope).maximize(scores).check().value


def noise_of(scores, samples, seed):
    flat = (samples, len(scores), scores[0].numel())
    return ol.Gumbel().draw(flat, torch.Generator().manual_seed(seed), scores.device).reshape(samples, *scores.shape)


def test_values_and_gradients_are_means_of_differences_under_the_same_noise():
    polytope, scores, direction = polytopes.matching(3), draw(5, 3, 3), draw(5, 3, 3, seed=1)
    rule = ol.IMLE(samples=3, strength=2.0, scale=0.7)
    value, gradient = through(ol.OptLayer(polytope, rule), scores, direction, seed=4)
    near = scores + 0.7 * noise_of(scores, 3, 4)
    here, there = best(polytope, near), best(polytope, near - 2.0 * direction)
    torch.testing.assert_close(value, here.mean(0))
    torch.testing.assert_close(gradient, (here - there).mean(0) / 2.0)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_adaptive_step_is_relative_to_scores_and_gradients(symmetric):
    polytope, scores, direction = polytopes.matching(3), draw(5, 3, 3), draw(5, 3, 3, seed=1)
    layer = ol.OptLayer(polytope, ol.AdaptiveIMLE(samples=3, initial=0.8, symmetric=symmetric))
    _, gradient = through(layer, scores, direction, seed=4)
    strength = 0.8 * scores.flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1)
    strength, near = strength[:, None, None], scores + noise_of(scores, 3, 4)
    ends = best(polytope, near + strength * direction) if symmetric else best(polytope, near)
    expected = (ends - best(polytope, near - strength * direction)).mean(0) / ((2 if symmetric else 1) * strength)
    torch.testing.assert_close(gradient, expected)
    layer = ol.OptLayer(polytope, ol.AdaptiveIMLE(samples=3, initial=0.8, symmetric=symmetric))
    _, scaled = through(layer, scores, 1000.0 * direction, seed=4)
    torch.testing.assert_close(scaled, 1000.0 * expected)  # the size of the loss does not change what is compared


def steps(layer, count, scores, direction):
    history = []
    for seed in range(count):
        through(layer, scores, direction, seed=seed)
        history.append(float(layer.rule_alpha))
    return history


def test_alpha_shrinks_when_too_many_parts_change_and_grows_when_none_does():
    polytope, scores, direction = polytopes.subset(20), 0.1 * draw(8, 20), draw(8, 20, seed=1)

    def layer(initial, target):
        made = ol.OptLayer(polytope, ol.AdaptiveIMLE(initial=initial, target=target, step=0.1, decay=0.5))
        return lambda s, generator: made(s, budget=10.0, generator=generator), made

    call, made = layer(50.0, 1.0)
    history = []
    for seed in range(20):
        through(call, scores, direction, seed)
        history.append(float(made.rule_alpha))
    assert history == sorted(history, reverse=True) and history[-1] == pytest.approx(50.0 - 20 * 0.1)
    assert made.rule_changed > 1.0
    call, made = layer(1e-6, 1.0)
    history = []
    for seed in range(20):
        through(call, scores, direction, seed)
        history.append(float(made.rule_alpha))
    assert history[0] == pytest.approx(0.1 + 1e-6) and history[-1] > history[0]


def test_the_number_of_changes_arrives_at_the_target():
    polytope, scores, direction = polytopes.matching(4), draw(64, 4, 4), draw(64, 4, 4, seed=1)
    for initial in (0.01, 4.0):
        layer = ol.OptLayer(polytope, ol.AdaptiveIMLE(initial=initial, target=1.5, step=0.05))
        steps(layer, 120, scores, direction)
        assert abs(float(layer.rule_changed) - 1.5) < 0.4 and 0.1 < float(layer.rule_alpha) < 3.0


def test_alpha_stops_at_0_and_finds_back():
    scores, direction = draw(32, 3), draw(32, 3, seed=1)
    layer = ol.OptLayer(polytopes.simplex(3), ol.AdaptiveIMLE(initial=1.5, target=1e-3, step=2.0, decay=0.0))
    through(layer, scores, direction)
    assert float(layer.rule_changed) > 1e-3 and float(layer.rule_alpha) == 0.0
    value, gradient = through(layer, scores, direction)  # both ends are the same now
    assert (gradient == 0).all() and torch.isfinite(value).all() and float(layer.rule_alpha) == 2.0


def test_instances_without_a_gradient_have_no_part_in_the_average():
    scores, direction = draw(4, 3), torch.zeros(4, 3)
    layer = ol.OptLayer(polytopes.simplex(3), ol.AdaptiveIMLE())
    _, gradient = through(layer, scores, direction)
    assert (gradient == 0).all() and float(layer.rule_alpha) == 1.0 and float(layer.rule_changed) == 1.0
    _, gradient = through(layer, torch.zeros(4, 3), draw(4, 3, seed=1))
    assert (gradient == 0).all() and float(layer.rule_alpha) == 1.0


def test_the_state_is_saved_and_survives_other_dtypes():
    scores, direction = draw(4, 3), draw(4, 3, seed=1)
    layer = ol.OptLayer(polytopes.simplex(3), ol.AdaptiveIMLE(step=0.25))
    steps(layer, 3, scores, direction)
    saved = layer.state_dict()
    assert sorted(saved) == ["rule_alpha", "rule_changed"] and float(saved["rule_alpha"]) != 1.0
    other = ol.OptLayer(polytopes.simplex(3), ol.AdaptiveIMLE(step=0.25))
    other.load_state_dict(saved)
    assert float(other.rule_alpha) == float(layer.rule_alpha)
    assert steps(other, 4, scores, direction) == steps(layer, 4, scores, direction)


@pytest.mark.parametrize("cast", [torch.nn.Module.float, torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_small_steps_are_not_lost_in_a_low_precision(cast):
    """In bfloat16, 1 - 0.001 is 1."""
    scores, direction = draw(4, 3), draw(4, 3, seed=1)
    layer = ol.OptLayer(polytopes.simplex(3), ol.AdaptiveIMLE())
    model = cast(torch.nn.Sequential(torch.nn.Linear(3, 3), layer))
    assert model[0].weight.dtype != torch.float64
    assert layer.rule_alpha.dtype == layer.rule_changed.dtype == torch.float64
    through(layer, scores, direction)
    assert abs(layer.rule_alpha.item() - 1.0) == pytest.approx(1e-3)


@pytest.mark.parametrize("wrap", [lambda rule: rule, ol.Hard, lambda rule: ol.PerturbAndMAP(rule, scale=1e-12)])
@pytest.mark.parametrize(
    "rule", [ol.Spigot(ol.AdaptiveStep(start=20.0)), ol.AdaptiveIMLE(step=0.1, decay=0.5, scale=1e-12)], ids=repr
)
def test_a_rule_adapts_once_in_a_pass_by_all_instances_whatever_their_sizes(rule, wrap):
    """A family whose sizes are all one polytope, so that it must do what that polytope does."""
    together, apart = (
        ol.OptLayer(over, wrap(rule)) for over in (polytopes.simplex(4), ol.Family(lambda size: polytopes.simplex(4)))
    )
    for seed in range(3):
        scores, direction = draw(5, 4, seed=seed), draw(5, 4, seed=seed + 10)
        for layer, sizes in ((together, {}), (apart, {"sizes": [1, 2, 3, 1, 2]})):
            layer(scores.clone().requires_grad_(), **sizes).backward(direction)
        for (name, one), other in zip(together.named_buffers(), apart.buffers(), strict=True):
            assert one != layer.rule.initial_state()[name.removeprefix("rule_")]
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ol.IMLE(samples=0), ValueError, "samples must be at least 1, but got 0"),
        (lambda: ol.IMLE(samples=False), TypeError, "samples must be an int, but got False"),
        (lambda: ol.IMLE(strength=0.0), ValueError, "strength must be positive and finite, but got 0.0"),
        (lambda: ol.IMLE(scale=math.inf), ValueError, "scale must be positive and finite, but got inf"),
        (lambda: ol.IMLE(noise="gumbel"), TypeError, "noise must be Gaussian"),
        (lambda: ol.AdaptiveIMLE(target=-1.0), ValueError, "target must be positive and finite, but got -1.0"),
        (lambda: ol.AdaptiveIMLE(initial=0.0), ValueError, "initial must be positive and finite, but got 0.0"),
        (lambda: ol.AdaptiveIMLE(step=math.nan), ValueError, "step must be positive and finite, but got nan"),
        (lambda: ol.AdaptiveIMLE(decay=1.0), ValueError, "decay must be at least 0 and below 1, but got 1.0"),
        (lambda: ol.AdaptiveIMLE(samples=1.5), TypeError, "samples must be an int, but got 1.5"),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
