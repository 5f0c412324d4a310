r"""Projections where no two rows share a column: simplices, subsets, products of them.

Every row is a problem of its own, with a single multiplier: the root of the increasing, piecewise linear function

.. math:: \varphi(y) = b - \sum_j a_j \operatorname{clip}(s_j - a_j y, l_j, u_j),

found by Newton steps inside a bracket (Michelot, 1986, and Held, Wolfe and Crowder, 1974, for the simplex; Brucker,
1984, for the continuous knapsack). A step from the right set of free columns is the solution.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.batches import grouped, read_group, write, write_flags, write_rows
from optlayers.solvers.kernels.flat import keep, row
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
from optlayers.solvers.kernels.normal_equations import opened

__all__ = ["project", "pull_back"]

EPSILON = 2.220446049250313e-16


@jit(
    "(int64[:, ::1], boolean, float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, ::1], int64[::1], int64, float64[:, ::1], float64[:, ::1], boolean[:, ::1], int64[::1])"
)
def project(  # type: ignore[no-untyped-def]
    table, varies, matrix, scores, rhs, lower, upper, which, limit, point, dual, free, steps
):
    """Project the instances ``which``; ``steps`` is how many it took, negative where ``limit`` was not enough."""
    system = opened(table)
    rows, columns = len(system.order), len(system.column_start) - 1
    wide, tall, few = np.empty((5, LANES * columns)), np.empty((2, LANES * rows)), np.empty((6, LANES))
    row_room = np.empty((1, LANES * len(system.row_column)))
    entry_room = np.empty(LANES * len(system.column_row) if varies else 0)
    group = grouped(wide, tall, entry_room)
    s, l, u = group.scores, group.lower, group.upper
    b, entries = group.rhs, group.entries
    z, flags = row(wide, 3), row(wide, 4)
    y, a = row(tall, 1), row(row_room, 0)
    previous, low = row(few, 0), row(few, 1)
    high, found = row(few, 2), row(few, 3)  # the latter has three rows
    taken = np.empty(LANES, np.int64)
    done = np.empty(LANES, np.bool_)
    for t in range(len(a) // LANES):
        store(a, t, spread(system.row_value[t]))
    for first in range(0, len(which), LANES):
        read_group(system, varies, matrix, scores, rhs, lower, upper, which, first, group)
        if varies:
            for t in range(len(a) // LANES):
                store(a, t, load(entries, system.row_entry[t]))
        for j in range(columns):
            if system.column_start[j] == system.column_start[j + 1]:
                x = minimum(maximum(load(s, j), load(l, j)), load(u, j))
                store(z, j, x)
                inside = where_less(load(l, j), x, spread(1.0), spread(0.0))
                store(flags, j, where_less(x, load(u, j), inside, spread(0.0)))
        taken[:] = 0
        for i in range(rows):
            start, stop = system.row_start[i], system.row_start[i + 1]
            _bracket(system, start, stop, a, s, l, u, load(b, i), y, i, low, high)
            done[:] = False
            fill(previous, np.inf)
            for step in range(limit + 1):
                _evaluate(system, start, stop, a, s, l, u, load(b, i), load(y, i), found)
                finished = True
                for w in range(LANES):
                    if not done[w]:
                        value, slope, goal = found[w], found[LANES + w], found[2 * LANES + w]
                        done[w] = abs(value) <= goal or step == limit or not high[w] > low[w]
                        if abs(value) > max(goal, 1e-3) and done[w]:
                            taken[w] = -limit
                        elif done[w]:
                            taken[w] = max(taken[w], step) if taken[w] >= 0 else taken[w]
                        else:
                            _move(w, value, slope, y, i, low, high, previous)
                    finished = finished and done[w]
                if finished:
                    break
            _finish(system, start, stop, a, s, l, u, load(b, i), load(y, i), z, flags)
        write(z, which, first, point)
        write_rows(system, y, which, first, dual)
        write_flags(flags, which, first, free)
        for w in range(min(LANES, len(which) - first)):
            steps[which[first + w]] = taken[w]
    keep(wide)
    keep(tall)
    keep(few)
    keep(row_room)
    keep(entry_room)


@part
def _bracket(system, start, stop, a, s, l, u, b, y, i, low, high):  # type: ignore[no-untyped-def]
    """Between the outermost kinks lies the root; the first guess is the projection without bounds."""
    squares, sides = spread(0.0), spread(0.0) - b
    least, most = spread(np.inf), spread(-np.inf)
    for t in range(start, stop):
        j = system.row_column[t]
        entry, score = load(a, t), load(s, j)
        squares = squares + entry * entry
        sides = sides + entry * score
        first, second = (score - load(l, j)) / entry, (score - load(u, j)) / entry
        least = minimum(least, minimum(first, second))
        most = maximum(most, maximum(first, second))
    store(low, 0, least)
    store(high, 0, most)
    store(y, i, sides / squares)


@part
def _evaluate(system, start, stop, a, s, l, u, b, y, out):  # type: ignore[no-untyped-def]
    """φ(y), its slope, and what of φ is rounding."""
    value, slope, size = b, spread(0.0), absolute(b)
    one, zero = spread(1.0), spread(0.0)
    for t in range(start, stop):
        j = system.row_column[t]
        entry, low, high = load(a, t), load(l, j), load(u, j)
        x = load(s, j) - entry * y
        clipped = minimum(maximum(x, low), high)
        value = value - entry * clipped
        inside = where_less(low, x, where_less(x, high, one, zero), zero)
        slope = slope + inside * entry * entry
        size = size + absolute(entry * clipped)
    largest = absolute(y)
    store(out, 0, value)
    store(out, 1, slope)
    store(out, 2, 4.0 * EPSILON * (size + one + largest))


@part
def _move(w, value, slope, y, i, low, high, previous):  # type: ignore[no-untyped-def]
    """A Newton step for lane ``w``, or half of the bracket where that leads outside or halves nothing."""
    here = y[LANES * i + w]
    if value > 0.0:
        high[w] = min(high[w], here)
    else:
        low[w] = max(low[w], here)
    target = here - value / slope
    slow = abs(value) > 0.75 * previous[w]
    previous[w] = abs(value)
    if slope > 0.0 and low[w] <= target <= high[w] and not slow:
        y[LANES * i + w] = target
    elif np.isfinite(high[w] - low[w]):
        y[LANES * i + w] = low[w] + 0.5 * (high[w] - low[w])
        previous[w] = np.inf
    elif slope > 0.0:
        y[LANES * i + w] = target
    else:
        # Beyond all kinks on one side, with no end on the other: double the distance.
        y[LANES * i + w] = low[w] + 1.0 + abs(low[w]) if value < 0.0 else high[w] - 1.0 - abs(high[w])


@part
def _finish(system, start, stop, a, s, l, u, b, y, z, flags):  # type: ignore[no-untyped-def]
    """The point, with what rounding leaves of the residual taken from its free columns."""
    one, zero = spread(1.0), spread(0.0)
    value, slope = b, spread(0.0)
    for t in range(start, stop):
        j = system.row_column[t]
        entry, low, high = load(a, t), load(l, j), load(u, j)
        x = load(s, j) - entry * y
        clipped = minimum(maximum(x, low), high)
        inside = where_less(low, x, where_less(x, high, one, zero), zero)
        store(z, j, clipped)
        store(flags, j, inside)
        value = value - entry * clipped
        slope = slope + inside * entry * entry
    share = where_less(zero, slope, value / slope, zero)
    for t in range(start, stop):
        j = system.row_column[t]
        moved = load(z, j) + load(flags, j) * load(a, t) * share
        store(z, j, minimum(maximum(moved, load(l, j)), load(u, j)))


@jit(
    "(int64[:, ::1], boolean, float64[:, ::1], boolean[:, ::1], float64[:, ::1], int64[::1], float64[:, ::1], "
    "float64[:, ::1])"
)
def pull_back(table, varies, matrix, free, side, which, p, q):  # type: ignore[no-untyped-def]
    """The derivative, ``p = D (g - a aᵀDg / aᵀDa)`` row by row, and the multipliers q; the slope divides exactly."""
    system = opened(table)
    columns = len(system.column_start) - 1
    for k in which:
        for j in range(columns):
            p[k, j] = side[k, j] if free[k, j] else 0.0
        for i in range(len(system.order)):
            scale = system.scale[i]
            product, square = 0.0, 0.0
            for t in range(system.row_start[i], system.row_start[i + 1]):
                j = system.row_column[t]
                entry = matrix[k, system.row_entry[t]] * scale if varies else system.row_value[t]
                if free[k, j]:
                    product += entry * side[k, j]
                    square += entry * entry
            share = product / square if square > 0.0 else 0.0
            q[k, system.order[i]] = share * scale
            for t in range(system.row_start[i], system.row_start[i + 1]):
                j = system.row_column[t]
                entry = matrix[k, system.row_entry[t]] * scale if varies else system.row_value[t]
                if free[k, j]:
                    p[k, j] -= entry * share
