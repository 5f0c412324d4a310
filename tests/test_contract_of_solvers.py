"""What check_solver finds: solvers that are wrong on purpose, each in one way."""

import threading
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import pytest

import optlayers as ol
from optlayers.testing import check_solver
from polytopes import simplex, subset

ROWS = simplex(3).without_oracle()


@final
@dataclass(frozen=True)
class Lying(ol.AbstractMaximizer, ol.AbstractProjector):
    """HiGHS and our own projector, spoiled in one way."""

    lie: str
    made: list[Any] = field(default_factory=list, compare=False, repr=False)

    def prepare(self, form):
        state = (ol.Highs().prepare(form), ol.Dense().prepare(form), form)
        self.made[:] = [state]
        return state

    def maximize(self, state, instances):
        state = self.made[0] if self.lie == "remembers" else state
        if self.lie == "no batch" and len(instances) == 0:
            raise ValueError("a batch is not empty")
        if self.lie == "parts" and instances.forbidden is not None:
            answer = ol.Answer.empty(state[2], len(instances))
            answer.status[:] = int(ol.Status.FAILED)
            return answer
        return ol.Highs().maximize(state[0], instances)

    def project(self, state, instances):
        state = self.made[0] if self.lie == "remembers" else state
        answer = ol.Dense().project(state[1], instances)
        if self.lie == "derivative":
            nothing = np.zeros_like(instances.parameters)
            answer.pullback = lambda direction: (2.0 * direction, nothing, np.ones(len(direction), dtype=bool))
        return answer


@final
@dataclass(frozen=True)
class Locked(ol.AbstractMaximizer):
    """A solver that cannot be copied."""

    lock: Any = field(default_factory=threading.Lock, compare=False)

    def prepare(self, form):
        return ol.Highs().prepare(form)

    def maximize(self, state, instances):
        return ol.Highs().maximize(state, instances)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("no batch", "a batch is not empty"),
        ("parts", "has no answer where a part is forbidden"),
        ("derivative", "the derivative of Lying.* is .* from that of Auto"),
        ("remembers", "has no answers to a polytope any more once it was prepared for another one"),
    ],
)
def test_a_lying_solver_is_found(lie, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        check_solver(Lying(lie), ROWS)


def test_an_honest_solver_keeps_the_contract():
    check_solver(Lying("no"), ROWS)
    check_solver(Lying("no"), subset(4).without_oracle(), budget=2.0)


def test_a_solver_that_cannot_be_copied_is_found():
    with pytest.raises(AssertionError, match=r"Locked\(.* cannot be copied \(TypeError: .*a solver is a value"):
        check_solver(Locked(), ROWS)
