"""Rules that ask the solver twice, or look through a normalization: their definitions and what holds exactly."""

import itertools
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import CATALOGUE
from hypothesis import given, settings
from hypothesis import strategies as st

import optlayers as ol
from optlayers.vertices import enumeration
from polytopes import arborescence, cube, linear_chain, matching, simplex, subset

entries = st.sampled_from([e for e in CATALOGUE if len(e.vertices) > 1])
seeds = st.integers(0, 10_000)
COMPILED = {e.name: ol.compile_polytope(e.polytope) for e in CATALOGUE}


def draw(shape, seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, *shape, generator=generator, dtype=torch.float64)


def through(polytope, rule, scores, signal, **given):
    leaf = scores.clone().requires_grad_()
    value = ol.OptLayer(polytope, rule)(leaf, **given)
    (found,) = torch.autograd.grad(value, leaf, signal)
    return value.detach(), found


def inner(first, second):
    return (first * second).flatten(1).sum(1)


def test_step_sizes_and_strengths_are_checked():
    for rule, name in ((ol.SpigotCE, "step_size"), (ol.SpigotEG, "step_size"), (ol.Interpolation, "strength")):
        for bad in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name} must be positive and finite, but got {bad}"):
                rule(bad)
        with pytest.raises(TypeError, match=f"{name} must be a number, but got 'one'"):
            rule("one")
    with pytest.raises(TypeError, match="center must be True, False or None, but got 1"):
        ol.Identity(center=1)


# Steps from marginals


@given(entries, seeds, st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_steps_from_marginals_are_what_they_are_called(entry, seed, step):
    scores, signal = draw(entry.polytope.shape, seed)
    compiled = COMPILED[entry.name]
    attention = ol.OptLayer(compiled, ol.StructuredAttention())
    means = attention(scores, **entry.parameters)
    value, euclidean = through(compiled, ol.SpigotCE(step), scores, signal, **entry.parameters)
    assert torch.equal(value, compiled.maximize(scores, **entry.parameters).value)
    near = compiled.project(means - step * signal, **entry.parameters).value
    torch.testing.assert_close(euclidean, means - near, atol=1e-7, rtol=0)
    assert (inner(euclidean, signal) >= inner(euclidean, euclidean) / step - 1e-8).all()
    value, entropic = through(compiled, ol.SpigotEG(step), scores, signal, **entry.parameters)
    assert torch.equal(value, compiled.maximize(scores, **entry.parameters).value)
    expected = means - attention(scores - step * signal, **entry.parameters)
    torch.testing.assert_close(entropic, expected, atol=1e-12, rtol=0)
    assert (inner(entropic, signal) >= -1e-12).all()  # marginals are monotone


@given(entries, seeds)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_short_exponentiated_steps_tend_to_structured_attention(entry, seed):
    scores, signal = draw(entry.polytope.shape, seed)
    compiled, step = COMPILED[entry.name], 1e-6
    _, found = through(compiled, ol.SpigotEG(step), scores, signal, **entry.parameters)
    _, expected = through(compiled, ol.StructuredAttention(), scores, signal, **entry.parameters)
    torch.testing.assert_close(found / step, expected, atol=1e-4, rtol=0)


def test_steps_on_the_simplex_are_those_of_softmax_and_sparsemax():
    scores, signal = draw((5,), 0)
    means = torch.softmax(scores, 1)
    _, found = through(simplex(5), ol.SpigotEG(0.5), scores, signal)
    step = means * torch.exp(-0.5 * signal)  # multiplicative, then normalized
    torch.testing.assert_close(found, means - step / step.sum(1, keepdim=True))
    _, found = through(simplex(5), ol.SpigotCE(1e5), scores, signal)
    worst = torch.nn.functional.one_hot(signal.argmin(1), 5)
    torch.testing.assert_close(found, means - worst, atol=1e-8, rtol=0)


def test_marginals_of_scored_auxiliaries_have_steps_in_the_entropy_alone():
    scores, signal = draw((3, 2), 1)
    transition = draw((3, 2, 2), 2)[0].requires_grad_()
    for rule, moves in ((ol.SpigotCE(), False), (ol.SpigotEG(), True)):
        value = ol.OptLayer(linear_chain(3, 2), rule)(scores.requires_grad_(), transition=transition)
        of_structure, of_pairs = torch.autograd.grad(value, (scores, transition), signal)
        assert of_structure.abs().max() > 1e-3
        assert bool((of_pairs != 0).any()) == moves


@pytest.mark.parametrize("rule", [ol.SpigotCE(), ol.SpigotEG()])
def test_marginals_of_too_many_vertices_are_refused_with_what_to_do(rule, monkeypatch):
    monkeypatch.setattr(enumeration, "VERTEX_LIMIT", 100)
    value = ol.OptLayer(matching(5), rule)(torch.zeros(5, 5, requires_grad=True))
    with pytest.raises(ValueError, match=r"more than 100, too many to enumerate; declare the polytope with log_part"):
        value.sum().backward()


def losses_of(layer, scores, target, **given):
    leaf = scores.clone().requires_grad_()
    losses = layer(leaf, objective=lambda z: (z - target).square().flatten(1).sum(1), **given)
    (found,) = torch.autograd.grad(losses.mean() * len(scores), leaf)
    return losses.detach(), found


def test_the_gradient_may_be_taken_at_the_marginals_as_the_authors_of_spigot_ce_do():
    scores = torch.tensor([[0.3, 0.2, -0.1]], dtype=torch.float64)
    target = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    for rule, at_vertex in ((ol.SpigotCE, [[0.2, -0.2, 0.0]]), (ol.SpigotEG, None)):
        vertex, means = (losses_of(ol.OptLayer(simplex(3), rule(0.1, at=at)), scores, target) for at in PLACES)
        assert torch.equal(vertex[0], means[0])  # both go forward with the best vertex
        mu = torch.softmax(scores, 1)
        step = 0.1 * 2 * (mu - target)
        expected = step if rule is ol.SpigotCE else mu - torch.softmax(scores - step, 1)
        torch.testing.assert_close(means[1], expected)
        if at_vertex is not None:
            torch.testing.assert_close(vertex[1], torch.tensor(at_vertex, dtype=torch.float64))
            assert means[1].round(decimals=3).tolist() == [[0.078, -0.13, 0.052]]


PLACES = ("vertex", "marginals")


@pytest.mark.parametrize("rule", [ol.SpigotCE(0.5, at="marginals"), ol.SpigotEG(0.5, at="marginals")])
def test_a_gradient_at_the_marginals_is_each_instances_own(rule):
    layer = ol.OptLayer(ol.Family(arborescence), rule)
    scores, target = draw((4, 4), 3)
    target = (target > 0).double()
    _, found = losses_of(layer, scores, target, sizes=[3, 2, 3])
    for k, size in enumerate([3, 2, 3]):
        corner = slice(k, k + 1), slice(0, size + 1), slice(0, size + 1)
        _, alone = losses_of(ol.OptLayer(arborescence(size), rule), scores[corner], target[corner])
        torch.testing.assert_close(found[corner], alone)
    assert (found[1, 3:] == 0).all()


@pytest.mark.parametrize("rule", [ol.SpigotCE(0.5, at="marginals"), ol.SpigotEG(0.5, at="marginals")])
def test_a_loss_without_a_finite_gradient_at_the_marginals_is_nan_for_its_instance_alone(rule):
    scores = draw((3,), 4)[0].requires_grad_()
    weight = torch.tensor([1.0, torch.inf, 1.0], dtype=torch.float64)[:, None]
    losses = ol.OptLayer(simplex(3), rule)(scores, objective=lambda z: (weight * z).square().sum(1).nan_to_num(nan=0.0))
    losses.sum().backward()
    assert scores.grad.isnan().all(1).tolist() == [False, True, False]


def test_the_place_of_the_gradient_is_checked():
    with pytest.raises(ValueError, match='at is "vertex" or "marginals", but got \'mean\''):
        ol.SpigotCE(at="mean")
    with pytest.raises(TypeError, match=r"works with losses: call layer\(scores, objective=f\)"):
        ol.OptLayer(simplex(3), ol.SpigotEG(at="marginals"))(torch.zeros(3))


# Interpolation


@given(entries, seeds, st.sampled_from([0.3, 3.0, 30.0]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_interpolation_is_on_the_right_side(entry, seed, strength):
    """Against the gradient, a linear loss goes down."""
    scores, signal = draw(entry.polytope.shape, seed)
    compiled = COMPILED[entry.name]
    value, found = through(compiled, ol.Interpolation(strength), scores, signal, **entry.parameters)
    better = compiled.maximize(scores - strength * signal, **entry.parameters).value
    torch.testing.assert_close(found, (value - better) / strength)
    moves = (found != 0).flatten(1).any(1)
    assert (inner(found, signal)[moves] > 0).all()
    longest = compiled.maximize(-signal, **entry.parameters).value
    _, far = through(compiled, ol.Interpolation(1e7), scores, signal, **entry.parameters)
    torch.testing.assert_close(1e7 * far, value - longest, atol=1e-6, rtol=0)


def test_a_step_against_the_interpolated_gradient_lowers_a_linear_loss():
    scores, signal = draw((4, 4), 3, count=40)
    value, found = through(matching(4), ol.Interpolation(1.0), scores, signal)
    moves = (found != 0).flatten(1).any(1)
    assert moves.sum() > 20
    after = ol.compile_polytope(matching(4)).maximize(scores - 5.0 * found).value
    assert (inner(after, signal) < inner(value, signal))[moves].all()


def test_interpolation_reaches_the_scores_of_auxiliaries():
    scores, signal = draw((3, 2), 4)
    transition = draw((3, 2, 2), 5)[0]
    compiled = ol.compile_polytope(linear_chain(3, 2))
    leaves = scores.clone().requires_grad_(), transition.clone().requires_grad_()
    value = ol.OptLayer(compiled, ol.Interpolation(4.0))(leaves[0], transition=leaves[1])
    found = torch.autograd.grad(value, leaves, signal)
    before = compiled.maximize(scores, transition=transition)
    after = compiled.maximize(scores - 4.0 * signal, transition=transition)
    torch.testing.assert_close(found[0], (before.value - after.value) / 4.0)
    torch.testing.assert_close(found[1], (before.scored["transition"] - after.scored["transition"]) / 4.0)
    assert found[1].abs().max() > 0


# Identity


def written_out(scores, center, normalize):
    """The normalization in torch, for polytopes all of whose parts can move."""
    flat = scores.flatten(1)
    if center:
        flat = flat - flat.mean(1, keepdim=True)
    if normalize:
        flat = flat / flat.norm(dim=1, keepdim=True)
    return flat.reshape(scores.shape)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_identity_differentiates_the_normalization(center, normalize):
    scores, signal = draw((3, 3), 6)
    for size in (1.0, 1e-200, 1e200):
        leaf = (size * scores).requires_grad_()
        normalized = written_out(scores, center, normalize)
        value, found = through(matching(3), ol.Identity(center, normalize), leaf.detach(), signal)
        assert torch.equal(value, ol.compile_polytope(matching(3)).maximize(normalized).value)
        reference = scores.clone().requires_grad_()
        (expected,) = torch.autograd.grad(written_out(reference, center, normalize), reference, signal)
        torch.testing.assert_close(found * (size if normalize else 1.0), expected)


def test_identity_without_normalization_is_straight_through():
    scores, signal = draw((3, 3), 7)
    for found, expected in zip(
        through(matching(3), ol.Identity(center=False, normalize=False), scores, signal),
        through(matching(3), ol.StraightThrough(), scores, signal),
        strict=True,
    ):
        assert torch.equal(found, expected)


@given(entries, seeds)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_identity_asks_for_nothing_that_changes_no_decision(entry, seed):
    """Gradients are orthogonal to the scores and to constants, over the parts that can move."""
    scores, signal = draw(entry.polytope.shape, seed)
    compiled = COMPILED[entry.name]
    value, found = through(compiled, ol.Identity(), scores, signal, **entry.parameters)
    torch.testing.assert_close(inner(found, scores), torch.zeros(3).double(), atol=1e-12, rtol=0)
    fixed = torch.tensor(entry.vertices)
    fixed = (fixed == fixed[0]).all(0)
    if fixed.flatten().any() and "one state" not in entry.name:
        assert (found[:, fixed] == 0).all()
    assert torch.equal(value, compiled.maximize(scores, **entry.parameters).value)
    if len({v.sum().round(9) for v in entry.vertices}) == 1:
        torch.testing.assert_close(found.flatten(1).sum(1), torch.zeros(3).double(), atol=1e-12, rtol=0)


@pytest.mark.many(12)
@pytest.mark.parametrize("entry", CATALOGUE, ids=repr)
def test_what_is_said_of_the_number_of_parts_is_so(entry):
    lengths = entry.vertices.reshape(len(entry.vertices), -1).sum(axis=1)
    equally_long = lengths.max() - lengths.min() < 1e-9
    for polytope in (entry.polytope, entry.polytope.without_oracle()):
        assert ol.compile_polytope(polytope).equally_long == equally_long


def test_centring_that_changes_decisions_is_said_when_the_layer_is_made():
    with pytest.warns(UserWarning, match="changes decisions: the structures of this polytope are not known to"):
        ol.OptLayer(cube(3), ol.Identity(center=True))
    family = ol.OptLayer(ol.Family(cube), ol.Identity(center=True))
    with pytest.warns(
        UserWarning, match=r"changes decisions.*of this family size 2 is the first that it concerns"
    ) as said:
        family(torch.zeros(3, 4), sizes=[3, 2, 4])
    assert len(said) == 1  # of all sizes
    for outer in (ol.Hard(ol.Identity(center=True)), ol.PerturbAndMAP(ol.Identity(center=True))):
        with pytest.warns(UserWarning, match="changes decisions"):
            ol.OptLayer(cube(3), outer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ol.OptLayer(cube(3), ol.Identity())
        ol.OptLayer(cube(3), ol.Identity(center=False))
        ol.OptLayer(matching(3), ol.Identity(center=True))


def fixed_by(vertices, forbidden):
    """Parts that all structures without the forbidden parts have in common, by enumeration; None for none left."""
    left = vertices[(vertices[:, forbidden] == 0).all(axis=1)]
    return None if not len(left) else (left == left[0]).all(axis=0)


@pytest.mark.many(12)
@pytest.mark.parametrize("entry", [e for e in CATALOGUE if len(e.vertices) > 1], ids=repr)
def test_parts_that_forbidden_ones_fix_get_no_gradient(entry):
    """What is said to be fixed is so, by enumeration, and nothing is missed."""
    flat = entry.vertices.reshape(len(entry.vertices), -1)
    generator = torch.Generator().manual_seed(0)
    for polytope in (entry.polytope, entry.polytope.without_oracle()):
        for _ in range(6):
            scores, signal = draw(entry.polytope.shape, int(torch.randint(1000, (), generator=generator)), count=1)
            hidden = torch.rand(flat.shape[1], generator=generator) < 0.4
            fixed = fixed_by(flat, hidden.numpy())
            if fixed is None:
                continue
            scores.view(1, -1)[:, hidden] = -torch.inf
            movable = ol.compile_polytope(polytope)
            given = {n: torch.tensor([v], dtype=torch.float64) for n, v in entry.parameters.items()}
            rows = movable.bind(given, hidden[None], 1).movable[0]
            assert torch.equal(~rows[: len(fixed)], torch.from_numpy(fixed))
            _, found = through(movable, ol.Identity(), scores, signal, **entry.parameters)
            assert (found.flatten()[fixed] == 0).all()


def test_what_is_left_of_an_assignment_is_fixed_whichever_row_is_redundant():
    """Of the rows of an assignment one follows from the others: any of them may be the one that says that a part is
    fixed."""
    scores, signal = draw((3, 3), 4, count=1)
    for axis, k in itertools.product((1, 2), range(3)):
        masked = scores.clone()
        masked.select(axis, k)[0, :2] = -torch.inf  # the third of this row or column is 1, and others beside it 0
        for compiled in (matching(3), matching(3).without_oracle()):
            _, found = through(compiled, ol.Identity(), masked, signal)
            left = torch.ones(3, 3, dtype=torch.bool)
            left.select(axis - 1, k)[:] = False
            left.select(2 - axis, 2)[:] = False
            reference = masked[:, left].clone().requires_grad_()
            (expected,) = torch.autograd.grad(written_out(reference, True, True), reference, signal[:, left])
            torch.testing.assert_close(found[:, left], expected)
            assert (found[:, ~left] == 0).all()


def test_parts_that_several_constraints_fix_together_do_not_move():
    x = cp.Variable(5)
    rows = [x[0] + x[1] == 1, x[1] + x[2] == 1, x[0] + x[2] <= 1, x[0] + x[2] >= 1, x >= -1, x <= 2]  # the first are ½
    compiled = ol.compile_polytope(ol.Polytope(x, rows))
    assert compiled.bind({}, None, 7).movable.tolist() == [[False, False, False, True, True]]
    assert compiled.bind({}, None, 0).movable.shape == (1, 5)
    masks = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True, True]])
    assert compiled.bind({}, masks, 3).movable.tolist() == [
        [False] * 3 + part for part in ([True] * 2, [True, False], [False] * 2)
    ]


def test_structures_of_one_part_each_are_told_apart_without_a_question_for_each():
    """Of 300 classes and a part beside them that can only be 1."""
    x, asked = cp.Variable(301), []

    def best(scores):
        asked.append(scores)
        value = np.zeros(301)
        value[np.argmax(scores[:300])], value[300] = 1.0, 1.0
        return value

    rows = [x >= 0, cp.sum(x[:300]) == 1, x[300] == x[0] + cp.sum(x[1:300])]
    compiled = ol.compile_polytope(ol.Polytope(x, rows, oracle=best, integral=True))
    hidden = torch.zeros(1, 301, dtype=torch.bool)
    hidden[0, :4] = True
    asked.clear()
    assert torch.equal(compiled.bind({}, hidden, 1).movable[0], (~hidden[0]) & (torch.arange(301) < 300))
    assert len(asked) < 30
    before = len(asked)
    compiled.bind({}, hidden.repeat(5, 1), 5).movable  # noqa: B018 - it is known
    assert len(asked) == before


def test_parts_that_a_parameter_fixes_have_no_gradient():
    scores, signal = draw((4,), 5)
    budget = torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64)
    _, found = through(subset(4), ol.Identity(), scores, signal, budget=budget)
    assert (found[[0, 2]] == 0).all() and found[1].abs().max() > 1e-3


def test_the_row_that_is_left_of_an_assignment_has_no_gradient():
    scores, signal = draw((3, 3), 4)
    scores[:, :2, 0] = -torch.inf  # so that the third row takes the first column
    for compiled in (matching(3), matching(3).without_oracle()):
        _, found = through(compiled, ol.Identity(), scores, signal)
        assert (found[:, 2] == 0).all() and (found[:, :, 0] == 0).all()
        assert found[:, :2, 1:].abs().max() > 1e-3
        torch.testing.assert_close(found[:, :2, 1:].sum((1, 2)), torch.zeros(3).double(), atol=1e-12, rtol=0)


def test_identity_leaves_out_forbidden_parts():
    scores, signal = draw((4, 4), 8)
    scores[:, 0, 1] = -torch.inf
    _, found = through(arborescence(3), ol.Identity(), scores, signal)
    parts = torch.ones(4, 4, dtype=torch.bool).fill_diagonal_(False)
    parts[:, 0], parts[0, 1] = False, False
    assert (found[:, ~parts] == 0).all()
    reference = scores[:, parts].clone().requires_grad_()
    (expected,) = torch.autograd.grad(written_out(reference, True, True), reference, signal[:, parts])
    torch.testing.assert_close(found[:, parts], expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9, -3.7])
def test_identity_of_equal_scores_has_a_finite_gradient(constant):
    scores, signal = draw((5,), 9)
    equal = torch.full_like(scores, constant)
    value, found = through(simplex(5), ol.Identity(), equal, signal)
    assert torch.equal(value, ol.compile_polytope(simplex(5)).maximize(torch.zeros_like(scores)).value)
    torch.testing.assert_close(found, signal - signal.mean(1, keepdim=True))
    _, found = through(simplex(1), ol.Identity(), torch.full((2, 1), constant), torch.ones(2, 1))
    assert (found == 0).all()
    _, found = through(cube(5), ol.Identity(center=False), torch.zeros_like(scores), signal)
    assert torch.equal(found, signal)


def test_identity_scales_auxiliary_scores_with_the_rest():
    scores, signal = draw((3, 2), 10)
    transition = draw((3, 2, 2), 11)[0]
    chain = ol.compile_polytope(linear_chain(3, 2))
    leaves = scores.clone().requires_grad_(), transition.clone().requires_grad_()
    value = ol.OptLayer(chain, ol.Identity())(leaves[0], transition=leaves[1])
    assert torch.equal(value.detach(), chain.maximize(scores, transition=transition).value)
    found = torch.autograd.grad(value, leaves, signal)
    torch.testing.assert_close(found[0].flatten(1).sum(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    movable = chain.bind({}, None, 1).movable[0, 6:].reshape(3, 2, 2)
    along = inner(found[0], scores) + inner(found[1], transition * movable)
    torch.testing.assert_close(along, torch.zeros(3).double(), atol=1e-12, rtol=0)
    assert found[1].abs().max() > 0
