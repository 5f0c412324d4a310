"""Two ways to one answer, measured one after the other: ratios that hold on a noisy machine."""

from __future__ import annotations

import argparse
import importlib.util
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring import brief, machine, open_console, repeats, seconds, table, write_csv
from torch import Tensor

__all__ = ["Group", "Pair", "run"]

HEADS = ["question", "next to", "ours, ms", "other, ms", "other / ours", "wanted", "apart"]


@dataclass(frozen=True)
class Pair:
    """Two ways to one answer; ``share`` is the part of the batch that the other one is asked about."""

    question: str
    other: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    wanted: float
    share: float = 1.0
    needs: str | None = None


Group = tuple[Callable[[], Iterator[Pair]], str | None]
"""What makes the pairs of a group, and a package that it cannot do without."""


@dataclass(frozen=True)
class PairRow:
    """One line, in milliseconds per batch."""

    question: str
    other: str
    ours: float
    theirs: float
    wanted: float
    apart: float

    def line(self) -> dict[str, str]:
        """Under ``HEADS``."""
        cells = (
            self.question,
            self.other,
            brief(1e3 * self.ours),
            brief(1e3 * self.theirs),
            brief(self.theirs / self.ours),
            brief(self.wanted),
            f"{self.apart:.0e}",
        )
        return dict(zip(HEADS, cells, strict=True))


SLOW = 20.0
"""A call that takes so many seconds is made once."""


def measured(pair: Pair, rounds: int) -> PairRow:
    """Medians of rounds, one after the other."""
    answers: list[Tensor] = []
    firsts: list[float] = []
    found: dict[str, list[float]] = {}
    for name, call in (("ours", pair.ours), ("theirs", pair.theirs)):
        start = time.perf_counter()
        answers.append(call())
        firsts.append(time.perf_counter() - start)
        found[name] = [firsts[-1]] if firsts[-1] > SLOW else []
    first, second = answers
    apart = float((first.detach() - second.detach()).abs().max()) if first.shape == second.shape else np.nan
    counts = {}
    for name, call in (("ours", pair.ours), ("theirs", pair.theirs)):
        if not found[name]:
            start = time.perf_counter()
            call()
            counts[name] = repeats(max(time.perf_counter() - start, 1e-6))
    for _ in range(rounds):
        for name, call in (("ours", pair.ours), ("theirs", pair.theirs)):
            if name in counts:
                found[name].append(seconds([call] * counts[name]))
    theirs = statistics.median(found["theirs"]) / pair.share
    return PairRow(pair.question, pair.other, statistics.median(found["ours"]), theirs, pair.wanted, apart)


def run(description: str | None, name: str, title: str, groups: Mapping[str, Group]) -> None:
    """The command line of a benchmark of pairs: measure, print a table and write it as CSV."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each of both (5)")
    parser.add_argument("--only", default="", help="a pattern for the names of groups")
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"), help="where CSV files go")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the peers
    console = open_console()
    rows: list[PairRow] = []
    for group, (pairs, needs) in groups.items():
        if not re.search(options.only, group):
            continue
        if needs is not None and importlib.util.find_spec(needs) is None:
            console.print(f"{needs} is not installed: {group} is left out")
            continue
        for pair in pairs():
            if pair.needs is not None and importlib.util.find_spec(pair.needs) is None:
                console.print(f"{pair.needs} is not installed: {pair.question} is left out")
                continue
            with console.status(f"{pair.question} …"):
                rows.append(measured(pair, options.rounds))
    if not rows:
        parser.error(f"no group matches {options.only!r}; there are {', '.join(groups)}")
    console.print(table(f"{title} ({machine()})", HEADS, [row.line() for row in rows]))
    write_csv(options.output / f"{name}.csv", rows)
