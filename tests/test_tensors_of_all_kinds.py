"""Tensors that hold their numbers in some other way, or none, and gradients that come many at a time."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import PLAIN
from drawing import draw
from torch.autograd.functional import hessian, jacobian

import optlayers as ol
from optlayers.testing import contains
from polytopes import arborescence, linear_chain, matching, simplex, subset

STATELESS = [rule for rule in PLAIN if not rule.initial_state()]
"""Which may be asked again, and send back the same."""


def lazily_negated(values: torch.Tensor) -> torch.Tensor:
    """Numbers of which memory has the negative ones."""
    with torch.no_grad():
        view = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert view.is_neg() and torch.equal(view.nan_to_num(), values.nan_to_num())
    return view


def review() -> ol.Polytope:
    x, load = cp.Variable((3, 4)), cp.Parameter(4, name="load", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x, axis=1) == 2, cp.sum(x, axis=0) <= load])


# Lazily negated views


@pytest.mark.many(14)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rule", STATELESS, ids=repr)
def test_scores_and_gradients_may_be_lazily_negated(rule, dtype):
    layer, scores, weights = (
        ol.OptLayer(matching(3), rule),
        draw(2, 3, 3, dtype=dtype),
        draw(2, 3, 3, seed=1, dtype=dtype),
    )
    found = []
    for change in (torch.clone, lazily_negated):
        leaf = change(scores).requires_grad_()
        value = layer(leaf, generator=torch.Generator().manual_seed(0))
        found.append((value.detach(), torch.autograd.grad(value, leaf, change(weights))[0]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_forbidding_scores_may_be_lazily_negated():
    scores = draw(2, 3, 3)
    scores[0, 0, 1] = -torch.inf
    layer = ol.OptLayer(matching(3), ol.SparseMAP())
    assert torch.equal(layer(lazily_negated(scores)), layer(scores))
    scores[1, 2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"nan at batch index 1, entry \[2, 2\]"):
        layer(lazily_negated(scores))


def test_parameters_and_scores_of_auxiliary_variables_may_be_lazily_negated():
    scores, load, pairs = draw(2, 3, 4), torch.full((2, 4), 2.2, dtype=torch.float64), draw(2, 3, 2, 2, seed=1)
    found = []
    for change in (torch.clone, lazily_negated):
        leaves = [change(part).requires_grad_() for part in (scores, load, pairs)]
        z = ol.OptLayer(review(), ol.SparseMAP())(leaves[0], load=leaves[1])
        tags, values = ol.OptLayer(linear_chain(3, 2), ol.SparseMAP()).lifted(
            change(draw(2, 3, 2)), transition=leaves[2]
        )
        gradients = torch.autograd.grad(z.square().sum() + tags.square().sum(), leaves)
        found.append([z.detach(), tags.detach(), values["transition"], *gradients])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


def test_all_doors_take_lazily_negated_tensors():
    compiled, scores, direction = ol.compile_polytope(matching(3)), draw(2, 3, 3), draw(2, 3, 3, seed=1)
    negated = lazily_negated(scores)
    assert torch.equal(compiled.maximize(negated).value, compiled.maximize(scores).value)
    point = compiled.project(negated)
    assert torch.equal(point.value, compiled.project(scores).value)
    expected = compiled.tangent(point, direction).scores
    assert torch.equal(compiled.tangent(point, lazily_negated(direction)).scores, expected)
    target, cost = torch.eye(3, dtype=torch.float64).expand(2, 3, 3).clone(), draw(2, 3, 3, seed=2)
    assert contains(matching(3), lazily_negated(target)).all()
    for loss in (ol.CRFLoss(matching(3)), ol.SparseMAPLoss(matching(3)), ol.StructuredPerceptronLoss(matching(3))):
        assert torch.equal(loss(negated, lazily_negated(target)), loss(scores, target))
    hinge, spo = ol.StructuredHingeLoss(matching(3)), ol.SPOPlusLoss(matching(3))
    assert torch.equal(hinge(negated, target, cost=lazily_negated(cost)), hinge(scores, target, cost=cost))
    assert torch.equal(spo(negated, lazily_negated(cost)), spo(scores, cost))
    assert torch.equal(ol.regret(matching(3), negated, lazily_negated(cost)), ol.regret(matching(3), scores, cost))


def test_second_derivatives_take_lazily_negated_directions():
    layer, found = ol.OptLayer(matching(3), ol.StructuredAttention()), []
    for change in (torch.clone, lazily_negated):
        leaf, weights = draw(2, 3, 3).requires_grad_(), draw(2, 3, 3, seed=1).requires_grad_()
        (slope,) = torch.autograd.grad(layer(leaf), leaf, weights, create_graph=True)
        found.append(torch.autograd.grad(slope, (leaf, weights), change(draw(2, 3, 3, seed=2))))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


# Many gradients at a time


@pytest.mark.many(3)
@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3)])
@pytest.mark.parametrize("rule", STATELESS, ids=repr)
def test_many_gradients_at_a_time_are_those_one_by_one(rule, shape):
    layer, leaf, many = ol.OptLayer(matching(3), rule), draw(*shape).requires_grad_(), draw(5, *shape, seed=1)
    value = layer(leaf, generator=torch.Generator().manual_seed(0))
    each = [torch.autograd.grad(value, leaf, one, retain_graph=True)[0] for one in many]
    (found,) = torch.autograd.grad(value, leaf, many, is_grads_batched=True)
    assert torch.equal(found, torch.stack(each))


@pytest.mark.parametrize("polytope", [simplex(3), arborescence(2), matching(2)], ids=["simplex", "tree", "matching"])
def test_vectorized_jacobians_are_those_without(polytope):
    layer, scores = ol.OptLayer(polytope, ol.SparseMAP()), draw(2, *polytope.shape)
    plain = jacobian(layer, scores)
    torch.testing.assert_close(jacobian(layer, scores, vectorize=True), plain, atol=0.0, rtol=0.0)
    with_graph = jacobian(layer, scores.requires_grad_(), vectorize=True, create_graph=True)
    torch.testing.assert_close(with_graph.detach(), plain, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("rule", [ol.SparseMAP(), ol.StructuredAttention(), ol.Pipeline()], ids=repr)
def test_jacobians_are_the_same_in_forward_mode(rule):
    layer, scores = ol.OptLayer(matching(3), rule), draw(2, 3, 3)
    forward = {"vectorize": True, "strategy": "forward-mode"}
    torch.testing.assert_close(jacobian(layer, scores, **forward), jacobian(layer, scores))

    def loss(s: torch.Tensor) -> torch.Tensor:
        return (layer(s) ** 3).sum()

    expected = hessian(loss, scores)
    torch.testing.assert_close(hessian(loss, scores, vectorize=True, outer_jacobian_strategy="forward-mode"), expected)


@pytest.mark.parametrize("rule", [ol.SparseMAP(), ol.StructuredAttention()], ids=repr)
def test_vectorized_hessians_are_those_without(rule):
    layer, scores = ol.OptLayer(matching(3), rule), draw(3, 3)

    def loss(s: torch.Tensor) -> torch.Tensor:
        return (layer(s) ** 3).sum()

    torch.testing.assert_close(hessian(loss, scores, vectorize=True), hessian(loss, scores))


def test_vectorized_jacobians_reach_parameters_and_losses():
    layer, scores, load = ol.OptLayer(review(), ol.SparseMAP()), draw(3, 4), torch.full((4,), 2.2, dtype=torch.float64)

    def structures(s: torch.Tensor, capacity: torch.Tensor) -> torch.Tensor:
        return layer(s, load=capacity)

    plain, vectorized = (jacobian(structures, (scores, load), vectorize=v) for v in (False, True))
    for mine, theirs in zip(vectorized, plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.0, rtol=0.0)
    assert plain[1].abs().sum() > 0.1
    crf = ol.CRFLoss(simplex(3), reduction="none")
    target = torch.eye(3, dtype=torch.float64)
    rows = draw(3, 3)
    plain, vectorized = (jacobian(lambda s: crf(s, target), rows, vectorize=v) for v in (False, True))
    torch.testing.assert_close(vectorized, plain, atol=0.0, rtol=0.0)


# Numbers that are not there, and lists of tensors


def test_tensors_without_a_number_in_memory_for_every_entry_are_refused():
    layer, dense = ol.OptLayer(matching(3), ol.SparseMAP()), torch.eye(3)
    for layout in (torch.sparse_coo, torch.sparse_csr):
        with pytest.raises(TypeError, match=rf"scores must be dense, but got layout {layout}; use to_dense\(\)"):
            layer(dense.to_sparse(layout=layout))
        with pytest.raises(TypeError, match="scores must be dense"):
            layer.compiled().project(dense.to_sparse(layout=layout))
    with pytest.raises(TypeError, match="scores must hold numbers, but a tensor on the device meta has none"):
        layer(dense.to("meta"))
    sparse = torch.full((4,), 2.5).to_sparse()
    with pytest.raises(TypeError, match="parameter load must be dense"):
        ol.OptLayer(review(), ol.SparseMAP())(torch.zeros(2, 3, 4), load=sparse)
    with pytest.raises(TypeError, match="transition must be dense"):
        ol.OptLayer(linear_chain(3, 2), ol.SparseMAP())(torch.zeros(3, 2), transition=torch.ones(3, 2, 2).to_sparse())
    for loss in (ol.CRFLoss(matching(3)), ol.StructuredHingeLoss(matching(3))):
        with pytest.raises(TypeError, match="scores must be dense"):
            loss(dense.to_sparse(), dense)
        with pytest.raises(TypeError, match="target must be dense"):
            loss(dense, dense.to_sparse())
    with pytest.raises(TypeError, match="cost must be dense"):
        ol.StructuredHingeLoss(matching(3))(dense, dense, cost=dense.to_sparse())


@pytest.mark.parametrize("rule", [ol.StraightThrough(), ol.SparseMAP(), ol.Spigot()], ids=repr)
def test_a_gradient_may_be_sparse(rule):
    layer, found, weights = ol.OptLayer(matching(3), rule), [], torch.eye(3, dtype=torch.float64)
    for change in (torch.clone, torch.Tensor.to_sparse):
        leaf, other = draw(3, 3).requires_grad_(), draw(3, 3, seed=1).requires_grad_()
        found += torch.autograd.grad(layer(leaf), leaf, change(weights))
        (slope,) = torch.autograd.grad(layer(leaf), leaf, other, create_graph=True)
        found += torch.autograd.grad(slope, other, change(weights))
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3]) and found[1].abs().sum() > 0


def test_a_list_of_tensors_is_a_parameter_with_a_gradient():
    capacities = [torch.tensor(1.5 + 0.1 * k, dtype=torch.float64, requires_grad=True) for k in range(4)]
    whole = torch.stack([c.detach() for c in capacities]).requires_grad_()
    layer, scores = ol.OptLayer(review(), ol.SparseMAP()), draw(2, 3, 4)
    layer(scores, load=capacities).square().sum().backward()
    layer(scores, load=whole).square().sum().backward()
    assert torch.equal(torch.stack([c.grad for c in capacities]), whole.grad) and whole.grad.abs().sum() > 0.1
    rows = [[c.detach() for c in capacities], whole.detach()]
    assert torch.equal(layer(scores, load=rows), layer(scores, load=whole))
    family = ol.OptLayer(ol.Family(subset), ol.SparseMAP())
    assert family(draw(2, 5), sizes=[5, 3], budget=[torch.tensor(2.0, requires_grad=True), 1.0]).sum(1).tolist() == [
        2,
        1,
    ]
    with pytest.raises(
        TypeError, match=r"scores must be a torch.Tensor, but got list; torch.stack makes one of several"
    ):
        layer([torch.zeros(3, 4, requires_grad=True)], load=capacities)
    with pytest.raises(ValueError, match="the tensors in the list that is parameter load do not fit together"):
        layer(scores, load=[torch.ones(2), torch.ones(3)])


def test_arrays_of_all_kinds_are_parameters():
    layer, scores = ol.OptLayer(review(), ol.SparseMAP()), draw(2, 3, 4)
    numbers = np.array([3.0, 2.0, 2.0, 1.0])
    expected = layer(scores, load=torch.from_numpy(numbers))
    frozen = numbers.copy()
    frozen.flags.writeable = False
    kinds = [numbers.tolist(), numbers[::-1].copy()[::-1], numbers.astype(">f8"), numbers.astype(np.uint16), frozen]
    for given in [*kinds, numbers.astype(np.longdouble), numbers.astype(np.float16), tuple(numbers)]:
        assert torch.equal(layer(scores, load=given), expected)
    for given, what in (
        (["a"] * 4, "<U1"),
        ([None] * 4, "object"),
        (numbers + 1j, "complex128"),
        (numbers > 2, "bool"),
    ):
        with pytest.raises(TypeError, match=rf"parameter load must .*real.* but got .*{what}"):
            layer(scores, load=given)


# Budgets that float32 rounds


OF_SUBSETS = [rule for rule in PLAIN if not isinstance(rule, (ol.LPGD, ol.SampledMarginals))]
"""LPGD wants dual points. Of structures drawn at other budgets, if by 1e-7, others may be drawn by the same numbers."""


@pytest.mark.many(7)
@pytest.mark.parametrize("budget", [2.0000002, 1.9999999, 1.0000001, 5.0, 3.0000002])
@pytest.mark.parametrize("rule", OF_SUBSETS, ids=repr)
def test_a_budget_may_be_rounded_in_float32(rule, budget):
    scores, near = draw(2, 5, dtype=torch.float32), torch.tensor(budget)
    found = []
    for given in (near, near.round()):
        leaf = scores.clone().requires_grad_()
        value = ol.OptLayer(subset(5), rule)(leaf, budget=given, generator=torch.Generator().manual_seed(0))
        weights = draw(2, 5, seed=1, dtype=torch.float32)
        found.append((value.detach(), torch.autograd.grad(value, leaf, weights)[0]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_losses_and_draws_take_budgets_that_are_rounded_in_float32():
    scores, near = draw(2, 5, dtype=torch.float32), torch.tensor(2.0000002)
    target = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 0, 1]])
    for kind in (ol.CRFLoss, ol.SparseMAPLoss, ol.StructuredPerceptronLoss, ol.StructuredHingeLoss):
        found = [kind(subset(5))(scores, target, budget=given) for given in (near, near.round())]
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    drawn = []

    def losses(z: torch.Tensor) -> torch.Tensor:
        drawn.append(z)
        return z.sum(-1)

    layer = ol.OptLayer(subset(5), ol.ScoreFunction())
    layer(scores, budget=near, objective=losses, generator=torch.Generator().manual_seed(0))
    assert all(z.sum(-1).tolist() == [2.0, 2.0] and ((z == 0) | (z == 1)).all() for z in drawn)


def test_budgets_that_are_no_integers_are_refused_with_all_their_digits():
    layer = ol.OptLayer(subset(5), ol.StructuredAttention())
    for budget, shown in ((2.00001, "2.00001001"), (2.5, "2.5"), (2.0000019, "2.00000191")):
        with pytest.raises(ol.SolveError, match=rf"budget is {shown}; marginals of subsets need an integer"):
            layer(draw(2, 5, dtype=torch.float32), budget=torch.tensor(budget))
