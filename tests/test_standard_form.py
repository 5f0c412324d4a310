"""What presolve does, and that it changes nothing."""

import cvxpy as cp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
import torch

import optlayers as ol
from optlayers.form.compile import standard_form
from optlayers.form.independence import are_independent
from polytopes import arborescence, matching, sequence


def test_single_entry_rows_become_bounds_and_the_tightest_holds():
    x = cp.Variable(2)
    form = standard_form(ol.Polytope(x, [x >= 0, 2 * x <= 3, x[0] <= 1, -x[1] >= -1.2]))
    assert form.rows == 0
    np.testing.assert_allclose(form.lower.constant, [0, 0])
    np.testing.assert_allclose(form.upper.constant, [1, 1.2])


def test_fixed_variables_and_empty_rows_go():
    x = cp.Variable(3, nonneg=True)
    form = standard_form(ol.Polytope(x, [x[0] == 0.25, cp.sum(x) == 1, x[0] + 0 * x[1] <= 2]))
    assert form.kept.tolist() == [1, 2] and form.fixed.tolist() == [0.25, 0, 0] and form.rows == 1
    np.testing.assert_allclose(form.rhs.constant, [0.75])
    np.testing.assert_allclose(form.expand(np.array([[0.5, 0.25]])), [[0.25, 0.5, 0.25]])


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_proved_to_be_independent_only_where_they_are(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 9))
    rows = np.zeros((count, int(rng.integers(2, 16))))
    for column in rows.T:  # of networks, now and then with a third entry
        there = rng.choice(count, size=min(count, int(rng.choice([1, 2, 2, 2, 3], p=[0.1, 0.3, 0.3, 0.2, 0.1]))))
        column[there] = rng.choice([-1.0, 1.0], size=len(there))
    if are_independent(sp.csr_array(rows)):
        assert np.linalg.matrix_rank(rows) == count
    grounded = np.hstack([rows, np.eye(count)])  # every row has a column of its own
    assert are_independent(sp.csr_array(grounded))
    assert not are_independent(sp.csr_array(np.vstack([grounded, grounded.sum(axis=0)])))
    assert not are_independent(sp.csr_array(grounded * rng.uniform(1.0, 2.0, grounded.shape)))


def test_rows_of_flows_need_no_factorization(monkeypatch):
    monkeypatch.setattr(scipy.linalg, "qr", None)
    assert ol.compile_polytope(sequence(6, 3).without_oracle()).projection_form.rows == 16


def test_dependent_equalities_go_and_their_condition_on_parameters_stays():
    assert standard_form(matching(4)).equalities == 7
    x = cp.Variable((3, 3), nonneg=True)
    row, column = cp.Parameter(3, name="row"), cp.Parameter(3, name="column")
    transport = ol.Polytope(x, [cp.sum(x, axis=1) == row, cp.sum(x, axis=0) == column])
    form = standard_form(transport)
    assert form.equalities == 5 and len(form.consistency.constant) == 1
    scores = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = ol.OptLayer(transport, ol.SparseMAP())
    rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    columns = torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    value = layer(scores, row=rows, column=columns)
    torch.testing.assert_close(value.sum(2), rows)
    torch.testing.assert_close(value.sum(1), columns)
    with pytest.raises(ol.SolveError, match=r"instance 1 is INFEASIBLE: .*contradicts other equalities by 0.5"):
        layer(scores, row=rows, column=columns + torch.tensor([[0.0], [0.5 / 3]], dtype=torch.float64))


@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_dependent_equalities_do_not_contradict_constants_beside_them(size, repeated):
    """All numbers are exact, so what the weights of the dependent rows are off by is no contradiction."""
    generator = np.random.default_rng(0)
    for _ in range(10):
        parts, fixed, told = (int(generator.integers(low, high)) for low, high in ((4, 9), (1, 3), (1, 3)))
        constant = generator.integers(-200, 200, (fixed, parts)) / 64.0
        rows = generator.integers(-200, 200, (told, parts)) / 64.0
        point = generator.integers(0, 64, parts) / 64.0 * size
        again = np.vstack([np.eye(told)] * 2) if repeated else generator.integers(-3, 4, (told + 1, told)) + 0.0
        x, p = cp.Variable(parts, nonneg=True), cp.Parameter(told, name="p")
        polytope = ol.Polytope(x, [x <= size, constant @ x == constant @ point, (again @ rows) @ x == again @ p])
        compiled, inside = ol.compile_polytope(polytope), torch.tensor(rows @ point)
        found = compiled.maximize(torch.tensor(generator.standard_normal(parts)), p=inside).check().value.numpy()
        assert np.abs(rows @ (found - point)).max() <= 1e-6 * size
        assert np.abs(constant @ (found - point)).max() <= 1e-6 * size


def test_blocks_are_counted():
    x = cp.Variable((4, 3), nonneg=True)
    assert standard_form(ol.Polytope(x, [cp.sum(x, axis=1) == 1])).blocks == 4
    assert standard_form(ol.Polytope(x, [cp.sum(x, axis=1) == 1, cp.sum(x) <= 4])).blocks == 1


def test_column_major_order_is_undone():
    x = cp.Variable((2, 3, 2))
    target = np.arange(12.0).reshape(2, 3, 2)
    bounds = cp.Parameter((2, 3, 2), name="bounds")
    scores = torch.zeros(2, 3, 2, dtype=torch.float64)
    pinned = ol.compile_polytope(ol.Polytope(x, [x >= target, x <= target + 1])).project(scores).value
    np.testing.assert_allclose(pinned.numpy(), target)
    given = ol.compile_polytope(ol.Polytope(x, [x >= bounds, x <= bounds + 1])).project(scores, bounds=target).value
    np.testing.assert_allclose(given.numpy(), target)


@pytest.mark.parametrize(
    ("attributes", "inside"),
    [
        ({"nonneg": True}, lambda v: (v >= 0).all()),
        ({"nonpos": True}, lambda v: (v <= 0).all()),
        ({"bounds": [-0.5, 0.25]}, lambda v: ((v >= -0.5) & (v <= 0.25)).all()),
        ({"symmetric": True}, lambda v: torch.equal(v, v.mT)),
        ({"diag": True}, lambda v: torch.equal(v, torch.diag_embed(v.diagonal(dim1=-2, dim2=-1)))),
    ],
    ids=["nonneg", "nonpos", "bounds", "symmetric", "diag"],
)
def test_attributes_are_constraints(attributes, inside):
    x = cp.Variable((3, 3), **attributes)
    declared = ol.Polytope(x, [x >= -1, x <= 1])
    scores = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    compiled = ol.compile_polytope(declared)
    near, best = compiled.project(scores).check().value, compiled.maximize(scores).check().value
    assert inside(near) and inside(best)
    ol.testing.check_polytope(declared, samples=4)
    for projected, target in zip(near, scores, strict=True):
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - target.numpy())), list(declared.constraints))
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13)
        value = x.value.toarray() if hasattr(x.value, "toarray") else x.value
        np.testing.assert_allclose(projected.numpy(), value, atol=1e-6)


def test_a_variable_that_only_its_attributes_bound():
    x = cp.Variable(2, bounds=[0, 1])
    value = ol.OptLayer(ol.Polytope(x, []), ol.SparseMAP())(torch.tensor([0.25, 3.0]))
    assert value.tolist() == [0.25, 1.0]


def test_scalars_and_single_points():
    x = cp.Variable()
    layer = ol.OptLayer(ol.Polytope(x, [x >= 0, x <= 1]), ol.SparseMAP())
    assert layer(torch.tensor([2.0, 0.5, -1.0])).tolist() == [1.0, 0.5, 0.0]
    single = ol.OptLayer(arborescence(1), ol.SparseMAP())(torch.randn(2, 2, 2))
    assert single.tolist() == [[[0.0, 1.0], [0.0, 0.0]]] * 2


def test_convex_functions_that_are_piecewise_linear():
    x = cp.Variable(4)
    ball = ol.Polytope(x, [cp.norm1(x) <= 1])
    ol.testing.check_polytope(ball, samples=5)
    best = ol.OptLayer(ball, ol.Pipeline())(torch.tensor([0.5, -3.0, 1.0, 0.0]))
    assert best.tolist() == [0.0, -1.0, 0.0, 0.0]


def knapsack() -> ol.Polytope:
    x = cp.Variable(4, bounds=[0, 1])
    weight, room = cp.Parameter(4, name="weight", nonneg=True), cp.Parameter(name="room")
    return ol.Polytope(x, [weight @ x <= room])


def test_parameters_in_the_matrix():
    layer = ol.OptLayer(knapsack(), ol.SparseMAP())
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.5
    weights = (torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
    room = torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64, requires_grad=True)
    leaf = scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, w, r: layer(s, weight=w, room=r), (leaf, weights, room), eps=1e-6, atol=1e-5
    )
    best = ol.OptLayer(knapsack(), ol.Pipeline())(scores, weight=weights.detach(), room=room.detach())
    assert ((weights * best).sum(1) <= room + 1e-9).all()
    ol.testing.check_solver(ol.Highs(), knapsack(), weight=torch.tensor([1.0, 2.0, 3.0, 4.0]), room=3.5)


def test_parameters_in_the_bounds():
    x = cp.Variable(3)
    low, high = cp.Parameter(3, name="low"), cp.Parameter(3, name="high")
    layer = ol.OptLayer(ol.Polytope(x, [x >= low, x <= high, cp.sum(x) == 1]), ol.SparseMAP())
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    lows = (torch.rand(4, 3, generator=generator, dtype=torch.float64) * 0.3).requires_grad_()
    highs = (0.35 + 0.2 * torch.rand(4, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    value = layer(scores, low=lows, high=highs)
    assert (value == highs).any() and (value == lows).any()
    assert torch.autograd.gradcheck(lambda s, a, b: layer(s, low=a, high=b), (scores, lows, highs), eps=1e-6, atol=1e-5)


def test_nothing_is_left_behind_by_masks_bounds_and_matrices():
    """A kept model answers as a new one, whatever it was asked before."""
    compiled = ol.compile_polytope(knapsack())
    generator = torch.Generator().manual_seed(2)
    for _ in range(6):
        scores = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        scores[torch.rand(1, 4, generator=generator) < 0.3] = -torch.inf
        given = {"weight": torch.rand(4, generator=generator) + 0.1, "room": torch.rand((), generator=generator) + 0.2}
        fresh = ol.compile_polytope(knapsack())
        for what in ("maximize", "project"):
            kept, new = getattr(compiled, what)(scores, **given), getattr(fresh, what)(scores, **given)
            torch.testing.assert_close(kept.check().value, new.check().value, atol=1e-9, rtol=0)


def test_explain_says_sizes_solvers_and_reasons():
    text = ol.compile_polytope(arborescence(3).without_oracle()).explain()
    for part in (
        "16 scored entries of shape (4, 4)",
        "auxiliary",
        "1 independent block",
        "Highs",
        "Clarabel",
        "presolve",
    ):
        assert part in text
    assert "\n" not in text
    assert "own" in ol.compile_polytope(knapsack()).explain()


def test_a_set_that_is_not_polyhedral():
    x = cp.Variable(3)
    radius = cp.Parameter(name="radius", pos=True)
    ball = ol.Polytope(x, [cp.norm(x) <= radius, x >= -1])
    layer = ol.OptLayer(ball, ol.SparseMAP(), projector=ol.CvxpyLayers())
    scores = torch.tensor([[3.0, 4.0, 0.0], [0.1, 0.2, 0.3], [3.0, -torch.inf, 4.0]], dtype=torch.float64)
    leaf, size = scores.clone().requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = layer(leaf, radius=size)
    expected = torch.tensor([[1.2, 1.6, 0.0], [0.1, 0.2, 0.3], [1.2, 0.0, 1.6]], dtype=torch.float64)
    torch.testing.assert_close(value.detach(), expected, atol=2e-5, rtol=0)
    value[:, 0].sum().backward()
    torch.testing.assert_close(size.grad, torch.tensor(1.2, dtype=torch.float64), atol=1e-3, rtol=0)
    jacobian = torch.tensor([2.0 / 5 * (1 - 9 / 25), -2.0 / 5 * 12 / 25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(leaf.grad[0], jacobian, atol=1e-3, rtol=0)
    solution = layer.compiled().project(scores, radius=2.0)
    assert solution.ok.all() and (solution.gap <= 1e-3).all()
    tolerant = ol.OptLayer(ball, ol.SparseMAP(), projector=ol.CvxpyLayers(), on_failure="nan")
    impossible = cp.Parameter(name="low")
    empty = ol.Polytope(x, [cp.norm(x) <= 1, x[0] >= impossible])
    tolerant = ol.OptLayer(empty, ol.SparseMAP(), projector=ol.CvxpyLayers(), on_failure="nan")
    value = tolerant(scores[:2], low=torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert torch.isfinite(value[0]).all() and torch.isnan(value[1]).all()


def test_an_oracle_is_used_and_checked():
    x = cp.Variable(4, nonneg=True)

    def best(scores: np.ndarray) -> np.ndarray:
        return np.eye(4)[scores.argmax()]

    def worst(scores: np.ndarray) -> np.ndarray:
        return np.eye(4)[scores.argmin()]

    def outside(scores: np.ndarray) -> np.ndarray:
        return np.ones(4)

    def misshapen(scores: np.ndarray) -> np.ndarray:
        return np.eye(4)

    rows = [cp.sum(x) == 1]
    compiled = ol.compile_polytope(ol.Polytope(x, rows, oracle=best))
    assert compiled.maximize(torch.tensor([0.0, 2.0, 1.0, -1.0])).value.tolist() == [0, 1, 0, 0]
    assert "oracle" in compiled.explain()
    ol.testing.check_polytope(ol.Polytope(x, rows, oracle=best))
    with pytest.raises(AssertionError, match="misses the best score"):
        ol.testing.check_polytope(ol.Polytope(x, rows, oracle=worst))
    with pytest.raises(ol.SolveError, match="INACCURATE"):
        ol.OptLayer(ol.Polytope(x, rows, oracle=outside), ol.Pipeline())(torch.zeros(4))
    with pytest.raises(ol.SolveError, match=r"oracle misshapen raised ValueError: it returned shape \(4, 4\)"):
        ol.OptLayer(ol.Polytope(x, rows, oracle=misshapen), ol.Pipeline())(torch.zeros(4))

    def moody(scores: np.ndarray) -> np.ndarray:
        if scores[0] > 0:
            raise RuntimeError("not today")
        return best(scores)

    tolerant = ol.OptLayer(ol.Polytope(x, rows, oracle=moody), ol.Pipeline(), on_failure="nan")
    value = tolerant(torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 2.0, 0.0]]))
    assert torch.isnan(value[0]).all() and value[1].tolist() == [0, 0, 1, 0]


def test_an_oracle_over_auxiliary_variables_must_stay_inside():
    x, y = cp.Variable(2), cp.Variable(2, nonneg=True)
    shadow = [x == y, cp.sum(y) == 1]

    def compiled(oracle, **options):
        declared = ol.Polytope(x, shadow, oracle=oracle)
        return ol.compile_polytope(declared, maximizer=ol.Oracle(oracle, **options))

    def away(scores):
        return np.array([5.0, 5.0])

    def worst(scores):
        return np.eye(2)[scores.argmin()]

    def best(scores):
        return np.eye(2)[scores.argmax()]

    scores = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    outside = compiled(away, verify=True).maximize(scores)
    assert (outside.status == ol.Status.INACCURATE).all()
    assert "oracle away left the polytope" in outside.failures[1].reason
    missed = compiled(worst, verify=True).maximize(scores)
    assert "oracle worst misses the best value by 1" in missed.failures[0].reason
    found = compiled(best, verify=True).maximize(scores).check()
    assert found.value.tolist() == [[0, 1], [1, 0]] and (found.gap == 0).all()
    assert compiled(best).maximize(scores).check().gap.isnan().all()


def test_an_oracle_is_held_to_the_rows_that_need_no_auxiliary_variables():
    x, y = cp.Variable(2), cp.Variable(2, nonneg=True)

    def away(scores):
        return np.array([5.0, 5.0])

    compiled = ol.compile_polytope(ol.Polytope(x, [x == y, cp.sum(x) == 1], oracle=away))
    for solution in (compiled.maximize(torch.ones(1, 2)), compiled.project(torch.ones(1, 2))):
        assert solution.failures[0].index == (0,)
        assert "oracle away left the polytope by 9" in solution.failures[0].reason


def test_parameters_in_the_bounds_attribute_of_a_variable():
    cap = cp.Parameter(3, name="cap")
    for constraints in (lambda x: [], lambda x: [cp.sum(x) <= 10]):
        x = cp.Variable(3, bounds=[0, cap])
        compiled = ol.compile_polytope(ol.Polytope(x, constraints(x)))
        found = compiled.maximize(torch.ones(3), cap=torch.tensor([1.0, 2.0, 3.0])).check()
        assert found.value.tolist() == [1, 2, 3]


def test_an_auxiliary_variable_that_only_parameters_bound():
    x, y, k = cp.Variable(2), cp.Variable(), cp.Parameter(name="k")
    layer = ol.OptLayer(ol.Polytope(x, [x >= 0, x <= 1, y >= 2, y <= k]), ol.SparseMAP())
    assert layer(torch.ones(2), k=3.0).tolist() == [1, 1]
    with pytest.raises(ol.SolveError, match=r"an auxiliary variable must be >= 2 .* and <= 1 .*parameters involved: k"):
        layer(torch.ones(2), k=1.0)


def test_short_intervals_are_kept():
    x = cp.Variable(2, bounds=[0, 5e-10])
    best = ol.compile_polytope(ol.Polytope(x, [])).maximize(torch.tensor([1.0, -1.0], dtype=torch.float64)).check()
    assert best.value.tolist() == [5e-10, 0.0]


def test_transport_with_float32_marginals():
    x = cp.Variable((3, 3), nonneg=True)
    row, column = cp.Parameter(3, name="row"), cp.Parameter(3, name="column")
    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x, axis=1) == row, cp.sum(x, axis=0) == column]), ol.SparseMAP())
    generator = torch.Generator().manual_seed(0)
    rows, columns, scores = (torch.randn(8, *s, generator=generator) for s in ((3,), (3,), (3, 3)))
    value = layer(scores, row=rows.softmax(-1), column=columns.softmax(-1))
    torch.testing.assert_close(value.sum(2), rows.softmax(-1))
    torch.testing.assert_close(value.sum(1), columns.softmax(-1))


def nearly_dependent(gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and a projection whose two rows differ by a small part of one entry; the derivative is (½, -½, 0)."""
    x = cp.Variable(3, bounds=[-5, 5])
    rows = [x[0] + x[1] + x[2] == 1, x[0] + x[1] + (1 + gap) * x[2] == 1 + 0.5 * gap]
    scores = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    return scores, ol.OptLayer(ol.Polytope(x, rows), ol.SparseMAP())(scores)


@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4, 1e-5])
def test_nearly_dependent_rows_are_differentiated(gap):
    scores, value = nearly_dependent(gap)
    value[0].backward()
    expected = torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(scores.grad, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("gap", [1e-7, 1e-8, 1e-9])
def test_rows_too_nearly_dependent_are_refused(gap):
    _, value = nearly_dependent(gap)
    with pytest.raises(ol.SolveError, match="too nearly dependent to differentiate"):
        value[0].backward()


def test_a_tangent_without_batch_has_a_number_for_a_parameter_that_is_one():
    x, total = cp.Variable(2, nonneg=True), cp.Parameter(name="total")
    compiled = ol.compile_polytope(ol.Polytope(x, [cp.sum(x) == total]))
    near = compiled.project(torch.tensor([0.3, 0.1], dtype=torch.float64), total=1.0)
    tangent = compiled.tangent(near, torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(tangent.parameters["total"], torch.tensor(0.5, dtype=torch.float64))


@pytest.mark.parametrize("unit", [1e-1, 1e-3, 1e-5, 1e-7])
def test_auxiliary_variables_in_other_units(unit):
    x, y = cp.Variable(2), cp.Variable(2)
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= -5, x <= 5, x == unit * y, y[0] + y[1] == 0.5 / unit]))
    near = compiled.project(torch.tensor([0.3, 0.9], dtype=torch.float64))
    tangent = compiled.tangent(near, torch.tensor([1.0, 0.0], dtype=torch.float64))
    expected = torch.tensor([0.5, -0.5], dtype=torch.float64)
    assert not tangent.ok or torch.allclose(tangent.scores, expected, atol=1e-6)
    assert tangent.ok or unit < 1e-6


def test_scores_of_very_different_size():
    generator = torch.Generator().manual_seed(0)
    for polytope in (matching(5), arborescence(4)):
        compiled = ol.compile_polytope(polytope)
        scores = torch.randn(20, *polytope.shape, generator=generator, dtype=torch.float64)
        masked = torch.rand(scores.shape, generator=generator) < 0.15
        masked.diagonal(dim1=1, dim2=2)[:] = False
        masked[:, 0] = False
        exact = compiled.maximize(scores.masked_fill(masked, -torch.inf)).check().value
        for penalty in (-1e6, -1e9, -1e12, float(torch.finfo(torch.float32).min)):
            found = compiled.maximize(scores.masked_fill(masked, penalty)).check().value
            torch.testing.assert_close(found, exact, atol=1e-9, rtol=0)
    cube = ol.compile_polytope(ol.Polytope(box := cp.Variable(3), [box >= 0, box <= 1]))
    assert cube.maximize(torch.tensor([1e9, -1.0, -0.5], dtype=torch.float64)).value.tolist() == [1, 0, 0]


@pytest.mark.parametrize("noise", [1e-7, 1e-8, 1e-9, 1e-10])
def test_near_ties_do_not_depend_on_the_batch(noise):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 2, (100, 5, 5), generator=generator).double()
    scores += noise * torch.randn(100, 5, 5, generator=generator, dtype=torch.float64)
    compiled = ol.compile_polytope(matching(5))
    order = torch.randperm(100, generator=generator)
    assert torch.equal(compiled.maximize(scores).value[order], compiled.maximize(scores[order]).value)


def test_convex_sets_that_are_empty_or_unbounded_are_refused():
    x = cp.Variable(2)
    with pytest.raises(ol.DeclarationError, match="the declared set is empty"):
        ol.compile_polytope(ol.Polytope(x, [cp.norm(x) <= -1]), projector=ol.CvxpyLayers())
    with pytest.raises(ol.DeclarationError, match=r"unbounded: variable\[0\] can move without limit"):
        ol.compile_polytope(ol.Polytope(x, [cp.norm(x) <= x[0] + 1]), projector=ol.CvxpyLayers())


def test_cvxpylayers_leaves_the_declaration_alone():
    x, k = cp.Variable(2), cp.Parameter(name="k")
    k.value = 7.0
    ball = ol.compile_polytope(ol.Polytope(x, [cp.norm(x) <= k]), projector=ol.CvxpyLayers())
    ball.project(torch.ones(2), k=0.5).check()
    assert k.value == 7.0 and x.value is None


def test_a_forbidden_part_tells_its_bound_nothing():
    x = cp.Variable(3)
    low, high = cp.Parameter(name="low", nonpos=True), cp.Parameter(name="high")
    layer = ol.OptLayer(ol.Polytope(x, [x >= low, x <= high]), ol.SparseMAP())
    low_value = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    high_value = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = layer(torch.tensor([-torch.inf, -5.0, 7.0], dtype=torch.float64), low=low_value, high=high_value)
    assert value.tolist() == [0.0, -1.0, 2.0]
    (value * torch.tensor([10.0, 20.0, 40.0])).sum().backward()
    assert (low_value.grad.item(), high_value.grad.item()) == (20.0, 40.0)
