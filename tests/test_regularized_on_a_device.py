"""Regularized points by solvers for devices: those of the CPU, their derivatives, and what certificates refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from accelerator import DEVICE, moved
from drawing import draw
from torch import Tensor

import optlayers as ol
import polytopes
from optlayers.bound import accelerated
from optlayers.bound.device import DevicePolytope
from optlayers.bound.host import HostPolytope
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.solvers.regularized import certify_regularized
from optlayers.solvers.smooth import verdict
from optlayers.solvers.smooth.problem import SmoothAnswer, SmoothProblem

pytestmark = pytest.mark.device
BATCH = 6
CLOSE = 1e-6


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from threads, which on a busy machine wait for each other for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def transport(rows: int, columns: int) -> ol.Polytope:
    """Plans of given marginals."""
    x = cp.Variable((rows, columns), nonneg=True)
    supply, demand = cp.Parameter(rows, name="supply", nonneg=True), cp.Parameter(columns, name="demand", nonneg=True)
    return ol.Polytope(x, [cp.sum(x, axis=1) == supply, cp.sum(x, axis=0) == demand])


def knapsack() -> ol.Polytope:
    """With parameters in the matrix, on a right-hand side and at bounds."""
    x, weight = cp.Variable(4), cp.Parameter(4, name="weight")
    room, cap = cp.Parameter(name="room"), cp.Parameter(4, name="cap")
    return ol.Polytope(x, [x >= 0, x <= cap, weight @ x <= room, x[0] + x[1] <= 1.1])


DECLARED = {
    "simplex": partial(polytopes.simplex, 5),
    "cube": partial(polytopes.cube, 4),
    "matching": partial(polytopes.matching, 4),
    "subset": partial(polytopes.subset, 5),
    "transport": partial(transport, 3, 4),
    "knapsack": knapsack,
    "sequence": partial(polytopes.sequence, 4, 3),
    "ranking": partial(polytopes.permutahedron, 3),
    "tree": partial(polytopes.arborescence, 3),
}


def declared(name: str) -> ol.Polytope:
    """A polytope without its oracle, declared anew."""
    polytope = DECLARED[name]()
    return polytope if polytope.oracle is None else polytope.without_oracle()


NAMED = {name: declared(name) for name in DECLARED}
WEIGHTS = {name: ol.Euclidean(np.linspace(0.3, 2.0, p.variable.size).reshape(p.shape)) for name, p in NAMED.items()}
REGULARIZERS = {
    "entropy 1": ol.Entropy(),
    "entropy 0.1": ol.Entropy(0.1),
    "entropy 0.01": ol.Entropy(0.01),
    "entropy 0.001": ol.Entropy(0.001),
    "Tsallis 1.2": ol.Tsallis(1.2),
    "Tsallis 1.5": ol.Tsallis(1.5),
    "Tsallis 3": ol.Tsallis(3.0),
    "barrier 0.1": ol.Barrier(0.1),
    "barrier 0.0001": ol.Barrier(1e-4),
    "one weight": ol.Euclidean(0.3),
}
of_each = pytest.mark.parametrize("name", NAMED)


@cache
def compiled(name: str) -> CompiledPolytope:
    return ol.compile_polytope(NAMED[name])


def given(name: str, batch: int = BATCH) -> Tensor:
    """The parameters of every instance."""
    if name == "transport":
        return torch.cat([draw(batch, 3, seed=5).softmax(1), draw(batch, 4, seed=6).softmax(1)], dim=1)
    if name == "knapsack":
        specs = {spec.name: spec for spec in compiled(name).form.parameters}
        theta = torch.zeros(batch, compiled(name).form.parameter_count, dtype=torch.float64)
        theta[:, specs["weight"].span] = 0.2 + draw(batch, 4, seed=5).sigmoid()
        theta[:, specs["room"].span] = 0.3 + draw(batch, 1, seed=6).exp()
        theta[:, specs["cap"].span] = 0.3 + draw(batch, 4, seed=7).sigmoid()
        return theta
    return torch.full((batch, compiled(name).form.parameter_count), 1.7, dtype=torch.float64)


def tied(scores: Tensor) -> Tensor:
    """The last three instances have few different scores, or zeros."""
    scores = scores.clone()
    scores[-3], scores[-2], scores[-1] = scores[-3].round(), (2.0 * scores[-2]).round(), 0.0
    return scores


def both(name: str, theta: Tensor, forbidden: Tensor | None = None) -> tuple[HostPolytope, DevicePolytope]:
    precision = np.full(theta.shape[1], 2.0**-52)
    there = None if forbidden is None else forbidden.to(DEVICE)
    host = compiled(name).bind_on_host(theta, forbidden, precision)
    return host, DevicePolytope(compiled(name), theta.to(DEVICE), there, precision)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = CLOSE) -> None:
    torch.testing.assert_close(found.cpu(), expected, atol=tolerance, rtol=tolerance)


def refuse_to_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be asked of the CPU."""

    def never(*_: object) -> None:
        raise AssertionError("an instance was sent to the CPU")

    monkeypatch.setattr(accelerated, "_on_the_host", never)


def assert_agree(
    host: HostPolytope,
    device: DevicePolytope,
    scores: Tensor,
    regularizer: ol.AbstractRegularizer,
    smooth: slice = slice(None),
) -> None:
    """Points, verdicts, and where pieces do not meet derivatives by scores and parameters."""
    direction, cut = draw(*scores.shape, seed=3), host.form.structure_size
    theirs, mine = host.regularized(scores, regularizer), device.regularized(scores.to(DEVICE), regularizer)
    assert mine.status.tolist() == theirs.status.tolist()
    assert_near(mine.value[theirs.ok][:, :cut], theirs.value[theirs.ok][:, :cut])
    of_host, of_device = host.tangent(theirs, direction), device.tangent(mine, direction.to(DEVICE))
    keep = torch.zeros_like(theirs.ok)
    keep[smooth] = theirs.ok[smooth] & of_host.ok[smooth]
    assert of_device.ok.cpu()[keep].all()
    assert_near(of_device.scores[keep], of_host.scores[keep])
    for parameter, gradient in of_host.parameters.items():
        assert_near(of_device.parameters[parameter][keep], gradient[keep])
    if regularizer.of_parts:
        for parameter, gradient in host.value_gradient(theirs).items():
            assert_near(device.value_gradient(mine)[parameter][keep], gradient[keep])


# Agreement with the CPU


@pytest.mark.many(6)
@of_each
@pytest.mark.parametrize("regularizer", [*REGULARIZERS, "weights"])
def test_points_and_derivatives_are_those_of_the_cpu(name, regularizer, monkeypatch):
    host, device = both(name, given(name))
    omega = REGULARIZERS.get(regularizer, WEIGHTS[name])
    if regularizer not in ("entropy 0.01", "entropy 0.001", "barrier 0.0001"):
        refuse_to_travel(monkeypatch)
    assert_agree(host, device, tied(draw(BATCH, host.form.size)), omega, smooth=slice(0, 3))


@pytest.mark.parametrize("scale", [1e8, 1e3, 1e-3, 1e-8])
@pytest.mark.parametrize("name", ["simplex", "matching", "sequence", "tree", "transport"])
def test_scores_of_any_size(name, scale):
    host, device = both(name, given(name))
    scores = scale * draw(BATCH, host.form.size)
    for omega in (ol.Entropy(), ol.Tsallis(1.5)):
        theirs, mine = host.regularized(scores, omega), device.regularized(scores.to(DEVICE), omega)
        assert mine.ok.cpu()[theirs.ok].all()
        assert_near(mine.value.cpu()[theirs.ok], theirs.value[theirs.ok])


@pytest.mark.parametrize("name", ["simplex", "cube"])
@pytest.mark.parametrize("heat", [1.0, 0.03, 0.001])
def test_closed_forms(name, heat):
    _, device = both(name, given(name))
    scores = draw(BATCH, device.form.size).to(DEVICE)
    expected = (scores / heat).softmax(1) if name == "simplex" else torch.sigmoid(scores / heat)
    assert_near(device.regularized(scores, ol.Entropy(heat)).check().value, expected.cpu(), 1e-12)


@pytest.mark.parametrize("omega", [ol.Entropy(0.3), ol.Tsallis(1.5), ol.Barrier(0.1)], ids=repr)
@pytest.mark.parametrize("name", ["matching", "sequence", "cube"])
def test_forbidden_parts(name, omega):
    """One of each instance, and in the last one so many that others have no choice."""
    host, _ = both(name, given(name))
    forbidden = torch.zeros(BATCH, host.form.size, dtype=torch.bool)
    vertices = host.maximize(draw(BATCH, host.form.size, seed=2)).value
    forbidden[torch.arange(BATCH), vertices.argmin(dim=1)] = True
    forbidden[-1] = vertices[-1] < 0.5
    host, device = both(name, given(name), forbidden)
    scores = draw(BATCH, host.form.size)
    assert_agree(host, device, scores, omega)
    assert not device.regularized(scores.to(DEVICE), omega).value.cpu()[forbidden].any()


def test_instances_without_a_point():
    theta = given("transport")
    theta[1, 0] += 0.5
    host, device = both("transport", theta)
    assert_agree(host, device, draw(BATCH, 12), ol.Entropy(0.5))
    found = device.regularized(draw(BATCH, 12).to(DEVICE), ol.Entropy(0.5))
    assert found.status.tolist() == [0, 1, 0, 0, 0, 0] and "supply" in found.reasons[1]
    theta = given("transport")
    theta[2, :2], theta[2, 1], theta[2, 2] = 0.0, 1.0, 0.0  # a supply of 0: only one point, or nearly so
    assert_agree(*both("transport", theta), draw(BATCH, 12), ol.Entropy(0.5), smooth=slice(0, 2))


def test_scores_that_are_unknown_fail_alone():
    _, device = both("simplex", given("simplex"))
    scores = draw(BATCH, 5).to(DEVICE)
    scores[1, 2] = torch.nan
    found = device.regularized(scores, ol.Entropy())
    assert (found.status.cpu() != 0).tolist() == [False, True, False, False, False, False]


@of_each
def test_no_instances(name):
    host, device = both(name, given(name, batch=0))
    for omega in (ol.Entropy(), ol.Barrier(0.1)):
        assert_agree(host, device, torch.zeros(0, host.form.size, dtype=torch.float64), omega)


@pytest.mark.parametrize("omega", [ol.Entropy(0.05), ol.Tsallis(1.5), ol.Barrier(0.1)], ids=repr)
@pytest.mark.parametrize("name", ["matching", "sequence", "knapsack"])
def test_an_answer_depends_on_its_own_instance_alone(name, omega):
    theta = given(name)
    scores = draw(BATCH, compiled(name).form.size).to(DEVICE)
    together = both(name, theta)[1].regularized(scores, omega).check().value
    for k in (0, BATCH - 1):
        alone = both(name, theta[k : k + 1])[1].regularized(scores[k : k + 1], omega).check().value
        assert_near(alone[0], together[k].cpu(), 1e-12)


def test_what_needs_the_cpu_is_answered_there():
    x = cp.Variable(3, nonneg=True)
    polytope = ol.compile_polytope(ol.Polytope(x, [cp.sum(x) == 1]))
    nothing = torch.zeros(2, 0, dtype=torch.float64)
    device = DevicePolytope(polytope, nothing.to(DEVICE), None, np.zeros(0))
    scores = draw(2, 3)
    for omega in (ol.Regularized(0.5 * cp.sum_squares(x) + 0.1 * cp.norm1(x)).regularizer, ol.Euclidean()):
        expected = polytope.bind_on_host(nothing, None, np.zeros(0)).regularized(scores, omega).check().value
        assert_near(device.regularized(scores.to(DEVICE), omega).check().value, expected)
    y = cp.Variable(3)
    negative = ol.compile_polytope(ol.Polytope(y, [y[0] == -1, y[1] >= 0, y[1] + y[2] == 1, y <= 1]))
    found = DevicePolytope(negative, nothing.to(DEVICE), None, np.zeros(0)).regularized(scores.to(DEVICE), ol.Entropy())
    assert found.status.tolist() == [1, 1] and "always negative" in found.reasons[0]


def test_constraints_that_are_hardly_sparse_have_no_stand_by(monkeypatch):
    """The CPU refuses these as a whole; on a device an instance without a certificate fails alone."""
    monkeypatch.setattr("optlayers.solvers.plan.DENSE_PRODUCTS", 1)
    polytope = ol.compile_polytope(transport(3, 4))
    theta = given("transport")
    theta[1, 0] += 0.5
    device = DevicePolytope(polytope, theta.to(DEVICE), None, np.full(theta.shape[1], 2.0**-52))
    found = device.regularized(draw(BATCH, 12).to(DEVICE), ol.Entropy(0.5))
    assert found.status.tolist() == [0, 5, 0, 0, 0, 0] and "hardly sparse" in found.reasons[1]
    assert_near(found.value.cpu()[[0, 2]].sum(dim=1), torch.ones(2, dtype=torch.float64))


# Certificates


def liar(away: float):
    """A solver whose points satisfy all constraints of the simplex, and are not the best."""

    def solve(problem: SmoothProblem) -> SmoothAnswer:
        point = torch.full_like(problem.linear, (1.0 - away) / problem.linear.shape[1])
        point[:, 0] += away
        return SmoothAnswer(point, torch.zeros_like(problem.rhs), problem.movable)

    return solve


@pytest.mark.parametrize("away", [0.0, 0.5])
@pytest.mark.parametrize("omega", [ol.Entropy(0.3), ol.Tsallis(1.5), ol.Euclidean([1.0, 2.0, 3.0, 4.0, 5.0])], ids=repr)
def test_a_liar_is_found_out(omega, away, monkeypatch):
    host, device = both("simplex", given("simplex"))
    for solver in ("dual_newton", "interior_point"):
        monkeypatch.setattr(accelerated, solver, liar(away))
    monkeypatch.setattr(accelerated, "polish", lambda problem, answer, near: answer)
    monkeypatch.setattr(accelerated, "polish_again", lambda problem, answer: answer)
    asked, on_the_host = [], accelerated._on_the_host

    def seen(*arguments):
        asked.append(len(arguments[-1]))
        return on_the_host(*arguments)

    monkeypatch.setattr(accelerated, "_on_the_host", seen)
    assert_agree(host, device, draw(BATCH, 5), omega)
    assert asked == [BATCH]


def test_a_liar_without_a_stand_by_has_no_verdict(monkeypatch):
    _, device = both("simplex", given("simplex"))
    for solver in ("dual_newton", "interior_point"):
        monkeypatch.setattr(accelerated, solver, liar(0.5))
    monkeypatch.setattr(accelerated, "polish", lambda problem, answer, near: answer)
    monkeypatch.setattr(accelerated, "polish_again", lambda problem, answer: answer)
    monkeypatch.setattr(accelerated, "_with_those_of_the_host", lambda *arguments: arguments[4])
    assert not device.regularized(draw(BATCH, 5).to(DEVICE), ol.Entropy(0.3)).ok.any()


@pytest.mark.parametrize("omega", [ol.Entropy(0.3), ol.Tsallis(1.5), ol.Tsallis(3.0), ol.Barrier(0.1)], ids=repr)
@pytest.mark.parametrize("name", ["matching", "cube", "sequence", "tree", "knapsack"])
def test_certificates_are_those_of_the_cpu_and_see_what_is_wrong(name, omega):
    """Points that miss rows, points that are feasible and not best, dual points that prove nothing, and no numbers."""
    host, device = both(name, given(name))
    scores = draw(BATCH, host.form.size)
    found = device.regularized(scores.to(DEVICE), omega).check()
    problem, answer = found.evidence.problem, found.evidence.answer
    error = verdict.certify(problem, answer.point, answer.dual)[1]
    assert error.max() <= compiled(name).tolerance
    solved = host.regularized(scores, omega).check().evidence.solved
    theirs = certify_regularized(solved)
    again = verdict.certify(
        problem, *(torch.from_numpy(p).to(DEVICE) for p in (solved.answer.point, solved.answer.dual))
    )
    assert_near(again[0], torch.from_numpy(theirs.gap), 1e-12)
    assert_near(again[1], torch.from_numpy(theirs.error), 1e-12)
    worse = device.regularized(-scores.to(DEVICE), omega).check().evidence.answer
    assert (verdict.certify(problem, worse.point, answer.dual)[1] > 1e-5).all()
    assert (verdict.certify(problem, worse.point, worse.dual)[1] > 1e-5).all()
    off = answer.point.clone()
    off[:, 0] += 0.01
    assert (verdict.certify(problem, off, answer.dual)[1] > 1e-6).all()
    off[:, 0] = torch.nan
    assert torch.isinf(verdict.certify(problem, off, answer.dual)[1]).all()
    if problem.rhs.shape[1]:
        dual = answer.dual + 0.5
        assert (verdict.certify(problem, answer.point, dual)[1] > 1e-5).all()


# Layers


@pytest.fixture
def layers(monkeypatch):
    """Layers whose scores are solved on the CPU, and on the device, which may be the CPU in its part; each has a
    declaration of its own, so that nothing that is kept for one serves the other."""
    on_device = False
    monkeypatch.setattr(CompiledPolytope, "stays_on", lambda self, device: self.stays and on_device)

    def both_ways(name: str, omega: ol.AbstractRegularizer) -> Iterator[tuple[torch.device, ol.OptLayer]]:
        nonlocal on_device
        asked = accelerated._solved
        for on_device in (False, True):
            solves = []
            monkeypatch.setattr(accelerated, "_solved", lambda *given, seen=solves: seen.append(1) or asked(*given))
            yield DEVICE if on_device else torch.device("cpu"), ol.OptLayer(declared(name), ol.Regularized(omega))
            assert bool(solves) == on_device

    return both_ways


def named(name: str, theta: Tensor) -> dict[str, Tensor]:
    return {s.name: theta[:, s.span].reshape(len(theta), *s.shape) for s in compiled(name).form.parameters}


@pytest.mark.many(3)
@pytest.mark.parametrize("omega", [ol.Entropy(0.5), ol.Entropy(0.05), ol.Tsallis(1.5), ol.Tsallis(3.0)], ids=repr)
@pytest.mark.parametrize("name", ["matching", "cube", "transport", "sequence", "tree", "knapsack"])
def test_second_derivatives_are_those_of_the_cpu(name, omega, layers):
    scores, weights = draw(3, *compiled(name).shape), draw(3, *compiled(name).shape, seed=1)
    found = []
    for where, layer in layers(name, omega):
        leaf = scores.to(where).requires_grad_()
        value = layer(leaf, **moved(named(name, given(name, 3)), where))
        (first,) = torch.autograd.grad((value * weights.to(where)).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        found.append([part.detach().cpu() for part in (value, first, second)])
    for expected, mine in zip(*found, strict=True):
        assert_near(mine, expected)


@pytest.mark.parametrize(
    ("make", "value"),
    [(ol.Entropy, 0.3), (ol.Tsallis, 1.6), (ol.Euclidean, 0.8), (ol.Barrier, 0.3)],
    ids=["Entropy", "Tsallis", "Euclidean", "Barrier"],
)
@pytest.mark.parametrize("name", ["matching", "transport", "tree"])
def test_numbers_and_parameters_have_the_gradients_of_the_cpu(name, make, value, layers):
    omega = make(cp.Parameter(pos=True, name="number"))
    scores, weights, found = draw(3, *compiled(name).shape), draw(3, *compiled(name).shape, seed=1), []
    for where, layer in layers(name, omega):
        leaves = {n: v.clone().to(where).requires_grad_() for n, v in named(name, given(name, 3)).items()}
        leaves["number"] = (value + 0.1 * torch.arange(3.0, dtype=torch.float64)).to(where).requires_grad_()
        points = layer(scores.to(where), **leaves)
        gradients = torch.autograd.grad((points * weights.to(where)).sum(), list(leaves.values()))
        found.append([part.detach().cpu() for part in (points, *gradients)])
    for expected, mine in zip(*found, strict=True):
        assert_near(mine, expected)


def test_second_derivatives_by_the_temperature(layers):
    scores, found = draw(3, 4, 4), []
    omega = ol.Entropy(cp.Parameter(pos=True, name="number"))
    for where, layer in layers("matching", omega):
        heat = torch.tensor([0.3, 0.5, 1.0], dtype=torch.float64).to(where).requires_grad_()
        leaf = scores.to(where).requires_grad_()
        (first,) = torch.autograd.grad(layer(leaf, number=heat).square().sum(), heat, create_graph=True)
        found.append([part.cpu() for part in torch.autograd.grad(first.sum(), (heat, leaf))])
    for expected, mine in zip(*found, strict=True):
        assert_near(mine, expected)


def test_losses_are_those_of_the_cpu(layers):
    scores, gold, found = draw(3, 4, 4), torch.eye(4, dtype=torch.float64).expand(3, 4, 4), []
    for where, layer in layers("matching", ol.Tsallis(1.5)):
        loss = ol.FenchelYoungLoss(layer.compiled(), layer.rule.regularizer)
        leaf = scores.to(where).requires_grad_()
        value = loss(leaf, gold.to(where))
        found.append([value.detach().cpu(), torch.autograd.grad(value, leaf)[0].cpu()])
    for expected, mine in zip(*found, strict=True):
        assert_near(mine, expected)


def test_steps_that_are_stopped_are_for_another_method(monkeypatch):
    """What Newton steps leave goes to the interior point on the device, before the CPU is asked."""
    host, device = both("matching", given("matching"))
    newton = accelerated.dual_newton
    monkeypatch.setattr(accelerated, "dual_newton", lambda problem: newton(problem, limit=2))
    refuse_to_travel(monkeypatch)
    assert_agree(host, device, draw(BATCH, 16), ol.Entropy(0.2))


def test_wrong_active_sets_are_seen(monkeypatch):
    """A column that is said to be held keeps others from moving: the tangent is another one."""
    host, device = both("simplex", given("simplex"))
    scores, direction = draw(BATCH, 5), draw(BATCH, 5, seed=3)
    solution = device.regularized(scores.to(DEVICE), ol.Entropy(0.5)).check()
    evidence = solution.evidence
    free = evidence.answer.free.clone()
    free[:, 0] = False
    other = replace(solution, evidence=replace(evidence, answer=replace(evidence.answer, free=free)))
    expected = host.tangent(host.regularized(scores, ol.Entropy(0.5)), direction).scores
    assert_near(device.tangent(solution, direction.to(DEVICE)).scores, expected)
    assert (device.tangent(other, direction.to(DEVICE)).scores.cpu() - expected).abs().max() > 1e-3
