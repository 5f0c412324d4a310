"""Links between two lists: matchings, alignments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.plots.canvas import BLUE, INK, axes_of, bare, module, names_of, shaded, weight_legend
from optlayers.plots.points import LEAST, pairs_of, parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["links"]


def links(x: Any, *, words: Any = None, color: str = BLUE, ax: Axes | None = None) -> Axes:
    """Links between rows on the left and columns on the right, as transparent as the weight of each is small.

    Parameters
    ----------
    x : ``(rows, columns)``, between 0 and 1: entry (i, j) is the weight of the link between row i and column j.
    words : a pair, names of the rows and names of the columns, None for numbers.
    color : of the links.
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
    >>> ax = links(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.75]]), words=(["ich", "weiß"], ["I", "do", "know"]))
    >>> ax.collections[0].get_colors()[:, 3].tolist()  # how opaque each link is
    [1.0, 0.25, 0.75]
    """
    weights = parts_of(x, "links", "rows", "columns")
    rows, columns = weights.shape
    of_rows, of_columns = pairs_of(words, "links")
    left, right = names_of(of_rows, rows, "rows"), names_of(of_columns, columns, "columns")
    taller = max(rows, columns)
    ax = axes_of(ax, 3.6, float(np.clip(0.6 + 0.34 * taller, 1.6, 9.0)))
    at_left, at_right = _spread(rows, taller), _spread(columns, taller)
    i, j = np.nonzero(weights > LEAST)
    lines = np.stack([np.stack([0.0 * i, at_left[i]], axis=1), np.stack([1.0 + 0.0 * j, at_right[j]], axis=1)], axis=1)
    made = module("matplotlib.collections").LineCollection(lines, colors=shaded(color, weights[i, j]), linewidths=2.2)
    ax.add_collection(made)
    ax.scatter(np.r_[np.zeros(rows), np.ones(columns)], np.r_[at_left, at_right], s=22, color=INK, zorder=3)
    for x_of, places, names, side in ((-0.05, at_left, left, "right"), (1.05, at_right, right, "left")):
        for place, name in zip(places, names, strict=True):
            ax.text(x_of, place, name, ha=side, va="center", fontsize=9, color=INK)
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(taller - 0.5, -0.5)
    ax.set_xticks([])
    ax.set_yticks([])
    bare(ax)
    weight_legend(ax, color, weights, beside=1.25)
    return ax


def _spread(count: int, taller: int) -> np.ndarray:
    """Places of a list next to one of ``taller``: evenly, the ends at the same height; one alone in the middle."""
    return np.linspace(0.0, taller - 1.0, count) if count > 1 else np.array([(taller - 1.0) / 2])
