"""Locks of modules, and what is done about forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import final

__all__ = ["ForkSafeLock", "at_fork"]


def at_fork(**functions: Callable[[], object]) -> None:
    """What ``os.register_at_fork`` does, where there are forks: Windows has none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**functions)


@final
class ForkSafeLock:
    """A lock that a forked child finds open: who held it in the parent is a thread that the child has not.

    One thread may take it several times, a finalizer that runs meanwhile, say. It is kept for ever, and so is for
    modules.
    """

    def __init__(self) -> None:
        self._open()
        at_fork(after_in_child=self._open)

    def _open(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
