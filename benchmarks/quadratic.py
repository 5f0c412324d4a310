"""Quadratic programs ``min ½ zᵀ Q z - <s, z>`` over ``rows @ z <= most`` and ``sums @ z == total`` by qpth and Moreau.

A function takes scores ``(batch, n)`` and matrices Q, one for each instance or one for all, and has gradients for both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

__all__ = ["Limits", "by_moreau", "by_qpth"]

STOP = 1e-12
"""Where interior points stop: at 1e-8 their points are up to 3e-4 from the answer, and gradients by up to 0.5."""
Solve = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Limits:
    """The constraints of a quadratic program."""

    rows: np.ndarray
    most: np.ndarray
    sums: np.ndarray
    total: np.ndarray


def by_qpth(limits: Limits, stop: float = STOP) -> Solve:
    """A batched interior point method on dense matrices."""
    from qpth.qp import QPFunction

    parts = [torch.from_numpy(part) for part in (limits.rows, limits.most, limits.sums, limits.total)]
    solve = QPFunction(verbose=-1, eps=stop, check_Q_spd=False)
    # Of a matrix that is given once, its gradient is the mean over instances in place of the sum.
    return lambda scores, matrix: solve(matrix.expand(len(scores), -1, -1), -scores, *parts)


def by_moreau(limits: Limits, batch: int, method: str, stop: float = STOP) -> Solve:
    """``method`` is its active set (``active_set``) or its interior point (``ipm``)."""
    import moreau
    from moreau.torch import Solver

    size = limits.rows.shape[1]
    rows = sp.csr_matrix(np.concatenate([limits.sums, limits.rows]))
    full = sp.csr_matrix(np.ones((size, size)))
    within = moreau.IPMSettings(tol_gap_abs=stop, tol_gap_rel=stop, tol_feas=stop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solver = Solver(
            *(size, rows.shape[0]),
            *(torch.from_numpy(part.astype(np.int64)) for part in (full.indptr, full.indices)),
            *(torch.from_numpy(part.astype(np.int64)) for part in (rows.indptr, rows.indices)),
            cones=moreau.Cones(num_zero_cones=len(limits.total), num_nonneg_cones=len(limits.most)),
            settings=moreau.Settings(
                solver=method,
                device="cpu",
                batch_size=batch,
                enable_grad=True,
                max_iter=10_000,
                **({"ipm_settings": within} if method == "ipm" else {}),
            ),
        )
    entries = torch.from_numpy(rows.data)
    side = torch.from_numpy(np.concatenate([limits.total, limits.most])).expand(batch, -1)

    def found(scores: Tensor, matrix: Tensor) -> Tensor:
        # Its backward pass takes both matrices for each instance, or both for all.
        rows_of = entries.expand(batch, -1).contiguous() if matrix.ndim > 2 else entries
        values: Tensor = solver.solve(matrix.reshape(*matrix.shape[:-2], -1), rows_of, -scores, side).x
        return values

    return found
