"""What a regularizer is: a convex function of points, a sum over parts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.form.standard import StandardForm
from optlayers.solvers.curves import Curves
from optlayers.solvers.kernels.curves import LINEAR, QUADRATIC

__all__ = ["AbstractRegularizer", "positive_number", "spread"]


class AbstractRegularizer(ABC):
    r"""A convex function :math:`\Omega(z) = \sum_j \omega_j(z_j)` of the parts of a structure.

    A value: it can be printed, compared and reused. Numbers are float64 tensors ``(batch, size)`` of the structure, in
    C order, and everything is written in torch operations, so that it can be differentiated again.
    """

    kind_of_fixed: int = QUADRATIC
    """The kind of parts that have no column, as constraints fix them."""

    @abstractmethod
    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """The kind of every column of the structure in a standard form."""

    def weights(self, size: int) -> Float64[np.ndarray, " size"]:
        """The weight of every part."""
        return np.ones(size)

    @property
    def projects(self) -> float | None:
        """w, where regularized points are the nearest points to s / w, for which constraints need not be known."""
        return None

    @property
    def exponent(self) -> float:
        """The power of columns that have one."""
        return 2.0

    @property
    def least(self) -> float:
        """The weight of a logarithmic barrier at all bounds."""
        return 0.0

    @abstractmethod
    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"]
    ) -> Float64[Tensor, "batch size"]:
        """ω of every part; inf outside of its domain."""

    @abstractmethod
    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"]
    ) -> Float64[Tensor, "batch size"]:
        r""":math:`\omega''`; it may be infinite where a part is at an end of its domain."""


    def kinds(self, form: StandardForm) -> Int64[Tensor, " size"]:
        """The kind of every part of the structure; one that constraints fix has a kind, too."""
        found = np.full(form.structure_size, self.kind_of_fixed, dtype=np.int64)
        found[form.kept[: form.curved]] = self.kind_of(form)
        return torch.from_numpy(found)

    def curves(self, form: StandardForm) -> Curves:
        """The regularizer over the columns of a form; those beside the structure have no curvature."""
        kind = np.full(form.columns, LINEAR, dtype=np.int64)
        weight, power = np.ones((1, form.columns)), np.full((1, form.columns), self.exponent)
        kind[: form.curved] = self.kind_of(form)
        weight[0, : form.curved] = self.weights(form.structure_size)[form.kept[: form.curved]]
        return Curves(kind, weight, power, self.least)


def positive_number(name: str, value: object, owner: str, *, above: float = 0.0) -> float:
    """A finite number above another one, or an error that says what was given."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} of {owner} is a number, but got {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and value > above):
        raise ValueError(f"{name} of {owner} must be finite and above {above:g}, but got {value!r}")
    return float(value)


def spread(values: Float64[np.ndarray, " size"], like: Tensor) -> Tensor:
    """Numbers of parts beside a tensor."""
    return torch.from_numpy(values).to(like.device)
