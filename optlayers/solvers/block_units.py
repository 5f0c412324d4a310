"""Projections in which some independent blocks are far smaller than others, each solved in a unit of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import NOT_ASKED, AbstractProjector, Answer, Instances
from optlayers.solvers.plan import Plan, plan_of
from optlayers.solvers.polish import polish

__all__ = ["InBlockUnits"]

SMALL = 1e-3
"""A block of numbers below this is too small for tolerances that are relative to 1."""


@final
@dataclass(frozen=True)
class InBlockUnits(AbstractProjector):
    """Project with another solver, in a unit for each block of variables that no row ties to others.

    A solver ends where residuals are small next to 1. A block whose scores are all of 1e-9, as a small step from the
    origin leaves them, has then not been solved at all: its active set is that of rounding. Divided by its largest
    number (scores, right-hand sides, and bounds that exclude 0) it is the same problem as any other. Instances without
    such blocks are not answered.
    """

    solver: AbstractProjector
    manner = "in units of independent blocks"

    def prepare(self, form: StandardForm) -> Any:
        return self.solver.prepare(form)

    def project(self, state: Any, instances: Instances) -> Answer:
        plan = plan_of(state)
        unit = _units(plan, instances)
        small = np.flatnonzero((unit < SMALL).any(axis=1))
        answer = Answer.to_fill(state, len(instances))
        answer.point[:], answer.dual[:], answer.status[:] = np.nan, np.nan, NOT_ASKED
        if len(small) == 0:
            return answer
        some = instances.take(small)
        of_column, of_row = unit[small][:, plan.column_block], unit[small][:, plan.row_block]
        whole = some.whole.copy()
        scored = of_column[:, : some.scores.shape[1]]
        if some.kept is None:
            whole /= scored
        else:
            whole[:, some.kept] /= scored
        scaled = Instances(
            whole,
            some.kept,
            some.rhs / of_row,
            some.lower / of_column,
            some.upper / of_column,
            some.matrix,
            some.forbidden,
            some.parameters,
            some.row_scale,
        )
        found = polish(state, scaled, self.solver.project(state, scaled))
        answer.point[small], answer.dual[small] = found.point * of_column, found.dual * of_row
        answer.status[small], answer.free = found.status, np.zeros(answer.point.shape, dtype=bool)
        if found.free is not None:
            answer.free[small] = found.free
        return answer


def _units(plan: Plan, instances: Instances) -> Float64[np.ndarray, "batch blocks"]:
    """The largest number of each block that its point cannot do without, as a power of two; 1 where all are 0."""
    unit = np.zeros((len(instances), plan.blocks))
    scores = np.abs(instances.scores)
    away = np.maximum(np.maximum(instances.lower, -instances.upper), 0.0)  # how far 0 is from the bounds
    away[:, : scores.shape[1]] = np.maximum(away[:, : scores.shape[1]], scores)
    batch = np.arange(len(instances))[:, None]
    for size, block in ((away, plan.column_block), (np.abs(instances.rhs), plan.row_block)):
        np.maximum.at(unit, (batch, block[None]), np.where(np.isfinite(size), size, 1.0))
    result: np.ndarray = np.minimum(np.exp2(np.floor(np.log2(np.where(unit > 0.0, unit, 1.0)))), 1.0)
    return result
