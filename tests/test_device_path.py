"""The twin of the CPU for scores on an accelerator: values, verdicts and gradients agree."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from accelerator import DEVICE, moved
from random_polytopes import random_case
from torch import Tensor

import optlayers as ol
from optlayers.bound.base import Tangent
from optlayers.bound.device import DevicePolytope
from optlayers.solvers.kernels import dense

pytestmark = pytest.mark.device
BFLOAT16 = float(torch.finfo(torch.bfloat16).eps)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from threads, which on a busy machine wait for each other for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensor(numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).to(DEVICE)


def draw(count, size, generator) -> Tensor:
    return torch.randn(count, size, generator=generator).double().to(DEVICE)


class Host:
    """A bound polytope of the CPU that is asked with tensors of the device, and answers with such."""

    def __init__(self, polytope) -> None:
        self.polytope, self.prepared = polytope, polytope.prepared

    def maximize(self, scores: Tensor) -> ol.Solution:
        return moved(self.polytope.maximize(scores.cpu()))

    def project(self, scores: Tensor) -> ol.Solution:
        return moved(self.polytope.project(scores.cpu()))

    def value_gradient(self, solution: ol.Solution) -> dict[str, Tensor]:
        return moved(dict(self.polytope.value_gradient(moved(solution, torch.device("cpu")))))

    def tangent(self, solution: ol.Solution, direction: Tensor) -> Tangent:
        found = self.polytope.tangent(moved(solution, torch.device("cpu")), direction.cpu())
        return Tangent(moved(found.scores), moved(dict(found.parameters)), moved(found.ok))


def both(polytope, theta, forbidden=None, precision=2.0**-52):
    """A batch for the solvers of the CPU and for those of a device; ``theta`` has a row per instance."""
    compiled, theta = ol.compile_polytope(polytope), torch.as_tensor(theta, dtype=torch.float64)
    epsilon = np.full(theta.shape[1], precision)
    host = Host(compiled.bind_on_host(theta, forbidden, epsilon))
    there = None if forbidden is None else forbidden.to(DEVICE)
    return host, DevicePolytope(compiled, theta.to(DEVICE), there, epsilon)


def assert_near(found, expected, tolerance=1e-7):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance, equal_nan=True)


def by_the_host(monkeypatch):
    """Nothing is certified on the device, so that the solvers of the CPU answer all of it."""
    certify = dense.certify

    def nothing(*arguments):
        residual, gap, error = certify(*arguments)
        return residual, gap, torch.full_like(error, torch.inf)

    monkeypatch.setattr(dense, "certify", nothing)


def small(*more):
    x = cp.Variable(3)
    return x, [x >= 0, x <= 1]


def budget(at_most=True):
    x, cube = small()
    p = cp.Parameter(name="p")
    return ol.Polytope(x, [*cube, cp.sum(x) <= p if at_most else x[0] == p])


def knapsack():
    x, cube = small()
    weight, room = cp.Parameter(3, name="weight"), cp.Parameter(name="room")
    return ol.Polytope(x, [*cube, weight @ x <= room])


# Parameters at kinks and at the edge of their domain


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_budget_of_nothing_moves_the_best_part(side):
    for polytope in both(budget(), [[0.0]]):
        solution = polytope.project(tensor([[0.9, 0.5, 0.3]])).check()
        tangent = polytope.tangent(solution, side * tensor([[1.0, 0.0, 0.0]]))
        assert tangent.all_ok
        assert_near(tangent.parameters["p"], tensor([side]))
        best = polytope.maximize(tensor([[5.0, 4.0, 0.3]])).check()
        assert_near(polytope.value_gradient(best)["p"], tensor([5.0]))


def test_a_part_that_is_a_parameter_at_its_bound():
    host, device = both(budget(at_most=False), [[0.0], [0.5], [1.0]])
    scores = tensor([[0.9, 0.5, 0.3]]).expand(3, -1)
    for polytope in (host, device):
        solution = polytope.project(scores).check()
        assert_near(
            polytope.tangent(solution, tensor([[1.0, 0.0, 0.0]]).expand(3, -1)).parameters["p"], tensor([1.0] * 3)
        )
    found, expected = (p.value_gradient(p.maximize(scores).check())["p"] for p in (device, host))
    assert_near(found, expected)


@pytest.mark.parametrize("scores", [[0.9, 0.5, 0.3], [5.0, 4.0, 0.3]])
def test_a_budget_that_is_spent_on_whole_parts(scores):
    host, device = both(budget(), [[2.0], [1.0], [3.0], [1.5]])
    rows = tensor([scores]).expand(4, -1)
    for solve in ("maximize", "project"):
        found, expected = (p.value_gradient(getattr(p, solve)(rows).check())["p"] for p in (device, host))
        assert_near(found, expected)
    if scores[0] == 5.0:
        assert_near(device.value_gradient(device.maximize(rows))["p"][0], tensor(2.15))


def test_a_row_with_room_has_no_price():
    x, cube = small()
    p, q = cp.Parameter(name="p"), cp.Parameter(name="q")
    polytope = ol.Polytope(x, [*cube, cp.sum(x) <= p, x[0] + x[1] <= q])
    host, device = both(polytope, [[1.3, 1e7], [1.3, 1e12], [1.3, torch.inf], [2.5, 1.1]])
    scores, direction = tensor([[3.0, 2.0, 1.0]]).expand(4, -1), tensor([[0.3, 1.0, -0.2]]).expand(4, -1)
    assert_agree(host, device, scores, direction)
    near = device.project(scores).check()
    assert_near(device.tangent(near, direction).parameters["q"][:3], tensor([0.0] * 3), 1e-15)
    assert_near(device.value_gradient(device.maximize(scores))["q"][:3], tensor([0.0] * 3), 1e-15)


# Answers of the CPU among those of the device


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_answers_of_the_host_are_in_the_rows_of_the_device(size, monkeypatch):
    host, device = both(knapsack(), [[size, 2 * size, size, 1.5 * size], [1.0, 2.0, 1.0, 1.5]])
    scores, direction = tensor([[1.0, 0.9, 0.8]]).expand(2, -1), tensor([[1.0, 0.5, 0.2]]).expand(2, -1)
    assert_agree(host, device, scores, direction)
    by_the_host(monkeypatch)
    assert_agree(host, device, scores, direction)
    gradient = device.value_gradient(device.maximize(scores).check())["room"]
    assert_near(gradient, tensor([0.8 / size, 0.8]), 1e-9)


def test_active_sets_that_are_not_those_of_the_points_are_not_differentiated(monkeypatch):
    host, device = both(budget(), [[1.5]])
    scores = tensor([[0.9, 0.8, 0.3]])
    problem = device._problem(scores, projection=True)
    found = dense.interior_point(problem)
    assert dense.are_exact(problem, found.point, found.dual, found.free).all()
    for column in range(problem.linear.shape[1]):
        other = found.free.clone()
        other[:, column] ^= True
        assert not dense.are_exact(problem, found.point, found.dual, other).any()
    monkeypatch.setattr(dense, "are_exact", lambda problem, *_: torch.zeros_like(problem.rhs[:, 0], dtype=torch.bool))
    assert_agree(host, device, scores, tensor([[1.0, 0.5, 0.2]]))  # the solvers of the CPU have the last word


# Units of rows


@pytest.mark.many(2)
@pytest.mark.parametrize("size", [1e-9, 1e-12, 1e-14, 1e-16, 1e8])
def test_rows_of_any_size(size):
    host, device = both(knapsack(), [[size] * 4, [1.0] * 4, [size, 1.0, 1.0, 1.0]])
    scores, direction = tensor([[1.2, 0.9, 0.8]]).expand(3, -1), tensor([[1.0, 0.5, 0.2]]).expand(3, -1)
    assert_agree(host, device, scores, direction)
    assert_near(device.maximize(scores).check().value[0], tensor([1.0, 0.0, 0.0]))
    problem = device._problem(scores, projection=False)
    point = torch.ones_like(problem.linear)
    point[:, 3] = 0.0
    assert (dense.certify(problem, point, torch.zeros_like(problem.rhs))[2] > 0.1).all()


def test_slack_has_the_unit_of_its_row():
    """A slack of -2e-14 is none next to a right-hand side of 1e-14."""
    x, cube = small()
    _, device = both(ol.Polytope(x, [*cube, x[0] + x[1] <= cp.Parameter(name="p")]), [[1e-14]])
    problem = device._problem(tensor([[1.0, 0.0, 0.0]]), projection=False)
    point = torch.zeros_like(problem.linear)
    point[0, 0], point[0, -1] = 3e-14, -2e-14
    assert device.form.slack == 1 and dense.certify(problem, point, torch.zeros_like(problem.rhs))[2] > 0.1
    point = problem.with_slack(point)
    assert point[0, -1] == 0.0 and dense.certify(problem, point, torch.zeros_like(problem.rhs))[2] > 0.1


def test_residuals_have_the_units_of_the_constraints():
    x, cube = small()
    for scale in (2.0**20, 2.0**-20):
        host, device = both(ol.Polytope(x, [*cube, scale * cp.sum(x) == cp.Parameter(name="p")]), [[4.0 * scale]])
        found, expected = (p.project(tensor([[0.3, 0.2, 0.1]])) for p in (device, host))
        assert found.status.tolist() == expected.status.tolist() != [0]
        problem = device._problem(tensor([[0.3, 0.2, 0.1]]), projection=True)
        far = device._residual(problem, torch.ones_like(problem.linear))
        assert_near(far, tensor([scale]), 1e-12)


# Both ways in random declarations


def assert_agree(host, device, scores, direction, *, tolerance=1e-6):
    """Values, verdicts, and gradients of scores and parameters."""
    for solve in ("maximize", "project"):
        found, expected = (getattr(p, solve)(scores) for p in (device, host))
        assert found.status.tolist() == expected.status.tolist()
        ok = expected.ok
        assert_near(found.value[ok], expected.value[ok])
        theirs, mine = (p.value_gradient(s) for p, s in ((host, expected), (device, found)))
        for name, gradient in theirs.items():
            assert_near(mine[name], gradient, tolerance)
        if solve == "project":
            theirs, mine = host.tangent(expected, direction), device.tangent(found, direction)
            assert mine.ok.tolist() == theirs.ok.tolist()
            assert_near(mine.scores, theirs.scores, tolerance)
            for name, gradient in theirs.parameters.items():
                assert_near(mine.parameters[name], gradient, tolerance)


@pytest.mark.many(4)
@pytest.mark.parametrize("seed", [s for s in range(60) if random_case(s).parameters])
def test_random_declarations(seed):
    """With parameters where rows meet, moved a little, without limit, and in rows of another size."""
    case, count = random_case(seed), 5
    compiled = ol.compile_polytope(case.polytope)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(count, compiled.form.parameter_count, dtype=torch.float64)
    for spec in compiled.form.parameters:
        given = case.parameters[spec.name].double().reshape(-1).expand(count, -1).clone()
        given[1:3] += 0.05 * torch.rand(2, spec.size, generator=generator)
        if spec.name == "limit":
            given[3] = torch.where(torch.rand(spec.size, generator=generator) < 0.4, torch.inf, given[3])
        else:
            given[4] *= 1e-5 if seed % 2 else 1e5
        theta[:, spec.span] = given
    scores, direction = (draw(count, compiled.form.size, generator) for _ in range(2))
    forbidden = None
    if seed % 3 == 0:
        forbidden = torch.rand(count, compiled.form.size, generator=generator) < 0.15
    assert_agree(*both(case.polytope, theta, forbidden), scores, direction, tolerance=1e-5)


def declared():
    """Declarations with parameters in all places, and the names of their parameters in order."""
    x, cube = small()
    w = cp.Variable(2, name="w")
    p, q, a, low = (cp.Parameter(n, name=name) for name, n in (("p", ()), ("q", 3), ("a", 3), ("low", 3)))
    beside = [w >= 0, w <= 2]
    return {
        "caps": ol.Polytope(x, [x >= 0, x <= q, cp.sum(x) <= p]),
        "caps that are spent": ol.Polytope(x, [x >= 0, x <= q, cp.sum(x) == p]),
        "two bounds": ol.Polytope(x, [x >= low, x <= q, cp.sum(x) <= 2]),
        "all fixed": ol.Polytope(x, [x == q]),
        "an equality": ol.Polytope(x, [*cube, a @ x == p]),
        "caps and weights": ol.Polytope(x, [x >= 0, x <= q, a @ x <= p, x[0] + x[1] <= 1]),
        "said twice": ol.Polytope(x, [*cube, cp.sum(x) == p, 2 * cp.sum(x) == q[0] + q[1]]),
        "auxiliaries": ol.Polytope(x, [*cube, w >= 0, w <= q[:2], x[0] + x[1] + w[0] == p, x[2] <= w[1] + w[0]]),
        "weights and auxiliaries": ol.Polytope(x, [*cube, *beside, a @ x + w[0] == p, x[2] <= w[1]]),
        "a ball": ol.Polytope(x, [cp.norm1(x) <= p]),
        "rows of other sizes": ol.Polytope(x, [*cube, 1e3 * cp.sum(x) <= p, 1e-4 * cp.sum(x) >= 1e-4 * q[0]]),
        "scored": ol.Polytope(x, [*cube, w >= 0, w <= 1, cp.sum(x) + w[0] == p, w[1] <= q[0]], scored=[w]),
    }


@pytest.mark.many(2)
@pytest.mark.parametrize("name", declared())
@pytest.mark.parametrize("seed", range(3))
def test_parameters_in_all_places(name, seed):
    """Any values, whole ones where pieces meet, infinite ones; some instances have no point."""
    generator, count = torch.Generator().manual_seed(seed), 8
    compiled = ol.compile_polytope(declared()[name])
    theta = torch.zeros(count, compiled.form.parameter_count, dtype=torch.float64)
    for spec in compiled.form.parameters:
        drawn = torch.rand(count, spec.size, generator=generator).double()
        given = {"p": 2.5 * drawn, "q": 1.2 * drawn, "a": 0.2 + drawn, "low": -drawn}[spec.name]
        given[4:] = given[4:].round()
        if spec.name == "a":
            given[1:3] *= torch.tensor([[1e-7], [1e6]]).double()
        elif any(spec.limitless):
            sign = torch.tensor(spec.limitless).double()
            free = (torch.rand(spec.size, generator=generator) < 0.5) & (sign != 0)
            given[3] = torch.where(free, sign * torch.inf, given[3])
        theta[:, spec.span] = given
    if name == "said twice":
        places = {spec.name: spec.start for spec in compiled.form.parameters}
        theta[:, places["q"]] = 2.0 * theta[:, places["p"]]
        theta[:, places["q"] + 1] = torch.tensor([0.0, 1e-3, 1e-12, 0.0, 0.0, 0.0, 0.0, 0.0])
    scores, direction = (draw(count, compiled.form.size, generator) for _ in range(2))
    forbidden = torch.rand(count, compiled.form.size, generator=generator) < 0.2 if seed == 1 else None
    precision = BFLOAT16 if seed == 2 else 2.0**-52
    assert_agree(*both(declared()[name], theta, forbidden, precision), scores, direction, tolerance=1e-5)


@pytest.mark.parametrize("name", declared())
def test_no_instances(name):
    parameters = ol.compile_polytope(declared()[name]).form.parameter_count
    host, device = both(declared()[name], torch.zeros(0, parameters))
    nothing = torch.zeros(0, host.prepared.projection_form.size, dtype=torch.float64, device=DEVICE)
    assert_agree(host, device, nothing, nothing)
