"""What is paid around the solving: compiling, first calls, the call of a layer, and memory.

- Seconds to compile polytopes of the catalogue: with all rows for the general solvers, and with their oracles.
- Seconds of the first calls in a fresh process after its imports: compile, project and go back, maximize. For a
  matching 10 x 10 by the general solvers, and for an arborescence of 10 words by its oracle. Once with an empty
  NUMBA_CACHE_DIR (a temporary folder), once again with what the first process left there.
- Peak memory of a fresh process beyond that after its imports: a matching 100 x 100, batch 64, forward with backward.
- Microseconds of small calls, over simplices of 4 to 6 with one to four instances: of a layer, a loss and a batch of
  mixed length; next to entmax's sparsemax, and to the solver that they ask. How many functions of the package they
  enter. (small_calls.py says how.)

    python benchmarks/overhead.py --rounds 5
    python benchmarks/overhead.py --only calls
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Row, brief, machine, open_console, seconds, table, write_csv
from small_calls import small_calls

import optlayers as ol
from polytopes import (
    arborescence,
    cube,
    matching,
    partial_matching,
    projective_tree,
    rectangular_matching,
    sequence,
    simplex,
    subset,
)

CATALOGUE: dict[str, Callable[[], ol.Polytope]] = {
    "simplex 50": partial(simplex, 50),
    "cube 50": partial(cube, 50),
    "subset 50": partial(subset, 50),
    "matching 10": partial(matching, 10),
    "matching 20": partial(matching, 20),
    "partial matching 10x10": partial(partial_matching, 10, 10),
    "rectangular matching 10x12": partial(rectangular_matching, 10, 12),
    "sequence 10x5": partial(sequence, 10, 5),
    "sequence 20x10": partial(sequence, 20, 10),
    "arborescence 6": partial(arborescence, 6),
    "arborescence 10": partial(arborescence, 10),
}
WITH_ORACLES: dict[str, Callable[[], ol.Polytope]] = {
    "matching 20, with its oracle": partial(matching, 20),
    "sequence 20x10, with its oracle": partial(sequence, 20, 10),
    "arborescence 10, with its oracle": partial(arborescence, 10),
    "arborescence 40, with its oracle": partial(arborescence, 40),
    "projective tree 20, with its oracle": partial(projective_tree, 20),
}
ENOUGH = 1.0
"""A compilation is not repeated any more when it took so many seconds in all."""


def draw(*shape: int) -> torch.Tensor:
    """Scores from N(0, 1), always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def compilations(rounds: int) -> Iterator[Row]:
    """Every polytope, declared anew each time; the first round is not counted."""
    on_rows = {name: partial(_without_oracle, declare) for name, declare in CATALOGUE.items()}
    for name, declare in (on_rows | WITH_ORACLES).items():
        ol.compile_polytope(declare())
        times: list[float] = []
        while len(times) < rounds and sum(times) < ENOUGH:
            polytope = declare()
            times.append(seconds([partial(ol.compile_polytope, polytope)]))
        yield Row("compile", name, 1e3 * statistics.median(times), "ms")


def _without_oracle(declare: Callable[[], ol.Polytope]) -> ol.Polytope:
    return declare().without_oracle()


def first_calls(polytope: ol.Polytope) -> dict[str, float]:
    """Seconds of the first calls of this process, which has to be a fresh one."""
    scores = draw(8, *polytope.shape)
    times = {}
    start = time.perf_counter()
    layer = ol.OptLayer(polytope, ol.SparseMAP())
    times["compile"] = time.perf_counter() - start
    leaf = scores.clone().requires_grad_()
    times["project, backward"] = seconds([lambda: layer(leaf).square().sum().backward()])
    times["maximize"] = seconds([lambda: layer.compiled().maximize(scores)])
    return times | {"together": sum(times.values())}


def memory() -> dict[str, float]:
    """MiB that this process, which has to be a fresh one, takes for a large batch beyond what it has now."""
    before = _kibibytes("VmRSS")
    leaf = draw(64, 100, 100).requires_grad_()
    ol.OptLayer(matching(100).without_oracle(), ol.SparseMAP())(leaf).square().sum().backward()
    return {"matching 100, batch 64": (_kibibytes("VmHWM") - before) / 1024}


def _kibibytes(field: str) -> float:
    """``VmRSS``, memory in use, or ``VmHWM``, its peak.

    Linux says so in /proc. Elsewhere both are the peak of getrusage, which on Linux starts at the size of the parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return float(found[field].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else peak


INSIDE: dict[str, Callable[[int], object]] = {
    "first-calls": lambda _: first_calls(matching(10).without_oracle()),
    "first-calls-of-oracle": lambda _: first_calls(arborescence(10)),
    "memory": lambda _: memory(),
    "small-calls": lambda rounds: [asdict(row) for row in small_calls(rounds)],
}
"""What a fresh process is asked for, with the number of rounds."""


def fresh(what: str, cache: Path) -> dict[str, float]:
    """What a fresh process measures, with a folder for what numba compiles."""
    return output_of([sys.executable, __file__, "--inside", what], {"NUMBA_CACHE_DIR": str(cache)})


def output_of(command: list[str], environment: dict[str, str]) -> Any:
    """What a process prints as JSON."""
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def processes(rounds: int) -> Iterator[Row]:
    """First calls without and with a cache, and memory (with a cache: compiling is not part of it)."""
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for _ in range(rounds):
        for name, what in (("matching 10", "first-calls"), ("arborescence 10, oracle", "first-calls-of-oracle")):
            with tempfile.TemporaryDirectory() as folder:
                for cache in ("empty cache", "cached"):
                    found[f"first calls, {name}, {cache}", "s"].append(fresh(what, Path(folder)))
        with tempfile.TemporaryDirectory() as folder:
            fresh("memory", Path(folder))
            found["peak memory", "MiB"].append(fresh("memory", Path(folder)))
    for (measured, unit), times in found.items():
        for of in times[0]:
            yield Row(measured, of, statistics.median(one[of] for one in times), unit)


def calls(rounds: int) -> Iterator[Row]:
    """Small calls, with one thread."""
    command = [sys.executable, __file__, "--inside", "small-calls", "--rounds", str(rounds)]
    yield from (Row(**row) for row in output_of(command, {"OMP_NUM_THREADS": "1"}))


MEASUREMENTS = {"processes": processes, "compilations": compilations, "calls": calls}


def main() -> None:
    """Measure, print a table and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="REGEX", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--inside", choices=list(INSIDE), help="print one measurement of this process as JSON")
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(INSIDE[options.inside](options.rounds)))
        return
    names = [name for name in MEASUREMENTS if re.search(options.only, name)]
    if not names:
        parser.error(f"nothing matches {options.only!r}; there are {', '.join(MEASUREMENTS)}")
    console = open_console()
    rows: list[Row] = []
    for name in names:
        with console.status(f"{name} …"):
            rows += MEASUREMENTS[name](options.rounds)
    lines = [{"measured": r.measured, "of": r.of, "median": brief(r.value), "unit": r.unit} for r in rows]
    console.print(table(f"overhead ({machine()})", ["measured", "of", "median", "unit"], lines))
    write_csv(options.output / "overhead.csv", rows)


if __name__ == "__main__":
    main()
