"""Floating-point numbers read as fractions, and elimination without rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import final

import numpy as np

__all__ = [
    "LARGEST",
    "NEAR",
    "Elimination",
    "read",
    "over_one_denominator",
    "read_together",
    "scaled_to_integers",
    "solved",
]

DENOMINATOR = 10**6
"""Numbers that people write down are fractions with at most this below the line,"""
READ = 1e-14
"""where they differ from these by no more than this, next to their size;"""
DIGITS = 10**9
"""or decimal numbers that are fractions with at most this below the line, as 1.9999999 is."""
SHORT = 5000
"""Answers of linear programs are read as fractions with at most this below the line,"""
NEAR = 1e-7
"""where they differ by no more than this. What was read is checked without rounding before anything hangs on it."""
LARGEST = 2**31
"""Integers of rows and common denominators stay below this, so that their products fit into 64 bits."""


def read(value: float) -> Fraction | None:
    """A number of a declaration as the fraction that stands for it; None for one that is no short fraction."""
    near = Fraction(value).limit_denominator(DENOMINATOR)
    if abs(float(near) - value) <= READ * abs(value):
        return near
    written = Fraction(repr(float(value)))
    return written if written.denominator <= DIGITS else None


def scaled_to_integers(values: Sequence[float]) -> list[int] | None:
    """The smallest integers that some numbers are positive multiples of; None where they are no short fractions."""
    if all(v == int(v) for v in values):
        whole = [int(v) for v in values]
    else:
        fractions = [read(v) for v in values]
        if any(f is None for f in fractions):
            return None
        scale = math.lcm(*(f.denominator for f in fractions if f is not None))
        whole = [int(f * scale) for f in fractions if f is not None]
    divisor = math.gcd(*whole) or 1
    whole = [w // divisor for w in whole]
    return whole if max(map(abs, whole), default=0) < LARGEST else None


def read_together(values: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Answers in floating point as integers over one common denominator; None where they are no short fractions."""
    whole = np.round(values)
    if (np.abs(values - whole) <= NEAR).all():
        return (whole.astype(np.int64), 1) if np.abs(whole).max(initial=0.0) < LARGEST else None
    denominator = 1
    for value in np.unique(np.round(values, 9)).tolist():
        near = Fraction(value).limit_denominator(SHORT)
        if abs(float(near) - value) > NEAR:
            return None
        denominator = math.lcm(denominator, near.denominator)
        if denominator >= LARGEST:
            return None
    numerators = np.round(values * denominator)
    if np.abs(numerators).max(initial=0.0) >= LARGEST or (np.abs(values - numerators / denominator) > NEAR).any():
        return None
    return numerators.astype(np.int64), denominator


Row = dict[int, Fraction]


def solved(equations: Iterable[Mapping[int, Fraction | int]], size: int) -> list[Fraction] | None:
    """The one solution of linear equations in so many unknowns, whose right-hand sides stand under -1; None where
    there is none, or are several."""
    elimination = Elimination(range(size))
    for equation in equations:
        if not elimination.add(equation) and elimination.rest_of(equation):
            return None
    if len(elimination.rows) < size:
        return None
    return [elimination.rows[j].get(-1, Fraction(0)) for j in range(size)]


def over_one_denominator(values: Sequence[Fraction]) -> tuple[np.ndarray, int]:
    """Fractions as integers over their common denominator: 64-bit ones where they fit."""
    unit = math.lcm(*(v.denominator for v in values))
    whole = [int(v * unit) for v in values]
    small = max(map(abs, whole), default=0) < 2**62
    return np.array(whole, dtype=np.int64 if small else object), unit


@final
class Elimination:
    """Independent rows in reduced form: each has a pivot, a column that no other row has.

    Columns that come first in ``order`` are pivots where possible.
    """

    def __init__(self, order: Iterable[int]) -> None:
        self.rank_of = {column: place for place, column in enumerate(order)}
        self.rows: dict[int, Row] = {}

    def rest_of(self, row: Mapping[int, Fraction | int]) -> Row:
        """What is left of a row when all pivots are taken out."""
        left: Row = {j: Fraction(a) for j, a in row.items() if a}
        for pivot in [j for j in left if j in self.rows]:
            factor = left.get(pivot)
            if factor:
                _subtract(left, factor, self.rows[pivot])
        return left

    def add(self, row: Mapping[int, Fraction | int]) -> bool:
        """Take a row in; False where it depends on those that are there (or contradicts them, see ``rest_of``)."""
        left = self.rest_of(row)
        columns = [j for j in left if j in self.rank_of]
        if not columns:
            return False
        pivot = min(columns, key=self.rank_of.__getitem__)
        unit = left[pivot]
        left = {j: a / unit for j, a in left.items()}
        for other in self.rows.values():
            factor = other.get(pivot)
            if factor:
                _subtract(other, factor, left)
        self.rows[pivot] = left
        return True


def _subtract(row: Row, factor: Fraction, other: Row) -> None:
    for j, a in other.items():
        value = row.get(j, Fraction(0)) - factor * a
        if value:
            row[j] = value
        else:
            row.pop(j, None)
