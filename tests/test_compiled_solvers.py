"""The solvers of our own: contracts, independence of the batch, hard numbers, threads, and the device path."""

import threading

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE
from random_polytopes import random_case

import optlayers as ol
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.solvers.plan import plan_of
from optlayers.testing import check_polytope, check_rule, check_solver
from polytopes import arborescence, matching, partial_matching, semantic_graph, sequence, simplex, subset

SOLVERS = [ol.InteriorPoint(), ol.Dense()]


def draw(polytope: ol.Polytope, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *polytope.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def newton_takes(polytope: ol.Polytope) -> bool:
    return ol.DualNewton.takes(ol.compile_polytope(polytope).form)


@pytest.mark.many(6)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("seed", range(25))
def test_solvers_keep_their_contract_on_random_polytopes(seed, solver):
    case = random_case(seed)
    check_solver(solver, case.polytope, samples=5, seed=seed, **case.parameters)


def solvers_of(polytope: ol.Polytope) -> list[ol.AbstractMaximizer]:
    return [*SOLVERS, ol.DualNewton()] if newton_takes(polytope) else list(SOLVERS)


@pytest.mark.parametrize(
    "polytope",
    [matching(5), partial_matching(3, 4), sequence(4, 3), arborescence(4), simplex(7)],
    ids=["matching", "partial", "sequence", "tree", "simplex"],
)
def test_ties_and_scales_are_decided_as_highs_decides_them(polytope):
    polytope = polytope.without_oracle()  # oracles decide ties in ways of their own
    scores = draw(polytope, 20)
    scores[:5] = scores[:5].round()
    scores[5] = 0.0
    scores[6].reshape(-1)[::2] = -1e9
    scores[7] *= 1e12
    scores[8] *= 1e-12
    scores[9].reshape(-1)[:3] *= 1e6
    expected = ol.compile_polytope(polytope, maximizer=ol.Highs()).maximize(scores).check().value
    for solver in solvers_of(polytope):
        found = ol.compile_polytope(polytope, maximizer=solver).maximize(scores)
        assert torch.equal(found.value[found.ok], expected[found.ok])
        assert int((~found.ok).sum()) <= 2, solver  # scales that a solver alone does not tell apart, it says so
    torch.testing.assert_close(ol.compile_polytope(polytope).maximize(scores).check().value, expected)


@pytest.mark.parametrize("projector", [ol.InteriorPoint(), ol.DualNewton()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("polytope", [matching(4), sequence(3, 3), subset(9)], ids=["matching", "sequence", "subset"])
def test_answers_do_not_depend_on_the_batch_to_the_last_bit(polytope, projector):
    scores = draw(polytope, 21)
    scores[::3] *= 100.0
    given = {"budget": 3.0} if polytope.parameters else {}
    compiled = ol.compile_polytope(polytope, projector=projector, maximizer=projector)
    for ask in (compiled.project, compiled.maximize):
        whole = ask(scores, **given).check().value
        for pieces in (torch.arange(21).flip(0), torch.randperm(21, generator=torch.Generator().manual_seed(1))):
            assert torch.equal(ask(scores[pieces], **given).check().value, whole[pieces])
        alone = torch.cat([ask(scores[k : k + 1], **given).check().value for k in range(21)])
        assert torch.equal(alone, whole)


@pytest.mark.many(22)
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("entry", CATALOGUE, ids=repr)
def test_scores_of_every_size_end_certified(entry, size):
    compiled = ol.compile_polytope(entry.polytope)
    scores = size * draw(entry.polytope, 6, seed=3)
    assert compiled.project(scores, **entry.parameters).check().primal_residual.max() <= 1e-8
    best = compiled.maximize(scores, **entry.parameters).check().value
    assert torch.equal(best, best.round())


def test_scores_of_many_sizes_at_once_are_projected_exactly():
    """A finite mask of -1e9 is as good as one of -inf."""
    compiled = ol.compile_polytope(partial_matching(4, 4))
    scores = draw(compiled.polytope, 12)
    masked = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    exact = compiled.project(scores.masked_fill(masked, -torch.inf)).check().value
    torch.testing.assert_close(
        compiled.project(scores.masked_fill(masked, -1e9)).check().value, exact, atol=1e-7, rtol=0
    )


def test_badly_scaled_and_redundant_rows():
    x = cp.Variable(6, nonneg=True)
    weights = np.array([1e-4, 1.0, 1e4, 2.0, 3e3, 1.0])
    rows = [cp.sum(x) == 1, 1e6 * cp.sum(x) == 1e6, weights @ x <= 1e3, 1e-5 * (weights @ x) <= 1e-2, x <= 0.9]
    check_polytope(ol.Polytope(x, rows))


def test_an_instance_made_infeasible_says_so_and_spares_the_others():
    compiled = ol.compile_polytope(subset(5))
    found = compiled.project(draw(compiled.polytope, 3), budget=torch.tensor([2.0, 7.0, 5.0], dtype=torch.float64))
    assert found.status.tolist() == [ol.Status.OPTIMAL, ol.Status.INFEASIBLE, ol.Status.OPTIMAL]
    with pytest.raises(ol.SolveError, match=r"instance 1 is INFEASIBLE.*budget"):
        found.check()


def test_newton_refuses_what_it_cannot_take():
    with pytest.raises(ol.DeclarationError, match=r"7 inequality rows and 0 auxiliary columns; use InteriorPoint"):
        ol.compile_polytope(partial_matching(3, 4), projector=ol.DualNewton())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ol.DualNewton(iteration_limit=0), "iteration_limit must be positive"),
        (lambda: ol.InteriorPoint(iteration_limit=0), "iteration_limit must be positive"),
        (lambda: ol.InteriorPoint(tolerance=0.0), "tolerance must be between 0 and 1"),
        (lambda: ol.Auto(tolerance=2.0), "tolerance must be between 0 and 1"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_limit_that_is_too_low_is_said_or_made_good():
    polytope = matching(8)
    hasty = ol.compile_polytope(polytope, projector=ol.DualNewton(iteration_limit=1))
    expected = ol.compile_polytope(polytope).project(draw(polytope, 4)).check().value
    found = hasty.project(draw(polytope, 4))  # polishing may go far from where a solver stopped, and is proved
    assert (found.value - expected)[found.ok].abs().max() <= 1e-9
    hasty = ol.compile_polytope(polytope, maximizer=ol.InteriorPoint(iteration_limit=2))
    assert ol.Status.OPTIMAL not in hasty.maximize(draw(polytope, 4)).status


def test_explain_says_what_was_chosen_and_why():
    assert "project: DualNewton(iteration_limit=100), because all columns are scored" in str(
        ol.compile_polytope(matching(3)).explain()
    )
    told = ol.compile_polytope(arborescence(4).without_oracle()).explain()
    assert "because there are 24 auxiliary columns and 24 inequality rows" in told
    assert "does not certify goes to Dense(), then Clarabel" in told
    x = cp.Variable(3, nonneg=True)
    one = ol.compile_polytope(ol.Polytope(x, [cp.sum(x) <= 1])).explain()
    assert "because there is 1 inequality row" in one and "1 inequality rows" not in one.partition("because")[2]


def test_hardly_sparse_constraints_are_solved_densely(monkeypatch):
    monkeypatch.setattr("optlayers.solvers.plan.DENSE_PRODUCTS", 100)
    generator = np.random.default_rng(0)
    x = cp.Variable(8, bounds=[0, 1])
    rows = generator.random((3, 8))
    polytope = ol.Polytope(x, [rows @ x == rows @ np.full(8, 0.4), generator.random((3, 8)) @ x <= 3])
    compiled = ol.compile_polytope(polytope)
    assert plan_of(compiled.form).dense and "Dense(), because" in compiled.explain()
    check_polytope(polytope)
    check_rule(ol.SparseMAP(), polytope)
    check_solver(ol.Clarabel(), polytope)


def test_eight_threads_at_once():
    polytope, answers = arborescence(4), {}
    layer = ol.OptLayer(polytope, ol.SparseMAP())
    scores = [draw(polytope, 16, seed=k) for k in range(8)]

    def work(k: int) -> None:
        for _ in range(5):
            leaf = scores[k].clone().requires_grad_()
            value = layer(leaf)
            value.square().sum().backward()
            answers[k] = value.detach(), leaf.grad, layer.compiled().maximize(scores[k]).check().value

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        assert torch.equal(answers[k][0], layer(scores[k]))
        assert torch.equal(answers[k][2], layer.compiled().maximize(scores[k]).value)


@pytest.fixture
def on_the_device(monkeypatch):
    """Treat the CPU as an accelerator, so that the code of the device runs on it."""
    monkeypatch.setattr(CompiledPolytope, "stays_on", lambda self, device: self.form is not None)


DEVICE_CASES = [
    "simplex",
    "subset",
    "matching",
    "partial matching",
    "sequence",
    "tree",
    "simplex of one",
    "tree of one word",
]


@pytest.mark.many(2)
@pytest.mark.parametrize("name", DEVICE_CASES)
def test_rules_on_the_device(name, on_the_device):
    entry = next(e for e in CATALOGUE if e.name == name)
    for rule in (ol.Spigot(0.5), ol.SparseMAP(), ol.Hard(ol.SparseMAP())):
        check_rule(rule, entry.polytope.without_oracle(), **entry.parameters)


@pytest.mark.many(3)
@pytest.mark.parametrize("seed", range(20))
def test_the_device_agrees_with_the_kernels(seed, monkeypatch):
    case = random_case(seed)
    compiled = ol.compile_polytope(case.polytope)
    scores = draw(case.polytope, 5, seed)
    scores[1] = scores[1].round()
    direction = draw(case.polytope, 5, seed + 1)
    direction[1] = 0.0  # tied scores may lie on a kink

    def ask():
        near = compiled.project(scores, **case.parameters).check()
        tangent = compiled.tangent(near, direction)
        return (
            near.value,
            compiled.maximize(scores, **case.parameters).check().value,
            tangent.scores,
            tangent.parameters,
        )

    expected = ask()
    monkeypatch.setattr(CompiledPolytope, "stays_on", lambda self, device: True)
    for mine, theirs in zip(ask(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-7)


def test_infeasible_and_forbidden_on_the_device(on_the_device):
    layer = ol.OptLayer(subset(4), ol.SparseMAP(), on_failure="nan")
    scores = draw(layer.compiled().polytope, 3)
    scores[0, 1] = -torch.inf
    budget = torch.tensor([2.0, 9.0, 1.0], dtype=torch.float64, requires_grad=True)
    leaf = scores.clone().requires_grad_()
    value = layer(leaf, budget=budget)
    value.nan_to_num().square().sum().backward()
    assert value[1].isnan().all() and float(value[0, 1].detach()) == 0.0
    assert torch.equal(leaf.grad[1], torch.zeros(4, dtype=torch.float64)) and float(budget.grad[1]) == 0.0
    with pytest.raises(ol.SolveError, match=r"instance 1 is INFEASIBLE.*budget"):
        layer.compiled().project(scores, budget=budget).check()


def nearest_by_clarabel(polytope: ol.Polytope, scores: torch.Tensor) -> torch.Tensor:
    """The nearest point as cvxpy finds it."""
    problem = cp.Problem(cp.Minimize(cp.sum_squares(polytope.variable - scores.numpy())), polytope.constraints)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return torch.from_numpy(polytope.variable.value)


@pytest.mark.parametrize("unit", [1e-3, 1e-5, 1e-8, 1e-9, 1e-10, 1e-11, 1e-13])
def test_blocks_far_smaller_than_others_are_answered(unit):
    """A small step from the origin leaves predicates whose scores are tiny beside others. While no part reaches 1, the
    nearest point of a block grows with its scores: that of scores of 0.1, as cvxpy finds it, says what it is."""
    polytope, generator = semantic_graph(12, core=3, others=2), torch.Generator().manual_seed(0)
    scores = 0.1 * torch.randn(32, 12, 12, 5, generator=generator, dtype=torch.float64)
    small = (torch.rand(32, 12, 1, 1, generator=generator) < 0.5).expand(scores.shape)
    asked = torch.where(small, 10.0 * unit * scores, scores)
    compiled = ol.compile_polytope(polytope, projector=ol.InteriorPoint())
    found = compiled.project(asked).check().value
    for answer, score, is_small in zip(found[:4], scores[:4], small[:4], strict=True):
        expected = nearest_by_clarabel(polytope, score)
        torch.testing.assert_close(answer, torch.where(is_small, 10.0 * unit * expected, expected), atol=1e-7, rtol=0)


def test_what_no_unit_of_blocks_helps_keeps_its_verdict():
    """The second way of InteriorPoint answers tiny blocks alone, and says nothing of other instances."""
    scores = draw(semantic_graph(5, core=2, others=1), 3)
    compiled = ol.compile_polytope(semantic_graph(5, core=2, others=1), projector=ol.InteriorPoint(), tolerance=1e-30)
    assert compiled.project(scores).status.tolist() == [ol.Status.INACCURATE] * 3
