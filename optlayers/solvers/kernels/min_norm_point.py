r"""The nearest point of a polytope of which only a maximizer is known, and its derivative.

.. math:: \max_{\lambda \ge 0,\, 1^\top\lambda = 1} \sum_i \lambda_i b_i - \tfrac12 \Big\|\sum_i \lambda_i x_i\Big\|^2,
          \qquad b_i = \langle s, x_i \rangle + \langle t, w_i \rangle,

over the vertices :math:`(x_i, w_i)`; x is the structure, w are auxiliary variables that are scored only. It is solved
by Wolfe's active set method (1976), as in SparseMAP (Niculae et al., 2018): the maximizer brings the vertex that
is best for the gradient :math:`(s - x, t)`; the problem on the affine hull of the active vertices is solved exactly;
where that leaves the simplex, vertices are dropped on the way. It ends when no vertex is better than the point, after
finitely many steps, at the exact answer.

The active vertices are affinely independent in x. With :math:`Q = X X^\top + \omega 1 1^\top = L L^\top` a step on
their affine hull is

.. math:: \delta = Q^{-1} r - \frac{1^\top Q^{-1} r}{1^\top Q^{-1} 1}\, Q^{-1} 1, \qquad r = X(s - x) + W t,

so rows are appended to L and deleted from it, and every step is at the same time one of iterative refinement. A
vertex whose x lies in the affine hull already is exchanged for one of those that make it up.

The derivative is that of the half-space form, found without half-spaces. With :math:`c = s - x`, it is the
orthogonal projection onto the directions of the face :math:`F` that c exposes. The active vertices span a part of
them only where the answer is degenerate (the diagonal of a square does not span the square), so the maximizer is asked
for vertices of F that are best for what remains of the direction, on either side. When there are none the direction is
constant on F beyond the span, and its projection is done.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.lanes import jit
from optlayers.solvers.kernels.oracles import FOUND, ask, fill_scores, violation

__all__ = ["DONE", "LIMIT", "NOT_MAXIMAL", "OUTSIDE", "decompose", "pull_back"]

DONE, LIMIT, OUTSIDE, NOT_MAXIMAL = 0, 5, 6, 7
"""Ends of an instance, besides the codes of :mod:`optlayers.solvers.kernels.oracles`."""
DEPENDENT = 1e-11
"""A squared pivot below this part of its diagonal entry belongs to a vertex in the affine hull of the others."""
ROUNDING = 4e-15
"""A gap below this, relative to the sums that it is a difference of, is rounding."""
WORSE = 1e-9
"""A vertex that is worse by more than this, relative to these sums, is no maximum."""
ON_FACE = 1e-9
"""A vertex whose value misses the best by less than this, relative to the size of the objective, is on the face."""
NEAR_FACE = (1e8, 1e10)
"""How much more the objective of the face weighs than the direction, first and when that was not enough."""
GAIN = 1e-6
"""Progress along a direction of unit size that is more than rounding next to the weights above."""


@jit
def _grown(array):  # type: ignore[no-untyped-def]
    """Twice the room, with the same content in the leading part."""
    larger = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
    larger[: array.shape[0]] = array
    return larger


@jit
def _grown_square(array):  # type: ignore[no-untyped-def]
    larger = np.zeros((2 * array.shape[0], 2 * array.shape[1]))
    larger[: array.shape[0], : array.shape[1]] = array
    return larger


@jit
def _store(full, size, index, value, count, slot):  # type: ignore[no-untyped-def]
    """A flat structure as its nonzero entries: ``count[slot]`` in all, ``count[slot, 1]`` of them in x."""
    stored = 0
    for i in range(len(full)):
        if i == size:
            count[slot, 1] = stored
        if full[i] != 0.0:
            index[slot, stored] = i
            value[slot, stored] = full[i]
            stored += 1
    count[slot, 0] = stored
    if size == len(full):
        count[slot, 1] = stored


@jit
def _same(index, value, count, a, b):  # type: ignore[no-untyped-def]
    same = count[a, 0] == count[b, 0]
    e = 0
    while same and e < count[a, 0]:
        same = index[a, e] == index[b, e] and value[a, e] == value[b, e]
        e += 1
    return same


@jit
def _dot(index, value, count, slot, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for e in range(count[slot]):
        total += value[slot, e] * vector[index[slot, e]]
    return total


@jit
def _absolute_dot(index, value, count, slot, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for e in range(count[slot]):
        total += abs(value[slot, e] * vector[index[slot, e]])
    return total


@jit
def _mix(index, value, count, order, active, weight, out):  # type: ignore[no-untyped-def]
    """The point with these weights."""
    out[:] = 0.0
    for a in range(active):
        slot = order[a]
        for e in range(count[slot, 0]):
            out[index[slot, e]] += weight[a] * value[slot, e]


@jit
def _append(index, value, count, order, active, slot, full, size, shift, factor, hand):  # type: ignore[no-untyped-def]
    """Append the vertex in ``slot``, which is ``full``, to the factor; False, and no change, if it is dependent.

    ``hand[:active]`` is L⁻¹ of its column of Q, which the exchange needs.
    """
    square = shift
    for e in range(count[slot, 1]):
        square += value[slot, e] * value[slot, e]
    rest = square
    for a in range(active):
        other = order[a]
        total = shift
        for e in range(count[other, 1]):
            total += value[other, e] * full[index[other, e]]
        for b in range(a):
            total -= factor[a, b] * hand[b]
        hand[a] = total / factor[a, a]
        rest -= hand[a] * hand[a]
    if rest <= DEPENDENT * square:
        return False
    factor[active, :active] = hand[:active]
    factor[active, active] = np.sqrt(rest)
    order[active] = slot
    return True


@jit
def _delete(factor, order, weight, active, gone):  # type: ignore[no-untyped-def]
    """Take vertex number ``gone`` out, and make the factor triangular again by rotations (Golub and Van Loan, 6.5)."""
    for a in range(gone, active - 1):
        order[a] = order[a + 1]
        weight[a] = weight[a + 1]
        factor[a, : a + 2] = factor[a + 1, : a + 2]
    last = active - 1
    for a in range(gone, last):
        x, y = factor[a, a], factor[a, a + 1]
        length = np.hypot(x, y)
        c, s = x / length, y / length
        factor[a, a], factor[a, a + 1] = length, 0.0
        for b in range(a + 1, last):
            x, y = factor[b, a], factor[b, a + 1]
            factor[b, a] = c * x + s * y
            factor[b, a + 1] = c * y - s * x
    return last


@jit
def _forward(factor, active, vector):  # type: ignore[no-untyped-def]
    for a in range(active):
        total = vector[a]
        for b in range(a):
            total -= factor[a, b] * vector[b]
        vector[a] = total / factor[a, a]


@jit
def _backward(factor, active, vector):  # type: ignore[no-untyped-def]
    for a in range(active - 1, -1, -1):
        vector[a] /= factor[a, a]
        for b in range(a):
            vector[b] -= factor[a, b] * vector[a]


@jit
def _balanced(factor, active, side, ones, step):  # type: ignore[no-untyped-def]
    """The solution of ``Q δ = side + κ 1`` with ``1ᵀδ = 0``."""
    step[:active] = side[:active]
    ones[:active] = 1.0
    _forward(factor, active, step)
    _forward(factor, active, ones)
    product = square = 0.0
    for a in range(active):
        product += ones[a] * step[a]
        square += ones[a] * ones[a]
    for a in range(active):
        step[a] -= product / square * ones[a]
    _backward(factor, active, step)
    total = 0.0
    for a in range(active):
        total += step[a]
    for a in range(active):
        step[a] -= total / active


@jit
def _exchange(factor, active, order, weight, hand):  # type: ignore[no-untyped-def]
    """Shift weight to a vertex in the affine hull of the others until one of them has none; which one, and how much."""
    _backward(factor, active, hand)
    gone, step = -1, np.inf
    for a in range(active):
        if hand[a] > 0.0 and weight[a] < step * hand[a]:
            gone, step = a, weight[a] / hand[a]
    for a in range(active):
        weight[a] = max(0.0, weight[a] - step * hand[a])
    return gone, step


@jit
def decompose(  # type: ignore[no-untyped-def]
    call, rows, scores, forbidden, theta, size, starts, which, limit, outside, point, status, gap, residual, steps
):
    """Project the instances ``which``; entries from ``size`` on are scored but not regularized.

    ``starts`` are vertices to begin with, ``(batch, entries)`` or empty. Returns the decompositions of the instances
    one after the other: weights, how many each instance has, and the nonzero entries of every vertex.
    """
    entries = point.shape[1]
    full, goal, out, x = np.empty(entries), np.empty(entries), np.empty(entries), np.empty(entries)
    addresses, room = np.empty(len(call.source), np.int64), np.empty(rows.rhs.shape[1])
    slots = 16
    index, value = np.zeros((slots, entries), np.int32), np.zeros((slots, entries))
    count, order, free = np.zeros((slots, 2), np.int64), np.zeros(slots, np.int64), np.arange(slots)
    factor = np.zeros((slots, slots))
    weight, side, ones, step, hand = np.zeros(slots), np.zeros(slots), np.zeros(slots), np.zeros(slots), np.zeros(slots)
    kept_weight, kept_count = np.zeros(64), np.zeros(len(which), np.int64)
    kept_start, kept_index, kept_value = np.zeros(65, np.int64), np.zeros(1024, np.int32), np.zeros(1024)
    vertices = 0
    for position in range(len(which)):
        k = which[position]
        fill_scores(rows, k, scores, forbidden, full)
        steps[k] = 0
        if len(starts):
            out[:] = starts[k]
            code = FOUND
        else:
            code = ask(call, full, theta[k], addresses, out)
        residual[k], gap[k], status[k] = np.nan, np.nan, code
        if code != FOUND:
            continue
        residual[k] = violation(rows, k, out, room)
        if not residual[k] <= outside:
            status[k] = OUTSIDE
            continue
        for a in range(slots):
            free[a] = a
        slot = 0
        _store(out, size, index, value, count, slot)
        shift = 1.0
        for e in range(count[slot, 1]):
            shift += value[slot, e] * value[slot, e]
        _append(index, value, count, order, 0, slot, out, size, shift, factor, hand)
        weight[0] = 1.0
        active = 1
        status[k] = LIMIT
        stalls = 0
        while steps[k] < limit:
            steps[k] += 1
            _mix(index, value, count, order, active, weight, x)
            for i in range(entries):
                goal[i] = full[i] - x[i] if i < size else full[i]
            code = ask(call, goal, theta[k], addresses, out)
            if code != FOUND:
                status[k] = code
                break
            far = violation(rows, k, out, room)
            residual[k] = max(residual[k], far)
            if not far <= outside:
                status[k] = OUTSIDE
                break
            if active == slots:
                index, value, count, order = _grown(index), _grown(value), _grown(count), _grown(order)
                weight, side, ones, step, hand = _grown(weight), _grown(side), _grown(ones), _grown(step), _grown(hand)
                factor, free = _grown_square(factor), np.concatenate((free, np.arange(slots, 2 * slots)))
                slots *= 2
            slot = free[active]
            _store(out, size, index, value, count, slot)
            best = _dot(index, value, count[:, 0], slot, goal)
            scale = 1.0 + _absolute_dot(index, value, count[:, 0], slot, goal)
            here = 0.0
            for i in range(entries):
                if x[i] != 0.0:
                    here += goal[i] * x[i]
                    scale += abs(goal[i] * x[i])
            gap[k] = best - here
            if gap[k] < -WORSE * scale:
                status[k] = NOT_MAXIMAL
                break
            known = False
            for a in range(active):
                known = known or _same(index, value, count, slot, order[a])
            if gap[k] <= ROUNDING * scale or (known and stalls > 0):
                status[k] = DONE
                break
            if not known:
                if not _append(index, value, count, order, active, slot, out, size, shift, factor, hand):
                    gone, moved = _exchange(factor, active, order, weight, hand)
                    if gone < 0 or entries == size:  # nothing but rounding is to be gained
                        status[k] = DONE
                        break
                    released = order[gone]
                    active = _delete(factor, order, weight, active, gone)
                    free[active + 1] = released
                    free[active] = slot
                    if not _append(index, value, count, order, active, slot, out, size, shift, factor, hand):
                        status[k] = LIMIT
                        break
                    weight[active] = moved
                else:
                    weight[active] = 0.0
                active += 1
            active = _minor_cycles(
                index, value, count, order, free, active, weight, full, size, x, goal, factor, side, ones, step
            )
            # A vertex that helps only by rounding is dropped again at once, and would come back for ever.
            stays = False
            for a in range(active):
                stays = stays or order[a] == slot
            stalls = 0 if stays else stalls + 1
            if stalls > 2:
                status[k] = DONE
                break
        _mix(index, value, count, order, active, weight, point[k])
        while vertices + active > len(kept_weight):
            kept_weight = _grown(kept_weight)
        while vertices + active + 1 > len(kept_start):
            kept_start = _grown(kept_start)
        for a in range(active):
            if weight[a] == 0.0:
                continue
            slot = order[a]
            begin = kept_start[vertices]
            while begin + count[slot, 0] > len(kept_index):
                kept_index, kept_value = _grown(kept_index), _grown(kept_value)
            for e in range(count[slot, 0]):
                kept_index[begin + e] = index[slot, e]
                kept_value[begin + e] = value[slot, e]
            kept_weight[vertices] = weight[a]
            vertices += 1
            kept_start[vertices] = begin + count[slot, 0]
            kept_count[position] += 1
    stored = kept_start[vertices]
    return (
        kept_count,
        kept_weight[:vertices].copy(),
        kept_start[: vertices + 1].copy(),
        kept_index[:stored].copy(),
        kept_value[:stored].copy(),
    )


@jit
def _minor_cycles(  # type: ignore[no-untyped-def]
    index, value, count, order, free, active, weight, full, size, x, goal, factor, side, ones, step
):
    """Move to the best point of the affine hull, or to where the simplex ends on the way, and then without a vertex."""
    while True:
        _mix(index, value, count, order, active, weight, x)
        for i in range(len(x)):
            goal[i] = full[i] - x[i] if i < size else full[i]
        for a in range(active):
            side[a] = _dot(index, value, count[:, 0], order[a], goal)
        _balanced(factor, active, side, ones, step)
        gone, part = -1, 1.0
        for a in range(active):
            if weight[a] + step[a] <= 0.0 and -step[a] * part >= weight[a]:
                gone, part = a, weight[a] / -step[a] if step[a] < 0.0 else 0.0
        for a in range(active):
            weight[a] += part * step[a]
        if gone < 0:
            return active
        released = order[gone]
        active = _delete(factor, order, weight, active, gone)
        free[active] = released
        total = 0.0
        for a in range(active):
            weight[a] = max(weight[a], 0.0)
            total += weight[a]
        for a in range(active):
            weight[a] /= total


@jit
def pull_back(  # type: ignore[no-untyped-def]
    call, rows, scores, forbidden, theta, size, point, first, start, vertex_index, vertex_value, direction, which, out
):
    """The derivative applied to ``direction`` ``(batch, entries)``, for the instances ``which``, written to ``out``.

    Vertices of instance k are ``first[k]:first[k + 1]`` of those in ``start``, ``vertex_index`` and ``vertex_value``.
    """
    entries = point.shape[1]
    full, goal, found = np.empty(entries), np.empty(entries), np.empty(entries)
    rest, dense = np.empty(entries), np.zeros(entries)
    addresses = np.empty(len(call.source), np.int64)
    slots = 16
    index, value = np.zeros((slots, entries), np.int32), np.zeros((slots, entries))
    count, order = np.zeros((slots, 2), np.int64), np.zeros(slots, np.int64)
    factor = np.zeros((slots, slots))
    side, ones, step, hand = np.zeros(slots), np.zeros(slots), np.zeros(slots), np.zeros(slots)
    for k in which:
        out[k] = 0.0
        length = 0.0
        for i in range(size):
            length = max(length, abs(direction[k, i]))
        if length == 0.0:
            continue
        fill_scores(rows, k, scores, forbidden, full)
        active, shift = 0, 1.0
        for v in range(first[k], first[k + 1]):
            if active == slots:
                index, value, count, order = _grown(index), _grown(value), _grown(count), _grown(order)
                side, ones, step, hand = _grown(side), _grown(ones), _grown(step), _grown(hand)
                factor = _grown_square(factor)
                slots *= 2
            stored = start[v + 1] - start[v]
            count[active, 0] = stored
            count[active, 1] = 0
            for e in range(stored):
                index[active, e] = vertex_index[start[v] + e]
                value[active, e] = vertex_value[start[v] + e]
                dense[index[active, e]] = value[active, e]
                if index[active, e] < size:
                    count[active, 1] += 1
            if active == 0:
                for e in range(count[0, 1]):
                    shift += value[0, e] * value[0, e]
            taken = _append(index, value, count, order, active, active, dense, size, shift, factor, hand)
            for e in range(stored):
                dense[index[active, e]] = 0.0
            active += 1 if taken else 0
        size_of_goal = 1.0
        for i in range(entries):
            goal[i] = full[i] - point[k, i] if i < size else full[i]
            if np.isfinite(goal[i]):
                size_of_goal = max(size_of_goal, abs(goal[i]))
        sign, tried = 1.0, 0
        while True:
            _project_on_span(index, value, count, order, active, size, direction[k], factor, side, ones, step, out[k])
            largest = 0.0
            for i in range(size):
                rest[i] = 0.0 if np.isinf(full[i]) else direction[k, i] - out[k, i]
                largest = max(largest, abs(rest[i]))
            if largest <= 1e-12 * length or tried == 2:
                break
            if active == slots:
                index, value, count, order = _grown(index), _grown(value), _grown(count), _grown(order)
                side, ones, step, hand = _grown(side), _grown(ones), _grown(step), _grown(hand)
                factor = _grown_square(factor)
                slots *= 2
            extends = _further(
                call, theta[k], addresses, goal, point[k], rest, sign / largest, size, size_of_goal, full, found
            )
            if extends:
                _store(found, size, index, value, count, active)
                extends = _append(index, value, count, order, active, active, found, size, shift, factor, hand)
            if extends:
                active += 1
                tried = 0
            else:
                sign = -sign
                tried += 1


@jit
def _project_on_span(index, value, count, order, active, size, direction, factor, side, ones, step, out):  # type: ignore[no-untyped-def]
    """The projection of a direction onto the differences of the active vertices, and what moves besides."""
    for a in range(active):
        side[a] = _dot(index, value, count[:, 1], order[a], direction)
    _balanced(factor, active, side, ones, step)
    _mix(index, value, count, order, active, step, out)


@jit
def _further(  # type: ignore[no-untyped-def]
    call, theta, addresses, goal, point, rest, scale, size, size_of_goal, asked, found
):
    """Whether the face has a vertex further along ``scale * rest``; then it is ``found``. Overwrites ``asked``."""
    forbidden_or_not = asked
    for weight in NEAR_FACE:
        for i in range(len(goal)):
            if np.isinf(forbidden_or_not[i]):
                continue
            asked[i] = weight * (goal[i] / size_of_goal) + (scale * rest[i] if i < size else 0.0)
        if ask(call, asked, theta, addresses, found) != FOUND:
            return False
        missed, gained, total = 0.0, 0.0, 1.0
        for i in range(len(goal)):
            moved = found[i] - point[i]
            if moved == 0.0 or np.isinf(forbidden_or_not[i]):
                continue
            missed -= goal[i] * moved
            total += abs(goal[i]) * (abs(found[i]) + abs(point[i]))
            if i < size:
                gained += scale * rest[i] * moved
        if missed <= ON_FACE * total:
            return gained > GAIN
    return False
