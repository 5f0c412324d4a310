"""What a compiled polytope says of itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optlayers.common.pages import facts, heading, sentence
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.compiled_oracle import name_of
from optlayers.form.cones import why_not_our_cones
from optlayers.form.standard import StandardForm
from optlayers.proofs.agreement import beyond_oracle
from optlayers.solvers import ActiveSet, ConeNewton, Oracle

__all__ = ["explained", "page_on"]


def explained(compiled: AbstractPrepared) -> str:
    """One paragraph on a compiled polytope: sizes after presolve, blocks, the solvers chosen and why."""
    shape, maximizer, projector = compiled.polytope.shape, compiled.maximizer, compiled.projector
    form, form_of_parameters = compiled.rows, compiled.projection_form
    size = int(np.prod(shape, dtype=int))
    names = _parameters(compiled)
    given = f" Parameters per instance: {names}." if names else ""
    if form is None:
        return (
            f"A convex set of {size} scored entries of shape {shape}; it is not polyhedral, so it has no "
            f"vertices to maximize over.{given} project: {projector.explain_projector(form_of_parameters)}"
            f"{_why_cones(compiled)}. The derivative of projections comes from the projector. Certified to a relative "
            f"{max(compiled.tolerance, projector.accuracy):g}."
        )
    scored = [f"{s.name} {s.shape}" for s in form.scored_auxiliaries]
    also = f" Scored besides, but not regularized: {', '.join(scored)}." if scored else ""
    fixed = form.size - form.scored
    did = f" Presolve: {', '.join(form.notes)}." if form.notes else ""
    matrix = "" if form.matrix_is_constant else " A parameter enters the matrix, so each instance has its own."
    derivative = f"The derivative of projections {_derivative(compiled)}."
    which = "After presolve it has"
    if compiled.leaves_rows_to_oracle and compiled.over_integer_points:
        which = "Besides its rows with auxiliary variables, which the solver of integer points knows, it has"
    elif compiled.leaves_rows_to_oracle:
        which = "Its rows with auxiliary variables are left to the oracle and not built; without them it has"
    return (
        f"A polytope of {size} scored entries of shape {shape}, {fixed} of them fixed by the constraints."
        f"{also} {which} {form.scored} scored, {form.auxiliary} auxiliary and {form.slack} slack columns "
        f"in {_rows_of(form)}.{did}{given}{matrix} "
        f"maximize: {maximizer.explain_maximizer(form)}. project: {projector.explain_projector(form)}. "
        f"{derivative} Certified to a relative "
        f"{max(compiled.tolerance, projector.accuracy):g}.{_rows(compiled)}{_trust(compiled)}"
    )


def page_on(compiled: AbstractPrepared) -> Iterator[str]:
    """What a notebook shows of a compiled polytope; nothing is solved for it."""
    form, maximizer, projector = compiled.rows, compiled.maximizer, compiled.projector
    shape, tolerance = compiled.polytope.shape, max(compiled.tolerance, projector.accuracy)
    known = [("parameters per instance", _parameters(compiled))]
    if form is None:
        yield heading(f"Compiled convex set of shape {shape}")
        known.append(("best vertices", "none, since it is not polyhedral"))
        projected = f"{projector.explain_projector(compiled.projection_form)}{_why_cones(compiled)}"
    else:
        yield heading(f"Compiled polytope of shape {shape}")
        size = int(np.prod(shape, dtype=int))
        known += [
            ("scored entries", f"{size}, {form.size - form.scored} of them fixed by the constraints"),
            ("scored besides", ", ".join(f"{s.name} {s.shape}" for s in form.scored_auxiliaries)),
            ("columns", f"{form.scored} scored, {form.auxiliary} auxiliary and {form.slack} slack"),
            ("rows", _rows_of(form) + ("" if form.matrix_is_constant else "; a parameter enters the matrix")),
            ("presolve", ", ".join(form.notes)),
            ("best vertices", maximizer.explain_maximizer(form)),
        ]
        projected = projector.explain_projector(form)
    known += [
        ("projections", projected),
        ("derivative of projections", _derivative(compiled)),
        ("certified to", f"a relative {tolerance:g}"),
    ]
    yield facts(known)
    if form is not None:
        yield from (sentence(text) for text in (_rows(compiled, tried=False), _trust(compiled)) if text)


def _parameters(compiled: AbstractPrepared) -> str:
    return ", ".join(f"{s.name} {s.shape}" for s in compiled.projection_form.parameters)


def _rows_of(form: StandardForm) -> str:
    return (
        f"{form.equalities} equality and {form.slack} inequality rows with {form.matrix.nnz} "
        f"entr{'ies' if form.matrix.nnz != 1 else 'y'}, in "
        f"{form.blocks} independent block{'s' if form.blocks != 1 else ''}"
    )


def _derivative(compiled: AbstractPrepared) -> str:
    """Where the derivative of projections comes from."""
    if compiled.rows is not None and compiled.projects_on_rows and not isinstance(compiled.projector, ActiveSet):
        return "solves a sparse system on the active set"
    return "comes from the projector"


def _why_cones(compiled: AbstractPrepared) -> str:
    """Why a set that is not polyhedral has its projector."""
    other = why_not_our_cones(compiled.polytope)
    if isinstance(compiled.projector, ConeNewton):
        return ", because its cones are those of norms or of semidefinite matrices"
    return "" if other is None else f", because {other}"


def _rows(compiled: AbstractPrepared, *, tried: bool = True) -> str:
    """Why projections go over an oracle although there are rows; unless ``tried``, what takes a solve is left out."""
    polytope, maximizer, projector = compiled.polytope, compiled.maximizer, compiled.projector
    beyond: str | None = None
    if polytope.separate is not None:
        what = "the convex hull of integer points" if polytope.has_integers else "smaller than its constraints say"
        return (
            f" It is {what}: further constraints are brought on demand by separate={name_of(polytope.separate)}, and "
            "every answer is shown to that function in the end."
        )
    if compiled.over_integer_points and polytope.rows == "relaxation":
        return (
            " It is the convex hull of what the oracle knows, which may be fewer than all integer points of its "
            "constraints, as the declaration says."
        )
    if compiled.over_integer_points:
        return " It is the convex hull of integer points, and its constraints are a linear relaxation of that."
    if polytope.has_integers:
        return " Its variables are integers, and " + (
            'its constraints describe the hull of the integer points, as rows="exact" says.'
            if polytope.rows
            else "all vertices of its constraints are integral, by proof: linear solvers answer."
        )
    if not (isinstance(maximizer, Oracle) and isinstance(projector, ActiveSet)) or compiled.leaves_rows_to_oracle:
        return ""
    if polytope.rows == "relaxation":
        beyond = "as the declaration says"
    elif tried and polytope.rows is None and polytope.integral and not polytope.parameters:
        beyond = beyond_oracle(compiled.forms, maximizer, np.zeros(0))
    if beyond is None:
        return ""
    return f" The constraints are a relaxation of what the oracle knows ({beyond}): projections go over the oracle."


def _trust(compiled: AbstractPrepared) -> str:
    """What certifies that answers of an oracle are structures."""
    if not compiled.maximizer.reads_declaration and not compiled.projector.reads_declaration:
        return ""
    integral = " An answer of the oracle must be integral." if compiled.polytope.integral else ""
    if not compiled.forms.hides_variables or compiled.over_integer_points:
        return integral  # solvers of integer points know all rows
    membership = compiled.polytope.membership
    if membership is None:
        return integral + (
            " That it satisfies the rows with unscored auxiliary variables is the oracle's word: no membership "
            "function is declared."
        )
    return (
        integral + f" Membership function {name_of(membership)} stands for the rows with unscored auxiliary variables."
    )
