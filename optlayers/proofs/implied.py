"""What constraints imply: parts that forbidden ones fix, and a number of parts that all structures have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import implied
from optlayers.solvers.plan import plan_of

__all__ = ["fixed_between", "implied_bounds", "may_move", "sum_is_fixed"]

SAME = implied.SAME
CHANGED = 1e-6
"""Values of a part that differ by more than this, next to its size and to the room it has, are two."""
FEW = 8
"""After so many best vertices a point well inside is asked for;"""
QUESTIONS = 256
"""so many of an instance are asked for, at most."""

Best = Callable[
    [Int64[np.ndarray, " some"], Float64[np.ndarray, "some size"]],
    tuple[Float64[np.ndarray, "some size"], Bool[np.ndarray, " some"]],
]
"""Best points of some instances, and which of them are certified."""
Inside = Callable[[Int64[np.ndarray, " some"]], Float64[np.ndarray, "some size"]]
"""Points of some instances, NaN for none."""


def implied_bounds(
    form: StandardForm, instances: Instances
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch columns"]]:
    """Bounds of all columns, as far as one row after the other tells: true, but not always the narrowest.

    A row bounds each of its columns by what it leaves when the others are at their ends; that is done until nothing
    changes (Savelsbergh, Preprocessing and probing techniques for mixed integer programming problems, 1994). So where a
    row of an assignment has one part left, that part is 1, and the rest of its column 0. Rows with auxiliary variables,
    of which there may be very many, are not looked at.
    """
    plan = plan_of(form)
    lower, upper = np.array(instances.lower, order="C"), np.array(instances.upper, order="C")
    column = np.repeat(np.arange(form.columns), np.diff(form.matrix.indptr))
    auxiliary = np.zeros(form.rows, dtype=bool)
    auxiliary[form.matrix.indices[(column >= form.scored) & (column < form.unslacked)]] = True
    rhs, _, _, matrix = instances.shared
    implied.tighten(*plan.by_row, plan.entries if matrix is None else matrix, auxiliary, rhs, lower, upper)
    return lower, upper


def fixed_between(
    lower: Float64[np.ndarray, "batch columns"], upper: Float64[np.ndarray, "batch columns"]
) -> Bool[np.ndarray, "batch columns"]:
    """Columns whose bounds are one number."""
    with np.errstate(invalid="ignore"):
        met: np.ndarray = np.isfinite(upper) & (upper - lower <= SAME * np.maximum(1.0, np.abs(upper)))
    return met


def may_move(
    best: Best,
    room: Float64[np.ndarray, "batch size"],
    undecided: Bool[np.ndarray, "batch size"],
    inside: Inside | None = None,
) -> Bool[np.ndarray, "batch size"]:
    """Which of the undecided parts do not have the same value in all points of their polytopes.

    A part moves when two points differ in it. Of the parts that have not moved yet, weights of their own make a sum; if
    the points in which it is largest and smallest agree in all of these parts, the sum is the same everywhere, and for
    generic weights this means that none of the parts can move. Else some of them have moved, and it is asked again. A
    structure moves as many parts as it has; where these are few, a point well inside moves nearly all at once.

    Parameters
    ----------
    best : what questions are asked of.
    room : how far bounds let a part move.
    undecided : the parts that are asked about.
    inside : points that are no vertices, to the accuracy of a projection, asked for after some vertices; None for none.

    Returns
    -------
    Without what is known to be fixed. Parts of instances that a question fails for, or takes too many of, may move.
    """
    undecided = undecided.copy()
    moves = np.zeros_like(undecided)
    weights = 1.0 + np.random.default_rng(0).random(undecided.shape[1])
    open_ones = np.flatnonzero(undecided.any(axis=1))
    base, sign = np.zeros(undecided.shape), np.ones(len(undecided))
    for question in range(QUESTIONS):
        if len(open_ones) == 0:
            break
        if question == FEW and inside is not None:
            changed = undecided[open_ones] & _differ(inside(open_ones), base[open_ones], room[open_ones], CHANGED**0.5)
            moves[open_ones] |= changed
            undecided[open_ones] &= ~changed
            sign[open_ones] = np.where(changed.any(axis=1), 1.0, sign[open_ones])
        found, good = best(open_ones, sign[open_ones, None] * np.where(undecided[open_ones], weights, 0.0))
        given_up, some, found = open_ones[~good], open_ones[good], found[good]
        if question == 0:
            base[some] = found
        changed = undecided[some] & _differ(found, base[some], room[some], CHANGED)
        moves[some] |= changed
        undecided[some] &= ~changed
        moves[given_up] |= undecided[given_up]
        again = changed.any(axis=1)
        settled = ~again & (sign[some] < 0.0)  # both ends of one sum
        sign[some] = np.where(again, 1.0, -1.0)
        open_ones = some[~settled & undecided[some].any(axis=1)]
    moves[open_ones] |= undecided[open_ones]
    return moves


def _differ(
    points: Float64[np.ndarray, "some size"],
    others: Float64[np.ndarray, "some size"],
    room: Float64[np.ndarray, "some size"],
    tolerance: float,
) -> Bool[np.ndarray, "some size"]:
    size = np.minimum(np.maximum(1.0, np.abs(others)), room)
    apart: np.ndarray = np.abs(points - others) > tolerance * size
    return apart


def sum_is_fixed(form: StandardForm) -> bool:
    """Whether the parts of the structure have the same sum in all points: a combination of equalities says so."""
    if not form.matrix_is_constant:
        return False
    wanted = np.zeros(form.columns)
    wanted[: form.scored] = form.kept < form.structure_size
    if form.rows == 0:
        return not wanted.any()
    matrix = sp.csc_array(form.matrix)
    found = sp.linalg.lsmr(matrix.T, wanted, atol=1e-14, btol=1e-14, maxiter=20 * form.rows + 100)[0]
    return bool(np.abs(matrix.T @ found - wanted).max(initial=0.0) <= SAME)
