"""The Fenchel-Young loss of any regularizer: known losses, contracts, gradients of its numbers, bad input."""

from __future__ import annotations

from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import BY_CONSTRAINTS, POLYTOPES, Entry
from drawing import draw
from entmax import entmax15_loss, sparsemax_loss
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

import optlayers as ol
from optlayers.form.standard import DeclarationError
from optlayers.testing import check_loss
from polytopes import arborescence, cube, matching, simplex, subset

REGULARIZERS = [ol.Euclidean(0.3), ol.Entropy(), ol.Tsallis(1.5)]
BINARY = [entry for entry in BY_CONSTRAINTS if np.isin(entry.vertices, (0.0, 1.0)).all()]
SMALL = {"simplex": simplex(4), "matching": matching(3), "tree": arborescence(3)}


# Known losses


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_entropy_on_the_simplex_is_the_cross_entropy(scale):
    scores, classes = scale * draw(6, 5).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])
    found = ol.FenchelYoungLoss(simplex(5), ol.Entropy(0.5), reduction="none")(scores, functional.one_hot(classes, 5))
    expected = 0.5 * functional.cross_entropy(2.0 * scores, classes, reduction="none")
    assert (found - expected).abs().max() <= 1e-10 * max(scale, 1.0)
    found, expected = (torch.autograd.grad(loss.sum(), scores)[0] for loss in (found, expected))
    assert (found - expected).abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("regularizer", "loss"),
    [(ol.Tsallis(1.5), entmax15_loss), (ol.Euclidean(), sparsemax_loss), (ol.Tsallis(2.0), sparsemax_loss)],
    ids=["entmax15", "sparsemax", "sparsemax by a power"],
)
def test_losses_of_entmax(regularizer, loss):
    scores, classes = 2.0 * draw(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    leaf = scores.clone().requires_grad_()
    found = ol.FenchelYoungLoss(simplex(5), regularizer, reduction="none")(leaf, functional.one_hot(classes, 5))
    expected = loss(leaf, classes)
    assert (found - expected).abs().max() <= 1e-8
    found, expected = (torch.autograd.grad(each.sum(), leaf)[0] for each in (found, expected))
    assert (found - expected).abs().max() <= 1e-8


def test_entropy_on_the_cube_is_the_cross_entropy_of_bits():
    scores, bits = 3.0 * draw(6, 4).requires_grad_(), (draw(6, 4, seed=1) > 0).double()
    found = ol.FenchelYoungLoss(cube(4), ol.Entropy(), reduction="none")(scores, bits)
    expected = functional.binary_cross_entropy_with_logits(scores, bits, reduction="none").sum(1)
    assert (found - expected).abs().max() <= 1e-10
    found, expected = (torch.autograd.grad(loss.sum(), scores)[0] for loss in (found, expected))
    assert (found - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("name", SMALL)
def test_the_euclidean_loss_is_that_of_sparsemap(name):
    scores, compiled = draw(4, *SMALL[name].shape), ol.compile_polytope(SMALL[name])
    target = compiled.maximize(draw(4, *SMALL[name].shape, seed=1)).value
    found = ol.FenchelYoungLoss(compiled, ol.Euclidean(), reduction="none")(scores, target)
    assert torch.equal(found, ol.SparseMAPLoss(compiled, reduction="none")(scores, target))


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_is_the_regularized_point_less_the_target(name, regularizer):
    scores, compiled = draw(4, *SMALL[name].shape).requires_grad_(), ol.compile_polytope(SMALL[name])
    target = compiled.maximize(draw(4, *SMALL[name].shape, seed=1)).value
    loss = ol.FenchelYoungLoss(compiled, regularizer, reduction="sum")(scores, target)
    point = compiled.regularized(scores.detach(), regularizer).value
    assert torch.equal(torch.autograd.grad(loss, scores)[0], point - target)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_a_mask_of_admissible_parts_is_a_smaller_polytope(regularizer):
    """Ω* of all parts less Ω* of those that are admissible."""
    scores, loss = draw(3, 4), ol.FenchelYoungLoss(simplex(4), regularizer, reduction="none")
    admissible = torch.tensor([[True, True, False, False], [True, False, False, False], [True, True, True, True]])
    found = loss(scores, admissible)
    target = functional.one_hot(torch.tensor([0, 0, 0]), 4).double()
    kept = scores.masked_fill(~admissible, -torch.inf)
    expected = loss(scores, target) - loss(kept, target)
    assert (found - expected).abs().max() <= 1e-9 and found[2].abs() <= 1e-12


# Contracts


@pytest.mark.many(3)
@pytest.mark.parametrize("entry", BINARY, ids=repr)
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_the_contract_of_losses(regularizer, entry: Entry):
    check_loss(partial(ol.FenchelYoungLoss, regularizer=regularizer), entry.polytope, **entry.parameters)


# Gradients


@pytest.mark.parametrize(
    ("make", "value"),
    [(ol.Entropy, 0.7), (ol.Tsallis, 1.6), (ol.Euclidean, 0.8)],
    ids=["Entropy", "Tsallis", "Euclidean"],
)
@pytest.mark.parametrize("name", ["simplex", "matching"])
def test_numbers_have_gradients(name, make, value):
    number = cp.Parameter(pos=True, name="number")
    loss = ol.FenchelYoungLoss(SMALL[name], make(number), reduction="none")
    scores = draw(2, *SMALL[name].shape, seed=3).requires_grad_()
    numbers = torch.tensor([value, 1.3 * value], dtype=torch.float64, requires_grad=True)
    compiled = ol.compile_polytope(SMALL[name])
    target = compiled.maximize(draw(2, *SMALL[name].shape, seed=4)).value
    for given in (target, compiled.project(draw(2, *SMALL[name].shape, seed=5)).value):  # structures and mixtures

        def call(s: torch.Tensor, t: torch.Tensor, given: torch.Tensor = given) -> torch.Tensor:
            return loss(s, given, number=t)

        assert gradcheck(call, (scores, numbers), eps=1e-6, atol=1e-6)
        for k in range(2):
            alone = ol.FenchelYoungLoss(compiled, make(numbers[k].item()))(scores[k], given[k])
            assert (call(scores, numbers)[k] - alone).abs() <= 1e-12


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_second_derivatives_are_those_of_finite_differences(regularizer):
    loss, scores = ol.FenchelYoungLoss(matching(3), regularizer), draw(1, 3, 3, seed=3).requires_grad_()
    target = torch.eye(3, dtype=torch.float64)[None]
    assert gradgradcheck(lambda s: loss(s, target), scores, eps=1e-5, atol=1e-5)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_parameters_of_constraints_have_gradients(regularizer):
    """That of the optimal value; Ω of the target and its score do not depend on constraints."""
    loss, scores = ol.FenchelYoungLoss(subset(4), regularizer, reduction="sum"), 0.3 * draw(2, 4)
    budget = torch.tensor([1.4, 2.3], dtype=torch.float64, requires_grad=True)
    compiled = ol.compile_polytope(subset(4))
    target = compiled.project(draw(2, 4, seed=1), budget=budget.detach()).check().value
    (found,) = torch.autograd.grad(loss(scores, target, budget=budget), budget)

    def best(budgets: torch.Tensor) -> torch.Tensor:
        point = compiled.regularized(scores, regularizer, budget=budgets).check().value
        return (scores * point).sum(1) - _omega(regularizer, point)

    step = 1e-6
    slope = (best(budget.detach() + step) - best(budget.detach() - step)) / (2.0 * step)
    assert (found - slope).abs().max() <= 1e-7


def _omega(regularizer: ol.AbstractRegularizer, points: torch.Tensor) -> torch.Tensor:
    if isinstance(regularizer, ol.Entropy):
        return -regularizer.temperature * torch.special.entr(points).sum(1)
    if isinstance(regularizer, ol.Tsallis):
        alpha = regularizer.alpha
        return (points**alpha - points).sum(1) / (alpha * (alpha - 1.0))
    return 0.5 * float(regularizer.number) * points.square().sum(1)


# Masks, families, failures


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_forbidden_parts_and_mixed_length(regularizer):
    loss = ol.FenchelYoungLoss(ol.Family(matching), regularizer, reduction="none")
    scores, sizes = draw(3, 3, 3), torch.tensor([3, 2, 1])
    scores[0, 0, 1] = -torch.inf
    target = torch.stack([functional.pad(torch.eye(n, dtype=torch.float64), (0, 3 - n, 0, 3 - n)) for n in (3, 2, 1)])
    leaf = scores.clone().requires_grad_()
    found = loss(leaf, target, sizes=sizes)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.isfinite(gradient).all() and gradient[0, 0, 1] == 0.0
    for k, n in enumerate(sizes.tolist()):
        alone = ol.FenchelYoungLoss(matching(n), regularizer)(scores[k, :n, :n], target[k, :n, :n])
        assert (found[k] - alone).abs() <= 1e-12


def test_a_target_outside_of_the_domain_is_refused():
    x = cp.Variable(3)
    mixed = ol.Polytope(x, [x >= -1, x <= 1, cp.sum(x) == 1])
    message = r"Entropy\(temperature=1\) is infinite at the target of instance 1, .* entry \[0\] of it is -1"
    loss = ol.FenchelYoungLoss(mixed, ol.Entropy())
    with pytest.raises(ValueError, match=message):
        loss(draw(2, 3), torch.tensor([[0.0, 0.0, 1.0], [-1.0, 1.0, 1.0]]))
    assert torch.isfinite(loss(draw(3), torch.tensor([0.0, 0.0, 1.0])))


def test_what_has_no_loss_is_refused():
    with pytest.raises(
        ValueError, match=r"Barrier\(mu=0.1\) is infinite at structures, so that no loss of them is finite"
    ):
        ol.FenchelYoungLoss(simplex(3), ol.Barrier())
    with pytest.raises(
        TypeError, match=r"regularizer must be one such as Entropy\(\), or an expression of cvxpy, but got 1.0"
    ):
        ol.FenchelYoungLoss(simplex(3), 1.0)
    for entry in POLYTOPES:
        if entry.polytope.separate is not None:
            with pytest.raises(DeclarationError, match="need constraints that describe the polytope"):
                ol.FenchelYoungLoss(entry.polytope, ol.Entropy())
            return
    raise AssertionError("the catalogue has no such polytope")
