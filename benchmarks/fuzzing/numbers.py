"""Scores of all kinds: ordinary, tied, tiny, huge, masked and forbidden, in the formats that models compute in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["DTYPES", "KINDS", "MASK", "ORDINARY", "Scores", "draw_dtype", "draw_scores", "rounded"]

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
MASKS = (-1e9, -1e11, -1e15, -1e32)
MASK, BEYOND = -1e8, 1e5
"""A score from here on is a mask if it is so many times larger than all others, as README.md says."""
KINDS = (
    "ordinary",
    "ties",
    "forbidden parts",
    "score scales",
    "row scales",
    "no limits",
    "rounded parameters",
    "masks",
)
"""Of numbers; an instance is of the last kind that it has something of."""
ORDINARY = KINDS[:3]
"""Scores and rows of 1e-3 to 1e3."""

SHARES = {"ordinary": 0.3, "ties": 0.3, "forbidden parts": 0.1, "score scales": 0.12, "masks": 0.18}
"""How often scores are of a kind."""

TIED: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "zero": lambda generator, n: np.zeros(n),
    "equal": lambda generator, n: np.full(n, float(generator.choice([1.0, -1.0, 0.3, 2.0]))),
    "signs": lambda generator, n: generator.choice([-1.0, 1.0], n),
    "whole": lambda generator, n: generator.integers(-2, 3, n).astype(float),
    "counts": lambda generator, n: generator.integers(0, 3, n).astype(float),
    "pair": lambda generator, n: np.isin(np.arange(n), generator.integers(0, n, 2)).astype(float),
    "tenths": lambda generator, n: generator.integers(0, 4, n) / 10.0,
}


@dataclass(frozen=True)
class Scores:
    """The scores of some instances, as float64 of what their dtype holds, and what kind of numbers they are."""

    values: np.ndarray
    masked: np.ndarray
    """Where a finite number stands for minus infinity."""
    kinds: tuple[str, ...]


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """What remains of numbers in another format."""
    given = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    return given.to(DTYPES[dtype]).to(torch.float64).numpy()


def draw_dtype(generator: np.random.Generator) -> str:
    """A format for scores."""
    return str(generator.choice(list(DTYPES), p=[0.55, 0.25, 0.1, 0.1]))


def draw_scores(generator: np.random.Generator, instances: int, size: int, dtype: str) -> Scores:
    """A batch of several kinds, one after the other."""
    values, masked, kinds = np.zeros((instances, size)), np.zeros((instances, size), dtype=bool), []
    for k in range(instances):
        scores, kind = _one(generator, size)
        if kind in ("masks", "forbidden parts"):
            chosen = generator.random(size) < generator.choice([0.2, 0.4, 0.7])
            if kind == "masks":
                scores = np.where(chosen, _mask(generator, dtype), scores)
                masked[k] = chosen
            else:
                scores = np.where(chosen, -np.inf, scores)
            kind = kind if chosen.any() else "ordinary"
        kinds.append(kind)
        values[k] = scores
    largest = float(torch.finfo(DTYPES[dtype]).max)
    lowest = np.where(masked, -largest, -0.5 * largest)  # the lowest number of a format is a mask, and no score
    kept = np.where(np.isneginf(values), values, rounded(np.clip(values, lowest, largest), dtype))
    for k in np.flatnonzero([kind == "score scales" for kind in kinds]):  # what is drawn may be a mask by its size
        masked[k] = _is_mask(kept[k])
        kinds[k] = "masks" if masked[k].any() else kinds[k]
    return Scores(kept, masked, tuple(kinds))


def _is_mask(scores: np.ndarray) -> np.ndarray:
    """The scores that are documented to be masks: far below 0, and below all others."""
    low = scores <= MASK
    far = low & (scores <= -BEYOND * np.abs(scores[~low]).max(initial=0.0))
    return far if not low.all() else np.zeros_like(low)


def _one(generator: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    kind = str(generator.choice(list(SHARES), p=list(SHARES.values())))
    tied = generator.random() < {"ordinary": 0.0, "ties": 1.0}.get(kind, 0.3)
    scores = _tied(generator, size) if tied else generator.standard_normal(size) * generator.choice([1.0, 1.0, 3.0])
    if kind == "score scales":
        scores = scores * 10.0 ** generator.uniform(-12, 38)
        if generator.random() < 0.1:  # one part that must be there
            scores = generator.standard_normal(size)
            scores[generator.integers(size)] = 10.0 ** generator.uniform(3, 9)
    elif kind in ("ordinary", "ties") and generator.random() < 0.4:
        scores = scores * float(generator.choice([0.001, 0.01, 10.0, 100.0, 300.0]))
    return scores, kind


def _tied(generator: np.random.Generator, size: int) -> np.ndarray:
    return TIED[str(generator.choice(list(TIED)))](generator, size)


def _mask(generator: np.random.Generator, dtype: str) -> float:
    """A number that code puts where minus infinity is meant."""
    lowest = [float(torch.finfo(DTYPES[d]).min) for d in DTYPES]
    fits = [m for m in (*MASKS, *lowest) if np.isfinite(rounded(np.array([m]), dtype)[0])]
    own = float(torch.finfo(DTYPES[dtype]).min)
    return own if generator.random() < 0.4 else float(generator.choice(fits))
