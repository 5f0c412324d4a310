"""How a declaration is put together: text and rows side by side, around points that are known to be inside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cvxpy as cp
import numpy as np

from fuzzing.declarations import Constraint, Declaration, Line, Parameter, Term, Variable, literal

__all__ = ["Affine", "Builder", "rounded_up"]


@dataclass(frozen=True)
class Affine:
    """Entries that are affine in the columns: text, a matrix and a constant, in C order."""

    text: str
    shape: tuple[int, ...]
    matrix: np.ndarray
    constant: np.ndarray

    def __len__(self) -> int:
        return len(self.constant)

    def exact(self, points: np.ndarray) -> list[list[Fraction]]:
        """The entries at some points, without rounding."""
        found = []
        for point in points:
            at = [Fraction(float(v)) for v in point]
            found.append(
                [
                    sum((Fraction(float(a)) * v for a, v in zip(row, at, strict=True) if a), Fraction(float(c)))
                    for row, c in zip(self.matrix, self.constant, strict=True)
                ]
            )
        return found


def rounded_up(value: Fraction) -> float:
    """The smallest float that is not below."""
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)


class Builder:
    """A declaration in the making.

    ``anchors`` are points of all columns that satisfy every constraint that is asked for by what it leaves room for;
    instances have parameters by which one of the anchors is inside.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.variables: list[Variable] = []
        self.parameters: list[Parameter] = []
        self.values: list[np.ndarray] = []
        """Of every parameter, per instance."""
        self.constraints: list[Constraint] = []
        self.anchors = np.zeros((0, 0))
        self.kinds: set[str] = set()
        self._names: dict[str, Any] = {}

    @property
    def columns(self) -> int:
        return sum(v.size for v in self.variables)

    @property
    def x(self) -> Variable:
        return self.variables[0]

    def variable(self, name: str, shape: tuple[int, ...], attributes: str = "", lines: Sequence[Line] = ()) -> Variable:
        """A further variable. Its rows are given by whoever gives attributes."""
        told = str(shape[0]) if len(shape) == 1 else repr(shape)
        text = f"cp.Variable({told}{', ' if attributes else ''}{attributes})"
        made = Variable(name, shape, text, self.columns, tuple(lines))
        self.variables.append(made)
        self._names[name] = cp.Variable(shape)  # of any values: it evaluates expressions, one column at a time
        return made

    def parameter(self, name: str, values: np.ndarray, attributes: str = "", unlimited: bool = False) -> Parameter:
        """A further parameter, with its values ``(instances, *shape)``."""
        shape = values.shape[1:]
        told = (str(shape[0]) if len(shape) == 1 else repr(shape)) + ", " if shape else ""
        text = f'cp.Parameter({told}name="{name}"{", " if attributes else ""}{attributes})'
        start = sum(p.size for p in self.parameters)
        made = Parameter(name, shape, text, start, unlimited)
        self.parameters.append(made)
        self.values.append(values)
        return made

    def affine(self, text: str) -> Affine:
        """What an expression is, found by its values at 0 and at the unit vectors."""
        expression = eval(text, {"cp": cp, "np": np}, self._names)
        shape = tuple(expression.shape)
        constant = self._at(expression, None)
        matrix = np.stack([self._at(expression, j) - constant for j in range(self.columns)], axis=1)
        return Affine(text, shape, matrix, constant)

    def _at(self, expression: Any, column: int | None) -> np.ndarray:
        for variable in self.variables:
            value = np.zeros(variable.size)
            if column is not None and variable.start <= column < variable.start + variable.size:
                value[column - variable.start] = 1.0
            self._names[variable.name].value = value.reshape(variable.shape)
        value = expression.value
        value = value.toarray() if hasattr(value, "toarray") else np.asarray(value)
        return np.asarray(value, dtype=np.float64).reshape(-1)

    def scaled(self, affine: Affine, scale: np.ndarray | float) -> Affine:
        """Entries times positive numbers, one for each or one for all."""
        if np.all(np.asarray(scale) == 1.0):
            return affine
        if np.ndim(scale) == 0:
            return self.affine(f"{float(scale)!r} * ({affine.text})")
        return self.affine(f"cp.multiply({literal(np.asarray(scale).reshape(affine.shape))}, {affine.text})")

    def add(self, text: str, lines: Sequence[Line]) -> None:
        """A constraint."""
        self.constraints.append(Constraint(text, tuple(lines)))

    def compare(self, affine: Affine, sense: str, bounds: Sequence[Term], right: str) -> None:
        """``affine sense right``; ``bounds`` are the entries of ``right``."""
        self.add(f"{affine.text} {sense} {right}", lines_of(affine, sense, bounds))

    def finish(self, **more: Any) -> Declaration:
        """What was put together."""
        return Declaration(
            tuple(self.variables), tuple(self.parameters), tuple(self.constraints), frozenset(self.kinds), **more
        )

    def theta(self) -> np.ndarray:
        """Values of all parameters, per instance."""
        return np.concatenate([v.reshape(len(v), -1) for v in self.values], axis=1)


def lines_of(affine: Affine, sense: str, bounds: Sequence[Term]) -> list[Line]:
    """The rows of a comparison."""
    return [
        _line(row, constant, sense, bound)
        for row, constant, bound in zip(affine.matrix, affine.constant, bounds, strict=True)
    ]


def _line(row: np.ndarray, constant: float, sense: str, bound: Term) -> Line:
    assert constant == 0.0 or not bound.constant, "the constant of an expression and its bound would be rounded"
    sign = -1.0 if sense == ">=" else 1.0
    right = Term(sign * (bound.constant - constant), tuple((k, sign * f) for k, f in bound.parameters))
    return Line({int(j): Term(sign * float(row[j])) for j in np.flatnonzero(row)}, right, sense == "==")


@dataclass(frozen=True)
class Atom:
    """A function that is piecewise linear: its text around an argument, and the rows that say that it is at most t."""

    text: str
    combinations: tuple[tuple[float, ...], ...]
    """Each a linear function of the entries of the argument."""

    def of(self, builder: Builder, argument: Affine) -> tuple[str, list[np.ndarray]]:
        """The text, and a row for every combination."""
        return self.text.format(argument.text), [np.array(c) @ argument.matrix for c in self.combinations]


def atoms(entries: int) -> list[Atom]:
    """Those that take an argument of so many entries, and have few rows."""
    signs = list(itertools.product((1.0, -1.0), repeat=entries))
    unit = np.eye(entries)
    found = [Atom("cp.max({})", tuple(map(tuple, unit))), Atom("-cp.min({})", tuple(map(tuple, -unit)))]
    found.append(Atom("cp.norm_inf({})", tuple(map(tuple, np.vstack([unit, -unit])))))
    if entries <= 5:
        found += [Atom("cp.norm1({})", tuple(signs)), Atom("cp.sum(cp.abs({}))", tuple(signs))]
        subsets = tuple(itertools.product((1.0, 0.0), repeat=entries))
        found.append(Atom("cp.sum(cp.pos({}))", subsets))
    if 2 <= entries <= 6:
        steps = tuple(tuple(a - b) for a, b in itertools.permutations(unit, 2))
        found.append(Atom("(cp.max({0}) - cp.min({0}))", steps))
        differences = np.diff(unit, axis=0)
        variation = tuple(tuple(np.array(s) @ differences) for s in itertools.product((1.0, -1.0), repeat=entries - 1))
        found.append(Atom("cp.tv({})", variation))
        for most in range(2, entries):
            chosen = tuple(tuple(unit[list(c)].sum(0)) for c in itertools.combinations(range(entries), most))
            found.append(Atom(f"cp.sum_largest({{}}, {most})", chosen))
            found.append(Atom(f"-cp.sum_smallest({{}}, {most})", tuple(tuple(-np.array(c)) for c in chosen)))
    return found
