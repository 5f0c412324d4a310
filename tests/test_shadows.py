"""Best vertices beside auxiliary variables: vertices of what is scored, not of all columns."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch
from accelerator import DEVICE
from catalogue import MAXIMIZERS

import optlayers as ol
from optlayers.bound.device import DevicePolytope
from optlayers.solvers.base import Answer
from optlayers.testing import is_vertex


def permutahedron(size: int) -> ol.Polytope:
    x = cp.Variable(size)
    largest = [cp.sum_largest(x, k) <= sum(range(size - k + 1, size + 1)) for k in range(1, size)]
    return ol.Polytope(x, [*largest, cp.sum(x) == size * (size + 1) / 2])


def cross() -> ol.Polytope:
    x = cp.Variable(4)
    return ol.Polytope(x, [cp.norm1(x) <= 1])


def hypersimplex_of_differences() -> ol.Polytope:
    x = cp.Variable(4)
    return ol.Polytope(x, [x >= 0, x <= 2, cp.tv(x) <= 2, cp.max(x) + cp.norm1(x - 1) <= 4])


def random(seed: int) -> ol.Polytope:
    generator = np.random.default_rng(seed)
    x, w = cp.Variable(3), cp.Variable(4)
    matrix = generator.integers(-1, 2, (6, 7)).astype(float)
    room = generator.integers(0, 3, 6).astype(float)
    return ol.Polytope(x, [x >= -1, x <= 1, w >= -1, w <= 1, matrix @ cp.hstack([x, w]) <= room])


POLYTOPES = {
    "permutahedron of 4": permutahedron(4),
    "permutahedron of 5": permutahedron(5),
    "cross": cross(),
    "differences": hypersimplex_of_differences(),
    **{f"random {seed}": random(seed) for seed in range(6)},
}


def tied(size: int) -> np.ndarray:
    """Zeros, equal, few different, and integers next to a large number."""
    generator = np.random.default_rng(0)
    integers = generator.integers(-1, 2, (12, size)).astype(float)
    masked = integers[:4].copy()
    masked[np.arange(4), np.arange(4) % size] = -1e9
    return np.concatenate([np.zeros((1, size)), np.ones((1, size)), integers, masked, generator.normal(size=(4, size))])


@pytest.mark.many(5)
@pytest.mark.parametrize("solver", MAXIMIZERS, ids=repr)
@pytest.mark.parametrize("name", POLYTOPES)
def test_answers_are_vertices_of_what_is_scored(name: str, solver: ol.AbstractMaximizer) -> None:
    compiled = ol.compile_polytope(POLYTOPES[name], maximizer=solver)
    scores = torch.from_numpy(tied(compiled.shape[0]))
    solution = compiled.maximize(scores)
    moderate = scores.abs().amax(dim=1) < 1e6
    assert solution.ok[moderate].all(), solution.reasons
    # Elsewhere a part that may be 0 counts as forbidden: then vertices are those of the rest.
    looked_at = solution.ok if name.startswith("permutahedron") else moderate
    assert is_vertex(compiled, solution.value[looked_at]).all()


@pytest.mark.device
@pytest.mark.many(2)
@pytest.mark.parametrize("name", POLYTOPES)
def test_on_a_device_too(name: str) -> None:
    compiled = ol.compile_polytope(POLYTOPES[name])
    scores = torch.from_numpy(tied(compiled.shape[0])[:14])
    theta = torch.zeros(len(scores), 0, dtype=torch.float64, device=DEVICE)
    value = DevicePolytope(compiled, theta, None, np.zeros(0)).maximize(scores.to(DEVICE)).check().value.cpu()
    assert is_vertex(compiled, value).all()
    torch.testing.assert_close(value, compiled.maximize(scores).value, atol=1e-7, rtol=0)


@pytest.mark.many(2)
@pytest.mark.parametrize("name", POLYTOPES)
def test_a_point_between_best_vertices_is_refused_and_each_of_them_is_not(name: str) -> None:
    """The scores are those for which the whole edge is best; the point in its middle may be a vertex of all columns."""
    right = ol.compile_polytope(POLYTOPES[name])
    size = right.shape[0]
    generator = torch.Generator().manual_seed(1)
    ends = right.maximize(torch.randn(64, size, generator=generator, dtype=torch.float64)).check().value
    ends = torch.unique(ends.round(decimals=6), dim=0)[:8]
    assert len(ends) > 2
    for first, second in itertools.pairwise(ends):
        for share in (1.0, 0.5):
            point = share * first + (1 - share) * second
            compiled = ol.compile_polytope(POLYTOPES[name], maximizer=At(point.numpy()))
            solution = compiled.maximize(torch.zeros(size, dtype=torch.float64))
            assert bool(solution.ok) == (share == 1.0), (first, second, share)


class At(ol.AbstractMaximizer):
    """A vertex of all columns above a given structure: the auxiliary ones as small as they can be."""

    manner = "says one structure"
    reads_declaration = False

    def __init__(self, structure: np.ndarray) -> None:
        self.structure = structure

    def __repr__(self) -> str:
        return "At()"

    def prepare(self, form):
        return form, ol.Auto().prepare(form)

    def maximize(self, state, instances):
        form, inner = state
        instances = instances.take(np.arange(len(instances)))
        scored = form.scored
        instances.lower[:, :scored] = instances.upper[:, :scored] = self.structure[form.kept]
        generic = np.random.default_rng(0).normal(size=scored)
        answer = None
        for maximizer, prepared in ol.Auto().maximizers_in_turn(inner):
            answer = maximizer.maximize(prepared, instances.with_scores(generic[None]))
            if (answer.status == 0).all():
                break
        assert answer is not None
        point = answer.point
        return Answer(point, np.zeros((len(point), form.rows)), np.zeros(len(point), dtype=np.int8))
