"""Processes that work on seeds, one after the other. One that dies or hangs costs its seed, not the run."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["Done", "work_on"]

Signature = tuple[str, ...]


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


def work_on(seeds: Iterator[int], processes: int, limit: float, known: dict[Signature, int], enough: int) -> Iterator[Done]:
    """Every seed's result as it is done. ``known`` counts the programs of a signature; of those with ``enough`` no
    further ones are made. A seed that takes longer than ``limit`` seconds is given up.
    """
    context = multiprocessing.get_context("spawn")
    crew = [_Member(context) for _ in range(processes)]
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


def _told(known: dict[Signature, int], enough: int) -> set[Signature]:
    return {signature for signature, count in known.items() if count >= enough}


class _Member:
    """One process, and the seed that it is at."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.seed = -1
        self.since = 0.0
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def take(self, seeds: Iterator[int], known: set[Signature]) -> bool:
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
                return self.pipe.recv()
            except EOFError:
                pass
        if self.process.is_alive() and not self.pipe in ready:
            if time.monotonic() - self.since <= limit:
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


def _serve(pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.filterwarnings("ignore")
    import torch

    from fuzzing.report import done_with

    torch.set_num_threads(1)
    while True:
        try:
            seed, known = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(done_with(seed, known))
