"""Random integer declarations against their points by trying everything, and against the facets that scipy finds."""

import itertools
import math
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import INTEGER_SOLVERS
from scipy.optimize import linprog
from scipy.spatial import ConvexHull

import optlayers as ol


@dataclass(frozen=True)
class Case:
    """A declaration, all of its structures in lexicographic order, and which of these are vertices of the hull."""

    polytope: ol.Polytope
    points: np.ndarray
    vertices: np.ndarray
    facets: tuple[np.ndarray, np.ndarray]
    """A point x is in the hull where ``normals @ x <= offsets``."""


def case_of(seed: int) -> Case:
    """Integers of two to four values, in up to 6 dimensions, some of them auxiliary; rows of all kinds."""
    rng = np.random.default_rng(seed)
    for _ in range(100):
        size, beside, rows = int(rng.integers(2, 7)), int(rng.integers(0, 3)), int(rng.integers(1, 4))
        low = rng.integers(-1, 1, size + beside)
        high = low + rng.integers(1, 4 if size < 5 else 3, size + beside)
        matrix = rng.integers(-3, 4, (rows, size + beside))
        middle = (matrix * (low + high) / 2).sum(axis=1).round()
        sides, kinds = middle + rng.integers(-1, 4, rows), rng.integers(0, 3, rows)
        every = np.array(list(itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))))
        sums = every @ matrix.T
        good = np.where(kinds == 0, sums <= sides, np.where(kinds == 1, sums >= sides - 3, sums == sides)).all(axis=1)
        points = np.unique(every[good][:, :size], axis=0).astype(float)
        if len(points) > 1:
            break
    x = cp.Variable(size, integer=True, bounds=[low[:size], high[:size]])
    y = [cp.Variable(beside, integer=True, bounds=[low[size:], high[size:]])] if beside else []
    sum_of = matrix @ cp.hstack([x, *y])
    constraints = [
        sum_of[i] <= sides[i] if kind == 0 else sum_of[i] >= sides[i] - 3 if kind == 1 else sum_of[i] == sides[i]
        for i, kind in enumerate(kinds.tolist())
    ]
    return Case(ol.Polytope(x, constraints), points, *hull_of(points))


def hull_of(points: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The vertices of the hull of points, and its facets, in the space that the points span.

    What scipy lists as vertices may lie within a face, beside others; a linear program tells.
    """
    middle = points.mean(axis=0)
    _, sizes, frame = np.linalg.svd(points - middle)
    rank = int((sizes > 1e-9).sum())
    inside = (points - middle) @ frame[:rank].T
    off = frame[rank:]  # along these nothing moves
    if rank == 1:
        ends = [int(inside[:, 0].argmin()), int(inside[:, 0].argmax())]
        normals, offsets = np.array([[-1.0], [1.0]]), np.array([-inside[ends[0], 0], inside[ends[1], 0]])
    else:
        hull = ConvexHull(inside)
        ends, normals, offsets = hull.vertices.tolist(), hull.equations[:, :-1], -hull.equations[:, -1]
    normals = normals @ frame[:rank]
    rows = np.concatenate([normals, off, -off])
    sides = np.concatenate([offsets + normals @ middle, off @ middle, -off @ middle])
    return points[[k for k in sorted(ends) if is_extreme(points, k)]], (rows, sides)


def is_extreme(points: np.ndarray, k: int) -> bool:
    """Whether a point is no mixture of the others."""
    others = np.delete(points, k, axis=0)
    rows, sides = np.vstack([others.T, np.ones(len(others))]), np.append(points[k], 1.0)
    return linprog(np.zeros(len(others)), A_eq=rows, b_eq=sides, bounds=(0, None)).status == 2


SOLVERS = [None, *INTEGER_SOLVERS]


@pytest.mark.many(12)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("seed", range(40))
def test_answers_lie_within_the_facets_that_scipy_finds_and_nothing_is_better(seed, solver):
    case = case_of(seed)
    compiled = ol.compile_polytope(case.polytope, maximizer=solver)
    rng = np.random.default_rng(seed)
    size = case.points.shape[1]
    scores = np.concatenate([3 * rng.standard_normal((12, size)), rng.integers(-2, 3, (4, size)), np.zeros((1, size))])
    best, near = compiled.maximize(torch.from_numpy(scores)), compiled.project(torch.from_numpy(scores))
    assert best.all_ok and near.all_ok
    vertices = {tuple(v) for v in case.vertices.tolist()}
    assert all(tuple(v) in vertices for v in best.value.tolist())
    np.testing.assert_allclose((best.value.numpy() * scores).sum(1), (scores @ case.points.T).max(1), atol=1e-9)
    normals, offsets = case.facets
    projected = near.value.numpy()
    assert (projected @ normals.T - offsets).max() < 1e-8
    left = scores - projected  # nothing of the hull lies beyond a projection along what is left
    assert ((left @ case.points.T).max(1) - (left * projected).sum(1)).max() < 1e-8


@pytest.mark.many(12)
@pytest.mark.parametrize("seed", range(40))
def test_vertices_are_those_of_the_hull_and_structures_are_all_points(seed):
    case = case_of(seed)
    compiled = ol.compile_polytope(case.polytope)
    assert compiled.vertices().tolist() == case.vertices.tolist()
    scores = np.random.default_rng(seed).standard_normal((2, case.points.shape[1]))
    gibbs = ol.Gibbs(compiled, torch.from_numpy(scores), temperature=0.8)
    assert gibbs.enumerate_support()[:, 0].tolist() == case.points.tolist()
    gains = scores @ case.points.T / 0.8
    shares = np.exp(gains - gains.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose(gibbs.log_count(), math.log(len(case.points)), rtol=1e-12)
    np.testing.assert_allclose(gibbs.mean, shares @ case.points, atol=1e-10)
    mean = (shares @ case.points)[:, None]
    np.testing.assert_allclose(gibbs.variance, (shares[..., None] * (case.points - mean) ** 2).sum(1), atol=1e-9)
    np.testing.assert_allclose(gibbs.entropy(), -(shares * np.log(shares)).sum(1), atol=1e-9)
    best = gibbs.top_k(len(case.points) + 1)
    assert best.counts.tolist() == [len(case.points)] * 2
    for k in range(2):
        assert best.structures[:, k].tolist() == case.points[np.argsort(-gains[k], kind="stable")].tolist()
        np.testing.assert_allclose(best.log_prob[:, k].exp(), np.sort(shares[k])[::-1], atol=1e-10)
    rng = np.random.default_rng(seed)
    tried = rng.integers(-3, 5, (200, case.points.shape[1])).astype(float)
    known = {tuple(p) for p in case.points.tolist()}
    several = torch.from_numpy(np.concatenate([tried, case.points, case.points + 0.25]))
    expected = [tuple(p) in known for p in several.tolist()]
    assert gibbs.is_structure(several[:, None])[:, 1].tolist() == expected


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_forbidden_part_of_both_signs_leaves_the_points_of_which_it_is_0(solver):
    x = cp.Variable(3, integer=True, bounds=[-1, 2])
    polytope = ol.Polytope(x, [x[0] + 2 * x[1] - x[2] <= 2.5, 2 * x[0] + 2 * x[2] >= -2.5])
    every = np.array(list(itertools.product(range(-1, 3), repeat=3)), dtype=float)
    good = (every @ [1, 2, -1] <= 2.5) & (every @ [2, 0, 2] >= -2.5) & (every[:, 1] == 0)
    points = torch.from_numpy(every[good])
    scores = 2 * torch.randn(20, 3, dtype=torch.float64)
    scores[:, 1] = -torch.inf
    finite = scores.masked_fill(torch.isneginf(scores), 0.0)
    compiled = ol.compile_polytope(polytope, maximizer=solver)
    best, near = compiled.maximize(scores), compiled.project(scores)
    assert best.all_ok and near.all_ok
    torch.testing.assert_close((best.value * finite).sum(1), (finite @ points.T).amax(1))
    assert (best.value[:, 1] == 0).all() and (near.value[:, 1] == 0).all()
    assert hull_gap(points.numpy(), near.value.numpy(), finite.numpy()) < 1e-9
    gibbs = ol.Gibbs(compiled, scores)
    torch.testing.assert_close(gibbs.mean, torch.softmax(finite @ points.T, 1) @ points)
    assert torch.equal(gibbs.mode, best.value)


def hull_gap(points: np.ndarray, answers: np.ndarray, scores: np.ndarray) -> float:
    """By how much answers lie outside of the hull, or points beyond them along what is left of the scores."""
    normals, offsets = hull_of(points)[1]
    left = scores - answers
    beyond = (left @ points.T).max(1) - (left * answers).sum(1)
    return float(max((answers @ normals.T - offsets).max(), beyond.max()))


# Structures and vertices


def test_an_integer_of_three_values_has_two_vertices_and_three_structures():
    for limit in (2, 2.5):  # integral by proof, and by a diagram
        x = cp.Variable(1, integer=True)
        polytope = ol.Polytope(x, [x >= 0, 2 * x <= 2 * limit])
        assert ol.compile_polytope(polytope).vertices().tolist() == [[0.0], [2.0]]
        gibbs = ol.Gibbs(polytope, torch.tensor([1.0], dtype=torch.float64))
        assert gibbs.enumerate_support().tolist() == [[0.0], [1.0], [2.0]]
        assert gibbs.top_k(9).structures.tolist() == [[2.0], [1.0], [0.0]]
        total = 1 + math.e + math.e**2
        assert gibbs.mean.item() == pytest.approx((math.e + 2 * math.e**2) / total)
        assert gibbs.log_prob(torch.tensor([1.0])).item() == pytest.approx(1 - math.log(total))


def test_whether_a_value_is_a_structure_is_told_of_any_number_of_structures():
    x = cp.Variable(12, integer=True, bounds=[0, 4])
    gibbs = ol.Gibbs(ol.Polytope(x, [cp.sum(x) <= 20]), torch.zeros(12, dtype=torch.float64), validate_args=False)
    assert gibbs.log_count().exp().item() > 1e6
    drawn = gibbs.sample((50,), torch.Generator().manual_seed(0))
    assert drawn.sum(1).max() <= 20 and gibbs.is_structure(drawn).all()
    torch.testing.assert_close(gibbs.log_prob(drawn), -gibbs.log_count().expand(50))
    for wrong in (drawn + 0.5, drawn + 5.0, -1.0 - drawn, torch.full((1, 12), 4.0), torch.full((1, 12), torch.nan)):
        assert (gibbs.log_prob(wrong.double()) == -torch.inf).all()
    masked = torch.zeros(12, dtype=torch.float64)
    masked[3] = -torch.inf
    hidden = ol.Gibbs(gibbs._source, masked)
    torch.testing.assert_close(hidden.is_structure(drawn), drawn[:, 3] == 0)


def wide() -> ol.Polytope:
    x = cp.Variable(2, integer=True, bounds=[0, 1e6])
    return ol.Polytope(x, [2 * x[0] + 3 * x[1] <= 1e6 + 1])


def beside_continuous() -> ol.Polytope:
    x, y = cp.Variable(2, integer=True, bounds=[0, 3]), cp.Variable(2)
    return ol.Polytope(x, [y >= 0, y <= 1.5 * x, cp.sum(y) == 2, cp.sum(x) <= 3])


def separated() -> ol.Polytope:
    def separate(point):
        return (np.ones(2), 3.0) if point.sum() > 3 + 1e-9 else None

    return ol.Polytope(cp.Variable(2, integer=True, bounds=[0, 2]), [], separate=separate)


@pytest.mark.parametrize("declare", [wide, beside_continuous, separated])
@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d.top_k(3).structures,
        lambda d: d.enumerate_support(),
        lambda d: d.is_structure(torch.ones(2)),
        lambda d: d.log_count(),
        lambda d: d.mean,
        lambda d: d.sample(),
    ],
    ids=["top_k", "support", "is_structure", "count", "mean", "sample"],
)
def test_vertices_are_never_taken_for_all_structures(declare, ask):
    """There is no diagram, and the vertices of the hull alone are known: few of the structures."""
    with pytest.raises(ValueError, match=r"need a decision diagram|to list these takes a decision diagram"):
        ask(ol.Gibbs(declare(), torch.zeros(2)))
    assert len(ol.compile_polytope(declare()).vertices()) >= 3


def test_an_oracle_that_knows_the_polytope_is_asked_for_its_structures():
    def unit(scores):
        return np.full(3, np.nan) if np.isneginf(scores).all() else np.eye(3)[int(scores.argmax())]

    polytope = ol.Polytope(cp.Variable(3, boolean=True), [], oracle=unit, rows="relaxation")
    assert "hull of what the oracle knows" in ol.compile_polytope(polytope).explain()
    gibbs = ol.Gibbs(polytope, torch.zeros(3))  # rows alone leave 8
    assert gibbs.log_count().exp().item() == pytest.approx(3.0)
    assert gibbs.top_k(9).structures.tolist() == gibbs.enumerate_support().tolist() == np.eye(3)[::-1].tolist()


def test_variances_of_integers_need_gradients_where_scores_do():
    x = cp.Variable(3, integer=True, bounds=[0, 2])
    polytope = ol.Polytope(x, [cp.sum(x) <= 3])
    scores = torch.randn(2, 3, dtype=torch.float64)
    plain, leaf = ol.Gibbs(polytope, scores), scores.clone().requires_grad_()
    learned = ol.Gibbs(polytope, leaf)
    assert not plain.variance.requires_grad and not plain.stddev.requires_grad
    assert learned.variance.requires_grad and torch.equal(learned.variance.detach(), plain.variance)
    with torch.no_grad():
        assert not learned.variance.requires_grad
    warm = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: ol.Gibbs(polytope, scores, temperature=t).variance, warm)
    assert torch.autograd.gradcheck(lambda s: ol.Gibbs(polytope, s).variance, leaf)
