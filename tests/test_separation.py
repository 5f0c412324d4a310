"""Constraints that a function brings on demand: true answers, whatever the pool holds, and functions that lie."""

import copy
import itertools
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

import optlayers as ol
import polytopes
from optlayers.solvers import cutting
from optlayers.solvers.batch import make_instances
from optlayers.solvers.kernels import ties
from optlayers.testing import check_oracle, check_polytope, check_rule, check_separation, contains, is_vertex
from polytopes.tour import _minimum_cut, subtours


def draw(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_tours(cities: int) -> torch.Tensor:
    found = []
    for inner in itertools.permutations(range(1, cities)):
        if inner[0] < inner[-1]:
            x, trip = np.zeros((cities, cities)), (0, *inner)
            for one, other in zip(trip, trip[1:] + trip[:1], strict=True):
                x[min(one, other), max(one, other)] = 1.0
            found.append(x)
    return torch.tensor(np.stack(found))


def edges_of(nodes: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(nodes), 2))


def all_matchings(nodes: int) -> torch.Tensor:
    """Sets of edges no two of which meet."""
    ends, found = edges_of(nodes), []
    for count in range(nodes // 2 + 1):
        for chosen in itertools.combinations(range(len(ends)), count):
            if len({node for edge in chosen for node in ends[edge]}) == 2 * count:
                x = np.zeros(len(ends))
                x[list(chosen)] = 1.0
                found.append(x)
    return torch.tensor(np.stack(found))


def blossoms(point: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """What a point violates of Edmonds' inequalities: an odd set of 2k + 1 nodes has at most k edges."""
    nodes = round((1 + np.sqrt(1 + 8 * len(point))) / 2)
    ends, found = edges_of(nodes), []
    for size in range(3, nodes + 1, 2):
        for odd in itertools.combinations(range(nodes), size):
            within = np.array([one in odd and other in odd for one, other in ends], dtype=float)
            if within @ point > size // 2 + 1e-9:
                found.append((within, size // 2))
    return found


def matchings(nodes: int, separate=blossoms, **kind) -> ol.Polytope:
    """The matching polytope of a complete graph (Edmonds, 1965), without a variable that is an integer."""
    x = cp.Variable(len(edges_of(nodes)), nonneg=True)
    at = np.array([[float(node in edge) for edge in edges_of(nodes)] for node in range(nodes)])
    return ol.Polytope(x, [at @ x <= 1], separate=separate, **kind)


def pairs_over(point: np.ndarray, limit: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The two largest parts together, where they are more than the limit."""
    coefficients = np.zeros(len(point))
    coefficients[np.argsort(point)[-2:]] = 1.0
    return (coefficients, float(limit)) if coefficients @ point > limit + 1e-9 else None


def limited_pairs(separated: bool) -> ol.Polytope:
    """No two parts are more than a limit together: by a function, or all listed."""
    x, limit = cp.Variable(5, nonneg=True), cp.Parameter(name="limit", nonneg=True)
    rows = [x <= 1, cp.sum(x) <= 2 * limit]
    if separated:
        return ol.Polytope(x, rows, separate=pairs_over)
    return ol.Polytope(x, [*rows, *(x[i] + x[j] <= limit for i, j in edges_of(5))])


def silent(point):
    """Nothing: points of integers are told apart by the constraints."""


def of_integers(nodes: int, separate) -> ol.Polytope:
    x = cp.Variable(len(edges_of(nodes)), boolean=True)
    at = np.array([[float(node in edge) for edge in edges_of(nodes)] for node in range(nodes)])
    return ol.Polytope(x, [at @ x <= 1], separate=separate)


TOURS, MATCHINGS = all_tours(6), all_matchings(6)
CASES = {
    "tour": (polytopes.tour(6), TOURS),
    "matching": (matchings(6), MATCHINGS),
    "matching of integers": (of_integers(6, blossoms), MATCHINGS),
}
each_case = pytest.mark.parametrize("name", CASES)


def test_counts():
    assert len(TOURS) == 60
    assert len(MATCHINGS) == 76


@each_case
def test_best_vertices_are_the_best_structures_also_where_they_tie(name):
    polytope, structures = CASES[name]
    compiled, flat = ol.compile_polytope(polytope), structures.flatten(1)
    scores = torch.cat([draw(12, *polytope.shape), draw(12, *polytope.shape, seed=1).round()])
    equal = torch.ones(1, *polytope.shape, dtype=torch.float64)
    scores = torch.cat([scores, 0.0 * equal, equal])
    some = torch.zeros(1, *polytope.shape, dtype=torch.float64)
    some.flatten()[[1, 8]] = 0.3  # what ties is on no grid of powers of two
    scores = torch.cat([scores, some, draw(2, *polytope.shape) * 1e9, draw(2, *polytope.shape) * 1e-9])
    answer = compiled.maximize(scores)
    assert answer.all_ok
    kept = compiled.forms.full.kept
    objectives = [ties.objective(k, len(kept), len(kept)) for k in range(3)]
    for k, mine in enumerate(scores.flatten(1)):
        gains = flat @ mine
        tied = flat[gains >= gains.max() - 1e-12 * mine.abs().sum()]
        decided = max(tied.tolist(), key=lambda v: [float(o @ np.array(v)[kept]) for o in objectives])
        assert answer.value[k].flatten().tolist() == decided


@pytest.mark.parametrize("solver", [None, "HIGHS", "SCIPY"])
def test_branch_and_bound_decides_ties_of_any_scores(solver):
    scores = torch.zeros(1, 15, dtype=torch.float64)
    triangles = [k for k, (one, other) in enumerate(edges_of(6)) if one // 3 == other // 3]
    scores[0, triangles] = 0.3  # halves of two triangles score 0.9, two edges 0.6
    compiled = ol.compile_polytope(of_integers(6, silent), maximizer=ol.BranchAndBound(solver=solver))
    objectives = [ties.objective(k, 15, 15) for k in range(2)]
    tied = [v for v in MATCHINGS.tolist() if float(scores[0] @ torch.tensor(v, dtype=torch.float64)) > 0.59]
    assert len(tied) == 18  # with an edge between the others, or none
    decided = max(tied, key=lambda v: [float(o @ np.array(v)) for o in objectives])
    assert compiled.maximize(scores).check().value[0].tolist() == decided


@each_case
def test_projections_lie_in_the_hull_and_nothing_is_nearer(name):
    polytope, structures = CASES[name]
    flat, scores = structures.flatten(1), torch.cat([draw(6, *polytope.shape), 0.2 * draw(3, *polytope.shape).round()])
    answer = ol.compile_polytope(polytope).project(scores)
    assert answer.all_ok
    left, value = (scores - answer.value).flatten(1), answer.value.flatten(1)
    assert float(((left @ flat.T).amax(1) - (left * value).sum(1)).max()) < 1e-9
    for k in range(len(scores)):
        mixed = torch.einsum("v,v...->...", answer.weights[k], answer.vertices[k].to(torch.float64))
        torch.testing.assert_close(mixed, answer.value[k])
        used = answer.vertices[k][answer.weights[k] > 0.0].flatten(1).tolist()
        assert all(vertex in flat.tolist() for vertex in used)


def test_projections_satisfy_the_facets_that_scipy_finds():
    structures, scores = all_matchings(4), draw(30, 6)
    near = ol.compile_polytope(matchings(4)).project(scores).check().value
    facets = ConvexHull(structures.numpy()).equations
    assert float((near.numpy() @ facets[:, :-1].T + facets[:, -1]).max()) < 1e-9
    relaxed = ol.compile_polytope(matchings(4, separate=lambda point: None)).project(scores).value
    assert (
        float((relaxed.numpy() @ facets[:, :-1].T + facets[:, -1]).max()) > 1e-2
    )  # which the constraints alone do not


@each_case
def test_derivatives_are_finite_differences(name):
    polytope, _ = CASES[name]
    layer, scores = ol.OptLayer(polytope, ol.SparseMAP()), draw(1, *polytope.shape, seed=3).requires_grad_()
    direction = draw(1, *polytope.shape, seed=4)
    (gradient,) = torch.autograd.grad((layer(scores) * direction).sum(), scores)
    step = 1e-6 * draw(1, *polytope.shape, seed=5)
    with torch.no_grad():
        change = ((layer(scores + step) - layer(scores - step)) * direction).sum() / 2
    torch.testing.assert_close((gradient * step).sum(), change, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", ["tour", "matching"])
def test_forbidden_parts_are_done_without(name):
    polytope, structures = CASES[name]
    flat, scores = structures.flatten(1), draw(6, *polytope.shape)
    scores[torch.rand(scores.shape, generator=torch.Generator().manual_seed(2)) < 0.2] = -torch.inf
    scores[5] = -torch.inf
    compiled = ol.compile_polytope(polytope)
    best, near = compiled.maximize(scores), compiled.project(scores)
    for k, mine in enumerate(scores.flatten(1)):
        allowed = flat[(flat[:, torch.isneginf(mine)] == 0).all(dim=1)]
        if len(allowed) == 0:
            assert int(best.status[k]) == int(near.status[k]) == int(ol.Status.INFEASIBLE)
            continue
        finite = mine.masked_fill(torch.isneginf(mine), 0.0)
        torch.testing.assert_close(best.value[k].flatten() @ finite, (allowed @ finite).max())
        left = finite - near.value[k].flatten()
        assert float((allowed @ left).max() - left @ near.value[k].flatten()) < 1e-9


def test_marginals_and_the_best_few_are_those_of_all_structures():
    scores, flat = draw(2, 6, 6), TOURS.flatten(1)
    share = torch.softmax(scores.flatten(1) @ flat.T, dim=1)
    marginals = ol.OptLayer(polytopes.tour(6), ol.StructuredAttention())(scores)
    torch.testing.assert_close(marginals.flatten(1), share @ flat)
    structures, log_prob = ol.Gibbs(polytopes.tour(6), scores[0]).top_k(4)
    torch.testing.assert_close(log_prob, share[0].log().topk(4).values)
    assert len({tuple(x) for x in structures.flatten(1).tolist()}) == 4


def test_parameters_are_those_of_each_instance():
    separated, listed = (ol.compile_polytope(limited_pairs(kind)) for kind in (True, False))
    limits = torch.tensor([0.7, 1.0, 1.5, 2.0, 0.0, 1.0, 1.5, 0.3], dtype=torch.float64)
    scores = draw(8, 5)
    best, near = separated.maximize(scores, limit=limits), separated.project(scores, limit=limits)
    assert best.all_ok
    assert near.all_ok
    torch.testing.assert_close(best.value, listed.maximize(scores, limit=limits).value)
    torch.testing.assert_close(near.value, listed.project(scores, limit=limits).value)
    assert is_vertex(listed, best.value, limit=limits).all()
    assert contains(separated.polytope, near.value, limit=limits).all()
    beyond = torch.tensor([[0.9, 0.9, 0.0, 0.0, 0.0]])  # which the rows alone allow
    assert not contains(separated.polytope, beyond, limit=1.5).any()
    grads = []
    for one in (True, False):
        leaf = scores.clone().requires_grad_()
        ol.OptLayer(limited_pairs(one), ol.SparseMAP())(leaf, limit=limits).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def with_auxiliary(separated: bool) -> ol.Polytope:
    x, y = cp.Variable(3, nonneg=True), cp.Variable(3, nonneg=True, name="y")
    rows = [x <= 1, y <= 1, cp.sum(y) <= 2]

    def together(point, beside):
        for k in range(3):
            if point[k] + beside[k] > 1.2 + 1e-9:
                return (np.eye(3)[k], np.eye(3)[k]), 1.2
        return None

    if separated:
        return ol.Polytope(x, rows, scored=[y], separate=together)
    return ol.Polytope(x, [*rows, x + y <= 1.2], scored=[y])


def test_scored_auxiliary_variables_are_seen_and_cut():
    separated, listed = (ol.compile_polytope(with_auxiliary(kind)) for kind in (True, False))
    scores, beside = draw(8, 3), draw(8, 3, seed=1)
    for ask in ("maximize", "project"):
        one, other = (getattr(c, ask)(scores, y=beside).check() for c in (separated, listed))
        torch.testing.assert_close(one.value, other.value)
        torch.testing.assert_close(one.scored["y"], other.scored["y"])
    check_separation(with_auxiliary(True))


def test_families_of_mixed_sizes():
    layer, scores = ol.OptLayer(ol.Family(polytopes.tour), ol.SparseMAP()), draw(3, 6, 6)
    found = layer(scores, sizes=[5, 6, 4])
    for k, size in enumerate([5, 6, 4]):
        alone = ol.OptLayer(polytopes.tour(size), ol.SparseMAP())(scores[k : k + 1, :size, :size])
        torch.testing.assert_close(found[k, :size, :size], alone[0])


RULES = [ol.Pipeline(), ol.StraightThrough(), ol.SparseMAP(), ol.Spigot(), ol.StructuredAttention(), ol.LPGD(1.0)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_take_them(rule):
    scores = draw(2, 5, 5).requires_grad_()
    ol.OptLayer(polytopes.tour(5), rule)(scores).square().sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_losses_take_them():
    scores = draw(3, 6, 6).requires_grad_()
    for loss in (ol.SparseMAPLoss, ol.CRFLoss, ol.StructuredPerceptronLoss):
        value = loss(polytopes.tour(6))(scores, TOURS[:3])
        assert float(value.detach()) >= -1e-9
        value.backward()
    assert torch.isfinite(scores.grad).all()


def answers(compiled: ol.CompiledPolytope, scores: torch.Tensor) -> torch.Tensor:
    return torch.cat([compiled.maximize(scores).check().value, compiled.project(scores).check().value])


@each_case
def test_the_pool_changes_no_bit(name):
    polytope, _ = CASES[name]
    scores = torch.cat([draw(5, *polytope.shape), draw(3, *polytope.shape, seed=1).round()])
    first = ol.compile_polytope(polytope)
    expected = answers(first, scores)
    pool = first.maximizer.function.pool(np.zeros(0))
    assert pool.cuts
    assert torch.equal(answers(first, scores), expected)  # warm
    without, few = ol.compile_polytope(polytope), ol.compile_polytope(polytope)
    without.maximizer.function.pool_limit, few.maximizer.function.pool_limit = 0, 2
    for compiled, most in ((without, 0), (few, 2)):
        assert torch.equal(
            answers(compiled, scores.flip(0)), expected.reshape(2, 8, -1).flip(1).reshape(expected.shape)
        )
        assert len(compiled.maximizer.function.pool(np.zeros(0)).cuts) == most
    alone = ol.compile_polytope(polytope)
    for k in range(8):
        assert torch.equal(alone.maximize(scores[k]).value, expected[k])


def test_what_was_found_serves_later_instances():
    brought = []

    def watched(point):
        cuts = subtours(point)
        brought.extend(cuts)
        return cuts

    tour = polytopes.tour(8)
    compiled = ol.compile_polytope(ol.Polytope(tour.variable, tour.constraints, separate=watched))
    scores = draw(6, 8, 8).abs()
    compiled.maximize(scores).check()
    first = len(brought)
    assert first > 0
    compiled.maximize(scores).check()
    assert len(brought) == first


def test_several_threads_give_the_bits_of_one():
    scores = draw(12, 6, 6)
    expected = answers(ol.compile_polytope(polytopes.tour(6)), scores)
    shared = ol.compile_polytope(polytopes.tour(6))

    def one(k: int) -> torch.Tensor:
        return torch.stack([shared.maximize(scores[k]).check().value, shared.project(scores[k]).check().value])

    with ThreadPoolExecutor(4) as pool:
        found = torch.stack(list(pool.map(one, range(12))), dim=1).reshape(expected.shape)
    assert torch.equal(found, expected)


def test_copies_and_pickles_give_the_same_answers():
    layer, scores = ol.OptLayer(polytopes.tour(6), ol.SparseMAP()), draw(3, 6, 6)
    expected = layer(scores)
    compiled = pickle.loads(pickle.dumps(ol.compile_polytope(polytopes.tour(6))))
    assert torch.equal(compiled.project(scores).value, expected)
    assert compiled.maximizer.function is compiled.projector.function.function
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(scores), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forks_go_on():
    compiled, scores = ol.compile_polytope(polytopes.tour(6)), draw(2, 6, 6)
    expected = compiled.maximize(scores).value
    child = os.fork()
    if child == 0:
        same = torch.equal(compiled.maximize(scores).value, expected)
        os._exit(0 if same else 1)
    end = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.05)
    assert ended == (child, 0)


@each_case
def test_contracts_hold(name):
    polytope, structures = CASES[name]
    check_separation(polytope, samples=8)
    check_separation(polytope, structures=structures, samples=8)
    check_polytope(polytope, samples=4, integral=True)


def test_contracts_with_parameters_hold():
    check_separation(limited_pairs(True), limit=1.5)
    with pytest.raises(TypeError, match=r"takes a declaration with Polytope\(..., separate"):
        check_separation(limited_pairs(False), limit=1.5)
    check_rule(ol.SparseMAP(), matchings(4))


def test_an_oracle_beside_is_held_to_the_function():
    def greedy(scores):  # forgets that three nodes have one edge at most
        x = np.zeros(6)
        x[[0, 1, 3]] = 0.5  # the edges 01, 02, 12
        return x

    lazy = ol.compile_polytope(matchings(4, oracle=greedy))
    best = lazy.maximize(torch.ones(1, 6))
    assert best.failures[0].status is ol.Status.INACCURATE
    assert "violates an inequality of separate=blossoms by 0.1" in best.failures[0].reason

    structures = all_matchings(4).numpy()

    def best_of_all(scores):
        usable = np.where(np.isneginf(scores), -1e12, scores)
        gains = structures @ usable
        return structures[gains.argmax()] if gains.max() > -1e11 else np.full(6, np.nan)

    polytope = matchings(4, oracle=best_of_all, integral=True)
    check_oracle(polytope, samples=8)
    near = ol.compile_polytope(polytope).project(draw(5, 6)).check().value
    torch.testing.assert_close(near, ol.compile_polytope(matchings(4)).project(draw(5, 6)).value)


def test_relaxations_are_without_what_is_brought():
    relaxed = polytopes.tour(6).relaxed()
    assert relaxed.separate is None
    scores = draw(2, 6, 6).requires_grad_()
    ol.OptLayer(polytopes.tour(6), ol.Spigot(relaxation=relaxed))(scores).square().sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_minimum_cuts():
    rng = np.random.default_rng(0)
    for nodes in (2, 3, 5, 6):
        for _ in range(20):
            weights = np.triu(rng.random((nodes, nodes)) * (rng.random((nodes, nodes)) < 0.7), 1)
            weights = weights + weights.T
            least = min(
                weights[np.ix_(inside, ~inside)].sum()
                for bits in itertools.product([False, True], repeat=nodes - 1)
                if any(bits)
                for inside in [np.array([False, *bits])]
            )
            value, inside = _minimum_cut(weights)
            assert value == pytest.approx(weights[np.ix_(inside, ~inside)].sum())
            assert value <= least + 1e-6


def test_rows_behind_the_form():
    compiled = ol.compile_polytope(limited_pairs(True))
    search = compiled.maximizer.function
    form, rng = search.form, np.random.default_rng(0)
    rows, bounds = rng.standard_normal((3, 5)), rng.standard_normal(3)
    longer = cutting.with_inequalities(form, rows, bounds, np.ones(3), "more")
    theta = np.array([[0.7], [1.5]])
    before, after = make_instances(form, theta, None), make_instances(longer, theta, None)
    np.testing.assert_array_equal(after.rhs, np.concatenate([before.rhs, np.tile(bounds, (2, 1))], axis=1))
    dense = np.zeros((form.rows + 3, form.columns + 3))
    dense[: form.rows, : form.columns] = form.matrix.toarray()
    dense[form.rows :, : form.scored], dense[form.rows :, form.columns :] = rows, np.eye(3)
    np.testing.assert_array_equal(longer.matrix.toarray(), dense)
    assert longer.matrix.has_sorted_indices


def test_entries_that_constraints_fix_count_in_what_is_brought():
    x = cp.Variable(3)

    def together(point):
        return (np.array([1.0, 1.0, 0.0]), 1.4) if point[0] + point[1] > 1.4 + 1e-9 else None

    compiled = ol.compile_polytope(ol.Polytope(x, [x[0] == 1, x >= 0, x <= 1], separate=together))
    assert compiled.maximize(torch.ones(3, dtype=torch.float64)).check().value.tolist() == [1.0, 0.4, 1.0]
    near = compiled.project(torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)).check().value
    torch.testing.assert_close(near, torch.tensor([1.0, 0.4, 0.5], dtype=torch.float64))
    first = np.eye(3)[0]
    with pytest.raises(ol.DeclarationError, match="no point satisfies the constraints"):
        ol.compile_polytope(ol.Polytope(x, [x[0] == 1, x >= 0, x <= 1], separate=lambda point: (first, 0.5)))


LIARS = {
    "raises": (lambda point: 1 / 0, "separate=lie raised ZeroDivisionError: division by zero"),
    "a number": (lambda point: 1.0, "returned float"),
    "an array": (lambda point: np.ones(6), "returned ndarray"),
    "a list of numbers": (lambda point: [1.0], "returned a list with float in it"),
    "short": (lambda point: (np.ones(5), 0.0), r"of shape \(5,\) where \(6,\) is expected"),
    "ragged": (lambda point: ([[1.0], [1.0, 2.0]], 0.0), "no array of shape"),
    "text": (lambda point: (["a"] * 6, 0.0), "coefficients of dtype <U1"),
    "complex": (lambda point: (1j * np.ones(6), 0.0), "coefficients of dtype complex128"),
    "not a number": (lambda point: (np.full(6, np.nan), 0.0), "not finite"),
    "no bound": (lambda point: (np.ones(6), -np.inf), "not finite"),
    "a bound of two": (lambda point: [(np.ones(6), np.zeros(2))], "returned a bound of type ndarray"),
    "cuts nothing": (lambda point: (np.ones(6), 100.0), "does not cut off the point .* the bound is 100"),
    "says nothing": (lambda point: (np.zeros(6), 0.0), "does not cut off the point"),
}


@pytest.mark.parametrize("kind", LIARS)
def test_liars_have_no_answers_and_are_named(kind):
    lie, message = LIARS[kind]

    def separate(point):
        return lie(point)

    separate.__name__ = "lie"
    layer = ol.OptLayer(matchings(4, separate=separate), ol.SparseMAP())
    with pytest.raises(ol.SolveError, match=message):
        layer(draw(1, 6))
    with pytest.raises(ol.SolveError, match="separate=lie"):
        ol.OptLayer(matchings(4, separate=separate), ol.Pipeline())(draw(1, 6))
    with pytest.raises(AssertionError, match=message):
        check_separation(matchings(4, separate=separate))


def test_one_that_raises_spoils_its_own_instance():
    def choosy(point):
        if point[0] > 0.9:
            raise ValueError("not this one")
        return blossoms(point)

    scores = torch.zeros(2, 6, dtype=torch.float64)
    scores[0, 0], scores[1, 1] = 1.0, 1.0
    answer = ol.compile_polytope(matchings(4, separate=choosy)).maximize(scores)
    assert answer.status.tolist() == [int(ol.Status.FAILED), 0]
    assert "separate=choosy raised ValueError: not this one" in answer.failures[0].reason


def test_one_that_never_ends_is_stopped(monkeypatch):
    def shaving(point):  # a little off, again and again
        return (np.ones(6), 0.999 * point.sum()) if point.sum() > 1e-3 else None

    monkeypatch.setattr(cutting, "ROUNDS", 50)
    compiled = ol.compile_polytope(matchings(4, separate=shaving))
    answer = compiled.maximize(torch.ones(1, 6))
    assert answer.failures[0].status is ol.Status.FAILED
    assert "still returned violated inequalities after 50 rounds" in answer.failures[0].reason
    slow = ol.BranchAndBound(time_limit=1e-9)
    answer = ol.compile_polytope(matchings(4, separate=shaving), maximizer=slow).maximize(torch.ones(1, 6))
    assert "raise time_limit of BranchAndBound" in answer.failures[0].reason
    assert not compiled.maximizer.function.pool(np.zeros(0)).cuts


def test_what_cuts_off_everything_leaves_nothing():
    def none_at_all(point):
        return np.zeros(6), -1.0

    with pytest.raises(AssertionError, match=r"separate=none_at_all cuts off everything"):
        check_separation(matchings(4, separate=none_at_all))
    with pytest.raises(ol.DeclarationError, match=r"no point satisfies the constraints and .* separate=none_at_all"):
        ol.compile_polytope(matchings(4, separate=none_at_all))


def too_much(point):
    """Blossoms that also cut off the matching of two edges."""
    return [*blossoms(point), *([(np.ones(6), 1.5)] if point.sum() > 1.6 else [])]


def only_when_fractional(point):
    """Cuts off matchings of two edges, which it accepts when it is asked about them."""
    whole = np.abs(point - np.round(point)).max() < 1e-6
    return [*blossoms(point), *([] if whole else [(np.ones(6), 1.0)] if point.sum() > 1.1 else [])]


def moody(point, seen=[]):  # noqa: B006
    seen.append(1)
    return [(c * (1.0 + len(seen)), b * (1.0 + len(seen))) for c, b in blossoms(point)]


@pytest.mark.parametrize(
    ("polytope", "structures", "message"),
    [
        (matchings(4, separate=too_much), all_matchings(4), "cuts off a structure, by 0.1"),
        (of_integers(4, only_when_fractional), None, "cuts off a structure"),
        (matchings(5, separate=lambda point: None), all_matchings(5), "scores 0.* more than the best structure"),
        (matchings(4, separate=moody), all_matchings(4), "different inequalities for the same point"),
    ],
)
def test_the_contract_catches_liars(polytope, structures, message):
    with pytest.raises(AssertionError, match=message):
        check_separation(polytope, structures=structures)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: matchings(4, separate=3), "separate must be callable"),
        (lambda: matchings(4, rows="exact"), 'rows="exact" says that constraints are all'),
        (
            lambda: ol.compile_polytope(matchings(4), maximizer=ol.Highs()),
            "finds best vertices of the constraints alone",
        ),
        (lambda: ol.compile_polytope(matchings(4), projector=ol.Clarabel()), "finds projections of the constraints"),
        (lambda: ol.compile_polytope(polytopes.tour(5), maximizer=ol.Diagram()), "knows rows alone"),
        (lambda: polytopes.tour(2), "at least 3 cities, but got 2"),
        (lambda: polytopes.tour(0), "cities must be at least 1"),
        (lambda: polytopes.knapsack([[1.0]]), "weights must be a vector"),
        (lambda: polytopes.knapsack([1.0, -1.0]), "weights must be finite and at least 0"),
        (lambda: polytopes.knapsack([1.0], capacity=-1.0), "capacity must be a finite number"),
        (
            lambda: ol.compile_polytope(polytopes.tour(5), maximizer=ol.BranchAndBound(solver="CPLEX")),
            "CPLEX is not installed; installed are HIGHS, SCIPY",
        ),
        (
            lambda: ol.compile_polytope(polytopes.tour(5), maximizer=ol.BranchAndBound(solver="SCIPI")),
            "SCIPI is no solver of mixed-integer programs",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_explain_says_who_brings_constraints():
    text = ol.compile_polytope(polytopes.tour(5)).explain()
    assert "brought on demand by separate=subtours" in text
    assert "branch and bound of HiGHS" in text
    assert "branch and bound" not in ol.compile_polytope(matchings(4)).explain()


@pytest.mark.parametrize("solver", ["HIGHS", "SCIPY"])
def test_solvers_of_cvxpy_give_the_answers_of_ours(solver):
    theirs = ol.BranchAndBound(solver=solver)
    assert eval(repr(theirs), {"BranchAndBound": ol.BranchAndBound}) == theirs
    rng = np.random.default_rng(0)
    x, flow = cp.Variable(8, boolean=True), cp.Variable(3)
    budget = cp.Parameter(name="budget", nonneg=True)
    rows = [rng.integers(1, 9, 8) @ x <= budget, flow >= 0, flow <= 0.75, cp.sum(x[:3]) == cp.sum(flow)]
    polytope = ol.Polytope(x, rows)
    ours, other = (ol.compile_polytope(polytope, maximizer=m) for m in (ol.BranchAndBound(), theirs))
    scores = torch.cat([draw(6, 8), draw(4, 8, seed=1).round(), torch.zeros(1, 8, dtype=torch.float64)])
    scores[0, 1] = -torch.inf
    one, two = (c.maximize(scores, budget=15.0) for c in (ours, other))
    assert two.all_ok
    assert torch.equal(one.value, two.value)
    torch.testing.assert_close(
        ours.project(scores[1:4], budget=9.0).value, other.project(scores[1:4], budget=9.0).value
    )
    assert f"branch and bound of {solver}" in other.explain()
    behind = ol.Polytope(flow, [*rows[1:], cp.sum(x) <= 2])  # integers that are not the first columns
    flows = [ol.compile_polytope(behind, maximizer=m) for m in (ol.BranchAndBound(), theirs)]
    torch.testing.assert_close(*(c.maximize(draw(4, 3)).check().value for c in flows))
    tours = [ol.compile_polytope(polytopes.tour(7), maximizer=m) for m in (None, theirs)]
    scores = draw(4, 7, 7)
    assert torch.equal(*(c.maximize(scores).check().value for c in tours))
    nothing = ol.Polytope(y := cp.Variable(2, boolean=True), [2 * cp.sum(y) == cp.Parameter(name="sum")])
    empty = ol.compile_polytope(nothing, maximizer=theirs).maximize(draw(1, 2), sum=1.0)
    assert int(empty.status[0]) == int(ol.Status.INFEASIBLE)


def test_knapsacks_are_those_of_all_sets():
    weights = np.array([3, 5, 2, 7, 4])
    sets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=torch.float64)
    scores = draw(6, 5)
    capacities = torch.tensor([0.0, 4.0, 9.5, 12.0, 21.0, 6.0], dtype=torch.float64)
    found = ol.compile_polytope(polytopes.knapsack(weights)).maximize(scores, capacity=capacities).check().value
    for k, capacity in enumerate(capacities.tolist()):
        held = sets[(sets @ torch.tensor(weights, dtype=torch.float64)) <= capacity]
        assert found[k].tolist() == held[(held @ scores[k]).argmax()].tolist()
        fixed = polytopes.knapsack(weights, capacity=capacity)
        attention = ol.OptLayer(fixed, ol.StructuredAttention())(scores[k : k + 1])
        torch.testing.assert_close(attention[0], torch.softmax(held @ scores[k], dim=0) @ held)


def test_parts_come_apart_by_components():
    two = np.zeros((6, 6))
    for one, other in [(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)]:
        two[one, other] = 1.0
    ((coefficients, bound),) = subtours(two)
    assert (coefficients * two).sum() == 0.0 > bound
    assert all(not subtours(tour) for tour in TOURS.numpy())


def test_partial_functions_are_named_as_what_they_call():
    def limited(point, k):
        return blossoms(point) if k else None

    compiled = ol.compile_polytope(matchings(4, separate=partial(limited, k=1)))
    assert "separate=limited" in compiled.explain()
