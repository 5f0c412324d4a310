"""Gradients of optimal values by parameters where an oracle answers: the constraints are asked for dual points."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE

import optlayers as ol
import polytopes
from polytopes import subset

STEP = 1e-5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(low, high, *shape, seed=0):
    found = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return low + (high - low) * found


def best_within(vertices, scores, price, limit):
    """The best mixture of vertices that costs no more than a limit: one of them, or one of two that costs as much."""
    value, cost = vertices @ scores, vertices @ price
    inside = cost <= limit
    if not inside.any():
        return np.full(vertices.shape[1], np.nan)
    low, high = np.flatnonzero(inside), np.flatnonzero(~inside)
    best = vertices[low[np.argmax(value[low])]]
    share = (limit - cost[low][:, None]) / (cost[high][None] - cost[low][:, None])
    mixed = value[low][:, None] + share * (value[high][None] - value[low][:, None])
    if mixed.size and mixed.max() > best @ scores:
        k, j = np.unravel_index(np.argmax(mixed), mixed.shape)
        best = vertices[low[k]] + share[k, j] * (vertices[high[j]] - vertices[low[k]])
    return best


def limited(name):
    """A polytope of the catalogue, of which a predicted price of all parts must not go beyond a predicted limit."""
    entry = next(e for e in CATALOGUE if e.name == name)
    base, shape = entry.polytope, entry.polytope.shape
    price, limit = cp.Parameter(shape, name="price"), cp.Parameter(name="limit")
    vertices = np.asarray(entry.vertices, dtype=np.float64).reshape(len(entry.vertices), -1)

    def oracle(scores, price, limit):
        return best_within(vertices, scores.reshape(-1), price.reshape(-1), float(limit)).reshape(shape)

    row = cp.sum(cp.multiply(price, base.variable)) <= limit
    return ol.Polytope(base.variable, [*base.constraints, row], oracle=oracle), vertices


LIMITED = {
    e.name: limited(e.name)
    for e in CATALOGUE
    if not e.polytope.scored
    and not e.polytope.parameters
    and 2 < len(e.vertices) <= 130
    and not e.polytope.has_integers
}
each = pytest.mark.parametrize("name", LIMITED)


def asked(name, count, seed=0):
    """Scores, prices and limits between the cheapest and the dearest of most structures."""
    polytope, vertices = LIMITED[name]
    scores, price = draw(count, *polytope.shape, seed=seed), uniform(0.2, 1.5, count, *polytope.shape, seed=seed + 1)
    costs = torch.from_numpy(vertices) @ price.reshape(count, -1).T
    share = torch.linspace(0.05, 1.2, count, dtype=torch.float64)
    limit = costs.amin(0) + share * (costs.amax(0) - costs.amin(0))
    return polytope, vertices, scores, {"price": price, "limit": limit}


@each
def test_values_of_oracles_have_the_gradient_that_differences_say(name):
    """Of what an oracle of its own gives, which knows nothing of constraints, and of the general solvers."""
    polytope, vertices, scores, given = asked(name, 6)
    leaves = [scores.clone().requires_grad_(), *(v.clone().requires_grad_() for v in given.values())]
    found = []
    for solver in ({}, {"maximizer": ol.Auto()}):
        value = ol.OptimalValue(polytope, **solver)(leaves[0], **dict(zip(given, leaves[1:], strict=True)))
        found.append(torch.autograd.grad(value.sum(), leaves))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)

    def values(price, limit):
        flat = scores.reshape(len(scores), -1).numpy(), price.reshape(len(scores), -1).numpy(), limit.numpy()
        return sum(best_within(vertices, s, p, most) @ s for s, p, most in zip(*flat, strict=True))

    assert found[0][2].abs().max() > 0.1
    for which, slope in zip(given, found[0][1:], strict=True):
        for index in np.ndindex(*slope.shape):
            above, below = given[which].clone(), given[which].clone()
            above[index] += STEP
            below[index] -= STEP
            ends = [values(**given | {which: moved}) for moved in (above, below)]
            assert (ends[0] - ends[1]) / (2 * STEP) == pytest.approx(slope[index].item(), abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("name", ["matching", "tree", "sequence", "path"])
@pytest.mark.parametrize(
    "loss", [ol.StructuredPerceptronLoss, ol.StructuredHingeLoss, ol.SparseMAPLoss, ol.PerturbedFenchelYoungLoss]
)
def test_losses_over_oracles_give_parameters_the_gradients_of_general_solvers(loss, name):
    polytope, _, scores, given = asked(name, 5, seed=3)
    cheapest = ol.OptLayer(polytope, ol.Pipeline(), maximizer=ol.Auto())(-given["price"], **given)
    more = {"cost": uniform(0.0, 1.0, *scores.shape, seed=5)} if loss is ol.StructuredHingeLoss else {}
    asked_of = {"oracle": {"projector": ol.ActiveSet()}, "rows": {"maximizer": ol.Auto(), "projector": ol.Auto()}}
    found = {}
    for who, solvers in asked_of.items():
        torch.manual_seed(0)
        leaves = {"scores": scores.clone().requires_grad_()} | {n: v.clone().requires_grad_() for n, v in given.items()}
        value = loss(polytope, validate=False, **solvers)(
            leaves["scores"], cheapest, **more, **{n: leaves[n] for n in given}
        )
        found[who] = value, torch.autograd.grad(value, list(leaves.values()))
    torch.testing.assert_close(found["oracle"][0], found["rows"][0])
    for mine, theirs in zip(found["oracle"][1], found["rows"][1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=1e-8)
    assert found["oracle"][1][2].abs().max() > 1e-3


def test_the_gradient_is_one_of_a_smooth_function_of_everything():
    polytope, _, scores, given = asked("tree", 4, seed=7)
    leaves = (scores.requires_grad_(), given["price"].requires_grad_(), given["limit"].requires_grad_())
    for value in (
        ol.OptimalValue(polytope),
        ol.OptimalValue(polytope, ol.Euclidean(), projector=ol.ActiveSet()),
        ol.OptimalValue(polytope, ol.Euclidean(0.7), projector=ol.ActiveSet()),
    ):
        assert torch.autograd.gradcheck(lambda s, p, b, v=value: v(s, price=p, limit=b), leaves, atol=1e-6)


@pytest.mark.parametrize(
    "rule", [ol.SparseMAP(), ol.LPGD(1.0), ol.LPGD(0.5, 0.3, "both"), ol.WithParameters(ol.Spigot())]
)
def test_rules_over_an_oracle_give_parameters_what_they_give_over_constraints(rule):
    polytope, _, scores, given = asked("matching", 5, seed=9)
    signal, found = draw(*scores.shape, seed=11), []
    for solvers in ({"projector": ol.ActiveSet()}, {"maximizer": ol.Auto(), "projector": ol.Auto()}):
        leaves = [v.clone().requires_grad_() for v in (scores, *given.values())]
        layer = ol.OptLayer(polytope, rule, **solvers)
        value = layer(leaves[0], **dict(zip(given, leaves[1:], strict=True)))
        found.append([value, *torch.autograd.grad(value, leaves, signal)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-8, rtol=1e-8)
    assert all(part.abs().max() > 1e-2 for part in found[0])


def test_scored_auxiliaries_are_worth_something_too():
    """Of a chain the transitions, that have scores, and a limit of how often a tag may be used."""
    base = polytopes.linear_chain(3, 2)
    every = torch.from_numpy(ol.compile_polytope(base).enumerated(np.zeros(0)))
    shapes, limit = [base.shape, base.scored[0].shape], cp.Parameter(name="limit")
    first = np.zeros(base.shape)
    first[:, 0] = 1.0
    price = np.concatenate([first.reshape(-1), np.zeros(int(np.prod(shapes[1])))])

    def oracle(scores, transition, limit):
        both = np.concatenate([scores.reshape(-1), transition.reshape(-1)])
        best = best_within(every.numpy(), both, price, float(limit))
        return best[: first.size].reshape(shapes[0]), best[first.size :].reshape(shapes[1])

    rows = [*base.constraints, cp.sum(base.variable[:, 0]) <= limit]
    polytope = ol.Polytope(base.variable, rows, oracle=oracle, scored=base.scored)
    scores, transition = draw(4, *shapes[0]), draw(4, *shapes[1], seed=1)
    limits, found = torch.tensor([0.3, 0.8, 1.7, 2.6], dtype=torch.float64), []
    for solver in ({}, {"maximizer": ol.Auto()}):
        leaves = [v.clone().requires_grad_() for v in (scores, transition, limits)]
        value = ol.OptimalValue(polytope, **solver)(leaves[0], transition=leaves[1], limit=leaves[2])
        found.append([value, *torch.autograd.grad(value.sum(), leaves)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert found[0][3].abs().max() > 1e-2


def slopes(scores, budget):
    """One-sided slopes of the value of the best ``budget`` parts, by the parts in order."""
    ordered = scores.sort(descending=True).values
    place = round(float(budget))
    return ordered[place - 1], ordered[place] if place < len(ordered) else None


@pytest.mark.parametrize("budget", [1.0, 2.0, 4.0])
def test_at_a_kink_the_gradient_lies_between_the_slopes_on_both_sides(budget):
    scores, limit = draw(5, seed=13), torch.tensor(budget, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(ol.OptimalValue(subset(5))(scores, budget=limit), limit)
    before, after = slopes(scores, budget)
    assert after <= found <= before
    (general,) = torch.autograd.grad(ol.OptimalValue(subset(5), maximizer=ol.Auto())(scores, budget=limit), limit)
    torch.testing.assert_close(found, general)


def test_at_the_edge_where_points_end_it_is_the_slope_on_the_one_side():
    scores, limit = draw(5, seed=14), torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(ol.OptimalValue(subset(5))(scores, budget=limit), limit)
    torch.testing.assert_close(found, scores.min())


def test_ties_zeros_and_forbidden_parts():
    scores = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0] * 4, [3.0, -torch.inf, 2.0, 1.0], [2.0, 1.0, -1e30, 0.5]])
    scores = scores.double().requires_grad_()
    limit = torch.tensor([1.5, 2.5, 1.5, 2.5], dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(ol.OptimalValue(subset(4))(scores, budget=limit).sum(), (limit, scores))
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64))
    assert found[1][2, 1] == 0.0 and found[1][3, 2] == 0.0


def test_dtypes_devices_and_shapes_of_batches():
    value = ol.OptimalValue(subset(4))
    limit = torch.tensor(1.5, requires_grad=True)
    one = torch.tensor([4.0, 3.0, 2.0, 1.0])
    (found,) = torch.autograd.grad(value(one, budget=limit), limit)
    assert found.dtype == torch.float32 and found.item() == 3.0
    (found,) = torch.autograd.grad(value(one.expand(2, 3, 4), budget=limit).sum(), limit)
    assert found.item() == 18.0
    nobody = torch.zeros(0, requires_grad=True)
    (found,) = torch.autograd.grad(value(torch.zeros(0, 4), budget=nobody).sum(), nobody)
    assert found.shape == (0,)


def within_limits():
    """Parts up to limits of their own: the oracle takes all of a part, or nothing."""
    x, limit = cp.Variable(4, nonneg=True), cp.Parameter(4, name="limit", nonneg=True)
    return ol.Polytope(x, [x <= limit], oracle=lambda scores, limit: np.where(scores > 0, limit, 0.0))


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9, 1e15])
def test_limits_of_any_size(size):
    scores, limit = torch.tensor([2.0, -1.0, 0.0, 3.0]).double(), size * torch.tensor([1.0, 2.0, 3.0, 0.0]).double()
    leaf = limit.clone().requires_grad_()
    (found,) = torch.autograd.grad(ol.OptimalValue(within_limits())(scores, limit=leaf), leaf)
    torch.testing.assert_close(found[:3], torch.tensor([2.0, 0.0, 0.0]).double())
    assert 0.0 <= found[3] <= 3.0  # below 0 there are no points


def test_limits_that_are_infinite_do_not_bind():
    x, limit = cp.Variable(3, nonneg=True), cp.Parameter(name="limit")
    polytope = ol.Polytope(x, [x <= 1, cp.sum(x) <= limit], oracle=lambda s, most: np.where(s > 0, 1.0, 0.0))
    leaf = torch.tensor([torch.inf, 7.0], requires_grad=True)
    (found,) = torch.autograd.grad(ol.OptimalValue(polytope)(torch.ones(2, 3), limit=leaf).sum(), leaf)
    assert found.tolist() == [0.0, 0.0]


def test_infeasible_instances_leave_the_others_their_gradients():
    layer = ol.OptLayer(subset(4), ol.LPGD(1.0), on_failure="nan")
    scores, signal = draw(3, 4, seed=15), draw(3, 4, seed=16)
    limit = torch.tensor([1.5, 9.0, 2.5], dtype=torch.float64, requires_grad=True)
    value = layer(scores, budget=limit)
    assert value[1].isnan().all() and not value[[0, 2]].isnan().any()
    (found,) = torch.autograd.grad(value, limit, signal)
    able = ol.OptLayer(subset(4), ol.LPGD(1.0), maximizer=ol.Auto())
    others = limit.detach()[[0, 2]].requires_grad_()
    (alone,) = torch.autograd.grad(able(scores[[0, 2]], budget=others), others, signal[[0, 2]])
    assert found[1] == 0.0
    torch.testing.assert_close(found[[0, 2]], alone)
    with pytest.raises(ol.SolveError, match="instance 1 is INFEASIBLE"):
        ol.OptimalValue(subset(4))(scores, budget=limit)


def whole_parts(**said):
    """An oracle that takes whole parts only, beside constraints that say nothing of that."""
    x, room = cp.Variable(3, nonneg=True), cp.Parameter(name="room")

    def oracle(scores, room):
        return np.where(np.cumsum(scores > 0) <= np.floor(room), scores > 0, False).astype(float)

    return ol.Polytope(x, [x <= 1, cp.sum(x) <= room], oracle=oracle, **said)


def test_where_the_constraints_reach_more_than_the_oracle_an_instance_has_no_gradient_and_says_why():
    scores = torch.tensor([[3.0, 2.0, 1.0], [-1.0, -1.0, 4.0], [3.0, 2.0, 1.0]])
    room = torch.tensor([1.5, 2.5, 3.5], requires_grad=True)
    why = (
        r"1 of 3 instances could not be solved\n  instance 0 is FAILED: its parameters have no gradient: the best "
        r"point of the constraints is worth 4, the answer of Oracle\(.*\) 3, and these are not the values of one poly"
    )
    for loss in (ol.OptimalValue(whole_parts()), ol.StructuredPerceptronLoss(whole_parts())):
        given = () if isinstance(loss, ol.OptimalValue) else (torch.zeros(3, 3),)
        with pytest.raises(ol.SolveError, match=why):
            loss(scores, *given, room=room)
        loss(scores, *given, room=room.detach())  # nobody asks for a gradient
    apart = torch.tensor([[3.0, 2.0, 1.0], [-9.0, -9.0, 9.0], [3.0, 2.0, 1.0]])
    with pytest.raises(ol.SolveError, match=r"1 of 3 .*\n  instance 0 is FAILED: its parameters have no gradient"):
        ol.PerturbedFenchelYoungLoss(whole_parts(), samples=4)(apart, torch.zeros(3, 3), room=room)
    layer = ol.OptLayer(whole_parts(), ol.LPGD(1e-3), on_failure="nan")
    value = layer(scores, room=room)
    assert value[0].isnan().all() and not value[1:].isnan().any()
    with pytest.raises(ol.SolveError, match="instance 0 is FAILED: its parameters have no gradient"):
        ol.OptLayer(whole_parts(), ol.LPGD(1e-3))(scores, room=room)


def whole_numbers(**said):
    x, room = cp.Variable(3, integer=True), cp.Parameter(name="room")
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) <= room], **said)


def separated(**said):
    x, room = cp.Variable(3, boolean=True), cp.Parameter(name="room")
    return ol.Polytope(x, [cp.sum(x) <= room], separate=lambda point, room: None, **said)


@pytest.mark.parametrize(
    ("polytope", "why"),
    [
        (whole_parts(rows="relaxation"), 'those of this polytope are a relaxation, as rows="relaxation" says'),
        (whole_numbers(), 'those of integer points have none, .* say rows="exact" where'),
        (separated(), "separate= brings constraints that have none"),
    ],
    ids=["relaxation", "integers", "separate"],
)
def test_a_relaxation_has_no_prices_for_the_polytope_and_says_so(polytope, why):
    scores, room = torch.tensor([3.0, 2.0, 1.0]), torch.tensor(1.0, requires_grad=True)
    with torch.no_grad():
        ol.OptimalValue(polytope)(scores, room=room)
    for make in (ol.OptimalValue, lambda p: ol.OptLayer(p, ol.LPGD(1.0))):
        with pytest.raises(ValueError, match=f"gradients of parameters need prices of constraints, and {why}"):
            make(polytope)(scores, room=room)
    value = ol.OptLayer(polytope, ol.SparseMAP())(scores.requires_grad_(), room=room)
    moved, of_room = torch.autograd.grad(value[0], (scores, room))
    assert of_room.isnan() and not moved.isnan().any()  # how the vertices move nobody says


@pytest.mark.parametrize("solver", [ol.BranchAndBound(), ol.Diagram(), None], ids=repr)
def test_integer_variables_whose_rows_are_said_to_be_exact_have_a_gradient(solver):
    scores, room = torch.tensor([3.0, 2.0, 1.0]).double(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = ol.OptimalValue(whole_numbers(rows="exact"), maximizer=solver)
    (found,) = torch.autograd.grad(value(scores, room=room), room)
    assert 1.0 <= found <= 2.0
    with_oracle = whole_numbers(rows="exact", oracle=lambda s, room: (np.argsort(np.argsort(-s)) < room).astype(float))
    (found,) = torch.autograd.grad(ol.OptimalValue(with_oracle)(scores, room=room), room)
    assert 1.0 <= found <= 2.0


def test_branch_and_bound_over_a_polytope_of_rows():
    """Nobody would ask for it; it answers without a dual point."""
    x, room = cp.Variable(3, nonneg=True), cp.Parameter(name="room")
    polytope = ol.Polytope(x, [x <= 1, cp.sum(x) <= room])
    leaf = torch.tensor(1.5, requires_grad=True)
    value = ol.OptimalValue(polytope, maximizer=ol.BranchAndBound())(torch.tensor([3.0, 2.0, 1.0]), room=leaf)
    assert torch.autograd.grad(value, leaf)[0].item() == 2.0


def test_constraints_that_are_no_polytope_without_their_oracle_say_so():
    x, spare, room = cp.Variable(3, nonneg=True), cp.Variable(), cp.Parameter(name="room")
    rows = [cp.sum(x) + spare == room]
    polytope = ol.Polytope(x, rows, oracle=lambda s, room: np.eye(3)[np.argmax(s)] * room)
    leaf = torch.tensor(1.5, requires_grad=True)
    with pytest.raises(ValueError, match=r"are no polytope without Oracle\(.*\): the declaration is unbounded"):
        ol.OptimalValue(polytope, projector=ol.ActiveSet())(torch.tensor([3.0, 2.0, 1.0]), room=leaf)


def test_second_derivatives_of_values_of_nearest_points_over_an_oracle():
    """The gradient by a limit moves with the scores as the nearest point does with the limit."""
    scores, limit, found = draw(3, 5, seed=17), uniform(1.1, 3.9, 3, seed=18), []
    for solver in (ol.ActiveSet(), ol.Auto()):
        s, b = scores.clone().requires_grad_(), limit.clone().requires_grad_()
        value = ol.OptimalValue(subset(5), ol.Euclidean(), projector=solver)(s, budget=b)
        (slope,) = torch.autograd.grad(value.sum(), b, create_graph=True)
        found.append([slope.detach(), *torch.autograd.grad(slope.sum(), s)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert found[0][1].abs().max() > 0.1
    value = ol.OptimalValue(subset(5))
    s, b = scores.clone().requires_grad_(), limit.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(s, budget=b).sum(), b, create_graph=True)
    with pytest.raises(NotImplementedError, match="detach the parameters, or take one derivative only"):
        torch.autograd.grad(slope.sum(), s)


def test_what_a_caller_writes_to_afterwards_changes_nothing():
    layer = ol.OptLayer(subset(4), ol.SparseMAP(), projector=ol.ActiveSet())
    scores, limit, found = draw(2, 4, seed=19), torch.tensor([1.5, 2.5], dtype=torch.float64), []
    for write in (False, True):
        given, leaf = scores.clone(), limit.clone().requires_grad_()
        value = layer(given, budget=leaf)
        if write:
            given.mul_(-3.0)
            leaf.data.fill_(0.5)
        found.append(torch.autograd.grad(value, leaf, draw(2, 4, seed=20))[0])
    torch.testing.assert_close(*found, atol=0.0, rtol=0.0)
