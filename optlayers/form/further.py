"""A standard form with further inequalities among its scored entries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64

from optlayers.form.standard import AffineMap, StandardForm

__all__ = ["with_inequalities"]


def with_inequalities(
    form: StandardForm,
    coefficients: Float64[np.ndarray, "count size"],
    bounds: Float64[np.ndarray, " count"],
    scale: Float64[np.ndarray, " count"],
    name: str,
) -> StandardForm:
    """A form with the rows ``coefficients @ x <= bounds`` behind its own, for all values of the parameters.

    ``x`` is the scored vector; ``scale`` is by how much each row was multiplied, ``name`` is what messages call it.
    """
    count, rows, old = len(bounds), form.rows, form.matrix
    constant = np.array(form.fixed)
    constant[form.kept] = 0.0
    body = np.zeros((count, form.columns))
    body[:, : form.scored] = coefficients[:, form.kept]
    further = sp.csc_array(body)
    # Columns keep their entries in front, those of the new rows come behind; their slack columns are the last ones.
    start = old.indptr + further.indptr
    mine = np.arange(old.nnz) + np.repeat(further.indptr[:-1], np.diff(old.indptr))
    theirs = np.arange(further.nnz) + np.repeat(old.indptr[1:], np.diff(further.indptr))
    entries = old.nnz + further.nnz
    index, data = np.empty(entries + count, dtype=old.indices.dtype), np.empty(entries + count)
    index[mine], data[mine] = old.indices, old.data
    index[theirs], data[theirs] = rows + further.indices, further.data
    index[entries:], data[entries:] = rows + np.arange(count), 1.0
    start = np.concatenate([start, entries + 1 + np.arange(count)]).astype(old.indptr.dtype)
    moving = form.matrix_map.tocoo()
    return replace(
        form,
        matrix=sp.csc_array((data, index, start), shape=(rows + count, form.columns + count)),
        matrix_map=sp.csr_array(
            (moving.data, (mine[moving.coords[0]], moving.coords[1])), shape=(len(data), form.matrix_map.shape[1])
        ),
        rhs=_longer(form.rhs, bounds - coefficients @ constant),
        row_scale=np.concatenate([form.row_scale, scale]),
        lower=_longer(form.lower, np.zeros(count)),
        upper=_longer(form.upper, np.full(count, np.inf)),
        row_names=form.row_names + (name,) * count,
        bound_names=form.bound_names + (("a slack", "a slack"),) * count,
    )


def _longer(part: AffineMap, values: np.ndarray) -> AffineMap:
    """A map with further entries that do not depend on parameters."""
    nothing = sp.csr_array((len(values), part.matrix.shape[1]))
    return AffineMap(np.concatenate([part.constant, values]), sp.csr_array(sp.vstack([part.matrix, nothing])))
