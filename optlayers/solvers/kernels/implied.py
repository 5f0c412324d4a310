"""Bounds that rows imply, one by one or as sums of many, in plain scalar loops."""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.flat import flat, grid
from optlayers.solvers.kernels.lanes import jit, part

__all__ = ["SAME", "sweep", "tighten"]

ROUNDS = 1000
"""So often are all rows looked at, at most."""
STARTS = 16
"""From so many rows are others added up, at most."""
ROUNDING = 2.0**-51
"""Of a sum, next to the size of its terms."""
SAME = 1e-9
"""Bounds that are so near to each other, next to their size, are one number; smaller steps are none."""


@part
def _ends(entry, low, high):  # type: ignore[no-untyped-def]
    """Between what a term of a row lies."""
    first, second = entry * low, entry * high
    return min(first, second), max(first, second)


@jit(
    "(int32[::1], int32[::1], int32[::1], float64[:, ::1], boolean[::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, ::1])"
)
def tighten(start, column, place, matrix, skipped, rhs, lower, upper):  # type: ignore[no-untyped-def]
    """Make bounds narrower, in place, by rows that are not ``skipped``, until nothing changes.

    Rows are given by where each of them begins, by columns, and by the places of their entries.
    """
    start, column = flat(start), flat(column)
    place, skipped = flat(place), flat(skipped)
    matrix, rhs = grid(matrix), grid(rhs)
    lower, upper = grid(lower), grid(upper)
    for k in range(len(lower)):
        entries, b = matrix[k if len(matrix) > 1 else 0], rhs[k if len(rhs) > 1 else 0]
        for _ in range(ROUNDS):
            changed = False
            for i in range(len(start) - 1):
                if skipped[i]:
                    continue
                least, most = 0.0, 0.0
                below, above = 0, 0  # of the row, and how many terms have no limit
                size = abs(b[i])  # of all its numbers, by which sums are rounded
                for t in range(start[i], start[i + 1]):
                    entry, j = entries[place[t]], column[t]
                    if entry == 0.0:
                        continue
                    low, high = _ends(entry, lower[k, j], upper[k, j])
                    if np.isinf(low):
                        below += 1
                    else:
                        least += low
                        size += abs(low)
                    if np.isinf(high):
                        above += 1
                    else:
                        most += high
                        size += abs(high)
                if below > 1 and above > 1:
                    continue
                for t in range(start[i], start[i + 1]):
                    entry, j = entries[place[t]], column[t]
                    if entry == 0.0:
                        continue
                    low, high = _ends(entry, lower[k, j], upper[k, j])
                    # What the others leave, from above and from below; nothing where one of them has no limit.
                    at_most, at_least = np.inf, -np.inf
                    if below == 0:
                        at_most = b[i] - (least - low)
                    elif below == 1 and np.isinf(low):
                        at_most = b[i] - least
                    if above == 0:
                        at_least = b[i] - (most - high)
                    elif above == 1 and np.isinf(high):
                        at_least = b[i] - most
                    narrow = at_least / entry if entry > 0.0 else at_most / entry
                    wide = at_most / entry if entry > 0.0 else at_least / entry
                    # A row of a limit that means none tells nothing but the rounding of that number.
                    rounding = ROUNDING * size / abs(entry)
                    near, far = SAME * max(1.0, abs(narrow)), SAME * max(1.0, abs(wide))
                    if narrow > lower[k, j] + near and not np.isinf(narrow) and rounding < near:
                        lower[k, j], changed = narrow, True
                    if wide < upper[k, j] - far and not np.isinf(wide) and rounding < far:
                        upper[k, j], changed = wide, True
            if not changed:
                break


@jit("(int32[::1], int32[::1], int64[::1], int32[::1], int32[::1], int64[::1], int64[::1], float64[::1], boolean[::1])")
def sweep(start, column, entry, column_start, row, column_entry, rhs, upper, left_out):  # type: ignore[no-untyped-def]
    """Make upper bounds of columns that are at least 0 narrower, in place, by sums of rows, which are equalities.

    Entries are 1 and -1. A row without negative entries, and 1 at most on its right, is where a sweep begins. Other
    rows are added, or taken off, while no entry of the sum becomes negative and its right-hand side stays at 1 at most:
    then no column with an entry in the sum is beyond that. In a network the sums are the cuts between the nodes behind
    and those ahead, from the source to the sink. ``left_out`` rows have no part in it.
    """
    rows, columns = len(start) - 1, len(column_start) - 1
    blocked = np.empty((2, rows), np.int64)  # by entries that would be negative: where a row is added, is taken off
    weight, used = np.empty(columns, np.int64), np.empty(rows, np.bool_)
    waiting = np.empty((2 * len(column) + 2, 2), np.int64)
    starts = 0
    for begin in range(rows):
        signs = 0
        for t in range(start[begin], start[begin + 1]):
            signs += entry[t]
        length = start[begin + 1] - start[begin]
        if left_out[begin] or length == 0 or abs(signs) < length or signs * rhs[begin] > length:
            continue
        if starts == STARTS:
            break
        starts += 1
        used[:], weight[:] = left_out, 0
        for i in range(rows):
            below, above = 0, 0
            for t in range(start[i], start[i + 1]):
                below += 1 if entry[t] < 0 else 0
                above += 1 if entry[t] > 0 else 0
            blocked[0, i], blocked[1, i] = below, above
        waiting[0, 0], waiting[0, 1] = begin, 0 if signs > 0 else 1
        count, total = 1, 0
        while count > 0:
            count -= 1
            i, way = waiting[count]
            sign = 1 if way == 0 else -1
            if used[i] or blocked[way, i] > 0 or total + sign * rhs[i] > 1:
                continue
            used[i] = True
            total += sign * rhs[i]
            for t in range(start[i], start[i + 1]):
                j, before = column[t], weight[column[t]]
                weight[j] += sign * entry[t]
                if weight[j] > 0:
                    upper[j] = min(upper[j], np.float64(total))
                change = (1 if before > 0 else 0) - (1 if weight[j] > 0 else 0)
                if change == 0:
                    continue
                for s in range(column_start[j], column_start[j + 1]):
                    other = row[s]
                    side = 0 if column_entry[s] < 0 else 1
                    blocked[side, other] += change
                    free = change < 0 and blocked[side, other] == 0 and not used[other]
                    if free and count < len(waiting):  # else there are cycles, and less is shown
                        waiting[count, 0], waiting[count, 1] = other, side
                        count += 1
