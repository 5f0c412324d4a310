"""Batched dense torch solvers: the answers of HiGHS and Clarabel, their ties, and their derivatives."""

from __future__ import annotations

from functools import cache, partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from accelerator import DEVICE, moved
from catalogue import CATALOGUE
from random_polytopes import Case, random_case
from torch import Tensor

import optlayers as ol
import polytopes
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.solvers.kernels import dense
from optlayers.solvers.kernels.dense import DenseAnswer, DenseProblem

pytestmark = pytest.mark.device
CERTIFIED = 1e-8
NOTHING_LEFT = (
    "simplex of one",
    "matching of one",
    "sequence of one state",
    "path of one arc",
    "grid path of one row",
    "ranking of one",
    "tree of one word",
    "projective tree of one word",
)
FEW = ("subset", "matching", "partial matching", "sequence", "tree of four words", "random 1", "random 5", "random 14")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from threads, which on a busy machine wait for each other for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def cases() -> dict[str, Case]:
    """Declarations of which presolve leaves something."""
    listed = {e.name: Case(e.polytope, e.parameters) for e in CATALOGUE if e.name not in NOTHING_LEFT}
    return listed | {f"random {seed}": random_case(seed) for seed in range(40)}


@cache
def compiled_case(name: str) -> CompiledPolytope:
    return ol.compile_polytope(cases()[name].polytope, maximizer=ol.Highs(), projector=ol.Clarabel())


every_case = pytest.mark.parametrize("name", list(cases()))
few_cases = pytest.mark.parametrize("name", FEW)


def draw(compiled: CompiledPolytope, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *compiled.shape, generator=generator, dtype=torch.float64)


def dense_problem(compiled: CompiledPolytope, scores: Tensor, parameters: dict, *, curved: bool) -> DenseProblem:
    """The arrays of a batch, with parameters and forbidden parts filled in."""
    form, batch = compiled.form, len(scores)
    flat = scores.reshape(batch, -1)
    theta = {s.name: torch.as_tensor(parameters[s.name]).double().expand(batch, *s.shape) for s in form.parameters}
    instances = compiled.bind(theta, flat == -torch.inf, batch).numbers.instances

    def full(array: np.ndarray, width: int) -> Tensor:
        return torch.tensor(np.broadcast_to(array, (batch, width)))

    matrix = torch.tensor(form.matrix.toarray())
    if instances.matrix is not None:
        matrix = torch.zeros(batch, form.rows, form.columns, dtype=torch.float64)
        matrix[:, form.matrix.indices, form.entry_column] = full(instances.matrix, form.matrix.nnz)
    linear, curvature = torch.zeros(batch, form.columns).double(), torch.zeros(form.columns).double()
    linear[:, : form.scored] = flat[:, form.kept].nan_to_num(neginf=0.0)
    curvature[: form.scored] = float(curved)
    bounds = full(instances.lower, form.columns), full(instances.upper, form.columns)
    return moved(DenseProblem(matrix, full(instances.rhs, form.rows), *bounds, linear, curvature))


def structures(compiled: CompiledPolytope, answer: DenseAnswer) -> Tensor:
    form = compiled.form
    return torch.from_numpy(form.expand(answer.point[:, : form.scored].cpu().numpy())).reshape(-1, *form.shape)


def projectors(problem: DenseProblem):
    """The solvers that take this projection."""
    yield dense.interior_point
    if bool((problem.curvature == 1).all()):
        yield dense.dual_newton


def tied(scores: Tensor) -> Tensor:
    """Scores of which two instances have few different ones, and one has zeros."""
    scores = scores.clone()
    scores[-3:-1] = scores[-3:-1].round()
    scores[-1] = 0.0
    return scores


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.cpu(), expected.cpu(), atol=tolerance, rtol=0)


@pytest.mark.many(8)
@every_case
def test_projections_and_derivatives_are_those_of_clarabel(name):
    compiled, parameters = compiled_case(name), cases()[name].parameters
    scores = tied(draw(compiled, 6))
    expected = compiled.project(scores, **parameters).check()
    direction = draw(compiled, 6, seed=1)
    tangent = compiled.tangent(expected, direction)
    problem = dense_problem(compiled, scores, parameters, curved=True)
    side = torch.zeros_like(problem.linear)
    side[:, : compiled.form.scored] = direction.reshape(6, -1)[:, compiled.form.kept]
    for solve in projectors(problem):
        found = solve(problem)
        assert found.relative.max() <= CERTIFIED
        assert_close(structures(compiled, found), expected.value, 1e-7)
        p, _, ok = dense.pull_back(problem, found, side)
        assert ok.all() and bool((p[~found.free] == 0).all())
        smooth = slice(0, 3)  # where scores tie, projections may have kinks
        pulled = tangent.scores.reshape(6, -1)[smooth][:, compiled.form.kept]
        assert_close(p[smooth, : compiled.form.scored], pulled, 1e-7)


@pytest.mark.many(8)
@every_case
def test_vertices_are_those_of_highs(name):
    compiled, parameters = compiled_case(name), cases()[name].parameters
    scores = tied(draw(compiled, 7))
    expected = compiled.maximize(scores, **parameters).check().value
    found = dense.best_vertex(dense_problem(compiled, scores, parameters, curved=False), compiled.form.scored)
    assert found.relative.max() <= CERTIFIED
    assert_close((structures(compiled, found) * scores).flatten(1).sum(1), (expected * scores).flatten(1).sum(1), 1e-9)
    assert_close(structures(compiled, found), expected, 1e-7)


@pytest.mark.many(4)
@few_cases
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e4, 1e6])
def test_any_size_of_scores(name, scale):
    compiled, parameters = compiled_case(name), cases()[name].parameters
    scores = scale * tied(draw(compiled, 5))
    problem = dense_problem(compiled, scores, parameters, curved=True)
    near = compiled.project(scores, **parameters).check()
    for solve in projectors(problem):
        found = solve(problem)
        # Next to large scores the rounding of float64 may hide the sum of what is left; these go to the CPU, which
        # computes it in twice the precision.
        assert found.relative.max() <= (CERTIFIED if scale < 1 else 1e-6)
        away = (structures(compiled, found) - near.value).flatten(1).norm(dim=1)
        # A gap bounds half of the squared distance to the projection.
        assert (away <= (2 * found.gap.cpu()).sqrt() + (2 * near.gap).sqrt() + 1e-7).all()
    vertex = dense.best_vertex(problem, compiled.form.scored)
    assert vertex.relative.max() <= CERTIFIED
    assert_close(structures(compiled, vertex), compiled.maximize(scores, **parameters).value, 1e-7)


def forbid(compiled: CompiledPolytope, scores: Tensor, parameters: dict, seed: int = 2) -> Tensor:
    """Some parts that leave a structure possible, marked."""
    kept = compiled.maximize(draw(compiled, len(scores), seed=seed), **parameters).value > 1e-6
    return (torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.3) & ~kept


MASKED = ("simplex", "subset", "matching", "partial matching", "sequence", "tree", "tree of four words")


@pytest.mark.many(2)
@pytest.mark.parametrize("name", MASKED)
def test_forbidden_parts(name):
    compiled, parameters = compiled_case(name), cases()[name].parameters
    scores = draw(compiled, 6)
    forbidden = forbid(compiled, scores, parameters)
    masked = scores.masked_fill(forbidden, -torch.inf)
    problem = dense_problem(compiled, masked, parameters, curved=True)
    near = compiled.project(masked, **parameters).check().value
    best = compiled.maximize(masked, **parameters).check().value
    for solve in projectors(problem):
        assert solve(problem).relative.max() <= CERTIFIED
        assert_close(structures(compiled, solve(problem)), near, 1e-7)
    assert_close(structures(compiled, dense.best_vertex(problem, compiled.form.scored)), best, 1e-7)
    # A part may be forbidden by a score, too; it is next to the others then.
    for penalty in (-1e6, -1e12, float(torch.finfo(torch.float32).min)):
        problem = dense_problem(compiled, scores.masked_fill(forbidden, penalty), parameters, curved=True)
        for solve in projectors(problem):
            assert solve(problem).relative.max() <= CERTIFIED
            assert_close(structures(compiled, solve(problem)), near, 1e-7)
        vertex = dense.best_vertex(problem, compiled.form.scored)
        assert vertex.relative.max() <= CERTIFIED
        assert_close(structures(compiled, vertex), best, 1e-7)


@pytest.mark.many(4)
@few_cases
@pytest.mark.parametrize("noise", [1e-5, 1e-7, 1e-9])
def test_near_ties_are_decided_by_the_scores(name, noise):
    compiled, parameters = compiled_case(name), cases()[name].parameters
    scores = draw(compiled, 5).round() + noise * draw(compiled, 5, seed=1)
    found = dense.best_vertex(dense_problem(compiled, scores, parameters, curved=False), compiled.form.scored)
    assert found.relative.max() <= CERTIFIED
    assert_close(structures(compiled, found), compiled.maximize(scores, **parameters).check().value, 1e-7)


def test_multipliers_of_one_size_of_scores_survive_the_next():
    compiled = ol.compile_polytope(polytopes.sequence(10, 5), maximizer=ol.Highs())
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(8, *compiled.shape, generator=generator, dtype=torch.float64)
    mixed = scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.15, -1e6)
    found = dense.best_vertex(dense_problem(compiled, mixed, {}, curved=False), compiled.form.scored)
    assert found.relative.max() <= CERTIFIED
    assert_close(structures(compiled, found), compiled.maximize(mixed).check().value, 1e-7)


@pytest.mark.many(2)
@few_cases
def test_an_answer_depends_on_its_instance_alone(name):
    compiled, parameters = compiled_case(name), cases()[name].parameters
    scores = tied(draw(compiled, 6))
    problem, scored = dense_problem(compiled, scores, parameters, curved=True), compiled.form.scored
    for solve in (*projectors(problem), partial(dense.best_vertex, scored=scored)):
        together = solve(problem).point[:, :scored]  # auxiliary columns may be anywhere on a face
        for k in range(6):
            alone = solve(problem.take(torch.tensor([k]).to(DEVICE))).point[0, :scored]
            assert_close(together[k], alone, 1e-11)


@pytest.mark.parametrize("name", ["matching", "tree", "partial matching"])
def test_what_cannot_be_solved_is_not_certified(name):
    compiled = compiled_case(name)
    problem = dense_problem(compiled, draw(compiled, 4), {}, curved=True)
    rhs, upper, linear = problem.rhs.clone(), problem.upper.clone(), problem.linear.clone()
    upper[1] = torch.minimum(upper[1], problem.lower[1] + 1e-3)  # no room for a structure
    upper[2, 0] = -1.0
    linear[3, 0] = torch.nan
    broken = DenseProblem(problem.matrix, rhs, problem.lower, upper, linear, problem.curvature)
    for solve in (*projectors(problem), partial(dense.best_vertex, scored=compiled.form.scored)):
        found, whole = solve(broken), solve(problem)
        assert (found.relative > CERTIFIED).tolist() == [False, True, True, True]
        assert_close(found.point[0], whole.point[0], 1e-12)


@pytest.mark.parametrize("entry", [e for e in CATALOGUE if e.name in ("subset", "matching", "tree")], ids=repr)
def test_a_certificate_bounds_what_is_missing(entry):
    compiled = compiled_case(entry.name)
    scores = draw(compiled, 50)
    problem = dense_problem(compiled, scores, entry.parameters, curved=False)
    other = dense_problem(compiled, draw(compiled, 50, seed=1), entry.parameters, curved=False)
    point = dense.best_vertex(other, compiled.form.scored)
    vertices = torch.from_numpy(entry.vertices).reshape(len(entry.vertices), -1)
    best = (scores.reshape(50, -1) @ vertices.T).amax(1)
    missing = best - (structures(compiled, point) * scores).flatten(1).sum(1)
    right = dense.best_vertex(problem, compiled.form.scored)
    noise = 0.1 * moved(torch.randn(right.dual.shape, generator=torch.Generator().manual_seed(0)))
    for dual in (right.dual, right.dual + noise):
        residual, gap, relative = (part.cpu() for part in dense.certify(problem, point.point, dual))
        # An infinite bound is charged at max(1, |z|), which is more than any structure has.
        assert (gap >= missing - 1e-9).all() and residual.max() <= 1e-9
        assert ((relative > CERTIFIED) | (missing <= 1e-9)).all()
    assert (missing > 1e-9).any()


def test_scores_next_to_which_rounding_looks_like_a_proof():
    problem = dense_problem(compiled_case("simplex"), torch.zeros(1, 4).double(), {}, curved=True)
    linear = torch.tensor([[0.5, 0.3, -0.2, -3.4e38]], dtype=torch.float64).to(DEVICE)
    problem = DenseProblem(problem.matrix, problem.rhs, problem.lower, problem.upper, linear, problem.curvature)
    wrong = torch.tensor([[1 / 3, 1 / 3, 1 / 3 + 2e-12, -2e-12]], dtype=torch.float64).to(DEVICE)
    for price in (0.0, -5e27, 5e26):
        assert dense.certify(problem, wrong, torch.full_like(problem.rhs, price))[2] > 1e-4


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-5])
def test_nearly_dependent_rows_are_differentiated(gap):
    x = cp.Variable(3, bounds=[-5, 5])
    rows = [x[0] + x[1] + x[2] == 1, x[0] + x[1] + (1 + gap) * x[2] == 1 + 0.5 * gap]
    compiled = ol.compile_polytope(ol.Polytope(x, rows), projector=ol.Clarabel())
    problem = dense_problem(compiled, torch.tensor([[0.3, 0.2, 0.1]], dtype=torch.float64), {}, curved=True)
    direction = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).to(DEVICE)
    p, _, ok = dense.pull_back(problem, dense.interior_point(problem), direction)
    assert ok.all()
    assert_close(p, torch.tensor([[0.5, -0.5, 0.0]], dtype=torch.float64), 1e-5)


def test_dependent_rows_and_per_instance_matrices():
    shared = dense_problem(compiled_case("matching"), draw(compiled_case("matching"), 5), {}, curved=True)
    twice = torch.cat([shared.matrix, shared.matrix[:2] + shared.matrix[2:4]])
    rhs = torch.cat([shared.rhs, shared.rhs[:, :2] + shared.rhs[:, 2:4]], dim=1)
    rest = shared.lower, shared.upper, shared.linear, shared.curvature
    for problem in (
        DenseProblem(twice, rhs, *rest),
        DenseProblem(shared.matrix.expand(5, -1, -1), shared.rhs, *rest),
    ):
        for solve in (dense.interior_point, dense.dual_newton, partial(dense.best_vertex, scored=9)):
            found = solve(problem)
            assert found.relative.max() <= CERTIFIED
            assert_close(found.point, solve(shared).point, 1e-9)
        p, _, ok = dense.pull_back(problem, dense.dual_newton(problem), shared.linear)
        q, _, _ = dense.pull_back(shared, dense.dual_newton(shared), shared.linear)
        assert ok.all()
        assert_close(p, q, 1e-9)
