"""Spread a batch over threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

__all__ = ["for_each_chunk"]

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def _forget_after_fork() -> None:
    """A forked child (a DataLoader worker) has none of its parent's threads, and the lock may have been held."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _pool(workers: int) -> ThreadPoolExecutor:
    with _lock:
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="optlayers")
        return _pools[workers]


def for_each_chunk(work: Callable[[np.ndarray], None], count: int, *, smallest: int = 1) -> None:
    """Call ``work`` on pieces of ``arange(count)`` in ``torch.get_num_threads()`` threads.

    ``smallest`` is the fewest instances worth a thread. The first exception of a worker is raised here, after
    all of them have ended.
    """
    workers = max(1, min(torch.get_num_threads(), count // smallest))
    if workers == 1:
        work(np.arange(count))
        return
    # More pieces than threads even out instances of different difficulty.
    pieces = np.array_split(np.arange(count), min(4 * workers, count // smallest))
    futures = [_pool(workers).submit(work, piece) for piece in pieces]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
