r"""A polytope with a convex expression over it, as a quadratic program in standard form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.binary_operators import MulExpression, multiply
from cvxpy.atoms.quad_form import QuadForm

from optlayers.form.compile import canonical_rows, form_of_rows, parameter_columns
from optlayers.form.declaration import parameter_specs
from optlayers.form.presolve import AffineRows
from optlayers.form.rewriting import Factored, Rewriting, short
from optlayers.form.standard import AffineMap, DeclarationError, NotPolyhedral, ParameterSpec, StandardForm
from optlayers.polytope import Polytope

__all__ = ["DenseTerm", "NeedsCones", "QuadraticProgram", "Root", "quadratic_program"]


@final
class NeedsCones(DeclarationError):
    """An expression is convex, but no quadratic program."""


@final
@dataclass(frozen=True)
class Root:
    """Where a matrix that is a parameter stands: its name, that of the entries of its root, and the entries of the
    scored vector that are v and U v in :math:`v^\\top Q v = \\|U v\\|^2`."""

    matrix: str
    entries: str
    of: slice
    root: slice


@final
@dataclass(frozen=True, eq=False)
class DenseTerm:
    """An expression that is nothing but a number times ``quad_form`` of the scored vector: the number, and the name of
    its matrix, or the matrix itself."""

    factor: float
    matrix: str | np.ndarray


@final
@dataclass(frozen=True, eq=False)
class QuadraticProgram:
    r"""``min_y Ω(x, y) = offset(θ) + <cost(θ), z> + ½ Σ weight(θ) z²`` over a standard form.

    The form is that of the polytope with further columns and rows, and its scored vector has further entries behind
    those of the polytope: whatever has a cost or a weight. Its parameters are those of the polytope, but entries of a
    root stand for each matrix of a quadratic form; see ``roots``.
    """

    form: StandardForm
    cost: AffineMap
    weight: AffineMap
    roots: tuple[Root, ...]
    offset: AffineMap
    dense: DenseTerm | None = None
    """The expression itself, where it is one quadratic form of the scored vector."""


def quadratic_program(polytope: Polytope, declared: cp.Expression) -> QuadraticProgram:
    """Compile an expression of the variables of a polytope, whose parameters the polytope knows.

    Raises
    ------
    NeedsCones : when it is no quadratic program.
    DeclarationError : when parameters enter it in a way that has no affine form.
    """
    dense = _dense_term(polytope, declared)
    if polytope.has_integers:
        relaxed = polytope.relaxed()
        pairs = zip(polytope.variables, relaxed.variables, strict=True)
        declared = declared.tree_copy({id(integer): plain for integer, plain in pairs})
        polytope = relaxed.beside(polytope.parameters)
    names = {leaf.name() for leaf in (*polytope.parameters, *polytope.variables)}
    rewriting = Rewriting(names)
    expression = rewriting.expression(declared)
    matrices = {f.matrix.id for f in rewriting.factored}
    constraints = (*polytope.constraints, *rewriting.constraints)
    others = {p.id for p in expression.parameters()} | {p.id for c in constraints for p in c.parameters()}
    for factored in rewriting.factored:
        if factored.matrix.id in others:
            raise DeclarationError(
                f"parameter {factored.matrix.name()} is the matrix of a quad_form and is used elsewhere, too: give it "
                "there as a parameter of its own"
            )
    _check_parametrized(declared, expression, rewriting)
    named = [variable for f in rewriting.factored for variable in (f.of, f.root) if variable is not polytope.variable]
    extended = Polytope(
        polytope.variable,
        constraints,
        scored=[*polytope.scored, *{v.id: v for v in named if not _is_one_of(v, polytope.scored)}.values()],
    ).beside([*(p for p in polytope.parameters if p.id not in matrices), *(f.entries for f in rewriting.factored)])
    specs = parameter_specs(extended)
    try:
        rows, program = canonical_rows(extended, specs, extended.constraints, expression)
    except NotPolyhedral:
        raise NeedsCones(_needs_cones(declared)) from None
    cost, weight, offset = _objective(program, extended, specs)
    priced = np.flatnonzero(np.diff(cost.indptr) + np.diff(weight.indptr))
    order = np.concatenate([rows.structure, np.setdiff1d(priced, rows.structure)])
    rows = _without_zeros_of_roots(rows, specs, [f.entries.name() for f in rewriting.factored])
    form = form_of_rows(extended, specs, _with_structure(rows, order))
    return QuadraticProgram(
        form,
        _map(cost[order]),
        _map(weight[order]),
        tuple(_root(f, form) for f in rewriting.factored),
        _map(offset),
        dense,
    )


def _dense_term(polytope: Polytope, declared: cp.Expression) -> DenseTerm | None:
    """What a number times a quadratic form of the scored vector is; None for other expressions."""
    factor, form = 1.0, declared
    if isinstance(declared, (MulExpression, multiply)):
        number, form = declared.args
        if not number.is_constant() or number.parameters() or number.size != 1:
            return None
        factor = float(np.asarray(number.value).reshape(-1)[0])
    if not (isinstance(form, QuadForm) and form.args[0] is polytope.variable) or polytope.has_integers:
        return None
    matrix = form.args[1]
    if polytope.scored or polytope.variable.ndim != 1 or not factor > 0.0:
        return None
    if isinstance(matrix, cp.Parameter):
        return DenseTerm(factor, matrix.name()) if matrix.attributes.get("PSD") else None
    if matrix.parameters():
        return None
    value = matrix.value
    return DenseTerm(factor, np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=np.float64))


def _is_one_of(variable: cp.Variable, others: Sequence[cp.Variable]) -> bool:
    return any(variable is other for other in others)


def _check_parametrized(declared: cp.Expression, expression: cp.Expression, rewriting: Rewriting) -> None:
    """Refuse what cvxpy cannot write with parameters in affine places."""
    if expression.is_dpp() and all(constraint.is_dpp() for constraint in rewriting.constraints):
        return
    raise DeclarationError(
        f"the regularizer {short(declared)} uses its parameters in a product of parameters or in another way that is "
        "not affine (cvxpy's DPP rules); give the product as one parameter of its own"
    )


def _needs_cones(declared: cp.Expression) -> str:
    """Which atom of an expression makes it more than quadratic and piecewise linear, in words."""
    culprit, inside = declared, True
    while inside:
        inside = False
        for argument in culprit.args:
            if isinstance(argument, cp.Expression) and not argument.is_qpwa():
                culprit, inside = argument, True
                break
    return (
        f"{short(culprit)} in the regularizer {short(declared)} is neither quadratic nor piecewise linear: "
        "only sums of such terms (quad_form, sum_squares, huber, norm1, tv, max, …) go to the compiled solvers"
    )


def _objective(
    program: Any, polytope: Polytope, specs: Sequence[ParameterSpec]
) -> tuple[sp.csr_array, sp.csr_array, sp.csr_array]:
    """Costs and weights ``(columns, 1 + parameters)`` of what cvxpy minimizes, and its constant, at θ = 0 and by θ.

    cvxpy stores both as sparse tensors with one column per entry of its own parameter vector; q has a constant behind
    its entries, and P is flattened in column-major order.
    """
    columns, count = program.x.size, 1 + sum(spec.size for spec in specs)
    theta = parameter_columns(program, polytope, specs)
    linear = sp.coo_array(program.q)
    known = (linear.coords[0] < columns) & (linear.data != 0.0)
    column, entry = linear.coords[0][known], theta[linear.coords[1][known]]
    cost = sp.csr_array((linear.data[known], (column, entry)), shape=(columns, count))
    known = (linear.coords[0] == columns) & (linear.data != 0.0)
    places = np.zeros(np.count_nonzero(known), dtype=np.int64), theta[linear.coords[1][known]]
    offset = sp.csr_array((linear.data[known], places), shape=(1, count))
    weight = sp.csr_array((columns, count))
    if program.P is not None:
        squares = sp.coo_array(program.P)
        row, column = squares.coords[0] % columns, squares.coords[0] // columns
        if ((row != column) & (squares.data != 0.0)).any():
            raise DeclarationError(
                "cvxpy multiplies variables of the regularizer with each other; write it by quad_form"
            )
        known = (row == column) & (squares.data != 0.0)
        column, entry = column[known], theta[squares.coords[1][known]]
        weight = sp.csr_array((squares.data[known], (column, entry)), shape=(columns, count))
    return cost, weight, offset


def _without_zeros_of_roots(rows: AffineRows, specs: Sequence[ParameterSpec], names: Sequence[str]) -> AffineRows:
    """Rows without the entries of upper triangular parameters that are always 0."""
    zero = np.zeros(1 + sum(spec.size for spec in specs), dtype=bool)
    for spec in specs:
        if spec.name in names:
            zero[1 + spec.start : 1 + spec.start + spec.size] = np.tri(spec.shape[0], k=-1, dtype=bool).reshape(-1)
    row, column, theta, value = rows.varying
    kept = ~zero[theta]
    return replace(rows, varying=(row[kept], column[kept], theta[kept], value[kept]))


def _with_structure(rows: AffineRows, order: np.ndarray) -> AffineRows:
    """Rows whose scored vector has further entries."""
    known = len(rows.structure)

    def entry_name(flat: int) -> str:
        return rows.entry_name(flat) if flat < known else "a variable of the regularizer"

    return replace(rows, structure=order, entry_name=entry_name)


def _map(stacked: sp.csr_array) -> AffineMap:
    """From columns (constant, one per entry of θ)."""
    return AffineMap(stacked[:, [0]].toarray().reshape(-1), sp.csr_array(stacked[:, 1:]))


def _root(factored: Factored, form: StandardForm) -> Root:
    """Where the variables of a quadratic form stand in the scored vector."""
    spans = {spec.name: spec.span for spec in form.scored_auxiliaries}
    first = slice(0, form.structure_size)
    of = first if factored.of is form.polytope.variable else spans[factored.of.name()]
    return Root(factored.matrix.name(), factored.entries.name(), of, spans[factored.root.name()])
