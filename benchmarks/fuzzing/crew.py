"""Processes that work on seeds, one after the other. One that dies or hangs costs its seed, not the run."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["Done", "Signature", "work_on"]

Signature = tuple[str, ...]
"""What makes faults one and the same kind."""


@dataclass
class Done:
    """What a seed gave: counts by question, kind and verdict; and of what was wrong, a line each and small programs."""

    seed: int
    instances: int = 0
    seconds: float = 0.0
    tallies: list[tuple[str, str, str, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    programs: list[tuple[Signature, str, str]] = field(default_factory=list)
    """A signature, a program and a line of JSON each."""
    crash: str = ""


Work = Callable[[int, set[Signature] | None], Done]


def work_on(
    seeds: Iterator[int],
    work: Work,
    processes: int,
    limit: float,
    known: Mapping[Signature, int] = MappingProxyType({}),
    enough: int = 1,
) -> Iterator[Done]:
    """Every seed's result as it is done.

    ``work`` is a function of a module, of the seed and of the signatures that need no further programs: those that
    ``known`` counts ``enough`` of, or None where no programs are wanted. A seed that takes longer than ``limit``
    seconds is given up.
    """
    context = multiprocessing.get_context("spawn")
    crew = [_Member(context, work) for _ in range(processes)]
    try:
        going = [member for member in crew if member.take(seeds, _told(known, enough))]
        while going:
            ready = wait([member.pipe for member in going] + [member.process.sentinel for member in going], timeout=1.0)
            for member in list(going):
                done = member.result(ready, limit)
                if done is None:
                    continue
                yield done
                if not member.take(seeds, _told(known, enough)):
                    going.remove(member)
    finally:
        for member in crew:
            member.stop()


def _told(known: Mapping[Signature, int], enough: int) -> set[Signature] | None:
    return None if not enough else {signature for signature, count in known.items() if count >= enough}


class _Member:
    """One process, and the seed that it is at."""

    def __init__(self, context: Any, work: Work) -> None:
        self.context, self.work = context, work
        self.seed = -1
        self.since = 0.0
        self._start()

    def _start(self) -> None:
        self.ready = False  # it imports first, which may take a while
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=_serve, args=(theirs, self.work), daemon=True)
        self.process.start()
        theirs.close()

    def take(self, seeds: Iterator[int], known: set[Signature] | None) -> bool:
        """Send the next seed; False when there is none."""
        seed = next(seeds, None)
        if seed is None:
            return False
        self.seed, self.since = seed, time.monotonic()
        self.pipe.send((seed, known))
        return True

    def result(self, ready: list[Any], limit: float) -> Done | None:
        """What came back, or that nothing will."""
        if self.pipe in ready:
            try:
                told = self.pipe.recv()
            except (EOFError, OSError):
                told = None
            if isinstance(told, Done):
                return told
            if told is not None:
                self.ready, self.since = True, time.monotonic()
                return None
        if self.process.is_alive() and self.pipe not in ready:
            if not self.ready or time.monotonic() - self.since <= limit:
                return None
            self.stop()
            self._start()
            return Done(self.seed, crash=f"no end after {limit:g} s")
        self.process.join(10)
        code = self.process.exitcode
        self._start()
        return Done(self.seed, crash=f"the process ended with code {code}")

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join(10)


def _serve(pipe: Connection, work: Work) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pipe.send("ready")
    while True:
        try:
            seed, known = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(work(seed, known))
