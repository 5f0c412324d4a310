"""Sets of items that a knapsack holds."""

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike

from optlayers import Polytope

__all__ = ["knapsack"]


def knapsack(weights: ArrayLike, *, capacity: float | None = None) -> Polytope:
    r"""Sets of items that weigh at most ``capacity`` together: shape ``(items,)``.

    The convex hull of :math:`\{x \in \{0, 1\}^n : w^\top x \le c\}`, which no short list of constraints describes.
    Where weights are integers, or fractions with a small common denominator, and the knapsack is not huge, a decision
    diagram answers (:class:`optlayers.Diagram`): the best set, projections onto the hull, marginals, samples, counts.
    Otherwise branch and bound does.

    Parameters
    ----------
    weights : of the items, 0 or more.
    capacity : what they may weigh together. None: a parameter of that name, a number for each instance, for each value
        of which a diagram is compiled.

    Raises
    ------
    ValueError : when weights are no vector of finite numbers of at least 0, or the capacity is no such number.

    References
    ----------
    Dantzig (1957), Discrete-variable extremum problems, Operations Research. Behle (2007), Binary decision diagrams and
    integer programming (of the diagram).

    >>> import optlayers as ol, torch
    >>> best = ol.OptLayer(knapsack([3, 4, 5]), ol.Pipeline())
    >>> best(torch.tensor([3.0, 4.0, 6.0]), capacity=torch.tensor(7.0))
    tensor([1., 1., 0.])
    """
    given = np.asarray(weights)
    if given.ndim != 1 or given.dtype.kind not in "biuf" or given.size == 0:
        raise ValueError(f"weights must be a vector of numbers, but got {weights!r}")
    if not (np.isfinite(given).all() and (given >= 0).all()):
        raise ValueError(f"weights must be finite and at least 0, but got {given}")
    if capacity is not None and not (np.isfinite(capacity) and capacity >= 0):
        raise ValueError(f"capacity must be a finite number of at least 0, but got {capacity}")
    x = cp.Variable(len(given), boolean=True)
    most = cp.Parameter(name="capacity", nonneg=True) if capacity is None else float(capacity)
    return Polytope(x, [given @ x <= most])
