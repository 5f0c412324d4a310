"""Time that a report may take, and a bar that shows how far it is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, final

__all__ = ["Clock"]

PATIENCE = 2.0
"""Seconds before a bar is shown."""


@final
class Clock:
    """A limit in seconds, which steps share; with a bar on standard error where rich is installed.

    The bar is shown from two seconds on, where standard error is a terminal and ``OPTLAYERS_QUIET`` is not set.
    """

    def __init__(self, seconds: float, steps: int) -> None:
        self.start = time.perf_counter()
        self.seconds = seconds
        self.steps = steps
        self.done = 0
        self._bar: Any = None
        self._task: Any = None

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
        if self._bar is None and time.perf_counter() - self.start > PATIENCE and _is_wanted():
            self._open()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=name)
        self.done += 1

    def __enter__(self) -> Clock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _open(self) -> None:
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ImportError:
            return
        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("report", total=self.steps)
        self._bar.start()


def _is_wanted() -> bool:
    return os.environ.get("OPTLAYERS_QUIET", "0") == "0" and sys.stderr.isatty()
