"""Integer declarations: hulls of integer points, by proof, by decision diagrams and by branch and bound."""

import copy
import itertools
import math
import pickle

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from catalogue import DETERMINISTIC, INTEGER_SOLVERS, RULES
from drawing import draw
from scipy.spatial import ConvexHull

import optlayers as ol
import polytopes
from optlayers.bound.host import HostPolytope
from optlayers.integer.diagram import TooWide, compiled_diagram
from optlayers.integer.program import NO_LIMIT, IntegerProgram
from optlayers.proofs import diagnosis
from optlayers.solvers.diagram import diagrams_of
from optlayers.solvers.kernels import diagrams as kernels
from optlayers.solvers.kernels import ties

WEIGHTS = np.array([3, 5, 7, 2, 4, 6])


def points_of(program: IntegerProgram) -> np.ndarray:
    """All points of the scored columns, by trying everything."""
    ranges = [range(low, high + 1) for low, high in zip(program.lower.tolist(), program.upper.tolist(), strict=True)]
    rows, found = program.rows.toarray(), set()
    for values in itertools.product(*ranges):
        sums = rows @ np.array(values, dtype=np.int64)
        if (sums >= program.low).all() and (sums <= program.high).all():
            found.add(values[: program.scored])
    return np.array(sorted(found), dtype=float).reshape(len(found), program.scored)


def random_program(seed: int) -> IntegerProgram:
    """Rows of all kinds over a few integers, negative ones too, of which some are auxiliary."""
    rng = np.random.default_rng(seed)
    scored, auxiliary, rows = int(rng.integers(1, 6)), int(rng.integers(0, 3)), int(rng.integers(0, 4))
    matrix = rng.integers(-3, 4, (rows, scored + auxiliary))
    lower = rng.integers(-2, 1, scored + auxiliary)
    upper = lower + rng.integers(0, 4, scored + auxiliary)
    low, high = np.full(rows, -NO_LIMIT), np.full(rows, NO_LIMIT)
    for i in range(rows):
        kind, side = int(rng.integers(0, 3)), int(rng.integers(-3, 6))
        if kind != 1:
            high[i] = side
        if kind != 0:
            low[i] = side - (int(rng.integers(0, 3)) if kind == 2 else 0)
    names = tuple(f"row {i}" for i in range(rows))
    return IntegerProgram(sp.csc_array(matrix.astype(np.int64)), low, high, lower, upper, scored, names)


def weights_of(points: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The share of every point ``(batch, points)`` in the sum."""
    gains = scores @ points.T
    shares = np.exp(gains - gains.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def reach_of(diagram) -> np.ndarray:
    reach = np.zeros(max(diagram.column.max(), 0) + 8)
    np.maximum.at(reach, np.repeat(diagram.column, np.diff(diagram.start)), np.abs(diagram.value).astype(float))
    return reach


@pytest.mark.parametrize("seed", range(60))
def test_passes_over_diagrams_are_sums_over_all_points(seed):
    program = random_program(seed)
    points, diagram = points_of(program), compiled_diagram(program)
    assert diagram.count == len(points)
    assert diagram.empty == (len(points) == 0)
    arrays, size = (diagram.column, diagram.start, diagram.value, diagram.child, diagram.pairs), program.scored
    rng = np.random.default_rng(seed)
    fixed, first, second = np.zeros(size), rng.integers(1, 9, size), rng.integers(1, 9, size)
    reach, spread, which = reach_of(diagram)[:size], math.log(max(1, len(points))), np.arange(3)
    for scale in (1.0, 1e4, 0.0):
        scores = rng.standard_normal((3, size)) * scale
        scores[2] = np.round(scores[2])
        total = np.empty(3)
        kernels.sums(*arrays, reach, spread, scores, which, total)
        if len(points) == 0:
            assert (total == -np.inf).all()
            assert np.isnan(kernels.best(scores[0], *arrays, fixed, first, second)).all()
            continue
        gains = scores @ points.T
        np.testing.assert_allclose(total, np.logaddexp.reduce(gains, axis=1), rtol=1e-12, atol=1e-12)
        share, mean, turned = weights_of(points, scores), np.empty((3, size)), np.empty((3, size))
        direction = rng.standard_normal((3, size))
        kernels.marginals(*arrays, reach, spread, fixed, scores, which, mean)
        kernels.covariances(*arrays, reach, spread, scores, direction, which, turned)
        np.testing.assert_allclose(mean, share @ points, atol=1e-9)
        for k in range(3):
            covariance = (points * share[k][:, None]).T @ points - np.outer(mean[k], mean[k])
            np.testing.assert_allclose(turned[k], covariance @ direction[k], atol=1e-8)
            best = kernels.best(scores[k], *arrays, fixed, first, second)
            assert best.tolist() in points.tolist()
            np.testing.assert_allclose(best @ scores[k], gains[k].max(), rtol=1e-12, atol=1e-9)
            if scale == 0.0:  # all tie
                decided = max((point @ first, point @ second) for point in points)
                assert (best @ first, best @ second) == decided
        structures, scored, counts = np.zeros((3, 5, size)), np.zeros((3, 5)), np.zeros(3, dtype=np.int64)
        kernels.k_best(*arrays, fixed, first, second, scores, 5, which, structures, scored, counts)
        for k in range(3):
            assert counts[k] == min(5, len(points))
            expected = np.sort(gains[k])[::-1][: counts[k]]
            np.testing.assert_allclose(scored[k, : counts[k]], expected, rtol=1e-12, atol=1e-9)
            np.testing.assert_allclose(structures[k, : counts[k]] @ scores[k], expected, rtol=1e-12, atol=1e-9)
            assert len({tuple(point) for point in structures[k, : counts[k]]}) == counts[k]


@pytest.mark.parametrize("seed", range(40))
def test_passes_without_branches_are_those_over_arcs(seed):
    """Over arcs of 0 and 1, at scores whose sums are ordinary, at those that are not, with ties and forbidden parts."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(3, 11))
    rows = sp.csc_array(rng.integers(0, 4, (2, size)))
    nothing = np.full(2, -NO_LIMIT)
    bounds = np.zeros(size, dtype=np.int64), np.ones(size, dtype=np.int64)
    diagram = compiled_diagram(
        IntegerProgram(rows, nothing, rng.integers(1, 3 * size, 2), *bounds, size, ("a row", "another one"))
    )
    arrays, pairs = (diagram.column, diagram.start, diagram.value, diagram.child), diagram.pairs
    assert len(pairs) == diagram.nodes
    fixed, first, second = np.zeros(size), rng.integers(1, 9, size), rng.integers(1, 9, size)
    reach, spread = reach_of(diagram)[:size], math.log(diagram.count)
    scores = rng.standard_normal((7, size)) * np.array([1.0, 1e4, 1.0, 0.0, 3.0, 1e300, 1.0])[:, None]
    scores[2], scores[4, rng.random(size) < 0.5] = np.round(scores[2]), -np.inf
    direction = rng.standard_normal((7, size))

    def passes(pair, which):
        total, mean, turned = np.full(7, 5.0), np.full((7, size), 5.0), np.full((7, size), 5.0)
        kernels.sums(*arrays, pair, reach, spread, scores, which, total)
        kernels.marginals(*arrays, pair, reach, spread, fixed, scores, which, mean)
        kernels.covariances(*arrays, pair, reach, spread, scores, direction, which, turned)
        best = [kernels.best(scores[k], *arrays, pair, fixed, first, second) for k in which]
        return total[which], mean[which], turned[which], np.array(best)

    every = np.arange(7)
    together, one_by_one = passes(pairs, every), passes(np.zeros(0, dtype=np.int64), every)
    for ours, plain in zip(together[:3], one_by_one[:3], strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(together[3], one_by_one[3])
    for k in every:  # the instances beside one make no difference
        for ours, whole in zip(passes(pairs, every[k : k + 1]), together, strict=True):
            np.testing.assert_array_equal(ours[0], whole[k])


def test_diagrams_of_other_values_have_no_pairs():
    rows, bounds = sp.csc_array(np.ones((1, 3), dtype=np.int64)), (np.zeros(3, np.int64), np.full(3, 2))
    program = IntegerProgram(rows, np.full(1, -NO_LIMIT), np.full(1, 4), *bounds, 3, ("a row",))
    assert len(compiled_diagram(program).pairs) == 0


@pytest.mark.parametrize(
    "declare",
    [
        lambda: polytopes.sequence(6, 3),
        lambda: polytopes.grid_path(5, 4),
        lambda: polytopes.semi_markov(7, 2, 3),
    ],
    ids=["sequence", "grid path", "segmentation"],
)
def test_sums_of_rows_keep_flows_between_0_and_1(declare, monkeypatch):
    """Without a single question to a solver."""
    compiled = ol.compile_polytope(rows_alone(declare()))
    monkeypatch.setattr(HostPolytope, "maximize", None)
    assert compiled.is_binary(np.zeros(0))


def test_what_one_row_after_the_other_bounds_needs_no_solver(monkeypatch):
    form = ol.compile_polytope(rows_alone(polytopes.sequence(4, 3))).form
    monkeypatch.setattr(diagnosis, "Highs", None)
    assert form is not None and diagnosis.unbounded_entry(form) is None


def test_sums_of_rows_say_nothing_where_flows_may_be_larger():
    """Two units leave the source; a cycle may carry any flow; a row that is no cut has larger entries."""
    x = cp.Variable(4, nonneg=True)
    for rows in (
        [x[0] + x[1] == 2, x[2] == x[0], x[3] == x[1]],
        [x[0] == 1, x[0] + x[2] == x[1] + x[3], x[1] <= 5, x[2] <= 5, x[3] <= 5],
        [x[0] + x[1] == 1, 2 * x[2] == x[0] + x[1], x[3] == 3 * x[0]],
    ):
        polytope = ol.Polytope(x, rows)
        compiled = ol.compile_polytope(polytope)
        highest = torch.cat([compiled.maximize(one).value[None] * one for one in torch.eye(4).double()]).sum(1)
        within = all(block.within_unit() for block in compiled._blocks(np.zeros((1, 0))))
        assert within == bool((highest <= 1.0 + 1e-9).all())


@pytest.mark.parametrize("values", [2, 3])
def test_what_scores_the_same_is_listed_in_lexicographic_order(values):
    x = cp.Variable(4, integer=True)
    polytope = ol.Polytope(x, [x >= 0, x <= values - 1, cp.sum(x) <= 5])
    points = [z for z in itertools.product(range(values), repeat=4) if sum(z) <= 5]
    for scores in (torch.zeros(4), torch.tensor([0.1, 0.2, 0.3, 0.1])):  # 0.1 + 0.2 and 0.3 are not one number
        row = scores.double().tolist()
        expected = sorted(points, key=lambda z: (-math.fsum(a * b for a, b in zip(z, row, strict=True)), z))
        assert ol.Gibbs(polytope, scores).top_k(200).structures.tolist() == [list(z) for z in expected]


def test_lists_at_scores_that_have_no_sum():
    x = cp.Variable(3, boolean=True)
    scores = torch.tensor([1.7e308, 1.7e308, -1.0], dtype=torch.float64)
    best = ol.Gibbs(ol.Polytope(x, [cp.sum(x) <= 2]), scores).top_k(9)
    assert best.counts == 7 and best.structures[0].tolist() == [1.0, 1.0, 0.0]


def test_long_chains_have_a_diagram():
    """Of 590,000 states, and 19,621 nodes once those with the same completions are one."""
    passes = ol.compile_polytope(polytopes.sequence(50, 20)).paths(np.zeros(0)).passes
    assert passes.diagram.nodes == 19621 and passes.diagram.count == 20**50


@pytest.mark.parametrize(
    ("declare", "count"),
    [
        (lambda x: [cp.sum(x, axis=0) == 1, cp.sum(x, axis=1) == 1], 720),  # permutations of 6
        (lambda x: [cp.sum(x, axis=0) <= 1, cp.sum(x, axis=1) <= 1], 13327),  # partial matchings
        (lambda x: [cp.sum(x) == 5], math.comb(36, 5)),
    ],
)
def test_known_counts(declare, count):
    x = cp.Variable((6, 6), boolean=True)
    form = ol.compile_polytope(ol.Polytope(x, declare(x))).forms.full
    assert diagrams_of(form, False).of(np.zeros(0)).diagram.count == count


def knapsack(**kind) -> ol.Polytope:
    x = cp.Variable(6, boolean=True)
    return ol.Polytope(x, [WEIGHTS @ x <= 12, x[0] + x[3] <= 1], **kind)


def structures_of(condition, *ranges) -> torch.Tensor:
    return torch.tensor([v for v in itertools.product(*ranges) if condition(np.array(v))], dtype=torch.float64)


KNAPSACK = structures_of(lambda v: WEIGHTS @ v <= 12 and v[0] + v[3] <= 1, *[(0, 1)] * 6)
SOLVERS = [None, *INTEGER_SOLVERS]


def hull_distance(points: np.ndarray, answers: np.ndarray) -> float:
    """By how much answers violate the facets of the hull of points, which scipy finds."""
    facets = ConvexHull(points).equations
    return float((answers @ facets[:, :-1].T + facets[:, -1]).max())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_projections_lie_in_the_hull_and_nothing_is_nearer(solver):
    compiled = ol.compile_polytope(knapsack(), maximizer=solver)
    scores = torch.cat([draw(30, 6), draw(10, 6).round(), torch.zeros(1, 6, dtype=torch.float64), 5 * draw(10, 6)])
    answer = compiled.project(scores)
    assert answer.all_ok
    assert hull_distance(KNAPSACK.numpy(), answer.value.numpy()) < 1e-9
    left = scores - answer.value  # no structure reaches beyond the answer along what is left
    beyond = (left @ KNAPSACK.T).amax(dim=1) - (left * answer.value).sum(dim=1)
    assert float(beyond.max()) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_best_structures_and_their_ties(solver, dtype):
    compiled = ol.compile_polytope(knapsack(), maximizer=solver)
    scores = torch.cat([draw(20, 6), draw(20, 6, seed=1).round(), torch.zeros(2, 6), torch.ones(2, 6)]).to(dtype)
    scores[3, 2] = scores[25, :2] = -torch.inf
    scores[4, 1] = torch.finfo(dtype).min
    answer = compiled.maximize(scores)
    assert answer.all_ok
    assert answer.value.dtype == dtype
    exact = scores.double().clamp(min=-1e9)
    gains = exact @ KNAPSACK.T
    objectives = [ties.objective(k, 6, 6) for k in range(2)]
    for k in range(len(scores)):
        tied = KNAPSACK[gains[k] >= gains[k].max() - 1e-12 * (1 + gains[k].max().abs())]
        decided = max(tied.tolist(), key=lambda v: [objective @ v for objective in objectives])
        assert answer.value[k].tolist() == decided
        alone = compiled.maximize(scores[k : k + 1])
        assert torch.equal(alone.value[0], answer.value[k])


def test_marginals_samples_and_derivatives_are_those_of_all_structures():
    layer = ol.OptLayer(knapsack(), ol.StructuredAttention())
    scores = draw(4, 6)
    scores[3, 2] = -torch.inf
    share = torch.softmax(scores.masked_fill(torch.isneginf(scores), -1e9) @ KNAPSACK.T, dim=1)
    torch.testing.assert_close(layer(scores), share @ KNAPSACK)
    huge = 1e4 * scores[:3]
    torch.testing.assert_close(layer(huge), torch.softmax(huge @ KNAPSACK.T, dim=1) @ KNAPSACK)
    leaf = scores[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(layer, leaf)
    assert torch.autograd.gradgradcheck(layer, leaf)
    drawn = layer.compiled().bind({}, None, 3).sample(scores[:3], 4000, torch.Generator().manual_seed(0)).value
    names = {tuple(v): k for k, v in enumerate(KNAPSACK.tolist())}
    for k in range(3):
        seen = np.bincount([names[tuple(v)] for v in drawn[:, k].tolist()], minlength=len(KNAPSACK))
        expected = 4000 * share[k].numpy()
        assert (((seen - expected) ** 2) / expected).sum() < 60.0  # 22 degrees of freedom: 1e-5 above
    loss = ol.CRFLoss(knapsack())(scores[:3], KNAPSACK[:3])
    expected = torch.logsumexp(scores[:3] @ KNAPSACK.T, dim=1) - (scores[:3] * KNAPSACK[:3]).sum(dim=1)
    torch.testing.assert_close(loss, expected.mean())


def test_derivatives_on_a_device_are_those_of_compiled_passes():
    from optlayers.sums.path_sums import _by_columns

    form = ol.compile_polytope(knapsack()).forms.full
    passes, scores = diagrams_of(form, False).of(np.zeros(0)), draw(5, 6)
    scores[1, 2] = -torch.inf
    expected = torch.logsumexp(scores.masked_fill(torch.isneginf(scores), -1e9) @ KNAPSACK.T, dim=1)
    torch.testing.assert_close(_by_columns(passes, scores), expected)


def test_integers_that_are_not_binary():
    x = cp.Variable(3, integer=True, bounds=[-1, 2])
    polytope = ol.Polytope(x, [2 * x[0] + 3 * x[1] - x[2] <= 4, x[0] + x[1] + x[2] >= 0])
    points = structures_of(lambda v: 2 * v[0] + 3 * v[1] - v[2] <= 4 and v.sum() >= 0, *[range(-1, 3)] * 3)
    compiled, scores = ol.compile_polytope(polytope), draw(20, 3)
    best = compiled.maximize(scores)
    torch.testing.assert_close((best.value * scores).sum(dim=1), (scores @ points.T).amax(dim=1))
    near = compiled.project(scores)
    assert near.all_ok
    assert hull_distance(points.numpy(), near.value.numpy()) < 1e-9
    share = torch.softmax(scores @ points.T, dim=1)
    torch.testing.assert_close(ol.OptLayer(polytope, ol.StructuredAttention())(scores), share @ points)


def rows_alone(polytope: ol.Polytope) -> ol.Polytope:
    return ol.Polytope(polytope.variable, polytope.constraints, integral=True)


def test_sums_over_declared_integral_polytopes_are_passes_over_a_diagram():
    scores = draw(3, 6, 6)
    permutations = torch.tensor(list(itertools.permutations(range(6))))
    gains = scores[:, torch.arange(6), permutations].sum(dim=2)
    every = torch.nn.functional.one_hot(permutations, 6).double()
    expected = torch.einsum("bk,kij->bij", torch.softmax(gains, dim=1), every)
    layer = ol.OptLayer(rows_alone(polytopes.matching(6)), ol.StructuredAttention())
    torch.testing.assert_close(layer(scores), expected)
    assert layer.compiled().paths(np.zeros(0)) is not None
    edges = draw(3, 6, 3, 3)  # 729 sequences, by their formula
    ours = ol.OptLayer(rows_alone(polytopes.sequence(6, 3)), ol.StructuredAttention())(edges)
    torch.testing.assert_close(ours, ol.OptLayer(polytopes.sequence(6, 3), ol.StructuredAttention())(edges))


def test_structures_that_several_auxiliary_values_share_count_once():
    x, y = cp.Variable(4, boolean=True), cp.Variable(4, boolean=True)
    polytope = ol.Polytope(x, [x <= y, cp.sum(y) <= 3])  # a y for every x, and often several
    points = structures_of(lambda v: v.sum() <= 3, *[(0, 1)] * 4)
    scores = draw(5, 4)
    expected = torch.softmax(scores @ points.T, dim=1) @ points
    torch.testing.assert_close(ol.OptLayer(polytope, ol.StructuredAttention())(scores), expected)


def test_continuous_variables_beside_integers_go_to_branch_and_bound():
    x, flow = cp.Variable(4, boolean=True), cp.Variable(4)
    rows = [flow >= 0, flow <= 2.5 * x, cp.sum(flow) == 4.0]  # at least two of four
    compiled = ol.compile_polytope(ol.Polytope(x, rows))
    assert "branch and bound" in compiled.explain()
    points = structures_of(lambda v: v.sum() >= 2, *[(0, 1)] * 4)
    scores = draw(8, 4)
    torch.testing.assert_close((compiled.maximize(scores).value * scores).sum(1), (scores @ points.T).amax(1))
    with pytest.raises(ol.DeclarationError, match="some variables are not integers"):
        ol.compile_polytope(ol.Polytope(x, rows), maximizer=ol.Diagram())


def test_parameters_are_those_of_each_instance():
    x, budget = cp.Variable(6, boolean=True), cp.Parameter(name="budget")
    polytope = ol.Polytope(x, [WEIGHTS @ x <= budget])
    scores, budgets = draw(6, 6), torch.tensor([3.0, 7.5, 12.0, 27.0, 0.0, -1.0], dtype=torch.float64)
    compiled = ol.compile_polytope(polytope)
    best, near = compiled.maximize(scores, budget=budgets), compiled.project(scores[:5], budget=budgets[:5])
    assert best.status.tolist() == [0] * 5 + [int(ol.Status.INFEASIBLE)]
    assert near.all_ok
    attention = ol.OptLayer(polytope, ol.StructuredAttention())(scores[:5], budget=budgets[:5])
    for k, value in enumerate(budgets[:5].tolist()):
        points = structures_of(lambda v, value=value: WEIGHTS @ v <= value, *[(0, 1)] * 6)
        torch.testing.assert_close((best.value[k] * scores[k]).sum(), (scores[k] @ points.T).max())
        torch.testing.assert_close(attention[k], torch.softmax(scores[k] @ points.T, dim=0) @ points)
        left = scores[k] - near.value[k]
        assert float((left @ points.T).max() - left @ near.value[k]) < 1e-9


@pytest.mark.parametrize("rule", [rule for rule in DETERMINISTIC if rule in RULES], ids=repr)
def test_rules_families_and_masks(rule):
    def limited(size):
        x = cp.Variable(size, boolean=True)
        return ol.Polytope(x, [np.arange(1, size + 1) @ x <= size])

    layer, scores = ol.OptLayer(ol.Family(limited), rule), draw(4, 5)
    scores[0, 1] = -torch.inf
    leaf = scores.clone().requires_grad_()
    structures = layer(leaf, sizes=[5, 3, 4, 5])
    structures.square().sum().backward()
    assert torch.isfinite(leaf.grad).all()
    for k, size in enumerate([5, 3, 4, 5]):
        alone = ol.OptLayer(limited(size), rule)(scores[k : k + 1, :size])
        torch.testing.assert_close(structures[k, :size], alone[0])
        assert not structures[k, size:].any()


@pytest.mark.parametrize("rule", [ol.SparseMAP(), ol.StructuredAttention(), ol.Spigot()], ids=repr)
def test_contracts_of_rules_hold(rule):
    ol.testing.check_rule(rule, knapsack())


def test_contract_of_polytopes_holds():
    assert ol.testing.check_polytope(knapsack()).integral


def test_what_is_integral_by_proof_goes_to_linear_solvers():
    x = cp.Variable((3, 3), boolean=True)
    polytope = ol.Polytope(x, [cp.sum(x, axis=0) == 1, cp.sum(x, axis=1) == 1])
    compiled = ol.compile_polytope(polytope)
    assert "integral, by proof" in compiled.explain()
    assert isinstance(compiled.maximizer, ol.Auto)
    triangle = cp.Variable(3, boolean=True)  # an odd cycle: halves are a vertex of its relaxation
    rows = [triangle[0] + triangle[1] <= 1, triangle[1] + triangle[2] <= 1, triangle[0] + triangle[2] <= 1]
    compiled = ol.compile_polytope(ol.Polytope(triangle, rows))
    assert "decision diagram" in compiled.explain()
    near = compiled.project(torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(near.value, torch.full((1, 3), 1 / 3, dtype=torch.float64))
    relaxed = ol.compile_polytope(compiled.polytope.relaxed()).project(torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(relaxed.value, torch.full((1, 3), 0.5, dtype=torch.float64))


def test_relaxations_serve_spigot():
    polytope, scores = knapsack(), draw(3, 6).requires_grad_()
    ol.OptLayer(polytope, ol.Spigot(relaxation=polytope.relaxed()))(scores).square().sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_coefficients_are_read_as_fractions():
    x = cp.Variable(3, boolean=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [np.array([0.1, 0.2, 0.3]) @ x <= 0.3]))
    # 0.1 + 0.2 is more than 0.3 in floating-point numbers, and it is not meant to be.
    best = compiled.maximize(torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.float64))
    assert best.value.tolist() == [[1.0, 1.0, 0.0]]


def test_equalities_between_numbers_that_are_no_fractions_hold_exactly_and_that_is_said():
    x = cp.Variable(3, boolean=True)
    numbers = np.array([math.pi, math.e, math.sqrt(2)])
    with pytest.raises(ol.DeclarationError, match=r"no integer point .*coefficients that are no short fractions: give"):
        ol.compile_polytope(ol.Polytope(x, [numbers @ x == math.pi + math.e]))
    near = [numbers @ x <= math.pi + math.e + 1e-9, numbers @ x >= math.pi + math.e - 1e-9]
    assert ol.compile_polytope(ol.Polytope(x, near)).vertices().tolist() == [[1.0, 1.0, 0.0]]
    with pytest.raises(ol.DeclarationError, match=r"no integer point satisfies the constraints$"):
        ol.compile_polytope(ol.Polytope(x, [np.array([0.2, 0.4, 0.6]) @ x == 0.5]))


def test_wide_declarations_say_where_and_go_to_branch_and_bound():
    weights = np.random.default_rng(0).random(40)
    x = cp.Variable(40, boolean=True)
    polytope = ol.Polytope(x, [weights @ x <= 10.0])
    with pytest.raises(ol.DeclarationError, match=r"more than 5000 nodes: after \d+ of 40 columns .* constraint 0"):
        ol.compile_polytope(polytope, maximizer=ol.Diagram(node_limit=5000))
    form = ol.compile_polytope(polytope, maximizer=ol.BranchAndBound()).forms.full
    with pytest.raises(TooWide):
        diagrams_of(form, False).of(np.zeros(0))
    with pytest.raises(ValueError, match=r"need a decision diagram; the decision diagram needs more than"):
        ol.OptLayer(polytope, ol.StructuredAttention())(draw(1, 40))


def test_a_search_that_ends_early_is_no_answer():
    rng = np.random.default_rng(0)
    x = cp.Variable(60, boolean=True)
    polytope = ol.Polytope(x, [rng.integers(10, 100, (5, 60)) @ x == rng.integers(1400, 1500, 5)])
    layer = ol.OptLayer(polytope, ol.Pipeline(), maximizer=ol.BranchAndBound(node_limit=1, time_limit=0.5))
    with pytest.raises(ol.SolveError, match="search ended before a best structure was proved"):
        layer(draw(1, 60))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ol.Diagram(node_limit=0), "node_limit must be positive"),
        (lambda: ol.BranchAndBound(time_limit=0), "time_limit must be positive"),
        (lambda: ol.BranchAndBound(node_limit=0), "node_limit must be a positive integer"),
        (lambda: ol.compile_polytope(knapsack(), maximizer=ol.Highs()), "finds best vertices of the linear relaxation"),
        (
            lambda: ol.compile_polytope(knapsack(), projector=ol.Clarabel()),
            "finds projections of the linear relaxation",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_copies_and_pickles_give_the_same_answers():
    scores = draw(5, 6)
    for solver in SOLVERS:
        layer = ol.OptLayer(knapsack(), ol.SparseMAP(), maximizer=solver)
        expected = layer(scores)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(scores), expected)


def pair(**kind) -> cp.Variable:
    return cp.Variable(2, boolean=True, **kind)


def symmetric(low: float, high: float, **kind) -> ol.Polytope:
    x = cp.Variable((2, 2), symmetric=True, **kind)
    return ol.Polytope(x, [x >= low, x <= high])


GONE_WRONG = {
    "exact integers, one unit over": (lambda x: [1e9 * x[0] + x[1] <= 1e9], lambda v: 10**9 * v[0] + v[1] <= 10**9),
    "an equality one unit off": (lambda x: [1e10 * x[0] + x[1] == 1e10], lambda v: 10**10 * v[0] + v[1] == 10**10),
    "large and small, together": (
        lambda x: [1e7 * x[0] + 0.1 * x[1] == 10000000.1],
        lambda v: 10**8 * v[0] + v[1] == 10**8 + 1,
    ),
    "small beside large": (lambda x: [1e-3 * x[0] + 1e14 * x[1] >= 1e14], lambda v: v[1] == 1),
    "thirds": (lambda x: [x[0] / 3 + x[1] / 3 <= 2 / 3 - 1e-6], lambda v: v.sum() <= 1),
    "a row that says nothing": (lambda x: [0 * x[0] + x[1] <= 1], lambda v: True),
}


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("what", GONE_WRONG)
def test_coefficients_of_all_sizes_mean_what_they_say(what, solver):
    declare, condition = GONE_WRONG[what]
    x = pair()
    points = structures_of(condition, (0, 1), (0, 1))
    if solver == SOLVERS[1] and what == "small beside large":
        with pytest.raises(ol.DeclarationError, match="differ too much in size to be told apart"):
            ol.compile_polytope(ol.Polytope(x, declare(x)), maximizer=solver)
        return
    layer = ol.OptLayer(ol.Polytope(x, declare(x)), ol.Pipeline(), maximizer=solver, on_failure="nan")
    scores = torch.tensor([[1.0, 1.0], [1.0, -2.0], [-2.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    found = layer(scores)
    said = ~found.isnan().any(dim=1)  # HiGHS may not tell, and then says so
    assert solver == SOLVERS[2] or said.all()
    for k in torch.nonzero(said).flatten().tolist():
        assert found[k].tolist() in points.tolist()
        assert float(found[k] @ scores[k]) == float((points @ scores[k]).max())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_parameters_decide_where_all_that_is_scored_is_fixed(solver):
    x, y, p = pair(), pair(), cp.Parameter(name="p")
    compiled = ol.compile_polytope(ol.Polytope(x, [x == 1, x[0] + y[0] + y[1] >= p]), maximizer=solver)
    values, scores = torch.tensor([2.0, 5.0], dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for answer in (compiled.maximize(scores, p=values), compiled.project(scores, p=values)):
        assert answer.status.tolist() == [0, int(ol.Status.INFEASIBLE)]


def test_sums_at_huge_scores_keep_their_shares():
    x = cp.Variable(6, boolean=True)
    polytope = ol.Polytope(x, [np.array([2, 3, 4, 5, 2, 3]) @ x <= 9.5])
    points = structures_of(lambda v: np.array([2, 3, 4, 5, 2, 3]) @ v <= 9, *[(0, 1)] * 6)
    best = points[points.sum(dim=1) == points.sum(dim=1).max()]  # which tie, when all scores are the same
    for size in (1e4, 1e6, 1e9, 1e12, 1e15):
        gibbs = ol.Gibbs(polytope, torch.full((6,), size, dtype=torch.float64))
        torch.testing.assert_close(gibbs.mean, best.mean(dim=0))
        torch.testing.assert_close(
            gibbs.entropy(), torch.tensor(math.log(len(best)), dtype=torch.float64), rtol=0, atol=1e-15 * size + 1e-9
        )


def test_fixed_parts_beyond_0_and_1_belong_to_structures():
    x = cp.Variable(2, integer=True, bounds=[[2, 0], [2, 1]])
    gibbs = ol.Gibbs(ol.Polytope(x, []), torch.zeros(2, dtype=torch.float64))
    assert float(gibbs.log_prob(torch.tensor([2.0, 1.0], dtype=torch.float64))) == pytest.approx(-math.log(2))


@pytest.mark.parametrize("kind", [{}, {"boolean": True}, {"integer": True}])
def test_symmetric_variables(kind):
    compiled = ol.compile_polytope(symmetric(0, 1, **kind))
    best = compiled.maximize(torch.tensor([[1.0, 2.0], [-3.0, -1.0]], dtype=torch.float64))
    assert best.value.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    x, y = cp.Variable(2, boolean=True), cp.Variable((2, 2), diag=True, boolean=True)
    hull = ol.compile_polytope(
        ol.Polytope(x, [x[0] <= y[0, 0], x[1] <= y[1, 1], cp.trace(y) <= 1]), maximizer=ol.Diagram()
    )
    assert hull.vertices().tolist() == [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]


def test_integers_of_very_many_values_go_to_branch_and_bound():
    x = cp.Variable(2, integer=True, bounds=[0, 1e9])
    compiled = ol.compile_polytope(ol.Polytope(x, [2 * x[0] + 3 * x[1] <= 1e9]))
    assert "branch and bound" in compiled.explain()
    assert compiled.maximize(torch.tensor([[1.0, 1.0]], dtype=torch.float64)).value.tolist() == [[5e8, 0.0]]
    half = cp.Variable(1, integer=True)
    compiled = ol.compile_polytope(ol.Polytope(half, [half >= 0, half <= 1e9 + 0.5]))
    assert compiled.maximize(torch.ones(1, 1, dtype=torch.float64)).value.item() == 1e9


def test_no_sum_is_looked_for_where_it_would_take_for_ever():
    weights = np.random.default_rng(0).integers(1, 1000, (3, 30))
    x = cp.Variable(30, boolean=True)
    polytope = ol.Polytope(x, [weights @ x <= weights.sum(axis=1) // 2])
    with pytest.raises(ValueError, match=r"need a decision diagram; .*needs more than .* nodes.*SparseMAP"):
        _ = ol.Gibbs(polytope, torch.zeros(30)).log_partition


def test_one_point_and_no_scored_layer():
    x, y = cp.Variable(1, boolean=True), pair()
    polytope = ol.Polytope(x, [x == 1, y[0] + y[1] >= 0.75, x[0] >= y[1]])
    for solver in SOLVERS:
        assert ol.compile_polytope(polytope, maximizer=solver).maximize(torch.zeros(1, 1)).value.item() == 1.0
    assert ol.Gibbs(polytope, torch.zeros(1)).log_count().item() == 0.0


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_parts_with_a_score_of_0_tie_beside_decimals(solver):
    x = cp.Variable(3, boolean=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [np.array([2, 2, 3]) @ x <= 4]), maximizer=solver)
    best = compiled.maximize(torch.tensor([[-0.9, 0.0, -1.3], [0.0, 0.3, 0.0]], dtype=torch.float64))
    assert best.value.tolist() == [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    assert not torch.signbit(best.value).any()


def test_projections_over_branch_and_bound_end_at_vertices():
    x, y = pair(), pair()
    compiled = ol.compile_polytope(ol.Polytope(x, [x[0] + y[0] + y[1] >= 2]), maximizer=ol.BranchAndBound())
    near = compiled.project(torch.tensor([[0.0, -2.0]], dtype=torch.float64))
    assert near.all_ok
    torch.testing.assert_close(near.value, torch.zeros(1, 2, dtype=torch.float64))
