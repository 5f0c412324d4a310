"""The squared norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.form.standard import StandardForm
from optlayers.regularizers.base import AbstractRegularizer, positive_number, spread
from optlayers.solvers.kernels.curves import QUADRATIC

__all__ = ["Euclidean"]


@final
@dataclass(frozen=True, init=False)
class Euclidean(AbstractRegularizer):
    r"""Half of the weighted squared norm, :math:`\Omega(z) = \tfrac12 \sum_j w_j z_j^2`.

    The regularized point is the projection of s / w in the norm that the weights make: of one weight for all parts, the
    nearest point to s / w.

    Parameters
    ----------
    weights : positive: a number for all parts, or numbers in the shape of the structure; None for 1.
    """

    numbers: tuple[float, ...]
    shape: tuple[int, ...]

    def __init__(self, weights: Any = None) -> None:
        given = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else weights
        array = np.asarray(1.0 if given is None else given)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"weights of Euclidean are numbers, but got {weights!r}")
        if isinstance(weights, Tensor) and weights.requires_grad:
            raise ValueError("weights of Euclidean get no gradient: pass weights.detach()")
        if array.ndim == 0:
            positive_number("weights", float(array), "Euclidean")
        elif not (np.isfinite(array).all() and (array > 0.0).all()):
            place = tuple(int(i) for i in np.argwhere(~(np.isfinite(array) & (array > 0.0)))[0])
            raise ValueError(f"weights of Euclidean must be finite and positive, but weights{list(place)} is {array[place]}")
        object.__setattr__(self, "numbers", tuple(array.astype(np.float64).reshape(-1).tolist()))
        object.__setattr__(self, "shape", tuple(array.shape))

    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """A parabola for each; the weights must have the shape of the structure."""
        if self.shape and self.shape != form.shape:
            raise ValueError(
                f"weights of Euclidean have shape {self.shape}, but the polytope has shape {form.shape}: give a number "
                "for each part, or one for all"
            )
        return np.full(form.curved, QUADRATIC, dtype=np.int64)

    @property
    def projects(self) -> float | None:
        """The weight, where it is one for all parts."""
        return None if self.shape else self.numbers[0]

    def weights(self, size: int) -> Float64[np.ndarray, " size"]:
        """As they were given."""
        return np.broadcast_to(np.array(self.numbers), (size,)).copy() if not self.shape else np.array(self.numbers)

    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"]
    ) -> Float64[Tensor, "batch size"]:
        """Half of the weighted squares."""
        return 0.5 * spread(self.weights(points.shape[1]), points) * points * points

    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"]
    ) -> Float64[Tensor, "batch size"]:
        """The weights."""
        return spread(self.weights(points.shape[1]), points).expand_as(points)

    def __repr__(self) -> str:
        if not self.shape:
            return "Euclidean()" if self.numbers == (1.0,) else f"Euclidean({self.numbers[0]:g})"
        return f"Euclidean(weights of shape {self.shape})"
