"""The certificate of a point and a dual point, in plain scalar loops that share nothing with the solvers.

The formulas are in :mod:`optlayers.solvers.certify`. Sums are bounded together with their rounding, or computed in
twice the precision.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.extended import add_product
from optlayers.solvers.kernels.flat import flat, grid, keep
from optlayers.solvers.kernels.lanes import jit, part, stay_apart

__all__ = ["certify", "leave_bounds", "missing"]

EPSILON = 2.220446049250313e-16
FLOOR = 1e-13
"""What rounding may leave of a 0 in a column, in units of the column."""
ASTRAY = 1e-12
"""So far off its bound rounding alone may leave a column, in units of the column, however small the scores are."""
TOUCHES = 1e-9
"""A column this near to its bound, in units of the column, is at it; a row with so little room, relative to the size of
its terms, is tight."""
HELD = 1e-7
"""A column is held by no bound when no more than this part of the terms of its reduced cost is left of them,"""
NOISE = 1e-10
"""or this part of the terms of all of its block, which are what systems are solved for; the unit of a column is one."""
FAR = 1e3
"""How far a projection may be off, in units of the smallest column of a block, for every unit of the tolerance."""
TOLERANCE = 1e-8
"""What errors are compared with, by default."""
ROUNDING = 1e-11
"""Reduced costs may be off by this part of the largest score of their block."""
LEFT = 1e-14
"""What rounding leaves of a difference, relative to its terms."""
AWAY = 1e-6
"""What moves by less than this part of the largest move may not move at all."""
HUGE = 1e8
"""Next to scores beyond this, as masks leave them where no structure does without,"""
LOST = 1e-3
"""no more than this part of the score of a column may be lost, whatever else is allowed; where it has none, of the
smallest score of its block, which reaches it through rows."""


@part
def _unit(x, low, high):  # type: ignore[no-untyped-def]
    """The size of numbers in a column: 1, or what it holds if that is more; never more than its bounds allow."""
    return min(max(abs(low), abs(high)), max(1.0, abs(x)))


@part
def _scales(columns, curved, block, scores, lower, upper, point, largest, least, unit):  # type: ignore[no-untyped-def]
    """Of every block the largest and the smallest score but 0, and the smallest unit of a column of the structure, 1
    where there is none. Columns that are held count for nothing: they decide nothing."""
    stay_apart()
    for g in range(len(largest)):
        largest[g], least[g], unit[g] = 0.0, np.inf, np.inf
    for j in range(columns):
        if lower[j] < upper[j]:
            largest[block[j]] = max(largest[block[j]], abs(scores[j]))
            if scores[j] != 0.0:
                least[block[j]] = min(least[block[j]], abs(scores[j]))
            if j < curved:
                unit[block[j]] = min(unit[block[j]], _unit(point[j], lower[j], upper[j]))
    for g in range(len(unit)):
        unit[g] = unit[g] if unit[g] < np.inf else 1.0


@part
def _score_scale(cost, own, largest, least):  # type: ignore[no-untyped-def]
    """What a reduced cost is relative to: the terms that it is what is left of, never more than the largest score;
    and to rounding next to that score, which next to huge ones must leave something of smaller ones."""
    scale = min(own, largest) + ROUNDING / TOLERANCE * largest
    return min(scale, LOST / TOLERANCE * (abs(cost) if cost != 0.0 else least)) if largest > HUGE else scale


@jit(
    "(int32[::1], int32[::1], float64[:, ::1], int64, float64[:, ::1], int32[::1], int32[::1], int64, "
    "float64[:, ::1], int64, float64[:, ::1], float64[:, ::1], float64[:, ::1], int64[::1], boolean, "
    "float64[:, ::1], float64[:, ::1], float64[:, ::1], boolean[:, ::1], float64[::1], float64[::1], "
    "float64[::1], boolean[::1])"
)
def certify(  # type: ignore[no-untyped-def]
    start,
    row,
    matrix,
    equalities,
    row_scale,
    column_block,
    row_block,
    blocks,
    scores,
    curved,
    rhs,
    lower,
    upper,
    which,
    extended,
    point,
    dual,
    dual_low,
    free,
    residual,
    gap,
    error,
    exact,
):
    """Residual, gap and relative error of the instances ``which``; ``curved`` is 0 for best vertices.

    Slack columns of the points are written: they are what rows leave. With ``extended``, the dual point is
    ``dual + dual_low`` and sums are computed in twice the precision. ``free`` has the active sets of projections, or no
    row where they are not told; ``exact`` says whether they are those of the points.
    """
    start, row = flat(start), flat(row)
    column_block, row_block = flat(column_block), flat(row_block)
    matrix, row_scale, scores = grid(matrix), grid(row_scale), grid(scores)
    rhs, lower, upper = grid(rhs), grid(lower), grid(upper)
    which, point, dual = flat(which), grid(point), grid(dual)
    dual_low, free = grid(dual_low), grid(free)
    residual, gap = flat(residual), flat(gap)
    error, exact = flat(error), flat(exact)
    rows, scored = rhs.shape[1], scores.shape[1]
    columns = point.shape[1] - rows + equalities  # slack is what a row leaves
    of_rows, of_blocks = np.empty((7, rows)), np.empty((7, blocks))
    memory, others = grid(of_rows), grid(of_blocks)
    activity, activity_low, size = memory[0], memory[1], memory[2]
    floor, top = memory[3], memory[4]
    price, price_low = memory[5], memory[6]
    largest, least, smallest = others[0], others[1], others[2]
    moved, charged = others[3], others[4]
    held, terms = others[5], others[6]
    for i in range(rows):
        price_low[i] = 0.0
    told = curved > 0 and len(free) > 0
    for position in range(len(which)):
        k = which[position]
        entries = matrix[k if len(matrix) > 1 else 0]
        b = rhs[k if len(rhs) > 1 else 0]
        l, u = lower[k if len(lower) > 1 else 0], upper[k if len(upper) > 1 else 0]
        _scales(scored, curved, column_block, scores[k], l, u, point[k], largest, least, smallest)
        for g in range(blocks):
            moved[g], charged[g] = 0.0, 0.0
            held[g], terms[g] = 0.0, smallest[g]
        for i in range(rows):
            y = dual[k, i]
            if (i >= equalities and (y < 0.0 or np.isinf(b[i]))) or (curved == 0 and largest[row_block[i]] == 0.0):
                y = 0.0  # next to scores of 0 every point is best; a row without a limit has no price
            price[i] = y
            if extended:
                price_low[i] = dual_low[k, i] if y != 0.0 else 0.0
            activity[i], activity_low[i], size[i] = 0.0, 0.0, 0.0
            floor[i], top[i] = 0.0, 0.0
        worst, wrong, open_gap = 0.0, 0.0, 0.0
        check, fits = 0.0, True
        for j in range(columns):
            x = point[k, j]
            check += x
            unit, g = _unit(x, l[j], u[j]), column_block[j]
            cost = scores[k, j] if j < scored else 0.0
            reduced, low, own = cost, 0.0, abs(cost)
            if j < curved:
                reduced -= x
                own += abs(x)
                if extended:
                    low = (cost - reduced) - x if abs(cost) >= abs(x) else cost - (reduced + x)
            for t in range(start[j], start[j + 1]):
                a, i = entries[t], row[t]
                if extended:
                    activity[i], activity_low[i] = add_product(activity[i], activity_low[i], a, x)
                    reduced, low = add_product(reduced, low, -a, price[i])
                    low -= a * price_low[i]
                else:
                    activity[i] += a * x
                    reduced -= a * price[i]
                size[i] += abs(a * x)
                floor[i] += abs(a) * FLOOR * unit
                own += abs(a * price[i])
                top[i] = max(top[i], abs(cost))
            reduced += low
            outside = max(l[j] - x, x - u[j])
            worst = max(worst, outside)
            if outside > FLOOR * unit:
                wrong = max(wrong, outside / unit)
            room = u[j] - x if reduced > 0.0 else x - l[j]
            noise = EPSILON * own * (EPSILON if extended else 2.0 + start[j + 1] - start[j])
            distance = abs(reduced) + noise
            terms[g] = max(terms[g], own)
            if told and free[k, j]:
                held[g] = max(held[g], abs(reduced) - HELD * own)
            elif told:
                fits = fits and min(x - l[j], u[j] - x) <= TOUCHES * unit
            if room > TOUCHES * unit and distance > 0.0:
                if j < curved:
                    moved[g] += distance * distance
                elif curved > 0:
                    charged[g] += distance * (room if room < np.inf else 2.0 * max(1.0, abs(x)))
                else:
                    scale = _score_scale(cost, own, largest[g], least[g])
                    wrong = max(wrong, distance / scale if scale > 0.0 else np.inf)
            open_gap += abs(reduced) * max(room if room < np.inf else max(1.0, abs(x)), 0.0)
        for i in range(rows):
            if np.isinf(b[i]):  # a row without a limit says nothing
                if not (b[i] > 0.0 and i >= equalities):
                    wrong = np.inf
                fits = fits and not (told and i >= equalities and not free[k, columns + i - equalities])
                continue
            left = (b[i] - activity[i]) - activity_low[i]
            missing = abs(left) if i < equalities else max(-left, 0.0)
            whole_size = abs(b[i]) + size[i]
            worst = max(worst, missing / row_scale[k if len(row_scale) > 1 else 0, i])
            if missing > floor[i]:
                wrong = max(wrong, missing / whole_size if whole_size > 0.0 else np.inf)
            open_gap += abs(price[i] * left)
            check += price[i]
            has_room = i >= equalities and left > floor[i] + TOUCHES * whole_size
            if i >= equalities:
                point[k, columns + i - equalities] = max(left, 0.0)
            if told and i >= equalities:
                if free[k, columns + i - equalities]:
                    held[row_block[i]] = max(held[row_block[i]], price[i])
                else:
                    fits = fits and not has_room
            if has_room and price[i] > 0.0:
                if curved > 0:
                    charged[row_block[i]] += price[i] * left
                else:
                    h = row_block[i]
                    scale = _score_scale(top[i], top[i] if top[i] > 0.0 else np.inf, largest[h], least[h])
                    wrong = max(wrong, min(price[i] / scale, left / whole_size))
        valid = np.isfinite(check) and np.isfinite(open_gap)
        for g in range(blocks):
            far = np.sqrt(moved[g]) + np.sqrt(charged[g])
            if far > 0.0:
                wrong = max(wrong, far / (FAR * smallest[g]))
            fits = fits and held[g] <= NOISE * terms[g]
            valid = valid and np.isfinite(far)
        valid = valid and np.isfinite(wrong)
        residual[k] = worst if np.isfinite(check) else np.nan
        gap[k] = max(open_gap, 0.0) if np.isfinite(check) else np.nan
        error[k] = wrong if valid else np.inf
        exact[k] = fits and valid
    keep(of_rows)
    keep(of_blocks)


@jit(
    "int64(float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], int64, float64[:, ::1], "
    "boolean[:, ::1], float64[:, ::1], float64[:, ::1], boolean[::1])"
)
def leave_bounds(scores, rhs, lower, upper, equalities, point, free, direction, moved, found):  # type: ignore[no-untyped-def]
    """Where ``moved``, a direction projected onto what is free, moves free columns that are at a bound, next to what
    the scores move: ``found`` says for which instances, and what is returned for how many."""
    scores, rhs = grid(scores), grid(rhs)
    lower, upper = grid(lower), grid(upper)
    point, free, direction = grid(point), grid(free), grid(direction)
    moved, found = grid(moved), flat(found)
    batch, columns = point.shape
    first_slack = columns - rhs.shape[1] + equalities
    count = 0
    for k in range(batch):
        found[k] = False
        b, l, u = rhs[k if len(rhs) > 1 else 0], lower[k if len(lower) > 1 else 0], upper[k if len(upper) > 1 else 0]
        moves, far = 0.0, 0.0
        for j in range(scores.shape[1]):
            moves = max(moves, abs(scores[k, j]))
            far = max(far, LEFT * abs(direction[k, j]))
        for j in range(first_slack):
            far = max(far, AWAY * abs(moved[k, j]))
        for j in range(columns):
            unlimited = j >= first_slack and np.isinf(b[len(b) + j - columns])
            if free[k, j] and abs(moved[k, j]) > far and not unlimited:
                x = point[k, j]
                unit = _unit(x, l[j], u[j])
                touches = max(TOUCHES * (min(unit, moves) if moves > 0.0 else unit), ASTRAY * unit)
                near = max(touches, LEFT * max(abs(x), moves))
                if np.isfinite(x) and min(x - l[j], u[j] - x) <= near:
                    found[k] = True
                    count += 1
                    break
    return count


@jit(
    "(int32[::1], int32[::1], float64[:, ::1], float64[:, ::1], float64[::1], float64[:, ::1], int64[::1], "
    "float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1])"
)
def missing(  # type: ignore[no-untyped-def]
    start, row, matrix, scores, curvature, rhs, which, point, dual, dual_low, of_rows, of_columns
):
    """``b - A z`` and ``c - H z - Aᵀ y`` in twice the precision, rounded, for all columns; y is ``dual + dual_low``."""
    start, row = flat(start), flat(row)
    curvature, which = flat(curvature), flat(which)
    matrix, scores = grid(matrix), grid(scores)
    rhs, point = grid(rhs), grid(point)
    dual, dual_low = grid(dual), grid(dual_low)
    of_rows, of_columns = grid(of_rows), grid(of_columns)
    rows, columns, scored = rhs.shape[1], point.shape[1], scores.shape[1]
    memory = np.empty((2, rows))
    high, low = grid(memory)[0], grid(memory)[1]
    for position in range(len(which)):
        k = which[position]
        entries = matrix[k if len(matrix) > 1 else 0]
        for i in range(rows):
            high[i], low[i] = rhs[k if len(rhs) > 1 else 0, i], 0.0
        for j in range(columns):
            first, second = add_product(scores[k, j] if j < scored else 0.0, 0.0, -curvature[j], point[k, j])
            for t in range(start[j], start[j + 1]):
                i = row[t]
                high[i], low[i] = add_product(high[i], low[i], -entries[t], point[k, j])
                first, second = add_product(first, second, -entries[t], dual[k, i])
                second -= entries[t] * dual_low[k, i]
            of_columns[k, j] = first + second
        for i in range(rows):
            of_rows[k, i] = high[i] + low[i]
    keep(memory)
