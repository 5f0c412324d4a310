"""How often the library is wrong: its answers over random small polytopes, held against HiGHS and Clarabel.

Every polytope of ``tests/random_polytopes.py`` (by seed) is asked for the best vertex and the nearest point of several
scores: from N(0, 1), small integers that tie, zeros, and N(0, 1) times 1000. The solvers are those that the library
chooses by itself; HiGHS finds the value of the best vertex, Clarabel the nearest point, and cvxpy the distance to the
declared polytope.

An answer without a certificate raises in use; such answers are counted by themselves. One with a certificate is wrong

- when it lies outside of the polytope by more than 1e-6,
- when a vertex has less than the value of HiGHS by more than 1e-7 relative to ``1 + <|scores|, |x|>``,
- when a projection differs from Clarabel's in an entry by more than 1e-6 relative to ``1 + max |scores|``.

A declaration that is refused or an error that is raised is wrong too: all these polytopes are right and nonempty. The
exit code is 1 when anything is wrong. ``wrong_answers.csv`` has a line per question and kind of scores.

    python benchmarks/wrong_answers.py --count 10000
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import open_console, table, write_csv
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

import optlayers as ol

OUTSIDE, LESS, APART = 1e-6, 1e-7, 1e-6
"""What is allowed, see above."""
SHOWN = 50
"""So many wrong answers are named."""
CHUNK = 10
"""So many seeds are one piece of work."""

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda normal: normal,
    "tied": lambda normal: normal.round(),
    "zero": torch.zeros_like,
    "times 1000": lambda normal: 1000.0 * normal,
}


@dataclass
class Tally:
    """What became of one question for one kind of scores; differences are the worst among certified answers."""

    question: str
    scores: str
    answers: int = 0
    wrong: int = 0
    without_certificate: int = 0
    not_judged: int = 0
    """Certified, but the solver that should judge has no certificate itself."""
    outside: float = 0.0
    difference: float = 0.0
    """Of best vertices the value that is lost, relative; of projections the largest difference of an entry."""

    def add(self, other: Tally) -> None:
        for name in ("answers", "wrong", "without_certificate", "not_judged"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.outside = max(self.outside, other.outside)
        self.difference = max(self.difference, other.difference)


@dataclass
class Report:
    """Tallies by question and kind of scores, and a line for everything that is wrong."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    raised: int = 0

    def tally(self, question: str, scores: str) -> Tally:
        return self.tallies.setdefault((question, scores), Tally(question, scores))

    def add(self, other: Report) -> None:
        for key, tally in other.tallies.items():
            self.tally(*key).add(tally)
        self.complaints += other.complaints
        self.raised += other.raised


def draw(shape: Sequence[int], seed: int, draws: int) -> tuple[Tensor, list[str]]:
    """Scores of all kinds, and the kind of each."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(draws, *shape, generator=generator, dtype=torch.float64)
    return torch.cat([make(normal) for make in KINDS.values()]), [kind for kind in KINDS for _ in range(draws)]


@dataclass(frozen=True)
class Comparison:
    """One question to one polytope, for several scores: our answers, the judge's, and how far they may be apart."""

    question: str
    mine: ol.Solution
    judge: ol.Solution
    difference: Tensor
    allowed: Tensor


def compare(case: Any, scores: Tensor) -> list[Comparison]:
    """Both questions."""
    ours = ol.compile_polytope(case.polytope)
    judges = ol.compile_polytope(case.polytope, maximizer=ol.Highs(), projector=ol.Clarabel())
    best, best_by_highs = (c.maximize(scores, **case.parameters) for c in (ours, judges))
    scale = 1 + (scores * best_by_highs.value).abs().flatten(1).sum(1)
    less = (scores * (best_by_highs.value - best.value)).flatten(1).sum(1) / scale
    near, near_by_clarabel = (c.project(scores, **case.parameters) for c in (ours, judges))
    apart = (near.value - near_by_clarabel.value).abs().flatten(1).amax(1)
    allowed = APART * (1 + scores.abs().flatten(1).amax(1))
    return [
        Comparison("best vertex", best, best_by_highs, less, torch.full_like(less, LESS)),
        Comparison("projection", near, near_by_clarabel, apart, allowed),
    ]


def judge(case: Any, seed: int, draws: int) -> Report:
    """One polytope: both questions, all kinds of scores."""
    report = Report()
    scores, kinds = draw(case.polytope.shape, seed, draws)
    for made in compare(case, scores):
        outside = ol.testing.distance(case.polytope, made.mine.value.nan_to_num(), **case.parameters)
        for k, kind in enumerate(kinds):
            tally = report.tally(made.question, kind)
            tally.answers += 1
            if made.mine.status[k] != ol.Status.OPTIMAL:
                tally.without_certificate += 1
                continue
            tally.outside = max(tally.outside, float(outside[k]))
            judged = bool(made.judge.status[k] == ol.Status.OPTIMAL)
            if judged:
                tally.difference = max(tally.difference, float(made.difference[k]))
            else:
                tally.not_judged += 1
            if outside[k] > OUTSIDE or (judged and made.difference[k] > made.allowed[k]):
                tally.wrong += 1
                report.complaints.append(
                    f"seed {seed}, {made.question}, scores {kind}: {float(outside[k]):.0e} outside, "
                    f"{float(made.difference[k]):.0e} from the judge"
                )
    return report


def work(tests: Path, draws: int, seeds: Sequence[int]) -> Report:
    """Some polytopes, in this process."""
    torch.set_num_threads(1)
    random_case = runpy.run_path(str(tests / "random_polytopes.py"))["random_case"]
    report = Report()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        for seed in seeds:
            try:
                report.add(judge(random_case(seed), seed, draws))
            except Exception as error:  # whatever is raised here is wrong, and the other polytopes go on
                report.raised += 1
                report.complaints.append(f"seed {seed}: {type(error).__name__}: {error}")
    return report


def run(tests: Path, draws: int, seeds: range, processes: int) -> Report:
    """All polytopes, in several processes. They are spawned: a fork would not have the threads of the libraries."""
    pieces = [seeds[k : k + CHUNK] for k in range(0, len(seeds), CHUNK)]
    report = Report()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=open_console()) as progress,
        ProcessPoolExecutor(processes, mp_context=context) as pool,
    ):
        task = progress.add_task("polytopes", total=len(seeds))
        futures = {pool.submit(partial(work, tests, draws), piece): len(piece) for piece in pieces}
        for future in as_completed(futures):
            report.add(future.result())
            progress.advance(task, futures[future])
            progress.update(task, description=f"polytopes ({len(report.complaints)} wrong)")
    return report


def lines(tallies: Iterable[Tally]) -> list[dict[str, str]]:
    """Rows of the printed table."""
    return [
        {
            "question": tally.question,
            "scores": tally.scores,
            "answers": str(tally.answers),
            "wrong": str(tally.wrong),
            "no certificate": str(tally.without_certificate),
            "not judged": str(tally.not_judged),
            "worst outside": f"{tally.outside:.0e}",
            "worst difference": f"{tally.difference:.0e}",
        }
        for tally in tallies
    ]


def main() -> None:
    """Judge, print a table and what is wrong, write the table as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="so many polytopes (10000)")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first one (0)")
    parser.add_argument("--draws", type=int, default=1, help="so many scores of each kind per polytope (1)")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--tests", type=Path, default=Path(__file__).parents[1] / "tests", help="the folder of random_polytopes.py"
    )
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    for name in ("count", "draws", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    seeds = range(options.first, options.first + options.count)
    report = run(options.tests, options.draws, seeds, options.processes)
    console = open_console()
    tallies = sorted(report.tallies.values(), key=lambda t: (t.question, list(KINDS).index(t.scores)))
    if tallies:
        rows = lines(tallies)
        console.print(table(f"seeds {seeds.start} to {seeds.stop - 1}", list(rows[0]), rows))
        write_csv(options.output / "wrong_answers.csv", tallies)
    for complaint in report.complaints[:SHOWN]:
        console.print(complaint, markup=False)
    answers, wrong = sum(t.answers for t in tallies), sum(t.wrong for t in tallies)
    unsure = sum(t.without_certificate for t in tallies)
    console.print(f"{wrong} of {answers} answers wrong, {unsure} without a certificate, {report.raised} errors raised")
    sys.exit(1 if wrong or report.raised else 0)


if __name__ == "__main__":
    main()
