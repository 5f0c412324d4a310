"""Linear programs over the rows of a declaration, one after the other, and what their answers prove."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

import highspy
import numpy as np
import scipy.sparse as sp
from highspy import _core

from optlayers.reporting.rationals import read_together
from optlayers.reporting.rows import Rows

__all__ = ["LinearProgram", "Optimum", "proved_bound"]

ACTIVE = 1e-8
"""Multipliers below this are 0."""


@final
@dataclass(frozen=True)
class Optimum:
    """The best point for an objective, its value, and the multipliers of the rows that bound it."""

    value: float
    point: np.ndarray
    multipliers: np.ndarray


@final
class LinearProgram:
    """The rows of a declaration in a solver that starts from where the last question ended."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.high = rows.sides.astype(np.float64)
        self.low = np.where(rows.equality, self.high, -highspy.kHighsInf)
        self.solver: Any = _core._Highs()  # the public class prints a banner
        for option, value in (
            ("output_flag", False),
            ("presolve", "off"),
            ("parallel", "off"),
            ("primal_feasibility_tolerance", 1e-9),
            ("dual_feasibility_tolerance", 1e-9),
        ):
            self.solver.setOptionValue(option, value)
        matrix, model = sp.csc_array(rows.matrix), highspy.HighsLp()
        model.num_col_, model.num_row_ = rows.columns, rows.count
        model.sense_ = highspy.ObjSense.kMaximize
        model.col_cost_ = np.zeros(rows.columns)
        model.col_lower_ = np.full(rows.columns, -highspy.kHighsInf)
        model.col_upper_ = np.full(rows.columns, highspy.kHighsInf)
        model.row_lower_, model.row_upper_ = self.low, self.high
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = matrix.indptr
        model.a_matrix_.index_, model.a_matrix_.value_ = matrix.indices, matrix.data
        self.solver.passModel(model)
        self.columns = np.arange(rows.columns, dtype=np.int32)
        self.asked = 0

    def maximize(self, objective: np.ndarray) -> Optimum | None:
        """The best point for an objective over all columns, or over the scored ones; None where there is none."""
        costs = np.zeros(self.rows.columns)
        costs[: len(objective)] = objective
        self.asked += 1
        solver = self.solver
        solver.changeColsCost(self.rows.columns, self.columns, costs)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            solver.clearSolver()  # from the beginning, where the way from the last answer led nowhere
            solver.run()
            if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
                return None
        found = solver.getSolution()
        point, multipliers = np.array(found.col_value), np.array(found.row_dual)
        return Optimum(float(costs @ point), point, multipliers)

    def bound_row(self, row: int, side: float | None) -> None:
        """Give a row another right-hand side, or none."""
        self.solver.changeRowBounds(row, -highspy.kHighsInf, highspy.kHighsInf if side is None else side)

    def restore(self, row: int) -> None:
        """Give a row back what was declared."""
        self.solver.changeRowBounds(row, self.low[row], self.high[row])

    def hold(self, row: int) -> None:
        """Let a row hold as an equality."""
        self.solver.changeRowBounds(row, self.high[row], self.high[row])

    def fix(self, column: int, value: float) -> None:
        """Hold a column at a value."""
        self.solver.changeColBounds(column, value, value)

    def free(self, column: int) -> None:
        """Let a column go."""
        self.solver.changeColBounds(column, -highspy.kHighsInf, highspy.kHighsInf)


def proved_bound(rows: Rows, objective: np.ndarray, multipliers: np.ndarray) -> Fraction | None:
    """The largest value of an objective of integers, by a sum of rows that is the objective; None where that is not
    shown.

    The multipliers come from a solver. They are read as fractions, and the sum is worked out without rounding.
    """
    used = np.where(np.abs(multipliers) > ACTIVE, multipliers, 0.0)
    found = read_together(used)
    if found is None or not rows.exact:
        return None
    weights, unit = found
    if (weights[~rows.equality] < 0).any() or not rows.fits(int(np.abs(weights).max(initial=0))):
        return None
    wanted = np.zeros(rows.columns, dtype=np.int64)
    wanted[: len(objective)] = np.rint(objective).astype(np.int64)
    if int(np.abs(wanted).max(initial=0)) * unit >= 2**62 or not np.array_equal(rows.whole.T @ weights, unit * wanted):
        return None
    return Fraction(int(weights @ rows.whole_sides), unit)
