"""Linear assignment."""

import numpy as np

from polytopes._compiled import compiled

__all__ = ["assign"]

TURNS = 4
"""Auctions end after so many turns per row: prices may fall in steps as small as rounding, and paths do not care."""


@compiled
def assign(cost):  # type: ignore[no-untyped-def]
    """A column of its own for every row, at the least total cost; -1 in front when there is none.

    There are at least as many columns as rows; a forbidden pair costs inf. Rows first choose greedily, then those that
    found none bid for columns by what they lose with the second best, and displace others (the augmenting row reduction
    of Jonker and Volgenant, 1987). Most rows are settled then. Each of the others is assigned along a shortest
    augmenting path (Edmonds and Karp, 1972; Tomizawa, 1971), by Dijkstra's algorithm on costs reduced by prices.
    Columns without a row keep the price 0, which makes the answer optimal for rectangles too (Crouse, 2016).
    """
    rows, columns = cost.shape
    table, numbers = np.full((5, columns), -1), np.zeros((2, columns))  # in few pieces: to allocate takes time
    column_of, row_of, free, before, order = table[0, :rows], table[1], table[2], table[3], table[4]
    price, shortest = numbers[0], numbers[1]
    for i in range(rows):
        free[i] = i
    count = rows
    if rows == columns:  # every column is taken in the end, and may have its price from the start
        price[:] = np.inf
        for i in range(rows):
            for j in range(columns):
                price[j] = cost[i, j] if cost[i, j] < price[j] else price[j]
        for j in range(columns):
            if price[j] == np.inf:
                column_of[0] = -1
                return column_of
        for i in range(rows):
            for j in range(columns):
                if row_of[j] < 0 and cost[i, j] == price[j]:
                    row_of[j], column_of[i] = i, j
                    break
        count = 0
        for i in range(rows):
            if column_of[i] < 0:
                free[count] = i
                count += 1
    for _ in range(2):
        count = _auction(cost, price, column_of, row_of, free, count)
    for k in range(count):
        if not _augment(cost, price, column_of, row_of, free[k], shortest, before, order):
            column_of[0] = -1
            return column_of
    return column_of


@compiled
def _auction(cost, price, column_of, row_of, free, count):  # type: ignore[no-untyped-def]
    """Free rows take their best column at the price where the second best is as good; how many are free afterwards."""
    columns = len(price)
    left = k = 0
    turns = TURNS * count
    while k < count:
        i = free[k]
        k += 1
        while True:
            best = second = -1
            lowest = next_lowest = np.inf
            for j in range(columns):
                reduced = cost[i, j] - price[j]
                # Without branches, which no processor could predict.
                lower, low = reduced < lowest, reduced < next_lowest
                second = best if lower else j if low else second
                next_lowest = lowest if lower else reduced if low else next_lowest
                best, lowest = j if lower else best, reduced if lower else lowest
            if second < 0:  # one column at most: no price is too low for it, and paths decide
                free[left] = i
                left += 1
                break
            fallen = price[best] - (next_lowest - lowest)
            falls = fallen < price[best]
            if falls:
                price[best] = fallen
            elif row_of[best] >= 0:
                best = second
            displaced = row_of[best]
            row_of[best], column_of[i] = i, best
            turns -= 1
            if displaced < 0:
                break
            column_of[displaced] = -1
            if not falls or turns < 0:
                free[left] = displaced  # left < k: what it overwrites is done
                left += 1
                break
            i = displaced
    return left


@compiled
def _augment(cost, price, column_of, row_of, start, shortest, before, order):  # type: ignore[no-untyped-def]
    """Assign one more row along a shortest path to a column without a row; whether there is one."""
    columns = len(price)
    for j in range(columns):
        order[j] = j
        shortest[j] = np.inf
        before[j] = start
    i, length = start, 0.0
    held = 0.0  # reduced cost of the row's own column
    done = 0  # columns in order[:done] have their final distance
    while True:
        nearest, position = np.inf, -1
        for k in range(done, columns):
            j = order[k]
            through = length + ((cost[i, j] - price[j]) - held)
            if through < shortest[j]:
                shortest[j], before[j] = through, i
            if shortest[j] < nearest or (shortest[j] == nearest and row_of[j] < 0 and nearest < np.inf):
                nearest, position = shortest[j], k
        if position < 0:
            return False
        j = order[position]
        length = nearest
        if row_of[j] < 0:
            break
        order[position], order[done] = order[done], j
        done += 1
        i = row_of[j]
        held = cost[i, j] - price[j]
    for k in range(done):
        price[order[k]] += shortest[order[k]] - length
    while True:
        i = before[j]
        row_of[j] = i
        j, column_of[i] = column_of[i], j
        if i == start:
            return True
