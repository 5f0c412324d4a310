"""What a backward rule costs beyond the solves that it needs.

For every rule the time of its part of a layer's call, next to that of the solves themselves by ``CompiledPolytope``, on
the same numbers, in the same round. A rule may add 100 µs a call to its solves: nothing to solve for the pipeline,
straight-through and identity, one projection for SPIGOT, one argmax for interpolation. The backward pass of a rule that
draws samples may take 1.2 times one argmax of a batch with all of them; forward and backward together are held to the
same.

The peer is the same rule written by hand for one polytope: a ``torch.autograd.Function`` that asks ``CompiledPolytope``
for the same solves, checks nothing and knows no failures, as people write it today. PyTorch's own part of a backward
pass is in both; that of the pipeline by hand is nothing else. It grows where solves have emptied the caches.

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
from typing import Any

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
HEADS = ["problem, batch", "rule", "measured", "µs a call", "by hand, µs", "its solves, µs", "allowed, µs", "met"]


@dataclass(frozen=True)
class Draw:
    """Scores, their best vertices, and a gradient that arrives."""

    scores: Tensor
    vertex: Tensor
    signal: Tensor


Layer = Callable[[Tensor], Tensor]
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


Pull = Callable[[ol.CompiledPolytope, Tensor, Tensor, Tensor], Tensor]
"""From a polytope, scores, their vertices and the gradient of these to the gradient of the scores."""


def zero(_: ol.CompiledPolytope, __: Tensor, ___: Tensor, grad: Tensor) -> Tensor:
    """The pipeline."""
    return torch.zeros_like(grad)


def through(_: ol.CompiledPolytope, __: Tensor, ___: Tensor, grad: Tensor) -> Tensor:
    """Straight-through."""
    return grad


def normalized(_: ol.CompiledPolytope, scores: Tensor, __: Tensor, grad: Tensor) -> Tensor:
    """Identity: the derivative of centring and normalizing all parts."""
    parts = tuple(range(1, scores.ndim))
    centred = scores - scores.mean(parts, keepdim=True)
    norm = centred.square().sum(parts, keepdim=True).sqrt()
    direction = centred / norm
    moving = grad - (grad * direction).sum(parts, keepdim=True) * direction
    return (moving - moving.mean(parts, keepdim=True)) / norm


def pulled_back(compiled: ol.CompiledPolytope, _: Tensor, vertex: Tensor, grad: Tensor) -> Tensor:
    """SPIGOT."""
    return vertex - compiled.project(vertex - grad).value


def interpolated(compiled: ol.CompiledPolytope, scores: Tensor, vertex: Tensor, grad: Tensor) -> Tensor:
    """Interpolation, and LPGD without smoothing."""
    return (vertex - compiled.maximize(scores - STRENGTH * grad).value) / STRENGTH


def by_hand(pull: Pull, compiled: ol.CompiledPolytope) -> Layer:
    """The best vertex forward, ``pull`` backward."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, scores: Tensor) -> Tensor:
            vertex = compiled.maximize(scores).value
            ctx.save_for_backward(scores, vertex)
            return vertex

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return pull(compiled, *ctx.saved_tensors, grad)

    return ByHand.apply


def perturbed_by_hand(compiled: ol.CompiledPolytope) -> Layer:
    """The mean under Gaussian noise, its score-function gradient with the mean of the others as control variate."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, scores: Tensor) -> Tensor:
            noise = torch.randn(SAMPLES, *scores.shape, dtype=scores.dtype)
            best = compiled.maximize(scores + noise).value
            ctx.save_for_backward(noise, best)
            return best.mean(0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            noise, best = (part.flatten(2) for part in ctx.saved_tensors)
            values = torch.einsum("kbn,bn->kb", best, grad.flatten(1))
            values = (SAMPLES * values - values.sum(0)) / (SAMPLES - 1)
            return (torch.einsum("kb,kbn->bn", values, noise) / SAMPLES).reshape(grad.shape)

    return ByHand.apply


def implicit_by_hand(compiled: ol.CompiledPolytope) -> Layer:
    """I-MLE, with the default strength and Gumbel noise."""
    strength = ol.IMLE().strength

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, scores: Tensor) -> Tensor:
            noise = -torch.empty(SAMPLES, *scores.shape, dtype=scores.dtype).exponential_().log()
            best = compiled.maximize(scores + noise).value
            ctx.save_for_backward(scores, noise, best)
            return best.mean(0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            scores, noise, best = ctx.saved_tensors
            moved = compiled.maximize(scores - strength * grad + noise).value
            return (best - moved).mean(0) / strength

    return ByHand.apply


@dataclass(frozen=True)
class Cost:
    """A rule, the same by hand, which part of it is measured, and the solves that this part needs."""

    rule: ol.AbstractRule
    by_hand: Callable[[ol.CompiledPolytope], Layer]
    solves: Solves
    forward: bool = False
    """Whether the forward pass is measured together with the backward pass."""
    samples: bool = False
    """Whether the rule's own solves are those of many samples."""

    def allowed(self, solves: float) -> float:
        """Seconds."""
        return FACTOR * solves if self.samples else solves + EXTRA


PERTURBED = ol.PerturbedAdditive(SAMPLES)
COSTS = {
    "pipeline": Cost(ol.Pipeline(), partial(by_hand, zero), nothing),
    "straight-through": Cost(ol.StraightThrough(), partial(by_hand, through), nothing),
    "identity": Cost(ol.Identity(), partial(by_hand, normalized), nothing),
    "SPIGOT": Cost(ol.Spigot(), partial(by_hand, pulled_back), one_projection),
    "interpolation": Cost(ol.Interpolation(STRENGTH), partial(by_hand, interpolated), one_argmax),
    "LPGD": Cost(ol.LPGD(STRENGTH), partial(by_hand, interpolated), one_argmax),
    f"perturbed, {SAMPLES} samples": Cost(PERTURBED, perturbed_by_hand, argmax_of_all_samples, samples=True),
    f"perturbed, {SAMPLES}, with forward": Cost(PERTURBED, perturbed_by_hand, argmax_of_all_samples, True, True),
    f"I-MLE, {SAMPLES} samples": Cost(ol.IMLE(SAMPLES), implicit_by_hand, argmax_of_all_samples, samples=True),
}


@dataclass(frozen=True)
class Row:
    """Microseconds a call: medians over rounds."""

    problem: str
    batch: int
    rule: str
    measured: str
    rule_microseconds: float
    by_hand_microseconds: float
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
            brief(self.by_hand_microseconds),
            brief(self.solves_microseconds),
            brief(self.allowed_microseconds),
            "yes" if self.rule_microseconds <= self.allowed_microseconds else "no",
        ]
        return dict(zip(HEADS, values, strict=True))


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
    layers = {rule: (ol.OptLayer(compiled, cost.rule), cost.by_hand(compiled)) for rule, cost in COSTS.items()}
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[list[float]]] = {rule: [] for rule in COSTS}
    for round_ in range(rounds + 1):
        scores, signal = torch.randn(2, batch, *compiled.shape, generator=generator, dtype=torch.float64)
        draw = Draw(scores, compiled.maximize(scores).value, signal)
        for rule, cost in COSTS.items():
            clock = whole_seconds if cost.forward else backward_seconds
            count = repeats(max(clock(layers[rule][0], draw, 1), 1e-5))
            clocks = [partial(clock, layer, draw, count) for layer in layers[rule]]
            clocks.append(partial(seconds, [partial(cost.solves, compiled, draw)] * count))
            order = range(len(clocks)) if round_ % 2 else reversed(range(len(clocks)))
            found = dict(sorted((place, clocks[place]()) for place in order))  # who comes first is a little slower
            if round_:  # the first round compiles
                times[rule].append(list(found.values()))
    rows = []
    for rule, cost in COSTS.items():
        mine, hand, solves = (statistics.median(part) for part in zip(*times[rule], strict=True))
        measured = "forward + backward" if cost.forward else "backward"
        microseconds = [1e6 * value for value in (mine, hand, solves, cost.allowed(solves))]
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
