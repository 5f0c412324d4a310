"""The negative entropy of Tsallis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.form.standard import StandardForm
from optlayers.regularizers.base import AbstractRegularizer, checked_number
from optlayers.solvers.kernels.curves import POWER

__all__ = ["Tsallis"]


@final
@dataclass(frozen=True, eq=False)
class Tsallis(AbstractRegularizer):
    r"""The negative entropy of Tsallis, :math:`\Omega(z) = \sum_j (z_j^\alpha - z_j) / (\alpha (\alpha - 1))`.

    On the simplex the regularized point is entmax. It is sparse, the more so the larger α is: as α falls to 1 it tends
    to that of :class:`Entropy`, and at 2 it is the projection, where all structures have the same sum of parts (else
    that of s + 1/2).

    Parameters
    ----------
    alpha : α, above 1: a number, or a ``cp.Parameter`` for one of the instance, or for one of each part.

    References
    ----------
    Tsallis (1988), Possible generalization of Boltzmann-Gibbs statistics, J. Stat. Phys. Peters, Niculae and Martins
    (2019), Sparse sequence-to-sequence models, ACL.
    """

    alpha: float | cp.Parameter = 1.5
    above = 1.0
    kind_of_fixed = POWER
    number_name = "alpha"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checked_number("alpha", self.alpha, "Tsallis", above=1.0))

    @property
    def number(self) -> float | cp.Parameter:
        """α."""
        return self.alpha

    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """A power for each."""
        return np.full(form.curved, POWER, dtype=np.int64)

    def columns(
        self, number: Float64[np.ndarray, "rows curved"]
    ) -> tuple[Float64[np.ndarray, "rows curved"], Float64[np.ndarray, "rows curved"]]:
        """Powers, of weight 1."""
        return np.ones(number.shape), number

    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """z (z^(α-1) - 1) / (α (α - 1)), without cancellation near α = 1; inf where z is negative."""
        positive = torch.where(points > 0.0, points, 1.0)
        terms = points * torch.expm1((number - 1.0) * torch.log(positive)) / (number * (number - 1.0))
        return torch.where(points < 0.0, torch.inf, terms)

    def slope(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """(z^(α-1) - 1) / (α - 1) + 1 / α."""
        return torch.expm1((number - 1.0) * torch.log(points)) / (number - 1.0) + 1.0 / number

    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """z^(α - 2)."""
        return points ** (number - 2.0)

    def __repr__(self) -> str:
        number = self.alpha
        return f"Tsallis(alpha={number.name() if isinstance(number, cp.Parameter) else f'{number:g}'})"
