"""What is drawn, as NumPy arrays: polytopes, points, weights of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optlayers.compilation.compiled import CompiledPolytope
from optlayers.compilation.compiled_once import compiled_once
from optlayers.family import Family
from optlayers.polytope import Polytope
from optlayers.solution import Solution

__all__ = ["LEAST", "SURE", "array_of", "compiled_of", "directions_of", "parts_of", "pairs_of", "point_of"]

LEAST = 0.01
"""Parts of less weight are not drawn: nobody would see them."""
SURE = 1.0 - 1e-3
"""A part of more weight is whole."""
BEYOND = 1e-3
"""So far beyond 0 and 1 are weights that single precision made."""


def compiled_of(polytope: Any) -> CompiledPolytope:
    """A polytope made ready."""
    if isinstance(polytope, CompiledPolytope):
        return polytope
    if isinstance(polytope, Family):
        raise TypeError("a Family has no picture of its own: give the polytope of one size, family(size)")
    if not isinstance(polytope, Polytope):
        raise TypeError(f"what is drawn is a Polytope, but got {type(polytope).__name__}")
    return compiled_once(polytope, None, None)


def array_of(x: Any, name: str = "x") -> np.ndarray:
    """The numbers of a tensor, an array or a list, all finite, as float64."""
    if isinstance(x, Tensor):
        x = x.detach().to("cpu", torch.float64).numpy()
    try:
        values = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a tensor or an array of numbers, but got {type(x).__name__}") from None
    if not np.isfinite(values).all():
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(values))[0])
        at = f" at {where[0] if len(where) == 1 else where}" if where else ""
        raise ValueError(f"{name} has the entry {values[where]}{at}, and cannot be drawn")
    return values


def point_of(x: Any, shape: tuple[int, ...], name: str = "x") -> np.ndarray:
    """One point of a polytope of this shape: a tensor, an array, or the solution of one instance."""
    if isinstance(x, Solution):
        if x.status.numel() != 1:
            raise ValueError(f"{name} has {x.status.numel()} instances, but one is drawn at a time: give value[k]")
        x = x.check().value.reshape(shape)
    values = array_of(x, name)
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape} but the polytope has shape {shape}")
    return values


def parts_of(x: Any, kind: str, *dimensions: str) -> np.ndarray:
    """The weights of parts that a picture shows by their transparency: an array with these dimensions, within 0 and 1.

    Dimensions of the same name have the same size.
    """
    values = array_of(x)
    sizes = dict(zip(dimensions, values.shape, strict=False))
    if values.ndim != len(dimensions) or tuple(sizes[name] for name in dimensions) != values.shape:
        wanted = f"({', '.join(dimensions)}{',' if len(dimensions) == 1 else ''})"
        raise ValueError(f"{kind} are drawn for an array {wanted}, but x has shape {values.shape}")
    wrong = (values < -BEYOND) | (values > 1.0 + BEYOND)
    if wrong.any():
        where = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise ValueError(
            f"{kind} are drawn as dark as their weight, between 0 and 1, but x has {values[where]:g} at {where}; "
            "heat and bars draw any numbers"
        )
    clipped: np.ndarray = np.clip(values, 0.0, 1.0)
    return clipped


def pairs_of(words: Any, what: str) -> tuple[Any, Any]:
    """Names of rows and of columns, None for numbers."""
    if words is None:
        return None, None
    if isinstance(words, str) or not isinstance(words, Sequence) or len(words) != 2:
        raise TypeError(f"words of {what} must be a pair: names of the rows, and names of the columns")
    return words[0], words[1]


def directions_of(directions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Two or three directions in the space of the parts, flat: ``(2 or 3, size)``."""
    parts = (
        directions if isinstance(directions, (Tensor, np.ndarray)) else [array_of(d, "directions") for d in directions]
    )
    if not isinstance(parts, (Tensor, np.ndarray)):
        for one in parts:
            if one.shape != shape:
                raise ValueError(f"a direction has shape {one.shape} but the polytope has shape {shape}")
        parts = np.stack(parts) if parts else np.zeros((0, *shape))
    values = array_of(parts, "directions")
    if values.shape[1:] != shape or len(values) not in (2, 3):
        raise ValueError(
            f"directions are 2 or 3 arrays of the shape of the polytope, (2, {', '.join(map(str, shape))}), but their "
            f"shape is {values.shape}"
        )
    flat = values.reshape(len(values), -1)
    sizes = np.linalg.svd(flat, compute_uv=False)
    if sizes[-1] <= 1e-9 * max(sizes[0], 1e-300):
        raise ValueError("directions depend on each other: choose such that none is 0 or a combination of others")
    return flat
