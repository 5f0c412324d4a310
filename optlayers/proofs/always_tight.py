"""Bounds that all points of an instance meet: what a logarithmic barrier has to leave out."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.sparse as sp
from jaxtyping import Bool, Float64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances

__all__ = ["always_tight"]

LARGEST = 1e7
"""How far points are magnified: room that is smaller by so much than 1 is none."""


def always_tight(
    form: StandardForm, instances: Instances, k: int
) -> tuple[Bool[np.ndarray, " columns"], Float64[np.ndarray, " columns"]] | None:
    r"""The columns, slacks among them, that are at a bound in all points of instance ``k``, those that rows leave one
    value then, one after the other, and the values; None where no point is found.

    One linear program: of a point z, magnified by :math:`\tau \ge 1`, the sum of the rooms to the bounds is largest,
    each of which counts up to 1. Any room can be magnified to 1, so that those that are less are 0 in all points.

    References
    ----------
    Freund, Roundy and Todd (1985), Identifying the set of always-active constraints in a system of linear inequalities
    by a single linear program, MIT.
    """
    columns, matrix = form.columns, sp.csr_array(instances.matrix_of(form, k))
    limited = np.flatnonzero(np.isfinite(instances.rhs[k]))
    low, high = instances.lower[k], instances.upper[k]
    below, above = np.flatnonzero(np.isfinite(low)), np.flatnonzero(np.isfinite(high))
    one = sp.eye_array(columns, format="csr")
    none = sp.csr_array((len(limited), columns))
    rows = sp.hstack([matrix[limited], none, -instances.rhs[k, limited, None]], format="csc")
    rooms = sp.vstack(
        [
            sp.hstack([-one[below], one[below], low[below, None]]),
            sp.hstack([one[above], one[above], -high[above, None]]),
        ],
        format="csc",
    )
    bounds = np.zeros((2 * columns + 1, 2))
    bounds[:columns] = -np.inf, np.inf
    bounds[columns:-1, 1], bounds[-1] = 1.0, (1.0, LARGEST)
    costs = np.zeros(2 * columns + 1)
    costs[columns:-1] = -1.0
    sides = np.zeros(len(limited)), np.zeros(rooms.shape[0])
    found = scipy.optimize.linprog(costs, rooms, sides[1], rows, sides[0], bounds, method="highs")
    if found.status != 0:
        return None
    tight, point = found.x[columns:-1] < 0.5, found.x[:columns] / found.x[-1]
    at = np.where(tight, np.where(point - low <= high - point, low, high), 0.0)
    _settle(matrix[limited], instances.rhs[k, limited], tight, at)
    return tight, at


def _settle(matrix: sp.csr_array, sides: np.ndarray, known: np.ndarray, at: np.ndarray) -> None:
    """Add columns that are the only unknown ones of a row to what is ``known``, and their values."""
    pattern = sp.csr_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), matrix.shape)
    while True:
        single = np.flatnonzero(pattern @ (~known).astype(np.float64) == 1.0)
        if not len(single):
            return
        left = sides - matrix @ at
        for i in single.tolist():
            span = slice(matrix.indptr[i], matrix.indptr[i + 1])
            for column, entry in zip(matrix.indices[span].tolist(), matrix.data[span].tolist(), strict=True):
                if not known[column]:
                    known[column], at[column] = True, left[i] / entry
