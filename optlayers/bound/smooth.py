"""Regularizers as functions of the columns of a form and of θ, and systems on the active sets of their points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound.stationary import Smooth
from optlayers.form.standard import AffineMap, StandardForm
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels.active_set import CONVERGED
from optlayers.solvers.kernels.curves import QUADRATIC
from optlayers.solvers.regularized import Regularizing

__all__ = ["PartByPart", "smooth_at"]

PartByPart = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of points, kinds and numbers."""


def smooth_at(
    form: StandardForm, solved: Regularizing, regularizer: AbstractRegularizer
) -> tuple[Smooth, Bool[np.ndarray, "batch columns"]]:
    """What is solved on the active sets of regularized points, and the columns that move there."""
    answer, instances, curves = solved.answer, solved.instances, solved.curves
    assert answer.free is not None
    every = np.ones(len(answer.point), dtype=bool)

    def solve(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p, q, left = solved.on_active_set(top, bottom, every)
        return p, q, left <= CONVERGED

    if curves.has_barrier:
        barrier = BarrierOfBounds(form, instances, regularizer)
        return Smooth(solve, barrier.slope, barrier.bend, barrier.worth), barrier.moves
    free = answer.free & np.isfinite(solved.bend)
    with np.errstate(invalid="ignore"):
        slope, bend = curves.slope(answer.point), curves.bend(answer.point)
    # At the end of the domain of an entropy or a power neither is a function that has a derivative.
    inside = np.isfinite(bend) & ((curves.kind <= QUADRATIC) | (answer.point > 0.0))
    at_end = np.where(inside | ~np.isfinite(slope), 0.0, slope)
    of = partial(_of_columns, form, regularizer)
    smooth = Smooth(
        solve,
        partial(of, regularizer.slope, free | (~answer.free & inside), at_end),
        partial(of, regularizer.curvature, free, None),
        partial(of, regularizer.worth, free, None) if regularizer.parameters else None,
    )
    return smooth, free


def _of_columns(
    form: StandardForm,
    regularizer: AbstractRegularizer,
    function: PartByPart,
    which: Bool[np.ndarray, "batch columns"],
    others: Float64[np.ndarray, "batch columns"] | None,
    point: Tensor,
    theta: Tensor,
) -> Float64[Tensor, "batch columns"]:
    """A function of the regularizer at some columns; of ``others`` these numbers, 0 by default."""
    cut, number = form.curved, regularizer.numbers(form, theta)
    if number.shape[1] > 1:
        number = number[:, torch.from_numpy(form.kept[:cut])]
    some = torch.from_numpy(which[:, :cut])
    inside = torch.where(some, point[:, :cut], 0.5)  # where it is infinite it has no gradient
    rest = torch.zeros_like(inside) if others is None else torch.from_numpy(others[:, :cut])
    found = torch.where(some, function(inside, torch.from_numpy(regularizer.kind_of(form)), number), rest)
    return torch.nn.functional.pad(found, (0, point.shape[1] - cut))


@final
class BarrierOfBounds:
    """A logarithmic barrier at all bounds of columns, as a function of these and of θ, which moves bounds."""

    def __init__(self, form: StandardForm, instances: Instances, regularizer: AbstractRegularizer) -> None:
        self.form, self.regularizer = form, regularizer
        self.lower, self.upper = instances.lower, instances.upper
        self.moves = instances.lower < instances.upper

    def slope(self, point: Tensor, theta: Tensor) -> Float64[Tensor, "batch columns"]:
        """Its gradient."""
        return self._at(point, theta, lambda room: -1.0 / room, [1.0, -1.0])

    def bend(self, point: Tensor, theta: Tensor) -> Float64[Tensor, "batch columns"]:
        """Its curvature."""
        return self._at(point, theta, lambda room: 1.0 / room**2, [1.0, 1.0])

    def worth(self, point: Tensor, theta: Tensor) -> Float64[Tensor, "batch columns"]:
        """Its value."""
        return self._at(point, theta, lambda room: -room.log(), [1.0, 1.0])

    def _at(
        self, point: Tensor, theta: Tensor, function: Callable[[Tensor], Tensor], signs: Sequence[float]
    ) -> Float64[Tensor, "batch columns"]:
        """The sum of a function of the rooms to both bounds, where there is a bound and a column moves."""
        form, mu = self.form, self.regularizer.numbers(self.form, theta)
        total = torch.zeros_like(point)
        sides = ((self.lower, form.lower, 1.0, signs[0]), (self.upper, form.upper, -1.0, signs[1]))
        for bound, part, inward, sign in sides:
            there = torch.from_numpy(self.moves & np.isfinite(bound))
            at = torch.from_numpy(np.where(np.isfinite(bound), bound, 0.0)) + _moved_by(part, theta)
            room = torch.where(there, inward * (point - at), 1.0)
            total = total + torch.where(there, sign * function(room), 0.0)
        return mu * total


def _moved_by(part: AffineMap, theta: Tensor) -> Float64[Tensor, "batch entries"]:
    """How an affine map moves with θ from where it is: 0, with a graph."""
    finite = torch.where(torch.isfinite(theta), theta, 0.0)
    moved = finite - finite.detach()
    if part.is_constant:
        return torch.zeros(len(theta), len(part.constant), dtype=torch.float64, device="cpu")
    return moved @ torch.from_numpy(part.matrix.toarray().T)
