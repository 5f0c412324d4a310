"""The negative entropy of Tsallis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.form.standard import StandardForm
from optlayers.regularizers.base import AbstractRegularizer, positive_number
from optlayers.solvers.kernels.curves import POWER

__all__ = ["Tsallis"]


@final
@dataclass(frozen=True)
class Tsallis(AbstractRegularizer):
    r"""The negative entropy of Tsallis, :math:`\Omega(z) = \sum_j (z_j^\alpha - z_j) / (\alpha (\alpha - 1))`.

    On the simplex the regularized point is entmax. It is sparse, the more so the larger α is: as α falls to 1 it tends
    to that of :class:`Entropy`, and at 2 it is the projection, where all structures have the same sum of parts (else
    that of s + 1/2).

    Parameters
    ----------
    alpha : α, above 1.

    References
    ----------
    Tsallis (1988), Possible generalization of Boltzmann-Gibbs statistics, J. Stat. Phys. Peters, Niculae and Martins
    (2019), Sparse sequence-to-sequence models, ACL.
    """

    alpha: float = 1.5
    kind_of_fixed = POWER

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", positive_number("alpha", self.alpha, "Tsallis", above=1.0))

    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """A power for each."""
        return np.full(form.curved, POWER, dtype=np.int64)

    @property
    def exponent(self) -> float:
        """α."""
        return self.alpha

    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"]
    ) -> Float64[Tensor, "batch size"]:
        """z (z^(α-1) - 1) / (α (α - 1)), without cancellation near α = 1; inf where z is negative."""
        alpha = self.alpha
        positive = torch.where(points > 0.0, points, 1.0)
        terms = points * torch.expm1((alpha - 1.0) * torch.log(positive)) / (alpha * (alpha - 1.0))
        return torch.where(points < 0.0, torch.inf, terms)

    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"]
    ) -> Float64[Tensor, "batch size"]:
        """z^(α - 2)."""
        return points.clamp(min=0.0) ** (self.alpha - 2.0)
