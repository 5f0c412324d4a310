"""Auto: a solver for the structure at hand, and another for what that one does not certify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from optlayers.common.caches import Cache
from optlayers.form.standard import StandardForm
from optlayers.solvers.ask import ask
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver, Answer, Instances
from optlayers.solvers.clarabel import Clarabel
from optlayers.solvers.dense import Dense
from optlayers.solvers.highs import Highs
from optlayers.solvers.interior_point import InteriorPoint
from optlayers.solvers.newton import DualNewton
from optlayers.solvers.plan import plan_of

__all__ = ["Auto"]

DENSE = "its constraints are many and hardly sparse"


@final
@dataclass(frozen=True)
class Auto(AbstractMaximizer, AbstractProjector):
    """The default: compiled solvers first, then a library for the instances that are not certified.

    Projections: :class:`DualNewton` where every column is scored and every row an equality, else
    :class:`InteriorPoint`; what is not certified goes on to :class:`InteriorPoint`, :class:`Dense` and
    :class:`Clarabel`. Best vertices: :class:`InteriorPoint`, then :class:`Dense` and :class:`Highs`. Where constraints
    are many and hardly sparse, :class:`Dense` comes first. All of them break ties alike, so that it does not show in an
    answer which solver gave it.

    Sets that are convex but not polyhedral have no best vertices, and other solvers for projections:
    :class:`ConeNewton` for cones of norms and semidefinite matrices, :class:`CvxpyLayers` for others.

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
        first = (DualNewton(), InteriorPoint()) if DualNewton.takes(form) else (InteriorPoint(),)
        return (*first, Dense(), Clarabel()) if Dense.fits(form) else (*first, Clarabel())

    @staticmethod
    def maximizers(form: StandardForm) -> Sequence[AbstractMaximizer]:
        """The solvers that best vertices of this form are asked of, in this order."""
        if plan_of(form).dense:
            return Dense(), Highs()
        return (InteriorPoint(), Dense(), Highs()) if Dense.fits(form) else (InteriorPoint(), Highs())

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

    def prepare(self, form: StandardForm) -> _States:
        return _States(form)

    def maximizers_in_turn(self, state: _States) -> Iterator[tuple[AbstractMaximizer, Any]]:
        for solver in state.maximizers:
            yield from solver.maximizers_in_turn(state.of(solver))

    def projectors_in_turn(self, state: _States) -> Iterator[tuple[AbstractProjector, Any]]:
        for solver in state.projectors:
            yield from solver.projectors_in_turn(state.of(solver))

    def maximize(self, state: _States, instances: Instances) -> Answer:
        """The best answers of these solvers, for a solver that works with this one."""
        return ask(state.form, instances, self, state, projection=False, tolerance=self.tolerance).as_answer

    def project(self, state: _States, instances: Instances) -> Answer:
        """The best answers of these solvers, for a solver that works with this one."""
        return ask(state.form, instances, self, state, projection=True, tolerance=self.tolerance).as_answer


def _why_interior(form: StandardForm) -> str:
    counted = [(form.uncurved, "auxiliary column"), (form.slack, "inequality row")]
    parts = [f"{count} {what}{'s' if count != 1 else ''}" for count, what in counted if count]
    return f"there {'is' if form.uncurved + form.slack == 1 else 'are'} {' and '.join(parts)}"


def _then(solvers: Sequence[AbstractSolver]) -> str:
    return ", then ".join(repr(solver) for solver in solvers)


@final
class _States:
    """What solvers prepared, each as soon as it is asked."""

    def __init__(self, form: StandardForm) -> None:
        self.form = form
        self.maximizers, self.projectors = Auto.maximizers(form), Auto.projectors(form)
        self._prepared: Cache[AbstractSolver, Any] = Cache()

    def of(self, solver: AbstractSolver) -> Any:
        """The state of a solver."""
        return self._prepared.get(solver, self._prepare)

    def _prepare(self, solver: AbstractSolver) -> Any:
        return solver.prepare(self.form)
