"""How the time per instance grows: with the size of the structure, with the batch, and with threads.

Projection with its gradient (``OptLayer(…, SparseMAP())``, forward and backward) and the best vertex
(``OptLayer(…, Pipeline())``, forward), by the general solvers, without oracles; float64, scores from N(0, 1). Times are
medians over rounds. A series ends where a batch takes longer than ``--cap`` seconds. ``growth.csv`` has the numbers,
``growth.png`` shows them.

    python benchmarks/growth.py --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter, ScalarFormatter
from measuring import brief, machine, open_console, repeats, seconds, table, write_csv
from problems import Problem
from rich.progress import track

import optlayers as ol
from polytopes import matching, sequence, simplex

QUESTIONS = {"projection, with gradient": ol.SparseMAP(), "best vertex": ol.Pipeline()}
BATCH = 32
"""How many instances at once where the batch does not vary."""
SIZES = [
    [Problem("simplex", (n,), partial(simplex, n), BATCH) for n in (10, 30, 100, 300, 1000, 3000)],
    [Problem("matching", (n,), partial(matching, n), BATCH) for n in (3, 5, 10, 20, 30, 50)],
    [Problem("sequence", (n, 5), partial(sequence, n, 5), BATCH) for n in (2, 4, 10, 20, 40, 80)],
]
BATCHES = [
    [Problem(kind, sizes, partial(make, *sizes), batch) for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    for kind, make, sizes in (
        ("simplex", simplex, (50,)),
        ("matching", matching, (10,)),
        ("sequence", sequence, (10, 5)),
    )
]
THREADED = [series[-3] for series in BATCHES]
COLORS = {"simplex": "#0072b2", "matching": "#d55e00", "sequence": "#009e73"}
STYLES: dict[str, Any] = dict(zip(QUESTIONS, ("-", "--"), strict=True))
PANELS = {"size": "entries with a score", "batch": "instances in a batch", "threads": "threads"}


@dataclass(frozen=True)
class Row:
    """One measurement; ``over`` says what varies in its series."""

    over: str
    problem: str
    kind: str
    question: str
    entries: int
    batch: int
    threads: int
    milliseconds: float
    """Per instance."""

    @property
    def place(self) -> int:
        """Where on the axis of its panel."""
        return {"size": self.entries, "batch": self.batch, "threads": self.threads}[self.over]


def measure(problem: Problem, question: str, over: str, rounds: int) -> Row:
    """Median of some rounds, after two calls that do not count."""
    rule = QUESTIONS[question]
    layer = partial(ol.OptLayer(problem.polytope, rule), **problem.parameters)
    generator = torch.Generator().manual_seed(0)

    def call(scores: torch.Tensor, weights: torch.Tensor) -> None:
        leaf = scores.detach().requires_grad_(not rule.maximizes)
        value = layer(leaf)
        if leaf.requires_grad:
            value.backward(weights)

    draws = [(problem.draw(generator), problem.draw(generator)) for _ in range(4)]
    calls = [partial(call, *draw) for draw in draws]
    calls[0]()
    wanted = repeats(seconds(calls[1:2]))
    times = [seconds([calls[k % len(calls)] for k in range(wanted)]) for _ in range(rounds)]
    return Row(
        over,
        problem.name,
        problem.kind,
        question,
        len(problem.arrays.kept),
        problem.batch,
        torch.get_num_threads(),
        1e3 * statistics.median(times) / problem.batch,
    )


def series(problems: Sequence[Problem], question: str, over: str, rounds: int, cap: float) -> Iterator[Row]:
    """From small to large, as long as a batch takes no longer than ``cap`` seconds."""
    for problem in problems:
        row = measure(problem, question, over, rounds)
        yield row
        if row.milliseconds * problem.batch > 1e3 * cap:
            return


def measure_threads(threads: Sequence[int], rounds: int) -> Iterator[Row]:
    """Batches with several numbers of threads; last of all, as torch does not forget that it was told one."""
    for count in threads:
        torch.set_num_threads(count)
        for problem in THREADED:
            for question in QUESTIONS:
                yield measure(problem, question, "threads", rounds)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Three panels beside each other, with both axes logarithmic."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, (over, label) in zip(axes, PANELS.items(), strict=True):
        mine = [row for row in rows if row.over == over]
        for kind, question in dict.fromkeys((row.kind, row.question) for row in mine):
            points = [row for row in mine if (row.kind, row.question) == (kind, question)]
            axis.plot(
                [row.place for row in points],
                [row.milliseconds for row in points],
                STYLES[question],
                color=COLORS[kind],
                marker="o",
                markersize=4,
            )
        _dress(axis, label, sorted({row.place for row in mine}) if over != "size" else None)
    axes[0].set_ylabel("milliseconds per instance")
    same = ", ".join(problem.name for problem in THREADED)
    notes = (f"batch {BATCH}", same, f"{same}, batch {THREADED[0].batch}")
    for axis, over, note in zip(axes, PANELS, notes, strict=True):
        axis.set_title(over, pad=18)
        axis.text(0.5, 1.02, note, transform=axis.transAxes, ha="center", va="bottom", fontsize="small", color="0.4")
    structures = [Line2D([], [], color=color, label=kind) for kind, color in COLORS.items()]
    questions = [Line2D([], [], color="black", linestyle=style, label=name) for name, style in STYLES.items()]
    figure.legend(handles=[*structures, *questions], loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _dress(axis: Axes, label: str, ticks: Sequence[int] | None) -> None:
    axis.set_xscale("log", base=2 if ticks else 10)
    axis.set_yscale("log")
    axis.set_xlabel(label)
    if ticks:
        axis.set_xticks(ticks)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_formatter(LogFormatterSciNotation())
    axis.grid(which="major", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)


def lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Rows of the printed table: a line per series, with the place and the time of its ends."""
    made = []
    for over, kind, question in dict.fromkeys((row.over, row.kind, row.question) for row in rows):
        points = [row for row in rows if (row.over, row.kind, row.question) == (over, kind, question)]
        ends = {
            head: f"{row.place}: {brief(row.milliseconds)}"
            for head, row in zip(("from", "to"), (points[0], points[-1]), strict=True)
        }
        made.append({"over": PANELS[over], "structure": kind, "question": question, **ends})
    return made


def main() -> None:
    """Measure, print the ends of every series, write a CSV file and a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cap", type=float, default=2.0, help="a series ends after a batch of so many seconds (2)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    console = open_console()
    title = f"ms per instance ({machine()})"
    rows: list[Row] = []
    plan = [("size", problems) for problems in SIZES] + [("batch", problems) for problems in BATCHES]
    for over, problems in track(plan, "size and batch", console=console):
        for question in QUESTIONS:
            rows += series(problems, question, over, options.rounds, options.cap)
    rows += measure_threads(options.threads, options.rounds)
    console.print(table(title, ["over", "structure", "question", "from", "to"], lines(rows)))
    write_csv(options.output / "growth.csv", rows)
    plot(rows, options.output / "growth.png")


if __name__ == "__main__":
    main()
