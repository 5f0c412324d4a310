"""Expressions of cvxpy, rewritten so that parameters enter their quadratic programs affinely."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.binary_operators import MulExpression
from cvxpy.atoms.quad_form import QuadForm

from optlayers.form.standard import DeclarationError

__all__ = ["Factored", "Rewriting", "short"]

SHOWN = 60
"""Characters of an expression that messages show."""
NOTHING = 1e-14
"""Eigenvalues that are smaller, next to the largest one, are rounding."""


@final
@dataclass(frozen=True)
class Factored:
    r"""A term :math:`v^\top Q v` with a parameter Q, written as :math:`\|w\|^2` with :math:`w = U v`.

    U is upper triangular with :math:`U^\top U = Q`, and is the parameter ``entries``, whose zeros below the diagonal
    cvxpy does not know.
    """

    matrix: cp.Parameter
    entries: cp.Parameter
    of: cp.Variable
    root: cp.Variable


@final
@dataclass
class Rewriting:
    """An expression over some more variables: its value is the least one that the constraints on these leave.

    ``taken`` are names that parameters and variables must not have.
    """

    taken: set[str]
    constraints: list[cp.Constraint] = field(default_factory=list)
    factored: list[Factored] = field(default_factory=list)

    def expression(self, declared: cp.Expression) -> cp.Expression:
        """The expression that stands for a declared one.

        A quadratic form becomes the squares of a root of its matrix, so that no two variables are multiplied with each
        other, and the matrix may be a parameter. An affine argument with parameters becomes a variable that is equal to
        it, so that what it is in may be multiplied by a parameter.
        """
        if not declared.variables() or (declared.is_affine() and not isinstance(declared, MulExpression)):
            return declared
        if isinstance(declared, QuadForm):
            return self._of_form(declared)
        if isinstance(declared, MulExpression):
            first, second = declared.args
            scaled = bool((first if first.is_constant() else second).parameters())
            arguments = [self.argument(a) if scaled else self.expression(a) for a in declared.args]
        elif isinstance(declared, AffAtom):
            arguments = [self.expression(argument) for argument in declared.args]
        else:
            arguments = [self.argument(argument) for argument in declared.args]
        if all(new is old for new, old in zip(arguments, declared.args, strict=True)):
            return declared
        found: cp.Expression = declared.copy(arguments)
        return found

    def argument(self, declared: cp.Expression) -> cp.Expression:
        """What stands for an argument of an atom, or for what is multiplied by a parameter."""
        if declared.is_constant() or not declared.is_affine():
            return self.expression(declared)
        return self._variable(declared) if declared.parameters() else declared

    def _of_form(self, declared: QuadForm) -> cp.Expression:
        of, matrix = declared.args
        of = self.argument(of)
        if isinstance(matrix, cp.Parameter):
            return self._of_parameter(of, matrix)
        if matrix.parameters():
            raise DeclarationError(
                f"the matrix of {short(declared)} is an expression of parameters: give it as one parameter, "
                "cp.Parameter((n, n), PSD=True, name=…); a number in front of quad_form may be a parameter too"
            )
        value = matrix.value
        value = np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=np.float64)
        if not np.count_nonzero(value - np.diag(np.diagonal(value))):
            return declared.copy([of, matrix])
        values, vectors = np.linalg.eigh(0.5 * (value + value.T))
        kept = np.abs(values) > NOTHING * np.abs(values).max()
        root = (vectors[:, kept] * np.sqrt(np.abs(values[kept]))).T
        squares = cp.sum_squares(root @ cp.vec(of, order="F"))
        return squares if values.sum() > 0.0 else -squares

    def _of_parameter(self, of: cp.Expression, matrix: cp.Parameter) -> cp.Expression:
        if not matrix.attributes.get("PSD"):
            raise DeclarationError(
                f"the matrix {matrix.name()} of a quad_form must be positive semidefinite: declare it as "
                f'cp.Parameter({matrix.shape}, PSD=True, name="{matrix.name()}")'
            )
        if not isinstance(of, cp.Variable) or of.ndim != 1:
            of = self._variable(cp.vec(of, order="F"))
        known = next((f.entries for f in self.factored if f.matrix is matrix), None)
        entries = known
        if entries is None:
            entries = cp.Parameter(matrix.shape, name=self._name(f"root_of_{matrix.name()}"))
        root = self._variable(entries @ of)
        self.factored.append(Factored(matrix, entries, of, root))
        return cp.sum_squares(root)

    def _variable(self, equal_to: cp.Expression) -> cp.Variable:
        variable = cp.Variable(equal_to.shape, name=self._name("of_regularizer"))
        constraint = variable == equal_to
        constraint.set_label("a row of the regularizer")
        self.constraints.append(constraint)
        return variable

    def _name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            name, count = f"{wanted}_{count}", count + 1
        self.taken.add(name)
        return name


def short(expression: cp.Expression) -> str:
    """The text of an expression, as messages show it."""
    text = " ".join(str(expression).replace("Approx(", "(").replace(", None, False)", ")").split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
