"""What is asked of the polytopes of a batch on the CPU by what answers for them."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.standard import StandardForm
from optlayers.solvers.ask import Verdict
from optlayers.solvers.base import Instances

__all__ = ["OnHost"]


class OnHost(AbstractBoundPolytope):
    """What the polytopes of a batch on the CPU have besides: what is asked of them here."""

    prepared: AbstractPrepared
    instances: Instances
    forbidden: Bool[np.ndarray, "batch size"] | None
    theta: Float64[np.ndarray, "batch parameters"]
    precision: Float64[np.ndarray, " parameters"]
    row_instances: Instances
    broken: Float64[np.ndarray, " batch"] | None

    @property
    def row_form(self) -> StandardForm:
        """The form of all rows that are built."""
        return self.prepared.rows or self.form

    @abstractmethod
    def among(
        self, rows: Int64[Tensor, " rows"], forbidden: Bool[Tensor, "rows size"] | None = None
    ) -> AbstractBoundPolytope:
        """The polytopes of some instances, in any order and number, with further forbidden parts."""

    @abstractmethod
    def bound_to(self, other: AbstractPrepared, index: np.ndarray | slice) -> AbstractBoundPolytope:
        """Other polytopes for the instances ``index``."""

    @abstractmethod
    def left_out(self, instances: Instances) -> Bool[np.ndarray, " batch"] | None:
        """Instances that no solver need see."""

    @abstractmethod
    def judged(
        self, verdict: Verdict, form: StandardForm, instances: Instances, *, projection: bool
    ) -> tuple[Float64[np.ndarray, "batch size"], Int8[np.ndarray, " batch"], dict[int, str]]:
        """Answers as scored vectors, their verdicts, and the reasons of those that failed."""
