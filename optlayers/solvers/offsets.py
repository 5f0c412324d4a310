"""What all points of a polytope score alike, taken off the scores: next to it their differences would be rounding."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from jaxtyping import Float64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import optimality as kernel
from optlayers.solvers.plan import KernelInput, plan_of

__all__ = ["without_offsets"]

LARGE = 1e6
"""Scores beyond this may have an offset."""
LESS = 1e-3
"""It is one when so little is left of them."""
ROUNDS = 3
"""What rounding left of an offset is taken off again."""


def without_offsets(
    form: StandardForm, instances: Instances
) -> tuple[Instances, Float64[np.ndarray, "batch rows"]] | None:
    r"""Smaller scores with the same best vertices, and the prices to add to dual points; None where no offset is large.

    On :math:`A z = b` the scores :math:`c - A^\top y` prefer the same points as c, for every y. Where scores are large
    because all structures have an offset in common (each of them uses one part of a row that is masked, say), a y by
    least squares takes it off. The difference is computed in twice the precision, so it is that of the scores as given.
    """
    if form.equalities == 0 or form.auxiliary or instances.matrix is not None:
        return None
    movable = np.broadcast_to((instances.lower < instances.upper)[:, : form.scored], instances.scores.shape)
    largest = np.where(movable, np.abs(instances.scores), 0.0).max(axis=1, initial=0.0)
    which = np.flatnonzero((largest > LARGE) & (largest < np.inf))
    if len(which) == 0:
        return None
    rows = sp.csr_array(form.matrix)[: form.equalities][:, : form.scored]
    prices, left = np.zeros((len(instances), form.rows)), instances.scores.copy()
    for k in which:
        columns = np.flatnonzero(movable[k])
        body = sp.csr_array(rows[:, columns].T)
        for _ in range(ROUNDS):
            unit = np.abs(left[k, columns]).max()
            if not 0.0 < unit < np.inf:
                break
            found = scipy.sparse.linalg.lsmr(body, left[k, columns] / unit, atol=1e-12, btol=1e-12)[0]
            prices[k, : form.equalities] += unit * found
            left[k] = _left(form, instances, int(k), prices[k])
        if not np.abs(left[k, columns]).max() <= LESS * largest[k]:  # nor where it is too large for a number
            prices[k], left[k] = 0.0, instances.scores[k]
    if not prices.any():
        return None
    whole = instances.whole.copy()
    whole[:, form.kept] = left
    return instances.with_scores(whole), prices


def _left(form: StandardForm, instances: Instances, k: int, prices: np.ndarray) -> Float64[np.ndarray, " scored"]:
    """``c - Aᵀ y`` of scored columns, in twice the precision."""
    plan, one = plan_of(form), instances.take(np.array([k]))
    of_rows, of_columns = np.empty((1, form.rows)), np.empty((1, form.columns))
    kernel.missing(
        plan.start,
        plan.row,
        KernelInput.of(plan, one).matrix,
        np.ascontiguousarray(one.scores),
        np.zeros(form.columns),
        np.ascontiguousarray(one.rhs),
        np.zeros(1, dtype=np.int64),
        np.zeros((1, form.columns)),
        np.ascontiguousarray(prices[None]),
        np.zeros((1, form.rows)),
        of_rows,
        of_columns,
    )
    return of_columns[0, : form.scored]
