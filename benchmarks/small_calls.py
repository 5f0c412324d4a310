"""What small calls cost around their solving, in time and in functions that are entered.

A fresh process measures them with one thread: the others of a larger team would wait most of the time, and waiting
threads that spin stall whatever else the machine does. Calls are measured in turns, some of one kind after those of
another, and the times of a turn are their medians. Ratios are medians over turns of the ratio within a turn.

Functions are counted where their code lies in the package: how many are entered in a call (those entered twice count
twice), in how many modules, and how many are on the stack at most. Kernels are what a call is for, and do not count.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from measuring import Row, seconds

import optlayers as ol
from optlayers.solvers.batch import make_instances
from optlayers.solvers.newton import DualNewton
from polytopes import simplex

__all__ = ["small_calls"]

CALLS = 20
"""So many calls of one kind in a turn; their median is taken."""
TURNS = 10
"""So many turns in a round."""
SIZES = [4, 5, 6]
"""Of the instances in a batch of mixed length."""
PACKAGE = str(Path(ol.__file__).parent) + "/"
KERNELS = PACKAGE + "solvers/kernels/"

Call = Callable[[], object]


def draw(*shape: int) -> torch.Tensor:
    """Scores from N(0, 1), always the same, that want a gradient."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def small_calls(rounds: int) -> list[Row]:
    """All of them, in turns."""
    return [*of_one_instance(rounds), *of_a_small_batch(rounds), *of_mixed_length(rounds)]


def in_turns(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Microseconds of a call, one number per turn."""
    for call in calls.values():
        seconds([call] * CALLS)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds * TURNS):
        for name, call in calls.items():
            times[name].append(1e6 * statistics.median(seconds([call]) for _ in range(CALLS)))
    return times


def rows_of(measured: str, times: Mapping[str, list[float]]) -> Iterator[Row]:
    """The median of every call."""
    for name, found in times.items():
        yield Row(measured, name, statistics.median(found), "µs")


def ratio(one: list[float], other: list[float]) -> float:
    """The median of the ratios within a turn."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def through(call: Callable[[], torch.Tensor]) -> Call:
    """Forward, and backward from the sum."""
    return lambda: call().sum().backward()


def of_one_instance(rounds: int) -> Iterator[Row]:
    """A layer over a simplex of 5."""
    scores, layer = draw(1, 5), ol.OptLayer(simplex(5), ol.SparseMAP())
    plain = scores.detach()
    calls = {"forward": lambda: layer(plain), "forward + backward": through(lambda: layer(scores))}
    yield from rows_of("call of a layer, simplex 5, batch 1", in_turns(calls, rounds))


def of_a_small_batch(rounds: int) -> Iterator[Row]:
    """A layer and a loss over a simplex of 5, next to the solver that they ask and to entmax's sparsemax."""
    measured = "simplex 5, batch 4"
    scores, targets = draw(4, 5), torch.eye(5, dtype=torch.float64)[:4]
    layer, loss = ol.OptLayer(simplex(5), ol.SparseMAP()), ol.SparseMAPLoss(simplex(5))
    forward, backward = "OptLayer, forward", "OptLayer, forward + backward"
    sparsemax, alone = "sparsemax, forward + backward", "the solver alone, on prepared instances"
    calls: dict[str, Call] = {
        forward: partial(layer, scores),
        backward: through(partial(layer, scores)),
        "SparseMAPLoss, forward": partial(loss, scores, targets),
        "SparseMAPLoss, forward + backward": through(partial(loss, scores, targets)),
        alone: solver_alone(layer.compiled(), scores.detach().numpy()),
    }
    if importlib.util.find_spec("entmax"):
        import entmax

        calls[sparsemax] = through(partial(entmax.sparsemax, scores, dim=-1))
    times = in_turns(calls, rounds)
    yield from rows_of(measured, times)
    if sparsemax in times:
        yield Row(measured, f"{backward}, by sparsemax", ratio(times[backward], times[sparsemax]), "×")
    for name in (forward, backward):
        yield Row(measured, f"{name}: the solver's part", 100 * ratio(times[alone], times[name]), "%")
    for name in (forward, "SparseMAPLoss, forward"):
        way = entered(calls[name])
        yield Row(measured, f"{name}: functions entered", way.functions, "")
        yield Row(measured, f"{name}: modules they are in", way.modules, "")
        yield Row(measured, f"{name}: depth of the stack", way.depth, "")


def solver_alone(compiled: ol.CompiledPolytope, scores: np.ndarray) -> Call:
    """The projection as its solver is asked for it, with the numbers of the batch at hand: no check, no verdict."""
    form, solver = compiled.projection_form, DualNewton()
    instances = make_instances(form, np.zeros((len(scores), 0)), None).with_scores(scores)
    return partial(solver.project, solver.prepare(form), instances)


def of_mixed_length(rounds: int) -> Iterator[Row]:
    """A batch of three sizes of a family, next to three calls of one size each."""
    measured = f"simplices of {', '.join(map(str, SIZES))}, forward + backward"
    layer = ol.OptLayer(ol.Family(simplex), ol.SparseMAP())
    scores = draw(len(SIZES), max(SIZES))
    alone = [(ol.OptLayer(simplex(size), ol.SparseMAP()), draw(1, size)) for size in SIZES]
    together, apart = "one batch of a Family", "three calls, one size each"

    def one_by_one() -> None:
        for single, leaf in alone:
            single(leaf).sum().backward()

    times = in_turns({together: through(partial(layer, scores, sizes=SIZES)), apart: one_by_one}, rounds)
    yield from rows_of(measured, times)
    yield Row(measured, f"{together}, by {apart}", ratio(times[together], times[apart]), "×")


@dataclass(frozen=True)
class Way:
    """What a call enters of the package."""

    functions: int
    modules: int
    depth: int


def entered(call: Call) -> Way:
    """Watch one call."""
    files: list[str] = []
    stack: list[bool] = []
    depth = 0

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal depth
        if event == "call":
            file = frame.f_code.co_filename
            stack.append(file.startswith(PACKAGE) and not file.startswith(KERNELS))
            if stack[-1]:
                files.append(frame.f_code.co_filename)
                depth = max(depth, sum(stack))
        elif event == "return" and stack:
            stack.pop()

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Way(len(files), len(set(files)), depth)
