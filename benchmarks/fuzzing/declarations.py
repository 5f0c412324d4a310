"""Declarations that know themselves twice: as the lines of Python that a user would write, and as rows of numbers.

The text is what optlayers gets, the rows are what the judge gets. Both are made from the same numbers, and a test holds
them against each other through cvxpy's own evaluation of constraints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import cvxpy as cp
import numpy as np

from fuzzing.exact import Empty, Polyhedron, Row

__all__ = ["Constraint", "Declaration", "Line", "Parameter", "Term", "Variable", "literal"]

Number = Fraction | float
"""A fraction, or an infinity."""
EPS = Fraction(1, 2**52)


@dataclass(frozen=True)
class Term:
    """A constant and multiples of parameters, by their place in the vector of all of them."""

    constant: float = 0.0
    parameters: tuple[tuple[int, float], ...] = ()

    def at(self, theta: Sequence[Number]) -> Number:
        """The number for some values of the parameters."""
        total: Number = exact(self.constant)
        for place, factor in self.parameters:
            value = theta[place]
            if isinstance(value, float):  # an infinity
                return math.copysign(math.inf, value * factor)
            total = total + Fraction(factor) * value if isinstance(total, Fraction) else total
        return total


@dataclass(frozen=True)
class Line:
    """A row of the constraints: ``sum of coefficient * column <= bound``, or ``==``."""

    coefficients: Mapping[int, Term]
    bound: Term
    equality: bool = False

    def row(self, theta: Sequence[Number], columns: int) -> Row | None:
        """With numbers for the parameters; None where it does not bind.

        Raises
        ------
        Empty : when the bound is minus infinity.
        """
        bound = self.bound.at(theta)
        if isinstance(bound, float):
            if bound > 0 and not self.equality:
                return None
            raise Empty
        entries = [Fraction(0)] * columns
        for column, term in self.coefficients.items():
            value = term.at(theta)
            if isinstance(value, float):
                raise ValueError("a coefficient is infinite")
            entries[column] = value
        return Row(tuple(entries), bound, self.equality)


@dataclass(frozen=True)
class Variable:
    """A cvxpy variable, and the rows that its attributes stand for."""

    name: str
    shape: tuple[int, ...]
    text: str
    start: int
    lines: tuple[Line, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Parameter:
    """A cvxpy parameter."""

    name: str
    shape: tuple[int, ...]
    text: str
    start: int
    unlimited: bool = False
    """Whether it may be infinite."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Constraint:
    """A cvxpy constraint, and its rows."""

    text: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, eq=False)
class Declaration:
    """A polytope; its first variable is the structure."""

    variables: tuple[Variable, ...]
    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...]
    kinds: frozenset[str] = frozenset()
    """What is not ordinary about its numbers."""
    made_by: str | None = None
    """The call of a function that returns it, where it is one of the catalogue."""
    vertices: tuple[tuple[float, ...], ...] | None = field(default=None, repr=False)
    """For an oracle, which is part of the declaration then."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.variables[0].shape

    @property
    def size(self) -> int:
        return self.variables[0].size

    @property
    def columns(self) -> int:
        return sum(variable.size for variable in self.variables)

    @property
    def lifted(self) -> bool:
        """Whether there are auxiliary variables."""
        return len(self.variables) > 1

    @property
    def parameter_count(self) -> int:
        return sum(parameter.size for parameter in self.parameters)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Of all variables and constraints."""
        return tuple(line for part in (*self.variables, *self.constraints) for line in part.lines)

    def rows(self, theta: Sequence[Number], forbidden: Sequence[int] = ()) -> list[Row]:
        """With numbers for the parameters, and parts that are fixed at 0."""
        numbers = [exact(value) for value in theta]
        found = [row for line in self.lines if (row := line.row(numbers, self.columns)) is not None]
        for part in forbidden:
            entries = tuple(Fraction(int(j == part)) for j in range(self.columns))
            found.append(Row(entries, Fraction(0), equality=True))
        return found

    def loosened(
        self, theta: Sequence[Number], forbidden: Sequence[int], rounding: Fraction, equalities_alone: bool
    ) -> list[Row]:
        """Rows that give way by what a relative rounding of each number at their right can do.

        That of constants is the one of float64. An equality becomes two rows; other rows may be left as they are.
        """
        numbers = [exact(value) for value in theta]
        found = []
        for line in self.lines:
            row = line.row(numbers, self.columns)
            if row is None:
                continue
            given = abs(Fraction(line.bound.constant)) * EPS
            for place, factor in (
                *line.bound.parameters,
                *(t for c in line.coefficients.values() for t in c.parameters),
            ):
                value = numbers[place]
                given += rounding * abs(Fraction(factor) * value) if isinstance(value, Fraction) else 0
            if equalities_alone and not row.equality:
                given = Fraction(0)
            found.append(Row(row.coefficients, row.bound + given))
            if row.equality:
                found.append(Row(tuple(-a for a in row.coefficients), given - row.bound))
        for part in forbidden:
            entries = tuple(Fraction(int(j == part)) for j in range(self.columns))
            found.append(Row(entries, Fraction(0), equality=True))
        return found

    def polyhedron(self, theta: Sequence[Number], forbidden: Sequence[int] = ()) -> Polyhedron:
        """The lifted polytope.

        Raises
        ------
        Empty : when there is no point.
        """
        return Polyhedron(self.rows(theta, forbidden), self.columns)

    def source(self) -> str:
        """The declaration as Python; it names the polytope ``polytope``."""
        if self.made_by is not None:
            return f"polytope = {self.made_by}\n"
        lines = [f"{p.name} = {p.text}" for p in self.parameters]
        lines += [f"{v.name} = {v.text}" for v in self.variables]
        inside = "".join(f"    {c.text},\n" for c in self.constraints)
        oracle = ""
        if self.vertices is not None:
            lines += [f"V = {literal(np.array(self.vertices))}", ORACLE.format(shape=self.shape)]
            oracle = ", oracle=best"
        lines.append(f"polytope = ol.Polytope({self.variables[0].name}, [\n{inside}]{oracle})")
        return "\n".join(lines) + "\n"

    def build(self) -> Any:
        """The polytope, made by running the text."""
        import optlayers as ol
        import polytopes

        names: dict[str, Any] = {"cp": cp, "np": np, "ol": ol, "polytopes": polytopes}
        exec(self.source(), names)
        return names["polytope"]

    def without(self, position: int) -> Declaration:
        """With one constraint less."""
        rest = self.constraints[:position] + self.constraints[position + 1 :]
        return replace(self, constraints=rest)


ORACLE = """
def best(scores, *parameters):
    flat = scores.reshape(-1)
    blocked = ((V != 0) & np.isneginf(flat)).any(axis=1)
    small = np.where(np.isneginf(flat), 0.0, flat / 1024)  # so that no sum is infinite
    values = np.where(V == 0, 0.0, V * small).sum(axis=1)
    first = np.argmax(np.where(blocked, -np.inf, values))
    return np.full({shape}, np.nan) if blocked.all() else V[first].reshape({shape})

""".strip()


def exact(value: Number) -> Number:
    """A float as a fraction; an infinity stays."""
    if isinstance(value, Fraction):
        return value
    value = float(value)
    return value if math.isinf(value) else Fraction(value)


def literal(array: np.ndarray | float) -> str:
    """Numbers as Python writes them, none of them rounded."""
    if np.ndim(array) == 0:
        return _number(float(array))
    return f"np.array({_nested(np.asarray(array))})"


def _nested(array: np.ndarray) -> str:
    if array.ndim == 0:
        return _number(float(array))
    return "[" + ", ".join(_nested(part) for part in array) + "]"


def _number(value: float) -> str:
    if math.isinf(value):
        return "np.inf" if value > 0 else "-np.inf"
    return repr(value)
