"""Whether a rule hides a failed solve: solves are made to fail for one instance, and that must show."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final
from unittest.mock import patch

import torch
from jaxtyping import Bool
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.compiled import CompiledPolytope
from optlayers.layer import OptLayer
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution, SolveError, Status
from optlayers.testing.through import same, through

__all__ = ["check_failures"]

MARKED = 1
"""The instance that solves fail for."""
ON_PURPOSE = "made to fail by check_rule"
NO_SOLVES = ("structure",)
"""What a bound polytope answers without solving anything."""
Pass = Literal["forward", "backward"]
OnFailure = Literal["raise", "nan"]
PASSES: tuple[tuple[Pass, bool], ...] = (("forward", False), ("forward", True), ("backward", False), ("backward", True))
"""Where solves fail: in which pass, and whether those of the rule's own polytopes."""


def check_failures(
    rule: AbstractRule, compiled: CompiledPolytope, scores: Tensor, weights: Tensor, parameters: dict[str, Any]
) -> None:
    """Fail the solves of a rule for one instance: in its forward or its backward pass, of one polytope or the other.

    Under ``on_failure="raise"`` a :class:`SolveError` must name this instance and no other. Under ``"nan"`` it must
    have no answer (or, where its answer does not depend on the solve, no gradient), and the others must have what they
    have without the failure. A pass that solves nothing keeps the contract.

    The solves of the polytope that the rule is given fail, and then those of compiled polytopes of its own: a rule that
    falls back on one of them where the other fails must say so.
    """
    expected = through(OptLayer(compiled, rule), scores, weights, parameters)
    for which, own in PASSES:
        watched = _Watched(rule, which, own, len(scores), [])
        value, gradient = _asked(watched, compiled, "nan", scores, weights, parameters)
        if not watched.failed:
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
        if not rule.failed or (on_failure == "raise" and isinstance(error, SolveError)):
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
    batch: int
    failed: list[str] = field(compare=False)
    """The solves that failed, by their names."""

    @property
    def told(self) -> str:
        """The solves that failed, for a message."""
        names = " and ".join(sorted(set(self.failed)))
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
        """In the pass that is to fail: a polytope that does, or that of the rule while compiled polytopes fail."""
        marked = torch.arange(self.batch, device="cpu") == MARKED
        if which != self.which:
            yield polytope
        elif not self.own:
            yield _Failing(polytope, marked, self.failed)
        else:
            with ExitStack() as stack:
                for name in ("maximize", "project"):
                    stack.enter_context(patch.object(CompiledPolytope, name, _failing(name, marked, self.failed)))
                yield polytope


def _failing(name: str, marked: Bool[Tensor, " batch"], failed: list[str]) -> Callable[..., Solution]:
    """A solve of compiled polytopes that fails for marked instances; of this batch, and in this thread."""
    original, thread = getattr(CompiledPolytope, name), threading.get_ident()

    def solve(self: CompiledPolytope, scores: Tensor, **parameters: Any) -> Solution:
        found: Solution = original(self, scores, **parameters)
        rows = found.status.numel()
        if threading.get_ident() != thread or rows == 0 or rows % len(marked):
            return found
        failed.append(name)
        which = marked.repeat(rows // len(marked)).reshape(found.status.shape)
        lost = which.reshape(*which.shape, *[1] * (found.value.ndim - which.ndim)).to(found.value.device)
        status = found.status.masked_fill(which.to(found.status.device), int(Status.LIMIT))
        reasons = dict(found.reasons) | dict.fromkeys(torch.nonzero(which.reshape(-1)).flatten().tolist(), ON_PURPOSE)
        return replace(found, value=found.value.masked_fill(lost, torch.nan), status=status, reasons=reasons)

    return solve


@final
class _Failing:
    """A bound polytope that is asked with NaN for scores of marked instances, and so has no answer for them."""

    def __init__(self, bound: Any, marked: Bool[Tensor, " batch"], failed: list[str]) -> None:
        self._bound, self._marked, self._failed = bound, marked, failed

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._bound, name)
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


def _verdict(found: Any) -> Bool[Tensor, " batch"] | None:
    """Which instances were answered, of solutions, marginals and tangents; None for what has no verdict."""
    for part in (found, getattr(found, "solution", None)):
        ok = getattr(part, "ok", None)
        if isinstance(ok, Tensor):
            return ok
    return None
