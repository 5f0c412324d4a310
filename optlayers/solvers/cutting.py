"""Best vertices where constraints are brought on demand: cutting planes, with a pool of those that were found."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float64

from optlayers.common.caches import Cache, cached_property
from optlayers.common.locks import ForkSafeLock
from optlayers.form.further import with_inequalities
from optlayers.form.standard import StandardForm
from optlayers.solution import Status
from optlayers.solvers.ask import ask
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import make_instances
from optlayers.solvers.highs import Highs
from optlayers.solvers.separation import SATISFIED, Cut, Separation, SeparationError

__all__ = ["IntegerModel", "Pool", "SeparatedSearch"]

ROUNDS = 1000
"""So often is one instance solved with further constraints."""
POOL_LIMIT = 1000
"""So many constraints are kept for later instances,"""
NUMBERS = 2**22
"""or fewer, so that they are at most so many numbers."""
POOLS = 16
"""For so many values of the parameters are constraints kept."""
TOLERANCE = 1e-8
"""To this much are the linear programs certified."""
WHOLE = 1e-7
"""So far from an integer may a linear program leave what is one."""
DENOMINATORS = np.arange(1, 61)[:, None]
FRACTION = 1e-11
"""So close to a fraction with a small denominator, the entry of a vertex is that fraction."""

_lock = ForkSafeLock()
_clock = itertools.count(1)


@runtime_checkable
class IntegerModel(Protocol):
    """A model of branch and bound over one form."""

    def best(self, numbers: Instances, scores: np.ndarray, *, decide: bool = False) -> Float64[np.ndarray, " size"]:
        """The scored vector of a best point, NaN where there is none; with ``decide``, of all tied ones the one that
        all solvers agree upon."""


@final
class Pool:
    """Constraints that were found for one value of the parameters, of which the last used ones are kept.

    What an instance answers does not depend on them: a best vertex of a larger polytope that lies in the polytope is
    its best vertex, also where ties are decided by further objectives.
    """

    def __init__(self) -> None:
        self.cuts: tuple[Cut, ...] = ()
        """Never changed, but replaced as a whole."""

    def add(self, cuts: Sequence[Cut], limit: int) -> None:
        """Keep further constraints; above the limit, those go that were not of use for longest."""
        with _lock:
            known = {cut.key for cut in self.cuts}
            kept = [*self.cuts, *(cut for cut in cuts if cut.key not in known)]
            if len(kept) > limit:
                last = sorted(range(len(kept)), key=lambda k: kept[k].used)[len(kept) - limit :]
                kept = [kept[k] for k in sorted(last)]
            self.cuts = tuple(kept)


@final
class SeparatedSearch:
    """Best vertices of the points that satisfy the rows of a form and all that a function brings.

    A linear program is solved with what is known, by HiGHS, and the function looks at its answer; with what that
    violates it is solved again, until nothing is violated. Where its answer is then fractional although variables are
    integers, branch and bound takes over, and its answers are shown to the function in the same way.
    """

    takes_flat = True

    def __init__(
        self,
        form: StandardForm,
        make_model: Callable[[StandardForm], IntegerModel],
        *,
        time_limit: float,
        manner: str,
        remake: tuple[Any, ...],
    ) -> None:
        self.form, self.make_model, self.time_limit = form, make_model, time_limit
        self.pool_limit = max(1, min(POOL_LIMIT, NUMBERS // max(1, form.size)))
        self.separation = Separation(form.polytope)
        self.manner = manner
        self.__name__ = f"HiGHS with {self.separation}"
        self._remake = remake
        self._pools: Cache[bytes, Pool] = Cache(POOLS)
        self._local = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._remake  # pools and models are made again

    def pool(self, theta: Float64[np.ndarray, " parameters"]) -> Pool:
        """What was found for one value of the parameters."""
        return self._pools.get(theta.tobytes(), lambda _: Pool())

    def __call__(self, scores: np.ndarray, theta: np.ndarray | None = None) -> Float64[np.ndarray, " size"]:
        parameters = np.zeros(0) if theta is None else theta
        pool = self.pool(parameters)
        program = self._program(parameters, pool.cuts)
        end = time.monotonic() + self.time_limit
        found: list[Cut] = []
        for _ in range(ROUNDS):
            point, ended = program.vertex(scores)
            violated = [] if point is None else self._violated(point, program)
            if not violated and not ended:
                point = program.model.best(program.numbers, scores, decide=True)
                point = None if np.isnan(point).any() else point
                violated = [] if point is None else self._violated(point, program)
            if not violated:
                self._keep(pool, program, found, point)
                return np.full(self.form.size, np.nan) if point is None else point
            found += violated
            program = self._program(parameters, (*program.cuts, *violated))
            if time.monotonic() > end:
                raise SeparationError(
                    f"{self.separation} still returned violated inequalities after {len(found)} of them and "
                    f"{self.time_limit:g} seconds; raise time_limit of BranchAndBound"
                )
        raise SeparationError(
            f"{self.separation} still returned violated inequalities after {ROUNDS:,} rounds and {len(found):,} of "
            "them: does it come to an end? It returns what a point violates, and None in the polytope"
        )

    def _violated(self, point: Float64[np.ndarray, " size"], program: _Program) -> list[Cut]:
        """What a point violates, of which nothing is known yet."""
        cuts = [c for c in self.separation.cuts(point, program.theta) if c.violation(point) > SATISFIED]
        if not cuts:
            return []
        known = {cut.key for cut in program.cuts}
        distinct = {cut.key: cut for cut in cuts if cut.key not in known}
        if not distinct:
            worst = max(cut.violation(point) for cut in cuts)
            raise SeparationError(
                f"HiGHS does not satisfy an inequality of {self.separation} that it was given, by {worst:.3g} next to "
                "its terms; are its numbers of very different size?"
            )
        for cut in distinct.values():
            cut.used = next(_clock)
        return list(distinct.values())

    def _program(self, theta: Float64[np.ndarray, " parameters"], cuts: tuple[Cut, ...]) -> _Program:
        """The program of this thread, made again where it is another one."""
        program: _Program | None = getattr(self._local, "program", None)
        if program is None or program.cuts != cuts or not np.array_equal(program.theta, theta):
            program = self._local.program = _Program(self, np.array(theta), cuts)
        return program

    def _keep(self, pool: Pool, program: _Program, found: Sequence[Cut], point: np.ndarray | None) -> None:
        """What was found, and what was of use."""
        if point is not None:
            for cut in program.tight_at(point):
                cut.used = next(_clock)
        if found or len(pool.cuts) > self.pool_limit:
            pool.add(found, self.pool_limit)


@final
class _Program:
    """Rows and constraints for one value of the parameters, with the models of one thread."""

    def __init__(self, search: SeparatedSearch, theta: np.ndarray, cuts: tuple[Cut, ...]) -> None:
        self.theta, self.cuts, self.make_model = theta, cuts, search.make_model
        form = search.form
        self.body = np.stack([cut.coefficients for cut in cuts]) if cuts else np.zeros((0, form.size))
        self.bounds = np.array([cut.bound for cut in cuts])
        scale = np.array([cut.scale for cut in cuts])
        name = f"an inequality of {search.separation}"
        self.form = with_inequalities(form, self.body, self.bounds, scale, name) if cuts else form
        self.solver = Highs()
        self.state = self.solver.prepare(self.form)
        self.integer = np.flatnonzero(form.integer)
        self.impossible = bool(((self.form.rhs.constant[form.rows :] < 0) & ~self.body[:, form.kept].any(axis=1)).any())

    @cached_property
    def model(self) -> IntegerModel:
        """Branch and bound over these constraints."""
        return self.make_model(self.form)

    @cached_property
    def numbers(self) -> Instances:
        """The numbers of the rows, without forbidden parts."""
        return make_instances(self.form, self.theta[None], None)

    def tight_at(self, point: Float64[np.ndarray, " size"]) -> list[Cut]:
        """The constraints that a point just satisfies."""
        return [self.cuts[k] for k in np.flatnonzero(self.body @ point >= self.bounds - SATISFIED)]

    def vertex(self, scores: Float64[np.ndarray, " size"]) -> tuple[Float64[np.ndarray, " size"] | None, bool]:
        """The best vertex of the linear relaxation, None where there is none, and whether what must be integer is."""
        form = self.form
        if self.impossible:
            return None, True
        forbidden = np.isneginf(scores)[None]
        numbers = make_instances(form, self.theta[None], forbidden) if forbidden.any() else self.numbers
        asked = numbers.with_scores(np.where(forbidden, 0.0, scores[None]))
        verdict = ask(form, asked, self.solver, self.state, projection=False, tolerance=TOLERANCE)
        status = Status(int(verdict.status[0]))
        if status is Status.INFEASIBLE:
            return None, True
        if status is not Status.OPTIMAL:
            raise SeparationError(f"a linear program has no certified answer: {verdict.reasons.get(0, status.meaning)}")
        point = np.array(verdict.answer.point[0, : form.unslacked])
        nearest = np.round(point[self.integer])
        ended = bool((np.abs(point[self.integer] - nearest) <= WHOLE).all())
        if ended:
            point[self.integer] = nearest
        return form.expand(_exact(point[None, : form.scored]))[0], ended


def _exact(point: Float64[np.ndarray, "1 scored"]) -> Float64[np.ndarray, "1 scored"]:
    """Fractions with small denominators in place of what is next to them, whichever constraints have led there."""
    whole = np.round(point)
    if (np.abs(whole - point) <= FRACTION).all():  # as a rule
        return whole
    nearest = np.round(point * DENOMINATORS) / DENOMINATORS
    near = np.abs(nearest - point) <= FRACTION
    first = near.argmax(axis=0)
    exact: np.ndarray = np.where(near.any(axis=0), nearest[first, np.arange(point.shape[1])], point[0])[None]
    return exact
