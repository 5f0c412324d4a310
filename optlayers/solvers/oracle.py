"""A polytope's own maximizer, called instance by instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.standard_form import StandardForm

__all__ = ["Oracle"]

FEASIBLE = 1e-7
"""An oracle's answer may violate the declared constraints by so much, relative to their right-hand sides."""


@final
@dataclass(frozen=True)
class Oracle(AbstractMaximizer):
    """Maximize by calling a function that knows the structure.

    Every answer is checked against the declared constraints as far as they have no auxiliary variables. That it is
    *best* is the oracle's word: its gap is reported as NaN. :func:`optlayers.testing.check_polytope` compares an
    oracle with a solver that proves its answers.

    Parameters
    ----------
    function : takes the scores of one instance, float64, in the shape of the structure, and returns a best vertex in
        that shape. Forbidden parts have the score ``-inf``. Entries that the constraints fix have the score 0.
    """

    function: Callable[[np.ndarray], Any]

    def prepare(self, form: StandardForm) -> StandardForm:
        return form

    def maximize(self, state: StandardForm, instances: Instances) -> Answer:
        form, answer = state, Answer.empty(state, len(instances))
        answer.residual = np.zeros(len(instances))
        answer.gap = np.full(len(instances), np.nan)
        answer.dual[:] = 0.0
        for k in range(len(instances)):
            structure = self._call(form, instances, k)
            answer.point[k], answer.residual[k] = _complete(form, instances, k, structure)
        scale = 1.0 + np.abs(instances.rhs).max(axis=1, initial=0.0)
        answer.status[:] = np.where(answer.residual <= FEASIBLE * scale, Status.OPTIMAL, Status.INACCURATE)
        return answer

    def _call(self, form: StandardForm, instances: Instances, k: int) -> np.ndarray:
        scores = np.zeros(form.size)
        scores[form.kept] = instances.scores[k]
        if instances.forbidden is not None:
            scores[form.kept[instances.forbidden[k, : form.scored]]] = -np.inf
        structure = np.asarray(self.function(scores.reshape(form.shape)), dtype=np.float64)
        if structure.shape != form.shape:
            raise ValueError(
                f"oracle {self.function!r} returned shape {structure.shape} for instance {k}, "
                f"but the polytope has shape {form.shape}"
            )
        return structure.reshape(-1)


def _complete(form: StandardForm, instances: Instances, k: int, structure: np.ndarray) -> tuple[np.ndarray, float]:
    """The point with its slacks, and by how much it violates the rows that have no auxiliary column."""
    point = np.zeros(form.columns)
    point[: form.scored] = structure[form.kept]
    fixed = np.ones(form.size, dtype=bool)
    fixed[form.kept] = False
    outside = np.abs(structure - form.fixed)[fixed].max(initial=0.0)
    data = form.matrix.data if instances.matrix is None else instances.matrix[k]
    column = form.entry_column
    product = np.bincount(form.matrix.indices, data * point[column], minlength=form.rows)
    rest = instances.rhs[k] - product
    auxiliary = (column >= form.scored) & (column < form.unslacked)
    plain = np.ones(form.rows, dtype=bool)
    plain[form.matrix.indices[auxiliary]] = False
    rest[~plain] = 0.0
    point[form.unslacked :] = np.maximum(rest[form.equalities :], 0.0)
    wrong = np.abs(rest)
    wrong[form.equalities :] = np.maximum(-rest[form.equalities :], 0.0)
    scored = slice(0, form.scored)
    bounds = np.maximum(instances.lower[k, scored] - point[scored], point[scored] - instances.upper[k, scored])
    return point, float(max(outside, wrong.max(initial=0.0), bounds.max(initial=0.0)))
