"""What rules must send back: their formulas, written by hand around exact nearest points and judged best vertices.

A best vertex inside of a formula is one that optlayers finds for these scores in a question of its own, after it has
been judged; where several vertices tie, the formula holds for the one that it takes. Entries that a formula says
nothing about are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

import optlayers as ol
from fuzzing.asking import Asked
from fuzzing.cases import Case
from fuzzing.judge import MASK, judge
from fuzzing.truth import fractions_of

__all__ = ["FORMULAS", "VERTICES", "Formula", "Setting"]

VERTICES = 60
"""Sums over all vertices are checked where there are so many at most."""


@dataclass
class Setting:
    """A case whose masks are read as minus infinity where that leaves a structure, and what formulas ask of it."""

    case: Case
    noise: np.ndarray

    @cached_property
    def read(self) -> Case:
        """The case with masks read so, in float64."""
        scores = self.case.scores.copy()
        for k in range(len(scores)):
            if self.case.is_masked(k) and self.mask_is_dropped(k):
                scores[k, self.case.masked[k]] = -np.inf  # type: ignore[index]
        return replace(self.case, scores=scores, dtype="float64", masked=None)

    def mask_is_dropped(self, instance: int) -> bool:
        """Whether structures without the masked parts exist, and no part can be negative."""
        masked = self.case.masked[instance]  # type: ignore[index]
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
                not self.read.truth(k).empty and (not self.case.is_masked(k) or self.mask_is_dropped(k))
                for k in range(len(self.case))
            ]
        )

    @cached_property
    def free(self) -> np.ndarray:
        """Parts that are neither forbidden nor fixed by the constraints."""
        found = np.zeros(self.case.scores.shape, dtype=bool)
        for k in np.flatnonzero(self.comparable):
            found[k] = [low < high for low, high in self.read.truth(k).ends]
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
            self._vertices[key] = None if found is None else np.array([[float(v) for v in p] for p in found])
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


Pair = tuple[np.ndarray | None, np.ndarray | None]
"""What must go forward and what must come back; None for what is judged in another way."""


@dataclass(frozen=True)
class Formula:
    """A rule, what kind of question its forward map answers, and its formula."""

    rule: str
    question: str
    of: Callable[[Setting], Pair] | None = None
    parameters: bool = False
    draws: bool = False


def _pipeline(setting: Setting) -> Pair:
    return None, np.zeros_like(setting.scores)


def _straight_through(setting: Setting) -> Pair:
    return None, setting.gradients


def _spigot(setting: Setting) -> Pair:
    vertex = setting.vertex
    return None, vertex - setting.nearest(vertex - 0.5 * setting.gradients)


def _spigot_clipped(setting: Setting) -> Pair:
    norm = np.maximum(np.linalg.norm(setting.gradients, axis=1, keepdims=True), 1.0)
    vertex = setting.vertex
    return None, vertex - setting.nearest(vertex - 2.0 * setting.gradients * (1.0 / norm))


def _interpolation(setting: Setting) -> Pair:
    better = setting.best(setting.scores - 1.5 * setting.gradients)
    return None, (setting.vertex - better) / 1.5


def _central(setting: Setting) -> Pair:
    upper, lower = (setting.best(setting.scores + sign * 0.5 * setting.gradients) for sign in (1, -1))
    return None, upper - lower


def _smoothed(setting: Setting) -> Pair:
    vertex = setting.vertex
    moved = setting.nearest(vertex + (setting.scores - 0.25 * setting.gradients) / 2.0)
    return None, (vertex - moved) / 0.25


def _identity(setting: Setting) -> Pair:
    free = setting.free & setting.only_forbidden[:, None]
    count = np.maximum(free.sum(axis=1, keepdims=True), 1)

    def centred(values: np.ndarray) -> np.ndarray:
        kept = np.where(free, values, 0.0)
        return np.where(free, kept - kept.sum(axis=1, keepdims=True) / count, 0.0)

    kept = np.where(free, setting.scores, 0.0)
    largest = np.abs(kept).max(axis=1, keepdims=True)
    largest = np.where(largest > 0, largest, 1.0)
    direction = centred(kept / largest)
    norm = np.linalg.norm(direction, axis=1, keepdims=True)
    left = norm > 1e-9
    clear = left[:, 0] | (np.ptp(np.where(free, kept, np.nan), axis=1) == 0) if free.any() else left[:, 0]
    size = np.where(left, norm, 1.0)
    direction = np.where(left, direction / size, 0.0)
    size = np.where(left, size * largest, 1.0)
    pulled = setting.gradients - (setting.gradients * direction * free).sum(axis=1, keepdims=True) * direction
    forward = setting.best(direction)
    usable = setting.only_forbidden & clear
    forward[~usable] = np.nan
    back = centred(pulled) / size
    back[~usable] = np.nan
    return forward, back


def _perturb_and_map(setting: Setting) -> Pair:
    return setting.best(setting.scores + 0.5 * setting.noise[0]), setting.gradients


def _implicit(setting: Setting) -> Pair:
    here = [setting.best(setting.scores + 0.5 * z) for z in setting.noise]
    there = [setting.best(setting.scores + 0.5 * z - 2.0 * setting.gradients) for z in setting.noise]
    return np.mean(here, axis=0), (np.mean(here, axis=0) - np.mean(there, axis=0)) / 2.0


def _adaptive(setting: Setting) -> Pair:
    length = np.linalg.norm(np.where(setting.free, setting.scores, 0.0), axis=1)
    slope = np.linalg.norm(np.where(setting.free, setting.gradients, 0.0), axis=1)
    strength = np.where(slope > 0, length / np.where(slope > 0, slope, 1.0), 0.0)[:, None]
    here = [setting.best(setting.scores + z) for z in setting.noise]
    there = [setting.best(setting.scores + z - strength * setting.gradients) for z in setting.noise]
    back = (np.mean(here, axis=0) - np.mean(there, axis=0)) / np.where(strength > 0, strength, 1.0)
    back[~setting.only_forbidden] = np.nan
    return np.mean(here, axis=0), back


def _perturbed(setting: Setting) -> Pair:
    return _of_samples(setting, [setting.scores + 0.5 * z for z in setting.noise], setting.noise / 0.5)


def _multiplied(setting: Setting) -> Pair:
    noise = _drawn(setting, ol.Gaussian(), len(setting.noise))
    scores = np.where(setting.scores == 0.0, 1.0, setting.scores)
    back = noise / (0.5 * scores)
    return _of_samples(setting, [setting.scores * np.exp(0.5 * z - 0.125) for z in noise], back)


def _of_samples(setting: Setting, perturbed: list[np.ndarray], along: np.ndarray) -> Pair:
    best = np.stack([setting.best(scores) for scores in perturbed])
    values = (best * setting.gradients).sum(axis=2)
    count = len(best)
    values = (values - values.mean(axis=0)) * count / (count - 1)
    back = np.where(setting.free, (values[:, :, None] * along).mean(axis=0), 0.0)
    back[~setting.only_forbidden] = np.nan
    return best.mean(axis=0), back


def _drawn(setting: Setting, noise: ol.AbstractNoise, samples: int | None) -> np.ndarray:
    generator = torch.Generator().manual_seed(setting.case.seed % 2**31)
    shape = setting.scores.shape if samples is None else (samples, *setting.scores.shape)
    return noise.draw(shape, generator, torch.device("cpu")).numpy()


def _attention(setting: Setting) -> Pair:
    return setting.means(setting.scores), setting.covariance(setting.scores, setting.gradients)


def _attention_behind(setting: Setting) -> Pair:
    return None, setting.covariance(setting.scores, setting.gradients)


def _spigot_ce(setting: Setting) -> Pair:
    means = setting.means(setting.scores)
    return None, means - setting.nearest(means - 0.5 * setting.gradients)


def _spigot_eg(setting: Setting) -> Pair:
    return None, setting.means(setting.scores) - setting.means(setting.scores - 0.5 * setting.gradients)


def _gumbel(setting: Setting) -> Pair:
    perturbed = setting.scores + _drawn(setting, ol.Gumbel(), None)
    back = setting.covariance(perturbed / 0.5, setting.gradients) / 0.5
    return setting.best(perturbed), back


FORMULAS = (
    Formula("ol.Pipeline()", "maximize", _pipeline),
    Formula("ol.StraightThrough()", "maximize", _straight_through),
    Formula("ol.Spigot(0.5)", "maximize", _spigot),
    Formula("ol.Spigot(2.0, clip_norm=1.0)", "maximize", _spigot_clipped),
    Formula("ol.Interpolation(1.5)", "maximize", _interpolation),
    Formula("ol.LPGD(1.5)", "maximize", _interpolation, parameters=True),
    Formula('ol.LPGD(0.5, side="both")', "maximize", _central, parameters=True),
    Formula("ol.LPGD(0.25, smoothing=2.0)", "maximize", _smoothed, parameters=True),
    Formula("ol.Identity()", "centred", _identity),
    Formula("ol.SparseMAP()", "project", parameters=True),
    Formula("ol.Hard(ol.SparseMAP())", "maximize", parameters=True),
    Formula("ol.PerturbAndMAP(scale=0.5, noise=one)", "perturbed", _perturb_and_map),
    Formula("ol.IMLE(samples=3, strength=2.0, scale=0.5, noise=noise)", "perturbed", _implicit),
    Formula("ol.AdaptiveIMLE(samples=3, noise=noise)", "perturbed", _adaptive),
    Formula("ol.PerturbedAdditive(samples=3, scale=0.5, noise=noise)", "perturbed", _perturbed),
    Formula("ol.PerturbedMultiplicative(samples=3, scale=0.5)", "perturbed", _multiplied, draws=True),
    Formula("ol.StructuredAttention()", "marginals", _attention),
    Formula("ol.Hard(ol.StructuredAttention())", "maximize", _attention_behind),
    Formula("ol.SpigotCE(0.5)", "maximize", _spigot_ce),
    Formula("ol.SpigotEG(0.5)", "maximize", _spigot_eg),
    Formula("ol.GumbelStraightThrough(0.5)", "perturbed", _gumbel, draws=True),
    Formula("ol.ScoreFunction(samples=3)", "drawn", draws=True),
)
