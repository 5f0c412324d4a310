"""Batches of mixed length, joined again: their derivatives, what may be written to, and what is refused."""

import cvxpy as cp
import pytest
import torch
from drawing import draw
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap

import optlayers as ol
from polytopes import simplex

FAMILY = ol.Family(simplex)
SIZES = ([3, 4], [4, 3], [4, 4], [0, 4], [2, 3])
"""Of a batch that is padded to 4, which the largest size fills as a rule."""
LAYERS = [ol.SparseMAP(), ol.StructuredAttention(), ol.Regularized(ol.Entropy(0.5))]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("rule", LAYERS, ids=repr)
def test_layers_over_several_sizes_have_all_derivatives(rule, sizes):
    layer, scores = ol.OptLayer(FAMILY, rule), draw(2, 4).requires_grad_()

    def structures(scores: torch.Tensor) -> torch.Tensor:
        return layer(scores, sizes=sizes)

    assert gradcheck(structures, scores, check_forward_ad=True)
    assert gradgradcheck(structures, scores)
    one_by_one = jacrev(structures)(scores.detach())
    torch.testing.assert_close(jacfwd(structures)(scores.detach()), one_by_one)
    assert torch.isfinite(hessian(lambda s: structures(s).square().sum())(scores.detach())).all()
    several = draw(3, 2, 4, seed=1)
    torch.testing.assert_close(vmap(structures)(several), torch.stack([structures(one) for one in several]))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("function", ["log_partition", "mean", "variance"])
def test_sums_over_several_sizes_have_derivatives(function, sizes):
    scores = draw(2, 4).requires_grad_()

    def found(scores: torch.Tensor) -> torch.Tensor:
        return getattr(ol.Gibbs(FAMILY, scores, sizes=sizes), function)

    assert gradcheck(found, scores)
    assert function == "variance" or gradgradcheck(found, scores)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("loss", [ol.SparseMAPLoss, ol.CRFLoss])
def test_losses_of_several_sizes_have_all_derivatives(loss, sizes):
    scores = draw(2, 4).requires_grad_()
    target = ol.OptLayer(FAMILY, ol.Pipeline())(draw(2, 4, seed=1), sizes=sizes)

    def losses(scores: torch.Tensor) -> torch.Tensor:
        return loss(FAMILY, reduction="none")(scores, target, sizes=sizes)

    assert gradcheck(losses, scores, check_forward_ad=True)
    assert gradgradcheck(losses, scores)


def test_means_beside_scored_auxiliary_variables_may_be_written_to():
    x, y = cp.Variable(3, nonneg=True), cp.Variable(2, nonneg=True, name="y")
    polytope = ol.Polytope(x, [cp.sum(x) == 1, cp.sum(y) == 1, y[0] <= x[0] + x[1]], scored=[y], integral=True)
    scores, beside = draw(2, 3).requires_grad_(), draw(2, 2, seed=1)
    twice = torch.autograd.grad((2.0 * ol.Gibbs(polytope, scores, y=beside).mean).square().sum(), scores)[0]
    in_place = torch.autograd.grad(ol.Gibbs(polytope, scores, y=beside).mean.mul_(2.0).square().sum(), scores)[0]
    assert torch.equal(twice, in_place)


def test_a_distribution_refuses_sizes_that_are_no_corner_of_the_rounded_one():
    def declare(size: int) -> ol.Polytope:
        x, need = cp.Variable(size, nonneg=True), cp.Parameter(name="need", nonneg=True)
        return ol.Polytope(x, [x <= 1, cp.sum(x) <= size - need], integral=True)

    given = {"sizes": [3, 4], "need": torch.tensor(1.0)}
    rounded = ol.Family(declare, round_to=4)
    with pytest.raises(ValueError, match="cannot be rounded"):
        ol.OptLayer(rounded, ol.Pipeline())(draw(2, 4), **given)
    with pytest.raises(ValueError, match="cannot be rounded"):
        ol.Gibbs(rounded, draw(2, 4), **given)
    counts = ol.Gibbs(ol.Family(declare), draw(2, 4), **given).log_count().exp()
    torch.testing.assert_close(counts, torch.tensor([7.0, 15.0], dtype=torch.float64))


def test_failures_of_all_sizes_are_told_by_their_place_in_the_batch():
    def declare(size: int) -> ol.Polytope:
        x, total = cp.Variable(size, nonneg=True), cp.Parameter(name="total")
        return ol.Polytope(x, [x <= 1, cp.sum(x) == total])

    family, total = ol.Family(declare), torch.tensor([9.0, 9.0, 1.0, 9.0])
    calls = {
        "layer": lambda scores: ol.OptLayer(family, ol.SparseMAP())(scores, sizes=[2, 3, 4, 4], total=total),
        "value": lambda scores: ol.OptimalValue(family)(scores, sizes=[2, 3, 4, 4], total=total),
        "regret": lambda scores: ol.regret(family, scores, scores, sizes=[2, 3, 4, 4], total=total),
    }
    for name, call in calls.items():
        with pytest.raises(ol.SolveError) as caught:
            call(draw(4, 4))
        assert [failure.index for failure in caught.value.failures] == [(0,), (1,), (3,)], name
        assert caught.value.batch == 4, name


def test_regret_is_refused_within_transforms():
    with pytest.raises(NotImplementedError, match="regret is a metric"):
        vmap(lambda s: ol.regret(simplex(3), s, s))(draw(2, 2, 3))
