"""Arcs over words: dependency trees, foldings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.plots.canvas import BLUE, INK, axes_of, bare, module, names_of, shaded, weight_legend, words_below
from optlayers.plots.points import LEAST, parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["arcs"]

LEAVE, ARRIVE = 0.16, 0.04
"""So far beside the middle of a word do arcs leave it and arrive, so that those in both directions stay apart."""


def arcs(
    x: Any,
    *,
    words: Sequence[Any] | None = None,
    directed: bool = False,
    rooted: bool = False,
    color: Any = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """Arcs over words on a line, as transparent as the weight of each is small.

    Parameters
    ----------
    x : ``(nodes, nodes)``, between 0 and 1: entry (i, j) is the weight of the arc from node i to node j.
    words : names of the nodes, without the root; by default numbers, from 0, with a root from 1.
    directed : whether arcs have heads, at node j.
    rooted : whether node 0 is a root that stands above the words.
    color : of all arcs, or an array ``(nodes, nodes)`` of a colour for each.
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
    >>> from polytopes import arborescence
    >>> import optlayers as ol
    >>> scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 3.0, 0.0]])
    >>> tree = ol.OptLayer(arborescence(2), ol.Pipeline())(scores)
    >>> ax = arcs(tree, words=["they", "sleep"], directed=True, rooted=True)
    >>> len(ax.collections[0].get_segments())
    2
    """
    weights = parts_of(x, "arcs", "nodes", "nodes")
    first = 1 if rooted else 0
    nodes = len(weights)
    names = names_of(words, nodes - first, "words", first)
    head, node = np.nonzero(weights > LEAST)
    longest = max([1, *np.abs(head - node)[(head >= first) & (node >= first)]])
    ax = axes_of(ax, float(np.clip(0.75 * nodes, 3.0, 14.0)), float(np.clip(1.4 + 0.25 * longest, 1.8, 5.0)))
    top = longest / 2 + 0.55
    paths, tips = [], []
    for h, m in zip(head.tolist(), node.tolist(), strict=True):
        paths.append(_down(m, top) if h < first else _over(h, m))
        tips.append(paths[-1][-1])
    shades = _shades(color, head, node, weights[head, node])
    ax.add_collection(module("matplotlib.collections").LineCollection(paths, colors=shades, linewidths=1.8))
    if directed and tips:
        across, up = np.array(tips).T
        ax.scatter(across, up, marker="v", s=34, c=shades, linewidths=0, zorder=3, clip_on=False)
    roots = node[head < first]
    if len(roots):
        ax.hlines(top - 0.02, roots.min(), roots.max(), colors=INK, linewidths=0.8)
        ax.text(roots.mean(), top, "root", ha="center", va="bottom", fontsize=8, color=INK)
    ax.set_xlim(first - 0.6, nodes - 0.4)
    ax.set_ylim(0.0, top + 0.35)
    ax.set_yticks([])
    words_below(ax, range(first, nodes), names)
    bare(ax)
    weight_legend(ax, color if isinstance(color, str) else INK, weights)
    return ax


def _over(start: int, end: int) -> np.ndarray:
    """Half an ellipse from one node to another."""
    way = float(np.sign(end - start))
    left, right = start + LEAVE * way, end - ARRIVE * way
    turn = np.linspace(np.pi, 0.0, 40)
    middle, radius = (left + right) / 2, abs(right - left) / 2
    x = middle + way * radius * np.cos(turn)
    return np.stack([x, 0.09 + abs(end - start) / 2 * np.sin(turn)], axis=1)


def _down(node: int, top: float) -> np.ndarray:
    return np.array([[node, top - 0.02], [node, 0.09]])


def _shades(color: Any, head: np.ndarray, node: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if isinstance(color, str):
        return shaded(color, weights)
    given = np.asarray(color)
    return np.concatenate(
        [
            np.zeros((0, 4)),
            *(shaded(given[h, m], weights[k : k + 1]) for k, (h, m) in enumerate(zip(head, node, strict=True))),
        ]
    )
