"""Solvers of integer declarations: whoever finds a best integer point projects onto the hull, and is an oracle."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float64

from optlayers.form.standard import StandardForm
from optlayers.solvers.active_set import ActiveSet
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, Answer, Instances
from optlayers.solvers.oracle import Oracle

__all__ = ["AbstractHullSolver", "IntegerOracle"]


class IntegerOracle(Protocol):
    """What finds a best integer point: from flat scores, -inf for what is forbidden, and all parameters as one vector.

    It returns the scored vector of the point, NaN everywhere where there is none.
    """

    takes_flat: bool
    manner: str

    def __call__(self, scores: np.ndarray, theta: np.ndarray) -> Float64[np.ndarray, " size"]: ...


class AbstractHullSolver(AbstractMaximizer, AbstractProjector):
    """A solver of best integer points, by which the convex hull of all of them is projected onto."""

    @abstractmethod
    def oracle(self, form: StandardForm, why: str = "") -> Callable[..., Any]:
        """The function that finds a best point of the integer points of a form; ``why`` it is this solver's."""

    def prepare(self, form: StandardForm) -> Any:
        oracle = Oracle(self.oracle(form))
        return oracle.prepare(form)

    def maximize(self, state: Any, instances: Instances) -> Answer:
        return Oracle(state.call.function).maximize(state, instances)

    def project(self, state: Any, instances: Instances) -> Answer:
        return ActiveSet().project(state, instances)
