"""Dense: projections and best vertices by batched dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, Answer, Instances
from optlayers.solvers.kernels import dense
from optlayers.solvers.kernels.dense import DenseAnswer, DenseProblem

__all__ = ["Dense", "pieces", "polish_densely", "solve_densely"]

MEMORY = 2**28
"""Bytes of dense matrices at a time."""
AFFORDABLE = 4_000_000
"""Entries of the matrices of an instance up to which it is tried where other solvers give up."""


@final
@dataclass(frozen=True)
class Dense(AbstractMaximizer, AbstractProjector):
    """Solve whole batches by dense linear algebra in torch: the dual Newton and interior point methods once more.

    On a CPU it pays where constraints are large and hardly sparse; :class:`Auto` finds out. Scores on a CUDA device
    are solved there by the same code.
    """

    manner = "the same methods in batched dense linear algebra"

    @staticmethod
    def fits(form: StandardForm) -> bool:
        """Whether an instance takes little enough memory to be worth a try where others gave up."""
        return form.rows * (form.rows + form.columns) <= AFFORDABLE

    def prepare(self, form: StandardForm) -> StandardForm:
        return form

    def project(self, state: StandardForm, instances: Instances) -> Answer:
        curved = state.uncurved == 0 and state.slack == 0
        return _solved(state, instances, dense.dual_newton if curved else dense.interior_point, projection=True)

    def maximize(self, state: StandardForm, instances: Instances) -> Answer:
        def solve(problem: DenseProblem) -> DenseAnswer:
            return dense.best_vertex(problem, state.scored)

        return _solved(state, instances, solve, projection=False)


def pieces(form: StandardForm, count: int) -> Iterator[slice]:
    """Parts of a batch whose dense matrices fit into memory together."""
    each = 8 * (1 + form.rows * (form.rows + 2 * form.columns))
    most = max(1, MEMORY // each)
    for first in range(0, count, most):
        yield slice(first, min(first + most, count))


def _solved(
    form: StandardForm, instances: Instances, solve: Callable[[DenseProblem], DenseAnswer], *, projection: bool
) -> Answer:
    answer = Answer.to_fill(form, len(instances))
    free = np.empty(answer.point.shape, dtype=bool)
    for piece in pieces(form, len(instances)):
        _write(solve(_problem(form, instances.take(piece), projection=projection)), piece, answer, free)
    answer.free = free if projection else None
    return answer


def _write(found: DenseAnswer, piece: slice, answer: Answer, free: np.ndarray) -> None:
    answer.point[piece], answer.dual[piece] = found.point.numpy(), found.dual.numpy()
    free[piece] = found.free.numpy()


def _problem(form: StandardForm, instances: Instances, *, projection: bool) -> DenseProblem:
    count = len(instances)
    linear = torch.zeros(count, form.columns, dtype=torch.float64, device="cpu")
    linear[:, : form.scored] = torch.from_numpy(np.ascontiguousarray(instances.scores))
    curvature = torch.zeros(form.columns, dtype=torch.float64, device="cpu")
    curvature[: form.curved] = float(projection)
    if instances.matrix is None:
        matrix = torch.from_numpy(form.matrix.toarray())
    else:
        entries = np.zeros((count, form.rows, form.columns))
        entries[:, form.matrix.indices, form.entry_column] = instances.matrix
        matrix = torch.from_numpy(entries)
    rhs, lower, upper = (torch.tensor(part, device="cpu") for part in (instances.rhs, instances.lower, instances.upper))
    return DenseProblem(matrix, rhs, lower, upper, linear, curvature, form.slack)


def polish_densely(form: StandardForm, instances: Instances, answer: Answer) -> Answer:
    """Projections on their active sets; see :func:`optlayers.solvers.polish.polish`."""
    polished = Answer.to_fill(form, len(instances))
    polished.status, polished.reasons = answer.status, answer.reasons
    free = polished.free = np.empty(answer.point.shape, dtype=bool)
    for piece in pieces(form, len(instances)):
        problem = _problem(form, instances.take(piece), projection=True)
        point, dual = torch.from_numpy(answer.point[piece].copy()), torch.from_numpy(answer.dual[piece].copy())
        nothing = torch.zeros(len(point), dtype=torch.float64, device="cpu")
        inside = (point > problem.lower) & (point < problem.upper)
        start = DenseAnswer(point, dual, inside, *dense.certify(problem, point, dual), nothing.long())
        _write(dense.polish(problem, start), piece, polished, free)
    return polished


def solve_densely(
    form: StandardForm, instances: Instances, free: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The derivative of projections, ``(p, q, solved)``; see :mod:`optlayers.solvers.kernels.active_set`."""
    count = len(free)
    p, q, solved = np.empty((count, form.columns)), np.empty((count, form.rows)), np.empty(count, dtype=bool)
    for piece in pieces(form, count):
        problem = _problem(form, instances.take(piece), projection=True)
        nothing = torch.zeros(len(problem), dtype=torch.float64, device="cpu")
        answer = DenseAnswer(
            problem.linear, problem.rhs, torch.from_numpy(free[piece]), nothing, nothing, nothing, nothing.long()
        )
        side = torch.zeros_like(problem.linear)
        side[:, : form.scored] = torch.from_numpy(direction[piece])
        p[piece], q[piece], solved[piece] = (part.numpy() for part in dense.pull_back(problem, answer, side))
    return p, q, solved
