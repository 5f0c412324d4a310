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

from typing import NamedTuple

import numpy as np

from optlayers.solvers.kernels.calling import (
    FOUND,
    MEMBERSHIP,
    NO_AMOUNT,
    OF_MEMBERSHIP,
    ask,
    fill_scores,
    missed,
    new_workspace,
)
from optlayers.solvers.kernels.lanes import jit, part, stay_apart
from optlayers.solvers.kernels.structures import judged, stands, violation

__all__ = ["DONE", "INEXACT", "LIMIT", "NOT_MAXIMAL", "decompose", "pull_back"]

DONE, LIMIT, NOT_MAXIMAL, INEXACT = 0, 9, 10, 11
"""Ends of an instance, besides the codes of :mod:`optlayers.solvers.kernels.calling`."""
DEPENDENT = 1e-11
"""A squared pivot below this part of its diagonal entry belongs to a vertex in the affine hull of the others."""
ROUNDING = 4e-15
"""A gap below this, relative to the sums that it is a difference of, is rounding."""
NOTHING_LEFT = 1e-30
"""So is one below this, relative to the squares of vertices: the root of a gap bounds the distance from the answer."""
CLOSED = 1e-9
"""Where vertices are too nearly dependent to go on, a gap below this is as good as closed."""
WORSE = 1e-9
"""A vertex that is worse by more than this, relative to these sums, is no maximum."""
ON_FACE = 1e-13
"""A vertex that misses the best value by less than this, relative to what it is the difference of, is on the face."""
DIFFERENCE = 1e-3
"""An objective is taken to be at least this part of the point, of which its own entries carry the rounding."""
NEAR_FACE = (1e8, 1e10, 1e12)
"""How much more the objective of the face weighs than the direction, first, and when a vertex beside the face came."""
GAIN = 1e-14
"""Progress along the direction that is more than rounding, relative to these weights and to what it is a sum of."""
FIRST_PLACES = 16


class Active(NamedTuple):
    """Room for vertices, of which the first ``active`` in ``order`` are in use."""

    entry: np.ndarray
    """``(places, entries)`` where a vertex is not 0, ascending."""
    value: np.ndarray
    stored: np.ndarray
    """``(places, 2)`` how many entries, and how many of them belong to the structure."""
    order: np.ndarray
    """A permutation of all places: vertices in the order of the factor, then places that are free."""
    factor: np.ndarray
    weight: np.ndarray
    side: np.ndarray
    ones: np.ndarray
    step: np.ndarray
    hand: np.ndarray


@part
def _room(places, entries):  # type: ignore[no-untyped-def]
    stay_apart()
    return Active(
        np.zeros((places, entries), np.int32),
        np.zeros((places, entries)),
        np.zeros((places, 2), np.int64),
        np.arange(places),
        np.zeros((places, places)),
        np.zeros(places),
        np.zeros(places),
        np.zeros(places),
        np.zeros(places),
        np.zeros(places),
    )


@part
def _enlarged(a):  # type: ignore[no-untyped-def]
    """Twice the memory, with the same vertices."""
    stay_apart()
    places = len(a.order)
    larger = _room(2 * places, a.entry.shape[1])
    for i in range(places):
        larger.order[i], larger.weight[i] = a.order[i], a.weight[i]
        for j in range(2):
            larger.stored[i, j] = a.stored[i, j]
        for e in range(a.stored[i, 0]):
            larger.entry[i, e], larger.value[i, e] = a.entry[i, e], a.value[i, e]
        for j in range(i + 1):
            larger.factor[i, j] = a.factor[i, j]
    return larger


@part
def _store(a, full, size, slot):  # type: ignore[no-untyped-def]
    """Put a flat structure down as its nonzero entries."""
    stay_apart()
    stored, structure = 0, 0
    for i in range(len(full)):
        if full[i] != 0.0:
            a.entry[slot, stored] = i
            a.value[slot, stored] = full[i]
            stored += 1
            structure += 1 if i < size else 0
    a.stored[slot, 0] = stored
    a.stored[slot, 1] = structure


@part
def _same(a, one, other):  # type: ignore[no-untyped-def]
    same = a.stored[one, 0] == a.stored[other, 0]
    e = 0
    while same and e < a.stored[one, 0]:
        same = a.entry[one, e] == a.entry[other, e] and a.value[one, e] == a.value[other, e]
        e += 1
    return same


@part
def _dot(a, slot, stored, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for e in range(stored):
        total += a.value[slot, e] * vector[a.entry[slot, e]]
    return total


@part
def _mix(a, active, weight, out):  # type: ignore[no-untyped-def]
    """The point with these weights."""
    stay_apart()
    for i in range(len(out)):
        out[i] = 0.0
    for v in range(active):
        slot = a.order[v]
        for e in range(a.stored[slot, 0]):
            out[a.entry[slot, e]] += weight[v] * a.value[slot, e]


@part
def _square(a, slot):  # type: ignore[no-untyped-def]
    total = 0.0
    for e in range(a.stored[slot, 1]):
        total += a.value[slot, e] * a.value[slot, e]
    return total


@part
def _start_factor(a, second):  # type: ignore[no-untyped-def]
    """Factor the first vertex alone; ω, which is of the size of products, so that no scale of vertices is special."""
    shift = max(_square(a, a.order[0]), _square(a, second))
    if shift == 0.0:
        shift = 1.0  # both are 0 but for auxiliary variables
    a.factor[0, 0] = np.sqrt(shift + _square(a, a.order[0]))
    return shift


@part
def _append(a, active, full, shift):  # type: ignore[no-untyped-def]
    """Append the next vertex, which is ``full``, to the factor; False, and no change, if it is dependent.

    ``hand`` is then L⁻¹ of its column of Q, which the exchange needs.
    """
    stay_apart()
    slot = a.order[active]
    square = shift + _square(a, slot)
    rest = square
    for i in range(active):
        other = a.order[i]
        total = shift + _dot(a, other, a.stored[other, 1], full)
        for j in range(i):
            total -= a.factor[i, j] * a.hand[j]
        a.hand[i] = total / a.factor[i, i]
        rest -= a.hand[i] * a.hand[i]
    if rest <= DEPENDENT * square:
        return False
    for j in range(active):
        a.factor[active, j] = a.hand[j]
    a.factor[active, active] = np.sqrt(rest)
    return True


@part
def _delete(a, active, gone):  # type: ignore[no-untyped-def]
    """Take vertex number ``gone`` out, and make the factor triangular again by rotations (Golub and Van Loan, 6.5)."""
    stay_apart()
    released, last = a.order[gone], active - 1
    for i in range(gone, last):
        a.order[i], a.weight[i] = a.order[i + 1], a.weight[i + 1]
        for j in range(i + 2):
            a.factor[i, j] = a.factor[i + 1, j]
    a.order[last] = released
    for i in range(gone, last):
        x, y = a.factor[i, i], a.factor[i, i + 1]
        length = np.sqrt(x * x + y * y)
        c, s = x / length, y / length
        a.factor[i, i], a.factor[i, i + 1] = length, 0.0
        for j in range(i + 1, last):
            x, y = a.factor[j, i], a.factor[j, i + 1]
            a.factor[j, i] = c * x + s * y
            a.factor[j, i + 1] = c * y - s * x


@part
def _forward(factor, active, vector):  # type: ignore[no-untyped-def]
    for i in range(active):
        total = vector[i]
        for j in range(i):
            total -= factor[i, j] * vector[j]
        vector[i] = total / factor[i, i]


@part
def _backward(factor, active, vector):  # type: ignore[no-untyped-def]
    stay_apart()
    for i in range(active - 1, -1, -1):
        vector[i] /= factor[i, i]
        for j in range(i):
            vector[j] -= factor[i, j] * vector[i]


@part
def _balanced(a, active):  # type: ignore[no-untyped-def]
    """Into ``step`` the solution of ``Q δ = side + κ 1`` with ``1ᵀδ = 0``."""
    stay_apart()
    for i in range(active):
        a.step[i], a.ones[i] = a.side[i], 1.0
    _forward(a.factor, active, a.step)
    _forward(a.factor, active, a.ones)
    product, square, total = 0.0, 0.0, 0.0
    for i in range(active):
        product += a.ones[i] * a.step[i]
        square += a.ones[i] * a.ones[i]
    for i in range(active):
        a.step[i] -= product / square * a.ones[i]
    _backward(a.factor, active, a.step)
    for i in range(active):
        total += a.step[i]
    for i in range(active):
        a.step[i] -= total / active


@part
def _exchange(a, active):  # type: ignore[no-untyped-def]
    """Shift weight to a vertex in the affine hull of the others until one of them has none; which one, and how much."""
    _backward(a.factor, active, a.hand)
    gone, moved = -1, np.inf
    for i in range(active):
        if a.hand[i] > 0.0 and a.weight[i] < moved * a.hand[i]:
            gone, moved = i, a.weight[i] / a.hand[i]
    if gone >= 0:
        for i in range(active):
            a.weight[i] = max(0.0, a.weight[i] - moved * a.hand[i])
    return gone, moved


@part
def _gradient(full, x, size, goal):  # type: ignore[no-untyped-def]
    """What the next vertex is to be best for."""
    for i in range(size):
        goal[i] = full[i] - x[i]
    for i in range(size, len(full)):
        goal[i] = full[i]


@part
def _minor_cycles(a, active, full, size, x, goal):  # type: ignore[no-untyped-def]
    """Move to the best point of the affine hull, or to where the simplex ends on the way, and then without a vertex."""
    stay_apart()
    while True:
        _mix(a, active, a.weight, x)
        _gradient(full, x, size, goal)
        for i in range(active):
            slot = a.order[i]
            a.side[i] = _dot(a, slot, a.stored[slot, 0], goal)
        _balanced(a, active)
        gone, share = -1, 1.0
        for i in range(active):
            if a.weight[i] + a.step[i] <= 0.0 and -a.step[i] * share >= a.weight[i]:
                gone, share = i, a.weight[i] / -a.step[i] if a.step[i] < 0.0 else 0.0
        for i in range(active):
            a.weight[i] += share * a.step[i]
        if gone < 0:
            return active
        _delete(a, active, gone)
        active -= 1
        total = 0.0
        for i in range(active):
            a.weight[i] = max(a.weight[i], 0.0)
            total += a.weight[i]
        for i in range(active):
            a.weight[i] /= total


@part
def _judge(a, slot, goal, x, size):  # type: ignore[no-untyped-def]
    """By how much the new vertex is better than the point, and the size of the sums that this is the difference of.

    The gradient is itself a difference, of scores and the point, and no more exact than these.
    """
    stay_apart()
    best, here, scale = 0.0, 0.0, 0.0
    for e in range(a.stored[slot, 0]):
        i, value = a.entry[slot, e], a.value[slot, e]
        best += value * goal[i]
        scale += abs(value) * (abs(goal[i]) + (abs(x[i]) if i < size else 0.0))
    for i in range(len(x)):
        if x[i] != 0.0:
            here += goal[i] * x[i]
            scale += abs(x[i]) * (abs(goal[i]) + (abs(x[i]) if i < size else 0.0))
    return best - here, scale


@part
def _largest(goal):  # type: ignore[no-untyped-def]
    largest = 0.0
    for number in goal:
        largest = max(largest, abs(number)) if number != -np.inf else largest
    return largest


@part
def _take_in(a, active, out, size, shift):  # type: ignore[no-untyped-def]
    """Make the new vertex active, in exchange for another where it is dependent; how many there are, 0 if it cannot."""
    stay_apart()
    if _append(a, active, out, shift):
        a.weight[active] = 0.0
        return active + 1
    if size == len(out):
        return 0  # all active vertices are equally good, and so is what they make up
    gone, moved = _exchange(a, active)
    if gone < 0:
        return 0
    _delete(a, active, gone)
    a.order[active - 1], a.order[active] = a.order[active], a.order[active - 1]
    if not _append(a, active - 1, out, shift):
        return 0
    a.weight[active - 1] = moved
    return active


@part
def _is_structure(call, rows, k, theta, asking, sums, out):  # type: ignore[no-untyped-def]
    """FOUND for a structure, as far as is known, else what is wrong with it."""
    stay_apart()
    far, relative, fraction = violation(rows, k, out, sums)
    said, amount = FOUND, 0.0
    if len(call.functions) > MEMBERSHIP and stands(rows.integral, relative, fraction):
        said, amount = missed(call, theta[k], out, asking)
    code, _, _ = judged(rows.integral, far, relative, fraction, said, amount)
    return code


@part
def _alone(a, out, size):  # type: ignore[no-untyped-def]
    """What an oracle brought as the only vertex: what is wrong with it, the certificate says."""
    stay_apart()
    _store(a, out, size, a.order[0])
    a.weight[0] = 1.0
    return 1


@part
def _project(  # type: ignore[no-untyped-def]
    a, call, rows, k, theta, asking, sums, full, goal, out, x, size, limit, status, gap
):
    """From a first vertex in ``out`` to the projection; the memory, which may have grown, and how many vertices.

    The first thing that is no structure is the answer: an oracle that brings one cannot be trusted with the others.
    """
    stay_apart()
    code = _is_structure(call, rows, k, theta, asking, sums, out)
    if code != FOUND:
        status[k] = DONE if code < OF_MEMBERSHIP or code == OF_MEMBERSHIP + NO_AMOUNT else code
        return a, _alone(a, out, size)
    for i in range(len(a.order)):
        a.order[i] = i
    _store(a, out, size, 0)
    a.weight[0] = 1.0
    active, stalls, shift = 1, 0, 0.0
    status[k] = LIMIT
    for _ in range(limit):
        _mix(a, active, a.weight, x)
        _gradient(full, x, size, goal)
        code = ask(call, goal, theta[k], asking, out)
        if code != FOUND:
            status[k] = code
            return a, active
        code = _is_structure(call, rows, k, theta, asking, sums, out)
        if code != FOUND:
            status[k] = DONE if code < OF_MEMBERSHIP or code == OF_MEMBERSHIP + NO_AMOUNT else code
            return a, _alone(a, out, size)
        if active == len(a.order):
            a = _enlarged(a)
            for i in range(active, len(a.order)):
                a.order[i] = i
        slot = a.order[active]
        _store(a, out, size, slot)
        better, scale = _judge(a, slot, goal, x, size)
        gap[k] = better
        if better < -WORSE * max(scale, _largest(goal)):  # what a solver compares is no more exact than this
            status[k] = NOT_MAXIMAL
            return a, active
        if not np.isfinite(better) or not np.isfinite(scale):
            status[k] = INEXACT
            return a, active
        known = False
        for i in range(active):
            known = known or _same(a, slot, a.order[i])
        square = max(shift, _square(a, slot))
        nothing = NOTHING_LEFT * square  # next to the origin all sums are small,
        blurred = ROUNDING * square  # where the rounding of the point itself, as a sum of vertices, is larger than they
        if better <= max(ROUNDING * scale, nothing) or (known and stalls > 0):
            status[k] = DONE
            return a, active
        if not known:
            if shift == 0.0:
                shift = _start_factor(a, slot)
            taken = _take_in(a, active, out, size, shift)
            if taken == 0:
                status[k] = DONE if better <= max(CLOSED * scale, blurred) else INEXACT
                return a, active
            active = taken
        active = _minor_cycles(a, active, full, size, x, goal)
        # A vertex that helps only by rounding is dropped again at once, and would come back for ever.
        stays = False
        for i in range(active):
            stays = stays or a.order[i] == slot
        stalls = 0 if stays else stalls + 1
        if stalls > 2:
            status[k] = DONE if better <= max(CLOSED * scale, blurred) else INEXACT
            return a, active
    return a, active


class Vertices(NamedTuple):
    """Vertices with a weight, of instance after instance."""

    weight: np.ndarray
    start: np.ndarray
    entry: np.ndarray
    value: np.ndarray


@part
def _keep(saved, vertices, a, active):  # type: ignore[no-untyped-def]
    """Append the vertices of an instance; what they are stored in, which may have grown, and how many there are now."""
    stay_apart()
    stored = saved.start[vertices]
    for i in range(active):
        stored += a.stored[a.order[i], 0]
    if vertices + active >= len(saved.weight) or stored > len(saved.entry):
        more, most = 2 * (vertices + active) + 64, 2 * stored + 1024
        larger = Vertices(np.zeros(more), np.zeros(more + 1, np.int64), np.zeros(most, np.int32), np.zeros(most))
        for v in range(vertices):
            larger.weight[v], larger.start[v + 1] = saved.weight[v], saved.start[v + 1]
        for e in range(saved.start[vertices]):
            larger.entry[e], larger.value[e] = saved.entry[e], saved.value[e]
        saved = larger
    for i in range(active):
        if a.weight[i] > 0.0:
            slot, end = a.order[i], saved.start[vertices]
            for e in range(a.stored[slot, 0]):
                saved.entry[end], saved.value[end] = a.entry[slot, e], a.value[slot, e]
                end += 1
            saved.weight[vertices] = a.weight[i]
            vertices += 1
            saved.start[vertices] = end
    return saved, vertices


@jit
def _is_near(full, start, size):  # type: ignore[no-untyped-def]
    """Whether all scores are less than 1/2 from a vertex: a good start, which spares a call of the oracle.

    Where vertices v are 0/1 with as many parts, and auxiliary variables have no scores, it is the first that the oracle
    would bring: <start, v - start> is minus half of ||v - start||_1, and the rest of the scores makes up for less than
    that. Starts that are farther away are mostly left in the end, at the price of a step.
    """
    farthest = 0.0
    for i in range(size):
        if not np.isinf(full[i]):
            farthest = max(farthest, abs(full[i] - start[i]))
    return farthest < 0.5


@jit
def decompose(  # type: ignore[no-untyped-def]
    call, rows, scores, forbidden, theta, size, starts, which, limit, point, status, gap
):
    """Project the instances ``which``; entries from ``size`` on are scored but not regularized.

    ``starts`` are vertices to begin with where they are near, ``(batch, entries)`` or empty. Returns the decompositions
    of the instances one after the other: how many vertices each has, and in :class:`Vertices` the vertices, of which
    there are so many.
    """
    entries = point.shape[1]
    full, goal = np.empty(entries), np.empty(entries)
    out, x = np.empty(entries), np.empty(entries)
    asking, sums = new_workspace(call, entries, theta.shape[1]), np.empty((3, rows.rhs.shape[1]))
    a = _room(FIRST_PLACES, entries)
    saved, vertices = Vertices(np.zeros(0), np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0)), 0
    counts = np.zeros(len(which), np.int64)
    for position in range(len(which)):
        k = which[position]
        fill_scores(rows, k, scores, forbidden, full)
        code = FOUND
        if len(starts) and _is_near(full, starts[k], size):
            for i in range(entries):
                out[i] = starts[k, i]
        else:
            code = ask(call, full, theta[k], asking, out)
        gap[k], status[k] = np.nan, code
        active = 0
        if code == FOUND:
            a, active = _project(a, call, rows, k, theta, asking, sums, full, goal, out, x, size, limit, status, gap)
        if active == 0:
            for i in range(entries):
                point[k, i] = np.nan
            continue
        _mix(a, active, a.weight, point[k])
        before = vertices
        saved, vertices = _keep(saved, vertices, a, active)
        counts[position] = vertices - before
    return counts, saved, vertices


@jit
def pull_back(  # type: ignore[no-untyped-def]
    call, rows, scores, forbidden, theta, size, point, first, saved, direction, which, out, right
):
    """The derivative applied to ``direction`` ``(batch, entries)``, for the instances ``which``, written to ``out``.

    Vertices of instance k are ``first[k]:first[k + 1]`` of ``saved``. ``right`` says where the oracle answered.
    """
    entries = point.shape[1]
    full, goal = np.empty(entries), np.empty(entries)
    found, rest = np.empty(entries), np.empty(entries)
    asking = new_workspace(call, entries, theta.shape[1])
    a = _room(FIRST_PLACES, entries)
    for k in which:
        length = 0.0
        for i in range(entries):
            out[k, i] = 0.0
            length = max(length, abs(direction[k, i]))
        right[k] = True
        if length == 0.0 or first[k] == first[k + 1]:
            continue
        fill_scores(rows, k, scores, forbidden, full)
        a, active, shift = _taken_up(a, saved, first[k], first[k + 1], size, found)
        largest_goal = 0.0
        _gradient(full, point[k], size, goal)
        for i in range(entries):
            if not np.isinf(goal[i]):
                # Where scores and point are nearly equal their difference is rounding, not to be blown up.
                largest_goal = max(largest_goal, abs(goal[i]), DIFFERENCE * abs(point[k, i]) if i < size else 0.0)
        sign, tried = 1.0, 0
        while True:
            for i in range(active):
                slot = a.order[i]
                a.side[i] = _dot(a, slot, a.stored[slot, 1], direction[k])
            _balanced(a, active)
            _mix(a, active, a.step, out[k])
            largest = 0.0
            for i in range(size):
                rest[i] = 0.0 if np.isinf(full[i]) else direction[k, i] - out[k, i]
                largest = max(largest, abs(rest[i]))
            if largest <= 1e-12 * length or tried == 2:
                break
            if active == len(a.order):
                a = _enlarged(a)
            answered, extends = _further(
                call, theta[k], asking, goal, point[k], rest, sign / largest, size, largest_goal, full, found
            )
            if not answered:
                right[k] = False
                break
            if extends:
                a.order[active] = active
                _store(a, found, size, active)
                if active == 1:
                    shift = _start_factor(a, active)
                extends = _append(a, active, found, shift)
            if extends:
                active, tried = active + 1, 0
            else:
                sign, tried = -sign, tried + 1


@part
def _taken_up(a, saved, first, last, size, dense):  # type: ignore[no-untyped-def]
    """Factor the vertices that a projection ended with."""
    stay_apart()
    active, shift = 0, 0.0
    for i in range(len(dense)):
        dense[i] = 0.0
    for v in range(first, last):
        if active == len(a.order):
            a = _enlarged(a)
        a.order[active] = active
        start, stored, structure = saved.start[v], saved.start[v + 1] - saved.start[v], 0
        for e in range(stored):
            i = saved.entry[start + e]
            a.entry[active, e], a.value[active, e] = i, saved.value[start + e]
            dense[i] = saved.value[start + e]
            structure += 1 if i < size else 0
        a.stored[active, 0], a.stored[active, 1] = stored, structure
        if active == 1:
            shift = _start_factor(a, 1)
        taken = active == 0 or _append(a, active, dense, shift)
        for e in range(stored):
            dense[saved.entry[start + e]] = 0.0
        active += 1 if taken else 0
    if active == 1:
        shift = _start_factor(a, 0)
    return a, active, shift


@part
def _further(  # type: ignore[no-untyped-def]
    call, theta, asking, goal, point, rest, scale, regularized, largest_goal, asked, found
):
    """Whether the oracle answers, and whether the face has a vertex further along ``scale * rest``, which is ``found``.

    ``asked`` is overwritten, but for forbidden parts, which it holds -inf at.
    """
    stay_apart()
    for weight in NEAR_FACE:
        share = weight / largest_goal if largest_goal > 0.0 else 0.0
        for i in range(len(goal)):
            if not np.isinf(asked[i]):
                asked[i] = share * goal[i] + (scale * rest[i] if i < regularized else 0.0)
        if ask(call, asked, theta, asking, found) != FOUND:
            return False, False
        missed, size_of_missed = 0.0, 0.0
        gained, size_of_gained = 0.0, 0.0
        for i in range(len(goal)):
            moved = found[i] - point[i]
            if moved != 0.0 and not np.isinf(asked[i]):
                missed -= goal[i] * moved
                size = abs(found[i]) + abs(point[i])
                size_of_missed += abs(goal[i]) * size
                if i < regularized:
                    size_of_missed += abs(point[i]) * size
                    gained += scale * rest[i] * moved
                    size_of_gained += abs(scale * rest[i]) * size
        if missed <= ON_FACE * size_of_missed:
            return True, gained > GAIN * weight * size_of_gained
    return True, False
