"""The best structures, best first, hold against a sorted list of all structures."""

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import POLYTOPES
from exact_sums import KINDS, Exact, pairs_of, scores_of
from test_distribution import assert_near, gibbs

import optlayers as ol
import polytopes
from optlayers.bound.numbers import AbstractNumbers
from optlayers.solvers.kernels import ties


@pytest.mark.many(40)
@pytest.mark.parametrize("entry", POLYTOPES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4, 100])
def test_the_best_come_first_and_none_is_missing(entry, kind, k):
    pairs = pairs_of(entry)
    flat = scores_of(kind, pairs, 3)
    found = gibbs(entry, flat)
    best, size = found.top_k(k), math.prod(entry.polytope.shape)
    exact = [Exact(pairs, row) for row in flat.tolist()]
    assert best.counts.tolist() == [min(k, len(one.structures)) for one in exact]
    assert len(best.structures) == len(best.log_prob) == int(best.counts.max())
    scale = float(flat[torch.isfinite(flat)].abs().max().clamp(min=1.0))
    for place, one in enumerate(exact):
        count = int(best.counts[place])
        expected = one.best(k)
        assert_near(best.log_prob[:count, place], [w - one.log_partition for w, _ in expected], scale)
        assert (best.log_prob[count:, place] == -torch.inf).all() and (best.structures[count:, place] == 0).all()
        listed = best.structures[:count, place].reshape(count, -1).tolist()
        for name in best.auxiliaries:
            beside = best.auxiliaries[name][:count, place].reshape(count, -1).tolist()
            listed = [x + y for x, y in zip(listed, beside, strict=True)]
        assert len({tuple(x) for x in listed}) == count  # none comes twice
        inside = [x for x in listed if x in one.structures]
        assert len(inside) == count
        if kind in ("random", "masked", "large"):
            assert listed == [x for _, x in expected]
        elif count == len(one.structures):
            assert [x[:size] for x in listed] == [x[:size] for _, x in expected]


def big_knapsack(seed=0, size=12):
    weights = np.random.default_rng(seed).integers(1, 9, size)
    x = cp.Variable(size, nonneg=True)
    feasible = [z for z in itertools.product((0.0, 1.0), repeat=size) if np.dot(z, weights) <= 20]

    def best(scores):
        values = np.array(feasible) @ scores
        return np.array(feasible[int(values.argmax())])

    return ol.Polytope(x, [x <= 1], oracle=best, integral=True, rows="relaxation"), [list(z) for z in feasible]


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e4, 1e12])
def test_an_oracle_that_lists_sets_of_any_size(scale):
    """Structures contain others here, so that cells are divided by parts that are left out as well."""
    polytope, feasible = big_knapsack()
    scores = scale * torch.randn(3, 12, dtype=torch.float64)
    best = ol.Gibbs(polytope, scores).top_k(40)
    for place, row in enumerate(scores.tolist()):
        expected = sorted(((math.fsum(x * s for x, s in zip(z, row, strict=True)), z) for z in feasible), reverse=True)
        assert best.structures[:, place].tolist() == [z for _, z in expected[:40]]


def test_lists_do_not_depend_on_the_batch_nor_on_k():
    scores = torch.randn(6, 4, 4, dtype=torch.float64).round()
    polytope = polytopes.matching(4)
    whole = ol.Gibbs(polytope, scores).top_k(7)
    for place in range(6):
        alone = ol.Gibbs(polytope, scores[place]).top_k(7)
        assert torch.equal(alone.structures, whole.structures[:, place])
    more = ol.Gibbs(polytope, scores).top_k(24)
    values = (more.structures * scores).sum((2, 3))
    assert (values[1:] <= values[:-1]).all()
    assert torch.equal((whole.structures * scores).sum((2, 3)), values[:7])


def unit_knapsack(way: str) -> ol.Polytope:
    """Half of eight items, of the same weight, by each of the ways in which structures are listed."""
    x = cp.Variable(8, boolean=True) if way == "diagram" else cp.Variable(8, nonneg=True)
    if way == "enumeration":  # twice the vertices of 0 and 1
        return ol.Polytope(x, [x <= 2, cp.sum(x) <= 8])
    return ol.Polytope(x, [x <= 1, cp.sum(x) <= 4], integral=True)


WAYS = ("partition", "diagram", "enumeration")


@pytest.mark.many(2)
@pytest.mark.parametrize("way", WAYS)
def test_ties_for_the_last_place_are_decided_by_the_scores_of_an_instance_alone(way):
    """163 structures, of which very many tie."""
    polytope, generator = unit_knapsack(way), torch.Generator().manual_seed(0)
    scores = torch.randint(-1, 2, (6, 8), generator=generator).double()
    scores[0] = 0.0
    scores[1, 2] = -torch.inf
    compiled = ol.compile_polytope(polytope)
    assert (compiled.paths(np.zeros(0)) is not None) == (way == "diagram")
    assert compiled.is_binary(np.zeros(0)) == (way != "enumeration")
    finite = scores.masked_fill(torch.isneginf(scores), 0.0)
    for k in (1, 5, 17):
        whole = ol.Gibbs(compiled, scores).top_k(k)
        values = (whole.structures * finite).sum(2)
        assert (values[1:] <= values[:-1]).all() and whole.counts.tolist() == [k] * 6
        listed = [whole.structures[:, place].tolist() for place in range(6)]
        for place in range(6):
            for other in (slice(place, place + 1), slice(place, None), [place, 0, place]):  # other batches around it
                assert ol.Gibbs(polytope, scores[other]).top_k(k).structures[:, 0].tolist() == listed[place]
            longer = ol.Gibbs(compiled, scores[place]).top_k(k + 3).structures.tolist()
            assert all(structure in longer for structure in listed[place])
            for value in values[:, place].unique().tolist():  # those that score the same are in order
                same = [x for x, v in zip(listed[place], values[:, place].tolist(), strict=True) if v == value]
                assert same == sorted(same)


@pytest.mark.parametrize("way", WAYS)
def test_which_ties_are_listed_is_what_is_documented(way):
    polytope = unit_knapsack(way)
    compiled = ol.compile_polytope(polytope)
    size = 2.0 if way == "enumeration" else 1.0
    every = [list(x) for x in itertools.product((0.0, size), repeat=8) if sum(x) <= 4 * size]
    scores = torch.tensor([1.0, 0, 0, 0, 1.0, 0, 0, -1.0], dtype=torch.float64)
    tied = [x for x in every if x[0] == x[4] == size and x[7] == 0.0]
    for k in (1, 3, 8):
        listed = ol.Gibbs(compiled, scores).top_k(k).structures.tolist()
        if way == "diagram":
            objectives = [ties.objective(round_, 8, 8) for round_ in range(2)]
            tied.sort(key=lambda x: [objective @ x for objective in objectives], reverse=True)
        if way != "partition":
            assert listed == sorted(tied[:k])
        else:
            assert all(x in tied for x in listed)
        if way != "enumeration":  # ties are those of best structures
            assert compiled.maximize(scores).value.tolist() in listed


def test_rows_and_oracles_list_the_same():
    scores = torch.randn(2, 4, 4, dtype=torch.float64)
    declared = polytopes.arborescence(3)
    one, other = ol.Gibbs(declared, scores).top_k(20), ol.Gibbs(declared.without_oracle(), scores).top_k(20)
    assert one.counts.tolist() == other.counts.tolist() == [9, 9]
    assert torch.equal(one.structures, other.structures)


def test_large_structures_are_listed_without_the_sum_over_all():
    scores = torch.randn(2, 16, 16, dtype=torch.float64)
    found = ol.Gibbs(polytopes.matching(16), scores)
    best = found.top_k(30)
    values = (best.structures * scores).sum((2, 3))
    assert (values[1:] < values[:-1]).all() and best.counts.tolist() == [30, 30]
    assert len({tuple(x.flatten().tolist()) for x in best.structures[:, 0]}) == 30
    # Of all that is one exchange of two columns away from the best, none is missing.
    for place in range(2):
        columns = best.structures[0, place].argmax(1)
        for i, j in itertools.combinations(range(16), 2):
            other = columns.clone()
            other[[i, j]] = columns[[j, i]]
            value = scores[place, range(16), other].sum()
            if value > values[-1, place] + 1e-9:
                assert (best.structures[:, place].argmax(2) == other).all(1).any()
    with pytest.raises(ValueError, match="too many to enumerate"):
        _ = best.log_prob


def test_all_instances_and_cells_are_asked_for_together(monkeypatch):
    asked = []

    def counted(numbers, scores, rows):
        asked.append(len(rows))
        return numbers.among(rows).maximize(scores)

    monkeypatch.setattr(AbstractNumbers, "_ask_some", counted)
    ol.Gibbs(polytopes.matching(5), torch.randn(7, 5, 5)).top_k(6)
    assert asked[0] == 4 * 7 and len(asked) == 6  # once, then once a round
    assert asked[1] == 7 * 5


def test_a_maximizer_that_misses_the_best_is_found_out():
    corners = np.eye(4)

    def poor(scores):
        order = np.argsort(scores)
        return corners[order[-1] if scores.min() < 0.0 else order[-2]]

    x = cp.Variable(4, nonneg=True)
    found = ol.Gibbs(
        ol.Polytope(x, [cp.sum(x) == 1], oracle=poor, integral=True), torch.tensor([0.0, 50.0, 70.0, 90.0])
    )
    with pytest.raises(ol.SolveError, match="a better one was found than among all of them"):
        found.top_k(3)


def test_vertices_that_are_not_binary_are_enumerated():
    found = ol.Gibbs(polytopes.permutahedron(4), torch.zeros(4))
    assert found.top_k(100).counts == 24
    assert found.top_k(2).structures.tolist() == [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]]
    with pytest.raises(ValueError, match=r"the best structures are not known: .*too many"):
        ol.Gibbs(polytopes.permutahedron(8), torch.zeros(8)).top_k(2)


def test_more_than_there_are_is_all_of_them_and_more_than_there_is_memory_for_is_said():
    x = cp.Variable(60, boolean=True)
    few, many = ol.Polytope(x, [cp.sum(x) <= 1.5]), ol.Polytope(x, [cp.sum(x) <= 5.5])
    best = ol.Gibbs(few, torch.zeros(2, 60)).top_k(10**15)
    assert best.counts.tolist() == [61, 61] and best.structures.sum(2).max() == 1
    assert ol.Gibbs(polytopes.simplex(3), torch.zeros(3)).top_k(10**15).counts == 3
    found = ol.Gibbs(many, torch.zeros(60))
    with pytest.raises(ValueError, match=r"5,985,198 best structures take \d+ GB of memory .* ask for at most \d"):
        found.top_k(10**9)
    assert found.top_k(2000).counts == 2000


def test_lists_of_all_structures_are_as_large_as_these():
    """A list for every node of the diagram, of some thousands of them, has no room in memory."""
    x, y = cp.Variable(50, integer=True, bounds=[0, 2]), cp.Variable(50, boolean=True)
    found = ol.Gibbs(ol.Polytope(x, [x <= 2 * y, cp.sum(y) <= 2.5, cp.sum(x) <= 3]), torch.zeros(50))
    pairs = math.comb(50, 2)
    assert len(found.enumerate_support()) == 1 + 2 * 50 + 3 * pairs == round(found.log_count().exp().item())


def test_failing_instances_do_not_stop_the_others():
    scores, budget = torch.randn(3, 5), torch.tensor([2.0, 7.0, 3.0])
    found = ol.Gibbs(polytopes.subset(5), scores, budget=budget, on_failure="nan").top_k(4)
    assert found.counts.tolist() == [4, 0, 4] and found.structures[:, 1].isnan().all()
    assert found.log_prob[:, 1].isnan().all() and torch.isfinite(found.log_prob[:, [0, 2]]).all()
    with pytest.raises(ol.SolveError, match=r"1 of 3 .*\n  instance 1 is INFEASIBLE"):
        ol.Gibbs(polytopes.subset(5), scores, budget=budget).top_k(4)


def test_scores_of_any_size():
    for size in (0.0, 1e-300, 1e-30, 1e30, 1e300):
        scores = size * torch.randn(2, 4, dtype=torch.float64)
        best = ol.Gibbs(polytopes.simplex(4), scores, on_failure="nan").top_k(9)
        assert best.counts.tolist() == [4, 4]
        if size:
            assert best.structures.argmax(2).T.tolist() == scores.argsort(descending=True).tolist()
    huge = ol.Gibbs(polytopes.simplex(4), torch.full((4,), 1.7e308, dtype=torch.float64) * torch.tensor([1, -1, 1, -1]))
    with pytest.raises(ol.SolveError):
        huge.top_k(2)
