"""How the oracles of the catalogue are compiled."""

from collections.abc import Callable
from typing import Any, cast

import numba

__all__ = ["compiled"]

compiled = cast(
    Callable[[Callable[..., Any]], Callable[..., Any]], numba.njit(cache=True, nogil=True, error_model="numpy")
)
"""Once per machine, free of the interpreter, so that threads share a batch."""
