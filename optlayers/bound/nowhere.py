"""Why declared regularizers have no point over an instance: they are finite nowhere there, or unbounded below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.constraints.nonpos import Inequality, NonNeg, NonPos

from optlayers.bound.on_host import OnHost
from optlayers.polytope import Polytope
from optlayers.regularizers.declared import Declared
from optlayers.solution import Solution, Status
from optlayers.solvers.declared import declaration_alone, solve

__all__ = ["explained"]

TOLERANCE = 1e-9
"""Of Clarabel for what is asked here."""
ROOM = 1e-6
"""Where the best point leaves less room to the edge of the domain of an expression than this, there is none inside."""
Told = tuple[Status, str] | None


def explained(polytope: OnHost, solution: Solution, regularizer: Declared) -> Solution:
    """A solution whose failures say what is wrong with the regularizer, where something is: as far as cvxpy tells."""
    if solution.all_ok:
        return solution
    failed = (solution.status.numpy() != Status.OPTIMAL) & np.isfinite(polytope.theta).all(axis=1)
    if polytope.prepared.polyhedral:  # rows have proved that an instance is empty
        failed &= solution.status.numpy() != Status.INFEASIBLE
    if not failed.any():
        return solution
    form, status, reasons = polytope.form, solution.status.clone(), dict(solution.reasons)
    told: dict[bytes, Told] = {}  # by the numbers of an instance, of which scores are none
    with declaration_alone(form.polytope):
        for k in np.flatnonzero(failed).tolist():
            given = [polytope.theta[k, spec.span].reshape(spec.shape) for spec in form.parameters]
            mask = None if polytope.forbidden is None else np.asarray(polytope.forbidden[k], dtype=np.float64)
            key = polytope.theta[k].tobytes() + (b"" if mask is None else mask.tobytes())
            if key not in told:
                told[key] = _why(form.polytope, regularizer, given, mask)
            if (found := told[key]) is not None:
                status[k], reasons[k] = found
    return replace(solution, status=status, reasons=reasons)


def _why(polytope: Polytope, regularizer: Declared, given: Sequence[np.ndarray], mask: np.ndarray | None) -> Told:
    for parameter, number in zip(polytope.parameters, given, strict=True):
        parameter.value = number
    constraints, x = list(polytope.constraints), polytope.variable
    if mask is not None:
        constraints.append(cp.multiply(mask[: x.size].reshape(x.shape), x) == 0)
    if solve(cp.Problem(cp.Minimize(0), constraints), TOLERANCE) != cp.OPTIMAL:
        return None
    domain, room = regularizer.expression.domain, cp.Variable()
    inside = [limit for constraint in domain for limit in _narrower(constraint, room)]
    problem = cp.Problem(cp.Maximize(room), [*constraints, *inside, room <= 1.0])
    word = solve(problem, TOLERANCE) if domain else ""
    best = float(problem.value) if word == cp.OPTIMAL else np.inf
    if word in (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE) or best < -ROOM:
        return _nowhere(regularizer, domain)
    if best <= ROOM:
        edge = f"the constraints of this instance leave {regularizer!r} no more than the edge of its domain"
        return Status.FAILED, f"{edge}: {_in_words(domain)}"
    if solve(cp.Problem(cp.Minimize(regularizer.expression), constraints), TOLERANCE) in cp.settings.INF_OR_UNB:
        how = "auxiliary variables can move without limit: bound them, or the expression"
        return Status.UNBOUNDED, f"{regularizer!r} is unbounded below on the polytope, as {how}"
    return None


def _nowhere(regularizer: Declared, domain: Sequence[cp.Constraint]) -> Told:
    return Status.INFEASIBLE, f"{regularizer!r} is finite nowhere on the polytope: its domain is {_in_words(domain)}"


def _in_words(domain: Sequence[cp.Constraint]) -> str:
    told = ", ".join(str(constraint) for constraint in domain[:3])
    return told + " …" * (len(domain) > 3)


def _narrower(constraint: cp.Constraint, room: cp.Variable) -> list[Any]:
    """A constraint of a domain with some room to its edge, where it is an inequality."""
    if isinstance(constraint, (Inequality, NonPos)):
        return [constraint.expr + room <= 0]
    if isinstance(constraint, NonNeg):
        return [constraint.expr >= room]
    return [constraint]
