"""BranchAndBound: best integer points by HiGHS, or another solver that cvxpy knows, to a gap of zero."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
from cvxpy.reductions.solvers.defines import INSTALLED_MI_SOLVERS, MI_SOLVERS
from jaxtyping import Float64

from optlayers.common.caches import Cache
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.integer.program import IntegerProgram, NoIntegers, integer_program
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import make_instances
from optlayers.solvers.cutting import SeparatedSearch
from optlayers.solvers.hulls import AbstractHullSolver
from optlayers.solvers.integer_models import AbstractModel, ForeignModel, HighsModel, Limits

__all__ = ["BranchAndBound"]

KEPT = 16
"""For so many values of the parameters are the numbers of models kept."""


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


def _model(solver: BranchAndBound, form: StandardForm) -> AbstractModel:
    kind = HighsModel if solver.solver is None else ForeignModel
    return kind(form, Limits(solver.solver, solver.time_limit, solver.node_limit, repr(solver)))


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
