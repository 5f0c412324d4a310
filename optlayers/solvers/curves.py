"""A regularizer over the columns of a standard form, as solvers take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64

from optlayers.solvers.kernels.curves import BITS, ENTROPY, LINEAR, POWER, QUADRATIC

__all__ = ["Curves"]


@final
@dataclass(frozen=True, eq=False)
class Curves:
    r"""A convex function :math:`\Omega(z) = \sum_j \omega_j(z_j)` over columns: their kinds, weights and powers.

    What these are says :mod:`optlayers.solvers.kernels.curves`; formulas are written here once more, for certificates.
    ``weight`` and ``power`` have a row for each instance, or one that all share. ``least`` is the weight of a
    logarithmic barrier at all bounds, a number for each instance or one for all, 0 for none.
    """

    kind: Int64[np.ndarray, " columns"]
    weight: Float64[np.ndarray, "rows columns"]
    power: Float64[np.ndarray, "rows columns"]
    least: Float64[np.ndarray, " barriers"]

    @property
    def has_barrier(self) -> bool:
        """Whether bounds have a barrier."""
        return bool((self.least > 0.0).any())

    @property
    def steep(self) -> bool:
        """Whether the slope is infinite at ends of the domain: no part ends there that need not."""
        return bool(((self.kind == ENTROPY) | (self.kind == BITS)).any())

    @property
    def takes_negative(self) -> bool:
        """Whether the function is finite at negative numbers."""
        return bool((self.kind <= QUADRATIC).all())

    @property
    def unit(self) -> Float64[np.ndarray, "rows 1"]:
        """The size of weights."""
        curved = self.kind != LINEAR
        if not curved.any():
            return np.ones((len(self.weight), 1))
        middle: np.ndarray = np.median(self.weight[:, curved], axis=1, keepdims=True)
        return np.where(middle > 0.0, middle, 1.0)

    def bends(self, columns: int) -> bool:
        """Whether all of the first ``columns`` are curved in all instances."""
        return bool((self.kind[:columns] != LINEAR).all() and (self.weight[:, :columns] > 0.0).all())

    def take(self, index: np.ndarray) -> Curves:
        """Those of a part of the batch."""
        if len(self.weight) == 1:
            return self
        least = self.least[index] if len(self.least) > 1 else self.least
        return Curves(self.kind, self.weight[index], self.power[index], least)

    def domain(
        self, lower: Float64[np.ndarray, "some columns"], upper: Float64[np.ndarray, "others columns"]
    ) -> tuple[Float64[np.ndarray, "some columns"], Float64[np.ndarray, "others columns"]]:
        """Bounds that are no wider than where the function is finite."""
        if not self.takes_negative:
            lower = np.where(self.kind > QUADRATIC, np.maximum(lower, 0.0), lower)
        if (self.kind == BITS).any():
            upper = np.where(self.kind == BITS, np.minimum(upper, 1.0), upper)
        return lower, upper

    @np.errstate(divide="ignore", invalid="ignore")
    def slope(self, point: Float64[np.ndarray, "batch columns"]) -> Float64[np.ndarray, "batch columns"]:
        """ω' of every column, 0 for those without curvature."""
        found = np.zeros(point.shape)
        for kind, part, x, weight, power in self._parts(point):
            if kind == QUADRATIC:
                found[:, part] = weight * x
            elif kind == ENTROPY:
                found[:, part] = weight * (np.log(x) + 1.0)
            elif kind == BITS:
                found[:, part] = weight * (np.log(x) - np.log1p(-x))
            elif kind == POWER:
                found[:, part] = weight * (np.expm1((power - 1.0) * np.log(x)) / (power - 1.0) + 1.0 / power)
        return found

    @np.errstate(over="ignore", divide="ignore", invalid="ignore")
    def bend(self, point: Float64[np.ndarray, "batch columns"]) -> Float64[np.ndarray, "batch columns"]:
        """ω'' of every column, 0 for those without curvature."""
        found = np.zeros(point.shape)
        for kind, part, x, weight, power in self._parts(point):
            if kind == QUADRATIC:
                found[:, part] = weight
            elif kind == ENTROPY:
                found[:, part] = weight / x
            elif kind == BITS:
                found[:, part] = weight / (x * (1.0 - x))
            elif kind == POWER:
                found[:, part] = weight * np.maximum(x, 0.0) ** (power - 2.0)
        return found

    @np.errstate(over="ignore", divide="ignore", invalid="ignore")
    def meet(self, reduced: Float64[np.ndarray, "batch columns"]) -> Float64[np.ndarray, "batch columns"]:
        """Where ω' is ``reduced``, or the nearest end of the domain; 0 for columns without curvature."""
        found = np.zeros(reduced.shape)
        for kind, part, r, weight, power in self._parts(reduced):
            t = r / np.where(weight > 0.0, weight, 1.0)
            if kind == QUADRATIC:
                found[:, part] = t
            elif kind == ENTROPY:
                found[:, part] = np.exp(t - 1.0)
            elif kind == BITS:
                low = np.exp(np.minimum(t, 0.0))
                found[:, part] = np.where(t < -1.0, low / (1.0 + low), 0.5 * (1.0 + np.tanh(0.5 * t)))
            elif kind == POWER:
                inside = (power - 1.0) * (t - 1.0 / power)
                grown = np.exp(np.log1p(np.maximum(inside, -1.0)) / (power - 1.0))
                found[:, part] = np.where(inside > -1.0, grown, 0.0)
        return found

    def worth(self, point: Float64[np.ndarray, "batch columns"]) -> Float64[np.ndarray, "batch columns"]:
        """ω of every column, 0 for those without curvature; at points of the domain."""
        found = np.zeros(point.shape)
        for kind, part, x, weight, power in self._parts(point):
            positive = np.where(x > 0.0, x, 1.0)
            if kind == QUADRATIC:
                found[:, part] = 0.5 * weight * x * x
            elif kind == ENTROPY:
                found[:, part] = weight * x * np.log(positive)
            elif kind == BITS:
                rest = np.where(x < 1.0, 1.0 - x, 1.0)
                found[:, part] = weight * (x * np.log(positive) + (1.0 - x) * np.log(rest))
            elif kind == POWER:
                gain = x * np.expm1((power - 1.0) * np.log(positive))
                found[:, part] = weight * np.where(x > 0.0, gain, 0.0) / (power * (power - 1.0))
        return found

    def strength(self, point: Float64[np.ndarray, "batch columns"]) -> Float64[np.ndarray, " batch"]:
        r"""A σ with :math:`\Omega(z + d) \ge \Omega(z) + \langle \Omega'(z), d \rangle + \tfrac\sigma2 \|d\|^2` between
        points no larger than these; 0 for none."""
        largest = np.maximum(np.abs(point[:, self.kind != LINEAR]).max(axis=1, initial=0.0), 1.0)
        found = np.full(len(point), np.inf)
        for kind, _, _, weight, power in self._parts(point):
            least = weight.min(axis=1)
            if kind in (ENTROPY, BITS):
                found = np.minimum(found, least / largest)
            elif kind == POWER:
                exponent = power.max(axis=1) - 2.0
                found = np.minimum(found, np.where(exponent <= 0.0, least * largest**exponent, 0.0))
            else:
                found = np.minimum(found, least)
        return np.where(np.isfinite(found), found, 1.0)

    def _parts(
        self, values: Float64[np.ndarray, "batch columns"]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """The columns of each kind, with their numbers, weights and powers."""
        for kind in np.unique(self.kind).tolist():
            if kind != LINEAR:
                part = np.flatnonzero(self.kind == kind)
                yield kind, part, values[:, part], self.weight[:, part], self.power[:, part]
