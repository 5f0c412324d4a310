"""Passes over a decision diagram whose arcs give 0 and 1 alone, without branches, for four instances side by side.

``pair`` has the child of every node by 0, and that by 1 in the upper half, in one number. For a child that is not there
stands one more node behind the last one, from which nothing leads on. Arrays of nodes have one number, or one vector,
more for it. Instances are those whose sums of exponentials are ordinary numbers (:data:`SAFE`).
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.lanes import LANES, fill, load, part, spread, store

__all__ = ["SAFE", "by_one", "by_zero", "fill_best", "fill_means", "fill_sums", "fill_turned", "workspace"]

SAFE = 300.0
"""Exponentials of numbers between this and its negative, their products with counts of paths, and ratios of two such
numbers are ordinary."""
LOWER = 2**32 - 1
"""The bits of a pair that are its first number."""


@part
def by_zero(pair):  # type: ignore[no-untyped-def]
    """The child by 0; without a sign, which would be looked at in every step."""
    return np.uint64(pair & LOWER)


@part
def by_one(pair):  # type: ignore[no-untyped-def]
    """The child by 1."""
    return np.uint64(pair >> 32)


@part
def fill_best(scores, column, pair, total):  # type: ignore[no-untyped-def]
    """The best scores of paths from every node on, for one instance; those of the last two nodes are there."""
    for u in range(len(column) - 2, -1, -1):
        left, right = total[by_zero(pair[u])], scores[np.uint64(column[u])] + total[by_one(pair[u])]
        total[u] = left if left > right else right


@part
def workspace(nodes, size, arrays):  # type: ignore[no-untyped-def]
    """Vectors for all nodes, in so many arrays, and for the entries of all instances, in two."""
    return np.empty((arrays, LANES * (nodes + 1))), np.empty((2, LANES * size))


@part
def fill_sums(column, pair, reach, scores, some, weight, total):  # type: ignore[no-untyped-def]
    """Exponentials of the scores of ``some`` instances, and the sums of those of all paths from every node on."""
    nodes = len(column)
    for j in range(len(reach)):
        for lane in range(LANES):
            # The last instance stands for those that are missing.
            k = some[min(lane, len(some) - 1)]
            weight[LANES * j + lane] = np.exp(scores[k, j]) if reach[j] > 0 else 0.0
    store(total, nodes - 1, spread(1.0))
    store(total, nodes, spread(0.0))
    for u in range(nodes - 2, -1, -1):
        children = pair[u]
        gain = load(weight, column[u]) * load(total, by_one(children))
        store(total, u, load(total, by_zero(children)) + gain)


@part
def _begin(total, flow):  # type: ignore[no-untyped-def]
    """What comes before the first node: one path, by the sum of all; nothing where there are none."""
    fill(flow, 0.0)
    for lane in range(LANES):
        flow[lane] = 1.0 / total[lane] if total[lane] > 0.0 else 0.0


@part
def fill_means(column, pair, weight, total, flow, mean):  # type: ignore[no-untyped-def]
    """The means of all entries that nodes decide, others are left; by the sums of what comes before every node."""
    nodes = len(column)
    _begin(total, flow)
    u = 0
    while u < nodes - 1:
        j, gained = column[u], spread(0.0)
        mine = load(weight, j)
        while column[u] == j:
            following, other = by_one(pair[u]), by_zero(pair[u])
            before = load(flow, u)
            weighted = before * mine
            gained = gained + weighted * load(total, following)
            store(flow, other, load(flow, other) + before)
            store(flow, following, load(flow, following) + weighted)
            u += 1
        store(mean, j, gained)


@part
def fill_turned(column, pair, weight, slope, total, flow, along, behind, turned):  # type: ignore[no-untyped-def]
    """The derivatives of means along a ``slope``, by those of the sums of what comes before and behind every node.

    ``turned`` may be the array of the slope.
    """
    nodes = len(column)
    store(behind, nodes - 1, spread(0.0))
    store(behind, nodes, spread(0.0))
    for u in range(nodes - 2, -1, -1):
        following, j = by_one(pair[u]), column[u]
        gain = load(slope, j) * load(total, following) + load(behind, following)
        store(behind, u, load(behind, by_zero(pair[u])) + load(weight, j) * gain)
    _begin(total, flow)
    fill(along, 0.0)
    for lane in range(LANES):
        along[lane] = 0.0 - behind[lane] * flow[lane] * flow[lane]
    u = 0
    while u < nodes - 1:
        j, gained = column[u], spread(0.0)
        mine, steep = load(weight, j), load(slope, j)
        while column[u] == j:
            following, other = by_one(pair[u]), by_zero(pair[u])
            flows, changes = load(flow, u), load(along, u)
            before = mine * flows
            changed = mine * changes + steep * before
            gained = gained + changed * load(total, following) + before * load(behind, following)
            store(flow, other, load(flow, other) + flows)
            store(along, other, load(along, other) + changes)
            store(flow, following, load(flow, following) + before)
            store(along, following, load(along, following) + changed)
            u += 1
        store(turned, j, gained)
