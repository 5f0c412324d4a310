"""What the hyperparameters of rules must be."""

from __future__ import annotations

import math
from numbers import Real

__all__ = ["at_least_one", "positive"]


def positive(**values: float) -> None:
    """Refuse what is no positive, finite number, by name."""
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, but got {value!r}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, but got {value}")


def at_least_one(**values: int) -> None:
    """Refuse what is no whole number from 1 on, by name."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, but got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but got {value}")
