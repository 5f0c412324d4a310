"""Projective dependency trees."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from optlayers import Polytope, plots
from optlayers.sums.logspace import log_sum
from polytopes._compiled import compiled
from polytopes._drawn import drawn_by
from polytopes._heads import read_heads, unrooted
from polytopes._sizes import at_least_one

__all__ = ["crossed_words", "projective_tree"]


def projective_tree(words: int, *, single_root: bool = True) -> Polytope:
    r"""Dependency trees whose arcs do not cross: shape ``(words + 1, words + 1)``, as for :func:`arborescence`.

    Entry (h, m) is 1 when node h is the head of node m. Node 0 is the root, in front of the words: column 0 and the
    diagonal are 0. What hangs from a word, directly or not, are consecutive words together with it. With
    ``single_root`` exactly one word hangs from the root.

    Declared by Eisner's (1996) algorithm, whose items are words i..j that hang from i or from j: *triangles* that are
    complete, and *trapezoids* in which i and j are also joined by an arc. An arc between i and j is put over two
    triangles that meet between them; a trapezoid and a triangle are a larger triangle. The variables are the arcs
    and, for every such step, a flow of how often it is taken:

    .. math:: \sum_k f_{ikj} = x_{ij} + x_{ji},\qquad x_{ij} = \sum_k r_{ijk},\qquad x_{ji} = \sum_k l_{kij},

    and every triangle is used as often as it is made. There are about ``words**3 / 2`` flows, and ``2 * words**2``
    equalities.

    Integral, as steps and items form an acyclic hypergraph in which an item enters a derivation at most once: points of
    the flow polytope are mixtures of derivations (Martin, Rardin and Campbell, 1990). Every tree has a single one.

    Its best vertex is found by Eisner's algorithm in O(words³); ties are decided by the scores alone, for the earliest
    split of a span and the earliest root. The sum over all trees is the inside algorithm's.

    References
    ----------
    Eisner (1996), Three new probabilistic models for dependency parsing: an exploration, COLING. Martin, Rardin and
    Campbell (1990), Polyhedral characterization of discrete dynamic programming, Operations Research. Baker (1979),
    Trainable grammars for speech recognition (the inside algorithm).

    >>> import optlayers as ol, torch
    >>> scores = torch.zeros(5, 5)
    >>> scores[0, 3] = scores[1, 4] = scores[3, 1] = scores[3, 2] = 1.0  # the arc from 1 to 4 crosses that into 3
    >>> ol.OptLayer(projective_tree(4), ol.Pipeline())(scores).nonzero().tolist()
    [[0, 3], [3, 1], [3, 2], [3, 4]]
    """
    at_least_one(words=words)
    x = cp.Variable((words + 1, words + 1), nonneg=True)
    return Polytope(
        x,
        partial(_constraints, x, single_root),
        oracle=best_projective_tree_of_one_root if single_root else best_projective_tree,
        log_partition=partial(log_partition, single_root=single_root),
        integral=True,
        rows="exact",
        membership=crossed_words,
        draw=drawn_by(plots.arcs, directed=True, rooted=True),
    )


def _constraints(x: cp.Variable, single_root: bool) -> list[cp.Constraint]:
    words = x.shape[0] - 1
    steps = _steps(words, single_root)
    rows: dict[tuple[str, int, int], int] = defaultdict(lambda: len(rows))
    arcs, flows, start = [], [], []  # (row, column, ±1): what is made counts up, what is used counts down
    for flow, (made, used) in enumerate(steps):
        flows.append((rows[made], flow, 1.0))
        flows += [(rows[item], flow, -1.0) for item in used if item[1] != item[2]]
    for h in range(words + 1):
        for m in range(1, words + 1):
            if h != m and (h or not single_root):
                low, high = min(h, m), max(h, m)
                # An arc is the step from a pair of triangles to a trapezoid.
                arcs.append((rows["pair", low, high], h * (words + 1) + m, -1.0))
                arcs.append((rows["right" if h < m else "left", low, high], h * (words + 1) + m, 1.0))
            elif h != m:  # the last step, which takes two triangles
                triangles = (("left triangle", 1, m), ("right triangle", m, words))
                arcs += [(rows[item], m, -1.0) for item in triangles if item[1] != item[2]]
    if not single_root:
        start.append((rows["right triangle", 0, words], 0, -1.0))
    balance = _matrix(flows, (len(rows), len(steps))), _matrix(arcs, (len(rows), x.size))
    goal = np.asarray(_matrix(start, (len(rows), 1)).todense()).reshape(-1)
    constraints = [x[:, 0] == 0, cp.diag(x) == 0]
    if single_root:
        constraints.append(cp.sum(x[0]) == 1)
    if steps:  # else there is one word
        flow = cp.Variable(len(steps), nonneg=True)
        constraints.append(balance[0] @ flow + balance[1] @ cp.vec(x, order="C") + goal == 0)
    return constraints


def _steps(words: int, single_root: bool) -> list[tuple[tuple[str, int, int], list[tuple[str, int, int]]]]:
    """What is made of which items, except by arcs."""
    steps = []
    for i in range(1 if single_root else 0, words + 1):
        for j in range(i + 1, words + 1):
            for k in range(i, j):
                steps.append((("pair", i, j), [("right triangle", i, k), ("left triangle", k + 1, j)]))
                steps.append((("right triangle", i, j), [("right", i, k + 1), ("right triangle", k + 1, j)]))
                if i:  # nothing that the root is in hangs from a word
                    steps.append((("left triangle", i, j), [("left triangle", i, k), ("left", k, j)]))
    return steps


def _matrix(entries: list[tuple[int, int, float]], shape: tuple[int, int]) -> sp.csr_array:
    row, column, value = zip(*entries, strict=True) if entries else ((), (), ())
    return sp.csr_array((np.array(value, float), (np.array(row, int), np.array(column, int))), shape=shape)


@compiled
def best_projective_tree(scores):  # type: ignore[no-untyped-def]
    """A best projective tree; any number of words may hang from the root. NaN where there is none without -inf."""
    nodes = len(scores)
    chart = _eisner(scores, 0)
    if chart[0, 0, nodes - 1] == -np.inf:
        return np.full((nodes, nodes), np.nan)
    tree = np.zeros((nodes, nodes))
    _read(chart, tree, 0, nodes - 1, True)
    return tree


@compiled
def best_projective_tree_of_one_root(scores):  # type: ignore[no-untyped-def]
    """A best one of the projective trees in which a single word hangs from the root."""
    nodes = len(scores)
    chart = _eisner(scores, 1)
    best, root = -np.inf, 0
    for r in range(1, nodes):
        value = chart[1, r, 1] + chart[0, r, nodes - 1] + scores[0, r]
        if value > best:
            best, root = value, r
    if best == -np.inf:
        return np.full((nodes, nodes), np.nan)
    tree = np.zeros((nodes, nodes))
    tree[0, root] = 1.0
    _read(chart, tree, 1, root, False)
    _read(chart, tree, root, nodes - 1, True)
    return tree


@compiled
def _eisner(scores, first):  # type: ignore[no-untyped-def]
    """Best scores of spans from ``first`` on: triangles in ``chart[0]``, headed by the first word i at (i, j) or read
    from the last at (j, i) of ``chart[1]``; trapezoids in ``chart[2]`` and ``chart[3]`` likewise.

    ``chart[4]`` and ``chart[5]`` hold triangles by their other end, so that the loops run along rows.
    """
    nodes = len(scores)
    chart = np.full((6, nodes, nodes), -np.inf)
    right, left, right_arc = chart[0], chart[1], chart[2]
    left_arc, right_by_end, left_by_start = chart[3], chart[4], chart[5]
    for i in range(first, nodes):
        right[i, i] = left[i, i] = right_by_end[i, i] = left_by_start[i, i] = 0.0
    for j in range(first + 1, nodes):
        for i in range(j - 1, first - 1, -1):
            pair = -np.inf
            for k in range(i, j):
                pair = max(pair, right[i, k] + left[j, k + 1])
            right_arc[i, j] = pair + scores[i, j]
            best = -np.inf
            for k in range(i + 1, j + 1):
                best = max(best, right_arc[i, k] + right_by_end[j, k])
            right[i, j] = right_by_end[j, i] = best
            if i > 0:  # nothing hangs the root from a word
                left_arc[j, i] = pair + scores[j, i]
                best = -np.inf
                for k in range(i, j):
                    best = max(best, left_by_start[i, k] + left_arc[j, k])
                left[j, i] = left_by_start[i, j] = best
    return chart


@compiled
def _read(chart, tree, start, end, rightward):  # type: ignore[no-untyped-def]
    """Put the arcs of a best triangle into the tree: its first best split, then those of its parts."""
    right, left, right_arc = chart[0], chart[1], chart[2]
    left_arc, right_by_end, left_by_start = chart[3], chart[4], chart[5]
    todo = np.empty((3 * len(tree), 3), dtype=np.int64)
    todo[0, 0], todo[0, 1], todo[0, 2] = start, end, 1 if rightward else 0
    count = 1
    while count > 0:
        count -= 1
        i, j, to_the_right = todo[count]
        if i == j:
            continue
        # Sums are the same as in _eisner, so that the best one is found by comparison.
        if to_the_right:
            k = i + 1
            while right_arc[i, k] + right_by_end[j, k] != right[i, j]:
                k += 1
            todo[count, 0], todo[count, 1], todo[count, 2] = k, j, 1
            low, high = i, k
            tree[i, k] = 1.0
        else:
            k = i
            while left_by_start[i, k] + left_arc[j, k] != left[j, i]:
                k += 1
            todo[count, 0], todo[count, 1], todo[count, 2] = i, k, 0
            low, high = k, j
            tree[j, k] = 1.0
        best = -np.inf
        split = low
        for k in range(low, high):
            if right[low, k] + left[high, k + 1] > best:
                best, split = right[low, k] + left[high, k + 1], k
        todo[count + 1, 0], todo[count + 1, 1], todo[count + 1, 2] = low, split, 1
        todo[count + 2, 0], todo[count + 2, 1], todo[count + 2, 2] = split + 1, high, 0
        count += 3


@compiled
def crossed_words(tree):  # type: ignore[no-untyped-def]
    """How many words, arc by arc, are under an arc and hang from one beyond its ends: 0 for a projective tree.

    That finds all crossings: from every other word under an arc one gets to an end of it, from head to head, and two
    arcs that cross would each lead to the other in a cycle. Heads too many or too few count too, and words in a cycle.
    """
    nodes = len(tree)
    count = 0.0
    for m in range(1, nodes):
        heads = 0.0
        for h in range(nodes):
            heads += tree[h, m]
        count += abs(heads - 1.0)
    if count > 0.5:
        return count
    head = np.empty(nodes, np.uint64)
    read_heads(tree, head)
    for m in range(1, nodes):
        other = int(head[m])
        low, high = min(m, other), max(m, other)
        for k in range(low + 1, high):
            count += 0.0 if low <= head[k] <= high else 1.0
    return count + unrooted(head)


def log_partition(scores: Tensor, *, single_root: bool) -> Tensor:
    """Log of the sum over projective trees, ``(*batch, nodes, nodes)`` to ``(*batch,)``; -inf where there is none.

    The inside algorithm, for all spans of a width at once. Charts hold the spans of all smaller widths, of which one
    starts (or ends) at each word: ``(batch, spans, widths)``, widths growing from the start, shrinking to the end.
    """
    batch, nodes = scores.shape[:-2], scores.shape[-1]
    flat = scores.reshape(math.prod(batch), nodes, nodes).to(torch.float64)
    first = 1 if single_root else 0
    arcs = torch.cat([torch.full_like(flat[:, :, :1], -torch.inf), flat[:, :, 1:]], dim=2)[:, first:, first:]
    count = nodes - first
    right_from = right_to = left_from = left_to = arcs.new_zeros(len(flat), count, 1)  # triangles of one word
    right_arcs_from = left_arcs_to = arcs.new_zeros(len(flat), count, 0)
    for width in range(1, count):
        pair = log_sum(right_from[:, :-1] + left_to[:, 1:], 2)
        right_arc = (pair + arcs.diagonal(width, 1, 2))[:, :, None]
        left_arc = (pair + arcs.diagonal(-width, 1, 2))[:, :, None]
        right_arcs_from = torch.cat([right_arcs_from[:, :-1], right_arc], dim=2)
        left_arcs_to = torch.cat([left_arc, left_arcs_to[:, 1:]], dim=2)
        right = log_sum(right_arcs_from + right_to[:, 1:], 2)[:, :, None]
        left = log_sum(left_from[:, :-1] + left_arcs_to, 2)[:, :, None]
        right_from = torch.cat([right_from[:, :-1], right], dim=2)
        right_to = torch.cat([right, right_to[:, 1:]], dim=2)
        left_from = torch.cat([left_from[:, :-1], left], dim=2)
        left_to = torch.cat([left, left_to[:, 1:]], dim=2)
    # Of a single root's word, one triangle spans the words up to it, and another those from it on.
    by_root = left_from[:, 0] + right_to[:, 0] + flat[:, 0, 1:] if single_root else right_from[:, 0, -1:]
    value = log_sum(by_root, 1)
    return value.reshape(batch).to(scores.dtype)
