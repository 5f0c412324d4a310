"""Regularized points: against cvxpy, closed forms, identities, finite differences, and what is no regularizer."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import BY_CONSTRAINTS, OF_PARTS, POLYTOPES, Entry
from drawing import draw
from entmax import entmax15, entmax_bisect
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, jvp, vmap

import optlayers as ol
from optlayers.form.standard import DeclarationError
from optlayers.solvers.regularized import certify_regularized
from optlayers.testing import check_rule, contains
from polytopes import arborescence, cube, linear_chain, matching, permutahedron, sequence, simplex, subset

NAMED = {e.name: e for e in BY_CONSTRAINTS}
SMOOTH = [ol.Entropy(), ol.Tsallis(1.5), ol.Euclidean(0.3)]
SMALL = {
    "simplex": simplex(4),
    "cube": cube(3),
    "matching": matching(3),
    "tree": arborescence(3),
    "ranking": permutahedron(3),
}
temperature = cp.Parameter(pos=True, name="temperature")


def transport(rows: int, columns: int) -> ol.Polytope:
    """Plans of given marginals."""
    x = cp.Variable((rows, columns), nonneg=True)
    supply, demand = cp.Parameter(rows, name="supply", nonneg=True), cp.Parameter(columns, name="demand", nonneg=True)
    return ol.Polytope(x, [cp.sum(x, axis=1) == supply, cp.sum(x, axis=0) == demand])


def marginals(rows: int, columns: int, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    supply, demand = draw(batch, rows, seed=seed).softmax(1), draw(batch, columns, seed=seed + 1).softmax(1)
    return {"supply": supply, "demand": demand}


def solved_tightly(problem: cp.Problem) -> None:
    """By Clarabel, at the tightest tolerance that it comes to."""
    for tolerance in (1e-13, 1e-11, 1e-9, 1e-8):
        goals = {f"tol_{what}": tolerance for what in ("gap_abs", "gap_rel", "feas")}
        goals |= {f"reduced_{name}": max(tolerance, 1e-9) for name in goals}
        try:
            problem.solve(solver=cp.CLARABEL, **goals)
        except cp.SolverError:
            continue
        return
    raise AssertionError("Clarabel has no answer")


def of_cvxpy(regularizer: ol.AbstractRegularizer, x: cp.Expression, bits: bool) -> cp.Expression:
    """Ω in cvxpy's words."""
    if isinstance(regularizer, ol.Entropy):
        rest = cp.sum(cp.entr(1 - x)) if bits else 0.0
        return -regularizer.temperature * (cp.sum(cp.entr(x)) + rest)
    if isinstance(regularizer, ol.Tsallis):
        alpha = regularizer.alpha
        return cp.sum(cp.power(x, alpha, max_denom=10**4) - x) / (alpha * (alpha - 1.0))
    assert isinstance(regularizer, ol.Euclidean)
    return 0.5 * cp.sum(cp.multiply(regularizer.number, cp.square(x)))


def by_cvxpy(
    polytope: ol.Polytope, scores: torch.Tensor, regularizer: ol.AbstractRegularizer, **parameters: Any
) -> torch.Tensor:
    """Regularized points by Clarabel."""
    x, cost = polytope.variable, cp.Parameter(polytope.shape)
    bits = len(polytope.constraints) <= 2 and not polytope.parameters and polytope.shape == (3,)
    parts: cp.Expression = x
    if polytope is SMALL["tree"]:  # cones at parts that are always 0 stop Clarabel early
        used = ol.compile_polytope(polytope).vertices().amax(0).flatten().nonzero()[:, 0].numpy()
        parts = cp.vec(x, order="C")[used]
    omega = of_cvxpy(regularizer, parts, bits and polytope is SMALL["cube"])
    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(cost, x)) - omega), list(polytope.constraints))
    found = []
    for k in range(len(scores)):
        cost.value = scores[k].numpy()
        for parameter in polytope.parameters:
            given = torch.as_tensor(parameters[parameter.name()], dtype=torch.float64)
            parameter.value = (given if given.shape == parameter.shape else given[k]).numpy()
        solved_tightly(problem)
        found.append(torch.as_tensor(x.value).reshape(polytope.shape))
    return torch.stack(found)


def _omega(regularizer: ol.AbstractRegularizer, points: torch.Tensor, bits: bool) -> torch.Tensor:
    """Ω, by its formula."""
    if isinstance(regularizer, ol.Entropy):
        found = torch.special.entr(points) + (torch.special.entr(1.0 - points) if bits else 0.0)
        return -regularizer.temperature * found.flatten(1).sum(1)
    if isinstance(regularizer, ol.Tsallis):
        alpha = regularizer.alpha
        return (points**alpha - points).flatten(1).sum(1) / (alpha * (alpha - 1.0))
    return 0.5 * float(regularizer.number) * points.square().flatten(1).sum(1)


# Against cvxpy


@pytest.mark.many(6)
@pytest.mark.parametrize("regularizer", OF_PARTS, ids=repr)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_points_are_those_of_cvxpy(name, regularizer):
    polytope, scores = SMALL[name], draw(3, *SMALL[name].shape, seed=5)
    solution = ol.compile_polytope(polytope).regularized(scores, regularizer)
    ours, theirs = solution.check().value, by_cvxpy(polytope, scores, regularizer)

    def worth(points: torch.Tensor) -> torch.Tensor:
        return (scores * points).flatten(1).sum(1) - _omega(regularizer, points, name == "cube")

    # Clarabel stalls at a gap of 1e-11 with some power cones: then it is its point that scores less.
    near = (ours - theirs).abs().flatten(1).amax(1) <= 1e-6
    assert (near | (worth(ours) > worth(theirs.clamp_min(0.0)))).all() and solution.primal_residual.max() <= 1e-12


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("regularizer", SMOOTH, ids=repr)
def test_points_follow_parameters_of_constraints_as_those_of_cvxpy(regularizer):
    polytope, given, scores = transport(3, 4), marginals(3, 4, 3), draw(3, 3, 4)
    solution = ol.compile_polytope(polytope).regularized(scores, regularizer, **given)
    assert (solution.check().value - by_cvxpy(polytope, scores, regularizer, **given)).abs().max() <= 1e-6


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_weights_of_each_part_are_those_of_cvxpy():
    weights = draw(3, 3).exp().numpy()
    regularizer, polytope, scores = ol.Euclidean(weights), matching(3), draw(2, 3, 3, seed=1)
    found = ol.compile_polytope(polytope).regularized(scores, regularizer).check().value
    assert (found - by_cvxpy(polytope, scores, regularizer)).abs().max() <= 1e-6


def test_barrier_points_are_those_of_cvxpy():
    x, mu, scores = cp.Variable(4), 0.1, draw(4)
    cap = np.array([0.9, 0.5, 1.0, 0.7])
    polytope = ol.Polytope(x, [x >= 0, x <= cap, cp.sum(x) == 1, x[0] + x[1] <= 0.8])
    rooms = [x, cap - x, cp.reshape(0.8 - x[0] - x[1], (1,), order="C")]
    barrier = mu * sum(cp.sum(cp.log(room)) for room in rooms)
    solved_tightly(cp.Problem(cp.Maximize(scores.numpy() @ x + barrier), [cp.sum(x) == 1]))
    found = ol.compile_polytope(polytope).regularized(scores, ol.Barrier(mu)).check().value
    assert (found - torch.as_tensor(x.value)).abs().max() <= 1e-6


# Closed forms


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("heat", [1e-3, 0.2, 1.0, 1e3])
def test_entropy_on_the_simplex_is_softmax(heat, scale):
    scores = scale * draw(8, 5)
    found = ol.compile_polytope(simplex(5)).regularized(scores, ol.Entropy(heat)).check().value
    # Next to what rounding of the quotient makes of it.
    assert (found - (scores / heat).softmax(1)).abs().max() <= 1e-12 + 1e-15 * scale / heat


def test_bits_stay_bits_beside_an_inequality_with_room():
    x, room = cp.Variable(3, nonneg=True), cp.Parameter(name="room")
    compiled = ol.compile_polytope(ol.Polytope(x, [x <= 1, cp.sum(x) <= room]))
    scores = draw(4, 3)
    found = compiled.regularized(scores, ol.Entropy(0.5), room=9.0).check().value
    assert (found - torch.sigmoid(2.0 * scores)).abs().max() <= 1e-9


@pytest.mark.parametrize("mu", [3.0, 10.0, 1000.0])
def test_barriers_of_any_weight_have_points(mu):
    compiled = ol.compile_polytope(arborescence(3).without_oracle())
    solution = compiled.regularized(draw(16, 4, 4), ol.Barrier(mu)).check()
    assert (solution.value.sum((1, 2)) - 3.0).abs().max() <= 1e-9


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_entropy_on_the_cube_is_the_logistic_function(scale):
    scores = scale * draw(6, 4)
    found = ol.compile_polytope(cube(4)).regularized(scores, ol.Entropy(0.5)).check().value
    assert (found - torch.sigmoid(2.0 * scores)).abs().max() <= 1e-12


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
def test_tsallis_on_the_simplex_is_entmax(scale):
    scores, compiled = scale * draw(8, 6), ol.compile_polytope(simplex(6))
    found = compiled.regularized(scores, ol.Tsallis(1.5)).check().value
    assert (found - entmax15(scores, dim=1)).abs().max() <= 1e-9
    for alpha in (1.05, 1.2, 1.7, 2.5, 4.0):
        found = compiled.regularized(scores, ol.Tsallis(alpha)).check().value
        expected = entmax_bisect(scores, alpha, dim=1, n_iter=100)
        assert (found - expected).abs().max() <= 1e-7


def test_sums_of_squares_are_ridge():
    """Where no bound holds, x - 1/2 minimizes half of w x² less s x on the plane of the constraint."""
    x, weights, scores = cp.Variable(4), draw(4).exp(), 0.1 * draw(4, seed=1)
    polytope = ol.Polytope(x, [x >= -10, x <= 10, cp.sum(x) == 1])
    found = ol.compile_polytope(polytope).regularized(scores, ol.Euclidean(weights)).check().value
    price = ((scores / weights).sum() - 1.0) / (1.0 / weights).sum()
    assert (found - (scores - price) / weights).abs().max() <= 1e-12


@pytest.mark.parametrize("heat", [0.05, 0.2, 1.0])
def test_entropy_on_transport_plans_has_the_form_of_sinkhorn(heat):
    given, scores = marginals(4, 5, 3), draw(3, 4, 5)
    found = ol.compile_polytope(transport(4, 5)).regularized(scores, ol.Entropy(heat), **given).check().value
    assert (found.sum(2) - given["supply"]).abs().max() <= 1e-12
    assert (found.sum(1) - given["demand"]).abs().max() <= 1e-12
    # diag(u) K diag(v): what is left of the logarithm is a sum of a row's and a column's number.
    rest = found.log() - scores / heat
    rest = rest - rest[:, :1] - rest[:, :, :1] + rest[:, :1, :1]
    assert rest.abs().max() <= 1e-6


def test_entropy_on_matchings_is_where_sinkhorn_ends():
    scores, heat = draw(2, 4, 4), 0.5
    log = scores / heat
    for _ in range(2000):
        log = log - log.logsumexp(2, keepdim=True)
        log = log - log.logsumexp(1, keepdim=True)
    found = ol.compile_polytope(matching(4)).regularized(scores, ol.Entropy(heat)).check().value
    assert (found - log.exp()).abs().max() <= 1e-10


# Identities


@pytest.mark.parametrize("name", ["simplex", "matching", "tree"])
def test_tsallis_2_is_the_projection(name):
    scores, compiled = draw(5, *SMALL[name].shape), ol.compile_polytope(SMALL[name])
    found, nearest = compiled.regularized(scores, ol.Tsallis(2.0)), compiled.project(scores)
    assert (found.check().value - nearest.value).abs().max() <= 1e-9


def test_tsallis_2_is_another_projection_where_sums_differ():
    scores, compiled = draw(5, 3), ol.compile_polytope(cube(3))
    found, nearest = compiled.regularized(scores, ol.Tsallis(2.0)), compiled.project(scores + 0.5)
    assert (found.check().value - nearest.value).abs().max() <= 1e-9


@pytest.mark.parametrize("name", ["simplex", "matching", "tree", "ranking"])
def test_tsallis_tends_to_the_entropy(name):
    scores, compiled = draw(4, *SMALL[name].shape), ol.compile_polytope(SMALL[name])
    limit = compiled.regularized(scores, ol.Entropy()).check().value
    off = [(compiled.regularized(scores, ol.Tsallis(1.0 + a)).check().value - limit).abs().max() for a in (1e-2, 1e-4)]
    assert off[0] <= 0.2 and off[1] <= 1e-3 and off[1] <= 0.02 * off[0]


@pytest.mark.parametrize("regularizer", [ol.Entropy(1e-3), ol.Tsallis(1.5), ol.Barrier(1e-6)], ids=repr)
@pytest.mark.parametrize("name", SMALL)
def test_small_regularizers_leave_the_best_vertex(name, regularizer):
    scores, compiled = draw(4, *SMALL[name].shape, seed=3), ol.compile_polytope(SMALL[name])
    scale = 1e3 if isinstance(regularizer, ol.Tsallis) else 1.0
    found = compiled.regularized(scale * scores, regularizer).check().value
    assert (found - compiled.maximize(scores).value).abs().max() <= 1e-3


@pytest.mark.parametrize("entry", ["simplex", "matching", "tree", "ranking", "subset", "path, declared"])
def test_the_euclidean_one_is_sparsemap_bit_for_bit(entry):
    entry = NAMED[entry]
    scores, signal = draw(4, *entry.polytope.shape), draw(4, *entry.polytope.shape, seed=1)
    found = []
    for rule in (ol.Regularized(ol.Euclidean()), ol.SparseMAP()):
        leaf = scores.clone().requires_grad_()
        value = ol.OptLayer(entry.polytope, rule)(leaf, **entry.parameters)
        found.append((value.detach(), torch.autograd.grad((value * signal).sum(), leaf)[0]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["simplex", "matching", "tree", "ranking"])
def test_one_weight_for_all_is_a_projection_of_the_scores_over_it(name):
    scores, compiled = draw(4, *SMALL[name].shape), ol.compile_polytope(SMALL[name])
    plain = compiled.project(scores / 0.3).value
    for weights in (0.3, np.full(SMALL[name].shape, 0.3)):
        assert (compiled.regularized(scores, ol.Euclidean(weights)).check().value - plain).abs().max() <= 1e-9


# Derivatives


@pytest.mark.many(4)
@pytest.mark.parametrize("regularizer", [*OF_PARTS[1:6], ol.Barrier(0.2)], ids=repr)
@pytest.mark.parametrize("name", SMALL)
def test_derivatives_are_those_of_finite_differences(name, regularizer):
    layer = ol.OptLayer(SMALL[name], ol.Regularized(regularizer))
    leaf = draw(2, *SMALL[name].shape, seed=3).requires_grad_()
    assert gradcheck(layer, leaf, eps=1e-5, atol=1e-6)


@pytest.mark.many(5)
@pytest.mark.parametrize("regularizer", OF_PARTS[1:6], ids=repr)
@pytest.mark.parametrize("name", SMALL)
def test_second_derivatives_are_those_of_finite_differences(name, regularizer):
    layer = ol.OptLayer(SMALL[name], ol.Regularized(regularizer))
    leaf = draw(1, *SMALL[name].shape, seed=3).requires_grad_()
    weights = draw(1, *SMALL[name].shape, seed=4).requires_grad_()
    assert gradgradcheck(layer, leaf, weights, eps=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["simplex", "matching", pytest.param("tree", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("make", "value"),
    [(ol.Entropy, 0.7), (ol.Tsallis, 1.6), (ol.Euclidean, 0.8), (ol.Barrier, 0.3)],
    ids=["Entropy", "Tsallis", "Euclidean", "Barrier"],
)
def test_numbers_have_gradients(name, make, value):
    number = cp.Parameter(pos=True, name="number")
    layer = ol.OptLayer(SMALL[name], ol.Regularized(make(number)))
    scores = draw(2, *SMALL[name].shape, seed=3)
    numbers = torch.tensor([value, 1.3 * value], dtype=torch.float64, requires_grad=True)

    def both(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return layer(s, number=t)

    assert gradcheck(both, (scores.clone().requires_grad_(), numbers), eps=1e-5, atol=1e-6)
    fixed = layer(scores, number=numbers).detach()
    for k in range(2):
        alone = ol.OptLayer(SMALL[name], ol.Regularized(make(numbers[k].item())))
        assert (alone(scores[k]) - fixed[k]).abs().max() <= 1e-12
    if make is not ol.Barrier:
        assert gradgradcheck(both, (scores[:1].clone().requires_grad_(), numbers[:1]), eps=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "value"),
    [(ol.Entropy, 0.7), (ol.Tsallis, 1.6), (ol.Euclidean, 0.8)],
    ids=["Entropy", "Tsallis", "Euclidean"],
)
def test_numbers_of_each_part_have_gradients(make, value):
    number = cp.Parameter((3, 3), pos=True, name="number")
    layer = ol.OptLayer(matching(3), ol.Regularized(make(number)))
    scores = draw(2, 3, 3, seed=3).requires_grad_()
    numbers = (value * (1.0 + 0.2 * draw(2, 3, 3, seed=4).tanh())).requires_grad_()
    assert gradcheck(lambda s, t: layer(s, number=t), (scores, numbers), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("regularizer", [*SMOOTH, ol.Barrier(0.05)], ids=repr)
def test_parameters_of_constraints_have_gradients(regularizer):
    layer = ol.OptLayer(subset(4), ol.Regularized(regularizer))
    budget = torch.tensor([1.4, 2.3], dtype=torch.float64, requires_grad=True)
    scores = 0.3 * draw(2, 4).requires_grad_()
    assert gradcheck(lambda s, b: layer(s, budget=b), (scores, budget), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("regularizer", [*SMOOTH, ol.Barrier(0.05)], ids=repr)
def test_parameters_in_rows_and_bounds_have_gradients(regularizer):
    x, cap = cp.Variable(4, nonneg=True), cp.Parameter(4, name="cap", pos=True)
    price = cp.Parameter(4, name="price", pos=True)
    layer = ol.OptLayer(ol.Polytope(x, [x <= cap, price @ x <= 1, cp.sum(x) >= 0.3]), ol.Regularized(regularizer))
    scores, caps = (1.0 + 0.3 * draw(1, 4)).requires_grad_(), (0.4 + 0.3 * draw(1, 4).sigmoid()).requires_grad_()
    prices = draw(1, 4, seed=5).exp().requires_grad_()
    call = (scores, caps, prices)
    assert gradcheck(lambda s, c, p: layer(s, cap=c, price=p), call, eps=1e-6, atol=1e-6)


def test_marginals_of_transport_plans_have_gradients():
    layer, given = ol.OptLayer(transport(3, 3), ol.Regularized(ol.Entropy(0.4))), marginals(3, 3, 2)
    supply, demand = given["supply"].requires_grad_(), given["demand"].requires_grad_()

    def plans(s: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return layer(s, supply=a / a.sum(1, keepdim=True), demand=b / b.sum(1, keepdim=True))

    assert gradcheck(plans, (draw(2, 3, 3).requires_grad_(), supply, demand), eps=1e-5, atol=1e-6)


def test_the_tangent_of_a_compiled_polytope_is_the_gradient_of_the_layer():
    for name in SMALL:
        compiled, shape = ol.compile_polytope(SMALL[name]), SMALL[name].shape
        leaf, signal = draw(3, *shape).requires_grad_(), draw(3, *shape, seed=1)
        (gradient,) = torch.autograd.grad(ol.OptLayer(compiled, ol.Regularized(ol.Entropy(0.5)))(leaf), leaf, signal)
        tangent = compiled.tangent(compiled.regularized(leaf.detach(), ol.Entropy(0.5)), signal)
        assert tangent.ok.all() and torch.equal(tangent.scores, gradient)


def test_a_part_that_cannot_move_has_no_derivative():
    """At equal scores of no budget, nothing tells from multipliers that parts stay at their bounds."""
    compiled = ol.compile_polytope(subset(4))
    for regularizer in (ol.Euclidean(0.3), ol.Tsallis(1.5), ol.Entropy()):
        for budget in (0.0, 4.0):
            solution = compiled.regularized(torch.ones(4, dtype=torch.float64), regularizer, budget=budget).check()
            assert torch.equal(solution.value, torch.full((4,), budget / 4.0, dtype=torch.float64))
            assert compiled.tangent(solution, draw(4)).scores.abs().max() == 0.0


# Public contracts


@pytest.mark.many(5)
@pytest.mark.parametrize("entry", BY_CONSTRAINTS, ids=repr)
@pytest.mark.parametrize("regularizer", [*OF_PARTS[1:3], *OF_PARTS[5:]], ids=repr)
def test_the_contract_of_rules(regularizer, entry: Entry):
    check_rule(ol.Regularized(regularizer), entry.polytope, **entry.parameters)


@pytest.mark.many(3)
@pytest.mark.parametrize("entry", BY_CONSTRAINTS, ids=repr)
@pytest.mark.parametrize("regularizer", [*OF_PARTS[1:4], *OF_PARTS[5:]], ids=repr)
def test_points_lie_in_the_polytope_and_no_vertex_is_better(regularizer, entry: Entry):
    """The slope at the point, less the scores, is smallest at the point over all structures."""
    shape = entry.polytope.shape
    scores = torch.cat([0.3 * draw(3, *shape), 3.0 * draw(3, *shape), torch.zeros(1, *shape, dtype=torch.float64)])
    compiled = ol.compile_polytope(entry.polytope)
    point = compiled.regularized(scores, regularizer, **entry.parameters).check().value
    assert contains(entry.polytope, point, **entry.parameters).all()
    leaf = point.flatten(1).clone().requires_grad_()
    loss = ol.FenchelYoungLoss(compiled, regularizer, reduction="none")
    vertices = torch.tensor(entry.vertices).flatten(1)
    # The loss against a vertex is at least the strength times half the squared distance, and 0 at no other point.
    for vertex in vertices[:8]:
        target = vertex.reshape(shape).expand(scores.shape)
        assert (loss(scores, target, **entry.parameters) >= -1e-9).all()
    slope = _slope(regularizer, leaf.detach(), entry)
    gain = torch.where(torch.isfinite(slope), scores.flatten(1) - slope, 0.0)
    moves = (vertices.amax(0) > vertices.amin(0)) & (leaf.detach() > 1e-7)
    gain = torch.where(moves, gain, 0.0)
    inside = (vertices[:, None] * ~moves[None]).abs().amax(2) <= 1e-12  # vertices of the face of the point
    gaps = ((gain @ vertices.T) - (gain * leaf.detach()).sum(1, keepdim=True)).T
    assert (gaps[inside] <= 1e-5).all()


def _slope(regularizer: ol.AbstractRegularizer, point: torch.Tensor, entry: Entry) -> torch.Tensor:
    compiled = ol.compile_polytope(entry.polytope)
    form = compiled.projection_form if compiled.by_rows is None else compiled.by_rows.projection_form
    return regularizer.slope(point, regularizer.kinds(form), regularizer.numbers(form, None))


# Certificates


@pytest.mark.parametrize("regularizer", [ol.Euclidean(0.3), ol.Entropy(), ol.Entropy(0.01), ol.Tsallis(1.2)], ids=repr)
@pytest.mark.parametrize("name", SMALL)
def test_wrong_points_are_refused(name, regularizer):
    """A point that was moved within the polytope, out of it, and a point of other scores."""
    compiled, shape = ol.compile_polytope(SMALL[name]), SMALL[name].shape
    scores = 0.3 * draw(4, *shape)
    solution = compiled.regularized(scores, regularizer).check()
    solved = solution.evidence.solved
    assert (certify_regularized(solved).error <= 1e-8).all()
    vertex = compiled.regularized(draw(4, *shape, seed=7), ol.Euclidean(0.3)).evidence.solved.answer.point
    away = (vertex - solved.answer.point)[:, : solved.form.scored]
    for share in (1e-3, 1e-2, 0.5):
        lie = copy.deepcopy(solved)
        lie.answer.point = solved.answer.point + share * (vertex - solved.answer.point)
        moved = share * np.abs(away).max(axis=1) > 1e-4
        assert (certify_regularized(lie).error[moved] > 1e-8).all() and moved.any()
    lie = copy.deepcopy(solved)
    lie.answer.point[:, 0] += 1e-4
    assert (certify_regularized(lie).error > 1e-8).all()
    other = compiled.regularized(scores + 0.3 * draw(4, *shape, seed=2), regularizer).check()
    lie = copy.deepcopy(other.evidence.solved)
    lie.answer = solved.answer
    moved = ((other.value - solution.value).abs().flatten(1).amax(1) > 1e-3).numpy()
    assert (certify_regularized(lie).error[moved] > 1e-8).all() and moved.any()
    lie = copy.deepcopy(solved)
    lie.answer.point[:] = np.nan
    assert (certify_regularized(lie).error > 1e-8).all()


# Batches, masks, dtypes


@pytest.mark.parametrize("regularizer", [*SMOOTH, ol.Barrier(0.1)], ids=repr)
@pytest.mark.parametrize("name", SMALL)
def test_an_instance_has_the_same_answer_alone_and_in_a_batch(name, regularizer):
    compiled, shape = ol.compile_polytope(SMALL[name]), SMALL[name].shape
    scores = torch.cat([scale * draw(3, *shape) for scale in (1e-3, 1.0, 30.0)])
    whole = compiled.regularized(scores, regularizer)
    tangent = compiled.tangent(whole, scores).scores
    for k in range(len(scores)):
        alone = compiled.regularized(scores[k], regularizer)
        assert torch.equal(alone.value, whole.value[k]) and alone.status == whole.status[k]
        assert torch.equal(compiled.tangent(alone, scores[k]).scores, tangent[k])


@pytest.mark.parametrize("regularizer", SMOOTH, ids=repr)
@pytest.mark.parametrize("forbidden", [-torch.inf, torch.finfo(torch.float64).min])
def test_forbidden_parts_are_0_and_the_rest_is_a_smaller_polytope(regularizer, forbidden):
    scores = draw(2, 5)
    masked = scores.clone()
    masked[:, 1] = forbidden
    leaf = masked.requires_grad_()
    layer, rest = ol.OptLayer(simplex(5), ol.Regularized(regularizer)), [0, 2, 3, 4]
    value = layer(leaf)
    (gradient,) = torch.autograd.grad((value * draw(2, 5, seed=1)).sum(), leaf)
    smaller = ol.OptLayer(simplex(4), ol.Regularized(regularizer))(scores[:, rest])
    assert (value[:, 1] == 0.0).all() and (gradient[:, 1] == 0.0).all()
    assert (value[:, rest] - smaller).abs().max() <= 1e-12


def test_masks_fix_parts_by_implication():
    """Two of three columns are forbidden in a row of a matching: the third is 1, and its column is 0 elsewhere."""
    scores = draw(1, 3, 3)
    scores[0, 0, :2] = -torch.inf
    for regularizer in SMOOTH:
        compiled = ol.compile_polytope(matching(3))
        solution = compiled.regularized(scores, regularizer).check()
        assert torch.equal(solution.value[0, 0], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
        assert torch.equal(solution.value[0, :, 2], torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
        smaller = ol.compile_polytope(matching(2)).regularized(scores[:, 1:, :2], regularizer).value
        assert (solution.value[:, 1:, :2] - smaller).abs().max() <= 1e-12
        tangent = compiled.tangent(solution, draw(1, 3, 3)).scores
        assert (tangent[0, 0] == 0.0).all() and (tangent[0, :, 2] == 0.0).all()


def test_marginals_of_0_leave_rows_of_0():
    given = marginals(3, 3, 2)
    given["supply"] = torch.tensor([[0.0, 0.4, 0.6], [0.5, 0.5, 0.0]], dtype=torch.float64)
    compiled, scores = ol.compile_polytope(transport(3, 3)), draw(2, 3, 3)
    smaller = ol.compile_polytope(transport(2, 3))
    for regularizer in (*SMOOTH, ol.Entropy(0.05)):
        solution = compiled.regularized(scores, regularizer, **given).check()
        assert (solution.value[0, 0] == 0.0).all() and (solution.value[1, 2] == 0.0).all()
        rest = {"supply": given["supply"][0, 1:], "demand": given["demand"][0]}
        assert (
            solution.value[0, 1:] - smaller.regularized(scores[0, 1:], regularizer, **rest).value
        ).abs().max() <= 1e-10
        tangent = compiled.tangent(solution, draw(2, 3, 3)).scores
        assert torch.isfinite(tangent).all() and (tangent[0, 0] == 0.0).all()


@pytest.mark.parametrize("regularizer", [ol.Entropy(), ol.Tsallis(), ol.Barrier(0.1)], ids=repr)
def test_batches_of_mixed_length(regularizer):
    layer = ol.OptLayer(ol.Family(matching), ol.Regularized(regularizer))
    scores, sizes = draw(4, 4, 4).requires_grad_(), torch.tensor([4, 2, 1, 3])
    value = layer(scores, sizes=sizes)
    (gradient,) = torch.autograd.grad((value * draw(4, 4, 4, seed=1)).sum(), scores)
    for k, n in enumerate(sizes.tolist()):
        alone = ol.OptLayer(matching(n), ol.Regularized(regularizer))(scores[k, :n, :n].detach())
        assert (value[k, :n, :n] - alone).abs().max() <= 1e-12
        assert value[k, n:].abs().sum() == 0.0 and gradient[k, n:].abs().sum() == 0.0


def test_families_take_numbers_of_instances():
    layer = ol.OptLayer(ol.Family(simplex), ol.Regularized(ol.Entropy(temperature)))
    scores, heat = draw(3, 4), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    value = layer(scores, sizes=torch.tensor([4, 2, 3]), temperature=heat)
    for k, n in enumerate((4, 2, 3)):
        assert (value[k, :n] - (scores[k, :n] / heat[k]).softmax(0)).abs().max() <= 1e-12
    (gradient,) = torch.autograd.grad(value[:, 0].sum(), heat)
    assert torch.isfinite(gradient).all() and (gradient != 0.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_answers_come_in_the_dtype_of_the_scores(dtype):
    scores = draw(3, 3, 3).to(dtype).requires_grad_()
    value = ol.OptLayer(matching(3), ol.Regularized(ol.Entropy(0.3)))(scores)
    exact = ol.compile_polytope(matching(3)).regularized(scores.detach().double(), ol.Entropy(0.3)).value
    (gradient,) = torch.autograd.grad(value.sum(0)[0, 0], scores)
    assert value.dtype == gradient.dtype == dtype and torch.equal(value.detach(), exact.to(dtype))


def test_empty_and_single_batches():
    layer = ol.OptLayer(matching(3), ol.Regularized(ol.Tsallis()))
    assert layer(torch.zeros(0, 3, 3)).shape == (0, 3, 3) and layer(torch.zeros(2, 0, 3, 3)).shape == (2, 0, 3, 3)
    assert layer(torch.zeros(3, 3)).shape == (3, 3) and layer(torch.zeros(2, 1, 3, 3)).shape == (2, 1, 3, 3)


def test_an_infeasible_instance_is_left_to_the_caller():
    compiled, scores = ol.compile_polytope(subset(3)), draw(3, 3)
    budget = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    for regularizer in (*SMOOTH, ol.Barrier(0.1)):
        solution = compiled.regularized(scores, regularizer, budget=budget)
        assert solution.status.tolist()[1] == ol.Status.INFEASIBLE and solution.ok.tolist() == [True, False, True]
        layer = ol.OptLayer(compiled, ol.Regularized(regularizer), on_failure="nan")
        leaf = scores.clone().requires_grad_()
        value = layer(leaf, budget=budget)
        (gradient,) = torch.autograd.grad(value[[0, 2]].square().sum(), leaf)
        assert value[1].isnan().all() and value[[0, 2]].isfinite().all() and gradient[[0, 2]].isfinite().all()
        with pytest.raises(ol.SolveError, match=r"\(1,\)|1 of 3"):
            ol.OptLayer(compiled, ol.Regularized(regularizer))(scores, budget=budget)


# PyTorch


@pytest.mark.parametrize("regularizer", SMOOTH, ids=repr)
def test_torch_func(regularizer):
    layer, scores, signal = (
        ol.OptLayer(matching(3), ol.Regularized(regularizer)),
        draw(4, 3, 3),
        draw(4, 3, 3, seed=1),
    )
    assert torch.equal(vmap(layer)(scores), layer(scores))
    value, along = jvp(layer, (scores,), (signal,))
    leaf = scores.clone().requires_grad_()
    (back,) = torch.autograd.grad(layer(leaf), leaf, signal)  # the Jacobian is symmetric
    assert torch.equal(value, layer(scores)) and (along - back).abs().max() <= 1e-12
    backward, forward = jacrev(layer)(scores[0]), jacfwd(layer)(scores[0])
    assert (backward - forward).abs().max() <= 1e-12


def test_copies_and_threads():
    regularizers = [ol.Euclidean(2.0), ol.Euclidean(np.ones((3, 3))), ol.Entropy(0.5), ol.Tsallis(1.3), ol.Barrier(0.2)]
    scores = draw(8, 3, 3)
    for regularizer in regularizers:
        assert pickle.loads(pickle.dumps(regularizer)) == regularizer == copy.deepcopy(regularizer)
        assert hash(copy.deepcopy(regularizer)) == hash(regularizer)
        layer = ol.OptLayer(matching(3), ol.Regularized(regularizer))
        value = layer(scores)
        assert torch.equal(pickle.loads(pickle.dumps(layer))(scores), value)
        assert torch.equal(copy.deepcopy(layer)(scores), value)
        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(found, value) for found in pool.map(layer, [scores] * 12))
    assert len({repr(r) for r in regularizers}) == len(regularizers)
    assert ol.Entropy(1.0) != ol.Tsallis(2.0) and ol.Entropy(1.0) != ol.Entropy(2.0)


# Bad input

known_by_structures = ol.Polytope(
    cp.Variable(3),
    [],
    oracle=lambda scores: torch.nn.functional.one_hot(scores.argmax(-1), 3).to(scores),
    integral=True,
)
BAD_NUMBERS = {
    "no temperature": (lambda: ol.Entropy(0.0), "temperature of Entropy must be finite and above 0, but got 0"),
    "a negative one": (lambda: ol.Entropy(-1), "temperature of Entropy must be finite and above 0, but got -1"),
    "one that is no number": (lambda: ol.Entropy(float("nan")), "temperature of Entropy must be finite .* got nan"),
    "an infinite one": (lambda: ol.Entropy(float("inf")), "temperature of Entropy must be finite .* got inf"),
    "a word": (lambda: ol.Entropy("hot"), "temperature of Entropy is a number, but got 'hot' of type str"),
    "a bool": (lambda: ol.Entropy(True), "temperature of Entropy is a number, but got True of type bool"),
    "a tensor": (lambda: ol.Entropy(torch.ones(3)), "temperature of Entropy is a number, but got tensor"),
    "a tensor to learn": (
        lambda: ol.Entropy(torch.ones((), requires_grad=True)),
        r"declare it as cp.Parameter\(pos=True, name=\"temperature\"\) and give it in every call",
    ),
    "alpha of 1": (lambda: ol.Tsallis(1.0), "alpha of Tsallis must be finite and above 1, but got 1"),
    "alpha below 1": (lambda: ol.Tsallis(0.5), "alpha of Tsallis must be finite and above 1, but got 0.5"),
    "no barrier": (lambda: ol.Barrier(0.0), "mu of Barrier must be finite and above 0, but got 0"),
    "a barrier to learn": (lambda: ol.Barrier(torch.ones((), requires_grad=True)), 'name="mu"'),
    "no weight": (lambda: ol.Euclidean(0.0), "weights of Euclidean must be finite and above 0, but got 0"),
    "no weight of a part": (
        lambda: ol.Euclidean([1.0, 0.0]),
        r"weights of Euclidean must be finite and positive, but weights\[1\] is 0",
    ),
    "weights that are words": (lambda: ol.Euclidean(["a"]), "weights of Euclidean are numbers, but got"),
    "weights to learn": (lambda: ol.Euclidean(torch.ones(3, requires_grad=True)), 'name="weights"'),
    "a class": (lambda: ol.Regularized(ol.Entropy), r"make it a value: Entropy\(\)"),
    "a number for a regularizer": (
        lambda: ol.Regularized(0.1),
        r"regularizer must be one such as Entropy\(\), or an expression of cvxpy, but got 0.1",
    ),
    "no mu": (lambda: ol.CentralPath(mu=-1.0), "mu of (Barrier|CentralPath) must be finite and above 0, but got -1"),
    "hard is no bool": (lambda: ol.CentralPath(0.1, 1), "hard must be True or False, but got 1"),
}


@pytest.mark.parametrize("what", BAD_NUMBERS)
def test_what_is_no_regularizer_is_refused(what):
    make, message = BAD_NUMBERS[what]
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("make", "bad", "name"),
    [
        (ol.Entropy, 0.0, "temperature of Entropy"),
        (ol.Tsallis, 1.0, "alpha of Tsallis"),
        (ol.Barrier, -0.1, "mu of Barrier"),
    ],
)
def test_a_bad_number_of_an_instance_is_named(make, bad, name):
    number = cp.Parameter(name="number")
    layer = ol.OptLayer(simplex(3), ol.Regularized(make(number)))
    with pytest.raises(
        ValueError, match=f"{name} must be finite and above . but is {bad:g} in instance 1".replace(" but", ", but")
    ):
        layer(draw(3, 3), number=torch.tensor([1.5, bad, 2.0]))
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        layer(draw(3, 3), number=torch.tensor(bad))


@pytest.mark.parametrize(
    "regularizer",
    [ol.Euclidean([1.0, 2.0]), ol.Euclidean(cp.Parameter(2, name="w", pos=True))],
    ids=["numbers", "parameter"],
)
def test_weights_of_another_shape_are_refused(regularizer):
    message = (
        r"weights of Euclidean has shape \(2,\), but the polytope has shape \(3,\): give one number .* or one for each"
    )
    with pytest.raises(ValueError, match=message):
        ol.OptLayer(simplex(3), ol.Regularized(regularizer))


def test_a_number_that_a_compiled_polytope_does_not_know_is_refused():
    with pytest.raises(
        TypeError, match=r"does not know the parameter temperature .* compile polytope.beside\(\[parameter\]\)"
    ):
        ol.compile_polytope(simplex(3)).regularized(draw(3), ol.Entropy(temperature))
    found = ol.compile_polytope(simplex(3).beside([temperature])).regularized(
        draw(3), ol.Entropy(temperature), temperature=2.0
    )
    assert (found.value - (draw(3) / 2.0).softmax(0)).abs().max() <= 1e-12


def test_barriers_have_one_number():
    with pytest.raises(ValueError, match=r"mu of Barrier is one number, but the parameter m has shape \(3,\)"):
        ol.OptLayer(simplex(3), ol.Regularized(ol.Barrier(cp.Parameter(3, name="m", pos=True))))


def test_numbers_are_given_in_every_call():
    layer = ol.OptLayer(simplex(3), ol.Regularized(ol.Entropy(temperature)))
    with pytest.raises(TypeError, match="temperature"):
        layer(draw(3))
    with pytest.raises(TypeError, match="hotness"):
        layer(draw(3), temperature=1.0, hotness=2.0)


def test_polytopes_without_constraints_are_refused():
    for entry in POLYTOPES:
        if entry.polytope.separate is not None or entry.polytope.has_integers:
            with pytest.raises(DeclarationError, match=r"need constraints .*SparseMAP\(\) projects onto it"):
                ol.OptLayer(entry.polytope, ol.Regularized(ol.Entropy()))
            with pytest.raises(DeclarationError, match="need constraints"):
                ol.OptLayer(entry.polytope, ol.CentralPath())
            break
    else:
        raise AssertionError("the catalogue has no such polytope")


@pytest.mark.parametrize("regularizer", [ol.Entropy(), ol.Tsallis(1.5), ol.Tsallis(3.0)], ids=repr)
def test_entropies_of_negative_parts(regularizer):
    x = cp.Variable(3)
    mixed = ol.Polytope(x, [x >= -1, x <= 1, cp.sum(x) == 1])
    found = ol.compile_polytope(mixed).regularized(draw(3), regularizer).check().value
    expected = ol.compile_polytope(simplex(3)).regularized(draw(3), regularizer).value
    assert (found - expected).abs().max() <= 1e-9  # it keeps to where it is finite
    negative = {
        "bounds": ol.Polytope(x, [x >= -1, x <= 1, x[0] <= -0.5]),
        "a fixed part": ol.Polytope(x, [x >= -1, x <= 1, x[0] == -0.5]),
        "all parts fixed": ol.Polytope(x, [x == np.array([-0.5, 0.5, 0.2])]),
        "a row": ol.Polytope(x, [x >= -1, x <= 1, x[0] + x[1] <= -0.5]),
        "two rows": ol.Polytope(x, [x >= -1, x <= 1, x[0] - x[1] <= -0.8, x[0] + x[1] <= -0.5]),
    }
    for polytope in negative.values():
        solution = ol.compile_polytope(polytope).regularized(draw(2, 3), regularizer)
        assert solution.status.tolist() == [ol.Status.INFEASIBLE] * 2
        assert "is finite nowhere on the polytope" in solution.reasons[0]
    limit = cp.Parameter(name="limit")
    of_instance = ol.compile_polytope(ol.Polytope(x, [x >= -1, x <= 1, x[0] + x[1] <= limit]))
    some = of_instance.regularized(draw(2, 3), regularizer, limit=torch.tensor([0.5, -0.5]))
    assert some.status.tolist() == [ol.Status.OPTIMAL, ol.Status.INFEASIBLE]


@pytest.mark.parametrize("regularizer", [ol.Entropy(), ol.Entropy(0.01), ol.Tsallis(1.5), ol.Tsallis(3.0)], ids=repr)
def test_a_part_that_is_fixed_at_0_is_fine(regularizer):
    x = cp.Variable(3, nonneg=True)
    for zero in (x[0] == 0, x[0] <= 0, x[0] + x[1] <= x[1]):
        layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x) == 1, zero]), ol.Regularized(regularizer))
        leaf = draw(2, 3).requires_grad_()
        value = layer(leaf)
        expected = ol.OptLayer(simplex(2), ol.Regularized(regularizer))(leaf.detach()[:, 1:])
        (gradient,) = torch.autograd.grad((value * draw(2, 3, seed=1)).sum(), leaf)
        assert (value[:, 0] == 0.0).all() and (value[:, 1:] - expected).abs().max() <= 1e-12
        assert (gradient[:, 0] == 0.0).all() and torch.isfinite(gradient).all()


def test_scored_auxiliary_variables_are_not_regularized():
    """Tags with transitions: the entropy is that of tags alone, transitions count by their scores."""
    compiled, scores, transition = ol.compile_polytope(linear_chain(3, 2)), draw(2, 3, 2), draw(2, 3, 2, 2, seed=1)
    solution = compiled.regularized(scores, ol.Entropy(0.5), transition=transition).check()
    polytope = linear_chain(3, 2).without_oracle()
    (auxiliary,) = polytope.scored
    for k in range(2):
        value = cp.sum(cp.multiply(scores[k].numpy(), polytope.variable))
        value += cp.sum(cp.multiply(transition[k].flatten().numpy(), cp.vec(auxiliary, order="C")))
        value += 0.5 * cp.sum(cp.entr(polytope.variable))
        solved_tightly(cp.Problem(cp.Maximize(value), list(polytope.constraints)))
        assert (solution.value[k] - torch.as_tensor(polytope.variable.value)).abs().max() <= 1e-6


def test_sequences_of_many_parts():
    scores = draw(2, 6, 3, 3).requires_grad_()
    layer = ol.OptLayer(sequence(6, 3), ol.Regularized(ol.Entropy(0.3)))
    value = layer(scores)
    assert contains(sequence(6, 3), value.detach()).all()
    (gradient,) = torch.autograd.grad((value * scores.detach()).sum(), scores)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("alpha", [3.0, 4.0])
def test_wrong_points_of_flat_powers_are_refused(alpha):
    """Next to 0 powers above 2 are flat: a gap says nothing of small parts there, but what makes them best does."""
    point = torch.tensor([[0.98, 0.01, 0.01]], dtype=torch.float64)
    solution = ol.compile_polytope(simplex(3)).regularized(point ** (alpha - 1.0) / (alpha - 1.0), ol.Tsallis(alpha))
    assert (solution.check().value - point).abs().max() <= 1e-9
    lie = copy.deepcopy(solution.evidence.solved)
    lie.answer.point[0] += np.array([0.0, 5e-4, -5e-4])
    assert certify_regularized(lie).error[0] > 1e-8


@pytest.mark.parametrize("heat", [1e-3, 0.2, 1.0])
def test_large_scores_that_are_all_equal(heat):
    """Multipliers of inequalities have to come from 0 to the scores."""
    x = cp.Variable((2, 3), nonneg=True)
    partial = ol.Polytope(x, [cp.sum(x, axis=0) <= 1, cp.sum(x, axis=1) <= 1])
    scores = torch.full((2, 3), 1000.0, dtype=torch.float64)
    found = ol.compile_polytope(partial).regularized(scores, ol.Entropy(heat)).check().value
    assert (found - 1.0 / 3.0).abs().max() <= 1e-9


@pytest.mark.parametrize("low", [-1.0, -5.0, -10.0, -20.0, -50.0])
def test_rows_next_to_nothing_have_exact_derivatives(low):
    """A row whose columns are all tiny next to others: half of what its right-hand side gains goes to each of two."""
    x, apart = cp.Variable(4, nonneg=True), cp.Parameter(name="apart")
    layer = ol.OptLayer(
        ol.Polytope(x, [x <= 3, x[0] - x[1] == apart, x[2] + x[3] == 1]), ol.Regularized(ol.Entropy(0.5))
    )
    scores = torch.tensor([low, low, 1.0, 0.2], dtype=torch.float64)
    given = torch.zeros((), dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * layer(scores, apart=given)).sum(), given)
    assert found.item() == pytest.approx(1.5, rel=1e-8)


def test_a_cold_partial_matching_of_bits_has_a_gradient():
    """Its tight rows and columns depend on each other but for parts of 1e-16."""
    logits = [[-12.0122, 39.8261], [-10.3328, -23.5715], [59.5863, -13.9213], [-5.6290, -1.8165]]
    scores = (0.1 * torch.tensor(logits, dtype=torch.float64)).requires_grad_()
    x = cp.Variable((4, 2), nonneg=True)
    bits = ol.Polytope(x, [x <= 1, cp.sum(x, axis=1) <= 1, cp.sum(x, axis=0) <= 1])
    z = ol.OptLayer(bits, ol.Regularized(ol.Entropy(0.1)))(scores)
    (found,) = torch.autograd.grad(z.square().sum(), scores)
    assert found[0, 1] == pytest.approx(9.066e-9, rel=1e-3) and found[3, 1] == pytest.approx(-9.066e-9, rel=1e-3)


@pytest.mark.parametrize("limit", [1e6, 1e12, 1e18])
def test_a_limit_that_means_none_fixes_nothing(limit):
    """What a row with a huge number leaves to a part is that number's rounding."""
    x, total = cp.Variable(3, nonneg=True), cp.Parameter(name="total")
    compiled = ol.compile_polytope(ol.Polytope(x, [cp.sum(x) == 1, cp.sum(x) <= total, x >= -total]))
    solution = compiled.regularized(torch.zeros(3, dtype=torch.float64), ol.Entropy(0.5), total=torch.tensor(limit))
    if solution.ok.all():
        torch.testing.assert_close(solution.value, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert solution.ok.all() or limit > 1e9


def test_a_flat_power_next_to_scores_that_swallow_its_own_is_not_called_right():
    x, big = cp.Variable(4, nonneg=True), 1e12
    rows = [x <= 1, cp.sum(x) == 1.5, x[1] - x[0] <= 0.3, x[3] - x[2] <= 0.3, x[1] + x[3] >= 0.5]
    compiled = ol.compile_polytope(ol.Polytope(x, rows))
    scores = torch.tensor([0.1, -big, 0.3, -big], dtype=torch.float64)
    assert not compiled.regularized(scores, ol.Tsallis(3.0)).ok
    assert compiled.regularized(scores / big * 1e4, ol.Tsallis(3.0)).ok


@pytest.mark.parametrize("regularizer", [ol.Entropy(0.5), ol.Euclidean([0.5, 0.6, 0.7]), ol.Tsallis(1.5)], ids=repr)
def test_a_bound_with_room_is_worth_nothing(regularizer):
    x, cap = cp.Variable(3, nonneg=True), cp.Parameter(3, name="cap", nonneg=True)
    value = ol.OptimalValue(ol.Polytope(x, [x <= cap, cp.sum(x) == 1]), regularizer)
    scores = torch.tensor([3.0, 0.2, 0.1], dtype=torch.float64)
    for first in (5.0, 0.6):
        leaf = torch.tensor([first, 5.0, 5.0], dtype=torch.float64).requires_grad_()
        assert gradcheck(lambda given: value(scores, cap=given), leaf, eps=1e-6, atol=1e-6)
        (price,) = torch.autograd.grad(value(scores, cap=leaf), leaf)
        assert not price[1:].any() and (price[0] > 0.1) == (first < 1.0)


def test_numbers_next_to_nothing_are_differentiated_without_a_warning():
    compiled, scores = ol.compile_polytope(simplex(2)), torch.tensor([0.0, -7.1], dtype=torch.float64)
    solution = compiled.regularized(scores, ol.Entropy(0.01)).check()
    assert 0.0 < solution.value.min() < 1e-308 and compiled.tangent(solution, scores).all_ok


def test_the_solvers_of_a_compiled_polytope_are_kept_beside_the_parameters_of_a_rule():
    temperature = cp.Parameter(pos=True, name="temperature")
    compiled = ol.compile_polytope(simplex(3).without_oracle(), maximizer=ol.Highs(), projector=ol.Clarabel())
    layer = ol.OptLayer(compiled, ol.Hard(ol.Regularized(ol.Entropy(temperature))))
    assert isinstance(layer.compiled().maximizer, ol.Highs) and isinstance(layer.compiled().projector, ol.Clarabel)
    over_oracle = ol.OptLayer(ol.compile_polytope(simplex(3)), ol.Regularized(ol.Entropy(temperature)))
    assert over_oracle(torch.zeros(3), temperature=0.5).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("mask", [-torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("regularizer", [ol.Entropy(3.0), ol.Tsallis(1.5), ol.Barrier(0.1)], ids=repr)
def test_masks_that_leave_no_point_give_no_answer_outside(regularizer, mask):
    """All parts are fixed then, at numbers that no bound admits: 7.5 of four parts of at most 1 was 1.875 of each."""
    x, budget = cp.Variable(9, bounds=[0.0, 1.0]), cp.Parameter(name="budget", nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [cp.sum(x) == budget]))
    scores = torch.zeros(2, 9, dtype=torch.float32)
    scores[0, [0, 2, 3, 5, 6]] = mask
    solution = compiled.regularized(scores, regularizer, budget=torch.tensor(7.5))
    assert solution.status[0] in ((1,) if mask == -torch.inf else (3, 4, 5)) and solution.status[1] == 0
    torch.testing.assert_close(solution.value[1], torch.full((9,), 7.5 / 9), atol=1e-6, rtol=0)


def test_masks_that_leave_a_row_no_point_give_no_answer_outside():
    x = cp.Variable(3)
    rows = [x[:2] >= 0, x[1] <= 3, x[1] - x[0] == 2.25, x[2] - x[1] == -3.375]
    scores = torch.tensor([[-4.0, -3.0, torch.finfo(torch.float32).min]])
    for given in (scores, scores.masked_fill(scores < -1e30, -torch.inf)):
        assert ol.compile_polytope(ol.Polytope(x, rows)).regularized(given, ol.Entropy(44.5)).status[0] != 0
