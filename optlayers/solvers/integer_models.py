"""Best integer points of one instance: models of HiGHS, and of other solvers that cvxpy knows, to a gap of zero."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple, final

import cvxpy as cp
import highspy
import numpy as np
from highspy import _core
from jaxtyping import Float64

from optlayers.common.locks import at_fork
from optlayers.form.standard import StandardForm
from optlayers.integer.program import IntegerProgram
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import ties

__all__ = ["AbstractModel", "Floors", "ForeignModel", "HighsModel", "Limits", "NotProved"]

FEASIBLE = 1e-9
"""How far HiGHS may leave rows, and entries integers."""
GRIDS = 2.0 ** np.arange(0, 25, 4)
"""Scores that are multiples of one over one of these tie exactly, or differ by that much."""
SIZE = 1e4
"""Costs are brought to this size, next to the absolute tolerances of HiGHS."""
TIED = 1e-12
"""Structures whose scores differ by less, next to the sum of all of them, tie."""
SMALL = 1e-6
"""Scores that are smaller than the largest by this factor are searched in turn: HiGHS takes their sums for nothing."""

# The scheduler of HiGHS, which a search starts, has threads that a forked child lacks, and would wait for.
at_fork(after_in_child=partial(_core._Highs.resetGlobalScheduler, False))

Floors = Sequence[tuple[Float64[np.ndarray, " scored"], float]]
"""Scores of points, and how much these are at least."""


class NotProved(RuntimeError):
    """A search that ended before its end."""


class Limits(NamedTuple):
    """By which solver, None for HiGHS, and within how many seconds and nodes; ``named`` is how messages say that."""

    solver: str | None
    time: float
    nodes: int
    named: str


class AbstractModel(ABC):
    """A model whose numbers are set for every instance."""

    def __init__(self, form: StandardForm, limits: Limits) -> None:
        self.form, self.limits = form, limits
        self.body = form.matrix[:, : form.unslacked]
        self.objectives = [ties.objective(k, form.scored, form.scored) for k in range(2)]
        self._end = np.inf

    @property
    def seconds(self) -> float:
        """What is left of the time for one best point.

        Raises
        ------
        NotProved : when nothing is.
        """
        left = self._end - time.monotonic()
        if left <= 0.0:
            raise NotProved(
                f"{self.limits.time:g} seconds passed before a best structure was proved; raise time_limit of "
                "BranchAndBound"
            )
        return left

    @abstractmethod
    def solved(
        self, numbers: Instances, lower: np.ndarray, upper: np.ndarray, costs: np.ndarray, floors: Floors = ()
    ) -> np.ndarray | None:
        """A point of best costs, None where there is none. With ``floors``, which are scores and a number for each, of
        the points that score so much.

        Raises
        ------
        NotProved : when the search ends before its end.
        """

    def best(
        self, numbers: Instances, scores: np.ndarray, program: IntegerProgram | None = None, *, decide: bool = False
    ) -> np.ndarray:
        """The scored vector of a best point, NaN where there is none.

        Scores on a grid tie as the objectives of all solvers say, and so do parts with a score of 0; with ``decide``,
        others do too. The point is held to the ``program`` exactly, where there is one.
        """
        form = self.form
        self._end = time.monotonic() + self.limits.time
        out: np.ndarray = np.full(form.size, np.nan)
        asked = scores[form.kept]
        lower, upper = numbers.lower[0, : form.unslacked].copy(), numbers.upper[0, : form.unslacked].copy()
        forbidden = np.flatnonzero(np.isneginf(asked))
        lower[forbidden], upper[forbidden] = np.maximum(lower[forbidden], 0), np.minimum(upper[forbidden], 0)
        if (lower > upper).any():
            return out
        asked = np.where(np.isneginf(asked), 0.0, asked)
        costs, decided = self._costs(asked, lower, upper)
        point = self.solved(numbers, lower, upper, costs)
        if point is None:
            return out
        whole = self._whole(point)
        if not decided:
            whole = self._by_smaller(numbers, lower, upper, asked, whole)
        open_parts = (asked == 0.0) & (lower < upper)[: form.scored]
        if decide and not decided:
            whole = self._whole(self._of_tied(numbers, lower, upper, asked, whole))
        elif not decided and open_parts.any():  # which tie, whatever they are
            held = np.flatnonzero(~open_parts)
            low, high = lower.copy(), upper.copy()
            low[held] = high[held] = whole[held]
            costs, _ = self._costs(np.zeros_like(asked), lower, upper)
            point = self.solved(numbers, low, high, costs)
            whole = whole if point is None else self._whole(point)
        if program is not None and not program.has(whole.astype(np.int64)):
            raise NotProved(
                f"{self.limits.named} came to a point that breaks a constraint by less than its tolerance: entries of "
                "one constraint differ too much in size; rescale it, or use Diagram()"
            )
        out[:] = form.fixed
        out[form.kept] = whole[: form.scored] + 0.0  # not -0.0
        return out

    def _whole(self, point: np.ndarray) -> np.ndarray:
        whole: np.ndarray = np.where(self.form.integer, np.round(point), point)
        return whole

    def _by_smaller(
        self, numbers: Instances, lower: np.ndarray, upper: np.ndarray, scores: np.ndarray, best: np.ndarray
    ) -> np.ndarray:
        """The better one of ``best`` and of points at which scores of the largest size sum to as much, and smaller ones
        to more; and so on from size to size."""
        floors: list[tuple[np.ndarray, float]] = []
        sizes = list(_by_size(scores))
        for place in range(1, len(sizes)):
            floors.append(self._floor(sizes[place - 1], best))
            costs, _ = self._costs(np.sum(sizes[place:], axis=0), lower, upper)
            point = self.solved(numbers, lower, upper, costs, floors)
            other = best if point is None else self._whole(point)
            if _exact_sum(scores, other) > _exact_sum(scores, best):
                best = other
        return best

    def _floor(self, scores: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, float]:
        """The row that points score as much as the best one, to within rounding."""
        costs = scores * (SIZE / np.abs(scores).max())
        terms = costs * best[: self.form.scored]
        return costs, float(terms.sum()) - TIED * (SIZE + float(np.abs(terms).sum()))

    def _of_tied(
        self, numbers: Instances, lower: np.ndarray, upper: np.ndarray, scores: np.ndarray, best: np.ndarray
    ) -> np.ndarray:
        """Of the points that score as much as the best one, to within rounding, the one that objectives decide for."""
        decided, _ = self._costs(np.zeros(len(scores)), lower, upper)
        point = self.solved(numbers, lower, upper, decided, [self._floor(mine, best) for mine in _by_size(scores)])
        return best if point is None else point

    def _costs(self, scores: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, bool]:
        """Costs of such a size that what HiGHS takes for nothing is below their rounding, and whether they decide ties.

        They do for scores that are on a grid.
        """
        scale = np.abs(scores).max(initial=0.0)
        wide = np.maximum(np.abs(lower), np.abs(upper))[: self.form.scored]
        spread = float(2.0 * wide.sum()) + 1.0
        unit = _unit(scores)
        if unit == 0.0 or not np.isfinite(spread):
            return scores * (SIZE / scale) if scale > 0.0 else scores, False
        # Objectives are multiples of 2^-12 below spread: together they stay below the unit by which scores differ.
        costs = (scores / unit) * 4.0 * spread + self.objectives[0] + self.objectives[1] / (4.0 * spread * 2.0**12)
        return costs, True


@final
class HighsModel(AbstractModel):
    """One model of HiGHS."""

    def __init__(self, form: StandardForm, limits: Limits) -> None:
        super().__init__(form, limits)
        # The public class prints a banner while it is constructed, before anything can silence it.
        self.highs: Any = _core._Highs()
        options: dict[str, Any] = {
            "output_flag": False,
            "parallel": "off",
            "mip_rel_gap": 0.0,
            "mip_abs_gap": 0.0,
            "mip_feasibility_tolerance": FEASIBLE,
            "primal_feasibility_tolerance": FEASIBLE,
            "dual_feasibility_tolerance": FEASIBLE,
            "mip_max_nodes": limits.nodes,
        }
        for name, value in options.items():
            self.highs.setOptionValue(name, value)

    def solved(
        self, numbers: Instances, lower: np.ndarray, upper: np.ndarray, costs: np.ndarray, floors: Floors = ()
    ) -> np.ndarray | None:
        self.highs.passModel(self._model(numbers, lower, upper, costs))
        for row, least in floors:
            columns = np.flatnonzero(row).astype(np.int32)
            self.highs.addRow(least, np.inf, len(columns), columns, row[columns])
        self.highs.setOptionValue("time_limit", self.highs.getRunTime() + self.seconds)
        self.highs.run()
        status = self.highs.getModelStatus()
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return None
        if status == highspy.HighsModelStatus.kModelEmpty:
            ends = np.where(np.pad(costs, (0, self.form.unslacked - len(costs))) > 0.0, upper, lower)
            return np.asarray(ends)
        if status != highspy.HighsModelStatus.kOptimal:
            raise NotProved(
                f"the search ended before a best structure was proved ({self.highs.modelStatusToString(status)}); "
                "raise time_limit or node_limit of BranchAndBound"
            )
        return np.array(self.highs.getSolution().col_value)

    def _model(self, numbers: Instances, lower: np.ndarray, upper: np.ndarray, costs: np.ndarray) -> highspy.HighsLp:
        form, body = self.form, self.body
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = form.unslacked, form.rows
        lp.sense_ = highspy.ObjSense.kMaximize
        whole = np.zeros(form.unslacked)
        whole[: form.scored] = costs
        low = numbers.rhs[0].copy()
        low[form.equalities :] = -np.inf
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = whole, lower, upper
        lp.row_lower_, lp.row_upper_ = low, numbers.rhs[0]
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(flag)] for flag in form.integer]
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_ = body.indptr, body.indices
        lp.a_matrix_.value_ = body.data if numbers.matrix is None else numbers.matrix[0, : body.nnz]
        return lp


def _unit(scores: Float64[np.ndarray, " scored"]) -> float:
    """A number that all scores are multiples of, not too small next to them; 0 where none is seen."""
    scale = np.abs(scores).max(initial=0.0)
    if scale == 0.0:
        return 1.0
    for grid in GRIDS.tolist():
        numbers = scores * grid
        if np.abs(numbers).max() < 2**20 and (numbers == np.round(numbers)).all():
            return float(1.0 / grid)
    return 0.0


def _by_size(scores: Float64[np.ndarray, " scored"]) -> Iterator[Float64[np.ndarray, " scored"]]:
    """The scores in groups of similar size, the largest ones first, each with 0 for all others."""
    left = np.array(scores)
    while left.any():
        size = np.abs(left)
        group = np.where(size >= SMALL * size.max(), left, 0.0)
        left = left - group
        yield group


def _exact_sum(scores: Float64[np.ndarray, " scored"], point: Float64[np.ndarray, " columns"]) -> Fraction:
    """What a point scores."""
    used = np.flatnonzero(point[: len(scores)])
    pairs = zip(scores[used].tolist(), point[used].tolist(), strict=True)
    return sum((Fraction(s) * Fraction(x) for s, x in pairs), Fraction(0))


@final
class ForeignModel(AbstractModel):
    """A problem of cvxpy over the arrays of a form, which is made for every question."""

    def solved(
        self, numbers: Instances, lower: np.ndarray, upper: np.ndarray, costs: np.ndarray, floors: Floors = ()
    ) -> np.ndarray | None:
        form, name = self.form, self.limits.solver
        assert name is not None
        whole, rest = np.flatnonzero(form.integer), np.flatnonzero(~form.integer)
        order = np.concatenate([whole, rest])
        parts = [cp.Variable(len(whole), integer=True)] if len(whole) else []
        parts += [cp.Variable(len(rest))] if len(rest) else []
        x = cp.hstack(parts)
        body = self.body.copy()
        if numbers.matrix is not None:
            body.data = numbers.matrix[0, : body.nnz].copy()
        body, low, high = body.tocsr()[:, order], lower[order], upper[order]
        equal, rhs = form.equalities, numbers.rhs[0]
        constraints: list[cp.Constraint] = []
        constraints += [body[:equal] @ x == rhs[:equal]] if equal else []
        constraints += [body[equal:] @ x <= rhs[equal:]] if form.slack else []
        bounded = np.flatnonzero(np.isfinite(low)), np.flatnonzero(np.isfinite(high))
        constraints += [x[bounded[0]] >= low[bounded[0]]] if len(bounded[0]) else []
        constraints += [x[bounded[1]] <= high[bounded[1]]] if len(bounded[1]) else []
        all_costs = np.zeros(form.unslacked)
        all_costs[: form.scored] = costs
        for row, least in floors:
            constraints.append(np.pad(row, (0, form.unslacked - form.scored))[order] @ x >= least)
        problem = cp.Problem(cp.Maximize(all_costs[order] @ x), constraints)
        try:
            problem.solve(solver=name, **_OPTIONS.get(name, lambda _: {})(self.seconds))  # type: ignore[no-untyped-call]
        except cp.SolverError as error:
            raise NotProved(f"{name} ended before a best structure was proved: {error}") from None
        if problem.status in (cp.INFEASIBLE, "infeasible_or_unbounded"):
            return None
        if problem.status != cp.OPTIMAL:
            raise NotProved(
                f"{name} ended before a best structure was proved ({problem.status}); raise time_limit of "
                "BranchAndBound"
            )
        point = np.empty(form.unslacked)
        point[order] = np.asarray(x.value).reshape(-1)
        return point


_OPTIONS: dict[str, Callable[[float], dict[str, Any]]] = {
    "HIGHS": lambda t: {
        "time_limit": t,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": FEASIBLE,
        "primal_feasibility_tolerance": FEASIBLE,
    },
    "SCIPY": lambda t: {"scipy_options": {"mip_rel_gap": 0.0, "time_limit": t}},
    "SCIP": lambda t: {"scip_params": {"limits/gap": 0.0, "limits/absgap": 0.0, "limits/time": t}},
    "GUROBI": lambda t: {"TimeLimit": t, "MIPGap": 0.0, "MIPGapAbs": 0.0},
    "CPLEX": lambda t: {"cplex_params": {"timelimit": t, "mip.tolerances.mipgap": 0.0}},
    "XPRESS": lambda t: {"maxtime": int(-max(1, t)), "miprelstop": 0.0, "mipabsstop": 0.0},
    "CBC": lambda t: {"maximumSeconds": t, "allowableFractionGap": 0.0, "allowableGap": 0.0},
    "GLPK_MI": lambda t: {"tm_lim": int(1000 * t)},
}
"""How a time limit and a gap of 0 are said to each of them."""
