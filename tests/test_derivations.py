"""What is derived step by step, and other structures of the same sizes: oracles, sums, memberships, recipes."""

from __future__ import annotations

import itertools
import math
from importlib import import_module

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE, Entry, b_matchings, other_sizes
from torch import Tensor

import optlayers as ol
import polytopes
from optlayers.testing import check_polytope
from polytopes import (
    b_matching,
    constituency_tree,
    ctc_alignment,
    dag_path,
    monotone_alignment,
    noncrossing_matching,
    semi_markov,
    spanning_tree,
)

DECLARED = (semi_markov, monotone_alignment, ctc_alignment, constituency_tree, noncrossing_matching, spanning_tree)
ENTRIES = [e for e in [*CATALOGUE, *other_sizes()] if e.declare in (*DECLARED, dag_path)]
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=repr)


DRAWS = {
    "random": lambda rng, shape: rng.standard_normal(shape),
    "integers": lambda rng, shape: rng.standard_normal(shape).round(),
    "negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)),
    "large": lambda rng, shape: 1e4 * rng.standard_normal(shape),
    "some forbidden": lambda rng, shape: np.where(rng.random(shape) < 0.25, -np.inf, rng.standard_normal(shape)),
    "most forbidden": lambda rng, shape: np.where(rng.random(shape) < 0.6, -np.inf, rng.standard_normal(shape).round()),
    "large, some forbidden": lambda rng, shape: np.where(
        rng.random(shape) < 0.25, -np.inf, 1e4 * rng.standard_normal(shape)
    ),
}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))


def values_of(entry: Entry, scores: np.ndarray) -> np.ndarray:
    """``<scores, structure>`` by a sum of the parts that are there, so that -inf is not multiplied by 0."""
    return np.where(entry.vertices > 0, scores, 0.0).reshape(len(entry.vertices), -1).sum(1)


@pytest.mark.many(40)
@each_entry
@each_draw
def test_oracle_finds_a_best_structure(entry, draw):
    rng = np.random.default_rng(0)
    every = {v.tobytes() for v in entry.vertices}
    for _ in range(200):
        scores = draw(rng, entry.polytope.shape)
        kept = scores.copy()
        found, values = entry.polytope.oracle(scores), values_of(entry, scores)
        np.testing.assert_array_equal(scores, kept)
        if values.max() == -np.inf:
            assert np.isnan(found).all() and found.shape == scores.shape
            continue
        assert found.tobytes() in every
        size = np.abs(scores[np.isfinite(scores)]).max(initial=0.0)
        assert np.where(found > 0, scores, 0.0).sum() >= values.max() - 1e-13 * size
        np.testing.assert_array_equal(entry.polytope.oracle(scores), found)


def derivatives(log_partition, scores: Tensor, *directions: Tensor) -> list[Tensor]:
    """The value, the marginals, and these once and twice differentiated along directions."""
    leaf = scores.clone().requires_grad_()
    value = log_partition(leaf)
    found = [value.detach()]
    (last,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    found.append(last.detach())
    for direction in directions:
        if not last.requires_grad:  # no score moves the marginals of a single structure
            found.append(torch.zeros_like(scores))
            continue
        (last,) = torch.autograd.grad((last * direction).sum(), leaf, create_graph=True)
        found.append(last.detach())
    return found


def enumerated(entry: Entry, scores: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
    """Those by sums over all structures: mean, and central moments of second and third order. 0 where there is none."""
    there = torch.from_numpy(entry.vertices).reshape(len(entry.vertices), -1)
    flat = scores.flatten(1)
    value = torch.where(there > 0, flat[:, None], 0.0).sum(2)
    total = value.logsumexp(1)
    share = value.softmax(1).nan_to_num()
    mean = share @ there
    one, other = (d.flatten(1) @ there.T for d in (first, second))
    one, other = (d - (share * d).sum(1, keepdim=True) for d in (one, other))
    third = share * one * other
    third = third @ there - third.sum(1, keepdim=True) * mean
    return [total, *(m.reshape(scores.shape) for m in (mean, (share * one) @ there, third))]


@pytest.mark.many(40)
@each_entry
@each_draw
def test_sums_and_three_derivatives_against_enumeration(entry, draw):
    rng = np.random.default_rng(1)
    scores, first, second = (
        torch.from_numpy(np.stack([d(rng, entry.polytope.shape) for _ in range(20)]))
        for d in (draw, DRAWS["random"], DRAWS["random"])
    )
    expected = enumerated(entry, scores, first, second)
    for found, right in zip(derivatives(entry.polytope.log_partition, scores, first, second), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-9)


@pytest.mark.many(10)
@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.declare is not spanning_tree], ids=repr)
@pytest.mark.parametrize("draw", ["large", "some forbidden"])
def test_sums_on_accelerators_are_those_on_the_cpu(entry, draw):
    rng = np.random.default_rng(2)
    scores = torch.from_numpy(np.stack([DRAWS[draw](rng, entry.polytope.shape) for _ in range(8)]))
    first, second = torch.randn(2, *scores.shape, dtype=torch.float64)
    steps = entry.polytope.log_partition.func.__self__
    expected = derivatives(entry.polytope.log_partition, scores, first, second)
    found = derivatives(lambda s: steps.by_levels(s.flatten(1)), scores, first, second)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("declare", [lambda: monotone_alignment(9, 7), lambda: noncrossing_matching(9)])
def test_larger_sums_on_accelerators(declare):
    polytope = declare()
    scores = torch.randn(3, *polytope.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = polytope.log_partition.func.__self__
    found = derivatives(lambda s: steps.by_levels(s.flatten(1)), scores, scores.sin())
    for one, other in zip(found, derivatives(polytope.log_partition, scores, scores.sin()), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("declare", DECLARED)
def test_sums_keep_shape_and_dtype(declare):
    entry = next(e for e in ENTRIES if e.declare is declare)
    log_partition, shape = entry.polytope.log_partition, entry.polytope.shape
    assert log_partition(torch.zeros(2, 0, *shape)).shape == (2, 0)
    scores = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = log_partition(scores)
    assert value.dtype == torch.float32 and value.shape == (2, 3)
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert gradient.dtype == torch.float32 and gradient.shape == scores.shape
    torch.testing.assert_close(value.double(), log_partition(scores.double()), atol=1e-6, rtol=1e-6)
    assert log_partition(scores[0, 0]).shape == ()
    strided = scores.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(log_partition(strided), value)


MEMBERS = [e for e in ENTRIES if e.polytope.membership is not None]


@pytest.mark.parametrize("entry", MEMBERS, ids=repr)
def test_membership_functions_know_the_structures(entry):
    """Among all arrays of 0 and 1 in which parts that are never used are 0, or many of them."""
    rng = np.random.default_rng(0)
    flat = entry.vertices.reshape(len(entry.vertices), -1)
    every, used = {v.tobytes() for v in flat}, np.flatnonzero(flat.any(0))
    if len(used) <= 10:
        arrays = list(itertools.product((0.0, 1.0), repeat=len(used)))
    else:
        near = flat[rng.integers(len(flat), size=1500)][:, used]
        changed = np.where(rng.random(near.shape) < 2 / len(used), 1.0 - near, near)
        arrays = [*changed, *(rng.random((500, len(used))) < 0.3).astype(float)]
    for array in arrays:
        x = np.zeros(flat.shape[1])
        x[used] = array
        assert (entry.polytope.membership(x.reshape(entry.polytope.shape)) == 0) == (x.tobytes() in every)
    if len(used):
        twice = flat[flat.any(1)][0] * 2
        assert entry.polytope.membership(twice.reshape(entry.polytope.shape)) > 0


def log_count(polytope: ol.Polytope) -> float:
    return float(polytope.log_partition(torch.zeros(polytope.shape, dtype=torch.float64)))


def test_as_many_structures_as_known():
    """Central Delannoy numbers, Catalan, Motzkin and Cayley's."""
    assert log_count(monotone_alignment(11, 11)) == pytest.approx(math.log(8097453))
    assert log_count(constituency_tree(21)) == pytest.approx(math.log(6564120420))
    assert log_count(noncrossing_matching(20)) == pytest.approx(math.log(50852019))
    assert log_count(noncrossing_matching(20, gap=2)) == pytest.approx(math.log(2516347))
    assert log_count(noncrossing_matching(40, perfect=True)) == pytest.approx(math.log(6564120420))
    assert log_count(spanning_tree(20)) == pytest.approx(18 * math.log(20))
    assert log_count(ctc_alignment(21, 11)) == pytest.approx(math.log(math.comb(20, 10)))
    assert log_count(semi_markov(30, 1, 2)) == pytest.approx(math.log(1346269))  # Fibonacci


def test_documented_ties():
    def parts(polytope: ol.Polytope) -> list[list[int]]:
        return np.argwhere(polytope.oracle(np.zeros(polytope.shape))).tolist()

    assert parts(semi_markov(5, 2, 2)) == [[0, 0, 0], [1, 1, 0], [3, 1, 0]]
    assert parts(monotone_alignment(2, 4)) == [[0, 0, 1], [0, 1, 0], [0, 2, 0], [1, 3, 1]]
    assert parts(monotone_alignment(3, 3, local=True)) == []
    assert parts(ctc_alignment(4, 2)) == [[0, 0, 1], [1, 1, 1], [2, 1, 0], [3, 1, 0]]
    assert parts(ctc_alignment(2, 4, skips=True)) == [[0, 1, 2], [1, 3, 2]]
    assert parts(constituency_tree(4)) == [[0, 3], [1, 3], [2, 3]]
    assert parts(noncrossing_matching(4)) == []
    assert parts(noncrossing_matching(4, perfect=True)) == [[0, 1], [2, 3]]
    assert parts(spanning_tree(4)) == [[0, 1], [0, 2], [0, 3]]
    local = np.full((3, 3, 3), -1.0)
    local[0, 1, 1] = local[2, 0, 1] = 1.0
    local[1, 2, 1] = 0.0
    assert np.argwhere(monotone_alignment(3, 3, local=True).oracle(local)).tolist() == [[0, 1, 1]]


def test_declaring_large_structures_builds_no_constraint(monkeypatch):
    built = []
    monkeypatch.setattr("polytopes._derivations.Derivations.constraints", lambda *args: built.append(args) or [])
    module = import_module("polytopes.spanning_tree")
    monkeypatch.setattr(module, "_constraints", lambda *args: built.append(args) or [])
    for polytope in (constituency_tree(40), noncrossing_matching(40), spanning_tree(40), semi_markov(40, 3, 5)):
        assert "when asked for" in repr(polytope) and not built


# What docstrings advise


@pytest.mark.parametrize("target", [[1, 2, 3], [1, 1, 2], [2, 2, 2, 2], [3]])
def test_with_skips_the_log_partition_is_the_likelihood_of_ctc(target):
    generator = torch.Generator().manual_seed(len(target))
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    log_probabilities = logits.log_softmax(-1)
    labels = [0]
    for label in target:
        labels += [label, 0]
    scores = log_probabilities[:, labels, None].expand(9, len(labels), 3).clone()
    for j, label in enumerate(labels):
        if label == 0 or (j > 1 and labels[j - 2] == label):
            scores[:, j, 2] = -torch.inf
    value = ctc_alignment(9, len(labels), skips=True).log_partition(scores)
    expected = -torch.nn.functional.ctc_loss(
        log_probabilities[:, None], torch.tensor([target]), [9], [len(target)], reduction="sum"
    )
    torch.testing.assert_close(value, expected)
    (found,) = torch.autograd.grad(value, logits, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, logits)[0])


def edit_distance(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        edit_distance(one[1:], other) + 1,
        edit_distance(one, other[1:]) + 1,
        edit_distance(one[1:], other[1:]) + (one[0] != other[0]),
    )


@pytest.mark.parametrize(("one", "other"), [("kitten", "sitting"), ("flaw", "lawn"), ("", "ab"), ("abc", "")])
def test_the_best_global_alignment_is_an_edit_distance(one, other):
    costs = np.ones((len(one) + 1, len(other) + 1, 3))
    costs[0, 0, 1] = 0.0
    for i, j in itertools.product(range(len(one)), range(len(other))):
        costs[i + 1, j + 1, 1] = one[i] != other[j]
    path = monotone_alignment(len(one) + 1, len(other) + 1).oracle(-costs)
    assert (path * costs).sum() == edit_distance(one, other)


def test_labels_of_constituents():
    scores = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    values = [
        sum(scores[i, j, y] for (i, j), y in zip(spans, labels, strict=True))
        for spans in ([(0, 2), (0, 1)], [(0, 2), (1, 2)])
        for labels in itertools.product(range(2), repeat=2)
    ]
    total = torch.stack(values).logsumexp(0)
    value = constituency_tree(3).log_partition(scores.logsumexp(-1))
    torch.testing.assert_close(value, total)
    marginals = ol.OptLayer(constituency_tree(3), ol.StructuredAttention())(scores.logsumexp(-1))
    torch.testing.assert_close(marginals[..., None] * scores.softmax(-1), torch.autograd.grad(total, scores)[0])
    best = constituency_tree(3).oracle(scores.detach().amax(-1).numpy())
    assert (best * scores.detach().amax(-1).numpy()).sum() == pytest.approx(max(float(v.detach()) for v in values))


# Arguments


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: semi_markov(3, 0, 2), "labels must be at least 1, but got 0"),
        (lambda: monotone_alignment(0, 2), "rows must be at least 1, but got 0"),
        (lambda: ctc_alignment(3, 4), "positions must be at most 3 for steps=3 and skips=False, but got 4"),
        (lambda: ctc_alignment(3, 8, skips=True), "positions must be at most 7 for steps=3 and skips=True, but got 8"),
        (lambda: constituency_tree(0), "words must be at least 1, but got 0"),
        (lambda: noncrossing_matching(4, gap=0), "gap must be at least 1, but got 0"),
        (lambda: noncrossing_matching(3, perfect=True), "size must be even for perfect matchings, but got 3"),
        (lambda: noncrossing_matching(4, gap=2, perfect=True), "has pairs of neighbours, which gap=2 forbids"),
        (lambda: spanning_tree(0), "nodes must be at least 1, but got 0"),
        (lambda: b_matching(2, 3, row_capacity=[1, 1, 1]), r"row_capacity has shape \(3,\), .* or have shape \(2,\)"),
        (lambda: b_matching(2, 3, column_capacity=0.5), "column_capacity must be integers of at least 0, but got 0.5"),
        (lambda: b_matching(2, 3, row_capacity=-1), "row_capacity must be integers of at least 0, but got -1"),
        (lambda: b_matching(2, 3, row_capacity=cp.Parameter(3, name="a")), r"row_capacity has shape \(3,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(declare, message):
    with pytest.raises(ValueError, match=message):
        declare()


def test_families():
    for declare, size, shape in (
        (semi_markov, (4, 2, 9), (4, 9, 2)),
        (monotone_alignment, (3, 4), (3, 4, 3)),
        (ctc_alignment, (5, 3), (5, 3, 2)),
        (constituency_tree, (4,), (4, 4)),
        (noncrossing_matching, (5,), (5, 5)),
        (spanning_tree, (4,), (4, 4)),
        (b_matching, (2, 3), (2, 3)),
    ):
        assert ol.Family(declare)(*size).shape == shape
    layer = ol.OptLayer(ol.Family(constituency_tree), ol.StructuredAttention())
    scores = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = layer(scores, sizes=[5, 3])
    alone = ol.OptLayer(constituency_tree(3), ol.StructuredAttention())(scores[1, :3, :3])
    torch.testing.assert_close(found[1, :3, :3], alone)
    torch.testing.assert_close(found.sum((1, 2)), torch.tensor([4.0, 2.0], dtype=torch.float64))


# Capacities


def test_b_matchings_with_numbers():
    check_polytope(b_matching(3, 2, row_capacity=[1, 2, 0], column_capacity=2), integral=True)
    scores = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = ol.OptLayer(b_matching(3, 2), ol.Pipeline())(scores)
    torch.testing.assert_close(one, ol.OptLayer(polytopes.partial_matching(3, 2), ol.Pipeline())(scores))


def test_b_matchings_with_capacities_for_each_instance():
    rows, columns = cp.Parameter(3, name="rows", nonneg=True), cp.Parameter(name="columns", nonneg=True)
    polytope = b_matching(3, 2, row_capacity=rows, column_capacity=columns)
    layer, best = ol.OptLayer(polytope, ol.SparseMAP()), ol.OptLayer(polytope, ol.Pipeline())
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(30, 3, 2, generator=generator, dtype=torch.float64)
    of_rows = torch.randint(0, 3, (30, 3), generator=generator).double()
    of_columns = torch.randint(0, 4, (30,), generator=generator).double()
    found = best(scores, rows=of_rows, columns=of_columns)
    for k in range(30):
        every = np.stack(list(b_matchings(of_rows[k].numpy(), of_columns[k].expand(2).numpy())))
        expected = every[(every * scores[k].numpy()).sum((1, 2)).argmax()]
        np.testing.assert_allclose(found[k].numpy(), expected, atol=1e-9)
    near = layer(scores, rows=of_rows.requires_grad_(), columns=of_columns)
    assert (near.sum(2) <= of_rows + 1e-9).all()
    assert torch.autograd.grad(near.sum(), of_rows)[0].isfinite().all()


# An oracle that compares sums does not see parts whose score is rounding


def test_parts_that_are_worth_only_rounding_leave_projections_certified():
    polytope = monotone_alignment(2, 2, local=True)
    scores = torch.randn(2000, 2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ol.compile_polytope(polytope, projector=ol.ActiveSet()).project(scores).check()
    torch.testing.assert_close(found.value, ol.compile_polytope(polytope).project(scores).check().value)
