"""Systems on an active set for which proximal steps are too slow: nearly dependent rows, one instance at a time."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
import torch
from jaxtyping import Bool, Float64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels.active_set import CONVERGED

__all__ = ["solve_slowly"]

DENSE_SIZE = 400
"""Up to this many rows and columns a singular value decomposition is affordable."""
CUTOFF = 1e-13
"""Singular values below this are 0 in a least-squares solution; where that is wrong, the residual shows it."""
SHIFT = 1e-6
"""Diagonal of the preconditioner. Without pivoting its factors grow to 1 / SHIFT, so it stays well above √ε."""


def solve_slowly(
    form: StandardForm,
    instances: Instances,
    k: int,
    free: Bool[np.ndarray, " columns"],
    side: Float64[np.ndarray, " columns"],
    of_rows: Float64[np.ndarray, " rows"] | None = None,
) -> tuple[Float64[np.ndarray, " columns"], Float64[np.ndarray, " rows"], bool]:
    """``(p, q, solved)`` for instance ``k`` and the right-hand side ``(side, of_rows)``, where no ``of_rows`` are 0.

    The system is that of :mod:`optlayers.solvers.kernels.active_set`. It is solved by least squares, or by GMRES where
    that is too large, and judged by its residual.
    """
    cut = form.unslacked
    active = np.ones(form.rows, dtype=bool)
    active[form.equalities :] = ~free[cut:]
    columns, rows = np.flatnonzero(free[:cut]), np.flatnonzero(active)
    data = form.matrix.data if instances.matrix is None else instances.matrix[k]
    whole = sp.csc_array((data, form.matrix.indices, form.matrix.indptr), shape=form.matrix.shape)
    body = sp.csr_array(whole[:, columns])[rows]
    norms = np.sqrt(np.asarray((body * body).sum(axis=1))).reshape(-1)
    norms[norms == 0] = 1.0
    body = sp.csr_array(sp.diags_array(1 / norms) @ body)
    curvature = (columns < form.curved).astype(np.float64)
    system = sp.block_array([[sp.diags_array(curvature), body.T], [body, sp.csr_array((len(rows), len(rows)))]])
    right = np.concatenate([side[columns], np.zeros(len(rows)) if of_rows is None else of_rows[rows] / norms])
    found = _least_squares(system, right) if system.shape[0] <= DENSE_SIZE else _gmres(system, right, len(columns))
    p, q = np.zeros(form.columns), np.zeros(form.rows)
    p[columns], q[rows] = found[: len(columns)], found[len(columns) :] / norms
    left = np.abs(system @ found - right).max(initial=0.0)
    rest = -(whole[:, :cut] @ p[:cut]) if of_rows is None else of_rows - whole[:, :cut] @ p[:cut]
    p[cut:] = np.where(free[cut:], rest[form.equalities :], 0.0)
    # Relative to the terms that cancel: the multipliers of nearly dependent rows are large, and so is their rounding.
    return p, q, bool(left <= CONVERGED * max(np.abs(right).max(initial=0.0), np.abs(found).max(initial=0.0)))


def _least_squares(system: sp.sparray, right: np.ndarray) -> np.ndarray:
    # torch, for NumPy's LAPACK may start threads for a single small matrix, and several processes stall each other.
    matrix, side = torch.from_numpy(system.toarray()), torch.from_numpy(right)[:, None]
    found: np.ndarray = torch.linalg.lstsq(matrix, side, rcond=CUTOFF, driver="gelsd").solution[:, 0].numpy()
    return found


def _gmres(system: sp.sparray, right: np.ndarray, columns: int) -> np.ndarray:
    """As many steps as there are weak rows, with the proximal system as the preconditioner."""
    signs = np.concatenate([np.full(columns, SHIFT), np.full(len(right) - columns, -SHIFT)])
    # Symmetric and quasi-definite, so any symmetric order of diagonal pivots is stable (Vanderbei 1995).
    factor = scipy.sparse.linalg.splu(
        sp.csc_array(system + sp.diags_array(signs)),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    precondition = scipy.sparse.linalg.LinearOperator(system.shape, factor.solve)
    goal = 1e-14 * (1 + np.abs(right).max(initial=0.0))
    found: np.ndarray
    found, _ = scipy.sparse.linalg.gmres(
        sp.csr_array(system), right, M=precondition, rtol=1e-14, atol=goal, restart=100, maxiter=3
    )
    return found
