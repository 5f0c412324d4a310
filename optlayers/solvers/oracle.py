"""A polytope's own maximizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.highs import Highs
from optlayers.solvers.kernels import oracles
from optlayers.solvers.kernels.batches import per_instance
from optlayers.solvers.oracle_call import OracleCall, Rows
from optlayers.solvers.pool import for_each_chunk
from optlayers.standard_form import StandardForm

__all__ = ["Oracle", "judge", "no_forbidden"]

FEASIBLE = 1e-7
"""An oracle's answer may violate the declared constraints by so much, relative to their right-hand sides."""
WORTH_A_THREAD = 64
"""Instances; compiled oracles take microseconds."""


@final
@dataclass(frozen=True)
class Oracle(AbstractMaximizer):
    """Maximize by calling a function that knows the structure, in compiled code where it is compiled by numba.

    Every answer is checked against the bounds and those constraints that need no other variables than the scored
    ones. That it also satisfies the others, and that it is *best*, is the oracle's word: its gap is NaN.
    :func:`optlayers.testing.check_oracle` compares an oracle with the whole declaration, through a solver that proves
    its answers; with ``verify`` every single answer is.

    Parameters
    ----------
    function : see ``oracle`` of :class:`optlayers.Polytope`. Entries that the constraints fix have the score 0.
    verify : check every answer against all constraints, and its value against the best one, by HiGHS. That takes
        longer than to ask HiGHS in the first place; it is for finding out where an oracle goes wrong.
    """

    function: Callable[..., Any]
    verify: bool = False
    manner = "the declaration's own oracle"

    @property
    def reads_declaration(self) -> bool:  # type: ignore[override]
        """Whether rows with further auxiliary variables are not needed."""
        return not self.verify

    def prepare(self, form: StandardForm) -> _State:
        return _State(form, OracleCall(self.function, form.polytope), Highs().prepare(form) if self.verify else None)

    def maximize(self, state: _State, instances: Instances) -> Answer:
        form, call, count = state.form, state.call, len(instances)
        answer = Answer.empty(form, count)
        flat, codes = np.empty((count, form.size)), np.zeros(count, dtype=np.int64)
        residual = answer.residual = np.empty(count)
        answer.gap = np.full(count, np.nan)
        rows, scores = Rows.of(form, instances), per_instance(instances.scores)
        forbidden, theta = no_forbidden(form, instances), per_instance(instances.parameters)

        def work(which: np.ndarray) -> None:
            oracles.maximize(call.call, rows, scores, forbidden, theta, which, flat, codes, residual)

        for_each_chunk(work, count, smallest=WORTH_A_THREAD)
        answer.point[:, : form.scored] = flat[:, form.kept]
        answer.point[:, form.scored :] = 0.0
        judge(call, instances, codes, answer)
        if state.reference is not None:
            _verify(state, instances, answer)
        return answer


@final
@dataclass(frozen=True)
class _State:
    form: StandardForm
    call: OracleCall
    reference: Any
    """The state of a HiGHS solver that verifies answers, None when they are not."""


def _verify(state: _State, instances: Instances, answer: Answer) -> None:
    """Complete structures by auxiliary values, which there are none of outside of the polytope, and find the gap."""
    form, inside = state.form, np.flatnonzero(answer.status == Status.OPTIMAL)
    mine = instances.take(inside)
    lower, upper = mine.lower.copy(), mine.upper.copy()
    held = answer.point[inside][:, : form.scored]
    # Rounded structures get the room of the tolerance on either side.
    lower[:, : form.scored], upper[:, : form.scored] = held - FEASIBLE, held + FEASIBLE
    completed = Highs().maximize(
        state.reference, replace(mine, scores=np.zeros_like(mine.scores), lower=lower, upper=upper)
    )
    best = Highs().maximize(state.reference, mine)
    if answer.gap is None:
        raise RuntimeError("answers of oracles have a gap, be it NaN")
    answer.gap[inside] = np.sum(mine.scores * (best.point[:, : form.scored] - held), axis=1)
    for position in np.flatnonzero(completed.status != Status.OPTIMAL):
        k = int(inside[position])
        answer.status[k] = Status.INACCURATE
        answer.reasons[k] = f"oracle {state.call.name} left the polytope; see optlayers.testing.check_oracle"
    size = 1.0 + np.abs(mine.scores).sum(axis=1)
    for position in np.flatnonzero(answer.gap[inside] > FEASIBLE * size):
        k = int(inside[position])
        answer.status[k] = Status.INACCURATE
        answer.reasons[k] = f"oracle {state.call.name} misses the best value by {answer.gap[k]:.3g}"


def no_forbidden(form: StandardForm, instances: Instances) -> np.ndarray:
    """The forbidden scored columns; no rows at all when nothing is forbidden."""
    if instances.forbidden is None:
        return np.zeros((0, 0), dtype=np.bool_)
    return np.ascontiguousarray(instances.forbidden[:, : form.scored])


def judge(call: OracleCall, instances: Instances, codes: np.ndarray, answer: Answer) -> None:
    """Status and reason of every instance, from the codes of the kernel and the residuals of its structures."""
    if answer.residual is None:
        raise RuntimeError("answers of oracles bring their residuals")
    scale = 1.0 + np.abs(instances.rhs).max(axis=1, initial=0.0)
    outside = (codes == oracles.FOUND) & ~(answer.residual <= FEASIBLE * scale)
    for k in np.flatnonzero((codes != oracles.FOUND) | outside).tolist():
        code = int(codes[k])
        if outside[k]:
            answer.status[k] = Status.INACCURATE
            answer.reasons[k] = (
                f"oracle {call.name} left the polytope by {answer.residual[k]:.3g}; see optlayers.testing.check_oracle"
            )
        elif code == oracles.NOTHING:
            answer.status[k] = Status.INFEASIBLE
            answer.reasons[k] = f"oracle {call.name} finds no structure without the forbidden parts"
        else:
            answer.status[k] = Status.FAILED
            answer.reasons[k] = call.complaint(code)
