"""Where a part is forbidden that can be below and above 0: what an oracle's vertices say nothing of.

A part of score -inf is 0. Where 0 is a bound of the part, the points without it are a face, and their vertices are
vertices of the whole polytope, which an oracle knows. Where the part has both signs, they are a section: its vertices
are others, and most polytopes have none at all where the part is 0. The constraints know the section.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
from jaxtyping import Bool

from optlayers.caches import Cache
from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.batch import make_instances
from optlayers.solvers.highs import Highs
from optlayers.solvers.oracle import Oracle
from optlayers.standard_form import StandardForm

__all__ = ["KEPT", "NO_FACE", "OracleBesideRows", "without_a_face"]

NO_FACE = (
    "a forbidden part (of score -inf) is below 0 in one structure of the oracle and above 0 in another: where it is 0 "
    "are other vertices than those of the oracle. Leave the part out by a constraint, or ask the constraints by "
    "without_oracle(), where they are those of the polytope"
)
KEPT = 256
"""The signs of parts are kept for so many values of the parameters."""
Section = Bool[np.ndarray, " batch"]


def without_a_face(form: StandardForm, oracle: Oracle, instances: Instances, kept: Cache) -> Section | None:
    """Instances with a forbidden part that has both signs; None where there are none.

    Bounds say it of most parts, and the oracle of the others: it is asked for the structures in which a part is
    smallest and largest, once for every value of the parameters that is ``kept``.
    """
    if instances.forbidden is None:
        return None
    scored, theta = form.scored, instances.parameters
    both = (form.lower(theta)[:, :scored] < 0.0) & (form.upper(theta)[:, :scored] > 0.0)
    unclear = instances.forbidden[:, :scored] & both
    found = np.zeros(len(theta), dtype=bool)
    for k in np.flatnonzero(unclear.any(axis=1)).tolist():
        signs = kept.get(theta[k].tobytes(), partial(_have_both_signs, form, oracle))
        found[k] = (unclear[k] & signs[form.kept]).any()
    return found if found.any() else None


def _have_both_signs(form: StandardForm, oracle: Oracle, key: bytes) -> Bool[np.ndarray, " size"]:
    """Parts that are below 0 in one structure and above 0 in another; those too of which the oracle says nothing."""
    count, theta = form.scored, np.frombuffer(key).reshape(1, -1)
    directions = np.zeros((2 * count, form.size))
    directions[np.arange(2 * count), np.tile(form.kept, 2)] = np.repeat([1.0, -1.0], count)
    instances = make_instances(form, np.repeat(theta, 2 * count, axis=0), None).with_scores(directions)
    answer = replace(oracle, verify=False).maximize(replace(oracle, verify=False).prepare(form), instances)
    ends = answer.scored_vectors[np.arange(2 * count), np.tile(form.kept, 2)]
    ends = np.where(answer.status == Status.OPTIMAL, ends, np.repeat([np.inf, -np.inf], count))
    both = np.zeros(form.size, dtype=bool)
    both[form.kept] = (ends[:count] > 0.0) & (ends[count:] < 0.0)
    return both


@final
@dataclass(frozen=True)
class OracleBesideRows(AbstractMaximizer):
    """An oracle, whose answers are verified, and HiGHS where a forbidden part leaves no face."""

    oracle: Oracle
    manner = "the declaration's own oracle, and simplex where a forbidden part has both signs"

    def prepare(self, form: StandardForm) -> tuple[StandardForm, Any, Any, Cache]:
        return form, self._verifying.prepare(form), Highs().prepare(form), Cache(KEPT)

    def maximize(self, state: tuple[StandardForm, Any, Any, Cache], instances: Instances) -> Answer:
        form, oracle, rows, kept = state
        section = without_a_face(form, self.oracle, instances, kept)
        if section is None:
            return self._verifying.maximize(oracle, instances)
        answer = Answer.empty(form, len(instances))
        for which, solver, prepared in ((section, Highs(), rows), (~section, self._verifying, oracle)):
            index = np.flatnonzero(which)
            if len(index):
                found = solver.maximize(prepared, instances.take(index))
                answer.status[index] = found.status
                answer.replace(index, found, np.arange(len(index)))
        return answer

    @property
    def _verifying(self) -> Oracle:
        return replace(self.oracle, verify=True)
