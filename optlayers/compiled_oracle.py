"""A compiled maximizer together with the arrays that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np

__all__ = ["CompiledOracle", "name_of"]


def name_of(function: Callable[..., Any]) -> str:
    """How messages call a function of a user; one of an instance, or with some arguments given, by its own name."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


@final
@dataclass(frozen=True, eq=False)
class CompiledOracle:
    """An oracle for a structure that is known by arrays, such as the arcs of a graph.

    numba compiles a closure anew for every value it closes over. Here the arrays are arguments, the last ones, so one
    function is compiled once for all of them.

    Parameters
    ----------
    function : compiled by numba, ``function(scores, *scored, *parameters, *constants)``; what it returns is said at
        :class:`optlayers.Polytope`.
    constants : arrays of numbers, kept as C-contiguous float64 or int64.

    Raises
    ------
    TypeError : when a constant holds no numbers.

    Examples
    --------
    >>> import numba
    >>> @numba.njit
    ... def best(scores, allowed):
    ...     x = np.zeros(len(scores))
    ...     x[allowed[np.argmax(scores[allowed])]] = 1.0
    ...     return x
    >>> CompiledOracle(best, [np.array([0, 2])])(np.array([1.0, 5.0, 3.0]))
    array([0., 0., 1.])
    """

    function: Callable[..., Any]
    constants: tuple[np.ndarray, ...]

    def __init__(self, function: Callable[..., Any], constants: Iterable[Any]) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "constants", tuple(_array(k, value) for k, value in enumerate(constants)))

    def __call__(self, *arrays: np.ndarray) -> Any:
        """The function at these arrays and the constants."""
        return self.function(*arrays, *self.constants)

    @property
    def __name__(self) -> str:
        return name_of(self.function)


def _array(position: int, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"constant {position} of a CompiledOracle must hold numbers, but its dtype is {array.dtype}")
    # A copy of our own: nobody else can change it, and it is writable, as one signature for all of them wants.
    return np.array(array, dtype=np.float64 if array.dtype.kind == "f" else np.int64, order="C")
