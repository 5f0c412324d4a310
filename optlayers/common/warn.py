"""Warnings that point to the caller's line."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn_caller"]

INSIDE = {"optlayers", "torch"}
"""Packages whose frames lie between the caller and the warning."""


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn about the line that called this library, through whatever of PyTorch lies between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
