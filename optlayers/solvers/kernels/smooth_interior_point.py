r"""Regularized problems by a predictor-corrector method, for every standard form.

:math:`\max_z s^\top z - \sum_j \omega_j(z_j)` with :math:`Az = b`, :math:`l \le z \le u`, where :math:`\omega_j` is
one of :mod:`optlayers.solvers.kernels.curves`, 0 for columns without curvature. It is the method of
:mod:`optlayers.solvers.kernels.interior_point` with slopes and curvatures at the point itself. Ends of the domain of an
entropy are no bounds: its slope keeps the point away from them. Products of rooms and multipliers end at ``least``,
which is 0 but for a logarithmic barrier, whose point they make it.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.batches import grouped, read, read_group
from optlayers.solvers.kernels.curves import BITS, ENTROPY, LINEAR, POWER, bend, slope
from optlayers.solvers.kernels.flat import flat, keep, row
from optlayers.solvers.kernels.interior_point import (
    PROXIMAL,
    SHORTER,
    aim_at,
    classify,
    corrected,
    direction,
    give_slack,
    lengths,
    multiplier_steps,
    write_lane,
)
from optlayers.solvers.kernels.lanes import LANES, absolute, fill, jit, load, maximum, part, spread, store, where_less
from optlayers.solvers.kernels.normal_equations import assemble, factor, multiply, multiply_transpose, opened

__all__ = ["optimize"]

SMALLEST_PIVOT = 0.0
"""Rows that depend on others have pivots that are rounding, of either sign; those that are not positive are dropped.
What is small beside that may be what an entropy leaves of a row."""
PATIENCE = 8
"""After so many steps without a better point nothing is to be hoped for: what is left is rounding,"""
NEAR = 1e-9
"""where the point is so near already;"""
HOPE = 40
"""from afar, steps may get worse for so long."""
FAR = 1e3
"""Towards a barrier's point products begin so many times larger than they end, or than 1,"""
SLOWLY = 0.1
"""are to shrink to this share of their mean in a step,"""
BEHIND = 0.1
"""and none is less than this share of it (Wright 1997, Primal-dual interior-point methods, chapter 6)."""
HALF = 0.5
TRIALS = 20
"""Steps are halved so often for that."""
SMALL = 1e-2
GROWN = 4.0
"""A number whose slope is that of an entropy grows at most so many times in a step."""


@jit(
    "(int64[:, ::1], boolean, float64[:, ::1], int64[::1], float64[:, ::1], float64[:, ::1], float64[::1], "
    "float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], int64[::1], int64, float64, "
    "float64[:, ::1], float64[:, ::1], boolean[:, ::1], boolean[:, ::1], int64[::1])"
)
def optimize(  # type: ignore[no-untyped-def]
    table,
    varies,
    matrix,
    kinds,
    weights,
    powers,
    least,
    scores,
    rhs,
    lower,
    upper,
    which,
    limit,
    tolerance,
    point,
    dual,
    low,
    high,
    steps,
):
    """Solve the instances ``which``; objectives are of unit size.

    ``low`` and ``high`` say which columns end nearer to a bound than their multiplier is to 0. ``steps`` is how many
    it took, negative where neither residual nor gap came below ``tolerance`` within ``limit``.
    """
    system, kind = opened(table), flat(kinds)
    rows, columns = len(system.order), len(system.column_start) - 1
    wide, tall, few = np.empty((21, LANES * columns)), np.empty((7, LANES * rows)), np.empty((11, LANES))
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
    weight, power, aimed = row(wide, 18), row(wide, 19), row(wide, 20)
    y, left, dy = row(tall, 1), row(tall, 2), row(tall, 3)
    side, nothing, spare = row(tall, 4), row(tall, 5), row(tall, 6)
    fill(nothing, 0.0)
    floor, pairs, mean = row(few, 0), row(few, 1), row(few, 2)
    aim, primal, both = row(few, 3), row(few, 4), row(few, 5)
    verdict = row(few, 6)  # primal residual, dual residual, sum of products, value: a row each
    done, best, since = np.empty(LANES, np.bool_), np.empty(LANES), np.empty(LANES, np.int64)
    for first in range(0, len(which), LANES):
        read_group(system, varies, matrix, scores, rhs, lower, upper, which, first, group)
        read(weights, which, first, weight)
        read(powers, which, first, power)
        for w in range(LANES):
            floor[w] = least[which[min(first + w, len(which) - 1)]] if len(least) > 1 else least[0]
        classify(group.lower, group.upper, l, u, has_low, has_high, moves, pairs)
        _start(kind, weight, power, c, l, u, has_low, has_high, pairs, z, wl, wu, aimed, h, floor)
        multiply(system, varies, entries, z, left)
        give_slack(system, varies, entries, aimed, h, has_low, has_high, b, left, z, wl)
        _from_afar(z, l, u, has_low, has_high, wl, wu, floor)
        fill(y, 0.0)
        done[:] = False
        best[:] = np.inf
        since[:] = 0
        for w in range(min(LANES, len(which) - first)):
            steps[which[first + w]] = -limit
        for step in range(limit + 1):
            multiply(system, varies, entries, z, left)
            multiply_transpose(system, varies, entries, y, pull)
            _residuals(
                kind,
                weight,
                power,
                c,
                z,
                l,
                u,
                has_low,
                has_high,
                moves,
                wl,
                wu,
                pull,
                b,
                left,
                h,
                theta,
                g,
                floor,
                verdict,
            )
            finished = True
            for w in range(LANES):
                if not done[w]:
                    gap = verdict[2 * LANES + w] / (1.0 + abs(verdict[3 * LANES + w]))
                    off = max(verdict[w], verdict[LANES + w], gap)
                    since[w] += 1
                    done[w] = off <= tolerance or step == limit or since[w] > (PATIENCE if best[w] <= NEAR else HOPE)
                    done[w] = done[w] or not off < np.inf  # a room that rounding closes ends in NaN
                    if off < best[w] or step == 0:
                        best[w] = off if off < best[w] else best[w]
                        since[w] = 0
                        if first + w < len(which):
                            k = which[first + w]
                            write_lane(
                                system, w, 1.0, z, y, l, u, has_low, has_high, moves, wl, wu, k, point, dual, low, high
                            )
                    if done[w] and first + w < len(which):
                        steps[which[first + w]] = step if best[w] <= tolerance else -limit
                finished = finished and done[w]
            if finished:
                break
            store(mean, 0, load(few, 10) / load(pairs, 0))
            assemble(system, varies, entries, theta, nothing, factored)
            factor(system, factored, spare, SMALLEST_PIVOT)
            goal = load(floor, 0)
            # Predictor: towards complementary pairs whose products are as small as they become.
            _towards(l, u, z, has_low, has_high, goal, g, aimed)
            direction(system, varies, entries, factored, theta, aimed, left, side, dy, pull, dz)
            multiplier_steps(z, l, u, has_low, has_high, wl, wu, dz, dl, du, goal, False)
            lengths(z, l, u, has_low, has_high, wl, wu, dz, dl, du, True, 1.0, primal, both)
            _kept_inside(kind, z, dz, primal, both, 1.0)
            aim_at(z, l, u, has_low, has_high, wl, wu, dz, dl, du, primal, both, pairs, mean, aim)
            _slowly(floor, mean, aim, dz, dl, du)
            # Corrector: towards products of the size that the predictor allows, with its second-order error removed.
            target = maximum(load(aim, 0), goal)
            corrected(c, h, z, l, u, has_low, has_high, wl, wu, dz, dl, du, theta, g, target)
            direction(system, varies, entries, factored, theta, g, left, side, dy, pull, dz)
            multiplier_steps(z, l, u, has_low, has_high, wl, wu, dz, dl, du, target, True)
            lengths(z, l, u, has_low, has_high, wl, wu, dz, dl, du, True, SHORTER, primal, both)
            _kept_inside(kind, z, dz, primal, both, SHORTER)
            _near_middle(z, l, u, has_low, has_high, wl, wu, dz, dl, du, pairs, floor, primal)
            for w in range(LANES):
                if done[w]:
                    primal[w] = 0.0
            t = load(primal, 0)
            _move(kind, z, dz, primal)
            for j in range(columns):
                store(wl, j, load(wl, j) + t * load(dl, j))
                store(wu, j, load(wu, j) + t * load(du, j))
            for i in range(rows):
                store(y, i, load(y, i) + t * load(dy, i))
    keep(wide)
    keep(tall)
    keep(few)
    keep(factor_room)
    keep(entry_room)


@part
def _start(kind, weight, power, c, l, u, has_low, has_high, pairs, z, wl, wu, flat_cost, h, floor):  # type: ignore[no-untyped-def]
    """Well inside the bounds, with products of equal size; what an entropy keeps from its ends has no bound there."""
    for j in range(len(kind)):
        for w in range(LANES):
            e = LANES * j + w
            low, high = has_low[e] > 0.0, has_high[e] > 0.0
            if low and high:
                z[e] = l[e] + 0.5 * (u[e] - l[e])
            elif low:
                z[e] = l[e] + 1.0
            elif high:
                z[e] = u[e] - 1.0
            else:
                z[e] = l[e]
            singular = kind[j] == ENTROPY or kind[j] == BITS
            if singular and low and l[e] <= 0.0:
                pairs[w] -= 1.0
                has_low[e] = 0.0
            if kind[j] == BITS and high and u[e] >= 1.0:
                pairs[w] -= 1.0
                has_high[e] = 0.0
            cost = c[e]
            h[e] = 0.0
            if has_low[e] + has_high[e] > 0.0 or (low or high):
                cost = c[e] - slope(kind[j], weight[e], power[e], z[e])
                h[e] = 0.0 if kind[j] == LINEAR else 1.0
            wl[e] = has_low[e] * (max(1.0, floor[w]) + max(-cost, 0.0))
            wu[e] = has_high[e] * (max(1.0, floor[w]) + max(cost, 0.0))
            flat_cost[e] = c[e]
    for w in range(LANES):
        pairs[w] = max(pairs[w], 1.0)


@part
def _from_afar(z, l, u, has_low, has_high, wl, wu, floor):  # type: ignore[no-untyped-def]
    """Towards a barrier's point from the middle of all pairs, with products that are large beside what it misses."""
    for w in range(LANES):
        if floor[w] > 0.0:
            product = FAR * max(1.0, floor[w])
            for j in range(len(z) // LANES):
                e = LANES * j + w
                wl[e] = product / (z[e] - l[e]) if has_low[e] > 0.0 else 0.0
                wu[e] = product / (u[e] - z[e]) if has_high[e] > 0.0 else 0.0


@part
def _residuals(  # type: ignore[no-untyped-def]
    kind, weight, power, c, z, l, u, has_low, has_high, moves, wl, wu, pull, b, left, h, theta, g, floor, verdict
):
    """``left = b - A z``, Θ, the predictor's ``g = c - ω'(z) - Aᵀ y``, and the verdict on the point; behind it the sum
    of products."""
    worst_row, scale = spread(0.0), spread(1.0)
    for i in range(len(b) // LANES):
        rest = load(b, i) - load(left, i)
        store(left, i, rest)
        worst_row = maximum(worst_row, absolute(rest))
        scale = maximum(scale, absolute(load(b, i)))
    store(verdict, 0, worst_row / scale)
    for w in range(LANES):
        worst, products = 0.0, 0.0
        excess, value = 0.0, 0.0
        for j in range(len(kind)):
            e = LANES * j + w
            theta[e] = 0.0
            g[e] = 0.0
            h[e] = 0.0
            if moves[e] == 0.0:
                continue
            below, above = z[e] - l[e], u[e] - z[e]
            h[e] = bend(kind[j], weight[e], power[e], z[e])
            g[e] = c[e] - slope(kind[j], weight[e], power[e], z[e]) - pull[e]
            first, second = has_low[e] * wl[e] * below, has_high[e] * wu[e] * above
            products += first + second
            excess += has_low[e] * abs(first - floor[w]) + has_high[e] * abs(second - floor[w])
            value += z[e] * c[e]
            off = abs(g[e] + has_low[e] * wl[e] - has_high[e] * wu[e])
            if kind[j] == ENTROPY or kind[j] == POWER:
                off *= min(1.0, abs(z[e]))  # near its end an entropy is steep, and little depends on it
            elif kind[j] == BITS:
                off *= min(z[e], 1.0 - z[e])
            worst = max(worst, off)
            stiffness = h[e]
            if has_low[e] > 0.0:
                stiffness += wl[e] / below
            if has_high[e] > 0.0:
                stiffness += wu[e] / above
            theta[e] = 1.0 / (stiffness if stiffness > 0.0 else PROXIMAL)
        verdict[LANES + w] = worst
        verdict[2 * LANES + w] = excess
        verdict[3 * LANES + w] = value
        verdict[4 * LANES + w] = products


@part
def _towards(l, u, z, has_low, has_high, goal, g, out):  # type: ignore[no-untyped-def]
    """The predictor's g, with the products that pairs end at."""
    for j in range(len(g) // LANES):
        low, high, x = load(has_low, j), load(has_high, j), load(z, j)
        below = where_less(spread(0.0), low, x - load(l, j), spread(1.0))
        above = where_less(spread(0.0), high, load(u, j) - x, spread(1.0))
        store(out, j, load(g, j) + low * goal / below - high * goal / above)


@part
def _slowly(floor, mean, aim, dz, dl, du):  # type: ignore[no-untyped-def]
    """Towards a barrier's point products shrink a little at a time, and nothing of a second order is corrected: a pair
    that runs ahead has to come back, for which its room may be too small."""
    for w in range(LANES):
        if floor[w] > 0.0:
            aim[w] = SLOWLY * mean[w]
            for j in range(len(dz) // LANES):
                e = LANES * j + w
                dz[e], dl[e], du[e] = 0.0, 0.0, 0.0


@part
def _near_middle(z, l, u, has_low, has_high, wl, wu, dz, dl, du, pairs, floor, primal):  # type: ignore[no-untyped-def]
    """Shorten steps towards a barrier's point after which a pair would be far behind the others."""
    for w in range(LANES):
        if floor[w] == 0.0:
            continue
        for _ in range(TRIALS):
            t, least, total = primal[w], np.inf, 0.0
            for j in range(len(z) // LANES):
                e = LANES * j + w
                x = z[e] + t * dz[e]
                if has_low[e] > 0.0:
                    product = (x - l[e]) * (wl[e] + t * dl[e])
                    least, total = min(least, product), total + product
                if has_high[e] > 0.0:
                    product = (u[e] - x) * (wu[e] + t * du[e])
                    least, total = min(least, product), total + product
            if least >= BEHIND * total / pairs[w]:
                break
            primal[w] = HALF * t


@part
def _kept_inside(kind, z, dz, primal, both, share):  # type: ignore[no-untyped-def]
    """Shorten steps that would leave the domain of an entropy, or grow what its slope does not see. Numbers that are
    small leave the step as it is, as little depends on them."""
    for w in range(LANES):
        longest = primal[w]
        for j in range(len(kind)):
            e = LANES * j + w
            if kind[j] == ENTROPY or kind[j] == BITS or kind[j] == POWER:
                if z[e] >= SMALL and dz[e] < 0.0 and kind[j] != POWER:
                    longest = min(longest, share * z[e] / -dz[e])
                elif z[e] >= SMALL and dz[e] > GROWN * z[e]:
                    longest = min(longest, GROWN * z[e] / dz[e])
                if kind[j] == BITS and 1.0 - z[e] >= SMALL and dz[e] > 0.0:
                    longest = min(longest, share * (1.0 - z[e]) / dz[e])
        primal[w] = longest
        both[w] = longest


@part
def _move(kind, z, dz, length):  # type: ignore[no-untyped-def]
    """Take the step; small numbers with an entropy stay positive each by itself, and grow no faster than it sees."""
    for j in range(len(kind)):
        for w in range(LANES):
            e = LANES * j + w
            before, after = z[e], z[e] + length[w] * dz[e]
            if (kind[j] == ENTROPY or kind[j] == BITS) and before < SMALL:
                after = min(max(after, (1.0 - SHORTER) * before), (1.0 + GROWN) * before)
            elif kind[j] == BITS and 1.0 - before < SMALL:
                rest = min(max(1.0 - after, (1.0 - SHORTER) * (1.0 - before)), (1.0 + GROWN) * (1.0 - before))
                after = 1.0 - rest
            z[e] = after
