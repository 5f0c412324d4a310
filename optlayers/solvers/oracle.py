"""A polytope's own maximizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from optlayers.solution import Status
from optlayers.solvers.ask import ask
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.highs import Highs
from optlayers.solvers.kernels import oracles
from optlayers.solvers.kernels.structures import FEASIBLE
from optlayers.solvers.oracle_batch import OracleBatch
from optlayers.solvers.oracle_call import ADVICE, OracleCall
from optlayers.solvers.pool import for_each_chunk
from optlayers.standard_form import StandardForm

__all__ = ["Oracle", "explain"]

WORTH_A_THREAD = 64
"""Instances; compiled oracles take microseconds."""
WORTH_ASKING_TWICE = 8
"""Instances; one question more is then an eighth of the time at most."""


@final
@dataclass(frozen=True)
class Oracle(AbstractMaximizer):
    """Maximize by calling a function that knows the structure, in compiled code where it is compiled by numba.

    Every answer is checked: against the bounds and those constraints that need no other variables than the scored
    ones; for being integral, where the declaration says ``integral=True``; and, for the constraints that need further
    auxiliary variables, by the ``membership`` function of the declaration. Where there are such constraints and no
    membership function, that they hold is the oracle's word. That an answer is *best* always is: its gap is NaN. In
    batches of 8 instances or more the oracle is asked twice for the first of them, and must give the same bits again.
    :func:`optlayers.testing.check_oracle` compares an oracle with the whole declaration, through a solver that proves
    its answers; with ``verify`` every single answer is.

    Parameters
    ----------
    function : see ``oracle`` of :class:`optlayers.Polytope`. Entries that the constraints fix may have any score.
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
        answer, codes = Answer.of_whole(form, count), np.empty(count, dtype=np.int64)
        answer.oracle = call
        batch = OracleBatch.of(form, call, instances)
        twice = 0 if count >= WORTH_ASKING_TWICE else -1

        def work(which: np.ndarray) -> None:
            oracles.maximize(*batch.arguments, which, twice, answer.whole, codes)

        for_each_chunk(work, count, smallest=WORTH_A_THREAD)
        call.interrupt()
        explain(call, codes, answer)
        if state.reference is not None:
            _verify(state, instances, answer)
        return answer


def explain(call: OracleCall, codes: np.ndarray, answer: Answer) -> None:
    """Status and reason of every instance for which an oracle did not answer."""
    if np.count_nonzero(codes) == 0:
        return
    for k in np.flatnonzero(codes != oracles.FOUND).tolist():
        answer.status[k], answer.reasons[k] = call.explain(int(codes[k]), np.nan)


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
    mine, highs = instances.take(inside), Highs()
    lower, upper = mine.lower.copy(), mine.upper.copy()
    held = answer.scored_vectors[inside][:, form.kept]
    # Rounded structures get the room of the tolerance on either side.
    lower[:, : form.scored], upper[:, : form.scored] = held - FEASIBLE, held + FEASIBLE
    anywhere = replace(mine, whole=np.zeros_like(mine.whole), lower=lower, upper=upper)
    completed = highs.maximize(state.reference, anywhere)
    best = ask(form, mine, highs, state.reference, projection=False, tolerance=FEASIBLE)
    missed = np.sum(mine.scores * (best.answer.point[:, : form.scored] - held), axis=1)
    size = 1.0 + np.abs(mine.scores).sum(axis=1)
    for position, k in enumerate(inside.tolist()):
        if completed.status[position] != Status.OPTIMAL:
            answer.status[k] = Status.INACCURATE
            answer.reasons[k] = f"{state.call} left the polytope; {ADVICE}"
        elif best.status[position] != Status.OPTIMAL or not missed[position] <= FEASIBLE * size[position]:
            answer.status[k] = Status.INACCURATE
            answer.reasons[k] = f"{state.call} misses the best value by {missed[position]:.3g}"
