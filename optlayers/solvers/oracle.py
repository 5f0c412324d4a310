"""A polytope's own maximizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from optlayers.compiled_oracle import name_of
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.solution import Status
from optlayers.solvers.addresses import ADVICE, OracleCall
from optlayers.solvers.base import AbstractMaximizer, Answer, Instances
from optlayers.solvers.highs import Highs
from optlayers.solvers.kernels import calling
from optlayers.solvers.kernels.structures import FEASIBLE
from optlayers.solvers.scored_rows import OracleBatch

__all__ = ["Oracle", "explain", "verified"]

WORTH_ASKING_TWICE = 8
"""Instances; one question more is then an eighth of the time at most."""


@final
@dataclass(frozen=True, repr=False)
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

    @property
    def manner(self) -> str:  # type: ignore[override]
        """What the function is."""
        return getattr(self.function, "manner", "the declaration's own oracle")

    def __repr__(self) -> str:
        options = [f"{name}=True" for name in ("verify", "serial") if getattr(self, name)]
        return f"Oracle({', '.join([name_of(self.function), *options])})"

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
        answer, codes = Answer.of_whole(form, count), np.empty(count, dtype=np.int64)
        answer.oracle = call
        batch = OracleBatch.of(form, call, instances)
        twice = 0 if count >= WORTH_ASKING_TWICE else -1

        def work(which: np.ndarray) -> None:
            calling.maximize(*batch.arguments, which, twice, answer.whole, codes)

        call.spread("ask", work, count)
        call.interrupt()
        explain(call, codes, answer)
        return answer if state.reference is None else verified(form, state.reference, instances, answer, curved=0)


def explain(call: OracleCall, codes: np.ndarray, answer: Answer) -> None:
    """Status and reason of every instance for which an oracle did not answer."""
    if np.count_nonzero(codes) == 0:
        return
    for k in np.flatnonzero(codes != calling.FOUND).tolist():
        answer.status[k], answer.reasons[k] = call.explain(int(codes[k]), np.nan)


@final
@dataclass(frozen=True)
class _State:
    form: StandardForm
    call: OracleCall
    reference: Any
    """The state of a HiGHS solver that verifies answers, None when they are not."""


def verified(form: StandardForm, reference: Any, instances: Instances, answer: Answer, *, curved: int) -> Answer:
    """An answer of an oracle as points of the standard form, with dual points: the certificate then needs no word.

    Structures are completed by auxiliary values, which there are none of outside of the polytope; HiGHS finds the dual
    point of the best value. Of a projection, ``curved`` columns count for distances, and the value is that along scores
    less the point.
    """
    inside, highs, call = np.flatnonzero(answer.status == Status.OPTIMAL), Highs(), answer.oracle
    mine = instances.take(inside)
    held = answer.scored_vectors[inside][:, form.kept]
    completed = _completed(form, reference, mine, held)
    if curved:
        along = mine.whole.copy()
        along[:, form.kept[:curved]] -= held[:, :curved]
        mine = mine.with_scores(along)
    best = highs.maximize(reference, mine)
    whole = Answer.empty(form, len(instances))
    whole.status, whole.reasons = answer.status, answer.reasons
    whole.pullback, whole.decomposition = answer.pullback, answer.decomposition
    whole.point[inside], whole.dual[inside] = completed.point, best.dual
    whole.point[inside, : form.scored] = held
    missed = np.sum(mine.scores * (best.point[:, : form.scored] - held), axis=1)
    for position, k in enumerate(inside.tolist()):
        whole.status[k] = Status.INACCURATE  # unless its certificate holds
        if completed.status[position] != Status.OPTIMAL:
            whole.reasons[k] = f"{call} left the polytope; {ADVICE}"
        elif best.status[position] == Status.OPTIMAL:
            whole.reasons[k] = f"{call} misses the best value by {missed[position]:.3g}"
    return whole


def _completed(form: StandardForm, reference: Any, instances: Instances, held: np.ndarray) -> Answer:
    """Points of the standard form with these scored columns; with some near them where rounding left the polytope."""
    highs, nothing = Highs(), np.zeros_like(instances.whole)
    found, rest = Answer.empty(form, len(instances)), np.arange(len(instances))
    for room in (0.0, FEASIBLE):
        some = instances.take(rest)
        lower, upper = some.lower.copy(), some.upper.copy()
        lower[:, : form.scored], upper[:, : form.scored] = held[rest] - room, held[rest] + room
        answer = highs.maximize(reference, replace(some, whole=nothing[rest], lower=lower, upper=upper))
        found.replace(rest, answer, np.arange(len(rest)))
        found.status[rest] = answer.status
        rest = rest[answer.status != Status.OPTIMAL]
        if len(rest) == 0:
            break
    return found
