"""Paths of cells in a grid: alignments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.plots.canvas import BLUE, FAINT, INK, axes_of, bare, module, names_of, shaded, weight_legend, words_below
from optlayers.plots.points import LEAST, pairs_of, parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["moves"]


def moves(
    x: Any,
    *,
    steps: Sequence[tuple[int, int]] = ((0, 1), (1, 1), (1, 0)),
    words: Any = None,
    color: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """Paths through a grid of cells, as transparent as the weight of each move is small.

    Parameters
    ----------
    x : ``(rows, columns, moves)``, between 0 and 1: entry (i, j, m) is the weight of coming to cell (i, j) by move m.
        A move is drawn with the weight of the cell that it comes from where that is less, so that one without such a
        cell is a start.
    steps : for each move how many rows and columns it goes; by default right, diagonally, and down.
    words : a pair, names of the rows and names of the columns, None for numbers.
    color : of the paths.
    ax : matplotlib Axes to draw on; by default those of a new figure.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : x of another shape, not finite, or not within 0 and 1; names that are too few or too many.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(2, 2, 3)
    >>> x[0, 0, 1] = x[1, 1, 1] = 1.0
    >>> ax = moves(x, words=(["a", "b"], ["A", "B"]))
    >>> ax.collections[0].get_segments()[0].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    weights = parts_of(x, "moves", "rows", "columns", "moves")
    rows, columns, kinds = weights.shape
    if len(steps) != kinds:
        raise ValueError(f"x has {kinds} moves, but steps= has {len(steps)}")
    of_rows, of_columns = pairs_of(words, "moves")
    left, below = names_of(of_rows, rows, "rows"), names_of(of_columns, columns, "columns")
    cells = np.clip(weights.sum(axis=2), 0.0, 1.0)
    lines, dark = [], []
    for i, j, m in np.argwhere(weights > LEAST).tolist():
        a, b = i - steps[m][0], j - steps[m][1]
        if a >= 0 and b >= 0 and cells[a, b] > LEAST:
            lines.append([(b, a), (j, i)])
            dark.append(min(weights[i, j, m], cells[a, b]))
    width, height = np.clip(0.5 * columns + 1.2, 2.4, 12.0), np.clip(0.42 * rows + 0.8, 1.8, 10.0)
    ax = axes_of(ax, float(width), float(height))
    made = module("matplotlib.collections").LineCollection(lines, colors=shaded(color, np.array(dark)), linewidths=2.4)
    ax.add_collection(made)
    down, along = np.indices((rows, columns)).reshape(2, -1)
    ax.scatter(along, down, s=8, color=FAINT, zorder=0)
    down, along = np.nonzero(cells > LEAST)
    ax.scatter(along, down, s=70, c="white", linewidths=0, zorder=3)
    ax.scatter(along, down, s=70, c=shaded(color, cells[down, along]), linewidths=0, zorder=4)
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_yticks(range(rows), left, fontsize=9, color=INK)
    words_below(ax, range(columns), below)
    bare(ax)
    weight_legend(ax, color, np.concatenate([cells.ravel(), dark]))
    return ax
