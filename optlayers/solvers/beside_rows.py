"""Where a part is forbidden that can be below and above 0: what an oracle's vertices say nothing of.

A part of score -inf is 0. Where 0 is a bound of the part, the points without it are a face, and their vertices are
vertices of the whole polytope, which an oracle knows. Where the part has both signs, they are a section: its vertices
are others, and most polytopes have none at all where the part is 0. The constraints know the section.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Bool

from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.highs import Highs
from optlayers.solvers.oracle import Oracle
from optlayers.standard_form import StandardForm

__all__ = ["NO_FACE", "OracleBesideRows", "without_a_face"]

NO_FACE = (
    "a forbidden part (of score -inf) may be below and above 0 by its bounds: where it is 0 there are other vertices "
    "than those of the oracle. Leave the part out by a constraint, declare its sign, or ask the constraints by "
    "without_oracle(), where they are those of the polytope"
)


def without_a_face(form: StandardForm, instances: Instances) -> Bool[np.ndarray, " batch"] | None:
    """Instances with a forbidden part that has both signs by the bounds of the form; None where there are none."""
    if instances.forbidden is None:
        return None
    scored, theta = form.scored, instances.parameters
    both = (form.lower(theta)[:, :scored] < 0.0) & (form.upper(theta)[:, :scored] > 0.0)
    found = np.asarray((instances.forbidden[:, :scored] & both).any(axis=1))
    return found if found.any() else None


@final
@dataclass(frozen=True)
class OracleBesideRows(AbstractMaximizer):
    """An oracle, whose answers are verified, and HiGHS where a forbidden part leaves no face."""

    oracle: Oracle
    manner = "the declaration's own oracle, and simplex where a forbidden part has both signs"

    def prepare(self, form: StandardForm) -> tuple[StandardForm, Any, Any]:
        return form, self._verifying.prepare(form), Highs().prepare(form)

    def maximize(self, state: tuple[StandardForm, Any, Any], instances: Instances) -> Answer:
        form, oracle, rows = state
        section = without_a_face(form, instances)
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
        return Oracle(self.oracle.function, verify=True, serial=self.oracle.serial)
