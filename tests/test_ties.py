"""Where several structures are best, one is returned: a vertex, the same by every solver, in every batch."""

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE, MAXIMIZERS

import optlayers as ol
from optlayers.solvers.kernels import ties
from optlayers.testing import check_polytope, is_vertex


def one_of_nine() -> ol.Polytope:
    x = cp.Variable(9, nonneg=True)
    return ol.Polytope(x, [cp.sum(x) <= 1])


def some_of(size: int, count: int) -> ol.Polytope:
    x = cp.Variable(size)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == count])


def stable_sets() -> ol.Polytope:
    """A cycle of five: its relaxation has a vertex of halves."""
    x = cp.Variable(5, nonneg=True)
    return ol.Polytope(x, [x[i] + x[(i + 1) % 5] <= 1 for i in range(5)])


def flow() -> ol.Polytope:
    """Choices that are copied from auxiliary variables, which may be split in several ways."""
    x, y = cp.Variable(3, nonneg=True), cp.Variable((3, 2), nonneg=True)
    return ol.Polytope(x, [x == cp.sum(y, axis=1), cp.sum(y) == 1])


def vertices_of(polytope: ol.Polytope) -> np.ndarray:
    """All vertices of a small polytope without auxiliary variables, by all choices of tight constraints."""
    form = ol.compile_polytope(polytope).form
    body, slack = form.matrix.toarray()[:, : form.scored], form.equalities
    rows = np.vstack([body, np.eye(form.scored), np.eye(form.scored)])
    sides = np.concatenate([form.rhs.constant, form.lower.constant[: form.scored], form.upper.constant[: form.scored]])
    always, maybe = list(range(slack)), [i for i in range(slack, len(rows)) if np.isfinite(sides[i])]
    found = []
    for chosen in itertools.combinations(maybe, form.scored - np.linalg.matrix_rank(body[:slack])):
        tight = [*always, *chosen]
        if np.linalg.matrix_rank(rows[tight]) < form.scored:
            continue
        point = np.linalg.lstsq(rows[tight], sides[tight], rcond=None)[0]
        inside = (body @ point <= form.rhs.constant + 1e-9).all() and (
            np.abs(body[:slack] @ point - form.rhs.constant[:slack]) <= 1e-9
        ).all()
        bounded = (point >= form.lower.constant[: form.scored] - 1e-9).all()
        bounded &= (point <= form.upper.constant[: form.scored] + 1e-9).all()
        if inside and bounded and not any(np.allclose(point, other, atol=1e-9) for other in found):
            found.append(point)
    return np.stack(found)


def meant(vertices: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The vertex that is best, and among these best for one objective after the other."""
    left = vertices
    for costs in (scores, *(ties.objective(k, len(scores), len(scores)) for k in range(ties.ROUNDS))):
        values = left @ costs
        left = left[values >= values.max() - 1e-9]
    assert len(left) == 1
    return left[0]


def tenths() -> torch.Tensor:
    """In float32, sums of these tie, differ by 7e-9, or differ clearly."""
    costs = torch.tensor([0.1, 0.1, 0.2, 0.3, 0.2, 0.3, 0.2, 0.1, 0.1], dtype=torch.float32)
    return torch.stack([costs, costs.flip(0), costs.roll(1), costs.roll(2), -costs, costs.roll(4)])


def loose_transport() -> ol.Polytope:
    x = cp.Variable(9)
    rows, columns = [x[0:3], x[3:6], x[6:9]], [x[0::3], x[1::3]]
    return ol.Polytope(
        x,
        [
            x[[0, 1, 2, 3, 4, 5, 8]] >= 0,
            *(cp.sum(row) == side for row, side in zip(rows, (1.3125, 1.875, 2.125), strict=True)),
            *(cp.sum(column) == side for column, side in zip(columns, (1.625, 2.25), strict=True)),
        ],
    )


@pytest.mark.parametrize("solver", MAXIMIZERS, ids=repr)
def test_differences_next_to_rounding_decide_and_rounding_does_not(solver: ol.AbstractMaximizer) -> None:
    scores = tenths()
    found = ol.compile_polytope(loose_transport(), maximizer=solver).maximize(scores).check().value
    other = ol.compile_polytope(loose_transport(), maximizer=ol.Highs()).maximize(scores).check().value
    torch.testing.assert_close(found, other, atol=1e-6, rtol=0)


SMALL = {
    "one of nine": one_of_nine(),
    "two of five": some_of(5, 2),
    "three of seven": some_of(7, 3),
    "stable sets": stable_sets(),
}


def tied_scores(size: int) -> torch.Tensor:
    """All scores of 0 and 1, or many of them, signs, few integers, all equal."""
    generator = torch.Generator().manual_seed(0)
    if size <= 7:
        bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)), dtype=torch.float64)
    else:
        bits = torch.randint(0, 2, (200, size), generator=generator).double()
    signs = torch.randn(40, size, generator=generator, dtype=torch.float64).sign()
    few = torch.randint(-1, 3, (60, size), generator=generator).double()
    return torch.cat([bits, signs, few, torch.zeros(1, size).double(), torch.ones(1, size).double()])


@pytest.mark.many(2)
@pytest.mark.parametrize("solver", [*MAXIMIZERS, None], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SMALL)
def test_the_vertex_that_is_meant_is_found(name, solver):
    polytope = SMALL[name]
    if solver is None:
        if not ol.DualNewton.takes(ol.compile_polytope(polytope).form):
            pytest.skip("DualNewton takes equalities")
        solver = ol.DualNewton()
    scores, vertices = tied_scores(polytope.shape[0]), vertices_of(polytope)
    found = ol.compile_polytope(polytope, maximizer=solver).maximize(scores).check().value
    expected = torch.from_numpy(np.stack([meant(vertices, row) for row in scores.numpy()]))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.many(2)
@pytest.mark.parametrize("solver", MAXIMIZERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "polytope",
    [e.polytope.without_oracle() for e in CATALOGUE if e.name in ("matching", "sequence", "partial matching", "tree")]
    + [flow()],
    ids=lambda p: str(p.shape),
)
def test_solvers_agree_on_ties_of_larger_polytopes(polytope, solver):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(-1, 2, (40, *polytope.shape), generator=generator).double()
    scores[0] = 0.0
    compiled = ol.compile_polytope(polytope, maximizer=solver)
    found = compiled.maximize(scores).check().value
    assert is_vertex(compiled, found).all()
    expected = ol.compile_polytope(polytope).maximize(scores).check().value
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("size", "count"), [(9, 3), (12, 4), (12, 1), (18, 9), (33, 2)])
def test_counts_as_scores_never_give_a_fraction(size, count):
    scores = torch.randint(0, 3, (1500, size), generator=torch.Generator().manual_seed(0)).double()
    value = ol.compile_polytope(some_of(size, count)).maximize(scores).check().value
    assert torch.equal(value, value.round()) and (value.sum(1) == count).all()
    best = scores.sort(dim=1, descending=True).values[:, :count].sum(1)
    torch.testing.assert_close((value * scores).sum(1), best)


def test_where_training_starts_all_structures_weigh_the_same():
    polytope = some_of(9, 3)
    zeros = torch.zeros(1, 9, dtype=torch.float64)
    marginals = ol.OptLayer(polytope, ol.StructuredAttention())(zeros)
    torch.testing.assert_close(marginals, torch.full_like(zeros, 1 / 3))
    target = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    assert float(ol.CRFLoss(polytope)(zeros, target)) == pytest.approx(math.log(84))


@pytest.mark.parametrize(("size", "count"), [(12, 4), (18, 2)])
def test_contracts_see_whole_vertices(size, count):
    check_polytope(some_of(size, count), integral=True, samples=16)


@pytest.mark.parametrize("round_", [0, 1, 7])
def test_objectives_do_not_depend_on_the_size_of_a_form(round_):
    short, long = ties.objective(round_, 5, 8), ties.objective(round_, 300, 400)
    assert (short[:5] == long[:5]).all() and (short[5:] == 0).all() and (long[300:] == 0).all()
    assert len(np.unique(long[:300])) > 250 and (long[:300] * 2**12 == np.round(long[:300] * 2**12)).all()


def test_an_objective_that_ties_leaves_it_to_the_next():
    """Two parts to which the first objective gives the same number."""
    numbers = ties.objective(0, 400, 400)
    values, counts = np.unique(numbers, return_counts=True)
    pair = np.flatnonzero(numbers == values[counts > 1][0])[:2]
    x = cp.Variable(400, nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [cp.sum(x) == 1]))
    scores = torch.zeros(1, 400, dtype=torch.float64)
    scores[0, pair] = 1.0
    second = ties.objective(1, 400, 400)[pair]
    assert second[0] != second[1]
    found = compiled.maximize(scores).check().value[0]
    assert float(found[pair[int(second.argmax())]]) == 1.0 and float(found.sum()) == 1.0


def test_highs_decides_a_tie_whatever_it_solved_before():
    """Its prices gather rounding with every change of the basis; next to a score of 65504 that looked like a score."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    scores[::4] = torch.randint(-2, 3, (16, 5), generator=generator).double()
    tied = torch.tensor([0.0, 0.0, 0.0, -65504.0, 0.0], dtype=torch.float64)
    x = cp.Variable(5)
    sums = [cp.sum_largest(x, k) <= most for k, most in ((2, 9), (3, 12), (4, 14))]
    compiled = ol.compile_polytope(ol.Polytope(x, [cp.max(x) <= 5, *sums, cp.sum(x) == 15]), maximizer=ol.Highs())
    right = compiled.maximize(tied).check().value
    for _ in range(20):
        batch = torch.cat([scores, tied.expand(16, 5)])[torch.randperm(80, generator=generator)]
        found = compiled.maximize(batch).check().value[(batch == tied).all(dim=1)]
        torch.testing.assert_close(found, right.expand_as(found), atol=1e-6, rtol=0)
