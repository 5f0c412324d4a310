"""A million instances of a polytope, on all cores of a machine or on a cluster, by Ray Data; and where the time goes.

    python examples/solve_a_million.py                       shortest paths through grids of 5 by 5, drawn
    python examples/solve_a_million.py --project             nearest points, which take longer
    python examples/solve_a_million.py --workers 0           a loop in this process, to compare with
    python examples/solve_a_million.py --scores FOLDER --output FOLDER --address auto
                                                                   read and written as parquet, on a cluster

The recipe has three parts. A worker is an actor: it compiles the polytope once, when it starts, and keeps it. Scores
are made (or read) by the worker that needs them. What comes back is a row for each batch; solutions are written by the
worker that finds them, so that hardly anything travels. The machines of a cluster must see the folders.

What to look for: a best path takes some microseconds, and a million of them less than Ray needs to start. Workers pay
where solving, or what prepares scores, takes minutes, and on several machines. Each has one thread; a loop alone uses
all cores as well, by ``torch.set_num_threads``, but for what prepares scores.

For a structure or a question of your own, change ``declared`` and ``Solver``.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sweep import Machines, SweepError, connected, in_a_line

import optlayers as ol
from polytopes import grid_path

PARTS = 40
SEED = 7


def declared() -> ol.Polytope:
    """What the instances have in common."""
    return grid_path(5, 5)


def drawn(instances: np.ndarray) -> np.ndarray:
    """Scores of some consecutive instances, ``(instances, PARTS)``: the same for an instance whoever asks.

    All scores are one stream of random numbers, of which Philox can start anywhere: it makes four at a time.
    """
    first, count = int(instances[0]), len(instances)
    if not np.array_equal(instances, np.arange(first, first + count)):
        raise ValueError(f"scores are drawn for consecutive instances, but got {count} that begin with {first}")
    stream = np.random.Philox(key=SEED).advance(first * PARTS // 4)
    return -np.random.Generator(stream).random((count, PARTS), dtype=np.float64)


class Solver:
    """Solves batches; made once in every worker."""

    def __init__(self, project: bool, output: str | None) -> None:
        start = time.perf_counter()
        torch.set_num_threads(1)
        self.output, self.name, self.written = output, uuid.uuid4().hex, 0
        polytope = ol.compile_polytope(declared())
        self.solve = polytope.project if project else polytope.maximize
        self.solve(torch.zeros(1, PARTS, dtype=torch.float64))  # kernels are loaded or compiled now
        self.compiling = time.perf_counter() - start

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """A row: the sum of ⟨scores, point⟩, instances without an answer, and the seconds of each part."""
        begin, marks = time.time(), [time.perf_counter()]
        scores = np.stack(batch["scores"]).astype(np.float64) if "scores" in batch else drawn(batch["id"])
        marks.append(time.perf_counter())
        solution = self.solve(torch.from_numpy(scores))
        points, failed = solution.value.numpy(), ~solution.ok.numpy()
        marks.append(time.perf_counter())
        values = (scores * points).sum(axis=1)
        if self.output is not None:
            flat = pa.array(points.astype(np.float32).ravel())
            columns = {"id": batch["id"], "value": values, "point": pa.FixedSizeListArray.from_arrays(flat, PARTS)}
            self.written += 1
            pq.write_table(pa.table(columns), Path(self.output) / f"{self.name}_{self.written:06d}.parquet")
        marks.append(time.perf_counter())
        seconds = dict(zip(("scores", "solving", "writing"), np.diff(marks).tolist(), strict=True))
        row = {
            "first": int(batch["id"][0]),
            "instances": len(values),
            "value": float(values[~failed].sum()),
            "begin": begin,
        }
        row |= {"failed": " ".join(map(str, batch["id"][failed]))}
        row |= {"end": time.time(), "worker": self.name, "compiling": self.compiling, **seconds}
        return {name: [value] for name, value in row.items()}


Row = dict[str, Any]


def in_a_loop(instances: int, batch: int, settings: tuple[bool, str | None]) -> list[Row]:
    """The rows of all batches, solved one after the other by this process."""
    solver = Solver(*settings)
    starts = range(0, instances, batch)
    rows = [solver({"id": np.arange(first, min(first + batch, instances))}) for first in starts]
    return [{name: column[0] for name, column in row.items()} for row in rows]


def by_workers(
    instances: int, batch: int, settings: tuple[bool, str | None], workers: int, scores: str | None
) -> list[Row]:
    """The rows of all batches, in any order, from a Ray that has been started."""
    cores = ray.cluster_resources().get("CPU", 0)
    if workers + (scores is not None) > cores:
        needed = f"{workers} workers" + (" and those who read" if scores is not None else "")
        raise SweepError(f"{needed} need a core each, but there are {cores:g}; they would wait without end")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if scores is None:
        # A block is a batch: numbers that are drawn for consecutive instances.
        data, size = ray.data.range(instances, override_num_blocks=-(-instances // batch)), None
    else:
        data, size = ray.data.read_parquet(scores).select_columns(["id", "scores"]), batch
    pool = ray.data.ActorPoolStrategy(size=workers)
    return data.map_batches(Solver, fn_constructor_args=settings, batch_size=size, compute=pool, num_cpus=1).take_all()


def table_of(rows: Sequence[Row], marks: Sequence[float]) -> Table:
    """Where the time went between the ``marks``: the beginning, Ray is there, all rows are there."""
    began, ready, ended = marks
    workers = len({row["worker"] for row in rows})
    first, last = min(rows, key=lambda row: row["begin"]), max(row["end"] for row in rows)
    parts = {name: sum(row[name] for row in rows) / workers for name in ("scores", "solving", "writing")}
    seconds = {
        "start of Ray": ready - began,
        "start of workers": first["begin"] - ready - first["compiling"],
        "compiling the polytope": first["compiling"],
        "getting scores": parts["scores"],
        "solving": parts["solving"],
        "writing": parts["writing"],
        "passing batches on, waiting": last - first["begin"] - sum(parts.values()),
        "collecting rows": ended - last,
    }
    table = Table(box=SIMPLE)
    for column in ("where", "seconds", "share"):
        table.add_column(column, justify="left" if column == "where" else "right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{100 * value / (ended - began):.1f} %")
    table.add_section()
    table.add_row("all", f"{ended - began:.2f}", "")
    return table


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=1_000_000, help="that are drawn (a million)")
    parser.add_argument("--project", action="store_true", help="nearest points (SparseMAP) instead of best paths")
    parser.add_argument("--batch", type=int, default=10_000, help="instances solved in one call (10,000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; 0 for a loop (all cores)")
    parser.add_argument("--scores", help=f"parquet files with columns id and scores, {PARTS} numbers, instead of draws")
    parser.add_argument("--output", help="a folder for parquet files with ids, values and points")
    parser.add_argument(
        "--address", help="of a Ray cluster: auto, host:port or ray://host:port (default: this machine)"
    )
    options = parser.parse_args(given)
    if options.instances < 1 or options.batch < 1 or options.workers < 0:
        parser.error("--instances and --batch must be at least 1, --workers at least 0")
    if options.workers == 0 and (options.scores or options.address):
        parser.error("--scores and --address are for workers, but --workers is 0")
    if options.scores and "://" not in options.scores and not Path(options.scores).exists():
        parser.error(f"--scores {options.scores}: there is nothing")
    if options.output:
        Path(options.output).mkdir(parents=True, exist_ok=True)
        if any(Path(options.output).iterdir()):
            parser.error(f"--output {options.output} is not empty: solutions of two runs would be mixed")
    return options


def main(given: list[str] | None = None) -> list[Row]:
    """Solve, and say how fast; the rows of all batches in the order of instances."""
    options = arguments(given)
    console, marks = Console(), [time.time()]
    asked = (options.instances, options.batch, (options.project, options.output))
    # One core more than workers: who reads needs one, too.
    with connected(Machines(options.workers + 1, options.address)) if options.workers else nullcontext():
        marks.append(time.time())
        rows = by_workers(*asked, options.workers, options.scores) if options.workers else in_a_loop(*asked)
        marks.append(time.time())
    rows.sort(key=lambda row: row["first"])
    count, workers = sum(row["instances"] for row in rows), len({row["worker"] for row in rows})
    running = max(row["end"] for row in rows) - min(row["begin"] for row in rows)
    console.print(table_of(rows, marks))
    console.print(f"{count:,} instances by {workers} processes: {count / (marks[2] - marks[0]):,.0f} a second in all,")
    console.print(
        f"{count / running:,.0f} a second once they run; mean value {sum(r['value'] for r in rows) / count:.9f}"
    )
    failed = [number for row in rows for number in row["failed"].split()]
    if failed:
        console.print(f"no answer for {len(failed)} instances: {' '.join(failed[:20])}{' …' if failed[20:] else ''}")
    return rows


if __name__ == "__main__":
    with in_a_line():
        main()
