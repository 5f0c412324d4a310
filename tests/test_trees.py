"""Trees: oracles and sums over all trees against enumeration, and against each other where there are too many."""

from __future__ import annotations

import itertools
import math
from functools import cache, partial

import catalogue
import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

import optlayers as ol
import polytopes
from optlayers.sums import logspace
from polytopes import _matrix_tree, arborescence, projective_tree

ENUMERATE = {"arborescence": catalogue.trees, "projective_tree": catalogue.projective_trees}
KINDS = [(name, single_root) for name in ENUMERATE for single_root in (True, False)]
each_kind = pytest.mark.parametrize(("name", "single_root"), KINDS, ids=[f"{n}, {s}" for n, s in KINDS])
each_root = pytest.mark.parametrize("single_root", [True, False], ids=["single root", "many roots"])


@cache
def all_trees(name: str, words: int, single_root: bool) -> np.ndarray:
    return np.stack(list(ENUMERATE[name](words, single_root)))


def declared(name: str, words: int, single_root: bool) -> ol.Polytope:
    return getattr(polytopes, name)(words, single_root=single_root)


def values_of(trees: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """``<scores, tree>`` by a sum of the arcs that are there, so that -inf is not multiplied by 0."""
    return np.where(trees > 0, scores, 0.0).sum((1, 2))


DRAWS = {
    "random": lambda rng, shape: rng.standard_normal(shape),
    "integers": lambda rng, shape: rng.standard_normal(shape).round(),
    "all equal": lambda rng, shape: np.full(shape, rng.standard_normal()),
    "large": lambda rng, shape: 1e6 * rng.standard_normal(shape),
    "small": lambda rng, shape: 1e-6 * rng.standard_normal(shape),
    "huge": lambda rng, shape: 1e300 * rng.standard_normal(shape),
    "tiny": lambda rng, shape: 1e-300 * rng.standard_normal(shape),
    "huge root": lambda rng, shape: rng.standard_normal(shape) + 1e12 * (np.arange(shape[0]) == 0)[:, None],
    "some forbidden": lambda rng, shape: np.where(rng.random(shape) < 0.35, -np.inf, rng.standard_normal(shape)),
    "most forbidden": lambda rng, shape: np.where(rng.random(shape) < 0.7, -np.inf, rng.standard_normal(shape)),
}


@pytest.mark.many(27)
@each_kind
@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_oracle_finds_a_best_tree(name, single_root, draw, words):
    rng = np.random.default_rng(words)
    trees, oracle = all_trees(name, words, single_root), declared(name, words, single_root).oracle
    for _ in range(60):
        scores = draw(rng, (words + 1, words + 1))
        scores[:, 0], scores[np.diag_indices(words + 1)] = rng.standard_normal((2, words + 1)) * 1e3
        kept = scores.copy()
        found = oracle(scores)
        assert found.dtype == np.float64 and found.flags.c_contiguous
        np.testing.assert_array_equal(scores, kept)
        values = values_of(trees, scores)
        if values.max() == -np.inf:
            assert np.isnan(found).all()
            continue
        assert (trees == found).all((1, 2)).any()
        size = np.abs(np.where(trees[values.argmax()] > 0, scores, 0.0)).max()
        assert values_of(found[None], scores)[0] >= values.max() - 1e-14 * size
        np.testing.assert_array_equal(oracle(scores), found)


def test_ties_are_decided_the_same_way_every_time():
    zeros = np.zeros((4, 4))
    heads = {key: declared(*key).oracle(zeros).argmax(0)[1:].tolist() for key in [(n, 3, s) for n, s in KINDS]}
    assert heads == {
        ("arborescence", 3, True): [0, 1, 1],
        ("arborescence", 3, False): [0, 0, 0],
        ("projective_tree", 3, True): [0, 1, 2],
        ("projective_tree", 3, False): [0, 1, 2],
    }


def networkx_value(scores: np.ndarray) -> float:
    graph = nx.DiGraph()
    for h, m in itertools.permutations(range(len(scores)), 2):
        if m and np.isfinite(scores[h, m]):
            graph.add_edge(h, m, weight=scores[h, m])
    try:
        best = nx.maximum_spanning_arborescence(graph)
    except nx.NetworkXException:
        return -np.inf
    return sum(scores[h, m] for h, m in best.edges) if len(best) == len(scores) else -np.inf


def only_root(scores: np.ndarray, root: int) -> np.ndarray:
    only = scores.copy()
    only[0, np.arange(len(scores)) != root] = -np.inf
    return only


@each_root
@pytest.mark.parametrize(("words", "forbidden"), [(7, 0.0), (10, 0.6), (15, 0.0), (15, 0.85)])
def test_larger_trees_against_networkx(single_root, words, forbidden):
    rng = np.random.default_rng(words)
    oracle = arborescence(words, single_root=single_root).oracle
    for _ in range(4):
        scores = rng.standard_normal((words + 1, words + 1))
        scores[rng.random(scores.shape) < forbidden] = -np.inf
        choices = [only_root(scores, r) for r in range(1, words + 1)] if single_root else [scores]
        expected = max(map(networkx_value, choices))
        found = oracle(scores)
        if expected == -np.inf:
            assert np.isnan(found).all()
        else:
            assert values_of(found[None], scores)[0] == pytest.approx(expected, abs=1e-10)
            assert not single_root or found[0].sum() == 1


@each_root
def test_a_projective_tree_is_best_when_the_best_tree_is_one(single_root):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        near = -np.abs(np.subtract.outer(np.arange(9), np.arange(9)))  # long arcs are bad
        scores = near + 0.5 * rng.standard_normal((9, 9))
        tree = arborescence(8, single_root=single_root).oracle(scores)
        spans = [sorted(arc) for arc in np.argwhere(tree).tolist()]
        if not any(a < c < b < d for (a, b), (c, d) in itertools.permutations(spans, 2)):
            found += 1
            np.testing.assert_array_equal(projective_tree(8, single_root=single_root).oracle(scores), tree)
    assert found > 100


def enumerated(trees: np.ndarray, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Log sums and marginals of a batch; marginals are NaN where there is no tree."""
    there = torch.from_numpy(trees)
    values = torch.where(there > 0, scores[:, None], 0.0).sum((2, 3))
    return values.logsumexp(1), torch.einsum("bt,tij->bij", values.softmax(1), there)


def in_log_domain(scores: Tensor, single_root: bool) -> Tensor:
    return _matrix_tree._in_log_domain(_matrix_tree._arcs(scores), single_root)


def by_factors(scores: Tensor, single_root: bool) -> Tensor:
    """What runs on accelerators, on the CPU."""
    value, _, trusted = _matrix_tree._Factored.apply(_matrix_tree._arcs(scores), single_root)
    return value.where(trusted, torch.nan)


def sums(name: str, single_root: bool):
    """The ways to sum, by name."""
    ways = {"log_partition": declared(name, 2, single_root).log_partition}
    if name == "arborescence":
        ways |= {way.__name__: partial(way, single_root=single_root) for way in (in_log_domain, by_factors)}
    return ways


WAYS = [(name, single_root, way) for name, single_root in KINDS for way in sums(name, single_root)]
each_way = pytest.mark.parametrize(
    ("name", "single_root", "way"), WAYS, ids=[f"{n}, {'one' if s else 'many'}, {w}" for n, s, w in WAYS]
)


@pytest.mark.many(48)
@each_way
@pytest.mark.parametrize("words", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("forbidden", [0.0, 0.3, 0.6])
def test_sums_and_derivatives_against_enumeration(name, single_root, way, words, scale, forbidden):
    generator = torch.Generator().manual_seed(words)
    shape = (60, words + 1, words + 1)
    scores = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    scores[torch.rand(shape, generator=generator) < forbidden] = -torch.inf
    expected, expected_marginals = enumerated(all_trees(name, words, single_root), scores)
    scores.requires_grad_()
    value = sums(name, single_root)[way](scores)
    trusted = ~value.isnan()
    assert way == "by_factors" or trusted.all()
    there = trusted & (expected > -torch.inf)
    torch.testing.assert_close(value[trusted], expected[trusted], rtol=1e-10, atol=1e-10)
    (marginals,) = torch.autograd.grad(value[trusted].sum(), scores, create_graph=True)
    torch.testing.assert_close(marginals[there], expected_marginals[there], rtol=0, atol=1e-9)
    assert (marginals[~there] == 0).all()
    assert (marginals[scores == -torch.inf] == 0).all()
    assert (marginals[:, :, 0] == 0).all() and (marginals.diagonal(0, 1, 2) == 0).all()
    ones = torch.ones(int(there.sum()), words, dtype=torch.float64)
    torch.testing.assert_close(marginals[there].sum(1)[:, 1:], ones, rtol=0, atol=1e-9)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    (turned,) = torch.autograd.grad((marginals * direction).sum(), scores)
    assert turned.isfinite().all()
    assert (turned[scores == -torch.inf] == 0).all()


@pytest.mark.many(3)
@each_way
@pytest.mark.parametrize("words", [1, 3])
def test_derivatives_by_finite_differences(name, single_root, way, words):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, words + 1, words + 1, generator=generator, dtype=torch.float64, requires_grad=True)
    summed = sums(name, single_root)[way]
    assert torch.autograd.gradcheck(summed, (scores,))
    assert torch.autograd.gradgradcheck(summed, (scores,))


@each_root
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("words", [10, 20])
def test_ways_to_sum_agree_where_trees_are_too_many(single_root, words, scale):
    generator = torch.Generator().manual_seed(words)
    scores = scale * torch.randn(8, words + 1, words + 1, generator=generator, dtype=torch.float64)
    direction = torch.randn(scores.shape, generator=generator, dtype=torch.float64)

    def derivatives(summed) -> list[Tensor]:
        leaf = scores.clone().requires_grad_()
        value = summed(leaf)
        (marginals,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (turned,) = torch.autograd.grad((marginals * direction).sum(), leaf)
        return [value.detach(), marginals.detach(), turned]

    ways = {way: derivatives(summed) for way, summed in sums("arborescence", single_root).items()}
    trusted = ~ways["by_factors"][0].isnan()
    assert trusted.all() or scale > 1
    for part in range(3):
        found, expected, factored = (ways[way][part] for way in ("log_partition", "in_log_domain", "by_factors"))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(factored[trusted], expected[trusted], rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("words", [1, 2, 5, 12])
def test_as_many_trees_as_known(words):
    counts = {
        ("arborescence", True): words ** (words - 1),  # Cayley
        ("arborescence", False): (words + 1) ** (words - 1),
        ("projective_tree", True): math.comb(3 * words - 2, words - 1) // words,
        ("projective_tree", False): math.comb(3 * words, words) // (2 * words + 1),
    }
    for (name, single_root), count in counts.items():
        value = declared(name, words, single_root).log_partition(torch.zeros(words + 1, words + 1, dtype=torch.float64))
        assert value.shape == ()
        assert float(value) == pytest.approx(math.log(count), abs=1e-12)


@each_kind
def test_sums_keep_shape_and_dtype(name, single_root):
    log_partition = declared(name, 3, single_root).log_partition
    scores = torch.randn(2, 0, 4, 4)
    assert log_partition(scores).shape == (2, 0)
    scores = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = log_partition(scores)
    assert value.dtype == torch.float32 and value.shape == (2, 3)
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(value.double(), log_partition(scores.double()), atol=1e-6, rtol=1e-6)
    strided = scores.detach().mT.contiguous().mT
    torch.testing.assert_close(log_partition(strided), value)


@each_kind
def test_one_instance_without_a_tree_leaves_the_others_alone(name, single_root):
    log_partition = declared(name, 3, single_root).log_partition
    scores = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = scores[::2].clone().requires_grad_()
    scores[1, :, 2] = -torch.inf
    scores.requires_grad_()
    value, expected = log_partition(scores), log_partition(alone)
    assert value[1] == -torch.inf
    (gradient,) = torch.autograd.grad(value[[0, 2]].sum(), scores, create_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), alone, create_graph=True)
    torch.testing.assert_close(gradient[::2], expected_gradient)
    second, expected_second = (
        torch.autograd.grad(g.square().sum(), s)[0] for g, s in ((gradient, scores), (expected_gradient, alone))
    )
    torch.testing.assert_close(second[::2], expected_second)
    assert (gradient[1] == 0).all() and (second[1] == 0).all()


@pytest.mark.parametrize("single_root", [True, False])
def test_third_derivatives_are_those_of_a_sum_over_all_trees(single_root):
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    all_of_them = torch.from_numpy(all_trees("arborescence", 3, single_root)).reshape(-1, 16)
    found = []
    for total in (
        arborescence(3, single_root=single_root).log_partition(scores),
        torch.logsumexp(all_of_them @ scores.flatten(), 0),
    ):
        (first,) = torch.autograd.grad(total, scores, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), scores, create_graph=True)
        found.append(torch.autograd.grad(second.square().sum(), scores)[0])
    assert found[1].abs().max() > 1e-2
    torch.testing.assert_close(*found)


def test_words_that_only_the_root_can_head():
    """With one the sum is over trees below it; with two there is no tree of a single root."""
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for word in range(1, 6):
        forced = scores.clone()
        forced[1:, word] = -torch.inf
        expected, _ = enumerated(all_trees("arborescence", 5, True), forced[None])
        torch.testing.assert_close(arborescence(5).log_partition(forced), expected[0])
    forced[1:, 2] = -torch.inf
    assert arborescence(5).log_partition(forced) == -torch.inf
    assert np.isnan(arborescence(5).oracle(forced.numpy())).all()
    assert arborescence(5, single_root=False).log_partition(forced).isfinite()


def test_declaring_long_sentences_builds_no_constraint(monkeypatch):
    built = []
    for name in ("arborescence", "projective_tree"):
        module = __import__(f"polytopes.{name}", fromlist=["_constraints"])
        monkeypatch.setattr(module, "_constraints", lambda *args: built.append(args) or [])
        declared(name, 60, True)
        assert not built


@pytest.mark.parametrize("dim", [0, 1])
def test_log_sums_of_forbidden_terms_have_derivatives(dim):
    terms = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradgradcheck(partial(logspace.log_sum, dim=dim), (terms.clone().requires_grad_(),))
    terms[0] = terms[:, 0] = -torch.inf
    terms.requires_grad_()
    total = logspace.log_sum(terms, dim)
    torch.testing.assert_close(total, terms.logsumexp(dim))
    (shares,) = torch.autograd.grad(total.sum(), terms, create_graph=True)
    torch.testing.assert_close(shares, terms.softmax(dim).nan_to_num(0.0))
    (second,) = torch.autograd.grad(shares.square().sum(), terms)
    assert second.isfinite().all() and second[1:, 1:].ne(0).any()


def test_log_additions_of_forbidden_terms_have_derivatives():
    a = torch.randn(4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    b = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(logspace.log_add, (a, b))
    assert torch.autograd.gradgradcheck(logspace.log_add, (a, b))
    a, b = (torch.full((2,), -torch.inf, dtype=torch.float64, requires_grad=True) for _ in range(2))
    total = logspace.log_add(a, b)
    assert (total == -torch.inf).all()
    gradients = torch.autograd.grad(total.sum(), (a, b), create_graph=True)
    assert all((g == 0).all() for g in gradients)
    assert all((g == 0).all() for g in torch.autograd.grad(sum(g.square().sum() for g in gradients), (a, b)))


def test_labelled_trees_by_the_best_and_the_sum_over_labels():
    """The recipe of the README, against all trees with all labels."""
    words, labels = 3, 2
    scores = torch.randn(words + 1, words + 1, labels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[0, 1, 0] = scores[2, 3] = -torch.inf
    every = []
    for tree in all_trees("arborescence", words, True):
        arcs = np.argwhere(tree).tolist()
        for chosen in itertools.product(range(labels), repeat=words):
            every.append([(i, j, label) for (i, j), label in zip(arcs, chosen, strict=True)])
    gains = torch.stack([torch.stack([scores[arc] for arc in one]).sum() for one in every])
    leaf = scores.clone().requires_grad_()
    found = ol.Gibbs(arborescence(words), ol.log_sum(leaf, dim=-1))
    torch.testing.assert_close(found.log_partition, torch.logsumexp(gains, 0))
    expected = torch.zeros_like(scores)
    for one, share in zip(every, torch.softmax(gains, 0), strict=True):
        for arc in one:
            expected[arc] += share
    torch.testing.assert_close(torch.autograd.grad(found.log_partition, leaf)[0], expected)
    torch.testing.assert_close(found.mean.detach().unsqueeze(-1) * scores.softmax(-1).nan_to_num(), expected)
    best = ol.OptLayer(arborescence(words), ol.Pipeline())(scores.amax(-1))
    labelled = [(i, j, int(scores[i, j].argmax())) for i, j in torch.nonzero(best).tolist()]
    assert sorted(labelled) == sorted(every[int(gains.argmax())])
