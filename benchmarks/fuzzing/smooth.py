"""Regularized points in numbers of 120 digits: a barrier method that shares nothing with the solvers of optlayers.

The polytope is that of exact rows. Its relative interior is found in fractions: rows without room become equalities,
and the mean of points with the most room for each of the others is strictly inside. From there damped Newton steps
follow the path of a logarithmic barrier whose weight falls to 1e-34 or less, in the directions that equalities leave.
With so many digits nothing is ill-conditioned, and the weight bounds what is missing to the best value (Nesterov and
Nemirovskii, Interior-point polynomial algorithms in convex programming, 1994).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

from fuzzing.exact import Polyhedron, Row, Unbounded, nullspace, rank

__all__ = ["Curve", "Smooth", "TooLarge", "best_point"]

DIGITS = 120
MOST_DIRECTIONS, MOST_ROWS = 10, 60
"""More are not looked at, which would take too long."""
LAST = Decimal(10) ** -34
"""The last weight of the barrier, next to that of the curves, which may be far smaller than scores."""
FALL = Decimal(10) ** -3
ROUNDS, HALVINGS = 80, 60
Numbers = list[Decimal]


class TooLarge(Exception):
    """Nothing is said about a problem of this size."""


@dataclass(frozen=True)
class Curve:
    """The function of one part: "square" (weight / 2 z²), "entropy" (weight z log z), "bits" (and as much of 1 - z),
    "power" (Tsallis, weight 1) or "none"."""

    kind: str
    weight: Decimal = Decimal(1)
    power: Decimal = Decimal(2)

    def worth(self, z: Decimal) -> Decimal:
        """At a point inside of the domain."""
        if self.kind == "square":
            return self.weight * z * z / 2
        if self.kind == "entropy":
            return self.weight * z * z.ln()
        if self.kind == "bits":
            return self.weight * (z * z.ln() + (1 - z) * (1 - z).ln())
        if self.kind == "power":
            return (z**self.power - z) / (self.power * (self.power - 1))
        return Decimal(0)

    def slope(self, z: Decimal) -> Decimal:
        """Its derivative."""
        if self.kind == "square":
            return self.weight * z
        if self.kind == "entropy":
            return self.weight * (z.ln() + 1)
        if self.kind == "bits":
            return self.weight * (z.ln() - (1 - z).ln())
        if self.kind == "power":
            return z ** (self.power - 1) / (self.power - 1) - 1 / (self.power * (self.power - 1))
        return Decimal(0)

    def bend(self, z: Decimal) -> Decimal:
        """Its second derivative."""
        if self.kind == "square":
            return self.weight
        if self.kind == "entropy":
            return self.weight / z
        if self.kind == "bits":
            return self.weight / (z * (1 - z))
        if self.kind == "power":
            return z ** (self.power - 2)
        return Decimal(0)

    @property
    def positive(self) -> bool:
        """Whether it is finite at 0 or more alone."""
        return self.kind in ("entropy", "bits", "power")


@dataclass(frozen=True)
class Smooth:
    """The best point, and what belongs to it."""

    point: Numbers
    """Of all columns."""
    curves: Sequence[Curve]
    equalities: list[Row]
    inequalities: list[Row]
    """With room, also those that only say where a curve is finite."""
    room: Numbers
    widths: Numbers
    """The most that each can have, next to its largest coefficient."""
    price: Numbers
    """What more room of each would bring."""
    missing: Decimal
    """The value of the point is at most so far below the best one."""

    def pulled_back(self, direction: Sequence[Fraction], near: Decimal) -> Numbers | None:
        """The derivative of the parts by the scores, applied to a direction.

        None where a row is neither clearly tight nor clearly not, next to ``near``: there may be a kink there.
        """
        size = len(self.curves)
        with localcontext() as context:
            context.prec = DIGITS
            largest = max((abs(p) for p in self.price), default=Decimal(0))
            tight = []
            for row, room, price in zip(self.inequalities, self.room, self.price, strict=True):
                scale = max(abs(decimal_of(a)) for a in row.coefficients)
                if room > near * scale:
                    continue
                if self._is_end(row):
                    continue  # never reached
                if not price * scale > near * max(largest, Decimal(1)):
                    return None
                tight.append(row)
            known = [row.coefficients for row in (*self.equalities, *tight)]
            columns = len(self.point)
            moves = nullspace(known, columns) if known else _units(columns)
            moves = _independent([move[:size] for move in moves])
            if not moves:
                return [Decimal(0)] * size
            basis = [[decimal_of(entry) for entry in move] for move in moves]
            bends = [c.bend(z) for c, z in zip(self.curves, self.point[:size], strict=True)]
            matrix = [
                [_sum(a * h * b for a, h, b in zip(v, bends, w, strict=True) if a and b) for w in basis] for v in basis
            ]
            given = [decimal_of(g) for g in direction]
            right = [_sum(a * g for a, g in zip(v, given, strict=True)) for v in basis]
            weights = _solve(matrix, right)
            if weights is None:
                return None
            return [_sum(y * v[j] for y, v in zip(weights, basis, strict=True)) for j in range(size)]

    def _is_end(self, row: Row) -> bool:
        """Whether a row says no more than where a curve ends that is steep there."""
        (j, a), *others = [(j, a) for j, a in enumerate(row.coefficients) if a]
        if others or j >= len(self.curves) or self.curves[j].kind not in ("entropy", "bits"):
            return False
        return row.bound == 0 if a < 0 else self.curves[j].kind == "bits" and row.bound == a


def best_point(
    rows: Sequence[Row],
    columns: int,
    scores: Sequence[Fraction],
    curves: Sequence[Curve],
    weight: Fraction | None = None,
) -> Smooth:
    """The point with the largest ``<scores, z> - sum of curves``, in the first entries of a polyhedron; with the
    ``weight`` of a barrier, that of the barrier of all rows.

    Raises
    ------
    Empty : no point satisfies the rows, or none where the curves are finite.
    TooLarge : there are too many directions or rows, or some that go on for ever.
    """
    domain = []
    for part, curve in enumerate(curves):
        if curve.positive:
            domain.append(Row(tuple(Fraction(-int(j == part)) for j in range(columns)), Fraction(0)))
    given = [row for row in rows if not row.equality and any(row.coefficients)]
    known = set(given)
    domain = [row for row in domain if row not in known]
    equalities = [row for row in rows if row.equality and any(row.coefficients)]
    polyhedron = Polyhedron([*rows, *domain], columns)
    if (
        len(given) + len(domain) > MOST_ROWS
        or columns - rank([r.coefficients for r in equalities] or [()]) > 3 * MOST_DIRECTIONS
    ):
        raise TooLarge
    open_ones, points, widths = [], [], []
    for row in (*given, *domain):
        try:
            best = polyhedron.maximize(tuple(-a for a in row.coefficients))
        except Unbounded as error:
            raise TooLarge from error
        if row.bound + best.value == 0:
            equalities.append(Row(row.coefficients, row.bound, equality=True))
        else:
            open_ones.append(row)
            points.append(best.point)
            widths.append(decimal_of((row.bound + best.value) / max(abs(a) for a in row.coefficients)))
    if not points:
        point = polyhedron.point()
        return Smooth([decimal_of(v) for v in point], curves, equalities, [], [], [], [], Decimal(0))
    inside = tuple(sum(p[j] for p in points) / len(points) for j in range(columns))
    moves = nullspace([row.coefficients for row in equalities], columns) if equalities else _units(columns)
    if len(moves) > MOST_DIRECTIONS:
        raise TooLarge
    # What cannot move has no say, and may lie where a curve has no slope.
    curves = [c if any(move[j] for move in moves) else Curve("none") for j, c in enumerate(curves)]
    with localcontext() as context:
        context.prec = DIGITS
        path = _Path(open_ones, inside, moves, [decimal_of(s) for s in scores], curves)
        missing = Decimal(0) if not moves else path.follow(None if weight is None else decimal_of(weight))
        price = [path.weight_of[k] / room for k, room in enumerate(path.room)]
        return Smooth(path.point, curves, equalities, open_ones, path.room, widths, price, missing)


class _Path:
    """Where a barrier method is: the point, the room of rows, and the weight of their barriers."""

    def __init__(
        self,
        rows: list[Row],
        inside: Sequence[Fraction],
        moves: Sequence[Sequence[Fraction]],
        scores: Numbers,
        curves: Sequence[Curve],
    ) -> None:
        self.scores, self.curves = scores, curves
        self.moves = [[decimal_of(entry) for entry in move] for move in moves]
        self.point = [decimal_of(v) for v in inside]
        self.room = [decimal_of(row.slack(inside)) for row in rows]
        # What a step in each direction takes from the room of a row, in fractions so that zeros are zeros.
        self.takes = [
            [
                decimal_of(sum((a * m for a, m in zip(row.coefficients, move, strict=True) if a and m), Fraction(0)))
                for move in moves
            ]
            for row in rows
        ]
        self.weight_of: Numbers = [Decimal(0)] * len(rows)

    def follow(self, barrier: Decimal | None) -> Decimal:
        """Let the weight fall to the end, and say what the value may still lack."""
        size = max([*(abs(s) for s in self.scores), *(c.weight for c in self.curves), Decimal(1) / 10**6])
        smallest = min([Decimal(1), *(c.weight for c in self.curves)])
        weight, last = size, smallest * LAST if barrier is None else min(barrier, smallest * LAST)
        while True:
            weight = max(weight * FALL, last)
            if barrier is None:
                self.weight_of = [weight] * len(self.room)
            else:  # the rows of the polytope keep theirs
                self.weight_of = [max(weight, barrier)] * len(self.room)
            centred = self._centre(weight)
            if weight == last or (barrier is not None and weight <= barrier):
                break
        if not centred:
            raise TooLarge
        return Decimal(0) if barrier is not None else weight * len(self.room)

    def _centre(self, weight: Decimal) -> bool:
        """Damped Newton steps, until what they gain is nothing next to the weight."""
        size, count = len(self.curves), len(self.moves)
        for _ in range(ROUNDS):
            slopes, bends = [], []
            for c, z, s in zip(self.curves, self.point[:size], self.scores, strict=True):
                slopes.append(c.slope(z) - s)
                bends.append(c.bend(z))
            push = [w / r for w, r in zip(self.weight_of, self.room, strict=True)]
            pull = [p / r for p, r in zip(push, self.room, strict=True)]
            gradient = [
                _sum(a * g for a, g in zip(move, slopes, strict=False) if a)
                + _sum(p * takes[k] for p, takes in zip(push, self.takes, strict=True) if takes[k])
                for k, move in enumerate(self.moves)
            ]
            matrix = [[Decimal(0)] * count for _ in range(count)]
            for values, factors in (
                ([[move[j] for move in self.moves] for j in range(size)], bends),
                (self.takes, pull),
            ):
                for entries, factor in zip(values, factors, strict=True):
                    seen = [k for k, entry in enumerate(entries) if entry]
                    for k in seen:
                        along = factor * entries[k]
                        for other in seen:
                            if other <= k:
                                matrix[k][other] += along * entries[other]
            for k in range(count):
                for other in range(k):
                    matrix[other][k] = matrix[k][other]
            step = _solve(matrix, [-g for g in gradient])
            if step is None:
                raise TooLarge
            decrement = -_sum(g * d for g, d in zip(gradient, step, strict=True))
            if decrement <= weight * Decimal(10) ** -16:
                return True
            lost = [_sum(t * d for t, d in zip(takes, step, strict=True)) for takes in self.takes]
            share = min([Decimal(1), *(Decimal("0.95") * r / x for r, x in zip(self.room, lost, strict=True) if x > 0)])
            moved = [
                _sum(d * move[j] for d, move in zip(step, self.moves, strict=True)) for j in range(len(self.point))
            ]
            now = self._value(self.point, self.room)
            for _ in range(HALVINGS):
                point = [z + share * m for z, m in zip(self.point, moved, strict=True)]
                room = [r - share * x for r, x in zip(self.room, lost, strict=True)]
                if self._value(point, room) <= now - share * decrement / 10:
                    break
                share /= 2
            else:
                return decrement <= weight * Decimal(10) ** -6
            self.point, self.room = point, room
        return False

    def _value(self, point: Numbers, room: Numbers) -> Decimal:
        size = len(self.curves)
        worth = _sum(c.worth(z) - s * z for c, z, s in zip(self.curves, point[:size], self.scores, strict=True))
        return worth - _sum(w * r.ln() for w, r in zip(self.weight_of, room, strict=True))


def decimal_of(number: Fraction) -> Decimal:
    """To all digits at hand."""
    with localcontext() as context:
        context.prec = DIGITS
        return Decimal(number.numerator) / Decimal(number.denominator)


def _sum(terms: object) -> Decimal:
    return sum(terms, Decimal(0))  # type: ignore[call-overload]


def _units(count: int) -> list[tuple[Fraction, ...]]:
    return [tuple(Fraction(int(i == j)) for j in range(count)) for i in range(count)]


def _independent(vectors: Sequence[Sequence[Fraction]]) -> list[Sequence[Fraction]]:
    """As many of these as depend on no others."""
    found: list[Sequence[Fraction]] = []
    for vector in vectors:
        if any(vector) and rank([*found, vector]) > len(found):
            found.append(vector)
    return found


def _solve(matrix: list[Numbers], right: Numbers) -> Numbers | None:
    """A symmetric positive definite system, by L D Lᵀ; None where it is not."""
    count = len(right)
    lower: list[Numbers] = []
    diagonal: Numbers = []
    for i in range(count):
        row: Numbers = []
        for j in range(i):
            row.append((matrix[i][j] - _sum(row[k] * diagonal[k] * lower[j][k] for k in range(j))) / diagonal[j])
        pivot = matrix[i][i] - _sum(row[k] * row[k] * diagonal[k] for k in range(i))
        if not pivot > 0:
            return None
        lower.append(row)
        diagonal.append(pivot)
    found = list(right)
    for i in range(count):
        found[i] -= _sum(lower[i][k] * found[k] for k in range(i))
    found = [f / d for f, d in zip(found, diagonal, strict=True)]
    for i in reversed(range(count)):
        found[i] -= _sum(lower[k][i] * found[k] for k in range(i + 1, count))
    return found
