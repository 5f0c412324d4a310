"""Comparisons as users write them: scaled, with numbers or parameters at their right, or in their coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from fuzzing.declarations import Line, Term, literal
from fuzzing.grammar import Affine, Builder, atoms, rounded_up

__all__ = ["INSTANCES", "Writer", "dyadic"]

INSTANCES = 16
"""So many instances has a case."""
NO_LIMIT = (1e7, 1e9, 1e10, 1e12, 1e15, 1e18, np.inf)


def dyadic(generator: np.random.Generator, low: float, high: float, shape: Sequence[int] | int) -> np.ndarray:
    """Multiples of 1/16 between two of them: their sums are not rounded."""
    return generator.integers(round(16 * low), round(16 * high) + 1, shape) / 16.0


class Writer(Builder):
    """A builder that draws how a comparison is written.

    ``scaling`` is how far the sizes of rows are apart: "none", "mild" (1e-3 to 1e3) or "extreme" (1e-12 to 1e12).
    ``chance`` is how likely a right-hand side is a parameter.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        super().__init__(generator)
        self.scaling = str(generator.choice(["none", "mild", "extreme"], p=[0.5, 0.2, 0.3]))
        self.chance = float(generator.choice([0.0, 0.5, 1.0], p=[0.45, 0.35, 0.2]))

    def happens(self, chance: float) -> bool:
        """With this probability."""
        return bool(self.generator.random() < chance)

    def equal(self, text: str, values: np.ndarray) -> None:
        """``text == values``; values ``(instances, entries)`` differ where they are a parameter, else the first count.

        The numbers at the right are exact, so that rows which depend on each other do so exactly.
        """
        self._compare(text, "==", values, self.happens(self.chance) or bool(np.ptp(values, axis=0).any()))

    def at_most(self, text: str, values: np.ndarray, parameter: bool | None = None) -> None:
        """``text <= values``, or the same turned round."""
        sense = "<="
        if self.happens(0.15):
            text, values, sense = f"-({text})", -values, ">="
        self._compare(text, sense, values, self.happens(self.chance) if parameter is None else parameter)

    def at_least(self, text: str, values: np.ndarray, parameter: bool | None = None) -> None:
        """``text >= values``."""
        self._compare(text, ">=", values, self.happens(self.chance) if parameter is None else parameter)

    def without_limit(self, text: str) -> None:
        """A capacity that never binds, or binds for no instance but those that are given one."""
        self.kinds.add("no limits")
        entries = len(self.affine(text))
        values = self.generator.choice(NO_LIMIT, (INSTANCES, entries))
        sense = "<=" if self.happens(0.7) else ">="
        values = values if sense == "<=" else -values
        self._compare(text, sense, values, self.happens(0.6), unlimited=True)

    def bounded_by(self, text: str, rooms: np.ndarray, anchors: np.ndarray) -> None:
        """``text <= what it is at the anchors, and room``: exact where possible, else rounded away from the anchors."""
        affine = self.affine(text)
        inside = affine.exact(self.anchors)
        parameter = self.happens(self.chance)
        if parameter:
            values = [
                [_above(inside[a][i], r) for i, r in enumerate(room)] for a, room in zip(anchors, rooms, strict=True)
            ]
        else:
            most = [max(row[i] for row in inside) for i in range(len(affine))]
            values = [[_above(m, r) for m, r in zip(most, rooms[0], strict=True)]] * INSTANCES
        self.at_most(text, np.array(values), parameter)

    def atom(self, argument: str, rooms: np.ndarray, anchors: np.ndarray) -> None:
        """A piecewise linear function of a vector is at most what it is at the anchors, and room."""
        affine = self.affine(argument)
        menu = atoms(len(affine))
        text, combinations = menu[self.generator.integers(len(menu))].of(self, affine)
        matrix = np.array(combinations)
        inside = Affine(text, (len(matrix),), matrix, np.zeros(len(matrix))).exact(self.anchors)
        values = np.array([_above(max(inside[a]), room) for a, room in zip(anchors, rooms[:, 0], strict=True)])
        parameter = self.happens(self.chance)
        if not parameter:
            values = np.full(INSTANCES, max(_above(max(row), rooms[0, 0]) for row in inside))
        scale = float(self._scales(1, exact=True)[0])
        right, terms = self._right(values[:, None], (), np.array([scale]), parameter)
        scaled = text if scale == 1.0 else f"{scale!r} * {text}" if text.startswith("cp.") else f"{scale!r} * ({text})"
        lines = [Line({int(j): Term(scale * float(row[j])) for j in np.flatnonzero(row)}, terms[0]) for row in matrix]
        self.add(f"{scaled} <= {right}", lines)

    def weighted(self, text: str, weights: np.ndarray, sense: str, values: np.ndarray, parameter: bool) -> None:
        """``weight @ text sense values``: a parameter in the matrix, with values ``(instances, entries)``."""
        affine = self.affine(text)
        made = self.parameter(f"weight{len(self.parameters)}", weights)
        sign = -1.0 if sense == ">=" else 1.0
        coefficients: dict[int, Term] = {}
        for column in range(self.columns):
            along = np.flatnonzero(affine.matrix[:, column])
            if len(along):
                terms = tuple((made.start + int(k), sign * float(affine.matrix[k, column])) for k in along)
                coefficients[column] = Term(0.0, terms)
        right, terms = self._right(values[:, None], (), np.ones(1), parameter)
        bound = Term(sign * terms[0].constant, tuple((k, sign * f) for k, f in terms[0].parameters))
        self.add(f"{made.name} @ {text} {sense} {right}", [Line(coefficients, bound, sense == "==")])

    def _compare(self, text: str, sense: str, values: np.ndarray, parameter: bool, unlimited: bool = False) -> None:
        plain = self.affine(text)
        ones = bool(np.isin(plain.matrix, (-1.0, 0.0, 1.0)).all())
        scale = self._scales(len(plain), exact=sense == "==" or not ones)
        if not parameter and any(_is_rounded(s, v) for s, v in zip(scale, values[0], strict=True)):
            scale = 2.0 ** np.round(np.log2(scale))
        scaled = self.scaled(plain, float(scale[0]) if np.ptp(scale) == 0 else scale)
        right, bounds = self._right(values, plain.shape, scale, parameter, unlimited, sense)
        self.compare(scaled, sense, bounds, right)

    def _right(
        self,
        values: np.ndarray,
        shape: tuple[int, ...],
        scale: np.ndarray,
        parameter: bool,
        unlimited: bool = False,
        sense: str = "<=",
    ) -> tuple[str, list[Term]]:
        """The text at the right of a comparison, and its entries: ``scale * values``, rounded towards more room."""
        if not parameter:
            sign = -1.0 if sense == ">=" else 1.0
            numbers = np.array([sign * _times(s, sign * v) for s, v in zip(scale, values[0], strict=True)])
            same = np.all(numbers == numbers[0])
            told = literal(numbers[0] if same and self.happens(0.8) else numbers.reshape(shape))
            return told, [Term(float(v)) for v in numbers]
        attributes = ""
        if np.all(values >= 0) and self.happens(0.3):
            attributes = "nonneg=True"
        name = f"{'limit' if unlimited else 'p'}{len(self.parameters)}"
        single = bool(np.all(values == values[:, :1])) and self.happens(0.8)
        given = values[:, 0] if single else values.reshape(len(values), *shape)
        made = self.parameter(name, given, attributes, unlimited)
        terms = [Term(0.0, ((made.start + (0 if single else i), float(s)),)) for i, s in enumerate(scale)]
        if np.all(scale == 1.0):
            return name, terms
        if np.all(scale == scale[0]):
            return f"{float(scale[0])!r} * {name}", terms
        if single:
            return f"{literal(scale.reshape(shape))} * {name}", terms
        return f"cp.multiply({literal(scale.reshape(shape))}, {name})", terms

    def _scales(self, entries: int, exact: bool) -> np.ndarray:
        """Positive numbers to multiply rows by; powers of two where nothing may be rounded."""
        if self.scaling == "none" or self.happens(0.3):
            return np.ones(entries)
        reach = 3 if self.scaling == "mild" else 12
        if self.scaling == "extreme":
            self.kinds.add("row scales")
        powers = self.generator.integers(-reach, reach + 1, entries)
        if self.happens(0.5):
            powers[:] = powers[0]
        # 1e-11 is not a power of two, but rows of ones times it are rows of equal numbers.
        return 2.0 ** np.round(powers * np.log2(10.0)) if exact else 10.0**powers


def _above(value: Fraction, room: float) -> float:
    return rounded_up(value + Fraction(float(room)))


def _is_rounded(scale: float, value: float) -> bool:
    """Whether a product is: then a row would end a hair beside of where it was meant to, and make a corner too small
    to be seen in floating point.
    """
    product = float(scale * value)
    return np.isfinite(product) and Fraction(product) != Fraction(float(scale)) * Fraction(float(value))


def _times(scale: float, value: float) -> float:
    return float(scale * value) if np.isinf(value) else rounded_up(Fraction(float(scale)) * Fraction(float(value)))
