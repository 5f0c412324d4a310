"""Who goes with whom: perfect, rectangular and partial matchings."""

import cvxpy as cp

from optlayers import Polytope
from polytopes._sizes import at_least_one

__all__ = ["matching", "partial_matching", "rectangular_matching"]


def matching(size: int) -> Polytope:
    r"""Perfect matchings: doubly stochastic matrices of shape ``(size, size)``.

    :math:`\{x \ge 0 : \sum_j x_{ij} = 1, \sum_i x_{ij} = 1\}`; entry (i, j) is 1 when row i goes with column j.
    Integral: its vertices are the permutation matrices (Birkhoff, 1946; von Neumann, 1953).

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(matching(2), ol.Pipeline())(torch.tensor([[1.0, 3.0], [1.0, 2.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    at_least_one(size=size)
    x = cp.Variable((size, size), nonneg=True)
    return Polytope(x, [cp.sum(x, axis=1) == 1, cp.sum(x, axis=0) == 1])


def partial_matching(rows: int, columns: int) -> Polytope:
    r"""Matchings in which anyone may stay alone: shape ``(rows, columns)``.

    :math:`\{x \ge 0 : \sum_j x_{ij} \le 1, \sum_i x_{ij} \le 1\}`. Integral, since the incidence matrix of a bipartite
    graph is totally unimodular (Hoffman and Kruskal, 1956). A pair with a negative score stays apart.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(partial_matching(2, 2), ol.Pipeline())(torch.tensor([[1.0, 4.0], [-1.0, 2.0]]))
    tensor([[0., 1.],
            [0., 0.]])
    """
    at_least_one(rows=rows, columns=columns)
    x = cp.Variable((rows, columns), nonneg=True)
    return Polytope(x, [cp.sum(x, axis=1) <= 1, cp.sum(x, axis=0) <= 1])


def rectangular_matching(rows: int, columns: int) -> Polytope:
    r"""Every element of the smaller side is matched once, the larger side at most once: shape ``(rows, columns)``.

    Integral for the reason of :func:`partial_matching`, of which it is a face.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(rectangular_matching(1, 3), ol.Pipeline())(torch.tensor([[-1.0, -3.0, -2.0]]))
    tensor([[1., 0., 0.]])
    """
    at_least_one(rows=rows, columns=columns)
    x = cp.Variable((rows, columns), nonneg=True)
    by_row, by_column = cp.sum(x, axis=1), cp.sum(x, axis=0)
    if rows == columns:
        return Polytope(x, [by_row == 1, by_column == 1])
    return Polytope(x, [by_row == 1, by_column <= 1] if rows < columns else [by_row <= 1, by_column == 1])
