"""The certificate of points of sets that are not polyhedral: asked of the declaration, by cvxpy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64

from optlayers.common.caches import Cache, WeakCache
from optlayers.common.locks import ForkSafeLock
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.solvers.base import Answer, Instances

__all__ = ["WORD", "declaration_alone", "distance_from_declared", "judge_declared", "solve"]

WORD = "that the gap is no larger is the word of Clarabel, which bounds the rest of the scores over the declared set"

TOLERANCES = (1e-12, 1e-10, 1e-8)
"""Of Clarabel for the products that bound gaps; the next one where it does not come so far."""

ROUNDING = 4.0 * np.finfo(np.float64).eps
"""Of the sums whose difference a gap is: next to scores that leave less than this of others, nothing is certified."""

_values = ForkSafeLock()
_judges: WeakCache[Polytope, Cache[bool, _Judge]] = WeakCache()


def _no_judges(polytope: Polytope) -> Cache[bool, _Judge]:
    return Cache()


def solve(problem: cp.Problem, tolerance: float) -> str:
    """The status with which Clarabel ends, in the words of cvxpy. The answer depends on the question alone."""
    stop = {"tol_gap_abs": tolerance, "tol_gap_rel": tolerance, "tol_feas": tolerance}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")  # that is the status, too
        try:
            # With warm_start, cvxpy would keep the solver with the tolerances and the scaling of the question before.
            problem.solve(solver=cp.CLARABEL, canon_backend=cp.SCIPY_CANON_BACKEND, warm_start=False, **stop)
        except cp.SolverError:
            return str(cp.SOLVER_ERROR)
    return str(problem.status)


@contextmanager
def declaration_alone(polytope: Polytope) -> Iterator[None]:
    """Have the declaration for oneself, and leave the values of its variables and parameters as they were.

    cvxpy keeps values in the user's own variables and parameters, which several polytopes may share.
    """
    leaves = [*polytope.variables, *polytope.parameters]
    with _values:
        before = [leaf.value for leaf in leaves]
        try:
            yield
        finally:
            for leaf, value in zip(leaves, before, strict=True):
                leaf.save_value(value)


def judge_declared(
    form: StandardForm, instances: Instances, answer: Answer
) -> tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"]]:
    r"""Residual, gap and relative error of projections, given the values of all variables of the declaration.

    The residual is the largest violation of a constraint, by cvxpy. The gap is :math:`\max_v \langle s - x, v - x
    \rangle` over the declared set, a linear problem that Clarabel bounds; it bounds the squared distance to the
    projection. The error is that of each constraint relative to the size of its own terms, and of the gap relative to 1
    plus the squared length of x.
    """
    polytope, count = form.polytope, len(instances)
    residual, gap, relative = np.full(count, np.nan), np.full(count, np.nan), np.full(count, np.inf)
    masked = instances.forbidden is not None
    judge = _judges.get(polytope, _no_judges).get(masked, partial(_Judge, polytope))
    values = [] if answer.values is None else answer.values
    with declaration_alone(polytope):
        for k in range(count):
            target, mine = instances.scores[k].reshape(form.shape), [value[k] for value in values]
            if all(np.isfinite(value).all() for value in mine):
                judge.fill(_given(form, instances, k))
                residual[k], gap[k], relative[k] = judge.judge(target, mine)
    length = 1.0 + (np.square(values[0]).sum(axis=tuple(range(1, values[0].ndim))) if len(values) else 0.0)
    error = np.maximum(relative, gap / length)
    return residual, gap, np.where(np.isfinite(error), error, np.inf)


def distance_from_declared(
    form: StandardForm, instances: Instances, answer: Answer
) -> tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"]]:
    """The residual of points and their error by constraints alone, without a look at what is best."""
    polytope, count = form.polytope, len(instances)
    residual, relative = np.full(count, np.nan), np.full(count, np.inf)
    masked = instances.forbidden is not None
    judge = _judges.get(polytope, _no_judges).get(masked, partial(_Judge, polytope))
    values = [] if answer.values is None else answer.values
    with declaration_alone(polytope):
        for k in range(count):
            mine = [value[k] for value in values]
            if all(np.isfinite(value).all() for value in mine):
                judge.fill(_given(form, instances, k))
                residual[k], relative[k] = judge.missed(mine)
    return residual, relative


def _given(form: StandardForm, instances: Instances, k: int) -> list[np.ndarray]:
    """The numbers of an instance: parameters, and which parts are forbidden."""
    given = [instances.parameters[k, spec.span].reshape(spec.shape) for spec in form.parameters]
    if instances.forbidden is not None:
        given.append(instances.forbidden[k].reshape(form.shape).astype(np.float64))
    return given


@final
class _Judge:
    """A declaration, and the linear problem that bounds gaps over it."""

    def __init__(self, polytope: Polytope, masked: bool) -> None:
        x = polytope.variable
        self.given = list(polytope.parameters)
        self.constraints = list(polytope.constraints)
        if masked:
            mask = cp.Parameter(x.shape, nonneg=True)
            self.given.append(mask)
            self.constraints.append(cp.multiply(mask, x) == 0)
        self.variables = polytope.variables
        self.direction = cp.Parameter(x.shape)
        self.support = cp.Problem(cp.Maximize(cp.sum(cp.multiply(self.direction, x))), self.constraints)

    def fill(self, given: Sequence[np.ndarray]) -> None:
        """Give the parameters of the declaration the numbers of an instance."""
        for parameter, number in zip(self.given, given, strict=True):
            parameter.value = number

    def judge(self, target: np.ndarray, values: Sequence[np.ndarray]) -> tuple[float, float, float]:
        """Residual and gap of one instance, and how much of the terms of a constraint the residual is."""
        point = values[0]
        with np.errstate(over="ignore", invalid="ignore"):
            toward = target - point
            size = max(float(np.abs(toward).max(initial=0.0)), np.finfo(np.float64).tiny)
        best = self._most(toward / size) * size if np.isfinite(size) else np.inf
        residual, relative = self.missed(values)
        with np.errstate(over="ignore", invalid="ignore"):
            terms = toward * point
            rounding = ROUNDING * (abs(best) + float(np.abs(terms).sum()))
            # A bound below the value of the point itself is as far from the truth as that.
            return residual, abs(best - float(terms.sum())) + rounding, relative

    def missed(self, values: Sequence[np.ndarray]) -> tuple[float, float]:
        """By how much points violate constraints, and how much of the terms of one that is."""
        for variable, value in zip(self.variables, values, strict=True):
            variable.save_value(value)
        residual, relative = 0.0, 0.0
        for constraint in self.constraints:
            violation = float(np.max(constraint.violation(), initial=0.0))
            residual = max(residual, violation)
            if violation > 0.0:
                relative = max(relative, _relative(constraint, violation))
        for variable, value in zip(self.variables, values, strict=True):
            outside = float(np.max(np.abs(variable.project(value) - value), initial=0.0))
            residual = max(residual, outside)
            relative = max(relative, outside / max(1.0, float(np.abs(value).max(initial=0.0))))
        return residual, relative

    def _most(self, direction: np.ndarray) -> float:
        """The largest product of a direction of size 1 with a point of the set, and what Clarabel may miss of it; inf
        where it does not find it."""
        self.direction.value = direction
        for tolerance in TOLERANCES:
            if solve(self.support, tolerance) == cp.OPTIMAL:
                best = float(self.support.value)
                return best + tolerance * max(1.0, abs(best))
        return np.inf


def _slopes(constraint: cp.Constraint) -> dict[cp.Variable, Any]:
    try:
        return dict(constraint.expr.grad) if hasattr(constraint, "expr") else {}
    except NotImplementedError:  # cvxpy knows the gradient of most atoms, not of all
        return {}


def _relative(constraint: cp.Constraint, violation: float) -> float:
    """How much a violation is of the terms of a constraint: what its variables, of size 1 or more, can change it by."""
    sizes = [np.abs(np.asarray(part.value, dtype=np.float64)).reshape(-1, order="F") for part in constraint.args]
    slopes = _slopes(constraint)
    if not slopes or any(slope is None for slope in slopes.values()):  # a cone, or an atom at the edge of its domain
        return violation / max(1.0, *(float(size.max(initial=0.0)) for size in sizes))
    each = np.asarray(constraint.violation(), dtype=np.float64).reshape(-1, order="F")
    terms = np.zeros(len(each))
    for size in sizes:
        terms = terms + size
    for variable, slope in slopes.items():
        unit = np.maximum(1.0, np.abs(np.asarray(variable.value, dtype=np.float64))).reshape(-1, order="F")
        terms = terms + abs(sp.csr_array(np.atleast_2d(slope) if np.isscalar(slope) else slope)).T @ unit
    wrong = each > 0.0
    return float(np.max(each[wrong] / terms[wrong], initial=0.0))
