"""Projections onto sets that are not polyhedral: right for scores of any size, or refused."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol

SIZES = [0.01, 0.1, 1.0, 10.0, 1e2, 1e3]


def scores_for(batch, size, scale):
    return scale * torch.randn(batch, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def set_of(name):
    x = cp.Variable(6)
    constraints = {
        "ball": [cp.norm(x, 2) <= 1],
        "ball of the largest": [cp.norm(x, "inf") <= 1],
        "ball and rows": [cp.norm(x, 2) <= 1, cp.sum(x) == 0.3, x >= -0.2],
    }
    return ol.Polytope(x, constraints[name])


def onto_ball(scores):
    return scores / scores.norm(dim=1, keepdim=True).clamp_min(1.0)


@pytest.mark.parametrize("scale", SIZES)
def test_balls(scale):
    """By the formula, for scores that cones would lose the digits of."""
    scores = scores_for(40, 6, scale)
    found = ol.compile_polytope(set_of("ball"), projector=ol.CvxpyLayers()).project(scores).check()
    torch.testing.assert_close(found.value, onto_ball(scores), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", SIZES)
def test_a_polytope(scale):
    scores = scores_for(40, 6, scale)
    found = ol.compile_polytope(set_of("ball of the largest"), projector=ol.CvxpyLayers()).project(scores).check()
    torch.testing.assert_close(found.value, scores.clamp(-1.0, 1.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", SIZES)
def test_balls_that_rows_cut(scale):
    """Nothing in the set is further in the direction of the scores: 225 other points of it are tried."""
    scores = scores_for(40, 6, scale)
    found = ol.compile_polytope(set_of("ball and rows"), projector=ol.CvxpyLayers()).project(scores).check().value
    assert (found.norm(dim=1) <= 1 + 1e-6).all() and (found >= -0.2 - 1e-6).all()
    torch.testing.assert_close(found.sum(dim=1), torch.full((40,), 0.3, dtype=torch.float64), atol=1e-6, rtol=0)
    others = onto_ball(scores_for(20000, 6, 1.0))
    others = others - (others.sum(dim=1, keepdim=True) - 0.3) / 6
    others = others[(others.norm(dim=1) <= 1) & (others >= -0.2).all(dim=1)]
    assert len(others) > 100
    toward = scores - found
    assert ((others @ toward.T).amax(dim=0) - (found * toward).sum(dim=1) <= 1e-6 * max(scale, 1.0)).all()


def test_gradients_of_balls():
    """Those of the formula, next to scores of several sizes."""
    layer = ol.OptLayer(set_of("ball"), ol.SparseMAP(), projector=ol.CvxpyLayers())
    for scale in (0.1, 1.0, 10.0, 100.0):
        scores = scores_for(3, 6, scale).requires_grad_()
        direction = scores_for(3, 6, 1.0)
        (found,) = torch.autograd.grad(layer(scores), scores, direction)
        leaf = scores.detach().requires_grad_()
        (right,) = torch.autograd.grad(onto_ball(leaf), leaf, direction)
        torch.testing.assert_close(found, right, atol=1e-6 / max(1.0, scale), rtol=1e-5)


def test_one_score_hides_the_others_from_the_gap():
    """Next to 7e7 a difference of 0.1 is below the tolerance of Clarabel: a wrong point is not called nearest."""
    x = cp.Variable(7, nonneg=True)
    weights = np.array([0.6875, 0.75, 2.3125, 0.9375, 2.5625, 0.6875, 0.75])
    scores = torch.tensor([[-0.4, -1.0, 1.9, 1.9, 0.5, 1.0, 0.8]], dtype=torch.float64).repeat(8, 1)
    scores[:, 5] = 10.0 ** torch.arange(1, 9, dtype=torch.float64)
    polytope = ol.Polytope(x, [x <= 1, weights @ x <= 5.0625])
    found = ol.compile_polytope(polytope, projector=ol.CvxpyLayers()).project(scores)
    right = ol.compile_polytope(polytope).project(scores).check().value
    assert found.ok[:3].all()
    torch.testing.assert_close(found.value[found.ok], right[found.ok], atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1e15, 1e32, 1e200])
def test_scores_that_hide_the_others_are_refused(scale):
    """Next to 1e32 nothing is left of a score of 1: what is best for the first alone is not called nearest."""
    scores = torch.tensor([[scale, 1.0, 0.5, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = ol.compile_polytope(set_of("ball of the largest"), projector=ol.CvxpyLayers()).project(scores)
    right = scores.clamp(-1.0, 1.0)
    assert not found.ok.all() or torch.allclose(found.value, right, atol=1e-3)


class Beyond(ol.AbstractProjector):
    """Answers with a point outside by 1e-9."""

    polyhedral_only = False

    def prepare(self, form):
        return form

    def project(self, form, instances):
        answer = ol.Answer.of_whole(form, len(instances))
        answer.whole[:] = np.clip(instances.scores, -1.0, 1.0) * (1.0 + 1e-9)
        answer.values = [answer.whole.copy()]
        return answer


def test_atoms_without_a_gradient_are_judged():
    """cvxpy knows no gradient of the infinity norm, by which a violation could be measured."""
    scores = scores_for(5, 6, 3.0)
    found = ol.compile_polytope(set_of("ball of the largest"), projector=Beyond()).project(scores)
    assert found.ok.all()
    torch.testing.assert_close(found.value, scores.clamp(-1.0, 1.0), atol=1e-6, rtol=0)


def test_an_empty_instance_and_an_empty_batch():
    x, radius = cp.Variable(3), cp.Parameter(name="radius")
    compiled = ol.compile_polytope(
        ol.Polytope(x, [cp.norm(x, 2) <= radius, cp.sum(x) == 1]), projector=ol.CvxpyLayers()
    )
    radii = torch.tensor([1.0, 0.1, 2.0], dtype=torch.float64)
    found = compiled.project(scores_for(3, 3, 1.0), radius=radii)
    assert [ol.Status(int(s)).name for s in found.status] == ["OPTIMAL", "INFEASIBLE", "OPTIMAL"]
    assert compiled.project(torch.zeros(0, 3, dtype=torch.float64), radius=radii[:0]).value.shape == (0, 3)


@pytest.mark.parametrize("radii", [[], [0.1], [0.1, 0.2], [0.1, 1.0]])
def test_backward_where_some_or_all_instances_fail(radii):
    x, radius = cp.Variable(3), cp.Parameter(name="radius")
    polytope = ol.Polytope(x, [cp.norm(x, 2) <= radius, cp.sum(x) == 1])
    layer = ol.OptLayer(polytope, ol.SparseMAP(), projector=ol.CvxpyLayers(), on_failure="nan")
    scores, given = scores_for(len(radii), 3, 1.0).requires_grad_(), torch.tensor(radii, dtype=torch.float64)
    layer(scores, radius=given.requires_grad_()).nan_to_num().square().sum().backward()
    failed = given < 0.5
    assert (scores.grad[failed] == 0).all() and (given.grad[failed] == 0).all()
    assert (scores.grad[~failed] != 0).any(dim=1).all()
