"""Projection and argmax by the general solvers against other libraries, measured alternately in one run.

For every problem, batches of scores from N(0, 1) in float64 go through optlayers and through every peer that takes the
problem. Times are medians in milliseconds per instance, forward alone and (where there is a gradient) forward with
backward. The ratio of a peer is the median over rounds of its time by ours within a round, in which all are measured
one after the other, so that a machine whose speed drifts hits all alike. A short call is repeated, with other scores,
until a measurement lasts 20 ms. Solvers without a batch are asked instance by instance in one thread; the others use
as many threads as they are wont to; OMP_NUM_THREADS limits them. (torch.set_num_threads will not do: with torch 2.13, a
batch of LU factorizations of 150 rows was wrong or never came back after it.)

Where others use the machine, set OMP_WAIT_POLICY=passive (or OMP_NUM_THREADS=1): PyTorch's threads spin while they wait
for one that has no core, and a call of 0.1 ms then takes 8 ms, which hits peers made of PyTorch's operations most.

The residual is by how much an answer violates the declaration, the distance how far it is from ours (the largest
difference of an entry), for answers and for gradients. Peers run with their default tolerances.

    python benchmarks/compare.py projection --rounds 7
    python benchmarks/compare.py argmax --only matching --peers 'HiGHS|SciPy'
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import at_once, brief, limit, machine, open_console, repeats, seconds, table, write_csv
from peers import MAXIMIZERS, OURS, PROJECTORS, Peer, Solve
from problems import ARGMAXES, PROJECTIONS, Problem
from rich.console import Console
from torch import Tensor

QUESTIONS = {"projection": (PROJECTIONS, PROJECTORS), "argmax": (ARGMAXES, MAXIMIZERS)}
FORWARD, BACKWARD = "forward", "forward + backward"
HEADS = ["problem, batch", "peer", FORWARD, BACKWARD, "residual", "distance", "of gradients"]
BATCHES = 4
"""So many batches per round: a solver that starts from its last answer must not meet the same scores again."""


@dataclass(frozen=True)
class Row:
    """One peer on one problem; times in milliseconds per instance."""

    problem: str
    batch: int
    measured: str
    peer: str
    version: str
    milliseconds: float
    ratio: float
    """The peer's time by ours."""
    residual: float
    distance: float
    gradient_distance: float | None
    prepare_seconds: float
    repeats: int
    rounds: int


@dataclass(frozen=True)
class Draw:
    """A batch of scores, and of weights: the gradient that arrives."""

    scores: Tensor
    weights: Tensor


@dataclass
class Entrant:
    """A peer that is ready for one problem, and its times, one per round."""

    peer: Peer
    solve: Solve
    prepare_seconds: float = 0.0
    repeats: dict[str, int] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    settle: Callable[[], object] = at_once
    """What waits for the device of the scores."""
    first: dict[str, Any] = field(default_factory=dict)
    """What the first calls returned."""

    def call(self, measured: str, draw: Draw) -> Callable[[], object]:
        return partial(self.solve, draw.scores) if measured == FORWARD else partial(self.through, draw)

    def through(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Answer and gradient."""
        leaf = draw.scores.detach().requires_grad_()
        value = self.solve(leaf)
        (gradient,) = torch.autograd.grad(value, leaf, draw.weights)
        return value.detach(), gradient

    def warm_up(self, draws: Sequence[Draw]) -> float:
        """Call everything twice, the second time by the clock; the seconds that a round will take."""
        expected = 0.0
        for measured in [FORWARD, BACKWARD][: 1 + self.peer.has_gradient]:
            self.first[measured] = self.call(measured, draws[0])()
            once = seconds([self.call(measured, draws[1])], self.settle)
            self.repeats[measured], self.times[measured] = repeats(once), []
            expected += self.repeats[measured] * once
        return expected

    def compared(self, problem: Problem) -> Entrant:
        """Who answers where answers are compared."""
        return self if self.peer.compared is None else Entrant(self.peer, self.peer.compared(problem))

    def measure(self, draws: Sequence[Draw]) -> None:
        for measured, times in self.times.items():
            calls = [self.call(measured, draws[k % len(draws)]) for k in range(self.repeats[measured])]
            times.append(seconds(calls, self.settle))


def enter(problem: Problem, peer: Peer, draws: Sequence[Draw], rounds: int, cap: float) -> Entrant:
    """Prepare a peer and warm it up.

    Raises
    ------
    TimeoutError : when preparing and all rounds take longer than ``cap`` seconds, or will.
    """
    with limit(cap):
        start = time.perf_counter()
        solve = peer.prepare(problem)
        entrant = Entrant(peer, solve, time.perf_counter() - start)
        expected = rounds * entrant.warm_up(draws)
    if expected > cap:
        raise TimeoutError(f"{rounds} rounds take {expected:.0f} s, more than {cap:g} s")
    return entrant


def compare(problem: Problem, peers: Sequence[Peer], rounds: int, cap: float, console: Console) -> list[Row]:
    """Measure all peers that take a problem."""
    problem.prepare()
    generator = torch.Generator().manual_seed(0)
    entrants: list[Entrant] = []
    for peer in peers:
        if not peer.applies(problem):
            continue
        try:
            entrants.append(enter(problem, peer, _draws(problem, generator), rounds, cap))
        except Exception as error:  # what a peer cannot do is a result; the others are still measured
            if peer.name == OURS:
                raise
            console.print(f"{problem.name}: {peer.name} is left out: {type(error).__name__}: {error}", markup=False)
    for turn in range(rounds):
        draws = _draws(problem, generator)
        start = turn % len(entrants)
        for entrant in entrants[start:] + entrants[:start]:
            entrant.measure(draws)
    return rows(problem, entrants, _draws(problem, generator)[0])


def _draws(problem: Problem, generator: torch.Generator) -> list[Draw]:
    return [Draw(problem.draw(generator), problem.draw(generator)) for _ in range(BATCHES)]


def rows(problem: Problem, entrants: Sequence[Entrant], draw: Draw) -> list[Row]:
    """What was measured, and how good the answers to one batch are."""
    ours = entrants[0]
    right = ours.compared(problem)
    value = right.solve(draw.scores)
    gradient = right.through(draw)[1] if BACKWARD in ours.times else None
    found = []
    for entrant in entrants:
        compared = entrant.compared(problem)
        answer = compared.solve(draw.scores)
        residual, distance = problem.residual(answer), farthest(answer, value)
        for measured, times in entrant.times.items():
            found.append(
                Row(
                    problem.name,
                    problem.batch,
                    measured,
                    entrant.peer.name,
                    entrant.peer.version,
                    1e3 * statistics.median(times) / problem.batch,
                    statistics.median(t / o for t, o in zip(times, ours.times[measured], strict=True)),
                    residual,
                    distance,
                    None if gradient is None or measured == FORWARD else farthest(compared.through(draw)[1], gradient),
                    entrant.prepare_seconds,
                    entrant.repeats[measured],
                    len(times),
                )
            )
    return found


def farthest(one: Tensor, other: Tensor) -> float:
    """The largest difference of an entry."""
    return float((one - other).detach().abs().max())


def lines(found: Sequence[Row]) -> list[dict[str, str]]:
    """Rows of the printed table, under ``HEADS``: a line per problem and peer."""
    made: dict[tuple[str, str], dict[str, str]] = {}
    for row in found:
        line = made.setdefault((row.problem, row.peer), {"problem, batch": f"{row.problem}, {row.batch}"})
        by_ours = "" if row.peer == OURS else f" ({brief(row.ratio)}×)"
        line |= {"peer": row.peer, row.measured: brief(row.milliseconds) + by_ours}
        line["distance"] = f"{row.distance:.0e}"
        if not math.isnan(row.residual):
            line["residual"] = f"{row.residual:.0e}"
        if row.gradient_distance is not None:
            line["of gradients"] = f"{row.gradient_distance:.0e}"
    return list(made.values())


def chosen(peers: Sequence[Peer], named: str, console: Console) -> list[Peer]:
    """Peers that match, and a word on those that are not installed."""
    wanted = [p for p in peers if p.name == OURS or re.search(named, p.name, re.IGNORECASE)]
    for peer in wanted:
        if not peer.is_installed:
            console.print(f"{peer.name} is left out: {peer.distribution} is not installed")
    return [p for p in wanted if p.is_installed]


def report(
    question: str, problems: Sequence[Problem], peers: Sequence[Peer], options: argparse.Namespace, console: Console
) -> None:
    """Measure all problems, print the table and write it as CSV."""
    found: list[Row] = []
    for problem in problems:
        with console.status(f"{problem.name} …"):
            found += compare(problem, peers, options.rounds, options.cap, console)
    console.print(table(f"{question}, ms per instance and ratio to ours ({machine()})", HEADS, lines(found)))
    write_csv(options.output / f"{question.replace(' ', '_')}.csv", found)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of a comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="problems, by name")
    parser.add_argument("--peers", default="", metavar="REGEX", help="peers, by name; optlayers is always there")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cap", type=float, default=90.0, help="seconds that a peer may spend on a problem (90)")
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    return parser


def main() -> None:
    """Measure, print a table and write it as CSV."""
    parser = parser_of(__doc__)
    parser.add_argument("question", choices=list(QUESTIONS))
    options = parser.parse_args()
    console = open_console()
    problems, peers = QUESTIONS[options.question]
    problems = [p for p in problems if re.search(options.only, p.name)]
    if not problems:
        parser.error(f"no problem matches {options.only!r}")
    report(options.question, problems, chosen(peers, options.peers, console), options, console)


if __name__ == "__main__":
    main()
