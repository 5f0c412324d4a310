"""A head for every word, trees or not."""

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayers import Polytope, plots
from optlayers.sums.logspace import log_sum
from polytopes._compiled import compiled
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["head_choice"]


def head_choice(words: int) -> Polytope:
    r"""Each word chooses a head, another word or the root: shape ``(words + 1, words + 1)``.

    :math:`\{x \ge 0 : \sum_h x_{hm} = 1 \; (m \ge 1)\}` with 0 in column 0 and on the diagonal, a product of simplices.
    It contains the trees of :func:`polytopes.arborescence`, whose parts it shares, and choices with cycles or several
    roots: a relaxation, onto which SPIGOT projects dependency trees in the paper. Integral, since simplices are; of
    tied heads the one of the smallest index is taken.

    References
    ----------
    Peng, Thomson and Smith (2018), Backpropagating through structured argmax using a SPIGOT, ACL.

    >>> import optlayers as ol, torch
    >>> from polytopes import arborescence
    >>> parser = ol.OptLayer(ol.Family(arborescence), ol.Spigot(relaxation=ol.Family(head_choice)))
    >>> parser(torch.zeros(2, 4, 4), sizes=[3, 2]).sum(dim=(1, 2))
    tensor([3., 2.])
    """
    at_least_one(words=words)
    x = cp.Variable((words + 1, words + 1), nonneg=True)
    constraints = [x[:, 0] == 0, cp.diag(x) == 0, cp.sum(x[:, 1:], axis=0) == 1]
    return Polytope(
        x,
        constraints,
        oracle=_best_heads,
        log_partition=_log_partition,
        rows="exact",
        draw=drawn_by(plots.arcs, directed=True, rooted=True),
    )


@compiled
def _best_heads(scores):  # type: ignore[no-untyped-def]
    nodes = len(scores)
    x = np.zeros((nodes, nodes))
    for m in range(1, nodes):
        best = 0
        for h in range(1, nodes):
            if h != m and scores[h, m] > scores[best, m]:
                best = h
        if scores[best, m] == -np.inf:
            return np.full((nodes, nodes), np.nan)
        x[best, m] = 1.0
    return x


def _log_partition(scores: Tensor) -> Tensor:
    nodes = scores.shape[-1]
    diagonal = scores.new_ones(nodes, nodes).tril().triu().bool()
    total = log_sum(scores.masked_fill(diagonal, -torch.inf)[..., 1:], -2).sum(-1)
    # Where one word has no head there is no choice: then the scores of other words count for nothing either.
    return total.masked_fill(total == -torch.inf, -torch.inf)
