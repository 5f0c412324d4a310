"""What is made once and used again, by any number of threads, in forked children too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, final, overload
from weakref import WeakKeyDictionary

from optlayers.common.locks import ForkSafeLock
from optlayers.common.modes import outside_inference_mode

__all__ = ["Cache", "WeakCache", "cached_property"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# One for all caches: it is held while a value is stored, and never while one is made. To look a key up takes no lock,
# as a dictionary is whole at any time.
_lock = ForkSafeLock()
_clock = itertools.count()


@dataclass(slots=True)
class _Kept(Generic[V]):
    value: V
    used: int
    """When it was asked for last."""


@final
class Cache(Generic[K, V]):
    """Values by key, made when they are first asked for.

    Of more than ``size`` values the least recently used one goes; None keeps all. Two threads that miss the same key at
    the same time both make its value, and get the one that is stored first. A copy or a pickle starts empty.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._kept: dict[K, _Kept[V]] = {}

    def __reduce__(self) -> tuple[type[Cache[K, V]], tuple[int | None]]:
        return Cache, (self.size,)

    def __len__(self) -> int:
        return len(self._kept)

    def found(self, key: K) -> V | None:
        """The value of a key where it is kept."""
        entry = self._kept.get(key)
        return None if entry is None else entry.value

    def get(self, key: K, make: Callable[[K], V]) -> V:
        """The value of a key, made of it where it is missing."""
        entry = self._kept.get(key)
        if entry is None:
            with outside_inference_mode():
                made = make(key)
            return self._stored(key, made)
        entry.used = next(_clock)
        return entry.value

    def _stored(self, key: K, made: V) -> V:
        with _lock:
            value = self._kept.setdefault(key, _Kept(made, next(_clock))).value
            while self.size is not None and len(self._kept) > self.size:
                del self._kept[min(self._kept, key=lambda k: self._kept[k].used)]
            return value


@final
class WeakCache(Generic[K, V]):
    """Values by an object, kept as long as the object lives; see :class:`Cache`."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Any, V] = WeakKeyDictionary()

    def get(self, key: K, make: Callable[[K], V]) -> V:
        """The value of an object, made of it where it is missing."""
        value = self._kept.get(key)
        if value is None:
            with outside_inference_mode():
                made = make(key)
            with _lock:
                value = self._kept.setdefault(key, made)
        return value


@final
class cached_property(Generic[K, V]):
    """An attribute that is worked out when it is first asked for, as by ``functools.cached_property``.

    That one holds a lock meanwhile (in Python 3.11), one for all instances, which a forked child may find held for
    ever. Here two threads may both work it out, to the same value.
    """

    def __init__(self, function: Callable[[K], V]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: K, owner: type) -> V: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return instance.__dict__.setdefault(self.name, self.function(instance))
