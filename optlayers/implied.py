"""What constraints imply: parts that forbidden ones fix, and a number of parts that all structures have."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances

__all__ = ["fixed_parts", "implied_bounds", "sum_is_fixed"]

ROUNDS = 200
"""Bounds are tightened so often at most; each round may fix the parts of a further row."""
SAME = 1e-9
"""Bounds that are so near to each other, next to their size, are one number; smaller steps are none."""


def implied_bounds(
    form: StandardForm, instances: Instances
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch columns"]]:
    """Bounds of all columns, as far as one row after the other tells: true, but not always the narrowest.

    A row bounds each of its columns by what it leaves when the others are at their ends; that is done until nothing
    changes (Savelsbergh, Preprocessing and probing techniques for mixed integer programming problems, 1994). So where a
    row of an assignment has one part left, that part is 1, and the rest of its column 0.
    """
    lower, upper = instances.lower.copy(), instances.upper.copy()
    lengths, row = np.diff(form.matrix.indptr), form.matrix.indices
    column, some = np.repeat(np.arange(form.columns), lengths), np.flatnonzero(lengths)
    starts = form.matrix.indptr[some]
    entries = form.matrix.data[None] if instances.matrix is None else instances.matrix
    entries = np.where(entries == 0.0, np.nan, entries)  # a parameter of 0 in the matrix bounds nothing
    of_rows = sp.csr_array((np.ones(len(row)), (np.arange(len(row)), row)), shape=(len(row), form.rows))
    with np.errstate(invalid="ignore", divide="ignore"):
        for _ in range(ROUNDS if len(row) else 0):
            ends = entries * lower[:, column], entries * upper[:, column]
            least, most = np.fmin(*ends), np.fmax(*ends)
            left = instances.rhs[:, row]
            at_most, at_least = left - _of_others(least, of_rows, row), left - _of_others(most, of_rows, row)
            bounds = at_least / entries, at_most / entries
            positive = entries > 0.0
            low, high = np.where(positive, *bounds), np.where(positive, *bounds[::-1])
            low = np.maximum.reduceat(np.where(np.isnan(low), -np.inf, low), starts, axis=1)
            high = np.minimum.reduceat(np.where(np.isnan(high), np.inf, high), starts, axis=1)
            size = SAME * np.maximum(1.0, np.abs(np.where(np.isfinite(low), low, 0.0)))
            raised = low > lower[:, some] + size
            size = SAME * np.maximum(1.0, np.abs(np.where(np.isfinite(high), high, 0.0)))
            lowered = high < upper[:, some] - size
            if not (raised.any() or lowered.any()):
                break
            lower[:, some] = np.where(raised, low, lower[:, some])
            upper[:, some] = np.where(lowered, high, upper[:, some])
    return lower, upper


def fixed_parts(form: StandardForm, instances: Instances) -> Bool[np.ndarray, "batch size"]:
    """Parts that constraints and forbidden parts fix to a number, as far as implied bounds tell."""
    lower, upper = implied_bounds(form, instances)
    with np.errstate(invalid="ignore"):
        met = np.isfinite(upper) & (upper - lower <= SAME * np.maximum(1.0, np.abs(upper)))
    fixed = np.ones((len(met), form.size), dtype=bool)
    fixed[:, form.kept] = met[:, : form.scored]
    return fixed


def _of_others(terms: np.ndarray, of_rows: sp.csr_array, row: np.ndarray) -> np.ndarray:
    """For every entry the sum of the terms of its row, but its own; infinite where one of these is."""
    unlimited = ~np.isfinite(terms)
    finite = np.where(unlimited, 0.0, terms)
    sums, counts = (of_rows.T @ finite.T).T, (of_rows.T @ unlimited.astype(np.float64).T).T
    others = counts[:, row] - unlimited
    return np.where(others > 0, np.nan, sums[:, row] - finite)


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
