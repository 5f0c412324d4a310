"""From nearly optimal to exact: solve on the active set."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from optlayers.solution import Status
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.certificate import certify, times_matrix, times_transpose
from optlayers.solvers.kkt import KKT
from optlayers.standard_form import StandardForm

__all__ = ["polish"]

ROUNDS = 8
"""How often a guessed active set is corrected before the solver's own answer is kept."""
SIGN = 1e-11
"""Violations of bounds and of multiplier signs below this, relative to the data, are rounding."""


def polish(form: StandardForm, kkt: KKT, instances: Instances, answer: Answer) -> Answer:
    """Move projections onto their active set, and keep the result where its certificate is better.

    At an interior solution every bound has either room or a multiplier: the larger of the two tells whether the bound
    is active. On the active set the projection is one linear system. Bounds that its solution violates are added,
    multipliers of the wrong sign released, and the system solved again.
    """
    solved = np.flatnonzero(np.isfinite(answer.point).all(axis=1) & np.isfinite(answer.dual).all(axis=1))
    free = np.zeros(answer.point.shape, dtype=bool)
    if len(solved):
        mine = instances.take(solved)
        point, dual, free[solved] = _polish(form, kkt, mine, answer.point[solved], answer.dual[solved])
        answer.point[solved], answer.dual[solved] = point, dual
        # A certified point is an answer, whatever the solver thought of it.
        answer.status[solved] = np.where(
            answer.status[solved] == Status.INFEASIBLE, answer.status[solved], Status.OPTIMAL
        )
    answer.free = free
    return answer


def _polish(
    form: StandardForm, kkt: KKT, instances: Instances, point: np.ndarray, dual: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, "batch columns"]]:
    target = np.zeros(point.shape)
    target[:, : form.scored] = instances.scores
    low, high = _guess(form, instances, target, point, dual)
    best_point, best_dual, best_free = point.copy(), dual.copy(), ~(low | high)
    best = certify(form, instances, instances.scores - point[:, : form.scored], point, dual).relative
    todo = np.arange(len(point))
    for _ in range(ROUNDS):
        some = instances.take(todo)
        z, y = _solve(form, kkt, some, target[todo], low[todo], high[todo], point[todo], dual[todo])
        relative = certify(form, some, some.scores - z[:, : form.scored], z, y).relative
        better = relative < best[todo]
        chosen = todo[better]
        best[chosen], best_point[chosen], best_dual[chosen] = relative[better], z[better], y[better]
        best_free[chosen] = ~(low | high)[chosen]
        low[todo], high[todo], changed = _correct(form, some, target[todo], z, y, low[todo], high[todo])
        todo = todo[changed]
        if len(todo) == 0:
            break
    return best_point, best_dual, best_free


def _reduced(
    form: StandardForm, instances: Instances, target: np.ndarray, point: np.ndarray, dual: np.ndarray
) -> Float64[np.ndarray, "batch columns"]:
    """Reduced costs of the linearized objective; positive pushes against the upper bound, negative to the lower."""
    reduced = -times_transpose(form, instances, dual)
    reduced[:, : form.scored] += (target - point)[:, : form.scored]
    return reduced


def _guess(
    form: StandardForm, instances: Instances, target: np.ndarray, point: np.ndarray, dual: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    reduced = _reduced(form, instances, target, point, dual)
    low = point - instances.lower < -reduced
    high = (instances.upper - point < reduced) & ~low
    together = instances.lower == instances.upper
    return low | together, high & ~together


def _solve(
    form: StandardForm,
    kkt: KKT,
    instances: Instances,
    target: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    point: np.ndarray,
    dual: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    held = np.where(low, instances.lower, np.where(high, instances.upper, 0.0))
    free = ~(low | high)
    rest = instances.rhs - times_matrix(form, instances, held)
    p, q, _ = kkt.solve(instances, free, target, rest, start=(point, dual))
    return np.where(free, p, held), q


def _correct(
    form: StandardForm,
    instances: Instances,
    target: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The next active set, and which instances it is new for."""
    reduced = _reduced(form, instances, target, z, y)
    margin = SIGN * (1 + np.abs(instances.scores).max(axis=1, initial=0.0, keepdims=True))
    together = instances.lower == instances.upper
    release = ((low & (reduced > margin)) | (high & (reduced < -margin))) & ~together
    below = ~low & ~high & (z < instances.lower - SIGN * (1 + np.abs(z)))
    above = ~low & ~high & (z > instances.upper + SIGN * (1 + np.abs(z)))
    changed = (release | below | above).any(axis=1)
    return (low & ~release) | below, (high & ~release) | above, changed
