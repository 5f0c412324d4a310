"""Auto: a solver for the structure at hand, and another for what that one does not certify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from optlayers.caches import Cache
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver, Answer, Instances
from optlayers.solvers.certified import maximize_certified, project_certified
from optlayers.solvers.clarabel import Clarabel
from optlayers.solvers.dense import Dense
from optlayers.solvers.highs import Highs
from optlayers.solvers.interior_point import InteriorPoint
from optlayers.solvers.newton import DualNewton
from optlayers.solvers.plan import plan_of
from optlayers.standard_form import StandardForm

__all__ = ["Auto"]

DENSE = "its constraints are many and hardly sparse"


@final
@dataclass(frozen=True)
class Auto(AbstractMaximizer, AbstractProjector):
    """The default: compiled solvers first, then a library for the instances that are not certified.

    Projections: :class:`DualNewton` where every column is scored and every row an equality, else
    :class:`InteriorPoint`; what is not certified goes on to :class:`InteriorPoint`, then to :class:`Clarabel`. Best
    vertices: :class:`InteriorPoint`, then :class:`Highs`. Where constraints are many and hardly sparse, :class:`Dense`
    comes first. All of them break ties alike, so that it does not show in an
    answer which solver gave it.

    Parameters
    ----------
    tolerance : relative residual and gap beyond which the next solver is asked.
    """

    tolerance: float = 1e-8
    manner = "chosen by the structure"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, but got {self.tolerance}")

    @staticmethod
    def projectors(form: StandardForm) -> Sequence[AbstractProjector]:
        """The solvers that projections onto this form are put to, in this order."""
        if plan_of(form).dense:
            return Dense(), Clarabel()
        if DualNewton.takes(form):
            return DualNewton(), InteriorPoint(), Clarabel()
        return InteriorPoint(), Clarabel()

    @staticmethod
    def maximizers(form: StandardForm) -> Sequence[AbstractMaximizer]:
        """The solvers that best vertices of this form are asked of, in this order."""
        return (Dense() if plan_of(form).dense else InteriorPoint()), Highs()

    def explain_projector(self, form: StandardForm) -> str:
        first, *others = self.projectors(form)
        if isinstance(first, Dense):
            return f"{first!r}, because {DENSE} ({first.manner}); what it does not certify goes to {_then(others)}"
        why = "all columns are scored and all rows are equalities" if DualNewton.takes(form) else _why_interior(form)
        return f"{first!r}, because {why} ({first.manner}); what it does not certify goes to {_then(others)}"

    def explain_maximizer(self, form: StandardForm) -> str:
        first, *others = self.maximizers(form)
        why = f", because {DENSE}" if isinstance(first, Dense) else ""
        return f"{first!r}{why} ({first.manner}); what it does not certify goes to {_then(others)}"

    def prepare(self, form: StandardForm) -> _State:
        return _State(form, self.maximizers(form), self.projectors(form))

    def maximize(self, state: _State, instances: Instances) -> Answer:
        form = state.form

        def ask(position: int, some: Instances) -> Answer:
            return maximize_certified(*state.maximizer(position), form, some)

        return self._in_turn(len(state.maximizers), ask, instances)

    def project(self, state: _State, instances: Instances) -> Answer:
        form = state.form

        def ask(position: int, some: Instances) -> Answer:
            return project_certified(*state.projector(position), form, some, self.tolerance)

        return self._in_turn(len(state.projectors), ask, instances)

    def _in_turn(self, count: int, ask: Callable[[int, Instances], Answer], instances: Instances) -> Answer:
        answer = ask(0, instances)
        certificate = answer.certificate
        if certificate is None:
            raise RuntimeError("the solvers of Auto certify their answers")
        for position in range(1, count):
            if certificate.all_hold(self.tolerance):
                break
            open_ones = np.flatnonzero(~certificate.holds(self.tolerance))
            other = ask(position, instances.take(open_ones))
            if other.certificate is None:
                raise RuntimeError("the solvers of Auto certify their answers")
            better = other.certificate.relative < certificate.relative[open_ones]
            # The last word on why there is no answer is a library's, which can tell infeasible from difficult.
            worse = open_ones[~better]
            answer.status[worse] = other.status[~better]
            chosen = np.flatnonzero(better)
            answer.replace(open_ones[chosen], other, chosen)
        return answer


def _why_interior(form: StandardForm) -> str:
    parts = [
        f"{count} {what}"
        for count, what in (
            (form.uncurved, "auxiliary columns"),
            (form.slack, "inequality rows"),
        )
        if count
    ]
    return f"there are {' and '.join(parts)}"


def _then(solvers: Sequence[AbstractSolver]) -> str:
    return ", then ".join(repr(solver) for solver in solvers)


@final
class _State:
    """States of the first solvers, and of the others as soon as they are needed."""

    def __init__(
        self, form: StandardForm, maximizers: Sequence[AbstractMaximizer], projectors: Sequence[AbstractProjector]
    ) -> None:
        self.form = form
        self.maximizers = maximizers
        self.projectors = projectors
        self._states: Cache[AbstractSolver, Any] = Cache()

    def maximizer(self, position: int) -> tuple[AbstractMaximizer, Any]:
        """A solver with its state."""
        solver = self.maximizers[position]
        return solver, self._state(solver)

    def projector(self, position: int) -> tuple[AbstractProjector, Any]:
        """A solver with its state."""
        solver = self.projectors[position]
        return solver, self._state(solver)

    def _state(self, solver: AbstractSolver) -> Any:
        return self._states.get(solver, lambda solver: solver.prepare(self.form))
