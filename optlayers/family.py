"""What a user writes for batches of mixed length: a family of polytopes of different size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayers.compiled_oracle import name_of
from optlayers.polytope import Polytope

__all__ = ["Family"]

CACHE_SIZE = 128
"""So many sizes of a family are kept compiled by default."""


@final
class Family:
    """Polytopes of one kind and different size, for batches of mixed length.

    Parameters
    ----------
    factory : ``factory(size) -> Polytope``, or ``factory(first, second, …)`` for several sizes. A module-level
        function (or a :func:`functools.partial` of one) can be pickled together with the layer.
    cache_size : how many sizes are kept compiled, for all layers and losses over the family that have the same solvers;
        the least recently used goes first. When one has to be compiled again, a warning says so once.
    round_to : sizes are rounded up to multiples of this, a number for each size or one for all, so that fewer are
        compiled. What an instance does not have is forbidden, and its answers are those of its own size. That is so
        where the smaller polytope is the larger one without the further parts: simplices, cubes, subsets, partial
        matchings, budgets. Where it is not (every word of a tree has a head), a size is refused: each is compared with
        the rounded one when it occurs for the first time, which takes a compilation; later epochs have none. Where the
        rows of both are known, it is proved by these; else answers are compared for some 60 scores, and with parameters
        for the first 64 values of these that occur, which proves nothing. Parameters must be numbers. Where several
        structures are best, the one that is taken may be another one.

    Examples
    --------
    >>> from polytopes import simplex
    >>> Family(simplex)(3).shape
    (3,)
    """

    def __init__(
        self, factory: Callable[..., Polytope], *, cache_size: int = CACHE_SIZE, round_to: int | Sequence[int] = 1
    ) -> None:
        if not callable(factory):
            raise TypeError(f"factory must be callable, but got {type(factory).__name__}")
        if isinstance(cache_size, bool) or not isinstance(cache_size, (int, np.integer)):
            raise TypeError(
                f"cache_size must be an integer, but got {cache_size!r} of type {type(cache_size).__name__}"
            )
        if cache_size < 1:
            raise ValueError(f"cache_size must be at least 1, but got {cache_size}")
        steps: list[Any] = list(round_to) if isinstance(round_to, (tuple, list)) else [round_to]
        for step in steps or [None]:
            if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 1:
                raise ValueError(f"round_to is a positive integer, or one for each size, but got {round_to!r}")
        self.factory = factory
        self.cache_size = int(cache_size)
        self.round_to = tuple(int(step) for step in steps)
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._beside: dict[tuple[int, ...], Family] = {}

    def __call__(self, *size: int) -> Polytope:
        """The declaration for one size (an int, or several)."""
        if not self.takes(len(size)):
            raise ValueError(
                f"{self} does not take {len(size)} sizes such as {size}: sizes= is (*batch,) for a factory of one "
                "size, (*batch, k) for k sizes, with the batch dimensions of the scores"
            )
        polytope = self.factory(*size)
        if not isinstance(polytope, Polytope):
            raise TypeError(
                f"the factory of a Family must return a Polytope, but {name_of(self.factory)} returned "
                f"{type(polytope).__name__} for size {size}"
            )
        return polytope

    def beside(self, parameters: Sequence[cp.Parameter]) -> Family:
        """The family of these polytopes with further parameters; see :meth:`Polytope.beside`."""
        key = tuple(p.id for p in parameters)
        if not key:
            return self
        if key not in self._beside:
            factory = partial(_beside, self.factory, tuple(parameters))
            self._beside.setdefault(key, Family(factory, cache_size=self.cache_size, round_to=self.round_to))
        return self._beside[key]

    def rounded(self, table: Tensor) -> Tensor:
        """A row of sizes per instance, rounded up; the table itself where that changes nothing at all."""
        if set(self.round_to) == {1}:
            return table
        if len(self.round_to) not in (1, table.shape[1]):
            raise ValueError(
                f"round_to has {len(self.round_to)} steps {self.round_to}, but instances have {table.shape[1]} sizes"
            )
        steps = torch.tensor(self.round_to, dtype=table.dtype, device="cpu")
        return steps * torch.div(table + steps - 1, steps, rounding_mode="floor")

    def shape_of(self, *size: int) -> tuple[int, ...]:
        """The shape of a structure of this size."""
        if size not in self._shapes:
            self._shapes[size] = self(*size).shape
        return self._shapes[size]

    def takes(self, count: int) -> bool:
        """Whether the factory can be called with so many sizes."""
        try:
            inspect.signature(self.factory).bind(*range(count))
        except TypeError:
            return False
        return True

    def __repr__(self) -> str:
        steps = self.round_to if len(self.round_to) > 1 else self.round_to[0]
        room = "" if self.cache_size == CACHE_SIZE else f", cache_size={self.cache_size}"
        return f"Family({name_of(self.factory)}{room}{'' if steps == 1 else f', round_to={steps}'})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        return self


def _beside(factory: Callable[..., Polytope], parameters: Sequence[cp.Parameter], *size: int) -> Polytope:
    """The polytope of a factory with further parameters."""
    return factory(*size).beside(parameters)
