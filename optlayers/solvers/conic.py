"""Regularized problems that need cones, by Clarabel and cvxpylayers, one instance after the other."""

from __future__ import annotations

from functools import partial
from typing import final

import cvxpy as cp
import numpy as np
from jaxtyping import Bool

from optlayers.common.caches import Cache
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.polytope import Polytope
from optlayers.solution import Status
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.cvxpylayers import DeclaredProblem, DeclaredPullback, cvxpylayers_for
from optlayers.solvers.declared import declaration_alone

__all__ = ["CONE_WORD", "ConicProgram"]

CONE_WORD = "that the regularized point is best is the word of Clarabel"
TOLERANCE = 1e-10


@final
class ConicProgram:
    """A polytope with a convex expression over it, as cvxpy hands both to a cone solver; ``why`` says why it does."""

    accuracy = 1e-6

    def __init__(self, polytope: Polytope, expression: cp.Expression, why: str) -> None:
        self.polytope, self.expression, self.why = polytope, expression, why
        if polytope.scored or polytope.has_integers:
            what = "auxiliary variables have scores" if polytope.scored else "variables are integers"
            raise DeclarationError(f"{why}, and a cone solver does not take a polytope where {what}")
        if not expression.is_dpp():
            raise DeclarationError(
                f"{why}; for a cone solver, parameters must enter the regularizer affinely (cvxpy's DPP rules): give a "
                "covariance by its root, cp.sum_squares(root @ x), and a product of parameters as one parameter"
            )
        cvxpylayers_for(f"{why}; derivatives then come from cvxpylayers")
        self._problems: Cache[bool, DeclaredProblem] = Cache()

    def answer(self, form: StandardForm, instances: Instances, which: Bool[np.ndarray, " batch"]) -> Answer:
        """The points of the instances ``which``, and their derivative; others are NaN."""
        count, answer = len(instances), Answer.of_whole(form, len(instances))
        inputs = [instances.whole.reshape(count, *form.shape)]
        inputs += [instances.parameters[:, spec.span].reshape(count, *spec.shape) for spec in form.parameters]
        masked = instances.forbidden is not None
        if instances.forbidden is not None:
            hidden = np.zeros((count, form.size))
            hidden[:, form.kept] = instances.forbidden[:, : form.scored]
            inputs.append(hidden.reshape(count, *form.shape))
        whole = np.full((count, form.size), np.nan)
        index = np.flatnonzero(which)
        with declaration_alone(self.polytope):
            problem = self._problems.get(masked, partial(self._problem))
            status = np.zeros(len(index), dtype=np.int8)
            found = problem.nearest([part[index] for part in inputs], status)
        answer.status[:] = Status.FAILED
        answer.status[index] = status
        whole[index] = found[0].reshape(len(index), form.size)
        # What rounding leaves beyond a bound goes: rows tell whether that was all.
        inside = slice(0, form.scored)
        whole[:, form.kept] = np.clip(whole[:, form.kept], instances.lower[:, inside], instances.upper[:, inside])
        answer.whole = whole
        answer.values = [_scattered(value, index, count) for value in found]
        answer.pullback = DeclaredPullback(form, problem, inputs, answer.status == Status.OPTIMAL, weighted=False)
        return answer

    def _problem(self, masked: bool) -> DeclaredProblem:
        return DeclaredProblem(self.polytope, TOLERANCE, masked, self.expression)


def _scattered(some: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """The values of a variable for all instances, NaN for those that nobody asked about."""
    values = np.full((count, *some.shape[1:]), np.nan)
    values[index] = some
    return values
