"""Rows over integer variables, with integers for coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from optlayers.form.standard import StandardForm

__all__ = ["IntegerProgram", "NoIntegers", "integer_program"]

DENOMINATOR = 10**6
"""Ratios of coefficients are read as fractions with at most this below the line,"""
READ = 1e-12
"""where they differ from these by no more than this, relative to their size."""
NEAR = 1e-9
"""Right-hand sides and bounds so near to an integer, in units of their row, are that integer, but for rounding."""
ROUNDING = 4.0 * np.finfo(np.float64).eps
WIDEST = 2.0**50
"""Bounds are smaller than this."""
LARGEST = 2**60
"""Sums along a row stay below this."""
NO_LIMIT = 2**62
"""In place of a side that a row does not have."""


@final
class NoIntegers(ValueError):
    """What was declared cannot be read as rows of integers over bounded integers; the message says which part."""


@final
@dataclass(frozen=True)
class IntegerProgram:
    """Integer points with ``low <= A x <= high`` and ``lower <= x <= upper``, everything in integers.

    The first ``scored`` columns are those that have scores; the others are auxiliary, and a point of the first ones
    counts once, however many values of the others go with it. Sides that a row does not have are beyond all sums.
    """

    rows: sp.csc_array
    low: Int64[np.ndarray, " rows"]
    high: Int64[np.ndarray, " rows"]
    lower: Int64[np.ndarray, " columns"]
    upper: Int64[np.ndarray, " columns"]
    scored: int
    names: tuple[str, ...]

    @property
    def columns(self) -> int:
        """How many there are."""
        return len(self.lower)

    def has(self, point: Int64[np.ndarray, " columns"]) -> bool:
        """Whether a point satisfies everything, exactly."""
        sums = self.rows @ point
        inside = ((point >= self.lower) & (point <= self.upper)).all()
        return bool(inside and ((sums >= self.low) & (sums <= self.high)).all())

    @property
    def is_empty(self) -> bool:
        """Whether bounds or sides cross, which leaves no point. False says nothing."""
        return bool((self.lower > self.upper).any() or (self.low > self.high).any())


def integer_program(
    form: StandardForm,
    rhs: Float64[np.ndarray, " rows"],
    entries: Float64[np.ndarray, " entries"],
    lower: Float64[np.ndarray, " columns"],
    upper: Float64[np.ndarray, " columns"],
    *,
    without_limits: bool = False,
) -> IntegerProgram:
    """Read the rows of one instance, whose variables are all integers, as rows of integers.

    A row is read by the ratios of its coefficients, as fractions with small denominators where that is what they are
    (0.1, 0.2 and 0.3 are 1, 2 and 3), and else as what floating-point numbers are, multiples of a power of two.

    Parameters
    ----------
    form : whose columns, but for slack, are integers.
    rhs, entries, lower, upper : right-hand sides, the entries of the matrix in the order of ``form.matrix.data``, and
        bounds of all columns but slack.
    without_limits : whether integers without bounds are taken, as they are when points are only held to the rows.

    Raises
    ------
    NoIntegers : for a variable without bounds, or coefficients that are too far apart in size.
    """
    width = form.unslacked
    body = sp.csc_array((entries, form.matrix.indices, form.matrix.indptr), shape=form.matrix.shape)[:, :width]
    rows, names = sp.csr_array(body), form.row_names
    equality = np.arange(form.rows) < form.equalities
    if without_limits:
        lower, upper = np.maximum(lower, -WIDEST / 2), np.minimum(upper, WIDEST / 2)
    for j in np.flatnonzero(~(np.isfinite(lower) & np.isfinite(upper))).tolist():
        raise NoIntegers(
            f"{form.column_name(j)} is an integer without a limit: bound it from below and from above, by "
            "cp.Variable(..., integer=True, bounds=[0, 9]) or by constraints"
        )
    bounds = np.maximum(np.abs(lower), np.abs(upper))
    for j in np.flatnonzero(bounds >= WIDEST).tolist():
        raise NoIntegers(
            f"{form.column_name(j)} has a bound of {bounds[j]:g}, too large for integers: give smaller ones"
        )
    margin = NEAR + ROUNDING * bounds
    least, most = np.ceil(lower - margin).astype(np.int64), np.floor(upper + margin).astype(np.int64)
    size = np.maximum(np.abs(least), np.abs(most))
    low, high = np.full(len(rhs), -NO_LIMIT), np.full(len(rhs), NO_LIMIT)
    data = np.zeros(rows.nnz, dtype=np.int64)
    for i in range(len(rhs)):
        span = slice(int(rows.indptr[i]), int(rows.indptr[i + 1]))
        mine = rows.data[span]
        unit, whole, exact = _in_integers(mine)
        reach = sum(abs(w) * int(s) for w, s in zip(whole, size[rows.indices[span]].tolist(), strict=True))
        if reach >= LARGEST or max(map(abs, whole), default=0) >= LARGEST:
            raise NoIntegers(
                f"{names[i]} has coefficients that no integers of moderate size stand for: give integers, or fractions "
                "with small denominators"
            )
        data[span] = whole
        if np.isinf(rhs[i]):
            if rhs[i] < 0:
                high[i] = -NO_LIMIT
            elif equality[i]:
                low[i] = NO_LIMIT
            continue
        value = Fraction(float(rhs[i])) / unit
        slack = Fraction(NEAR) if exact else Fraction(NEAR) + Fraction(READ) * abs(value)
        if slack >= Fraction(1, 4) and abs(value) <= reach:
            raise NoIntegers(
                f"{names[i]} has coefficients that differ too much in size to be told apart: give integers, or "
                "fractions with small denominators"
            )
        if abs(value) > LARGEST:
            high[i], low[i] = (-NO_LIMIT, low[i]) if value < 0 else (high[i], NO_LIMIT if equality[i] else low[i])
            continue
        high[i] = math.floor(value + slack)
        if equality[i]:
            low[i] = math.ceil(value - slack)
    return IntegerProgram(
        sp.csc_array(sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)),
        low,
        high,
        least,
        most,
        form.scored,
        names,
    )


def _in_integers(values: Float64[np.ndarray, " entries"]) -> tuple[Fraction, list[int], bool]:
    """A positive unit, the integers that coefficients are multiples of it by, and whether that is exactly so."""
    values = np.where(np.abs(values) > 0.0, values, 0.0)
    there = values[values != 0.0]
    if len(there) == 0:
        return Fraction(1), [0] * len(values), True
    if (there == np.round(there)).all() and np.abs(there).max() < 2**53:
        divisor = math.gcd(*(int(v) for v in there))
        return Fraction(divisor), [int(v) // divisor for v in values], True
    smallest = float(np.abs(there).min())
    fractions = [Fraction(v / smallest).limit_denominator(DENOMINATOR) for v in values.tolist()]
    scale = math.lcm(*(f.denominator for f in fractions))
    ratios = zip(fractions, (values / smallest).tolist(), strict=True)
    close = all(abs(float(fraction) - ratio) <= READ * abs(ratio) for fraction, ratio in ratios)
    if not close or scale > DENOMINATOR:
        exact = [Fraction(v) for v in values.tolist()]
        scale = math.lcm(*(f.denominator for f in exact))
        numbers = [int(f * scale) for f in exact]
        divisor = math.gcd(*numbers)
        return Fraction(divisor, scale), [n // divisor for n in numbers], True
    numbers = [int(f * scale) for f in fractions]
    divisor = math.gcd(*numbers)
    return Fraction(smallest) * divisor / scale, [n // divisor for n in numbers], False
