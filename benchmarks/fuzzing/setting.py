"""A case as formulas of rules see it, and what they ask about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from fuzzing.asking import Asked
from fuzzing.cases import Case
from fuzzing.judge import judge
from fuzzing.numbers import MASK
from fuzzing.truth import fractions_of

__all__ = ["VERTICES", "Setting"]

WEAK = -1e11
"""Masks above this may be numbers that are meant."""
VERTICES = 60
"""Sums over all vertices are checked where there are so many at most."""
NEAR = 1e-6
"""Numbers that are so near to each other, relative to the size of a polytope, are one in floating point."""


@dataclass
class Setting:
    """A case whose masks are read as minus infinity where that leaves a structure, and what formulas ask of it."""

    case: Case
    noise: np.ndarray
    as_numbers: bool = False
    """Masks are numbers like any other."""

    @cached_property
    def read(self) -> Case:
        """The case with masks read so, in float64."""
        scores = self.case.scores.copy()
        for k in range(len(scores)):
            if not self.as_numbers and self.case.is_masked(k) and self.mask_is_dropped(k):
                scores[k, self.case.masked[k]] = -np.inf  # type: ignore[index]
        return replace(self.case, scores=scores, dtype="float64", masked=None)

    def mask_is_weak(self, instance: int) -> bool:
        """Whether a mask may as well be a number: what is sent back then may be that of either."""
        scores = self.case.scores[instance]
        return self.case.is_masked(instance) and float(scores[self.case.masked[instance]].max()) > WEAK  # type: ignore[index]

    def mask_is_dropped(self, instance: int) -> bool:
        """Whether structures without the masked parts exist, some part is not masked, and none can be negative."""
        masked = self.case.masked[instance]  # type: ignore[index]
        if not np.isfinite(self.case.scores[instance][~masked]).any():
            return False
        truth = self.case.truth(instance, forbid_masked=True)
        plain = self.case.truth(instance)
        if truth.empty or plain.empty or min(low for low, _ in plain.ends) < 0:
            return False
        numbers = np.abs(self.case.scores[instance][np.isfinite(self.case.scores[instance])])
        ordinary = numbers[~masked[np.isfinite(self.case.scores[instance])]]
        return bool(numbers.max(initial=0.0) >= min(-MASK, 1e4) and ordinary.max(initial=0.0) <= 1e4)

    @cached_property
    def comparable(self) -> np.ndarray:
        """Instances with a point, and with masks that are dropped or none."""
        return np.array(
            [
                not self.read.truth(k).empty
                and (self.as_numbers or not self.case.is_masked(k) or self.mask_is_dropped(k))
                for k in range(len(self.case))
            ]
        )

    @cached_property
    def free(self) -> np.ndarray:
        """Parts that are neither forbidden nor fixed by the constraints."""
        found = np.zeros(self.case.scores.shape, dtype=bool)
        for k in np.flatnonzero(self.comparable):
            truth = self.read.truth(k)
            found[k] = [high - low > NEAR * truth.size for low, high in truth.ends]
        return found

    @cached_property
    def only_forbidden(self) -> np.ndarray:
        """Instances in which every part that is not forbidden is free."""
        return (self.free | np.isneginf(self.read.scores)).all(axis=1) & self.comparable

    @cached_property
    def scores(self) -> np.ndarray:
        """Finite ones; 0 where a part is forbidden."""
        return np.where(np.isneginf(self.read.scores), 0.0, self.read.scores)

    @property
    def gradients(self) -> np.ndarray:
        """What arrives."""
        assert self.case.gradients is not None
        return self.case.gradients

    def best(self, scores: np.ndarray) -> np.ndarray:
        """Judged best vertices for other scores; NaN where there is none that is right."""
        asked = Asked(replace(self.read, scores=np.where(np.isneginf(self.read.scores), -np.inf, scores)))
        found = np.full(scores.shape, np.nan)
        for answer in asked.answers("maximize"):
            k = answer.instance
            if self.comparable[k] and answer.status == "OPTIMAL" and judge(asked.case, answer).kind == "right":
                found[k] = answer.value
        return found

    @cached_property
    def vertex(self) -> np.ndarray:
        """Judged best vertices for the scores."""
        return self.best(self.scores)

    def nearest(self, targets: np.ndarray) -> np.ndarray:
        """Exact nearest points, rounded."""
        found = np.full(targets.shape, np.nan)
        for k in np.flatnonzero(self.comparable & np.isfinite(targets).all(axis=1)):
            point = self.read.truth(k).nearest(fractions_of(targets[k]))
            found[k] = [float(v) for v in point]
        return found

    def vertices(self, instance: int) -> np.ndarray | None:
        """All of them, if they are few."""
        truth = self.read.truth(instance)
        key = truth.theta, truth.forbidden
        if key not in self._vertices:
            found = truth.vertices(VERTICES)
            self._vertices[key] = None if found is None else _distinct(found, truth.size)
        return self._vertices[key]

    @cached_property
    def _vertices(self) -> dict[object, np.ndarray | None]:
        return {}

    def weights(self, scores: np.ndarray, instance: int) -> np.ndarray | None:
        """Probabilities of all vertices; None where they are many, or scores too large to tell."""
        vertices = self.vertices(instance)
        if vertices is None or np.abs(scores).max(initial=0.0) > 1e4 or not np.isfinite(scores).all():
            return None
        values = vertices @ scores
        weights = np.exp(values - values.max())
        return weights / weights.sum()

    def means(self, scores: np.ndarray) -> np.ndarray:
        """Marginals."""
        found = np.full(scores.shape, np.nan)
        for k in np.flatnonzero(self.comparable):
            weights = self.weights(scores[k], k)
            if weights is not None:
                found[k] = weights @ self.vertices(k)
        return found

    def covariance(self, scores: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        """The covariance of structures, applied to gradients."""
        found = np.full(scores.shape, np.nan)
        for k in np.flatnonzero(self.comparable):
            weights = self.weights(scores[k], k)
            if weights is not None:
                vertices = self.vertices(k)
                centred = vertices - weights @ vertices
                found[k] = centred.T @ (weights * (centred @ gradients[k]))
        return found


def _distinct(vertices: list[tuple[Fraction, ...]], size: float) -> np.ndarray | None:
    """As floats; None where two are too near to each other to be told apart in floating point."""
    found = np.array([[float(v) for v in point] for point in vertices])
    apart = np.abs(found[:, None] - found[None]).max(axis=2, initial=0.0) + size * np.eye(len(found))
    return found if apart.min(initial=size) > NEAR * size else None
