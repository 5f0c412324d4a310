"""Lanes of states over tokens: tag sequences, segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.plots.canvas import (
    BLUE,
    FAINT,
    INK,
    axes_of,
    bare,
    module,
    names_of,
    shaded,
    weight_legend,
    words_below,
)
from optlayers.plots.points import LEAST, SURE, array_of, parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["lanes", "segments"]

FAINT_DOT = 0.2
"""Dots of less weight leave the line behind them in one piece."""


def lanes(
    x: Any,
    *,
    words: Sequence[Any] | None = None,
    states: Sequence[Any] | None = None,
    color: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """A lane for each state, in which a dot at each step is as transparent as its weight is small.

    Parameters
    ----------
    x : between 0 and 1; ``(steps, states)``, the weight of each state at each step; or ``(steps, states, states)``,
        where entry (t, i, j) is the weight of going from state i at step t - 1 to state j at step t (at step 0 from a
        start, whichever i). These are drawn as lines. Of states alone lines are drawn between those of weight 1.
    words : names of the steps; numbers from 0 by default.
    states : names of the states; numbers from 0 by default.
    color : of dots and lines.
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
    >>> tags = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    >>> ax = lanes(tags, words=["we", "see", "sea"], states=["noun", "verb"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['noun', 'verb']
    """
    edges = None
    if array_of(x).ndim == 3:
        edges = parts_of(x, "lanes of edges", "steps", "states", "states")
        weights = np.clip(edges.sum(axis=1), 0.0, 1.0)
    else:
        weights = parts_of(x, "lanes", "steps", "states")
    steps, count = weights.shape
    ax = _lanes(ax, steps, words, names_of(states, count, "states"))
    if edges is None:
        sure = weights > SURE
        edges = np.zeros((steps, count, count))
        edges[1:] = sure[:-1, :, None] & sure[1:, None, :]
    t, i, j = np.nonzero(edges[1:] > LEAST)
    lines = np.stack([np.stack([t, i], axis=1), np.stack([t + 1, j], axis=1)], axis=1)
    shades = shaded(color, edges[1:][t, i, j])
    ax.add_collection(module("matplotlib.collections").LineCollection(lines, colors=shades, linewidths=2.0))
    t, j = np.nonzero(weights > LEAST)
    dark = weights[t, j] > FAINT_DOT  # through these no lines shine
    ax.scatter(t[dark], j[dark], s=90, c="white", linewidths=0, zorder=3)
    ax.scatter(t, j, s=90, c=shaded(color, weights[t, j]), linewidths=0, zorder=4)
    weight_legend(ax, color, np.concatenate([weights.ravel(), edges[1:].ravel()]))
    return ax


def segments(
    x: Any,
    *,
    words: Sequence[Any] | None = None,
    states: Sequence[Any] | None = None,
    color: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """A lane for each label, in it bars over the tokens of each segment, as transparent as its weight is small.

    Parameters
    ----------
    x : ``(tokens, longest, labels)``, between 0 and 1: entry (i, l, y) is the weight of a segment of l + 1 tokens with
        the label y that starts at token i.
    words : the tokens; numbers from 0 by default.
    states : names of the labels; numbers from 0 by default.
    color : of the bars.
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
    >>> x = torch.zeros(3, 2, 2)
    >>> x[0, 1, 0] = x[2, 0, 1] = 1.0
    >>> ax = segments(x, words=["New", "York", "sleeps"], states=["name", "other"])
    >>> len(ax.collections[1].get_paths())
    2
    """
    weights = parts_of(x, "segments", "tokens", "longest", "labels")
    tokens, _, count = weights.shape
    ax = _lanes(ax, tokens, words, names_of(states, count, "labels"))
    boxes, shades = [], []
    for label in range(count):
        mine = np.argwhere(weights[:, :, label] > LEAST).tolist()
        rows = _packed([(i, i + length) for i, length in mine])
        most = max(rows, default=0) + 1
        for (i, length), row in zip(mine, rows, strict=True):
            low, high = label - 0.4 + 0.8 * row / most, label - 0.4 + 0.8 * (row + 0.88) / most
            left, right = i - 0.42, i + length + 0.42
            boxes.append([(left, low), (right, low), (right, high), (left, high)])
            shades.append(weights[i, length, label])
    collections = module("matplotlib.collections")
    rgba = shaded(color, np.array(shades))
    ax.add_collection(collections.PolyCollection(boxes, facecolors=rgba, edgecolors="none", zorder=3))
    weight_legend(ax, color, weights)
    return ax


def _packed(spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each span a row in which it meets no other."""
    ends: list[list[tuple[int, int]]] = []
    rows = []
    for a, b in spans:
        row = next((k for k, mine in enumerate(ends) if all(d < a or b < c for c, d in mine)), len(ends))
        if row == len(ends):
            ends.append([])
        ends[row].append((a, b))
        rows.append(row)
    return rows


def _lanes(ax: Axes | None, steps: int, words: Sequence[Any] | None, states: Sequence[str]) -> Axes:
    """Lines of the states with their names, and tokens below."""
    names = names_of(words, steps, "steps")
    count = len(states)
    width, height = np.clip(0.7 * steps + 1.2, 3.0, 14.0), np.clip(0.9 + 0.42 * count, 1.5, 8.0)
    ax = axes_of(ax, float(width), float(height))
    ax.hlines(range(count), -0.4, steps - 0.6, colors=FAINT, linewidths=0.6, zorder=0)
    ax.set_xlim(-0.5, steps - 0.5)
    ax.set_ylim(count - 0.5, -0.5)
    ax.set_yticks(range(count), list(states), fontsize=9, color=INK)
    words_below(ax, range(steps), names)
    bare(ax)
    return ax
