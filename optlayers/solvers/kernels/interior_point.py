r"""Quadratic and linear programs by Mehrotra's predictor-corrector method.

:math:`\max_z c^\top z - \tfrac12 z^\top H z` with :math:`Az = b`, :math:`l \le z \le u` and a diagonal H of zeros and
ones; any bound may be missing. The reduced cost :math:`c - Hz - A^\top y` of a column is what presses it to its upper
bound (positive) or to its lower one. With the rooms :math:`x_l = z - l`, :math:`x_u = u - z` and multipliers
:math:`w_l, w_u`, every step has the matrix :math:`A \Theta A^\top` with
:math:`\Theta = (H + w_l / x_l + w_u / x_u)^{-1}` (Mehrotra, 1992; Wright, Primal-Dual Interior-Point Methods, 1997).

Objectives are scaled to unit size, so that one tolerance serves scores of all sizes. A column that is held
(:math:`l = u`) leaves the system; one without bounds and curvature moves against a small proximal term.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.batches import grouped, read_group
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

__all__ = [
    "DEPENDENT",
    "PROXIMAL",
    "SHORTER",
    "aim_at",
    "classify",
    "corrected",
    "direction",
    "give_slack",
    "lengths",
    "multiplier_steps",
    "optimize",
    "write_lane",
]

DEPENDENT = 1e-12
"""A pivot below this share of its diagonal entry belongs to a dependent row, or is what cancellation leaves of one."""
PROXIMAL = 1e-8
"""Curvature lent to columns that have neither bounds nor curvature, for one step at a time."""
SHORTER = 0.995
"""Share of the way to the nearest bound."""


@jit(
    "(int64[:, ::1], boolean, float64[:, ::1], float64[:, ::1], float64[::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, ::1], int64[::1], int64, float64, float64[:, ::1], float64[:, ::1], boolean[:, ::1], "
    "boolean[:, ::1], int64[::1])"
)
def optimize(  # type: ignore[no-untyped-def]
    table, varies, matrix, linear, curvature, rhs, lower, upper, which, limit, tolerance, point, dual, low, high, steps
):
    """Solve the instances ``which``.

    ``low`` and ``high`` say which columns end nearer to a bound than their multiplier is to 0. ``steps`` is how many
    it took, negative where neither residual nor gap came below ``tolerance`` within ``limit``.
    """
    system, curvature = opened(table), flat(curvature)
    which, steps = flat(which), flat(steps)
    matrix, linear, rhs = grid(matrix), grid(linear), grid(rhs)
    lower, upper = grid(lower), grid(upper)
    point, dual = grid(point), grid(dual)
    low, high = grid(low), grid(high)
    rows, columns = len(system.order), len(system.column_start) - 1
    wide, tall, few = np.empty((18, LANES * columns)), np.empty((7, LANES * rows)), np.empty((10, LANES))
    factor_room = np.empty(LANES * (rows + len(system.factor_row)))
    entry_room = np.empty(LANES * len(system.column_row) if varies else 0)
    group, factored = grouped(wide, tall, entry_room), flat(factor_room)
    c, b, entries = group.scores, group.rhs, group.entries
    l, u = row(wide, 3), row(wide, 4)
    z, h = row(wide, 5), row(wide, 6)
    has_low, has_high, moves = row(wide, 7), row(wide, 8), row(wide, 9)
    wl, wu, theta = row(wide, 10), row(wide, 11), row(wide, 12)
    g, pull = row(wide, 13), row(wide, 14)
    dz, dl, du = row(wide, 15), row(wide, 16), row(wide, 17)
    y, left, dy = row(tall, 1), row(tall, 2), row(tall, 3)
    side, nothing, spare = row(tall, 4), row(tall, 5), row(tall, 6)
    fill(nothing, 0.0)
    unit, pairs, mean = row(few, 0), row(few, 1), row(few, 2)
    aim, primal, both = row(few, 3), row(few, 4), row(few, 5)
    verdict = row(few, 6)  # primal residual, dual residual, sum of products, value: a row each
    flags = np.empty((1, LANES), np.bool_)
    done = grid(flags)[0]
    quadratic = False
    for j in range(columns):
        quadratic = quadratic or curvature[j] > 0.0
    for first in range(0, len(which), LANES):
        read_group(system, varies, matrix, linear, rhs, lower, upper, which, first, group)
        _scale(c, curvature, quadratic, h, unit)
        classify(group.lower, group.upper, l, u, has_low, has_high, moves, pairs)
        _start(c, h, l, u, has_low, has_high, z, wl, wu)
        multiply(system, varies, entries, z, left)
        give_slack(system, varies, entries, c, h, has_low, has_high, b, left, z, wl)
        fill(y, 0.0)
        fill(done, False)
        for w in range(min(LANES, len(which) - first)):
            steps[which[first + w]] = -limit
        for step in range(limit + 1):
            multiply(system, varies, entries, z, left)
            multiply_transpose(system, varies, entries, y, pull)
            _residuals(c, h, z, l, u, has_low, has_high, moves, wl, wu, pull, b, left, theta, g, verdict)
            finished = True
            for w in range(LANES):
                if not done[w]:
                    ended = (
                        verdict[w] <= tolerance
                        and verdict[LANES + w] <= tolerance
                        and verdict[2 * LANES + w] <= tolerance * (1.0 + abs(verdict[3 * LANES + w]))
                    )
                    if ended or step == limit:
                        done[w] = True
                        if first + w < len(which):
                            k = which[first + w]
                            steps[k] = step if ended else -limit
                            write_lane(
                                system,
                                w,
                                unit[w],
                                z,
                                y,
                                l,
                                u,
                                has_low,
                                has_high,
                                moves,
                                wl,
                                wu,
                                k,
                                point,
                                dual,
                                low,
                                high,
                            )
                finished = finished and done[w]
            if finished:
                break
            store(mean, 0, load(verdict, 2) / load(pairs, 0))
            assemble(system, varies, entries, theta, nothing, factored)
            factor(system, factored, spare, DEPENDENT)
            # Predictor: towards complementary pairs whose products are 0.
            direction(system, varies, entries, factored, theta, g, left, side, dy, pull, dz)
            multiplier_steps(z, l, u, has_low, has_high, wl, wu, dz, dl, du, spread(0.0), False)
            lengths(z, l, u, has_low, has_high, wl, wu, dz, dl, du, quadratic, 1.0, primal, both)
            aim_at(z, l, u, has_low, has_high, wl, wu, dz, dl, du, primal, both, pairs, mean, aim)
            # Corrector: towards products of the size that the predictor allows, with its second-order error removed.
            target = load(aim, 0)
            corrected(c, h, z, l, u, has_low, has_high, wl, wu, dz, dl, du, theta, g, target)
            direction(system, varies, entries, factored, theta, g, left, side, dy, pull, dz)
            multiplier_steps(z, l, u, has_low, has_high, wl, wu, dz, dl, du, target, True)
            lengths(z, l, u, has_low, has_high, wl, wu, dz, dl, du, quadratic, SHORTER, primal, both)
            for w in range(LANES):
                if done[w]:
                    primal[w] = 0.0
                    both[w] = 0.0
            t, other = load(primal, 0), load(both, 0)
            for j in range(columns):
                store(z, j, load(z, j) + t * load(dz, j))
                store(wl, j, load(wl, j) + other * load(dl, j))
                store(wu, j, load(wu, j) + other * load(du, j))
            for i in range(rows):
                store(y, i, load(y, i) + other * load(dy, i))
    keep(wide)
    keep(tall)
    keep(few)
    keep(factor_room)
    keep(entry_room)
    keep(flags)


@part
def _scale(c, curvature, quadratic, h, unit):  # type: ignore[no-untyped-def]
    """Divide the objective by its size: of linear ones exactly, of quadratic ones only where it exceeds 1."""
    largest = spread(1.0 if quadratic else 0.0)
    for j in range(len(curvature)):
        largest = maximum(largest, absolute(load(c, j)))
    largest = where_less(spread(0.0), largest, largest, spread(1.0))
    store(unit, 0, largest)
    for j in range(len(curvature)):
        store(c, j, load(c, j) / largest)
        store(h, j, curvature[j] / largest)


@part
def classify(lower, upper, l, u, has_low, has_high, moves, pairs):  # type: ignore[no-untyped-def]
    """Which bounds there are; missing ones become 0, so that arithmetic stays finite."""
    fill(pairs, 0.0)
    for e in range(len(l)):
        moves[e] = 1.0 if lower[e] < upper[e] else 0.0
        has_low[e] = moves[e] if lower[e] > -np.inf else 0.0
        has_high[e] = moves[e] if upper[e] < np.inf else 0.0
        pairs[e % LANES] += has_low[e] + has_high[e]
        l[e] = 0.0 if lower[e] == -np.inf else lower[e]
        u[e] = 0.0 if upper[e] == np.inf else upper[e]
    for w in range(LANES):
        pairs[w] = max(pairs[w], 1.0)


@part
def _start(c, h, l, u, has_low, has_high, z, wl, wu):  # type: ignore[no-untyped-def]
    """Well inside the bounds, with products of equal size."""
    for e in range(len(z)):
        if has_low[e] > 0.0 and has_high[e] > 0.0:
            width = u[e] - l[e]
            z[e] = l[e] + 0.5 * width
        elif has_low[e] > 0.0:
            z[e] = l[e] + 1.0
        elif has_high[e] > 0.0:
            z[e] = u[e] - 1.0
        else:
            z[e] = l[e]  # held, or 0 for want of bounds
        cost = c[e] - h[e] * z[e]
        wl[e] = has_low[e] * (1.0 + max(-cost, 0.0))
        wu[e] = has_high[e] * (1.0 + max(cost, 0.0))


@part
def give_slack(system, varies, entries, c, h, has_low, has_high, b, left, z, wl):  # type: ignore[no-untyped-def]
    """Rows with room start with it: slack far from what its row leaves would hold up all of the others."""
    for j in range(len(system.column_start) - 1):
        t = system.column_start[j]
        if system.column_start[j + 1] != t + 1:
            continue
        for w in range(LANES):
            e, i = LANES * j + w, LANES * system.column_row[t] + w
            value = entries[LANES * t + w] if varies else system.column_value[t]
            if has_low[e] > 0.0 and has_high[e] == 0.0 and c[e] == 0.0 and h[e] == 0.0 and value > 0.0:
                room = z[e] + (b[i] - left[i]) / value
                if room > 1.0:
                    z[e] = room
                    wl[e] = 1.0 / room


@part
def _residuals(c, h, z, l, u, has_low, has_high, moves, wl, wu, pull, b, left, theta, g, verdict):  # type: ignore[no-untyped-def]
    """``left = b - A z``, Θ, the predictor's ``g = c - H z - Aᵀ y``, and the verdict on the point."""
    worst_row, worst_column = spread(0.0), spread(0.0)
    products, value = spread(0.0), spread(0.0)
    scale = spread(1.0)
    for i in range(len(b) // LANES):
        rest = load(b, i) - load(left, i)
        store(left, i, rest)
        worst_row = maximum(worst_row, absolute(rest))
        scale = maximum(scale, absolute(load(b, i)))
    for j in range(len(z) // LANES):
        x, low = load(z, j), load(has_low, j)
        high, moving = load(has_high, j), load(moves, j)
        below, above = x - load(l, j), load(u, j) - x
        first, second = load(wl, j), load(wu, j)
        reduced = load(c, j) - load(h, j) * x - load(pull, j)
        products = products + low * first * below + high * second * above
        value = value + x * load(c, j)
        worst_column = maximum(worst_column, moving * absolute(reduced + first - second))
        below = where_less(spread(0.0), low, below, spread(1.0))
        above = where_less(spread(0.0), high, above, spread(1.0))
        stiffness = load(h, j) + first / below + second / above
        stiffness = where_less(spread(0.0), stiffness, stiffness, spread(PROXIMAL))
        store(theta, j, moving / stiffness)
        store(g, j, reduced)
    store(verdict, 0, worst_row / scale)
    store(verdict, 1, worst_column)
    store(verdict, 2, products)
    store(verdict, 3, value)


@part
def direction(system, varies, entries, factored, theta, g, left, side, dy, pull, dz):  # type: ignore[no-untyped-def]
    """``(A Θ Aᵀ) dy = A Θ g - left`` and ``dz = Θ (g - Aᵀ dy)``."""
    for j in range(len(g) // LANES):
        store(dz, j, load(theta, j) * load(g, j))
    multiply(system, varies, entries, dz, side)
    for i in range(len(left) // LANES):
        store(dy, i, load(side, i) - load(left, i))
    solve(system, factored, dy)
    multiply_transpose(system, varies, entries, dy, pull)
    for j in range(len(g) // LANES):
        store(dz, j, load(theta, j) * (load(g, j) - load(pull, j)))


@part
def multiplier_steps(z, l, u, has_low, has_high, wl, wu, dz, dl, du, target, corrector):  # type: ignore[no-untyped-def]
    """Steps of the multipliers; those of the predictor, in ``dl`` and ``du``, hold its second-order error by now."""
    for j in range(len(z) // LANES):
        x, move = load(z, j), load(dz, j)
        low, high = load(has_low, j), load(has_high, j)
        below = where_less(spread(0.0), low, x - load(l, j), spread(1.0))
        above = where_less(spread(0.0), high, load(u, j) - x, spread(1.0))
        first, second = load(wl, j), load(wu, j)
        aim_low, aim_high = target - below * first, target - above * second
        if corrector:
            aim_low, aim_high = aim_low - load(dl, j), aim_high + load(du, j)
        store(dl, j, low * (aim_low - first * move) / below)
        store(du, j, high * (aim_high + second * move) / above)


@part
def corrected(c, h, z, l, u, has_low, has_high, wl, wu, dz, dl, du, theta, g, target):  # type: ignore[no-untyped-def]
    """The corrector's g; ``dl`` and ``du`` become the products of the predictor's steps."""
    for j in range(len(z) // LANES):
        x, move = load(z, j), load(dz, j)
        low, high = load(has_low, j), load(has_high, j)
        below = where_less(spread(0.0), low, x - load(l, j), spread(1.0))
        above = where_less(spread(0.0), high, load(u, j) - x, spread(1.0))
        error_low, error_high = move * load(dl, j), move * load(du, j)
        store(dl, j, error_low)
        store(du, j, error_high)
        store(g, j, load(g, j) + low * (target - error_low) / below - high * (target + error_high) / above)


@part
def lengths(z, l, u, has_low, has_high, wl, wu, dz, dl, du, quadratic, share, primal, both):  # type: ignore[no-untyped-def]
    """How far rooms and multipliers stay positive; one length for both where the objective is quadratic."""
    zero, far = spread(0.0), spread(1e300)
    longest, other = spread(1.0 / share), spread(1.0 / share)
    for j in range(len(z) // LANES):
        x, move = load(z, j), load(dz, j)
        low, high = load(has_low, j), load(has_high, j)
        ratio = where_less(move, zero, (load(l, j) - x) / move, far)
        longest = minimum(longest, where_less(zero, low, ratio, far))
        ratio = where_less(zero, move, (load(u, j) - x) / move, far)
        longest = minimum(longest, where_less(zero, high, ratio, far))
        step = load(dl, j)
        other = minimum(other, where_less(step, zero, (zero - load(wl, j)) / step, far))
        step = load(du, j)
        other = minimum(other, where_less(step, zero, (zero - load(wu, j)) / step, far))
    if quadratic:
        longest = minimum(longest, other)
        other = longest
    store(primal, 0, longest * share)
    store(both, 0, other * share)


@part
def aim_at(z, l, u, has_low, has_high, wl, wu, dz, dl, du, primal, both, pairs, mean, aim):  # type: ignore[no-untyped-def]
    """Mehrotra's heuristic: the cube of what the predictor would leave of the products, times their mean."""
    t, other = load(primal, 0), load(both, 0)
    products = spread(0.0)
    for j in range(len(z) // LANES):
        x = load(z, j) + t * load(dz, j)
        products = products + load(has_low, j) * (x - load(l, j)) * (load(wl, j) + other * load(dl, j))
        products = products + load(has_high, j) * (load(u, j) - x) * (load(wu, j) + other * load(du, j))
    left = products / (load(pairs, 0) * load(mean, 0))
    store(aim, 0, left * left * left * load(mean, 0))


@part
def write_lane(system, w, unit, z, y, l, u, has_low, has_high, moves, wl, wu, k, point, dual, low, high):  # type: ignore[no-untyped-def]
    """The answer of lane ``w`` goes to row ``k``."""
    for j in range(point.shape[1]):
        e = LANES * j + w
        below, above = z[e] - l[e], u[e] - z[e]
        point[k, j] = z[e]
        at_low = has_low[e] > 0.0 and below < wl[e]
        at_high = has_high[e] > 0.0 and above < wu[e]
        if at_low and at_high:  # an interval so short that both bounds are near
            at_low = wl[e] >= wu[e]
            at_high = not at_low
        low[k, j] = at_low or moves[e] == 0.0
        high[k, j] = at_high
    for i in range(dual.shape[1]):
        dual[k, system.order[i]] = y[LANES * i + w] * system.scale[i] * unit
