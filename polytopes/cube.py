"""Independent yes-or-no decisions."""

import cvxpy as cp

from optlayers import Polytope
from polytopes._sizes import at_least_one

__all__ = ["cube"]


def cube(size: int) -> Polytope:
    r"""The unit cube :math:`\{x : 0 \le x \le 1\}` of shape ``(size,)``.

    Integral: its vertices are all 0/1 vectors. The projection clips; ties (a score of 0) are decided by the solver.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(cube(3), ol.SparseMAP())(torch.tensor([2.0, 0.25, -1.0]))
    tensor([1.0000, 0.2500, 0.0000])
    """
    at_least_one(size=size)
    x = cp.Variable(size)
    return Polytope(x, [x >= 0, x <= 1])
