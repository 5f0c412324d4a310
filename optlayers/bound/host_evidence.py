"""What belongs to the answers of solvers of the CPU: derivatives, prices, proofs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.bound.dual_points import DualPoints
from optlayers.bound.stationary import OnActiveSets, Smooth
from optlayers.common.caches import cached_property
from optlayers.form.standard import StandardForm
from optlayers.mixture import Decomposition
from optlayers.solution import AbstractEvidence, AbstractFunction, Proof
from optlayers.solvers.base import AbstractSolver, Answer, Instances
from optlayers.solvers.batch import (
    in_scaled_rows,
)
from optlayers.solvers.derivative import PulledBack, value_gradient
from optlayers.solvers.faces import faces, leaving, on_face
from optlayers.solvers.kinks import Kinks, Piece, mean_over_pieces
from optlayers.solvers.shadows import idle_beside_others

__all__ = ["HostEvidence"]

SAME = 1e-9
"""Gradients that differ by less, next to the direction that is pulled back, are the same."""


@final
@dataclass(eq=False)
class HostEvidence(AbstractEvidence):
    """What belongs to the answers of solvers of the CPU."""

    form: StandardForm
    instances: Instances
    answer: Answer
    solver: AbstractSolver
    projects: bool
    certified: Bool[np.ndarray, " batch"]
    exact: Bool[np.ndarray, " batch"]
    """Whether the active sets, where answers have some, are those of the points."""
    dual_points: DualPoints | None = None
    """Of answers that come without; None where there are no parameters."""

    @classmethod
    def of_proof(
        cls, form: StandardForm, instances: Instances, proof: Proof, solver: AbstractSolver, *, certified: np.ndarray
    ) -> HostEvidence:
        """That of answers that were found elsewhere."""
        point, dual = in_scaled_rows(form, proof.point, proof.dual, instances.row_scale)
        answer = Answer(point, dual, np.zeros(len(point), dtype=np.int8), proof.free)
        return cls(form, instances, answer, solver, proof.free is not None, certified, proof.exact)

    @property
    def proof(self) -> Proof:
        """In the rows of the form, which those of the instances may be multiples of."""
        scale = self.instances.row_scale
        point, dual = in_scaled_rows(
            self.form, self.answer.point, self.answer.dual, None if scale is None else 1.0 / scale
        )
        return Proof(point, dual, self.answer.free, self.exact)

    def function(
        self,
        scores: Float64[Tensor, "batch size"],
        theta: Float64[Tensor, "batch parameters"],
        failed: Callable[[Bool[Tensor, " batch"]], None],
    ) -> AbstractFunction | None:
        """Nearest points that have an active set; see :class:`AbstractEvidence`."""
        form, instances, answer = self.form, self.instances, self.answer
        if self.projects and self.dual_points is not None:
            return self.dual_points.function(scores, theta, failed)
        if not self.projects or answer.free is None or answer.pullback is not None:
            return None
        free = faces(form, instances, answer.point, answer.dual, answer.free)

        def solve(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            p, q, right = on_face(form, instances, free, top, bottom)
            return p, q, right & self.exact

        curvature = torch.zeros(form.columns, dtype=torch.float64, device="cpu")
        curvature[: form.curved] = 1.0
        smooth = Smooth(solve, lambda point, _: curvature * point, lambda point, _: curvature.expand(len(point), -1))
        return OnActiveSets.of(form, instances, answer.point, answer.dual, free, smooth, scores, theta, failed)

    @property
    def without_value_gradient(self) -> Mapping[int, str]:  # type: ignore[override]
        """Of instances for which the constraints, asked for a dual point, have none."""
        return {} if self.dual_points is None else self.dual_points.reasons

    @property
    def decomposition(self) -> Decomposition | None:  # type: ignore[override]
        """The vertices that answers mix, where the solver gave them so."""
        return self.answer.decomposition

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """By the solver's own derivative, else by that of the active set; see :class:`AbstractEvidence`."""
        form, answer, good = self.form, self.answer, self.exact if ok is None else ok.numpy() & self.exact
        mine = direction.numpy() if form.keeps_all else direction.numpy()[:, form.kept]
        if answer.pullback is not None:
            scored, theta, right = answer.pullback(mine if good.all() else np.where(good[:, None], mine, 0.0))
            right &= good
            return self._whole(scored), partial(self._known, theta, direction.numpy(), good), torch.from_numpy(right)
        if answer.free is None:
            raise ValueError("tangent takes a solution that project() returned, not one of maximize()")
        pulled_back = PulledBack.of(form, self.instances, answer.free, mine, good)
        point, moved = answer.point, pulled_back.p
        doubtful, count = leaving(form, self.instances, point, answer.free, pulled_back.direction, moved)
        if count or form.unslacked > form.scored:
            pulled_back = self.at_ties(pulled_back, answer.free, doubtful)
        return (
            self._whole(pulled_back.p[:, : form.scored]),
            lambda: torch.from_numpy(self.of_parameters(pulled_back, mine)),
            torch.from_numpy(pulled_back.right),
        )

    def _known(
        self,
        theta: Float64[np.ndarray, "batch parameters"],
        direction: Float64[np.ndarray, "batch size"],
        good: Bool[np.ndarray, " batch"],
    ) -> Float64[Tensor, "batch parameters"]:
        """The gradient of θ by a solver's own derivative, where that knows it, else by the constraints; 0 for instances
        that are not ``good``."""
        unknown: np.ndarray = good & np.isnan(theta).any(axis=1)
        if unknown.any() and self.dual_points is not None:
            theta = np.where(unknown[:, None], self.dual_points.pulled_back(direction, unknown), theta)
        return torch.from_numpy(np.where(good[:, None], theta, 0.0))

    def _whole(self, scored: Float64[np.ndarray, "batch scored"]) -> Float64[Tensor, "batch size"]:
        """Gradients of all scores; those of entries that the constraints fix are 0."""
        if self.form.keeps_all:
            return torch.from_numpy(np.ascontiguousarray(scored))
        scores = np.zeros((len(scored), self.form.size))
        scores[:, self.form.kept] = scored
        return torch.from_numpy(scores)

    def of_parameters(
        self, pulled_back: PulledBack, direction: Float64[np.ndarray, "batch scored"]
    ) -> Float64[np.ndarray, "batch parameters"]:
        """The gradient of θ; where pieces meet, the mean of theirs."""
        answer, instances = self.answer, self.instances
        high = instances.upper - answer.point < answer.point - instances.lower
        theta = pulled_back.parameters(answer.point, answer.dual, high)
        by_piece = []
        index, pieces = self._kinks
        for piece in pieces:
            some, point = instances.take(piece.index), answer.point[piece.index]
            mine = PulledBack.of(self.form, some, piece.free, direction[piece.index], pulled_back.right[piece.index])
            by_piece.append((piece, mine.parameters(point, piece.dual, piece.high)))
        return self._finite(mean_over_pieces(theta, index[pulled_back.right[index]], by_piece))

    def _finite(self, theta: Float64[np.ndarray, "batch parameters"]) -> Float64[np.ndarray, "batch parameters"]:
        """Infinite parameters are limits that do not bind: their gradient is 0."""
        return np.where(np.isinf(self.instances.parameters), 0.0, theta)

    def at_ties(
        self, pulled_back: PulledBack, free: Bool[np.ndarray, "batch columns"], doubtful: Bool[np.ndarray, " batch"]
    ) -> PulledBack:
        """Gradients of projections; at a tie those that move a column from its bound (``doubtful`` ones), or that hold
        one for nothing, are worked out on a face."""
        form, instances, direction = self.form, self.instances, pulled_back.direction
        point, dual = self.answer.point, self.answer.dual
        if form.unslacked > form.scored:
            doubtful = doubtful | self._held_for_nothing(pulled_back, free)
        index = np.flatnonzero(doubtful & pulled_back.right)
        if len(index) == 0:
            return pulled_back
        some = instances.take(index)
        right = faces(form, some, point[index], dual[index], free[index])
        changed = np.flatnonzero((right != free[index]).any(axis=1))
        if len(changed) == 0:
            return pulled_back
        index, every = index[changed], np.ones(len(changed), dtype=bool)
        return pulled_back.where(
            index, PulledBack.of(form, some.take(changed), right[changed], direction[index], every)
        )

    def _held_for_nothing(
        self, pulled_back: PulledBack, free: Bool[np.ndarray, "batch columns"]
    ) -> Bool[np.ndarray, " batch"]:
        """Where a gradient is another one without what is held beside auxiliary columns at no price; else it is that
        of all faces in between."""
        held = idle_beside_others(self.form, self.instances, self.answer.dual, free)
        changes = held.any(axis=1) & pulled_back.right
        index = np.flatnonzero(changes)
        if len(index):
            every = np.ones(len(index), dtype=bool)
            some, direction = self.instances.take(index), pulled_back.direction[index]
            without = PulledBack.of(self.form, some, (free | held)[index], direction, every)
            apart = np.abs(without.scores - pulled_back.scores[index]).max(axis=1, initial=0.0)
            size = np.abs(direction).max(axis=1, initial=0.0)
            changes[index] = ~without.right | (apart > SAME * size)
        return changes

    @cached_property
    def _kinks(self) -> tuple[Int64[np.ndarray, " some"], list[Piece]]:
        """The instances where θ is at a kink of the answer or at the edge of its domain, and the pieces that meet.

        Where constraints are shifted by no more than what leaves a point, that is an edge along which parameters move
        together, and the derivative on the active set is that along it.
        """
        if self.form.polytope.at_an_edge:
            return np.zeros(0, dtype=np.int64), []
        curved = self.form.curved * self.projects
        answer = self.answer
        kinks = Kinks(self.form, self.instances, answer.point, answer.dual, answer.free, curved, self.certified)
        return kinks.index, kinks.pieces()

    def multipliers(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """By the dual point alone; see :class:`AbstractEvidence`."""
        answer, form = self.answer, self.form
        if answer.whole is not None:
            return self.value_gradient(ok)
        curved = form.curved * self.projects
        return torch.from_numpy(value_gradient(form, self.instances, answer.point, answer.dual, ok.numpy(), curved))

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """From dual points; see :class:`AbstractEvidence`."""
        form, answer, instances, good = self.form, self.answer, self.instances, ok.numpy()
        if answer.of_value is not None:
            return torch.from_numpy(np.where(good[:, None], answer.of_value(), 0.0))
        if answer.whole is not None:
            theta = np.zeros(instances.parameters.shape)
            return torch.from_numpy(theta if self.dual_points is None else self.dual_points.value_gradient(good))
        curved = form.curved * self.projects
        theta = value_gradient(form, instances, answer.point, answer.dual, good, curved)
        by_piece = []
        index, pieces = self._kinks
        for piece in pieces:
            some, point = instances.take(piece.index), answer.point[piece.index]
            by_piece.append((piece, value_gradient(form, some, point, piece.dual, good[piece.index], curved)))
        return torch.from_numpy(self._finite(mean_over_pieces(theta, index[good[index]], by_piece)))
