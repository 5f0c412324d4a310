"""How structures are drawn: by functions of optlayers.plots, which import matplotlib when they are called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from optlayers import plots

__all__ = ["aligned", "drawn_by", "in_time"]


def drawn_by(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """For ``Polytope(..., draw=...)``: a picture with some settings, which can be pickled."""
    return partial(_draw, function, settings)


def _draw(function: Callable[..., Any], settings: dict[str, Any], ax: Any, x: np.ndarray, **options: Any) -> None:
    function(x, ax=ax, **(settings | options))


def aligned(ax: Any, x: np.ndarray, *, view: str = "links", **options: Any) -> None:
    """An alignment as links between rows and columns that share a cell, or as a path through the grid of cells."""
    if view not in ("links", "grid"):
        raise ValueError(f'view is "links" or "grid", but got {view!r}')
    if view == "grid":
        plots.moves(x, ax=ax, **options)
    else:
        plots.links(x.sum(axis=2), ax=ax, **options)


def in_time(ax: Any, x: np.ndarray, **options: Any) -> None:
    """Positions in time, with the moves between them."""
    steps, positions, moves = x.shape
    edges = np.zeros((steps, positions, positions))
    edges[0, 0] = x[0].sum(axis=1)
    for m in range(min(moves, positions)):
        here = np.arange(m, positions)
        edges[1:, here - m, here] = x[1:, here, m]
    plots.lanes(edges, ax=ax, **options)
