"""Whether points are vertices: by the rank of the constraints that are tight there.

A point is a vertex when no direction keeps all tight constraints, that is, when the columns that are at no bound are
linearly independent on the tight rows. Most of them are told by peeling: a tight row with a single undecided column
decides it. What peeling leaves (an odd cycle, say) is eliminated with complete pivoting. Auxiliary columns may move, as
long as no scored one does: they are eliminated first.

With auxiliary columns a vertex of all columns need not be one of the scored ones: other values of the auxiliary columns
may leave room where these leave none. What counts are the constraints that are tight for all of them. A price shows
that one is, where auxiliary columns cost nothing: prices and room have products of 0 in sum, for all of their values.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.flat import flat, grid, keep
from optlayers.solvers.kernels.lanes import jit, part, stay_apart
from optlayers.solvers.kernels.optimality import TOUCHES

__all__ = ["NO_VERTEX", "OPEN", "UNKNOWN", "VERTEX", "are_vertices", "are_vertices_by_elimination", "is_decided"]

NO_VERTEX, VERTEX, UNKNOWN, OPEN = 0, 1, 2, 3

CLEAR = 1e-6
"""A price above this, next to the largest score, is one."""
NOTHING = 1e-9
"""Entries below this, next to rows whose largest entry is about 1, decide nothing."""


VERTICES = (
    "(int32[::1], int32[::1], float64[:, ::1], int32[::1], int32[::1], int32[::1], int64, int64, float64[:, ::1], "
    "float64[:, ::1], float64[:, ::1], float64[:, ::1], int64[::1], float64[:, ::1], float64[:, ::1], int8[::1])"
)
"""What both kernels take."""


@jit(VERTICES)
def are_vertices(  # type: ignore[no-untyped-def]
    start,
    row,
    matrix,
    row_start,
    row_column,
    row_entry,
    equalities,
    scored,
    scores,
    rhs,
    lower,
    upper,
    which,
    point,
    dual,
    vertex,
):
    """Fill in ``vertex`` for the instances ``which``, whose dual points are certified, as far as peeling tells.

    It is UNKNOWN where the constraints that are tight make a vertex of a point, but not those with a price; and OPEN
    where columns have to be eliminated, which :func:`are_vertices_by_elimination` does.
    """
    start, row, row_start = flat(start), flat(row), flat(row_start)
    row_column, row_entry = flat(row_column), flat(row_entry)
    matrix, scores, rhs = grid(matrix), grid(scores), grid(rhs)
    lower, upper = grid(lower), grid(upper)
    which, point = flat(which), grid(point)
    dual, vertex = grid(dual), flat(vertex)
    rows = rhs.shape[1]
    columns = point.shape[1] - rows + equalities
    of_columns, of_rows = np.empty((2, columns), np.bool_), np.empty((2, rows), np.bool_)
    counts, sums = np.empty((2, rows), np.int64), np.empty((2, rows))
    moves, left = grid(of_columns)[0], grid(of_columns)[1]
    tight, beside = grid(of_rows)[0], grid(of_rows)[1]
    open_ones, waiting = grid(counts)[0], grid(counts)[1]
    activity, size = grid(sums)[0], grid(sums)[1]
    for position in range(len(which)):
        k = which[position]
        entries = matrix[k if len(matrix) > 1 else 0]
        b = rhs[k if len(rhs) > 1 else 0]
        l, u = lower[k if len(lower) > 1 else 0], upper[k if len(upper) > 1 else 0]
        _look(start, row, entries, equalities, b, l, u, point[k], activity, size, moves, tight)
        vertex[k] = _peeled(
            start, row, entries, row_start, row_column, row_entry, scored, moves, tight, left, open_ones, waiting
        )
        if vertex[k] == VERTEX and scored < columns:
            _keep_priced(start, row, entries, equalities, scored, scores[k], l, u, dual[k], moves, tight, beside)
            told = _peeled(
                start, row, entries, row_start, row_column, row_entry, scored, moves, tight, left, open_ones, waiting
            )
            vertex[k] = UNKNOWN if told == NO_VERTEX else told
    keep(of_columns)
    keep(of_rows)
    keep(counts)
    keep(sums)


@jit(VERTICES)
def are_vertices_by_elimination(  # type: ignore[no-untyped-def]
    start,
    row,
    matrix,
    row_start,
    row_column,
    row_entry,
    equalities,
    scored,
    scores,
    rhs,
    lower,
    upper,
    which,
    point,
    dual,
    vertex,
):
    """Fill in ``vertex`` for the instances ``which``, whose dual points are certified; none stays OPEN.

    Few instances need it, and it takes long to compile.
    """
    start, row, row_start = flat(start), flat(row), flat(row_start)
    row_column, row_entry = flat(row_column), flat(row_entry)
    matrix, scores, rhs = grid(matrix), grid(scores), grid(rhs)
    lower, upper = grid(lower), grid(upper)
    which, point = flat(which), grid(point)
    dual, vertex = grid(dual), flat(vertex)
    rows = rhs.shape[1]
    columns = point.shape[1] - rows + equalities
    of_columns, of_rows, sums = np.empty(columns, np.bool_), np.empty((2, rows), np.bool_), np.empty((2, rows))
    moves, tight, beside = flat(of_columns), grid(of_rows)[0], grid(of_rows)[1]
    activity, size = grid(sums)[0], grid(sums)[1]
    for position in range(len(which)):
        k = which[position]
        entries = matrix[k if len(matrix) > 1 else 0]
        b = rhs[k if len(rhs) > 1 else 0]
        l, u = lower[k if len(lower) > 1 else 0], upper[k if len(upper) > 1 else 0]
        _look(start, row, entries, equalities, b, l, u, point[k], activity, size, moves, tight)
        vertex[k] = NO_VERTEX
        if _decided(start, row, entries, row_start, row_column, row_entry, scored, moves, tight):
            vertex[k] = VERTEX
            if scored < columns:
                _keep_priced(start, row, entries, equalities, scored, scores[k], l, u, dual[k], moves, tight, beside)
                if not _decided(start, row, entries, row_start, row_column, row_entry, scored, moves, tight):
                    vertex[k] = UNKNOWN
    keep(of_columns)
    keep(of_rows)
    keep(sums)


@part
def _look(start, row, entries, equalities, b, l, u, point, activity, size, moves, tight):  # type: ignore[no-untyped-def]
    """Which columns are at no bound, and which rows are tight."""
    stay_apart()
    for i in range(len(tight)):
        activity[i], size[i] = 0.0, abs(b[i])
    for j in range(len(moves)):
        x = point[j]
        unit = min(max(abs(l[j]), abs(u[j])), max(1.0, abs(x)))
        moves[j] = x - l[j] > TOUCHES * unit and u[j] - x > TOUCHES * unit
        for t in range(start[j], start[j + 1]):
            activity[row[t]] += entries[t] * x
            size[row[t]] += abs(entries[t] * x)
    for i in range(len(tight)):
        tight[i] = i < equalities or (not np.isinf(b[i]) and b[i] - activity[i] <= TOUCHES * size[i])


@part
def _keep_priced(  # type: ignore[no-untyped-def]
    start, row, entries, equalities, scored, scores, lower, upper, dual, moves, tight, beside
):
    """Let go of constraints on auxiliary columns without a price; ``beside`` are the rows that have such columns."""
    stay_apart()
    clear = 0.0
    for j in range(scored):
        clear = max(clear, CLEAR * abs(scores[j]))
    for i in range(len(beside)):
        beside[i] = False
    for j in range(scored, len(moves)):
        reduced = 0.0
        for t in range(start[j], start[j + 1]):
            beside[row[t]] = beside[row[t]] or entries[t] != 0.0
            reduced -= entries[t] * (max(dual[row[t]], 0.0) if row[t] >= equalities else dual[row[t]])
        moves[j] = moves[j] or (lower[j] < upper[j] and abs(reduced) <= clear)
    for i in range(equalities, len(tight)):
        tight[i] = tight[i] and (not beside[i] or dual[i] > clear)


@jit("(int32[::1], int32[::1], float64[::1], int32[::1], int32[::1], int32[::1], int64, boolean[::1], boolean[::1])")
def is_decided(start, row, entries, row_start, row_column, row_entry, scored, moves, tight):  # type: ignore[no-untyped-def]
    """Whether tight rows leave no direction in which scored ones among the columns that move could move."""
    return _decided(
        flat(start),
        flat(row),
        flat(entries),
        flat(row_start),
        flat(row_column),
        flat(row_entry),
        scored,
        flat(moves),
        flat(tight),
    )


@part
def _decided(start, row, entries, row_start, row_column, row_entry, scored, moves, tight):  # type: ignore[no-untyped-def]
    stay_apart()
    of_columns, counts = np.empty(len(moves), np.bool_), np.empty((2, len(tight)), np.int64)
    left, open_ones, waiting = flat(of_columns), grid(counts)[0], grid(counts)[1]
    told = _peeled(
        start, row, entries, row_start, row_column, row_entry, scored, moves, tight, left, open_ones, waiting
    )
    decided = told == VERTEX or (told == OPEN and _independent(start, row, entries, scored, left, open_ones))
    keep(of_columns)
    keep(counts)
    return decided


@part
def _peeled(  # type: ignore[no-untyped-def]
    start, row, entries, row_start, row_column, row_entry, scored, moves, tight, left, open_ones, waiting
):
    """What peeling tells: VERTEX, NO_VERTEX, or OPEN, where the columns that are ``left`` have to be eliminated.

    ``open_ones`` counts the columns of every row that are left, -1 for rows that are not tight.
    """
    stay_apart()
    undecided, ready = 0, 0
    for i in range(len(tight)):
        open_ones[i] = 0 if tight[i] else -1
    for j in range(len(moves)):
        left[j] = moves[j]
        undecided += 1 if moves[j] and j < scored else 0
        for t in range(start[j], start[j + 1]):
            if moves[j] and open_ones[row[t]] >= 0 and abs(entries[t]) > NOTHING:
                open_ones[row[t]] += 1
    for i in range(len(open_ones)):
        if open_ones[i] == 1:
            waiting[ready] = i
            ready += 1
    while ready > 0 and undecided > 0:
        ready -= 1
        i = waiting[ready]
        if open_ones[i] != 1:
            continue
        for e in range(row_start[i], row_start[i + 1]):
            j = row_column[e]
            if j < len(left) and left[j] and abs(entries[row_entry[e]]) > NOTHING:
                left[j] = False
                undecided -= 1 if j < scored else 0
                for t in range(start[j], start[j + 1]):
                    if open_ones[row[t]] > 0 and abs(entries[t]) > NOTHING:
                        open_ones[row[t]] -= 1
                        if open_ones[row[t]] == 1:
                            waiting[ready] = row[t]
                            ready += 1
                break
    height = 0
    for i in range(len(open_ones)):
        height += 1 if open_ones[i] > 0 else 0
    if undecided == 0:
        return VERTEX
    return NO_VERTEX if height < undecided else OPEN


@part
def _independent(start, row, entries, scored, moves, open_ones):  # type: ignore[no-untyped-def]
    """Whether the rest of the tight rows leaves no direction in which an undecided scored column moves."""
    stay_apart()
    place, height = np.full(len(open_ones), -1), 0
    for i in range(len(open_ones)):
        if open_ones[i] > 0:
            place[i] = height
            height += 1
    width, beside, nothing = 0, 0, 0
    for j in range(len(moves)):
        width += 1 if moves[j] else 0
        beside += 1 if moves[j] and j >= scored else 0
    rest, column = np.zeros((width, height)), 0  # a row for every column; auxiliary ones come first
    for both in range(2):
        for j in range(len(moves)):
            if moves[j] and (j < scored) == (both == 1):
                for t in range(start[j], start[j + 1]):
                    if place[row[t]] >= 0:
                        rest[column, place[row[t]]] = entries[t]
                column += 1
    done = _eliminate(rest, nothing, beside, nothing)
    return _eliminate(rest, beside, width, done) - done == width - beside


@part
def _eliminate(rest, first, last, done):  # type: ignore[no-untyped-def]
    """Gaussian elimination by the columns ``first`` to ``last``; how many rows of the system it has used by then."""
    stay_apart()
    width, height = rest.shape
    used = np.zeros(width, np.bool_)
    for _ in range(first, last):
        if done == height:
            break
        best, at_column, at_row = NOTHING, -1, -1
        for c in range(first, last):
            if not used[c]:
                for r in range(done, height):
                    if abs(rest[c, r]) > best:
                        best, at_column, at_row = abs(rest[c, r]), c, r
        if at_column < 0:
            break
        used[at_column] = True
        for c in range(width):
            rest[c, at_row], rest[c, done] = rest[c, done], rest[c, at_row]
        for c in range(width):
            if c != at_column and rest[c, done] != 0.0 and (c >= first):
                share = rest[c, done] / rest[at_column, done]
                if not used[c]:
                    for r in range(done + 1, height):
                        rest[c, r] -= share * rest[at_column, r]
        done += 1
    return done
