"""Gradients at ties: those of a piece that meets there, not those of any set of constraints."""

import itertools
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from accelerator import DEVICE
from catalogue import PROJECTORS
from numpy.testing import assert_allclose

import optlayers as ol
import optlayers.solvers.faces
import polytopes
from optlayers.bound.device import DevicePolytope

TIGHT = 1e-7
Rows = tuple[np.ndarray, np.ndarray, int]
"""Matrix, right-hand side, and how many of them are equalities."""
Make = Callable[[int], tuple[ol.Polytope, Rows, np.ndarray]]


def degenerate(seed: int) -> tuple[ol.Polytope, Rows, np.ndarray]:
    """Small polytopes where rows repeat, imply each other, and meet in vertices; and scores that tie."""
    generator = np.random.default_rng(seed)
    size = int(generator.integers(2, 6))
    equal = generator.integers(-1, 2, (int(generator.integers(0, 3)), size)).astype(float)
    inside = generator.integers(0, 2, size).astype(float)  # a corner of the box
    below = generator.integers(-1, 3, (int(generator.integers(0, 4)), size)).astype(float)
    below = np.concatenate([below, below[:1], below[:2].sum(axis=0, keepdims=True)])
    x = cp.Variable(size)
    constraints = [x >= 0, x <= 1, below @ x <= below @ inside]
    constraints += [equal @ x == equal @ inside] if len(equal) else []
    matrix = np.concatenate([equal, below, np.eye(size), -np.eye(size)])
    side = np.concatenate([equal @ inside, below @ inside, np.ones(size), np.zeros(size)])
    integers = generator.integers(-1, 3, (6, size)).astype(float)
    near = inside + generator.integers(-1, 2, (6, size))  # the corner itself, and what is next to it
    scores = np.concatenate([integers, near, inside[None], np.zeros((1, size)), np.full((1, size), 1e-13)])
    return ol.Polytope(x, constraints), (matrix, side, len(equal)), scores


def lifted(seed: int) -> tuple[ol.Polytope, Rows, np.ndarray]:
    """Polytopes whose constraints come with auxiliary variables, their rows without these, and scores that tie."""
    generator = np.random.default_rng([seed, 1])
    size = int(generator.integers(3, 6))
    x, eye = cp.Variable(size), np.eye(size)
    corner = generator.integers(0, 2, size).astype(float)
    first, second = (generator.integers(-1, 2, (int(generator.integers(2, 4)), size)).astype(float) for _ in range(2))
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=size)))
    atoms: list[tuple[cp.Expression, np.ndarray]] = [
        (cp.max(first @ x) - cp.min(second @ x), (first[:, None] - second[None]).reshape(-1, size)),
        (cp.max(first @ x) + cp.max(second @ x), (first[:, None] + second[None]).reshape(-1, size)),
        (cp.norm1(x), signs),
        (cp.norm_inf(cp.diff(x)), np.concatenate([np.diff(eye, axis=0), -np.diff(eye, axis=0)])),
        (cp.sum_largest(x, 2), np.array([eye[i] + eye[j] for i in range(size) for j in range(i)])),
        (-cp.min(second @ x), -second),
    ]
    constraints, rows, sides = [x >= 0, x <= 1], [eye, -eye], [np.ones(size), np.zeros(size)]
    for chosen in generator.choice(len(atoms), 2, replace=False):
        atom, matrix = atoms[chosen]
        most = float((matrix @ corner).max())
        constraints.append(atom <= most)
        rows.append(matrix)
        sides.append(np.full(len(matrix), most))
    integers = generator.integers(-1, 3, (6, size)).astype(float)
    near = corner + generator.integers(-1, 2, (6, size))
    scores = np.concatenate([integers, near, corner[None], np.zeros((1, size))])
    return ol.Polytope(x, constraints), (np.concatenate(rows), np.concatenate(sides), 0), scores


def zonotope(seed: int) -> tuple[ol.Polytope, Rows, np.ndarray]:
    """All sums of parts of some vectors, where 0 may be a corner; the rows are those of their facets."""
    generator = np.random.default_rng([seed, 2])
    size = int(generator.integers(2, 5))
    vectors = generator.integers(-14, 17, (size, size + int(generator.integers(0, 3)))) / 16.0
    x, w = cp.Variable(size), cp.Variable(vectors.shape[1], nonneg=True)
    normals = []
    for some in itertools.combinations(range(vectors.shape[1]), size - 1):
        across = scipy.linalg.null_space(vectors[:, some].T, rcond=1e-9)
        normals += [across[:, 0], -across[:, 0]] if across.shape[1] == 1 else []
    rows = np.stack(normals)
    choices = generator.integers(0, 2, (6, vectors.shape[1])) @ vectors.T
    near = choices + generator.integers(-1, 2, choices.shape)
    scores = np.concatenate([np.zeros((1, size)), choices, near, generator.integers(-1, 3, (6, size)).astype(float)])
    return ol.Polytope(x, [x == vectors @ w, w <= 1]), (rows, np.maximum(rows @ vectors, 0.0).sum(axis=1), 0), scores


def assert_piece(jacobian: np.ndarray, point: np.ndarray, scores: np.ndarray, rows: Rows) -> None:
    """The orthogonal projection onto a face of the directions in which the point can move without loss."""
    matrix, side, equalities = rows
    assert_allclose(jacobian, jacobian.T, atol=1e-8)
    assert_allclose(jacobian @ jacobian, jacobian, atol=1e-8)
    assert_allclose(jacobian @ (scores - point), np.zeros(len(point)), atol=1e-7)
    tight = side - matrix @ point <= TIGHT
    keeps = np.abs(matrix @ jacobian).max(axis=1) <= TIGHT
    assert keeps[:equalities].all()
    span = scipy.linalg.null_space(matrix[tight & keeps], rcond=1e-9)
    assert_allclose(span @ span.T, jacobian, atol=1e-7)
    leaves = matrix[tight & ~keeps] @ span
    if len(leaves):
        found = scipy.optimize.linprog(
            np.append(np.zeros(span.shape[1]), -1.0),
            A_ub=np.column_stack([leaves, np.ones(len(leaves))]),
            b_ub=np.zeros(len(leaves)),
            bounds=[(None, None)] * span.shape[1] + [(0.0, 1.0)],
        )
        assert found.x[-1] > 0.5, "no direction leaves all of these constraints"


@pytest.mark.many(8)
@pytest.mark.parametrize("projector", PROJECTORS, ids=repr)
@pytest.mark.parametrize("seed", range(12))
def test_at_ties_the_derivative_is_that_of_a_piece(projector: ol.AbstractProjector, seed: int) -> None:
    assert_pieces(projector, *degenerate(seed))


@pytest.mark.many(24)
@pytest.mark.parametrize("projector", [ol.Auto(), ol.InteriorPoint(), ol.Clarabel()], ids=repr)
@pytest.mark.parametrize("make", [lifted, zonotope])
@pytest.mark.parametrize("seed", range(40))
def test_beside_auxiliary_variables_too(projector: ol.AbstractProjector, seed: int, make: Make) -> None:
    """A face of the lifted polytope may leave the structure a line that is no face of its polytope."""
    assert_pieces(projector, *make(seed))


def assert_pieces(projector: ol.AbstractProjector, polytope: ol.Polytope, rows: Rows, scores: np.ndarray) -> None:
    compiled = ol.compile_polytope(polytope, projector=projector)
    count, size = scores.shape
    solution = compiled.project(torch.from_numpy(scores))
    assert solution.all_ok, solution.reasons
    columns = []
    for part in range(size):
        direction = torch.zeros(count, size, dtype=torch.float64)
        direction[:, part] = 1.0
        columns.append(compiled.tangent(solution, direction).scores.numpy())
    for k in range(count):
        jacobian = np.stack([column[k] for column in columns], axis=1)
        assert_piece(jacobian, solution.value[k].numpy(), scores[k], rows)


@pytest.mark.device
@pytest.mark.parametrize("make", [degenerate, lifted, zonotope])
@pytest.mark.parametrize("seed", range(12))
def test_on_a_device_too(seed: int, make: Make) -> None:
    polytope, rows, scores = make(seed)
    theta = torch.zeros(len(scores), 0, dtype=torch.float64, device=DEVICE)
    device = DevicePolytope(ol.compile_polytope(polytope), theta, None, np.zeros(0))
    solution = device.project(torch.from_numpy(scores).to(DEVICE)).check()
    unit = torch.eye(scores.shape[1], dtype=torch.float64, device=DEVICE)
    columns = [device.tangent(solution, d.expand(len(scores), -1)).scores.cpu().numpy() for d in unit]
    for k, jacobian in enumerate(np.stack(columns, axis=2)):
        assert_piece(jacobian, solution.value[k].cpu().numpy(), scores[k], rows)


@pytest.mark.many(20)
@pytest.mark.parametrize("projector", PROJECTORS, ids=repr)
@pytest.mark.parametrize("score", [0.0, 1e-15, 1e-12, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_masked_matchings_where_models_start(projector: ol.AbstractProjector, score: float, size: int) -> None:
    """All scores are equal, and masks leave some parts out of all matchings without a word."""
    generator = np.random.default_rng(size)
    masked = generator.random((20, size, size)) < 0.35
    masked[:, range(size), range(size)] = False
    compiled = ol.compile_polytope(polytopes.matching(size).without_oracle(), projector=projector)
    scores = torch.full(masked.shape, score, dtype=torch.float64).masked_fill(torch.from_numpy(masked), -torch.inf)
    solution = compiled.project(scores).check()
    directions = torch.eye(size**2, dtype=torch.float64).reshape(-1, size, size)
    columns = [compiled.tangent(solution, d.expand(masked.shape)).scores.numpy() for d in directions]
    eye = np.eye(size)
    sums = np.concatenate([np.kron(eye, np.ones(size)), np.kron(np.ones(size), eye)])
    for k, mask in enumerate(masked.reshape(len(masked), -1)):
        equal = np.concatenate([sums, np.eye(size**2)[mask]])
        side = np.concatenate([np.ones(2 * size), np.zeros(mask.sum() + size**2)])
        jacobian = np.stack([column[k].reshape(-1) for column in columns], axis=1)
        rows = np.concatenate([equal, -np.eye(size**2)]), side, len(equal)
        assert_piece(jacobian, solution.value[k].numpy().reshape(-1), np.where(mask, 0.0, score), rows)


def test_a_bound_that_others_imply_leaves_nothing_free_beyond_them() -> None:
    """x1 <= 1 follows from the sum; held alone, it would leave a line that touches the polytope in one point."""
    x = cp.Variable(4)
    polytope = ol.Polytope(x, [x[1:] >= 0, x[1] <= 1, x[0] + x[1] + x[2] == 1, x[3] == x[0]])
    scores = torch.tensor([1.0, 2.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    layer = ol.OptLayer(polytope, ol.SparseMAP())
    layer(scores).backward(torch.tensor([0.1, 0.6, -0.8, -1.0], dtype=torch.float64))
    assert scores.grad is not None
    jacobian = torch.autograd.functional.jacobian(layer, scores.detach()).numpy()
    rows = np.array([[1.0, 1, 1, 0], [-1, 0, 0, 1], [0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, -1], [0, 1, 0, 0]])
    side = np.array([1.0, 0, 0, 0, 0, 1])
    assert_piece(jacobian, np.array([0.0, 1, 0, 0]), scores.detach().numpy(), (rows, side, 2))


@pytest.mark.parametrize("seed", range(6))
def test_the_linear_program_finds_what_a_push_does_not(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the short way decides nothing, every tie goes through the long one, and comes to a piece, too."""
    monkeypatch.setattr(
        optlayers.solvers.faces, "_leave_together", lambda form, instances, free, inward: np.zeros(len(free), bool)
    )
    assert_pieces(ol.Auto(), *degenerate(seed))
