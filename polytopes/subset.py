"""A subset of a given size."""

import cvxpy as cp

from optlayers import Polytope
from polytopes._sizes import at_least_one

__all__ = ["subset"]


def subset(size: int) -> Polytope:
    r"""Relaxed k-subsets :math:`\{x \in [0,1]^n : \sum_i x_i = k\}` of shape ``(size,)``; k is called ``budget``.

    Integral when the budget is an integer: the hypersimplex, whose vertices are the indicators of the subsets with k
    elements (its matrix, a row of ones over a box, is totally unimodular). The budget is a number per instance, and
    SparseMAP has a gradient for it.

    References
    ----------
    Blondel, Martins and Niculae (2020), Learning with Fenchel–Young losses, JMLR (budget polytopes).

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(subset(4), ol.Pipeline())(torch.tensor([0.3, -1.0, 2.0, 0.1]), budget=2)
    tensor([1., 0., 1., 0.])
    """
    at_least_one(size=size)
    x = cp.Variable(size)
    budget = cp.Parameter(name="budget", nonneg=True)
    return Polytope(x, [x >= 0, x <= 1, cp.sum(x) == budget])
