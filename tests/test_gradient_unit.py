"""Steps that do not depend on the batch: gradients measured in their norm, or in the weight of their loss."""

import pytest
import torch
from drawing import draw

import optlayers as ol
from polytopes import arborescence, matching, simplex, subset

STEPS = [
    ol.Spigot(1.0),
    ol.Spigot(1.0, clip_norm=0.5),
    ol.Hard(ol.Spigot(0.7)),
    ol.SpigotCE(1.0),
    ol.SpigotEG(1.0),
    ol.Interpolation(3.0),
    ol.LPGD(3.0),
    ol.LPGD(2.0, smoothing=0.5, side="both"),
    ol.IMLE(strength=10.0, scale=1e-9),
]
LINEAR = [ol.StraightThrough(), ol.SparseMAP(), ol.StructuredAttention(), ol.Identity(), ol.Hard(ol.SparseMAP())]


def pulled_back(layer, scores, grad, **given):
    leaf = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(layer(leaf, **given), leaf, grad)
    return found


@pytest.mark.parametrize("rule", STEPS, ids=repr)
def test_a_step_in_units_of_the_norm_does_not_depend_on_the_batch(rule):
    polytope, scores, grad = matching(4), draw(32, 4, 4), draw(32, 4, 4, seed=1)
    plain, units = ol.OptLayer(polytope, rule), ol.OptLayer(polytope, rule, gradient_unit="norm")
    summed = pulled_back(units, scores, grad)
    for weight in (1 / 32, 1e-150, 1e150, torch.rand(32, 1, 1, dtype=torch.float64) + 0.1):
        torch.testing.assert_close(pulled_back(units, scores, weight * grad) / weight, summed, rtol=1e-9, atol=1e-9)
    norm = grad.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(summed, norm * pulled_back(plain, scores, grad / norm))
    alone = torch.cat([pulled_back(units, scores[k : k + 1], grad[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(summed[:4], alone)


TOP = torch.finfo(torch.float64).max


@pytest.mark.parametrize("rule", [*STEPS[:7], ol.StraightThrough()], ids=repr)
def test_gradients_at_the_ends_of_float64_are_no_nan(rule):
    layer, scores = ol.OptLayer(matching(3), rule, gradient_unit="norm"), draw(2, 3, 3)
    grad = draw(2, 3, 3, seed=1).sign()  # of norm 3
    for size, norm in ((TOP, 1.0), (1e-300, 3.0)):  # no norm is above the largest number
        found = pulled_back(layer, scores, size * grad)
        expected = pulled_back(ol.OptLayer(matching(3), rule), scores, grad / norm)
        torch.testing.assert_close(found / size, norm * expected)


@pytest.mark.parametrize("rule", [ol.Interpolation(1.0), ol.LPGD(1.0), ol.IMLE(scale=1e-9)], ids=repr)
def test_without_units_most_instances_of_a_mean_get_no_gradient(rule):
    scores, grad = draw(32, 4, 4), draw(32, 4, 4, seed=1) / (32 * 16)
    plain, units = ol.OptLayer(matching(4), rule), ol.OptLayer(matching(4), rule, gradient_unit="norm")
    moved = [(pulled_back(layer, scores, grad) != 0).flatten(1).any(1).double().mean() for layer in (plain, units)]
    assert moved[0] < 0.5 * moved[1]


@pytest.mark.parametrize("beside", [0.0, 3.0, -1e6])
def test_what_cannot_move_is_no_part_of_the_norm(beside):
    """By hand: the norm of (-1, 2, -½) is the root of 5¼; two steps of it lead from the second part to the first."""
    scores = torch.tensor([[0.1, 0.5, 0.4, -torch.inf]], dtype=torch.float64)
    grad = torch.tensor([[-1.0, 2.0, -0.5, beside]], dtype=torch.float64)
    found = pulled_back(ol.OptLayer(simplex(4), ol.Interpolation(2.0), gradient_unit="norm"), scores, grad)
    half = 5.25**0.5 / 2
    torch.testing.assert_close(found, torch.tensor([[-half, half, 0.0, 0.0]], dtype=torch.float64))
    masked, grad = draw(1, 3, 3), draw(1, 3, 3, seed=1)
    masked[0, :2, 2] = -torch.inf  # so that nothing is left to choose in the third row and column
    layer = ol.OptLayer(matching(3), ol.Spigot(0.7), gradient_unit="norm")
    expected = pulled_back(
        ol.OptLayer(matching(2), ol.Spigot(0.7), gradient_unit="norm"), masked[:, :2, :2], grad[:, :2, :2]
    )
    grad[0, 2], grad[0, :, 2] = beside, beside
    found = pulled_back(layer, masked, grad)
    torch.testing.assert_close(found[:, :2, :2], expected)
    assert torch.cat([found[0, 2], found[0, :, 2]]).abs().max() < 1e-12


@pytest.mark.parametrize("rule", LINEAR, ids=repr)
def test_linear_rules_stay_the_same(rule):
    scores, grad = draw(5, 3, 3), draw(5, 3, 3, seed=1)
    plain, units = (ol.OptLayer(matching(3), rule, gradient_unit=unit) for unit in (None, "norm"))
    torch.testing.assert_close(pulled_back(units, scores, grad), pulled_back(plain, scores, grad))


@pytest.mark.parametrize("rule", STEPS, ids=repr)
def test_a_gradient_of_0_and_one_that_is_not_finite(rule):
    scores, grad = draw(4, 3, 3), draw(4, 3, 3, seed=1)
    units = ol.OptLayer(matching(3), rule, gradient_unit="norm")
    expected = pulled_back(units, scores, grad)
    grad[1], grad[2, 0, 0] = 0.0, torch.nan
    found = pulled_back(units, scores, grad)
    assert found[2].isnan().all() and torch.equal(found[[0, 3]], expected[[0, 3]])
    at_zero = pulled_back(ol.OptLayer(matching(3), rule), scores[1:2], torch.zeros(1, 3, 3, dtype=torch.float64))
    assert torch.equal(found[1:2], at_zero)


@pytest.mark.parametrize("rule", [*STEPS, ol.Spigot(0.5, steps=3), ol.SpigotCE(0.5, at="marginals")], ids=repr)
def test_a_step_in_units_of_the_loss_follows_the_gradient_of_its_own_loss(rule):
    """However losses are weighted, the rule sees what it sees in a sum, and its answer has the weight."""
    scores, target = draw(6, 4), (draw(6, 4, seed=1) > 0).double()

    def of(z):
        return (z - target).square().sum(1)

    weight = torch.tensor([1.0, 0.1, 0.01, -0.5, 0.0, 1e-3], dtype=torch.float64)
    units, plain = ol.OptLayer(simplex(4), rule, gradient_unit="loss"), ol.OptLayer(simplex(4), rule)
    leaf = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad((weight * units(leaf, objective=of)).sum(), leaf)
    signed = scores.clone().requires_grad_()
    (expected,) = torch.autograd.grad((weight.sign() * plain(signed, objective=of)).sum(), signed)
    torch.testing.assert_close(found, weight.abs()[:, None] * expected)
    mean = scores.clone().requires_grad_()
    (batch,) = torch.autograd.grad(units(mean, objective=of).mean(), mean)
    summed = scores.clone().requires_grad_()
    (total,) = torch.autograd.grad(plain(summed, objective=of).sum(), summed)
    torch.testing.assert_close(6 * batch, total)


def test_families_parameters_and_adaptive_steps():
    family = ol.OptLayer(ol.Family(arborescence), ol.Spigot(2.0), gradient_unit="norm")
    scores, grad = draw(3, 4, 4), draw(3, 4, 4, seed=1)
    found = pulled_back(family, scores, grad, sizes=[3, 2, 3])
    torch.testing.assert_close(pulled_back(family, scores, grad / 50, sizes=[3, 2, 3]), found / 50)
    assert family.with_rule(ol.SparseMAP()).gradient_unit == "norm"
    budget = torch.full((5,), 2.5, dtype=torch.float64, requires_grad=True)
    layer = ol.OptLayer(subset(4), ol.LPGD(1.0, smoothing=0.3), gradient_unit="norm", maximizer=ol.Auto())
    values = layer(draw(5, 4), budget=budget)
    one, other = (
        torch.autograd.grad((w * values * draw(5, 4, seed=2)).sum(), budget, retain_graph=True)[0] for w in (1, 9)
    )
    assert one.abs().max() > 0
    torch.testing.assert_close(other, 9 * one)
    steps = [ol.OptLayer(matching(4), ol.Spigot(ol.AdaptiveStep()), gradient_unit="norm") for _ in range(2)]
    for layer, weight in zip(steps, (1.0, 1e-3), strict=True):
        for seed in range(5):
            pulled_back(layer, draw(8, 4, 4, seed=seed), weight * draw(8, 4, 4, seed=seed + 50))
    torch.testing.assert_close(steps[0].rule_step_size, steps[1].rule_step_size)


@pytest.mark.parametrize("rule", [ol.SparseMAP(), ol.Spigot(0.3), ol.Hard(ol.SparseMAP())], ids=repr)
def test_second_derivatives(rule):
    layer = ol.OptLayer(simplex(5), rule, gradient_unit="norm")
    target = draw(3, 5, seed=3)

    def slope(grad):
        leaf = draw(3, 5).requires_grad_()
        (found,) = torch.autograd.grad(layer(leaf), leaf, grad, create_graph=True)
        return found

    assert torch.autograd.gradcheck(slope, (target.clone().requires_grad_(),))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='gradient_unit is "norm", "loss" or None, but got True'):
        ol.OptLayer(simplex(3), ol.Spigot(), gradient_unit=True)
    for rule in (ol.Spigot(steps=2), ol.SpigotCE(at="marginals"), ol.Hard(ol.SpigotEG(at="marginals"))):
        with pytest.raises(ValueError, match=r'at other points than the one that arrives.* give gradient_unit="loss"'):
            ol.OptLayer(simplex(3), rule, gradient_unit="norm")
    layer = ol.OptLayer(simplex(3), ol.Spigot(), gradient_unit="loss")
    with pytest.raises(TypeError, match=r'gradient_unit="loss" works with losses: call layer\(scores, objective=f\)'):
        layer(torch.zeros(3))
    with pytest.raises(NotImplementedError, match='gradient_unit="loss" works with losses and cannot be transformed'):
        torch.func.vmap(lambda s: layer(s, objective=lambda z: z.sum(-1)))(torch.zeros(2, 1, 3))
    assert repr(layer).endswith("on_failure='raise', gradient_unit='loss')")


@pytest.mark.parametrize(
    ("rule", "unit"), [(ol.SpigotCE(at="marginals"), None), (ol.Spigot(0.5, steps=3), "loss"), (ol.Spigot(), "loss")]
)
def test_what_works_with_losses_is_asked_with_one(rule, unit):
    layer = ol.OptLayer(simplex(3), rule, gradient_unit=unit)
    for method in ("solve", "lifted"):
        with pytest.raises(TypeError, match=rf"works with losses, which {method}\(\) does not take"):
            getattr(layer, method)(torch.zeros(3))
    with pytest.raises(TypeError, match="works with losses: call layer"):
        layer(torch.zeros(3))
