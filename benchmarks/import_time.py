"""Seconds of ``import optlayers`` in fresh processes, as a ratio to ``import torch, cvxpy``, which it needs.

The two are measured in turns, after a first one of each that compiles to bytecode. Ratios are medians over turns of the
ratio within a turn; seconds of the processor say more than those of a clock where other work shares the machine.

    python benchmarks/import_time.py --rounds 15
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

PROGRAMS = {
    "import torch, cvxpy": "import torch, cvxpy",
    "import torch, cvxpy, numba": "import torch, cvxpy, numba",
    "import optlayers": "import optlayers",
}
TIMED = """
import time
wall, processor = time.perf_counter(), time.process_time()
{}
print(time.perf_counter() - wall, time.process_time() - processor)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    for program in PROGRAMS.values():
        seconds(program)
    taken = [{name: seconds(program) for name, program in PROGRAMS.items()} for _ in range(rounds)]
    print(f"{'':28}{'seconds':>9}{'ratio':>7}{'processor':>11}{'ratio':>7}")
    for name in PROGRAMS:
        cells = []
        for clock in (0, 1):
            ratios = [turn[name][clock] / turn["import torch, cvxpy"][clock] for turn in taken]
            cells += [statistics.median(turn[name][clock] for turn in taken), statistics.median(ratios)]
        print(f"{name:28}{cells[0]:9.2f}{cells[1]:7.2f}{cells[2]:11.2f}{cells[3]:7.2f}")


def seconds(program: str) -> tuple[float, float]:
    """Those of a clock and those of the processor, in a process of its own, which may keep its bytecode."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", TIMED.format(program)]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    wall, processor = map(float, told.split())
    return wall, processor


if __name__ == "__main__":
    main()
