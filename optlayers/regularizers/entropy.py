"""The negative entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.common.caches import Cache
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer, checked_number
from optlayers.solvers.conic import ConicProgram
from optlayers.solvers.kernels.curves import BITS, ENTROPY

__all__ = ["Entropy"]

KEPT = 16
"""For so many sets that are not polyhedral is a program kept compiled."""


@final
@dataclass(frozen=True, eq=False)
class Entropy(AbstractRegularizer):
    r"""The negative entropy of the parts, :math:`\Omega(z) = T \sum_j z_j \log z_j`.

    The regularized point is the entropic (Kullback-Leibler) projection of :math:`e^{s / T}`: softmax on the simplex,
    what Sinkhorn's iteration ends at on transport plans and on the Birkhoff polytope. On other polytopes of structures
    it is not the Gibbs distribution's mean, whose entropy is that of structures and not of parts
    (:class:`optlayers.StructuredAttention`).

    A part that is a bit, declared by numbers to be between 0 and 1 and in no equation, has the entropy of a bit,
    :math:`z \log z + (1 - z) \log (1 - z)`: on the cube the regularized point is the logistic function of s / T. With a
    parameter for a limit it is none, and neither is an entry of a symmetric variable, which equations make.

    Parameters
    ----------
    temperature : T, positive: a number, or a ``cp.Parameter`` for one of the instance, or for one of each part. As it
        falls to 0, points tend to best vertices.

    References
    ----------
    Cuturi (2013), Sinkhorn distances, NeurIPS. Blondel, Martins and Niculae (2020), Learning with Fenchel-Young
    losses, JMLR. Benamou, Carlier, Cuturi, Nenna and Peyré (2015), Iterative Bregman projections for regularized
    transportation problems, SIAM J. Sci. Comput.
    """

    temperature: float | cp.Parameter = 1.0
    kind_of_fixed = ENTROPY
    number_name = "temperature"

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", checked_number("temperature", self.temperature, "Entropy"))
        object.__setattr__(self, "_over", Cache(KEPT))

    @property
    def number(self) -> float | cp.Parameter:
        """The temperature."""
        return self.temperature

    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """Of a bit where a part is in no equation and between 0 and 1.

        Inequalities do not count: what the entropy is must not depend on those that never bind.
        """
        cut = form.curved
        in_rows = np.diff(form.matrix[: form.equalities, :cut].tocsc().indptr) > 0
        constant = np.diff(form.lower.matrix.indptr)[:cut] + np.diff(form.upper.matrix.indptr)[:cut] == 0
        bit = ~in_rows & constant & (form.lower.constant[:cut] == 0.0) & (form.upper.constant[:cut] == 1.0)
        return np.where(bit, BITS, ENTROPY).astype(np.int64)

    def over_cones(self, polytope: Polytope) -> ConicProgram:
        """Its cones are exponential ones, which Clarabel knows."""
        return self._over.get(polytope, self._compiled)  # type: ignore[attr-defined, no-any-return]

    def _compiled(self, polytope: Polytope) -> ConicProgram:
        x = polytope.variable
        entropy = -cp.sum(cp.multiply(self.temperature, cp.entr(x)))
        return ConicProgram(polytope, entropy, f"{self!r} over a set that is not polyhedral needs exponential cones")

    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """T z log z, and for a bit as much of 1 - z; 0 where a number is 0, inf where it is negative."""
        rest = torch.where(kind == BITS, _times_log(1.0 - points), 0.0)
        return number * (_times_log(points) + rest)

    def slope(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """T (log z + 1), for a bit T log(z / (1 - z))."""
        rest = torch.where(kind == BITS, points, 0.0)
        return number * torch.where(kind == BITS, torch.log(points) - torch.log1p(-rest), torch.log(points) + 1.0)

    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """T / z, for a bit T / (z (1 - z))."""
        return number / torch.where(kind == BITS, points * (1.0 - points), points)

    def __repr__(self) -> str:
        number = self.temperature
        return f"Entropy(temperature={number.name() if isinstance(number, cp.Parameter) else f'{number:g}'})"


def _times_log(number: Tensor) -> Tensor:
    positive = torch.where(number > 0.0, number, 1.0)
    return torch.where(number < 0.0, torch.inf, number * torch.log(positive))
