"""ActiveSet: projections of which only a maximizer of the polytope is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from optlayers.solution import Status
from optlayers.solvers.base import AbstractProjector, Answer, Decomposition, Instances
from optlayers.solvers.kernels import min_norm_point, oracles
from optlayers.solvers.kernels.batches import per_instance
from optlayers.solvers.oracle import FEASIBLE, judge, no_forbidden
from optlayers.solvers.oracle_call import OracleCall, Rows
from optlayers.solvers.pool import for_each_chunk
from optlayers.standard_form import DeclarationError, StandardForm

__all__ = ["ActiveSet"]


@final
@dataclass(frozen=True)
class ActiveSet(AbstractProjector):
    """Project by an active set of vertices that an oracle brings; no constraint matrix is needed.

    Exact after finitely many steps, each of them one call of the oracle and one step on the affine hull of the active
    vertices (Wolfe, 1976; SparseMAP: Niculae et al., 2018; the formulas are in
    :mod:`optlayers.solvers.kernels.min_norm_point`). The answer is a mixture of few vertices, and they are part of
    it: ``solution.vertices`` and ``solution.weights``. The gap is the best that the oracle finds above the answer; a
    vertex that is worse than the answer itself shows that the oracle does not maximize.

    Derivatives are those of the half-space form, also where the active vertices do not span the face; they reach
    scores, but no parameters.

    Parameters
    ----------
    iteration_limit : calls of the oracle per instance.
    function : the oracle; by default that of the declaration.
    """

    iteration_limit: int = 10_000
    function: Callable[..., Any] | None = None
    reads_declaration = True
    manner = "an active set of vertices from the oracle, exact"

    def __post_init__(self) -> None:
        if self.iteration_limit < 1:
            raise ValueError(f"iteration_limit must be positive, but got {self.iteration_limit}")

    def prepare(self, form: StandardForm) -> _State:
        function = form.polytope.oracle if self.function is None else self.function
        if function is None:
            raise DeclarationError(
                "ActiveSet needs an oracle: declare it by Polytope(..., oracle=...), or give ActiveSet(function=...)"
            )
        if form.parameter_count:
            names = [p.name for p in form.parameters]
            raise DeclarationError(
                f"ActiveSet has no derivative with respect to parameters, but the polytope declares {names}; use "
                "Auto() or InteriorPoint()"
            )
        return _State(form, OracleCall(function, form.polytope))

    def project(self, state: _State, instances: Instances) -> Answer:
        form, call, count = state.form, state.call, len(instances)
        answer = Answer.empty(form, count)
        flat, codes, steps = np.empty((count, form.size)), np.zeros(count, np.int64), np.zeros(count, np.int64)
        residual = answer.residual = np.empty(count)
        gap = answer.gap = np.empty(count)
        question = _Question.of(state, instances)
        outside = FEASIBLE * (1.0 + np.abs(instances.rhs).max(initial=0.0))
        pieces: dict[int, tuple[np.ndarray, ...]] = {}
        lock = threading.Lock()

        def work(which: np.ndarray) -> None:
            found = min_norm_point.decompose(
                *question.arguments, question.starts, which, self.iteration_limit, outside, flat, codes, gap, residual,
                steps,
            )  # fmt: skip
            with lock:
                pieces[int(which[0]) if len(which) else 0] = found

        for_each_chunk(work, count)
        answer.point[:, : form.scored] = flat[:, form.kept]
        answer.point[:, form.scored :] = 0.0
        self._judge(call, instances, codes, answer)
        answer.decomposition = Decomposition.joined([pieces[k] for k in sorted(pieces)], form.size)
        answer.pullback = _Pullback(state, question, flat, answer.decomposition)
        return answer

    def _judge(self, call: OracleCall, instances: Instances, codes: np.ndarray, answer: Answer) -> None:
        limited = codes == min_norm_point.LIMIT
        bad = np.flatnonzero(codes == min_norm_point.NOT_MAXIMAL)
        known = np.where(limited | (codes == min_norm_point.OUTSIDE), oracles.FOUND, codes)
        known[bad] = oracles.FOUND
        judge(call, instances, known, answer)
        answer.status[limited] = Status.LIMIT
        answer.status[bad] = Status.FAILED
        for k in bad.tolist():
            answer.reasons[k] = (
                f"oracle {call.name} does not maximize: it returned a structure that is worse by "
                f"{-answer.gap[k]:.3g} than another one of its own; see optlayers.testing.check_oracle"  # type: ignore[index]
            )


@final
@dataclass(frozen=True)
class _State:
    form: StandardForm
    call: OracleCall


@final
@dataclass(frozen=True)
class _Question:
    """What kernels are told about a batch."""

    arguments: tuple[Any, ...]
    starts: np.ndarray

    @classmethod
    def of(cls, state: _State, instances: Instances) -> _Question:
        form = state.form
        starts = np.zeros((0, form.size))
        if instances.starts is not None:
            starts = form.expand(instances.starts)
        return cls(
            (
                state.call.call,
                Rows.of(form, instances),
                per_instance(instances.scores),
                no_forbidden(form, instances),
                per_instance(instances.parameters),
                form.structure_size,
            ),
            starts,
        )


@final
@dataclass(frozen=True)
class _Pullback:
    """The derivative of a batch of projections; see :mod:`optlayers.solvers.kernels.min_norm_point`."""

    state: _State
    question: _Question
    point: np.ndarray
    decomposition: Decomposition

    def __call__(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        form, vertices = self.state.form, self.decomposition
        whole, out = np.zeros((len(direction), form.size)), np.zeros((len(direction), form.size))
        whole[:, form.kept] = direction

        def work(which: np.ndarray) -> None:
            min_norm_point.pull_back(
                *self.question.arguments,
                self.point,
                vertices.first,
                vertices.start,
                vertices.index,
                vertices.value,
                whole,
                which,
                out,
            )

        for_each_chunk(work, len(direction))
        return out[:, form.kept], np.zeros((len(direction), 0))
