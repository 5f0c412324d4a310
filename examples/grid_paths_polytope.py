"""Paths through a grid by its cells, to all eight neighbours: declared in cvxpy, with an oracle in compiled code."""

from __future__ import annotations

import cvxpy as cp
import numba
import numpy as np
import scipy.sparse as sp

import optlayers as ol

__all__ = ["cell_paths", "neighbours_of", "on_least_cost"]

AROUND = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]


def cell_paths(rows: int, columns: int) -> ol.Polytope:
    r"""Paths from the top left to the bottom right cell, over all eight neighbours: shape ``(rows, columns)``.

    Entry v is 1 when the path visits cell v. What is declared are flows: auxiliary variables for the arcs (v, w)
    between neighbours say where the path goes on from v, and a cell is visited as often as it is entered and as it is
    left, at most once,

    .. math:: x_v = [v = \text{start}] + \sum_u f_{uv} = [v = \text{goal}] + \sum_w f_{vw} \le 1, \qquad f \ge 0.

    Integral, because leaving and entering cells is an assignment, whose matrix is totally unimodular. The vertices are
    paths, some with closed circles beside them: what keeps circles out has no small description (with it, longest paths
    would be easy). A best vertex has circles only where cells have a score above 0. Cells with a cost have a score
    below 0, so that the best vertices of costs are the shortest paths.

    Raises
    ------
    ValueError : for a grid of less than two cells.

    >>> import torch
    >>> costs = torch.tensor([[1.0, 1.0, 9.0], [9.0, 9.0, 1.0], [9.0, 9.0, 1.0]])
    >>> ol.OptLayer(cell_paths(3, 3), ol.Pipeline())(-costs)
    tensor([[1., 1., 0.],
            [0., 0., 1.],
            [0., 0., 1.]])
    """
    if rows < 1 or columns < 1 or rows * columns < 2:
        raise ValueError(f"a grid has at least two cells, but got {rows} by {columns}")
    cells = rows * columns
    neighbours = neighbours_of(rows, columns)
    tails, places = np.nonzero(neighbours >= 0)
    heads = neighbours[tails, places]
    kept = (heads != 0) & (tails != cells - 1)  # nothing goes back to the start, or on from the goal
    tails, heads = tails[kept], heads[kept]
    x, flow = cp.Variable((rows, columns)), cp.Variable(len(tails), nonneg=True)
    ones, arcs = np.ones(len(tails)), np.arange(len(tails))
    leaving = sp.csr_matrix((ones, (tails, arcs)), shape=(cells, len(tails)))
    entering = sp.csr_matrix((ones, (heads, arcs)), shape=(cells, len(tails)))
    start, goal = np.eye(cells)[[0, -1]]
    visited = cp.vec(x, order="C")
    constraints = [visited == start + entering @ flow, visited == goal + leaving @ flow, x <= 1]
    oracle = ol.CompiledOracle(on_least_cost, [neighbours], manner="successive shortest augmenting paths")
    return ol.Polytope(x, constraints, oracle=oracle, integral=True, rows="exact")


def neighbours_of(rows: int, columns: int) -> np.ndarray:
    """The neighbours of every cell, ``(cells, 8)``, numbered row by row; -1 beyond the border."""
    row, column = np.divmod(np.arange(rows * columns)[:, None], columns)
    down, right = np.array(AROUND).T
    there = (row + down >= 0) & (row + down < rows) & (column + right >= 0) & (column + right < columns)
    return np.where(there, (row + down) * columns + column + right, -1)


@numba.njit(cache=True, nogil=True)
def on_least_cost(scores, neighbours):  # type: ignore[no-untyped-def]
    """The cells of a best path, 1 where they are visited, with what circles beside it gain; NaN where there is no path.

    An assignment of a next cell to every cell, where a cell that is its own next one is not visited. Cells that cost
    something begin so. Those that gain something, and the start at last, are assigned along shortest augmenting paths
    (Edmonds and Karp, 1972; Tomizawa, 1971), by Dijkstra's algorithm on costs reduced by prices. Where no cell gains
    anything, that is Dijkstra's algorithm for the shortest path, once.
    """
    costs = -scores.ravel()
    cells = len(costs)
    goal = cells - 1
    x = np.full(scores.shape, np.nan)
    if costs[0] == np.inf or costs[goal] == np.inf:
        return x
    ahead, holder = np.arange(cells), np.arange(cells)  # the next cell, and whose next cell this is; -1 for none
    ahead[0] = holder[goal] = -1
    leaving, entering = np.zeros(cells), np.zeros(cells)  # prices
    waiting = np.empty(cells, dtype=np.int64)
    count = 0
    for v in range(1, goal):
        if costs[v] < 0.0:
            ahead[v] = holder[v] = -1
            leaving[v] = costs[v]
            waiting[count] = v
            count += 1
    leaving[0], waiting[count] = costs[0], 0
    for k in range(count + 1):
        if not _augment(costs, neighbours, waiting[k], ahead, holder, leaving, entering):
            return x
    x[:] = 0.0
    flat = x.ravel()
    flat[0] = 1.0
    for w in range(1, cells):
        if holder[w] != w:
            flat[w] = 1.0
    return x


@numba.njit(cache=True, nogil=True)
def _augment(costs, neighbours, first, ahead, holder, leaving, entering):  # type: ignore[no-untyped-def]
    """Give a cell a next one, at the least cost for all that have one; whether there is any."""
    cells = len(costs)
    shortest, before, settled = np.full(cells, np.inf), np.full(cells, -1), np.zeros(cells, dtype=np.bool_)
    v, base, last = first, 0.0, -1
    while True:
        if v != 0 and not settled[v] and base - leaving[v] - entering[v] < shortest[v]:
            shortest[v], before[v] = base - leaving[v] - entering[v], v
        if costs[v] < np.inf:
            for w in neighbours[v]:
                if w > 0 and not settled[w]:
                    reached = base + (costs[v] - leaving[v]) - entering[w]
                    if reached < shortest[w]:
                        shortest[w], before[w] = reached, v
        last = -1
        for w in range(1, cells):
            if not settled[w] and shortest[w] < np.inf and (last < 0 or shortest[w] < shortest[last]):
                last = w
        if last < 0:
            return False
        base = shortest[last]
        if holder[last] < 0:
            break
        settled[last] = True
        v = holder[last]
    leaving[first] += base
    for w in range(1, cells):
        if settled[w]:
            entering[w] -= base - shortest[w]
            leaving[holder[w]] += base - shortest[w]
    while last >= 0:  # back along the path, every cell takes as its next one what was reached from it
        v = before[last]
        holder[last] = v
        last, ahead[v] = ahead[v], last
    return True
