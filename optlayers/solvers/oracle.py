"""A polytope's own maximizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from optlayers.oracle import name_of
from optlayers.polytope import Polytope
from optlayers.solution import Status
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.certificate import Certificate
from optlayers.solvers.highs import Highs
from optlayers.solvers.kernels import oracles
from optlayers.solvers.kernels.oracles import FEASIBLE
from optlayers.solvers.oracle_call import OracleCall, Rows
from optlayers.standard_form import StandardForm

__all__ = ["ADVICE", "Oracle", "Question", "judge", "verify"]

ADVICE = "see optlayers.testing.check_oracle"
NOTHING_FORBIDDEN = np.zeros((0, 0), dtype=np.bool_)
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
        longer than to ask HiGHS in the first place; it is for finding out where an oracle goes wrong. Projections over
        the oracle are checked in the same way: that they lie in the polytope, and that no vertex is better than they
        are along what is left of the scores.
    serial : call the function, and the ``membership`` function of the declaration, once at a time. Otherwise several
        threads call them at the same time: those of a batch, and those of the caller. A function that keeps a solver's
        model, a buffer or a cache is rarely safe for that. Functions are told apart by identity, the methods of an
        object by the object; a function may call the layer that it belongs to. Compiled functions lose their speed.

    Raises
    ------
    TypeError : a function that cannot be called; ``verify`` or ``serial`` that are no booleans.
    """

    function: Callable[..., Any]
    verify: bool = False
    serial: bool = False
    manner = "the declaration's own oracle"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"the function of an Oracle must be callable, but got {type(self.function).__name__}")
        for name in ("verify", "serial"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, but got {getattr(self, name)!r}")
        inner = self.function
        if isinstance(inner, Oracle):
            object.__setattr__(self, "function", inner.function)
            object.__setattr__(self, "verify", self.verify or inner.verify)
            object.__setattr__(self, "serial", self.serial or inner.serial)

    def __call__(self, *arrays: np.ndarray) -> Any:
        """The function at the arrays of one instance."""
        return self.function(*arrays)

    @property
    def __name__(self) -> str:
        return name_of(self.function)

    def call(self, polytope: Polytope) -> OracleCall:
        """The function as kernels call it."""
        return OracleCall(self.function, polytope, serial=self.serial)

    def reference(self, form: StandardForm) -> Any:
        """What verifies answers, None where nothing does."""
        return Highs().prepare(form) if self.verify else None

    @property
    def reads_declaration(self) -> bool:  # type: ignore[override]
        """Whether rows with further auxiliary variables are not needed."""
        return not self.verify

    def prepare(self, form: StandardForm) -> _State:
        return _State(form, self.call(form.polytope), self.reference(form))

    def maximize(self, state: _State, instances: Instances) -> Answer:
        form, call, count = state.form, state.call, len(instances)
        answer, certificate = Answer.of_whole(form, count), Certificate.room(count)
        answer.certificate = certificate
        certificate.gap[:] = np.nan
        codes = np.empty(count, dtype=np.int64)
        question = Question.of(form, call, instances)
        twice = 0 if count >= WORTH_ASKING_TWICE else -1

        wrong: list[int] = []

        def work(which: np.ndarray) -> None:
            wrong.append(
                oracles.maximize(
                    *question.arguments, which, twice, answer.whole, codes, certificate.residual, certificate.relative
                )
            )

        call.spread(work, count, smallest=WORTH_A_THREAD)
        call.interrupt()
        if any(wrong):
            judge(call, codes, answer, certificate)
        if state.reference is not None:
            verify(form, call, state.reference, instances, answer, certificate, curved=0)
        return answer


@final
@dataclass(frozen=True)
class Question:
    """What kernels are told about a batch."""

    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, form: StandardForm, call: OracleCall, instances: Instances) -> Question:
        """The oracle, the rows that its structures are held to, whole scores, forbidden columns and parameters."""
        if instances.forbidden is None:
            forbidden = NOTHING_FORBIDDEN
        else:
            forbidden = np.ascontiguousarray(instances.forbidden[:, : form.scored])
        # A row for every instance, also where all rows are one in memory.
        scores, theta = _rows_of_their_own(instances.whole), _rows_of_their_own(instances.parameters)
        return cls((call.call, Rows.of(form, instances), scores, forbidden, theta))


def _rows_of_their_own(array: np.ndarray) -> np.ndarray:
    flags = array.flags
    return array if flags.c_contiguous and flags.writeable else np.array(array, order="C")


@final
@dataclass(frozen=True)
class _State:
    form: StandardForm
    call: OracleCall
    reference: Any
    """The state of a HiGHS solver that verifies answers, None when they are not."""


def verify(
    form: StandardForm,
    call: OracleCall,
    reference: Any,
    instances: Instances,
    answer: Answer,
    certificate: Certificate,
    *,
    curved: int,
) -> None:
    """Complete points by auxiliary values, which there are none of outside of the polytope, and find the gap.

    Of a projection, ``curved`` columns count for distances, and the gap is that along scores less the point.
    """
    inside = np.flatnonzero(answer.status == Status.OPTIMAL)
    mine = instances.take(inside)
    lower, upper = mine.lower.copy(), mine.upper.copy()
    held = answer.scored_vectors[inside][:, form.kept]
    # Rounded structures get the room of the tolerance on either side.
    lower[:, : form.scored], upper[:, : form.scored] = held - FEASIBLE, held + FEASIBLE
    anywhere = replace(mine, whole=np.zeros_like(mine.whole), lower=lower, upper=upper)
    completed = Highs().maximize(reference, anywhere)
    if curved:
        along = mine.whole.copy()
        along[:, form.kept[:curved]] -= held[:, :curved]
        mine = mine.with_scores(along)
    best = Highs().maximize(reference, mine)
    gap = certificate.gap[inside] = np.sum(mine.scores * (best.point[:, : form.scored] - held), axis=1)
    size = 1.0 + np.abs(mine.scores).sum(axis=1)
    certificate.relative[inside] = np.maximum(certificate.relative[inside], gap / size)
    for position, k in enumerate(inside.tolist()):
        if completed.status[position] != Status.OPTIMAL:
            certificate.relative[k] = np.inf
            answer.reasons[k] = f"oracle {call.name} left the polytope; {ADVICE}"
        elif gap[position] > FEASIBLE * size[position]:
            answer.reasons[k] = f"oracle {call.name} misses the best value by {gap[position]:.3g}"


def judge(call: OracleCall, codes: np.ndarray, answer: Answer, certificate: Certificate) -> None:
    """Status and reason of every instance, from the codes of the kernel and the residuals of its structures."""
    if np.count_nonzero(codes) == 0 and certificate.all_hold(FEASIBLE):
        return
    for k in np.flatnonzero((codes != oracles.FOUND) | ~certificate.holds(FEASIBLE)).tolist():
        code = int(codes[k])
        answer.status[k] = _STATUS.get(code, Status.FAILED)
        if code != oracles.FOUND:  # else it is the gap that is too large
            answer.reasons[k] = _reason(call, code, float(certificate.residual[k]))


_STATUS = {
    oracles.FOUND: Status.INACCURATE,
    oracles.NOTHING: Status.INFEASIBLE,
    oracles.OUTSIDE: Status.INACCURATE,
    oracles.FRACTIONAL: Status.INACCURATE,
    oracles.MISSED: Status.INACCURATE,
}


def _reason(call: OracleCall, code: int, amount: float) -> str:
    """What is wrong with an answer, and with whose."""
    if code == oracles.NOTHING:
        return f"{call.oracle} finds no structure without the forbidden parts"
    if code == oracles.OUTSIDE:
        return f"{call.oracle} left the polytope by {amount:.3g}; {ADVICE}"
    if code == oracles.FRACTIONAL:
        return (
            f"{call.oracle} returned an entry that is {amount:.3g} from an integer, but the declaration says "
            f"integral=True; {ADVICE}"
        )
    if code == oracles.MISSED:
        return f"{call.oracle} returned no structure: it misses one by {amount:.3g}, by {call.membership}; {ADVICE}"
    if code == oracles.UNSTEADY:
        return f"{call.oracle} gave two different answers to the same scores; {ADVICE}"
    return call.complaint(code, amount)
