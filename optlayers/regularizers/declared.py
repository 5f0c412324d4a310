"""Any convex expression of cvxpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, final

import cvxpy as cp
from cvxpy.error import DCPError

from optlayers.common.caches import Cache
from optlayers.form.cones import ConeProgram, OtherCones, cone_program
from optlayers.form.quadratic import NeedsCones, QuadraticProgram, quadratic_program
from optlayers.form.rewriting import short
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer, AbstractWholeRegularizer
from optlayers.solvers.conic import ConicProgram
from optlayers.variables import described

__all__ = ["Declared", "regularizer_of"]

NOT_OF_PARTS = "a declared expression is of all variables together: it is no sum over the parts of a structure"
ROOTS = (
    "parameters of the regularizer {} do not enter it affinely (cvxpy's DPP rules), as they must over a set that is "
    "not polyhedral: give a covariance by its root, cp.sum_squares(root @ x), and a product of parameters as one"
)
KEPT = 16
"""For so many polytopes is an expression kept compiled."""


@final
@dataclass(frozen=True, eq=False)
class Declared(AbstractWholeRegularizer):
    r"""A convex expression of the variables of a declaration, with parameters in it.

    Sums of quadratic and piecewise linear terms (``quad_form``, ``sum_squares``, ``huber``, ``norm1``, ``tv``, ``max``,
    …) go to the compiled solvers. What needs other cones (``norm2``, ``entr``, ``exp``, …) goes to Clarabel, one
    instance after the other, and is differentiated by cvxpylayers: that is slower, and that a point is best is then
    Clarabel's word.

    Where it mentions auxiliary variables y, the regularized point is :math:`\operatorname{argmax}_{z} \langle s, z
    \rangle - \min_y \Omega(z, y)`. An expression need not be strictly convex, so that several points may be best: then
    one of them is answered, and there is a derivative in the directions alone in which they agree.

    Parameters
    ----------
    expression : of the variables that the polytope is declared with, and named parameters. The matrix of
        ``cp.quad_form`` may be a parameter that is declared ``PSD=True``, of which the symmetric part counts.

    Raises
    ------
    DeclarationError : for an expression that is not convex by cvxpy's rules, or not a number, or mentions no variable.
    """

    expression: cp.Expression
    number_name = "expression"
    why_whole = NOT_OF_PARTS

    def __post_init__(self) -> None:
        expression = self.expression
        if not isinstance(expression, cp.Expression):
            raise TypeError(f"a declared regularizer is an expression of cvxpy, but got {expression!r}")
        if not expression.is_scalar():
            raise DeclarationError(
                f"a regularizer is a number, but {short(expression)} has shape {expression.shape}: sum it, cp.sum(…)"
            )
        if not expression.variables():
            raise DeclarationError(f"the regularizer {short(expression)} mentions no variable")
        if expression.is_complex() or not expression.is_convex():
            raise DeclarationError(
                f"the regularizer {short(expression)} is not convex by cvxpy's rules (DCP){_why(expression)}"
            )
        object.__setattr__(self, "_programs", Cache(KEPT))
        object.__setattr__(self, "_over_cones", Cache(KEPT))

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """Those of the expression."""
        return tuple({p.id: p for p in self.expression.parameters()}.values())

    def over(self, polytope: Polytope) -> QuadraticProgram | ConicProgram:
        """The expression over a polytope that knows its parameters, compiled when it is first asked for.

        Raises
        ------
        DeclarationError : when it mentions variables that the polytope has not, or parameters in ways that are not
            affine.
        """
        kept: Cache[Polytope, QuadraticProgram | ConicProgram] = self._programs  # type: ignore[attr-defined]
        return kept.get(polytope, self._compiled)

    def over_cones(self, polytope: Polytope) -> ConeProgram | ConicProgram:
        """The expression over a set that is not polyhedral, compiled when it is first asked for."""
        kept: Cache[Polytope, ConeProgram | ConicProgram] = self._over_cones  # type: ignore[attr-defined]
        return kept.get(polytope, self._with_cones)

    def _with_cones(self, polytope: Polytope) -> ConeProgram | ConicProgram:
        self._check_names(polytope)
        if not self.expression.is_dpp():
            raise DeclarationError(ROOTS.format(short(self.expression)))
        try:
            return cone_program(polytope, self.expression)
        except OtherCones as error:
            return ConicProgram(polytope, self.expression, f"the regularizer {short(self.expression)}: {error}")

    def _compiled(self, polytope: Polytope) -> QuadraticProgram | ConicProgram:
        self._check_names(polytope)
        try:
            return quadratic_program(polytope, self.expression)
        except NeedsCones as error:
            return ConicProgram(polytope, self.expression, str(error))

    def _check_names(self, polytope: Polytope) -> None:
        """Refuse variables and parameters that a polytope does not have."""
        known = {variable.id for variable in polytope.variables}
        foreign = [described(variable) for variable in self.expression.variables() if variable.id not in known]
        if foreign:
            raise DeclarationError(
                f"the regularizer {short(self.expression)} mentions {', '.join(foreign)}, which no constraint of the "
                f"polytope does: its variables are {', '.join(map(described, polytope.variables))} (an "
                "expression is of the variables of one polytope; polytopes of a family have variables of their own)"
            )
        missing = {p.id: p.name() for p in self.parameters}
        for parameter in polytope.parameters:
            missing.pop(parameter.id, None)
        if missing:
            raise TypeError(
                f"the polytope does not know the parameters {list(missing.values())} of {self!r}: layers make them "
                "known; for a compiled polytope, compile polytope.beside(regularizer.parameters)"
            )

    @property
    def number(self) -> NoReturn:
        """There is none for a part."""
        raise NotImplementedError(NOT_OF_PARTS)

    @property
    def _key(self) -> Any:
        return id(self.expression)

    def check_shape(self, form: StandardForm) -> None:
        """Refuse polytopes of other variables."""
        self.over(form.polytope)

    @property
    def projects(self) -> float | None:
        """Whether it is a squared norm is not looked at."""
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Declared:
        # As of a polytope: cvxpy tells variables apart by identity.
        return self

    def __repr__(self) -> str:
        return f"Declared({short(self.expression)})"


def regularizer_of(given: Any) -> AbstractRegularizer:
    """A regularizer as it is, or the one that an expression declares.

    Raises
    ------
    TypeError : for anything else.
    DeclarationError : see :class:`Declared`.
    """
    if isinstance(given, AbstractRegularizer):
        return given
    if isinstance(given, cp.Expression):
        return Declared(given)
    hint = f"; make it a value: {given.__name__}()" if isinstance(given, type) else ""
    raise TypeError(f"regularizer must be one such as Entropy(), or an expression of cvxpy, but got {given!r}{hint}")


def _why(expression: cp.Expression) -> str:
    """What cvxpy says of an expression that is not convex."""
    try:
        cp.Problem(cp.Minimize(expression)).get_problem_data(cp.CLARABEL)
    except DCPError as error:
        return f". cvxpy says: {' '.join(str(error).split())}"
    return ""
