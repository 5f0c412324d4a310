"""ActiveSet: projections of which only a maximizer of the polytope is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float64

from optlayers.compiled_oracle import name_of
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.mixture import Decomposition
from optlayers.solution import Status
from optlayers.solvers.addresses import ADVICE, FIRST_COMPLAINT, OracleCall
from optlayers.solvers.base import AbstractProjector, Answer, Instances
from optlayers.solvers.kernels import calling, min_norm_point
from optlayers.solvers.oracle import Oracle, explain, verified
from optlayers.solvers.scored_rows import OracleBatch

__all__ = ["ActiveSet"]


LIMIT = 10_000
"""Iterations, by default."""


@final
@dataclass(frozen=True, repr=False)
class ActiveSet(AbstractProjector):
    """Project by an active set of vertices that an oracle brings; no constraint matrix is needed.

    Exact after finitely many steps, each of them one call of the oracle and one step on the affine hull of the active
    vertices (Wolfe, 1976; SparseMAP: Niculae et al., 2018; the formulas are in
    :mod:`optlayers.solvers.kernels.min_norm_point`). The answer is a mixture of few vertices, and they are part of
    it: ``solution.vertices`` and ``solution.weights``. The gap is the best that the oracle finds above the answer; a
    vertex that is worse than the answer itself shows that the oracle does not maximize. Every vertex that goes into the
    answer is checked as :class:`Oracle` checks its answers.

    An oracle is asked about the scores less the point, in float64: where scores above 1e6 tie to within the size of the
    point, rounding hides it, and the answer is INACCURATE. :class:`Auto` takes off what all structures score alike.

    Derivatives are those of the half-space form, also where the active vertices do not span the face. They reach
    scores. An oracle does not say how its vertices move with parameters: for derivatives by these the projection is
    found once more by the constraints, where they describe the polytope, and they are NaN elsewhere.

    Parameters
    ----------
    iteration_limit : calls of the oracle per instance.
    function : the oracle; by default that of the maximizer, or else of the declaration. :class:`Oracle` says how it is
        called, and whether projections are verified.
    """

    iteration_limit: int = LIMIT
    function: Callable[..., Any] | None = None
    manner = "an active set of vertices from the oracle, exact"

    def __post_init__(self) -> None:
        if self.iteration_limit < 1:
            raise ValueError(f"iteration_limit must be positive, but got {self.iteration_limit}")

    @property
    def reads_declaration(self) -> bool:  # type: ignore[override]
        """Whether rows with further auxiliary variables are not needed."""
        return not (isinstance(self.function, Oracle) and self.function.verify)

    def __repr__(self) -> str:
        options = [] if self.iteration_limit == LIMIT else [f"iteration_limit={self.iteration_limit}"]
        options += [] if self.function is None else [f"function={name_of(self.function)}"]
        return f"ActiveSet({', '.join(options)})"

    def prepare(self, form: StandardForm) -> _State:
        function = form.polytope.oracle if self.function is None else self.function
        if function is None:
            raise DeclarationError(
                "ActiveSet needs an oracle: declare it by Polytope(..., oracle=...), or give ActiveSet(function=...)"
            )
        oracle = Oracle(function)
        return _State(form, oracle.call(form.polytope), oracle.reference(form))

    def project(self, state: _State, instances: Instances) -> Answer:
        form, call, count = state.form, state.call, len(instances)
        answer, codes, gaps = Answer.of_whole(form, count), np.empty(count, np.int64), np.empty(count)
        answer.oracle, point = call, answer.scored_vectors
        batch = OracleBatch.of(form, call, instances)
        starts = np.zeros((0, form.size)) if instances.starts is None else instances.starts
        pieces: dict[int, tuple[np.ndarray, ...]] = {}

        def work(which: np.ndarray) -> None:
            found = min_norm_point.decompose(
                *batch.arguments, form.structure_size, starts, which, self.iteration_limit, point, codes, gaps
            )
            if len(which):
                counts, saved, vertices = found
                stored = saved.start[vertices]
                pieces[int(which[0])] = (
                    counts,
                    saved.weight[:vertices],
                    saved.start[: vertices + 1],
                    saved.entry[:stored],
                    saved.value[:stored],
                )

        call.spread("project", work, count)
        call.interrupt()
        self._explain(call, codes, gaps, answer)
        answer.decomposition = Decomposition.joined([pieces[k] for k in sorted(pieces)], form.size)
        # The scores are read again for the derivative; until then the caller may have written to them.
        asked = instances.with_scores(instances.whole.copy())
        answer.pullback = _Pullback(state, asked, point, answer.decomposition)
        if state.reference is None:
            return answer
        return verified(form, state.reference, instances, answer, curved=form.curved)

    def _explain(self, call: OracleCall, codes: np.ndarray, gaps: np.ndarray, answer: Answer) -> None:
        ended = (codes >= min_norm_point.LIMIT) & (codes < FIRST_COMPLAINT)
        explain(call, np.where(ended, calling.FOUND, codes), answer)
        for k in np.flatnonzero(ended).tolist():
            if codes[k] == min_norm_point.LIMIT:
                answer.status[k] = Status.LIMIT
            elif codes[k] == min_norm_point.INEXACT:
                answer.status[k] = Status.INACCURATE
                answer.reasons[k] = (
                    f"the vertices of {call} are too nearly dependent to end with a gap below "
                    f"{gaps[k]:.3g} (entries of very different size?); use projector=optlayers.Auto()"
                )
            elif codes[k] == min_norm_point.NOT_MAXIMAL:
                answer.status[k] = Status.FAILED
                answer.reasons[k] = (
                    f"{call} does not maximize: it returned a structure that is worse by "
                    f"{-gaps[k]:.3g} than another one of its own; {ADVICE}"
                )


@final
@dataclass(frozen=True)
class _State:
    form: StandardForm
    call: OracleCall
    reference: Any
    """The state of a HiGHS solver that verifies answers, None when they are not."""


@final
@dataclass(frozen=True)
class _Pullback:
    """The derivative of a batch of projections; see :mod:`optlayers.solvers.kernels.min_norm_point`."""

    state: _State
    instances: Instances
    point: Float64[np.ndarray, "batch size"]
    vertices: Decomposition

    def __call__(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        form, call, vertices = self.state.form, self.state.call, self.vertices
        whole, out = np.zeros((len(direction), form.size)), np.zeros((len(direction), form.size))
        right = np.zeros(len(direction), dtype=np.bool_)
        whole[:, form.kept] = direction
        batch = OracleBatch.of(form, call, self.instances)
        saved = min_norm_point.Vertices(vertices.weight, vertices.start, vertices.index, vertices.value)

        def work(which: np.ndarray) -> None:
            min_norm_point.pull_back(
                *batch.arguments,
                form.structure_size,
                self.point,
                vertices.first,
                saved,
                whole,
                which,
                out,
                right,
            )

        call.spread("pull back", work, len(direction))
        call.interrupt()
        unknown = np.full((len(direction), form.parameter_count), np.nan)
        return out[:, form.kept], unknown, right
