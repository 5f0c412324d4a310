"""Paths through acyclic graphs, and through grids."""

from functools import partial

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from optlayers import CompiledOracle, Polytope
from optlayers.logspace import log_sum
from polytopes._compiled import compiled
from polytopes._sizes import at_least_one

__all__ = ["dag_path", "grid_arcs", "grid_path"]


def dag_path(nodes: int, arcs: ArrayLike) -> Polytope:
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
    count = len(tails)
    x = cp.Variable(count, nonneg=True)
    node, arc = np.concatenate([heads, tails]), np.tile(np.arange(count), 2)
    incidence = sp.csr_array((np.repeat([1.0, -1.0], count), (node, arc)), shape=(nodes, count))
    supply = np.zeros(nodes)
    supply[0], supply[-1] = -1.0, 1.0
    touched = np.isin(np.arange(nodes), node)
    return Polytope(
        x,
        [incidence[touched] @ x == supply[touched]],
        oracle=CompiledOracle(_best_path, _by_head(nodes, tails, heads)),
        log_partition=partial(_log_partition, levels=_levels(nodes, tails, heads)),
        integral=True,
        rows="exact",
    )


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
    return dag_path(rows * columns, grid_arcs(rows, columns))


def grid_arcs(rows: int, columns: int) -> np.ndarray:
    """The arcs (tail, head) of a grid, ``(arcs, 2)``, between cells numbered row by row.

    Row by row of the grid: first the arcs to the right within the row, then those down to the next row, each from left
    to right. This is the order of PyEPO.

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


def _by_head(nodes: int, tails: np.ndarray, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arcs sorted by their heads, their tails, and where the arcs into each node begin."""
    arcs = np.argsort(heads, kind="stable")
    return arcs, tails[arcs], np.searchsorted(heads[arcs], np.arange(nodes + 1))


@compiled
def _best_path(scores, arcs, tails, start):  # type: ignore[no-untyped-def]
    nodes = len(start) - 1
    best, into = np.full(nodes, -np.inf), np.full(nodes, -1)
    best[0] = 0.0
    for node in range(1, nodes):
        for k in range(start[node], start[node + 1]):
            value = best[tails[k]] + scores[arcs[k]]
            if value > best[node]:
                best[node], into[node] = value, k
    if best[nodes - 1] == -np.inf:
        return np.full(len(scores), np.nan)
    x = np.zeros(len(scores))
    node = nodes - 1
    while node > 0:
        k = into[node]
        x[arcs[k]] = 1.0
        node = tails[k]
    return x


def _levels(nodes: int, tails: np.ndarray, heads: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nodes in groups whose arcs come from earlier groups: by the number of arcs of the longest path to them.

    For every group the arcs into its nodes and the places of their tails, ``(nodes of the group, most arcs)`` each;
    short rows are filled with the arc -1. Places count nodes in the order of the groups, the first node first; the last
    group ends with the last node of the graph. Nodes that are not reached are left out.
    """
    depth = _depth(nodes, tails, heads)
    reached = depth >= 0
    place = np.full(nodes, -1)
    place[np.lexsort([np.arange(nodes), np.where(reached, depth, nodes)])] = np.arange(nodes)
    levels = []
    for level in range(1, depth[-1] + 1):
        members = np.flatnonzero(depth == level)
        entering = [np.flatnonzero((heads == m) & reached[tails]) for m in members]
        shape = (len(members), max(len(e) for e in entering))
        arcs, before = np.full(shape, -1), np.zeros(shape, dtype=np.int64)
        for row, entered in enumerate(entering):
            arcs[row, : len(entered)] = entered
            before[row, : len(entered)] = place[tails[entered]]
        levels.append((arcs, before))
    return levels


def _log_partition(scores: Tensor, *, levels: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """Sums over the paths to each node, from level to level; an arc -1 has the score -inf."""
    padded = torch.cat([scores, scores.new_full((*scores.shape[:-1], 1), -torch.inf)], dim=-1)
    entering = np.concatenate([arcs.reshape(-1) for arcs, _ in levels]) % padded.shape[-1]
    all_scores = padded.index_select(-1, torch.from_numpy(entering).to(scores.device))
    reached = sums = scores.new_zeros(*scores.shape[:-1], 1)
    for (_, before), part in zip(levels, all_scores.split([arcs.size for arcs, _ in levels], dim=-1), strict=True):  # type: ignore[no-untyped-call]
        before_sums = sums.index_select(-1, torch.from_numpy(before.reshape(-1)).to(scores.device))
        reached = log_sum((part + before_sums).unflatten(-1, before.shape), -1)
        sums = torch.cat([sums, reached], dim=-1)
    return reached[..., -1]
