"""Rankings."""

import cvxpy as cp
import numpy as np

from optlayers import Polytope, plots
from polytopes._compiled import compiled
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["missing_ranks", "permutahedron"]


def permutahedron(size: int) -> Polytope:
    r"""Rankings: the convex hull of the permutations of (1, …, size), of shape ``(size,)``.

    Entry i is the rank of part i, counted so that the highest score gets ``size`` and the lowest gets 1; of equal
    scores the first gets the higher rank. By its facets it is

    .. math:: \{x : \textstyle\sum_i x_i = n(n+1)/2,\; \sum_{i \in S} x_i \ge |S|(|S|+1)/2 \text{ for all } S\}

    (Rado, 1952), exponentially many; it is declared as the shadow :math:`x = P (1, \dots, n)^\top` of the doubly
    stochastic matrices P. Integral on x, since the vertices of the shadow are images of permutation matrices
    (Birkhoff, 1946). Projections onto it are soft ranks (Blondel et al., 2020). A part cannot be forbidden: its rank
    would be 0. The sum over all rankings is a permanent, and there is no ``log_partition``.

    References
    ----------
    Rado (1952), An inequality, J. London Math. Soc. Blondel, Teboul, Berthet and Djolonga (2020), Fast differentiable
    sorting and ranking, ICML.

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(permutahedron(3), ol.Pipeline())(torch.tensor([0.1, 2.0, -3.0]))
    tensor([2., 3., 1.])
    """
    at_least_one(size=size)
    x = cp.Variable(size)
    permutation = cp.Variable((size, size), nonneg=True)
    constraints = [
        cp.sum(permutation, axis=1) == 1,
        cp.sum(permutation, axis=0) == 1,
        x == permutation @ np.arange(1.0, size + 1.0),
    ]
    return Polytope(
        x,
        constraints,
        oracle=_ranks,
        integral=True,
        rows="exact",
        membership=missing_ranks,
        draw=drawn_by(plots.bars, levels=range(1, size + 1)),
    )


@compiled
def _ranks(scores):  # type: ignore[no-untyped-def]
    size = len(scores)
    x = np.empty(size)
    order = np.argsort(-scores, kind="mergesort")  # stable
    if size and scores[order[-1]] == -np.inf:
        return np.full(size, np.nan)
    for place in range(size):
        x[order[place]] = size - place
    return x


@compiled
def missing_ranks(ranks):  # type: ignore[no-untyped-def]
    """How many of the numbers 1 to n are no entry of n integers: 0 for a ranking."""
    size = len(ranks)
    given = np.zeros(size, np.bool_)
    missing = size
    for rank in ranks:
        if 0.5 < rank < size + 0.5 and not given[int(np.rint(rank)) - 1]:
            given[int(np.rint(rank)) - 1] = True
            missing -= 1
    return float(missing)
