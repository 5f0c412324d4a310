"""Time that a report may take, and a bar that shows how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import final

from optlayers.common.progress import AbstractBar, bar

__all__ = ["Clock"]

PATIENCE = 2.0
"""Seconds before a bar is shown."""


@final
class Clock:
    """A limit in seconds, which steps share; with a bar from two seconds on, where somebody sees it."""

    def __init__(self, seconds: float, steps: int) -> None:
        self.start = time.perf_counter()
        self.seconds = seconds
        self.steps = steps
        self.done = 0
        self._bar: AbstractBar | None = None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.perf_counter() - self.start)

    def restart(self) -> None:
        """The limit begins now."""
        self.start = time.perf_counter()

    def late_after(self, share: float) -> Callable[[], bool]:
        """Whether a step has used more than its share of the whole time, or nothing is left at all."""
        end = min(time.perf_counter() + share * self.seconds, self.start + self.seconds)
        return lambda: time.perf_counter() > end

    def step(self, name: str) -> None:
        """A step begins."""
        if self._bar is None and time.perf_counter() - self.start > PATIENCE:
            self._bar = bar(self.steps, name)
        if self._bar is not None:
            self._bar.show(self.done, name)
        self.done += 1

    def __enter__(self) -> Clock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
