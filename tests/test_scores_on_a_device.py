"""Layers and losses for scores on an accelerator: what comes back lives there, and says what the CPU says.

The device is a pretended one, unless OPTLAYERS_DEVICE names another: see accelerator.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cvxpy as cp
import pytest
import torch
from accelerator import AWAY as DEVICE
from accelerator import moved
from torch import Tensor

import optlayers as ol
import polytopes
from optlayers.bound import accelerated
from optlayers.compilation.compiled import CompiledPolytope

pytestmark = pytest.mark.device
Polytope = ol.Polytope | CompiledPolytope
CLOSE = {torch.float64: 1e-7, torch.float32: 1e-5}
both_dtypes = pytest.mark.parametrize("dtype", list(CLOSE), ids=["float64", "float32"])


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
    """Where OPTLAYERS_DEVICE is the CPU, polytopes whose solvers nobody chose take it for an accelerator."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(CompiledPolytope, "stays_on", lambda self, device: self.stays)


def knapsack():
    x = cp.Variable(4)
    weight, room = cp.Parameter(4, name="weight"), cp.Parameter(name="room")
    return ol.Polytope(x, [x >= 0, x <= 1, weight @ x <= room])


def draw(*shape, dtype=torch.float64, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


ROWS = {
    "simplex": polytopes.simplex(5).without_oracle(),
    "matching": polytopes.matching(4).without_oracle(),
    "sequence": polytopes.sequence(4, 3).without_oracle(),
    "tree": polytopes.arborescence(3).without_oracle(),
    "knapsack": knapsack(),
}
"""Polytopes whose scores stay on the device."""
GIVEN = {"knapsack": {"weight": torch.tensor([0.5, 1.0, 0.7, 0.9]), "room": torch.tensor([1.3, 0.2, 2.2, 1.9, 0.6])}}
every_polytope = pytest.mark.parametrize("name", ROWS)


def given(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {n: v.to(dtype) for n, v in GIVEN.get(name, {}).items()}


def on_the_cpu(polytope: ol.Polytope) -> CompiledPolytope:
    """By solvers that never leave it."""
    return ol.compile_polytope(polytope, maximizer=ol.Highs(), projector=ol.Clarabel())


def assert_same(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Near, of that dtype, and on the device."""
    assert found.device.type == DEVICE.type and found.dtype == dtype
    tolerance = CLOSE[dtype]
    torch.testing.assert_close(found.detach().cpu(), expected.detach().to(dtype), atol=tolerance, rtol=tolerance)


@pytest.mark.many(6)
@every_polytope
@both_dtypes
def test_points_vertices_and_tangents(name, dtype):
    compiled, reference = ol.compile_polytope(ROWS[name]), on_the_cpu(ROWS[name])
    scores, direction = (draw(5, *compiled.shape, dtype=dtype, seed=k) for k in range(2))
    parameters = given(name, dtype)
    there = moved(parameters)
    expected = reference.project(scores, **parameters).check()
    found = compiled.project(scores.to(DEVICE), **there).check()
    assert_same(found.value, expected.value, dtype)
    assert {t.device.type for t in (found.status, found.primal_residual, found.gap)} == {DEVICE.type}
    theirs, mine = reference.tangent(expected, direction), compiled.tangent(found, direction.to(DEVICE))
    assert mine.all_ok and mine.ok.device.type == DEVICE.type
    assert_same(mine.scores, theirs.scores, mine.scores.dtype)
    for parameter, gradient in theirs.parameters.items():
        assert_same(mine.parameters[parameter], gradient, mine.parameters[parameter].dtype)
    best = compiled.maximize(scores.to(DEVICE), **there).check()
    assert_same(best.value, reference.maximize(scores, **parameters).check().value, dtype)


RULES = [
    ol.SparseMAP(),
    ol.Pipeline(),
    ol.StraightThrough(),
    ol.Identity(),
    ol.Spigot(),
    ol.StructuredAttention(),
    ol.Regularized(ol.Entropy(0.5)),
    ol.Regularized(ol.Tsallis(1.5)),
    ol.Regularized(ol.Barrier(0.2)),
    ol.CentralPath(0.2),
]


@pytest.mark.many(12)
@every_polytope
@both_dtypes
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_layers_and_their_gradients(rule, name, dtype):
    if isinstance(rule, ol.StructuredAttention) and name == "knapsack":
        pytest.skip("vertices depend on the parameters, instance by instance")
    polytope, parameters = ROWS[name], given(name, dtype)
    scores, weights = draw(5, *polytope.shape, dtype=dtype), draw(5, *polytope.shape, dtype=dtype, seed=1)

    def through(where: Polytope, device: torch.device) -> tuple[Tensor, Tensor]:
        leaf = scores.to(device).requires_grad_()
        value = ol.OptLayer(where, rule)(leaf, **moved(parameters, device))
        return value, torch.autograd.grad(value, leaf, weights.to(device))[0]

    mine, theirs = through(polytope, DEVICE), through(on_the_cpu(polytope), torch.device("cpu"))
    for found, expected in zip(mine, theirs, strict=True):
        assert_same(found, expected, dtype)


@pytest.mark.parametrize("omega", [ol.Entropy, ol.Barrier, ol.Euclidean], ids=["Entropy", "Barrier", "Euclidean"])
def test_regularized_points_do_not_leave_the_device(omega, monkeypatch):
    """Nor do their gradients, those of parameters and of the temperature too."""

    def never(*_: object) -> None:
        raise AssertionError("an instance was sent to the CPU")

    monkeypatch.setattr(accelerated, "_on_the_host", never)
    scores, weights, found = draw(5, 4), draw(5, 4, seed=1), []
    for where, device in ((knapsack(), DEVICE), (on_the_cpu(knapsack()), torch.device("cpu"))):
        leaves = {n: v.to(device).requires_grad_() for n, v in given("knapsack").items()}
        leaves["number"] = torch.tensor(0.4, dtype=torch.float64).to(device).requires_grad_()
        leaf = scores.to(device).requires_grad_()
        value = ol.OptLayer(where, ol.Regularized(omega(cp.Parameter(pos=True, name="number"))))(leaf, **leaves)
        first = torch.autograd.grad((value * weights.to(device)).sum(), [leaf, *leaves.values()])
        found.append((value, *first))
    for mine, theirs in zip(*found, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("noise", ["theirs", "of the generator"])
def test_rules_that_draw_answer_on_the_device(noise):
    layer = ol.OptLayer(ROWS["matching"], ol.PerturbedAdditive(samples=4))
    generator = torch.Generator().manual_seed(0) if noise == "of the generator" else None
    leaf = draw(5, 4, 4).to(DEVICE).requires_grad_()
    value = layer(leaf, generator=generator)
    (gradient,) = torch.autograd.grad(value.square().sum(), leaf)
    assert value.device.type == gradient.device.type == DEVICE.type
    assert_same(value.sum(dim=2), torch.ones(5, 4))


def test_what_a_rule_adapts_lives_beside_the_scores():
    layer = ol.OptLayer(ROWS["simplex"], ol.AdaptiveIMLE()).to(DEVICE)
    leaf = draw(5, 5).to(DEVICE).requires_grad_()
    layer(leaf, generator=torch.Generator().manual_seed(0)).square().sum().backward()
    assert {buffer.device.type for buffer in layer.buffers()} == {DEVICE.type}
    assert leaf.grad is not None and leaf.grad.device.type == DEVICE.type


@pytest.mark.many(3)
@both_dtypes
@pytest.mark.parametrize("penalty", [-torch.inf, -1e9, float(torch.finfo(torch.float32).min)])
def test_forbidden_parts(penalty, dtype):
    scores = draw(6, 4, 4, dtype=dtype)
    forbidden = torch.zeros(6, 4, 4, dtype=torch.bool)
    forbidden[torch.arange(6), torch.arange(6) % 4, 0] = True
    masked = scores.masked_fill(forbidden, penalty)
    for rule in (ol.SparseMAP(), ol.Pipeline(), ol.StructuredAttention()):
        leaf = masked.to(DEVICE).requires_grad_()
        value = ol.OptLayer(ROWS["matching"], rule)(leaf)
        assert_same(value, ol.OptLayer(on_the_cpu(ROWS["matching"]), rule)(masked), dtype)
        value.square().sum().backward()
        assert not value.detach()[forbidden.to(DEVICE)].any() and not leaf.grad[forbidden.to(DEVICE)].any()


@pytest.mark.parametrize("parameters_on", ["cpu", "device"])
@both_dtypes
def test_parameters_get_their_gradients_where_they_live(parameters_on, dtype):
    home = DEVICE if parameters_on == "device" else torch.device("cpu")
    scores, weights = draw(5, 4, dtype=dtype), draw(5, 4, dtype=dtype, seed=1)

    def through(where: Polytope, device: torch.device, of: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        leaves = {n: v.to(of, copy=True).requires_grad_() for n, v in given("knapsack", dtype).items()}
        value = ol.OptLayer(where, ol.SparseMAP())(scores.to(device), **leaves)
        (value * weights.to(device)).sum().backward()
        return value, {n: leaf.grad for n, leaf in leaves.items()}

    value, mine = through(ROWS["knapsack"], DEVICE, home)
    expected, theirs = through(on_the_cpu(ROWS["knapsack"]), torch.device("cpu"), torch.device("cpu"))
    assert_same(value, expected, dtype)
    for name, gradient in mine.items():
        assert gradient.device.type == home.type
        assert_same(gradient.to(DEVICE), theirs[name], dtype)


@pytest.mark.parametrize("with_oracle", [False, True], ids=["by rows", "over an oracle"])
@pytest.mark.parametrize("sizes_on", ["cpu", "device"])
def test_families(sizes_on, with_oracle):
    """By default scores of the catalogue travel to the oracle and back."""

    def declare(steps: int) -> ol.Polytope:
        made = polytopes.linear_chain(steps, 3)
        return made if with_oracle else made.without_oracle()

    scores, transition = draw(6, 4, 3), draw(6, 4, 3, 3, seed=1)
    sizes, found = torch.tensor([4, 2, 3, 0, 1, 4]), []
    for device in (DEVICE, torch.device("cpu")):
        chosen = {} if device is DEVICE else {"maximizer": ol.Highs(), "projector": ol.Clarabel()}
        layer = ol.OptLayer(ol.Family(declare), ol.SparseMAP(), **chosen)
        leaf, edges = scores.to(device).requires_grad_(), transition.to(device).requires_grad_()
        value = layer(leaf, sizes=sizes.to(DEVICE) if sizes_on == "device" else sizes, transition=edges)
        gradients = torch.autograd.grad(value.square().sum(), (leaf, edges))
        found.append((value, *gradients))
    for mine, theirs in zip(*found, strict=True):
        assert_same(mine, theirs)


LOSSES: dict[str, Callable[[Polytope], torch.nn.Module]] = {
    "SparseMAPLoss": ol.SparseMAPLoss,
    "StructuredPerceptronLoss": ol.StructuredPerceptronLoss,
    "StructuredHingeLoss": ol.StructuredHingeLoss,
    "CRFLoss": ol.CRFLoss,
}


@pytest.mark.many(8)
@both_dtypes
@pytest.mark.parametrize("with_oracle", [False, True], ids=["by rows", "over an oracle"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, with_oracle, dtype):
    polytope = polytopes.sequence(4, 3) if with_oracle else ROWS["sequence"]
    scores = draw(5, 4, 3, 3, dtype=dtype)
    gold = on_the_cpu(polytope).maximize(draw(5, 4, 3, 3, seed=1)).value.to(dtype)
    found = []
    for where, device in ((polytope, DEVICE), (on_the_cpu(ROWS["sequence"]), torch.device("cpu"))):
        leaf = scores.to(device).requires_grad_()
        value = LOSSES[loss](where, reduction="none")(leaf, gold.to(device))
        found.append((value, torch.autograd.grad(value.sum(), leaf)[0]))
    for mine, theirs in zip(*found, strict=True):
        assert_same(mine, theirs, dtype)


def test_what_fails_on_the_device_is_said():
    layer = partial(ol.OptLayer, knapsack(), ol.SparseMAP())
    room = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    scores, weight = draw(3, 4).to(DEVICE).requires_grad_(), GIVEN["knapsack"]["weight"].double().to(DEVICE)
    value = layer(on_failure="nan")(scores, weight=weight, room=room.to(DEVICE))
    value.nan_to_num().sum().backward()
    assert value.isnan().all(dim=1).tolist() == [False, True, False] and not scores.grad[1].any()
    with pytest.raises(ol.SolveError, match="instance 1 is INFEASIBLE"):
        layer()(scores, weight=weight, room=room.to(DEVICE))
