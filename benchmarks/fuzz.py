"""Look for wrong answers: random declarations, numbers of all kinds, every solver and rule, judged in exact arithmetic.

A seed gives one declaration and a batch of 16 instances, or of as many again for every further draw: best vertices and
nearest points by the solvers that the library chooses and by others, ties next to another solver and in batches of one,
rules forward and backward, losses, and for some declarations points under a regularizer. The judge builds the polytope
from its own rows of the declaration, in fractions, and knows the exact answer (``fuzzing/judge.py`` says what is
allowed; regularized points it knows to 30 digits, ``fuzzing/smooth.py``). Numbers may be anything: scores tied, masked
by -1e38, tiny or huge; rows of size 1e-12 to 1e12; capacities that mean "no limit"; parameters in bfloat16; polytopes
without inside, or without a point.

An answer is *right*, *wrong*, *without verdict* (the library says that it has none: any status but OPTIMAL, and
INFEASIBLE where it is true), or *refused* (in words, for a reason: such as a rule that needs few vertices). The exit
code is 1 when anything is wrong, or when more than 1 in 10,000 answers about numbers of ordinary size by the solvers
that the library chooses have no verdict.

What is done stays done: a run that was stopped goes on where it was. The output folder has ``seeds.jsonl``, a line for
every seed; ``failures/``, a program for the first few faults of each kind, made small; and ``failures.jsonl``, the same
as data.

    python benchmarks/fuzz.py --count 100000 --draws 4       # 1,500 declarations; an hour or two on 2 cores
    python benchmarks/fuzz.py --seed 123 --draws 4           # one seed, and what is wrong about it
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fuzzing.crew import Done, work_on
from fuzzing.numbers import ORDINARY
from fuzzing.report import Folder, done_with, rows_of_table, totals
from fuzzing.session import SHARE
from measuring import open_console, table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOWN = 30
"""So many wrong answers are named at the end."""
LIMIT = 1800.0
"""A seed may take so many seconds."""
ALLOWED = 1e-4
"""So many answers about ordinary numbers may lack a verdict."""


def run(folder: Folder, count: int, first: int, processes: int, programs: int, draws: int, share: float) -> list[Done]:
    """As many instances as asked for, those of earlier runs included."""
    done = folder.load()
    behind = {d.seed for d in done}
    instances = sum(d.instances for d in done)

    def seeds() -> Iterator[int]:
        for seed in itertools.count(first):
            if instances >= count:
                return
            if seed not in behind:
                yield seed

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=open_console()) as progress:
        task = progress.add_task("instances", total=count, completed=min(instances, count))
        wrong = sum(len(d.wrong) + bool(d.crash) for d in done)
        for one in work_on(
            seeds(), partial(done_with, draws=draws, share=share), processes, LIMIT, folder.known, programs
        ):
            folder.keep(one)
            done.append(one)
            instances += one.instances
            wrong += len(one.wrong) + bool(one.crash)
            progress.update(task, completed=min(instances, count), description=f"instances ({wrong} wrong)")
    return done


def summarize(console: Console, done: list[Done]) -> bool:
    """Print what was found; whether all is well."""
    counts = totals(done)
    rows = rows_of_table(counts)
    if rows:
        console.print(table(f"{len(done)} seeds, {sum(d.instances for d in done)} instances", list(rows[0]), rows))
    complaints = [line for d in done for line in d.wrong] + [f"seed {d.seed}: {d.crash}" for d in done if d.crash]
    for line in complaints[:SHOWN]:
        console.print(line, markup=False)
    wrong = sum(n for (_, _, verdict), n in counts.items() if verdict == "wrong")
    ordinary = dict.fromkeys(("right", "wrong", "open", "refused"), 0)
    for (question, kind, verdict), n in counts.items():
        if kind in ORDINARY and question in ("best vertices", "nearest points"):
            ordinary[verdict] += n
    asked = sum(ordinary.values())
    console.print(
        f"{wrong} of {sum(counts.values())} answers wrong; of {asked} about numbers of ordinary size "
        f"{ordinary['open']} have no verdict"
    )
    return not wrong and ordinary["open"] <= max(1.0, ALLOWED * asked)


def main() -> None:
    """Run, print a table and what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="so many instances, earlier runs included (10000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--draws", type=int, default=1, help="16 instances of a declaration, so many times (1)")
    parser.add_argument("--seed", type=int, help="this seed alone; nothing is kept")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--programs", type=int, default=2, help="so many programs for faults of a kind (2); 0 is quicker"
    )
    parser.add_argument(
        "--regularized", type=float, default=SHARE, help=f"the share of declarations with regularized points ({SHARE})"
    )
    parser.add_argument("--output", type=Path, default=Path("out/fuzz"))
    options = parser.parse_args()
    for name in ("count", "processes", "draws"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if not 0 <= options.regularized <= 1:
        parser.error("--regularized must be between 0 and 1")
    console = open_console()
    if options.seed is None:
        numbers = options.count, options.first, options.processes, options.programs, options.draws
        done = run(Folder(options.output), *numbers, options.regularized)
    else:
        done = [done_with(options.seed, set(), options.draws, options.regularized)]
        for _, program, _ in done[0].programs:
            console.print(program, markup=False, highlight=False)
    sys.exit(0 if summarize(console, done) else 1)


if __name__ == "__main__":
    main()
