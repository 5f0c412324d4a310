"""Gibbs distributions hold against sums over structures in plain Python, in values, derivatives and samples."""

import copy
import math
import pickle

import cvxpy as cp
import pytest
import torch
from catalogue import CATALOGUE, POLYTOPES, Entry
from exact_sums import KINDS, Exact, pairs_of, scores_of
from scipy import stats
from torch.distributions import Categorical, Distribution, Independent, kl_divergence

import optlayers as ol
import polytopes

BATCH = 3
each_polytope = pytest.mark.parametrize("entry", POLYTOPES, ids=repr)


def gibbs(entry: Entry, flat: torch.Tensor, **options) -> ol.Gibbs:
    """The distribution for flat scores of all that is scored."""
    size, polytope = math.prod(entry.polytope.shape), entry.polytope
    given = dict(entry.parameters)
    if polytope.scored:
        (variable,) = polytope.scored
        given[variable.name()] = flat[..., size:].reshape(*flat.shape[:-1], *variable.shape)
    return ol.Gibbs(polytope, flat[..., :size].reshape(*flat.shape[:-1], *polytope.shape), **given, **options)


def structure(entry: Entry, pairs: list[list[float]]) -> torch.Tensor:
    size = math.prod(entry.polytope.shape)
    return torch.tensor(pairs, dtype=torch.float64)[..., :size].reshape(
        *torch.tensor(pairs).shape[:-1], *entry.polytope.shape
    )


def assert_near(found, expected, scale=1.0):
    expected = torch.as_tensor(expected, dtype=torch.float64).reshape(found.shape)
    assert torch.allclose(found.detach(), expected, atol=3e-9 * scale, rtol=1e-11), (found, expected)


@pytest.mark.many(40)
@each_polytope
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_sum_over_structures(entry, kind):
    pairs, temperature = pairs_of(entry), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    flat = scores_of(kind, pairs, BATCH)
    found = gibbs(entry, flat, temperature=temperature, validate_args=False)
    exact = [Exact(pairs, row, t) for row, t in zip(flat.tolist(), temperature.tolist(), strict=True)]
    size = math.prod(entry.polytope.shape)
    assert found.batch_shape == (BATCH,) and found.event_shape == entry.polytope.shape
    scale = float(flat[torch.isfinite(flat)].abs().max().clamp(min=1.0))
    assert_near(found.log_partition, [one.log_partition for one in exact], scale)
    assert_near(found.mean, [one.mean[:size] for one in exact], math.sqrt(scale))
    assert_near(found.variance, [one.variance[:size] for one in exact], math.sqrt(scale))
    assert_near(found.entropy(), [one.entropy for one in exact], scale)
    assert_near(found.log_count().exp(), [len(one.structures) for one in exact])
    every = structure(entry, pairs)
    chances = found.log_prob(every[:, None].expand(-1, BATCH, *every.shape[1:]))
    for k, one in enumerate(exact):
        known = {tuple(x): p for x, p in zip(one.structures, one.log_probs, strict=True)}
        assert_near(chances[:, k], [known.get(tuple(x), -math.inf) for x in pairs], scale)
    best = [max(one.weights) for one in exact]
    assert_near(found.log_prob(found.mode) + found.log_partition, best, scale)
    assert_near(found.log_prob(every[0] + 0.5), [-math.inf] * BATCH)


@pytest.mark.many(12)
@each_polytope
def test_cross_entropies_are_those_of_the_sum_over_structures(entry):
    pairs = pairs_of(entry)
    first, second = scores_of("masked", pairs, BATCH), scores_of("masked", pairs, BATCH, seed=1)
    p, q = gibbs(entry, first, temperature=0.5), gibbs(entry, second)
    for one, other, mine, theirs in ((p, q, first, second), (q, p, second, first), (p, p, first, first)):
        left = [Exact(pairs, row, 0.5 if one is p else 1.0) for row in mine.tolist()]
        right = [Exact(pairs, row, 0.5 if other is p else 1.0) for row in theirs.tolist()]
        cross = [a.cross_entropy(b) for a, b in zip(left, right, strict=True)]
        assert_near(one.cross_entropy(other), cross)
        assert_near(kl_divergence(one, other), [c - a.entropy for c, a in zip(cross, left, strict=True)])


@pytest.mark.many(10)
@pytest.mark.parametrize("entry", POLYTOPES, ids=repr)
@pytest.mark.parametrize("kind", ["random", "masked"])
def test_samples_are_drawn_as_often_as_they_should(entry, kind):
    pairs = pairs_of(entry)
    flat, count = scores_of(kind, pairs, 2), 2000
    found = gibbs(entry, flat, temperature=1.5)
    drawn, auxiliaries = found.lifted_sample((2, count // 2), torch.Generator().manual_seed(0))
    assert drawn.shape == (2, count // 2, 2, *entry.polytope.shape) and torch.isfinite(found.log_prob(drawn)).all()
    if auxiliaries:
        torch.testing.assert_close(found.log_prob(drawn, **auxiliaries), found.log_prob(drawn))
    for k, row in enumerate(flat.tolist()):
        exact = Exact(pairs, row, 1.5)
        every = structure(entry, exact.structures).flatten(1)
        same = (drawn[:, :, k].reshape(count, 1, -1) == every).all(2)
        assert (same.sum(1) == 1).all()
        seen, expected = same.sum(0).double(), count * torch.tensor(exact.chances)
        often = expected >= 5
        if int(often.sum()) > 1:
            rest = torch.stack([seen[~often].sum(), expected[~often].sum()])
            observed, wanted = (torch.cat([x[often], r[None]]) for x, r in zip((seen, expected), rest, strict=True))
            observed, wanted = observed[wanted > 1.0], wanted[wanted > 1.0]
            statistic = float(((observed - wanted).square() / wanted).sum())
            assert statistic < stats.chi2.ppf(1 - 1e-6, max(len(wanted) - 1, 1)) + 3.0


@pytest.mark.parametrize("entry", [e for e in CATALOGUE if 1 < len(e.vertices) <= 30], ids=repr)
@pytest.mark.many(6)
def test_supports_are_all_structures_once(entry):
    pairs = pairs_of(entry)
    flat = scores_of("random", pairs, 2)
    found = gibbs(entry, flat)
    every = found.enumerate_support()
    assert [x.flatten().tolist() for x in every[:, 0]] == sorted(pairs) and torch.equal(every[:, 0], every[:, 1])
    assert torch.equal(found.enumerate_support(expand=False)[:, 0], every[:, 0])
    assert_near(found.log_prob(every).exp().sum(0), [1.0, 1.0])
    assert found.support.check(every).all() and not found.support.check(every + 0.25).any()


# Derivatives


@pytest.mark.many(24)
@pytest.mark.parametrize("what", ["entropy", "log_prob", "mean", "variance", "log_partition", "kl", "cross", "top_k"])
@pytest.mark.parametrize("name", ["tree", "matching", "chain", "ranking", "subset", "cube"])
def test_derivatives_by_finite_differences_to_second_order(name, what):
    entry = next(e for e in POLYTOPES if e.name == name)
    pairs = pairs_of(entry)
    flat = scores_of("random", pairs, 2).requires_grad_()
    temperature = torch.tensor([0.8, 1.5], dtype=torch.float64, requires_grad=True)
    other = gibbs(entry, scores_of("random", pairs, 2, seed=1))
    value = structure(entry, [pairs[0], pairs[-1]])

    def function(flat, temperature):
        found = gibbs(entry, flat, temperature=temperature)
        if what == "log_prob":
            return found.log_prob(value)
        if what == "kl":
            return kl_divergence(found, other) + kl_divergence(other, found)
        if what == "cross":
            return found.cross_entropy(other) + other.cross_entropy(found)
        if what == "top_k":
            return found.top_k(3).log_prob
        return found.entropy() if what == "entropy" else getattr(found, what)

    torch.autograd.gradcheck(function, (flat, temperature), fast_mode=True)
    torch.autograd.gradgradcheck(function, (flat, temperature), fast_mode=True)


def test_gradients_against_masks_are_finite_and_zero_there():
    scores = torch.randn(2, 3, 3, dtype=torch.float64)
    scores[0, 0, :2] = -torch.inf
    scores.requires_grad_()
    found = ol.Gibbs(polytopes.matching(3), scores)
    total = found.entropy().sum() + found.log_prob(found.mode).sum() + found.variance.sum() + found.mean.square().sum()
    (slope,) = torch.autograd.grad(total, scores)
    assert torch.isfinite(slope).all() and (slope[0, 0, :2] == 0).all() and slope[1].abs().max() > 1e-3


@pytest.mark.parametrize("entry", [e for e in POLYTOPES if e.name in ("tree", "matching", "chain")], ids=repr)
def test_identities(entry):
    flat = scores_of("random", pairs_of(entry), 3)
    size = math.prod(entry.polytope.shape)
    scores = flat.requires_grad_()
    found = gibbs(entry, scores, temperature=0.7)
    (mean,) = torch.autograd.grad(found.log_partition.sum(), scores)
    assert_near(0.7 * mean[:, :size].reshape(found.mean.shape), found.mean.detach())
    assert_near(found.entropy(), (found.log_partition - (scores * mean).sum(1)).detach())
    assert_near(found.perplexity(), found.entropy().exp().detach())
    assert_near(found.stddev, found.variance.sqrt().detach())
    assert_near(kl_divergence(found, found), torch.zeros(3))


# Families and parameters


def test_families_are_padded_and_each_instance_is_that_of_its_size():
    family, sizes = ol.Family(polytopes.matching), torch.tensor([[3, 2], [0, 3]])
    scores = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    found = ol.Gibbs(family, scores, sizes=sizes, temperature=torch.tensor([0.5, 2.0]))
    drawn, best = found.sample((6,)), found.top_k(4)
    assert best.counts.tolist() == [[4, 2], [1, 4]] and (best.structures[1:, 1, 0] == 0).all()
    count = found.log_count().exp()
    assert_near(count, [[6.0, 2.0], [1.0, 6.0]])
    for index in ((0, 0), (0, 1), (1, 1)):
        n = int(sizes[index])
        alone = ol.Gibbs(polytopes.matching(n), scores[index][:n, :n], temperature=[0.5, 2.0][index[1]])
        assert_near(found.log_partition[index], alone.log_partition)
        assert_near(found.entropy()[index], alone.entropy())
        assert_near(found.mean[index][:n, :n], alone.mean)
        assert_near(found.variance[index][:n, :n], alone.variance)
        assert_near(found.log_prob(drawn)[:, *index], alone.log_prob(drawn[:, *index, :n, :n]))
        mine = best.log_prob[:, *index][: len(alone.top_k(4).log_prob)]
        assert_near(mine, alone.top_k(4).log_prob)
    assert (drawn[:, 1, 0] == 0).all() and (found.mean[1, 0] == 0).all() and (found.mean[0, 1, 2:] == 0).all()
    assert_near(found.entropy()[1, 0], 0.0)
    bad = drawn[0].clone()
    bad[0, 1, 3, 3] = 1.0
    with pytest.raises(ValueError, match=r"value at \[0, 1\], .* is no structure"):
        found.log_prob(bad)
    other = ol.Gibbs(family, torch.zeros(4, 4, dtype=torch.float64).expand(2, 2, 4, 4), sizes=sizes)
    assert_near(kl_divergence(found, other), other.log_count() - found.entropy().detach() + 0 * count)
    with pytest.raises(ValueError, match="between 1 and 6 structures"):
        found.enumerate_support()
    with pytest.raises(ValueError, match="different sizes or parameters"):
        found.cross_entropy(ol.Gibbs(family, scores, sizes=sizes.flip(0)))
    wide = found.expand((3, 2, 2))
    assert_near(wide.log_partition, found.log_partition.detach().expand(3, 2, 2))


def test_a_family_with_scored_auxiliaries():
    family = ol.Family(polytopes.linear_chain)
    unary, moves = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    found = ol.Gibbs(family, unary, sizes=[[2, 2], [3, 2]], transition=moves)
    drawn, auxiliaries = found.lifted_sample((5,))
    assert drawn.shape == (5, 2, 3, 2) and auxiliaries["transition"].shape == (5, 2, 3, 2, 2)
    alone = ol.Gibbs(polytopes.linear_chain(2, 2), unary[0, :2], transition=moves[0, :2])
    assert_near(found.log_prob(drawn)[:, 0], alone.log_prob(drawn[:, 0, :2]))
    assert_near(found.log_prob(drawn, **auxiliaries), found.log_prob(drawn))
    assert found.top_k(10).counts.tolist() == [4, 8]
    zero = ol.Gibbs(family, torch.zeros_like(unary), sizes=[[2, 2], [3, 2]], transition=torch.zeros_like(moves))
    assert_near(kl_divergence(found, zero), zero.log_count() - found.entropy())


def test_parameters_differ_from_instance_to_instance():
    scores, budget = torch.randn(2, 4, 5, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0, 5.0])
    found = ol.Gibbs(polytopes.subset(5), scores, budget=budget)
    assert_near(found.log_count().exp(), [[math.comb(5, int(b)) for b in budget]] * 2)
    assert (found.sample((3,)).sum(-1) == budget).all()
    assert found.top_k(12).counts.tolist() == [[5, 10, 10, 1]] * 2
    with pytest.raises(ValueError, match="no gradient for parameters, but budget requires one"):
        ol.Gibbs(polytopes.subset(5), scores, budget=budget.clone().requires_grad_())
    with pytest.raises(ValueError, match="different sizes or parameters"):
        found.cross_entropy(ol.Gibbs(found._source, scores, budget=3.0))
    assert found.expand((3, 2, 4)).log_count().shape == (3, 2, 4)


# A structure with several completions


def flags():
    """Two flags, and a switch that may be on where the first is: the switch has scores as well."""
    x, on = cp.Variable(2, nonneg=True, name="x"), cp.Variable(1, nonneg=True, name="on")
    return ol.Polytope(x, [x <= 1, on <= x[0]], scored=[on])


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("formula", [False, True])
def test_structures_without_their_auxiliary_values_are_sums_over_these(scale, formula):
    polytope = flags()
    if formula:

        def log_partition(s, on):
            first = ol.log_sum(torch.stack([torch.zeros_like(s[:, 0]), ol.log_add(s[:, 0], s[:, 0] + on[:, 0])], 1))
            return first + ol.log_add(torch.zeros_like(s[:, 1]), s[:, 1])

        x, on = polytope.variable, polytope.scored[0]
        polytope = ol.Polytope(x, polytope.constraints, scored=[on], log_partition=log_partition)
    pairs = [[a, b, c] for a in (0.0, 1.0) for b in (0.0, 1.0) for c in (0.0, 1.0) if c <= a]
    flat = scale * torch.randn(4, 3, dtype=torch.float64)
    scores, on = flat[:, :2].clone().requires_grad_(), flat[:, 2:].clone().requires_grad_()
    found = ol.Gibbs(polytope, scores, on=on, temperature=0.5)
    exact = [Exact(pairs, row, 0.5) for row in flat.tolist()]
    for x in ([0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]):
        value = torch.tensor(x)
        sums = []
        for one in exact:
            parts = [w for z, w in zip(one.structures, one.log_probs, strict=True) if z[:2] == x]
            sums.append(max(parts) + math.log(sum(math.exp(w - max(parts)) for w in parts)))
        assert_near(found.log_prob(value), sums, scale)
        together = torch.stack([found.log_prob(value, on=torch.tensor([c])) for c in (0.0, x[0])])
        expected = torch.logsumexp(together[: 1 + int(x[0])], 0)
        assert_near(found.log_prob(value), expected.detach(), scale)
        ours = torch.autograd.grad(found.log_prob(value).sum(), (scores, on))
        theirs = torch.autograd.grad(expected.sum(), (scores, on))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)
    with pytest.raises(ValueError, match="no structure"):
        found.log_prob(torch.tensor([0.0, 1.0]), on=torch.tensor([1.0]))
    loose = ol.Gibbs(polytope, scores, on=on, validate_args=False)
    odd = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    assert torch.isfinite(loose.log_prob(odd)).tolist() == [True, False, False, True]
    assert found.top_k(9).counts.tolist() == [6] * 4 and found.enumerate_support().shape == (4, 4, 2)
    with pytest.raises(TypeError, match=r"values of \['off'\] are given, but .* \['on'\]"):
        found.log_prob(torch.zeros(2), off=torch.zeros(1))


# Dtypes, shapes, modes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_have_the_dtype_of_the_scores_and_the_precision_of_float64(dtype):
    scores = torch.randn(2, 3, 3).to(dtype)
    scores[0, 0, 0] = torch.finfo(dtype).min  # a mask
    found = ol.Gibbs(polytopes.matching(3), scores, temperature=0.1)
    exact = ol.Gibbs(found._source, scores.double().masked_fill(scores < -1e4, -torch.inf), temperature=0.1)
    for what in ("log_partition", "mean", "variance", "mode"):
        value = getattr(found, what)
        assert value.dtype == dtype and torch.equal(value, getattr(exact, what).to(dtype))
    assert torch.equal(found.entropy(), exact.entropy().to(dtype))
    assert torch.equal(found.log_count(), exact.log_count().to(dtype)) and found.log_count()[0].exp().round() == 4
    drawn = found.sample((2,))
    assert drawn.dtype == dtype and torch.equal(found.log_prob(drawn), exact.log_prob(drawn).to(dtype))
    assert found.log_prob(drawn.int()).dtype == found.top_k(2).structures.dtype == dtype
    loose = ol.Gibbs(found._source, scores, validate_args=False)
    assert loose.log_prob(torch.eye(3))[0] == -torch.inf


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("polytope", [polytopes.matching(3), polytopes.arborescence(2)], ids=["matching", "tree"])
def test_any_batch(batch, polytope):
    scores = torch.randn(*batch, 3, 3, requires_grad=True)
    found = ol.Gibbs(polytope, scores)
    assert found.batch_shape == found.entropy().shape == found.log_count().shape == found.log_partition.shape == batch
    assert found.mean.shape == found.variance.shape == found.mode.shape == scores.shape
    assert found.sample((2, 4)).shape == (2, 4, *scores.shape) and found.sample().shape == scores.shape
    assert found.log_prob(found.sample((5,))).shape == (5, *batch)
    best = found.top_k(2)
    assert best.structures.shape[1:] == scores.shape and best.log_prob.shape[1:] == best.counts.shape == batch
    assert kl_divergence(found, found).shape == batch
    (found.entropy().sum() + found.mean.sum() + found.variance.sum() + best.log_prob.sum()).backward()
    assert scores.grad.shape == scores.shape
    every = found.enumerate_support()
    assert every.shape[1:] == scores.shape
    assert found.expand((4, *batch)).sample().shape == (4, *scores.shape)


def test_an_empty_batch_of_a_family():
    found = ol.Gibbs(ol.Family(polytopes.matching), torch.zeros(0, 3, 3), sizes=torch.zeros(0, dtype=torch.int64))
    assert found.entropy().shape == (0,) and found.sample((2,)).shape == (2, 0, 3, 3)
    assert found.top_k(2).log_prob.shape == (0, 0) and found.log_prob(torch.zeros(0, 3, 3)).shape == (0,)


def test_transforms():
    scores, value = torch.randn(4, 3, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    polytope = polytopes.matching(3)

    def numbers(s):
        found = ol.Gibbs(polytope, s, temperature=0.5)
        return found.entropy(), found.mean, found.log_partition, found.log_prob(value), found.variance

    whole, mapped = numbers(scores), torch.vmap(numbers)(scores)
    for one, other in zip(whole, mapped, strict=True):
        torch.testing.assert_close(one, other)
    slopes = torch.vmap(torch.func.grad(lambda s: ol.Gibbs(polytope, s).entropy()))(scores)
    leaf = scores.clone().requires_grad_()
    torch.testing.assert_close(slopes, torch.autograd.grad(ol.Gibbs(polytope, leaf).entropy().sum(), leaf)[0])
    hessian = torch.func.hessian(lambda s: ol.Gibbs(polytope, s).log_partition)(scores[0])
    torch.testing.assert_close(hessian.reshape(9, 9).diagonal().reshape(3, 3), ol.Gibbs(polytope, scores[0]).variance)
    jacobian = torch.func.jacfwd(lambda s: ol.Gibbs(polytope, s).mean)(scores[0])
    torch.testing.assert_close(jacobian, hessian)
    with pytest.raises(NotImplementedError, match=r"structures are numbers, and cannot be transformed by torch\.func"):
        torch.vmap(lambda s: ol.Gibbs(polytope, s).mode)(scores)


def test_modes_of_torch():
    scores = torch.randn(2, 3, 3, requires_grad=True)
    found = ol.Gibbs(polytopes.matching(3), scores)
    with torch.inference_mode():
        inside = ol.Gibbs(polytopes.matching(3), torch.tensor(scores.tolist()))
        for one in (found, inside):
            torch.testing.assert_close(one.mean, found.mean.detach())
            torch.testing.assert_close(one.variance, found.variance.detach())
            torch.testing.assert_close(one.entropy(), found.entropy().detach())
            assert one.sample((2,)).shape == (2, 2, 3, 3) and one.top_k(2).log_prob.shape == (2, 2)
    with torch.no_grad():
        assert not found.entropy().requires_grad and not found.variance.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found.mean, ol.Gibbs(polytopes.matching(3), scores).mean)
    found.log_prob(found.mode).sum().backward()
    found.log_prob(found.mode).sum().backward()  # no graph is kept from call to call
    for twin in (pickle.loads(pickle.dumps(ol.Gibbs(found._source, scores.detach()))), copy.deepcopy(inside)):
        torch.testing.assert_close(twin.entropy(), found.entropy().detach())


def test_compiled_models_meet_a_break_in_the_graph():
    polytope = polytopes.simplex(3)

    def model(s):
        found = ol.Gibbs(polytope, 2 * s)
        return found.entropy() + found.mean.sum(-1) + found.log_prob(found.mode) + found.top_k(2).log_prob.sum(0)

    scores = torch.randn(2, 3, requires_grad=True)
    both = (torch.compile(model, backend="eager"), model)
    (ours,), (theirs,) = (torch.autograd.grad(f(scores).sum(), scores) for f in both)
    torch.testing.assert_close(ours, theirs)


def test_code_that_knows_the_base_class_alone():
    scores = torch.randn(4, 3, dtype=torch.float64)
    found, known = ol.Gibbs(polytopes.simplex(3), scores), Categorical(logits=scores)
    assert isinstance(found, Distribution) and not found.has_rsample and found.has_enumerate_support
    assert_near(found.entropy(), known.entropy())
    other, theirs = ol.Gibbs(found._source, scores.flip(0)), Categorical(logits=scores.flip(0))
    assert_near(kl_divergence(found, other), kl_divergence(known, theirs))
    together = Independent(found, 1)
    assert together.batch_shape == () and together.event_shape == (4, 3)
    drawn = together.sample((5,))
    assert_near(together.log_prob(drawn), known.log_prob(drawn.argmax(-1)).sum(-1))
    assert together.log_prob(drawn).shape == (5,) and "Gibbs" in repr(found)
    assert found.expand((2, 4)).batch_shape == (2, 4)
    with pytest.raises(NotImplementedError):
        found.rsample()


def test_layers_have_distributions():
    layer = ol.OptLayer(polytopes.simplex(3), ol.Spigot(), on_failure="nan")
    scores = torch.tensor([[0.0, 1.0, 2.0], [-torch.inf] * 3])
    found = layer.distribution(scores, temperature=2.0)
    torch.testing.assert_close(found.mean[0], torch.softmax(scores[0] / 2.0, 0))
    assert found.mean[1].isnan().all()
    family = ol.OptLayer(ol.Family(polytopes.simplex), ol.Pipeline()).distribution(torch.zeros(2, 3), sizes=[2, 3])
    assert_near(family.entropy().double(), torch.log(torch.tensor([2.0, 3.0])).double(), 100)


# Bad input


def test_infeasible_instances():
    scores = torch.zeros(3, 3, requires_grad=True)
    with torch.no_grad():
        scores[1] = -torch.inf
        scores[2, :2] = -torch.inf
    polytope = polytopes.simplex(3)
    loud, quiet = ol.Gibbs(polytope, scores), ol.Gibbs(polytope, scores, on_failure="nan")
    for ask in (
        lambda d: d.mean, lambda d: d.mode, lambda d: d.entropy(), lambda d: d.variance, lambda d: d.log_partition,
        lambda d: d.sample((2,)), lambda d: d.top_k(2).structures, lambda d: d.log_prob(torch.eye(3)[2]),
        lambda d: kl_divergence(d, d), lambda d: d.top_k(2).log_prob,
    ):  # fmt: skip
        with pytest.raises(ol.SolveError, match=r"1 of 3 instances could not be solved\n  instance 1 is INFEASIBLE"):
            ask(loud)
        value = ask(quiet)
        shape = (value.shape[-1] == 3 and value.ndim > 1) or value.ndim == 1
        assert shape
        rows = value if value.shape[0] == 3 else value.movedim(1, 0)
        assert rows[1].isnan().all() and not rows[0].isnan().any() and not rows[2].isnan().any()
    assert loud.log_count().exp().tolist() == pytest.approx([3.0, 0.0, 1.0])
    assert quiet.top_k(2).counts.tolist() == [2, 0, 1]
    (slope,) = torch.autograd.grad(quiet.entropy().nansum() + quiet.mean.nansum(), scores)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ol.Gibbs(polytopes.simplex, torch.zeros(3)), TypeError, "takes a Polytope or a Family, but got func"),
        (lambda: gibbs3(temperature=0.0), ValueError, "temperature must be positive and finite, but got 0.0"),
        (lambda: gibbs3(temperature=-1), ValueError, "temperature must be positive and finite, but got -1.0"),
        (lambda: gibbs3(temperature=math.nan), ValueError, "must be positive and finite, but got nan"),
        (lambda: gibbs3(temperature=math.inf), ValueError, "must be positive and finite, but got inf"),
        (lambda: gibbs3(temperature=torch.tensor([1.0, 0.0])), ValueError, "but got 0.0, of instance 1; to make"),
        (lambda: gibbs3(temperature=torch.ones(3)), ValueError, r"has shape \(3,\), but the batch is \(2,\)"),
        (lambda: gibbs3(temperature="warm"), TypeError, "must be a number or a tensor, but got 'warm'"),
        (lambda: gibbs3(temperature=torch.tensor(1)), TypeError, "real and floating-point, but got torch.int64"),
        (lambda: gibbs3(on_failure="zero"), ValueError, 'on_failure is "raise" or "nan"'),
        (lambda: gibbs3(sizes=[3, 3]), TypeError, "sizes= is for layers over a Family"),
        (lambda: gibbs3(budget=1.0), TypeError, "unexpected"),
        (lambda: ol.Gibbs(polytopes.simplex(3), torch.zeros(2, 4)), ValueError, r"scores end in \(4,\) but"),
        (lambda: ol.Gibbs(polytopes.simplex(3), torch.full((3,), math.nan)), ValueError, "scores hold nan"),
        (lambda: ol.Gibbs(polytopes.simplex(3), torch.zeros(3).int()), TypeError, "must be real and floating-point"),
        (lambda: gibbs3().top_k(0), ValueError, "k must be at least 1, but got 0"),
        (lambda: gibbs3().top_k(2.0), TypeError, "k must be an int, but got 2.0"),
        (lambda: gibbs3().log_prob(torch.zeros(4)), ValueError, r"value has shape \(4,\), but structures .* \(3,\)"),
        (lambda: gibbs3().log_prob(torch.zeros(5, 3)), ValueError, r"give \(\*sample_shape, 2, 3\)"),
        (lambda: gibbs3().log_prob([1, 0, 0]), TypeError, "value must be a torch.Tensor, but got list"),
        (lambda: gibbs3(validate_args=True).log_prob(torch.zeros(3)), ValueError, r"\[0\], .* is no structure"),
        (lambda: gibbs3().log_prob(torch.eye(3)[0], on=torch.zeros(1)), TypeError, "values of .'on'. are given"),
        (lambda: gibbs3().cross_entropy(Categorical(torch.ones(3))), TypeError, "Gibbs distribution, but got Categ"),
        (lambda: gibbs3().sample((2,), generator=3), TypeError, "generator must be a torch.Generator or None"),
        (lambda: kl_divergence(gibbs3(), ol.Gibbs(polytopes.simplex(3), torch.zeros(3))), ValueError, "different"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def gibbs3(**options):
    return ol.Gibbs(polytopes.simplex(3), torch.zeros(2, 3), **options)


def test_values_that_are_no_structures_have_minus_infinity_without_validation():
    scores = torch.tensor([[0.0, -torch.inf, 1.0]] * 2)
    found = ol.Gibbs(polytopes.simplex(3), scores, validate_args=False)
    values = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0, 0.5], [math.nan, 0, 0], [2.0, 0, -1.0], [0, 0, 1.0]])
    assert torch.isfinite(found.log_prob(values[:, None])).tolist() == [[x] * 2 for x in (1, 0, 0, 0, 0, 1)]
    assert found.support.check(values[:, None])[:, 0].tolist() == [True, False, False, False, False, True]
