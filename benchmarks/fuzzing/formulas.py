"""What rules must send back: their formulas, written by hand around exact nearest points and judged best vertices.

A best vertex inside of a formula is one that optlayers finds for these scores in a question of its own, after it has
been judged; where several vertices tie, the formula holds for the one that it takes. Entries that a formula says
nothing about are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import optlayers as ol
from fuzzing.setting import Setting

__all__ = ["FORMULAS", "Formula"]

TINY = 1e-6
"""A strength below this divides the rounding of vertices to something."""
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
    back[~setting.only_forbidden | (strength[:, 0] < TINY)] = np.nan
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
    Formula("ol.Identity(center=True)", "centred", _identity),
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
