"""What constraints imply: parts that forbidden ones fix, and a number of parts that all structures have."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import implied
from optlayers.solvers.plan import plan_of

__all__ = ["fixed_parts", "implied_bounds", "sum_is_fixed"]

SAME = implied.SAME


def implied_bounds(
    form: StandardForm, instances: Instances
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch columns"]]:
    """Bounds of all columns, as far as one row after the other tells: true, but not always the narrowest.

    A row bounds each of its columns by what it leaves when the others are at their ends; that is done until nothing
    changes (Savelsbergh, Preprocessing and probing techniques for mixed integer programming problems, 1994). So where a
    row of an assignment has one part left, that part is 1, and the rest of its column 0. Rows with auxiliary variables,
    of which there may be very many, are not looked at.
    """
    plan = plan_of(form)
    lower, upper = np.array(instances.lower, order="C"), np.array(instances.upper, order="C")
    column = np.repeat(np.arange(form.columns), np.diff(form.matrix.indptr))
    auxiliary = np.zeros(form.rows, dtype=bool)
    auxiliary[form.matrix.indices[(column >= form.scored) & (column < form.unslacked)]] = True
    rhs, _, _, matrix = instances.shared
    implied.tighten(*plan.by_row, plan.entries if matrix is None else matrix, auxiliary, rhs, lower, upper)
    return lower, upper


def fixed_parts(form: StandardForm, instances: Instances) -> Bool[np.ndarray, "batch size"]:
    """Parts that constraints and forbidden parts fix to a number, as far as implied bounds tell."""
    lower, upper = implied_bounds(form, instances)
    with np.errstate(invalid="ignore"):
        met = np.isfinite(upper) & (upper - lower <= SAME * np.maximum(1.0, np.abs(upper)))
    fixed = np.ones((len(met), form.size), dtype=bool)
    fixed[:, form.kept] = met[:, : form.scored]
    return fixed


def sum_is_fixed(form: StandardForm) -> bool:
    """Whether the parts of the structure have the same sum in all points: a combination of equalities says so."""
    if not form.matrix_is_constant:
        return False
    wanted = np.zeros(form.columns)
    wanted[: form.scored] = form.kept < form.structure_size
    if form.rows == 0:
        return not wanted.any()
    matrix = sp.csc_array(form.matrix)
    found = sp.linalg.lsmr(matrix.T, wanted, atol=1e-14, btol=1e-14, maxiter=20 * form.rows + 100)[0]
    return bool(np.abs(matrix.T @ found - wanted).max(initial=0.0) <= SAME)
