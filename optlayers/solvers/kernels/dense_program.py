r"""Quadratic programs with a full matrix, few rows and bounds: :math:`\max_x s^\top x - \tfrac12 x^\top Q x` with
:math:`A x = b` or :math:`A x \le b` and :math:`l \le x \le u`.

The primal-dual active set method (Hintermüller, Ito and Kunisch, 2002, The primal-dual active set strategy as a
semismooth Newton method): solve with the free entries and the active rows, let go what has a price of the wrong sign,
hold what leaves its bounds, until nothing changes. It need not end; then another method is asked. Only the symmetric
part of Q counts. Rows are dense, and the first ``equalities`` of them are equations.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.lanes import jit, part

__all__ = ["add_outer", "certify", "optimize", "pull_back"]

SIGN = 64.0 * 2.220446049250313e-16
"""A price is 0 where it is no more than so much of the terms that it is what is left of."""
PIVOT = 1e-14
"""A pivot that is smaller, next to its diagonal entry, is rounding."""
DEPENDENT = 1e-10
"""A row of which less is left by others, next to itself, depends on them."""


@part
def _factored(matrix, index, count, upper):  # type: ignore[no-untyped-def]
    """Cholesky's R, upper triangular with Rᵀ R = Q for the entries ``index``; whether Q is positive definite there."""
    for i in range(count):
        first = index[i]
        for j in range(i, count):
            upper[i, j] = 0.5 * (matrix[first, index[j]] + matrix[index[j], first])
    for k in range(count):
        own = 0.5 * (matrix[index[k], index[k]] + matrix[index[k], index[k]])
        if not upper[k, k] > PIVOT * own:
            return False
        pivot = 1.0 / np.sqrt(upper[k, k])
        for j in range(k, count):
            upper[k, j] *= pivot
        for i in range(k + 1, count):
            factor = upper[k, i]
            if factor != 0.0:
                for j in range(i, count):
                    upper[i, j] -= factor * upper[k, j]
    return True


@part
def _forward(upper, count, side):  # type: ignore[no-untyped-def]
    """Solve Rᵀ t = side in place."""
    for k in range(count):
        side[k] /= upper[k, k]
        value = side[k]
        for j in range(k + 1, count):
            side[j] -= value * upper[k, j]


@part
def _backward(upper, count, side):  # type: ignore[no-untyped-def]
    """Solve R x = side in place."""
    for k in range(count - 1, -1, -1):
        value = side[k]
        for j in range(k + 1, count):
            value -= upper[k, j] * side[j]
        side[k] = value / upper[k, k]


@part
def _solve(matrix, rows, equalities, index, count, held, few, side, row_side, upper, through, small):  # type: ignore[no-untyped-def]
    """Solve with the ``count`` free entries and the ``few`` rows that hold: x in ``side``, prices in ``row_side``;
    whether the system has a solution."""
    if not _factored(matrix, index, count, upper):
        return False
    _forward(upper, count, side)
    for a in range(few):
        for i in range(count):
            through[a, i] = rows[held[a], index[i]]
        _forward(upper, count, through[a])
    for a in range(few):
        value = 0.0
        for i in range(count):
            value += through[a, i] * side[i]
        row_side[a] = value - row_side[a]
        for b in range(a, few):
            value = 0.0
            for i in range(count):
                value += through[a, i] * through[b, i]
            small[a, b] = value
    for k in range(few):
        own = 0.0
        for i in range(count):
            own += through[k, i] * through[k, i]
        if not small[k, k] > DEPENDENT * own:
            if held[k] < equalities:
                return False
            # The free entries cannot meet this row beside the others: it has no price, and is let go.
            row_side[k] = 0.0
            for i in range(k):
                small[i, k] = 0.0
            for j in range(k + 1, few):
                small[k, j] = 0.0
            small[k, k] = 1.0
            continue
        pivot = 1.0 / np.sqrt(small[k, k])
        for j in range(k, few):
            small[k, j] *= pivot
        for i in range(k + 1, few):
            for j in range(i, few):
                small[i, j] -= small[k, i] * small[k, j]
    _forward(small, few, row_side)
    _backward(small, few, row_side)
    for a in range(few):
        for i in range(count):
            side[i] -= row_side[a] * through[a, i]
    _backward(upper, count, side)
    return True


@jit(
    "(float64[:, :, ::1], float64[:, ::1], int64, float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], "
    "int64[::1], int64, float64[:, ::1], float64[:, ::1], int8[:, ::1], boolean[:, ::1], int64[::1])"
)
def optimize(  # type: ignore[no-untyped-def]
    matrices, rows, equalities, scores, rhs, lower, upper, which, limit, points, duals, sides, active, steps
):
    """Solve the instances ``which``. ``sides`` is -1 for entries at their lower bounds, 1 at the upper ones, 0 for free
    ones; ``steps`` is how many it took, negative where it did not end."""
    size, count_rows = scores.shape[1], rows.shape[0]
    room = np.empty((size, size))
    through, small = np.empty((count_rows, size)), np.empty((count_rows, count_rows))
    index, held = np.empty(size, dtype=np.int64), np.empty(count_rows, dtype=np.int64)
    side, row_side, product = np.empty(size), np.empty(count_rows), np.empty(size)
    for k in which:
        matrix = matrices[k if len(matrices) > 1 else 0]
        right = rhs[k if len(rhs) > 1 else 0]
        low, high = lower[k if len(lower) > 1 else 0], upper[k if len(upper) > 1 else 0]
        score, x, y = scores[k], points[k], duals[k]
        state, holds = sides[k], active[k]
        for j in range(size):
            state[j] = 0 if low[j] < high[j] else -1
        for i in range(count_rows):
            holds[i] = i < equalities
        steps[k] = -1
        for step in range(limit):
            count, few = 0, 0
            for j in range(size):
                if state[j] == 0:
                    index[count] = j
                    count += 1
                    x[j] = 0.0
                else:
                    x[j] = low[j] if state[j] < 0 else high[j]
            for i in range(count_rows):
                if holds[i]:
                    held[few] = i
                    few += 1
            for i in range(count):
                side[i] = score[index[i]]
            for j in range(size):
                if state[j] != 0 and x[j] != 0.0:
                    for i in range(count):
                        side[i] -= 0.5 * (matrix[index[i], j] + matrix[j, index[i]]) * x[j]
            for a in range(few):
                value = right[held[a]]
                for j in range(size):
                    value -= rows[held[a], j] * x[j]
                row_side[a] = value
            if not _solve(matrix, rows, equalities, index, count, held, few, side, row_side, room, through, small):
                break
            for i in range(count):
                x[index[i]] = side[i]
            for i in range(count_rows):
                y[i] = 0.0
            for a in range(few):
                y[held[a]] = row_side[a]
            changed = False
            for j in range(size):
                if state[j] == 0:
                    reach = SIGN * max(1.0, abs(x[j]))
                    if x[j] < low[j] - reach:
                        product[j] = -1.0
                    elif x[j] > high[j] + reach:
                        product[j] = 1.0
                    else:
                        product[j] = 0.0
                elif not low[j] < high[j]:
                    product[j] = -1.0
                else:
                    value, terms = score[j], abs(score[j])
                    for i in range(size):
                        if x[i] != 0.0:
                            term = 0.5 * (matrix[i, j] + matrix[j, i]) * x[i]
                            value -= term
                            terms += abs(term)
                    for a in range(few):
                        term = rows[held[a], j] * y[held[a]]
                        value -= term
                        terms += abs(term)
                    stays = value <= SIGN * terms if state[j] < 0 else value >= -SIGN * terms
                    product[j] = state[j] if stays else 0.0
            for i in range(equalities, count_rows):
                if holds[i]:
                    keeps = y[i] > 0.0
                else:
                    value, terms = right[i], abs(right[i])
                    for j in range(size):
                        value -= rows[i, j] * x[j]
                        terms += abs(rows[i, j] * x[j])
                    keeps = value < -SIGN * terms
                if keeps != holds[i]:
                    holds[i] = keeps
                    changed = True
            for j in range(size):
                if state[j] != product[j]:
                    state[j] = np.int8(product[j])
                    changed = True
            if not changed:
                for j in range(size):
                    x[j] = min(max(x[j], low[j]), high[j])
                steps[k] = step + 1
                break


@jit(
    "(float64[:, :, ::1], float64[:, ::1], int64, float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], "
    "int64[::1], float64, float64[:, ::1], float64[:, ::1], float64[::1], float64[::1], float64[::1])"
)
def certify(  # type: ignore[no-untyped-def]
    matrices, rows, equalities, scores, rhs, lower, upper, which, beyond, points, duals, residual, gap, error
):
    """How wrong points may be, by dual points: see :func:`optlayers.solvers.dense_program.certify_dense`."""
    size, count_rows = scores.shape[1], rows.shape[0]
    for k in which:
        matrix = matrices[k if len(matrices) > 1 else 0]
        right = rhs[k if len(rhs) > 1 else 0]
        low, high = lower[k if len(lower) > 1 else 0], upper[k if len(upper) > 1 else 0]
        score, x, y = scores[k], points[k], duals[k]
        worst, missed, whole = 0.0, 0.0, 0.0
        for i in range(count_rows):
            value, terms = right[i], abs(right[i])
            for j in range(size):
                value -= rows[i, j] * x[j]
                terms += abs(rows[i, j] * x[j])
            if i < equalities or value < 0.0:
                missed = max(missed, abs(value))
                worst = max(worst, abs(value) / max(terms, 1e-300))
            if i >= equalities:
                if y[i] < 0.0:
                    worst = np.inf
                elif value > 0.0:
                    whole += y[i] * value
        most = 0.0
        for j in range(size):
            value, terms = score[j], abs(score[j])
            for i in range(size):
                if x[i] != 0.0:
                    term = 0.5 * (matrix[j, i] + matrix[i, j]) * x[i]
                    value -= term
                    terms += abs(term)
            for i in range(count_rows):
                if y[i] != 0.0:
                    term = rows[i, j] * y[i]
                    value -= term
                    terms += abs(term)
            outside = max(low[j] - x[j], x[j] - high[j])
            missed, worst = max(missed, outside), max(worst, outside)
            most = max(most, terms)
            if abs(value) > SIGN * terms and low[j] < high[j]:
                distance = high[j] - x[j] if value > 0.0 else x[j] - low[j]
                if distance == np.inf:
                    worst = max(worst, abs(value) / terms)
                else:
                    whole += abs(value) * max(distance, 0.0)
        residual[k], gap[k] = missed, whole
        error[k] = max(worst, np.sqrt(2.0 * whole) / beyond)
        if not (np.isfinite(missed) and np.isfinite(whole) and np.isfinite(worst) and np.isfinite(most)):
            error[k] = np.inf


@jit(
    "(float64[:, :, ::1], float64[:, ::1], int64, float64[:, ::1], int8[:, ::1], boolean[:, ::1], int64[::1], "
    "float64[:, ::1], float64[:, ::1], boolean[::1])"
)
def pull_back(matrices, rows, equalities, direction, sides, active, which, moved, prices, right):  # type: ignore[no-untyped-def]
    """The derivative on the active sets: how a point moves with the scores along a direction, and its rows' prices."""
    size, count_rows = direction.shape[1], rows.shape[0]
    room = np.empty((size, size))
    through, small = np.empty((count_rows, size)), np.empty((count_rows, count_rows))
    index, held = np.empty(size, dtype=np.int64), np.empty(count_rows, dtype=np.int64)
    side, row_side = np.empty(size), np.empty(count_rows)
    for k in which:
        matrix = matrices[k if len(matrices) > 1 else 0]
        moved[k], prices[k] = 0.0, 0.0
        count, few = 0, 0
        for j in range(size):
            if sides[k, j] == 0:
                index[count] = j
                side[count] = direction[k, j]
                count += 1
        for i in range(count_rows):
            if active[k, i]:
                held[few] = i
                row_side[few] = 0.0
                few += 1
        right[k] = _solve(matrix, rows, equalities, index, count, held, few, side, row_side, room, through, small)
        if right[k]:
            for i in range(count):
                moved[k, index[i]] = side[i]
            for a in range(few):
                prices[k, held[a]] = row_side[a]


@jit("(float64[:, ::1], int64, float64, float64[:, ::1], float64[:, ::1])")
def add_outer(theta, start, factor, left, right):  # type: ignore[no-untyped-def]
    """Add ``factor`` (left rightᵀ + right leftᵀ) to the entries of θ from ``start`` on, for every instance."""
    size = left.shape[1]
    for k in range(len(theta)):
        place = start
        for i in range(size):
            for j in range(size):
                theta[k, place] += factor * (left[k, i] * right[k, j] + right[k, i] * left[k, j])
                place += 1
