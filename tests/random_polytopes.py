"""Random declarations with known feasible points, for tests that cross them with solvers and rules."""

from __future__ import annotations

from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch

import optlayers as ol


@dataclass(frozen=True)
class Case:
    """A declaration with values for its parameters, nonempty by construction."""

    polytope: ol.Polytope
    parameters: dict[str, torch.Tensor]


def random_case(seed: int) -> Case:
    """Equalities, inequalities, free and bounded variables, redundant and degenerate rows, auxiliaries, parameters."""
    generator = np.random.default_rng(seed)
    n, extra = int(generator.integers(2, 8)), int(generator.integers(0, 4))
    x = _variable(generator, n)
    w = cp.Variable(extra) if extra else None
    inside = generator.uniform(0.1, 0.9, n)
    beside = generator.uniform(-1.0, 1.0, extra)
    both = np.concatenate([inside, beside])
    stacked = x if w is None else cp.hstack([x, w])
    constraints: list[cp.Constraint] = []
    if x.attributes["bounds"] is None:
        low = np.where(generator.random(n) < 0.5, 0.0, -1.0)
        constraints += [x >= low, x <= 1.0 + generator.choice([0.0, 1.0], n)]
    if w is not None:
        constraints += [w >= -2, w <= 2] if generator.random() < 0.7 else [cp.norm1(w) <= 3 * extra]
    parameters: dict[str, torch.Tensor] = {}
    equalities = int(generator.integers(0, max(1, (n + extra) // 2)))
    if equalities:
        rows = _rows(generator, equalities, n + extra)
        constraints.append(rows @ stacked == rows @ both)
        if generator.random() < 0.4:  # a combination of the rows, said again
            mix = generator.integers(-1, 2, equalities).astype(float)
            constraints.append((mix @ rows) @ stacked == mix @ rows @ both)
    inequalities = int(generator.integers(1, 5))
    rows = _rows(generator, inequalities, n + extra)
    room = np.where(generator.random(inequalities) < 0.3, 0.0, generator.uniform(0.0, 1.0, inequalities))
    if generator.random() < 0.5:
        limit = cp.Parameter(inequalities, name="limit")
        constraints.append(rows @ stacked <= limit)
        parameters["limit"] = torch.tensor(rows @ both + room)
    else:
        constraints.append(rows @ stacked <= rows @ both + room)
    if generator.random() < 0.3:  # a degenerate corner: the same side twice, once scaled
        constraints.append(2 * rows[0] @ stacked <= 2 * (rows[0] @ both + room[0]) + generator.choice([0.0, 1.0]))
    if generator.random() < 0.3:
        weight = cp.Parameter(n, name="weight", nonneg=True)
        constraints.append(weight @ x <= 5.0 * n)
        parameters["weight"] = torch.tensor(generator.uniform(0.5, 1.5, n) * (5.0 if generator.random() < 0.5 else 1.0))
    return Case(ol.Polytope(x, constraints), parameters)


def _variable(generator: np.random.Generator, n: int) -> cp.Variable:
    kind = generator.integers(3)
    if kind == 0:
        return cp.Variable(n)
    return cp.Variable(n, nonneg=True) if kind == 1 else cp.Variable(n, bounds=[np.zeros(n), np.ones(n)])


def _rows(generator: np.random.Generator, count: int, width: int) -> np.ndarray:
    if generator.random() < 0.5:
        return generator.integers(-1, 2, (count, width)).astype(float)
    return generator.standard_normal((count, width))
