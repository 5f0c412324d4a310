"""Compiled functions: on disk, where they notice when what they are made of changes; and beside forks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["cached_njit"]

# A fork waits until no other thread compiles: its child would find the compiler half way through, and locked for ever.
os.register_at_fork(
    before=global_compiler_lock.acquire,
    after_in_parent=global_compiler_lock.release,
    after_in_child=global_compiler_lock.release,
)


def cached_njit(folder: Path, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``numba.njit(cache=True)`` for functions that call others in the modules of ``folder``.

    numba compiles a cached function again when its own file changes, but not when that of a function changes which it
    calls and has taken in: after an upgrade, machine code of both versions would meet. So the stamp by which it knows
    its files is that of the whole folder. Where numba keeps no such stamp, nothing is cached.
    """
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        dispatcher: Any = numba.njit(cache=True, **options)(function)
        index: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
        if not hasattr(index, "_source_stamp"):
            return numba.njit(**options)(function)
        index._source_stamp = stamp
        return dispatcher

    return decorate
