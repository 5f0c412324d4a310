"""Linear programs whose scores depend on features, as predict-then-optimize work draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import torch
from torch import Tensor

import optlayers as ol
from polytopes import grid_path

__all__ = ["FEATURES", "PROBLEMS", "Data", "Problem", "Split", "draw_amounts", "draw_data", "knapsack", "shortest_path"]

FEATURES = 5


@dataclass(frozen=True)
class Problem:
    """Decisions, and the sign that makes a score of an amount: -1 for costs, 1 for values."""

    polytope: ol.Polytope
    sign: float


def shortest_path(generator: torch.Generator) -> Problem:
    """The shortest path right and down through a grid of 5 by 5 cells: 40 arcs with a cost, 70 paths."""
    return Problem(grid_path(5, 5), sign=-1.0)


def knapsack(generator: torch.Generator, items: int = 20, resources: int = 3) -> Problem:
    """The relaxed knapsack: parts of items with a value, of which each needs some of every resource.

    Weights are uniform between 3 and 8, and a quarter of all items fits in. The same for all instances.
    """
    weights = 3 + 5 * torch.rand(resources, items, generator=generator, dtype=torch.float64)
    taken = cp.Variable(items)
    within = weights.numpy() @ taken <= weights.sum(1).numpy() / 4
    return Problem(ol.Polytope(taken, [taken >= 0, taken <= 1, within]), sign=1.0)


PROBLEMS: dict[str, Callable[[torch.Generator], Problem]] = {"shortest path": shortest_path, "knapsack": knapsack}


@dataclass(frozen=True)
class Split:
    """Features ``(count, FEATURES)`` and the scores that become known later, ``(count, parts)``."""

    features: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Data:
    """What is learned from, what choices are made on, and what is reported."""

    train: Split
    dev: Split
    test: Split


def draw_amounts(
    features: Tensor, parts: int, degree: int, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Costs or values :math:`c_j = \frac{((Bx)_j / \sqrt p + 3)^d + 1}{3.5^d} \varepsilon_j`, and the matrix B.

    The entries of B are 0 or 1 with equal chance; ε is uniform between 1 - noise and 1 + noise. With d = 1 and without
    noise a linear model is right; with a larger degree it is misspecified. The division by 3.5^d, of PyEPO, keeps
    amounts near 1 and does not change a normalized regret.

    Parameters
    ----------
    features : x, ``(count, p)``.
    parts : how many amounts an instance has.
    degree : d, at least 1.
    noise : between 0 and 1.

    Returns
    -------
    tuple : amounts ``(count, parts)`` and B ``(parts, p)``.

    References
    ----------
    Elmachtoub and Grigas (2022), Smart "predict, then optimize", Management Science. Tang and Khalil (2024), PyEPO: a
    PyTorch-based end-to-end predict-then-optimize library, Mathematical Programming Computation.
    """
    if degree < 1 or not 0 <= noise <= 1:
        raise ValueError(f"degree is at least 1 and noise between 0 and 1, but got degree {degree} and noise {noise}")
    count, size = features.shape
    matrix = torch.randint(2, (parts, size), generator=generator).to(features)
    spread = 1 + noise * (2 * torch.rand(count, parts, generator=generator, dtype=features.dtype) - 1)
    return ((features @ matrix.T / size**0.5 + 3) ** degree + 1) / 3.5**degree * spread, matrix


def draw_data(
    problem: Problem, degree: int, noise: float, sizes: tuple[int, int, int], generator: torch.Generator
) -> Data:
    """Train, dev and test instances of one truth: ``sizes`` of them, float64."""
    features = torch.randn(sum(sizes), FEATURES, generator=generator, dtype=torch.float64)
    amounts, _ = draw_amounts(features, problem.polytope.shape[0], degree, noise, generator)
    parts = zip(features.split(sizes), (problem.sign * amounts).split(sizes), strict=True)
    return Data(*(Split(x, scores) for x, scores in parts))
