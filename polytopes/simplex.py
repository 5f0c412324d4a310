"""One choice out of several."""

import cvxpy as cp
import numpy as np
from torch import Tensor

from optlayers import Polytope
from optlayers.sums.logspace import log_sum
from polytopes._compiled import compiled
from polytopes._sizes import at_least_one

__all__ = ["simplex"]


def simplex(size: int) -> Polytope:
    r"""The probability simplex :math:`\{x \ge 0 : \sum_i x_i = 1\}` of shape ``(size,)``.

    Integral: its vertices are the unit vectors, one per choice; of tied ones the first is taken. Its projection is
    sparsemax (Martins and Astudillo, 2016, From softmax to sparsemax, ICML; the algorithm goes back to Held, Wolfe and
    Crowder, 1974). Its marginals are softmax.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(simplex(3), ol.SparseMAP())(torch.tensor([1.0, 0.5, -2.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    at_least_one(size=size)
    x = cp.Variable(size, nonneg=True)
    return Polytope(x, [cp.sum(x) == 1], oracle=_best_choice, log_partition=_log_partition, integral=True, rows="exact")


@compiled
def _best_choice(scores):  # type: ignore[no-untyped-def]
    best = 0
    for i in range(len(scores)):
        if scores[i] > scores[best]:
            best = i
    if scores[best] == -np.inf:
        return np.full(len(scores), np.nan)
    x = np.zeros(len(scores))
    x[best] = 1.0
    return x


def _log_partition(scores: Tensor) -> Tensor:
    return log_sum(scores, -1)
