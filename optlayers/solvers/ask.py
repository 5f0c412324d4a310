"""The one way from instances to verdicts: set aside what is infeasible, solve, polish, certify, ask the next solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Int8, Int64

from optlayers.form.standard import StandardForm
from optlayers.mixture import Decomposition
from optlayers.solution import Status
from optlayers.solvers.base import NOT_ASKED, AbstractSolver, Answer, Instances, Pullback
from optlayers.solvers.certify import Certificate, certify, certify_points
from optlayers.solvers.moderate import LARGE, has_large_constants, may_be_extreme, moderated
from optlayers.solvers.offsets import without_offsets
from optlayers.solvers.plan import Plan, plan_of
from optlayers.solvers.polish import polish, refine

__all__ = ["Lineup", "Verdict", "ask"]

NEAR = 0.1
"""A polished projection may be so far from what its solver proposed, relative to its largest entry, if that is above 1.
"""

Begun = tuple[Answer, Certificate | None]
NOBODY = np.empty(0, dtype=np.int64)
NO_CERTIFICATE = Certificate.of_nothing(0)


@final
@dataclass(slots=True)
class Verdict:
    """Answers with their certificates, a status for every instance, and reasons where there is none to trust."""

    answer: Answer
    certificate: Certificate
    status: Int8[np.ndarray, " batch"]
    reasons: dict[int, str]

    @property
    def as_answer(self) -> Answer:
        """The answer, with the verdicts as a solver's word."""
        self.answer.status[:] = self.status
        self.answer.reasons.update(self.reasons)
        return self.answer

    @classmethod
    def of(cls, answer: Answer, certificate: Certificate, tolerance: float) -> Verdict:
        """What the certificate says decides; why there is no answer, the certificate or else the solver says."""
        if certificate.all_hold(tolerance):
            return cls(answer, certificate, np.zeros(len(certificate.error), dtype=np.int8), {})
        holds = certificate.holds(tolerance)
        status = np.where(
            holds, Status.OPTIMAL, np.where(answer.status == Status.OPTIMAL, Status.INACCURATE, answer.status)
        )
        reasons = {k: reason for k, reason in answer.reasons.items() if not holds[k]}
        for k, (verdict, reason) in certificate.reasons.items():
            if not holds[k]:
                status[k], reasons[k] = verdict, reason
        return cls(answer, certificate, status.astype(np.int8), reasons)


@final
class Lineup:
    """A solver, and those that it names for what it leaves open, prepared for questions of one kind about one form.

    What is the same for all batches is worked out here: as a rule no instance is infeasible by its numbers, none has
    extreme ones, and the first solver answers all of them.
    """

    def __init__(
        self, form: StandardForm, solver: AbstractSolver, state: Any, *, projection: bool, tolerance: float
    ) -> None:
        self.form, self.solver, self.state = form, solver, state
        self.projection, self.tolerance = projection, max(tolerance, solver.accuracy)
        by_rows = projection and solver.polyhedral_only and not solver.reads_declaration
        self.plan: Plan | None = plan_of(form) if by_rows else None
        """Of nearest points by rows."""
        self._first: tuple[Any, Any] | None = None
        self._straight = (
            form.parameter_count == 0
            and bool(form.unslacked)
            and (solver.reads_declaration or (projection and not has_large_constants(form)))
        )

    def answer(self, instances: Instances, infeasible: Bool[np.ndarray, " batch"] | None = None) -> Verdict:
        """What is answered, and what is to be thought of it; ``infeasible`` instances are seen by no solver."""
        if not self._straight or infeasible is not None or instances.forbidden is not None:
            return self._ask(instances, infeasible, None)
        solver: Any
        if self._first is None:
            in_turn = self.solver.projectors_in_turn if self.projection else self.solver.maximizers_in_turn
            self._first = next(iter(in_turn(self.state)))
        solver, state = self._first
        answer: Answer = solver.project(state, instances) if self.projection else solver.maximize(state, instances)
        if not _fits(answer, self.form, len(instances)):
            raise _of_another_shape(answer, self.form, len(instances), solver)
        if self.projection and answer.free is None and answer.pullback is None and answer.whole is None:
            return self._ask(instances, None, (answer, None))
        if self.plan is not None and answer.pullback is None and answer.whole is None:
            certificate = certify_points(self.plan, self.form, instances, answer, True)
        else:
            certificate = certify(self.form, instances, answer, projection=self.projection)
        settled = (certificate.error <= self.tolerance) & certificate.exact
        if np.count_nonzero(settled) == len(settled) and (self.projection or not np.count_nonzero(answer.status)):
            return Verdict(answer, certificate, np.zeros(len(settled), dtype=np.int8), {})
        return self._ask(instances, None, (answer, certificate))

    def _ask(self, instances: Instances, infeasible: np.ndarray | None, begun: Begun | None) -> Verdict:
        return ask(
            self.form,
            instances,
            self.solver,
            self.state,
            projection=self.projection,
            tolerance=self.tolerance,
            infeasible=infeasible,
            begun=begun,
        )


@np.errstate(over="ignore", invalid="ignore")  # next to 1e308 sums are no numbers, which certificates refuse
def ask(
    form: StandardForm,
    instances: Instances,
    solver: AbstractSolver,
    state: Any,
    *,
    projection: bool,
    tolerance: float,
    infeasible: Bool[np.ndarray, " batch"] | None = None,
    begun: Begun | None = None,
) -> Verdict:
    """What a solver, and those that it names for what it leaves open, answer, and what is to be thought of it.

    ``infeasible`` are instances that no solver need see, None for none. ``begun`` is what the first solver has answered
    to all instances already, and its certificate if there is one.
    """
    reduced = None if projection or solver.reads_declaration else without_offsets(form, instances)
    if reduced is not None:
        verdict = ask(
            form, reduced[0], solver, state, projection=projection, tolerance=tolerance, infeasible=infeasible
        )
        verdict.answer.dual += reduced[1]
        return verdict
    if form.bounds_are_constant and instances.forbidden is None and form.unslacked and infeasible is None:
        return _of_feasible(form, instances, solver, state, projection, tolerance, begun)
    crossed = (instances.lower > instances.upper).any(axis=1)
    aside = crossed if infeasible is None else crossed | infeasible
    rest = np.flatnonzero(~aside)
    some = instances if len(rest) == len(instances) else instances.take(rest)
    if form.unslacked:
        verdict = _of_feasible(form, some, solver, state, projection, tolerance)
    else:
        verdict = _of_single_points(form, some, tolerance)
    return verdict if some is instances else _beside_infeasible(form, verdict, rest, len(instances))


def _of_feasible(
    form: StandardForm,
    instances: Instances,
    solver: AbstractSolver,
    state: Any,
    projection: bool,
    tolerance: float,
    begun: Begun | None = None,
) -> Verdict:
    """Ask one solver after the other about what is open. Of two answers the one with less error stays, or that which
    can be differentiated."""
    race = _Race(form, instances, projection, tolerance)
    extreme = not solver.reads_declaration and may_be_extreme(form, instances)
    for propose in _in_turn(solver, state, projection):
        # Numbers without limit first as moderate ones: what is found is held to the true ones. Oracles meet none.
        for below in (LARGE, np.inf, None) if extreme else (None,):
            asked = race.open_instances if below is None else moderated(form, race.open_instances, below=below)
            if asked is not None:
                if begun is None:
                    proposed, certificate = propose(asked), None
                    if not _fits(proposed, form, len(asked)):
                        raise _of_another_shape(proposed, form, len(asked), getattr(propose.func, "__self__", propose))
                else:
                    proposed, certificate = begun
                begun = None
                race.enter(proposed, asked, certificate)
            if race.over:
                return race.verdict
    return race.verdict


def _fits(answer: Answer, form: StandardForm, count: int) -> bool:
    """Whether there is a place for each instance and each column: kernels read these without a look."""
    if answer.whole is not None:
        return answer.whole.shape == (count, form.size) and answer.status.shape == (count,)
    points = (count, form.columns)
    return (
        answer.point.shape == points
        and answer.dual.shape == (count, form.rows)
        and answer.status.shape == (count,)
        and (answer.free is None or answer.free.shape == points)
        and (answer.low is None or answer.low.shape == points)
        and (answer.high is None or answer.high.shape == points)
    )


def _of_another_shape(answer: Answer, form: StandardForm, count: int, solver: object) -> ValueError:
    """What to say of an answer that does not fit."""
    points = (count, form.columns)
    wanted: dict[str, tuple[int, ...]] = {"whole": (count, form.size)}
    if answer.whole is None:
        wanted = {"point": points, "dual": (count, form.rows), "free": points, "low": points, "high": points}
    found = {name: getattr(answer, name) for name in (*wanted, "status")}
    wanted["status"] = (count,)
    name = next(name for name, part in found.items() if part is not None and part.shape != wanted[name])
    return ValueError(
        f"{solver!r} proposed an answer whose {name} has shape {found[name].shape}, but it must be {wanted[name]}"
    )


def _in_turn(solver: AbstractSolver, state: Any, projection: bool) -> Iterator[partial[Answer]]:
    """The questions that solvers answer, one solver after the other."""
    if projection:
        for projector, prepared in solver.projectors_in_turn(state):
            yield partial(projector.project, prepared)
    else:
        for maximizer, prepared in solver.maximizers_in_turn(state):
            yield partial(maximizer.maximize, prepared)


@final
class _Race:
    """The best answers so far, and the instances that are still open."""

    def __init__(self, form: StandardForm, instances: Instances, projection: bool, tolerance: float) -> None:
        self.form, self.instances, self.projection, self.tolerance = form, instances, projection, tolerance
        self._answer: Answer | None = None
        self._certificate = NO_CERTIFICATE
        self._open: Int64[np.ndarray, " open"] | None = None
        self._asked = instances
        """The open instances, as they were asked about."""

    @property
    def open_instances(self) -> Instances:
        """The instances that nobody has answered yet."""
        return self.instances if self._open is None else self.instances.take(self._open)

    @property
    def over(self) -> bool:
        """Whether nobody else need be asked."""
        return self._open is not None and len(self._open) == 0

    @property
    def verdict(self) -> Verdict:
        """What has come of it."""
        if self._answer is None:
            raise RuntimeError("no solver was asked")
        return Verdict.of(self._answer, self._certificate, self.tolerance)

    def enter(self, proposed: Answer, asked: Instances, certificate: Certificate | None) -> None:
        """Certify an answer to the open instances. Projections that are not certified are polished, then refined."""
        if self._open is not None and np.count_nonzero(proposed.status != NOT_ASKED) == 0:
            return
        self._asked = asked
        if proposed.pullback is not None or proposed.whole is not None or not self.projection:
            self._offer(proposed, known=certificate)
            return
        if proposed.free is None:
            self._offer(self._polished(proposed))
        else:
            self._offer(proposed, known=certificate)
            if not self.over:
                self._offer(self._polished(self._open_answer))
        if not self.over:
            refined = refine(self.form, self._asked, self._open_answer)
            if refined is not None:
                answer, dual_low = refined
                dual_low[self._far(self._open_answer, answer)] = 0.0
                self._offer(answer, dual_low)

    def _polished(self, proposed: Answer) -> Answer:
        """The answer on its exact active set, where that is near."""
        polished = polish(self.form, self._asked, proposed)
        self._far(proposed, polished)
        return polished

    def _far(self, proposed: Answer, improved: Answer) -> Int64[np.ndarray, " far"]:
        """The instances whose points were moved far, and now are not: they are not what their solver found. One that
        stopped at its limit has found nothing that it could be held to."""
        cut = self.form.unslacked
        with np.errstate(invalid="ignore"):  # failed instances hold NaN
            size = np.abs(improved.point[:, :cut]).max(axis=1, initial=1.0)
            moved = np.abs(improved.point[:, :cut] - proposed.point[:, :cut]).max(axis=1, initial=0.0)
            far = np.flatnonzero(~(moved <= NEAR * size) & (proposed.status == Status.OPTIMAL))
        improved.point[far], improved.dual[far] = proposed.point[far], proposed.dual[far]
        return far

    def _settled(self, certificate: Certificate, answer: Answer) -> Bool[np.ndarray, " batch"]:
        """Which instances need nobody else. A best vertex that a solver came upon before its end may be another one
        than all agree upon where several are best."""
        settled = certificate.settles(self.tolerance)
        if self.projection or np.count_nonzero(answer.status) == 0:
            return settled
        ended: np.ndarray = settled & (answer.status == Status.OPTIMAL)
        return ended

    @property
    def _open_answer(self) -> Answer:
        """The best answers so far to the open instances."""
        if self._answer is None or self._open is None:
            raise RuntimeError("no solver was asked")
        return self._answer.take(self._open)

    def _offer(self, answer: Answer, dual_low: np.ndarray | None = None, *, known: Certificate | None = None) -> None:
        certificate = known
        if certificate is None:
            certificate = certify(self.form, self.open_instances, answer, projection=self.projection, dual_low=dual_low)
        settled = self._settled(certificate, answer)
        if self._answer is None or self._open is None:
            self._answer, self._certificate = answer, certificate
            if np.count_nonzero(settled) == len(settled):  # as a rule
                self._open = NOBODY
                return
            index = np.arange(len(settled))
        else:
            index = self._open
            better = (certificate.error < self._certificate.error[index]) | settled
            # The last word on why there is no answer is a library's, which can tell infeasible from difficult.
            told = answer.status != NOT_ASKED
            self._answer.status[index[told]] = answer.status[told]
            self._answer.replace(index[better], answer, np.flatnonzero(better))
            self._certificate.replace(index[better], certificate, np.flatnonzero(better))
        still = ~self._settled(self._certificate, self._answer)[index]
        if 0 < np.count_nonzero(still) < len(still):
            self._asked = self._asked.take(np.flatnonzero(still))
        self._open = index[still]


def _of_single_points(form: StandardForm, instances: Instances, tolerance: float) -> Verdict:
    """The constraints leave one point; the certificate says whether the parameters admit it."""
    answer = Answer.to_fill(form, len(instances))
    answer.point[:] = instances.rhs[:, form.equalities :]
    answer.dual[:] = 0.0
    answer.free = np.ones(answer.point.shape, dtype=bool)
    answer.decomposition = Decomposition.of_one(form.fixed, len(instances))
    certificate = certify(form, instances, answer, projection=False)
    answer.status[~certificate.holds(tolerance)] = Status.INFEASIBLE
    return Verdict.of(answer, certificate, tolerance)


def _beside_infeasible(form: StandardForm, verdict: Verdict, rest: np.ndarray, count: int) -> Verdict:
    """The verdict on ``rest`` of a batch, of which the others are infeasible."""
    part = verdict.answer
    answer = Answer.empty(form, count) if part.whole is None else Answer.of_whole(form, count)
    answer.oracle = part.oracle
    certificate, status = Certificate.of_nothing(count), np.full(count, Status.INFEASIBLE, dtype=np.int8)
    if part.whole is None:
        answer.point[rest], answer.dual[rest] = part.point, part.dual
    else:
        answer.scored_vectors[:] = np.nan
        answer.scored_vectors[rest] = part.whole
    if part.free is not None:
        answer.free = np.zeros(answer.point.shape, dtype=bool)
        answer.free[rest] = part.free
    if part.decomposition is not None:
        answer.decomposition = part.decomposition.scattered(rest, count)
    if part.pullback is not None:
        answer.pullback = _Scattered(part.pullback, rest)
    if part.of_value is not None:
        answer.of_value = partial(_scattered_gradient, part.of_value, rest, count)
    certificate.word = verdict.certificate.word
    certificate.replace(rest, verdict.certificate, np.arange(len(rest)))
    status[rest] = verdict.status
    return Verdict(answer, certificate, status, {int(rest[k]): reason for k, reason in verdict.reasons.items()})


def _scattered_gradient(some: Callable[[], np.ndarray], rest: np.ndarray, count: int) -> np.ndarray:
    """A gradient of some instances of a batch; the others get 0."""
    part = some()
    found = np.zeros((count, part.shape[1]))
    found[rest] = part
    return found


@final
@dataclass(frozen=True)
class _Scattered:
    """A pullback of some instances of a batch; the others get 0."""

    pullback: Pullback
    rest: np.ndarray

    def __call__(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts = self.pullback(direction[self.rest])
        scores, parameters, right = (np.zeros((len(direction), *part.shape[1:]), part.dtype) for part in parts)
        scores[self.rest], parameters[self.rest], right[self.rest] = parts
        return scores, parameters, right
