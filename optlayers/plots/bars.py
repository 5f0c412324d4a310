"""Vectors as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.plots.canvas import BLUE, FAINT, INK, axes_of, bare, names_of, words_below
from optlayers.plots.points import array_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bars"]


def bars(
    x: Any,
    *,
    words: Sequence[Any] | None = None,
    levels: Sequence[float] = (0.0, 1.0),
    color: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """A bar for each entry of a vector: choices, subsets, rankings.

    Parameters
    ----------
    x : ``(parts,)``, any numbers.
    words : names of the parts; numbers from 0 by default.
    levels : numbers that have a line across: the ranks of a ranking, say.
    color : of the bars.
    ax : matplotlib Axes to draw on; by default those of a new figure.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : x of another shape, or not finite; names that are too few or too many.

    Examples
    --------
    >>> import torch
    >>> ax = bars(torch.tensor([0.75, 0.25, 0.0]), words=["red", "green", "blue"])
    >>> [float(bar.get_height()) for bar in ax.patches]
    [0.75, 0.25, 0.0]
    """
    values = array_of(x)
    if values.ndim != 1:
        raise ValueError(f"bars are drawn for a vector (parts,), but x has shape {values.shape}")
    names = names_of(words, len(values), "parts")
    ax = axes_of(ax, float(np.clip(0.5 * len(values) + 1.0, 2.6, 14.0)), 2.6)
    ax.hlines(list(levels), -0.5, len(values) - 0.5, colors=FAINT, linewidths=0.7, zorder=0)
    ax.bar(range(len(values)), values.tolist(), width=0.7, color=color, zorder=2)
    ax.set_xlim(-0.5, len(values) - 0.5)
    low, high = min([0.0, *values]), max([*levels, *values])
    ax.set_ylim(low - (0.05 * (high - low) if low < 0.0 else 0.0), high + 0.06 * (high - low))
    ax.set_yticks(list(levels)) if len(levels) <= 12 else None
    ax.tick_params(axis="y", labelsize=8, labelcolor=INK)
    words_below(ax, range(len(values)), names)
    bare(ax)
    return ax
