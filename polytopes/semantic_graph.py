"""Semantic dependency graphs: labelled arcs from predicates to their arguments."""

from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayers import CompiledOracle, Polytope, plots
from optlayers.sums.logspace import log_add, log_sum
from polytopes._assignment import assign
from polytopes._compiled import compiled
from polytopes._sizes import at_least_one

__all__ = ["semantic_graph"]


def semantic_graph(words: int, core: int, others: int = 0) -> Polytope:
    r"""Predicates among words, and which words fill which of their roles: shape ``(words, words, core + others)``.

    Entry (p, a, r) is 1 when word a fills role r of predicate p, and entry (p, p, 0) when word p is a predicate, on
    which arcs hang; the other entries (p, p, r) are 0. The first ``core`` roles (ARG0, ARG1, … of PropBank) are filled
    at most once by a predicate, the others (places, times, manners) as often as one likes; a word fills at most one
    role of a predicate. It may be an argument of several predicates, so that the graph is no tree. With
    :math:`y_p = x_{pp0}`,

    .. math:: x \ge 0,\; y \le 1,\qquad \sum_r x_{par} \le y_p \text{ for } a \ne p,\qquad
              \sum_{a \ne p} x_{par} \le y_p \text{ for core roles},\qquad x_{ppr} = 0 \text{ for } r > 0.

    Integral: for y = 1 these rows are those of matchings between words and roles, a bipartite graph, whose incidence
    matrix is totally unimodular (Hoffman and Kruskal, 1956), and with y on all right-hand sides they describe the hull
    of such matchings and of 0. The best graph is, for every predicate by itself, an assignment of core roles to words,
    by what each gains over its best other role. The sum over all graphs goes over words and over which core roles are
    filled so far, :math:`2^{core}` sets, so that up to some 10 core roles are quick. An arc whose score adds nothing is
    left out, and so is a predicate.

    Parameters
    ----------
    words : how many there are.
    core, others : how many roles of both kinds, one at least in all.

    Raises
    ------
    ValueError : for no words, negative numbers of roles, or no role at all.

    References
    ----------
    Palmer, Gildea and Kingsbury (2005), The Proposition Bank, Computational Linguistics. Oepen et al. (2015),
    SemEval-2015 task 18: broad-coverage semantic dependency parsing. Hoffman and Kruskal (1956), Integral boundary
    points of convex polyhedra. Peng, Thomson and Smith (2018), Backpropagating through structured argmax using a
    SPIGOT, ACL.

    >>> import optlayers as ol, torch
    >>> scores = torch.full((3, 3, 2), -1.0)
    >>> scores[1, 1, 0] = 0.5  # of "dogs chase cats", the second word may be a predicate
    >>> scores[1, 0, 0], scores[1, 2, 0], scores[1, 2, 1] = 2.0, 3.0, 2.5
    >>> ol.OptLayer(semantic_graph(3, core=2), ol.Pipeline())(scores).nonzero().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 2, 1]]
    """
    at_least_one(words=words)
    if core < 0 or others < 0 or core + others < 1:
        raise ValueError(f"there must be a role at least, but core={core} and others={others}")
    x = cp.Variable((words, words, core + others), nonneg=True)
    constraints = []
    for p in range(words):
        arguments = [a for a in range(words) if a != p]
        constraints.append(x[p, p, 0] <= 1)
        if core + others > 1:
            constraints.append(x[p, p, 1:] == 0)
        if arguments:
            constraints.append(cp.sum(x[p, arguments], axis=1) <= x[p, p, 0])
        if arguments and core:
            constraints.append(cp.sum(x[p, arguments, :core], axis=0) <= x[p, p, 0])
    return Polytope(
        x,
        constraints,
        oracle=CompiledOracle(_best_graph, [np.array([core])]),
        log_partition=partial(_log_partition, core=core),
        integral=True,
        rows="exact",
        draw=_draw,
    )


@compiled
def _best_graph(scores, filled_once):  # type: ignore[no-untyped-def]
    x, core = np.zeros(scores.shape), filled_once[0]
    words, _, roles = scores.shape
    cost = np.zeros((core, words + core))
    other, worth = np.empty(words, dtype=np.int64), np.empty(words)
    for p in range(words):
        total = scores[p, p, 0]
        if total == -np.inf:
            continue
        for a in range(words):
            other[a], worth[a] = -1, 0.0
            if a == p:
                continue
            for r in range(core, roles):
                if scores[p, a, r] > worth[a]:
                    other[a], worth[a] = r, scores[p, a, r]
            total += worth[a]
        for k in range(core):  # behind the words are places that leave a role open
            for a in range(words):
                gain = scores[p, a, k] - worth[a] if a != p else -np.inf
                cost[k, a] = -gain if gain > 0.0 else np.inf
        filled = assign(cost) if core > 0 else other[:0]
        for k in range(core):
            if filled[k] < words:
                total -= cost[k, filled[k]]
        if not total > 0.0:
            continue
        x[p, p, 0] = 1.0
        for k in range(core):
            if filled[k] < words:
                other[filled[k]] = k
        for a in range(words):
            if other[a] >= 0:
                x[p, a, other[a]] = 1.0
    return x


def _log_partition(scores: Tensor, *, core: int) -> Tensor:
    itself = torch.eye(scores.shape[-2], dtype=torch.bool, device=scores.device)
    predicate = scores.diagonal(dim1=-3, dim2=-2)[..., 0, :]
    arcs = scores.masked_fill(itself[..., None], -torch.inf)
    others = log_sum(torch.cat([torch.zeros_like(arcs[..., :1]), arcs[..., core:]], -1), -1)
    sets, roles = torch.arange(2**core, device=scores.device), torch.arange(core, device=scores.device)
    holds = (sets[:, None] >> roles) % 2 == 1
    before = torch.where(holds, sets[:, None] - (1 << roles), 0)
    begun = torch.full((*predicate.shape, 2**core), -torch.inf, dtype=scores.dtype, device=scores.device)
    begun = begun.index_fill(-1, sets[:1], 0.0)
    for fills, is_other in zip(arcs[..., :core].unbind(-2), others.unbind(-1), strict=True):  # word by word
        ways = torch.where(holds, begun[..., before] + fills[..., None, :], -torch.inf)
        begun = log_sum(torch.cat([(begun + is_other[..., None])[..., None], ways], -1), -1)
    there = predicate + log_sum(begun, -1)
    return log_add(torch.zeros_like(there), there).sum(-1)


def _draw(ax: Any, x: np.ndarray, **options: Any) -> None:
    """Arcs from predicates to arguments, whatever their role."""
    weights = x.sum(axis=2)
    np.fill_diagonal(weights, 0.0)
    plots.arcs(weights, directed=True, ax=ax, **options)
