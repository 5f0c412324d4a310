"""Who goes with whom: perfect, rectangular and partial matchings.

Their best vertices are linear assignments. The sum over matchings is a permanent, which is #P-hard (Valiant, 1979), so
there is no ``log_partition``. Of tied matchings one is taken that depends on nothing but the scores.
"""

import cvxpy as cp
import numpy as np

from optlayers import Polytope, plots
from polytopes._assignment import assign
from polytopes._compiled import compiled
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["matching", "partial_matching", "rectangular_matching"]


def matching(size: int) -> Polytope:
    r"""Perfect matchings: doubly stochastic matrices of shape ``(size, size)``.

    :math:`\{x \ge 0 : \sum_j x_{ij} = 1, \sum_i x_{ij} = 1\}`; entry (i, j) is 1 when row i goes with column j.
    Integral: its vertices are the permutation matrices (Birkhoff, 1946; von Neumann, 1953). The best one is found as by
    Jonker and Volgenant (1987), A shortest augmenting path algorithm for dense and sparse linear assignment problems,
    Computing.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(matching(2), ol.Pipeline())(torch.tensor([[1.0, 3.0], [1.0, 2.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    at_least_one(size=size)
    x = cp.Variable((size, size), nonneg=True)
    return Polytope(
        x,
        [cp.sum(x, axis=1) == 1, cp.sum(x, axis=0) == 1],
        oracle=_best_matching,
        integral=True,
        rows="exact",
        draw=drawn_by(plots.links),
    )


def partial_matching(rows: int, columns: int) -> Polytope:
    r"""Matchings in which anyone may stay alone: shape ``(rows, columns)``.

    :math:`\{x \ge 0 : \sum_j x_{ij} \le 1, \sum_i x_{ij} \le 1\}`. Integral, since the incidence matrix of a bipartite
    graph is totally unimodular (Hoffman and Kruskal, 1956). A pair whose score is negative or 0 stays apart.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(partial_matching(2, 2), ol.Pipeline())(torch.tensor([[1.0, 4.0], [-1.0, 2.0]]))
    tensor([[0., 1.],
            [0., 0.]])
    """
    at_least_one(rows=rows, columns=columns)
    x = cp.Variable((rows, columns), nonneg=True)
    at_most_one = [cp.sum(x, axis=1) <= 1, cp.sum(x, axis=0) <= 1]
    draw = drawn_by(plots.links)
    return Polytope(x, at_most_one, oracle=_best_partial_matching, integral=True, rows="exact", draw=draw)


def rectangular_matching(rows: int, columns: int) -> Polytope:
    r"""Every element of the smaller side is matched once, the larger side at most once: shape ``(rows, columns)``.

    Integral for the reason of :func:`partial_matching`, of which it is a face. The best vertex is found as by Crouse
    (2016), On implementing 2D rectangular assignment algorithms, IEEE Transactions on Aerospace and Electronic Systems.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(rectangular_matching(1, 3), ol.Pipeline())(torch.tensor([[-1.0, -3.0, -2.0]]))
    tensor([[1., 0., 0.]])
    """
    at_least_one(rows=rows, columns=columns)
    x = cp.Variable((rows, columns), nonneg=True)
    by_row, by_column = cp.sum(x, axis=1), cp.sum(x, axis=0)
    if rows == columns:
        constraints = [by_row == 1, by_column == 1]
    else:
        constraints = [by_row == 1, by_column <= 1] if rows < columns else [by_row <= 1, by_column == 1]
    draw = drawn_by(plots.links)
    return Polytope(x, constraints, oracle=_best_matching, integral=True, rows="exact", draw=draw)


@compiled
def _best_matching(scores):  # type: ignore[no-untyped-def]
    rows, columns = scores.shape
    x = np.zeros((rows, columns))
    if rows <= columns:
        column_of = assign(-scores)
        for i in range(rows):
            if column_of[0] >= 0:
                x[i, column_of[i]] = 1.0
    else:
        column_of = assign(_negated_transpose(scores))
        for j in range(columns):
            if column_of[0] >= 0:
                x[column_of[j], j] = 1.0
    if column_of[0] < 0:
        x[:] = np.nan
    return x


@compiled
def _best_partial_matching(scores):  # type: ignore[no-untyped-def]
    # A pair that would cost something stays apart for nothing: then everyone of the smaller side may have a partner.
    x = _best_matching(np.maximum(scores, 0.0))
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if not scores[i, j] > 0.0:
                x[i, j] = 0.0
    return x


@compiled
def _negated_transpose(scores):  # type: ignore[no-untyped-def]
    rows, columns = scores.shape
    result = np.empty((columns, rows))
    for i in range(rows):
        for j in range(columns):
            result[j, i] = -scores[i, j]
    return result
