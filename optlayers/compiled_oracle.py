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
    takes_flat : whether the function takes two vectors in place of arrays: all that is scored, the structure first, and
        all parameters where there are any; and returns all that is scored as one.
    name, manner : how messages and ``explain`` call it, and what it is; by default the name of the function.

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
    takes_flat: bool
    name: str
    manner: str

    def __init__(
        self,
        function: Callable[..., Any],
        constants: Iterable[Any],
        *,
        takes_flat: bool = False,
        name: str = "",
        manner: str = "the declaration's own oracle",
    ) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "takes_flat", takes_flat)
        object.__setattr__(self, "name", name or name_of(function))
        object.__setattr__(self, "manner", manner)
        object.__setattr__(self, "constants", tuple(_array(k, value) for k, value in enumerate(constants)))

    def __call__(self, *arrays: np.ndarray) -> Any:
        """The function at these arrays and the constants."""
        return self.function(*arrays, *self.constants)

    @property
    def __name__(self) -> str:
        return self.name


def _array(position: int, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"constant {position} of a CompiledOracle must hold numbers, but its dtype is {array.dtype}")
    # A copy of our own: nobody else can change it, and it is writable, as one signature for all of them wants.
    return np.array(array, dtype=np.float64 if array.dtype.kind == "f" else np.int64, order="C")
