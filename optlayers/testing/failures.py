"""Whether a rule hides a failed solve: solves are made to fail for one instance, and that must show."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final
from unittest.mock import patch

import torch
from jaxtyping import Bool
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope, Best, Marginals
from optlayers.bound.device import DeviceEvidence, DevicePolytope
from optlayers.bound.host import HostPolytope
from optlayers.bound.host_evidence import HostEvidence
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.layer import OptLayer
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution, SolveError, Status
from optlayers.testing.through import same, through

__all__ = ["MARKED", "FailingSolves", "check_failures"]

MARKED = 1
"""The instance that solves fail for."""
ON_PURPOSE = "made to fail by a contract"
NO_SOLVES = ("structure",)
"""What a bound polytope answers without solving anything."""
Pass = Literal["forward", "backward"]
OnFailure = Literal["raise", "nan"]
SOLVES = ("maximize", "project", "regularized", "marginals", "sample", "log_partition", "best")
"""What polytopes of a batch solve, whatever road led to them."""
PROOFS = ("is_binary", "enumerated")
"""What is found out of a polytope once, by solves that are nobody's instances."""
PASSES: tuple[tuple[Pass, bool], ...] = (("forward", False), ("forward", True), ("backward", False), ("backward", True))
"""Where solves fail: in which pass, and whether those of the rule's own polytopes."""


def check_failures(
    rule: AbstractRule, compiled: CompiledPolytope, scores: Tensor, weights: Tensor, parameters: dict[str, Any]
) -> None:
    """Fail the solves of a rule for one instance: in its forward or its backward pass, of one polytope or the other.

    Under ``on_failure="raise"`` a :class:`SolveError` must name this instance and no other. Under ``"nan"`` it must
    have no answer (or, where its answer does not depend on the solve, no gradient), and the others must have what they
    have without the failure. A pass that solves nothing keeps the contract.

    The solves of the polytope that the rule is given fail, and then those of polytopes of its own, compiled, bound or
    within a layer: a rule that falls back on one of them where the other fails must say so.
    """
    expected = through(OptLayer(compiled, rule), scores, weights, parameters)
    for which, own in PASSES:
        solves = FailingSolves(len(scores))
        if own:  # a look at how many instances it solves at a time, before any of them fails
            with solves.looking():
                _asked(_Watched(rule, which, own, solves), compiled, "nan", scores, weights, parameters)
        watched = _Watched(rule, which, own, solves)
        value, gradient = _asked(watched, compiled, "nan", scores, weights, parameters)
        if not solves.failed:
            continue
        what = f"{rule!r} hides that {watched.told} failed in its {which} pass: "
        beside = f"{rule!r}, where its {which} pass fails for another instance,"
        if which == "forward":
            assert bool(value[MARKED].isnan().all()), what + "the instance has an answer"
        else:
            same((value,), expected[:1], beside)
        assert bool((gradient[MARKED] == 0).all()), what + "the instance has a gradient"
        others = torch.arange(len(scores), device="cpu") != MARKED
        same((value[others], gradient[others]), (expected[0][others], expected[1][others]), beside)
        try:
            _asked(watched, compiled, "raise", scores, weights, parameters)
        except SolveError as error:
            named = [failure.index for failure in error.failures]
            assert named == [(MARKED,)], f"{what}SolveError names {named} where {[(MARKED,)]} failed"
        else:
            raise AssertionError(what + "no SolveError is raised")


def _asked(
    rule: _Watched,
    compiled: CompiledPolytope,
    on_failure: OnFailure,
    scores: Tensor,
    weights: Tensor,
    parameters: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """What a rule answers; nothing is raised but a SolveError, where that is asked for."""
    try:
        return through(OptLayer(compiled, rule, on_failure=on_failure), scores, weights, parameters)
    except Exception as error:
        if not rule.solves.failed or (on_failure == "raise" and isinstance(error, SolveError)):
            raise
        raise AssertionError(
            f"{rule!r} raises {type(error).__name__} where a solve of its {rule.which} pass fails for an instance; the "
            f"layer says which one, and the others go on: {error}"
        ) from error


@final
@dataclass(frozen=True, repr=False)
class _Watched(AbstractRule):
    """A rule whose solves fail for the marked instance in one of its passes."""

    rule: AbstractRule
    which: Pass
    own: bool
    solves: FailingSolves = field(compare=False)

    @property
    def told(self) -> str:
        """The solves that failed, for a message."""
        names = self.solves.told
        return f"{names} of a compiled polytope of its own" if self.own else names

    def __post_init__(self) -> None:
        for name in AbstractRule.__annotations__:  # such as draws and apart
            object.__setattr__(self, name, getattr(self.rule, name))

    def __repr__(self) -> str:
        return repr(self.rule)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Watched:
        return self

    def initial_state(self) -> dict[str, Tensor]:
        """That of the rule."""
        return self.rule.initial_state()

    def adapt(self, state: Mapping[str, Tensor], seen: Tensor) -> None:
        """As the rule does."""
        self.rule.adapt(state, seen)

    def check(self, compiled: CompiledPolytope) -> None:
        """What the rule needs."""
        self.rule.check(compiled)

    def remark(self, compiled: CompiledPolytope) -> str | None:
        """That of the rule behind it."""
        return self.rule.remark(compiled)

    def forward(self, polytope: AbstractBoundPolytope, scores: Tensor, context: Context) -> tuple[Solution, Any]:
        """That of the rule."""
        with self._failing("forward", polytope) as given:
            return self.rule.forward(given, scores, context)

    def backward(self, polytope: AbstractBoundPolytope, saved: Any, grad: Tensor, context: Context) -> Gradient:
        """That of the rule."""
        with self._failing("backward", polytope) as given:
            return self.rule.backward(given, saved, grad, context)

    @contextmanager
    def _failing(self, which: Pass, polytope: AbstractBoundPolytope) -> Iterator[Any]:
        """In the pass that is to fail: a polytope that does, or that of the rule while all others fail."""
        if which != self.which:
            yield polytope
        elif not self.own:
            yield _Failing(polytope, self.solves.marked, self.solves.failed)
        else:
            with self.solves:
                yield _Spared(polytope, self.solves)


@final
class FailingSolves:
    """Solves that fail for the marked instance of a batch while this is entered, but not in threads of others.

    They fail where polytopes of a batch answer, which compiled polytopes, bound ones and layers all come down to. A
    solve of the batch, or of it so many times, fails for its own instance. Solves of other numbers of instances are
    none of the batch, unless a first look finds that they are so many together: then they are its instances, one after
    the other.
    """

    def __init__(self, batch: int) -> None:
        self.marked: Bool[Tensor, " batch"] = torch.arange(batch, device="cpu") == MARKED
        self.failed: list[str] = []
        """The solves that failed, by their names."""
        self._looks = False
        self._apart: Counter[Hashable] = Counter()
        """How many instances each polytope solved in other numbers, on a first look."""
        self._place: Counter[Hashable] = Counter()
        """How many of these have been solved."""
        self._spared = 0
        self._others: set[int | None] = set()
        """The threads that ran before."""
        self._patches = ExitStack()

    @property
    def told(self) -> str:
        """The names of the solves that failed, for a message."""
        return " and ".join(sorted(set(self.failed)))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Solves are counted, and do not fail."""
        self._looks = True
        try:
            yield
        finally:
            self._looks = False

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Solves do not fail, and are not counted."""
        self._spared += 1
        try:
            yield
        finally:
            self._spared -= 1

    def __enter__(self) -> FailingSolves:
        self._others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        self._place.clear()
        for cls in (HostPolytope, DevicePolytope):
            for name in SOLVES:
                self._patches.enter_context(patch.object(cls, name, self._failing(getattr(cls, name), name)))
        for evidence in (HostEvidence, DeviceEvidence):
            self._patches.enter_context(patch.object(evidence, "tangent", self._failing(evidence.tangent, "tangent")))
        for name in PROOFS:
            proof = getattr(AbstractPrepared, name)
            self._patches.enter_context(patch.object(AbstractPrepared, name, self._sparing(proof)))
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()

    def _sparing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def spared(*given: Any, **named: Any) -> Any:
            with self.sparing():
                return original(*given, **named)

        return spared

    def _failing(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def solve(*given: Any, **named: Any) -> Any:
            if self._spared or threading.get_ident() in self._others:
                return original(*given, **named)
            with self.sparing():  # one that another one asks fails with it
                found = original(*given, **named)
            which = self._instances((name, id(given[0].form)), _batch_of(found))
            if which is None:
                return found
            self.failed.append(name)
            return _without(found, which)

        return solve

    def _instances(self, whose: Hashable, count: int) -> Bool[Tensor, " count"] | None:
        """Which of so many instances are to fail, None for none."""
        batch = len(self.marked)
        if self._looks:
            self._apart[whose] += count if count % batch else 0
            return None
        if count % batch == 0:
            return self.marked.repeat(count // batch) if count else None
        if self._apart[whose] == 0 or self._apart[whose] % batch:
            return None
        which = (self._place[whose] + torch.arange(count, device="cpu")) % batch == MARKED
        self._place[whose] += count
        return which if bool(which.any()) else None


def _batch_of(found: Any) -> int:
    """The number of instances of what was solved."""
    if isinstance(found, Tensor):
        return len(found)
    verdict = found[2] if type(found) is tuple else _verdict(found)
    assert verdict is not None
    return int(verdict.numel())


def _without(found: Any, which: Bool[Tensor, " batch"]) -> Any:
    """What was solved, without the answers to some instances."""
    if isinstance(found, Tensor):  # values, which say by NaN that there is none
        return found.masked_fill(which.to(found.device), torch.nan)
    if isinstance(found, Best):
        lost = which.to(found.counts.device)
        structures = found.structures.masked_fill(lost[:, None], torch.nan)
        return Best(structures, found.counts.masked_fill(lost, 0), _without(found.solution, which))
    if isinstance(found, Marginals):
        lost = which.to(found.means.device)
        means, total = found.means.masked_fill(lost[:, None], torch.nan), found.total.masked_fill(lost, torch.nan)
        return Marginals(means, total, _without(found.solution, which))
    if isinstance(found, Solution):
        lost = which.to(found.status.device)
        status = found.status.masked_fill(lost, int(Status.LIMIT))
        reasons = dict(found.reasons) | dict.fromkeys(torch.nonzero(which).flatten().tolist(), ON_PURPOSE)
        value = found.value.masked_fill(lost[:, None].to(found.value.device), torch.nan)
        return replace(found, value=value, status=status, reasons=reasons)
    scores, theta, ok = found  # of evidence that pulls a direction back
    lost = which.to(ok.device)
    return scores.masked_fill(lost[:, None], 0.0), lambda: theta().masked_fill(lost[:, None], 0.0), ok & ~lost


@final
class _Spared:
    """A bound polytope whose solves do not fail, while all others do."""

    def __init__(self, bound: Any, solves: FailingSolves) -> None:
        self._bound, self._solves = bound, solves

    def __getattr__(self, name: str) -> Any:
        with self._solves.sparing():
            asked = getattr(self._bound, name)
        if name.startswith("__"):
            return asked
        if isinstance(asked, AbstractBoundPolytope):
            return _Spared(asked, self._solves)
        if not callable(asked):
            return asked

        def ask(*given: Any, **named: Any) -> Any:
            with self._solves.sparing():
                found = asked(*given, **named)
            return _Spared(found, self._solves) if isinstance(found, AbstractBoundPolytope) else found

        return ask


@final
class _Failing:
    """A bound polytope that is asked with NaN for scores of marked instances, and so has no answer for them."""

    def __init__(self, bound: Any, marked: Bool[Tensor, " batch"], failed: list[str]) -> None:
        self._bound, self._marked, self._failed = bound, marked, failed

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._bound, name)
        if isinstance(asked, AbstractBoundPolytope):  # the numbers behind it
            return _Failing(asked, self._marked, self._failed)
        if name.startswith("__") or name in NO_SOLVES or not callable(asked):
            return asked

        def ask(*given: Any, **named: Any) -> Any:
            parts = [*given, *named.values()]
            if parts:
                parts[0] = self._spoiled(parts[0])
            found = asked(*parts[: len(given)], **dict(zip(named, parts[len(given) :], strict=True)))
            if isinstance(found, AbstractBoundPolytope):
                times = parts[0] if name == "repeated" else 1
                return _Failing(found, self._marked.repeat(times), self._failed)
            answered = ~found.isnan() if name == "log_partition" else _verdict(found)
            if answered is not None and not bool(answered.cpu()[self._marked].all()):
                self._failed.append(name)
            return found

        return ask

    def _spoiled(self, first: Any) -> Any:
        """The first argument of a question: a solution that failed, or scores with NaN in the rows that are to fail."""
        if isinstance(first, Solution):
            return first.failing(self._marked.to(first.status.device), ON_PURPOSE)
        if not isinstance(first, Tensor) or len(first) != len(self._marked):
            return first
        rows = self._marked.to(first.device).reshape(-1, *[1] * (first.ndim - 1))
        with torch.enable_grad():  # a rule may differentiate what comes out, though it asks without a graph
            return first.masked_fill(rows, torch.nan)


AbstractBoundPolytope.register(_Failing)
AbstractBoundPolytope.register(_Spared)


def _verdict(found: Any) -> Bool[Tensor, " batch"] | None:
    """Which instances were answered, of solutions, marginals and tangents; None for what has no verdict."""
    for part in (found, getattr(found, "solution", None)):
        ok = getattr(part, "ok", None)
        if isinstance(ok, Tensor):
            return ok
    return None
