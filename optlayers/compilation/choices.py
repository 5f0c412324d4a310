"""Which solvers a polytope gets, and which polytopes are refused."""

from __future__ import annotations

from dataclasses import replace
from types import NoneType

import numpy as np
import torch

from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.compile import Forms
from optlayers.form.cones import why_not_our_cones
from optlayers.form.standard import DeclarationError, NotPolyhedral, StandardForm
from optlayers.proofs.diagnosis import explain_infeasible, improper_set, unbounded_entry
from optlayers.proofs.integrality import rows_are
from optlayers.solution import Status
from optlayers.solvers import ActiveSet, Auto, BranchAndBound, ConeNewton, CvxpyLayers, Diagram, Highs, Oracle
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.solvers.batch import make_instances
from optlayers.solvers.hulls import AbstractHullSolver

__all__ = ["chosen_solvers", "refuse_empty", "refuse_misfit", "refuse_unbounded"]


def chosen_solvers(
    forms: Forms, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None, tolerance: float
) -> tuple[AbstractMaximizer, AbstractProjector]:
    """The maximizer and the projector: those that are given, else what the declaration has, else :class:`Auto`."""
    polytope, auto = forms.polytope, Auto(tolerance=tolerance)
    if polytope.separate is not None or (polytope.has_integers and rows_are(forms) == "relaxation"):
        maximizer, projector = _over_integer_points(forms, maximizer, projector)
    if isinstance(maximizer, AbstractHullSolver):
        maximizer = Oracle(maximizer.oracle(forms.full))
    if isinstance(projector, AbstractHullSolver):
        projector = ActiveSet(function=projector.oracle(forms.full))
    if maximizer is None:
        maximizer = auto if polytope.oracle is None else Oracle(polytope.oracle)
    if projector is None:
        # Without auxiliary variables the rows are few, and a Newton step on them is cheaper than many vertices.
        over_vertices = polytope.oracle is not None and len(polytope.variables) > 1 and not polytope.parameters
        over_vertices |= polytope.rows == "relaxation" and isinstance(maximizer, Oracle)
        projector = ActiveSet() if over_vertices else auto
    if isinstance(projector, Auto) and not is_polyhedral(forms):
        projector = projector_of_curved(forms)
    if isinstance(projector, ActiveSet) and projector.function is None:
        # One oracle for both, and called in the same way.
        oracle = maximizer if isinstance(maximizer, Oracle) else polytope.oracle
        if isinstance(oracle, Oracle) and (oracle.serial or oracle.verify or oracle.function is not polytope.oracle):
            projector = replace(projector, function=oracle)
    return maximizer, projector


def is_polyhedral(forms: Forms) -> bool:
    """Whether rows describe the declared set; where integers do, rows are all there is."""
    try:
        return forms.full is not None
    except NotPolyhedral:
        if forms.polytope.has_integers:
            raise
        return False


def projector_of_curved(forms: Forms) -> AbstractProjector:
    """The projector of a set that is not polyhedral: our own where its cones are those of norms and semidefinite
    matrices and it is small enough for dense matrices, else that which cvxpy hands any declaration."""
    return CvxpyLayers() if why_not_our_cones(forms.polytope) else ConeNewton()


def _over_integer_points(
    forms: Forms, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None
) -> tuple[Oracle, AbstractProjector]:
    """Solvers of the hull of integer points, or of what a function separates; those of its relaxation are refused."""
    polytope = forms.polytope
    for solver, question in ((maximizer, "best vertices"), (projector, "projections")):
        if polytope.separate is not None and isinstance(solver, Diagram):
            raise DeclarationError(
                f"{solver!r} knows rows alone, and the declaration brings further constraints by separate=: use "
                "BranchAndBound() or ActiveSet(), or leave the solver out"
            )
        if polytope.separate is not None and not isinstance(
            solver, (Auto, Oracle, ActiveSet, AbstractHullSolver, NoneType)
        ):
            raise DeclarationError(
                f"{solver!r} finds {question} of the constraints alone, and the declaration brings further ones by "
                "separate=: use BranchAndBound() or ActiveSet(), or leave the solver out"
            )
        if not isinstance(solver, (Auto, Oracle, ActiveSet, AbstractHullSolver, NoneType)):
            raise DeclarationError(
                f"{solver!r} finds {question} of the linear relaxation, and the declaration has integer variables: use "
                "Diagram(), BranchAndBound() or ActiveSet(), leave the solver out, or compile polytope.relaxed()"
            )
    if maximizer is None or isinstance(maximizer, Auto):
        default: AbstractHullSolver = BranchAndBound()
        if isinstance(projector, AbstractHullSolver):
            default = projector
        elif polytope.separate is None:
            default = Diagram(otherwise=BranchAndBound())
        maximizer = Oracle(polytope.oracle) if polytope.oracle is not None else default
    one_for_both = isinstance(projector, AbstractHullSolver) and projector == maximizer
    asked = maximizer if isinstance(maximizer, Oracle) else None
    if isinstance(maximizer, AbstractHullSolver):
        asked = Oracle(maximizer.oracle(forms.full))
    assert asked is not None
    if isinstance(projector, ActiveSet) and projector.function is None:
        projector = replace(projector, function=asked)
    elif projector is None or isinstance(projector, Auto) or one_for_both:
        projector = ActiveSet(function=asked)
    return asked, projector


def refuse_unbounded(form: StandardForm) -> None:
    """A scored entry without limit is a :class:`DeclarationError` that names it."""
    entry = unbounded_entry(form)
    if entry is not None:
        raise DeclarationError(
            f"the declaration is unbounded: {form.entry_name(entry)} can move without limit; "
            "a polytope bounds every scored entry from below and from above"
        )


def refuse_misfit(form: StandardForm, relaxation: StandardForm) -> None:
    """A relaxation takes the scores and parameters of the polytope that it is one of."""
    if relaxation.shape != form.shape:
        raise ValueError(f"the relaxation has shape {relaxation.shape}, but the polytope has shape {form.shape}")
    known = {spec.name: spec.shape for spec in form.parameters}
    for spec in relaxation.parameters:
        if known.get(spec.name) != spec.shape:
            raise ValueError(
                f"the relaxation declares parameter {spec.name} of shape {spec.shape}; the polytope, whose numbers it "
                f"gets, has {known or 'no parameters'}"
            )
    if relaxation.size != form.size:
        raise ValueError("a relaxation declares the same scored= variables as the polytope, in the same order")


def refuse_empty(compiled: AbstractPrepared) -> None:
    """Constraints without parameters that nothing satisfies are a :class:`DeclarationError` that says which."""
    form = compiled.rows
    if compiled.rows_are_not_all:
        _refuse_no_point(compiled)
        return
    if form is None:
        reason = improper_set(compiled.polytope)
        if reason is not None:
            raise DeclarationError(reason)
        return
    solver = Highs()
    instances = make_instances(form, np.zeros((1, 0)), None)
    if form.unslacked and solver.maximize(solver.prepare(form), instances).status[0] == Status.OPTIMAL:
        return
    reason = explain_infeasible(form, instances, 0)
    if reason is not None:
        raise DeclarationError(f"the polytope is empty: {reason}")


def _refuse_no_point(compiled: AbstractPrepared) -> None:
    nothing = torch.zeros(1, compiled.entries.size, dtype=torch.float64, device="cpu")
    bound = compiled.bind_on_host(torch.zeros(1, 0, dtype=torch.float64, device="cpu"), None, np.zeros(0))
    if int(bound.maximize(nothing).status) == Status.INFEASIBLE:
        raise DeclarationError(f"the polytope is empty: {compiled.nothing_satisfies}")
