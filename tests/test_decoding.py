"""Structures in agreement with the loss that scores were learned by: those that it is smallest for."""

import copy
import pickle

import cvxpy as cp
import pytest
import torch
from catalogue import CATALOGUE
from drawing import draw

import optlayers as ol
from polytopes import arborescence, cube, grid_path, linear_chain, matching, partial_matching, sequence, simplex, subset

PLAIN = [e for e in CATALOGUE if not e.polytope.scored]
LOSSES = [ol.SparseMAPLoss, ol.StructuredPerceptronLoss, ol.CRFLoss, ol.StructuredHingeLoss, ol.SPOPlusLoss]


@pytest.mark.many(10)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("entry", PLAIN, ids=repr)
def test_the_loss_is_smallest_for_what_is_decoded(entry, loss):
    if loss is ol.CRFLoss and entry.polytope.log_partition is None and len(entry.vertices) > 5000:
        pytest.skip("its marginals are not at hand")
    scores = draw(6, *entry.polytope.shape)
    scores[1] = 0.0
    flat = torch.tensor(entry.vertices).reshape(len(entry.vertices), -1)
    gains = scores.flatten(1) @ flat.T
    if loss is ol.SparseMAPLoss:
        gains = gains - 0.5 * flat.square().sum(1)
    for polytope in (entry.polytope, entry.polytope.without_oracle()):
        if loss is ol.CRFLoss and polytope is not entry.polytope:
            continue
        found = loss(polytope).decode(scores, **entry.parameters).flatten(1)
        which = torch.cdist(found, flat).min(dim=1)
        assert which.values.max() < 1e-9  # vertices
        torch.testing.assert_close(gains[range(6), which.indices], gains.max(1).values, atol=1e-9, rtol=0)


def test_the_loss_itself_says_so():
    """By the losses of all structures, not by a formula."""
    every = torch.tensor(next(e for e in CATALOGUE if repr(e) == "partial matching").vertices)
    size = every.shape[1:]
    scores = draw(4, *size)
    for make in (ol.SparseMAPLoss, ol.StructuredPerceptronLoss):
        loss = make(partial_matching(*size), reduction="none")
        losses = torch.stack([loss(scores, structure.expand_as(scores)) for structure in every])
        decoded = loss(scores, loss.decode(scores))
        torch.testing.assert_close(decoded, losses.min(0).values)
    fewer = ol.SparseMAPLoss(partial_matching(*size)).decode(scores).sum()
    assert fewer < ol.StructuredPerceptronLoss(partial_matching(*size)).decode(scores).sum()


@pytest.mark.parametrize("polytope", [sequence(20, 10), grid_path(6, 6), arborescence(12), matching(12)], ids=repr)
def test_structures_that_are_too_many_to_list(polytope):
    scores = draw(3, *polytope.shape)
    found = ol.SparseMAPLoss(polytope).decode(scores)
    assert torch.equal(found, ol.compile_polytope(polytope).maximize(scores - 0.5).value)


def test_parameters_families_masks_and_kinds_of_tensors():
    scores = draw(3, 30)
    found = ol.SparseMAPLoss(subset(30)).decode(scores, budget=torch.tensor([2.0, 5.0, 0.0]))
    assert found.sum(1).tolist() == [2, 5, 0]
    family = ol.SparseMAPLoss(ol.Family(cube))
    scores = torch.tensor([[0.4, 0.6, -1.0], [0.7, 9.0, 9.0]])
    assert family.decode(scores, sizes=[3, 1]).tolist() == [[0, 1, 0], [1, 0, 0]]
    leaf = torch.tensor([0.9, torch.finfo(torch.float32).min, -torch.inf], requires_grad=True)
    one = ol.SparseMAPLoss(cube(3)).decode(leaf)
    assert one.dtype == torch.float32 and one.tolist() == [1, 0, 0] and not one.requires_grad
    assert ol.SparseMAPLoss(cube(3)).decode(leaf.bfloat16()[None].expand(2, 1, 3)).shape == (2, 1, 3)
    with pytest.raises(ol.SolveError, match="instance 1 is INFEASIBLE"):
        ol.SparseMAPLoss(simplex(2)).decode(torch.tensor([[1.0, 2.0], [-torch.inf, -torch.inf]]))
    loss = ol.SparseMAPLoss(cube(3))
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(copied.decode(draw(2, 3)), loss.decode(draw(2, 3)))


def test_scored_auxiliary_variables_have_no_norm():
    chain, scores, pairs = linear_chain(3, 2), draw(4, 3, 2), draw(4, 3, 2, 2, seed=1)
    found = ol.SparseMAPLoss(chain).decode(scores, transition=pairs)
    assert torch.equal(found, ol.compile_polytope(chain).maximize(scores - 0.5, transition=pairs).value)


def test_vertices_that_are_not_of_0_and_1_are_compared_one_by_one():
    x = cp.Variable(2)
    square = ol.Polytope(x, [x >= -1, x <= 2])
    scores = torch.tensor([[0.4, 0.6], [-1.0, 3.0]], dtype=torch.float64)  # what is above 1/2 is nearer to 2
    assert ol.SparseMAPLoss(square).decode(scores).tolist() == [[-1, 2], [-1, 2]]
    masked = torch.tensor([[5.0, -torch.inf]], dtype=torch.float64)
    with pytest.raises(ol.SolveError, match="INFEASIBLE"):  # no vertex of this square has a part of 0
        ol.SparseMAPLoss(square).decode(masked)
    many = cp.Variable(14)
    with pytest.raises(ValueError, match=r"the structure of the smallest loss is not known: .* say integral=True"):
        ol.SparseMAPLoss(ol.Polytope(many, [many >= 0, many <= 2])).decode(torch.zeros(14))
    with pytest.raises(
        ValueError, match=r"too many to enumerate; say integral=True in the declaration where all"
    ) as told:
        ol.SparseMAPLoss(ol.Polytope(many, [many >= -1, many <= 1])).decode(torch.zeros(14))
    assert "log_partition" not in str(told.value)  # which is for marginals


def test_a_loss_with_a_regularizer_of_its_own_says_what_is_decoded():
    class Mine(ol.AbstractFenchelYoungLoss):
        def predict(self, polytope, scores, context):
            raise AssertionError

        def regularizer(self, structure):
            return structure.sum(1)

    with pytest.raises(NotImplementedError, match=r"Mine has a regularizer: its decoded\(\) says which vertices"):
        Mine(simplex(3)).decode(torch.zeros(3))


def test_a_loss_with_noise_that_favours_parts_decodes_what_it_has_learned():
    """Of a bit that is 1 in 55 % of the cases the score is -0.22 with Gumbel noise, which is still 1."""
    for noise, expected in ((ol.Gumbel(), 1.0), (ol.Logistic(), 0.0), (ol.Gaussian(), 0.0)):
        loss = ol.PerturbedFenchelYoungLoss(cube(1), noise=noise)
        assert loss.decode(torch.tensor([-0.22])).tolist() == [expected]
