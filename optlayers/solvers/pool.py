"""Spread a batch over threads."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import final

import numpy as np
import torch

from optlayers.common.locks import ForkSafeLock, at_fork

__all__ = ["Pace", "for_each_chunk", "within_this_thread"]

HANDED_OVER = 3e-4
"""Seconds of work below which another thread, which has to be woken, costs more than it saves."""

_lock = ForkSafeLock()
_pools: dict[int, ThreadPoolExecutor] = {}
_here = threading.local()


def _go_on_alone() -> None:
    """A forked child (a DataLoader worker) has none of its parent's threads.

    Nor those of OpenMP, by which torch computes: once they have worked in the parent, the child would wait for them
    without end, in the first operation that is worth a thread. With one thread nobody is waited for, and so DataLoader
    does it in its own workers. A child that sets another number has to know what its parent did.
    """
    _pools.clear()
    torch.set_num_threads(1)


at_fork(after_in_child=_go_on_alone)


def _pool(helpers: int) -> ThreadPoolExecutor:
    with _lock:
        if helpers not in _pools:
            _pools[helpers] = ThreadPoolExecutor(helpers, thread_name_prefix="optlayers")
        return _pools[helpers]


@contextmanager
def within_this_thread() -> Iterator[None]:
    """Batches that are asked for meanwhile stay in the thread that asks: nobody else waits for what it holds."""
    before = getattr(_here, "works", False)
    _here.works = True
    try:
        yield
    finally:
        _here.works = before


def for_each_chunk(work: Callable[[np.ndarray], None], count: int, *, smallest: int = 1, multiple: int = 1) -> None:
    """Call ``work`` on pieces of ``arange(count)`` in ``torch.get_num_threads()`` threads, this one among them.

    ``smallest`` is the fewest instances worth a thread; pieces begin at a ``multiple``. The first exception of a
    worker is raised here, after all of them have ended.
    """
    threads = max(1, min(torch.get_num_threads(), count // smallest))
    if threads == 1 or getattr(_here, "works", False):  # an oracle may ask for a batch: its thread must not wait
        work(np.arange(count))
        return
    # More pieces than threads even out instances of different difficulty.
    pieces = min(4 * threads, count // smallest)
    length = multiple * math.ceil(count / (multiple * pieces))
    waiting = iter([np.arange(start, min(start + length, count)) for start in range(0, count, length)])
    futures = [_pool(threads - 1).submit(_help, work, waiting) for _ in range(threads - 1)]
    try:
        _work_off(work, waiting)
    finally:
        # What has not begun finds nothing to do; on a busy machine it would only be waited for.
        errors = [error for future in futures if not future.cancel() and (error := future.exception()) is not None]
    if errors:
        raise errors[0]


@final
class Pace:
    """How long an instance of some work takes, as it was seen last, and what of a batch is worth a thread by that."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def spread(self, work: Callable[[np.ndarray], None], count: int) -> None:
        """Call ``work`` on pieces of a batch, in threads where that pays; the first of all instances tells."""

        def timed(which: np.ndarray) -> None:
            start = time.perf_counter()
            work(which)
            if len(which):
                self._seconds = (time.perf_counter() - start) / len(which)

        if self._seconds is None and count > 1:
            timed(np.arange(1))
            self._spread(lambda which: timed(which + 1), count - 1)
        else:
            self._spread(timed, count)

    def _spread(self, timed: Callable[[np.ndarray], None], count: int) -> None:
        seconds = self._seconds or HANDED_OVER
        for_each_chunk(timed, count, smallest=math.ceil(HANDED_OVER / seconds))


def _help(work: Callable[[np.ndarray], None], waiting: Iterator[np.ndarray]) -> None:
    _here.works = True
    try:
        _work_off(work, waiting)
    finally:
        _here.works = False


def _work_off(work: Callable[[np.ndarray], None], waiting: Iterator[np.ndarray]) -> None:
    for piece in waiting:  # a list's iterator hands every piece to one thread
        work(piece)
