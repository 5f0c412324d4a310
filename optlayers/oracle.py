"""Oracles that need more than the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np

__all__ = ["CompiledOracle"]


@final
class CompiledOracle:
    """An oracle with constants, such as the arcs of a graph: ``function(scores, *scored, *parameters, *constants)``.

    A closure over a graph would be compiled by numba for every graph; the constants are handed over instead, so that
    one compiled function serves them all.

    Parameters
    ----------
    function : compiled by :func:`numba.njit`, or plain Python.
    constants : arrays, kept as they are but for their memory layout (C order); numbers become 0-d arrays.
    """

    def __init__(self, function: Callable[..., Any], *constants: Any) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable, but got {type(function).__name__}")
        self.function = function
        self.constants = tuple(np.require(c, requirements="C") for c in constants)
        self.__name__ = getattr(function, "__name__", repr(function))

    def __call__(self, *arrays: Any) -> Any:
        """The oracle's answer to one instance."""
        return self.function(*arrays, *self.constants)

    def __repr__(self) -> str:
        return f"CompiledOracle({self.__name__})"
