"""What belongs to a declaration and its scores: points in the polytope, as plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from playground.declaration import read
from playground.geometry import Solid, solid_of

import optlayers as ol

__all__ = ["REGULARIZERS", "TEMPERATURES", "TROUBLE", "Points", "Scene", "scene_of"]

REGULARIZERS: dict[str, ol.AbstractRegularizer] = {
    "Entropy": ol.Entropy(1.0),
    "Euclidean (SparseMAP)": ol.Euclidean(),
    "Tsallis(1.5)": ol.Tsallis(1.5),
    "Barrier": ol.Barrier(1.0),
}
"""Ω, each at its temperature 1: at a temperature t, argmax ⟨s, z⟩ − t Ω(z) is its point for scores s / t."""
TEMPERATURES = (0.02, 50.0)
PATH, CURVED_PATH = 40, 12
"""A path has so many points, and so many in curved sets, where each takes milliseconds."""
TROUBLE = (ValueError, TypeError, RuntimeError)
"""What the library raises where there is no answer; its message is shown."""

Answer = np.ndarray | str
"""A point, or why there is none."""


@dataclass(frozen=True)
class Points:
    """What the scores lead to; each is a point, or the reason in words why there is none."""

    best: Answer
    nearest: Answer
    mean: Answer
    regularized: Answer
    path: np.ndarray
    """From low temperatures to high ones, ``(points, size)``; those without a verdict are left out."""


class Scene:
    """A declaration, compiled once, and its picture."""

    def __init__(self, text: str, scores: tuple[float, ...] = ()) -> None:
        self.compiled = ol.compile_polytope(read(text))
        (self.size,) = self.compiled.shape
        given = scores if len(scores) == self.size else (1.0, 0.7, 0.3)[: self.size]
        self.solid: Solid = solid_of(self.compiled, np.array(given))
        self.begin = np.array(given)

    def best(self, scores: np.ndarray) -> Answer:
        """The best vertex."""
        if self.solid.curved:
            return "no best vertex: the set is curved and has no vertices"
        return answered(lambda: self.compiled.maximize(torch.tensor(scores)).check().value)

    def points(self, scores: np.ndarray, regularizer: str, temperature: float) -> Points:
        """All points of the picture."""
        asked = torch.tensor(scores)
        omega = REGULARIZERS[regularizer]
        path = np.zeros((0, self.size))
        try:
            along = np.geomspace(*TEMPERATURES, CURVED_PATH if self.solid.curved else PATH)
            found = self.compiled.regularized(asked / torch.from_numpy(along)[:, None], omega)
            path = found.value[found.ok].numpy()
        except TROUBLE:
            pass  # the single point below has the same reason
        return Points(
            self.best(scores),
            answered(lambda: self.compiled.project(asked).check().value),
            self.mean(asked),
            answered(lambda: self.compiled.regularized(asked / temperature, omega).check().value),
            path,
        )

    def mean(self, scores: torch.Tensor) -> Answer:
        """The mean of all structures, each weighted by exp of its score."""
        if self.solid.curved:
            return "no marginals: the set is curved and has no finite list of structures to sum over"
        found = answered(lambda: ol.Gibbs(self.compiled, scores).mean)
        return f"no marginals: {found}" if isinstance(found, str) else found

    def target(self) -> np.ndarray:
        """A point for losses to begin with: the corner that is farthest from the first best point."""
        start = self.best(self.begin)
        start = self.compiled.project(torch.tensor(self.begin)).value.numpy() if isinstance(start, str) else start
        away = np.linalg.norm(self.solid.points - start, axis=1)
        return np.round(self.solid.points[int(away.argmax())], 3)


def answered(ask: Callable[[], torch.Tensor]) -> Answer:
    """A point, or what the library says where there is none."""
    try:
        return ask().detach().numpy()
    except TROUBLE as error:
        return str(error)


@lru_cache(maxsize=64)
def scene_of(text: str, scores: tuple[float, ...] = ()) -> Scene:
    """One for all who look at the same declaration: it never changes."""
    return Scene(text, scores)
