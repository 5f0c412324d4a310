"""BranchAndBound: best integer points by HiGHS, to a gap of zero."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import highspy
import numpy as np
from highspy import _core
from jaxtyping import Float64

from optlayers.caches import Cache
from optlayers.form.standard import StandardForm
from optlayers.integer.program import IntegerProgram, NoIntegers, integer_program
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import make_instances
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


@final
@dataclass(frozen=True)
class BranchAndBound(AbstractHullSolver):
    """Maximize over integer points by branch and bound of HiGHS (Huangfu and Hall, 2018), until nothing better is left.

    For declarations that are too wide for :class:`optlayers.Diagram`, or have variables besides that are not integers.
    An answer takes milliseconds and more; a projection asks several times (:class:`optlayers.ActiveSet`). Every
    instance is solved from scratch, so the answer depends on its scores alone. Where scores are multiples of a common
    unit (integers, zeros), or parts have a score of 0, structures tie, and the objectives of all solvers decide
    (:class:`optlayers.Highs`); sums of other scores tie by accident alone.

    Parameters
    ----------
    time_limit : seconds for one best structure; what is not proved to be best by then is no answer (``FAILED``), never
        a worse structure.
    node_limit : nodes of the search for one best structure, in the same way.
    """

    time_limit: float = 60.0
    node_limit: int = 10_000_000
    manner = "branch and bound of HiGHS"

    def __post_init__(self) -> None:
        if not self.time_limit > 0:
            raise ValueError(f"time_limit must be positive, but got {self.time_limit}")
        if isinstance(self.node_limit, bool) or not isinstance(self.node_limit, int) or self.node_limit < 1:
            raise ValueError(f"node_limit must be a positive integer, but got {self.node_limit!r}")

    def oracle(self, form: StandardForm, why: str = "") -> Callable[..., Any]:
        """Best points of one model for each thread."""
        return _Search(form, self, why)


class NotProved(RuntimeError):
    """A search that ended before its end."""


@final
class _Search:
    """Best integer points of a form; the models live in the threads that ask."""

    takes_flat = True

    def __init__(self, form: StandardForm, solver: BranchAndBound, why: str) -> None:
        self.form, self.solver, self.why = form, solver, why
        self.manner = "branch and bound of HiGHS, to a gap of 0" + (f", because {why}" if why else "")
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
            model = self._models.model = _Model(self.form, self.solver)
        answer: np.ndarray = model.best(numbers, program, scores)
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


@final
class _Model:
    """One model of HiGHS, whose numbers are set for every instance."""

    def __init__(self, form: StandardForm, solver: BranchAndBound) -> None:
        self.form, self.time_limit = form, solver.time_limit
        self.body = form.matrix[:, : form.unslacked]
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
        self.objectives = [ties.objective(k, form.scored, form.scored) for k in range(2)]

    def best(self, numbers: Instances, program: IntegerProgram | None, scores: np.ndarray) -> np.ndarray:
        """The scored vector of a best point, NaN where there is none."""
        form = self.form
        out: np.ndarray = np.full(form.size, np.nan)
        asked = scores[form.kept]
        lower, upper = numbers.lower[0, : form.unslacked].copy(), numbers.upper[0, : form.unslacked].copy()
        forbidden = np.flatnonzero(np.isneginf(asked))
        lower[forbidden], upper[forbidden] = np.maximum(lower[forbidden], 0), np.minimum(upper[forbidden], 0)
        if (lower > upper).any():
            return out
        asked = np.where(np.isneginf(asked), 0.0, asked)
        whole = self._solved(numbers, lower, upper, self._costs(asked, lower, upper))
        if whole is None:
            return out
        open_parts = (asked == 0.0) & (lower < upper)[: form.scored]
        if open_parts.any() and asked.any() and _unit(asked) == 0.0:  # which tie, whatever they are
            held = np.flatnonzero(~open_parts)
            lower[held] = upper[held] = whole[held]
            whole = self._solved(numbers, lower, upper, self._costs(np.zeros_like(asked), lower, upper))
            if whole is None:
                raise NotProved("HiGHS finds no structure where it found one before")
        if program is not None and not program.has(whole.astype(np.int64)):
            raise NotProved(
                "HiGHS came to a point that breaks a constraint by less than its tolerance: entries of one constraint "
                "differ too much in size; rescale it, or use Diagram()"
            )
        out[:] = form.fixed
        out[form.kept] = whole[: form.scored] + 0.0  # not -0.0
        return out

    def _solved(self, numbers: Instances, lower: np.ndarray, upper: np.ndarray, costs: np.ndarray) -> np.ndarray | None:
        """A best point for some costs, rounded where it is integer; None where there is none."""
        form = self.form
        self.highs.passModel(self._model(numbers, lower, upper, costs))
        self.highs.setOptionValue("time_limit", self.highs.getRunTime() + self.time_limit)
        self.highs.run()
        status = self.highs.getModelStatus()
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return None
        if status == highspy.HighsModelStatus.kModelEmpty:
            ends = np.where(np.pad(costs, (0, form.unslacked - len(costs))) > 0.0, upper, lower)
            return np.asarray(np.where(form.integer, np.trunc(ends), ends))
        if status != highspy.HighsModelStatus.kOptimal:
            raise NotProved(
                f"the search ended before a best structure was proved ({self.highs.modelStatusToString(status)}); "
                "raise time_limit or node_limit of BranchAndBound"
            )
        point = np.array(self.highs.getSolution().col_value)
        return np.asarray(np.where(form.integer, np.round(point), point))

    def _costs(self, scores: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Costs of such a size that what HiGHS takes for nothing is below their rounding.

        They decide ties of scores that are on a grid.
        """
        scale = np.abs(scores).max(initial=0.0)
        wide = np.maximum(np.abs(lower), np.abs(upper))[: self.form.scored]
        spread = float(2.0 * wide.sum()) + 1.0
        unit = _unit(scores)
        if unit == 0.0 or not np.isfinite(spread):
            sized: np.ndarray = scores * (SIZE / scale)
            return sized
        # Objectives are multiples of 2^-12 below spread: together they stay below the unit by which scores differ.
        costs = (scores / unit) * 4.0 * spread + self.objectives[0] + self.objectives[1] / (4.0 * spread * 2.0**12)
        decided: np.ndarray = costs
        return decided

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
