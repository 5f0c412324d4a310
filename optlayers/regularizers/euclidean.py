"""The squared norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import cvxpy as cp
import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer, checked_number
from optlayers.solvers.kernels.curves import QUADRATIC

__all__ = ["Euclidean"]


@final
@dataclass(frozen=True, init=False, eq=False)
class Euclidean(AbstractRegularizer):
    r"""Half of the weighted squared norm, :math:`\Omega(z) = \tfrac12 \sum_j w_j z_j^2`.

    The regularized point is the projection of s / w in the norm that the weights make: of one weight for all parts, the
    nearest point to s / w.

    Parameters
    ----------
    weights : positive: a number for all parts, numbers in the shape of the structure, or a ``cp.Parameter`` of one of
        these shapes; None for 1.
    """

    weights: float | tuple[float, ...] | cp.Parameter
    shape: tuple[int, ...]
    number_name = "weights"

    def __init__(self, weights: Any = None) -> None:
        object.__setattr__(self, "shape", ())
        many = isinstance(weights, (np.ndarray, list, tuple)) or (isinstance(weights, Tensor) and weights.ndim > 0)
        if not many:
            object.__setattr__(
                self, "weights", 1.0 if weights is None else checked_number("weights", weights, "Euclidean")
            )
            return
        if isinstance(weights, Tensor) and weights.requires_grad:
            checked_number("weights", weights, "Euclidean")
        array = np.asarray(weights.cpu().numpy() if isinstance(weights, Tensor) else weights)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"weights of Euclidean are numbers, but got {weights!r}")
        good = np.isfinite(array) & (array > 0.0)
        if not good.all():
            place = tuple(int(i) for i in np.argwhere(~good)[0])
            raise ValueError(
                f"weights of Euclidean must be finite and positive, but weights{list(place)} is {array[place]:g}"
            )
        object.__setattr__(self, "weights", tuple(array.astype(np.float64).reshape(-1).tolist()))
        object.__setattr__(self, "shape", tuple(array.shape))

    @property
    def number(self) -> float | np.ndarray | cp.Parameter:
        """The weights."""
        return np.array(self.weights).reshape(self.shape) if isinstance(self.weights, tuple) else self.weights

    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """A parabola for each."""
        return np.full(form.curved, QUADRATIC, dtype=np.int64)

    @property
    def projects(self) -> float | None:
        """The weight, where it is one known number for all parts."""
        return self.weights if isinstance(self.weights, float) else None

    def over_cones(self, polytope: Polytope) -> None:
        """Its weights are all there is to it."""
        return

    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """Half of the weighted squares."""
        return 0.5 * number * points * points

    def slope(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """w z."""
        return number * points

    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """The weights."""
        return number.expand_as(points)

    def __repr__(self) -> str:
        if self.projects == 1.0:
            return "Euclidean()"
        shown = f"weights of shape {self.shape}" if isinstance(self.weights, tuple) else _shown(self.weights)
        return f"Euclidean({shown})"


def _shown(number: float | cp.Parameter) -> str:
    return number.name() if isinstance(number, cp.Parameter) else f"{number:g}"
