"""Linear programs over the rows of a declaration, one after the other, and what their answers prove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, final

import highspy
import numpy as np
import scipy.sparse as sp
from highspy import _core

from optlayers.reporting.rationals import NEAR, over_one_denominator, read_together, solved
from optlayers.reporting.rows import Rows

__all__ = ["LinearProgram", "Optimum", "basis_point", "exact_point", "proved_bound"]

ACTIVE = 1e-8
"""Multipliers below this are 0."""
FEW = 120
"""Of so many rows, or columns, a system is solved without rounding."""
LARGE = 2.0**20
"""Rows of larger integers are scaled down for the solver."""


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
        # A solver meets tolerances in the units of rows, so those of large integers are divided by a power of two.
        self.unit = 2.0 ** np.ceil(np.log2(np.maximum(rows.largest / LARGE, 1.0)))
        self.high = rows.sides / self.unit
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
        matrix, model = sp.csc_array(rows.matrix / self.unit[:, None]), highspy.HighsLp()
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
        point, multipliers = np.array(found.col_value), np.array(found.row_dual) / self.unit
        return Optimum(float(costs @ point), point, multipliers)

    def active_rows(self) -> list[int]:
        """The rows that the basis of the last answer holds at their sides."""
        basic = highspy.HighsBasisStatus.kBasic
        return [i for i, status in enumerate(self.solver.getBasis().row_status) if status != basic]

    def bound_row(self, row: int, side: float | None) -> None:
        """Give a row another right-hand side, or none."""
        high = highspy.kHighsInf if side is None else side / self.unit[row]
        self.solver.changeRowBounds(row, -highspy.kHighsInf, high)

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
    if not rows.exact:
        return None
    wanted = np.zeros(rows.columns, dtype=np.int64)
    wanted[: len(objective)] = np.rint(objective).astype(np.int64)
    found = read_together(np.where(np.abs(multipliers) > ACTIVE, multipliers, 0.0))
    if found is not None and rows.fits(int(np.abs(found[0]).max(initial=0))):
        weights, unit = found
        is_sum = int(np.abs(wanted).max(initial=0)) * unit < 2**62
        if is_sum and (weights[~rows.equality] >= 0).all() and np.array_equal(rows.whole.T @ weights, unit * wanted):
            return Fraction(int(weights @ rows.whole_sides), unit)
    return _bound_by_elimination(rows, wanted, multipliers)


def _bound_by_elimination(rows: Rows, wanted: np.ndarray, multipliers: np.ndarray) -> Fraction | None:
    """Of the rows that have multipliers, those that make the objective, by elimination without rounding."""
    sizes = np.abs(multipliers) * rows.largest
    chosen = np.flatnonzero(sizes > ACTIVE * max(1.0, float(sizes.max(initial=0.0)))).tolist()
    if len(chosen) > FEW:
        return None
    columns: list[dict[int, Fraction | int]] = [{-1: int(a)} for a in wanted]
    for place, i in enumerate(chosen):
        for j, a in rows.row(i).items():
            columns[j][place] = a
    weights = solved((c for c in columns if c != {-1: 0}), len(chosen))
    if weights is None or any(w < 0 and not rows.equality[i] for i, w in zip(chosen, weights, strict=True)):
        return None
    return sum((w * rows.side(i) for i, w in zip(chosen, weights, strict=True)), Fraction(0))


def exact_point(rows: Rows, program: LinearProgram, best: Optimum) -> tuple[np.ndarray, int] | None:
    """The answer that a program gave last as integers over one denominator, shown without rounding to satisfy all rows;
    None where that cannot be shown.

    It is read as short fractions; or it is where the rows of its basis hold as equalities, worked out by elimination.
    """
    found = read_together(best.point)
    if found is not None and rows.holds(*found):
        slack = rows.slacks(*found)
        if slack is not None and (slack[program.active_rows()] == 0).all():
            return found
    exact = basis_point(rows, program, best)
    return exact if exact is not None and rows.holds(*exact) else None


def basis_point(
    rows: Rows, program: LinearProgram, best: Optimum, sides: Mapping[int, Fraction | int] = MappingProxyType({})
) -> tuple[np.ndarray, int] | None:
    """Where the rows of the basis of the last answer hold as equalities, some of them with other ``sides`` than
    declared; None where these are not known without rounding, or do not determine a point near the answer."""
    if not rows.exact or rows.columns > FEW:
        return None
    active = program.active_rows()
    point = solved(({**rows.row(i), -1: sides.get(i, rows.side(i))} for i in active), rows.columns)
    if point is None or np.abs(np.array([float(v) for v in point]) - best.point).max(initial=0.0) > NEAR:
        return None
    return over_one_denominator(point)
