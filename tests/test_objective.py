"""A layer called with the loss as a function of structures; what rules get from a call besides scores."""

from dataclasses import dataclass, replace

import pytest
import torch
from catalogue import REPEATABLE

import optlayers as ol
from optlayers.compilation.prepared import KEPT_BATCHES
from polytopes import arborescence, simplex, subset

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def squared(target):
    return lambda structures: (structures - target).square().flatten(1).sum(1)


def gradients(losses, *leaves):
    weights = torch.linspace(0.5, 2.0, losses.numel(), dtype=losses.dtype).reshape(losses.shape)
    return torch.autograd.grad((losses * weights).sum(), leaves)


@pytest.mark.many(5)
@pytest.mark.parametrize("rule", REPEATABLE, ids=repr)
def test_the_layer_with_an_objective_is_the_objective_of_the_layer(rule):
    layer = ol.OptLayer(simplex(4), rule)
    scores, decoder = normal(3, 4).requires_grad_(), normal(3, 4).requires_grad_()
    through = layer(scores, objective=squared(decoder))
    around = squared(decoder)(layer(scores))
    torch.testing.assert_close(through, around)
    for mine, theirs in zip(gradients(through, scores, decoder), gradients(around, scores, decoder), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.many(5)
@pytest.mark.parametrize("rule", REPEATABLE, ids=repr)
def test_so_it_is_in_mixed_lengths(rule):
    layer = ol.OptLayer(ol.Family(arborescence), rule)
    scores, target = normal(4, 4, 4).requires_grad_(), normal(4, 4, 4)
    sizes = [3, 2, 0, 3]
    through = layer(scores, sizes=sizes, objective=squared(target))
    around = squared(target)(layer(scores, sizes=sizes))
    torch.testing.assert_close(through, around)
    torch.testing.assert_close(gradients(through, scores), gradients(around, scores))


@dataclass(frozen=True)
class Looking(ol.AbstractRule):
    """Sends the gradient of the objective at structures moved by ``shift``, and counts its backward passes."""

    shift: float = 0.0
    needs_objective = True

    def initial_state(self):
        return {"passes": torch.zeros(())}

    def forward(self, polytope, scores, context):
        solution = polytope.maximize(scores)
        return solution, solution.value

    def backward(self, polytope, saved, grad, context):
        context.state["passes"] += 1
        return ol.Gradient(context.objective.gradient(saved + self.shift))


def test_a_rule_sees_the_weighted_gradient_of_its_own_instances_at_other_structures():
    scores, target = normal(4, 4, 4).requires_grad_(), normal(4, 4, 4)
    sizes, weights = [3, 2, 0, 3], torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    layer = ol.OptLayer(ol.Family(arborescence), Looking(shift=0.25))
    trees = ol.OptLayer(ol.Family(arborescence), ol.Pipeline())(scores, sizes=sizes).detach()
    losses = layer(scores, sizes=sizes, objective=squared(target))
    (found,) = torch.autograd.grad((losses * weights).sum(), scores)
    for k, size in enumerate(sizes):
        corner = (k, slice(0, size + 1), slice(0, size + 1)) if size else (k, slice(0, 0))
        expected = torch.zeros_like(found[k])
        expected[corner[1:]] = 2 * weights[k] * (trees[corner] + 0.25 - target[corner])
        torch.testing.assert_close(found[k], expected)
    assert layer.state_dict()["rule_passes"] == 2  # one per size that has parts


@dataclass(frozen=True)
class Pair(ol.AbstractRule):
    """The best and the worst vertex, apart; the gradient says which of the two is better."""

    needs_objective = True
    apart = 2

    def forward(self, polytope, scores, context):
        best, worst = polytope.maximize(scores), polytope.maximize(-scores)
        both = torch.stack([best.value, worst.value])
        return replace(best, value=both), both

    def backward(self, polytope, saved, grad, context):
        losses = context.objective.losses
        return ol.Gradient(
            context.objective.weights[:, None] * (losses[0] - losses[1])[:, None] * (saved[0] - saved[1])
        )


@pytest.mark.parametrize("differentiable", [True, False])
def test_structures_apart_go_to_the_objective_one_by_one(differentiable):
    scores = normal(5, 3).requires_grad_()
    prices, seen = normal(5, 3), []

    def objective(structures):
        seen.append(structures.detach())
        losses = (structures * prices).sum(-1)
        return losses if differentiable else losses.detach()

    losses = ol.OptLayer(simplex(3), Pair())(scores, objective=objective)
    best = torch.nn.functional.one_hot(scores.argmax(1), 3).to(torch.float64)
    worst = torch.nn.functional.one_hot(scores.argmin(1), 3).to(torch.float64)
    torch.testing.assert_close(torch.stack(seen), torch.stack([best, worst]))
    torch.testing.assert_close(losses, ((best + worst) * prices).sum(-1) / 2)
    (found,) = torch.autograd.grad(losses.mean(), scores)
    torch.testing.assert_close(found, ((best - worst) * prices).sum(-1, keepdim=True) * (best - worst) / 5)


def test_structures_apart_in_mixed_lengths():
    scores = normal(3, 4).requires_grad_()
    layer = ol.OptLayer(ol.Family(simplex), Pair())
    seen = []
    losses = layer(scores, sizes=[4, 2, 0], objective=lambda z: (seen.append(z.detach()), z.square().sum(-1))[1])
    assert [z.sum(-1).tolist() for z in seen] == [[1.0, 1.0, 0.0]] * 2
    assert (seen[0][1, 2:] == 0).all()
    losses.sum().backward()
    assert scores.grad.shape == scores.shape


def test_bad_objectives_are_refused_with_what_is_wanted():
    layer, scores = ol.OptLayer(simplex(3), ol.StraightThrough()), normal(5, 3)
    with pytest.raises(ValueError, match=r"one loss per instance, of shape \(5,\), but returned shape \(\); leave out"):
        layer(scores, objective=lambda z: z.sum())
    with pytest.raises(TypeError, match="must return a tensor of losses, but returned float"):
        layer(scores, objective=lambda z: 1.0)
    with pytest.raises(TypeError, match="objective must be a function of structures, but got int"):
        layer(scores, objective=3)
    with pytest.raises(TypeError, match=r"works with losses: call layer\(scores, objective=f\)"):
        ol.OptLayer(simplex(3), Looking())(scores)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, but got int"):
        layer(scores, generator=3)
    with pytest.raises(TypeError, match="gives several"):
        ol.Hard(Pair())
    with pytest.raises(TypeError, match="gives 2"):
        ol.OptLayer(simplex(3), Pair()).solve(scores)


def bound(compiled, batch, forbidden=None, **parameters):
    return compiled.bind(parameters, forbidden, batch)


def test_batches_without_parameters_and_forbidden_parts_are_kept_for_a_few_sizes():
    compiled = ol.compile_polytope(simplex(3))
    small = compiled.bind({}, None, 2)
    many = small.repeated(5)
    assert compiled.bind({}, None, 10).numbers is many.numbers
    assert small.repeated(5).numbers is many.numbers
    assert compiled.bind({}, torch.zeros(2, 3, dtype=torch.bool), 2).numbers is not small.numbers
    scores = torch.eye(3, dtype=torch.float64).repeat(4, 1)[:10]
    assert many.maximize(scores).value.equal(scores)
    for batch in range(20, 40):
        assert compiled.bind({}, None, batch).numbers.batch == batch
    assert len(compiled.plain) == KEPT_BATCHES


def test_a_repeated_batch_has_the_parameters_and_forbidden_parts_of_every_instance():
    compiled = ol.compile_polytope(subset(4))
    forbidden = torch.tensor([[True, False, False, False], [False] * 4])
    twice = bound(compiled, 2, forbidden, budget=torch.tensor([1.0, 2.0], dtype=torch.float64)).repeated(2)
    found = twice.maximize(torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64).repeat(4, 1)).check().value
    assert found.tolist() == [[0, 1, 0, 0], [1, 1, 0, 0]] * 2
    assert twice.movable.tolist() == (~forbidden).tolist() * 2


def test_a_relaxation_gets_the_numbers_of_the_batch():
    compiled = ol.compile_polytope(subset(4))
    forbidden = torch.tensor([[True, False, False, False]])
    mine = bound(compiled, 1, forbidden, budget=torch.tensor([2.0], dtype=torch.float64))
    relaxed = mine.relaxed(simplex(4))
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    assert relaxed.maximize(scores).check().value.tolist() == [[0, 1, 0, 0]]
    assert mine.relaxed(subset(4)).maximize(scores).check().value.tolist() == [[0, 1, 1, 0]]
    with pytest.raises(ValueError, match=r"the relaxation has shape \(5,\), but the polytope has shape \(4,\)"):
        mine.relaxed(simplex(5))
    with pytest.raises(ValueError, match="the relaxation declares parameter budget"):
        ol.compile_polytope(simplex(4)).relaxation(subset(4))


def test_parts_that_the_constraints_fix_cannot_move():
    movable = bound(ol.compile_polytope(arborescence(2)), 3).movable
    assert movable.reshape(-1, 3, 3).tolist() == [[[False, True, True], [False, False, True], [False, True, False]]]
