"""Branch and bound calls a structure best that is, in exact arithmetic, whatever the sizes of scores."""

import itertools
import time
from fractions import Fraction

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol
from optlayers.solvers.kernels import ties

SIZE = 9


def budgets(seed: int, kind: str) -> tuple[ol.Polytope, np.ndarray]:
    """Two budgets of booleans, or of small integers, and all points within them."""
    rng = np.random.default_rng(seed)
    most = 1 if kind == "boolean" else 2
    size = SIZE if most == 1 else 6
    weights = rng.integers(1, 9, (2, size))
    limits = most * weights.sum(axis=1) // 2
    x = cp.Variable(size, boolean=True) if most == 1 else cp.Variable(size, integer=True, bounds=[0, most])
    every = np.array(list(itertools.product(range(most + 1), repeat=size)))
    return ol.Polytope(x, [weights @ x <= limits]), every[(every @ weights.T <= limits).all(axis=1)]


def exact_sums(points: np.ndarray, scores: np.ndarray) -> list[Fraction]:
    numbers = [Fraction(s) for s in scores.tolist()]
    return [sum((int(v) * s for v, s in zip(p, numbers, strict=True)), Fraction(0)) for p in points.tolist()]


def spread_scores(rng: np.random.Generator, size: int, decades: int, few: bool) -> np.ndarray:
    """Numbers over so many decades; of ``few`` sizes, so that the larger ones often tie."""
    signs = rng.standard_normal(size)
    half = decades / 2
    if few:
        return np.sign(signs) * 10.0 ** rng.choice([-half, 0.0, half], size)
    return signs * 10.0 ** rng.uniform(-half, half, size)


@pytest.mark.parametrize("kind", ["boolean", "integer"])
@pytest.mark.parametrize("decades", [0, 6, 10, 13, 16, 24])
@pytest.mark.parametrize("seed", range(3))
def test_structures_called_best_are_best_in_exact_arithmetic(kind, decades, seed):
    polytope, points = budgets(seed, kind)
    rng = np.random.default_rng(seed)
    scores = np.stack([spread_scores(rng, points.shape[1], decades, bool(k % 2)) for k in range(16)])
    found = ol.compile_polytope(polytope, maximizer=ol.BranchAndBound()).maximize(torch.from_numpy(scores))
    assert found.all_ok
    for value, row in zip(found.value.numpy(), scores, strict=True):
        assert exact_sums(value[None].astype(int), row)[0] == max(exact_sums(points, row))


@pytest.mark.parametrize("largest", [1, 30, 1000, 2**20 - 2, 2**24, 2**40])
def test_ties_of_integers_are_decided_for_all_sizes_of_them(largest):
    polytope, points = budgets(0, "boolean")
    rng = np.random.default_rng(largest)
    scores = rng.integers(-1, 2, (12, SIZE)) * largest
    scores[6:] += rng.integers(-1, 2, (6, SIZE))  # others come near
    found = ol.compile_polytope(polytope, maximizer=ol.BranchAndBound()).maximize(torch.from_numpy(scores).double())
    objectives = [ties.objective(k, SIZE, SIZE) for k in range(2)]
    for value, row in zip(found.value.numpy(), scores, strict=True):
        sums = points @ row
        assert value.astype(int) @ row == sums.max()
        if largest < 2**20:
            tied = points[sums == sums.max()]
            assert value.tolist() == max(tied.tolist(), key=lambda v: [o @ v for o in objectives])


def test_the_time_limit_is_one_for_all_searches_of_a_structure():
    weights = np.random.default_rng(0).integers(10, 100, (5, 60))
    x = cp.Variable(60, boolean=True)
    polytope = ol.Polytope(x, [weights @ x == weights.sum(axis=1) // 2])
    scores = torch.randn(1, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores[:, ::2] *= 1e-9
    layer = ol.OptLayer(polytope, ol.Pipeline(), maximizer=ol.BranchAndBound(time_limit=1.0))
    started = time.monotonic()
    with pytest.raises(ol.SolveError, match="before a best structure was proved"):
        layer(scores)
    assert time.monotonic() - started < 15.0
