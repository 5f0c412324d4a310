"""BranchAndBound: best integer points by HiGHS, or another solver that cvxpy knows, to a gap of zero."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, final

import cvxpy as cp
import highspy
import numpy as np
from cvxpy.reductions.solvers.defines import INSTALLED_MI_SOLVERS, MI_SOLVERS
from highspy import _core
from jaxtyping import Float64

from optlayers.caches import Cache
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.integer.program import IntegerProgram, NoIntegers, integer_program
from optlayers.locks import at_fork
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import make_instances
from optlayers.solvers.cutting import SeparatedSearch
from optlayers.solvers.hulls import AbstractHullSolver
from optlayers.solvers.kernels import ties

__all__ = ["BranchAndBound"]

FEASIBLE = 1e-9
"""How far HiGHS may leave rows, and entries integers."""
GRIDS = 2.0 ** np.arange(0, 25, 4)
"""Scores that are multiples of one over one of these tie exactly, or differ by that much."""
SIZE = 1e4
"""Costs are brought to this size, next to the absolute tolerances of HiGHS."""
KEPT = 16
"""For so many values of the parameters are the numbers of models kept."""
TIED = 1e-12
"""Structures whose scores differ by less, next to the sum of all of them, tie."""
SMALL = 1e-6
"""Scores that are smaller than the largest by this factor are searched in turn: HiGHS takes their sums for nothing."""


@final
@dataclass(frozen=True)
class BranchAndBound(AbstractHullSolver):
    """Maximize over integer points by branch and bound of HiGHS (Huangfu and Hall, 2018), until nothing better is left.

    For declarations that are too wide for :class:`optlayers.Diagram`, or have variables besides that are not integers.
    An answer takes milliseconds and more; a projection asks several times (:class:`optlayers.ActiveSet`). Every
    instance is solved from scratch, so the answer depends on its scores alone. Where scores are multiples of a common
    unit (zeros, integers up to a million), or parts have a score of 0, structures tie, and the objectives of all
    solvers decide (:class:`optlayers.Highs`); sums of other scores tie by accident alone.

    HiGHS tells sums apart that differ by some 1e-13 of the largest score. Where scores span more than six decades, the
    smaller ones decide in searches of their own, among structures of which the larger ones sum to as much; of what all
    these find, the structure is taken whose exact sum is largest.

    Where a declaration brings constraints on demand (``separate`` of :class:`optlayers.Polytope`), linear programs of
    HiGHS come first, and again with every constraint that their answers violate. Branch and bound is asked where an
    answer stays fractional that must be integer, and decides all ties.

    Parameters
    ----------
    time_limit : seconds for all searches of one best structure; what is not proved to be best by then is no answer
        (``FAILED``), never a worse structure.
    node_limit : nodes of the search for one best structure, in the same way; HiGHS alone keeps it.
    solver : the name by which cvxpy calls a solver of mixed-integer programs that is installed, such as ``"SCIP"`` or
        ``"GUROBI"``, which then takes the place of HiGHS, through a problem of cvxpy for every question. None: HiGHS,
        without that detour. A solver that cvxpy does not tell how to end at a gap of 0 ends at its own.

    Raises
    ------
    ValueError : for limits that are not positive.
    DeclarationError : when it is compiled for a declaration, and cvxpy finds no such solver installed.
    """

    time_limit: float = 60.0
    node_limit: int = 10_000_000
    solver: str | None = None

    def __post_init__(self) -> None:
        if not self.time_limit > 0:
            raise ValueError(f"time_limit must be positive, but got {self.time_limit}")
        if isinstance(self.node_limit, bool) or not isinstance(self.node_limit, int) or self.node_limit < 1:
            raise ValueError(f"node_limit must be a positive integer, but got {self.node_limit!r}")
        if not (self.solver is None or isinstance(self.solver, str)):
            raise ValueError(f'solver must be a name, such as "SCIP", or None, but got {self.solver!r}')

    @property
    def manner(self) -> str:  # type: ignore[override]
        """Whose search it is."""
        return f"branch and bound of {self.solver or 'HiGHS'}"

    def oracle(self, form: StandardForm, why: str = "") -> Callable[..., Any]:
        """Best points of one model for each thread."""
        if self.solver is not None:
            _refuse_missing(self.solver)
        if form.polytope.separate is not None:
            return _separated(form, self, why)
        return _Search(form, self, why)


def _refuse_missing(solver: str) -> None:
    if solver in INSTALLED_MI_SOLVERS:
        return
    what = "is not installed" if solver in MI_SOLVERS else "is no solver of mixed-integer programs that cvxpy knows"
    raise DeclarationError(
        f"BranchAndBound(solver={solver!r}): {solver} {what}; installed are "
        f"{', '.join(sorted(INSTALLED_MI_SOLVERS))}, and BranchAndBound() is HiGHS without cvxpy"
    )


def _separated(form: StandardForm, solver: BranchAndBound, why: str) -> SeparatedSearch:
    wholes = bool(form.integer.any())
    search = f"linear programs of HiGHS{f' and {solver.manner}' if wholes else ''}, again and again with"
    return SeparatedSearch(
        form,
        partial(_model, solver),
        time_limit=solver.time_limit,
        manner=f"{search} what a function brings" + (f", because {why}" if why else ""),
        remake=(_separated, (form, solver, why)),
    )


def _model(solver: BranchAndBound, form: StandardForm) -> _AbstractModel:
    return _Model(form, solver) if solver.solver is None else _ForeignModel(form, solver)


# The scheduler of HiGHS, which a search starts, has threads that a forked child lacks, and would wait for.
at_fork(after_in_child=partial(_core._Highs.resetGlobalScheduler, False))

Floors = Sequence[tuple[Float64[np.ndarray, " scored"], float]]
"""Scores of points, and how much these are at least."""


class NotProved(RuntimeError):
    """A search that ended before its end."""


@final
class _Search:
    """Best integer points of a form; the models live in the threads that ask."""

    takes_flat = True

    def __init__(self, form: StandardForm, solver: BranchAndBound, why: str) -> None:
        self.form, self.solver, self.why = form, solver, why
        self.manner = f"{solver.manner}, to a gap of 0" + (f", because {why}" if why else "")
        self.__name__ = repr(solver)
        self._numbers: Cache[bytes, tuple[Instances, IntegerProgram | None]] = Cache(KEPT)
        self._models = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Search, (self.form, self.solver, self.why)

    def __call__(self, scores: np.ndarray, theta: np.ndarray | None = None) -> Float64[np.ndarray, " size"]:
        key = b"" if theta is None else theta.tobytes()
        numbers, program = self._numbers.get(key, self._numbers_of)
        model = getattr(self._models, "model", None)
        if model is None:
            model = self._models.model = _model(self.solver, self.form)
        answer: np.ndarray = model.best(numbers, scores, program)
        return answer

    def _numbers_of(self, key: bytes) -> tuple[Instances, IntegerProgram | None]:
        """The numbers of an instance; and as rows of integers, where they are such, so that points can be held to them
        exactly."""
        form, width = self.form, self.form.unslacked
        numbers = make_instances(form, np.frombuffer(key).copy()[None], None)
        if not form.integer.all():
            return numbers, None
        entries = form.matrix.data if numbers.matrix is None else numbers.matrix[0]
        try:
            program = integer_program(
                form, numbers.rhs[0], entries, numbers.lower[0, :width], numbers.upper[0, :width], without_limits=True
            )
        except NoIntegers:
            return numbers, None
        return numbers, program


class _AbstractModel(ABC):
    """A model whose numbers are set for every instance."""

    def __init__(self, form: StandardForm, solver: BranchAndBound) -> None:
        self.form, self.solver = form, solver
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
                f"{self.solver.time_limit:g} seconds passed before a best structure was proved; raise time_limit of "
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
        self._end = time.monotonic() + self.solver.time_limit
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
                f"{self.solver!r} came to a point that breaks a constraint by less than its tolerance: entries of one "
                "constraint differ too much in size; rescale it, or use Diagram()"
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
class _Model(_AbstractModel):
    """One model of HiGHS."""

    def __init__(self, form: StandardForm, solver: BranchAndBound) -> None:
        super().__init__(form, solver)
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
            "mip_max_nodes": solver.node_limit,
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
class _ForeignModel(_AbstractModel):
    """A problem of cvxpy over the arrays of a form, which is made for every question."""

    def solved(
        self, numbers: Instances, lower: np.ndarray, upper: np.ndarray, costs: np.ndarray, floors: Floors = ()
    ) -> np.ndarray | None:
        form, name = self.form, self.solver.solver
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
