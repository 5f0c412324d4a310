"""Paths through acyclic graphs, and through grids."""

import numpy as np
from numpy.typing import ArrayLike

from optlayers import Polytope, plots
from polytopes._derivations import Derivations
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["dag_path", "grid_arcs", "grid_path"]


def dag_path(nodes: int, arcs: ArrayLike, *, places: ArrayLike | None = None) -> Polytope:
    r"""Paths from the first to the last node of an acyclic graph, as their arcs: shape ``(arcs,)``.

    Entry a is 1 when the path uses arc a, in the order in which ``arcs`` lists them. Nodes are numbered topologically:
    an arc leads from a smaller to a larger number. The polytope is that of unit flows,

    .. math:: \{x \ge 0 : \sum_{a \text{ into } v} x_a - \sum_{a \text{ out of } v} x_a = [v = n - 1] - [v = 0]\},

    integral because the incidence matrix of a directed graph is totally unimodular (Poincaré, 1900); without cycles its
    vertices are the paths. The best path *maximizes* the sum of its scores: for a shortest path, lengths are given
    negated. It is found in one pass over the arcs in topological order (Bellman, 1957). Where several arcs into a node
    are equally good the first one listed is taken, which decides ties from the last node back to the first.

    Parameters
    ----------
    nodes : how many nodes there are, at least 2.
    arcs : ``(arcs, 2)`` integers (tail, head) with ``0 <= tail < head < nodes``. Parallel arcs are parts of their own.
    places : ``(nodes, 2)``, where nodes are drawn, x to the right and y downwards; by default in layers.

    Raises
    ------
    ValueError : when an arc does not fit, or no path leads to the last node.

    References
    ----------
    Bellman (1957), Dynamic programming. Ahuja, Magnanti and Orlin (1993), Network flows (chapter 4).

    >>> import optlayers as ol, torch
    >>> detour = dag_path(3, [(0, 1), (1, 2), (0, 2)])
    >>> ol.OptLayer(detour, ol.Pipeline())(torch.tensor([-1.0, -1.0, -3.0]))
    tensor([1., 1., 0.])
    """
    if nodes < 2:
        raise ValueError(f"nodes must be at least 2, but got {nodes}")
    tails, heads = _checked_arcs(nodes, arcs)
    steps = np.stack([heads, tails, np.zeros_like(tails), np.arange(len(tails))], axis=1)
    draw = drawn_by(plots.network, arcs=np.stack([tails, heads], axis=1), places=places)
    return Derivations.of(len(tails), steps).polytope((len(tails),), draw=draw)


def grid_path(rows: int, columns: int) -> Polytope:
    r"""Paths right and down through a grid of cells, from the top left to the bottom right: shape ``(arcs,)``.

    A :func:`dag_path` over the arcs of :func:`grid_arcs`, ``rows * (columns - 1) + (rows - 1) * columns`` of them: 40
    for a grid of 5 by 5, the shortest path problem of predict-then-optimize (Elmachtoub and Grigas, 2022). There are
    ``binomial(rows + columns - 2, rows - 1)`` paths.

    References
    ----------
    Elmachtoub and Grigas (2022), Smart "predict, then optimize", Management Science. Tang and Khalil (2024), PyEPO: a
    PyTorch-based end-to-end predict-then-optimize library, Mathematical Programming Computation.

    >>> import optlayers as ol, torch
    >>> lengths = torch.tensor([1.0, 4.0, 1.0, 1.0])  # right, then down on the left, down on the right, right below
    >>> ol.OptLayer(grid_path(2, 2), ol.Pipeline())(-lengths)
    tensor([1., 0., 1., 0.])
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    return dag_path(rows * columns, grid_arcs(rows, columns), places=np.stack([column, row], axis=1))


def grid_arcs(rows: int, columns: int) -> np.ndarray:
    """The arcs (tail, head) of a grid, ``(arcs, 2)``, between cells numbered row by row.

    Row by row of the grid: first the arcs to the right within the row, then those down to the next row, each from left
    to right. This is the order of PyEPO.

    Parameters
    ----------
    rows, columns : how many cells, not arcs, in each direction.

    Returns
    -------
    Integers; there are ``rows * (columns - 1) + (rows - 1) * columns`` arcs.

    >>> grid_arcs(2, 2).tolist()
    [[0, 1], [0, 2], [1, 3], [2, 3]]
    """
    at_least_one(rows=rows, columns=columns)
    if rows * columns == 1:
        raise ValueError("a grid of one cell has no arcs; rows * columns must be at least 2")
    cell = np.arange(rows * columns).reshape(rows, columns)
    parts = []
    for r in range(rows):
        parts.append(np.stack([cell[r, :-1], cell[r, 1:]], axis=1))
        if r + 1 < rows:
            parts.append(np.stack([cell[r], cell[r + 1]], axis=1))
    return np.concatenate(parts)


def _checked_arcs(nodes: int, arcs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    given = np.asarray(arcs)
    if given.ndim != 2 or given.shape[1] != 2 or not len(given):
        raise ValueError(f"arcs must be pairs (tail, head), an array (arcs, 2), but their shape is {given.shape}")
    if given.dtype.kind not in "iu":
        raise ValueError(f"arcs must be integers, but their dtype is {given.dtype}")
    tails, heads = given.T.astype(np.int64)
    for wrong, why in (
        ((tails < 0) | (heads < 0) | (tails >= nodes) | (heads >= nodes), f"leaves the nodes 0 to {nodes - 1}"),
        (tails >= heads, "must lead from a smaller to a larger number (a topological numbering)"),
    ):
        if wrong.any():
            k = int(wrong.argmax())
            raise ValueError(f"arc {k}, ({tails[k]}, {heads[k]}), {why}")
    reached = _depth(nodes, tails, heads) >= 0
    if not reached[-1]:
        raise ValueError(f"no path leads from node 0 to node {nodes - 1}; nodes reached: {np.flatnonzero(reached)}")
    return tails, heads


def _depth(nodes: int, tails: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """The most arcs on a path from the first node to each, -1 where there is none."""
    depth = np.full(nodes, -1)
    depth[0] = 0
    for k in np.argsort(tails, kind="stable"):  # all arcs into a tail come before
        if depth[tails[k]] >= 0:
            depth[heads[k]] = max(depth[heads[k]], depth[tails[k]] + 1)
    return depth
