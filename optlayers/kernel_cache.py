"""Compiled functions on disk that notice when what they are made of changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

__all__ = ["cached_njit"]


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
