"""Gradients of parameters at the edge of their domain are one-sided; at a kink they are the mean of both sides."""

import itertools
from fractions import Fraction

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch
from catalogue import PROJECTORS

import optlayers as ol
import polytopes

SMOOTH = ol.LPGD(0.001, smoothing=1.0)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def declared(name: str) -> ol.Polytope:
    x, p = cp.Variable(3), cp.Parameter(name="p")
    box = [x >= 0, x <= 1]
    rows = {
        "at most": [*box, cp.sum(x) <= p],
        "exactly": [*box, cp.sum(x) == p],
        "at least": [*box, cp.sum(x) >= p],
        "one part": [*box, x[0] == p, cp.sum(x) <= 2],
        "a capacity": [x >= 0, x[0] <= p, x[1:] <= 1, cp.sum(x) <= 2],
        "a weight": [*box, x[0] + 2 * x[1] + 2 * x[2] <= p, cp.sum(x) == 1],
        "an auxiliary": [*box, x <= cp.Variable(3, nonneg=True), cp.sum(x) <= p],
    }
    return ol.Polytope(x, rows[name])


def one_sided(polytope: ol.Polytope, scores: torch.Tensor, at: float, side: float, ask: str) -> torch.Tensor | None:
    """How an answer moves when the parameter does, by a difference; None where there is no polytope."""
    solve, step = getattr(ol.compile_polytope(polytope), ask), 1e-5
    ahead = solve(scores, p=numbers(at + side * step)[0])
    if not ahead.all_ok:
        return None
    return side * (ahead.value - solve(scores, p=numbers(at)[0]).check().value) / step


EDGES = [
    ("at most", 0.0),
    ("exactly", 0.0),
    ("exactly", 3.0),
    ("at least", 3.0),
    ("one part", 0.0),
    ("one part", 1.0),
    ("a capacity", 0.0),
    ("a weight", 1.0),
    ("an auxiliary", 0.0),
]


@pytest.mark.many(3)
@pytest.mark.parametrize("rule", [ol.SparseMAP(), SMOOTH, ol.Hard(ol.SparseMAP())], ids=repr)
@pytest.mark.parametrize(("name", "edge"), EDGES)
def test_at_the_edge_of_its_domain_a_parameter_has_a_one_sided_derivative(name, edge, rule):
    polytope = declared(name)
    generator = torch.Generator().manual_seed(0)
    scores = torch.cat([numbers(0.9, 0.5, 0.3)[None], torch.randn(5, 3, generator=generator, dtype=torch.float64)])
    weights = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    of_vertices = isinstance(rule, ol.LPGD)
    ask = "maximize" if of_vertices else "project"
    inside = [one_sided(polytope, scores, edge, side, ask) for side in (1.0, -1.0)]
    assert sum(moved is None for moved in inside) == 1
    expected = next((moved * weights).sum(1) for moved in inside if moved is not None)
    p = torch.full((6,), edge, dtype=torch.float64, requires_grad=True)
    (ol.OptLayer(polytope, rule)(scores, p=p) * weights).sum().backward()
    torch.testing.assert_close(p.grad, expected, atol=2e-3 if of_vertices else 1e-6, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_the_edge_is_the_edge_for_scores_of_any_size(scale):
    p = numbers(0.0)[0].requires_grad_()
    value = ol.OptLayer(declared("at most"), ol.SparseMAP())(scale * numbers(0.9, 0.5, 0.3), p=p)
    (gradient,) = torch.autograd.grad(value @ numbers(1.0, 2.0, 4.0), p)
    assert float(gradient) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("budget", [0.0, 1.0, 2.0, 3.0, 5.0])
def test_a_budget_that_is_spent_on_whole_parts(budget):
    """Between its edges the mean of both sides: the last part that was bought, and the next one."""
    scores = numbers(50.0, 40.0, 30.0, 20.0, 10.0)
    for polytope in (polytopes.subset(5), polytopes.subset(5).without_oracle()):
        p = numbers(budget)[0].requires_grad_()
        value = ol.OptLayer(polytope, ol.SparseMAP())(scores, budget=p)
        (gradient,) = torch.autograd.grad(value @ numbers(1.0, 2.0, 4.0, 8.0, 16.0), p)
        sides = [2.0 ** (k - 1) for k in (budget, budget + 1) if 1 <= k <= 5]
        assert float(gradient) == pytest.approx(sum(sides) / len(sides))


def test_capacities_that_come_out_of_a_relu_start_to_learn():
    """Some are 0: there a part is worth its score."""
    x, p = cp.Variable(4, nonneg=True), cp.Parameter(4, name="p", nonneg=True)
    polytope = ol.Polytope(x, [x <= p, cp.sum(x) <= 3])
    capacity = numbers(0.0, 0.5, 0.0, 0.25).requires_grad_()
    scores, weights = numbers(1.0, 2.0, -1.0, 3.0), numbers(1.0, 2.0, 4.0, 8.0)
    (ol.OptLayer(polytope, ol.SparseMAP())(scores, p=capacity) * weights).sum().backward()
    torch.testing.assert_close(capacity.grad, numbers(1.0, 2.0, 0.0, 8.0))


def test_values_have_one_sided_derivatives_too():
    """The value of a capacity of nothing is the best score that it could buy."""
    compiled = ol.compile_polytope(declared("at most"))
    theta, precision = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(1).double().numpy()
    bound = compiled.bind_on_host(theta, None, precision)
    scores = torch.stack([numbers(0.9, 0.5, 0.3), numbers(0.1, 0.2, 0.7)])
    for solve in (bound.maximize, bound.project):
        torch.testing.assert_close(bound.value_gradient(solve(scores).check())["p"], numbers(0.9, 0.7))


def test_parameters_in_the_matrix_at_an_edge():
    x, p, w = cp.Variable(3), cp.Parameter(name="p"), cp.Parameter(3, name="w")
    layer = ol.OptLayer(ol.Polytope(x, [x >= 0, x <= 1, w @ x <= p]), ol.SparseMAP())
    scores = numbers(0.9, 0.5, 0.3)
    weight, limit = numbers(2.0, 1.0, 1.0).requires_grad_(), numbers(0.0)[0].requires_grad_()
    (layer(scores, p=limit, w=weight) @ numbers(1.0, 3.0, 9.0)).backward()
    # 0.9 / 2 is less than 0.5: what there is to spend goes to the second part.
    assert float(limit.grad) == pytest.approx(3.0) and (weight.grad.abs() <= 1e-9).all()


@pytest.mark.many(2)
@pytest.mark.parametrize("seed", range(6))
def test_transport_with_empty_supplies(seed):
    """Sources of which some have nothing to give; differences into the domain agree with the gradient."""
    generator = torch.Generator().manual_seed(seed)
    x, a, b = cp.Variable((3, 4), nonneg=True), cp.Parameter(3, name="a"), cp.Parameter(4, name="b")
    polytope = ol.Polytope(x, [cp.sum(x, axis=1) <= a, cp.sum(x, axis=0) <= b])
    scores = torch.randn(3, 4, generator=generator, dtype=torch.float64).abs()
    supply, demand = numbers(0.0, 0.7, 0.0), numbers(0.3, 0.0, 0.4, 0.2)
    weights = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    leaves = [supply.clone().requires_grad_(), demand.clone().requires_grad_()]
    (ol.OptLayer(polytope, ol.SparseMAP())(scores, a=leaves[0], b=leaves[1]) * weights).sum().backward()
    compiled, step = ol.compile_polytope(polytope), 1e-6
    direction = [0.5 + torch.rand(len(v), generator=generator, dtype=torch.float64) for v in (supply, demand)]
    ahead = compiled.project(scores, a=supply + step * direction[0], b=demand + step * direction[1]).check().value
    moved = (ahead - compiled.project(scores, a=supply, b=demand).check().value) / step
    along = sum(float(leaf.grad @ d) for leaf, d in zip(leaves, direction, strict=True))
    assert abs(along - float((moved * weights).sum())) <= 1e-4


ROWS = np.array([[3.0, -2.0, -1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [-1.0, -1.0, 0.0]])
AT = numbers(5.9375, 2.1875, -1.5625, -2.1875, -0.375)
"""A segment that the fourth row cuts off nowhere and everywhere; two rows are equalities."""


def best_value(scores: np.ndarray, theta: np.ndarray) -> float | None:
    """Of the segment, by another solver; None where it is empty."""
    found = scipy.optimize.linprog(
        [-scores[0], -scores[1], 0.0],
        A_ub=ROWS[2:],
        b_ub=theta[2:],
        A_eq=ROWS[:2],
        b_eq=theta[:2],
        bounds=[(0, 2), (0, 2), (None, None)],
    )
    return None if found.status == 2 else -found.fun


def slopes(scores: np.ndarray, entry: int) -> list[float]:
    """Of the best value, by one parameter, on those sides where there is a point."""
    step, found = 1e-3, []
    for side in (step, -step):
        moved = AT.numpy().copy()
        moved[entry] += side
        ahead = best_value(scores, moved)
        if ahead is not None:
            found.append((ahead - best_value(scores, AT.numpy())) / side)
    return found


@pytest.mark.parametrize("scores", [(10.0, -10.0), (0.002, 0.0001), (3.0, 1.0), (-1.0, 2.0)])
def test_every_parameter_at_an_edge_has_its_own_derivative(scores):
    """Where pieces meet at the edge, one direction into the domain says nothing of others."""
    x, w = cp.Variable(2, bounds=[0, 2]), cp.Variable(1)
    p, q, r = cp.Parameter(name="p"), cp.Parameter(name="q"), cp.Parameter(3, name="r")
    rows = [ROWS[0] @ cp.hstack([x, w]) == p, x[:1] - w == q, ROWS[2:] @ cp.hstack([x, w]) <= r]
    layer = ol.OptLayer(ol.Polytope(x, rows), ol.LPGD(1.5))
    at = [AT[0].clone(), AT[1].clone(), AT[2:].clone()]
    leaves = [value.requires_grad_() for value in at]
    gradient = numbers(0.7, 0.2)
    given = numbers(*scores).requires_grad_()
    layer(given, p=leaves[0], q=leaves[1], r=leaves[2]).backward(gradient)
    found = torch.cat([leaf.grad.reshape(-1) for leaf in leaves]).numpy()
    for entry in range(5):
        here, lower = slopes(np.array(scores), entry), slopes(np.array(scores) - 1.5 * gradient.numpy(), entry)
        ends = [(a - b) / 1.5 for a in here for b in lower]
        assert min(ends) - 1e-6 <= found[entry] <= max(ends) + 1e-6, (entry, found, ends)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0])
def test_small_scores_still_say_which_part_goes_first(scale):
    """All parts are bought; with less to spend the one with the lowest score goes, however near the others are."""
    p = numbers(3.0)[0].requires_grad_()
    scores = scale * numbers(1.174, -1.208, -1.187)
    (ol.OptLayer(polytopes.subset(3), ol.SparseMAP())(scores, budget=p) @ numbers(1.0, 2.0, 4.0)).backward()
    assert float(p.grad) == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("large", [1e3, 1e5, 1e6])
def test_a_column_of_any_coefficient_hides_no_difference(large):
    """What there is to spend goes to the first part, of the most for its size; a large one is held anyway."""
    x, p = cp.Variable(4, nonneg=True), cp.Parameter(name="p", nonneg=True)
    polytope = ol.Polytope(x, [x[0] + x[1] + x[2] + large * x[3] == p])
    budget = numbers(0.0)[0].requires_grad_()
    value = ol.OptLayer(polytope, ol.SparseMAP())(numbers(1.0, 0.9999, 0.9998, 0.5), p=budget)
    (value @ numbers(1.0, 2.0, 4.0, 8.0)).backward()
    assert float(budget.grad) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("common", [1.0, 1e3, 1e6])
def test_an_auxiliary_variable_hides_no_difference_next_to_what_all_have_in_common(common):
    x, p = cp.Variable(3, nonneg=True), cp.Parameter(name="p")
    polytope = ol.Polytope(x, [cp.sum(x) == p, x <= 1, cp.norm1(x - 0.1) <= 3])
    budget = numbers(0.0)[0].requires_grad_()
    (ol.OptLayer(polytope, ol.SparseMAP())(numbers(0.0, 1e-3, -1e-3) + common, p=budget) @ numbers(1, 2, 3)).backward()
    assert float(budget.grad) == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("capacity", [0.5, 0.0])
def test_a_kink_is_one_beside_an_edge_too(capacity):
    """The budget is spent on whole parts; what another parameter does is no matter of it."""
    x, b, p = cp.Variable(4, nonneg=True), cp.Parameter(name="b"), cp.Parameter(name="p")
    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x[:3]) == b, x[:3] <= 1, x[3] <= p]), ol.SparseMAP())
    budget, most = numbers(2.0)[0].requires_grad_(), numbers(capacity)[0].requires_grad_()
    (layer(numbers(9.0, 8.0, 1.0, 3.0), b=budget, p=most) @ numbers(1.0, 2.0, 4.0, 8.0)).backward()
    assert float(budget.grad) == pytest.approx(3.0) and float(most.grad) == pytest.approx(8.0)


def test_prices_that_cancel_leave_no_difference():
    """What two large prices leave of a score is rounding, and there the part is as good as not in."""
    x, p = cp.Variable(5, nonneg=True), cp.Parameter(name="p")
    rows, point = np.stack([np.ones(5), 1.0 + 2.0**-10 * np.arange(5)]), np.array([0.25, 0.5, 0.125, 0.125, 0.0])
    layer = ol.OptLayer(ol.Polytope(x, [rows @ x == rows @ point, x[4] <= p]), ol.SparseMAP())
    scores, limit = torch.tensor(point + rows.T @ np.array([-(2.0**10), 2.0**10])), numbers(0.0)[0].requires_grad_()
    (layer(scores, p=limit) @ numbers(0.0, 0.0, 0.0, 0.0, 1.0)).backward()
    assert abs(float(limit.grad)) <= 1e-6


@pytest.mark.parametrize("seed", range(8))
def test_parameters_that_must_agree_move_together(seed):
    """Rows that sum to p0 and columns to p1: one part is forced, and at its bound of 1, so both can only shrink."""
    generator = torch.Generator().manual_seed(seed)
    x, p0, p1 = cp.Variable((4, 4), nonneg=True), cp.Parameter(name="p0"), cp.Parameter(name="p1")
    layer = ol.OptLayer(ol.Polytope(x, [x <= 1, cp.sum(x, axis=0) == p0, cp.sum(x, axis=1) == p1]), ol.SparseMAP())
    scores = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    scores[0, [0, 2, 3]] = -torch.inf
    direction = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    given = {name: torch.tensor(1.0, dtype=torch.float64, requires_grad=True) for name in ("p0", "p1")}
    layer(scores, **given).backward(direction)
    step = torch.tensor(1.0 - 1e-6, dtype=torch.float64)
    moved = layer(scores, **{name: value.detach() for name, value in given.items()}) - layer(scores, p0=step, p1=step)
    found = sum(value.grad for value in given.values())
    torch.testing.assert_close(found, (direction * moved).sum() / 1e-6, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_supplies_and_demands_of_nothing(seed):
    """Supply is in the first row and demand in the second column; a unit more of both takes one way or another."""
    generator = torch.Generator().manual_seed(seed)
    x, supply, demand = cp.Variable((2, 2)), cp.Parameter(2, name="supply"), cp.Parameter(2, name="demand")
    layer = ol.OptLayer(
        ol.Polytope(x, [x >= 0, cp.sum(x, axis=1) == supply, cp.sum(x, axis=0) == demand]), ol.SparseMAP()
    )
    scores = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    direction = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    given = {"supply": torch.tensor([0.5, 0.0]), "demand": torch.tensor([0.0, 0.5])}
    given = {name: value.double().requires_grad_() for name, value in given.items()}
    layer(scores, **given).backward(direction)
    sides = torch.cat([given["supply"].grad, given["demand"].grad])
    step, found = 1e-6, []
    for way in ([1.0, 0.5, 0.5, 1.0], [1.0, 0.5, 1.0, 0.5], [1.0, 0.7, 0.6, 1.1]):  # the pieces that meet there
        more = torch.tensor(way, dtype=torch.float64) * 1e-3
        near = {"supply": given["supply"].detach() + more[:2], "demand": given["demand"].detach() + more[2:]}
        values = [layer(scores, **near)]
        slopes = []
        for place in ([0, 2], [0, 3], [1, 2], [1, 3]):
            moved = torch.zeros(4, dtype=torch.float64)
            moved[place] = step
            there = {"supply": near["supply"] + moved[:2], "demand": near["demand"] + moved[2:]}
            slopes.append(float((direction * (layer(scores, **there) - values[0])).sum() / step))
        found.append(slopes)
    mine = [float(sides[place].sum()) for place in ([0, 2], [0, 3], [1, 2], [1, 3])]
    assert any(torch.allclose(torch.tensor(mine), torch.tensor(piece), atol=1e-4) for piece in found), (mine, found)


@pytest.mark.parametrize(("sources", "seed"), [(6, 0), (10, 0), (20, 1)])
def test_many_supplies_of_nothing(sources, seed):
    """Most sources are empty; from each of them a unit more to a sink is worth what a difference says."""
    generator = np.random.default_rng(seed)
    x, supply, demand = cp.Variable((sources, 2)), cp.Parameter(sources, name="supply"), cp.Parameter(2, name="demand")
    rows = [x >= 0, cp.sum(x, axis=1) == supply, cp.sum(x, axis=0) == demand]
    layer = ol.OptLayer(ol.Polytope(x, rows), ol.SparseMAP())
    given = {"supply": torch.zeros(sources, dtype=torch.float64), "demand": numbers(0.75, 0.75)}
    given["supply"][:2] = numbers(1.0, 0.5)
    scores, direction = (torch.from_numpy(generator.standard_normal((sources, 2))) for _ in range(2))
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    here = layer(scores, **leaves)
    here.backward(direction)
    for source in range(2, sources):
        for sink in range(2):
            more = {name: value.clone() for name, value in given.items()}
            more["supply"][source] += 1e-6
            more["demand"][sink] += 1e-6
            slope = (direction * (layer(scores, **more) - here.detach())).sum() / 1e-6
            mine = leaves["supply"].grad[source] + leaves["demand"].grad[sink]
            torch.testing.assert_close(mine, slope, atol=1e-4, rtol=1e-4)


def test_tangents_that_are_lost_in_the_rounding_of_the_first_try():
    """Two rows of opposite limits, next to scores of 1e10: both limits can move, together."""
    x, w = cp.Variable(6, nonneg=True), cp.Variable(3)
    low, high = cp.Parameter(3, name="low"), cp.Parameter(3, name="high")
    rows = np.array([[0, -1, 3, -1, 1, -1, 3, 3, 3], [1, 2, 1, -2, 1, 3, 2, 1, 0], [0, -2, -1, 2, -3, -3, -2, -1, -2]])
    both = rows @ cp.hstack([x, w])
    constraints = [x <= 128, cp.sum_smallest(x[:4], 2) >= 0, cp.sum(cp.pos(cp.hstack([x[3:], w[:1]]))) <= 358.4]
    polytope = ol.Polytope(x, [*constraints, -both >= low, both <= high, cp.diff(x, k=2) <= 1e7])
    large = 11002101065.059645
    scores, gradient = large * numbers(1, -1, -1, 1, 1, 1), numbers(0.0625, -0.625, 0.0625, 1.4375, 0.9375, -0.25)
    given = {"low": numbers(196.6875, -385.875, 510.5), "high": numbers(-196.6875, 385.875, -510.5)}
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    ol.OptLayer(polytope, ol.LPGD(1.5))(scores, **leaves).backward(gradient)
    compiled = ol.compile_polytope(polytope)
    for entry in range(3):
        vertices = []
        for step in (0.5, -0.5):
            moved = {name: value.clone() for name, value in given.items()}
            moved["high"][entry] += step
            moved["low"][entry] -= step
            vertices.append([compiled.maximize(s, **moved).check().value for s in (scores, scores - 1.5 * gradient)])
        # As points, since values have lost the digits: the same vertex is best for both scores.
        slope = [(ahead - behind).double() for ahead, behind in zip(*vertices, strict=True)]
        torch.testing.assert_close(slope[0], slope[1])
        mine = leaves["high"].grad[entry] - leaves["low"].grad[entry]
        torch.testing.assert_close(mine, gradient @ slope[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("projector", PROJECTORS, ids=repr)
def test_scores_that_are_a_point_already_pull_nowhere(projector, scale):
    """What rounding leaves of scores minus point is no difference; of two limits that are met, the smaller one counts.

    When both grow, the point stays; when both shrink, all parts do alike: the mean of the two is half of that.
    """
    x, p, q = cp.Variable(4), cp.Parameter(name="p"), cp.Parameter(name="q")
    box = [x >= -5 * scale, x <= 5 * scale, np.arange(1, 5) @ x <= 100 * scale]
    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x) <= p, cp.sum(x) <= q, *box]), ol.SparseMAP(), projector=projector)
    generator = torch.Generator().manual_seed(0)
    scores, gradient = (torch.randn(50, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    scores = scale * scores
    limits = [scores.sum(1).requires_grad_() for _ in range(2)]
    layer(scores, p=limits[0], q=limits[1]).backward(gradient)
    torch.testing.assert_close(limits[0].grad + limits[1].grad, gradient.mean(1) / 2)


@pytest.mark.parametrize("limit", [1e3, 1e15, np.inf])
def test_a_kink_is_found_beside_a_limit_of_any_size(limit):
    """Two limits that are met; of the mean of both sides, where they grow x does, and where they shrink, by half."""
    x, limits = cp.Variable(2), [cp.Parameter(name=name) for name in "pqr"]
    layer = ol.OptLayer(ol.Polytope(x, [x >= 0, x <= 2, *(cp.sum(x) <= one for one in limits)]), ol.SparseMAP())
    given = [numbers(value)[0].requires_grad_() for value in (1.0, 1.0, limit)]
    layer(numbers(2.0, 1.5), p=given[0], q=given[1], r=given[2]).backward(numbers(1.0, 2.0))
    assert float(given[0].grad + given[1].grad) == pytest.approx(1.5)
    assert float(given[2].grad) == 0.0


def test_a_row_with_a_price_is_met_though_it_has_room_of_the_size_of_rounding():
    """At parameters in float32, another vertex is as good as the best one, 1e-8 away."""
    rows = np.array([[-0.578125, 1.34375], [-1.921875, -0.8125]])
    last = np.array([1.9461865902097633, -1.1205769490747917])
    x, p, q = cp.Variable(2), cp.Parameter(2, name="p"), cp.Parameter(2, name="q")
    r, limit = cp.Parameter(name="r"), cp.Parameter(name="limit")
    polytope = ol.Polytope(x, [x >= 0, x <= 2, rows @ x <= p, rows @ x <= q, last @ x <= r, cp.sum(x) <= limit])
    limits = numbers(1.103515625, -0.951171875)
    given = {"p": limits, "q": limits, "r": numbers(-0.7372314929962158)[0], "limit": numbers(999999986991104.0)[0]}
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    gradient = numbers(-2.5625, 0.75)
    ol.OptLayer(polytope, ol.LPGD(0.5, side="both"))(numbers(0.0, 0.0), **leaves).backward(gradient)

    lines = [[Fraction(entry) for entry in row] for row in [*rows, *rows, last, [-1.0, 0.0], [0.0, -1.0]]]

    def value(scores: list[float], theta: list[Fraction]) -> Fraction | None:
        """The best of all crossings of two lines that satisfy all others, without rounding."""
        ends = [*theta, Fraction(0), Fraction(0)]
        best = None
        for (a, e), (b, f) in itertools.combinations(zip(lines, ends, strict=True), 2):
            size = a[0] * b[1] - a[1] * b[0]
            if size == 0:
                continue
            point = ((e * b[1] - a[1] * f) / size, (a[0] * f - e * b[0]) / size)
            if all(row[0] * point[0] + row[1] * point[1] <= end for row, end in zip(lines, ends, strict=True)):
                worth = sum(Fraction(s) * part for s, part in zip(scores, point, strict=True))
                best = worth if best is None else max(best, worth)
        return best

    theta = [Fraction(number) for number in [*limits.tolist(), *limits.tolist(), given["r"].item()]]
    mine = torch.cat([leaves["p"].grad, leaves["q"].grad, leaves["r"].grad[None]]).tolist()
    for entry in range(5):
        ends = []
        for scores in ((0.5 * gradient).tolist(), (-0.5 * gradient).tolist()):
            here, slopes = value(scores, theta), []
            for step in map(Fraction, (1e-5, -1e-5, 1e-10, -1e-10)):  # beyond the rounding, and within it
                there = value(scores, [end + step * (k == entry) for k, end in enumerate(theta)])
                if there is not None:
                    slopes.append((there - here) / step)
            ends.append((min(slopes), max(slopes)))
        (ahead_low, ahead_high), (behind_low, behind_high) = ends
        assert ahead_low - behind_high - 1e-6 <= mine[entry] <= ahead_high - behind_low + 1e-6
