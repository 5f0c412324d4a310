"""Layers on a GPU, next to our own CPU and to what PyTorch has on the same GPU; without a GPU, the same on the CPU.

Four tables, in milliseconds per instance, float64, with scores from N(0, 1): projections, best vertices, entropic
points at temperature 0.1, marginals.
The polytopes go without their oracles, so that the solvers for accelerators answer. An oracle works on the CPU, and
scores travel to it and back: that is what a layer does by default, and the column "with oracle" has it. Trees have too
many rows for dense matrices; their marginals always travel.

Where the CPU is the device, the solvers for accelerators run on it ("optlayers"), next to those for the CPU
("optlayers, CPU"). Ratios in brackets are the time of a peer by that of "optlayers", the median over rounds in which
both were measured one after the other. Those of other peers are forward + backward where that is measured. The distance
is that of our answers from those of our CPU, the largest of an entry of the first 64 instances; other peers are named
where theirs is above 1e-6. The JSON file has everything.

Problems are worked off in a fixed order, small batches first, while the minutes last; the table names those that were
not reached. Who needs more than the cap or the memory for a batch is not asked for a larger one.

    python benchmarks/device.py --device cuda --minutes 5
    python benchmarks/device.py --device cpu --batches 64 --only matching
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from compare import BACKWARD, FORWARD, Draw, Entrant, chosen, farthest, parser_of
from findings import Result, by_question, heads_of, lines, not_reached, write, wrong
from measuring import Budget, at_once, limit, machine, open_console, table
from peers import OURS, Peer, Solve, is_kind
from peers import PROJECTORS as LIBRARIES
from problems import Problem
from rich.console import Console
from structures import ATTENTION, MAXIMIZERS, chain, structure
from torch import Tensor

import optlayers as ol
from polytopes import arborescence, matching, projective_tree, sequence, simplex

HOST, ORACLE = "optlayers, CPU", "optlayers, with oracle"
BATCHES = {"cuda": (64, 1024, 8192), "cpu": (64, 1024)}
DRAWS = 2
"""So many batches per round, which are large."""
ROOM = 2**32
"""On the CPU, bytes that qpth's factors may take: a system that runs out of memory may end the process."""
COMPARED = 64
"""Answers to the first so many instances are compared."""
LOADING = 60.0
"""Seconds for what happens once per process."""
NOT_REACHED = "not reached"
TEMPERATURE = 0.1
SWEEPS, CHECKED = 100, 20
"""Sinkhorn's iteration looks at rows after so many sweeps, and so often at most."""

ROWS = [
    Problem("simplex", (50,), partial(simplex, 50), 0),
    Problem("matching", (10,), partial(matching, 10), 0),
    Problem("matching", (20,), partial(matching, 20), 0),
    Problem("sequence", (10, 5), partial(sequence, 10, 5), 0),
    Problem("sequence", (20, 10), partial(sequence, 20, 10), 0),
]
MARGINALS = [
    replace(chain(20, 10), with_oracle=False),
    structure("arborescence", (20,), arborescence),
    structure("projective tree", (20,), projective_tree),
]


def ours(rule: ol.rules.AbstractRule, problem: Problem) -> Solve:
    """A layer; where the CPU is the device, its polytope takes it for an accelerator."""
    compiled = ol.compile_polytope(problem.polytope)
    if problem.device == "cpu":
        compiled.stays_on = lambda device: compiled.stays
    return partial(ol.OptLayer(compiled, rule), **problem.parameters)


def on_the_cpu(rule: ol.rules.AbstractRule, problem: Problem) -> Solve:
    """A layer over the same declaration, by the solvers for the CPU."""
    return partial(ol.OptLayer(problem.polytope, rule), **problem.parameters)


def with_oracle(rule: ol.rules.AbstractRule, problem: Problem) -> Solve:
    """A layer as it is by default: scores travel to the oracle."""
    return on_the_cpu(rule, replace(problem, with_oracle=True))


def of_ours(rule: ol.rules.AbstractRule, *, gradient: bool, oracle: bool) -> list[Peer]:
    """Our own, ready for a question."""
    made = [
        Peer(OURS, "optlayers", "optlayers", partial(ours, rule), has_gradient=gradient),
        Peer(HOST, "optlayers", "optlayers", partial(on_the_cpu, rule), has_gradient=gradient),
    ]
    if oracle:
        apart = Peer(ORACLE, "optlayers", "optlayers", partial(with_oracle, rule), _has_rows, has_gradient=gradient)
        made.append(apart)
    return made


def _has_rows(problem: Problem) -> bool:
    return not problem.with_oracle


def named(peers: Sequence[Peer], *names: str) -> list[Peer]:
    """Some of the peers of another benchmark."""
    return [peer for peer in peers if peer.name in names]


@dataclass(frozen=True)
class Question:
    """What is asked, of which problems, and of whom: ours, then libraries."""

    name: str
    problems: Sequence[Problem]
    ours: Sequence[Peer]
    libraries: Sequence[Peer]
    batches: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By device, where these are others than :data:`BATCHES`."""

    def batches_on(self, device: str, asked: Sequence[int] | None) -> Sequence[int]:
        """How many instances are asked about at a time."""
        return asked or self.batches.get(device, BATCHES[device])


def softmax(problem: Problem) -> Solve:
    """The entropic point of the simplex by its formula."""
    return lambda scores: torch.softmax(scores / TEMPERATURE, dim=-1)


def sinkhorn(problem: Problem) -> Solve:
    """The entropic point of matchings by Sinkhorn's iteration on logarithms, until rows are met to 1e-9."""

    def solve(scores: Tensor) -> Tensor:
        log = scores / TEMPERATURE
        for _ in range(SWEEPS):
            for _ in range(CHECKED):
                log = log - log.logsumexp(dim=2, keepdim=True)
                log = log - log.logsumexp(dim=1, keepdim=True)
            if bool((log.logsumexp(dim=2).abs() <= 1e-9).all()):
                break
        return log.exp()

    return solve


QUESTIONS = [
    Question(
        "projection",
        ROWS,
        of_ours(ol.SparseMAP(), gradient=True, oracle=False),
        named(LIBRARIES, "sparsemax", "qpth"),
    ),
    Question(
        "best vertices",
        ROWS,
        of_ours(ol.Pipeline(), gradient=False, oracle=True),
        [replace(peer, applies=is_kind("sequence")) for peer in named(MAXIMIZERS, "torch-struct")],
    ),
    Question(
        "entropic points",
        [ROWS[0], ROWS[2]],
        of_ours(ol.Regularized(ol.Entropy(TEMPERATURE)), gradient=True, oracle=False),
        [
            Peer("softmax", "torch", "torch", softmax, is_kind("simplex"), has_gradient=True),
            Peer("Sinkhorn, by hand", "torch", "torch", sinkhorn, is_kind("matching")),
        ],
        {"cuda": (64, 512, 8192), "cpu": (64,)},
    ),
    Question(
        "marginals",
        MARGINALS,
        of_ours(ol.StructuredAttention(), gradient=True, oracle=True),
        named(ATTENTION, "torch-struct"),
    ),
]


@dataclass(frozen=True)
class Task:
    """A question about a batch of one problem."""

    question: Question
    problem: Problem

    @property
    def name(self) -> str:
        return f"{self.question.name} of {self.problem.name}, batch {self.problem.batch:,}"


@dataclass
class Ready:
    """A peer that is warm, with the draws that it takes and the rounds that the cap leaves it."""

    entrant: Entrant
    moved: Callable[[Draw], Draw]
    rounds: int


@dataclass
class Failed:
    """A peer that cannot, and why."""

    peer: Peer
    failure: str
    message: str = ""


@dataclass
class Session:
    """One run: its options, what was found, and who was too slow or too large before."""

    device: str
    rounds: int
    cap: float
    budget: Budget
    console: Console
    allowed: Mapping[str, Sequence[Peer]]
    results: list[Result] = field(default_factory=list)
    spent: dict[tuple[str, str, str], Failed] = field(default_factory=dict)

    @property
    def settle(self) -> Callable[[], object]:
        """What waits for the device."""
        return torch.cuda.synchronize if self.device == "cuda" else at_once

    def measure(self, task: Task) -> None:
        """Everyone, alternately; the first round is measured even where the time is spent meanwhile."""
        problem, generator = task.problem, torch.Generator().manual_seed(0)
        draws = self._draws(problem, generator)
        right = self._right(task, draws[0])
        entered = [self._enter(task, peer, draws) for peer in self.allowed[task.question.name] if peer.applies(problem)]
        for turn in range(self.rounds):
            if turn and self.budget.left == 0.0:
                break
            draws, start = self._draws(problem, generator), turn % len(entered)
            for place in [*range(start, len(entered)), *range(start)]:
                one = entered[place]
                if isinstance(one, Ready) and turn < one.rounds:
                    try:
                        one.entrant.measure([one.moved(draw) for draw in draws])
                    except Exception as error:
                        entered[place] = self._failed(task, one.entrant.peer, error)
        self.results += results_of(task, entered, right)

    def _right(self, task: Task, draw: Draw) -> Mapping[str, Tensor]:
        """The answers of our CPU to a few instances, and their gradients."""
        few = Draw(draw.scores[:COMPARED].cpu(), draw.weights[:COMPARED].cpu())
        problem = replace(moved_to("cpu", task.problem), batch=len(few.scores))
        (peer,) = named(task.question.ours, HOST)
        try:
            entrant = Entrant(peer, peer.prepare(problem))
            found = {FORWARD: entrant.solve(few.scores)}
            return found | {BACKWARD: entrant.through(few)[1]} if peer.has_gradient else found
        except Exception as error:  # what is measured is still worth having
            self._failed(task, peer, error)
            return {}

    def _draws(self, problem: Problem, generator: torch.Generator) -> list[Draw]:
        return [Draw(problem.draw(generator), problem.draw(generator)) for _ in range(DRAWS)]

    def _enter(self, task: Task, peer: Peer, draws: Sequence[Draw]) -> Ready | Failed:
        key = task.question.name, task.problem.name, peer.name
        before = self.spent.get(key)
        if before is not None:
            return before
        moved = _to_cpu if peer.name == HOST else _as_it_is
        problem = moved_to("cpu", task.problem) if peer.name == HOST else task.problem
        if self.budget.left == 0.0:
            return Failed(peer, NOT_REACHED)
        if peer.name == "qpth" and self.device == "cpu" and bytes_of_qpth(problem) > ROOM:
            return self.spent.setdefault(key, Failed(peer, "too large"))
        cap = min(self.cap, self.budget.left)
        try:
            self._compile(peer, problem, moved)
            with limit(cap):
                entrant = Entrant(peer, peer.prepare(problem), settle=self.settle)
                once = entrant.warm_up([moved(draw) for draw in draws])
            return Ready(entrant, moved, rounds_within(cap, once, self.rounds))
        except Exception as error:  # what a peer cannot do is a result; the others are still measured
            if isinstance(error, TimeoutError) and cap < self.cap:
                return Failed(peer, NOT_REACHED)
            failed = self._failed(task, peer, error)
            return failed if failed.failure.startswith("failed") else self.spent.setdefault(key, failed)

    def _compile(self, peer: Peer, problem: Problem, moved: Callable[[Draw], Draw]) -> None:
        """What is compiled or loaded at a first call is on no one's time."""
        few = replace(problem, batch=2)
        with limit(LOADING):
            Entrant(peer, peer.prepare(few)).warm_up([moved(d) for d in self._draws(few, torch.Generator())])

    def _failed(self, task: Task, peer: Peer, error: Exception) -> Failed:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        failed = Failed(peer, failure_of(error), message)
        self.console.print(f"{task.name}: {peer.name}: {failed.failure}: {message}", markup=False)
        return failed


def _as_it_is(draw: Draw) -> Draw:
    return draw


def _to_cpu(draw: Draw) -> Draw:
    return Draw(draw.scores.cpu(), draw.weights.cpu())


def moved_to(device: str, problem: Problem) -> Problem:
    """A problem, and the values of its parameters, on a device."""
    parameters = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in problem.parameters.items()}
    return replace(problem, device=device, parameters=parameters)


def bytes_of_qpth(problem: Problem) -> int:
    """Some nine square matrices in float64 for each instance, of as many rows as there are variables."""
    return 8 * 9 * problem.batch * problem.arrays.width**2


def rounds_within(cap: float, once: float, rounds: int) -> int:
    """How many rounds of ``once`` seconds fit under a cap: at least one."""
    return max(1, min(rounds, int(cap / once)))


def failure_of(error: Exception) -> str:
    """An error in the words of a cell."""
    if isinstance(error, TimeoutError):
        return str(error)
    words = ("allocate memory", "out of memory", "ALLOC_FAILED")
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(word in str(error) for word in words):
        return "out of memory"
    return f"failed: {type(error).__name__}"


def results_of(task: Task, entered: Sequence[Ready | Failed], right: Mapping[str, Tensor]) -> list[Result]:
    """What was measured, and how far answers and gradients are from the right ones."""
    ready = {one.entrant.peer.name: one.entrant for one in entered if isinstance(one, Ready)}
    ours = ready.get(OURS)
    found = []
    for one in entered:
        peer = one.peer if isinstance(one, Failed) else one.entrant.peer
        for measured in [FORWARD, BACKWARD][: 1 + peer.has_gradient]:
            place = task.question.name, task.problem.name, task.problem.batch, measured, peer.name, peer.version
            if isinstance(one, Failed):
                found.append(Result(*place, failure=one.failure, message=one.message))
                continue
            times = one.entrant.times[measured]
            ratio = None
            if ours is not None and ours.times[measured]:
                ratio = statistics.median(t / o for t, o in zip(times, ours.times[measured], strict=False))
            found.append(
                Result(
                    *place,
                    1e3 * statistics.median(times) / task.problem.batch,
                    ratio,
                    _distance(one.entrant.first[FORWARD], right.get(FORWARD)),
                    None if measured == FORWARD else _distance(one.entrant.first[BACKWARD][1], right.get(BACKWARD)),
                    len(times),
                )
            )
    return found


def _distance(found: Tensor, right: Tensor | None) -> float | None:
    return None if right is None else farthest(found[: len(right)].cpu(), right)


def tasks_of(device: str, batches: Sequence[int] | None, only: str) -> list[Task]:
    """In the order in which they are worked off."""
    every = sorted({batch for question in QUESTIONS for batch in question.batches_on(device, batches)})
    return [
        Task(question, replace(moved_to(device, problem), batch=batch))
        for batch in every
        for question in QUESTIONS
        if batch in question.batches_on(device, batches)
        for problem in question.problems
        if re.search(only, problem.name)
    ]


def device_of(asked: str | None, batches: Sequence[int] | None, console: Console) -> tuple[str, Sequence[int]]:
    """The device and its batches, said in one line."""
    has_cuda = torch.cuda.is_available()
    device = asked or ("cuda" if has_cuda else "cpu")
    why = ""
    if device == "cuda" and not has_cuda:
        device, why = "cpu", "there is no CUDA device that PyTorch can use: "
    elif asked is None and device == "cpu":
        why = "there is no CUDA device: "
    chosen_batches = batches or BATCHES[device]
    name = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    console.print(
        f"{why}measured on {name}, batches {', '.join(f'{b:,}' for b in chosen_batches)}",
        soft_wrap=True,
        highlight=False,
    )
    return device, chosen_batches


def main() -> None:
    """Measure, print tables and write them as Markdown and JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", choices=list(BATCHES), help="cuda where there is one, else cpu")
    parser.add_argument("--batches", type=int, nargs="+", help="64, 1024 and on a GPU 8192")
    parser.add_argument("--minutes", type=float, default=6.0, help="for everything (6)")
    parser.add_argument("--began", type=float, help="when these minutes began, in seconds since 1970 (now)")
    parser.set_defaults(rounds=5, cap=8.0, output=Path("out/device"))
    options: argparse.Namespace = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not define `arg_constraints`")
    console = open_console()
    device, _ = device_of(options.device, options.batches, console)
    tasks = tasks_of(device, options.batches, options.only)
    if not tasks:
        parser.error(f"no problem matches {options.only!r}")
    allowed = {q.name: [*q.ours, *chosen(q.libraries, options.peers, console)] for q in QUESTIONS}
    before = time.time() - options.began if options.began else 0.0
    budget = Budget(max(60 * options.minutes - before, LOADING))
    session = Session(device, options.rounds, options.cap, budget, console, allowed)
    where = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    title = f"Milliseconds per instance, and ratio to optlayers ({where}{machine()}, device {device})"

    def work(task: Task) -> None:
        with console.status(f"{task.name} …"):
            session.measure(task)
        write(options.output, title, session.results, [open_one.name for open_one in tasks[tasks.index(task) + 1 :]])

    left_out = [task.name for task in budget.work_off(tasks, work)]
    write(options.output, title, session.results, left_out)
    console.print(title, highlight=False)
    for question, mine in by_question(session.results).items():
        console.print(table(question, heads_of(mine), lines(mine)))
    if left_out:
        console.print(not_reached(left_out), highlight=False)
    complaints = wrong(session.results)
    for complaint in complaints:
        console.print(complaint, markup=False, highlight=False)
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
