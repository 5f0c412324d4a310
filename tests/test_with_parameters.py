"""Surrogate gradients for parameters under rules that have none."""

import cvxpy as cp
import pytest
import torch

import optlayers as ol
from optlayers.testing import check_rule
from polytopes import simplex

X = cp.Variable(3, nonneg=True)
BUDGET, CAP = cp.Parameter(name="budget"), cp.Parameter(3, name="cap")
POLYTOPE = ol.Polytope(X, [cp.sum(X) <= BUDGET, X <= CAP])
WRAPPED = [ol.Pipeline(), ol.Spigot(), ol.StraightThrough(), ol.Interpolation(1.0), ol.Hard(ol.SparseMAP())]
WAYS = ["projection", "target", ol.LPGD(0.7), ol.LPGD(0.7, smoothing=0.5, side="both")]


def leaves(scale: float = 4.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = scale * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    budget = torch.tensor([1.5, 0.7, 2.2, 1.1], dtype=torch.float64)
    cap = 0.6 + torch.rand(4, 3, generator=generator, dtype=torch.float64)
    return scores.requires_grad_(), budget.requires_grad_(), cap.requires_grad_()


def gradients(rule: ol.AbstractRule, scale: float = 4.0) -> tuple[torch.Tensor, ...]:
    scores, budget, cap = leaves(scale)
    z = ol.OptLayer(POLYTOPE, rule)(scores, budget=budget, cap=cap)
    weights = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(4, 3)
    return torch.autograd.grad((weights * z).sum() + z.square().sum(), (scores, budget, cap), allow_unused=True)


@pytest.mark.parametrize("by", WAYS, ids=repr)
@pytest.mark.parametrize("rule", WRAPPED, ids=repr)
def test_the_wrapped_rule_keeps_its_forward_map_and_its_gradient(rule, by):
    scores, budget, cap = leaves()
    wrapped = ol.WithParameters(rule, by)
    plain, with_parameters = (ol.OptLayer(POLYTOPE, r) for r in (rule, wrapped))
    given = {"budget": budget.detach(), "cap": cap.detach()}
    assert torch.equal(plain(scores, **given), with_parameters(scores, **given))
    mine = gradients(wrapped)
    weights = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(4, 3)
    z = plain(scores, **given)
    (expected,) = torch.autograd.grad((weights * z).sum() + z.square().sum(), scores)
    torch.testing.assert_close(mine[0], expected)
    assert mine[2].abs().sum() > 1e-3
    assert mine[1].abs().sum() > 1e-3 or by == "target"  # a step along a budget does not ask for more


def test_by_projection_is_the_derivative_of_the_nearest_point():
    mine, soft = gradients(ol.WithParameters(ol.Spigot())), gradients(ol.Hard(ol.SparseMAP()))
    for found, expected in zip(mine[1:], soft[1:], strict=True):
        torch.testing.assert_close(found, expected)


def test_next_to_large_scores_it_is_how_the_vertex_moves():
    """By finite differences of the best vertex itself, which is the nearest point to such scores."""
    scores, budget, cap = (t.detach() for t in leaves(scale=1e3))
    weights = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(4, 3)
    compiled, step = ol.compile_polytope(POLYTOPE), 1e-6

    def loss(b: torch.Tensor) -> torch.Tensor:
        z = compiled.maximize(scores, budget=b, cap=cap).value
        return (weights * z).sum(1) + z.square().sum(1)

    expected = (loss(budget + step) - loss(budget - step)) / (2 * step)
    found = gradients(ol.WithParameters(ol.Pipeline()), scale=1e3)[1]
    assert expected.abs().sum() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_by_lpgd_is_that_of_lpgd():
    lpgd = ol.LPGD(0.7)
    mine, its = gradients(ol.WithParameters(ol.StraightThrough(), lpgd)), gradients(lpgd)
    for found, expected in zip(mine[1:], its[1:], strict=True):
        torch.testing.assert_close(found, expected)


def test_by_target_pulls_back_what_a_step_can_change():
    """The displacement of SPIGOT, through the derivative of the nearest point, put together by hand."""
    scores, budget, cap = leaves()
    given = {"budget": budget.detach(), "cap": cap.detach()}
    compiled = ol.compile_polytope(POLYTOPE)
    vertex = compiled.maximize(scores.detach(), **given).value
    weights = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(4, 3)
    grad = weights + 2.0 * vertex
    moved = vertex - compiled.project(vertex - 0.4 * grad, **given).value
    expected = compiled.tangent(compiled.project(scores.detach(), **given), moved).parameters
    found = gradients(ol.WithParameters(ol.Pipeline(), "target", step_size=0.4))
    assert expected["budget"].abs().sum() > 1e-3
    torch.testing.assert_close(found[1], expected["budget"])
    torch.testing.assert_close(found[2], expected["cap"])


def test_pipeline_sends_nothing_to_scores_and_learns_a_budget():
    """Supply is bought at a price of 0.6 and pays the score of what it serves: the third part is not worth it."""
    budget = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    scores, cap = torch.tensor([5.0, 3.0, 0.5], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    layer = ol.OptLayer(POLYTOPE, ol.WithParameters(ol.Pipeline()))
    for _ in range(300):
        loss = (
            0.6 * budget - (torch.tensor([1.0, 0.9, 0.5]).double() * layer(20.0 * scores, budget=budget, cap=cap)).sum()
        )
        (slope,) = torch.autograd.grad(loss, budget)
        budget = (budget - 0.03 * slope).detach().requires_grad_()
    assert abs(budget.item() - 2.0) < 0.05


def test_it_is_a_rule_like_any_other():
    check_rule(ol.WithParameters(ol.Spigot()), simplex(3))
    check_rule(ol.WithParameters(ol.Hard(ol.SparseMAP()), ol.LPGD(1.0)), simplex(3).without_oracle())
    value = ol.WithParameters(ol.Spigot(step_size=0.5), "target", 2.0)
    assert eval(repr(value), vars(ol)) == value


def test_what_it_cannot_wrap_is_said():
    with pytest.raises(TypeError, match=r"WithParameters wraps a rule such as Spigot\(\)"):
        ol.WithParameters(ol.Spigot)
    with pytest.raises(TypeError, match="gives several; use it as it is"):
        ol.WithParameters(ol.ScoreFunction())
    with pytest.raises(ValueError, match='by is "projection", "target" or an LPGD'):
        ol.WithParameters(ol.Spigot(), "spigot")
    with pytest.raises(ValueError, match="step_size must be"):
        ol.WithParameters(ol.Spigot(), "target", step_size=0.0)
