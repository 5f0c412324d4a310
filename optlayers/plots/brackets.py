"""Constituency trees over words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.plots.canvas import BLUE, axes_of, bare, module, names_of, shaded, weight_legend, words_below
from optlayers.plots.points import LEAST, SURE, parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["brackets"]

Span = tuple[int, int]


def brackets(x: Any, *, words: Sequence[Any] | None = None, color: str = BLUE, ax: Axes | None = None) -> Axes:
    """Spans of words: a tree where they are one, else a bar for each, as transparent as its weight is small.

    Parameters
    ----------
    x : ``(words, words)``, between 0 and 1: entry (i, j) is the weight of the span from word i to word j. Those of
        single words (i = j) are not drawn.
    words : the words; numbers from 0 by default.
    color : of lines and bars.
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
    >>> tree = torch.zeros(3, 3)
    >>> tree[0, 2] = tree[1, 2] = 1.0
    >>> ax = brackets(tree, words=["see", "the", "sea"])
    >>> len(ax.collections[0].get_segments())  # from each of two spans to its two parts
    4
    """
    weights = parts_of(x, "brackets", "words", "words")
    count = len(weights)
    names = names_of(words, count, "words")
    spans = [(i, j) for i, j in np.argwhere(np.triu(weights, 1) > LEAST).tolist()]
    spans.sort(key=lambda span: (span[1] - span[0], span))
    shades = shaded(color, np.array([weights[span] for span in spans]))
    whole = all(weights[span] > SURE for span in spans)
    nested = not any(a < c <= b < d for a, b in spans for c, d in spans)
    rows = _rows(spans)
    height = max([1, *rows.values()])
    ax = axes_of(ax, float(np.clip(0.8 * count, 3.0, 14.0)), float(np.clip(1.2 + 0.35 * height, 1.8, 6.0)))
    collections = module("matplotlib.collections")
    if whole and nested:
        lines = _tree(spans, count)
        ax.add_collection(collections.LineCollection(lines, colors=color, linewidths=1.8, capstyle="round"))
        ax.set_ylim(0.0, max([1.0, *(line[0][1] for line in lines)]) + 0.3)
    else:
        boxes = [_box(span, rows[span]) for span in spans]
        ax.add_collection(collections.PolyCollection(boxes, facecolors=shades, edgecolors="none"))
        ax.set_ylim(0.3, height + 0.7)
    ax.set_xlim(-0.6, count - 0.4)
    ax.set_yticks([])
    words_below(ax, range(count), names)
    bare(ax)
    weight_legend(ax, color, weights)
    return ax


def _rows(spans: Sequence[Span]) -> dict[Span, int]:
    """A row for each span, short ones below: the lowest in which it meets no other."""
    rows: dict[Span, int] = {}
    for i, j in spans:
        within = [row for (a, b), row in rows.items() if a <= j and i <= b]
        rows[i, j] = max(within, default=0) + 1
    return rows


def _box(span: Span, row: int) -> list[tuple[float, float]]:
    left, right, low, high = span[0] - 0.38, span[1] + 0.38, row - 0.32, row + 0.32
    return [(left, low), (right, low), (right, high), (left, high)]


def _tree(spans: Sequence[Span], count: int) -> list[np.ndarray]:
    """Lines from each span to the parts that it is made of; short spans come first."""
    place: dict[Span, tuple[float, float]] = {(k, k): (float(k), 0.0) for k in range(count)}
    open_: list[Span] = list(place)
    lines = []
    for span in spans:
        mine = [part for part in open_ if span[0] <= part[0] and part[1] <= span[1]]
        x = (place[mine[0]][0] + place[mine[-1]][0]) / 2
        y = 1.0 + max(place[part][1] for part in mine)
        place[span] = (x, y)
        lines += [np.array([(x, y), place[part]]) for part in mine]
        open_ = sorted([*(part for part in open_ if part not in mine), span])
    return lines
