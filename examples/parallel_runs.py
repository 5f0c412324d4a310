"""Many training runs side by side in processes; what is finished stays on disk and is not done again.

A run is a frozen dataclass of settings that JSON can hold. ``work(run, tick)`` does it in a process of its own with one
thread, calls ``tick(fraction)`` now and then with the part of the run that is done, and returns a dictionary that JSON
can hold. The dictionary becomes the file ``folder/runs/KEY.json``, KEY being a hash of the settings. A second start
reads the files that are there: they answer for the settings, not for the code, so a change of the code wants another
folder.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["RunError", "Tick", "Work", "run_all", "run_file"]

Tick = Callable[[float], None]
"""Called with the fraction of a run that is done, between 0 and 1."""

PATIENCE = 15.0
"""Seconds between two lines of progress where no bar can be drawn."""


class Work(Protocol):
    """A function that a process can import, or ``functools.partial`` of one."""

    def __call__(self, run: Any, tick: Tick, /) -> dict[str, Any]: ...


class RunError(RuntimeError):
    """A run failed; the message has its settings."""


def run_file(run: Any, folder: Path) -> Path:
    """Where the result of a run is, or will be."""
    text = json.dumps(_settings(run), sort_keys=True)
    return folder / "runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def run_all(runs: Sequence[Any], work: Work, *, jobs: int, folder: Path, console: Console) -> list[dict[str, Any]]:
    """The results of all runs, in their order, ``jobs`` at a time; those whose file is there are only read.

    Equal runs are done once. Ctrl-C and an error stop the other runs at their next tick; finished ones stay on disk.

    Raises
    ------
    RunError : when a run fails, with its settings; the error itself is the cause.
    ValueError : when a file does not hold what its name says.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, but got {jobs}")
    files = {run: run_file(run, folder) for run in runs}
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    missing = [run for run, path in files.items() if not path.exists()]
    if len(missing) < len(files):
        console.print(f"{len(files) - len(missing)} of {len(files)} runs are in {folder / 'runs'} already")
    if missing:
        _do(missing, len(files), work, min(jobs, len(missing)), folder, console)
    return [_read(files[run], run) for run in runs]


def _settings(run: Any) -> dict[str, Any]:
    if not is_dataclass(run) or isinstance(run, type):
        raise TypeError(f"a run is a frozen dataclass of settings, but got {run!r}")
    return {"kind": type(run).__qualname__, **asdict(run)}


def _read(path: Path, run: Any) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the run is done again") from error
    if kept["settings"] != json.loads(json.dumps(_settings(run))):
        raise ValueError(f"{path} holds the run {kept['settings']}, not {run!r}; remove it, and the run is done again")
    return kept["result"]


def _write(path: Path, run: Any, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    text = json.dumps({"settings": _settings(run), "result": result})
    part = path.with_name(f".{path.stem}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)


def _do(missing: list[Any], total: int, work: Work, jobs: int, folder: Path, console: Console) -> None:
    context = multiprocessing.get_context("spawn")
    ticks, stop = context.Queue(), context.Event()
    with (
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(ticks, stop)) as pool,
        _Board(len(missing), total, console) as board,
    ):
        try:
            futures = {pool.submit(_one, number, run, work, folder): run for number, run in enumerate(missing)}
            _follow(futures, ticks, board)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _follow(futures: dict[Future[None], Any], ticks: Any, board: _Board) -> None:
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            error = future.exception()
            if error is not None:
                raise RunError(f"{futures[future]!r} failed: {type(error).__name__}: {error}") from error
        while True:
            try:
                number, fraction = ticks.get_nowait()
            except queue.Empty:
                break
            board.show(number, fraction)
        board.finished(len(futures) - len(waiting))


class _Board:
    """Progress: a bar in a terminal, else a line every quarter of a minute."""

    def __init__(self, count: int, total: int, console: Console) -> None:
        self.count, self.before, self.console = count, total - count, console
        self.fractions: dict[int, float] = {}
        self.start = self.spoke = time.monotonic()
        columns = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
        self.bar = Progress(TextColumn("runs"), *columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("runs", total=total, completed=self.before)

    def __enter__(self) -> _Board:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, number: int, fraction: float) -> None:
        """A run told how far it is."""
        self.fractions[number] = fraction
        self.bar.update(self.task, completed=self.before + sum(self.fractions.values()))

    def finished(self, done: int) -> None:
        """So many of the runs have ended."""
        now = time.monotonic()
        if self.console.is_terminal or (now - self.spoke < PATIENCE and done < self.count):
            return
        self.spoke = now
        minutes = (now - self.start) / 60
        self.console.print(f"{self.before + done} of {self.before + self.count} runs, {minutes:.1f} minutes")


_channel: tuple[Any, Any] | None = None
"""Of a working process: where it tells its progress, and whether it is to stop."""


class _Stopped(Exception):
    """The program ends before the run does."""


def _start(ticks: Any, stop: Any) -> None:
    global _channel
    _channel = ticks, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one tells the others
    ticks.cancel_join_thread()  # nobody reads the last ticks of a program that ends
    torch.set_num_threads(1)


def _one(number: int, run: Any, work: Work, folder: Path) -> None:
    ticks, stop = _channel

    def tick(fraction: float) -> None:
        if stop.is_set():
            raise _Stopped
        ticks.put((number, fraction))

    tick(0.0)
    result = work(run, tick)
    _write(run_file(run, folder), run, result)
    ticks.put((number, 1.0))
