"""What a layer gives belongs to the caller, who may write to it; what is kept for the backward pass does not change."""

from dataclasses import dataclass
from typing import final

import cvxpy as cp
import pytest
import torch
from catalogue import PLAIN
from drawing import draw
from torch.func import grad, vmap

import optlayers as ol
from optlayers.rules import AbstractVertexRule
from polytopes import arborescence, cube, linear_chain, matching, simplex

POLYTOPES = {
    name: ol.compile_polytope(polytope)
    for name, polytope in {
        "simplex": simplex(3),
        "simplex, declared": simplex(3).without_oracle(),
        "matching": matching(3),
        "tree": arborescence(2),
    }.items()
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def in_graph(z: torch.Tensor) -> torch.Tensor:
    z -= 1.0
    return z


def without_graph(z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        z.mul_(3.0).clamp_(-2.0, 0.5)
    return z


def through_numpy(z: torch.Tensor) -> torch.Tensor:
    z.detach().numpy().fill(7.0)
    return z


def leave(z: torch.Tensor) -> torch.Tensor:
    return z


WRITES = [in_graph, without_graph, through_numpy]


def gradient(layer, scores, write, ask=lambda layer, scores: layer(scores, generator=generator())):
    leaf = scores.clone().requires_grad_()
    z = write(ask(layer, leaf))
    return torch.autograd.grad((z * draw(*z.shape, seed=1, dtype=z.dtype)).sum(), leaf)[0]


@pytest.mark.many(10)
@pytest.mark.parametrize("name", POLYTOPES)
@pytest.mark.parametrize("rule", PLAIN, ids=repr)
def test_structures_may_be_written_to(rule, name):
    polytope = POLYTOPES[name]
    for dtype in (torch.float64, torch.float32):
        scores = draw(2, *polytope.shape, dtype=dtype)
        expected = gradient(ol.OptLayer(polytope, rule), scores, leave)
        for write in WRITES:
            assert torch.equal(gradient(ol.OptLayer(polytope, rule), scores, write), expected)


def test_a_target_subtracted_in_place_is_the_one_of_the_issue():
    for rule in (ol.Spigot(), ol.Interpolation(1.0), ol.LPGD(1.0)):
        scores = torch.tensor([[0.3, 0.2, -0.1]], dtype=torch.float64, requires_grad=True)
        z = ol.OptLayer(simplex(3), rule)(scores)
        z -= torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
        z.square().sum().backward()
        assert scores.grad.tolist() == [[1.0, -1.0, 0.0]]


@pytest.mark.parametrize("rule", [ol.Spigot(), ol.SparseMAP(), ol.LPGD(1.0), ol.IMLE()], ids=repr)
def test_structures_beside_scored_auxiliary_variables_may_be_written_to(rule):
    layer, pairs = ol.OptLayer(linear_chain(3, 2), rule), draw(2, 3, 2, 2, seed=3)

    def whole(layer, scores):
        return layer(scores, transition=pairs, generator=generator())

    def lifted(layer, scores):
        z, values = layer.lifted(scores, transition=pairs, generator=generator())
        values["transition"].detach().numpy().fill(7.0)
        return z

    scores = draw(2, 3, 2)
    expected = gradient(layer, scores, leave, whole)
    for write in WRITES:
        assert torch.equal(gradient(layer, scores, write, whole), expected)
        assert torch.equal(gradient(layer, scores, write, lifted), expected)


@pytest.mark.parametrize("rule", [ol.Spigot(), ol.SparseMAP(), ol.LPGD(1.0), ol.StructuredAttention()], ids=repr)
@pytest.mark.parametrize("name", POLYTOPES)
def test_all_of_a_solution_may_be_written_to(rule, name):
    polytope = POLYTOPES[name]
    layer, scores = ol.OptLayer(polytope, rule), draw(2, *polytope.shape)

    def solved(layer, scores):
        solution = layer.solve(scores)
        mixture = () if solution.evidence is None or solution.evidence.decomposition is None else (solution.vertices,)
        for part in (solution.status, solution.gap, solution.primal_residual, *solution.scored.values(), *mixture):
            part.detach().numpy().fill(3)
        return solution.value

    expected = gradient(layer, scores, leave)
    for write in WRITES:
        assert torch.equal(gradient(layer, scores, write, solved), expected)


def test_vertices_may_be_written_to_before_the_gradient_of_weights():
    layer, found = ol.OptLayer(arborescence(3), ol.SparseMAP()), []
    for writes in (False, True):
        leaf = draw(2, 4, 4).requires_grad_()
        solution = layer.solve(leaf)
        weights = solution.weights
        if writes:
            solution.vertices.detach().numpy().fill(7.0)
        found.append(torch.autograd.grad(weights.square().sum(), leaf)[0])
    assert torch.equal(*found) and found[0].abs().sum() > 0.1


@pytest.mark.many(2)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("rule", [ol.StraightThrough(), ol.Spigot(steps=3), ol.ScoreFunction(), ol.IMLE()], ids=repr)
def test_an_objective_may_write_to_its_structures(rule, write):
    """The losses of a rule with several structures, or steps, are of what was written by each of them anew."""
    target = draw(2, 3, seed=2)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return (0.3 * (z - target).square()).sum(-1)

    def writing(z: torch.Tensor) -> torch.Tensor:
        losses = loss(z * 1.0)
        write(z)
        return losses

    found = []
    for objective in (loss, writing):
        leaf = draw(2, 3).requires_grad_()
        ol.OptLayer(simplex(3), rule)(leaf, objective=objective, generator=generator()).sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


def test_losses_that_an_objective_keeps_may_be_written_to():
    kept, found = [], []

    def loss(z: torch.Tensor) -> torch.Tensor:
        kept.append(z.square().sum(-1) + z[..., 0])
        return kept[-1]

    for writes in (False, True):
        kept.clear()
        leaf = draw(2, 3).requires_grad_()
        losses = ol.OptLayer(simplex(3), ol.ScoreFunction())(leaf, objective=loss, generator=generator())
        if writes:
            for each in kept:
                each.detach().numpy().fill(9.0)
            losses.detach().numpy().fill(9.0)
        losses.sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found) and found[0].abs().sum() > 0.01


@pytest.mark.parametrize("rule", [ol.Spigot(), ol.Interpolation(1.0), ol.LPGD(1.0), ol.SparseMAP()], ids=repr)
def test_structures_may_be_written_to_inside_transforms(rule):
    layer, scores, target = ol.OptLayer(matching(3), rule), draw(4, 3, 3), draw(4, 3, 3, seed=1)

    def loss(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (layer(s) - y).square().sum()

    def writing(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = layer(s)
        z -= y
        return z.square().sum()

    assert torch.equal(vmap(grad(writing))(scores, target), vmap(grad(loss))(scores, target))
    assert torch.equal(grad(writing)(scores, target), grad(loss)(scores, target))
    mapped = vmap(layer)(leaf := scores.clone().requires_grad_())
    mapped.detach().numpy().fill(7.0)
    expected = gradient(layer, scores, leave)
    assert torch.equal(torch.autograd.grad((mapped * draw(4, 3, 3, seed=1)).sum(), leaf)[0], expected)


@pytest.mark.parametrize("rule", PLAIN, ids=repr)
def test_scores_may_be_written_to_after_the_call(rule):
    layer, scores = ol.OptLayer(POLYTOPES["matching"], rule), draw(2, 3, 3)
    expected = gradient(ol.OptLayer(POLYTOPES["matching"], rule), scores, leave)
    leaf = scores.clone().requires_grad_()
    z = layer(leaf, generator=generator())
    leaf.detach().numpy().fill(5.0)
    assert torch.equal(torch.autograd.grad((z * draw(2, 3, 3, seed=1)).sum(), leaf)[0], expected)


@pytest.mark.parametrize("rule", [ol.SparseMAP(), ol.LPGD(1.0), ol.LPGD(1.0, smoothing=0.5)], ids=repr)
def test_parameters_and_auxiliary_scores_may_be_written_to_after_the_call(rule):
    x, limit = cp.Variable(3), cp.Parameter(3, name="limit", nonneg=True)
    capped = ol.OptLayer(ol.Polytope(x, [x >= 0, x <= limit, limit @ x <= 1]), rule)
    chain = ol.OptLayer(linear_chain(3, 2), rule)
    found = []
    for writes in (False, True):
        leaf, bound = draw(2, 3).requires_grad_(), torch.full((2, 3), 0.7, dtype=torch.float64, requires_grad=True)
        unary, pairs = draw(2, 3, 2).requires_grad_(), draw(2, 3, 2, 2, seed=3).requires_grad_()
        z, tags = capped(leaf, limit=bound), chain(unary, transition=pairs)
        if writes:
            for given in (leaf, bound, unary, pairs):
                given.detach().numpy().fill(5.0)
        weights, more = draw(2, 3, seed=1), draw(2, 3, 2, seed=1)
        found.append(torch.autograd.grad((z * weights).sum() + (tags * more).sum(), [leaf, bound, unary, pairs]))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("shape", [(2, 3, 3), (3, 3), (1, 2, 3, 3)])
@pytest.mark.parametrize("rule", [ol.StraightThrough(), ol.Identity(center=False, normalize=False)], ids=repr)
def test_a_gradient_is_not_the_memory_of_the_one_that_arrived(rule, shape):
    leaf, weights = draw(*shape).requires_grad_(), torch.ones(shape, dtype=torch.float64)
    ol.OptLayer(matching(3), rule)(leaf).backward(weights)
    weights.zero_()
    assert (leaf.grad == 1).all()


@final
@dataclass(frozen=True)
class SendsBackWhatItSaved(AbstractVertexRule):
    """Breaks the contract."""

    def backward(self, polytope, saved, grad, context):
        return ol.Gradient(saved[1])


def test_a_rule_that_sends_back_what_it_saved_is_caught():
    with pytest.raises(AssertionError, match="when a gradient that came out is overwritten, gives other gradients"):
        ol.testing.check_rule(SendsBackWhatItSaved(), cube(3))


def test_without_a_gradient_structures_may_be_written_to_as_well():
    layer, scores = ol.OptLayer(simplex(3), ol.SparseMAP()), draw(2, 3)
    first = layer(scores)
    first -= 1.0
    with torch.no_grad():
        second = layer(scores)
    assert torch.equal(second - 1.0, first) and torch.equal(scores, draw(2, 3))


def of_sizes(function: str, scores: torch.Tensor, sizes: object, target: torch.Tensor) -> torch.Tensor:
    """What is found for a batch of mixed length."""
    family = ol.Family(simplex)
    if function == "layer":
        return ol.OptLayer(family, ol.SparseMAP())(scores, sizes=sizes)
    if function == "solve":
        return ol.OptLayer(family, ol.SparseMAP()).solve(scores, sizes=sizes).value
    if function == "loss":
        return ol.SparseMAPLoss(family, reduction="none")(scores, target, sizes=sizes)
    return getattr(ol.Gibbs(family, scores, sizes=sizes), function)


def of_one_size(function: str, scores: torch.Tensor) -> torch.Tensor:
    if function == "loss":
        return ol.SparseMAPLoss(simplex(5), reduction="none")(scores, torch.eye(5)[0].expand(scores.shape))
    return getattr(ol.Gibbs(simplex(5), scores), function)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "sizes"), [((4, 5), [5, 0, 3, 2]), ((2, 2, 5), [[5, 0], [3, 2]]), ((5,), 3)])
@pytest.mark.parametrize("function", ["layer", "solve", "loss", "log_partition", "mean"])
def test_what_is_joined_of_several_sizes_may_be_written_to(function, shape, sizes, dtype):
    scores = draw(*shape, dtype=dtype)
    target = ol.OptLayer(ol.Family(simplex), ol.Pipeline())(scores, sizes=sizes)
    calls = [lambda leaf: of_sizes(function, leaf, sizes, target)]
    if function not in ("layer", "solve"):
        calls.append(lambda leaf: of_one_size(function, leaf))
    for call in calls:
        gradients = []
        for in_place in (False, True):
            leaf = scores.clone().requires_grad_()
            found = call(leaf)
            if in_place:
                found *= 2.0
            else:
                found = 2.0 * found
            gradients.append(torch.autograd.grad(found.square().sum(), leaf)[0])
        assert torch.equal(*gradients)
