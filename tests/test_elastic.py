"""Points of least violation: against cvxpy, closed forms and finite differences."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import optlayers as ol
from polytopes import arborescence, simplex

X = cp.Variable(4)
LIMIT, WEIGHT = cp.Parameter(4, name="limit"), cp.Parameter(4, name="weight")
CAPACITY, TOTAL = cp.Parameter(name="capacity"), cp.Parameter(name="total")
CONSTRAINTS = [X >= 0, X <= LIMIT, WEIGHT @ X <= CAPACITY, cp.sum(X) == TOTAL]
POLYTOPE = ol.Polytope(X, CONSTRAINTS)


def numbers(count: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    scores = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    limit, weight, capacity, total = uniform(count, 4), uniform(count, 4), uniform(count), uniform(count)
    return scores, {"limit": limit, "weight": weight + 0.3, "capacity": capacity, "total": 4.0 * total}


def least_violation(parameters: dict[str, torch.Tensor], k: int, weights: tuple[float, ...]) -> list[np.ndarray]:
    """By Clarabel, for one instance: of the limits, of the capacity, of the total."""
    x, given = cp.Variable(4), {name: value[k].numpy() for name, value in parameters.items()}
    v = [cp.Variable(4), cp.Variable(), cp.Variable()]
    cost = sum(w * cp.sum_squares(part) for w, part in zip(weights, v, strict=True))
    rows = [x >= 0, x <= given["limit"] + v[0], given["weight"] @ x <= given["capacity"] + v[1]]
    problem = cp.Problem(cp.Minimize(cost), [*rows, cp.sum(x) == given["total"] + v[2]])
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return [np.maximum(v[0].value, 0.0), np.maximum(v[1].value, 0.0), np.abs(v[2].value)]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 10.0, 0.1)])
def test_violations_are_least(weights):
    layer = ol.OptLayer(POLYTOPE, ol.SparseMAP())
    soft = ol.Elastic(layer, weights=dict(zip(CONSTRAINTS[1:], weights, strict=True)))
    scores, parameters = numbers(60, 0)
    solution = soft.solve(scores, **parameters)
    possible = ol.compile_polytope(POLYTOPE).project(scores, **parameters).ok
    assert solution.all_ok and 10 < possible.sum() < 50
    assert (solution.violation[possible] == 0.0).all() and (solution.violation[~possible] > 1e-6).all()
    for k in range(60):
        expected = least_violation(parameters, k, weights)
        for constraint, mine in zip(CONSTRAINTS[1:], expected, strict=True):
            assert np.abs(solution.violations[constraint][k].numpy() - mine).max() <= 1e-7
        norm = math.sqrt(sum(w * np.square(mine).sum() for w, mine in zip(weights, expected, strict=True)))
        assert abs(solution.violation[k].item() - norm) <= 1e-7
    assert (solution.violations[CONSTRAINTS[0]] == 0.0).all()


def test_points_are_best_for_moved_right_sides():
    """The nearest points of the polytope whose right sides are moved by what was found, by the library's certificate of
    another layer; and those of instances that have points are unchanged."""
    soft, scores, parameters = ol.Elastic(ol.OptLayer(POLYTOPE, ol.SparseMAP())), *numbers(40, 1)
    solution, plain = soft.solve(scores, **parameters), ol.compile_polytope(POLYTOPE).project(scores, **parameters)
    torch.testing.assert_close(solution.value[plain.ok], plain.value[plain.ok], atol=0.0, rtol=0.0)
    over = parameters["total"] > parameters["limit"].sum(1)  # more is asked for than there is
    sign = torch.where(over, -1.0, 1.0)
    moved = {
        "limit": parameters["limit"] + solution.violations[CONSTRAINTS[1]] + 1e-9,
        "weight": parameters["weight"],
        "capacity": parameters["capacity"] + solution.violations[CONSTRAINTS[2]] + 1e-9,
        "total": parameters["total"] + sign * solution.violations[CONSTRAINTS[3]],
    }
    there = ol.compile_polytope(POLYTOPE).project(scores, **moved)
    rows = there.ok & ~plain.ok
    assert rows.sum() > 10
    torch.testing.assert_close(solution.value[rows], there.value[rows], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(
    "rule",
    [ol.Pipeline(), ol.Spigot(), ol.LPGD(1.0), ol.Regularized(ol.Tsallis(1.5)), ol.Hard(ol.SparseMAP())],
    ids=repr,
)
def test_every_rule_chooses_among_them(rule):
    scores, parameters = numbers(100, 2)
    solution = ol.Elastic(ol.OptLayer(POLYTOPE, rule)).solve(scores.requires_grad_(), **parameters)
    assert solution.all_ok and (solution.violation > 0.0).sum() > 50
    x, tolerance = solution.value.detach(), 1e-7
    violations = solution.violations
    assert (x >= -tolerance).all()
    assert (x <= parameters["limit"] + violations[CONSTRAINTS[1]] + tolerance).all()
    room = parameters["capacity"] + violations[CONSTRAINTS[2]] - (parameters["weight"] * x).sum(1)
    assert (room >= -tolerance).all()
    missed = (x.sum(1) - parameters["total"]).abs() - violations[CONSTRAINTS[3]]
    assert (missed <= tolerance).all()
    (slope,) = torch.autograd.grad((solution.value**2).sum(), scores)
    assert slope.isfinite().all()


def test_points_and_violations_have_gradients():
    soft, (scores, parameters) = ol.Elastic(ol.OptLayer(POLYTOPE, ol.SparseMAP())), numbers(3, 3)
    names = list(parameters)
    assert (soft.solve(scores, **parameters).violation > 0.0).sum() >= 1
    leaves = [t.requires_grad_() for t in (scores, *parameters.values())]

    def both(s: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        solution = soft.solve(s, **dict(zip(names, given, strict=True)))
        found = (solution.value, solution.violation, *solution.violations.values())
        return torch.cat([one.flatten() for one in found])

    assert gradcheck(both, leaves, eps=1e-6, atol=1e-5, fast_mode=True)


def test_gradients_beside_forbidden_parts():
    """Of two instances that nothing satisfies without the forbidden part, and one that has points."""
    soft, (scores, parameters) = ol.Elastic(ol.OptLayer(POLYTOPE, ol.SparseMAP())), numbers(3, 7)
    names, forbidden = list(parameters), torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]).bool()
    parameters["total"][0] = 0.05
    leaves = [t.requires_grad_() for t in (scores, *parameters.values())]

    def both(s: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        solution = soft.solve(s.masked_fill(forbidden, -math.inf), **dict(zip(names, given, strict=True)))
        return torch.cat([solution.value.flatten(), solution.violation])

    found = both(*leaves)
    assert (found[-3:] > 1e-3).tolist() == [False, True, True] and (found[:-3].reshape(3, 4)[forbidden] == 0.0).all()
    assert gradcheck(both, leaves, eps=1e-6, atol=1e-5, fast_mode=True)


def test_a_demand_beyond_the_supply_is_shared_by_the_weights():
    """d and s miss each other by g: of that, s gives way by g d_w / (d_w + s_w), the demand by the rest."""
    x, supply, demand = cp.Variable(3, nonneg=True), cp.Parameter(name="supply"), cp.Parameter(name="demand")
    stock, wanted = cp.sum(x) <= supply, cp.sum(x) >= demand
    layer = ol.OptLayer(ol.Polytope(x, [stock, wanted]), ol.SparseMAP())
    soft = ol.Elastic(layer, weights={stock: 4.0})
    has, asks = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in ([1.0, 3.0], [2.0, 2.0]))
    solution = soft.solve(torch.zeros(2, 3, dtype=torch.float64), supply=has, demand=asks)
    torch.testing.assert_close(solution.violations[stock].detach(), torch.tensor([0.2, 0.0]).double())
    torch.testing.assert_close(solution.violations[wanted].detach(), torch.tensor([0.8, 0.0]).double())
    torch.testing.assert_close(solution.value.detach(), torch.tensor([[0.4] * 3, [2.0 / 3.0] * 3]).double())
    of_supply, of_demand = torch.autograd.grad(solution.value[:, 0].sum(), (has, asks))
    torch.testing.assert_close(of_supply, torch.tensor([0.8 / 3.0, 0.0]).double())
    torch.testing.assert_close(of_demand, torch.tensor([0.2 / 3.0, 1.0 / 3.0]).double())
    held = ol.Elastic(layer, weights={stock: math.inf})
    missing = held.solve(torch.zeros(2, 3), supply=has, demand=asks).violations[wanted]
    assert abs(missing[0].item() - 1.0) <= 1e-12


def test_equalities_that_cannot_hold_together_meet_in_the_middle():
    """Transport of more than there is: every supply and every demand gives way by as much."""
    x, supply, demand = cp.Variable((2, 3), nonneg=True), cp.Parameter(2, name="supply"), cp.Parameter(3, name="demand")
    polytope = ol.Polytope(x, [cp.sum(x, axis=1) == supply, cp.sum(x, axis=0) == demand])
    soft = ol.Elastic(ol.OptLayer(polytope, ol.SparseMAP()))
    scores = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = {"supply": torch.tensor([1.0, 2.0]).double(), "demand": torch.tensor([2.0, 1.0, 1.5]).double()}
    solution = soft.solve(scores, **given)
    assert solution.all_ok
    for violated in solution.violations.values():
        torch.testing.assert_close(violated, torch.full_like(violated, 0.3))  # 1.5 too much, over five rows
    torch.testing.assert_close(solution.value.sum(2), given["supply"].expand(4, 2) + 0.3)


def test_forbidden_parts_stay_forbidden():
    """A word without any head that is allowed: its row gives way, and the others have theirs."""
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[1] = -torch.inf
    scores[2, :2] = -torch.inf
    solution = ol.Elastic(ol.OptLayer(simplex(4), ol.SparseMAP())).solve(scores)
    assert solution.violation.tolist() == [0.0, 1.0, 0.0]
    assert (solution.value[1] == 0.0).all() and (solution.value[2, :2] == 0.0).all()
    heads = torch.zeros(1, 5, 5, dtype=torch.float64)
    heads[0, :, 2] = -torch.inf
    trees = ol.Elastic(ol.OptLayer(arborescence(4).without_oracle(), ol.Pipeline())).solve(heads)
    assert trees.violation.item() > 0.1 and (trees.value[0, :, 2] == 0.0).all()


def test_a_call_that_nothing_is_wrong_with_is_that_of_the_layer():
    layer, scores = ol.OptLayer(simplex(4), ol.SparseMAP()), torch.randn(2, 3, 4)
    soft = ol.Elastic(layer)
    assert torch.equal(soft(scores), layer(scores))
    assert soft.solve(scores).violation.shape == (2, 3) and soft(torch.zeros(0, 4)).shape == (0, 4)
    assert soft(scores).dtype == torch.float32


def test_what_must_hold_and_does_not_is_a_failure():
    x, low = cp.Variable(2), cp.Parameter(2, name="low")
    hard, soft_row = x >= low, cp.sum(x) <= 1
    polytope = ol.Polytope(x, [hard, x <= 1, soft_row])
    scores = torch.zeros(2, 2, dtype=torch.float64)
    low_of = torch.tensor([[2.0, 0.0], [0.9, 0.8]], dtype=torch.float64)
    layer = ol.OptLayer(polytope, ol.SparseMAP())
    with pytest.raises(ol.SolveError, match="instance 0 is INFEASIBLE: its violations cannot be told"):
        ol.Elastic(layer, weights={hard: math.inf})(scores, low=low_of)
    quiet = ol.Elastic(ol.OptLayer(polytope, ol.SparseMAP(), on_failure="nan"), weights={hard: math.inf})
    solution = quiet.solve(scores, low=low_of)
    assert solution.status.tolist() == [int(ol.Status.INFEASIBLE), 0]
    assert solution.value[0].isnan().all() and abs(solution.violation[1].item() - 0.7) <= 1e-9


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ol.Elastic(POLYTOPE), TypeError, "wraps an OptLayer, but got Polytope"),
        (lambda: ol.Elastic(ol.OptLayer(ol.Family(simplex), ol.SparseMAP())), TypeError, "is over a Family"),
        (
            lambda: ol.Elastic(ol.OptLayer(POLYTOPE, ol.SparseMAP()), weights={cp.sum(X) <= 1: 1.0}),
            ValueError,
            "is no constraint of the declaration",
        ),
        (
            lambda: ol.Elastic(ol.OptLayer(POLYTOPE, ol.SparseMAP()), weights={CONSTRAINTS[2]: 0.0}),
            ValueError,
            "must be positive and finite, or inf",
        ),
        (
            lambda: ol.Elastic(ol.OptLayer(POLYTOPE, ol.SparseMAP()), weights={CONSTRAINTS[1]: np.ones(3)}),
            ValueError,
            r"has shape \(3,\), but the constraint has shape \(4,\)",
        ),
        (
            lambda: ol.Elastic(ol.OptLayer(ol.Polytope(X, [X >= 0, X <= 1]), ol.SparseMAP())),
            ValueError,
            "no constraint may give way",
        ),
        (
            lambda: ol.Elastic(ol.OptLayer(POLYTOPE, ol.SparseMAP()), weights=2.0),
            TypeError,
            "a mapping from constraints to numbers, .* but got 2.0",
        ),
        (lambda: ol.OptLayer(POLYTOPE, ol.SparseMAP(), on_failure="elastic"), ValueError, r"Elastic\(layer\) answers"),
    ],
)
def test_what_cannot_be_is_said(make, error, message):
    with pytest.raises(error, match=message):
        make()
