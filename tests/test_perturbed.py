"""Rules that average best vertices under noise, or take one: expectations, variance, randomness and refusals."""

import math

import pytest
import torch
from catalogue import NOISES, PLAIN
from drawing import draw

import optlayers as ol
import polytopes

EULER = 0.5772156649015329
SIGMAS = 5.0


def through(layer, scores, direction, seed=0, **parameters):
    """Value and gradient of <direction, value>."""
    leaf = scores.detach().clone().requires_grad_()
    value = layer(leaf, generator=torch.Generator().manual_seed(seed), **parameters)
    (gradient,) = torch.autograd.grad((value * direction).sum(), leaf)
    return value.detach(), gradient


def assert_mean(samples, expected):
    """The mean over the first dimension is what is expected, within its standard error."""
    error = samples.std(dim=0) / math.sqrt(len(samples))
    assert ((samples.mean(dim=0) - expected).abs() <= SIGMAS * error + 1e-12).all()
    assert error.max() < 0.05  # tight enough to tell


MOMENTS = {"Gaussian": (0.0, 1.0), "Gumbel": (EULER, math.pi**2 / 6), "Logistic": (0.0, math.pi**2 / 3)}


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_moments_of_noise(noise):
    z = noise.draw((100_000,), torch.Generator().manual_seed(1), torch.device("cpu"))
    mean, variance = MOMENTS.get(type(noise).__name__, (0, 0))
    if isinstance(noise, ol.SumOfGamma):
        mean = (sum(1 / i for i in range(1, noise.terms + 1)) - math.log(noise.terms)) / noise.parts
        variance = sum(1 / i**2 for i in range(1, noise.terms + 1)) / noise.parts
    error = math.sqrt(variance / len(z))
    assert z.dtype == torch.float64 and abs(z.mean() - mean) <= SIGMAS * error
    assert noise.mean == pytest.approx(mean)
    assert abs(z.var() - variance) <= SIGMAS * (z - z.mean()).square().std() / math.sqrt(len(z))
    if noise.has_score:
        score = noise.score(z)  # E[score] = 0 and E[score z] = 1, by integration by parts
        assert abs(score.mean()) <= SIGMAS * score.std() / math.sqrt(len(z))
        assert abs((score * z).mean() - 1) <= SIGMAS * (score * z).std() / math.sqrt(len(z))


def test_sums_of_gamma_over_the_parts_of_a_structure_are_nearly_gumbel():
    z = ol.SumOfGamma(4, terms=50).draw((20_000, 4), torch.Generator().manual_seed(2), torch.device("cpu")).sum(1)
    for value in (-1.0, 0.0, 1.0, 3.0):
        expected = math.exp(-math.exp(-value))
        assert abs((z <= value).double().mean() - expected) <= 0.025


@pytest.mark.parametrize(
    ("rule", "drawn"),
    [
        (lambda noise: ol.PerturbAndMAP(noise=noise), 1),
        (lambda noise: ol.GumbelStraightThrough(noise=noise), 1),
        (lambda noise: ol.IMLE(samples=4, noise=noise), 4),
    ],
)
def test_bits_with_logistic_noise_are_those_of_the_gibbs_distribution(rule, drawn):
    """With Gumbel noise a bit of score 0 is 1 with probability 1 - 1/e."""
    scores = torch.tensor([-2.0, -0.5, 0.0, 1.0], dtype=torch.float64)
    for noise, expected in ((ol.Logistic(), torch.sigmoid(scores)), (ol.Gumbel(), -torch.expm1(-torch.exp(scores)))):
        layer = ol.OptLayer(polytopes.cube(4), rule(noise))
        found = layer(scores.expand(20_000, 4), generator=torch.Generator().manual_seed(3)).mean(0)
        error = torch.sqrt(expected * (1 - expected) / (20_000 * drawn))
        assert ((found - expected).abs() <= SIGMAS * error).all()


def test_additive_gumbel_noise_on_the_simplex_is_softmax_in_value_and_gradient():
    scores, direction = draw(5), draw(5, seed=1)
    many = scores.expand(8000, 5)
    for control in (True, False):
        rule = ol.PerturbedAdditive(samples=8, noise=ol.Gumbel(), control_variate=control)
        value, gradient = through(ol.OptLayer(polytopes.simplex(5), rule), many, direction)
        softmax = torch.softmax(scores, 0)
        assert_mean(value, softmax)
        assert_mean(gradient, softmax * (direction - softmax @ direction))


@pytest.mark.parametrize("noise", [ol.Gaussian(), ol.Gumbel()], ids=repr)
def test_the_scale_of_additive_noise_is_that_of_scores(noise):
    """One part of the cube: the mean is a distribution function, its derivative a density."""
    scale, scores = 0.7, torch.tensor([0.3], dtype=torch.float64)
    layer = ol.OptLayer(polytopes.cube(1), ol.PerturbedAdditive(samples=8, scale=scale, noise=noise))
    value, gradient = through(layer, scores.expand(8000, 1), torch.ones(1))
    x = 0.3 / scale
    if isinstance(noise, ol.Gaussian):
        chance, density = 0.5 * (1 + math.erf(x / math.sqrt(2))), math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    else:
        chance, density = 1 - math.exp(-math.exp(x)), math.exp(x - math.exp(x))
    assert_mean(value, torch.tensor([chance]))
    assert_mean(gradient, torch.tensor([density / scale]))


def test_multiplicative_noise_has_its_own_derivative():
    """Of two parts with positive scores the first wins with probability Phi((log s0 - log s1) / (eps sqrt 2))."""
    scores, scale = torch.tensor([1.5, 1.0], dtype=torch.float64, requires_grad=True), 0.6
    distance = (scores[0].log() - scores[1].log()) / (scale * math.sqrt(2))
    first = 0.5 * (1 + torch.erf(distance / math.sqrt(2)))
    (expected,) = torch.autograd.grad(first, scores)
    layer = ol.OptLayer(polytopes.simplex(2), ol.PerturbedMultiplicative(samples=8, scale=scale))
    value, gradient = through(layer, scores.expand(8000, 2), torch.tensor([1.0, 0.0]))
    assert_mean(value[:, 0], first.detach())
    assert_mean(gradient, expected)


def test_multiplicative_noise_keeps_signs():
    layer = ol.OptLayer(polytopes.cube(3), ol.PerturbedMultiplicative(samples=50, scale=2.0))
    assert (layer(-torch.ones(20, 3)) == 0).all() and (layer(torch.ones(20, 3)) == 1).all()


@pytest.mark.parametrize("rule", [ol.PerturbedAdditive, ol.PerturbedMultiplicative])
def test_control_variates_reduce_the_variance(rule):
    polytope, scores = polytopes.matching(3), draw(9).reshape(3, 3).expand(2000, 3, 3)
    direction = 3.0 + draw(3, 3, seed=1)  # a loss with an offset
    spread = []
    for control in (False, True):
        _, gradient = through(ol.OptLayer(polytope, rule(samples=4, control_variate=control)), scores, direction)
        spread.append(gradient.var(dim=0).sum())
    assert spread[1] < 0.2 * spread[0]


def test_auxiliary_scores_get_gradients_of_the_same_derivative():
    """All noise is drawn for transitions as for states: a shift of all transitions of a step has no effect."""
    layer = ol.OptLayer(polytopes.linear_chain(2, 2), ol.PerturbedAdditive(samples=8))
    scores, transition = draw(2, 2).expand(4000, 2, 2), draw(2, 2, 2, seed=1).expand(4000, 2, 2, 2)
    scores, transition = scores.clone().requires_grad_(), transition.clone().requires_grad_()
    value = layer(scores, transition=transition, generator=torch.Generator().manual_seed(0))
    direction = draw(2, 2, seed=2)
    into, along = torch.autograd.grad((value * direction).sum(), (scores, transition))
    assert_mean(into.sum(dim=2), torch.zeros(2))
    assert_mean(along[:, 1].sum(dim=(1, 2)), torch.zeros(()))
    assert along[:, 1].mean(dim=0).abs().max() > 0.02


def test_parts_that_cannot_move_get_exactly_nothing():
    polytope = polytopes.arborescence(3)
    scores = draw(6, 4, 4)
    scores[:, 0, 2] = -torch.inf
    for rule in (ol.PerturbedAdditive(), ol.PerturbedMultiplicative()):
        _, gradient = through(ol.OptLayer(polytope, rule), scores, draw(4, 4, seed=1))
        fixed = torch.eye(4, dtype=torch.bool)
        fixed[:, 0], fixed[0, 2] = True, True
        assert (gradient[:, fixed] == 0).all() and (gradient[:, ~fixed] != 0).all()


def test_a_multiplied_score_of_zero_is_refused_where_it_could_matter():
    layer = ol.OptLayer(polytopes.arborescence(2), ol.PerturbedMultiplicative())
    scores = draw(3, 3, 3).masked_fill(torch.eye(3, dtype=torch.bool), 0.0)  # no word is its own head
    layer(scores)
    scores[2, 1, 2] = 0.0
    with pytest.raises(ValueError, match=r"cannot move a score of 0: instance 2 has one at flat entry 5 \(1 such"):
        layer(scores)
    scores[2, 1, 2] = -torch.inf
    layer(scores)


def test_gumbel_straight_through_on_the_simplex_is_that_of_torch():
    scores, direction = draw(6, 5), draw(6, 5, seed=1)
    for temperature in (1.0, 0.3):
        layer = ol.OptLayer(polytopes.simplex(5), ol.GumbelStraightThrough(temperature))
        leaf, other = scores.clone().requires_grad_(), scores.clone().requires_grad_()
        torch.manual_seed(7)
        mine = layer(leaf)
        torch.manual_seed(7)
        theirs = torch.nn.functional.gumbel_softmax(other, tau=temperature, hard=True)
        torch.testing.assert_close(mine, theirs)
        (mine * direction).sum().backward()
        (theirs * direction).sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)


def test_perturb_and_map_is_the_rule_at_perturbed_scores():
    polytope, scores, direction = polytopes.matching(3), draw(5, 3, 3), draw(5, 3, 3, seed=1)
    noise = ol.Gaussian().draw(scores.flatten(1).shape, torch.Generator().manual_seed(3), scores.device)
    at = scores + 0.5 * noise.reshape(scores.shape)
    for rule in (ol.StraightThrough(), ol.SparseMAP(), ol.Hard(ol.StructuredAttention())):
        perturbed = ol.OptLayer(polytope, ol.PerturbAndMAP(rule, scale=0.5, noise=ol.Gaussian()))
        found = through(perturbed, scores, direction, seed=3)
        expected = through(ol.OptLayer(polytope, rule), at, direction)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert not torch.equal(at, scores)


def test_perturb_and_map_draws_choices_from_the_softmax():
    scores = draw(4)
    value = ol.OptLayer(polytopes.simplex(4), ol.PerturbAndMAP())(scores.expand(40_000, 4).clone())
    assert_mean(value, torch.softmax(scores, 0))


RANDOM = [rule for rule in PLAIN if rule.draws]


@pytest.mark.parametrize("rule", RANDOM, ids=repr)
def test_a_generator_decides_all_and_leaves_the_global_one_alone(rule):
    layer = ol.OptLayer(polytopes.matching(3), rule)
    scores, direction = draw(4, 3, 3), draw(4, 3, 3, seed=1)
    before = torch.get_rng_state()
    first, second, other = (through(layer, scores, direction, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[0], other[0])
    if not rule.initial_state():
        assert torch.equal(first[1], second[1])
    layer(scores)
    assert not torch.equal(torch.get_rng_state(), before)


def test_one_failed_sample_fails_its_instance_and_no_other():
    polytope = polytopes.matching(2)
    scores = draw(3, 2, 2)
    scores[1, 0] = -torch.inf  # nobody is left for the first row
    for rule in (ol.PerturbedAdditive(samples=4), ol.IMLE(samples=4), ol.AdaptiveIMLE(samples=4)):
        value, gradient = through(ol.OptLayer(polytope, rule, on_failure="nan"), scores, draw(2, 2, seed=1))
        assert value.isnan().flatten(1).any(1).tolist() == [False, True, False]
        assert (gradient[1] == 0).all() and torch.isfinite(gradient).all()
        with pytest.raises(ol.SolveError, match="1 of 3 instances could not be solved\n  instance 1 is INFEASIBLE"):
            ol.OptLayer(polytope, rule)(scores)


def test_solve_gives_a_verdict_per_instance():
    solution = ol.OptLayer(polytopes.matching(3).without_oracle(), ol.PerturbedAdditive(samples=5)).solve(draw(4, 3, 3))
    assert solution.check().value.shape == (4, 3, 3) and solution.gap.shape == solution.status.shape == (4,)
    assert (solution.gap >= 0).all() and (solution.gap < 1e-6).all()


def test_families_of_sizes():
    layer = ol.OptLayer(ol.Family(polytopes.arborescence), ol.PerturbedAdditive(samples=32))
    scores = draw(3, 5, 5).requires_grad_()
    value = layer(scores, sizes=[4, 2, 3])
    assert (value.flatten(1).sum(1) - torch.tensor([4.0, 2.0, 3.0])).abs().max() <= 1e-12
    value.square().sum().backward()
    assert (scores.grad[1, 3:] == 0).all() and scores.grad[1].abs().max() > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ol.PerturbedAdditive(samples=0), ValueError, "samples must be at least 1, but got 0"),
        (lambda: ol.PerturbedAdditive(samples=1), ValueError, "samples must be at least 2 with a control variate"),
        (lambda: ol.PerturbedAdditive(samples=True), TypeError, "samples must be an int, but got True"),
        (lambda: ol.PerturbedMultiplicative(samples=2.0), TypeError, "samples must be an int, but got 2.0"),
        (lambda: ol.PerturbedAdditive(scale=0.0), ValueError, "scale must be positive and finite, but got 0.0"),
        (lambda: ol.PerturbedMultiplicative(scale=math.inf), ValueError, "scale must be positive and finite"),
        (lambda: ol.PerturbedAdditive(noise=ol.SumOfGamma(3)), ValueError, "density of its noise, which is not known"),
        (lambda: ol.PerturbedAdditive(noise=ol.Gumbel), TypeError, r"make it a value: Gumbel\(\)"),
        (lambda: ol.SumOfGamma(0), ValueError, "parts must be positive and finite, but got 0"),
        (lambda: ol.SumOfGamma(3, terms=0), ValueError, "terms must be at least 1, but got 0"),
        (lambda: ol.PerturbAndMAP(scale=math.nan), ValueError, "scale must be positive and finite, but got nan"),
        (lambda: ol.PerturbAndMAP(ol.Spigot), TypeError, "PerturbAndMAP wraps a rule such as"),
        (lambda: ol.PerturbAndMAP(ol.ScoreFunction()), TypeError, "gives several; use it as it is"),
        (lambda: ol.GumbelStraightThrough(-1.0), ValueError, "temperature must be positive and finite, but got -1.0"),
        (lambda: ol.GumbelStraightThrough("warm"), TypeError, "temperature must be a number, but got 'warm'"),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
