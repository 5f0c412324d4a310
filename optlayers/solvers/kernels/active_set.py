r"""Linear systems on an active set: exact projections, exact vertices, and derivatives.

On the columns F that are free, with the diagonal matrix H that is 1 on scored columns and 0 on others,

.. math:: \begin{pmatrix} H & A_F^\top \\ A_F & 0 \end{pmatrix} \begin{pmatrix} p \\ q \end{pmatrix}
          = \begin{pmatrix} r_1 \\ r_2 \end{pmatrix}.

The matrix is singular as soon as active rows depend on each other or auxiliary columns can move without moving the
structure, and both are the rule. Deciding its rank is where published code goes wrong: a cutoff near rounding takes
noise for a constraint. Here no rank is decided. Proximal steps, with small numbers on the diagonal (+ for columns
without curvature, - for rows), are repeated on the residual of the system itself. For a consistent system they
converge to a solution, each singular value σ at the rate δ / (δ + σ²) or better, and what is indistinguishable from
rounding (σ² far below δ) never moves. Where rows are nearly but not quite dependent that takes too many steps, and
the residual says so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from optlayers.solvers.kernels.batches import (
    grouped,
    read,
    read_entries,
    read_flags,
    read_group,
    read_multipliers,
    read_rows,
    write,
    write_rows,
)
from optlayers.solvers.kernels.flat import FlatType, flat, grid, keep, row
from optlayers.solvers.kernels.lanes import (
    LANES,
    absolute,
    fill,
    jit,
    load,
    maximum,
    nearest_whole,
    part,
    spread,
    stay_apart,
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

__all__ = [
    "COLUMN_SHIFT",
    "CONVERGED",
    "PRECISION",
    "ROW_SHIFT",
    "STEPS",
    "TINY",
    "face_in",
    "fill_slack",
    "find_idle",
    "polish",
    "solve_on_face",
    "unscale_slack",
    "vertex",
]

COLUMN_SHIFT = 1e-6
"""Proximal curvature of columns without any."""
ROW_SHIFT = 1e-8
"""δ, relative to rows of unit norm; well above the rounding of an eliminated row next to 1 / COLUMN_SHIFT."""
STEPS = 30
"""At most so many proximal steps; a well-conditioned system takes two or three."""
PRECISION = 1e-14
"""Steps end when the residual is below this, relative to the right-hand side."""
CONVERGED = 1e-11
"""A residual below this is a solution."""
TINY = 1e-300
"""What residuals are relative to where all numbers are 0."""
ROUNDS = 12
"""How often a guessed active set is corrected."""
SIGN = 1e-11
"""Violations of bounds and of the signs of multipliers below this, relative to the data, are rounding."""
SNAP = 1e-9
"""Entries of a vertex this close to a bound or to an integer are that number."""
EVEN = 1e-11
"""An objective of unit size that gains less than this along a direction of the face is constant on it."""
RIGID = 1e-6
"""A face on which a generic objective of unit size can gain less than this along any line is a vertex."""


class Face(NamedTuple):
    """Room for a system on an active set: its numbers, its factor, and what its steps go through."""

    idle: FlatType
    """1 for rows that bind nothing."""
    theta: FlatType
    shift: FlatType
    factored: FlatType
    column: FlatType
    first: FlatType
    """Residuals of columns, then of rows."""
    second: FlatType
    pull: FlatType
    step: FlatType
    left: FlatType
    """The residual of the solution, relative to the right-hand sides."""


@part
def face_in(wide, tall, few, factored):  # type: ignore[no-untyped-def]
    """A face on which all rows bind, in the first three rows of ``wide``, five of ``tall`` and one of ``few``."""
    face = Face(
        idle=row(tall, 0),
        theta=row(wide, 0),
        shift=row(tall, 1),
        factored=flat(factored),
        column=row(tall, 2),
        first=row(wide, 1),
        second=row(tall, 3),
        pull=row(wide, 2),
        step=row(tall, 4),
        left=row(few, 0),
    )
    fill(face.idle, 0.0)
    return face


@part
def _prepare(system, varies, entries, curvature, free, face):  # type: ignore[no-untyped-def]
    """Factor the proximal system. Rows whose slack column is free are idle: they bind nothing."""
    stay_apart()
    idle, theta, shift = face.idle, face.theta, face.shift
    for j in range(len(curvature)):
        store(theta, j, load(free, j) * (1.0 if curvature[j] > 0.0 else 1.0 / COLUMN_SHIFT))
    for i in range(len(idle) // LANES):
        store(shift, i, where_less(spread(0.5), load(idle, i), spread(DROPPED), spread(ROW_SHIFT)))
    assemble(system, varies, entries, theta, shift, face.factored)
    factor(system, face.factored, face.column, 0.0)


@part
def _proximal_steps(system, varies, entries, curvature, free, face, r1, r2, p, q):  # type: ignore[no-untyped-def]
    """Repeat proximal steps in place; ``face.left`` is what they leave of the residual."""
    stay_apart()
    idle, theta = face.idle, face.theta
    factored, left = face.factored, face.left
    first, second = face.first, face.second
    pull, step = face.pull, face.step
    columns, rows = len(curvature), len(idle) // LANES
    of_columns, of_rows = spread(0.0), spread(0.0)
    for j in range(columns):
        of_columns = maximum(of_columns, load(free, j) * absolute(load(r1, j)))
    for i in range(rows):
        of_rows = maximum(of_rows, (1.0 - load(idle, i)) * absolute(load(r2, i)))
    for attempt in range(STEPS + 1):
        multiply_transpose(system, varies, entries, q, pull)
        multiply(system, varies, entries, p, step)
        column_error, row_error, size = spread(0.0), spread(0.0), spread(0.0)
        for j in range(columns):
            error = load(free, j) * (load(r1, j) - curvature[j] * load(p, j) - load(pull, j))
            column_error = maximum(column_error, absolute(error))
            size = maximum(size, load(free, j) * absolute(load(p, j)))
            store(first, j, error)
            store(pull, j, load(theta, j) * error)
        for i in range(rows):
            error = (1.0 - load(idle, i)) * (load(r2, i) - load(step, i))
            row_error = maximum(row_error, absolute(error))
            store(second, i, error)
        # Relative to the numbers that each is a difference of: next to a row with a side of 1e3, 1e-11 is not exact.
        # Where all sides of rows are 0, as for a derivative, p may be 0 but for the rounding of what it is made of.
        column_scale, row_scale = maximum(of_columns, size), maximum(of_rows, size)
        column_scale = where_less(spread(0.0), column_scale, column_scale, maximum(row_scale, spread(TINY)))
        row_scale = where_less(spread(0.0), of_rows, row_scale, column_scale)
        store(left, 0, maximum(column_error / column_scale, row_error / row_scale))
        worst = 0.0
        for w in range(LANES):
            worst = max(worst, left[w])
        if attempt == STEPS or not worst > PRECISION:
            break
        # A lane that is done stays where it is: its answer must not depend on its neighbours.
        goes_on = where_less(spread(PRECISION), load(left, 0), spread(1.0), spread(0.0))
        multiply(system, varies, entries, pull, step)
        for i in range(rows):
            store(step, i, (1.0 - load(idle, i)) * (load(step, i) - load(second, i)))
        solve(system, factored, step)
        multiply_transpose(system, varies, entries, step, pull)
        for j in range(columns):
            store(p, j, load(p, j) + goes_on * load(theta, j) * (load(first, j) - load(pull, j)))
        for i in range(rows):
            store(q, i, load(q, i) + goes_on * load(step, i))
    # Whether this is a solution must not hang on the rounding of large multipliers, of nearly dependent rows.
    terms = column_scale
    for i in range(rows):
        terms = maximum(terms, absolute(load(q, i)))
    store(left, 0, maximum(column_error / terms, row_error / row_scale))


@part
def find_idle(system, slack_row, first_slack, free, idle):  # type: ignore[no-untyped-def]
    """Rows of free slack columns; these columns themselves are then no part of the system."""
    fill(idle, 0.0)
    for k in range(len(slack_row)):
        flag = load(free, first_slack + k)
        store(idle, slack_row[k], flag)
        store(free, first_slack + k, spread(0.0))


@part
def fill_slack(slack_row, first_slack, r2, product, idle, p):  # type: ignore[no-untyped-def]
    """Free slack columns take what is left of their row, which is scaled like its entry."""
    for k in range(len(slack_row)):
        i = slack_row[k]
        store(p, first_slack + k, load(idle, i) * (load(r2, i) - load(product, i)))


@jit(
    "(int64[:, ::1], int64[::1], boolean, float64[:, ::1], float64[:, ::1], float64[::1], float64[:, ::1], "
    "float64[:, ::1], float64[:, ::1], int64[::1], float64[:, ::1], float64[:, ::1], boolean[:, ::1], "
    "boolean[:, ::1], boolean[:, ::1], boolean[::1])"
)
def polish(  # type: ignore[no-untyped-def]
    table, slack_rows, varies, matrix, scores, bends, rhs, lower, upper, which, point, dual, low, high, free, exact
):
    """Move projections onto their exact active set.

    ``low`` and ``high`` are the guess. Bounds that the solution violates are added, multipliers of the wrong sign
    released, and the system solved again. Where that ends, ``exact`` is set, and ``point``, ``dual`` and ``free`` are
    the projection; other instances keep what they came with.
    """
    system, slack_row, curvature = opened(table), flat(slack_rows), flat(bends)
    rows, columns = len(system.order), len(curvature)
    first_slack = columns - len(slack_row)
    size = LANES * columns
    wide, tall, few = np.empty((8, size)), np.empty((7, LANES * rows)), np.empty((2, LANES))
    group_wide, group_tall = np.empty((3, size)), np.empty((1, LANES * rows))
    factor_room = np.empty(LANES * (rows + len(system.factor_row)))
    entry_room = np.empty(LANES * len(system.column_row) if varies else 0)
    face, group = face_in(wide, tall, few, factor_room), grouped(group_wide, group_tall, entry_room)
    s, l, u = group.scores, group.lower, group.upper
    b, entries = group.rhs, group.entries
    idle, pull = face.idle, face.pull
    step, left = face.step, face.left
    p, held, moving = row(wide, 3), row(wide, 4), row(wide, 5)
    at_low, at_high = row(wide, 6), row(wide, 7)
    q, r2, margin = row(tall, 5), row(tall, 6), row(few, 1)
    done = np.empty(LANES, np.bool_)
    for start in range(0, len(which), LANES):
        read_group(system, varies, matrix, scores, rhs, lower, upper, which, start, group)
        read(point, which, start, p)
        read_multipliers(system, dual, which, start, q)
        read_flags(low, which, start, at_low)
        read_flags(high, which, start, at_high)
        largest = spread(1.0)
        for j in range(columns):
            largest = maximum(largest, absolute(load(s, j)))
        store(margin, 0, SIGN * largest)
        done[:] = False
        for _ in range(ROUNDS):
            for e in range(size):
                moving[e] = 1.0 - max(at_low[e], at_high[e])
                held[e] = l[e] if at_low[e] > 0.0 else (u[e] if at_high[e] > 0.0 else 0.0)
                p[e] = moving[e] * p[e]
            find_idle(system, slack_row, first_slack, moving, idle)
            for k in range(len(slack_row)):
                store(p, first_slack + k, spread(0.0))
            multiply(system, varies, entries, held, r2)
            for i in range(rows):
                store(r2, i, load(b, i) - load(r2, i))
                store(q, i, (1.0 - load(idle, i)) * load(q, i))
            _prepare(system, varies, entries, curvature, moving, face)
            _proximal_steps(system, varies, entries, curvature, moving, face, s, r2, p, q)
            multiply(system, varies, entries, p, step)
            fill_slack(slack_row, first_slack, r2, step, idle, p)
            unscale_slack(system, slack_row, first_slack, p)
            multiply_transpose(system, varies, entries, q, pull)
            finished = True
            for w in range(LANES):
                if done[w]:
                    continue
                changed = _correct(
                    w, curvature, s, l, u, p, pull, held, slack_row, first_slack, idle, at_low, at_high, margin[w]
                )
                if not changed:
                    done[w] = True
                    if start + w < len(which):
                        _keep(
                            system,
                            w,
                            l,
                            u,
                            p,
                            q,
                            held,
                            moving,
                            slack_row,
                            first_slack,
                            idle,
                            which[start + w],
                            left[w],
                            point,
                            dual,
                            free,
                            exact,
                        )
                finished = finished and done[w]
            if finished:
                break
    keep(wide)
    keep(tall)
    keep(few)
    keep(group_wide)
    keep(group_tall)
    keep(factor_room)
    keep(entry_room)


@part
def unscale_slack(system, slack_row, first_slack, p):  # type: ignore[no-untyped-def]
    """A slack column's entry is the scale of its row."""
    for k in range(len(slack_row)):
        store(p, first_slack + k, load(p, first_slack + k) / system.scale[slack_row[k]])


@part
def _correct(w, curvature, s, l, u, p, pull, held, slack_row, first_slack, idle, at_low, at_high, margin):  # type: ignore[no-untyped-def]
    """The next active set of lane ``w``, and whether it is new."""
    changed = False
    for j in range(len(curvature)):
        e = LANES * j + w
        bound = at_low[e] > 0.0 or at_high[e] > 0.0
        if bound:
            reduced = s[e] - curvature[j] * held[e] - pull[e]
            if l[e] < u[e] and ((at_low[e] > 0.0 and reduced > margin) or (at_high[e] > 0.0 and reduced < -margin)):
                at_low[e] = 0.0
                at_high[e] = 0.0
                p[e] = held[e]
                changed = True
        else:
            slack = SIGN * (1.0 + abs(p[e]))
            if p[e] < l[e] - slack:
                at_low[e] = 1.0
                changed = True
            elif p[e] > u[e] + slack:
                at_high[e] = 1.0
                changed = True
    return changed


@part
def _keep(system, w, l, u, p, q, held, moving, slack_row, first_slack, idle, k, left, point, dual, free, exact):  # type: ignore[no-untyped-def]
    exact[k] = left <= CONVERGED
    for j in range(point.shape[1]):
        e = LANES * j + w
        is_free = moving[e] > 0.0
        if j >= first_slack:
            is_free = idle[LANES * slack_row[j - first_slack] + w] > 0.0
        # Beyond a bound by rounding is at it.
        point[k, j] = min(max(p[e], l[e]), u[e]) if is_free else held[e]
        free[k, j] = is_free
    for i in range(dual.shape[1]):
        dual[k, system.order[i]] = q[LANES * i + w] * system.scale[i]


@jit(
    "(int64[:, ::1], boolean, float64[:, ::1], float64[:, ::1], Array(float64,1,'C',readonly=True), int64, "
    "float64[:, ::1], float64[:, ::1], float64[:, ::1], int64[::1], boolean[:, ::1], boolean[:, ::1], "
    "float64[:, ::1], float64[:, ::1], boolean[::1], float64[:, ::1], float64[::1])"
)
def vertex(  # type: ignore[no-untyped-def]
    table, varies, matrix, linear, probe, scored, rhs, lower, upper, which, low, high, point, dual, tied, rest, scale
):
    """From an interior point near an optimal face, given by ``low`` and ``high``, to the face itself.

    ``point`` becomes its nearest point on the face, ``dual`` is moved until the columns that are free on the face
    have no reduced cost. Where the face is no vertex of the scored columns, ``tied`` is set: the probe, which is
    constant on no face but vertices, can be moved along it. Then ``scale`` times ``rest`` is the objective but for what
    is constant on the face.
    """
    system = opened(table)
    matrix, linear, rhs = grid(matrix), grid(linear), grid(rhs)
    lower, upper = grid(lower), grid(upper)
    probe, which = flat(probe), flat(which)
    tied, scale = flat(tied), flat(scale)
    low, high, point = grid(low), grid(high), grid(point)
    dual, rest = grid(dual), grid(rest)
    rows, columns = len(system.order), len(system.column_start) - 1
    size = LANES * columns
    wide, tall, few = np.empty((7, size)), np.empty((10, LANES * rows)), np.empty((2, LANES))
    group_wide, group_tall = np.empty((3, size)), np.empty((1, LANES * rows))
    factor_room = np.empty(LANES * (rows + len(system.factor_row)))
    entry_room = np.empty(LANES * len(system.column_row) if varies else 0)
    face, group = face_in(wide, tall, few, factor_room), grouped(group_wide, group_tall, entry_room)
    c, l, u = group.scores, group.lower, group.upper
    b, entries = group.rhs, group.entries
    theta, first = face.theta, face.first
    p, moving = row(wide, 3), row(wide, 4)
    target, whole = row(wide, 5), row(wide, 6)
    q, r2, y = row(tall, 5), row(tall, 6), row(tall, 7)
    exact, meant = row(tall, 8), row(tall, 9)
    ones = np.empty((1, columns))
    curvature, unit = row(ones, 0), row(few, 1)
    fill(curvature, 1.0)
    for start in range(0, len(which), LANES):
        read_group(system, varies, matrix, linear, rhs, lower, upper, which, start, group)
        read(point, which, start, target)
        read_multipliers(system, dual, which, start, y)
        read_flags(low, which, start, p)
        read_flags(high, which, start, first)
        for e in range(size):
            moving[e] = 1.0 - max(p[e], first[e])
            held = l[e] if p[e] > 0.0 else u[e]
            target[e] = target[e] if moving[e] > 0.0 else held
            p[e] = moving[e] * target[e]
            theta[e] = 0.0 if moving[e] > 0.0 else held
        # The held part of the rows, while theta still holds the bounds.
        multiply(system, varies, entries, theta, r2)
        for i in range(rows):
            store(r2, i, load(b, i) - load(r2, i))
        _prepare(system, varies, entries, curvature, moving, face)
        fill(q, 0.0)
        _proximal_steps(system, varies, entries, curvature, moving, face, target, r2, p, q)
        for e in range(size):
            p[e] = p[e] if moving[e] > 0.0 else target[e]
            whole[e] = _snapped(p[e], l[e], u[e]) if moving[e] > 0.0 else target[e]
        multiply(system, varies, entries, p, exact)
        multiply(system, varies, entries, whole, meant)
        for w in range(min(LANES, len(which) - start)):
            # The numbers that are meant, unless they are others: next to a right-hand side of 1e-11, 0 is not meant.
            keeps = True
            for i in range(rows):
                e = LANES * i + w
                off = abs(meant[e] - b[e])
                keeps = keeps and (off <= SNAP * abs(b[e]) or off <= 4.0 * abs(exact[e] - b[e]))
            for j in range(columns):
                point[which[start + w], j] = whole[LANES * j + w] if keeps else p[LANES * j + w]
        _price_out(system, varies, entries, c, moving, face, y)
        write_rows(system, y, which, start, dual)
        # The probe, projected onto the directions of the face, is 0 where there are none.
        for j in range(columns):
            store(target, j, spread(probe[j]))
        _project_objective(system, varies, entries, curvature, moving, face, target, r2, p, q)
        some = False
        for w in range(min(LANES, len(which) - start)):
            free = False
            for j in range(scored):
                free = free or abs(p[LANES * j + w]) > RIGID
            tied[which[start + w]] = free
            some = some or free
        if not some:
            continue
        _unit_on_face(c, moving, target, unit)
        _project_objective(system, varies, entries, curvature, moving, face, target, r2, p, q)
        for w in range(min(LANES, len(which) - start)):
            scale[which[start + w]] = unit[w]
            for j in range(columns):
                along = p[LANES * j + w]
                rest[which[start + w], j] = along if abs(along) > EVEN else 0.0
    keep(wide)
    keep(tall)
    keep(few)
    keep(group_wide)
    keep(group_tall)
    keep(factor_room)
    keep(entry_room)
    keep(ones)


@part
def _project_objective(system, varies, entries, curvature, moving, face, target, r2, p, q):  # type: ignore[no-untyped-def]
    """``p`` is ``target`` projected onto the directions of the face."""
    fill(p, 0.0)
    fill(q, 0.0)
    fill(r2, 0.0)
    _proximal_steps(system, varies, entries, curvature, moving, face, target, r2, p, q)


@part
def _unit_on_face(c, moving, target, unit):  # type: ignore[no-untyped-def]
    """The objective on moving columns, of unit size."""
    largest = spread(0.0)
    for j in range(len(c) // LANES):
        largest = maximum(largest, load(moving, j) * absolute(load(c, j)))
    largest = where_less(spread(0.0), largest, largest, spread(1.0))
    store(unit, 0, largest)
    for j in range(len(c) // LANES):
        store(target, j, load(c, j) / largest)


@part
def _snapped(value, low, high):  # type: ignore[no-untyped-def]
    """A bound or a whole number that is as near as rounding, in the unit of the column."""
    near = SNAP * min(max(abs(low), abs(high)), max(1.0, abs(value)))
    if abs(value - low) <= near and value - low <= high - value:
        return low
    if abs(value - high) <= near:
        return high
    whole = nearest_whole(value)
    return whole if abs(value - whole) <= near else value


@part
def _price_out(system, varies, entries, c, moving, face, y):  # type: ignore[no-untyped-def]
    """Move y by as little as makes the reduced costs of moving columns 0."""
    first, pull, step = face.first, face.pull, face.step
    for _ in range(3):
        multiply_transpose(system, varies, entries, y, pull)
        for j in range(len(c) // LANES):
            store(first, j, load(moving, j) * (load(c, j) - load(pull, j)))
        multiply(system, varies, entries, first, step)
        solve(system, face.factored, step)
        for i in range(len(y) // LANES):
            store(y, i, load(y, i) + load(step, i))


@jit(
    "(int64[:, ::1], int64[::1], boolean, float64[:, ::1], boolean[:, ::1], float64[::1], float64[:, ::1], "
    "float64[:, ::1], int64[::1], float64[:, ::1], float64[:, ::1], float64[::1])"
)
def solve_on_face(  # type: ignore[no-untyped-def]
    table, slack_rows, varies, matrix, free, bends, column_side, row_side, which, p_out, q_out, left_over
):
    """Solve the system above for any right-hand sides; ``free`` says for every instance which columns may move."""
    system, slack_row, curvature = opened(table), flat(slack_rows), flat(bends)
    matrix, free = grid(matrix), grid(free)
    column_side, row_side = grid(column_side), grid(row_side)
    which, p_out = flat(which), grid(p_out)
    q_out, left_over = grid(q_out), flat(left_over)
    rows, columns = len(system.order), len(curvature)
    first_slack = columns - len(slack_row)
    size = LANES * columns
    wide, tall, few = np.empty((6, size)), np.empty((7, LANES * rows)), np.empty((1, LANES))
    factor_room = np.empty(LANES * (rows + len(system.factor_row)))
    entry_room = np.empty(LANES * len(system.column_row) if varies else 0)
    face, entries = face_in(wide, tall, few, factor_room), flat(entry_room)
    idle, step, left = face.idle, face.step, face.left
    moving, r1, p = row(wide, 3), row(wide, 4), row(wide, 5)
    q, r2 = row(tall, 5), row(tall, 6)
    fill(r1, 0.0)
    for start in range(0, len(which), LANES):
        read_flags(free, which, start, moving)
        read(column_side, which, start, r1)
        read_rows(system, row_side, which, start, r2)
        if varies:
            read_entries(system, matrix, which, start, entries)
        find_idle(system, slack_row, first_slack, moving, idle)
        _prepare(system, varies, entries, curvature, moving, face)
        fill(p, 0.0)
        fill(q, 0.0)
        _proximal_steps(system, varies, entries, curvature, moving, face, r1, r2, p, q)
        multiply(system, varies, entries, p, step)
        fill_slack(slack_row, first_slack, r2, step, idle, p)
        unscale_slack(system, slack_row, first_slack, p)
        for i in range(rows):  # what DROPPED leaves of the price of a row that binds nothing
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
