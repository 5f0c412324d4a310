r"""The linear systems of a projection: polishing to the active set, and its derivative.

On the columns ``free`` of an active set, with the diagonal matrix H that is 1 on scored columns and 0 on others,

.. math:: \begin{pmatrix} H & A_F^\top \\ A_F & 0 \end{pmatrix} \begin{pmatrix} p \\ q \end{pmatrix}
          = \begin{pmatrix} r_1 \\ r_2 \end{pmatrix}.

The matrix is singular as soon as active rows depend on each other or auxiliary columns can move without moving the
structure, and both are the rule. Deciding its rank is where published code goes wrong: a cutoff near rounding takes
noise for a constraint. Here no rank is decided: proximal steps with :data:`REGULARIZATION` on the diagonal
(+ for columns, - for rows) are repeated on the residual of the *unregularized* system. For a consistent system
they converge to a solution, each singular value σ at the rate δ / (δ + σ²) or better, and what is indistinguishable
from rounding (σ far below δ) never moves. Where rows are nearly but not quite dependent that takes too long; the
derivative, which must not be wrong in silence, then goes to least squares or GMRES, and says where these fail too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.solvers.base import Instances
from optlayers.solvers.certificate import times_matrix, times_transpose
from optlayers.solvers.pool import for_each_chunk
from optlayers.standard_form import StandardForm

__all__ = ["KKT"]

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From what is left of both sides to a proximal step in p and q."""

REGULARIZATION = 1e-6
"""δ, relative to rows of unit norm. Without pivoting the factors grow to 1/δ, and cancel to δ: so δ² must stay well
above rounding. Constraints whose dependence is weaker than about √δ are told apart slowly."""
STEPS = 30
"""At most so many proximal steps; a well-conditioned system takes two or three."""
CONVERGED = 1e-11
"""A residual below this, relative to the right-hand side, is a solution."""
RESCUE_CUTOFF = 1e-13
"""Singular values below this are 0 in a least-squares rescue; where that is wrong, the residual shows it."""
PRECISION = 1e-14
"""Steps end when the residual is below this, relative to the right-hand side."""
DENSE_SIZE = 200
"""Up to this size of a matrix, dense LAPACK beats a sparse factorization with its overheads."""
DENSE_MEMORY = 2**26
"""Bytes of dense matrices at a time."""


@final
class KKT:
    """Solves the systems above for one standard form, a whole batch at a time."""

    def __init__(self, form: StandardForm) -> None:
        self.form = form
        self.body = sp.csc_array(form.matrix[:, : form.unslacked])
        self.entries = self.body.nnz  # slack columns come last, so these entries come first
        self.columns = form.entry_column[: self.entries]
        self.scored = np.zeros(form.unslacked)
        self.scored[: form.scored] = 1.0
        # What is factored: rows alone when all columns are scored and can be eliminated, else both.
        factored = form.rows if form.auxiliary == 0 else form.rows + form.unslacked
        self.dense = factored <= DENSE_SIZE
        self.bytes_each = 8 * (1 + factored**2 + form.rows * form.unslacked)

    def solve(
        self,
        instances: Instances,
        free: Bool[np.ndarray, "batch columns"],
        column_side: Float64[np.ndarray, "batch columns"],
        row_side: Float64[np.ndarray, "batch rows"],
        start: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        rescue: bool = False,
    ) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"], Bool[np.ndarray, " batch"]]:
        """``(p, q, solved)`` with p = 0 outside ``free``; the solution nearest to ``start`` where there are several.

        A row whose slack column is free binds nothing: its q is 0, and the slack takes what is left of ``row_side``.
        With ``rescue``, instances whose proximal steps did not converge are solved by slower means.
        """
        form, cut = self.form, self.form.unslacked
        if cut == 0:
            nothing = np.where(free, row_side[:, form.equalities :], 0.0)
            return nothing, np.zeros_like(row_side), np.ones(len(free), dtype=bool)
        active = np.ones((len(free), form.rows), dtype=bool)
        active[:, form.equalities :] = ~free[:, cut:]
        inner = free[:, :cut]
        p = np.zeros((len(free), cut)) if start is None else np.where(inner, start[0][:, :cut], 0.0)
        q = np.zeros((len(free), form.rows)) if start is None else np.where(active, start[1], 0.0)
        data = self.body.data if instances.matrix is None else instances.matrix[:, : self.entries]

        def work(piece: np.ndarray) -> None:
            mine = data if instances.matrix is None else data[piece]
            solve = self._dense if self.dense else self._sparse
            p[piece], q[piece] = solve(
                mine,
                inner[piece],
                active[piece],
                column_side[piece][:, :cut],
                row_side[piece],
                p[piece],
                q[piece],
                rescue,
            )

        if self.dense:
            # torch spreads a batch of factorizations over its own threads. NumPy's BLAS would not do: it starts
            # threads for a single small matrix, and they stall each other when several processes do so.
            most = max(1, DENSE_MEMORY // self.bytes_each)
            for first in range(0, len(free), most):
                work(np.arange(first, min(first + most, len(free))))
        else:
            for_each_chunk(work, len(free))
        full = np.zeros((len(free), form.columns))
        full[:, :cut] = p
        rest = row_side - times_matrix(form, instances, full)
        solved = self._solved(instances, inner, active, column_side[:, :cut], np.where(active, rest, 0.0), full, q)
        full[:, cut:] = np.where(free[:, cut:], rest[:, form.equalities :], 0.0)
        return full, q, solved

    def _solved(
        self,
        instances: Instances,
        free: np.ndarray,
        active: np.ndarray,
        column_side: np.ndarray,
        rest: np.ndarray,
        p: np.ndarray,
        q: np.ndarray,
    ) -> Bool[np.ndarray, " batch"]:
        """Which instances meet both equations; ``rest`` is what is left of the second on active rows."""
        cut = self.form.unslacked
        pressure = times_transpose(self.form, instances, np.where(active, q, 0.0))[:, :cut]
        first = np.where(free, column_side - self.scored * p[:, :cut] - pressure, 0.0)
        left = np.maximum(np.abs(first).max(axis=1, initial=0.0), np.abs(rest).max(axis=1, initial=0.0))
        return left <= CONVERGED * (
            1 + np.abs(column_side).max(axis=1, initial=0.0) + np.abs(p).max(axis=1, initial=0.0)
        )

    def _dense(
        self,
        data: np.ndarray,
        free: np.ndarray,
        active: np.ndarray,
        column_side: np.ndarray,
        row_side: np.ndarray,
        p: np.ndarray,
        q: np.ndarray,
        rescue: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """All instances at once; bound columns and idle rows are blanked out rather than removed."""
        movable, binding = torch.from_numpy(free), torch.from_numpy(active)
        entries = torch.zeros(len(free), self.form.rows, self.form.unslacked, dtype=torch.float64)
        entries[:, torch.from_numpy(self.body.indices).long(), torch.from_numpy(self.columns).long()] = torch.tensor(
            data
        )
        a = entries * (movable[:, None, :] & binding[:, :, None])
        norms = a.norm(dim=2)
        norms[norms == 0] = 1.0
        a /= norms[:, :, None]
        r1 = torch.from_numpy(np.where(free, column_side, 0.0))
        r2 = torch.from_numpy(np.where(active, row_side, 0.0)) / norms
        x, y = torch.tensor(p), torch.tensor(q) * norms
        step = self._normal_step(a) if self.form.auxiliary == 0 else self._augmented_step(a, movable)
        scored = torch.from_numpy(self.scored)
        goal = PRECISION * (1 + _largest(r1) + _largest(r2))
        for _ in range(STEPS):
            e1 = torch.where(movable, r1 - scored * x - _times(a.mT, y), 0.0)
            e2 = r2 - _times(a, x)
            left = torch.maximum(_largest(e1), _largest(e2))
            if bool((left <= goal).all()):
                break
            dx, dy = step(e1, e2)
            x, y = x + dx, y + dy
        else:
            for k in torch.nonzero(left > 1e3 * goal).flatten().tolist() if rescue else ():
                x[k], y[k] = self._least_squares(a[k], movable[k], r1[k], r2[k])
        return x.numpy(), (y / norms).numpy()

    def _least_squares(self, a: Tensor, movable: Tensor, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = a.shape
        whole = torch.zeros(rows + columns, rows + columns, dtype=a.dtype)
        whole[columns:, :columns], whole[:columns, columns:] = a, a.mT
        whole[range(columns), range(columns)] = torch.where(movable, torch.from_numpy(self.scored), 1.0)
        side = torch.cat([r1, r2])[:, None]
        found = torch.linalg.lstsq(whole, side, rcond=RESCUE_CUTOFF, driver="gelsd").solution[:, 0]
        return torch.where(movable, found[:columns], 0.0), found[columns:]

    def _normal_step(self, a: Tensor) -> Step:
        """With every column scored, columns are eliminated: ``(A Aᵀ + δ) dq = A e1 - e2``."""
        factor = torch.linalg.lu_factor(a @ a.mT + REGULARIZATION * torch.eye(a.shape[1], dtype=a.dtype))

        def step(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor]:
            dy = torch.linalg.lu_solve(*factor, (_times(a, e1) - e2)[:, :, None])[:, :, 0]
            return e1 - _times(a.mT, dy), dy

        return step

    def _augmented_step(self, a: Tensor, movable: Tensor) -> Step:
        rows, columns = a.shape[1:]
        whole = torch.zeros(len(a), rows + columns, rows + columns, dtype=a.dtype)
        whole[:, columns:, :columns] = a
        whole[:, :columns, columns:] = a.mT
        diagonal = torch.where(movable, torch.from_numpy(self.scored), 1.0) + REGULARIZATION
        diagonal = torch.cat([diagonal, torch.full((len(a), rows), -REGULARIZATION, dtype=a.dtype)], dim=1)
        factor = torch.linalg.lu_factor(whole + torch.diag_embed(diagonal))

        def step(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor]:
            moved = torch.linalg.lu_solve(*factor, torch.cat([e1, e2], dim=1)[:, :, None])[:, :, 0]
            return torch.where(movable, moved[:, :columns], 0.0), moved[:, columns:]

        return step

    def _sparse(
        self,
        data: np.ndarray,
        free: np.ndarray,
        active: np.ndarray,
        column_side: np.ndarray,
        row_side: np.ndarray,
        p: np.ndarray,
        q: np.ndarray,
        rescue: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        p, q = p.copy(), q.copy()
        for k in range(len(free)):
            mine = data if data.ndim == 1 else data[k]
            columns, rows = np.flatnonzero(free[k]), np.flatnonzero(active[k])
            body = sp.csc_array((mine, self.body.indices, self.body.indptr), shape=self.body.shape)
            body = sp.csr_array(body[:, columns])[rows]
            p[k, columns], q[k, rows] = self._sparse_one(
                body,
                self.scored[columns],
                column_side[k, columns],
                row_side[k, rows],
                p[k, columns],
                q[k, rows],
                rescue,
            )
        return p, q

    def _sparse_one(
        self,
        body: sp.csr_array,
        scored: np.ndarray,
        r1: np.ndarray,
        r2: np.ndarray,
        p: np.ndarray,
        q: np.ndarray,
        rescue: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = body.shape
        if rows == 0 or columns == 0:
            return np.where(scored > 0, r1, p), q
        norms = np.sqrt(np.asarray((body * body).sum(axis=1))).reshape(-1)
        norms[norms == 0] = 1.0
        body = sp.csr_array(sp.diags_array(1 / norms) @ body)
        r2, q = r2 / norms, q * norms
        whole = sp.block_array(
            [
                [sp.diags_array(scored + REGULARIZATION), body.T],
                [body, sp.diags_array(np.full(rows, -REGULARIZATION))],
            ],
            format="csc",
        )
        # Symmetric and quasi-definite, so any symmetric order of diagonal pivots is stable (Vanderbei 1995).
        factor = scipy.sparse.linalg.splu(
            whole, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
        goal = PRECISION * (1 + np.abs(r1).max(initial=0) + np.abs(r2).max(initial=0))
        transposed = sp.csr_array(body.T)
        for _ in range(STEPS):
            e1, e2 = r1 - scored * p - transposed @ q, r2 - body @ p
            if max(np.abs(e1).max(initial=0), np.abs(e2).max(initial=0)) <= goal:
                break
            moved = factor.solve(np.concatenate([e1, e2]))
            p, q = p + moved[:columns], q + moved[columns:]
        else:
            if rescue:
                # The steps above are Richardson's with this preconditioner; GMRES needs as many as there are weak rows.
                exact = sp.block_array([[sp.diags_array(scored), body.T], [body, None]], format="csr")
                precondition = scipy.sparse.linalg.LinearOperator(whole.shape, factor.solve)
                moved, _ = scipy.sparse.linalg.gmres(
                    exact,
                    np.concatenate([r1 - scored * p - transposed @ q, r2 - body @ p]),
                    M=precondition,
                    rtol=PRECISION,
                    atol=goal,
                    restart=100,
                    maxiter=3,
                )
                p, q = p + moved[:columns], q + moved[columns:]
        return p, q / norms


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[:, :, None])[:, :, 0]


def _largest(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, torch.inf, dim=1) if values.shape[1] else values.new_zeros(len(values))
