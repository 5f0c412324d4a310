r"""Derivatives of regularized problems: linear systems with the curvature at the answer, on its active set.

On the columns F that are free, with the diagonal matrix H of curvatures (0 for columns without any),

.. math:: \begin{pmatrix} H & A_F^\top \\ A_F & 0 \end{pmatrix} \begin{pmatrix} p \\ q \end{pmatrix}
          = \begin{pmatrix} g \\ h \end{pmatrix},

by the proximal steps of :mod:`optlayers.solvers.kernels.active_set`, which decide no rank. A curvature may be infinite:
its column stays where it is.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.active_set import (
    COLUMN_SHIFT,
    PRECISION,
    STEPS,
    TINY,
    face_in,
    fill_slack,
    find_idle,
    unscale_slack,
)
from optlayers.solvers.kernels.batches import read, read_entries, read_flags, read_rows, write, write_rows
from optlayers.solvers.kernels.flat import flat, keep, row
from optlayers.solvers.kernels.lanes import (
    LANES,
    absolute,
    fill,
    jit,
    load,
    maximum,
    minimum,
    part,
    spread,
    store,
    where_less,
)
from optlayers.solvers.kernels.normal_equations import (
    DROPPED,
    assemble,
    factor,
    multiply,
    multiply_transpose,
    opened,
    solve,
)

__all__ = ["solve_on_curve"]

LEAST_STEPS = 2
"""So many steps are made anyway: residuals are relative to the largest column, and say nothing about rows whose columns
are all next to 0."""


@jit(
    "(int64[:, ::1], int64[::1], boolean, float64[:, ::1], boolean[:, ::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, ::1], float64, boolean, int64[::1], float64[:, ::1], float64[:, ::1], float64[::1])"
)
def solve_on_curve(  # type: ignore[no-untyped-def]
    table, slack_rows, varies, matrix, free, bends, side, row_side, delta, relative, which, p_out, q_out, left_over
):
    """Solve the system above for ``side``, g, and ``row_side``, h, with ``delta`` on the diagonal of rows, where
    ``relative`` in units of their own size where it is small; ``left_over`` is the residual, relative to the numbers of
    the system."""
    system, slack_row = opened(table), flat(slack_rows)
    rows, columns = len(system.order), len(system.column_start) - 1
    first_slack = columns - len(slack_row)
    size = LANES * columns
    wide, tall, few = np.empty((7, size)), np.empty((8, LANES * rows)), np.empty((2, LANES))
    factor_room = np.empty(LANES * (rows + len(system.factor_row)))
    entry_room = np.empty(LANES * len(system.column_row) if varies else 0)
    face, entries = face_in(wide, tall, few, factor_room), flat(entry_room)
    idle, theta, shift = face.idle, face.theta, face.shift
    left, going = face.left, row(few, 1)
    moving, g = row(wide, 3), row(wide, 4)
    p, bend = row(wide, 5), row(wide, 6)
    q, r2, step = row(tall, 5), row(tall, 6), face.step
    fill(g, 0.0)
    for start in range(0, len(which), LANES):
        read_flags(free, which, start, moving)
        read(side, which, start, g)
        read(bends, which, start, bend)
        read_rows(system, row_side, which, start, r2)
        if varies:
            read_entries(system, matrix, which, start, entries)
        find_idle(system, slack_row, first_slack, moving, idle)
        for e in range(size):
            moving[e] = moving[e] if bend[e] < np.inf else 0.0
            theta[e] = moving[e] / (bend[e] if bend[e] > 0.0 else COLUMN_SHIFT)
            bend[e] = bend[e] if bend[e] < np.inf else 0.0
        for i in range(rows):
            store(shift, i, where_less(spread(0.5), load(idle, i), spread(DROPPED), spread(0.0)))
        assemble(system, varies, entries, theta, shift, face.factored)
        for i in range(rows):
            own = load(face.factored, i)  # a row whose columns hardly move is small, and its shift with it
            own = where_less(spread(0.0), own, minimum(own, spread(1.0)), spread(1.0)) if relative else spread(1.0)
            store(face.factored, i, load(face.factored, i) + delta * own)
        factor(system, face.factored, face.column, 0.0)
        fill(p, 0.0)
        fill(q, 0.0)
        _steps(system, varies, entries, bend, moving, face, g, r2, p, q, going, LEAST_STEPS if relative else 0)
        multiply(system, varies, entries, p, step)
        fill_slack(slack_row, first_slack, r2, step, idle, p)
        unscale_slack(system, slack_row, first_slack, p)
        for i in range(rows):
            store(q, i, where_less(spread(0.5), load(idle, i), spread(0.0), load(q, i)))
        write(p, which, start, p_out)
        write_rows(system, q, which, start, q_out)
        for w in range(min(LANES, len(which) - start)):
            left_over[which[start + w]] = left[w]
    keep(wide)
    keep(tall)
    keep(few)
    keep(factor_room)
    keep(entry_room)


@part
def _steps(system, varies, entries, bend, moving, face, g, r2, p, q, going, least):  # type: ignore[no-untyped-def]
    """Repeat proximal steps in place; ``face.left`` is what they leave of the residual, of columns in the units of what
    they move (Θ times it), of rows next to that: next to as much as a column may move for a g of this size. How much a
    column without curvature moves is for the others to say: the rounding of its residual counts as theirs does."""
    idle, theta = face.idle, face.theta
    factored, left = face.factored, face.left
    first, second = face.first, face.second
    pull, step = face.pull, face.step
    columns, rows = len(bend) // LANES, len(idle) // LANES
    largest, loosest = spread(0.0), spread(0.0)
    for j in range(columns):
        largest = maximum(largest, load(moving, j) * absolute(load(g, j)))
        loosest = maximum(loosest, where_less(spread(0.0), load(bend, j), load(theta, j), spread(0.0)))
    loosest = where_less(spread(0.0), loosest, loosest, spread(1.0))
    for attempt in range(STEPS + 1):
        multiply_transpose(system, varies, entries, q, pull)
        multiply(system, varies, entries, p, step)
        column_error, row_error, size = spread(0.0), spread(0.0), maximum(largest * loosest, spread(TINY))
        for i in range(rows):
            size = maximum(size, (1.0 - load(idle, i)) * absolute(load(r2, i)))
        for j in range(columns):
            error = load(moving, j) * (load(g, j) - load(bend, j) * load(p, j) - load(pull, j))
            moved = load(theta, j) * error
            curved = where_less(spread(0.0), load(bend, j), moved, loosest * error)
            column_error = maximum(column_error, absolute(curved))
            size = maximum(size, absolute(load(p, j)))
            store(first, j, error)
            store(pull, j, moved)
        for i in range(rows):
            error = (1.0 - load(idle, i)) * (load(r2, i) - load(step, i))
            row_error = maximum(row_error, absolute(error))
            store(second, i, error)
        store(left, 0, maximum(column_error, row_error) / size)
        worst = 0.0
        for w in range(LANES):
            worst = max(worst, left[w])
        if attempt == STEPS or not (worst > PRECISION or attempt < least):
            break
        # A lane that is done stays where it is: its answer must not depend on its neighbours.
        goes_on = where_less(spread(PRECISION), load(left, 0), spread(1.0), spread(0.0))
        store(going, 0, spread(1.0) if attempt < least else goes_on)
        multiply(system, varies, entries, pull, step)
        for i in range(rows):
            store(step, i, (1.0 - load(idle, i)) * (load(step, i) - load(second, i)))
        solve(system, factored, step)
        multiply_transpose(system, varies, entries, step, pull)
        goes_on = load(going, 0)
        for j in range(columns):
            store(p, j, load(p, j) + goes_on * load(theta, j) * (load(first, j) - load(pull, j)))
        for i in range(rows):
            store(q, i, load(q, i) + goes_on * load(step, i))
