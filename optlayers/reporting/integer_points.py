"""The integer points of a declaration, all of them where they are few."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np

from optlayers.reporting.linear_program import LinearProgram

__all__ = ["Missed", "integer_points"]

WHOLE = 1e-6
"""A bound that is so near to an integer is that integer."""


class Missed(Exception):
    """The points are not known; the message says why."""


def integer_points(
    program: LinearProgram,
    determined: Mapping[int, Mapping[int, Fraction]],
    limit: int,
    late: Callable[[], bool],
) -> np.ndarray:
    """All points of integers over the scored parts for which the other variables have some values.

    Part after part takes every integer between its least and its largest value next to those before it. What is left is
    convex, so that every such integer leads on, or to a part without one. ``determined`` are parts that equations make
    of earlier ones, as :attr:`optlayers.reporting.affine_hull.AffineHull.of_part` has them.

    Raises
    ------
    Missed : when there are more than ``limit``, or it takes too long.
    """
    size = program.rows.scored
    unit = np.eye(size)
    found: list[list[int]] = []

    def ends(part: int) -> tuple[float, float]:
        best, least = program.maximize(unit[part]), program.maximize(-unit[part])
        if best is None or least is None:
            raise Missed("a linear program on the way has no answer")
        return -least.value, best.value

    def go_on(values: list[int]) -> None:
        if late():
            raise Missed("to list the integer points takes too long")
        part = len(values)
        if part == size:
            found.append(list(values))
            if len(found) > limit:
                raise Missed(f"there are more than {limit} integer points")
            return
        if part in determined:
            exact = sum((a * (1 if j < 0 else values[j]) for j, a in determined[part].items()), Fraction(0))
            choices = range(int(exact), int(exact) + 1) if exact.denominator == 1 else range(0)
        else:
            low, high = ends(part)
            choices = range(math.ceil(low - WHOLE), math.floor(high + WHOLE) + 1)
        for value in choices:
            program.fix(part, float(value))
            go_on([*values, value])
        program.free(part)

    try:
        go_on([])
    finally:
        for part in range(size):
            program.free(part)
    points = np.array(found, dtype=np.int64).reshape(len(found), size)
    if not program.rows.auxiliary and program.rows.exact:
        points = points[[program.rows.holds(point, 1) for point in points]]  # a bound is met to rounding
    return points
