"""Structures drawn exactly, and the gradient of the expected loss from them."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE, Entry, entry, full_matchings, trees, unit_vectors
from drawing import draw

import optlayers as ol
import polytopes

SIGMAS = 5.0


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bound(polytope, batch, forbidden=None, **parameters):
    compiled = ol.compile_polytope(polytope)
    given = {n: torch.full((batch,), float(v), dtype=torch.float64) for n, v in parameters.items()}
    return compiled.bind(given, forbidden, batch)


def chances(vertices, scores):
    """Of every structure, by enumeration; 0 for those that use a part of score -inf."""
    usable = torch.where(torch.isneginf(scores), 0.0, scores)
    uses = (torch.isneginf(scores).double() @ (vertices != 0).double().T) > 0
    return torch.softmax((usable @ vertices.T).masked_fill(uses, -torch.inf), -1)


def counts(vertices, drawn):
    """How often each structure was drawn; every drawn one must be a structure."""
    same = (drawn[:, None] == vertices).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    return same.double().sum(dim=0)


def assert_drawn_from(frequency, chance):
    """Pearson's statistic within SIGMAS of its mean, over structures that are expected five times or more."""
    total = frequency.sum()
    often = chance * total >= 5
    found = torch.cat([frequency[often], frequency[~often].sum()[None]])
    expected = torch.cat([chance[often], chance[~often].sum()[None]]) * total
    kept = expected > 1e-3
    assert found[~kept].sum() == 0
    statistic = float(((found - expected)[kept].square() / expected[kept]).sum())
    freedom = max(int(kept.sum()) - 1, 1)
    assert statistic <= freedom + SIGMAS * math.sqrt(2 * freedom) + 5


@pytest.mark.many(6)
@pytest.mark.parametrize("entry", [e for e in CATALOGUE if len(e.vertices) > 1], ids=repr)
@pytest.mark.parametrize("formula", [True, False], ids=["formula", "enumerated"])
def test_every_structure_is_drawn_as_often_as_it_should(entry, formula):
    polytope = entry.polytope
    if not formula:
        if polytope.log_partition is None:
            pytest.skip("has no formula, so it is enumerated in the other case")
        polytope = ol.Polytope(polytope.variable, polytope.constraints, oracle=polytope.oracle)
    vertices = torch.tensor(entry.vertices).flatten(1)
    scores = draw(2, vertices.shape[1], seed=3)
    found = bound(polytope, 2, **entry.parameters).sample(scores, 1500, seeded())
    assert found.value.shape == (1500, *scores.shape) and found.all_ok and found.status.shape == (2,)
    for k in range(2):
        assert_drawn_from(counts(vertices, found.value[:, k]), chances(vertices, scores[k]))


@pytest.mark.many(3)
@pytest.mark.parametrize("entry", [e for e in CATALOGUE if 2 < len(e.vertices) <= 50], ids=repr)
def test_forbidden_parts_are_not_drawn_and_the_others_as_often_as_they_should(entry):
    vertices = torch.tensor(entry.vertices).flatten(1)
    scores = draw(1, vertices.shape[1], seed=4)
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    sometimes = ((vertices != 0).any(dim=0) & (vertices == 0).any(dim=0)).nonzero().flatten()
    if len(sometimes) == 0:
        pytest.skip("every structure has every part")
    hidden[0, sometimes[0]] = True
    found = bound(entry.polytope, 1, hidden, **entry.parameters).sample(scores.masked_fill(hidden, 0.0), 1500, seeded())
    assert found.all_ok and (found.value[:, hidden] == 0).all()
    chance = chances(vertices, scores[0].masked_fill(hidden[0], -torch.inf))
    assert_drawn_from(counts(vertices, found.value[:, 0]), chance)


@pytest.mark.many(5)
@pytest.mark.parametrize("entry", CATALOGUE, ids=repr)
def test_large_scores_are_drawn_from_as_well(entry):
    """Scores times 1000, in whole steps, so that ties are exact: the draws are uniform among the best."""
    vertices = torch.tensor(entry.vertices).flatten(1)
    scores = 1000.0 * draw(1, vertices.shape[1], seed=5).round()
    found = bound(entry.polytope, 1, **entry.parameters).sample(scores, 300, seeded())
    assert found.all_ok
    assert_drawn_from(counts(vertices, found.value[:, 0]), chances(vertices, scores[0]))


def test_long_sequences_and_large_trees_are_structures():
    """Of so many structures that each is drawn with a tiny probability, at scores of any size."""
    for size in (0.0, 1.0, 1000.0):
        scores = size * draw(2, 13 * 13)
        found = bound(polytopes.arborescence(12), 2).sample(scores, 3, seeded())
        assert found.all_ok and ol.testing.contains(polytopes.arborescence(12), found.value.reshape(-1, 13, 13)).all()
        scores = size * draw(2, 30 * 3 * 3)
        found = bound(polytopes.sequence(30, 3), 2).sample(scores, 3, seeded())
        states = polytopes.states_of(found.value.reshape(-1, 30, 3, 3))
        assert found.all_ok and set(found.value.unique().tolist()) == {0.0, 1.0} and (states.sum(-1) == 1).all()


def test_parameters_differ_from_instance_to_instance():
    compiled = ol.compile_polytope(polytopes.subset(4))
    both = compiled.bind({"budget": torch.tensor([1.0, 3.0], dtype=torch.float64)}, None, 2)
    drawn = both.sample(draw(2, 4), 50, seeded())
    assert drawn.all_ok and (drawn.value.sum(dim=2) == torch.tensor([1.0, 3.0])).all()
    x, k = cp.Variable(4), cp.Parameter(name="k")
    enumerated = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == k]))
    three = enumerated.bind({"k": torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64)}, None, 3)
    drawn = three.sample(draw(3, 4), 50, seeded())
    assert drawn.ok.tolist() == [True, True, False]
    assert (drawn.value[:, :2].sum(dim=2) == torch.tensor([1.0, 3.0])).all()


@pytest.mark.parametrize(
    "polytope", [polytopes.simplex(3), polytopes.simplex(3).without_oracle(), polytopes.matching(3)]
)
def test_an_instance_without_structures_is_infeasible(polytope):
    scores = draw(2, *polytope.shape)
    scores[1] = -torch.inf
    layer = ol.OptLayer(polytope, ol.ScoreFunction(samples=3), on_failure="nan")
    leaf = scores.clone().requires_grad_()
    losses = layer(leaf, objective=lambda z: z.flatten(1)[:, 0], generator=seeded())
    assert losses.isnan().tolist() == [False, True]
    losses[0].backward()
    assert torch.isfinite(leaf.grad).all() and (leaf.grad[1] == 0).all()
    with pytest.raises(ol.SolveError, match="instance 1 is INFEASIBLE"):
        ol.OptLayer(polytope, ol.ScoreFunction(samples=3))(scores, objective=lambda z: z.flatten(1)[:, 0])


def test_a_log_partition_over_vertices_that_are_not_binary_is_found_out():
    x = cp.Variable(2)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    weight = cp.Variable(3, nonneg=True)
    polytope = ol.Polytope(
        x,
        [cp.sum(weight) == 1, x == corners.numpy().T @ weight],
        log_partition=lambda s: torch.logsumexp(s @ corners.T, -1),
    )
    found = bound(polytope, 1).sample(torch.tensor([[0.0, 4.0]], dtype=torch.float64), 20, seeded())
    assert not found.all_ok and "needs vertices of 0 and 1" in found.reasons[0]


def exact(vertices, scores, losses):
    """The expected loss and its gradient, over all structures."""
    leaf = scores.clone().requires_grad_()
    expected = (chances(vertices, leaf) * losses).sum()
    return expected.detach(), torch.autograd.grad(expected, leaf)[0]


EXACT = [
    entry("simplex", polytopes.simplex, [4], unit_vectors(4), 4),
    entry("matching", polytopes.matching, [3], full_matchings(3, 3), 6),
    entry("tree", polytopes.arborescence, [3], trees(3, True), 9),
]


@pytest.mark.parametrize("entry", EXACT, ids=repr)
@pytest.mark.parametrize("baseline", [True, False])
def test_gradients_are_those_of_the_expected_loss(entry: Entry, baseline):
    vertices = torch.tensor(entry.vertices).flatten(1)
    scores, target = draw(*entry.polytope.shape, seed=6), draw(*entry.polytope.shape, seed=7)
    middle = (torch.tensor(entry.vertices) * target).flatten(1).sum(1).median()

    def loss(z):  # not linear, and without a derivative
        value = (z * target).flatten(1).sum(1)
        return 2.0 + 3.0 * (value > middle).double() + value.square()

    value, gradient = exact(vertices, scores.flatten(), loss(torch.tensor(entry.vertices)))
    assert gradient.abs().max() > 0.1
    leaf = scores.expand(3000, *scores.shape).clone().requires_grad_()
    layer = ol.OptLayer(entry.polytope, ol.ScoreFunction(samples=4, baseline=baseline))
    losses = layer(leaf, objective=loss, generator=seeded())
    losses.sum().backward()
    for found, expected in ((losses.detach(), value), (leaf.grad.flatten(1), gradient)):
        error = found.std(dim=0) / math.sqrt(len(found))
        assert ((found.mean(dim=0) - expected).abs() <= SIGMAS * error + 1e-12).all() and error.max() < 0.2


def test_gradients_reach_auxiliary_scores_of_a_chain():
    polytope, steps, states = polytopes.linear_chain(3, 2), 3, 2
    paths = [np.unravel_index(k, (states,) * steps) for k in range(states**steps)]
    structures, pairs = torch.zeros(8, steps, states).double(), torch.zeros(8, steps, states, states).double()
    for k, path in enumerate(paths):
        structures[k, range(steps), list(path)] = 1.0
        pairs[k, 0, 0, path[0]] = 1.0
        for t in range(1, steps):
            pairs[k, t, path[t - 1], path[t]] = 1.0
    scores, transition, target = draw(steps, states), draw(steps, states, states, seed=1), draw(steps, states, seed=2)

    def loss(z):
        return (z * target).flatten(1).sum(1).square()

    both = torch.cat([structures.flatten(1), pairs.flatten(1)], dim=1)
    _, gradient = exact(both, torch.cat([scores.flatten(), transition.flatten()]), loss(structures))
    into = scores.expand(3000, steps, states).clone().requires_grad_()
    along = transition.expand(3000, steps, states, states).clone().requires_grad_()
    layer = ol.OptLayer(polytope, ol.ScoreFunction(samples=4))
    layer(into, transition=along, objective=loss, generator=seeded()).sum().backward()
    found = torch.cat([into.grad.flatten(1), along.grad.flatten(1)], dim=1)
    error = found.std(dim=0) / math.sqrt(len(found))
    assert ((found.mean(dim=0) - gradient).abs() <= SIGMAS * error + 1e-12).all()
    assert gradient[6:].abs().max() > 0.05 and error.max() < 0.2


def test_baselines_reduce_the_variance():
    scores = draw(5).expand(2000, 5)
    spread = []
    for baseline in (False, True):
        leaf = scores.clone().requires_grad_()
        layer = ol.OptLayer(polytopes.simplex(5), ol.ScoreFunction(samples=4, baseline=baseline))
        layer(leaf, objective=lambda z: 5.0 + z[:, 0], generator=seeded()).sum().backward()
        spread.append(leaf.grad.var(dim=0).sum())
    assert spread[1] < 0.1 * spread[0]


def test_the_weight_of_a_loss_in_what_is_minimized_counts_once():
    scores = draw(6, 4)
    gradients = []
    for weigh in (lambda losses: losses.sum(), lambda losses: 3.0 * losses.mean()):
        leaf = scores.clone().requires_grad_()
        layer = ol.OptLayer(polytopes.simplex(4), ol.ScoreFunction())
        weigh(layer(leaf, objective=lambda z: z[:, 1], generator=seeded())).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(0.5 * gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0.01


def test_a_generator_decides_all_and_leaves_the_global_one_alone():
    for polytope in (polytopes.arborescence(3), polytopes.matching(3)):
        some, scores = bound(polytope, 3), draw(3, math.prod(polytope.shape))
        before = torch.get_rng_state()
        first, second, other = (some.sample(scores, 5, seeded(seed)).value for seed in (1, 1, 2))
        assert torch.equal(first, second) and not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before)
        some.sample(scores, 5, None)
        assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ol.ScoreFunction(samples=0), ValueError, "samples must be at least 1, but got 0"),
        (lambda: ol.ScoreFunction(samples=1), ValueError, "samples must be at least 2 with a baseline"),
        (lambda: ol.ScoreFunction(samples=True), TypeError, "samples must be an int, but got True"),
        (lambda: ol.OptLayer(polytopes.simplex(3), ol.ScoreFunction())(torch.zeros(3)), TypeError, "works with losses"),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
