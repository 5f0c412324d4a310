"""Structures that are drawn exactly go forward, and the derivative of the marginals goes back."""

import pytest
import torch
from catalogue import POLYTOPES

import optlayers as ol
import polytopes

NAMES = ("matching", "tree", "subset", "cube", "chain", "ranking")


@pytest.mark.parametrize("entry", [e for e in POLYTOPES if e.name in NAMES], ids=repr)
def test_both_halves_are_those_of_the_gibbs_distribution(entry):
    scores, direction = (torch.randn(4, *entry.polytope.shape, dtype=torch.float64) for _ in range(2))
    given = dict(entry.parameters)
    if entry.polytope.scored:
        given["transition"] = torch.randn(3, 2, 2, dtype=torch.float64)
    found, slopes = [], []
    for rule in (ol.SampledMarginals(), ol.StructuredAttention()):
        leaf = scores.clone().requires_grad_()
        structures = ol.OptLayer(entry.polytope, rule)(leaf, **given)
        (slope,) = torch.autograd.grad((structures * direction).sum(), leaf)
        found.append(structures.detach())
        slopes.append(slope)
    torch.testing.assert_close(slopes[0], slopes[1])
    assert slopes[0].abs().max() > 1e-3
    distribution = ol.Gibbs(entry.polytope, scores, **given)
    assert distribution.is_structure(found[0]).all()
    many = ol.OptLayer(entry.polytope, ol.SampledMarginals())(scores.expand(2000, *scores.shape), **given)
    error = (many.mean(0) - distribution.mean).abs()
    assert (error <= 5 * (distribution.variance / 2000).sqrt() + 1e-9).all()


def test_a_linear_loss_has_the_gradient_of_its_expectation():
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, dtype=torch.float64)
    layer = ol.OptLayer(polytopes.subset(5), ol.SampledMarginals())
    (ours,) = torch.autograd.grad((layer(scores, budget=2.0) * weights).sum(), scores)
    distribution = ol.Gibbs(polytopes.subset(5), scores, budget=2.0)
    every = distribution.enumerate_support()
    expected = (distribution.log_prob(every).exp() * (every @ weights)).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(expected, scores)[0])


def test_a_generator_decides_what_is_drawn():
    layer = ol.OptLayer(polytopes.matching(4), ol.SampledMarginals())
    scores = torch.zeros(6, 4, 4)
    one, same, other = (layer(scores, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_it_has_no_second_derivative():
    scores = torch.zeros(4, requires_grad=True)
    value = ol.OptLayer(polytopes.simplex(4), ol.SampledMarginals())(scores)
    (slope,) = torch.autograd.grad(value[0], scores, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"SampledMarginals\(\) has no second derivative: it draws"):
        torch.autograd.grad(slope.sum(), scores)
