r"""Regularized problems by a Newton method on the dual, where all columns but slack ones are curved.

For :math:`\max_z s^\top z - \sum_j \omega_j(z_j)` with :math:`Az = b`, :math:`l \le z \le u` the dual function

.. math:: \psi(y) = b^\top y + \sum_j \max_{l_j \le z_j \le u_j} (s - A^\top y)_j z_j - \omega_j(z_j)

is convex and differentiable, attained at :math:`z_j(y)`, where :math:`\omega_j'` meets :math:`(s - A^\top y)_j`, cut
off at the bounds, with gradient :math:`b - A z(y)` and Hessian :math:`A \Theta A^\top`, where Θ is
:math:`1 / \omega_j''(z_j)` inside the bounds and 0 at them. With entropies this is what Sinkhorn's iteration does one
row at a time. Multipliers of inequalities are not negative: a step is cut off where one becomes 0, and those that are 0
in rows with room stay out of the system (Bertsekas, 1982, Projected Newton methods).

Scores that are large next to the weights of ω make ψ nearly piecewise linear, and Newton's method useless from afar.
So they are made small at first, t s, and grow to s: a step goes along the tangent of the path of solutions,
:math:`(A \Theta A^\top) \dot y = A \Theta s`, as far as the residual stays moderate, and is corrected by Newton steps
with a line search (Allgower and Georg, Numerical continuation methods, 1990).
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.batches import grouped, read, read_group, write, write_rows
from optlayers.solvers.kernels.curves import QUADRATIC, bend, meet, worth
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

__all__ = [
    "CORRECTIONS",
    "FAR",
    "GROWTH",
    "LEAST_STEP",
    "MOST",
    "NEAR",
    "READY",
    "SHIFT",
    "SPREAD",
    "SUFFICIENT",
    "TRIALS",
    "optimize",
]

EPSILON = 2.220446049250313e-16
DEPENDENT = 1e-13
"""A pivot below this share of its diagonal entry belongs to a dependent row."""
LEAST_SHIFT = 1e-14
SHIFT = 1e-3
"""What is added to the diagonal far from a solution, in units of the residual."""
SUFFICIENT = 1e-4
"""Share of the predicted decrease that a step has to bring (Armijo)."""
TRIALS = 60
SPREAD = 4.0
"""Scores of this size, next to the weights, need no path."""
READY = 0.1
"""A residual from which the path is followed on, relative to right-hand sides,"""
FAR = 0.5
"""and the largest one that a step along it may leave."""
GROWTH = 4.0
"""The first factor by which scores grow in a step."""
LEAST_STEP = 1e-6
"""A step along the path that is shorter, relative to the scores, gets nowhere."""
CORRECTIONS = 2
MOST = 1e-3
"""A number changes by no more than this share of itself when rounding is corrected."""
NEAR = 1e-6
"""A residual above this is no rounding, at any scale of scores."""


@jit(
    "(int64[:, ::1], int64[::1], boolean, float64[:, ::1], int64[::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], int64[::1], int64, "
    "float64[:, ::1], float64[:, ::1], float64[:, ::1], int64[::1])"
)
def optimize(  # type: ignore[no-untyped-def]
    table,
    slack_rows,
    varies,
    matrix,
    kinds,
    weights,
    powers,
    scores,
    rhs,
    lower,
    upper,
    which,
    limit,
    point,
    dual,
    theta_out,
    steps,
):
    """Solve the instances ``which``; ``theta_out`` is Θ. ``steps`` is how many steps each took, negative where
    ``limit`` was not enough."""
    system, kind, slack_row = opened(table), flat(kinds), flat(slack_rows)
    rows, columns = len(system.order), len(system.column_start) - 1
    first_slack = columns - len(slack_row)
    wide, tall, few = np.empty((11, LANES * columns)), np.empty((9, LANES * rows)), np.empty((12, LANES))
    factor_room = np.empty(LANES * (rows + len(system.factor_row)))
    entry_room = np.empty(LANES * len(system.column_row) if varies else 0)
    group, factored = grouped(wide, tall, entry_room), flat(factor_room)
    s, l, u = group.scores, group.lower, group.upper
    b, entries = group.rhs, group.entries
    v, z, theta = row(wide, 3), row(wide, 4), row(wide, 5)
    pull, trial = row(wide, 6), row(wide, 7)
    weight, power, other = row(wide, 8), row(wide, 9), row(wide, 10)
    y, r, d = row(tall, 1), row(tall, 2), row(tall, 3)
    shift, spare = row(tall, 4), row(tall, 5)
    least, full, rest = row(tall, 6), row(tall, 7), row(tall, 8)  # of multipliers; the whole step; the residual
    best, goal = row(few, 0), row(few, 1)
    length, worse = row(few, 2), row(few, 3)
    old, new = row(few, 4), row(few, 7)  # ψ, the largest residual, the slope along the step: a row each
    at, by = row(few, 10), row(few, 11)  # t, and the next step along the path
    taken, growth = np.empty(LANES, np.int64), np.empty(LANES)
    done, advances = np.empty(LANES, np.bool_), np.empty(LANES, np.bool_)
    fill(least, -np.inf)
    for k in range(len(slack_row)):
        store(least, slack_row[k], spread(0.0))
    for first in range(0, len(which), LANES):
        read_group(system, varies, matrix, scores, rhs, lower, upper, which, first, group)
        read(weights, which, first, weight)
        read(powers, which, first, power)
        for e in range(LANES * first_slack, LANES * columns):
            l[e] = 0.0  # slack columns are what rows leave in the end
            u[e] = 0.0
            s[e] = 0.0
        size = _goals(s, b, goal, kind, weight, l, u, len(slack_row) > 0, at)
        fill(y, 0.0)
        fill(d, 0.0)
        fill(length, 0.0)
        for j in range(columns):
            store(v, j, load(at, 0) * load(s, j))
        _evaluate(system, varies, entries, kind, weight, power, v, v, l, u, b, y, d, length, least, z, r, old)
        fill(best, np.inf)
        fill(worse, 0.0)
        taken[:] = -limit
        growth[:] = GROWTH
        done[:] = False
        for step in range(limit):
            finished = True
            for w in range(LANES):
                advances[w] = False
                by[w] = 0.0
                if not done[w] and not np.isfinite(old[w]):
                    done[w] = True  # taken says that it failed
                elif not done[w] and at[w] < 1.0 and old[LANES + w] <= READY * size[w]:
                    advances[w] = True
                    by[w] = min(at[w] * (growth[w] - 1.0), 1.0 - at[w])
                    best[w] = np.inf
                    worse[w] = 0.0
                elif not done[w] and at[w] >= 1.0:
                    largest = old[LANES + w]
                    worse[w] = 0.0 if largest < 0.5 * best[w] else worse[w] + 1.0
                    best[w] = min(best[w], largest)
                    # At the level of rounding steps no longer help.
                    if largest <= goal[w] or (worse[w] >= 3.0 and largest <= min(1e4 * goal[w], NEAR)):
                        done[w] = True
                        taken[w] = step
                finished = finished and done[w]
            if finished:
                break
            delta = spread(LEAST_SHIFT) + SHIFT * minimum(load(old, 1), spread(0.1)) * minimum(
                load(old, 1), spread(1.0)
            )
            _stiffness(kind, weight, power, z, l, u, theta)
            for i in range(rows):
                # Where a multiplier is 0 and its row has room.
                idle = where_less(
                    load(least, i),
                    load(y, i),
                    spread(0.0),
                    where_less(load(r, i), spread(0.0), spread(1.0), spread(0.0)),
                )
                store(rest, i, idle)
                store(shift, i, where_less(spread(0.5), idle, spread(DROPPED), delta))
            assemble(system, varies, entries, theta, shift, factored)
            factor(system, factored, spare, DEPENDENT)
            # Of lanes that advance, A Θ s by so much as t grows comes on top of the residual.
            for j in range(columns):
                store(other, j, load(by, 0) * load(theta, j) * load(s, j))
            multiply(system, varies, entries, other, d)
            for i in range(rows):
                store(d, i, (1.0 - load(rest, i)) * (load(d, i) + load(r, i)))
            solve(system, factored, d)
            for i in range(rows):
                store(full, i, (1.0 - load(rest, i)) * load(d, i))
                store(rest, i, load(r, i))
            for w in range(LANES):
                length[w] = 0.0 if done[w] else 1.0
            for trial_number in range(TRIALS):
                if trial_number == 0 or len(slack_row) > 0:
                    _cut_off(least, y, full, length, rest, d, old)
                    multiply_transpose(system, varies, entries, d, pull)
                    for j in range(columns):
                        store(pull, j, load(pull, j) - load(by, 0) * load(s, j))
                _evaluate(
                    system, varies, entries, kind, weight, power, v, pull, l, u, b, y, d, length, least, trial, r, new
                )
                if not _other_lengths(old, new, length, advances, size):
                    break
            t = load(length, 0)
            for i in range(rows):
                store(y, i, maximum(load(y, i) + t * load(d, i), load(least, i)))
            for j in range(columns):
                store(v, j, load(v, j) - t * load(pull, j))
                store(z, j, load(trial, j))
            for w in range(LANES):
                if advances[w]:
                    before = at[w]
                    at[w] = 1.0 if length[w] == 1.0 and by[w] == 1.0 - before else before + length[w] * by[w]
                    growth[w] = min(2.0 * growth[w], 16.0) if length[w] == 1.0 else 1.0 + 2.0 * (at[w] / before - 1.0)
                    if at[w] - before <= LEAST_STEP * before:
                        done[w] = True  # taken says that it failed
            store(old, 0, load(new, 0))
            store(old, 1, load(new, 1))
        _stiffness(kind, weight, power, z, l, u, theta)
        _correct(system, varies, entries, l, u, b, theta, least, y, shift, factored, spare, z, d, pull)
        multiply(system, varies, entries, z, r)
        for k in range(len(slack_row)):
            i = slack_row[k]
            room = maximum(load(b, i) - load(r, i), spread(0.0)) / system.scale[i]
            store(z, first_slack + k, where_less(load(least, i), load(y, i), spread(0.0), room))
        write(z, which, first, point)
        write_rows(system, y, which, first, dual)
        write(theta, which, first, theta_out)
        for w in range(min(LANES, len(which) - first)):
            steps[which[first + w]] = taken[w]
    keep(wide)
    keep(tall)
    keep(few)
    keep(factor_room)
    keep(entry_room)


@part
def _goals(s, b, goal, kind, weight, l, u, unequal, at):  # type: ignore[no-untyped-def]
    """Residuals that are rounding, where the path begins, and the sizes of right-hand sides."""
    size = np.empty(LANES)
    for w in range(LANES):
        size[w] = 0.0
        for i in range(len(b) // LANES):
            size[w] = max(size[w], abs(b[LANES * i + w]))
        low, high = np.inf, -np.inf
        large, curved = 0.0, False
        if unequal:  # multipliers of inequalities begin at 0, and do not take up what all scores have in common
            low, high = 0.0, 0.0
        for j in range(len(kind)):
            e = LANES * j + w
            large = max(large, abs(s[e] / weight[e]))
            if l[e] < u[e] and kind[j] != QUADRATIC:
                low, high, curved = min(low, s[e] / weight[e]), max(high, s[e] / weight[e]), True
        goal[w] = 16.0 * EPSILON * (1.0 + size[w]) + 4.0 * EPSILON * large
        size[w] = size[w] if size[w] > 0.0 else 1.0
        at[w] = min(1.0, SPREAD / max(high - low, 1e-300)) if curved else 1.0
    return size


@part
def _stiffness(kind, weight, power, z, l, u, theta):  # type: ignore[no-untyped-def]
    """Θ: 0 at bounds, and where the curvature is infinite."""
    for j in range(len(kind)):
        for w in range(LANES):
            e = LANES * j + w
            inside = l[e] < z[e] < u[e]
            theta[e] = 1.0 / bend(kind[j], weight[e], power[e], z[e]) if inside else 0.0


@part
def _cut_off(least, y, full, length, r, d, old):  # type: ignore[no-untyped-def]
    """The step that is taken of the ``full`` one, per length, and the slope of ψ along it."""
    slope = spread(0.0)
    for i in range(len(y) // LANES):
        for w in range(LANES):
            e = LANES * i + w
            d[e] = full[e] if length[w] == 0.0 else max(full[e], (least[e] - y[e]) / length[w])
        slope = slope - load(r, i) * load(d, i)
    store(old, 2, slope)


@part
def _evaluate(system, varies, entries, kind, weight, power, v, pull, l, u, b, y, d, length, least, z, r, out):  # type: ignore[no-untyped-def]
    """z, the residual ``A z - b`` and, in ``out``, ψ, the largest residual and the slope, after a step along d."""
    for w in range(LANES):
        out[w] = 0.0
    for j in range(len(kind)):
        for w in range(LANES):
            e = LANES * j + w
            x = v[e] - length[w] * pull[e] if length[w] > 0.0 else v[e]
            met = l[e] if l[e] == u[e] else min(max(meet(kind[j], weight[e], power[e], x), l[e]), u[e])
            z[e] = met
            out[w] += met * x - worth(kind[j], weight[e], power[e], met)
    t, value = load(length, 0), load(out, 0)
    multiply(system, varies, entries, z, r)
    largest, slope = spread(0.0), spread(0.0)
    for i in range(len(b) // LANES):
        side, along = load(b, i), load(d, i)
        left = load(r, i) - side
        store(r, i, left)
        after = load(y, i) + t * along
        room = where_less(load(least, i), after, absolute(left), maximum(left, spread(0.0)))
        largest = maximum(largest, room)
        slope = slope - left * along
        value = value + side * after
    store(out, 0, value)
    store(out, 1, largest)
    store(out, 2, slope)


@part
def _other_lengths(old, new, length, advances, size):  # type: ignore[no-untyped-def]
    """Shorten the steps that do not bring enough, or leave the path; whether there are any.

    ψ is convex, so a step at whose end it still falls is good whatever rounding says of its value.
    """
    some = False
    for w in range(LANES):
        if length[w] == 0.0:
            continue
        slope, end, finite = old[2 * LANES + w], new[2 * LANES + w], np.isfinite(new[w])
        if advances[w]:
            if not (finite and new[LANES + w] <= FAR * size[w]):
                length[w] *= 0.4
                some = True
            continue
        enough = old[w] + SUFFICIENT * length[w] * slope + 8.0 * EPSILON * abs(old[w])
        if not finite:
            length[w] *= 0.1
            some = True
        elif end > 0.0 and not new[w] <= enough:
            # The zero of the slope, by the secant.
            length[w] *= min(max(slope / (slope - end), 0.1), 0.6)
            some = True
    return some


@part
def _correct(system, varies, entries, l, u, b, theta, least, y, shift, factored, spare, z, d, pull):  # type: ignore[no-untyped-def]
    """Take what rounding of large scores leaves of the residual from the columns that can move most easily."""
    for i in range(len(b) // LANES):
        store(shift, i, where_less(load(least, i), load(y, i), spread(LEAST_SHIFT), spread(DROPPED)))
    assemble(system, varies, entries, theta, shift, factored)
    factor(system, factored, spare, DEPENDENT)
    for _ in range(CORRECTIONS):
        multiply(system, varies, entries, z, d)
        for i in range(len(b) // LANES):
            store(d, i, where_less(load(least, i), load(y, i), load(d, i) - load(b, i), spread(0.0)))
        solve(system, factored, d)
        multiply_transpose(system, varies, entries, d, pull)
        for e in range(len(z)):
            move = theta[e] * pull[e]
            if abs(move) < MOST * abs(z[e]):
                z[e] = min(max(z[e] - move, l[e]), u[e])
