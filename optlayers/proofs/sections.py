"""Where a part is forbidden that can be below and above 0: what an oracle's vertices say nothing of.

A part of score -inf is 0. Where 0 is a bound of the part, the points without it are a face, and their vertices are
vertices of the whole polytope, which an oracle knows. Where the part has both signs, they are a section: its vertices
are others, and most polytopes have none at all where the part is 0. The constraints know the section.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool

from optlayers.common.caches import Cache
from optlayers.form.standard import StandardForm
from optlayers.solution import Solution, Status
from optlayers.solvers import Oracle
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import make_instances
from optlayers.solvers.kernels.structures import FEASIBLE

__all__ = ["KEPT", "beside", "refused", "without_a_face"]

NO_FACE = (
    "a forbidden part (of score -inf) is not known to keep its sign: by what the oracle answers it may be below 0 in "
    "one structure and above 0 in another, and where it is 0 are other vertices. Leave the part out by a constraint, "
    "or ask the constraints by without_oracle(), where they are those of the polytope"
)
KEPT = 65536
"""The signs of so many parts are kept, for all values of the parameters."""
Section = Bool[np.ndarray, " batch"]
Signs = Cache[tuple[bytes, int], bool]


def without_a_face(form: StandardForm, oracle: Oracle, instances: Instances, signs: Signs) -> Section | None:
    """Instances with a forbidden part that has both signs; None where there are none.

    Bounds say it of most parts, and the oracle of the others: it is asked for the structures in which a part is
    smallest and largest, once for every value of the parameters that ``signs`` holds.
    """
    if instances.forbidden is None:
        return None
    scored, theta = form.scored, instances.parameters
    both = (form.lower(theta)[:, :scored] < 0.0) & (form.upper(theta)[:, :scored] > 0.0)
    unclear = instances.forbidden[:, :scored] & both
    found = np.zeros(len(theta), dtype=bool)
    asked = partial(_has_both_signs, form, replace(oracle, verify=False))
    for k in np.flatnonzero(unclear.any(axis=1)).tolist():
        key, parts = theta[k].tobytes(), form.kept[np.flatnonzero(unclear[k])].tolist()
        found[k] = any(signs.get((key, part), asked) for part in parts)
    return found if found.any() else None


def _has_both_signs(form: StandardForm, oracle: Oracle, key: tuple[bytes, int]) -> bool:
    """Whether a part is below 0 in one structure and above 0 in another, or the oracle does not say."""
    theta, part = np.frombuffer(key[0]).reshape(1, -1), key[1]
    directions = np.zeros((2, form.size))
    directions[:, part] = 1.0, -1.0
    instances = make_instances(form, np.repeat(theta, 2, axis=0), None).with_scores(directions)
    answer = oracle.maximize(oracle.prepare(form), instances)
    if (answer.status != Status.OPTIMAL).any():
        return True
    high, low = answer.scored_vectors[:, part].tolist()
    both: bool = high > FEASIBLE and low < -FEASIBLE
    return both


def beside(solution: Solution, index: np.ndarray, other: Solution) -> Solution:
    """The answers with those of ``other`` for the instances ``index``."""
    value, status, residual, gap = (
        getattr(solution, name).clone() for name in ("value", "status", "primal_residual", "gap")
    )
    which = torch.from_numpy(index)
    value[which], status[which] = other.value, other.status
    residual[which], gap[which] = other.primal_residual, other.gap
    mine = set(index.tolist())
    reasons = {k: reason for k, reason in solution.reasons.items() if k not in mine}
    reasons |= {int(index[k]): reason for k, reason in other.reasons.items()}
    return replace(solution, value=value, status=status, primal_residual=residual, gap=gap, reasons=reasons)


def refused(solution: Solution, section: Section) -> Solution:
    """Without answers to those instances of which an oracle knows nothing."""
    status = solution.status.masked_fill(torch.from_numpy(section), int(Status.FAILED))
    reasons = dict(solution.reasons) | dict.fromkeys(np.flatnonzero(section).tolist(), NO_FACE)
    return replace(solution, status=status, reasons=reasons)
