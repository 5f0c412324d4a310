"""Dependency trees."""

from __future__ import annotations

from functools import partial

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from optlayers import Polytope, plots
from polytopes._compiled import compiled
from polytopes._drawn import drawn_by
from polytopes._heads import read_heads, unrooted
from polytopes._matrix_tree import log_partition
from polytopes._sizes import at_least_one

__all__ = ["arborescence", "unrooted_words"]

WAITING, ON_PATH, IN_TREE = 0, 1, 2
"""What may be said of a node."""


def arborescence(words: int, *, single_root: bool = True) -> Polytope:
    r"""Dependency trees over ``words`` words and a dummy root: shape ``(words + 1, words + 1)``.

    Entry (h, m) is 1 when node h is the head of node m. Node 0 is the root: column 0 and the diagonal are 0. With
    ``single_root`` exactly one word hangs from the root, as treebanks want.

    Declared by flows of several commodities (Martins, Smith and Xing, 2009): every word has one head, and every word k
    receives one unit of a flow of its own from the root, over arcs with the capacity of the tree:

    .. math:: \sum_h x_{hm} = 1,\qquad 0 \le f^k_{hm} \le x_{hm},\qquad
              \sum_h f^k_{hm} = \sum_j f^k_{mj} \quad (m \ne k).

    Flow variables that are known are left out. What flows into k comes over the arcs of its one head,
    :math:`f^k_{hk} = x_{hk}`, and nothing flows out of it; with a single root the unit leaves it over arcs whose
    capacities sum to 1, so :math:`f^k_{0m} = x_{0m}`. There remain ``words * (words - 1) * (words - 2)`` flow variables
    for a single root, ``words * (words - 1)**2`` for several.

    Integral on x: by max-flow min-cut the flows say that every set of words is entered by at least one arc, which
    together with one head per word describes the arborescence polytope (Edmonds, 1967). Every arborescence has at
    least one root arc, so those with a single one are a face of it, and integral too.

    Its best vertex is found by Chu, Liu and Edmonds' algorithm in O(words²); ties are decided by the scores alone, at
    every choice of a head for the head of the smaller index. The sum over all trees is a determinant, by the
    matrix-tree theorem, or comes from an elimination without subtractions where that would be inexact.

    References
    ----------
    Martins, Smith and Xing (2009), Concise integer linear programming formulations for dependency parsing, ACL.
    Edmonds (1967), Optimum branchings. Wong (1984), A dual ascent approach for Steiner tree problems on a directed
    graph (the flow formulation). Chu and Liu (1965), On the shortest arborescence of a directed graph. Tarjan (1977),
    Finding optimum branchings. Stanojević and Cohen (2021), A root of a problem, EMNLP (why a single root needs care).
    Koo, Globerson, Carreras and Collins (2007), Structured prediction models via the matrix-tree theorem, EMNLP; also
    McDonald and Satta (2007), Smith and Smith (2007). Grassmann, Taksar and Heyman (1985), Regenerative analysis and
    steady state distributions for Markov chains (the elimination).

    >>> import optlayers as ol, torch
    >>> scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 3.0, 0.0]])
    >>> ol.OptLayer(arborescence(2), ol.Pipeline())(scores)
    tensor([[0., 0., 1.],
            [0., 0., 0.],
            [0., 1., 0.]])
    """
    at_least_one(words=words)
    nodes = words + 1
    x = cp.Variable((nodes, nodes), nonneg=True)
    return Polytope(
        x,
        partial(_constraints, x, single_root),
        oracle=best_tree_of_one_root if single_root else best_tree,
        log_partition=partial(log_partition, single_root=single_root),
        integral=True,
        rows="exact",
        membership=unrooted_words,
        draw=drawn_by(plots.arcs, directed=True, rooted=True),
    )


def _constraints(x: cp.Variable, single_root: bool) -> list[cp.Constraint]:
    constraints = [x[:, 0] == 0, cp.diag(x) == 0, cp.sum(x[:, 1:], axis=0) == 1]
    if single_root:
        constraints.append(cp.sum(x[0]) == 1)
    arcs = cp.vec(x, order="C")
    capacity, flow_balance, tree_balance = _flows(x.shape[0], root_flows_known=single_root)
    if capacity.shape[0]:  # else every flow is known, and the heads (with the root) say it all
        flow = cp.Variable(capacity.shape[0], nonneg=True)
        constraints += [flow <= capacity @ arcs, flow_balance @ flow == tree_balance @ arcs]
    return constraints


def _flows(nodes: int, *, root_flows_known: bool) -> tuple[sp.csr_array, sp.csr_array, sp.csr_array]:
    """Of every flow variable the arc it uses; then, per (commodity k, word m), both sides of the balance.

    The variables are the triples (commodity k, head h, modifier m), all different, with k and m words. At word m what
    comes in minus what leaves for words other than k, over flow variables, equals what leaves for k, which is
    ``x[m, k]``, minus what comes from the root if that is known, which is ``x[0, m]``.
    """
    commodity, head, modifier = (axis.reshape(-1) for axis in np.meshgrid(*[np.arange(nodes)] * 3, indexing="ij"))
    used = (commodity != 0) & (modifier != 0) & (head != modifier) & (head != commodity) & (modifier != commodity)
    if root_flows_known:
        used &= head != 0
    k, h, m = commodity[used], head[used], modifier[used]
    flow = np.arange(len(k))
    capacity = _ones(flow, h * nodes + m, (len(k), nodes**2))
    inner = h != 0
    inflow = _ones(k * nodes + m, flow, (nodes**2, len(k)))
    outflow = _ones((k * nodes + h)[inner], flow[inner], (nodes**2, len(k)))

    k, m = (axis.reshape(-1) for axis in np.meshgrid(np.arange(nodes), np.arange(nodes), indexing="ij"))
    balanced = (k != 0) & (m != 0) & (k != m)
    k, m = k[balanced], m[balanced]
    row = np.arange(len(k))
    tree_balance = _ones(row, m * nodes + k, (len(k), nodes**2))
    if root_flows_known:
        tree_balance = tree_balance - _ones(row, m, (len(k), nodes**2))
    return capacity, (inflow - outflow)[k * nodes + m], tree_balance


def _ones(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    return sp.csr_array((np.ones(len(row)), (row, column)), shape=shape)


@compiled
def best_tree(scores):  # type: ignore[no-untyped-def]
    """A best tree; any number of words may hang from the root."""
    return _edmonds(scores, False)


@compiled
def best_tree_of_one_root(scores):  # type: ignore[no-untyped-def]
    """A best one of the trees in which a single word hangs from the root."""
    return _edmonds(scores, True)


@compiled
def _edmonds(scores, single_root):  # type: ignore[no-untyped-def]
    """The algorithm of Chu and Liu (1965) and Edmonds (1967) on a growing path, O(n²) in all (Tarjan, 1977).

    A path is followed from a word to its best head, to the best head of that, … It ends where the tree is already, or
    it closes a cycle, which becomes one node: arcs into a word of the cycle count by what they win over the word's arc
    in the cycle. Rows are merged and columns are not, since an arc's head names the node it comes from.

    A single root is had exactly, without large numbers: let arcs from the root be worse than any others, as pairs
    (-1, score) are next to (0, score) in lexicographic order. No arc inside a cycle comes from the root, so the first
    components of pairs never change, and all that is left of them is the rule that the root is chosen last.
    """
    nodes = scores.shape[0]
    gain = np.empty((nodes, nodes))  # (node, head), the node named by one of its words
    word = np.empty((nodes, nodes), dtype=np.uint32)  # (node, head) -> the word of the node that the arc enters
    for m in range(1, nodes):
        for h in range(nodes):
            gain[m, h] = scores[h, m]
            word[m, h] = m
        gain[m, m] = -np.inf
    # Nodes in the order in which they were made: words, then cycles. An arc enters each: from head, into entered.
    # In one piece, since to allocate takes time, and without signs, which would be looked at in every step.
    table = np.zeros((7, 2 * nodes), dtype=np.uint32)
    head, entered, whole = table[0], table[1], table[2]
    label, node_of = table[3], table[4]  # row -> node, word -> row
    path, state = table[5], table[6]
    for m in range(nodes):
        label[m] = node_of[m] = m
    win = np.empty(nodes)
    state[0] = IN_TREE
    made, roots = nodes, 0
    for start in range(1, nodes):
        top = -1
        node = node_of[start]
        while state[node] != IN_TREE:
            top += 1
            path[top] = node
            state[node] = ON_PATH
            best, chosen = -np.inf, 0
            row = gain[node]
            for h in range(1 if single_root else 0, nodes):
                if row[h] > best:
                    best, chosen = row[h], h
            if best == -np.inf and single_root:
                best = row[0]
                roots += 1
            if best == -np.inf or roots > 1:
                return np.full((nodes, nodes), np.nan)
            head[label[node]], entered[label[node]], win[node] = chosen, word[node, chosen], best
            node = node_of[chosen]
            if state[node] == ON_PATH:
                top = _merge(path, top, node, nodes, gain, word, win, label, node_of, state, whole, made)
                made += 1
        for k in range(top + 1):
            state[path[k]] = IN_TREE
    return _expand(nodes, made, head, entered, whole)


@compiled
def _merge(path, top, node, nodes, gain, word, win, label, node_of, state, whole, made):  # type: ignore[no-untyped-def]
    """Make one node, in the row ``node``, of the path from there to its top; where the path then ends.

    Loops choose without branches, which no processor could predict.
    """
    best, into = gain[node], word[node]
    for h in range(nodes):
        best[h] -= win[node]
    whole[label[node]] = made
    while path[top] != node:
        other = path[top]
        top -= 1
        row, words, offset = gain[other], word[other], win[other]
        for h in range(nodes):
            won = row[h] - offset
            into[h] = words[h] if won > best[h] else into[h]
            best[h] = won if won > best[h] else best[h]
        whole[label[other]] = made
        state[other] = WAITING
        for m in range(1, nodes):
            node_of[m] = node if node_of[m] == other else node_of[m]
    for h in range(1, nodes):
        best[h] = -np.inf if node_of[h] == node else best[h]
    label[node] = made
    state[node] = WAITING
    return top - 1


@compiled
def _expand(nodes, made, head, entered, whole):  # type: ignore[no-untyped-def]
    """The tree, from the last cycle to the words: the arc into a cycle replaces that of the word it enters."""
    tree = np.zeros((nodes, nodes))
    for node in range(made - 1, 0, -1):
        inner = entered[node]
        if inner != 0:
            tree[head[node], inner] = 1.0
        while inner != 0 and entered[inner] != 0:
            entered[inner] = 0  # it is settled
            inner = whole[inner]
    return tree


@compiled
def unrooted_words(tree):  # type: ignore[no-untyped-def]
    """How many words hang from each other in a cycle, and not from the root. Each has one head."""
    head = np.empty(len(tree), np.uint64)
    read_heads(tree, head)
    return float(unrooted(head))
