"""Which solvers a polytope gets, and which polytopes are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from optlayers.diagnosis import explain_infeasible, improper_set, unbounded_entry
from optlayers.form.compile import Forms
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.prepared import AbstractPrepared
from optlayers.solution import Status
from optlayers.solvers import ActiveSet, Auto, Highs, Oracle
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.solvers.batch import make_instances

__all__ = ["chosen_solvers", "refuse_empty", "refuse_misfit", "refuse_unbounded"]


def chosen_solvers(
    forms: Forms, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None, tolerance: float
) -> tuple[AbstractMaximizer, AbstractProjector]:
    """The maximizer and the projector: those that are given, else what the declaration has, else :class:`Auto`."""
    polytope, auto = forms.polytope, Auto(tolerance=tolerance)
    if maximizer is None:
        maximizer = auto if polytope.oracle is None else Oracle(polytope.oracle)
    if projector is None:
        # Without auxiliary variables the rows are few, and a Newton step on them is cheaper than many vertices.
        over_vertices = polytope.oracle is not None and len(polytope.variables) > 1 and not polytope.parameters
        over_vertices |= polytope.rows == "relaxation" and isinstance(maximizer, Oracle)
        projector = ActiveSet() if over_vertices else auto
    if isinstance(projector, ActiveSet) and projector.function is None:
        # One oracle for both, and called in the same way.
        oracle = maximizer if isinstance(maximizer, Oracle) else polytope.oracle
        if isinstance(oracle, Oracle) and (oracle.serial or oracle.verify or oracle.function is not polytope.oracle):
            projector = replace(projector, function=oracle)
    return maximizer, projector


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
