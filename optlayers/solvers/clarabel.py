"""Clarabel: projections by an interior point method, on a solver that is kept and updated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import clarabel
import numpy as np
import scipy.sparse as sp

from optlayers.form.standard import StandardForm
from optlayers.solution import Status
from optlayers.solvers.base import AbstractProjector, Answer, Instances
from optlayers.solvers.models import ThreadModels, check_limits

__all__ = ["Clarabel", "settings_of", "status_of"]


@final
@dataclass(frozen=True)
class Clarabel(AbstractProjector):
    """Project with the interior point method of Clarabel (Goulart & Chen, 2024), one kept solver per thread.

    Its answers have a residual near ``tolerance`` and lie a little inside the polytope; the compiled polytope
    polishes them to the exact active set. What a kept solver leaves uncertified is solved once more by a fresh one: a
    kept one has scaled its problem for the scores that it saw first, which may be of quite another size.

    Parameters
    ----------
    tolerance : absolute and relative gap, and feasibility, at which Clarabel stops.
    iteration_limit : interior point iterations per instance.
    time_limit : seconds per instance.
    """

    tolerance: float = 1e-10
    iteration_limit: int = 100
    time_limit: float = 60.0
    manner = "a kept interior point solver, polished to the exact active set"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, but got {self.tolerance}")
        check_limits(self.iteration_limit, self.time_limit)

    def prepare(self, form: StandardForm) -> ThreadModels:
        return ThreadModels(form, partial(_Model, form, self))

    def project(self, state: ThreadModels, instances: Instances) -> Answer:
        return state.solve(instances)

    def projectors_in_turn(self, state: ThreadModels) -> Iterator[tuple[AbstractProjector, ThreadModels]]:
        yield self, state
        yield self, state.afresh()


class _Model:
    """``min ½ xᵀ P x + qᵀ x`` with ``M x + s = h``: rows of A, then finite lower bounds, then finite upper ones."""

    def __init__(self, form: StandardForm, solver: Clarabel) -> None:
        self.form = form
        cut = form.unslacked
        self.low = np.flatnonzero(np.isfinite(form.lower.constant[:cut]))
        self.high = np.flatnonzero(np.isfinite(form.upper.constant[:cut]))
        body = form.matrix[:, :cut]
        self.body_entries = body.nnz
        # Entries of M are numbered before they are filled, so that values can be exchanged later.
        numbered = sp.csc_array((np.arange(1.0, body.nnz + 1), body.indices, body.indptr), shape=body.shape)
        stacked = sp.vstack([numbered, self._bound_rows(self.low, cut), self._bound_rows(self.high, cut)], format="csc")
        stacked.sort_indices()
        self.indices, self.indptr = stacked.indices, stacked.indptr
        self.is_body = stacked.indices < form.rows
        self.source = np.where(self.is_body, stacked.data - 1, 0).astype(np.int64)
        self.is_low = (stacked.indices >= form.rows) & (stacked.indices < form.rows + len(self.low))
        self.entry_column = np.repeat(np.arange(cut), np.diff(stacked.indptr))
        self.shape = stacked.shape
        self.values = self._values(form.matrix.data)
        self.rhs_cones = (
            clarabel.ZeroConeT(form.equalities),
            clarabel.NonnegativeConeT(self.shape[0] - form.equalities),
        )
        self.settings = settings_of(solver.tolerance, solver.iteration_limit)
        self.settings.time_limit = solver.time_limit
        self.curvature = np.zeros(cut)
        self.curvature[: form.curved] = 1.0
        self.solver: clarabel.DefaultSolver | None = None

    @staticmethod
    def _bound_rows(columns: np.ndarray, width: int) -> sp.csc_array:
        return sp.csc_array((np.ones(len(columns)), (np.arange(len(columns)), columns)), shape=(len(columns), width))

    def _values(self, data: np.ndarray) -> np.ndarray:
        values = np.where(self.is_body, data[: self.body_entries][self.source] if self.body_entries else 0.0, 1.0)
        return np.where(self.is_low, -1.0, values)

    def solve(self, instances: Instances, k: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Point, dual and status of instance ``k``."""
        form, cut = self.form, self.form.unslacked
        lower, upper = instances.lower[k, :cut], instances.upper[k, :cut]
        target = np.zeros(cut)
        target[: form.scored] = instances.scores[k]
        values = self.values if instances.matrix is None else self._values(instances.matrix[k])
        held = np.zeros(cut, dtype=bool) if instances.forbidden is None else instances.forbidden[k, :cut]
        if held.any():
            # Two bounds that meet leave an interior point method no interior. A held column leaves the system
            # instead: it keeps only its own bounds, spread to [-1, 1], around a target of 0.
            values = np.where(held[self.entry_column] & self.is_body, 0.0, values)
            target, lower, upper = target.copy(), np.where(held, -1.0, lower), np.where(held, 1.0, upper)
            target[held] = 0.0
        h = np.concatenate([instances.rhs[k], -lower[self.low], upper[self.high]])
        # An objective of unit size, whatever the scores: the scaling of a kept solver is that of its first problem.
        size = max(1.0, np.abs(target).max(initial=0.0))
        solution = self._run(values, self.curvature / size, -target / size, h)
        point = np.array(solution.x)
        point[held] = 0.0
        dual = np.array(solution.z)[: form.rows] * size
        status = status_of(solution.status)
        return self._with_slack(point, instances, k), dual, status

    def _run(self, values: np.ndarray, curvature: np.ndarray, q: np.ndarray, h: np.ndarray) -> clarabel.DefaultSolution:
        if self.solver is None:
            self.solver = self._build(values, curvature, q, h)
            self.kept_values = values
        else:
            self.solver.update(P=curvature, q=q, b=h)
            if not np.array_equal(values, self.kept_values):
                self.solver.update(A=values)
                self.kept_values = values
        return self.solver.solve()

    def _build(self, values: np.ndarray, curvature: np.ndarray, q: np.ndarray, h: np.ndarray) -> clarabel.DefaultSolver:
        matrix = sp.csc_matrix((values, self.indices, self.indptr), shape=self.shape)
        # All diagonal entries are stored, also zeros, so that they can be exchanged in their order.
        width = len(curvature)
        diagonal = sp.csc_matrix((curvature, np.arange(width), np.arange(width + 1)), shape=(width, width))
        return clarabel.DefaultSolver(diagonal, q, matrix, h, list(self.rhs_cones), self.settings)

    def _with_slack(self, point: np.ndarray, instances: Instances, k: int) -> np.ndarray:
        form = self.form
        body = self.is_body
        data = form.matrix.data if instances.matrix is None else instances.matrix[k]
        product = np.bincount(
            self.indices[body], data[self.source[body]] * point[self.entry_column[body]], minlength=form.rows
        )
        return np.concatenate([point, (instances.rhs[k] - product)[form.equalities :]])


def settings_of(tolerance: float, iteration_limit: int) -> clarabel.DefaultSettings:
    """Settings of Clarabel for small problems that are solved one by one, and again with other numbers."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.presolve_enable = False  # a presolved problem cannot be updated
    settings.chordal_decomposition_enable = False
    settings.max_threads = 1
    settings.max_iter = iteration_limit
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    return settings


def status_of(word: object) -> Status:
    """What Clarabel says of a problem."""
    return _STATUS.get(str(word), Status.FAILED)


_STATUS = {
    "Solved": Status.OPTIMAL,
    "AlmostSolved": Status.OPTIMAL,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.LIMIT,
    "MaxTime": Status.LIMIT,
    "InsufficientProgress": Status.INACCURATE,
}
