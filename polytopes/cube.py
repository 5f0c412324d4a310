"""Independent yes-or-no decisions."""

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayers import Polytope
from polytopes._compiled import compiled
from polytopes._sizes import at_least_one

__all__ = ["cube"]


def cube(size: int) -> Polytope:
    r"""The unit cube :math:`\{x : 0 \le x \le 1\}` of shape ``(size,)``.

    Integral: its vertices are all 0/1 vectors. The best one has a 1 where the score is positive, 0 where it is 0. The
    projection clips; the marginals are sigmoids.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(cube(3), ol.SparseMAP())(torch.tensor([2.0, 0.25, -1.0]))
    tensor([1.0000, 0.2500, 0.0000])
    """
    at_least_one(size=size)
    x = cp.Variable(size)
    return Polytope(x, [x >= 0, x <= 1], oracle=_positive, log_partition=_log_partition, integral=True, rows="exact")


@compiled
def _positive(scores):  # type: ignore[no-untyped-def]
    x = np.zeros(len(scores))
    for i in range(len(scores)):
        if scores[i] > 0.0:
            x[i] = 1.0
    return x


def _log_partition(scores: Tensor) -> Tensor:
    # Not softplus, which torch replaces by the identity beyond a threshold, with an error of 2e-9.
    return -torch.nn.functional.logsigmoid(-scores).sum(-1)
