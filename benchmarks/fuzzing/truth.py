"""What is true of one instance: whether there is a point, the best vertex, the nearest point, what is a vertex."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from fuzzing.declarations import Declaration
from fuzzing.exact import Empty, Optimum, Polyhedron, Row, Unbounded, nullspace, rank
from fuzzing.nearest import dot, nearest

__all__ = ["Truth", "fractions_of"]

Point = tuple[Fraction, ...]
ZERO = Fraction(0)
SMALL = Fraction(1, 2**34)


def fractions_of(values: Sequence[float] | np.ndarray) -> Point:
    """Floats as fractions; minus infinity, which forbids a part, counts for nothing."""
    return tuple(ZERO if math.isinf(v) else Fraction(float(v)) for v in np.asarray(values, dtype=float).reshape(-1))


@dataclass(frozen=True, eq=False)
class Truth:
    """One polytope with numbers for its parameters, and parts that are forbidden."""

    declaration: Declaration
    theta: tuple[Fraction | float, ...]
    forbidden: tuple[int, ...] = ()
    rounding: float = 0.0
    """Relative; rows give way by what it can do to their right-hand sides."""
    equalities_alone: bool = False
    """Whether inequalities stay as they are."""

    @cached_property
    def rows(self) -> list[Row]:
        """Of the lifted polytope.

        Raises
        ------
        Empty : when a bound is minus infinity.
        """
        if self.rounding:
            return self.declaration.loosened(self.theta, self.forbidden, Fraction(self.rounding), self.equalities_alone)
        return self.declaration.rows(self.theta, self.forbidden)

    def loosened(self, rounding: float, equalities_alone: bool = False) -> Truth:
        """The truth about numbers that were rounded."""
        return Truth(self.declaration, self.theta, self.forbidden, rounding, equalities_alone)

    @cached_property
    def _polyhedron(self) -> Polyhedron | None:
        try:
            return Polyhedron(self.rows, self.declaration.columns)
        except Empty:
            return None

    @property
    def empty(self) -> bool:
        """Whether nothing satisfies the constraints."""
        return self._polyhedron is None

    @property
    def polyhedron(self) -> Polyhedron:
        """Of a polytope that is not empty."""
        assert self._polyhedron is not None
        return self._polyhedron

    @property
    def unbounded(self) -> bool:
        """Whether some part can be as large or as small as one likes."""
        try:
            return not self.empty and not self.ends
        except Unbounded:
            return True

    @cached_property
    def ends(self) -> list[tuple[Fraction, Fraction]]:
        """The least and the largest value of every part."""
        return self._ends_of(range(self.declaration.size))

    def _ends_of(self, columns: Iterable[int]) -> list[tuple[Fraction, Fraction]]:
        found = []
        for part in columns:
            unit = tuple(Fraction(int(j == part)) for j in range(self.declaration.columns))
            most = self.polyhedron.maximize(unit).value
            found.append((-self.polyhedron.maximize(tuple(-u for u in unit)).value, most))
        return found

    @cached_property
    def size(self) -> float:
        """The largest number among the parts of all points, which errors are relative to; 1 when all are 0.

        Next to auxiliary variables that are far larger, parts may be nothing but the rounding of these.
        """
        size = max(max(abs(low), abs(high)) for low, high in self.ends)
        if size < SMALL:
            try:
                others = self._ends_of(range(self.declaration.size, self.declaration.columns))
            except Unbounded:
                others = []
            size = max([size, *(SMALL * max(abs(low), abs(high)) for low, high in others)])
        return float(size) or 1.0

    def best(self, scores: Point) -> Optimum:
        """The best structure; of several, one. ``unique`` says that no other structure is as good."""
        if scores not in self._best:
            extra = self.declaration.columns - self.declaration.size
            found = self.polyhedron.maximize((*scores, *[ZERO] * extra))
            self._best[scores] = Optimum(found.point[: self.declaration.size], found.value, found.unique)
        return self._best[scores]

    def vertices(self, most: int) -> list[Point] | None:
        """All vertices of a polytope without auxiliary variables, by a walk along its edges; None for more."""
        found = None if self.declaration.lifted else self.polyhedron.vertices(most)
        return None if found is None else sorted(found)

    def nearest(self, target: Point) -> Point:
        """The nearest structure."""
        if target not in self._nearest:
            size, extra = self.declaration.size, [ZERO] * (self.declaration.columns - self.declaration.size)
            self._nearest[target] = nearest(
                lambda objective: self.polyhedron.maximize((*objective, *extra)).point[:size], target
            )
        return self._nearest[target]

    @cached_property
    def _best(self) -> dict[Point, Optimum]:
        return {}

    @cached_property
    def _nearest(self) -> dict[Point, Point]:
        return {}

    def best_that_rounds_to(self, structure: Sequence[float], rounding: float, scores: Point) -> Fraction | None:
        """The largest value of a point that a relative rounding turns into a structure, if there is one."""
        columns, rows = self.declaration.columns, list(self.rows)
        for part, value in enumerate(fractions_of(structure)):
            for sign in (1, -1):
                entries = tuple(Fraction(sign * int(j == part)) for j in range(columns))
                rows.append(Row(entries, sign * value + abs(value) * Fraction(rounding)))
        try:
            return Polyhedron(rows, columns).maximize((*scores, *[ZERO] * (columns - len(scores)))).value
        except Empty:
            return None

    @cached_property
    def shifts(self) -> list[Point]:
        """Directions of all parameters along which equalities that depend on each other go on to agree."""
        lines = [line for line in self.declaration.lines if line.equality]
        rows, count = [row for row in self.rows if row.equality], self.declaration.parameter_count
        moves = [[ZERO] * count for _ in rows]
        for move, line in zip(moves, lines, strict=False):  # rows that forbid parts come last and do not move
            for place, factor in line.bound.parameters:
                move[place] += Fraction(factor)
        columns = list(zip(*(row.coefficients for row in rows), strict=True))
        apart = [
            tuple(dot(together, column) for column in zip(*moves, strict=True))
            for together in nullspace(columns, len(rows))
        ]
        return nullspace(apart, count)

    def violation(self, structure: Sequence[float], rounding: float = 0.0) -> float:
        """How far a structure is outside: by rows, each divided by its largest coefficient, or in the largest part.

        ``rounding`` is the relative one of the entries of the structure, which is given away.
        """
        point = fractions_of(structure)
        if self.declaration.lifted:
            return float(self._distance(point)) - rounding * self.size
        worst = ZERO
        for row in self.rows:
            slack, largest = row.slack(point), max(abs(a) for a in row.coefficients) or Fraction(1)
            miss = (abs(slack) if row.equality else -slack) - _noise(row, point, rounding)
            worst = max(worst, miss / largest)
        return float(worst)

    def _distance(self, structure: Point) -> Fraction:
        columns = self.declaration.columns
        rows = [Row((*row.coefficients, ZERO), row.bound, row.equality) for row in self.rows]
        for part, value in enumerate(structure):
            for sign in (1, -1):
                entries = [Fraction(sign * int(j == part)) for j in range(columns)]
                rows.append(Row((*entries, Fraction(-1)), sign * value))
        last = tuple(Fraction(-int(j == columns)) for j in range(columns + 1))
        return -Polyhedron(rows, columns + 1).maximize(last).value

    def is_vertex(self, structure: Sequence[float], tolerance: float, rounding: float = 0.0) -> bool:
        """Whether a structure that is inside but for the tolerance, and the rounding of its entries, is a vertex.

        Of a polytope by its rows: those that are tight within the tolerance determine the point. Of a shadow: from no
        vertex leads a long step to two points of the polytope that are opposite of each other.
        """
        point = fractions_of(structure)
        if self.declaration.lifted:
            if self.violation(structure) <= tolerance and self._longest_step(point, tolerance) <= 1e-3 * self.size:
                return True  # as it stands, whatever rounding may have done to it
            step = self._longest_step(point, tolerance + rounding * self.size)
            return step <= max(1e-3, 32 * rounding) * self.size
        tight = []
        for row in self.rows:
            largest = max(abs(a) for a in row.coefficients)
            near = largest * Fraction(tolerance) + _noise(row, point, rounding)
            if largest and (row.equality or row.slack(point) <= near):
                tight.append(row.coefficients)
        return rank(tight) == self.declaration.size

    def _longest_step(self, structure: Point, tolerance: float) -> float:
        """How far two points of the lifted polytope can be on opposite sides, in a direction that nothing prefers."""
        columns, size = self.declaration.columns, self.declaration.size
        empty = (ZERO,) * columns
        rows = [Row((*row.coefficients, *empty), row.bound, row.equality) for row in self.rows]
        rows += [Row((*empty, *row.coefficients), row.bound, row.equality) for row in self.rows]
        for part, value in enumerate(structure):
            for sign in (1, -1):
                entries = [ZERO] * (2 * columns)
                entries[part] = entries[columns + part] = Fraction(sign)
                rows.append(Row(tuple(entries), 2 * (sign * value + Fraction(tolerance))))
        direction = np.random.default_rng(size).integers(-64, 65, size)
        objective = [ZERO] * (2 * columns)
        for part, entry in enumerate(direction):
            objective[part], objective[columns + part] = Fraction(int(entry), 64), -Fraction(int(entry), 64)
        try:
            step = Polyhedron(rows, 2 * columns).maximize(tuple(objective)).value
        except Empty:
            return 0.0  # farther outside than the tolerance: another check says so
        return float(step) / max(1e-9, float(np.abs(direction / 64.0).sum()))


def _noise(row: Row, point: Point, rounding: float) -> Fraction:
    """What the rounding of a point moves a row by."""
    if not rounding:
        return ZERO
    return Fraction(rounding) * sum((abs(a * z) for a, z in zip(row.coefficients, point, strict=True)), ZERO)
