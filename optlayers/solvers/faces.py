r"""Systems on active sets of any kind of plan, and active sets at ties, where not every one of them is a face.

At a tie a bound that is met has no price, and an active set may count its column as held or as free. The derivative
that follows is that of a piece which meets at the tie only where what the set leaves free is a face of the directions
in which the point can move: some direction takes every column that is free and at a bound away from this bound. (The
projection is differentiable in the scores wherever bounds that are met have prices, and its derivatives nearby are
those of the faces of the critical cone; Haraux, 1977.)
"""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import active_set, optimality
from optlayers.solvers.kernels.batches import of_each
from optlayers.solvers.kernels.optimality import ASTRAY, AWAY, LEFT, TOUCHES
from optlayers.solvers.plan import KernelInput, plan_of
from optlayers.solvers.shadows import whatever_others_are
from optlayers.solvers.slow_systems import solve_slowly

__all__ = ["faces", "leaving", "on_face"]

FOLLOWS = 1e-8
"""A system on a face is solved when no more than this part of its right-hand side is left."""


def leaving(
    form: StandardForm,
    instances: Instances,
    point: Float64[np.ndarray, "batch columns"],
    free: Bool[np.ndarray, "batch columns"],
    direction: Float64[np.ndarray, "batch scored"],
    moved: Float64[np.ndarray, "batch columns"],
) -> tuple[Bool[np.ndarray, " batch"], int]:
    """Where, and for how many instances, a derivative moves columns that are free and at a bound.

    Elsewhere it is that of all faces alike.
    """
    (rhs, lower, upper, _), found = instances.shared, np.empty(len(point), dtype=np.bool_)
    numbers = of_each(instances.scores), rhs, lower, upper, form.equalities, of_each(point), free, of_each(direction)
    return found, optimality.leave_bounds(*numbers, moved, found)


def faces(
    form: StandardForm,
    instances: Instances,
    point: Float64[np.ndarray, "batch columns"],
    dual: Float64[np.ndarray, "batch rows"],
    free: Bool[np.ndarray, "batch columns"],
) -> Bool[np.ndarray, "batch columns"]:
    """The active sets ``free`` of projections, others where at a tie they are no face of the structures."""
    wider = whatever_others_are(form, instances, point, dual, free)
    smaller = _smaller(form, instances, point, wider)
    return whatever_others_are(form, instances, point, dual, smaller) if smaller is not wider else wider


def _smaller(
    form: StandardForm,
    instances: Instances,
    point: Float64[np.ndarray, "batch columns"],
    free: Bool[np.ndarray, "batch columns"],
) -> Bool[np.ndarray, "batch columns"]:
    low, high = _at_bounds(form, instances, point)
    inward = np.where(low, 1.0, -1.0) * (free & (low | high))
    tied = np.flatnonzero(inward.any(axis=1))
    if len(tied) == 0:
        return free
    some, inward = instances.take(tied), inward[tied]
    doubtful = np.flatnonzero(~_leave_together(form, some, free[tied], inward))
    if len(doubtful) == 0:
        return free
    free = free.copy()
    for k in doubtful:
        free[tied[k], _that_stay(form, some, int(k), free[tied[k]], inward[k])] = False
    return free


def _at_bounds(
    form: StandardForm, instances: Instances, point: Float64[np.ndarray, "batch columns"]
) -> tuple[Bool[np.ndarray, "batch columns"], Bool[np.ndarray, "batch columns"]]:
    """The columns that are at their lower and at their upper bound, next to what the scores move."""
    lower, upper = instances.lower, instances.upper
    moves = np.abs(instances.scores).max(axis=1, initial=0.0)[:, None]
    size = np.where(np.isfinite(point), np.abs(point), 0.0)
    unit = np.minimum(np.maximum(np.abs(lower), np.abs(upper)), np.maximum(1.0, size))
    touches = np.maximum(TOUCHES * np.where(moves > 0.0, np.minimum(unit, moves), unit), ASTRAY * unit)
    near = np.maximum(touches, LEFT * np.maximum(size, moves))
    with np.errstate(invalid="ignore"):  # points of failed instances may be anything
        low, high = point - lower <= near, upper - point <= near
    low[:, form.unslacked :] &= np.isfinite(instances.rhs[:, form.equalities :])
    return low, high & ~low


def _leave_together(
    form: StandardForm, instances: Instances, free: np.ndarray, inward: np.ndarray
) -> Bool[np.ndarray, " batch"]:
    """Where a push inward, projected onto what is free, takes every column that it can move away from its bound."""
    plan, count = plan_of(form), len(free)
    if plan.dense:
        return np.zeros(count, dtype=bool)
    batch, cut = KernelInput.of(plan, instances), form.unslacked
    of_rows = np.zeros((count, form.rows))
    of_rows[:, form.equalities :] = inward[:, cut:]
    push, anything = -plan.prices(batch.matrix, of_rows), np.zeros(free.shape)
    push[:, :cut] += inward[:, :cut]
    push[:, cut:] = 0.0
    anything[:, :cut] = np.random.default_rng(0).standard_normal(cut)
    even = np.where(np.arange(form.columns) < cut, 1.0, 0.0)
    moved, _, solved = on_face(form, instances, free, push, curvature=even)
    mobile, _, known = on_face(form, instances, free, anything, curvature=even)
    can = np.abs(mobile) > AWAY * np.abs(mobile).max(axis=1, initial=1.0)[:, None]
    leaves = moved * inward > AWAY * np.abs(moved).max(axis=1, initial=AWAY)[:, None]
    ordinary: np.ndarray = (leaves | (inward == 0.0) | ~can).all(axis=1) & solved & known
    return ordinary


def _that_stay(
    form: StandardForm, instances: Instances, k: int, free: Bool[np.ndarray, " columns"], inward: np.ndarray
) -> Int64[np.ndarray, " some"]:
    """The free columns of instance ``k`` that no direction takes away from the bounds that they meet."""
    cut = form.unslacked
    meets: np.ndarray = np.flatnonzero(inward)
    matrix = instances.matrix_of(form, k)
    loose = np.zeros(form.rows, dtype=bool)
    loose[form.equalities :] = free[cut:] & (inward[cut:] == 0.0)
    equal = sp.csr_array(matrix)[~loose]
    # Unknowns: a direction, and how far it takes each of these columns, of which no more than 1 counts.
    pick = sp.csr_array((-inward[meets], (np.arange(len(meets)), meets)), shape=(len(meets), form.columns))
    limit = np.where(free, np.inf, 0.0)
    bounds = np.stack([-limit, limit], axis=1)
    bounds[meets, np.where(inward[meets] > 0.0, 0, 1)] = 0.0
    found = scipy.optimize.linprog(
        np.concatenate([np.zeros(form.columns), -np.ones(len(meets))]),
        A_ub=sp.hstack([pick, sp.eye_array(len(meets))], format="csc"),
        b_ub=np.zeros(len(meets)),
        A_eq=sp.hstack([equal, sp.csr_array((equal.shape[0], len(meets)))], format="csc"),
        b_eq=np.zeros(equal.shape[0]),
        bounds=np.concatenate([bounds, np.tile([0.0, 1.0], (len(meets), 1))]),
        method="highs",
    )
    if found.x is None:
        return meets
    still: np.ndarray = meets[found.x[form.columns :] < 0.5]
    return still


def on_face(
    form: StandardForm,
    instances: Instances,
    free: Bool[np.ndarray, "batch columns"],
    of_columns: Float64[np.ndarray, "batch columns"],
    of_rows: Float64[np.ndarray, "batch rows"] | None = None,
    *,
    curvature: Float64[np.ndarray, " columns"] | None = None,
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"], Bool[np.ndarray, " batch"]]:
    """The systems of active sets for right-hand sides of columns and rows, and which of them have a solution.

    ``curvature`` is that of the projection by default; plans that are not dense take any.
    """
    plan, count = plan_of(form), len(free)
    sides = np.ascontiguousarray(of_columns), np.zeros((count, form.rows)) if of_rows is None else of_rows
    p, q, left = np.empty((count, form.columns)), np.empty((count, form.rows)), np.empty(count)
    if plan.dense:
        found = [solve_slowly(form, instances, k, free[k], sides[0][k], sides[1][k]) for k in range(count)]
        for k, (mine, prices, _) in enumerate(found):
            p[k], q[k] = mine, prices
        return p, q, np.array([solved for *_, solved in found], dtype=bool)
    entries, bends = KernelInput.of(plan, instances).matrix, plan.curvature if curvature is None else curvature
    sides = sides[0], np.ascontiguousarray(sides[1])

    def work(which: np.ndarray) -> None:
        active_set.solve_on_face(
            plan.system.table, plan.slack_row, plan.varies, entries, free, bends, *sides, which, p, q, left
        )

    plan.spread(work, count, solves=3)
    return p, q, left <= FOLLOWS
