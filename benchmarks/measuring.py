"""What the benchmarks share: a clock, a limit of time, tables and CSV files."""

from __future__ import annotations

import csv
import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

__all__ = [
    "Budget",
    "Row",
    "at_once",
    "brief",
    "limit",
    "machine",
    "markdown",
    "open_console",
    "repeats",
    "seconds",
    "table",
    "write_csv",
]

Task = TypeVar("Task")
SHORTEST = 0.02
"""A measurement lasts at least so many seconds; shorter calls are repeated."""


@dataclass(frozen=True)
class Row:
    """One number."""

    measured: str
    of: str
    value: float
    unit: str


def at_once() -> None:
    """Nothing is waited for: on the CPU a call has ended when it returns."""


def seconds(calls: Sequence[Callable[[], object]], settle: Callable[[], object] = at_once) -> float:
    """Seconds per call, over calls one after the other; ``settle`` waits until a device has done what it was given."""
    settle()
    start = time.perf_counter()
    for call in calls:
        call()
    settle()
    return (time.perf_counter() - start) / len(calls)


def repeats(one: float) -> int:
    """How many calls a measurement takes when one takes so many seconds."""
    return max(1, math.ceil(SHORTEST / one))


@contextmanager
def limit(allowed: float) -> Iterator[None]:
    """Raise ``TimeoutError`` when the body takes longer than so many seconds (and is in Python now and then)."""

    class Late(TimeoutError):
        def __str__(self) -> str:
            return f"more than {allowed:g} s"

    with (_by_a_signal if hasattr(signal, "SIGALRM") else _by_a_thread)(allowed, Late):
        yield


@contextmanager
def _by_a_signal(allowed: float, late: type[TimeoutError]) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise late

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, allowed)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _by_a_thread(allowed: float, late: type[TimeoutError]) -> Iterator[None]:
    """Where there is no such signal, as on Windows; it waits for the end of a call that is not Python."""
    mine, over = threading.get_ident(), threading.Event()

    def stop() -> None:
        if not over.wait(allowed):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(mine), ctypes.py_object(late))

    clock = threading.Thread(target=stop, daemon=True)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()  # after which it comes no more


class Budget:
    """So much time for many tasks, which are worked off in their order."""

    def __init__(self, allowed: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + allowed

    @property
    def left(self) -> float:
        """Seconds; 0 when it is spent."""
        return max(0.0, self._end - self._clock())

    def work_off(self, tasks: Sequence[Task], do: Callable[[Task], object]) -> list[Task]:
        """Do the tasks that are reached while time is left; the others come back."""
        for place, task in enumerate(tasks):
            if self.left == 0.0:
                return list(tasks[place:])
            do(task)
        return []


def open_console() -> Console:
    """A console that is wide enough for the tables, also where no terminal says how wide it is."""
    return Console(width=None if sys.stdout.isatty() else 120)


def machine() -> str:
    """What a reader has to know about the machine."""
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def brief(value: float) -> str:
    """Three digits, without an exponent for what is large."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def table(title: str, heads: Sequence[str], rows: Iterable[Mapping[str, str]]) -> Table:
    """Rows of text under those heads that any has; the first column is said once where it repeats."""
    rows = list(rows)
    heads = _filled(heads, rows)
    made = Table(title=title)
    for place, head in enumerate(heads):
        made.add_column(head, justify="right" if place else "left")
    last = None
    for row in rows:
        first, *others = (row.get(head, "") for head in heads)
        if first != last and last is not None:
            made.add_section()
        made.add_row("" if first == last else first, *others)
        last = first
    return made


def markdown(heads: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """A table for a document: rows of text under those heads that any has."""
    rows = list(rows)
    heads = _filled(heads, rows)
    lines = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _filled(heads: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    return [head for head in heads if any(head in row for row in rows)]


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Dataclasses of one type as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(rows[0])])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
