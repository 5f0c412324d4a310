"""Projection and its gradient against cvxpylayers, measured alternately in one run.

For every problem: forward and backward of a batch of scores from N(0, 1), in float64, by ``OptLayer(…, SparseMAP())``
and by cvxpylayers (Clarabel through diffcp). Times are medians per instance; the ratio is the median over rounds of
the ratio within a round, so that a machine whose speed drifts hits both alike. The distance is how far cvxpylayers
ends from our answer, whose own certificate is the gap. ``projection.csv`` has all columns, the table the main ones.

    python benchmarks/projection.py --rounds 7 --output out/benchmarks
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import cvxpy as cp
import torch
from cvxpylayers.torch import CvxpyLayer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import optlayers as ol
from polytopes import arborescence, matching, sequence, simplex, subset


@dataclass(frozen=True)
class Problem:
    """A polytope, the size of a batch, and values of its parameters."""

    name: str
    polytope: Callable[[], ol.Polytope]
    batch: int
    parameters: tuple[tuple[str, float], ...] = ()


PROBLEMS = [
    Problem("simplex 50", partial(simplex, 50), 128),
    Problem("matching 10 × 10", partial(matching, 10), 64),
    Problem("matching 20 × 20", partial(matching, 20), 32),
    Problem("sequence 10 × 5", partial(sequence, 10, 5), 64),
    Problem("5-of-50 subset", partial(subset, 50), 128, (("budget", 5.0),)),
    Problem("arborescence 6 words", partial(arborescence, 6), 16),
    Problem("arborescence 10 words", partial(arborescence, 10), 8),
]


@dataclass(frozen=True)
class Row:
    """What was measured for one problem; times in milliseconds per instance, forward and backward."""

    problem: str
    batch: int
    optlayers: float
    cvxpylayers: float
    ratio: float
    argmax: float
    gap: float
    residual: float
    cvxpylayers_distance: float
    compile_seconds: float


COLUMNS = {
    "problem": "problem",
    "optlayers": "optlayers",
    "cvxpylayers": "cvxpylayers",
    "ratio": "ratio",
    "gap": "gap",
    "distance": "cvxpylayers_distance",
    "argmax": "argmax",
}
"""Heads of the printed table, and the columns behind them."""


def through(layer: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor, weights: torch.Tensor) -> float:
    """Seconds for one forward and backward."""
    leaf = scores.clone().requires_grad_()
    start = time.perf_counter()
    layer(leaf).backward(weights)
    return time.perf_counter() - start


def reference(polytope: ol.Polytope) -> Callable[..., torch.Tensor]:
    """The projection as a user of cvxpylayers writes it."""
    target = cp.Parameter(polytope.shape)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(polytope.variable - target)), list(polytope.constraints))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The problem has an expression with dimension greater than 2")
        layer = CvxpyLayer(
            problem, [target, *polytope.parameters], [polytope.variable], solver_args={"solve_method": "Clarabel"}
        )
    return lambda scores, *parameters: layer(scores, *parameters)[0]


def measure(problem: Problem, rounds: int) -> Row:
    """Alternate the two libraries for some rounds, after one that does not count."""
    polytope = problem.polytope()
    start = time.perf_counter()
    compiled = ol.compile_polytope(polytope)
    compile_seconds = time.perf_counter() - start
    given = dict(problem.parameters)
    ours = partial(ol.OptLayer(compiled, ol.SparseMAP()), **given)
    their_layer = reference(polytope)
    constants = [torch.tensor(v, dtype=torch.float64) for v in given.values()]
    theirs: Callable[[torch.Tensor], torch.Tensor] = lambda scores: their_layer(scores, *constants)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    mine, other, argmax = [], [], []
    for _ in range(rounds + 1):
        scores = torch.randn(problem.batch, *polytope.shape, generator=generator, dtype=torch.float64)
        weights = torch.randn(scores.shape, generator=generator, dtype=torch.float64)
        mine.append(through(ours, scores, weights))
        other.append(through(theirs, scores, weights))
        start = time.perf_counter()
        compiled.maximize(scores, **given).check()
        argmax.append(time.perf_counter() - start)
    solution = compiled.project(scores, **given).check()
    each = 1e3 / problem.batch
    return Row(
        problem.name,
        problem.batch,
        statistics.median(mine[1:]) * each,
        statistics.median(other[1:]) * each,
        statistics.median(b / a for a, b in zip(mine[1:], other[1:], strict=True)),
        statistics.median(argmax[1:]) * each,
        float(solution.gap.max()),
        float(solution.primal_residual.max()),
        float((theirs(scores) - solution.value).abs().max()),
        compile_seconds,
    )


def main() -> None:
    """Measure all problems; print a table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    console = Console()
    rows = [measure(problem, options.rounds) for problem in track(PROBLEMS, "problems", console=console)]
    machine = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table(title=f"projection, forward + backward, ms per instance ({machine})")
    for name, column in COLUMNS.items():
        table.add_column(name, justify="left" if column == "problem" else "right")
    for row in map(asdict, rows):
        table.add_row(*(row[c] if c == "problem" else f"{row[c]:.2g}" for c in COLUMNS.values()))
    console.print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "projection.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
