"""A polytope's own maximizer, called instance by instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.highs import Highs
from optlayers.standard_form import StandardForm

__all__ = ["Oracle"]

FEASIBLE = 1e-7
"""An oracle's answer may violate the declared constraints by so much, relative to their right-hand sides."""


@final
@dataclass(frozen=True)
class Oracle(AbstractMaximizer):
    """Maximize by calling a function that knows the structure.

    Every answer must lie in the declared polytope; where auxiliary variables are needed to tell, HiGHS looks for them.
    That the answer is *best* is the oracle's word: its gap is NaN. :func:`optlayers.testing.check_polytope` compares
    an oracle with a solver that proves its answers.

    Parameters
    ----------
    function : takes the scores of one instance, float64, in the shape of the structure, and returns a best vertex in
        that shape. Forbidden parts have the score ``-inf``. Entries that the constraints fix have the score 0.
    """

    function: Callable[[np.ndarray], Any]
    manner = "the declaration's own oracle"

    def prepare(self, form: StandardForm) -> _State:
        return _State(form, Highs().prepare(form) if form.auxiliary else None)

    def maximize(self, state: _State, instances: Instances) -> Answer:
        form, answer = state.form, Answer.empty(state.form, len(instances))
        answer.residual = np.full(len(instances), np.nan)
        answer.gap = np.full(len(instances), np.nan)
        for k in range(len(instances)):
            try:
                structure = self._call(form, instances, k)
            except Exception as error:  # whatever a user's function raises belongs to this instance
                answer.status[k] = Status.FAILED
                answer.reasons[k] = f"oracle {self._name} raised {type(error).__name__}: {error}"
                continue
            answer.point[k], answer.residual[k] = _complete(form, instances, k, structure)
        found = np.isfinite(answer.residual)
        scale = 1.0 + np.abs(instances.rhs).max(axis=1, initial=0.0)
        inside = found & (np.nan_to_num(answer.residual) <= FEASIBLE * scale)
        for k in np.flatnonzero(found & ~inside).tolist():
            answer.status[k] = Status.INACCURATE
            answer.reasons[k] = f"oracle {self._name} left the polytope by {answer.residual[k]:.3g}; see check_polytope"
        if state.auxiliaries is not None:
            self._find_auxiliaries(state, instances, answer, np.flatnonzero(inside))
        return answer

    @property
    def _name(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    def _call(self, form: StandardForm, instances: Instances, k: int) -> np.ndarray:
        scores = np.zeros(form.size)
        scores[form.kept] = instances.scores[k]
        if instances.forbidden is not None:
            scores[form.kept[instances.forbidden[k, : form.scored]]] = -np.inf
        structure = np.asarray(self.function(scores.reshape(form.shape)), dtype=np.float64)
        if structure.shape != form.shape:
            raise ValueError(f"it returned shape {structure.shape}, but the polytope has shape {form.shape}")
        return structure.reshape(-1)

    def _find_auxiliaries(self, state: _State, instances: Instances, answer: Answer, inside: np.ndarray) -> None:
        """Complete points by auxiliary values, with the structure held; there are none outside of the polytope."""
        form, mine = state.form, instances.take(inside)
        lower, upper = mine.lower.copy(), mine.upper.copy()
        held = answer.point[inside][:, : form.scored]
        # Rounded structures get the room of the tolerance on either side.
        lower[:, : form.scored], upper[:, : form.scored] = held - FEASIBLE, held + FEASIBLE
        held_instances = replace(mine, scores=np.zeros_like(mine.scores), lower=lower, upper=upper)
        completed = Highs().maximize(state.auxiliaries, held_instances)
        for position, k in enumerate(inside):
            if completed.status[position] == Status.OPTIMAL:
                answer.point[k, form.scored :] = completed.point[position, form.scored :]
            else:
                answer.status[k] = Status.INACCURATE
                answer.reasons[int(k)] = f"oracle {self._name} left the polytope; see check_polytope"


@final
@dataclass(frozen=True)
class _State:
    form: StandardForm
    auxiliaries: Any
    """The state of a HiGHS solver that completes points, None when rows need no auxiliary columns."""


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
