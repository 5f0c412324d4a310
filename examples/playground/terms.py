"""Expressions of the small language: numbers, variables of cvxpy, and what is made of them.

Each has a bound on its numbers, so that no chain of products makes them huge.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np

__all__ = ["FUNCTIONS", "INSTEAD", "ROWS", "STATEMENTS", "Refused", "Term", "Terms"]

ROWS = 120
"""An expression has at most so many entries, and so have all constraints together."""
LARGEST, SMALLEST, PRODUCT = 1e4, 1e-4, 1e6
FUNCTIONS = ("sum", "norm", "abs", "max", "min")
STATEMENTS = "a line is a variable (x = Variable(2)), a constant (A = [[1, 2], [3, 4]]) or a constraint (x <= 1)"
OPERATORS = "+, -, * and / by numbers, @ with lists of numbers, indexing, sum, norm, abs, max, min, <=, >= and =="
LOOPS = "loops are not in it: write one constraint for each case"
IMPORTS = "nothing is imported: Variable, sum, norm, abs, max and min are there"
INSTEAD: dict[type[ast.AST], str] = {
    ast.Pow: "powers are not in it: write norm(x) <= 2 for x[0]**2 + x[1]**2 <= 4",
    ast.Attribute: "there are no attributes and modules: write sum(x) for x.sum(), [1, 2] for numpy.array([1, 2])",
    ast.Lambda: "functions cannot be made",
    ast.ListComp: LOOPS,
    ast.GeneratorExp: LOOPS,
    ast.For: LOOPS,
    ast.While: LOOPS,
    ast.Lt: "points on the boundary belong to the polytope: write <=",
    ast.Gt: "points on the boundary belong to the polytope: write >=",
    ast.NotEq: "a set without these points is not convex: leave the line out",
    ast.BoolOp: "write two constraints in two lines for 'and'; 'or' needs boolean variables",
    ast.IfExp: "a choice needs boolean variables",
    ast.Import: IMPORTS,
    ast.ImportFrom: IMPORTS,
    ast.AugAssign: "names keep what they were given: take another name",
}
"""What to write instead of what people are likely to try."""


class Refused(ValueError):
    """What was typed is not in the language; the message has the line, what was given, and what to write instead."""


@dataclass(frozen=True)
class Term:
    """A number, an array of numbers or an expression, and a bound on its numbers or coefficients."""

    value: Any
    largest: float

    @property
    def constant(self) -> bool:
        """Whether it is numbers."""
        return not isinstance(self.value, cp.Expression)


@dataclass
class Terms:
    """Reads expressions of a text, with the names that it has declared so far."""

    text: str
    variables: dict[str, cp.Variable] = field(default_factory=dict)
    constants: dict[str, Term] = field(default_factory=dict)

    def refused(self, node: ast.AST, why: str) -> Refused:
        """Why a part of the text is refused."""
        given = " ".join((ast.get_source_segment(self.text, node) or "this").split())
        return Refused(f"line {getattr(node, 'lineno', 1)}: {given[:60] + ' …' * (len(given) > 60)}: {why}")

    def refused_kind(self, node: ast.AST, *, of: ast.AST | None = None) -> Refused:
        """Why a part is refused for the kind of it, or of a piece of it, and what there is instead."""
        kind = of or node
        instead = INSTEAD.get(type(kind), f"{type(kind).__name__} is not in the language")
        return self.refused(node, f"{instead}. Accepted are {OPERATORS}")

    def term(self, node: ast.expr) -> Term:
        """Any expression."""
        match node:
            case ast.Constant(value=bool()):
                raise self.refused(node, "True and False belong to variables: Variable(3, boolean=True)")
            case ast.Constant(value=int() | float() as number):
                return self.number(node, number)
            case ast.Constant(value=value):
                raise self.refused(node, f"texts and the like are no numbers: it is a {type(value).__name__}")
            case ast.Name(id=name):
                return self.named(node, name)
            case ast.List():
                return self.listed(node)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.term(operand)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                one = self.term(operand)
                return Term(-one.value, one.largest)
            case ast.BinOp(left=left, op=operator, right=right):
                return self.combined(node, operator, self.term(left), self.term(right))
            case ast.Subscript(value=value, slice=index):
                one = self.term(value)
                return self.bounded(node, one.value[self.index(index)], one.largest)
            case ast.Call():
                return self.function(node)
        raise self.refused_kind(node)

    def number(self, node: ast.expr, number: float) -> Term:
        """A number that is neither huge nor tiny."""
        if number != 0 and not SMALLEST <= abs(number) <= LARGEST:
            raise self.refused(node, f"numbers lie between {SMALLEST:g} and {LARGEST:g}, or are 0: choose other units")
        return Term(np.float64(number), abs(float(number)))

    def named(self, node: ast.expr, name: str) -> Term:
        """A variable or a constant by its name."""
        if name in self.variables:
            return Term(self.variables[name], 1.0)
        if name in self.constants:
            return self.constants[name]
        if name in (*FUNCTIONS, "Variable"):
            raise self.refused(node, f"{name} is a function: write {name}(x)")
        known = ", ".join([*self.variables, *self.constants]) or "none"
        raise self.refused(node, f"nothing has this name; names so far are: {known}. Declare it in a line above")

    def listed(self, node: ast.List) -> Term:
        """Numbers, or rows of numbers."""
        rows = [self.term(part) for part in node.elts]
        shapes = {np.shape(row.value) for row in rows if row.constant}
        if not rows or not all(row.constant for row in rows) or len(shapes) != 1 or len(next(iter(shapes))) > 1:
            raise self.refused(
                node, "a list has numbers, [1, 2], or rows of numbers that are equally long, [[1, 2], [3, 4]]"
            )
        return self.bounded(node, np.array([row.value for row in rows]), max(row.largest for row in rows))

    def combined(self, node: ast.expr, operator: ast.operator, left: Term, right: Term) -> Term:
        """Two terms with an operator between them."""
        match operator:
            case ast.Add():
                return self.bounded(node, left.value + right.value, left.largest + right.largest)
            case ast.Sub():
                return self.bounded(node, left.value - right.value, left.largest + right.largest)
            case ast.Mult():
                if not any(one.constant and np.ndim(one.value) == 0 for one in (left, right)):
                    raise self.refused(
                        node,
                        "* is by a number: write [1, 2] @ x for a sum with weights; a product of two "
                        "variables is not convex",
                    )
                return self.bounded(node, left.value * right.value, left.largest * right.largest)
            case ast.Div():
                if not right.constant or np.ndim(right.value) or right.value == 0:
                    raise self.refused(node, "/ is by a number other than 0: write x / 2")
                return self.bounded(node, left.value / right.value, left.largest / abs(float(right.value)))
            case ast.MatMult():
                if not (left.constant or right.constant):
                    raise self.refused(
                        node, "@ is between numbers and a variable, A @ x: products of variables are not convex"
                    )
                inner = np.shape(left.value)[-1:] or (1,)
                return self.bounded(node, left.value @ right.value, inner[0] * left.largest * right.largest)
        raise self.refused_kind(node, of=operator)

    def function(self, node: ast.Call) -> Term:
        """One of the functions."""
        name = self.called(node)
        if name not in FUNCTIONS:
            what = "Variable stands alone in its line: y = Variable(3)" if name == "Variable" else "no such function"
            raise self.refused(node, f"{what}. Functions are {', '.join(FUNCTIONS)}")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if not node.args or set(keywords) - {"axis"} or (keywords and name not in ("sum", "max", "min")):
            raise self.refused(
                node, f"{name} takes an expression, and axis=0 or axis=1 for sum, max and min: {name}(x)"
            )
        axis = {"axis": self.whole(keywords["axis"])} if keywords else {}
        if name == "norm" and len(node.args) <= 2:
            return self.norm(node, self.term(node.args[0]), node.args[1:])
        terms = [self.term(part) for part in node.args]
        if len(terms) > 1 and name in ("max", "min") and not axis:
            made = (cp.maximum if name == "max" else cp.minimum)(*(one.value for one in terms))
            return self.bounded(node, made, sum(one.largest for one in terms))
        if len(terms) > 1:
            raise self.refused(node, f"{name} takes one expression here, but got {len(terms)}")
        one = terms[0]
        return self.bounded(node, getattr(cp, name)(one.value, **axis), one.largest * max(1, np.size(one.value)))

    def norm(self, node: ast.Call, one: Term, kinds: list[ast.expr]) -> Term:
        """A norm, which may be named in the second place."""
        match kinds:
            case []:
                kind: Any = 2
            case [ast.Name(id="inf")]:
                kind = "inf"
            case [ast.Constant(value=1 | 2 as number)] if isinstance(number, int):
                kind = int(number)
            case _:
                raise self.refused(node, "norms are norm(x), norm(x, 1) and norm(x, inf)")
        if len(getattr(one.value, "shape", ())) > 1:
            raise self.refused(node, "norms are those of vectors: write norm(y[0, :])")
        return self.bounded(node, cp.norm(one.value, kind), one.largest * max(1, np.size(one.value)))

    def called(self, node: ast.Call) -> str:
        """The name of a function, with or without cp. before it."""
        match node.func:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="cp"), attr=name):
                return name
        raise self.refused_kind(node, of=node.func)

    def index(self, node: ast.expr) -> Any:
        """Whole numbers and slices."""
        match node:
            case ast.Tuple(elts=parts):
                return tuple(self.index(part) for part in parts)
            case ast.Slice(lower=lower, upper=upper, step=None):
                return slice(*(None if bound is None else self.whole(bound) for bound in (lower, upper)))
        return self.whole(node)

    def whole(self, node: ast.expr) -> int:
        """A whole number."""
        match node:
            case ast.Constant(value=int() as number) if not isinstance(number, bool) and number <= LARGEST:
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.whole(operand)
        raise self.refused(node, "here stands a whole number, such as 0 or 2")

    def bounded(self, node: ast.expr, value: Any, largest: float) -> Term:
        """A term, where it is neither large nor of large numbers."""
        if isinstance(value, cp.Expression) and value.is_constant():
            value = np.asarray(value.value, dtype=np.float64)[()]
        if math.prod(getattr(value, "shape", ())) > ROWS:
            raise self.refused(node, f"this has more than {ROWS} entries: take smaller lists")
        if not largest <= PRODUCT:
            raise self.refused(node, f"numbers multiply to more than {PRODUCT:g} here: choose other units")
        return Term(value, largest)
