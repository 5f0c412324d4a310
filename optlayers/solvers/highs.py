"""HiGHS: vertices by the simplex method, on a model that is kept and re-solved with new costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import highspy
import numpy as np
from highspy import _core

from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.kept import KeptModels, check_limits
from optlayers.standard_form import StandardForm

__all__ = ["Highs"]

TIE = 1e-9
"""A reduced cost below this, relative to the largest score, counts as 0: another vertex may be as good."""
SNAP = 1e-9
"""Values this close to one of their bounds are that bound; the simplex method leaves rounding on basic columns."""


@final
@dataclass(frozen=True)
class Highs(AbstractMaximizer):
    """Maximize with the dual simplex method of HiGHS (Huangfu & Hall, 2018), one warm model per thread.

    When several vertices are best, the one that maximizes a second, fixed and generic objective over the optimal
    face is returned. It depends on the scores of the instance alone: not on the rest of the batch, and not on what
    the warm model solved before.

    Parameters
    ----------
    tolerance : primal and dual feasibility tolerance of HiGHS.
    iteration_limit : simplex iterations per instance.
    time_limit : seconds per instance.
    """

    tolerance: float = 1e-9
    iteration_limit: int = 1_000_000
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        if not 1e-10 <= self.tolerance <= 1e-3:
            raise ValueError(f"tolerance must be in [1e-10, 1e-3], the range of HiGHS, but got {self.tolerance}")
        check_limits(self.iteration_limit, self.time_limit)

    def prepare(self, form: StandardForm) -> KeptModels:
        return KeptModels(form, partial(_Model, form, self))

    def maximize(self, state: KeptModels, instances: Instances) -> Answer:
        return state.solve(instances)


class _Model:
    """One HiGHS model without the slack columns: inequality rows carry their bound themselves."""

    def __init__(self, form: StandardForm, solver: Highs) -> None:
        self.form = form
        self.columns = np.arange(form.unslacked, dtype=np.int32)
        self.rows = np.arange(form.rows, dtype=np.int32)
        self.body = form.matrix[:, : form.unslacked]
        self.entry_column = form.entry_column[: self.body.nnz]
        self.varying = np.flatnonzero(np.diff(form.matrix_map.indptr)[: self.body.nnz])
        # Irrational steps, so that no two faces of a structure with integer vertices tie again.
        self.generic = 1.0 + np.modf(np.sqrt(2.0) * np.arange(1, form.scored + 1) ** 1.5)[0]
        self.lower, self.upper, self.rhs = (m.constant for m in (form.lower, form.upper, form.rhs))
        self.lower, self.upper = self.lower[: form.unslacked].copy(), self.upper[: form.unslacked].copy()
        # The public class prints a banner while it is constructed, before anything can silence it.
        self.highs: Any = _core._Highs()
        options: dict[str, Any] = {
            "output_flag": False,
            "solver": "simplex",
            "presolve": "off",
            # "threads" stays at its default: HiGHS refuses to run when another user of the same Python thread (cvxpy,
            # say) has started its scheduler with a different number.
            "parallel": "off",
            "primal_feasibility_tolerance": solver.tolerance,
            "dual_feasibility_tolerance": solver.tolerance,
            "simplex_iteration_limit": solver.iteration_limit,
            "time_limit": np.inf,
        }
        for name, value in options.items():
            self.highs.setOptionValue(name, value)
        self.time_limit = solver.time_limit
        self.highs.passModel(self._model())

    def _model(self) -> highspy.HighsLp:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self.form.unslacked, self.form.rows
        lp.sense_ = highspy.ObjSense.kMaximize
        lp.col_cost_ = np.zeros(self.form.unslacked)
        lp.col_lower_, lp.col_upper_ = self.lower, self.upper
        lp.row_lower_, lp.row_upper_ = self._row_lower(self.rhs), self.rhs
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = self.body.indptr
        lp.a_matrix_.index_ = self.body.indices
        lp.a_matrix_.value_ = self.body.data
        return lp

    def _row_lower(self, rhs: np.ndarray) -> np.ndarray:
        low = rhs.copy()
        low[self.form.equalities :] = -np.inf
        return low

    def solve(self, instances: Instances, k: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Point, dual and status of instance ``k``."""
        cut = self.form.unslacked
        self._set_matrix(instances, k)
        self._set_bounds(instances.lower[k, :cut], instances.upper[k, :cut])
        self._set_rhs(instances.rhs[k])
        scores = instances.scores[k]
        # Costs of unit size: the tolerances of HiGHS are absolute.
        scale = max(np.abs(scores).max(initial=0.0), 1e-300)
        status = self._run(scores / scale)
        if status != Status.OPTIMAL:
            # A cold start forgives a bad basis; what fails twice has failed.
            self.highs.clearSolver()
            status = self._run(scores / scale)
        if status != Status.OPTIMAL:
            return np.full(self.form.columns, np.nan), np.full(self.form.rows, np.nan), status
        point, dual, reduced = self._solution()
        if self._may_tie(reduced, dual):
            point = self._decide(point, dual, reduced, instances, k)
        return self._with_slack(point, instances, k), dual * scale, status

    def _set_matrix(self, instances: Instances, k: int) -> None:
        if instances.matrix is None:
            return
        for entry in self.varying:
            row, column = int(self.body.indices[entry]), int(self.entry_column[entry])
            self.highs.changeCoeff(row, column, float(instances.matrix[k, entry]))

    def _set_bounds(self, lower: np.ndarray, upper: np.ndarray) -> None:
        if not (np.array_equal(lower, self.lower) and np.array_equal(upper, self.upper)):
            self.lower, self.upper = lower.copy(), upper.copy()
            self.highs.changeColsBounds(len(self.columns), self.columns, self.lower, self.upper)

    def _set_rhs(self, rhs: np.ndarray) -> None:
        if not np.array_equal(rhs, self.rhs):
            self.rhs = rhs.copy()
            self.highs.changeRowsBounds(len(self.rows), self.rows, self._row_lower(self.rhs), self.rhs)

    def _run(self, costs: np.ndarray) -> int:
        full = np.zeros(self.form.unslacked)
        full[: self.form.scored] = costs
        self.highs.changeColsCost(len(self.columns), self.columns, full)
        # HiGHS counts time over the life of a model.
        self.highs.setOptionValue("time_limit", self.highs.getRunTime() + self.time_limit)
        self.highs.run()
        return _STATUS.get(self.highs.getModelStatus(), Status.FAILED)

    def _solution(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        solution = self.highs.getSolution()
        return np.array(solution.col_value), np.array(solution.row_dual), np.array(solution.col_dual)

    def _may_tie(self, reduced: np.ndarray, dual: np.ndarray) -> bool:
        """Whether a nonbasic column or row has no cost: without one, the optimal vertex is unique."""
        basis = self.highs.getBasis()
        basic = highspy.HighsBasisStatus.kBasic
        column = np.array([s == basic for s in basis.col_status], dtype=bool)
        row = np.array([s == basic for s in basis.row_status], dtype=bool)
        movable = ~column & (self.lower < self.upper)
        loose = ~row[self.form.equalities :]
        return bool(
            (movable & (np.abs(reduced) <= TIE)).any() or (loose & (np.abs(dual[self.form.equalities :]) <= TIE)).any()
        )

    def _decide(
        self, point: np.ndarray, dual: np.ndarray, reduced: np.ndarray, instances: Instances, k: int
    ) -> np.ndarray:
        """The vertex of the optimal face that maximizes the generic objective.

        By complementary slackness the optimal face is where every column with a reduced cost keeps its bound and
        every row with a dual keeps its side, whichever optimal dual point is at hand.
        """
        costly = np.abs(reduced) > TIE
        at_lower = np.abs(point - self.lower) <= np.abs(point - self.upper)
        bound = np.where(at_lower, self.lower, self.upper)
        keeps = costly & np.isfinite(bound)
        lower, upper = np.where(keeps, bound, self.lower), np.where(keeps, bound, self.upper)
        binding = np.abs(dual) > TIE
        self.highs.changeColsBounds(len(self.columns), self.columns, lower, upper)
        self.highs.changeRowsBounds(
            len(self.rows), self.rows, np.where(binding, self.rhs, self._row_lower(self.rhs)), self.rhs
        )
        status = self._run(self.generic)
        decided = self._solution()[0] if status == Status.OPTIMAL else point
        self.highs.changeColsBounds(len(self.columns), self.columns, self.lower, self.upper)
        self.highs.changeRowsBounds(len(self.rows), self.rows, self._row_lower(self.rhs), self.rhs)
        return decided

    def _with_slack(self, point: np.ndarray, instances: Instances, k: int) -> np.ndarray:
        point = _snap(_snap(point, self.lower), self.upper)
        data = self.body.data if instances.matrix is None else instances.matrix[k, : self.body.nnz]
        product = np.bincount(self.body.indices, data * point[self.entry_column], minlength=self.form.rows)
        slack = (self.rhs - product)[self.form.equalities :]
        slack[np.abs(slack) <= SNAP * (1 + np.abs(self.rhs[self.form.equalities :]))] = 0.0
        return np.concatenate([point, slack])


def _snap(point: np.ndarray, bound: np.ndarray) -> np.ndarray:
    close = np.isfinite(bound)
    close[close] = np.abs(point[close] - bound[close]) <= SNAP * (1 + np.abs(bound[close]))
    return np.where(close, bound, point)


_STATUS = {
    highspy.HighsModelStatus.kOptimal: Status.OPTIMAL,
    highspy.HighsModelStatus.kInfeasible: Status.INFEASIBLE,
    highspy.HighsModelStatus.kUnbounded: Status.UNBOUNDED,
    highspy.HighsModelStatus.kUnboundedOrInfeasible: Status.INFEASIBLE,
    highspy.HighsModelStatus.kTimeLimit: Status.LIMIT,
    highspy.HighsModelStatus.kIterationLimit: Status.LIMIT,
}
