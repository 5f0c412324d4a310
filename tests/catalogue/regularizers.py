"""Regularizers, each with numbers that contracts are crossed over."""

from __future__ import annotations

import cvxpy as cp

import optlayers as ol

OF_PARTS: list[ol.AbstractRegularizer] = [
    ol.Euclidean(),
    ol.Euclidean(0.3),
    ol.Entropy(),
    ol.Entropy(0.2),
    ol.Tsallis(1.2),
    ol.Tsallis(1.5),
    ol.Tsallis(3.0),
]
"""Sums over parts that are finite at structures."""
REGULARIZERS = [*OF_PARTS, ol.Barrier(0.1)]
"""Those that take every polytope that constraints describe."""


def declared_regularizer(polytope: ol.Polytope) -> ol.AbstractRegularizer:
    """One that is declared for a polytope."""
    x = cp.vec(polytope.variable, order="C")
    return ol.Regularized(0.5 * cp.sum_squares(x) + 0.1 * cp.sum_squares(x[1:] - x[:-1])).regularizer
