"""Assignments of many to many: bipartite matchings with capacities."""

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike

from optlayers import Polytope, plots
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["b_matching"]


def b_matching(
    rows: int,
    columns: int,
    *,
    row_capacity: ArrayLike | cp.Parameter = 1,
    column_capacity: ArrayLike | cp.Parameter = 1,
) -> Polytope:
    r"""Pairs of rows and columns, each of which may be in several: shape ``(rows, columns)``.

    :math:`\{0 \le x \le 1 : \sum_j x_{ij} \le a_i, \sum_i x_{ij} \le b_j\}`; entry (i, j) is 1 when row i goes with
    column j, as reviewers go with papers, within the capacities a of rows and b of columns. Integral for integer
    capacities, since the incidence matrix of a bipartite graph is totally unimodular (Hoffman and Kruskal, 1956). With
    capacities of 1 these are the structures of :func:`polytopes.partial_matching`, which has an oracle. This
    declaration has none, and a general solver answers; nor is there a log-partition function, since even perfect
    matchings are too hard to count (Valiant, 1979).

    Parameters
    ----------
    rows, columns : how many there are.
    row_capacity : how many columns a row goes with at most, 0 or more: an integer, ``(rows,)`` integers, or a
        :class:`cvxpy.Parameter` of either shape, whose values callers give by its name for each instance.
    column_capacity : likewise, an integer or ``(columns,)``.

    Raises
    ------
    ValueError : when a capacity has another shape, or is a number but no integer, or negative.

    References
    ----------
    Hoffman and Kruskal (1956), Integral boundary points of convex polyhedra. Schrijver (2003), Combinatorial
    optimization (chapter 21). Valiant (1979), The complexity of computing the permanent.

    >>> import optlayers as ol, torch
    >>> scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, -1.0, 2.0]])
    >>> ol.OptLayer(b_matching(2, 3, row_capacity=2), ol.Pipeline())(scores)
    tensor([[1., 1., 0.],
            [0., 0., 1.]])
    """
    at_least_one(rows=rows, columns=columns)
    x = cp.Variable((rows, columns), nonneg=True)
    of_rows, of_columns = _capacity("row", row_capacity, rows), _capacity("column", column_capacity, columns)
    constraints = [x <= 1, cp.sum(x, axis=1) <= of_rows, cp.sum(x, axis=0) <= of_columns]
    given = isinstance(row_capacity, cp.Parameter) or isinstance(column_capacity, cp.Parameter)
    return Polytope(x, constraints, integral=not given, rows="exact", draw=drawn_by(plots.links))


def _capacity(side: str, given: ArrayLike | cp.Parameter, size: int) -> np.ndarray | cp.Parameter:
    capacity = given if isinstance(given, cp.Parameter) else np.asarray(given)
    if capacity.shape not in ((), (size,)):
        raise ValueError(f"{side}_capacity has shape {capacity.shape}, but it must be a number or have shape ({size},)")
    if isinstance(capacity, np.ndarray) and not (
        capacity.dtype.kind in "iuf" and (capacity >= 0).all() and (capacity == np.round(capacity)).all()
    ):
        raise ValueError(f"{side}_capacity must be integers of at least 0, but got {capacity}")
    return capacity
