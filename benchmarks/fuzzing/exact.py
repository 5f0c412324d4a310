"""Linear programs over small polyhedra in whole numbers: nothing is rounded, so what is found is proved.

A polyhedron is a *dictionary* (Chvátal, Linear Programming, 1983): every basic quantity, a variable or the slack of a
row, as an affine function of the nonbasic slacks, which are at least 0. All numbers of a dictionary are integers over
one common denominator, and a pivot divides without remainder (Edmonds, 1967). Nothing of optlayers is used here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from sympy import QQ
from sympy.polys.matrices import DomainMatrix

__all__ = ["Empty", "Optimum", "Polyhedron", "Row", "Unbounded", "integers", "nullspace", "rank", "solve"]

Vector = Sequence[Fraction]
PATIENCE = 20
"""After so many pivots that gain nothing, the smallest index is taken, by which no basis comes twice (Bland, 1977)."""


class Empty(Exception):
    """No point satisfies all rows."""


class Unbounded(Exception):
    """The objective grows without limit."""


@dataclass(frozen=True)
class Row:
    """``coefficients @ z <= bound``, or ``==``."""

    coefficients: tuple[Fraction, ...]
    bound: Fraction
    equality: bool = False

    def slack(self, point: Vector) -> Fraction:
        """How much room a point leaves, negative where it violates the row."""
        return self.bound - sum((a * z for a, z in zip(self.coefficients, point, strict=True) if a), Fraction(0))


@dataclass(frozen=True)
class Optimum:
    """A best vertex, its value, and whether no other point is as good."""

    point: tuple[Fraction, ...]
    value: Fraction
    unique: bool


def integers(numbers: Sequence[Fraction]) -> tuple[list[int], int]:
    """Whole numbers and a positive denominator that they share."""
    denominator = math.lcm(*(number.denominator for number in numbers)) if numbers else 1
    return [number.numerator * (denominator // number.denominator) for number in numbers], denominator


class Polyhedron:
    """The points that satisfy some rows, with a vertex at hand that the next question begins from.

    Raises
    ------
    Empty : when there is no such point.
    """

    def __init__(self, rows: Sequence[Row], columns: int) -> None:
        self.columns = columns
        self._denominator = 1
        table = []
        for row in rows:
            whole, _ = integers([*row.coefficients, row.bound])
            table.append([-a for a in whole[:-1]] + [whole[-1]])
        self._table = np.array(table, dtype=object).reshape(len(table), columns + 1)
        # Variables are the labels below ``columns``, the slack of row i is ``columns + i``.
        self._basic = [columns + i for i in range(len(rows))]
        self._nonbasic = list(range(columns))
        for i, row in enumerate(rows):
            if row.equality:
                self._fix(columns + i)
        for variable in range(columns):
            if variable in self._nonbasic:
                self._free(variable)
        self._restore()

    def maximize(self, objective: Vector) -> Optimum:
        """A best vertex, from the last one that was found.

        Raises
        ------
        Unbounded : when there is none.
        """
        whole, scale = integers(list(objective))
        if any(c and self._loose(j) for j, c in enumerate(whole)):
            raise Unbounded
        gains = self._priced(whole)
        still = 0
        while True:
            rising = [j for j in range(len(self._nonbasic)) if gains[j] > 0]
            if not rising:
                break
            if still > PATIENCE:
                column = min(rising, key=lambda j: self._nonbasic[j])
            else:
                column = max(rising, key=lambda j: gains[j])
            leaving = self._leaving(column)
            if leaving is None:
                raise Unbounded
            before = self._table[leaving, -1]
            factor, denominator = gains[column], self._denominator
            row = self._table[leaving].copy()
            self._pivot(leaving, column)
            # The objective is a row like any other.
            pivot = row[column]
            gains = (gains * pivot - factor * row) // denominator
            gains[column] = factor
            if pivot < 0:
                gains = -gains
            still = 0 if before else still + 1
        value = Fraction(gains[-1], self._denominator * scale)
        unique = all(gains[j] < 0 for j in range(len(self._nonbasic)))
        return Optimum(self.point(), value, unique)

    def point(self) -> tuple[Fraction, ...]:
        """The vertex at hand."""
        found = [Fraction(0)] * self.columns
        for label, row in zip(self._basic, self._table, strict=True):
            if label < self.columns:
                found[label] = Fraction(row[-1], self._denominator)
        return tuple(found)

    def vertices(self, most: int, bases: int = 400) -> set[tuple[Fraction, ...]] | None:
        """All vertices, by a walk over the bases; None where there are more than ``most``, or more bases than that."""
        start = (self._table, self._denominator, list(self._basic), list(self._nonbasic))
        found, seen, open_ones = set(), set(), [start]
        while open_ones:
            self._table, self._denominator, self._basic, self._nonbasic = open_ones.pop()
            key = frozenset(self._nonbasic)
            if key in seen:
                continue
            seen.add(key)
            found.add(self.point())
            if len(found) > most or len(seen) > bases:
                found = None
                break
            here = (self._table, self._denominator, list(self._basic), list(self._nonbasic))
            for column in range(len(here[3])):
                for row in self._all_leaving(column):
                    self._pivot(row, column)
                    if frozenset(self._nonbasic) not in seen:
                        open_ones.append((self._table, self._denominator, list(self._basic), list(self._nonbasic)))
                    self._table, self._denominator = here[:2]
                    self._basic, self._nonbasic = list(here[2]), list(here[3])
        self._table, self._denominator, self._basic, self._nonbasic = start[0], start[1], list(start[2]), list(start[3])
        return found

    def _all_leaving(self, column: int) -> list[int]:
        """All slacks that are first to fall to 0 when a nonbasic one grows."""
        first = self._leaving(column)
        if first is None:
            return []
        entries, values = self._table[:, column], self._table[:, -1]
        return [
            i
            for i, label in enumerate(self._basic)
            if label >= self.columns and entries[i] < 0 and values[i] * entries[first] == values[first] * entries[i]
        ]

    def _loose(self, variable: int) -> bool:
        """Whether a variable is in no row."""
        return variable not in self._basic

    def _priced(self, objective: Sequence[int]) -> np.ndarray:
        """The objective as a row of the dictionary."""
        total = np.zeros(len(self._nonbasic) + 1, dtype=object)
        for label, row in zip(self._basic, self._table, strict=True):
            if label < self.columns and objective[label]:
                total = total + objective[label] * row
        return total

    def _fix(self, slack: int) -> None:
        """Keep the slack of an equality at 0: it becomes nonbasic, and its column is dropped."""
        row = self._basic.index(slack)
        entries = self._table[row]
        columns = [j for j in range(len(self._nonbasic)) if entries[j]]
        if not columns:
            if entries[-1]:
                raise Empty
            self._table = np.delete(self._table, row, axis=0)
            del self._basic[row]
            return
        column = min(columns, key=lambda j: abs(entries[j]))
        self._pivot(row, column)
        self._table = np.delete(self._table, column, axis=1)
        del self._nonbasic[column]

    def _free(self, variable: int) -> None:
        """Make a variable basic, in exchange for the slack of the row that has least else in it."""
        column = self._nonbasic.index(variable)
        rows = [i for i, label in enumerate(self._basic) if label >= self.columns and self._table[i, column]]
        if not rows:  # in no row: it stays at 0
            self._table = np.delete(self._table, column, axis=1)
            del self._nonbasic[column]
            return

        def fill(i: int) -> tuple[int, int]:
            return int(np.count_nonzero(self._table[i, :-1])), abs(self._table[i, column])

        self._pivot(min(rows, key=fill), column)

    def _restore(self) -> None:
        """Find a vertex, by the dual simplex method for the objective 0.

        A row of a slack that is negative, and cannot grow with any nonbasic slack, proves that there is no point.
        """
        for step in range(10**6):
            table = self._table
            wrong = [i for i, label in enumerate(self._basic) if label >= self.columns and table[i, -1] < 0]
            if not wrong:
                return
            if step < PATIENCE:
                row = min(wrong, key=lambda i: table[i, -1])
            else:
                row = min(wrong, key=lambda i: self._basic[i])
            helping = [j for j in range(len(self._nonbasic)) if table[row, j] > 0]
            if not helping:
                raise Empty
            self._pivot(row, min(helping, key=lambda j: self._nonbasic[j]))
        raise RuntimeError("the exact simplex method does not end")

    def _leaving(self, column: int) -> int | None:
        """The first slack that falls to 0 when a nonbasic one grows; of several the one of smallest label."""
        best: int | None = None
        entries, values = self._table[:, column], self._table[:, -1]
        for i, label in enumerate(self._basic):
            if label < self.columns or entries[i] >= 0:
                continue
            if best is None:
                best = i
                continue
            order = values[i] * entries[best] - values[best] * entries[i]  # of values[i] / -entries[i], turned round
            if order > 0 or (order == 0 and label < self._basic[best]):
                best = i
        return best

    def _pivot(self, row: int, column: int) -> None:
        """Exchange a basic and a nonbasic quantity."""
        table = self._table
        pivot = table[row, column]
        along, across = table[row].copy(), table[:, column].copy()
        table = (table * pivot - np.outer(across, along)) // self._denominator
        table[row] = -along
        table[:, column] = across
        table[row, column] = self._denominator
        if pivot < 0:
            table, pivot = -table, -pivot
        self._table, self._denominator = table, pivot
        self._basic[row], self._nonbasic[column] = self._nonbasic[column], self._basic[row]


def rank(rows: Sequence[Vector]) -> int:
    """Of a matrix, without rounding."""
    table = np.array([integers(list(row))[0] for row in rows], dtype=object)
    found, denominator = 0, 1
    if not len(table):
        return 0
    for column in range(table.shape[1]):
        places = [i for i in range(found, len(table)) if table[i, column]]
        if not places:
            continue
        first = min(places, key=lambda i: abs(table[i, column]))
        table[[found, first]] = table[[first, found]]
        pivot = table[found, column]
        below = table[found + 1 :]
        table[found + 1 :] = (below * pivot - np.outer(below[:, column], table[found])) // denominator
        denominator = pivot
        found += 1
    return found


def nullspace(rows: Sequence[Vector], columns: int) -> list[Vector]:
    """A basis of the directions that no row sees, without rounding."""
    entries = [[QQ(entry.numerator, entry.denominator) for entry in map(Fraction, row)] for row in rows]
    basis = DomainMatrix(entries, (len(entries), columns), QQ).nullspace().to_list()
    return [tuple(Fraction(int(entry.numerator), int(entry.denominator)) for entry in vector) for vector in basis]


def solve(matrix: Sequence[Vector], right: Vector) -> list[Fraction]:
    """The solution of a square system that has one."""
    size = len(right)
    table = np.array(
        [integers([*row, value])[0] for row, value in zip(matrix, right, strict=True)], dtype=object
    ).reshape(size, size + 1)
    denominator = 1
    for k in range(size):
        first = min((i for i in range(k, size) if table[i, k]), key=lambda i: abs(table[i, k]))
        table[[k, first]] = table[[first, k]]
        pivot = table[k, k]
        others = [i for i in range(size) if i != k]
        rest = table[others]
        table[others] = (rest * pivot - np.outer(rest[:, k], table[k])) // denominator
        denominator = pivot
    return [Fraction(table[k, -1], table[k, k]) for k in range(size)]
