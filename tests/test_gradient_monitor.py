"""A monitor counts what goes through a layer, and changes nothing."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import threading
import weakref

import cvxpy as cp
import pytest
import torch
from drawing import draw
from torch import Tensor, nn

import optlayers as ol
from polytopes import arborescence, matching, sequence, simplex

RULES = [
    ol.StraightThrough(),
    ol.Spigot(2.0),
    ol.Spigot(ol.AdaptiveStep()),
    ol.SparseMAP(),
    ol.Hard(ol.StructuredAttention()),
    ol.PerturbedAdditive(),
    ol.AdaptiveIMLE(),
    ol.ScoreFunction(),
    ol.Spigot(steps=2),
]


def train(layer: ol.OptLayer, steps: int = 4) -> list[Tensor]:
    """Scores on the way of some steps, and the buffers of the layer at the end."""
    scores, target = draw(6, *layer.compiled().shape), draw(6, *layer.compiled().shape, seed=1)
    generator, seen = torch.Generator().manual_seed(2), []
    for _ in range(steps):
        leaf = scores.clone().requires_grad_()
        layer(leaf, objective=lambda z: (z - target).square().flatten(1).sum(1), generator=generator).mean().backward()
        assert leaf.grad is not None
        scores = scores - 0.3 * leaf.grad
        seen.append(scores)
    return [*seen, *(value.clone() for value in layer.buffers())]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_monitor_changes_no_bit(rule):
    plain, watched = (ol.OptLayer(sequence(3, 2), rule) for _ in range(2))
    expected = train(plain)
    with ol.GradientMonitor(watched) as monitor:
        found = train(watched)
        step = monitor.step()
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert step["calls"] == step["backward_calls"] == 4.0 and step["instances"] == 24.0
    assert step["outgoing_norm"] > 0.0 and step["failed_share"] == 0.0 and step["optimal"] == 24.0
    assert not watched._forward_hooks


def test_norms_and_zeros_are_those_of_the_gradients():
    layer, scores, weights = ol.OptLayer(simplex(3), ol.Interpolation(1.0)), draw(5, 3), draw(5, 3, seed=1)
    weights[2] = 0.0
    leaf = scores.clone().requires_grad_()
    with ol.GradientMonitor(layer) as monitor:
        (layer(leaf) * weights).sum().backward()
        step = monitor.step()
    norms = leaf.grad.norm(dim=1)
    assert step["incoming_norm"] == pytest.approx(weights.norm(dim=1).mean().item())
    assert step["outgoing_norm"] == pytest.approx(norms.mean().item())
    assert step["zero_share"] == (norms == 0).double().mean().item() and 0.2 <= step["zero_share"] < 1.0
    assert step["incoming_zero_share"] == pytest.approx(0.2)
    assert "cut_off_share" not in step and step["not_finite_share"] == 0.0


def test_numbers_that_are_not_known_are_left_out():
    """An oracle proves no gap, and StraightThrough takes no steps; before a backward pass no norm is known."""
    layer, leaf = ol.OptLayer(matching(3), ol.StraightThrough()), draw(4, 3, 3).requires_grad_()
    with ol.GradientMonitor(layer) as monitor:
        trees = layer(leaf)
        forward = monitor.step()
        trees.sum().backward()
        backward = monitor.step()
        empty = monitor.step()
    for step in (forward, backward, empty, monitor.means()):
        assert all(math.isfinite(value) for value in step.values())
        assert not {"gap", "cut_off_share", "kept_share"} & set(step)
    assert "outgoing_norm" not in forward and forward["failed_share"] == 0.0 and forward["residual"] < 1e-9
    assert backward["incoming_norm"] == pytest.approx(3.0) and "failed_share" not in backward
    assert empty["calls"] == 0.0 and monitor.means()["outgoing_norm"] == backward["outgoing_norm"]


@pytest.mark.parametrize("unit", [None, "norm", "loss"])
def test_steps_that_are_cut_off_are_counted(unit):
    """A step from a corner of the simplex stays inside while it is short; a long one ends at another corner."""
    scores = torch.tensor([[1.0, 0.0, 0.0]] * 4, dtype=torch.float64)
    slopes = torch.tensor([[0.2, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.3, 0.0, 0.0]], dtype=torch.float64)
    layer = ol.OptLayer(simplex(3), ol.Spigot(1.0), gradient_unit=unit)
    leaf = scores.clone().requires_grad_()
    with ol.GradientMonitor(layer) as monitor:
        (3.0 * layer(leaf, objective=lambda z: (z * slopes).sum(-1))).sum().backward()
        step = monitor.step()
    # By thirds: in units of the loss slopes are these; without, 3 times these; by norms, each is 1.
    expected = {None: 1.0 / 3.0, "norm": 0.0, "loss": 1.0 / 3.0}[unit]
    assert step["cut_off_share"] == pytest.approx(expected) and step["zero_share"] == 0.25
    assert (step["kept_share"] == pytest.approx(1.0)) == (unit == "norm")


def test_what_adapts_is_told_and_its_steps_are_judged_by_what_it_was():
    layer = ol.OptLayer(simplex(3), ol.Spigot(ol.AdaptiveStep(start=1e-3)))
    leaf = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    with ol.GradientMonitor(layer) as monitor:
        layer(leaf)[:, 0].sum().backward()
        step = monitor.step()
    assert step["kept_share"] == pytest.approx(1.0) and step["cut_off_share"] == 0.0
    assert step["rule_step_size"] == float(layer.rule_step_size) > 1e-3


def review() -> ol.Polytope:
    x, load = cp.Variable((2, 3), nonneg=True), cp.Parameter(3, name="load", nonneg=True)
    return ol.Polytope(x, [x <= 1, cp.sum(x, axis=1) == 1, cp.sum(x, axis=0) <= load])


def test_verdicts_are_counted_those_of_calls_that_raise_too():
    scores, loads = draw(3, 2, 3).requires_grad_(), torch.ones(3, 3, dtype=torch.float64)
    loads[1] = 0.1
    tolerant = ol.OptLayer(review(), ol.SparseMAP(), on_failure="nan")
    with ol.GradientMonitor(tolerant) as monitor:
        tolerant(scores, load=loads).nansum().backward()
        step = monitor.step()
    assert step["optimal"] == 2.0 and step["infeasible"] == 1.0 and step["failed_share"] == pytest.approx(1 / 3)
    assert step["residual"] < 1e-6 and step["gap"] < 1e-6 and step["gradient_failures"] == 0.0
    strict = ol.OptLayer(review(), ol.SparseMAP())
    with ol.GradientMonitor(strict) as monitor:
        with pytest.raises(ol.SolveError):
            strict(scores, load=loads)
        with pytest.raises(ValueError, match="scores end in"):
            strict(scores[:, :1], load=loads)
        step = monitor.step()
    assert step["calls"] == 1.0 and step["infeasible"] == 1.0 and step["backward_calls"] == 0.0


def test_gradients_that_are_not_finite_are_counted_apart():
    layer, leaf = ol.OptLayer(simplex(3), ol.Spigot()), draw(4, 3).requires_grad_()
    weights = torch.ones(4, 3, dtype=torch.float64)
    weights[0, 0] = torch.inf
    with ol.GradientMonitor(layer) as monitor:
        (layer(leaf) * weights).sum().backward()
        step = monitor.step()
    assert step["not_finite_share"] == 0.25 and step["incoming_norm"] == pytest.approx(math.sqrt(3.0))


def test_families_are_watched_whole():
    layer = ol.OptLayer(ol.Family(arborescence), ol.Spigot(3.0))
    leaf, target = draw(4, 6, 6).requires_grad_(), draw(4, 6, 6, seed=1)
    with ol.GradientMonitor(layer) as monitor:
        (layer(leaf, sizes=[5, 3, 0, 5]) * target).sum().backward()
        step = monitor.step()
    assert step["instances"] == 4.0 and step["optimal"] == 3.0
    assert step["zero_share"] == 0.25 and step["cut_off_share"] > 0.5


def test_calls_without_a_graph_and_closed_monitors_count_nothing():
    layer, leaf = ol.OptLayer(simplex(3), ol.StraightThrough()), draw(4, 3).requires_grad_()
    monitor = ol.GradientMonitor(layer)
    with torch.no_grad():
        layer(leaf)
    torch.func.grad(lambda s: layer(s).sum())(leaf.detach())
    assert monitor.step()["calls"] == 0.0
    monitor.close()
    layer(leaf).sum().backward()
    assert monitor.step()["calls"] == 0.0


def test_higher_derivatives_and_several_passes():
    layer, leaf = ol.OptLayer(simplex(3), ol.StructuredAttention()), draw(4, 3).requires_grad_()
    with ol.GradientMonitor(layer) as monitor:
        value = layer(leaf)
        (first,) = torch.autograd.grad(value.square().sum(), leaf, create_graph=True)
        first.square().sum().backward()
        with_monitor = leaf.grad.clone()
        assert monitor.step()["backward_calls"] >= 1.0
    leaf.grad = None
    (first,) = torch.autograd.grad(layer(leaf).square().sum(), leaf, create_graph=True)
    first.square().sum().backward()
    assert torch.equal(with_monitor, leaf.grad)


def test_means_go_over_the_window():
    layer, leaf = ol.OptLayer(simplex(2), ol.StraightThrough()), draw(1, 2).requires_grad_()
    with ol.GradientMonitor(layer, window=2) as monitor:
        assert monitor.means() == {}
        for size in (100.0, 1.0, 3.0):
            (size * layer(leaf)[:, 0]).sum().backward()
            monitor.step()
        assert monitor.means()["incoming_norm"] == 2.0
        monitor.step()
        assert monitor.means()["incoming_norm"] == 3.0  # the last step saw none


def test_copies_are_not_watched_and_a_copy_of_the_monitor_watches_its_own():
    layer, leaf = ol.OptLayer(simplex(3), ol.Spigot()), draw(4, 3).requires_grad_()
    monitor = ol.GradientMonitor(layer)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        other(leaf).sum().backward()
    assert monitor.step()["calls"] == 0.0
    model = nn.ModuleDict({"layer": layer})
    model.monitor = monitor
    twin = copy.deepcopy(model)
    assert twin.monitor.layer is twin["layer"] is not layer
    twin["layer"](leaf).sum().backward()
    assert twin.monitor.step()["calls"] == 1.0 and monitor.step()["calls"] == 0.0
    again = pickle.loads(pickle.dumps(monitor))
    again.layer(leaf).sum().backward()
    assert again.step()["backward_calls"] == 1.0


def test_a_monitor_that_is_forgotten_goes():
    layer, leaf = ol.OptLayer(simplex(3), ol.Spigot()), draw(4, 3).requires_grad_()
    monitor = ol.GradientMonitor(layer)
    value, gone = layer(leaf), weakref.ref(monitor)
    del monitor
    gc.collect()
    assert gone() is None
    value.sum().backward()
    layer(leaf)


def test_threads_lose_no_call():
    layer, calls, threads = ol.OptLayer(simplex(3), ol.Spigot()), 30, 6

    def work(seed: int) -> None:
        for _ in range(calls):
            (layer(draw(2, 3, seed=seed).requires_grad_()) * draw(2, 3, seed=seed + 1)).sum().backward()

    with ol.GradientMonitor(layer) as monitor:
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        seen = [monitor.step()]
        for worker in workers:
            worker.join()
        seen.append(monitor.step())
    for name in ("calls", "backward_calls", "optimal"):
        assert sum(step[name] for step in seen) == calls * threads * (2 if name == "optimal" else 1)


def test_two_monitors_of_one_layer():
    layer, leaf = ol.OptLayer(simplex(3), ol.Spigot()), draw(4, 3).requires_grad_()
    with ol.GradientMonitor(layer) as one, ol.GradientMonitor(layer) as other:
        layer(leaf).sum().backward()
        assert one.step() == pytest.approx(other.step())


class Writer:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.seen.append((name, value, step))


def test_it_writes_what_is_known():
    layer, leaf, writer = ol.OptLayer(simplex(3), ol.StraightThrough()), draw(4, 3).requires_grad_(), Writer()
    with ol.GradientMonitor(layer) as monitor:
        with pytest.raises(ValueError, match=r"call monitor\.step"):
            monitor.write(writer, 0)
        layer(leaf).sum().backward()
        found = monitor.step()
        monitor.write(writer, 7, prefix="parser")
    assert {name for name, _, _ in writer.seen} == {f"parser/{n}" for n in found}
    assert all(step == 7 for _, _, step in writer.seen)


def test_it_writes_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    layer, leaf = ol.OptLayer(simplex(3), ol.StraightThrough()), draw(4, 3).requires_grad_()
    with ol.GradientMonitor(layer) as monitor, SummaryWriter(tmp_path) as writer:
        layer(leaf).sum().backward()
        monitor.step()
        monitor.write(writer, 1)
    assert any(path.stat().st_size > 100 for path in tmp_path.iterdir())


def test_bad_input_is_refused():
    layer = ol.OptLayer(simplex(3), ol.Spigot())
    with pytest.raises(TypeError, match=r"watches an OptLayer, but got Sequential; give one of the layers in it: 1"):
        ol.GradientMonitor(nn.Sequential(nn.Linear(3, 3), layer))
    with pytest.raises(TypeError, match=r"watches an OptLayer, but got Linear$"):
        ol.GradientMonitor(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="window must be at least 1, but got 0"):
        ol.GradientMonitor(layer, window=0)
    with pytest.raises(TypeError, match="window must be an int"):
        ol.GradientMonitor(layer, window=1.5)
    with pytest.raises(TypeError, match=r"writer must have add_scalar.*but got str"):
        ol.GradientMonitor(layer).write("runs", 0)
