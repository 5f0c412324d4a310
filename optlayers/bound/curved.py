"""What belongs to regularized points: derivatives by their curvature, prices, and what Ω is worth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound.smooth import PartByPart, smooth_at
from optlayers.bound.stationary import OnActiveSets
from optlayers.form.standard import ParameterSpec, StandardForm
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solution import AbstractEvidence, Proof
from optlayers.solvers.derivative import PulledBack, value_gradient_of
from optlayers.solvers.regularized import Regularizing, pull_back

__all__ = ["AbstractOfRegularizer", "RegularizedEvidence", "on_form", "worth_gradient"]

ONCE = "the derivative of barrier points has no derivative here; take one derivative only"


class AbstractOfRegularizer(AbstractEvidence):
    """What belongs to regularized points: the regularizer that they are of, and its curvature there."""

    regularizer: AbstractRegularizer
    theta: Float64[Tensor, "batch parameters"] | None
    """The parameters of instances, of which one may be the number of the regularizer."""

    @property
    @abstractmethod
    def moving(self) -> Bool[Tensor, "batch curved"]:
        """The columns of the structure that no bound holds, and whose curvature is finite."""

    @property
    @abstractmethod
    def points(self) -> Float64[Tensor, "batch size"]:
        """The points as scored vectors."""

    def curvature(
        self, points: Float64[Tensor, "batch size"], theta: Float64[Tensor, "batch parameters"] | None
    ) -> Float64[Tensor, "batch size"]:
        """The curvature at the points as a function of them, 0 where nothing moves and beside the structure."""
        return self._at(points, theta, self.regularizer.curvature)

    @property
    def once(self) -> str | None:  # type: ignore[override]
        """Why the derivative has none of its own, None where it has."""
        return None if self.regularizer.of_parts else ONCE

    @property
    def of_regularizer(self) -> Sequence[ParameterSpec]:  # type: ignore[override]
        """The parameters that are the number of the regularizer."""
        names = {parameter.name() for parameter in self.regularizer.parameters}
        return [spec for spec in self.form.parameters if spec.name in names]

    def slope(
        self, points: Float64[Tensor, "batch size"], theta: Float64[Tensor, "batch parameters"] | None
    ) -> Float64[Tensor, "batch size"]:
        """The slope at the points as a function of them, 0 where nothing moves and beside the structure."""
        return self._at(points, theta, self.regularizer.slope)

    def _at(self, points: Tensor, theta: Tensor | None, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        form, size = self.form, self.form.structure_size
        kind = self.regularizer.kinds(form).to(points.device)
        columns = torch.from_numpy(form.kept[: form.curved]).to(points.device)
        moves = torch.zeros(len(points), size, dtype=torch.bool, device=points.device)
        moves[:, columns] = self.moving.to(points.device)
        inside = torch.where(moves, points[:, :size], 0.5)  # a curvature that is infinite has no gradient
        numbers = self.regularizer.numbers(form, self.theta if theta is None else theta).to(points.device)
        found = torch.where(moves, function(inside, kind, numbers), 0.0)
        return torch.nn.functional.pad(found, (0, points.shape[1] - size))

    def of_number(self, moved: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch parameters"] | float:
        """The gradient of the parameter that is the number of the regularizer, for a direction that was pulled back:
        points move with it as with scores, by minus the slope."""
        if self.theta is None or not self.regularizer.parameters:
            return 0.0
        points = self.points.to(moved.device)
        with torch.enable_grad():
            theta = self.theta.detach().requires_grad_()
            slope = (self.slope(points, theta) * moved.detach()).sum()
            (found,) = torch.autograd.grad(slope, theta, allow_unused=True)
        return 0.0 if found is None else -found


@final
@dataclass(eq=False)
class RegularizedEvidence(AbstractOfRegularizer):
    """What belongs to regularized points of the CPU: their active sets and curvatures."""

    form: StandardForm
    solved: Regularizing
    regularizer: AbstractRegularizer
    theta: Float64[Tensor, "batch parameters"] | None

    @property
    def proof(self) -> Proof:
        """The points; see :class:`AbstractEvidence`."""
        answer = self.solved.answer
        return Proof(answer.point, answer.dual, answer.free, np.ones(len(answer.point), dtype=bool))

    @property
    def moving(self) -> Bool[Tensor, "batch curved"]:
        """As active sets and curvatures say."""
        bend, free = self.solved.bend[:, : self.form.curved], self.solved.answer.free
        assert free is not None
        return torch.from_numpy(free[:, : self.form.curved] & np.isfinite(bend))

    @property
    def points(self) -> Float64[Tensor, "batch size"]:
        """The points as scored vectors."""
        return torch.from_numpy(self.form.expand(self.solved.answer.point[:, : self.form.scored]))

    def function(
        self,
        scores: Float64[Tensor, "batch size"],
        theta: Float64[Tensor, "batch parameters"],
        failed: Callable[[Bool[Tensor, " batch"]], None],
    ) -> OnActiveSets:
        """Of scores and θ; see :class:`AbstractEvidence`."""
        smooth, free = smooth_at(self.form, self.solved, self.regularizer)
        answer, instances = self.solved.answer, self.solved.instances
        return OnActiveSets.of(self.form, instances, answer.point, answer.dual, free, smooth, scores, theta, failed)

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """By the curvature at the points on their active sets; see :class:`AbstractEvidence`."""
        form, solved, device = self.form, self.solved, direction.device
        whole = direction.detach().cpu().numpy()
        mine = whole if form.keeps_all else whole[:, form.kept]
        good = np.ones(len(mine), dtype=bool) if ok is None else ok.cpu().numpy()
        p, q, right = pull_back(solved, mine, good)
        scores = np.zeros((len(mine), form.size))
        scores[:, form.kept] = p[:, : form.scored]

        def of_parameters() -> Tensor:
            answer, instances = solved.answer, solved.instances
            assert answer.free is not None
            if solved.curves.has_barrier:
                return torch.from_numpy(self._through_barrier(p, q, right)).to(device)
            found = PulledBack(form, instances, answer.free, mine, p, q, right)
            high = instances.upper - answer.point < answer.point - instances.lower
            theta = found.parameters(answer.point, answer.dual, high)
            theta = np.where(np.isinf(instances.parameters), 0.0, theta)
            return torch.from_numpy(theta).to(device) + self.of_number(torch.from_numpy(scores).to(device))

        return torch.from_numpy(scores).to(device), of_parameters, torch.from_numpy(right).to(device)

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """From dual points; see :class:`AbstractEvidence`."""
        solved, good = self.solved, ok.cpu().numpy()
        answer, instances, form = solved.answer, solved.instances, self.form
        assert answer.free is not None
        with np.errstate(invalid="ignore"):
            slope = np.where(answer.free, 0.0, solved.curves.slope(answer.point))
        slope = np.nan_to_num(slope, posinf=0.0, neginf=0.0)
        theta = value_gradient_of(form, instances, answer.point, answer.dual, good, slope, answer.free)
        found = torch.from_numpy(np.where(np.isinf(instances.parameters), 0.0, theta)).to(ok.device)
        if self.theta is None or not self.regularizer.parameters:
            return found
        points = torch.from_numpy(form.expand(np.where(good[:, None], answer.point[:, : form.scored], 0.0)))
        return found - worth_gradient(form, points.to(ok.device), self.regularizer, self.theta)

    def _through_barrier(
        self, p: Float64[np.ndarray, "batch columns"], q: Float64[np.ndarray, "batch rows"], right: np.ndarray
    ) -> Float64[np.ndarray, "batch parameters"]:
        """The gradient of θ where all bounds push: it moves rows and bounds, and the size of the push."""
        form, instances, answer, mu = self.form, self.solved.instances, self.solved.answer, self.solved.curves.least
        low, high = answer.point - instances.lower, instances.upper - answer.point
        with np.errstate(divide="ignore", invalid="ignore"):
            bend_low, bend_high = mu[:, None] / low**2, mu[:, None] / high**2
            push = np.where(instances.lower < instances.upper, 1.0 / low - 1.0 / high, 0.0)
        stays = ~(instances.lower < instances.upper)
        bend_low[stays], bend_high[stays] = 0.0, 0.0
        found = PulledBack(form, instances, np.ones(p.shape, dtype=bool), np.zeros((len(p), form.scored)), p, q, right)
        theta = found.parameters(answer.point, answer.dual, np.zeros(p.shape, dtype=bool))
        theta += form.lower.transposed(p * bend_low) + form.upper.transposed(p * bend_high)
        theta = np.where(np.isinf(instances.parameters), 0.0, theta)
        for spec in self.of_regularizer:
            theta[:, spec.start] += (p * push).sum(axis=1)
        theta[~right] = 0.0
        return theta


def on_form(
    form: StandardForm,
    points: Float64[Tensor, "batch size"],
    regularizer: AbstractRegularizer,
    function: PartByPart,
    theta: Float64[Tensor, "batch parameters"] | None,
) -> Float64[Tensor, "batch size"]:
    """A function of the regularizer at every part of points of a form, 0 for auxiliary variables."""
    size, kind = form.structure_size, regularizer.kinds(form).to(points.device)
    found = function(points[:, :size], kind, regularizer.numbers(form, theta).to(points.device))
    return torch.nn.functional.pad(found, (0, points.shape[1] - size))


def worth_gradient(
    form: StandardForm,
    points: Float64[Tensor, "batch size"],
    regularizer: AbstractRegularizer,
    theta: Float64[Tensor, "batch parameters"],
) -> Float64[Tensor, "batch parameters"]:
    """The gradient of Ω at points with respect to the parameters of instances."""
    with torch.enable_grad():
        leaf = theta.detach().to(points.device).requires_grad_()
        (found,) = torch.autograd.grad(on_form(form, points.detach(), regularizer, regularizer.worth, leaf).sum(), leaf)
    return found
