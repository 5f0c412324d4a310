"""Which rules have a gradient for parameters of the polytope; where one waits in vain, the layer says so."""

import inspect
import threading
import warnings
from dataclasses import dataclass
from typing import final

import cvxpy as cp
import pytest
import torch
from catalogue import EVERY_RULE, PLAIN
from torch import nn

import optlayers as ol
from optlayers.rules import AbstractVertexRule
from polytopes import subset

WITH = [*(rule for rule in PLAIN if rule.differentiates_parameters), ol.Hard(ol.Hard(ol.SparseMAP()))]
WITHOUT = [rule for rule in EVERY_RULE if not rule.differentiates_parameters]


def solver_of(rule: ol.AbstractRule) -> dict[str, ol.AbstractMaximizer]:
    return {"maximizer": ol.Auto()} if isinstance(rule, ol.LPGD) else {}  # an oracle has no gradient for parameters


def scores() -> torch.Tensor:
    return torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def two() -> torch.Tensor:
    return torch.tensor(2.0, dtype=torch.float64, requires_grad=True)


def total(z: torch.Tensor) -> torch.Tensor:
    return z.square().sum(-1)


def told(function) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [w for w in caught if "has no gradient for parameters" in str(w.message)]


@pytest.mark.many(24)
@pytest.mark.parametrize("rule", [*WITH, *WITHOUT], ids=repr)
def test_a_rule_says_whether_it_has_a_gradient_for_parameters(rule):
    layer, budget = ol.OptLayer(subset(5), rule, **solver_of(rule)), two()
    caught = told(lambda: layer(scores(), budget=budget, objective=total).sum().backward())
    assert (budget.grad is not None) == rule.differentiates_parameters == (rule in WITH)
    assert len(caught) == (rule in WITHOUT)


def test_the_warning_names_the_parameter_the_line_and_what_to_do():
    layer = ol.OptLayer(subset(5), ol.Spigot(0.5))
    line = inspect.currentframe().f_lineno + 1
    (caught,) = told(lambda: layer(scores(), budget=two()))
    assert (caught.filename, caught.lineno, caught.category) == (__file__, line, UserWarning)
    assert str(caught.message) == (
        "Spigot(step_size=0.5, clip_norm=None, relaxation=None, steps=1) has no gradient for parameters of the "
        "polytope: budget requires one, and gets none. SparseMAP(), LPGD(strength) and Hard(SparseMAP()) have a "
        "gradient for parameters, and WithParameters(Spigot(step_size=0.5, clip_norm=None, relaxation=None, steps=1)) "
        "has a surrogate; or pass budget.detach()"
    )


def test_a_layer_warns_once_and_another_one_again():
    layers = [ol.OptLayer(subset(5), ol.StraightThrough()) for _ in range(2)]
    layers += [layers[0].with_rule(ol.Spigot())]
    for layer in layers:
        assert len(told(lambda layer=layer: [layer(scores(), budget=two()) for _ in range(3)])) == 1
    family = ol.OptLayer(ol.Family(subset), ol.StraightThrough())
    assert len(told(lambda: [family(scores(), sizes=[5, 3], budget=two()) for _ in range(2)])) == 1


def test_several_parameters_are_named_together():
    x, low, high = cp.Variable(3), cp.Parameter(3, name="low"), cp.Parameter(3, name="high")
    layer = ol.OptLayer(ol.Polytope(x, [x >= low, x <= high, cp.sum(x) == 1]), ol.Spigot())
    ends = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    (caught,) = told(lambda: layer(torch.zeros(2, 3), low=ends[0], high=ends[1]))
    assert "low, high require one, and get none" in str(caught.message)


def test_where_no_gradient_waits_nothing_is_said():
    layer = ol.OptLayer(subset(5), ol.Spigot())

    def calls() -> None:
        layer(scores(), budget=2.0)
        layer(scores(), budget=two().detach())
        with torch.no_grad():
            layer(scores(), budget=two())
        with torch.inference_mode():
            layer(scores(), budget=2.0)

    assert told(calls) == []


@pytest.mark.parametrize("how", ["a module", "solve", "lifted", "objective", "torch.func", "checkpoint"])
def test_the_line_is_the_one_of_the_caller(how):
    layer, given = ol.OptLayer(subset(5), ol.StraightThrough()), scores()

    class Model(nn.Module):
        def forward(self, s: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return layer(s, budget=b)

    calls = {
        "a module": lambda: Model()(scores(), two()),
        "solve": lambda: layer.solve(scores(), budget=two()),
        "lifted": lambda: layer.lifted(scores(), budget=two()),
        "objective": lambda: layer(scores(), budget=two(), objective=total),
        "torch.func": lambda: torch.func.grad(lambda b: layer(given, budget=b).sum())(two().detach()),
        "checkpoint": lambda: torch.utils.checkpoint.checkpoint(Model(), scores(), two(), use_reentrant=False),
    }
    (caught,) = told(calls[how])
    assert caught.filename == __file__


@final
@dataclass(frozen=True)
class Undeclared(AbstractVertexRule):
    """A user's rule that does not say whether it has a gradient for parameters."""

    gives: bool

    def backward(self, polytope, saved, grad, context):
        given = {"budget": torch.ones(len(grad), dtype=torch.float64)} if self.gives else {}
        return ol.Gradient(grad, given)


def test_a_rule_that_does_not_say_is_seen_in_its_backward_pass():
    giving, lacking = (ol.OptLayer(subset(5), Undeclared(gives)) for gives in (True, False))
    budget = two()
    assert told(lambda: giving(scores(), budget=budget).sum().backward()) == [] and budget.grad == 2.0
    losses = []
    assert told(lambda: losses.append(lacking(scores(), budget=two()).sum())) == []
    line = inspect.currentframe().f_lineno + 1
    (caught,) = told(lambda: losses[0].backward())
    assert (caught.filename, caught.lineno) == (__file__, line) and "budget requires one" in str(caught.message)
    assert told(lambda: lacking(scores(), budget=two()).sum().backward()) == []


def test_threads_may_share_a_layer_that_warns():
    layer, ready = ol.OptLayer(subset(5), ol.Spigot()), threading.Barrier(4)

    def work() -> None:
        ready.wait()
        for _ in range(3):
            layer(scores(), budget=two()).sum().backward()

    def both() -> None:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert 1 <= len(told(both)) <= 4


def test_gradients_of_optimal_values_have_a_derivative_by_the_scores():
    """Which is that of the points by the parameters, as second derivatives are symmetric."""
    compiled = ol.compile_polytope(subset(4).without_oracle())
    budget = torch.tensor([[1.3], [2.0], [0.4]], dtype=torch.float64)
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def slope(s: torch.Tensor) -> torch.Tensor:
        bound = compiled.bind({"budget": budget}, None, 3)
        return bound.value_gradient(bound.project(s))["budget"]

    leaf = scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(slope, leaf, eps=1e-6, atol=1e-6)
    assert torch.autograd.functional.jacobian(slope, leaf).abs().sum() > 0.5
    bound = compiled.bind({"budget": budget}, None, 3)
    with pytest.raises(NotImplementedError, match="gradients of optimal values"):
        bound.value_gradient(bound.maximize(leaf))["budget"].sum().backward()


def test_a_loss_has_mixed_second_derivatives_by_scores_and_parameters():
    made, target = ol.SparseMAPLoss(subset(4).without_oracle(), validate=False), torch.tensor([1.0, 0.0, 0.0, 1.0])
    scores, budget = torch.tensor([0.3, 0.1, -0.4, 0.5]).double(), torch.tensor(1.6).double()

    def slopes(s: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(made(s, target, budget=b), (s, b), create_graph=True)

    leaves = scores.clone().requires_grad_(), budget.clone().requires_grad_()
    of_scores, of_budget = slopes(*leaves)
    (mixed,) = torch.autograd.grad(of_scores @ torch.arange(4.0).double(), leaves[1], retain_graph=True)
    step = 1e-6
    moved = [slopes(leaves[0], (budget + t).requires_grad_())[0].detach() for t in (step, -step)]
    expected = (moved[0] - moved[1]) @ torch.arange(4.0).double() / (2 * step)
    assert abs(mixed.item() - expected.item()) <= 1e-7 and abs(expected.item()) > 0.1
    second = torch.autograd.grad(of_budget, leaves)
    moved = [slopes(leaves[0], (budget + t).requires_grad_())[1].detach() for t in (step, -step)]
    assert abs(second[1].item() - (moved[0] - moved[1]).item() / (2 * step)) <= 1e-7 and abs(second[1].item()) > 0.1
    torch.testing.assert_close(
        second[0], torch.autograd.functional.jacobian(lambda b: slopes(leaves[0], b)[0], leaves[1])
    )


@pytest.mark.parametrize("scale", [1.0, 20.0, 1000.0])
@pytest.mark.parametrize("base", [1.0, 2.0])
def test_next_to_a_kink_there_is_an_answer_and_a_derivative(scale, base):
    """A budget that is spent on whole parts but for 1e-13 to 1e-2: where training by gradients ends."""
    x, spent, cap = cp.Variable(3, nonneg=True), cp.Parameter(name="spent"), cp.Parameter(3, name="cap")
    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x) <= spent, x <= cap]), ol.SparseMAP())
    generator = torch.Generator().manual_seed(0)
    size = 10.0 ** (-13.0 + 11.0 * torch.rand(300, generator=generator, dtype=torch.float64))
    budget = (base + size * torch.randn(300, generator=generator, dtype=torch.float64).sign()).requires_grad_()
    given = scale * torch.tensor([5.0, 3.0, 0.5], dtype=torch.float64).expand(300, 3)
    z = layer(given, spent=budget, cap=torch.ones(3, dtype=torch.float64))
    part, spare = (1, 0) if base == 1.0 else (2, 1)
    away = size > 1e-6  # else it is the kink
    assert (z.sum(1) - budget).abs().max() <= 1e-7
    (slope,) = torch.autograd.grad(z[:, part].sum(), budget, retain_graph=True)
    torch.testing.assert_close(slope[away], (budget > base).double()[away], atol=1e-6, rtol=0.0)
    (slope,) = torch.autograd.grad(z[:, spare].sum(), budget)
    torch.testing.assert_close(slope[away], (budget < base).double()[away], atol=1e-6, rtol=0.0)
