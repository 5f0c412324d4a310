"""What a backward rule costs beyond the solves that it needs.

For every rule the time of its part of a layer's call, next to that of the solves themselves by ``CompiledPolytope``, on
the same numbers, in the same round. A rule may add 100 µs a call to its solves: nothing to solve for the pipeline,
straight-through and identity, one projection for SPIGOT, one argmax for interpolation. The backward pass of a rule that
draws samples may take 1.2 times one argmax of a batch with all of them; forward and backward together are held to the
same. PyTorch's own part of a backward pass is in all figures; the first row of a problem is that part alone.

    python benchmarks/rules.py --rounds 7
    python benchmarks/rules.py --only matching
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measuring import brief, machine, open_console, repeats, seconds, table, write_csv
from torch import Tensor

import optlayers as ol
from polytopes import arborescence, matching, sequence, simplex

SAMPLES = 16
STRENGTH = 1.0
EXTRA = 100e-6
"""Seconds that a rule may add to its solves."""
FACTOR = 1.2
"""Times the solves, for rules that draw samples."""
PROBLEMS: dict[str, tuple[Callable[[], ol.Polytope], int]] = {
    "simplex 50": (partial(simplex, 50), 128),
    "matching 10": (partial(matching, 10), 64),
    "sequence 10x5": (partial(sequence, 10, 5), 64),
    "arborescence 10": (partial(arborescence, 10), 32),
    "arborescence 20": (partial(arborescence, 20), 32),
}
HEADS = ["problem, batch", "rule", "measured", "µs a call", "its solves, µs", "allowed, µs", "met"]


@dataclass(frozen=True)
class Draw:
    """Scores, their best vertices, and a gradient that arrives."""

    scores: Tensor
    vertex: Tensor
    signal: Tensor


Solves = Callable[[ol.CompiledPolytope, Draw], object]


def nothing(_: ol.CompiledPolytope, __: Draw) -> None:
    """No solve is needed."""


def one_projection(compiled: ol.CompiledPolytope, draw: Draw) -> object:
    """Of the step that SPIGOT pulls back."""
    return compiled.project(draw.vertex - draw.signal)


def one_argmax(compiled: ol.CompiledPolytope, draw: Draw) -> object:
    """At the scores that interpolation asks about."""
    return compiled.maximize(draw.scores - STRENGTH * draw.signal)


def argmax_of_all_samples(compiled: ol.CompiledPolytope, draw: Draw) -> object:
    """One batch, as large as all samples together."""
    return compiled.maximize(draw.scores.expand(SAMPLES, *draw.scores.shape))


@dataclass(frozen=True)
class Cost:
    """A rule, which part of it is measured, and the solves that this part needs."""

    rule: ol.AbstractRule | None
    solves: Solves
    forward: bool = False
    """Whether the forward pass is measured together with the backward pass."""
    samples: bool = False
    """Whether the rule's own solves are those of many samples."""

    def allowed(self, solves: float) -> float:
        """Seconds."""
        return FACTOR * solves if self.samples else solves + EXTRA


COSTS = {
    "PyTorch alone": Cost(None, nothing),
    "pipeline": Cost(ol.Pipeline(), nothing),
    "straight-through": Cost(ol.StraightThrough(), nothing),
    "identity": Cost(ol.Identity(), nothing),
    "SPIGOT": Cost(ol.Spigot(), one_projection),
    "interpolation": Cost(ol.Interpolation(STRENGTH), one_argmax),
    "LPGD": Cost(ol.LPGD(STRENGTH), one_argmax),
    f"perturbed, {SAMPLES} samples": Cost(ol.PerturbedAdditive(SAMPLES), argmax_of_all_samples, samples=True),
    f"perturbed, {SAMPLES}, with forward": Cost(ol.PerturbedAdditive(SAMPLES), argmax_of_all_samples, True, True),
    f"I-MLE, {SAMPLES} samples": Cost(ol.IMLE(SAMPLES), argmax_of_all_samples, samples=True),
}


@dataclass(frozen=True)
class Row:
    """Microseconds a call: medians over rounds."""

    problem: str
    batch: int
    rule: str
    measured: str
    rule_microseconds: float
    solves_microseconds: float
    allowed_microseconds: float
    rounds: int

    def line(self) -> dict[str, str]:
        """Under ``HEADS``."""
        values = [
            f"{self.problem}, {self.batch}",
            self.rule,
            self.measured,
            brief(self.rule_microseconds),
            brief(self.solves_microseconds),
            brief(self.allowed_microseconds),
            "yes" if self.rule_microseconds <= self.allowed_microseconds else "no",
        ]
        return dict(zip(HEADS, values, strict=True))


class Zero(torch.autograd.Function):
    """What PyTorch takes for a function in Python whose gradient is 0."""

    @staticmethod
    def forward(ctx: object, scores: Tensor) -> Tensor:
        """A copy."""
        return scores.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(grad)


Layer = Callable[[Tensor], Tensor]


def backward_seconds(layer: Layer, draw: Draw, count: int) -> float:
    """Per backward pass; the graph is kept, so that only this part is on the clock."""
    leaf = draw.scores.clone().requires_grad_()
    value = layer(leaf)
    return seconds([partial(torch.autograd.grad, value, leaf, draw.signal, retain_graph=True)] * count)


def whole_seconds(layer: Layer, draw: Draw, count: int) -> float:
    """Per forward and backward pass."""

    def through() -> None:
        leaf = draw.scores.detach().requires_grad_()
        torch.autograd.grad(layer(leaf), leaf, draw.signal)

    return seconds([through] * count)


def measure(name: str, rounds: int) -> list[Row]:
    """All rules on one polytope, in turn with their solves in every round."""
    declare, batch = PROBLEMS[name]
    compiled = ol.compile_polytope(declare())
    layers: dict[str, Layer] = {
        name: Zero.apply if cost.rule is None else ol.OptLayer(compiled, cost.rule) for name, cost in COSTS.items()
    }
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[tuple[float, float]]] = {rule: [] for rule in COSTS}
    for round_ in range(rounds + 1):
        scores, signal = torch.randn(2, batch, *compiled.shape, generator=generator, dtype=torch.float64)
        draw = Draw(scores, compiled.maximize(scores).value, signal)
        for rule, cost in COSTS.items():
            clock = whole_seconds if cost.forward else backward_seconds
            solve = partial(cost.solves, compiled, draw)
            count = repeats(max(clock(layers[rule], draw, 1), 1e-5))
            pair = clock(layers[rule], draw, count), seconds([solve] * count)
            if round_:  # the first round compiles
                times[rule].append(pair)
    rows = []
    for rule, cost in COSTS.items():
        mine, solves = (statistics.median(part) for part in zip(*times[rule], strict=True))
        measured = "forward + backward" if cost.forward else "backward"
        microseconds = [1e6 * value for value in (mine, solves, cost.allowed(solves))]
        rows.append(Row(name, batch, rule, measured, *microseconds, rounds))
    return rows


def main() -> None:
    """Measure, print a table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="REGEX", help="problems whose name matches")
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    names = [name for name in PROBLEMS if re.search(options.only, name)]
    if not names:
        parser.error(f"no problem matches {options.only!r}; there are {', '.join(PROBLEMS)}")
    console = open_console()
    rows: list[Row] = []
    for name in names:
        with console.status(f"{name} …"):
            rows += measure(name, options.rounds)
    console.print(table(f"rules, µs a call ({machine()})", HEADS, [row.line() for row in rows]))
    write_csv(options.output / "rules.csv", rows)


if __name__ == "__main__":
    main()
