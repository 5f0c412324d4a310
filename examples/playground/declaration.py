"""Declarations that are typed: a small language, read by Python's ``ast`` and never executed.

    x = Variable(3, nonneg=True)    # the scored variable: 2 or 3 parts
    x[0] + x[1] <= 1
    sum(x) <= 1.5

A line declares a variable, names a constant, or is a constraint. The meaning is that of cvxpy. What is not in the
language is refused with its line; sizes and numbers are bounded, so that nothing typed takes long.
"""

from __future__ import annotations

import ast
import math
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
from playground.terms import FUNCTIONS, INSTEAD, ROWS, STATEMENTS, Refused, Terms

import optlayers as ol

__all__ = ["Refused", "read"]

CHARACTERS, NODES, DEPTH = 2000, 800, 30
ENTRIES = 24
"""All variables together have so many entries."""
COMBINATIONS = 4096
"""Integer variables have so many combinations of values."""
ATTRIBUTES = ("nonneg", "boolean", "integer", "bounds")


def read(text: str) -> ol.Polytope:
    """The polytope that a text declares.

    Raises
    ------
    Refused : for whatever is not in the language, or beyond its limits.
    """
    if len(text) > CHARACTERS:
        raise Refused(f"the text has {len(text):,} characters, and {CHARACTERS:,} are read: write a shorter one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that run into words
            tree = ast.parse(text)
    except SyntaxError as error:
        raise Refused(f"line {error.lineno or 1}: this is not Python ({error.msg}); {STATEMENTS}") from None
    except (ValueError, MemoryError, RecursionError):
        raise Refused(f"this is nested too deeply, or has characters that are no text; {STATEMENTS}") from None
    _refuse_large(tree)
    return _Declaration(text).polytope(tree)


def _refuse_large(tree: ast.AST) -> None:
    """What is small is then read by recursion."""
    found, waiting = 0, [(tree, 0, 1)]
    while waiting:
        node, depth, line = waiting.pop()
        line = getattr(node, "lineno", line)
        found += 1
        if depth > DEPTH:
            raise Refused(f"line {line}: this is nested more than {DEPTH} deep: name constants, or write sum(x)")
        waiting += [(child, depth + 1, line) for child in ast.iter_child_nodes(node)]
    if found > NODES:
        raise Refused(
            f"the text has {found:,} operations, names and numbers, and {NODES} are read: write a shorter one"
        )


@dataclass
class _Declaration(Terms):
    """What the lines up to here have declared."""

    constraints: list[cp.Constraint] = field(default_factory=list)
    combinations: int = 1

    def polytope(self, tree: ast.Module) -> ol.Polytope:
        """Read all lines."""
        for statement in tree.body:
            try:
                self.statement(statement)
            except Refused:
                raise
            except Exception as error:  # what cvxpy says of shapes and signs, in many kinds of exceptions
                said = " ".join(str(error).split()) or type(error).__name__
                raise self.refused(statement, f"cvxpy says: {said}") from None
        if "x" not in self.variables:
            raise Refused("there is no x: the first line declares the scored variable, x = Variable(2) or Variable(3)")
        x = self.variables["x"]
        if x.shape not in ((2,), (3,)):
            raise Refused(
                f"x has shape {x.shape}, but 2 or 3 parts are drawn: x = Variable(2) or x = Variable(3); further "
                "variables may be larger"
            )
        return ol.Polytope(x, self.constraints)

    def statement(self, node: ast.stmt) -> None:
        """Read one line."""
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.assign(node, name, value)
            case ast.Expr(value=ast.Tuple(elts=parts) | ast.List(elts=parts)):
                for part in parts:
                    self.constrain(part)
            case ast.Expr(value=value):
                self.constrain(value)
            case _:
                raise self.refused(
                    node, f"{INSTEAD.get(type(node), 'this is no line of the language')}. Here {STATEMENTS}"
                )

    def assign(self, node: ast.stmt, name: str, value: ast.expr) -> None:
        """A variable or a constant gets its name."""
        if name in self.variables or name in self.constants or name in (*FUNCTIONS, "Variable", "inf"):
            raise self.refused(node, f"the name {name} is taken: take another one")
        if isinstance(value, ast.Call) and self.called(value) == "Variable":
            self.variables[name] = self.variable(name, value)
            return
        term = self.term(value)
        if not term.constant:  # names of expressions would let their sizes double from line to line
            raise self.refused(node, "names are for variables and constants: write the expression where it is needed")
        self.constants[name] = term

    def variable(self, name: str, node: ast.Call) -> cp.Variable:
        """A variable within the bounds on sizes."""
        shape = self.shape(node)
        entries = sum(v.size for v in self.variables.values()) + math.prod(shape)
        if entries > ENTRIES:
            raise self.refused(
                node, f"all variables have {entries} entries together, and {ENTRIES} are allowed: take fewer"
            )
        given: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg not in ATTRIBUTES:
                raise self.refused(node, f"a variable may have {', '.join(ATTRIBUTES)}, but got {keyword.arg}")
            given[keyword.arg] = self.bounds(keyword.value) if keyword.arg == "bounds" else self.flag(keyword.value)
        if given.get("boolean") and sum(value is not False for value in given.values()) > 1:
            raise self.refused(node, "boolean=True says all about a variable: leave the other words out")
        if given.get("integer") and "bounds" not in given:
            raise self.refused(node, "integers need bounds: Variable(2, integer=True, bounds=[0, 6])")
        if given.get("integer") or given.get("boolean"):
            low, high = given.get("bounds", [0.0, 1.0])
            self.combinations *= max(1, math.floor(high) - math.ceil(low) + 1) ** math.prod(shape)
            if self.combinations > COMBINATIONS:
                raise self.refused(
                    node,
                    f"the integers up to here have {self.combinations:,} combinations of values, and {COMBINATIONS:,} "
                    "are allowed: take fewer entries or tighter bounds",
                )
        return cp.Variable(shape, name=name, **given)

    def shape(self, node: ast.Call) -> tuple[int, ...]:
        """The shape of a variable."""
        match node.args:
            case []:
                shape: tuple[int, ...] = ()
            case [ast.Tuple(elts=parts)]:
                shape = tuple(self.whole(part) for part in parts)
            case [size]:
                shape = (self.whole(size),)
            case _:
                raise self.refused(node, "Variable takes one size: Variable(3), or Variable((2, 3)) for a matrix")
        if len(shape) > 2 or not all(1 <= size <= ENTRIES for size in shape):
            raise self.refused(
                node, f"a variable has one or two dimensions, each of 1 to {ENTRIES} entries: Variable(3)"
            )
        return shape

    def flag(self, node: ast.expr) -> bool:
        """True or False."""
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return node.value
        raise self.refused(node, "write True or False")

    def bounds(self, node: ast.expr) -> list[float]:
        """Two numbers."""
        term = self.term(node)
        if not term.constant or np.shape(term.value) != (2,) or not term.value[0] <= term.value[1]:
            raise self.refused(node, "bounds are two numbers, the smaller one first: bounds=[0, 6]")
        return [float(bound) for bound in term.value]

    def constrain(self, node: ast.expr) -> None:
        """One constraint, or several in a chain: 0 <= x <= 1."""
        if not isinstance(node, ast.Compare):
            if type(node) in INSTEAD:
                raise self.refused_kind(node)
            raise self.refused(node, f"this line says nothing about x: {STATEMENTS}")
        terms = [self.term(part) for part in (node.left, *node.comparators)]
        for operator, (left, right) in zip(node.ops, pairwise(terms), strict=True):
            if left.constant and right.constant:
                raise self.refused(node, "a constraint compares at least one variable: x[0] <= 1")
            match operator:
                case ast.LtE():
                    made = left.value <= right.value
                case ast.GtE():
                    made = left.value >= right.value
                case ast.Eq():
                    made = left.value == right.value
                case _:
                    raise self.refused_kind(node, of=operator)
            self.constraints.append(made)
        rows = sum(constraint.size for constraint in self.constraints)
        if rows > ROWS:
            raise self.refused(
                node, f"the constraints have {rows} rows up to here, and {ROWS} are allowed: write fewer"
            )
