"""Models of a library that are kept and re-solved, one per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, final

import numpy as np

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.pool import for_each_chunk

__all__ = ["SolverModel", "ThreadModels", "check_limits"]


class SolverModel(Protocol):
    """A model that answers one instance of a batch."""

    def solve(self, instances: Instances, k: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Point, dual and status of instance ``k``."""


@final
class ThreadModels:
    """The state of a solver that keeps models: each thread makes its own when it first needs one."""

    def __init__(self, form: StandardForm, make: Callable[[], SolverModel], *, keeps: bool = True) -> None:
        self.form = form
        self.make = make
        self.keeps = keeps
        self.local = threading.local()

    def afresh(self) -> ThreadModels:
        """A state that makes a model for every instance."""
        return ThreadModels(self.form, self.make, keeps=False)

    def solve(self, instances: Instances) -> Answer:
        """The whole batch, over the threads of the pool."""
        answer = Answer.empty(self.form, len(instances))

        @np.errstate(over="ignore", invalid="ignore")  # as where it is asked; other threads know nothing of that
        def work(piece: np.ndarray) -> None:
            for k in piece:
                answer.point[k], answer.dual[k], answer.status[k] = self._model().solve(instances, int(k))

        for_each_chunk(work, len(instances))
        return answer

    def _model(self) -> SolverModel:
        if not self.keeps:
            return self.make()
        if not hasattr(self.local, "model"):
            self.local.model = self.make()
        model: SolverModel = self.local.model
        return model


def check_limits(iteration_limit: int, time_limit: float) -> None:
    """Refuse limits that are not positive."""
    if iteration_limit < 1 or time_limit <= 0:
        raise ValueError(f"limits must be positive, but got {iteration_limit} iterations and {time_limit} seconds")
