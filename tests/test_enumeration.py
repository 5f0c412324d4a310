"""All vertices of a polytope, against those of exact arithmetic, however scores tie and whoever answers."""

import itertools
import tracemalloc
from fractions import Fraction

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch
from catalogue import CATALOGUE

import optlayers as ol
import polytopes
from optlayers.proofs.unimodular import _is_totally_unimodular
from optlayers.sums.vertex_sums import log_sum_over
from optlayers.vertices import enumeration, facets
from optlayers.vertices.enumeration import Unsolved


def vertices_of(polytope, theta=(), **solvers):
    return ol.compile_polytope(polytope, **solvers).enumerated(np.array(theta, dtype=np.float64))


def choices(*sizes):
    """A choice of one part in each of some groups, by hand."""
    x, ends = cp.Variable(sum(sizes)), np.cumsum((0, *sizes))
    return ol.Polytope(x, [x >= 0] + [cp.sum(x[a:b]) == 1 for a, b in itertools.pairwise(ends)])


def mixtures(points):
    """The hull of points, by hand."""
    x, weight = cp.Variable(points.shape[1]), cp.Variable(len(points), nonneg=True)
    return ol.Polytope(x, [cp.sum(weight) == 1, x == points.T @ weight])


def same_points(found, expected, tolerance=1e-9):
    return len(found) == len(expected) and all(np.abs(expected - point).max(1).min() <= tolerance for point in found)


@pytest.mark.parametrize("sizes", [(10,), (10, 10), (3, 4, 2), (10, 10, 10, 5), (1, 1, 2)], ids=str)
def test_choices_by_hand_are_softmax(sizes):
    scores = 0.1 * torch.arange(sum(sizes), dtype=torch.float64).repeat(3, 1) * torch.tensor([[1.0], [0.0], [-30.0]])
    found = ol.OptLayer(choices(*sizes), ol.StructuredAttention())(scores)
    expected = torch.cat([part.softmax(1) for part in scores.split(sizes, dim=1)], dim=1)
    assert (found - expected).abs().max() <= 1e-12
    vertices = vertices_of(choices(*sizes))
    assert len(vertices) == np.prod(sizes) and len(np.unique(vertices, axis=0)) == len(vertices)
    assert np.isin(vertices, (0.0, 1.0)).all()


@pytest.mark.slow
def test_one_vertex_too_many_is_refused_in_bounded_memory():
    compiled = ol.compile_polytope(choices(3, 1667))
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 5000, too many to enumerate"):
        compiled.vertices()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6


def test_many_independent_parts_are_refused_at_once():
    x = cp.Variable(400)
    with pytest.raises(ValueError, match="more than 5000, too many to enumerate"):
        vertices_of(ol.Polytope(x, [x >= 0, x <= 1]))


def solved(rows, rhs):
    """The solution of a square system, in fractions; None where there are none or many."""
    table = [[Fraction(value) for value in (*row, side)] for row, side in zip(rows, rhs, strict=True)]
    for column in range(len(table)):
        pivot = next((k for k in range(column, len(table)) if table[k][column]), None)
        if pivot is None:
            return None
        table[column], table[pivot] = table[pivot], table[column]
        table[column] = [value / table[column][column] for value in table[column]]
        for k, row in enumerate(table):
            if k != column and row[column]:
                table[k] = [a - row[column] * b for a, b in zip(row, table[column], strict=True)]
    return tuple(row[-1] for row in table)


def exact_vertices(rows, rhs, equalities=()):
    """By all active sets: of rows ``a x <= b``, the first ``equalities`` of which are equations too."""
    size, always, found = len(rows[0]), list(equalities), set()
    for active in itertools.combinations([k for k in range(len(rows)) if k not in always], size - len(always)):
        chosen = [*always, *active]
        point = solved([rows[k] for k in chosen], [rhs[k] for k in chosen])
        if point is not None:
            values = [sum(a * x for a, x in zip(row, point, strict=True)) for row in rows]
            if all(v <= b for v, b in zip(values, rhs, strict=True)) and all(values[k] == rhs[k] for k in always):
                found.add(point)
    return np.array([[float(value) for value in point] for point in sorted(found)]).reshape(-1, size)


@pytest.mark.many(10)
@pytest.mark.parametrize("solver", [ol.Auto(), ol.Highs()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("seed", range(40))
def test_random_polytopes_have_the_vertices_of_exact_arithmetic(seed, solver):
    """Whole, half and mixed vertices, degenerate ones, single points; sides of 1 to 3, rows of small integers."""
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 5))
    rows = [*np.eye(size, dtype=int).tolist(), *(-np.eye(size, dtype=int)).tolist()]
    rhs = [*generator.choice([1, 1, 1, 2, 3], size).tolist(), *generator.choice([0, 0, 0, 1], size).tolist()]
    low, high = ((-2, 3), (-1, 2), (0, 2))[seed % 3]
    for _ in range(int(generator.integers(0, 5))):
        rows.append(generator.integers(low, high, size).tolist())
        rhs.append(int(generator.integers(0, 3)))
    equalities = ()
    if size > 1 and seed % 4 == 0 and any(rows[-1]):
        equalities = (len(rows) - 1,)
    expected = exact_vertices(rows, rhs, equalities)
    x, body, side = cp.Variable(size), np.array(rows, float), np.array(rhs, float)
    constraints = [body @ x <= side, *(body[k] @ x == side[k] for k in equalities)]
    try:
        found = vertices_of(ol.Polytope(x, constraints), maximizer=solver)
    except ol.DeclarationError:
        assert len(expected) == 0
    else:
        assert same_points(found, expected)


def outside(points, point):
    """How far a point is from the hull of some."""
    size, count = points.shape[1], len(points)
    rows = np.block([[points.T, -np.ones((size, 1))], [-points.T, -np.ones((size, 1))]])
    cost, total = np.append(np.zeros(count), 1.0), [[*[1.0] * count, 0.0]]
    return scipy.optimize.linprog(cost, rows, np.append(point, -point), total, [1.0]).fun


@pytest.mark.many(3)
@pytest.mark.parametrize("seed", range(24))
def test_one_fractional_vertex_among_whole_ones_is_never_missed(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(2, 13))
    whole = np.unique(generator.integers(0, 2, (min(2**size - 1, 14), size)), axis=0).astype(float)
    beside = whole[0]
    while np.isin(beside, (0.0, 1.0)).all() or outside(whole, beside) < 1e-4:
        beside = generator.integers(0, 3, size) / 2.0 if seed % 2 else generator.random(size)
    points = np.vstack([whole, beside])
    if np.linalg.matrix_rank(points - beside) > 8:
        with pytest.raises(ValueError, match="not 0/1 and have more than 8 dimensions"):
            vertices_of(mixtures(points))
    else:
        assert same_points(vertices_of(mixtures(points)), points, 1e-7)
    assert same_points(vertices_of(mixtures(whole)), whole)


@pytest.mark.parametrize("size", [5, 7, 9, 11])
def test_sets_without_neighbours_on_an_odd_cycle(size):
    """Their rows have one more vertex, the point of halves; with the inequality of odd cycles they have not."""
    x = cp.Variable(size)
    rows = [x >= 0, x + cp.hstack([x[1:], x[:1]]) <= 1]
    sets = [s for s in itertools.product((0, 1), repeat=size) if all(s[k] + s[k - 1] <= 1 for k in range(size))]
    if size <= 8:
        assert same_points(vertices_of(ol.Polytope(x, rows)), np.vstack([np.array(sets), np.full(size, 0.5)]))
    else:
        with pytest.raises(ValueError, match="not 0/1 and have more than 8 dimensions"):
            vertices_of(ol.Polytope(x, rows))
    assert same_points(vertices_of(ol.Polytope(x, [*rows, cp.sum(x) <= size // 2])), np.array(sets))


@pytest.mark.many(7)
@pytest.mark.parametrize("entry", CATALOGUE, ids=repr)
@pytest.mark.parametrize("oracle", [True, False], ids=["oracle", "rows"])
def test_nothing_but_the_declaration_is_needed(entry, oracle):
    polytope = entry.polytope
    plain = ol.Polytope(polytope.variable, polytope.constraints, oracle=polytope.oracle if oracle else None)
    found = vertices_of(plain, list(entry.parameters.values()))
    assert same_points(found, entry.vertices.reshape(len(entry.vertices), -1))


def test_an_oracle_that_answers_ties_with_their_mean_is_refused():
    def mean_of_ties(scores):
        best = (scores == scores.max()).astype(float)
        return best / best.sum()

    x = cp.Variable(12)
    polytope = ol.Polytope(x, [x >= 0, cp.sum(x) == 1], oracle=mean_of_ties)
    with pytest.raises(Unsolved, match=r"a best one is INACCURATE, its answer may .* is no vertex of the polytope"):
        vertices_of(polytope)
    assert same_points(vertices_of(polytope.without_oracle()), np.eye(12))


@pytest.mark.parametrize("size", [1, 3, 12])
def test_boxes_of_other_sides_are_products(size):
    x = cp.Variable(size)
    found = vertices_of(ol.Polytope(x, [x >= -1, x <= 2]))
    assert same_points(found, np.array(list(itertools.product((-1.0, 2.0), repeat=size))))


@pytest.mark.many(2)
@pytest.mark.parametrize(("low", "side"), [(1e6, 0.5), (1e3, 1e-3), (-1e9, 1e3), (0.0, 1e-6), (0.0, 1e8)])
def test_boxes_of_any_size_far_from_zero(low, side):
    x = cp.Variable(3)
    box = [x >= low, x <= low + side]
    corners = low + side * np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    close = 1e-9 * abs(low) + 1e-6 * side
    assert same_points(vertices_of(ol.Polytope(x, box)), corners, close)
    cut = vertices_of(ol.Polytope(x, [*box, cp.sum(x) <= 3.0 * low + 1.5 * side]))
    assert len(cut) == 10 and (cut.sum(1) <= 3.0 * low + (1.5 + 1e-3) * side).all()


@pytest.mark.slow
def test_entries_of_very_different_size():
    points = np.array([[0.0, 0.0], [1e6, 0.0], [0.0, 1e-3], [1e6, 1e-3], [5e5, 2e-3]])
    found = vertices_of(mixtures(points))
    assert same_points(found / [1e6, 1e-3], points / [1e6, 1e-3], 1e-6)


def test_single_points_and_nothing():
    x, k = cp.Variable(3), cp.Parameter(name="k")
    assert vertices_of(ol.Polytope(x, [x == 0.5])).tolist() == [[0.5, 0.5, 0.5]]
    some = ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == k])
    assert vertices_of(some, [0.0]).tolist() == [[0.0, 0.0, 0.0]] and len(vertices_of(some, [1.0])) == 3
    assert vertices_of(some, [3.0]).tolist() == [[1.0, 1.0, 1.0]] and vertices_of(some, [4.0]).shape == (0, 3)
    half = vertices_of(some, [1.5])
    assert len(half) == 6 and {tuple(sorted(v)) for v in half} == {(0.0, 0.5, 1.0)}
    low, high = cp.Parameter(3, name="low"), cp.Parameter(3, name="high")
    box = ol.Polytope(x, [x >= low, x <= high])
    assert vertices_of(box, [0.5, 0, 0, 0.5, 1, 1]).tolist() == [[0.5, 0, 0], [0.5, 0, 1], [0.5, 1, 0], [0.5, 1, 1]]


def test_vertices_have_their_scored_auxiliary_variables():
    """Three binary variables, agreeing in pairs: four structures of eight have others beside them, of halves."""
    x, pair = cp.Variable(3), cp.Variable(3, name="pair")
    rows = [x >= 0, x <= 1, pair >= 0]
    for k, (i, j) in enumerate(((0, 1), (1, 2), (0, 2))):
        rows += [pair[k] <= x[i], pair[k] <= x[j], pair[k] >= x[i] + x[j] - 1]
    found = vertices_of(ol.Polytope(x, rows, scored=[pair]))
    whole = [(*s, s[0] * s[1], s[1] * s[2], s[0] * s[2]) for s in itertools.product((0.0, 1.0), repeat=3)]
    halves = [(0.5, 0.5, 0.5, *p) for p in itertools.product((0.0, 0.5), repeat=3) if sum(p) in (0.0, 1.0)]
    assert same_points(found, np.array(whole + halves))
    assert len(vertices_of(polytopes.linear_chain(3, 2))) == 8


def test_declared_integrality_is_believed_until_a_vertex_denies_it():
    x = cp.Variable(5)
    rows = [x >= 0, x + cp.hstack([x[1:], x[:1]]) <= 1]
    with pytest.raises(ValueError, match=r"says integral=True, but it has a vertex with an entry that is 0.5 off"):
        vertices_of(ol.Polytope(x, rows, integral=True))


def test_a_proof_that_is_too_long_is_not_given(monkeypatch):
    """The sets without neighbours again: with few comparisons their facets are not worked out."""
    monkeypatch.setattr(facets, "COMPARISONS", 100)
    x = cp.Variable(9)
    rows = [x >= 0, x + cp.hstack([x[1:], x[:1]]) <= 1, cp.sum(x) <= 4]
    with pytest.raises(
        ValueError, match=r"76 of 0 and 1 were found, but .* too many facets .*: no proof is needed where"
    ):
        vertices_of(ol.Polytope(x, rows))
    assert len(vertices_of(ol.Polytope(x, rows, integral=True))) == 76


def test_hulls_of_too_many_facets_are_refused_before_they_are_made():
    points = np.random.default_rng(0).standard_normal((120, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    tracemalloc.start()
    with pytest.raises(ValueError, match="hull of these has more than 50000 facets, too many to enumerate"):
        vertices_of(mixtures(points))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6


def test_instances_whose_oracle_fails_have_no_marginals_and_the_others_have():
    x, k = cp.Variable(4), cp.Parameter(name="k")

    def some(scores, k):
        if k[()] == 3.0:
            raise RuntimeError("not three")
        best = np.zeros(4)
        best[np.argsort(-scores)[: int(k[()])]] = 1.0
        return best

    polytope = ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == k], oracle=some)
    counts = torch.tensor([2.0, 3.0, 1.0])
    found = ol.OptLayer(polytope, ol.StructuredAttention(), on_failure="nan")(torch.zeros(3, 4), k=counts)
    assert found[1].isnan().all() and torch.allclose(found[[0, 2]].sum(1), counts[[0, 2]])
    with pytest.raises(ol.SolveError, match=r"instance 1 is FAILED: its vertices cannot be .*RuntimeError: not three"):
        ol.OptLayer(polytope, ol.StructuredAttention())(torch.zeros(3, 4), k=counts)


@pytest.mark.parametrize(
    ("name", "count"), [("simplex", 5), ("cube", 6), ("matching", 9), ("tree of four words", 26), ("path", 5)]
)
def test_facets_of_known_polytopes(name, count):
    entry = next(e for e in CATALOGUE if e.name == name)
    points = entry.vertices.reshape(len(entry.vertices), -1).astype(np.int64)
    points = points[np.lexsort(points.T[::-1])]
    normals, offsets = facets.half_spaces_of(points)
    equations = 2 * (points.shape[1] - np.linalg.matrix_rank(points - points[0]))
    assert len(normals) == {"simplex": 4}.get(name, count) + equations
    assert (points @ normals.T <= offsets + 1e-12).all()
    for normal, offset in zip(normals, offsets, strict=True):
        on = points[np.abs(points @ normal - offset) <= 1e-12]
        missing = 0 if len(on) == len(points) else 1
        assert np.linalg.matrix_rank(on - on[0]) == np.linalg.matrix_rank(points - points[0]) - missing


@pytest.mark.parametrize("seed", range(60))
def test_matrices_that_are_called_totally_unimodular_are(seed):
    """By all determinants; those of directed graphs, and of intervals in few rows, are recognized."""
    generator = np.random.default_rng(seed)
    rows, columns = int(generator.integers(2, 5)), int(generator.integers(2, 6))
    matrix = generator.choice([-1, 0, 0, 1], (rows, columns)).astype(np.int8)
    graph = seed % 3 == 0
    if graph:
        matrix[:] = 0
        for column in range(columns):
            matrix[generator.permutation(rows)[:2], column] = (1, -1)
    minors = [
        round(np.linalg.det(matrix[np.ix_(some, others)].astype(float)))
        for size in range(1, min(rows, columns) + 1)
        for some in itertools.combinations(range(rows), size)
        for others in itertools.combinations(range(columns), size)
    ]
    truly = all(abs(minor) <= 1 for minor in minors)
    assert _is_totally_unimodular(matrix) == truly  # few rows: all ways to sign them are tried
    assert truly or not graph


def test_sums_over_vertices_have_three_derivatives_in_parts_of_any_size(monkeypatch):
    from optlayers.sums import vertex_sums

    generator = torch.Generator().manual_seed(0)
    vertices = torch.randint(0, 2, (7, 4), generator=generator).double()
    scores = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    forbidden = scores.clone()
    forbidden[1, 0] = forbidden[2, :3] = forbidden[3] = -torch.inf
    directions = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)

    def derivatives(function, at):
        leaf = at.clone().requires_grad_()
        total = function(leaf)
        found, value = [total], total.sum()
        for direction in directions:
            (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
            found.append(slope)
            value = (slope * direction).sum()
        return [part.detach() for part in found]

    for at in (scores, forbidden, 1e4 * scores):
        expected = derivatives(lambda s: ol.log_sum(with_forbidden(s, vertices)), at)
        for once in (1, 10, 10**6):
            monkeypatch.setattr(vertex_sums, "AT_ONCE", once)
            for mine, theirs in zip(derivatives(lambda s: log_sum_over(vertices, s), at), expected, strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


def with_forbidden(scores, vertices):
    """Scores of vertices, by operations that torch differentiates; -inf for those that use a part of -inf."""
    lost = torch.isneginf(scores.detach())
    used = (lost.double() @ (vertices != 0).double().T) > 0
    return (scores.masked_fill(lost, 0.0) @ vertices.T).masked_fill(used, -torch.inf)


def test_the_limit_is_met_exactly(monkeypatch):
    assert len(vertices_of(choices(50, 10, 10))) == 5000
    monkeypatch.setattr(enumeration, "VERTEX_LIMIT", 12)
    assert len(vertices_of(choices(3, 4))) == 12
    with pytest.raises(ValueError, match="more than 12"):
        vertices_of(choices(13))
    with pytest.raises(ValueError, match="more than 12"):
        vertices_of(choices(3, 5))


def test_forbidden_parts_of_both_signs_have_no_marginals():
    """Where such a part is 0 are no vertices: those of the section, which are best vertices, are others."""
    x = cp.Variable(3)
    polytope = ol.Polytope(x, [x >= -1, x <= 1, -x[0] + 3 * x[1] - 2 * x[2] == 2])
    scores = torch.tensor([[1.0, 1.0, -torch.inf], [1.0, 1.0, 0.0], [-torch.inf, 1.0, 1.0]], dtype=torch.float64)
    attention = ol.OptLayer(polytope, ol.StructuredAttention(), on_failure="nan")
    assert torch.isnan(attention(scores)).any(dim=1).tolist() == [True, False, True]
    hard = ol.OptLayer(polytope, ol.Hard(ol.StructuredAttention()))
    with pytest.raises(ol.SolveError, match=r"instance 0 is FAILED: .* below 0 in one vertex and above 0 in another"):
        hard(scores.requires_grad_()).sum().backward()
    above = ol.Polytope(x, [x >= 0, x <= 1, -x[0] + 3 * x[1] - 2 * x[2] == 1])
    assert torch.isfinite(ol.OptLayer(above, ol.StructuredAttention())(scores.detach()[:2])).all()


def test_vertices_are_public():
    subset = ol.compile_polytope(polytopes.subset(4))
    found = subset.vertices(budget=torch.tensor(2.0, requires_grad=True))
    assert found.shape == (6, 4) and found.dtype == torch.float64 and (found.sum(1) == 2).all()
    assert not subset.vertices(budget=5).numel()
    tags = ol.compile_polytope(polytopes.linear_chain(3, 2)).vertices()
    assert tags.shape == (8, 3, 2) and len(tags.unique(dim=0)) == 8  # each once, though transitions have scores
    found.zero_()  # the caller's own
    assert subset.vertices(budget=2).sum() == 12
    with pytest.raises(TypeError, match="missing"):
        subset.vertices()
    with pytest.raises(ValueError, match="has shape"):
        subset.vertices(budget=torch.tensor([2.0, 3.0]))
    with pytest.raises(
        ValueError, match=r"more than 5000, too many to enumerate; single ones are found by maximize"
    ) as told:
        ol.compile_polytope(polytopes.cube(20)).vertices()
    assert "marginals" not in str(told.value)  # nobody asked for these
    x = cp.Variable(2)
    with pytest.raises(ValueError, match="not polyhedral"):
        ol.compile_polytope(ol.Polytope(x, [cp.norm(x) <= 1]), projector=ol.CvxpyLayers()).vertices()


def test_dir_shows_what_users_call():
    assert dir(ol) == sorted(ol.__all__)


def test_many_blocks_of_few_vertices_are_too_many_together():
    x = cp.Variable(40)
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 2]))
    with pytest.raises(ValueError, match="more than 5000"):  # 2 ** 40
        compiled.vertices()
