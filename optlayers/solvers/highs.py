"""HiGHS: vertices by the simplex method, on a model that is kept and re-solved with new costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import highspy
import numpy as np
from highspy import _core

from optlayers.form.standard import StandardForm
from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.kernels import ties, vertex
from optlayers.solvers.models import ThreadModels, check_limits
from optlayers.solvers.plan import plan_of
from optlayers.solvers.vertices import ROUNDING

__all__ = ["Highs"]

TIE = 1e-7
"""A reduced cost below this, at costs of unit size, decides nothing; what it leaves open is solved again at its own
scale. It is well above the tolerance of HiGHS, so that columns with a larger one do keep their bounds."""
NOISE = 1e-12
"""A price below this, at costs of unit size, is rounding of HiGHS."""
STAGES = 6
"""How many scales of scores one instance may hold, each a factor TIE below the last."""
SNAP = 1e-9
"""Values this close to one of their bounds are that bound; the simplex method leaves rounding on basic columns."""


@final
@dataclass(frozen=True)
class Highs(AbstractMaximizer):
    """Maximize with the dual simplex method of HiGHS (Huangfu & Hall, 2018), one warm model per thread.

    When several vertices are best, fixed objectives decide among them (:mod:`optlayers.solvers.kernels.ties`), the same
    ones in all solvers. Which vertex that is depends on the scores of the instance alone: not on the rest of the batch,
    and not on what the warm model solved before. (Scores whose sums differ by rounding alone may be decided either
    way.)
    What the warm model leaves uncertified is solved once more by a fresh one, which has seen nothing else.

    Parameters
    ----------
    tolerance : primal and dual feasibility tolerance of HiGHS.
    iteration_limit : simplex iterations per instance.
    time_limit : seconds per instance.
    """

    tolerance: float = 1e-9
    iteration_limit: int = 1_000_000
    time_limit: float = 60.0
    manner = "simplex: answers are vertices, warm from instance to instance"

    def __post_init__(self) -> None:
        if not 1e-10 <= self.tolerance <= 1e-3:
            raise ValueError(f"tolerance must be in [1e-10, 1e-3], the range of HiGHS, but got {self.tolerance}")
        check_limits(self.iteration_limit, self.time_limit)

    def prepare(self, form: StandardForm) -> ThreadModels:
        return ThreadModels(form, partial(_Model, form, self))

    def maximize(self, state: ThreadModels, instances: Instances) -> Answer:
        return state.solve(instances)

    def maximizers_in_turn(self, state: ThreadModels) -> Iterator[tuple[AbstractMaximizer, ThreadModels]]:
        yield self, state
        yield self, state.afresh()


class _Model:
    """One HiGHS model without the slack columns: inequality rows carry their bound themselves."""

    def __init__(self, form: StandardForm, solver: Highs) -> None:
        self.form = form
        self.columns = np.arange(form.unslacked, dtype=np.int32)
        self.rows = np.arange(form.rows, dtype=np.int32)
        self.body = form.matrix[:, : form.unslacked]
        self.entry_column = form.entry_column[: self.body.nnz]
        self.varying = np.flatnonzero(np.diff(form.matrix_map.indptr)[: self.body.nnz])
        self.plan = plan_of(form)
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
        scores = np.zeros(cut)
        scores[: self.form.scored] = instances.scores[k]
        data = self.body.data if instances.matrix is None else instances.matrix[k, : self.body.nnz]
        point, dual, status = self._lexicographic(scores, data)
        if status != Status.OPTIMAL:
            return np.full(self.form.columns, np.nan), np.full(self.form.rows, np.nan), status
        return self._with_slack(point, data), dual, status

    def _lexicographic(self, scores: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Maximize the scores, what is left of them on the optimal face, and at last the objectives that decide ties.

        The tolerances of HiGHS are absolute, so costs are scaled to unit size: next to a score of 1e9, others vanish.
        What a solve leaves undecided (columns and rows without a reduced cost) is the optimal face, by complementary
        slackness, whichever optimal dual point is at hand. On it the rest ``scores - Aᵀ y`` is scaled anew, until it
        is rounding. Then several vertices are best, and the objectives of :mod:`optlayers.solvers.kernels.ties` decide.
        """
        whole = face = _Face(self.lower, self.upper, self._row_lower(self.rhs))
        rest, dual, point = scores, np.zeros(self.form.rows), np.zeros(0)
        try:
            for stage in range(STAGES):
                rest = np.where(face.lower < face.upper, rest, 0.0)
                scale = np.abs(rest).max(initial=0.0)
                if stage > 0 and scale == 0:
                    break
                status = self._run(rest / scale if scale > 0 else rest, again=stage == 0)
                if status != Status.OPTIMAL:
                    # What an earlier stage found stands, and the certificate judges it.
                    return point, dual, Status.OPTIMAL if stage > 0 else status
                point, duals, reduced = self._solution()
                if self._unique(face, duals, reduced):
                    return point, dual + duals * scale, status
                point, duals, reduced = self._afresh()
                face = face.where_best(point, duals, reduced, self.rhs)
                self._set_face(face)
                # Only rows that are tight all over the face may be priced out.
                dual = dual + np.where(face.row_lower == self.rhs, duals, 0.0) * scale
                rest = self._left_over(scores, dual, data)
            for round_ in range(ties.ROUNDS):
                if self._decided(face, data):
                    break
                costs = ties.objective(round_, self.form.scored, self.form.unslacked)
                if self._run(np.where(face.lower < face.upper, costs, 0.0)) != Status.OPTIMAL:
                    break
                point, duals, reduced = self._solution()
                if self._unique(face, duals, reduced):
                    break
                face = face.where_best(point, duals, reduced, self.rhs)
                self._set_face(face)
            return point, dual, Status.OPTIMAL
        finally:
            if face is not whole:
                self._set_face(whole)

    def _decided(self, face: _Face, data: np.ndarray) -> bool:
        """Whether a face has one structure, whatever auxiliary columns may do on it."""
        moves, tight = face.lower < face.upper, face.row_lower == self.rhs
        if np.count_nonzero(moves[: self.form.scored]) > np.count_nonzero(tight):
            return False  # as many rows do not decide so many columns
        return bool(
            vertex.is_decided(self.plan.start, self.plan.row, data, *self.plan.by_row, self.form.scored, moves, tight)
        )

    def _left_over(self, scores: np.ndarray, dual: np.ndarray, data: np.ndarray) -> np.ndarray:
        """``scores - Aᵀ dual``, with 0 for what is rounding."""
        terms = data * dual[self.body.indices]
        width = self.form.unslacked
        rest = scores - np.bincount(self.entry_column, terms, minlength=width)
        size = np.abs(scores) + np.bincount(self.entry_column, np.abs(terms), minlength=width)
        return np.where(np.abs(rest) <= ROUNDING * size, 0.0, rest)

    def _set_face(self, face: _Face) -> None:
        self.highs.changeColsBounds(len(self.columns), self.columns, face.lower, face.upper)
        self.highs.changeRowsBounds(len(self.rows), self.rows, face.row_lower, self.rhs)

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

    def _run(self, costs: np.ndarray, *, again: bool = False) -> int:
        """Solve with other costs; ``again`` from a cold start if the warm one fails, which forgives a bad basis."""
        if not np.isfinite(costs).all():
            return Status.FAILED  # with such costs HiGHS does not come to an end
        self.highs.changeColsCost(len(self.columns), self.columns, costs)
        # HiGHS counts time over the life of a model.
        self.highs.setOptionValue("time_limit", self.highs.getRunTime() + self.time_limit)
        self.highs.run()
        status = _STATUS.get(self.highs.getModelStatus(), Status.FAILED)
        if again and status != Status.OPTIMAL:
            self.highs.clearSolver()
            return self._run(costs)
        return status

    def _afresh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The solution from the same basis, factorized again: prices have gathered rounding with every change of it,
        which would be taken for what is left of scores, and decide a tie."""
        self.highs.setBasis(self.highs.getBasis())
        self.highs.run()
        return self._solution()

    def _solution(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        solution = self.highs.getSolution()
        dual = np.array(solution.row_dual)
        # Costs are of unit size. What stays of them without such a price is solved for at its own scale.
        return np.array(solution.col_value), np.where(np.abs(dual) <= NOISE, 0.0, dual), np.array(solution.col_dual)

    def _unique(self, face: _Face, dual: np.ndarray, reduced: np.ndarray) -> bool:
        """Whether every nonbasic column and row that could move has a cost: then the best vertex is unique."""
        basis = self.highs.getBasis()
        basic = highspy.HighsBasisStatus.kBasic
        column = np.array([s == basic for s in basis.col_status], dtype=bool)
        row = np.array([s == basic for s in basis.row_status], dtype=bool)
        idle_column = ~column & (face.lower < face.upper) & (np.abs(reduced) <= TIE)
        idle_row = ~row & (face.row_lower < self.rhs) & (np.abs(dual) <= TIE)
        return not (idle_column.any() or idle_row.any())

    def _with_slack(self, point: np.ndarray, data: np.ndarray) -> np.ndarray:
        below = np.abs(point - self.lower) <= np.abs(point - self.upper)
        point = np.where(below, _snap(point, self.lower), _snap(point, self.upper))
        product = np.bincount(self.body.indices, data * point[self.entry_column], minlength=self.form.rows)
        slack = (self.rhs - product)[self.form.equalities :]
        slack[np.abs(slack) <= SNAP * (1 + np.abs(self.rhs[self.form.equalities :]))] = 0.0
        return np.concatenate([point, slack])


@dataclass(frozen=True)
class _Face:
    """Bounds of columns and lower sides of rows."""

    lower: np.ndarray
    upper: np.ndarray
    row_lower: np.ndarray

    def where_best(self, point: np.ndarray, dual: np.ndarray, reduced: np.ndarray, rhs: np.ndarray) -> _Face:
        """The part where columns with a reduced cost keep their bound and rows with a dual their side."""
        at_lower = np.abs(point - self.lower) <= np.abs(point - self.upper)
        bound = np.where(at_lower, self.lower, self.upper)
        keeps = (np.abs(reduced) > TIE) & np.isfinite(bound)
        return _Face(
            np.where(keeps, bound, self.lower),
            np.where(keeps, bound, self.upper),
            np.where(np.abs(dual) > TIE, rhs, self.row_lower),
        )


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
