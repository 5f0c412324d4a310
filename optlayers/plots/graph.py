"""Graphs: edges between nodes on a circle, and paths over the arcs of an acyclic graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.plots.canvas import BLUE, FAINT, INK, axes_of, bare, module, names_of, shaded, weight_legend
from optlayers.plots.points import LEAST, array_of, parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["graph", "network"]


def graph(
    x: Any, *, words: Sequence[Any] | None = None, places: Any = None, color: str = BLUE, ax: Axes | None = None
) -> Axes:
    """Edges between nodes on a circle, as transparent as the weight of each is small: tours, spanning trees.

    Parameters
    ----------
    x : ``(nodes, nodes)``, between 0 and 1: entry (i, j) is the weight of the edge between nodes i and j. Where (i, j)
        and (j, i) have weights, the edge has their sum, 1 at most.
    words : names of the nodes; numbers from 0 by default.
    places : ``(nodes, 2)``, where nodes lie; by default on a circle, in their order.
    color : of the edges.
    ax : matplotlib Axes to draw on; by default those of a new figure.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : x of another shape, not finite, or not within 0 and 1; names or places that are too few or too many.

    Examples
    --------
    >>> import torch
    >>> ax = graph(torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]), words=["Oslo", "Rome", "Cairo"])
    >>> ax.collections[0].get_colors()[:, 3].tolist()
    [1.0, 0.5, 0.5]
    """
    weights = parts_of(x, "graphs", "nodes", "nodes")
    both = np.clip(np.triu(weights + weights.T, 1), 0.0, 1.0)
    nodes = len(both)
    names = names_of(words, nodes, "nodes")
    turn = np.pi / 2 - 2.0 * np.pi * np.arange(nodes) / nodes
    where = np.stack([np.cos(turn), np.sin(turn)], axis=1) if places is None else _places(places, nodes)
    side = float(np.clip(2.4 + 0.1 * nodes, 2.6, 7.0))
    ax = axes_of(ax, side, side)
    i, j = np.nonzero(both > LEAST)
    lines = np.stack([where[i], where[j]], axis=1)
    shades = shaded(color, both[i, j])
    ax.add_collection(module("matplotlib.collections").LineCollection(lines, colors=shades, linewidths=2.2))
    _nodes(ax, where, names, around=places is None)
    weight_legend(ax, color, both)
    return ax


def network(
    x: Any,
    *,
    arcs: Any,
    words: Sequence[Any] | None = None,
    places: Any = None,
    color: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """Arcs of an acyclic graph, as transparent as the weight of each is small, on top of all arcs in grey.

    Parameters
    ----------
    x : ``(arcs,)``, between 0 and 1, the weight of each arc.
    arcs : ``(arcs, 2)`` integers, the nodes that each leads from and to, from a smaller to a larger number.
    words : names of the nodes; numbers from 0 by default.
    places : ``(nodes, 2)``, where nodes lie, x to the right and y downwards; by default in layers from left to right:
        a node lies as far right as the longest path to it has arcs.
    color : of the paths.
    ax : matplotlib Axes to draw on; by default those of a new figure.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : x or arcs of another shape, not finite, or not within 0 and 1; names or places that are too few.

    Examples
    --------
    >>> import torch
    >>> ax = network(torch.tensor([0.75, 0.75, 0.25]), arcs=[(0, 1), (1, 2), (0, 2)])
    >>> ax.collections[1].get_colors()[:, 3].tolist()
    [0.75, 0.75, 0.25]
    """
    weights = parts_of(x, "networks", "arcs")
    given = array_of(arcs, "arcs")
    if given.shape != (len(weights), 2) or (given != np.round(given)).any() or (given[:, 0] >= given[:, 1]).any():
        raise ValueError(
            f"arcs are ({len(weights)}, 2) integers, from a smaller to a larger number, one for each of {len(weights)} "
            f"weights, but their shape is {given.shape}"
        )
    tails, heads = given.astype(int).T
    nodes = int(heads.max()) + 1
    if words is not None:
        nodes = max(nodes, len(words))
    where = _layers(nodes, tails, heads) if places is None else _places(places, nodes)
    nodes = len(where)
    names = names_of(words, nodes, "nodes")
    extent = np.ptp(where, axis=0)
    ax = axes_of(ax, *(float(np.clip(0.7 * side + 1.6, 2.4, 12.0)) for side in extent))
    lines = _bent(where, tails, heads, straight=places is not None)
    line_collection = module("matplotlib.collections").LineCollection
    ax.add_collection(line_collection(lines, colors=FAINT, linewidths=1.0, zorder=1))
    used = np.flatnonzero(weights > LEAST)
    shades = shaded(color, weights[used])
    ax.add_collection(line_collection([lines[k] for k in used], colors=shades, linewidths=3.0, zorder=2))
    low, high = where.min(axis=0), where.max(axis=0)
    ax.set_xlim(low[0] - 0.5, high[0] + 0.5)
    ax.set_ylim(high[1] + 0.5, low[1] - 0.5)
    size = 240.0 if max(map(len, names)) <= 3 else 40.0
    ax.scatter(where[:, 0], where[:, 1], s=size, color="white", edgecolors=INK, linewidths=0.8, zorder=3)
    for (a, b), name in zip(where.tolist(), names, strict=True):
        style: dict[str, Any] = {"va": "center"} if size > 100 else {"va": "bottom"}
        ax.text(a, b if size > 100 else b - 0.12, name, ha="center", fontsize=8, color=INK, zorder=4, **style)
    ax.set_xticks([])
    ax.set_yticks([])
    bare(ax)
    weight_legend(ax, color, weights)
    return ax


def _places(places: Any, nodes: int) -> np.ndarray:
    where = array_of(places, "places")
    if where.ndim != 2 or where.shape[1] != 2 or len(where) < nodes:
        raise ValueError(f"places must be two numbers for each of {nodes} nodes, but their shape is {where.shape}")
    return where


def _nodes(ax: Any, where: np.ndarray, names: Sequence[str], *, around: bool) -> None:
    """Nodes with their names, outwards from a circle or above."""
    ax.scatter(where[:, 0], where[:, 1], s=40, color=INK, zorder=3)
    for (a, b), name in zip(where.tolist(), names, strict=True):
        side = "center" if not around or abs(a) < 0.2 else ("left" if a > 0 else "right")
        level = "center" if around and abs(b) < 0.9 else ("bottom" if b > 0 or not around else "top")
        shift = (0.1 * a, 0.1 * b) if around else (0.0, 0.0)
        text = ax.annotate(name, (a + shift[0], b + shift[1]), ha=side, va=level, fontsize=9, color=INK)
        if not around:
            text.set_position((0, 5))
            text.set_anncoords("offset points")
    if around:
        ax.set_xlim(-1.3, 1.3)
        ax.set_ylim(-1.3, 1.3)
    else:
        ax.margins(0.1)
        ax.autoscale_view()
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    bare(ax)


def _layers(nodes: int, tails: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Places in layers, one above the other where a layer has several nodes, near those that lead to them."""
    depth, order = np.zeros(nodes, dtype=int), np.argsort(tails, kind="stable")
    for k in order:  # all arcs into a tail come before
        depth[heads[k]] = max(depth[heads[k]], depth[tails[k]] + 1)
    where = np.zeros((nodes, 2))
    where[:, 0] = 1.4 * depth
    for layer in range(1, int(depth.max()) + 1):
        mine = np.flatnonzero(depth == layer)
        near = [where[tails[heads == node], 1].mean() for node in mine]
        mine = mine[np.argsort(near, kind="stable")]
        where[mine, 1] = np.arange(len(mine)) - (len(mine) - 1) / 2
    return where


def _bent(where: np.ndarray, tails: np.ndarray, heads: np.ndarray, *, straight: bool) -> list[np.ndarray]:
    """A curve for each arc, bent where parallel ones or the nodes between would lie on the same line."""
    lines, seen = [], dict[tuple[int, int], int]()
    along = np.linspace(0.0, 1.0, 25)[:, None]
    for tail, head in zip(tails.tolist(), heads.tolist(), strict=True):
        number = seen[tail, head] = seen.get((tail, head), -1) + 1
        a, b = where[tail], where[head]
        bend = 0.0 if straight else 0.3 * max(0.0, (b[0] - a[0]) / 1.4 - 1.0)
        lift = np.array([0.0, -2.0 * (bend + 0.3 * number)])
        lines.append((1 - along) ** 2 * a + 2 * along * (1 - along) * ((a + b) / 2 + lift) + along**2 * b)
    return lines
