r"""Projections by a semismooth Newton method on the dual problem, for equalities and bounds.

For :math:`\min_z \tfrac12\|z - s\|^2` with :math:`Az = b`, :math:`l \le z \le u` the dual function

.. math:: \psi(y) = b^\top y + \max_{l \le z \le u} \; (s - A^\top y)^\top z - \tfrac12 \|z\|^2

is convex and differentiable, attained at :math:`z(y) = \operatorname{clip}(s - A^\top y, l, u)`, with gradient
:math:`b - A z(y)` and the generalized Hessian :math:`A D A^\top`, where D is 1 on the columns strictly inside their
bounds (Qi and Sun, 1993; Li, Sun and Toh, 2020, for projections onto the Birkhoff polytope). A step solves
:math:`(A D A^\top + \delta I) d = A z - b`, and a line search keeps ψ falling. The method ends on the exact active
set, where one last step is the solution to rounding.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.batches import grouped, read_group, write, write_flags, write_rows
from optlayers.solvers.kernels.flat import flat, grid, keep, row
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
from optlayers.solvers.kernels.normal_equations import assemble, factor, multiply, multiply_transpose, opened, solve

__all__ = ["project", "unbounded_factor"]

EPSILON = 2.220446049250313e-16
LEAST_SHIFT = 1e-8
"""δ near the solution, relative to rows of unit norm: small enough that steps there are exact, large enough that
dependent rows do no harm."""
SHIFT = 1e-3
"""δ far away, in units of the residual."""
SUFFICIENT = 1e-4
"""Share of the predicted decrease that a step has to bring (Armijo)."""
TRIALS = 60
STEEP = 0.9
"""A step is prolonged when so much of the slope is left at its end,"""
PROLONGED = 8.0
"""by this factor: far from the solution, rows without free columns leave the length of a step to δ."""
NEAR = 1e-3
"""A residual above this is no rounding, at any scale of scores."""
CORRECTIONS = 3
"""Steps on the final active set that remove the rounding of large scores."""


@jit("(int64[:, ::1], float64[::1])")
def unbounded_factor(table, factored):  # type: ignore[no-untyped-def]
    """``A Aᵀ + δ``, factored: the system of the first step, when all columns are free."""
    system = opened(table)
    rows, columns = len(system.order), len(system.column_start) - 1
    wide, tall = np.empty((1, LANES * columns)), np.empty((2, LANES * rows))
    theta, shift = row(wide, 0), row(tall, 0)
    fill(theta, 1.0)
    fill(shift, LEAST_SHIFT)
    assemble(system, False, shift, theta, shift, flat(factored))
    factor(system, flat(factored), row(tall, 1), 0.0)
    keep(wide)
    keep(tall)


@jit(
    "(int64[:, ::1], float64[::1], boolean, float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, ::1], int64[::1], int64, float64[:, ::1], float64[:, ::1], boolean[:, ::1], int64[::1])"
)
def project(  # type: ignore[no-untyped-def]
    table, start_factor, varies, matrix, scores, rhs, lower, upper, which, limit, point, dual, free, steps
):
    """Project the instances ``which``; ``steps`` is how many it took, negative where ``limit`` was not enough."""
    system, which = opened(table), flat(which)
    steps, start_factor = flat(steps), flat(start_factor)
    matrix, scores, rhs = grid(matrix), grid(scores), grid(rhs)
    lower, upper = grid(lower), grid(upper)
    point, dual, free = grid(point), grid(dual), grid(free)
    rows, columns = len(system.order), len(system.column_start) - 1
    wide, tall, few = np.empty((8, LANES * columns)), np.empty((6, LANES * rows)), np.empty((10, LANES))
    factor_room, entry_room = np.empty(len(start_factor)), np.empty(LANES * len(system.column_row) if varies else 0)
    group, factored = grouped(wide, tall, entry_room), flat(factor_room)
    s, l, u = group.scores, group.lower, group.upper
    b, entries = group.rhs, group.entries
    v, z, theta = row(wide, 3), row(wide, 4), row(wide, 5)
    pull, trial = row(wide, 6), row(wide, 7)
    y, r, d = row(tall, 1), row(tall, 2), row(tall, 3)
    shift, spare = row(tall, 4), row(tall, 5)
    best, goal = row(few, 0), row(few, 1)
    length, worse = row(few, 2), row(few, 3)
    old, new = row(few, 4), row(few, 7)  # ψ, the largest residual, the slope along the step: a row each
    counts, flags = np.empty((1, LANES), np.int64), np.empty((2, LANES), np.bool_)
    taken, done, grows = grid(counts)[0], grid(flags)[0], grid(flags)[1]
    for first in range(0, len(which), LANES):
        read_group(system, varies, matrix, scores, rhs, lower, upper, which, first, group)
        _start(system, start_factor, varies, entries, s, b, y, z)
        _goals(s, b, goal)
        _target(system, varies, entries, s, y, v)
        for i in range(rows):
            store(d, i, spread(0.0))
        fill(length, 0.0)
        _evaluate(system, varies, entries, v, v, l, u, b, y, d, length, z, r, old)
        fill(best, np.inf)
        fill(worse, 0.0)
        for w in range(LANES):
            taken[w] = -limit
            done[w] = False
        for step in range(limit):
            finished = True
            for w in range(LANES):
                if not done[w]:
                    largest = old[LANES + w]
                    worse[w] = 0.0 if largest < 0.5 * best[w] else worse[w] + 1.0
                    best[w] = min(best[w], largest)
                    # At the level of rounding steps no longer help.
                    if largest <= goal[w] or (worse[w] >= 2.0 and largest <= min(1e3 * goal[w], NEAR)):
                        done[w] = True
                        taken[w] = step
                finished = finished and done[w]
            if finished:
                break
            delta = LEAST_SHIFT + SHIFT * minimum(load(old, 1), spread(0.1))
            for i in range(rows):
                store(shift, i, delta)
                store(d, i, load(r, i))
            _interior(v, l, u, theta)
            assemble(system, varies, entries, theta, shift, factored)
            factor(system, factored, spare, 0.0)
            solve(system, factored, d)
            multiply_transpose(system, varies, entries, d, pull)
            slope = spread(0.0)
            for i in range(rows):
                slope = slope - load(r, i) * load(d, i)
            store(old, 2, slope)
            for w in range(LANES):
                length[w] = 0.0 if done[w] else 1.0
                grows[w] = True
            for _ in range(TRIALS):
                _evaluate(system, varies, entries, v, pull, l, u, b, y, d, length, trial, r, new)
                if not _other_lengths(old, new, length, grows):
                    break
            t = load(length, 0)
            for i in range(rows):
                store(y, i, load(y, i) + t * load(d, i))
            for j in range(columns):
                store(v, j, load(v, j) - t * load(pull, j))
                store(z, j, load(trial, j))
            store(old, 0, load(new, 0))
            store(old, 1, load(new, 1))
        _interior(v, l, u, theta)
        _correct(system, varies, entries, l, u, b, theta, shift, factored, spare, z, r, d, pull, length)
        write(z, which, first, point)
        write_rows(system, y, which, first, dual)
        write_flags(theta, which, first, free)
        for w in range(min(LANES, len(which) - first)):
            steps[which[first + w]] = taken[w]
    keep(wide)
    keep(tall)
    keep(few)
    keep(factor_room)
    keep(entry_room)
    keep(counts)
    keep(flags)


@part
def _start(system, start_factor, varies, entries, s, b, y, z):  # type: ignore[no-untyped-def]
    """Multipliers of the projection without bounds, or 0 where every instance has a matrix of its own."""
    rows = len(system.order)
    if varies:
        fill(y, 0.0)
        return
    multiply(system, varies, entries, s, y)
    for i in range(rows):
        store(y, i, load(y, i) - load(b, i))
    solve(system, start_factor, y)


@part
def _goals(s, b, goal):  # type: ignore[no-untyped-def]
    """Residuals that are rounding: of sums of b, and of scores that cancel to numbers like those in b."""
    size = spread(1.0)
    for i in range(len(b) // LANES):
        size = maximum(size, absolute(load(b, i)))
    large = size
    for j in range(len(s) // LANES):
        large = maximum(large, absolute(load(s, j)))
    store(goal, 0, 16.0 * EPSILON * size + 4.0 * EPSILON * large)


@part
def _target(system, varies, entries, s, y, v):  # type: ignore[no-untyped-def]
    multiply_transpose(system, varies, entries, y, v)
    for j in range(len(s) // LANES):
        store(v, j, load(s, j) - load(v, j))


@part
def _interior(v, l, u, theta):  # type: ignore[no-untyped-def]
    """1 on columns strictly inside their bounds, else 0."""
    for j in range(len(v) // LANES):
        x = load(v, j)
        inside = where_less(load(l, j), x, spread(1.0), spread(0.0))
        store(theta, j, where_less(x, load(u, j), inside, spread(0.0)))


@part
def _evaluate(system, varies, entries, v, pull, l, u, b, y, d, length, z, r, out):  # type: ignore[no-untyped-def]
    """z, the residual ``A z - b`` and, in ``out``, ψ, the largest residual and the slope, after a step along d."""
    t = load(length, 0)
    value = spread(0.0)
    for j in range(len(v) // LANES):
        x = load(v, j) - t * load(pull, j)
        clipped = minimum(maximum(x, load(l, j)), load(u, j))
        store(z, j, clipped)
        value = value + clipped * (x - 0.5 * clipped)
    multiply(system, varies, entries, z, r)
    largest, slope = spread(0.0), spread(0.0)
    for i in range(len(b) // LANES):
        side, along = load(b, i), load(d, i)
        left = load(r, i) - side
        store(r, i, left)
        largest = maximum(largest, absolute(left))
        slope = slope - left * along
        value = value + side * (load(y, i) + t * along)
    store(out, 0, value)
    store(out, 1, largest)
    store(out, 2, slope)


@part
def _other_lengths(old, new, length, grows):  # type: ignore[no-untyped-def]
    """Shorten the steps that do not bring enough, prolong those at whose end ψ falls as before; whether there are any.

    ψ is convex, so a step at whose end it still falls is good whatever rounding says of its value.
    """
    some = False
    for w in range(LANES):
        slope, end = old[2 * LANES + w], new[2 * LANES + w]
        enough = old[w] + SUFFICIENT * length[w] * slope + 8.0 * EPSILON * abs(old[w])
        if length[w] > 0.0 and end > 0.0 and not new[w] <= enough:
            # The zero of the slope, by the secant.
            length[w] *= min(max(slope / (slope - end), 0.1), 0.6)
            grows[w] = False
            some = True
        elif length[w] > 0.0 and grows[w] and end < STEEP * slope:
            length[w] *= PROLONGED
            some = True
    return some


@part
def _correct(system, varies, entries, l, u, b, theta, shift, factored, spare, z, r, d, pull, going):  # type: ignore[no-untyped-def]
    """Remove what is left of the residual by moving the free columns: ``z -= D Aᵀ (A D Aᵀ + δ)⁻¹ (A z - b)``."""
    rows, columns = len(b) // LANES, len(z) // LANES
    for attempt in range(CORRECTIONS):
        multiply(system, varies, entries, z, r)
        left = spread(0.0)
        for i in range(rows):
            store(d, i, load(r, i) - load(b, i))
            left = maximum(left, absolute(load(d, i)) / (1.0 + absolute(load(b, i))))
        # A lane that is done stays where it is: its answer must not depend on its neighbours.
        moves = where_less(spread(4.0 * EPSILON), left, spread(1.0), spread(0.0))
        store(going, 0, moves)
        some = False
        for w in range(LANES):
            some = some or going[w] > 0.0
        if not some:
            return
        if attempt == 0:
            for i in range(rows):
                store(shift, i, spread(LEAST_SHIFT))
            assemble(system, varies, entries, theta, shift, factored)
            factor(system, factored, spare, 0.0)
        solve(system, factored, d)
        multiply_transpose(system, varies, entries, d, pull)
        for j in range(columns):
            moved = load(z, j) - moves * load(theta, j) * load(pull, j)
            store(z, j, minimum(maximum(moved, load(l, j)), load(u, j)))
