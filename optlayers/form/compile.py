"""cvxpy in, arrays out: the one module that knows how cvxpy compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Int8, Int64

from optlayers.common.caches import cached_property
from optlayers.form.declaration import (
    check_convex,
    check_declaration,
    check_variables,
    constraint_name,
    is_set,
    parameter_specs,
)
from optlayers.form.names import ColumnNames, scored_name
from optlayers.form.presolve import AffineRows, Infeasible, Presolved, presolve
from optlayers.form.standard import AffineMap, DeclarationError, NotPolyhedral, ParameterSpec, StandardForm
from optlayers.polytope import Polytope
from optlayers.variables import described, is_integer, name_given

__all__ = [
    "UNNAMED",
    "Canonical",
    "Forms",
    "affine_entries",
    "canonical",
    "canonical_rows",
    "form_of_rows",
    "form_without_rows",
    "parameter_columns",
    "scored_form",
    "standard_form",
]


@final
class Forms:
    """The standard forms of a declaration, each made when it is first asked for."""

    def __init__(self, polytope: Polytope) -> None:
        self.polytope = polytope

    @property
    def hides_variables(self) -> bool:
        """Whether there are variables that are not scored: an oracle does without them."""
        return len(self.polytope.variables) > 1 + len(self.polytope.scored)

    @cached_property
    def full(self) -> StandardForm:
        """All rows; see :func:`standard_form`."""
        return standard_form(self.polytope)

    @cached_property
    def scored(self) -> StandardForm:
        """The rows among scored variables; see :func:`scored_form`."""
        return scored_form(self.polytope) if self.hides_variables else self.full

    @cached_property
    def bare(self) -> StandardForm:
        """No rows; see :func:`form_without_rows`."""
        return form_without_rows(self.polytope)


def standard_form(polytope: Polytope) -> StandardForm:
    """Compile a declaration to arrays.

    Raises
    ------
    DeclarationError : when the declaration is not a polyhedron, or is empty by inspection.
    """
    check_declaration(polytope)
    specs = parameter_specs(polytope)
    raw = canonical_rows(polytope, specs, polytope.relaxed().constraints)[0]
    return form_of_rows(polytope, specs, raw)


def form_of_rows(polytope: Polytope, specs: tuple[ParameterSpec, ...], raw: AffineRows) -> StandardForm:
    """The standard form of rows.

    Raises
    ------
    DeclarationError : when they contradict each other by inspection.
    """
    try:
        reduced = presolve(raw)
    except Infeasible as error:
        raise DeclarationError(f"the polytope is empty: {error}") from None
    return replace(_assemble(polytope, specs, reduced), column_names=raw.column_names)


def scored_form(polytope: Polytope) -> StandardForm:
    """The rows in which no other variables than the scored ones appear: enough for an oracle, which knows the rest.

    All parameters are in it, whether or not these rows need them.

    Raises
    ------
    DeclarationError : as for :func:`standard_form`; only the rows that are compiled are looked at.
    """
    scored = {v.id for v in (polytope.variable, *polytope.scored)}
    inside = [c for c in polytope.constraints if {v.id for v in c.variables()} <= scored]
    variables = {v.id for c in inside for v in c.variables()}
    attributes = any(is_set(v) for v in polytope.variable.attributes.values())
    if polytope.variable.id not in variables and not attributes:
        return form_without_rows(polytope)
    check_variables(polytope)
    for position, constraint in enumerate(polytope.constraints):
        if any(constraint is c for c in inside):
            check_convex(constraint, position)
    specs = parameter_specs(polytope)
    plain = {c.id: c for c in polytope.relaxed().constraints}
    return form_of_rows(polytope, specs, canonical_rows(polytope, specs, [plain[c.id] for c in inside])[0])


def form_without_rows(polytope: Polytope) -> StandardForm:
    """The whole scored vector, all parameters, and no constraint: for solvers that read the declaration."""
    check_declaration(polytope)
    specs = parameter_specs(polytope)
    size, count = sum(v.size for v in (polytope.variable, *polytope.scored)), sum(s.size for s in specs)
    nothing = sp.csr_array((0, count))

    def constant(value: float, length: int) -> AffineMap:
        return AffineMap(np.full(length, value), sp.csr_array((length, count)))

    return StandardForm(
        polytope=polytope,
        kept=np.arange(size),
        fixed=np.zeros(size),
        scored=size,
        auxiliary=0,
        equalities=0,
        matrix=sp.csc_array((0, size)),
        matrix_map=nothing,
        rhs=constant(0.0, 0),
        row_scale=np.ones(0),
        lower=constant(-np.inf, size),
        upper=constant(np.inf, size),
        consistency=constant(0.0, 0),
        parameters=specs,
        row_names=(),
        bound_names=(("no constraint", "no constraint"),) * size,
        consistency_names=(),
        blocks=0,
        notes=(),
        integer=np.concatenate([is_integer(v).reshape(-1) for v in (polytope.variable, *polytope.scored)]),
    )


UNNAMED = "an attribute of a variable, or a convex function"
_SHAPING = ("sparsity", "diag", "symmetric", "PSD", "NSD", "hermitian")


@final
@dataclass(frozen=True)
class Canonical:
    """What cvxpy makes of constraints of the relaxation, and of an objective that it minimizes."""

    program: Any
    dims: Any
    """How many rows are in cones of which kind and size."""
    order: Int64[np.ndarray, " entries"]
    """The columns of the scored entries, in C order."""
    names: tuple[str, ...]
    """The constraint behind every row."""
    compiled_id: Callable[[int], int]
    """The number of the variable that cvxpy solves for in place of a declared one."""

    @property
    def other_cones(self) -> list[str]:
        """The kinds of cones that make the set more than polyhedral."""
        return sorted({type(c).__name__ for c in self.program.constraints} - {"Zero", "NonNeg"})


def canonical(polytope: Polytope, chosen: Sequence[cp.Constraint], objective: cp.Expression | float = 0.0) -> Canonical:
    """Constraints of the relaxation of a polytope, and an objective, as cvxpy hands them to a solver of cones."""
    constraints, relaxed = list(chosen), polytope.relaxed()
    names = {c.id: constraint_name(c, i) for i, c in enumerate(polytope.constraints)}
    scored = []
    for variable in (relaxed.variable, *relaxed.scored):
        if variable.size == 0:
            continue  # cvxpy drops them; the smallest sizes of a family may have such
        shaping = [a for a in _SHAPING if variable.attributes.get(a)]
        if shaping:
            # cvxpy replaces such a variable by a shorter one; a plain copy keeps one column per scored entry.
            copy = cp.Variable(variable.shape)
            constraints.append(copy == variable)
            names[constraints[-1].id] = f"attribute {', '.join(shaping)} of {described(variable)}"
            variable = copy
        scored.append(variable)
    # The objective mentions the variables so that they are compiled even where only their attributes bound them.
    mentioned = sum(0.0 * cp.sum(variable) for variable in scored)
    problem = cp.Problem(cp.Minimize(objective + mentioned), constraints)
    data, chain, inverse = problem.get_problem_data(cp.CLARABEL, canon_backend=cp.SCIPY_CANON_BACKEND)
    program, compiled_id = data["param_prob"], partial(_compiled_id, chain=chain, inverse=inverse)
    order = np.concatenate(
        [
            program.var_id_to_col[compiled_id(variable.id)]
            + np.arange(variable.size).reshape(variable.shape, order="F").reshape(-1, order="C")
            for variable in scored
        ]
    )
    row_names: list[str] = []
    for constraint in program.constraints:
        row_names += [names.get(constraint.id, UNNAMED)] * constraint.size
    return Canonical(program, data["dims"], order, tuple(row_names), compiled_id)


def canonical_rows(
    polytope: Polytope,
    specs: Sequence[ParameterSpec],
    chosen: Sequence[cp.Constraint],
    objective: cp.Expression | float = 0.0,
) -> tuple[AffineRows, Any]:
    """The rows ``A z = b`` and ``A z <= b`` that cvxpy makes of constraints of the relaxation, with their names, and
    the program of cvxpy, which minimizes an ``objective``.

    Raises
    ------
    NotPolyhedral : where there are other cones.
    """
    made = canonical(polytope, chosen, objective)
    program, order = made.program, made.order
    if made.other_cones:
        needs = f"the declared set is convex but not polyhedral (it needs {', '.join(made.other_cones)} cones)"
        if polytope.has_integers:
            raise NotPolyhedral(f"{needs}, which no solver here takes with integer variables")
        raise NotPolyhedral(f"{needs}: leave projector= out, or name optlayers.ConeNewton() or optlayers.CvxpyLayers()")
    matrix, varying, rhs = affine_entries(program, polytope, specs)
    integer, named = np.zeros(program.x.size, dtype=bool), []
    sizes = {v.id: v.size for v in program.variables}
    for declared, variable in zip(polytope.variables, polytope.relaxed().variables, strict=True):
        flags = is_integer(declared).reshape(-1, order="F")
        identity = made.compiled_id(variable.id)
        first = program.var_id_to_col.get(identity)
        if first is None:
            continue
        if (name := name_given(declared)) is not None:
            named.append((int(first), int(sizes[identity]), name, tuple(declared.shape)))
        if not flags.any():
            continue
        if sizes[identity] == len(flags):
            integer[first : first + len(flags)] = flags
        elif flags.all():  # a shorter variable in place of a symmetric or diagonal one
            integer[first : first + sizes[identity]] = True
    entries = np.concatenate([is_integer(v).reshape(-1) for v in (polytope.variable, *polytope.scored)])
    integer[order] = entries
    equality = np.concatenate(
        [np.full(c.size, type(c).__name__ == "Zero") for c in program.constraints] or [np.zeros(0, bool)]
    )
    named_columns = ColumnNames(tuple(named))
    entry = partial(scored_name, polytope)
    rows = AffineRows(matrix, varying, rhs, equality, made.names, order, entry, integer, named_columns)
    return rows, program


def _compiled_id(identity: int, chain: Any, inverse: Sequence[Any]) -> int:
    """The number of the variable that cvxpy solves for in place of one with attributes such as ``nonneg``."""
    for reduction, data in zip(chain.reductions, inverse, strict=True):
        if type(reduction).__name__ == "CvxAttr2Constr" and data:
            replaced: Mapping[int, Any] = data[0]
            if identity in replaced:
                return int(replaced[identity].id)
    return identity


def affine_entries(
    program: Any, polytope: Polytope, specs: Sequence[ParameterSpec]
) -> tuple[sp.csr_array, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """A at θ = 0, the entries that θ adds to it, and b with its derivatives.

    cvxpy stores ``[A | b]`` as one sparse tensor, flattened in column-major order, with one column per entry of its
    own parameter vector, of which the last is the constant 1. Its A is the negative of the solver's A.
    """
    columns = program.x.size
    tensor = sp.coo_array(program.A)
    tensor.sum_duplicates()
    rows = tensor.shape[0] // (columns + 1)
    flat, parameter = tensor.coords
    row, column = flat % max(rows, 1), flat // max(rows, 1)
    theta = parameter_columns(program, polytope, specs)[parameter]
    inside = column < columns
    steady, moving = inside & (theta == 0), inside & (theta > 0)
    matrix = sp.csr_array((-tensor.data[steady], (row[steady], column[steady])), shape=(rows, columns))
    rhs = np.zeros((1 + sum(s.size for s in specs), rows))
    np.add.at(rhs, (theta[~inside], row[~inside]), tensor.data[~inside])
    return matrix, (row[moving], column[moving], theta[moving], -tensor.data[moving]), rhs


def parameter_columns(program: Any, polytope: Polytope, specs: Sequence[ParameterSpec]) -> np.ndarray:
    """For every column of cvxpy's tensor the entry of (1, θ) that it multiplies."""
    where = np.full(program.total_param_size + 1, -1, dtype=np.int64)
    where[-1] = 0
    for parameter, spec in zip(polytope.parameters, specs, strict=True):
        if parameter.id not in program.param_id_to_col:
            continue  # it cancels out, as in k - k
        first = program.param_id_to_col[parameter.id]
        c_order = np.arange(spec.size).reshape(spec.shape, order="C").reshape(-1, order="F")
        where[first : first + spec.size] = 1 + spec.start + c_order
    if (where < 0).any():
        raise DeclarationError("cvxpy brings in a parameter that the constraints do not show; state it in a constraint")
    return where


def _assemble(polytope: Polytope, specs: tuple[ParameterSpec, ...], reduced: Presolved) -> StandardForm:
    count = sum(s.size for s in specs)
    scored = len(reduced.kept)
    order = np.argsort(~reduced.equality, kind="stable")
    rows, slack = len(order), int(np.sum(~reduced.equality))
    matrix, matrix_map = _with_slack(reduced, order, slack, count)
    rhs = reduced.rhs[:, order]
    pad_low, pad_high = np.zeros((1 + count, slack)), np.zeros((1 + count, slack))
    pad_high[0] = np.inf
    form = StandardForm(
        polytope=polytope,
        kept=reduced.kept,
        fixed=reduced.fixed,
        scored=scored,
        auxiliary=reduced.matrix.shape[1] - scored,
        equalities=rows - slack,
        matrix=matrix,
        matrix_map=matrix_map,
        rhs=_affine(rhs),
        row_scale=reduced.row_scale[order],
        lower=_affine(np.hstack([reduced.lower, pad_low])),
        upper=_affine(np.hstack([reduced.upper, pad_high])),
        consistency=_affine(reduced.consistency),
        parameters=specs,
        row_names=tuple(reduced.row_names[i] for i in order),
        bound_names=tuple(reduced.bound_names) + tuple(("a slack", "a slack") for _ in range(slack)),
        consistency_names=tuple(reduced.consistency_names),
        blocks=_blocks(matrix),
        notes=reduced.notes,
        integer=reduced.integer,
        compiled_columns=reduced.compiled_columns,
    )
    limitless = _limitless(form)
    return replace(form, parameters=tuple(replace(s, limitless=tuple(limitless[s.span].tolist())) for s in specs))


def _limitless(form: StandardForm) -> Int8[np.ndarray, " parameters"]:
    """For which entries of θ inf (1) or -inf (-1) takes a limit away, in all constraints that they enter.

    These are right-hand sides of inequalities, and bounds. Rows that are not in the form are not known.
    """
    count = form.parameter_count
    # Where a row or an upper bound grows with θ, inf is without a limit; where a lower bound does, -inf is.
    loosens = sp.vstack([form.rhs.matrix[form.equalities :], form.upper.matrix, -form.lower.matrix]).tocoo()
    rises, falls = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    rises[loosens.coords[1][loosens.data > 0]] = True
    falls[loosens.coords[1][loosens.data < 0]] = True
    both = rises & falls
    for other in (form.matrix_map, form.consistency.matrix, form.rhs.matrix[: form.equalities]):
        both[sp.csr_array(other).indices] = True
    return np.where(both, 0, rises.astype(np.int8) - falls.astype(np.int8)).astype(np.int8)


def _with_slack(reduced: Presolved, order: np.ndarray, slack: int, count: int) -> tuple[sp.csc_array, sp.csr_array]:
    """A with its slack columns, and what each parameter adds to the entries of A.

    There is one pattern for all instances: an entry that a parameter can move is stored, even where it is 0.
    """
    rows, columns = reduced.matrix.shape
    position = np.empty(rows, dtype=np.int64)
    position[order] = np.arange(rows)
    steady = reduced.matrix.tocoo()
    moving_row, moving_column, theta, value = reduced.varying
    row = np.concatenate([position[steady.coords[0]], np.arange(rows - slack, rows), position[moving_row]])
    column = np.concatenate([steady.coords[1], columns + np.arange(slack), moving_column])
    pattern = sp.csc_array((np.ones(len(row)), (row, column)), shape=(rows, columns + slack))
    pattern.sum_duplicates()
    pattern.sort_indices()
    # Entries of a CSC matrix are ordered by (column, row), so their places are found by bisection.
    keys = np.repeat(np.arange(columns + slack), np.diff(pattern.indptr)) * max(rows, 1) + pattern.indices
    place = np.searchsorted(keys, column * max(rows, 1) + row)
    fixed_part = len(row) - len(value)
    data = np.zeros(pattern.nnz)
    np.add.at(data, place[:fixed_part], np.concatenate([steady.data, np.ones(slack)]))
    matrix = sp.csc_array((data, pattern.indices, pattern.indptr), shape=pattern.shape)
    return matrix, sp.csr_array((value, (place[fixed_part:], theta - 1)), shape=(pattern.nnz, count))


def _affine(stacked: np.ndarray) -> AffineMap:
    """From rows (constant, one per entry of θ)."""
    return AffineMap(np.ascontiguousarray(stacked[0]), sp.csr_array(stacked[1:].T))


def _blocks(matrix: sp.csc_array) -> int:
    """Number of independent blocks, as connected components of the graph of rows and columns."""
    rows, columns = matrix.shape
    if columns == 0:
        return 0
    coo = matrix.tocoo()
    graph = sp.csr_array(
        (np.ones(coo.nnz), (coo.coords[0], rows + coo.coords[1])), shape=(rows + columns, rows + columns)
    )
    return int(sp.csgraph.connected_components(graph, directed=False)[0])
