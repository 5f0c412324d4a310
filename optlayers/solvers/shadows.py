"""Faces of the scored columns where others stand beside them: which constraints are tight whatever those are."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import vertex
from optlayers.solvers.kernels.optimality import FLOOR, TOUCHES
from optlayers.solvers.plan import KernelInput, plan_of

__all__ = ["idle_beside_others", "is_vertex_beside_others", "whatever_others_are"]

IDLE = 1e-9
"""The price of a constraint that may hold nothing, relative to the largest price or score."""


def is_vertex_beside_others(
    form: StandardForm, instances: Instances, k: int, point: Float64[np.ndarray, " columns"]
) -> bool:
    """Whether the scored columns of a point of instance ``k`` are a vertex, whatever auxiliary columns may be.

    A constraint that is tight counts when no change of the auxiliary columns alone gives it room.
    """
    plan, scored, cut = plan_of(form), form.scored, form.unslacked
    whole = instances.matrix_of(form, k)
    matrix = sp.csr_array(whole)
    lower, upper, rhs = instances.lower[k, :cut], instances.upper[k, :cut], instances.rhs[k]
    unit = np.minimum(np.maximum(np.abs(lower), np.abs(upper)), np.maximum(1.0, np.abs(point[:cut])))
    low, high = point[:cut] - lower <= TOUCHES * unit, upper - point[:cut] <= TOUCHES * unit
    body = matrix[:, :cut]
    size = np.abs(rhs) + abs(body) @ np.abs(point[:cut])
    tight = np.isfinite(rhs) & (rhs - body @ point[:cut] <= TOUCHES * size)
    tight[: form.equalities] = True
    room = _get_room(form, sp.csc_array(body[:, scored:]), tight, low[scored:], high[scored:])
    if room is None:
        return False
    free, (rows, places) = ~(low | high), room
    tight[rows] = False
    free[scored + places] = True
    entries = whole.data[: body.nnz]
    return bool(vertex.is_decided(plan.start, plan.row, entries, *plan.by_row, scored, free, tight))


def idle_beside_others(
    form: StandardForm,
    instances: Instances,
    dual: Float64[np.ndarray, "batch rows"],
    free: Bool[np.ndarray, "batch columns"],
) -> Bool[np.ndarray, "batch columns"]:
    """The columns that active sets hold without a price, of auxiliary variables and of rows with one."""
    scored, cut = form.scored, form.unslacked
    if cut == scored:
        return np.zeros(free.shape, dtype=bool)
    plan = plan_of(form)
    of_columns = np.abs(plan.prices(KernelInput.of(plan, instances).matrix, dual))[
        :, :cut
    ]  # auxiliary ones have no score
    price = np.concatenate([of_columns, np.abs(dual[:, form.equalities :])], axis=1)
    most = np.maximum(np.abs(instances.scores).max(axis=1, initial=0.0), np.abs(dual).max(axis=1, initial=0.0))
    beside = np.zeros(form.columns, dtype=bool)
    beside[scored:cut] = True
    beside[cut:] = np.diff(sp.csr_array(form.matrix[:, scored:cut]).indptr)[form.equalities :] > 0
    most = np.maximum(most, FLOOR / IDLE)  # next to scores of 0 a point that is one of them has prices of rounding
    idle: np.ndarray = ~free & (price <= IDLE * most[:, None]) & beside & (instances.lower < instances.upper)
    return idle


def whatever_others_are(
    form: StandardForm,
    instances: Instances,
    point: Float64[np.ndarray, "batch columns"],
    dual: Float64[np.ndarray, "batch rows"],
    free: Bool[np.ndarray, "batch columns"],
) -> Bool[np.ndarray, "batch columns"]:
    """The active sets ``free`` of projections, without what a change of auxiliary columns alone gives room.

    A face of the lifted polytope need not be one of the polytope of the structures: two constraints that an auxiliary
    column couples may leave the structure a line between them. Those that are tight for all values of the others make
    the smallest face of the structures that has this one in it.
    """
    changed = np.flatnonzero(idle_beside_others(form, instances, dual, free).any(axis=1))
    if len(changed) == 0:
        return free
    scored, cut = form.scored, form.unslacked
    free, high = free.copy(), instances.upper - point < point - instances.lower
    known: dict[tuple[bytes, ...], tuple[np.ndarray, np.ndarray] | None] = {}  # by what is held, where matrices agree
    for k in changed:
        matrix = instances.matrix_of(form, int(k))
        tight = np.ones(form.rows, dtype=bool)
        tight[form.equalities :] = ~free[k, cut:]
        both = ~free[k, scored:cut] & ~(instances.lower < instances.upper)[k, scored:cut]
        at_low = ~free[k, scored:cut] & ~high[k, scored:cut]
        at_high = ~free[k, scored:cut] & high[k, scored:cut]
        key = tuple(part.tobytes() for part in (tight, at_low | both, at_high | both))
        if key not in known or instances.matrix is not None:
            known[key] = _get_room(form, sp.csc_array(matrix[:, scored:cut]), tight, at_low | both, at_high | both)
        room = known[key]
        if room is not None:
            free[k, cut + room[0] - form.equalities] = True
            free[k, scored + room[1]] = True
    return free


def _get_room(
    form: StandardForm,
    beside: sp.csc_array,
    tight: Bool[np.ndarray, " rows"],
    low: Bool[np.ndarray, " others"],
    high: Bool[np.ndarray, " others"],
) -> tuple[Int64[np.ndarray, " some"], Int64[np.ndarray, " columns"]] | None:
    """The tight inequalities, and the columns at a bound, that a change of the auxiliary columns alone gives room.

    That is one linear program: the sum of all room, none of which counts for more than 1. (Constraints are linear, so a
    change that gives room to each of some is one that gives room to all of them.)
    """
    rows = np.flatnonzero(tight[form.equalities :]) + form.equalities
    at_low, at_high = np.flatnonzero(low & ~high), np.flatnonzero(high & ~low)
    # Unknowns: the change of auxiliary columns, then the room of rows, of lower and of upper bounds.
    width = beside.shape[1]
    pick = sp.eye_array(width, format="csr")
    moves = sp.vstack([sp.csr_array(beside)[rows], -pick[at_low], pick[at_high]], format="csc")
    rooms = moves.shape[0]
    held = np.where(low & high, 0.0, np.inf)
    found = scipy.optimize.linprog(
        np.concatenate([np.zeros(width), -np.ones(rooms)]),
        A_ub=sp.hstack([moves, sp.eye_array(rooms)], format="csc"),
        b_ub=np.zeros(rooms),
        A_eq=sp.hstack([sp.csr_array(beside)[: form.equalities], sp.csr_array((form.equalities, rooms))], format="csc"),
        b_eq=np.zeros(form.equalities),
        bounds=np.concatenate([np.stack([-held, held], axis=1), np.tile([0.0, 1.0], (rooms, 1))]),
        method="highs",
    )
    if found.x is None:
        return None
    of_rows, of_low, of_high = np.split(found.x[width:] > 0.5, np.cumsum([len(rows), len(at_low)]))
    return rows[of_rows], np.concatenate([at_low[of_low], at_high[of_high]])
