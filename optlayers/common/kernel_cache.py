"""Compiled functions: on disk, where they notice when what they are made of changes; and beside forks."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding.ffi import lib as llvm_library
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock

from optlayers.common.locks import at_fork
from optlayers.common.warn import warn_caller

__all__ = ["NOTICE", "cached_functions", "cached_njit", "is_on_disk"]

NOTICE = (
    "optlayers compiles what it needs for this machine, once (some seconds); "
    "python -m optlayers.warm does all of it ahead, OPTLAYERS_QUIET=1 hides this line"
)

# Nor may another thread be inside of LLVM, which it enters for a moment, also to look up what is compiled. Of functions
# that are called before a fork the last ones come first: who compiles has the lock of the compiler, and waits for this.
_llvm = llvm_library._lock
at_fork(before=_llvm.__enter__, after_in_parent=_llvm.__exit__, after_in_child=_llvm.__exit__)
# A fork waits until no other thread compiles: its child would find the compiler half way through, and locked for ever.
at_fork(
    before=global_compiler_lock.acquire,
    after_in_parent=global_compiler_lock.release,
    after_in_child=global_compiler_lock.release,
)

_functions: dict[Any, tuple[str, ...]] = {}


def cached_njit(folder: Path, **options: Any) -> Callable[..., Any]:
    """``numba.njit(cache=True)`` for functions that call others in the modules of ``folder``.

    numba compiles a cached function again when its own file changes, but not when that of a function changes which it
    calls and has taken in: after an upgrade, machine code of both versions would meet. So the stamp by which it knows
    its files is that of the whole folder. Where numba keeps no such stamp, nothing is cached.

    The decorator takes the signatures, written as numba reads them, for which :mod:`optlayers.warm` compiles a
    function. Functions that are only called by others have none.
    """
    stamp = _stamp(folder)

    def decorate(function: Callable[..., Any], signatures: tuple[str, ...]) -> Callable[..., Any]:
        try:
            dispatcher: Callable[..., Any] = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # an installation and a home that cannot be written to
            _warn_of_no_folder()
            unkept: Callable[..., Any] = numba.njit(**options)(function)
            return unkept
        index: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
        if not hasattr(index, "_source_stamp"):
            uncached: Callable[..., Any] = numba.njit(**options)(function)
            return uncached
        index._source_stamp = stamp
        index._load_index = partial(_loaded, index._load_index)
        index.save, index.load = partial(_save, index.save, stamp), partial(_load, index.load, stamp)
        _functions[dispatcher] = signatures
        return dispatcher

    def decorator(*given: Any) -> Any:
        if len(given) == 1 and callable(given[0]):
            return decorate(given[0], ())
        return lambda function: decorate(function, given)

    return decorator


@cache
def _warn_of_no_folder() -> None:
    """Say once why kernels are not kept."""
    warn_caller(
        "kernels of optlayers are compiled anew in every process, as numba finds no folder for them that it can write "
        "to: set NUMBA_CACHE_DIR to one"
    )


def _stamp(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def _loaded(load: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
    """What an index on disk lists; nothing where it names modules of another version, which are no more."""
    try:
        return load()
    except (ImportError, AttributeError):
        return {}


def _save(save: Callable[[Any, Any], None], stamp: str, key: Any, data: Any) -> None:
    """Machine code goes to disk with what it is of.

    numba numbers the files of the signatures of a function. Two processes that compile it at the same time, for one
    signature each, take the same number, and what an index calls the code of one may be that of the other.
    """
    save(key, (stamp, repr(key), data))


def _load(load: Callable[[Any], Any], stamp: str, key: Any) -> Any:
    """Machine code from disk if it is that of the ``key``, of the files as they are; else None, and it is compiled."""
    found = load(key)
    if isinstance(found, tuple) and len(found) == 3 and found[:2] == (stamp, repr(key)):
        return found[2]
    return None


def cached_functions() -> dict[Any, tuple[str, ...]]:
    """The functions whose machine code is kept on disk, of all modules that are imported, with their signatures."""
    return dict(_functions)


def is_on_disk(function: Any) -> bool:
    """Whether the disk has machine code of a cached function, as it is written now."""
    return bool(function._cache._cache_file._load_index())


class _Notice(event.Listener):  # type: ignore[misc]
    """Says once on a machine that there is something to compile that the disk does not have.

    numba tells it when it compiles, and only then: to call a kernel costs nothing more. It compiles in one thread at a
    time.
    """

    said = False

    def on_start(self, event: event.Event) -> None:
        if self.said or event.data["dispatcher"] not in _functions or os.environ.get("OPTLAYERS_QUIET", "0") != "0":
            return
        self.said = True
        if _is_first_to_say(event.data["dispatcher"]):
            stream = sys.stderr  # which a process without a terminal may lack
            if stream is not None and not stream.closed:
                print(NOTICE, file=stream, flush=True)

    def on_end(self, event: event.Event) -> None:
        """Nothing more is said."""


def _is_first_to_say(dispatcher: Any) -> bool:
    """Whether no process has said so for this version of the kernels, of numba and of the processor.

    Who can create an empty file beside numba's cache is the first; where it cannot be written, every process is.
    """
    kernels = _stamp(Path(__file__).parents[1] / "solvers" / "kernels")
    meant = repr(
        (kernels, numba.__version__, sys.implementation.cache_tag, dispatcher.targetctx.codegen().magic_tuple())
    )
    name = f"announced-{hashlib.sha256(meant.encode()).hexdigest()[:16]}"
    try:
        (Path(numba.njit(cache=True)(_folder_of_numba).stats.cache_path) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    except (OSError, RuntimeError):  # the latter where numba finds no folder that it could write to
        return True
    return True


def _folder_of_numba() -> None:
    """Is never compiled: numba says where it would keep a function of this file, whichever kernel is compiled."""


class _CollectorPause(event.Listener):  # type: ignore[misc]
    """Lets the garbage collector rest while something is compiled, which makes millions of objects and little garbage.

    It would look through all of them again and again: a seventh of the time. What is compiled on the way, one inside of
    the other, is told of in this order, and in one thread at a time.
    """

    def __init__(self) -> None:
        self._was_on: list[bool] = []

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] in _functions:
            self._was_on.append(gc.isenabled())
            gc.disable()

    def on_end(self, event: event.Event) -> None:
        """numba says so after an error, too, and where a listener before this one has raised."""
        if event.data["dispatcher"] in _functions and self._was_on and self._was_on.pop():
            gc.enable()


event.register("numba:compile", _Notice())
event.register("numba:compile", _CollectorPause())
