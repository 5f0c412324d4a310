"""Oracles in the batch loop, and projections by an active set of the vertices they bring."""

import cvxpy as cp
import numba
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE
from hypothesis import given, settings
from hypothesis import strategies as st

import optlayers as ol
import polytopes
from optlayers.solvers import pool
from optlayers.testing import check_oracle, check_polytope

OVER_VERTICES = [e for e in CATALOGUE if not e.parameters]
each_structure = pytest.mark.parametrize("entry", OVER_VERTICES, ids=repr)


def scores_for(shape, count, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def over_vertices(polytope):
    return ol.compile_polytope(polytope, projector=ol.ActiveSet())


@pytest.mark.many(10)
@each_structure
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_projections_and_gradients_are_those_of_the_declared_rows(entry, scale):
    scores = scores_for(entry.polytope.shape, 24, scale=scale)
    direction = scores_for(entry.polytope.shape, 24, seed=1)
    oracle, rows = over_vertices(entry.polytope), ol.compile_polytope(entry.polytope.without_oracle())
    mine, theirs = oracle.project(scores).check(), rows.project(scores).check()
    assert (mine.value - theirs.value).abs().max() <= 1e-7
    assert mine.gap.max() <= 1e-12 * max(scale, 1.0) * scores[0].numel()
    gradients = oracle.tangent(mine, direction).scores, rows.tangent(theirs, direction).scores
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-6
    values = [(scores * c.maximize(scores).check().value).flatten(1).sum(1) for c in (oracle, rows)]
    assert (values[0] - values[1]).abs().max() <= 1e-9 * max(scale, 1.0)


@pytest.mark.many(3)
@each_structure
def test_projections_with_forbidden_parts(entry):
    scores = scores_for(entry.polytope.shape, 16, seed=2)
    generator = torch.Generator().manual_seed(3)
    scores = scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.2, -torch.inf)
    oracle, rows = over_vertices(entry.polytope), ol.compile_polytope(entry.polytope.without_oracle())
    mine, theirs = oracle.project(scores), rows.project(scores)
    if entry.name.startswith("ranking"):
        # That -inf means 0 cuts a face off no vertex of which is a ranking: only rows can tell.
        theirs = ol.Solution(theirs.value, mine.status, theirs.primal_residual, theirs.gap)
    assert torch.equal(mine.status, theirs.status)
    good = mine.ok
    assert good.any() or entry.name.startswith("ranking") or entry.name.endswith((" one", "one word", "of all"))
    assert ((mine.value - theirs.value)[good].abs() <= 1e-7).all()
    assert (oracle.maximize(scores).status == mine.status).all()


def test_the_derivative_at_a_symmetric_point_is_that_of_the_half_spaces():
    """Two opposite corners of the square make up its center, but do not span it."""
    compiled = over_vertices(polytopes.cube(2))
    center = compiled.project(torch.full((1, 2), 0.5, dtype=torch.float64)).check()
    jacobian = torch.cat([compiled.tangent(center, row[None]).scores for row in torch.eye(2, dtype=torch.float64)])
    assert (jacobian - torch.eye(2, dtype=torch.float64)).abs().max() <= 1e-14


@pytest.mark.parametrize(
    "polytope", [polytopes.matching(4), polytopes.arborescence(5), polytopes.sequence(4, 3)], ids=lambda p: str(p.shape)
)
def test_the_derivative_where_scores_tie(polytope):
    oracle, rows = over_vertices(polytope), ol.compile_polytope(polytope.without_oracle())
    direction = scores_for(polytope.shape, 1)
    zero = torch.zeros_like(direction)
    mine, theirs = oracle.project(zero).check(), rows.project(zero).check()
    assert (mine.value - theirs.value).abs().max() <= 1e-9
    gap = oracle.tangent(mine, direction).scores - rows.tangent(theirs, direction).scores
    assert gap.abs().max() <= 1e-6


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(1, 4), words=st.integers(1, 6))
def test_trees_of_tied_scores_are_projected_and_certified(seed, levels, words):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (3, words + 1, words + 1), generator=generator).to(torch.float64)
    compiled = over_vertices(polytopes.arborescence(words))
    solution = compiled.project(scores).check()
    step = scores - solution.value
    best = compiled.maximize(step).check().value
    assert ((step * (best - solution.value)).flatten(1).sum(1) <= 1e-10).all()
    mixed = torch.einsum("bk,bkij->bij", solution.weights, solution.vertices)
    assert (mixed - solution.value).abs().max() <= 1e-14


@pytest.mark.many(4)
@each_structure
def test_decompositions_mix_few_vertices(entry):
    solution = over_vertices(entry.polytope).project(scores_for(entry.polytope.shape, 8)).check()
    vertices, weights = solution.vertices, solution.weights
    assert vertices.shape[:2] == weights.shape and vertices.shape[2:] == entry.polytope.shape
    known = {tuple(v) for v in entry.vertices.reshape(len(entry.vertices), -1).tolist()}
    for instance, share in zip(vertices.flatten(2), weights, strict=True):
        used = instance[share > 0].tolist()
        assert {tuple(v) for v in used} <= known and len(used) == len({tuple(v) for v in used})
        assert torch.linalg.matrix_rank(instance[share > 0][1:] - instance[:1]) == len(used) - 1
        assert (instance[share == 0] == 0).all()
    assert (weights >= 0).all() and (weights.sum(1) - 1).abs().max() <= 1e-12
    mixed = (weights[:, :, None] * vertices.flatten(2)).sum(1)
    assert (mixed - solution.value.flatten(1)).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_expectation_over_the_selected_structures_has_a_gradient(dtype):
    """A loss per structure, weighted, as a model takes it over the few trees that are selected."""
    layer = ol.OptLayer(polytopes.arborescence(4), ol.SparseMAP())
    # Two instances whose decomposition is unique; where it is not, rounding may choose another one next to it.
    scores = scores_for((5, 5), 2).to(dtype).requires_grad_()
    worth = scores_for((5, 5), 1, seed=4)[0].to(dtype)

    def expected(leaf):
        solution = layer.solve(leaf)
        losses = torch.tanh((solution.vertices * worth).flatten(2).sum(2))
        return (solution.weights * losses).sum(1)

    assert layer.solve(scores).value.dtype == dtype
    if dtype is torch.float64:
        assert torch.autograd.gradcheck(expected, (scores,), eps=1e-7, atol=1e-5)
    (gradient,) = torch.autograd.grad(expected(scores).sum(), scores)
    assert gradient.dtype == dtype and gradient.abs().max() > 1e-3


def test_solutions_have_the_gradient_of_the_layer():
    layer = ol.OptLayer(polytopes.arborescence(3), ol.SparseMAP())
    scores, weights = scores_for((4, 4), 2).requires_grad_(), scores_for((4, 4), 2, seed=5)
    gradients = [
        torch.autograd.grad((value * weights).sum(), scores)[0] for value in (layer(scores), layer.solve(scores).value)
    ]
    assert torch.equal(*gradients)
    with pytest.raises(ValueError, match="not given as a mixture of vertices"):
        _ = ol.OptLayer(polytopes.matching(3), ol.Pipeline()).solve(torch.zeros(3, 3)).weights
    with pytest.raises(TypeError, match="a layer over a Family needs sizes="):
        ol.OptLayer(ol.Family(polytopes.arborescence), ol.SparseMAP()).solve(scores)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_instance_does_not_see_its_batch(threads, monkeypatch):
    monkeypatch.setattr(pool, "HANDED_OVER", 1e-12)  # every instance is worth a thread
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled = ol.compile_polytope(polytopes.arborescence(6))
        scores, direction = scores_for((7, 7), 80), scores_for((7, 7), 80, seed=6)
        whole = compiled.project(scores).check()
        gradient = compiled.tangent(whole, direction).scores
        for k in (0, 17, 79):
            alone = compiled.project(scores[k]).check()
            assert torch.equal(alone.value, whole.value[k])
            assert torch.equal(compiled.tangent(alone, direction[k]).scores, gradient[k])
            assert torch.equal(compiled.maximize(scores[k]).value, compiled.maximize(scores).value[k])
    finally:
        torch.set_num_threads(before)


P8 = polytopes.arborescence(8)


def test_a_start_changes_the_work_and_not_the_answer():
    compiled = ol.compile_polytope(polytopes.arborescence(8))
    scores = scores_for((9, 9), 6).flatten(1)
    bound = compiled.bind({}, None, 6)
    vertex = bound.maximize(scores).value
    near = vertex - 0.1 * scores_for((9, 9), 6, seed=7).flatten(1)
    cold, warm = bound.project(near), bound.project(near, starts=bound.maximize(-scores).value)
    assert (cold.value - warm.value).abs().max() <= 1e-12 and cold.all_ok and warm.all_ok
    asked = []

    def counting(scores):
        asked.append(0)
        return polytopes.arborescence(8).oracle(scores)

    counted = ol.compile_polytope(ol.Polytope(P8.variable, P8.constraints, oracle=counting)).bind({}, None, 6)
    counts = []
    for starts in (None, vertex):
        asked.clear()
        counted.project(near, starts=starts)
        counts.append(len(asked))
    assert counts[1] == counts[0] - 6  # a call less for every instance: the first vertex is known
    counts = []
    for starts in (None, vertex):
        asked.clear()
        counted.project(vertex + 10.0 * (near - vertex), starts=starts)
        counts.append(len(asked))
    assert counts[1] == counts[0]  # a vertex that is far away is no start


@numba.njit
def _top(scores, budget):
    out = np.zeros_like(scores)
    for i in np.argsort(-scores, kind="mergesort")[: int(budget[()])]:
        out[i] = 1.0
    return out


def _subset(oracle):
    x, hidden, budget = cp.Variable(5), cp.Variable(5), cp.Parameter(name="budget")
    return ol.Polytope(x, [x == hidden, hidden >= 0, hidden <= 1, cp.sum(x) == budget], oracle=oracle)


def test_python_and_numba_answer_alike_and_get_parameters():
    scores = scores_for((5,), 9)
    budget = torch.arange(9.0).remainder(6)
    found = [
        ol.compile_polytope(_subset(oracle)).maximize(scores, budget=budget).check().value
        for oracle in (_top, lambda scores, budget: _top.py_func(scores, budget))
    ]
    assert torch.equal(*found) and torch.equal(found[0].sum(1), budget.double())


def test_no_row_with_auxiliary_variables_is_built_unless_asked_for(monkeypatch):

    def refuse(polytope):
        raise AssertionError("the full constraint matrix was built")

    monkeypatch.setattr("optlayers.form.compile.standard_form", refuse)
    compiled = ol.compile_polytope(polytopes.arborescence(60))
    scores = scores_for((61, 61), 2)
    assert compiled.project(scores).check().value[:, :, 1:].sum(1).allclose(torch.ones(2, 60, dtype=torch.float64))
    assert "not built" in compiled.explain()
    layer = ol.OptLayer(compiled, ol.Spigot())
    layer(scores.requires_grad_()).square().sum().backward()
    with pytest.raises(AssertionError, match="was built"):
        _ = compiled.form


@pytest.mark.parametrize("count", [1, 64])
def test_every_thread_may_ask(count):
    from concurrent.futures import ThreadPoolExecutor

    compiled = ol.compile_polytope(polytopes.arborescence(5))
    scores = scores_for((6, 6), count)
    expected = compiled.project(scores).check().value
    with ThreadPoolExecutor(8) as pool:
        for value in pool.map(lambda _: compiled.project(scores).check().value, range(32)):
            assert torch.equal(value, expected)


class TestBadOracles:
    """What is wrong is said with the name of the oracle and the instance, at run time or by check_oracle."""

    @staticmethod
    def declared(oracle, *, hidden=True):
        x, y = cp.Variable(3), cp.Variable(3)
        rows = [x == y] if hidden else []
        inner = y if hidden else x
        return ol.Polytope(x, [*rows, inner >= 0, cp.sum(x) == 1, cp.sum(inner) == 1], oracle=oracle)

    def test_not_a_maximum(self):
        def lazy(scores):
            return np.eye(3)[scores.argmax() if scores.max() > 1.5 else scores.argmin()]

        scores = torch.tensor([[4.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
        solution = ol.compile_polytope(self.declared(lazy)).project(scores)
        assert [f.index for f in solution.failures] == [(1,)]
        assert (
            "oracle lazy does not maximize: it returned a structure that is worse by 1" in solution.failures[0].reason
        )
        with pytest.raises(AssertionError, match=r"oracle lazy, on sample 0: it misses the best score by"):
            check_oracle(self.declared(lazy))

    def test_that_begins_at_nothing(self):
        """Where all structures score less than 0, as sums of log-probabilities do."""
        trees = next(entry for entry in CATALOGUE if entry.name == "tree of four words").vertices

        def above_zero(scores):
            values = np.where(np.isneginf(scores), -1e300, scores).reshape(-1) @ trees.reshape(len(trees), -1).T
            return trees[np.maximum(values, 0.0).argmax() if (values > 0.0).any() else 0]

        whole = polytopes.arborescence(4)
        with pytest.raises(AssertionError, match=r"oracle above_zero, on sample \d+: it misses the best score by"):
            check_oracle(ol.Polytope(whole.variable, whole.constraints, oracle=above_zero, integral=True))

    def test_outside(self):
        def double(scores):
            return 2.0 * np.eye(3)[scores.argmax()]

        for solve in ("project", "maximize"):
            solution = getattr(ol.compile_polytope(self.declared(double)), solve)(scores_for((3,), 2))
            assert "oracle double left the polytope by 1" in solution.failures[1].reason
        with pytest.raises(AssertionError, match=r"oracle double, on sample 0: .*left the polytope by 1"):
            check_oracle(self.declared(double))

    def test_outside_in_a_way_that_only_auxiliary_variables_show(self):
        def negative(scores):
            best, worst = scores.argmax(), scores.argmin()
            return 2.0 * np.eye(3)[best] - np.eye(3)[worst]

        with pytest.raises(AssertionError, match="oracle negative, on sample 0: it leaves the polytope by 1"):
            check_oracle(self.declared(negative))

    def test_fractional(self):
        def mean_of_ties(scores):
            best = (scores == scores.max()).astype(float)
            return best / best.sum()

        with pytest.raises(AssertionError, match="oracle mean_of_ties, on sample 2: its structure is not integral"):
            check_oracle(self.declared(mean_of_ties))

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda scores: np.eye(3), r"it returned shape \(3, 3\), but the polytope has shape \(3,\)"),
            (lambda scores: np.eye(3, dtype=np.int64)[0], "it returned dtype int64; structures are float64"),
            (lambda scores: np.eye(3)[7], "raised IndexError"),
            (lambda scores: None, "it returned shape"),
        ],
    )
    def test_what_python_returns(self, answer, message):
        solution = ol.compile_polytope(self.declared(answer)).maximize(torch.zeros(2, 3))
        assert (solution.status == ol.Status.FAILED).all()
        with pytest.raises(ol.SolveError, match=rf"instance 1 is FAILED: oracle <lambda> .*{message}"):
            solution.check()
        with pytest.raises(AssertionError, match=message):
            check_oracle(self.declared(answer))

    def test_what_numba_returns(self):
        @numba.njit
        def whole_numbers(scores):
            return np.zeros(3, np.int64)

        with pytest.raises(TypeError, match=r"oracle whole_numbers returns array\(int64.*must return a float64 array"):
            ol.compile_polytope(self.declared(whole_numbers))

        @numba.njit
        def longer(scores):
            return np.zeros(4)

        @numba.njit
        def raising(scores):
            if scores[0] > 0:
                raise ValueError("not today")
            return np.array([1.0, 0.0, 0.0])

        wrong = ol.compile_polytope(self.declared(longer)).maximize(torch.zeros(2, 3))
        assert "oracle longer returned another shape" in wrong.failures[1].reason
        some = ol.compile_polytope(self.declared(raising)).maximize(torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        assert some.status.tolist() == [ol.Status.OPTIMAL, ol.Status.FAILED]
        assert "oracle raising raised an exception" in some.failures[0].reason

    def test_not_deterministic(self):
        generator = np.random.default_rng(0)

        def fickle(scores):
            return np.eye(3)[generator.choice(np.flatnonzero(scores == scores.max()))]

        with pytest.raises(AssertionError, match=r"oracle fickle, on sample \d+: it gives different answers"):
            check_oracle(self.declared(fickle), samples=40)

    def test_structures_where_there_are_none(self):
        def careless(scores):
            return np.eye(3)[np.nan_to_num(scores, neginf=-1e300).argmax()]

        everything = torch.full((1, 3), -torch.inf)
        solution = ol.compile_polytope(self.declared(careless)).maximize(everything)
        assert solution.status == ol.Status.INFEASIBLE
        some = ol.compile_polytope(self.declared(lambda scores: np.eye(3)[0])).maximize(
            torch.tensor([[-torch.inf, 0.0, 0.0]])
        )
        assert some.status == ol.Status.INACCURATE and "left the polytope by 1" in some.failures[0].reason

    def test_too_few_steps_are_said(self):
        compiled = ol.compile_polytope(polytopes.arborescence(6), projector=ol.ActiveSet(iteration_limit=2))
        solution = compiled.project(scores_for((7, 7), 3))
        assert (solution.status == ol.Status.LIMIT).all() and (solution.gap > 1e-3).all()

    def test_no_oracle_and_no_parameters(self):
        with pytest.raises(ol.DeclarationError, match="ActiveSet needs an oracle"):
            ol.compile_polytope(polytopes.simplex(3).without_oracle(), projector=ol.ActiveSet())
        with pytest.raises(TypeError, match="takes a declaration with an oracle"):
            check_oracle(polytopes.simplex(3).without_oracle())


def test_parameters_enter_projections_over_vertices_and_have_the_derivative_of_constraints():
    layer = ol.OptLayer(polytopes.subset(6), ol.SparseMAP(), projector=ol.ActiveSet())
    rows = ol.OptLayer(polytopes.subset(6), ol.SparseMAP())
    scores, budget = scores_for((6,), 4).requires_grad_(), torch.tensor([0.0, 2.0, 3.0, 6.0]).requires_grad_()
    found, expected = layer(scores, budget=budget), rows(scores, budget=budget)
    assert (found - expected).abs().max() <= 1e-12
    mine = torch.autograd.grad(found.square().sum(), (scores, budget))
    theirs = torch.autograd.grad(expected.square().sum(), (scores, budget))
    assert (mine[0] - theirs[0]).abs().max() <= 1e-12 and (mine[1] - theirs[1]).abs().max() <= 1e-12
    assert mine[1].abs().max() > 0.1


def test_oracles_that_write_to_their_arguments():
    @numba.njit
    def greedy(scores):
        x = np.zeros(len(scores))
        for _ in range(2):
            best = np.argmax(scores)
            x[best] = 1.0
            scores[best] = -np.inf
        return x

    x, hidden = cp.Variable(5), cp.Variable(5)
    polytope = ol.Polytope(x, [x == hidden, hidden >= 0, hidden <= 1, cp.sum(hidden) == 2], oracle=greedy)
    scores, direction = scores_for((5,), 6), scores_for((5,), 6, seed=8)
    mine, theirs = (ol.compile_polytope(p) for p in (polytope, polytope.without_oracle()))
    found, expected = mine.project(scores).check(), theirs.project(scores).check()
    assert (found.value - expected.value).abs().max() <= 1e-12
    assert (mine.tangent(found, direction).scores - theirs.tangent(expected, direction).scores).abs().max() <= 1e-9


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e4])
def test_polytopes_of_any_size(size):
    x, hidden = cp.Variable(4), cp.Variable(4, nonneg=True)

    def corner(scores):
        return size * np.eye(4)[scores.argmax()]

    compiled = ol.compile_polytope(ol.Polytope(x, [x == size * hidden, cp.sum(hidden) == 1], oracle=corner))
    scores, direction = scores_for((4,), 12), scores_for((4,), 12, seed=9)
    found = compiled.project(size * scores).check()
    unit = ol.compile_polytope(polytopes.simplex(4).without_oracle())
    expected = unit.project(scores).check()
    assert (found.value / size - expected.value).abs().max() <= 1e-9
    tangents = compiled.tangent(found, direction).scores, unit.tangent(expected, direction).scores
    assert (tangents[0] - tangents[1]).abs().max() <= 1e-9


def test_noise_next_to_forbidden_parts():
    def noisy(scores):
        best = np.full(3, 1e-12)
        best[scores.argmax()] = 1.0 - 2e-12
        return best

    x, hidden = cp.Variable(3), cp.Variable(3, nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [x == hidden, cp.sum(hidden) == 1], oracle=noisy))
    scores = torch.tensor([[0.3, 0.2, -torch.inf]], dtype=torch.float64)
    for solution in (compiled.project(scores), compiled.maximize(scores)):
        assert solution.value.isfinite().all() and solution.value[0, 2] == 0
    assert (compiled.project(scores).value - torch.tensor([[0.55, 0.45, 0.0]])).abs().max() <= 1e-6


def test_ctrl_c_passes_through_compiled_code():
    calls = []

    def interrupted(scores):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return np.eye(3)[scores.argmax()]

    compiled = ol.compile_polytope(TestBadOracles.declared(interrupted))
    with pytest.raises(KeyboardInterrupt):
        compiled.project(torch.zeros(4, 3))
    assert compiled.project(scores_for((3,), 4)).all_ok


def test_a_derivative_without_the_oracle_is_said_to_be_missing():
    broken = []

    def moody(scores):
        if broken:
            raise RuntimeError("not today")
        return np.eye(4)[scores.argmax()]

    x, hidden = cp.Variable(4), cp.Variable(4, nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [x == hidden, cp.sum(hidden) == 1], oracle=moody))
    found = compiled.project(torch.tensor([[1.25, 0.25, 0.25, 0.25]], dtype=torch.float64)).check()
    direction = scores_for((4,), 1)
    assert compiled.tangent(found, direction).ok.all()
    broken.append(True)
    assert not compiled.tangent(found, direction).ok.any()


def test_an_oracle_may_ask_for_a_batch_of_its_own(monkeypatch):
    monkeypatch.setattr(pool, "HANDED_OVER", 1e-12)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inner = ol.compile_polytope(polytopes.simplex(4))

        def nested(scores):
            return inner.maximize(torch.from_numpy(scores).expand(128, 4)).value[0].numpy()

        x, hidden = cp.Variable(4), cp.Variable(4, nonneg=True)
        compiled = ol.compile_polytope(ol.Polytope(x, [x == hidden, cp.sum(hidden) == 1], oracle=nested))
        assert compiled.maximize(scores_for((4,), 256)).all_ok and compiled.project(scores_for((4,), 16)).all_ok
    finally:
        torch.set_num_threads(before)


def test_empty_batches_and_copies_of_solutions():
    import copy
    import pickle

    for polytope in (polytopes.arborescence(4), polytopes.permutahedron(3)):
        layer = ol.OptLayer(polytope, ol.SparseMAP())
        for batch in ((0,), (0, 2), (2, 0)):
            solution = layer.solve(torch.zeros(*batch, *polytope.shape))
            assert solution.value.shape == (*batch, *polytope.shape) and solution.weights.numel() == 0
    compiled = ol.compile_polytope(polytopes.arborescence(4))
    scores, direction = scores_for((5, 5), 3), scores_for((5, 5), 3, seed=1)
    solution = compiled.project(scores)
    expected = compiled.tangent(solution, direction).scores
    assert torch.equal(copy.deepcopy(solution).value, solution.value)
    again = pickle.loads(pickle.dumps(solution.evidence.answer))
    mine = again.pullback(direction.flatten(1).numpy()[:, compiled.projection_form.kept])[0]
    assert np.array_equal(mine, expected.flatten(1).numpy()[:, compiled.projection_form.kept])


def test_an_oracle_that_was_called_with_other_types_before():
    @numba.njit
    def best(scores):
        x = np.zeros_like(scores)
        x[np.argmax(scores)] = 1
        return x

    best(np.zeros(3, np.float32))
    x = cp.Variable(3, nonneg=True)
    assert ol.compile_polytope(ol.Polytope(x, [cp.sum(x) == 1], oracle=best)).maximize(torch.zeros(2, 3)).all_ok

    @numba.njit
    def untyped(scores):
        return scores.no_such_thing

    with pytest.raises(TypeError, match="numba cannot compile oracle untyped"):
        ol.compile_polytope(ol.Polytope(x, [cp.sum(x) == 1], oracle=untyped))


def test_nothing_is_left_when_everything_is_forbidden():
    for polytope in (polytopes.arborescence(3), polytopes.matching(2), polytopes.simplex(2), polytopes.sequence(2, 2)):
        scores = torch.full((2, *polytope.shape), -torch.inf)
        scores[1] = 0.0
        for solution in (over_vertices(polytope).project(scores), ol.compile_polytope(polytope).maximize(scores)):
            assert solution.status.tolist() == [ol.Status.INFEASIBLE, ol.Status.OPTIMAL]


def test_mixed_lengths_with_oracles():
    layer = ol.OptLayer(ol.Family(polytopes.arborescence), ol.SparseMAP())
    scores = scores_for((7, 7), 5).requires_grad_()
    sizes = [1, 6, 3, 6, 2]
    value = layer(scores, sizes=sizes)
    for k, size in enumerate(sizes):
        alone = ol.OptLayer(polytopes.arborescence(size), ol.SparseMAP())(scores[k, : size + 1, : size + 1])
        assert torch.equal(alone, value[k, : size + 1, : size + 1])
    assert torch.equal(value.sum((1, 2)).round().detach(), torch.tensor(sizes, dtype=torch.float64))
    value.square().sum().backward()
    assert (scores.grad[0, 2:] == 0).all()


def test_instances_of_no_length_have_no_structure():
    for rule in (ol.SparseMAP(), ol.Spigot(), ol.StructuredAttention()):
        layer = ol.OptLayer(ol.Family(polytopes.arborescence), rule)
        scores = scores_for((4, 4), 3)
        scores[0] = -torch.inf
        scores.requires_grad_()
        value = layer(scores, sizes=[0, 3, 0])
        assert torch.equal(value[1], layer(scores[1:2], sizes=[3])[0]) and (value[[0, 2]] == 0).all()
        value.square().sum().backward()
        assert (scores.grad[[0, 2]] == 0).all() and scores.grad[1].abs().max() > 0
        layer(scores, sizes=[0, 0, 0]).sum().backward()
    two = ol.OptLayer(ol.Family(polytopes.partial_matching), ol.Pipeline())
    assert two(torch.ones(2, 2, 2), sizes=[[0, 2], [2, 1]]).sum((1, 2)).tolist() == [0, 1]


def test_declarations_with_oracles_pass_the_general_contract():
    report = check_polytope(polytopes.projective_tree(4), integral=True)
    assert "left to the oracle" in report.explanation


def test_codes_of_kernels_do_not_collide():
    from optlayers.solvers import addresses
    from optlayers.solvers.kernels import calling, min_norm_point

    codes = [calling.FOUND, calling.NOTHING, calling.RAISED, calling.WRONG_SHAPE]
    codes += [calling.OUTSIDE, calling.FRACTIONAL, calling.MISSED, calling.UNSTEADY, calling.NO_AMOUNT]
    codes += [min_norm_point.LIMIT, min_norm_point.NOT_MAXIMAL, min_norm_point.INEXACT]
    assert len(set(codes)) == len(codes) and max(codes) < addresses.FIRST_COMPLAINT
