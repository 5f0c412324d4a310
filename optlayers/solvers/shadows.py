"""Vertices of the scored columns where others stand beside them: which constraints are tight whatever those are."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.sparse as sp
from jaxtyping import Float64

from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import vertex
from optlayers.solvers.kernels.certificate import TOUCHES
from optlayers.solvers.plan import plan_of
from optlayers.standard_form import StandardForm

__all__ = ["is_vertex_beside_others"]


def is_vertex_beside_others(
    form: StandardForm, instances: Instances, k: int, point: Float64[np.ndarray, " columns"]
) -> bool:
    """Whether the scored columns of a point of instance ``k`` are a vertex, whatever auxiliary columns may be.

    A constraint that is tight counts when no change of the auxiliary columns alone gives it room. Which ones get room
    is one linear program: the sum of all room, none of which counts for more than 1. (Constraints are linear, so a
    change that gives room to each of some is one that gives room to all of them.)
    """
    plan, scored, cut = plan_of(form), form.scored, form.unslacked
    data = form.matrix.data if instances.matrix is None else instances.matrix[k]
    matrix = sp.csr_array(sp.csc_array((data, form.matrix.indices, form.matrix.indptr), shape=form.matrix.shape))
    lower, upper, rhs = instances.lower[k, :cut], instances.upper[k, :cut], instances.rhs[k]
    unit = np.minimum(np.maximum(np.abs(lower), np.abs(upper)), np.maximum(1.0, np.abs(point[:cut])))
    low, high = point[:cut] - lower <= TOUCHES * unit, upper - point[:cut] <= TOUCHES * unit
    body = matrix[:, :cut]
    size = np.abs(rhs) + abs(body) @ np.abs(point[:cut])
    tight = np.isfinite(rhs) & (rhs - body @ point[:cut] <= TOUCHES * size)
    tight[: form.equalities] = True
    beside = sp.csc_array(body[:, scored:])
    # Unknowns: the change of auxiliary columns, then the room of rows, of lower and of upper bounds.
    rows = np.flatnonzero(tight[form.equalities :]) + form.equalities
    at_low = np.flatnonzero(low[scored:] & ~high[scored:])
    at_high = np.flatnonzero(high[scored:] & ~low[scored:])
    width, pick = cut - scored, sp.eye_array(cut - scored, format="csr")
    moves = sp.vstack([sp.csr_array(beside)[rows], -pick[at_low], pick[at_high]], format="csc")
    rooms = moves.shape[0]
    held = np.where(low[scored:] & high[scored:], 0.0, np.inf)
    equal = sp.csr_array(beside)[: form.equalities]
    found = scipy.optimize.linprog(
        np.concatenate([np.zeros(width), -np.ones(rooms)]),
        A_ub=sp.hstack([moves, sp.eye_array(rooms)], format="csc"),
        b_ub=np.zeros(rooms),
        A_eq=sp.hstack([equal, sp.csr_array((form.equalities, rooms))], format="csc"),
        b_eq=np.zeros(form.equalities),
        bounds=np.concatenate([np.stack([-held, held], axis=1), np.tile([0.0, 1.0], (rooms, 1))]),
        method="highs",
    )
    if found.x is None:
        return False
    gets_room = np.zeros(rooms, dtype=bool) | (found.x[width:] > 0.5)
    free = ~(low | high)
    tight[rows[gets_room[: len(rows)]]] = False
    for places, shift in ((at_low, len(rows)), (at_high, len(rows) + len(at_low))):
        free[scored + places[gets_room[shift : shift + len(places)]]] = True
    entries = data[: body.nnz]
    return bool(vertex.is_decided(plan.start, plan.row, entries, *plan.by_row, scored, free, tight))
