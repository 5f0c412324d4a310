"""ActiveSet: projections of which only a maximizer of the polytope is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from optlayers.solution import Status
from optlayers.solvers.base import AbstractProjector, Answer, Decomposition, Instances
from optlayers.solvers.certificate import Certificate
from optlayers.solvers.kernels import min_norm_point, oracles
from optlayers.solvers.oracle import ADVICE, FEASIBLE, Question, judge
from optlayers.solvers.oracle_call import FIRST_COMPLAINT, OracleCall
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
        answer, certificate = Answer.of_whole(form, count), Certificate.room(count)
        answer.certificate = certificate
        codes = np.empty(count, np.int64)
        # The scores are read again for the derivative; until then they may have been written to.
        question = Question.of(form, call, instances.with_scores(instances.scores.copy()))
        starts = np.zeros((0, form.size)) if instances.starts is None else form.expand(instances.starts)
        pieces: dict[int, tuple[np.ndarray, ...]] = {}

        def work(which: np.ndarray) -> None:
            found = min_norm_point.decompose(
                *question.arguments,
                form.structure_size,
                starts,
                which,
                self.iteration_limit,
                FEASIBLE,
                answer.whole,
                codes,
                certificate.residual,
                certificate.gap,
                certificate.relative,
            )
            if len(which):
                counts, kept, vertices = found
                stored = kept.start[vertices]
                pieces[int(which[0])] = (
                    counts,
                    kept.weight[:vertices],
                    kept.start[: vertices + 1],
                    kept.entry[:stored],
                    kept.value[:stored],
                )

        for_each_chunk(work, count)
        self._judge(call, codes, answer, certificate)
        answer.decomposition = Decomposition.joined([pieces[k] for k in sorted(pieces)], form.size)
        answer.pullback = _Pullback(state, question, answer, answer.decomposition)
        return answer

    def _judge(self, call: OracleCall, codes: np.ndarray, answer: Answer, certificate: Certificate) -> None:
        ended = codes >= min_norm_point.LIMIT
        ended &= codes < FIRST_COMPLAINT
        judge(call, np.where(ended, oracles.FOUND, codes), answer, certificate)
        for k in np.flatnonzero(ended):
            if codes[k] == min_norm_point.LIMIT:
                answer.status[k] = Status.LIMIT
                answer.reasons.pop(int(k), None)
            elif codes[k] == min_norm_point.NOT_MAXIMAL:
                answer.status[k] = Status.FAILED
                answer.reasons[int(k)] = (
                    f"oracle {call.name} does not maximize: it returned a structure that is worse by "
                    f"{-certificate.gap[k]:.3g} than another one of its own; {ADVICE}"
                )


@final
@dataclass(frozen=True)
class _State:
    form: StandardForm
    call: OracleCall


@final
@dataclass(frozen=True)
class _Pullback:
    """The derivative of a batch of projections; see :mod:`optlayers.solvers.kernels.min_norm_point`."""

    state: _State
    question: Question
    answer: Answer
    decomposition: Decomposition

    def __call__(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        form, vertices = self.state.form, self.decomposition
        whole, out = np.zeros((len(direction), form.size)), np.zeros((len(direction), form.size))
        whole[:, form.kept] = direction
        kept = min_norm_point.Kept(vertices.weight, vertices.start, vertices.index, vertices.value)

        def work(which: np.ndarray) -> None:
            min_norm_point.pull_back(
                *self.question.arguments,
                form.structure_size,
                self.answer.whole,
                vertices.first,
                kept,
                whole,
                which,
                out,
            )

        for_each_chunk(work, len(direction))
        return out[:, form.kept], np.zeros((len(direction), 0))
