"""Functions that are called by one thread at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final
from weakref import WeakValueDictionary

from optlayers.common.locks import at_fork
from optlayers.compiled_oracle import CompiledOracle
from optlayers.solvers.pool import within_this_thread

__all__ = ["Turns", "turns_of"]

_lock = threading.Lock()
_known: WeakValueDictionary[int, Turns] = WeakValueDictionary()


@final
class Turns:
    """A lock of a function, which the thread that holds it may take again."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner  # alive as long as it is known by its number
        self.lock = threading.RLock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn of this thread."""
        with self.lock, within_this_thread():
            yield


def turns_of(function: Callable[..., Any]) -> Turns:
    """The turns of a function, which it shares with other methods of its object, and with parts of itself."""
    owner = _owner(function)
    with _lock:
        turns = _known.get(id(owner))
        if turns is None:
            turns = _known[id(owner)] = Turns(owner)
        return turns


def _owner(function: Any) -> Any:
    """What must not be used twice at a time."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, CompiledOracle):
            function = function.function
        else:
            return getattr(function, "__self__", function)


def _forget_after_fork() -> None:
    """A forked child has none of its parent's threads, and locks may have been held by these."""
    global _lock
    _lock = threading.Lock()
    for turns in list(_known.values()):
        turns.lock = threading.RLock()


at_fork(after_in_child=_forget_after_fork)
