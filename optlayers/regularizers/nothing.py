"""No regularizer: best points of sets that are not polyhedral, which have no vertices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.form.cones import ConeProgram, program_of, why_not_our_cones
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solvers.conic import ConicProgram
from optlayers.solvers.kernels.curves import LINEAR

__all__ = ["Nothing"]


@final
@dataclass(frozen=True, eq=False)
class Nothing(AbstractRegularizer):
    """Ω = 0. On polytopes best points are vertices, and asked for as such; it is for sets that are not polyhedral."""

    number_name = "number"
    kind_of_fixed = LINEAR

    @property
    def number(self) -> float:
        """One that says nothing."""
        return 1.0

    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """A line for each."""
        return np.full(form.curved, LINEAR, dtype=np.int64)

    def over_cones(self, polytope: Polytope) -> ConeProgram | ConicProgram:
        """The constraints alone."""
        why = why_not_our_cones(polytope)
        return program_of(polytope) if why is None else ConicProgram(polytope, 0.0 * cp.sum(polytope.variable), why)

    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """0."""
        return torch.zeros_like(points)

    def slope(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """0."""
        return torch.zeros_like(points)

    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """0."""
        return torch.zeros_like(points)
