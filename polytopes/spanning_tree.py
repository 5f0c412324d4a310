"""Spanning trees of a complete graph."""

from functools import partial

import cvxpy as cp
import numpy as np
from torch import Tensor

from optlayers import Polytope, plots
from polytopes import _matrix_tree
from polytopes._compiled import compiled
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one
from polytopes.arborescence import arborescence

__all__ = ["cycles", "spanning_tree"]


def spanning_tree(nodes: int) -> Polytope:
    r"""Trees that join all ``nodes``, without directions: shape ``(nodes, nodes)``.

    Entry (i, j), i < j, is 1 when the tree has the edge between i and j; the diagonal and what is below it are 0. Of a
    graph that is not complete the other edges have the score -inf. There are :math:`n^{n-2}` trees of n nodes.

    The polytope has exponentially many facets, one for each set of nodes (Edmonds, 1971). It is declared by trees with
    directions: every edge is an arc of an arborescence y from node 0, which has the flows of
    :func:`polytopes.arborescence`, about ``nodes**3`` of them,

    .. math:: x_{ij} = y_{ij} + y_{ji} \quad (i < j).

    Integral: a spanning tree becomes one arborescence from node 0, so that the trees are the image of the arborescences
    under this sum, and their convex hulls as well (as in Martin, 1991). The best tree is found by Prim's algorithm,
    from node 0, in O(nodes²): of nodes that are equally good the first one is joined, to the node that was joined
    earliest. The sum over all trees is a determinant, by Kirchhoff's matrix-tree theorem.

    References
    ----------
    Edmonds (1971), Matroids and the greedy algorithm, Mathematical Programming. Martin (1991), Using separation
    algorithms to generate mixed integer model reformulations, Operations Research Letters. Prim (1957), Shortest
    connection networks and some generalizations. Kirchhoff (1847). Cayley (1889), A theorem on trees.

    >>> import optlayers as ol, torch
    >>> scores = torch.zeros(4, 4)
    >>> scores[0, 1], scores[1, 2], scores[0, 2], scores[2, 3] = 3.0, 2.0, 1.0, -1.0
    >>> ol.OptLayer(spanning_tree(4), ol.Pipeline())(scores).nonzero().tolist()
    [[0, 1], [0, 3], [1, 2]]
    """
    at_least_one(nodes=nodes)
    x = cp.Variable((nodes, nodes), nonneg=True)
    return Polytope(
        x,
        partial(_constraints, x),
        oracle=_prim,
        log_partition=_log_partition,
        integral=True,
        rows="exact",
        membership=cycles,
        draw=drawn_by(plots.graph),
    )


def _constraints(x: cp.Variable) -> list[cp.Constraint]:
    nodes = x.shape[0]
    parts = cp.vec(x, order="C")
    edge, none = np.flatnonzero(np.triu(np.ones(x.shape), 1)), np.flatnonzero(np.tril(np.ones(x.shape)))
    if nodes == 1:
        return [parts[none] == 0]
    trees = arborescence(nodes - 1, single_root=False)
    arcs, against = cp.vec(trees.variable, order="C"), cp.vec(trees.variable, order="F")
    return [parts[none] == 0, parts[edge] == arcs[edge] + against[edge], cp.sum(x) == nodes - 1, *trees.constraints]


@compiled
def _prim(scores):  # type: ignore[no-untyped-def]
    nodes = len(scores)
    x = np.zeros((nodes, nodes))
    best, joined = np.full(nodes, -np.inf), np.zeros(nodes, np.int64)
    best[0] = np.inf
    for _ in range(nodes):
        node = -1
        for i in range(nodes):
            if joined[i] >= 0 and (node < 0 or best[i] > best[node]):
                node = i
        if best[node] == -np.inf:
            return np.full((nodes, nodes), np.nan)
        if node > 0:
            x[min(node, joined[node]), max(node, joined[node])] = 1.0
        joined[node] = -1
        for i in range(nodes):
            score = scores[min(i, node), max(i, node)]
            if joined[i] >= 0 and score > best[i]:
                best[i], joined[i] = score, node
    return x


@compiled
def cycles(edges):  # type: ignore[no-untyped-def]
    """How many edges close a cycle, and how many there are too many or too few; none for a tree."""
    nodes = len(edges)
    wrong, count = 0.0, 0
    tree_of = np.arange(nodes)
    for i in range(nodes):
        for j in range(nodes):
            if edges[i, j] < 0.5:
                continue
            wrong += edges[i, j] - 1.0
            count += 1
            one, other = tree_of[i], tree_of[j]
            wrong += 1.0 if i >= j or one == other else 0.0
            for k in range(nodes):
                tree_of[k] = one if tree_of[k] == other else tree_of[k]
    return wrong + abs(count - (nodes - 1))


def _log_partition(scores: Tensor) -> Tensor:
    """Each tree once, as an arborescence from node 0."""
    edges = scores.triu(1)
    if scores.shape[-1] == 1:
        return edges.sum((-2, -1))
    return _matrix_tree.log_partition(edges + edges.mT, single_root=False)
