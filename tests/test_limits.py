"""Capacities without limit, rows far from binding, and rows that are written down in another scale."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import MAXIMIZERS, PROJECTORS

import optlayers as ol
import polytopes

LARGE = (12.0, 1e7, 1e10, 1e15, 1e18, np.inf)
by_type = pytest.mark.parametrize("solver", PROJECTORS, ids=lambda s: type(s).__name__)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_rows(limit) -> ol.Polytope:
    y = cp.Variable(2)
    return ol.Polytope(y, [y >= 0, y <= 1, y[0] + y[1] <= limit, y[0] + 2 * y[1] <= 1])


@pytest.mark.many(4)
@by_type
@pytest.mark.parametrize("value", LARGE)
def test_a_row_without_limit_does_not_loosen_the_others(solver, value):
    for polytope, given in (
        (two_rows(value), {}),
        (two_rows(cp.Parameter(name="limit")), {"limit": numbers(value)[0]}),
    ):
        compiled = ol.compile_polytope(polytope, projector=solver)
        found = compiled.project(numbers(3.0, 3.0), **given).check().value
        torch.testing.assert_close(found, numbers(1.0, 0.0), atol=1e-9, rtol=0)


@pytest.mark.parametrize("value", LARGE)
def test_a_row_without_limit_has_no_gradient(value):
    limit = numbers(value)[0].requires_grad_()
    scores = numbers(0.7, 0.2).requires_grad_()
    for rule in (ol.SparseMAP(), ol.LPGD(0.1, smoothing=1.0)):
        value_of = ol.OptLayer(two_rows(cp.Parameter(name="limit")), rule)(scores, limit=limit)
        gradients = torch.autograd.grad(value_of @ numbers(1.0, 2.0), (limit, scores))
        assert float(gradients[0]) == 0.0 and torch.isfinite(gradients[1]).all()


@pytest.mark.parametrize("solver", MAXIMIZERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("value", LARGE[1:])
def test_best_vertices_next_to_capacities_without_limit(solver, value):
    """Transport with supplies of 2, 1 and demands of 1, 2; edges have capacities, two of them none."""
    x, capacity = cp.Variable((2, 2), nonneg=True), cp.Parameter((2, 2), name="capacity")
    rows = [cp.sum(x, axis=1) == np.array([2.0, 1.0]), cp.sum(x, axis=0) == np.array([1.0, 2.0]), x <= capacity]
    compiled = ol.compile_polytope(ol.Polytope(x, rows), maximizer=solver)
    given = torch.tensor([[value, 1.5], [0.75, value]], dtype=torch.float64)
    found = compiled.maximize(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), capacity=given).check().value
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.5], [0.5, 0.5]], dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("value", [1e7, 1e12, 1e15])
def test_a_large_capacity_that_binds_is_used(value):
    x = cp.Variable(2, nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [x <= value, x[0] + x[1] <= 1.5 * value]))
    best = compiled.maximize(numbers(2.0, 1.0)).check().value
    torch.testing.assert_close(best, numbers(value, 0.5 * value), rtol=1e-12, atol=0)
    near = compiled.project(numbers(3 * value, value)).check().value
    torch.testing.assert_close(near, numbers(value, 0.5 * value), rtol=1e-9, atol=0)


def test_constants_that_are_infinite_are_as_good_as_no_row():
    x = cp.Variable(3)
    weights = np.array([[1, 1, 0], [0, 1, 1.0]])
    rows = weights @ x <= np.array([1, np.inf])
    with_it = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= np.array([1.0, np.inf, 1.0]), rows]))
    without = ol.compile_polytope(ol.Polytope(x, [x >= 0, x[[0, 2]] <= 1, weights[0] @ x <= 1]))
    scores = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mine, theirs in (
        (with_it.maximize(scores), without.maximize(scores)),
        (with_it.project(scores), without.project(scores)),
    ):
        torch.testing.assert_close(mine.check().value, theirs.check().value)
    with pytest.raises(ol.DeclarationError, match=r"constraint 1 .* cannot hold: it asks for an infinite value"):
        ol.compile_polytope(ol.Polytope(x, [x >= 0, weights @ x == np.array([1, np.inf])]))
    with pytest.raises(ol.DeclarationError, match="a constant in it is NaN"):
        ol.compile_polytope(ol.Polytope(x, [x >= 0, weights @ x <= np.array([1, np.nan])]))


@pytest.mark.parametrize(
    ("rows", "value", "message"),
    [
        (lambda x, p: [cp.sum(x) == p], np.inf, "p must be finite"),
        (lambda x, p: [cp.sum(x) <= p], -np.inf, "p must be finite"),
        (lambda x, p: [cp.sum(x) >= p], np.inf, "p must be finite"),
        (lambda x, p: [cp.sum(x) <= p, cp.sum(x) >= p - 1], np.inf, "p must be finite"),
        (lambda x, p: [p * x[0] <= 1], np.inf, "p must be finite"),
        (lambda x, p: [cp.sum(x) <= p], np.nan, "p must be finite"),
    ],
)
def test_infinite_parameters_are_refused_where_they_mean_nothing(rows, value, message):
    x, p = cp.Variable(2), cp.Parameter(name="p")
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 1, *rows(x, p)]))
    with pytest.raises(ValueError, match=message):
        compiled.project(numbers(0.5, 0.5), p=numbers(value)[0])


def test_minus_infinity_takes_a_lower_limit_away():
    x, p = cp.Variable(2), cp.Parameter(2, name="p")
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= -1, x <= 1, x >= p, cp.sum(x) >= p[0]]))
    found = compiled.project(numbers(-3.0, -3.0), p=numbers(-np.inf, -0.5)).check().value
    torch.testing.assert_close(found, numbers(-1.0, -0.5))


def test_the_limit_that_is_missing_is_said():
    x, p = cp.Variable(2, nonneg=True), cp.Parameter(name="p", nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [cp.sum(x) <= p]))
    assert compiled.project(numbers(0.5, 2.0), p=numbers(np.inf)[0]).check().value.tolist() == [0.5, 2.0]
    found = compiled.maximize(numbers(1.0, 2.0), p=numbers(np.inf)[0])
    assert int(found.status) == ol.Status.UNBOUNDED


@pytest.mark.parametrize(("big", "small"), [(1.0, 1e-10), (1e9, 4e-5), (1e12, 1e-12), (3.0, 7.0)])
@pytest.mark.parametrize("solver", MAXIMIZERS, ids=lambda s: type(s).__name__)
def test_ranks_are_decided_by_directions_not_by_sizes(solver, big, small):
    x = cp.Variable(3)
    rows = [big * (x[0] + x[1]) == big, small * (x[1] - x[2]) == 0]
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 1, *rows]), maximizer=solver)
    assert compiled.form.equalities == 2
    assert compiled.maximize(numbers(0.0, 1.0, -1.5)).check().value.tolist() == [1.0, 0.0, 0.0]
    # Of the points (1 - t, t, t), the nearest one has t = 1/6.
    nearest = compiled.project(numbers(0.0, 1.0, -1.5)).check().value
    torch.testing.assert_close(nearest, numbers(5 / 6, 1 / 6, 1 / 6))


@pytest.mark.many(3)
@pytest.mark.parametrize("scale", [1e-12, 1e-11, 1e-6, 1e3, 1e9, 1e12])
@pytest.mark.parametrize("name", ["simplex", "matching", "capacities", "tree"])
def test_the_scale_of_a_row_changes_no_answer(name, scale):
    """Every row of a declaration times a number, all of them or every second one."""

    def declared(factors):
        x = cp.Variable(4, nonneg=True)
        if name == "simplex":
            return ol.Polytope(x, [factors[0] * cp.sum(x) == factors[0]])
        if name == "capacities":
            weights = np.array([[1.0, 2.0, 0.5, 0.0], [0.0, 1.0, 1.0, 3.0]])
            return ol.Polytope(
                x,
                [factors[0] * (weights[0] @ x) <= factors[0], factors[1] * (weights[1] @ x) <= factors[1] * 2, x <= 1],
            )
        if name == "matching":
            m = cp.Variable((3, 3), nonneg=True)
            return ol.Polytope(
                m,
                [factors[i % 2] * cp.sum(m[i]) == factors[i % 2] for i in range(3)]
                + [factors[(j + 1) % 2] * cp.sum(m[:, j]) == factors[(j + 1) % 2] for j in range(3)],
            )
        y = cp.Variable(4, nonneg=True)  # auxiliary copies
        return ol.Polytope(x, [factors[0] * x == factors[0] * y, factors[1] * cp.sum(y) == factors[1], x <= 0.6])

    generator = torch.Generator().manual_seed(0)
    for factors in ((scale, scale), (scale, 1.0), (1.0, scale)):
        mine, usual = ol.compile_polytope(declared(factors)), ol.compile_polytope(declared((1.0, 1.0)))
        scores = torch.randn(12, *mine.shape, generator=generator, dtype=torch.float64)
        scores[0] = 0.0
        scores[1] = scores[1].round()
        torch.testing.assert_close(mine.maximize(scores).check().value, usual.maximize(scores).check().value)
        torch.testing.assert_close(mine.project(scores).check().value, usual.project(scores).check().value)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e9])
def test_the_scale_of_a_parameter_in_the_matrix_changes_no_answer(scale):
    x, p, b = cp.Variable(3), cp.Parameter(3, name="p"), cp.Parameter(name="b")
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 1, p @ x <= b]))
    weights, scores = numbers(1.0, 2.0, 0.5), torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).double()
    gradients = []
    for factor in (1.0, scale):
        leaves = [v.clone().requires_grad_() for v in (factor * weights, numbers(1.2 * factor)[0], scores)]
        value = ol.OptLayer(compiled, ol.SparseMAP())(leaves[2], p=leaves[0], b=leaves[1])
        (value * torch.arange(30.0).reshape(10, 3)).sum().backward()
        gradients.append([value.detach(), leaves[2].grad, leaves[0].grad * factor, leaves[1].grad * factor])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    best = [compiled.maximize(scores, p=f * weights, b=numbers(1.2 * f)[0]).check().value for f in (1.0, scale)]
    torch.testing.assert_close(*best)


def test_rows_with_a_parameter_in_the_matrix_that_are_far_from_binding_cost_nothing():
    x, p = cp.Variable(2), cp.Parameter(2, name="p")
    solve = ol.compile_polytope(ol.Polytope(x, [x <= 200, x >= -100, p @ x <= 56657.12364423149]))
    generator = torch.Generator().manual_seed(0)
    scores = 100 * torch.randn(2000, 2, dtype=torch.float64, generator=generator)
    found = solve.project(scores, p=torch.randn(2000, 2, dtype=torch.float64, generator=generator)).check()
    torch.testing.assert_close(found.value, scores.clamp(-100, 200))


def test_a_low_precision_of_one_parameter_loosens_no_other_row():
    x, a, b, c = cp.Variable((2, 2)), cp.Parameter(2, name="a"), cp.Parameter(2, name="b"), cp.Parameter(name="c")
    rows = [x >= 0, cp.sum(x, axis=1) == a, cp.sum(x, axis=0) == b]
    compiled = ol.compile_polytope(ol.Polytope(x, [*rows, x[0, 0] <= c]))

    limit = torch.tensor(1.0, dtype=torch.bfloat16)

    def status(dtype, first, second):
        given = {"a": torch.full((2,), first).to(dtype), "b": torch.full((2,), second).to(dtype), "c": limit}
        return int(compiled.project(torch.zeros(2, 2), **given).status)

    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        assert status(dtype, 0.5, 0.9) == ol.Status.INFEASIBLE
        assert status(dtype, 0.3, 0.3) == ol.Status.OPTIMAL
    # What is rounding in bfloat16 is none in float32, beside a capacity in bfloat16.
    assert status(torch.bfloat16, 0.5, 0.502) == ol.Status.OPTIMAL
    assert status(torch.float32, 0.5, 0.502) == ol.Status.INFEASIBLE
    assert status(torch.float32, 0.5, 0.5000001) == ol.Status.OPTIMAL
    assert status(torch.float64, 0.5, 0.5000001) == ol.Status.INFEASIBLE


def test_marginals_of_a_low_precision_are_balanced_up_to_their_roundings():
    x, a, b = cp.Variable((20, 30), nonneg=True), cp.Parameter(20, name="a"), cp.Parameter(30, name="b")
    compiled = ol.compile_polytope(ol.Polytope(x, [cp.sum(x, axis=1) == a, cp.sum(x, axis=0) == b]))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 20, 30, generator=generator)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rows = torch.randn(6, 20, generator=generator).to(dtype).softmax(1)
        columns = torch.randn(6, 30, generator=generator).to(dtype).softmax(1)
        found = compiled.project(scores, a=rows, b=columns).check()
        assert found.primal_residual.max() <= 4 * torch.finfo(dtype).eps
        moved = columns.clone()
        moved[:, 0] += 0.1
        assert (compiled.project(scores, a=rows, b=moved).status == ol.Status.INFEASIBLE).all()


def test_all_scored_entries_may_be_fixed_while_auxiliary_columns_remain():
    x, y = cp.Variable(1), cp.Variable(3, nonneg=True)
    solve = ol.compile_polytope(ol.Polytope(x, [x == 0.5, x == 0.5 * cp.sum(y), cp.sum(y) == 1]))
    scores = torch.randn(6, 1, dtype=torch.float64)
    for found in (solve.maximize(scores), solve.project(scores)):
        assert (found.check().value == 0.5).all()
    assert (polytopes.simplex(1).shape, float(solve.project(scores[0]).check().value)) == ((1,), 0.5)


@pytest.mark.many(4)
@pytest.mark.parametrize("solver", MAXIMIZERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("value", [1e5, *LARGE[1:]])
def test_ties_are_decided_alike_next_to_no_limit(solver, value):
    x = cp.Variable(4)
    rows = [x[:2] >= 0, x <= 1, np.array([1.0, 1.0, 1.0, -1.0]) @ x <= 1.85, x[0] + x[2] + x[3] >= 0.5]
    rows += [np.array([-1.0, 1.0, 1.5, -2.0]) @ x <= 1.3, x[2:] >= -1]
    scores = torch.tensor([[0.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, -1, -1], [-1, -1, -1, 1]], dtype=torch.float64)
    expected = ol.compile_polytope(ol.Polytope(x, rows), maximizer=ol.Highs()).maximize(scores).check().value
    loose = ol.Polytope(x, [*rows, x[1] - 2 * x[2] + x[3] <= value])
    found = ol.compile_polytope(loose, maximizer=solver).maximize(scores).check().value
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
