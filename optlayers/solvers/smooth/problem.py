r"""Regularized problems in batched dense torch, on any device: nothing here leaves the device of its input.

Maximize :math:`s^\top z - \sum_j \omega_j(z_j)` over :math:`Az = b,\ l \le z \le u`, with the functions of
:mod:`optlayers.solvers.kernels.curves`. The methods are those of :mod:`optlayers.solvers.kernels.smooth_newton`,
:mod:`optlayers.solvers.kernels.smooth_interior_point` and :mod:`optlayers.solvers.kernels.smooth_face`, which have the
reasons, with all instances of a batch at a time: one that is done stays where it is while the others go on, and the
host only asks whether all are done. What an answer is worth says :mod:`optlayers.solvers.smooth.verdict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.solvers.kernels.batched import cholesky
from optlayers.solvers.kernels.curves import BITS, ENTROPY, HIGHEST, LINEAR, POWER, QUADRATIC

__all__ = ["DEPENDENT", "DenseCurves", "SmoothAnswer", "SmoothProblem", "factored", "unit_rows"]

DEPENDENT = 1e-13
"""δ of normal equations next to their diagonal, for rows that depend on others."""


@final
@dataclass(frozen=True)
class DenseCurves:
    """A regularizer over columns: their kinds, weights and powers, and the weight of a barrier at all bounds.

    ``kinds`` are those that occur, ``kind`` that of each column; the first ``count`` are curved. Weights, powers and
    barriers have a row for each instance, or one that all share.
    """

    kinds: tuple[int, ...]
    count: int
    kind: Int64[Tensor, " columns"]
    weight: Float64[Tensor, "rows columns"]
    power: Float64[Tensor, "others columns"]
    least: Float64[Tensor, " barriers"]
    has_barrier: bool

    def take(self, index: Tensor | slice) -> DenseCurves:
        """Those of some instances."""
        weight, power, least = (
            part if len(part) == 1 else part[index] for part in (self.weight, self.power, self.least)
        )
        return replace(self, weight=weight, power=power, least=least)

    def over(self, unit: Float64[Tensor, "any_rows 1"]) -> DenseCurves:
        """These divided by a number of every instance."""
        return replace(self, weight=self.weight / unit, least=self.least / unit[:, 0])

    @property
    def curved(self) -> Bool[Tensor, " columns"]:
        """Which columns have a curvature of their own."""
        return self.kind != LINEAR

    @property
    def unit(self) -> Float64[Tensor, "rows 1"]:
        """The size of weights."""
        if self.count == 0:
            return torch.ones_like(self.weight[:, :1])
        middle = self.weight.masked_fill(~self.curved, torch.nan).nanmedian(dim=1, keepdim=True).values
        return torch.where(middle > 0.0, middle, 1.0)

    def slope(self, x: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch columns"]:
        """ω'."""

        def of_power() -> Tensor:
            grown = torch.expm1((self.power - 1.0) * torch.log(x)) / (self.power - 1.0) + 1.0 / self.power
            first = 1.0 / self.power - 1.0 / (self.power - 1.0)
            return self.weight * torch.where(x > 0.0, grown, first)

        return self._by_kind(
            x,
            {
                QUADRATIC: lambda: self.weight * x,
                ENTROPY: lambda: self.weight * (torch.log(x) + 1.0),
                BITS: lambda: self.weight * (torch.log(x) - torch.log1p(-x)),
                POWER: of_power,
            },
        )

    def bend(self, x: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch columns"]:
        """ω''; inf where entropies begin or end."""
        return self._by_kind(
            x,
            {
                QUADRATIC: lambda: self.weight.expand_as(x),
                ENTROPY: lambda: self.weight / x,
                BITS: lambda: self.weight / (x * (1.0 - x)),
                POWER: lambda: self.weight * x.clamp(min=0.0) ** (self.power - 2.0),
            },
        )

    def meet(self, r: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch columns"]:
        """The x with ω'(x) = r, or the end of the domain that is nearest to it; 0 for columns without curvature."""
        r = r / self.weight

        def of_power() -> Tensor:
            inside = (self.power - 1.0) * (r - 1.0 / self.power)
            grown = torch.exp((torch.log1p(inside.clamp(min=-1.0)) / (self.power - 1.0)).clamp(max=HIGHEST))
            return torch.where(inside > -1.0, grown, 0.0)

        return self._by_kind(
            r,
            {
                QUADRATIC: lambda: r,
                ENTROPY: lambda: torch.exp((r - 1.0).clamp(max=HIGHEST)),
                BITS: lambda: torch.sigmoid(r),
                POWER: of_power,
            },
        )

    def worth(self, x: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch columns"]:
        """ω, in its domain."""
        log = torch.log(torch.where(x > 0.0, x, 1.0))
        return self._by_kind(
            x,
            {
                QUADRATIC: lambda: 0.5 * self.weight * x * x,
                ENTROPY: lambda: self.weight * x * log,
                BITS: lambda: self.weight * (x * log + torch.special.xlog1py(1.0 - x, -x)),
                POWER: lambda: (
                    self.weight * x * torch.expm1((self.power - 1.0) * log) / (self.power * (self.power - 1.0))
                ),
            },
        )

    def _by_kind(
        self, x: Float64[Tensor, "batch columns"], functions: Mapping[int, Callable[[], Tensor]]
    ) -> Float64[Tensor, "batch columns"]:
        """The function of its kind at every column, 0 for columns without curvature."""
        found = torch.zeros_like(x)
        for kind in self.kinds:
            if kind in functions:
                mine = functions[kind]()
                if len(self.kinds) == 1:
                    return mine
                found = torch.where(self.kind == kind, mine, found)
        return found


@final
@dataclass(frozen=True)
class SmoothProblem:
    """Maximize ``s·z - Ω(z)`` subject to ``A z = b`` and ``lower <= z <= upper``, for a batch.

    ``matrix`` is A, shared ``(rows, columns)`` or one per instance. Bounds may be infinite, and are no wider than where
    Ω is finite; ``lower == upper`` fixes a column. The last ``slack`` columns are the slack of as many last rows.
    """

    matrix: Float64[Tensor, "*shared rows columns"]
    rhs: Float64[Tensor, "batch rows"]
    lower: Float64[Tensor, "batch columns"]
    upper: Float64[Tensor, "batch columns"]
    linear: Float64[Tensor, "batch columns"]
    curves: DenseCurves
    slack: int

    def __len__(self) -> int:
        return len(self.rhs)

    @property
    def movable(self) -> Bool[Tensor, "batch columns"]:
        """The columns that are not fixed by their bounds."""
        return self.lower < self.upper

    def take(self, index: Tensor | slice) -> SmoothProblem:
        """Some of the instances."""
        matrix = self.matrix if self.matrix.ndim == 2 else self.matrix[index]
        rhs, lower, upper, linear = (part[index] for part in (self.rhs, self.lower, self.upper, self.linear))
        return SmoothProblem(matrix, rhs, lower, upper, linear, self.curves.take(index), self.slack)

    def bend(self, point: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch columns"]:
        """The curvature at points, that of a barrier too; inf for columns that stay where they are."""
        found = self.curves.bend(point)
        if self.curves.has_barrier:
            least = self.curves.least[:, None]
            found = found + least / (point - self.lower) ** 2 + least / (self.upper - point) ** 2
        return torch.where(self.movable, found, torch.inf)


@final
@dataclass(frozen=True)
class SmoothAnswer:
    """Points with their dual points; ``free`` marks the columns that no bound holds."""

    point: Float64[Tensor, "batch columns"]
    dual: Float64[Tensor, "batch rows"]
    free: Bool[Tensor, "batch columns"]

    def take(self, index: Tensor | slice) -> SmoothAnswer:
        """Those of some instances, in tensors of their own."""
        return SmoothAnswer(self.point[index].clone(), self.dual[index].clone(), self.free[index].clone())

    def put(self, index: Tensor | slice, other: SmoothAnswer) -> None:
        """Take over the answers of another one for some instances."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[index] = theirs


def unit_rows(problem: SmoothProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and right-hand sides scaled to unit norm, and the norms."""
    norms = torch.linalg.vector_norm(problem.matrix, dim=-1)
    norms = torch.where(norms > 0.0, norms, 1.0)
    return problem.matrix / norms[..., None], problem.rhs / norms, norms


def factored(gram: Tensor, more: Tensor | float = 0.0) -> Tensor:
    """Factors of normal equations, with :data:`DEPENDENT` of their diagonal, and ``more``, on it."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    return cholesky(gram, DEPENDENT * torch.where(diagonal > 0.0, diagonal, 1.0) + more)
