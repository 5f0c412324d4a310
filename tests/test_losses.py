"""Losses: by enumeration of structures, by finite differences, and by what papers say of them."""

import copy
import pickle
from functools import partial
from typing import final

import cvxpy as cp
import entmax
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE, POLYTOPES
from torch.autograd import forward_ad

import optlayers as ol
import polytopes

each_structure = pytest.mark.parametrize("entry", CATALOGUE, ids=repr)
each_binary = pytest.mark.parametrize("entry", [e for e in CATALOGUE if not e.name.startswith("ranking")], ids=repr)
PAIRS = [
    (ol.StructuredPerceptronLoss, ol.Pipeline()),
    (ol.SparseMAPLoss, ol.SparseMAP()),
    (ol.CRFLoss, ol.StructuredAttention()),
]
each_fenchel_young = pytest.mark.parametrize(("loss", "rule"), PAIRS, ids=[loss.__name__ for loss, _ in PAIRS])
SOME = [e for e in CATALOGUE if e.name in ("simplex", "cube", "subset", "matching", "sequence", "ranking", "tree")]
EVERY = [*(loss for loss, _ in PAIRS), ol.StructuredHingeLoss, ol.PerturbedFenchelYoungLoss]


def named(name):
    return next(entry for entry in CATALOGUE if entry.name == name)


def scores_for(shape, *batch, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)


def some_vertices(entry, count, seed=1):
    chosen = np.random.default_rng(seed).integers(len(entry.vertices), size=count)
    return torch.tensor(entry.vertices[chosen])


def some_mixtures(entry, count, seed=2):
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(entry.vertices)), size=count)
    return torch.tensor(np.tensordot(weights, entry.vertices, 1))


def products(entry, scores):
    """The score of every vertex, ``(batch, vertices)``."""
    return scores.flatten(1) @ torch.tensor(entry.vertices.reshape(len(entry.vertices), -1)).T


def inner(first, second):
    return (first * second).flatten(1).sum(1)


def gradient(loss, scores, *arguments, **named):
    leaf = scores.detach().clone().requires_grad_()
    value = loss(leaf, *arguments, **named)
    (found,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), found


@pytest.mark.many(11)
@each_structure
@each_fenchel_young
def test_values_and_gradients_are_those_of_the_definition(entry, loss, rule):
    compiled = ol.compile_polytope(entry.polytope)
    scores, point = scores_for(entry.polytope.shape, 6), ol.OptLayer(compiled, rule)
    structures = point(scores, **entry.parameters)
    for target in (some_vertices(entry, 6), some_mixtures(entry, 6)):
        value, found = gradient(loss(compiled, reduction="none"), scores, target, **entry.parameters)
        assert torch.equal(found, structures - target)
        conjugate, regularizer = {
            ol.StructuredPerceptronLoss: (products(entry, scores).amax(1), torch.zeros(6)),
            ol.CRFLoss: (products(entry, scores).logsumexp(1), torch.zeros(6)),
            ol.SparseMAPLoss: (inner(scores - 0.5 * structures, structures), 0.5 * inner(target, target)),
        }[loss]
        assert (value - (conjugate + regularizer - inner(scores, target))).abs().max() <= 1e-8
        assert value.min() >= -1e-9


@pytest.mark.many(3)
@pytest.mark.parametrize("entry", SOME, ids=repr)
@each_fenchel_young
def test_finite_differences(entry, loss, rule):
    made = loss(entry.polytope, reduction="none")
    scores, target = scores_for(entry.polytope.shape, 2, seed=3).requires_grad_(), some_vertices(entry, 2)
    call = partial(made, target=target, **entry.parameters)
    assert torch.autograd.gradcheck(call, scores, eps=1e-6, atol=1e-5)
    assert torch.autograd.gradgradcheck(call, scores, eps=1e-6, atol=1e-5)


@pytest.mark.many(5)
@each_structure
def test_the_sparsemap_loss_is_0_at_its_own_point_and_where_the_margin_holds(entry):
    """The structured separation margin of Blondel, Martins and Niculae (2020), for structures of any length."""
    loss, layer = ol.SparseMAPLoss(entry.polytope, reduction="none"), ol.OptLayer(entry.polytope, ol.SparseMAP())
    scores = scores_for(entry.polytope.shape, 6, seed=4)
    assert loss(scores, layer(scores, **entry.parameters), **entry.parameters).abs().max() <= 1e-9
    target = some_vertices(entry, 6)
    vertices = torch.tensor(entry.vertices)
    margin = (target[:, None] * (target[:, None] - vertices[None])).flatten(2).sum(2)
    if len({float(v.square().sum()) for v in vertices}) == 1:
        assert (margin - 0.5 * (vertices[None] - target[:, None]).flatten(2).square().sum(2)).abs().max() <= 1e-12
    seen = set()
    for scale in (0.5, 1.5, 4.0):
        # Towards the target: the larger the scale, the wider the margin.
        mine = 0.3 * scores + scale * target
        wanted = (products(entry, mine) + margin).amax(1)
        holds = inner(mine, target) >= wanted - 1e-9
        zero = loss(mine, target, **entry.parameters) <= 1e-10
        assert torch.equal(zero, holds)
        seen |= set(holds.tolist())
    assert seen == {True, False} or len(entry.vertices) == 1


def test_on_the_simplex_losses_have_names():
    scores, labels = scores_for((7,), 20, seed=5, scale=2.0), torch.arange(20) % 7
    target = torch.nn.functional.one_hot(labels, 7)
    found = ol.SparseMAPLoss(polytopes.simplex(7), reduction="none")(scores, target)
    assert (found - entmax.sparsemax_loss(scores, labels)).abs().max() <= 1e-12
    found = ol.CRFLoss(polytopes.simplex(7), reduction="none")(scores, target)
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    assert (found - expected).abs().max() <= 1e-12
    found = ol.StructuredHingeLoss(polytopes.simplex(7), reduction="none")(scores, target)
    # Crammer and Singer's, with the distance 2 of any two choices.
    margins = (scores + 2.0 * (1 - target)).amax(1) - scores.gather(1, labels[:, None])[:, 0]
    assert (found - margins).abs().max() <= 1e-12


@pytest.mark.many(4)
@each_binary
def test_hinge_losses_equal_enumeration(entry):
    loss = ol.StructuredHingeLoss(entry.polytope, reduction="none")
    scores, cost = scores_for(entry.polytope.shape, 6, seed=6), scores_for(entry.polytope.shape, 6, seed=7)
    vertices = torch.tensor(entry.vertices)
    for target in (some_vertices(entry, 6), some_mixtures(entry, 6)):
        hamming = (vertices[None] - target[:, None]).abs().flatten(2).sum(2)
        linear = products(entry, cost) - inner(cost, target)[:, None]
        for given, costs in ((None, hamming), (cost, linear)):
            value, found = gradient(loss, scores, target, cost=given, **entry.parameters)
            best = (products(entry, scores) + costs).max(1)
            assert (value - (best.values - inner(scores, target))).abs().max() <= 1e-9
            assert (found - (vertices[best.indices] - target)).abs().max() <= 1e-9
    shared = loss(scores, target, cost=cost[0], **entry.parameters)
    assert torch.equal(shared, loss(scores, target, cost=cost[0].expand_as(cost), **entry.parameters))


def test_hinge_losses_of_structures_that_are_not_0_or_1():
    ranking = named("ranking")
    scores, target, cost = scores_for((4,), 5), some_vertices(ranking, 5), scores_for((4,), 5, seed=8)
    loss = ol.StructuredHingeLoss(ranking.polytope, reduction="none")
    with pytest.raises(ValueError, match=r"part \[0\] of this polytope can be as large as 4; give a linear cost"):
        loss(scores, target)
    with pytest.raises(ValueError, match=r"entry \[\d\] of a best vertex of instance 0 is [234]; give a linear cost"):
        ol.StructuredHingeLoss(ranking.polytope, validate=False)(scores, target)
    expected = (products(ranking, scores + cost)).amax(1) - inner(scores + cost, target)
    assert (loss(scores, target, cost=cost) - expected).abs().max() <= 1e-12
    x = cp.Variable(2)
    below = ol.Polytope(x, [x >= -1, x <= 1])
    with pytest.raises(ValueError, match=r"part \[0\] of this polytope can be as small as -1"):
        ol.StructuredHingeLoss(below)(torch.zeros(2), torch.ones(2))
    # Three that exclude each other in pairs: the vertex of halves is met by the linear form too.
    y = cp.Variable(3)
    cycle = ol.Polytope(y, [y >= 0, y[0] + y[1] <= 1, y[1] + y[2] <= 1, y[0] + y[2] <= 1])
    hinge = ol.StructuredHingeLoss(cycle)
    good = torch.ones(3, dtype=torch.float64)
    value = hinge(good, torch.tensor([1.0, 0.0, 0.0]))
    assert value == pytest.approx(1.5 + 1.5 - 1.0)  # halves: score 1.5, distance 1.5
    with pytest.raises(ValueError, match="both are fractional of the instance; give a linear cost"):
        hinge(good, torch.full((3,), 0.4))


@pytest.mark.many(5)
@each_structure
def test_spo_plus_equals_enumeration_and_bounds_the_regret(entry):
    loss = ol.SPOPlusLoss(entry.polytope, reduction="none")
    guess, truth = scores_for(entry.polytope.shape, 8, seed=9), scores_for(entry.polytope.shape, 8, seed=10)
    vertices, optimal = torch.tensor(entry.vertices), products(entry, truth).max(1)
    value, found = gradient(loss, guess, truth, **entry.parameters)
    # The paper's form, for costs c = -s that are minimized.
    inside = (products(entry, -truth) - 2 * products(entry, -guess)).max(1)
    best = vertices[optimal.indices]
    assert (value - (inside.values + 2 * inner(-guess, best) - inner(-truth, best))).abs().max() <= 1e-9
    assert (found - 2 * (vertices[inside.indices] - best)).abs().max() <= 1e-9
    lost = ol.regret(entry.polytope, guess, truth, **entry.parameters)
    decided = products(entry, guess).argmax(1)
    assert (lost - (optimal.values - products(entry, truth).gather(1, decided[:, None])[:, 0])).abs().max() <= 1e-9
    assert (value >= lost - 1e-9).all() and (lost >= -1e-12).all()
    assert len(vertices) == 1 or (lost > 0.1).any()
    assert loss(truth, truth, **entry.parameters).abs().max() <= 1e-9
    assert torch.equal(value, loss(guess, truth, decisions=best, **entry.parameters))


def test_regret_of_two_ways_by_hand():
    """Two arcs from here to there."""
    ways = ol.compile_polytope(polytopes.dag_path(2, [(0, 1), (0, 1)]))
    costs, expected = (
        torch.tensor([[4.0, 6.0], [4.0, 6.0], [3.0, 1.0]]),
        torch.tensor([[9.0, 5.0], [1.0, 5.0], [0.0, 5.0]]),
    )
    lost = ol.regret(ways, -expected, -costs)
    assert lost.tolist() == [2.0, 0.0, 2.0]
    assert ol.regret(ways, -expected, -costs, normalized=True).item() == pytest.approx(4.0 / (4.0 + 4.0 + 1.0))
    layer = ol.OptLayer(ways, ol.SparseMAP())
    assert torch.equal(ol.regret(layer, -expected, -costs), lost)
    closed = torch.tensor([[-torch.inf, -6.0]])
    assert ol.regret(ways, torch.tensor([[1.0, 0.0]]), closed).item() == torch.inf
    assert ol.regret(ways, torch.tensor([[0.0, 1.0]]), closed).item() == 0.0
    with pytest.raises(ValueError, match="sum to 0: there is nothing to normalize"):
        ol.regret(ways, expected, torch.zeros(3, 2), normalized=True)
    with pytest.raises(ValueError, match=r"true_scores have shape \(2,\), but the predicted ones \(3, 2\)"):
        ol.regret(ways, expected, torch.zeros(2))


def admissible_masks(entry, count, seed=11):
    """Masks that admit one structure at least, with its vertices by instance."""
    generator = torch.Generator().manual_seed(seed)
    own = some_vertices(entry, count, seed=seed) != 0
    masks = own | (torch.rand(own.shape, generator=generator) < 0.6)
    used = torch.tensor(entry.vertices != 0).flatten(1)
    return masks, ~(used[None] & ~masks.flatten(1)[:, None]).any(2)


@pytest.mark.many(11)
@each_structure
@each_fenchel_young
def test_masks_equal_enumeration_over_what_they_admit(entry, loss, rule):
    made, layer = loss(entry.polytope, reduction="none"), ol.OptLayer(entry.polytope, rule)
    scores = scores_for(entry.polytope.shape, 8, seed=12)
    masks, allowed = admissible_masks(entry, 8)
    value, found = gradient(made, scores, masks, **entry.parameters)
    values, vertices = products(entry, scores), torch.tensor(entry.vertices)
    restricted = values.masked_fill(~allowed, -torch.inf)
    free = layer(scores, **entry.parameters)
    if loss is ol.StructuredPerceptronLoss:
        expected, y = values.amax(1) - restricted.amax(1), vertices[restricted.argmax(1)]
    elif loss is ol.CRFLoss:
        expected = values.logsumexp(1) - restricted.logsumexp(1)
        y = torch.tensordot(restricted.softmax(1), vertices, 1)
    else:
        y = free - found
        expected = made(scores, y, **entry.parameters)  # which also checks that y is in the polytope
        assert (y[~masks] == 0).all()
        ahead = products(entry, scores - y).masked_fill(~allowed, -torch.inf).amax(1) - inner(scores - y, y)
        assert ahead.max() <= 1e-8
    assert (value - expected).abs().max() <= 1e-8 and value.min() >= -1e-9
    assert (found - (free - y)).abs().max() <= 1e-8


@pytest.mark.many(4)
@each_binary
def test_hinge_with_masks_counts_what_is_not_admitted(entry):
    scores = scores_for(entry.polytope.shape, 8, seed=13)
    masks, allowed = admissible_masks(entry, 8)
    value = ol.StructuredHingeLoss(entry.polytope, reduction="none")(scores, masks, **entry.parameters)
    values = products(entry, scores)
    costs = products(entry, (~masks).double())
    expected = (values + costs).amax(1) - values.masked_fill(~allowed, -torch.inf).amax(1)
    assert (value - expected).abs().max() <= 1e-9


@pytest.mark.parametrize("loss", EVERY)
def test_a_mask_that_admits_nothing_is_named(loss):
    masks = torch.ones(3, 4, 4, dtype=torch.bool)
    masks[1, 2] = False
    with pytest.raises(ol.SolveError, match=r"instance 1 is INFEASIBLE: no structure has parts that its mask admits"):
        loss(polytopes.matching(4))(torch.zeros(3, 4, 4), masks)


@pytest.mark.many(5)
@each_structure
def test_perturbed_losses_by_the_noise_that_they_draw(entry):
    loss = ol.PerturbedFenchelYoungLoss(entry.polytope, samples=7, scale=0.5, reduction="none")
    scores, target = scores_for(entry.polytope.shape, 3, seed=14), some_vertices(entry, 3)

    def seeded():
        return torch.Generator().manual_seed(15)

    value, found = gradient(loss, scores, target, generator=seeded(), **entry.parameters)
    seed = int(torch.randint(2**62, (), generator=seeded()))
    size = int(np.prod(entry.polytope.shape))
    noise = ol.rules.noise.Gaussian().draw((7, 3, size), torch.Generator().manual_seed(seed), torch.device("cpu"))
    perturbed = scores + 0.5 * noise.reshape(7, *scores.shape)
    best = products(entry, perturbed.flatten(0, 1)).max(1)
    mean = torch.tensor(entry.vertices)[best.indices].reshape(7, *scores.shape).mean(0)
    assert (found - (mean - target)).abs().max() <= 1e-12
    assert (value - (best.values.reshape(7, 3).mean(0) - inner(scores, target))).abs().max() <= 1e-9
    everything = torch.ones(scores.shape, dtype=torch.bool)
    nothing, zero = gradient(loss, scores, everything, generator=seeded(), **entry.parameters)
    assert nothing.abs().max() == 0 and zero.abs().max() == 0  # only if both terms see the same noise


def test_perturbed_losses_with_gumbel_noise_tend_to_the_crf():
    loss = ol.PerturbedFenchelYoungLoss(polytopes.simplex(4), samples=40_000, noise=ol.rules.noise.Gumbel())
    scores, target = scores_for((4,), seed=16), torch.tensor([0, 1, 0, 0])
    value, found = gradient(loss, scores, target, generator=torch.Generator().manual_seed(17))
    expected, slope = gradient(ol.CRFLoss(polytopes.simplex(4)), scores, target)
    # Means of 40,000 draws, with standard deviations of at most 1.3 and 0.5; five standard errors.
    assert abs(value - expected - 0.5772) <= 0.033 and (found - slope).abs().max() <= 0.0125


def test_perturbed_losses_repeat_themselves_and_have_no_second_derivative():
    loss = ol.PerturbedFenchelYoungLoss(polytopes.arborescence(4), samples=3)
    target = some_vertices(named("tree of four words"), 2)
    scores = scores_for((5, 5), 2, seed=18).requires_grad_()
    torch.manual_seed(0)
    first, second = loss(scores, target), loss(scores, target)
    torch.manual_seed(0)
    assert torch.equal(first, loss(scores, target)) and first != second
    (slope,) = torch.autograd.grad(first, scores, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivatives"):
        slope.sum().backward()


@pytest.mark.parametrize("loss", EVERY)
def test_forbidden_parts(loss):
    entry = named("tree of four words")
    target = some_vertices(entry, 6)
    generator = torch.Generator().manual_seed(19)
    never = (torch.rand(target.shape, generator=generator) < 0.3) & (target == 0)
    scores = scores_for((5, 5), 6, seed=20).masked_fill(never, -torch.inf)
    made = loss(entry.polytope, reduction="none")
    value, found = gradient(made, scores, target)
    assert torch.isfinite(value).all() and torch.isfinite(found).all()
    assert (found[never] == 0).all() and found.abs().max() > 0.1
    if loss is ol.CRFLoss:
        uses = never.flatten(1).double() @ torch.tensor(entry.vertices).flatten(1).T > 0
        finite = products(entry, scores.masked_fill(never, 0.0)).masked_fill(uses, -torch.inf)
        expected = finite.logsumexp(1) - inner(scores.masked_fill(never, 0.0), target)
        assert (value - expected).abs().max() <= 1e-9
    used = tuple(torch.nonzero(target[3])[0].tolist())
    scores[(3, *used)] = -torch.inf
    message = (
        r"target must be 0 for parts that are forbidden by a score of -inf, but entry \[\d, \d\] of instance 3 is 1.0"
    )
    with pytest.raises(ValueError, match=message):
        made(scores, target)


def test_forbidden_parts_get_no_gradient_from_a_projector_that_leaves_a_rest_of_them():
    entry = named("tree of four words")
    target = some_vertices(entry, 6)
    never = (torch.rand(target.shape, generator=torch.Generator().manual_seed(19)) < 0.12) & (target == 0)
    scores = scores_for((5, 5), 6, seed=20).masked_fill(never, -torch.inf)
    tree = entry.polytope.without_oracle()
    rest = ol.OptLayer(tree, ol.SparseMAP(), projector=ol.CvxpyLayers())(scores)
    assert (rest[never] != 0).any()
    _, found = gradient(ol.SparseMAPLoss(tree, projector=ol.CvxpyLayers()), scores, target)
    assert (found[never] == 0).all()


def test_spo_plus_with_forbidden_parts():
    loss = ol.SPOPlusLoss(polytopes.simplex(3))
    truth, guess = torch.tensor([-torch.inf, 1.0, 0.0]), torch.tensor([5.0, 0.0, 1.0])
    value, found = gradient(loss, guess, truth)
    assert value == pytest.approx((2 * 1 - 0) - (2 * 0 - 1)) and found.tolist() == [0.0, -2.0, 2.0]


def of_length(loss, **named):
    return loss(ol.Family(polytopes.arborescence), reduction="none", **named)


@pytest.mark.many(2)
@pytest.mark.parametrize("loss", [*EVERY[:4], ol.SPOPlusLoss])
@pytest.mark.parametrize("masked", [False, True], ids=["points", "masks"])
def test_mixed_lengths_are_those_of_each_alone(loss, masked):
    sizes, scores = [4, 1, 3, 0, 4], scores_for((5, 5), 5, seed=21)
    if loss is ol.SPOPlusLoss:  # true scores, which forbid parts
        target = scores_for((5, 5), 5, seed=22)
        target[0, 0, 1] = -torch.inf if masked else 0.0
    else:
        target = ol.OptLayer(ol.Family(polytopes.arborescence), ol.Pipeline())(0.0 - scores, sizes=sizes)
        target = (target > 0) | (scores > 0) if masked else target
    padded = scores.clone()
    padded[1, 2:], padded[1, :, 2:], padded[3] = torch.nan, torch.nan, torch.nan  # what is there does not count
    value, found = gradient(of_length(loss), padded, target, sizes=sizes)
    for k, size in enumerate(sizes):
        if size == 0:
            assert value[k] == 0 and (found[k] == 0).all()
            continue
        corner = (k, slice(size + 1), slice(size + 1))
        alone, own = gradient(loss(polytopes.arborescence(size)), scores[corner], target[corner])
        assert (alone - value[k]).abs() <= 1e-12 and (found[corner] - own).abs().max() <= 1e-12
        assert (found[k, size + 1 :] == 0).all() and (found[k, :, size + 1 :] == 0).all()


def test_perturbed_losses_of_mixed_lengths_see_the_same_noise_in_both_terms():
    loss = of_length(ol.PerturbedFenchelYoungLoss, samples=5)
    scores = scores_for((5, 5), 3, seed=23)
    value, found = gradient(loss, scores, torch.ones(3, 5, 5, dtype=torch.bool), sizes=[4, 2, 3])
    assert value.abs().max() == 0 and found.abs().max() == 0


@pytest.mark.many(3)
@pytest.mark.parametrize("loss", [*EVERY, ol.SPOPlusLoss])
@pytest.mark.parametrize("sizes", [3, [3], torch.tensor(3)], ids=repr)
def test_one_size_and_no_batch_are_a_batch_of_one(loss, sizes):
    measure, scores = of_length(loss), scores_for((5, 5))
    target = ol.OptLayer(ol.Family(polytopes.arborescence), ol.Pipeline())(-scores, sizes=3)
    draws = {"generator": torch.Generator()} if loss is ol.PerturbedFenchelYoungLoss else {}
    found = []
    for leaf, gold, size in ((scores, target, sizes), (scores[None], target[None], [3])):
        leaf = leaf.clone().requires_grad_()
        value = measure(leaf, gold, sizes=size, **({"generator": draws["generator"].manual_seed(0)} if draws else {}))
        value.sum().backward()
        assert value.shape == leaf.shape[:-2]
        found.append((value.detach().reshape(()), leaf.grad.reshape(5, 5)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1]) and found[0][0] > 0


@pytest.mark.parametrize("loss", [*EVERY, ol.SPOPlusLoss])
@pytest.mark.parametrize("sizes", [[], torch.zeros(0, 2, dtype=torch.int64)], ids=["[]", "0 x 2"])
def test_an_empty_batch_of_two_sizes_has_no_losses(loss, sizes):
    measure = loss(ol.Family(polytopes.rectangular_matching), reduction="none")
    leaf = torch.zeros(0, 4, 5, requires_grad=True)
    losses = measure(leaf, torch.zeros(0, 4, 5), sizes=sizes)
    losses.sum().backward()
    assert losses.shape == (0,) and leaf.grad.shape == (0, 4, 5)


def test_the_regret_of_one_size_and_of_none():
    family, predicted, truth = ol.Family(polytopes.arborescence), scores_for((5, 5)), scores_for((5, 5), seed=1)
    one, many = (
        ol.regret(family, *given, sizes=s)
        for given, s in (((predicted, truth), 3), ((predicted[None], truth[None]), [3]))
    )
    assert one.shape == () and torch.equal(one, many[0]) and one > 0
    assert ol.regret(family, predicted[None][:0], truth[None][:0], sizes=[]).shape == (0,)
    two = ol.Family(polytopes.rectangular_matching)
    assert ol.regret(two, torch.zeros(0, 4, 5), torch.zeros(0, 4, 5), sizes=torch.zeros(0, 2)).shape == (0,)


def test_losses_of_a_family_compile_every_size_once():
    made = []

    def factory(size):
        made.append(size)
        return polytopes.arborescence(size)

    loss = ol.SparseMAPLoss(ol.Family(factory))
    target = ol.OptLayer(ol.Family(polytopes.arborescence), ol.Pipeline())(scores_for((4, 4), 2), sizes=[3, 2])
    for point in (target, 0.5 * (target + target.flip(1, 2).flip(1, 2))):
        loss(scores_for((4, 4), 2), point, sizes=[3, 2])
    assert sorted(made) == [2, 3]


@pytest.mark.parametrize("loss", EVERY)
def test_reductions_batches_and_dtypes(loss):
    entry = named("matching")
    kinds = {kind: loss(entry.polytope, reduction=kind) for kind in ("mean", "sum", "none")}
    scores, target = scores_for((3, 3), 2, 3, seed=24), some_vertices(entry, 6).reshape(2, 3, 3, 3)

    def call(kind, *arguments):
        torch.manual_seed(1)
        return kinds[kind](*arguments)

    each = call("none", scores, target)
    assert each.shape == (2, 3)
    assert torch.equal(call("sum", scores, target), each.sum()) and torch.equal(
        call("mean", scores, target), each.mean()
    )
    flat = call("none", scores.reshape(6, 3, 3), target.reshape(6, 3, 3))
    assert torch.equal(flat.reshape(2, 3), each)
    assert call("none", scores[0, 0], target[0, 0]).shape == ()
    single = call("none", scores.float(), target.to(torch.int64))
    assert single.dtype == torch.float32 and (single - each).abs().max() <= 1e-5
    leaf = scores.float().requires_grad_()
    call("mean", leaf, target.to(torch.bfloat16)).backward()
    assert leaf.grad.dtype == torch.float32 and leaf.grad.flatten(2).abs().sum() > 0
    nothing = scores[:0].clone().requires_grad_()
    empty = call("sum", nothing, target[:0])
    empty.backward()
    assert empty == 0 and nothing.grad.shape == (0, 3, 3, 3) and call("none", nothing, target[:0]).shape == (0, 3)
    assert call("mean", nothing, target[:0]).isnan()
    for other in (copy.deepcopy(kinds["none"]), pickle.loads(pickle.dumps(kinds["none"]))):
        torch.manual_seed(1)
        assert torch.equal(other(scores, target), each)


def test_the_mean_weighs_gradients():
    scores, target = scores_for((3, 3), 4, seed=25), some_vertices(named("matching"), 4)
    _, whole = gradient(ol.SparseMAPLoss(polytopes.matching(3), reduction="none"), scores, target)
    _, mean = gradient(ol.SparseMAPLoss(polytopes.matching(3)), scores, target)
    assert (mean - whole / 4).abs().max() <= 1e-15


@pytest.mark.parametrize("hidden", [polytopes.permutahedron(4), polytopes.permutahedron(4).without_oracle()])
def test_rows_that_need_auxiliary_variables_count_for_targets(hidden):
    """The rows of a ranking have all a doubly stochastic matrix in them, which a target does not say."""
    target = torch.tensor([[4.0, 1.0, 2.0, 3.0], [7.0, 4.0, 5.0, 6.0], [2.5, 2.5, 2.5, 2.5]])
    with pytest.raises(ValueError, match="target of instance 1 is not in the polytope"):
        ol.StructuredPerceptronLoss(hidden)(torch.zeros(3, 4), target)
    ol.StructuredPerceptronLoss(hidden)(torch.zeros(2, 4), target[::2])


@pytest.mark.many(7)
@pytest.mark.parametrize("entry", [e for e in POLYTOPES if not e.polytope.scored], ids=repr)
def test_points_of_the_polytope_are_taken_and_others_are_not(entry):
    loss = ol.StructuredPerceptronLoss(entry.polytope)
    scores = scores_for(entry.polytope.shape, 5)
    for target in (some_vertices(entry, 5), some_mixtures(entry, 5), some_mixtures(entry, 5).float()):
        loss(scores, target, **entry.parameters)
    off = some_vertices(entry, 5).clone()
    off[2].view(-1)[-1] += 0.25 + 2.0 * (off[2].view(-1)[-1] == 0)  # 2.25 or 1.25 in a corner that holds 0 or more
    target = off[2] if not entry.name.startswith("ranking") else off[2] + 3.0
    off[2] = target
    point = ol.OptLayer(entry.polytope.without_oracle(), ol.SparseMAP())(off[2], **entry.parameters)
    distance = (point - off[2]).norm().item()
    with pytest.raises(ValueError, match=f"target of instance 2 is not in the polytope: .* is {distance:.3g}. Targets"):
        loss(scores, off, **entry.parameters)
    ol.StructuredPerceptronLoss(entry.polytope, validate=False)(scores, off, **entry.parameters)


def test_distances_of_targets_are_told():
    loss = ol.CRFLoss(polytopes.simplex(2))
    scores = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"instance 1 is not in the polytope: its distance from it is 0\.707\."):
        loss(scores, torch.tensor([[1, 0], [1, 1], [0, 1]]))
    with pytest.raises(ValueError, match=r"target of instance 0 \(and 2 more\) is not in the polytope"):
        loss(scores, torch.zeros(3, 2))
    with pytest.raises(
        ValueError, match="target of the instance is not in the polytope: its distance from it is 1e-05"
    ):
        loss(scores[0].double(), torch.tensor([1.0, 0.0]).double() + 1e-5 / 2**0.5)
    loss(scores[0].double(), torch.tensor([1.0, 0.0]).double() + 1e-7)
    # Corners of the unit cube outside of a polytope that leaves it: the best vertex scores more than the corner does.
    x = cp.Variable(2)
    long = ol.Polytope(x, [x >= 0, x[0] <= 2, x[1] == 0])
    with pytest.raises(ValueError, match="its distance from it is 1"):
        ol.StructuredPerceptronLoss(long)(torch.zeros(2), torch.ones(2))
    ol.StructuredPerceptronLoss(long)(torch.zeros(2), torch.tensor([1.0, 0.0]))


def test_parameters_of_instances():
    subset, scores = named("subset").polytope, scores_for((5,), 4, seed=26)
    budget = torch.tensor([1.0, 2.0, 3.0, 5.0])
    target = ol.OptLayer(subset, ol.Pipeline())(-scores, budget=budget)
    for loss in EVERY:
        torch.manual_seed(2)
        each = loss(subset, reduction="none")(scores, target, budget=budget)
        if loss is not ol.PerturbedFenchelYoungLoss:
            alone = [loss(subset)(scores[k], target[k], budget=budget[k]) for k in range(4)]
            assert (each - torch.stack(alone)).abs().max() <= 1e-9
        wanted = budget.clone().requires_grad_()
        if loss is not ol.CRFLoss:
            assert loss(subset)(scores, target, budget=wanted).requires_grad
        else:
            with pytest.raises(ValueError, match="CRFLoss has no gradient for parameters, but budget requires one"):
                loss(subset)(scores, target, budget=wanted)
        with torch.no_grad():
            loss(subset)(scores, target, budget=wanted)
    with pytest.raises(ol.SolveError, match="instance 3 is INFEASIBLE"):
        ol.SparseMAPLoss(subset)(scores, target, budget=torch.tensor([1.0, 2.0, 3.0, 6.0]))


def stock() -> ol.Polytope:
    """What of four goods goes out, of which no more than ``supply`` is there, on no more trips than ``trips`` allow."""
    x = cp.Variable(4, nonneg=True)
    supply, weight, trips = cp.Parameter(4, name="supply"), cp.Parameter(4, name="weight"), cp.Parameter(name="trips")
    return ol.Polytope(x, [x <= supply, weight @ x <= trips])


def stock_of(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(27)
    supply = 0.5 + torch.rand(count, 4, generator=generator, dtype=torch.float64)
    weight = 0.5 + torch.rand(count, 4, generator=generator, dtype=torch.float64)
    return {"supply": supply, "weight": weight, "trips": torch.linspace(0.6, 1.4, count, dtype=torch.float64)}


@pytest.mark.parametrize("masked", [False, True], ids=["structure", "mask"])
@pytest.mark.parametrize(
    "loss", [ol.StructuredPerceptronLoss, ol.SparseMAPLoss, ol.StructuredHingeLoss, ol.PerturbedFenchelYoungLoss]
)
def test_losses_have_the_gradient_of_their_optimal_value_for_parameters(loss, masked):
    """By finite differences; PyEPO#51 asks for it."""
    if masked and loss is ol.StructuredHingeLoss:
        pytest.skip("counts parts that are not admissible, in the unit cube alone")
    made, given = loss(stock(), validate=False), stock_of(5)
    scores = scores_for((4,), 5, seed=28).abs() + 0.2
    target = ol.OptLayer(stock(), ol.SparseMAP())(-scores, **given) * 0.5
    if masked:
        target = torch.tensor([True, True, False, True]).expand(5, 4)
    more = {"cost": torch.ones(5, 4)} if loss is ol.StructuredHingeLoss and not masked else {}

    def value(**parameters: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return made(scores, target, **parameters, **more)

    leaves = {name: v.clone().requires_grad_() for name, v in given.items()}
    found = torch.autograd.grad(value(**leaves), list(leaves.values()))
    step = 1e-6
    for name, slope in zip(given, found, strict=True):
        assert slope.abs().sum() > 0.01
        for index in np.ndindex(*slope.shape):
            moved = given[name].clone()
            moved[index] += step
            above = value(**{**given, name: moved})
            moved[index] -= 2 * step
            below = value(**{**given, name: moved})
            assert abs((above - below).item() / (2 * step) - slope[index].item()) <= 1e-7


def test_a_loss_learns_the_parameters_of_a_family_in_part():
    """Where only some sizes have the part of a parameter that is waited for; and beside the gradient of the scores."""
    family, sizes = ol.Family(polytopes.subset), [4, 3, 2]
    made = ol.SparseMAPLoss(family, reduction="none")
    scores, budget = scores_for((4,), 3, seed=29), torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64)
    target = ol.OptLayer(ol.Family(lambda n: polytopes.subset(n)), ol.SparseMAP())(
        -scores, sizes=[4, 3, 2], budget=budget
    )
    leaf, wanted = scores.clone().requires_grad_(), budget.clone().requires_grad_()
    together = torch.autograd.grad(made(leaf, target, sizes=sizes, budget=wanted).sum(), (leaf, wanted))
    for k, size in enumerate(sizes):
        one, its = scores[k, :size].clone().requires_grad_(), budget[k].clone().requires_grad_()
        loss = ol.SparseMAPLoss(polytopes.subset(size))(one, target[k, :size], budget=its)
        alone = torch.autograd.grad(loss, (one, its))
        assert torch.equal(together[0][k, :size], alone[0]) and torch.equal(together[1][k], alone[1])


def test_sets_that_are_not_polyhedral_have_a_sparsemap_loss():
    x = cp.Variable(3)
    ball = ol.compile_polytope(ol.Polytope(x, [cp.norm(x) <= 1]), projector=ol.CvxpyLayers())
    loss, scores = ol.SparseMAPLoss(ball), torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    value, found = gradient(loss, scores, torch.tensor([1.0, 0.0, 0.0]))
    assert (found - torch.tensor([-0.4, 0.0, 0.8])).abs().max() <= 1e-5
    assert value == pytest.approx(5.0 - 0.5 + 0.5 - 3.0, abs=1e-5)
    with pytest.raises(ValueError, match=r"its distance from it is 0\.414"):
        loss(scores, torch.tensor([1.0, 0.0, 1.0]))


TREE, SCORES = polytopes.arborescence(2), torch.zeros(2, 3, 3)
GOLD = torch.zeros(2, 3, 3)
GOLD[:, 0, 1] = GOLD[:, 1, 2] = 1.0


def changed(tensor, where, value):
    result = tensor.clone()
    result[where] = value
    return result


BAD_CALLS = {
    "target of another shape": (
        lambda m: m(SCORES, GOLD[0]),
        r"target has shape \(3, 3\), but the scores have \(2, 3, 3\)",
    ),
    "complex target": (
        lambda m: m(SCORES, GOLD.to(torch.complex64)),
        r"target must be real, or boolean .* got torch\.complex64",
    ),
    "no tensor": (lambda m: m(SCORES, [1, 0]), "target must be a torch.Tensor, but got list"),
    "NaN in the target": (
        lambda m: m(SCORES, changed(GOLD, (1, 2, 0), torch.nan)),
        r"target must be finite, but entry \[2, 0\] of instance 1 is nan",
    ),
    "target with a gradient": (lambda m: m(SCORES, GOLD.clone().requires_grad_()), r"pass target.detach\(\)"),
    "NaN in the scores": (
        lambda m: m(changed(SCORES, (1, 2, 0), torch.nan), GOLD),
        r"scores hold nan at batch index 1, entry \[2, 0\]",
    ),
    "scores of another shape": (
        lambda m: m(SCORES[..., :2], GOLD),
        r"scores end in \(3, 2\) but the polytope has shape",
    ),
    "integer scores": (lambda m: m(SCORES.long(), GOLD), "scores must be real and floating-point"),
    "sizes without a family": (lambda m: m(SCORES, GOLD, sizes=[2, 2]), "sizes= is for losses over a Family"),
    "an unknown parameter": (lambda m: m(SCORES, GOLD, load=1.0), r"unexpected \['load'\]"),
}


@pytest.mark.many(8)
@pytest.mark.parametrize("call", BAD_CALLS)
@pytest.mark.parametrize("loss", EVERY)
def test_bad_calls_are_explained(loss, call):
    attempt, message = BAD_CALLS[call]
    with pytest.raises((TypeError, ValueError), match=message):
        attempt(loss(TREE))


def test_what_only_some_losses_take_is_explained():
    hinge, spo = ol.StructuredHingeLoss(TREE), ol.SPOPlusLoss(TREE)
    with pytest.raises(ValueError, match=r"cost has shape \(3,\): give \(3, 3\) for all instances or \(2, 3, 3\)"):
        hinge(SCORES, GOLD, cost=torch.zeros(3))
    with pytest.raises(TypeError, match="needs a target structure y, but the target is a mask"):
        hinge(SCORES, GOLD > 0, cost=torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"cost must be finite, but entry \[0, 1\] of instance 0 is inf"):
        hinge(SCORES, GOLD, cost=changed(SCORES, (0, 0, 1), torch.inf))
    with pytest.raises(TypeError, match=r"no cost of its own: call loss\(scores, target, cost=c\)"):
        ol.StructuredHingeLoss(TREE, cost=None)(SCORES, GOLD)
    with pytest.raises(ValueError, match='cost is "hamming" or None, but got tensor'):
        ol.StructuredHingeLoss(TREE, cost=torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"losses have no gradient for costs"):
        hinge(SCORES, GOLD, cost=torch.zeros(3, 3, requires_grad=True))
    with pytest.raises(TypeError, match="decisions must be structures, but got a boolean mask"):
        spo(SCORES, SCORES, decisions=GOLD > 0)
    with pytest.raises(ValueError, match=r"decisions of instance 0 .* is not in the polytope"):
        spo(SCORES, SCORES, decisions=0.5 * GOLD)
    with pytest.raises(ValueError, match="true_scores require one"):
        spo(SCORES, SCORES.clone().requires_grad_())
    with pytest.raises(TypeError, match="generator= is for layers"):
        hinge(SCORES, GOLD, generator=torch.Generator())
    for named in ({"samples": 0}, {"scale": 0.0}, {"noise": "gumbel"}):
        with pytest.raises((TypeError, ValueError), match=next(iter(named))):
            ol.PerturbedFenchelYoungLoss(TREE, **named)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None"):
        ol.PerturbedFenchelYoungLoss(TREE)(SCORES, GOLD, generator=3)
    with pytest.raises(ValueError, match='reduction is "mean", "sum" or "none"'):
        ol.CRFLoss(TREE, reduction="average")


def test_padding_of_targets_is_0_and_sizes_are_asked_for():
    loss = ol.CRFLoss(ol.Family(polytopes.arborescence))
    with pytest.raises(TypeError, match="needs sizes="):
        loss(SCORES, GOLD)
    with pytest.raises(ValueError, match=r"target must be 0 in the padding, but entry \[1, 2\] of instance 1 is 1.0"):
        loss(SCORES, GOLD, sizes=[2, 1])
    with pytest.raises(ValueError, match="target of instance 1 is not in the polytope"):
        loss(SCORES, changed(GOLD, (1, 0, 2), 1.0), sizes=[2, 2])


@final
class MarginSparseMAPLoss(ol.AbstractFenchelYoungLoss):
    """SparseMAPLoss with the Hamming distance from the target as a margin: a loss of a user's own."""

    def margin(self, target):
        """But for a constant, the Hamming distance."""
        return 1.0 - 2.0 * target

    def predict(self, polytope, scores, context):
        """The nearest points."""
        solution = polytope.project(scores)
        z = solution.value.detach()
        square = polytope.structure(z).square().sum(dim=1)
        return ol.Prediction(solution, (scores.detach() * z).sum(dim=1) - 0.5 * square)

    def regularizer(self, structure):
        """Half of the squared norm."""
        return 0.5 * structure.square().sum(dim=1)


@final
class DetachedSparseMAPLoss(ol.AbstractFenchelYoungLoss):
    """SparseMAPLoss whose points do not tell autograd what they depend on."""

    def __init__(self, polytope, constant=False):
        super().__init__(polytope, reduction="none")
        self.constant = constant

    def predict(self, polytope, scores, context):
        """The nearest points."""
        solution, scores = polytope.project(scores.detach()), scores.detach()
        value = (scores * solution.value).sum(dim=1) - 0.5 * polytope.structure(solution.value).square().sum(dim=1)
        return ol.Prediction(solution, value, piecewise_constant=self.constant)

    def regularizer(self, structure):
        """Half of the squared norm."""
        return 0.5 * structure.square().sum(dim=1)


def test_a_loss_that_leaves_autograd_has_no_second_derivative():
    scores, target = scores_for((4,), 2, seed=31).requires_grad_(), torch.eye(4, dtype=torch.float64)[:2]
    loss = DetachedSparseMAPLoss(polytopes.simplex(4))
    (slope,) = torch.autograd.grad(loss(scores, target).sum(), scores, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"DetachedSparseMAPLoss has no second derivative: .*detach\(\)"):
        slope.sum().backward()
    loss.constant = True  # as it says itself
    assert (torch.autograd.functional.hessian(lambda s: loss(s, target).sum(), scores) == 0).all()


@pytest.mark.parametrize("entry", SOME, ids=repr)
@pytest.mark.parametrize("loss", EVERY)
def test_losses_in_forward_mode_are_those_of_finite_differences(entry, loss):
    if loss is ol.StructuredHingeLoss and entry.name == "ranking":
        pytest.skip("no Hamming cost")
    made, step = loss(entry.polytope, reduction="mean"), 1e-6
    scores, along = scores_for(entry.polytope.shape, 2, 2, seed=32)
    target = some_vertices(entry, 2)

    def call(s):
        torch.manual_seed(0)
        return made(s, target, **entry.parameters)

    with forward_ad.dual_level():
        value, moved = forward_ad.unpack_dual(call(forward_ad.make_dual(scores, along)))
    assert torch.equal(value, call(scores))
    expected = (call(scores + step * along) - call(scores - step * along)) / (2.0 * step)
    torch.testing.assert_close(moved, expected, atol=1e-7, rtol=1e-6)


def test_losses_in_forward_mode_reach_parameters_and_refuse_what_they_do_not_know():
    loss, scores, budget = ol.SparseMAPLoss(polytopes.subset(4), validate=False), scores_for((4,), 2, seed=33), 1.3
    target, step = torch.eye(4, dtype=torch.float64)[:2], 1e-6
    given = torch.tensor(budget, dtype=torch.float64)
    expected = (loss(scores, target, budget=given + step) - loss(scores, target, budget=given - step)) / (2.0 * step)
    assert abs(expected) > 0.01
    crf = ol.CRFLoss(polytopes.subset(4), validate=False)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(given, torch.ones_like(given))
        moved = forward_ad.unpack_dual(loss(scores, target, budget=dual)).tangent
        with pytest.raises(ValueError, match="CRFLoss has no gradient for parameters, but budget requires one"):
            crf(scores, target, budget=dual)
        with pytest.raises(ValueError, match="losses have no gradient for their targets, but target requires one"):
            loss(scores, forward_ad.make_dual(target, target), budget=given)
    torch.testing.assert_close(moved, expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("loss", [ol.SparseMAPLoss, ol.CRFLoss])
def test_second_derivatives_of_losses_in_forward_mode(loss):
    made, scores, along = loss(polytopes.matching(3)), *scores_for((3, 3), 2, seed=34)
    target, step = torch.eye(3, dtype=torch.float64), 1e-6

    def slope(s):
        leaf = s if s.requires_grad else s.detach().requires_grad_()
        return torch.autograd.grad(made(leaf, target), leaf, create_graph=s.requires_grad)[0]

    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(slope(forward_ad.make_dual(scores.clone().requires_grad_(), along))).tangent
    expected = (slope(scores + step * along) - slope(scores - step * along)) / (2.0 * step)
    assert expected.abs().sum() > 0.01
    torch.testing.assert_close(moved, expected, atol=1e-7, rtol=1e-6)


def pairs() -> ol.Polytope:
    """Three parts, and pairs of neighbours, with scores of their own, whose sum differs from structure to structure."""
    x, pair = cp.Variable(3), cp.Variable(2, name="pair")
    return ol.Polytope(x, [x >= 0, x <= 1, pair >= 0, pair <= x[:2], pair <= x[1:]], scored=[pair])


def test_a_margin_leaves_auxiliary_variables_and_forbidden_parts_alone():
    made, plain = MarginSparseMAPLoss(pairs()), ol.SparseMAPLoss(pairs())
    scores, pair = torch.tensor([0.3, -0.2, 0.1]).double(), torch.tensor([-0.2, -0.5]).double()
    target = torch.tensor([1.0, 1.0, 0.0])
    raised = scores + (1.0 - 2.0 * target)
    assert torch.equal(made(scores, target, pair=pair), plain(raised, target, pair=pair))
    ol.testing.check_loss(MarginSparseMAPLoss, pairs())
    forbidding = scores.clone()
    forbidding[2] = -torch.inf
    raised[2] = -torch.inf
    assert torch.equal(made(forbidding, target, pair=pair), plain(raised, target, pair=pair))


@pytest.mark.parametrize("entry", [e for e in SOME if e.name != "ranking"], ids=repr)
def test_a_loss_of_a_users_own_is_a_short_file(entry):
    scores = scores_for(entry.polytope.shape, 4, seed=30)
    target = some_vertices(entry, 4)
    made = MarginSparseMAPLoss(entry.polytope, reduction="none")
    value, slope = gradient(made, scores, target, **entry.parameters)
    raised = scores + (1.0 - 2.0 * target)
    expected, its = gradient(ol.SparseMAPLoss(entry.polytope, reduction="none"), raised, target, **entry.parameters)
    assert torch.allclose(value, expected, atol=1e-12) and torch.equal(slope, its)
    leaf = scores.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s: made(s, target, **entry.parameters), leaf, eps=1e-6, atol=1e-5)
