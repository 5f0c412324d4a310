"""A batch of problems: made from parameters and forbidden parts, and spared what is decided already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64

from optlayers.solution import Status
from optlayers.solvers.base import Answer, Decomposition, Instances
from optlayers.solvers.certificate import Certificate, certify
from optlayers.solvers.kernels import oracles
from optlayers.solvers.oracle_call import Rows
from optlayers.standard_form import StandardForm

__all__ = ["distance_from_rows", "impossible_instances", "make_instances", "solve_possible"]

CONSISTENT = 1e-8
"""How far parameters may violate a dependent row that presolve dropped, relative to the right-hand side."""


def make_instances(form: StandardForm, theta: np.ndarray, forbidden: np.ndarray | None) -> Instances:
    """The numbers of every instance, from θ ``(batch, parameters)`` and the forbidden entries ``(batch, size)``."""
    lower, upper = form.lower(theta), form.upper(theta)
    masked = None
    if forbidden is not None:
        masked = np.zeros((len(theta), form.columns), dtype=bool)
        masked[:, : form.scored] = forbidden[:, form.kept]
        # The part becomes exactly 0. A bound that excludes 0 stays, so that the instance is seen to be infeasible.
        lower = np.where(masked, np.maximum(lower, 0.0), lower)
        upper = np.where(masked, np.minimum(upper, 0.0), upper)
    matrix = None
    if not form.matrix_is_constant:
        matrix = form.matrix.data + (form.matrix_map @ theta.T).T
    whole, kept = np.zeros((len(theta), form.size)), None if form.keeps_all else form.kept
    return Instances(whole, kept, form.rhs(theta), lower, upper, matrix, masked, theta)


def impossible_instances(
    form: StandardForm, theta: np.ndarray, broken: np.ndarray | None, forbidden: np.ndarray | None, precision: float
) -> np.ndarray | None:
    """Instances that break what presolve took for granted: consistent dropped rows, and parts that are not 0.

    ``broken`` is by how much the parameters violate dropped rows, None where there are none; ``precision`` is the
    machine epsilon of the dtype in which they came. None when there is nothing that could be broken.
    """
    if broken is None and forbidden is None:
        return None
    if broken is None:
        broken = np.zeros(len(theta))
    size = 1 + np.abs(form.rhs(theta)).max(axis=1, initial=0.0)
    impossible = broken > max(CONSISTENT, 64 * precision) * size
    if forbidden is not None:
        impossible |= (forbidden & (form.fixed != 0)).any(axis=1)
    return impossible


def distance_from_rows(
    form: StandardForm, instances: Instances, structures: Float64[np.ndarray, "batch size"]
) -> tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"]]:
    """The largest violation of a bound, of a fixed entry, or of a row that needs no unscored auxiliary variable.

    And the same relative to the right-hand sides.
    """
    residual, relative = np.empty(len(structures)), np.empty(len(structures))
    oracles.violations(Rows.of(form, instances), np.ascontiguousarray(structures), residual, relative)
    return residual, relative


def solve_possible(
    form: StandardForm, instances: Instances, impossible: np.ndarray | None, solve: Callable[[Instances], Answer]
) -> Answer:
    """Spare the solvers what is decided already: impossible instances, and forms without columns."""
    if impossible is None:
        if form.bounds_are_constant and instances.forbidden is None and form.unslacked:
            return solve(instances)
        impossible = np.zeros(len(instances), dtype=bool)
    if form.unslacked == 0:
        return _nothing_to_solve(form, instances, impossible)
    impossible = impossible | (instances.lower > instances.upper).any(axis=1)
    if not impossible.any():
        return solve(instances)
    rest = np.flatnonzero(~impossible)
    part = solve(instances.take(rest))
    answer = (Answer.empty if part.whole is None else Answer.of_whole)(form, len(instances))
    answer.status[impossible] = Status.INFEASIBLE
    if answer.whole is not None and part.whole is not None:
        answer.whole[impossible], answer.whole[rest] = np.nan, part.whole
    if part.free is not None:
        answer.free = np.zeros(answer.point.shape, dtype=bool)
    if part.certificate is not None:
        answer.certificate = Certificate.empty(len(instances))
    answer.replace(rest, part, np.arange(len(rest)))
    if part.residual is not None and part.gap is not None:
        answer.residual, answer.gap = np.full(len(instances), np.nan), np.full(len(instances), np.nan)
        answer.residual[rest], answer.gap[rest] = part.residual, part.gap
    if part.decomposition is not None:
        answer.decomposition = part.decomposition.scattered(rest, len(instances))
    if part.pullback is not None:
        answer.pullback = _Scattered(part.pullback, rest)
    return answer


@final
@dataclass(frozen=True)
class _Scattered:
    """A pullback of some instances of a batch; the others get 0."""

    pullback: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    rest: np.ndarray

    def __call__(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts = self.pullback(direction[self.rest])
        scores, parameters, right = (np.zeros((len(direction), *part.shape[1:]), part.dtype) for part in parts)
        scores[self.rest], parameters[self.rest], right[self.rest] = parts
        return scores, parameters, right


def _nothing_to_solve(form: StandardForm, instances: Instances, impossible: np.ndarray) -> Answer:
    """The constraints leave one point; the certificate says whether the parameters admit it."""
    answer = Answer.empty(form, len(instances))
    answer.point[:] = instances.rhs[:, form.equalities :]
    answer.dual[:] = 0.0
    answer.status[impossible] = Status.INFEASIBLE
    answer.free = np.ones(answer.point.shape, dtype=bool)
    answer.certificate = certify(form, instances, answer.point, answer.dual, projection=False)
    answer.decomposition = Decomposition.of_one(form.fixed, len(instances))
    return answer
