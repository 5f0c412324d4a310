"""Best structures and sums over structures, by themselves, against the enumeration of all structures."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass

import cvxpy as cp
import numba
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from catalogue import CATALOGUE
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import optlayers as ol
import polytopes


@dataclass(frozen=True)
class Structure:
    """A polytope and all its structures, one per row: the parts, then those of scored auxiliary variables."""

    name: str
    polytope: ol.Polytope
    rows: np.ndarray
    parameters: tuple[float, ...] = ()

    def __repr__(self) -> str:
        return self.name

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [self.polytope.shape, *(tuple(v.shape) for v in self.polytope.scored)]

    def split(self, flat):
        """``(*batch, parts)`` in the shapes of the variables."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        batch = flat.shape[:-1]
        pieces = zip([0, *ends], ends, self.shapes, strict=False)
        return [flat[..., a:b].reshape(*batch, *shape) for a, b, shape in pieces]

    def best(self, scores: np.ndarray) -> np.ndarray:
        """The oracle's answer, flat."""
        given = [np.ascontiguousarray(s) for s in self.split(scores)]
        kept = [s.copy() for s in given]
        answer = self.polytope.oracle(*given, *(np.array(p) for p in self.parameters))
        parts = answer if isinstance(answer, tuple) else (answer,)
        assert [p.shape for p in parts] == self.shapes
        assert all(p.dtype == np.float64 and p.flags.c_contiguous for p in parts)
        assert all(np.array_equal(a, b) for a, b in zip(given, kept, strict=True)), "the scores were changed"
        return np.concatenate([p.reshape(-1) for p in parts])

    def log_partition(self, scores: torch.Tensor) -> torch.Tensor:
        return self.polytope.log_partition(*self.split(scores), *self.parameters)

    def allowed(self, scores: np.ndarray) -> np.ndarray:
        """The structures that do without forbidden parts."""
        return self.rows[~(self.rows[:, np.isneginf(scores)] != 0).any(axis=1)]


def chains(steps: int, states: int) -> Iterator[np.ndarray]:
    for path in itertools.product(range(states), repeat=steps):
        x, v = np.zeros((steps, states)), np.zeros((steps, states, states))
        x[np.arange(steps), path] = 1.0
        v[np.arange(steps), (0, *path[:-1]), path] = 1.0
        yield np.concatenate([x.reshape(-1), v.reshape(-1)])


def chain(steps: int, states: int) -> Structure:
    rows = np.stack(list(chains(steps, states)))
    return Structure(f"linear chain {steps}x{states}", polytopes.linear_chain(steps, states), rows)


CHAINS = [chain(3, 3), chain(2, 5), chain(1, 3), chain(3, 1), chain(1, 1)]
STRUCTURES = [
    Structure(e.name, e.polytope, e.vertices.reshape(len(e.vertices), -1), tuple(e.parameters.values()))
    for e in CATALOGUE
    if e.polytope.oracle is not None
] + CHAINS
SUMMED = [s for s in STRUCTURES if s.polytope.log_partition is not None]
each_structure = pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
each_sum = pytest.mark.parametrize("structure", SUMMED, ids=repr)


def draw(structure: Structure, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, structure.rows.shape[1]))


def masked(structure: Structure, count: int, seed: int = 0) -> np.ndarray:
    """Scores of which few, then many, then all are -inf."""
    scores, generator = draw(structure, count, seed), np.random.default_rng(seed + 1)
    share = np.linspace(0.05, 1.0, count)[:, None]
    scores[generator.random(scores.shape) < share] = -np.inf
    scores[-1] = -np.inf
    return scores


def test_every_structure_but_trees_has_an_oracle():
    assert all(e.polytope.oracle is not None for e in CATALOGUE if "tree" not in e.name)
    without = {s.name for s in STRUCTURES if s.polytope.log_partition is None}
    assert all("matching" in name or "ranking" in name for name in without)  # their sums are permanents


@pytest.mark.many(28)
@each_structure
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6, 1e300, 1e-300])
def test_oracle_finds_the_best_structure_at_any_scale(structure, scale):
    for scores in scale * draw(structure, 30):
        np.testing.assert_array_equal(
            structure.best(scores), structure.rows[(structure.rows @ (scores / scale)).argmax()]
        )


@each_structure
def test_oracle_finds_one_of_tied_structures_and_always_the_same(structure):
    rows = {tuple(row) for row in structure.rows}
    for scores in [*np.round(draw(structure, 40)), *(np.full(structure.rows.shape[1], c) for c in (0.0, 1.0, -1.0))]:
        found = structure.best(scores)
        assert tuple(found) in rows
        assert found @ scores == (structure.rows @ scores).max()  # integers: no rounding
        np.testing.assert_array_equal(found, structure.best(scores))


@each_structure
def test_oracle_does_without_forbidden_parts_or_says_nan(structure):
    infeasible = 0
    for scores in masked(structure, 60):
        allowed, found = structure.allowed(scores), structure.best(scores)
        if not len(allowed):
            infeasible += 1
            assert np.isnan(found).all()
            continue
        values = allowed @ np.where(np.isneginf(scores), 0.0, scores)
        np.testing.assert_array_equal(found, allowed[values.argmax()])
    assert infeasible or not structure.rows.any(axis=1).all()  # all parts are forbidden in the last


@pytest.mark.many(4)
@each_structure
def test_oracle_is_called_by_compiled_code(structure):
    oracle = structure.polytope.oracle
    function, constants = (oracle.function, oracle.constants) if isinstance(oracle, ol.CompiledOracle) else (oracle, ())
    scores = structure.split(draw(structure, 1)[0])
    arguments = (*scores, *(np.array(p) for p in structure.parameters), *constants)

    @numba.njit
    def call(arguments):
        return function(*arguments)

    expected = structure.polytope.oracle(*arguments[: len(arguments) - len(constants)])
    np.testing.assert_equal(call(arguments), expected)


def test_one_compiled_function_serves_all_sizes():
    for make, one, other in [
        (polytopes.simplex, (2,), (3,)),
        (polytopes.cube, (2,), (3,)),
        (polytopes.subset, (2,), (3,)),
        (polytopes.matching, (2,), (3,)),
        (polytopes.rectangular_matching, (2, 3), (4, 2)),
        (polytopes.partial_matching, (2, 3), (4, 2)),
        (polytopes.sequence, (1, 2), (3, 4)),
        (polytopes.linear_chain, (2, 2), (3, 4)),
        (polytopes.permutahedron, (2,), (3,)),
    ]:
        assert make(*one).oracle is make(*other).oracle
    small, large = polytopes.grid_path(2, 2).oracle, polytopes.grid_path(3, 4).oracle
    assert small.function is large.function
    structure_of_signature = [numba.typeof(c) for c in small.constants]
    assert structure_of_signature == [numba.typeof(c) for c in large.constants]


@pytest.mark.parametrize("rows", range(1, 31))
def test_matchings_equal_those_of_scipy(rows):
    generator = np.random.default_rng(rows)
    for columns in (rows, rows + 1, 2 * rows, max(1, rows - 1), max(1, rows // 2)):
        polytope = polytopes.rectangular_matching(rows, columns)
        for tenth in range(0, 10, 3):
            scores = generator.standard_normal((rows, columns))
            scores[generator.random(scores.shape) < tenth / 10] = -np.inf
            found = polytope.oracle(scores)
            try:
                chosen = scipy.optimize.linear_sum_assignment(scores, maximize=True)
            except ValueError:
                assert np.isnan(found).all()
                continue
            expected = np.zeros(scores.shape)
            expected[chosen] = 1.0
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(polytopes.partial_matching(rows, columns).oracle(scores - 10.0), 0.0)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
few_integers = shapes.flatmap(lambda shape: arrays(np.float64, shape, elements=st.sampled_from([-np.inf, -1, 0, 1, 2])))


@settings(max_examples=300, deadline=None)
@given(few_integers)
def test_tied_matchings_are_worth_as_much_as_those_of_scipy(scores):
    found = polytopes.rectangular_matching(*scores.shape).oracle(scores)
    try:
        chosen = scipy.optimize.linear_sum_assignment(scores, maximize=True)
    except ValueError:
        assert np.isnan(found).all()
    else:
        assert scores[found == 1.0].sum() == scores[chosen].sum() and found.sum() == min(scores.shape)
        assert (found.sum(axis=0) <= 1).all() and (found.sum(axis=1) <= 1).all()
    positive = np.maximum(scores, 0.0)
    partial = polytopes.partial_matching(*scores.shape).oracle(scores)
    assert scores[partial == 1.0].sum() == positive[scipy.optimize.linear_sum_assignment(-positive)].sum()
    assert (partial.sum(axis=0) <= 1).all() and (partial.sum(axis=1) <= 1).all()


def test_matchings_of_scores_that_differ_by_rounding_alone():
    # Prices of an auction may fall by one unit in the last place at a time here, for as long as it is let.
    generator = np.random.default_rng(0)
    for size in (5, 20, 60):
        scores = 1.0 + generator.integers(0, 4, (size, size)) * np.finfo(float).eps
        found = polytopes.matching(size).oracle(scores)
        chosen = scipy.optimize.linear_sum_assignment(scores - 1.0, maximize=True)
        np.testing.assert_array_equal((found.sum(axis=0), found.sum(axis=1)), 1.0)
        assert abs(((scores - 1.0) * found).sum() - (scores - 1.0)[chosen].sum()) <= 1e-15 * size


def test_documented_ties():
    equal = np.ones(3)
    np.testing.assert_array_equal(polytopes.simplex(3).oracle(equal), [1, 0, 0])
    np.testing.assert_array_equal(polytopes.cube(3).oracle(np.zeros(3)), 0)
    np.testing.assert_array_equal(polytopes.subset(3).oracle(np.array([0.0, 1.0, 0.0]), np.array(2.0)), [1, 1, 0])
    np.testing.assert_array_equal(polytopes.permutahedron(3).oracle(np.array([1.0, 2.0, 1.0])), [2, 3, 1])
    np.testing.assert_array_equal(polytopes.partial_matching(2, 2).oracle(np.zeros((2, 2))), 0)
    np.testing.assert_array_equal(polytopes.dag_path(2, [(0, 1), (0, 1)]).oracle(np.ones(2)), [1, 0])
    edges = np.zeros((2, 2, 2))
    edges[1] = [[0, 1], [1, 0]]  # 0 then 1, or 1 then 0: the smaller state comes last
    states = polytopes.sequence(2, 2).oracle(edges).sum(axis=1)
    np.testing.assert_array_equal(states, [[0, 1], [1, 0]])
    states, _ = polytopes.linear_chain(4, 6).oracle(np.zeros((4, 6)), np.zeros((4, 6, 6)))
    np.testing.assert_array_equal(states.argmax(axis=1), 0)


@pytest.mark.parametrize("budget", [0.0, 0.25, 1.0, 1.5, 2.0 + 1e-12, 3.75, 4.0])
def test_best_vertex_of_a_fractional_budget(budget):
    for scores in draw(STRUCTURES[0], 20)[:, :4]:
        found = polytopes.subset(4).oracle(scores, np.array(budget))
        linear = scipy.optimize.linprog(-scores, A_eq=np.ones((1, 4)), b_eq=[budget], bounds=(0, 1))
        np.testing.assert_allclose(found, linear.x, atol=1e-9)
        assert ((found != 0) & (found != 1)).sum() == (budget in (0.25, 1.5, 3.75))


def test_budgets_that_no_subset_has():
    for budget in (-1.0, 3.5, np.nan):
        assert np.isnan(polytopes.subset(3).oracle(np.zeros(3), np.array(budget))).all()
    two = np.array([1.0, -np.inf, 0.5])
    assert np.isnan(polytopes.subset(3).oracle(two, np.array(2.5))).all()
    np.testing.assert_array_equal(polytopes.subset(3).oracle(two, np.array(2.0)), [1, 0, 1])


def test_what_the_constraints_fix_may_carry_any_score():
    scores = draw(next(s for s in STRUCTURES if s.name == "sequence"), 1)[0].reshape(3, 2, 2)
    expected = polytopes.sequence(3, 2).oracle(scores)
    for value in (-np.inf, 1e300):
        scores[0, 1] = value
        np.testing.assert_array_equal(polytopes.sequence(3, 2).oracle(scores), expected)


@pytest.mark.parametrize("structure", CHAINS, ids=repr)
def test_the_declared_chain_has_the_same_best_structure(structure):
    variables = (structure.polytope.variable, *structure.polytope.scored)
    for scores in draw(structure, 5):
        value = sum(cp.sum(cp.multiply(s, v)) for s, v in zip(structure.split(scores), variables, strict=True))
        problem = cp.Problem(cp.Maximize(value), structure.polytope.constraints)
        best = problem.solve(solver=cp.HIGHS, canon_backend=cp.SCIPY_CANON_BACKEND)
        found = structure.best(scores)
        assert abs(found @ scores - best) <= 1e-9
        assert ol.testing.contains(structure.polytope, torch.tensor(structure.split(found)[0]))
    assert [v.name() for v in structure.polytope.scored] == ["transition"]


# Sums over all structures


def enumerated(structure: Structure, scores: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Log partition, marginals and covariance."""
    allowed = structure.allowed(scores)
    size = len(scores)
    if not len(allowed):
        return -np.inf, np.zeros(size), np.zeros((size, size))
    values = allowed @ np.where(np.isneginf(scores), 0.0, scores)
    weight = scipy.special.softmax(values)
    mean = weight @ allowed
    return float(scipy.special.logsumexp(values)), mean, (allowed.T * weight) @ allowed - np.outer(mean, mean)


def assert_equals_enumeration(structure: Structure, scores: np.ndarray, tolerance: float) -> None:
    s = torch.tensor(scores, requires_grad=True)
    direction = torch.tensor(draw(structure, len(scores), seed=7))
    value = structure.log_partition(s)
    (marginals,) = torch.autograd.grad(value.sum(), s, create_graph=True)
    (second,) = torch.autograd.grad((marginals * direction).sum(), s)
    for k, instance in enumerate(scores):
        expected, mean, covariance = enumerated(structure, instance)
        np.testing.assert_allclose(value[k].item(), expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(marginals[k].detach(), mean, atol=tolerance)
        np.testing.assert_allclose(second[k], covariance @ direction[k].numpy(), atol=10 * tolerance)


@each_sum
def test_sum_marginals_and_covariance_equal_enumeration(structure):
    assert_equals_enumeration(structure, draw(structure, 10), 1e-12)


@each_sum
def test_sums_without_forbidden_parts(structure):
    scores = masked(structure, 40)
    if structure.rows.any(axis=1).all():
        assert enumerated(structure, scores[-1])[0] == -np.inf
    assert_equals_enumeration(structure, scores, 1e-12)


@each_sum
def test_sums_of_large_and_of_tied_scores(structure):
    assert_equals_enumeration(structure, 1000.0 * draw(structure, 10), 1e-9)
    assert_equals_enumeration(structure, np.round(draw(structure, 10)) * 1000.0, 1e-9)


@pytest.mark.many(3)
@each_sum
def test_derivatives_of_sums_by_finite_differences(structure):
    scores = torch.tensor(draw(structure, 2), requires_grad=True)
    assert torch.autograd.gradcheck(structure.log_partition, (scores,))
    assert torch.autograd.gradgradcheck(structure.log_partition, (scores,))


@each_sum
def test_sums_take_any_batch_and_dtype(structure):
    scores = torch.tensor(draw(structure, 6))
    expected = structure.log_partition(scores)
    assert expected.shape == (6,)
    torch.testing.assert_close(structure.log_partition(scores.reshape(2, 3, -1)), expected.reshape(2, 3))
    torch.testing.assert_close(structure.log_partition(scores[0]), expected[0])
    assert structure.log_partition(scores[:0]).shape == (0,)
    single = scores.float().requires_grad_()
    value = structure.log_partition(single)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(value.sum(), single)[0].dtype == torch.float32


def test_sum_over_subsets_of_a_budget_per_instance():
    scores, budgets = torch.tensor(draw(STRUCTURES[0], 4)).repeat(1, 2)[:, :6], torch.tensor([0.0, 2.0, 5.0, 6.0])
    log_partition = polytopes.subset(6).log_partition
    together = log_partition(scores, budgets)
    for k in range(4):
        chosen = itertools.combinations(scores[k].tolist(), int(budgets[k]))
        assert together[k].item() == pytest.approx(scipy.special.logsumexp([sum(c) for c in chosen]), abs=1e-12)
        torch.testing.assert_close(log_partition(scores[k], budgets[k]), together[k])
    scores.requires_grad_()
    (marginals,) = torch.autograd.grad(log_partition(scores, budgets).sum(), scores)
    torch.testing.assert_close(marginals.sum(-1), budgets.double())


def test_sum_over_many_subsets():
    scores = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    value = polytopes.subset(1000).log_partition(scores, 300)
    assert value.item() == pytest.approx(-np.log(1001) - scipy.special.betaln(701, 301), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, scores)[0], torch.full_like(scores, 0.3))


def test_sum_over_subsets_of_more_elements_than_there_are():
    scores = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    found = polytopes.subset(3).log_partition(scores, torch.tensor([2.0, 4.0, -1.0]))
    assert found[0].item() == pytest.approx(np.log(3)) and (found[1:] == -torch.inf).all()
    marginals = torch.autograd.grad(found.sum(), scores)[0]
    torch.testing.assert_close(marginals, torch.tensor([[2 / 3], [0.0], [0.0]], dtype=torch.float64).expand(3, 3))


@pytest.mark.parametrize("wrong", [1.5, float("nan")])
def test_sum_over_subsets_names_the_instance_of_a_budget_that_is_no_integer(wrong):
    log_partition = polytopes.subset(3).log_partition
    with pytest.raises(ValueError, match=r"budget of instance 1 is .*; marginals of subsets need an integer"):
        log_partition(torch.zeros(2, 3), torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match="budget of instance \\(1, 0\\) is"):
        log_partition(torch.zeros(2, 1, 3), torch.tensor([[1.0], [wrong]]))
    with pytest.raises(ValueError, match="budget is"):
        log_partition(torch.zeros(3), wrong)


def test_marginals_of_a_chain_equal_those_of_torch_struct():
    torch_struct = pytest.importorskip("torch_struct")
    generator = torch.Generator().manual_seed(0)
    edges = torch.randn(4, 10, 5, 5, dtype=torch.float64, generator=generator)  # from row to column
    edges[:, 0] = 0.0
    edges.requires_grad_()
    value = polytopes.linear_chain(10, 5).log_partition(torch.zeros(4, 10, 5, dtype=torch.float64), edges)
    theirs = torch_struct.LinearChainCRF(edges.detach()[:, 1:].transpose(-1, -2))
    torch.testing.assert_close(value.detach(), theirs.partition)
    mine = torch.autograd.grad(value.sum(), edges)[0]
    torch.testing.assert_close(mine[:, 1:], theirs.marginals.transpose(-1, -2))


# Graphs


def test_arcs_of_grids():
    assert len(polytopes.grid_arcs(5, 5)) == 40 == polytopes.grid_path(5, 5).shape[0]
    assert polytopes.grid_arcs(2, 3).tolist() == [[0, 1], [1, 2], [0, 3], [1, 4], [2, 5], [3, 4], [4, 5]]
    with pytest.raises(ValueError, match="one cell has no arcs"):
        polytopes.grid_arcs(1, 1)
    with pytest.raises(ValueError, match="rows must be at least 1, but got 0"):
        polytopes.grid_path(0, 3)


def test_sum_over_the_paths_of_a_large_grid():
    grid = polytopes.grid_path(12, 9)
    scores = torch.zeros(grid.shape, dtype=torch.float64)
    assert grid.log_partition(scores).item() == pytest.approx(np.log(scipy.special.comb(19, 8)), rel=1e-12)
    assert grid.oracle(scores.numpy()).sum() == 19


@pytest.mark.parametrize(
    ("nodes", "arcs", "message"),
    [
        (1, [(0, 1)], "nodes must be at least 2, but got 1"),
        (3, [], r"arcs must be pairs \(tail, head\), an array \(arcs, 2\), but their shape is \(0,\)"),
        (3, [(0, 1, 2)], r"their shape is \(1, 3\)"),
        (3, [(0.0, 2.0)], "arcs must be integers, but their dtype is float64"),
        (3, [(0, 2), (1, 3)], r"arc 1, \(1, 3\), leaves the nodes 0 to 2"),
        (3, [(0, 2), (-1, 2)], r"arc 1, \(-1, 2\), leaves the nodes 0 to 2"),
        (3, [(0, 2), (2, 1)], r"arc 1, \(2, 1\), must lead from a smaller to a larger number"),
        (3, [(0, 2), (1, 1)], r"arc 1, \(1, 1\), must lead from a smaller to a larger number"),
        (4, [(0, 1), (2, 3)], r"no path leads from node 0 to node 3; nodes reached: \[0 1\]"),
    ],
)
def test_arcs_that_do_not_fit_are_named(nodes, arcs, message):
    with pytest.raises(ValueError, match=message):
        polytopes.dag_path(nodes, arcs)


def test_random_graphs_in_any_order_of_arcs():
    generator = np.random.default_rng(0)
    for _ in range(30):
        nodes = int(generator.integers(2, 7))
        pairs = np.array(list(itertools.combinations(range(nodes), 2)))
        arcs = generator.permutation(np.concatenate([pairs[generator.random(len(pairs)) < 0.7], [[0, nodes - 1]]]))
        paths = [list(p) for p in _paths(arcs.tolist(), 0, nodes - 1)]
        rows = np.zeros((len(paths), len(arcs)))
        for row, path in zip(rows, paths, strict=True):
            row[path] = 1.0
        structure = Structure("graph", polytopes.dag_path(nodes, arcs), rows)
        for scores in masked(structure, 10):
            allowed, found = structure.allowed(scores), structure.best(scores)
            if len(allowed):
                best = (allowed @ np.where(np.isneginf(scores), 0.0, scores)).argmax()
                np.testing.assert_array_equal(found, allowed[best])
            else:
                assert np.isnan(found).all()
        assert_equals_enumeration(structure, masked(structure, 10), 1e-12)


def _paths(arcs: list[list[int]], node: int, last: int) -> Iterator[tuple[int, ...]]:
    if node == last:
        yield ()
    for k, (tail, head) in enumerate(arcs):
        if tail == node:
            yield from ((k, *rest) for rest in _paths(arcs, head, last))


def test_compiled_oracles_keep_their_own_constants():
    function = polytopes.grid_path(2, 2).oracle.function
    given = np.array([[0, 1], [2, 3]], dtype=np.int32)[:, ::-1]
    price = np.array([0.5])
    oracle = ol.CompiledOracle(function, [given, price])
    given[:], price[:] = 7, 7.0
    assert [c.dtype for c in oracle.constants] == [np.int64, np.float64] and oracle.constants[1] == [0.5]
    np.testing.assert_array_equal(oracle.constants[0], [[1, 0], [3, 2]])
    assert oracle.constants[0].flags.c_contiguous
    with pytest.raises(TypeError, match="constant 1 of a CompiledOracle must hold numbers, but its dtype is <U1"):
        ol.CompiledOracle(function, [[1], "a"])


def test_structures_of_graphs_can_be_pickled():
    grid = polytopes.grid_path(3, 3)
    copy = pickle.loads(pickle.dumps(grid))
    scores = np.random.default_rng(0).standard_normal(12)
    np.testing.assert_array_equal(copy.oracle(scores), grid.oracle(scores))
    assert copy.log_partition(torch.tensor(scores)) == grid.log_partition(torch.tensor(scores))
    assert copy.oracle.__name__ == "_best_derivation"
