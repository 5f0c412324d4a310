"""Solvers, and which polytopes they take."""

from __future__ import annotations

from collections.abc import Iterator

import optlayers as ol
from catalogue.entries import Entry

SOLVERS: list[ol.AbstractSolver] = [
    ol.Auto(),
    ol.Highs(),
    ol.Clarabel(),
    ol.ConeNewton(),
    ol.CvxpyLayers(),
    ol.InteriorPoint(),
    ol.Dense(),
    ol.DualNewton(),
    ol.ActiveSet(),
    ol.Oracle(lambda *arrays: arrays[0]),  # stands for the one of the declaration
]

BY_ROWS = [
    solver
    for solver in SOLVERS
    if solver.polyhedral_only and not solver.reads_declaration and not isinstance(solver, ol.DualNewton)
]
"""Those that take whatever constraints describe: DualNewton wants neither auxiliary variables nor inequalities."""
MAXIMIZERS = [solver for solver in BY_ROWS if isinstance(solver, ol.AbstractMaximizer)]
PROJECTORS = [solver for solver in BY_ROWS if isinstance(solver, ol.AbstractProjector)]
INTEGER_SOLVERS: list[ol.AbstractSolver] = [ol.Diagram(), ol.BranchAndBound()]
"""Those of hulls of integer points."""
HIDDEN = (
    *("partial", "wide", "tall", "ranking", "tree", "projective", "chain"),
    *("local", "bracketing", "noncrossing", "spanning", "b-matching", "tour", "knapsack", "semantic"),
)
"""The names of polytopes with auxiliary variables, or with inequalities between parts, begin like this."""


def solvers_of(entry: Entry) -> Iterator[ol.AbstractSolver]:
    """Those that take a polytope."""
    oracle = entry.polytope.oracle
    if entry.polytope.has_integers:
        rows_say_all = entry.polytope.separate is None
        yield from (solver for solver in INTEGER_SOLVERS if rows_say_all or not isinstance(solver, ol.Diagram))
        return
    for solver in SOLVERS:
        if isinstance(solver, ol.Oracle):
            if oracle is not None:
                yield ol.Oracle(oracle)
        elif isinstance(solver, ol.ActiveSet):
            if oracle is not None and not entry.parameters:
                yield solver
        elif isinstance(solver, (ol.ConeNewton, ol.CvxpyLayers)):
            if not entry.polytope.scored:
                yield solver
        elif not isinstance(solver, ol.DualNewton) or not entry.name.startswith(HIDDEN):
            yield solver
