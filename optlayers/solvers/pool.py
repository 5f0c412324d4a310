"""Spread a batch over threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch

from optlayers.locks import ForkSafeLock

__all__ = ["for_each_chunk", "within_this_thread"]

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


os.register_at_fork(after_in_child=_go_on_alone)


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
    ends = np.unique(np.round(np.linspace(0, count, pieces + 1) / multiple).astype(int) * multiple)
    ends[-1] = count
    waiting = iter([np.arange(a, b) for a, b in pairwise(ends) if a < b])
    futures = [_pool(threads - 1).submit(_help, work, waiting) for _ in range(threads - 1)]
    try:
        _work_off(work, waiting)
    finally:
        # What has not begun finds nothing to do; on a busy machine it would only be waited for.
        errors = [error for future in futures if not future.cancel() and (error := future.exception()) is not None]
    if errors:
        raise errors[0]


def _help(work: Callable[[np.ndarray], None], waiting: Iterator[np.ndarray]) -> None:
    _here.works = True
    try:
        _work_off(work, waiting)
    finally:
        _here.works = False


def _work_off(work: Callable[[np.ndarray], None], waiting: Iterator[np.ndarray]) -> None:
    for piece in waiting:  # a list's iterator hands every piece to one thread
        work(piece)
