"""A layer behaves like other PyTorch functions: torch.func, torch.compile, autocast, second derivatives."""

from dataclasses import dataclass
from typing import final

import cvxpy as cp
import pytest
import torch
from catalogue import CATALOGUE, REPEATABLE
from drawing import draw
from torch import nn
from torch.autograd import forward_ad as fwAD
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import optlayers as ol
from optlayers.rules import AbstractVertexRule
from polytopes import arborescence, linear_chain, matching, sequence, simplex, subset

SMOOTH = [ol.SparseMAP(), ol.StructuredAttention()]
SMALL = {"simplex": simplex(4), "matching": matching(3), "sequence": sequence(3, 2), "tree": arborescence(3)}


def review() -> ol.Polytope:
    """Two reviewers for each of 3 papers; what 4 reviewers can bear differs per instance."""
    x = cp.Variable((3, 4))
    load = cp.Parameter(4, name="load", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x, axis=1) == 2, cp.sum(x, axis=0) <= load])


def weighted() -> ol.Polytope:
    """Fractions whose weights, parameters in the constraint matrix, sum to one."""
    x = cp.Variable(3, nonneg=True)
    weight = cp.Parameter(3, name="weight", pos=True)
    return ol.Polytope(x, [x <= 1, weight @ x == 1])


# torch.func


@pytest.mark.many(5)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("rule", REPEATABLE, ids=repr)
def test_vmap_equals_a_batch_in_values_and_gradients(rule, name):
    layer = ol.OptLayer(SMALL[name], rule)
    shape = SMALL[name].shape
    scores, weights = draw(4, *shape), draw(4, *shape, seed=1)
    leaf = scores.clone().requires_grad_()
    value = layer(leaf)
    (expected,) = torch.autograd.grad((value * weights).sum(), leaf)
    torch.testing.assert_close(vmap(layer, in_dims=-1, out_dims=1)(scores.movedim(0, -1)).movedim(1, 0), value.detach())
    per_sample = vmap(grad(lambda s, w: (layer(s) * w).sum()))(scores, weights)
    torch.testing.assert_close(per_sample, expected)
    through = vmap(layer)(leaf)
    torch.testing.assert_close(torch.autograd.grad((through * weights).sum(), leaf)[0], expected)


@pytest.mark.parametrize("rule", REPEATABLE, ids=repr)
def test_nested_vmap_around_a_batch(rule):
    layer = ol.OptLayer(matching(3), rule)
    scores, weights = draw(2, 3, 2, 3, 3), draw(2, 3, 2, 3, 3, seed=1)

    def loss(s: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (layer(s) * w).sum()

    leaf = scores.clone().requires_grad_()
    value = layer(leaf)
    (expected,) = torch.autograd.grad((value * weights).sum(), leaf)
    torch.testing.assert_close(
        vmap(vmap(layer, in_dims=1, out_dims=1), in_dims=2)(scores.movedim(0, 2)), value.detach()
    )
    torch.testing.assert_close(vmap(vmap(grad(loss)))(scores, weights), expected)
    torch.testing.assert_close(vmap(grad(lambda s, w: vmap(loss)(s, w).sum()))(scores, weights), expected)
    torch.testing.assert_close(grad(lambda s: vmap(vmap(loss))(s, weights).sum())(scores), expected)


@pytest.mark.parametrize("shared", ["scores", "load", "neither"])
def test_vmap_over_parameters(shared):
    layer = ol.OptLayer(review(), ol.SparseMAP())
    scores, weights = draw(5, 3, 4), draw(5, 3, 4, seed=1)
    loads = 1.5 + torch.rand(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    s, load = scores[0] if shared == "scores" else scores, loads[0] if shared == "load" else loads
    dims = (None if shared == "scores" else 0, None if shared == "load" else 0, 0)

    def loss(s: torch.Tensor, load: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (layer(s, load=load) * w).sum()

    leaves = s.expand(5, 3, 4).clone().requires_grad_(), load.expand(5, 4).clone().requires_grad_()
    expected = torch.autograd.grad((layer(leaves[0], load=leaves[1]) * weights).sum(), leaves)
    assert expected[1].abs().sum() > 0.1
    torch.testing.assert_close(vmap(grad(loss, argnums=(0, 1)), in_dims=dims)(s, load, weights), expected)
    summed = grad(lambda *given: vmap(loss, in_dims=dims)(*given, weights).sum(), argnums=(0, 1))(s, load)
    for found, each, given in zip(summed, expected, (s, load), strict=True):
        torch.testing.assert_close(found, each if found.ndim == each.ndim else each.sum(0))
        assert found.shape == given.shape


def test_vmap_over_scored_auxiliary_variables():
    layer = ol.OptLayer(linear_chain(3, 2), ol.SparseMAP())
    scores, pairs = draw(4, 3, 2), draw(4, 3, 2, 2, seed=1)
    expected = layer(scores, transition=pairs)
    torch.testing.assert_close(vmap(lambda s, t: layer(s, transition=t))(scores, pairs), expected)
    one = layer(scores[:1].expand(4, 3, 2), transition=pairs)
    torch.testing.assert_close(vmap(lambda t: layer(scores[0], transition=t))(pairs), one)


@pytest.mark.parametrize("rule", [*SMOOTH, ol.Hard(ol.SparseMAP()), ol.Spigot()], ids=repr)
def test_jacrev_is_one_backward_pass_per_entry(rule):
    layer, scores = ol.OptLayer(matching(3), rule), draw(2, 3, 3)
    rows = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
    leaf = scores.clone().requires_grad_()
    each = [[torch.autograd.grad(layer(leaf)[k], leaf, row)[0][k] for row in rows] for k in range(2)]
    expected = torch.stack([torch.stack(one) for one in each]).reshape(2, 3, 3, 3, 3)
    torch.testing.assert_close(vmap(jacrev(layer))(scores), expected)
    torch.testing.assert_close(jacrev(layer)(scores[0]), expected[0])
    torch.testing.assert_close(jacrev(layer, chunk_size=2)(scores[1]), expected[1])


def test_jacrev_of_a_projection_is_its_derivative():
    layer, scores = ol.OptLayer(sequence(3, 2), ol.SparseMAP()), draw(3, 2, 2)
    step = 1e-5 * draw(3, 2, 2, seed=1)
    moved = (layer(scores + step) - layer(scores - step)) / 2
    torch.testing.assert_close(torch.tensordot(jacrev(layer)(scores), step, 3), moved, atol=1e-9, rtol=1e-5)


def test_vjp_outlives_its_transform():
    layer, weights = ol.OptLayer(matching(3), ol.SparseMAP()), draw(4, 3, 3, seed=1)
    scores = draw(4, 3, 3)
    value, pull_back = vjp(vmap(layer), scores)
    leaf = scores.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(leaf), leaf, weights)
    torch.testing.assert_close(value, layer(scores))
    torch.testing.assert_close(pull_back(weights)[0], expected)


OF_BARRIERS = [rule for rule in REPEATABLE if isinstance(rule, ol.CentralPath) or isinstance(rule.omega, ol.Barrier)]
"""Whose points are differentiated once, while forward mode here asks twice."""
JUMPING = [
    rule
    for rule in REPEATABLE
    if isinstance(rule, (ol.Interpolation, ol.LPGD)) and getattr(rule, "smoothing", 0.0) == 0.0
]
"""Whose gradients are differences of two best vertices, which have no derivative, as they say."""
LINEAR = [rule for rule in REPEATABLE if rule.has_jacobian and rule not in OF_BARRIERS]


@pytest.mark.parametrize("rule", OF_BARRIERS, ids=repr)
def test_rules_of_barriers_say_that_they_have_no_forward_mode(rule):
    with pytest.raises(NotImplementedError, match="has no derivative in forward mode here: the derivative of barrier"):
        jvp(ol.OptLayer(simplex(3), rule), (draw(3),), (draw(3, seed=1),))


@pytest.mark.parametrize("rule", [ol.Spigot(0.7), ol.Interpolation(1.0), ol.IMLE()], ids=repr)
def test_forward_mode_is_refused_where_backward_is_no_matrix(rule):
    with pytest.raises(NotImplementedError, match=r"has a backward derivative only: use torch.func.vjp or jacrev"):
        jacfwd(ol.OptLayer(simplex(3), rule), randomness="different")(draw(3))


@pytest.mark.many(6)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("rule", [*LINEAR, ol.Identity()], ids=repr)
def test_forward_mode_is_the_transpose_of_backward(rule, name):
    layer, shape = ol.OptLayer(SMALL[name], rule), SMALL[name].shape
    scores, direction = draw(2, *shape), draw(2, *shape, seed=1)
    leaf = scores.clone().requires_grad_()
    rows = torch.stack([torch.autograd.grad(layer(leaf)[0].flatten()[k], leaf)[0][0] for k in range(leaf[0].numel())])
    expected = (rows * direction[0]).flatten(1).sum(1).reshape(shape)
    value, moved = jvp(layer, (scores,), (direction,))
    torch.testing.assert_close(value, layer(scores), atol=0.0, rtol=0.0)
    torch.testing.assert_close(moved[0], expected)
    torch.testing.assert_close(jacfwd(layer)(scores[0]), jacrev(layer)(scores[0]))
    with fwAD.dual_level():
        dual = fwAD.unpack_dual(layer(fwAD.make_dual(scores, direction)))
    torch.testing.assert_close(dual.tangent, moved)
    torch.testing.assert_close(vmap(lambda s, d: jvp(layer, (s,), (d,))[1])(scores, direction), moved)


def test_forward_mode_goes_through_parameters():
    layer, scores = ol.OptLayer(review(), ol.SparseMAP()), draw(2, 3, 4)
    loads, along = torch.full((2, 4), 1.6, dtype=torch.float64), draw(2, 4, seed=1)
    _, moved = jvp(lambda load: layer(scores, load=load), (loads,), (along,))
    step = 1e-5 * along
    expected = (layer(scores, load=loads + step) - layer(scores, load=loads - step)) / 2e-5
    assert expected.abs().sum() > 0.1
    torch.testing.assert_close(moved, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("rule", SMOOTH, ids=repr)
def test_second_derivatives_in_all_modes_agree(rule):
    layer, scores, target = ol.OptLayer(matching(3), rule), draw(3, 3), draw(3, 3, seed=1)

    def loss(s: torch.Tensor) -> torch.Tensor:
        return ((layer(s) - target) ** 4).sum()

    expected = jacrev(jacrev(loss))(scores)
    assert expected.abs().sum() > 0.1
    for mixed in (jacfwd(jacrev(loss)), jacrev(jacfwd(loss)), jacfwd(jacfwd(loss)), hessian(loss)):
        torch.testing.assert_close(mixed(scores), expected)


@pytest.mark.filterwarnings("ignore:.* has no gradient for parameters")
@pytest.mark.parametrize(("rule", "jacobian"), [(ol.Pipeline(), 0.0), (ol.StraightThrough(), 1.0)], ids=repr)
def test_forward_over_reverse_goes_through_gradients_that_are_constant(rule, jacobian):
    """Of scores and of parameters; what a rule says of the latter is 0."""
    layer, (scores, along) = ol.OptLayer(subset(4), rule), draw(2, 2, 4)
    budget = torch.tensor([1.3, 2.2], dtype=torch.float64)

    def loss(s: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (layer(s, budget=b) ** 2).sum() + (s**2).sum() + (b**2).sum()

    _, (of_scores, of_budget) = jvp(grad(loss, argnums=(0, 1)), (scores, budget), (along, torch.ones_like(budget)))
    torch.testing.assert_close(of_scores, 2.0 * (1.0 + jacobian) * along)
    torch.testing.assert_close(of_budget, torch.full_like(budget, 2.0))
    _, alone = jvp(grad(lambda s: loss(s, budget)), (scores,), (along,))
    torch.testing.assert_close(alone, of_scores)
    (first, mixed), (_, last) = hessian(loss, argnums=(0, 1))(scores, budget)
    torch.testing.assert_close(first.reshape(8, 8), 2.0 * (1.0 + jacobian) * torch.eye(8, dtype=torch.float64))
    assert (mixed == 0).all()
    torch.testing.assert_close(last, 2.0 * torch.eye(2, dtype=torch.float64))


def test_forward_over_reverse_goes_through_some_of_the_gradients():
    layer, (scores, along) = ol.OptLayer(subset(4), ol.SparseMAP()), draw(2, 2, 4)
    budget, step = torch.tensor([1.3, 2.2], dtype=torch.float64), 1e-6

    def slope(s: torch.Tensor) -> torch.Tensor:
        return grad(lambda t: (layer(t, budget=budget) ** 2).sum())(s)

    expected = (slope(scores + step * along) - slope(scores - step * along)) / (2.0 * step)
    assert expected.abs().sum() > 0.1
    torch.testing.assert_close(jvp(slope, (scores,), (along,))[1], expected, atol=1e-8, rtol=1e-6)


def test_forward_mode_goes_through_parameters_in_the_matrix():
    layer, scores = ol.OptLayer(weighted(), ol.SparseMAP()), draw(2, 3)
    weight, along = 1.0 + draw(2, 3, seed=1).abs(), draw(2, 3, seed=2)
    step = 1e-6 * along
    expected = (layer(scores, weight=weight + step) - layer(scores, weight=weight - step)) / 2e-6
    assert expected.abs().sum() > 0.1
    _, moved = jvp(lambda w: layer(scores, weight=w), (weight,), (along,))
    torch.testing.assert_close(moved, expected, atol=1e-8, rtol=1e-6)
    with fwAD.dual_level():
        dual = fwAD.unpack_dual(layer(scores, weight=fwAD.make_dual(weight, along)))
    torch.testing.assert_close(dual.tangent, moved)
    each = vmap(lambda s, w, d: jvp(lambda u: layer(s, weight=u), (w,), (d,))[1])(scores, weight, along)
    torch.testing.assert_close(each, moved)
    both = layer(scores + step, weight=weight + step) - layer(scores - step, weight=weight - step)
    _, moved = jvp(lambda s, w: layer(s, weight=w), (scores, weight), (along, along))
    torch.testing.assert_close(moved, both / 2e-6, atol=1e-8, rtol=1e-6)
    bent = hessian(lambda w: layer(scores, weight=w).sum())(weight)
    torch.testing.assert_close(jacfwd(jacfwd(lambda w: layer(scores, weight=w).sum()))(weight), bent)

    def slope(w: torch.Tensor) -> torch.Tensor:
        return grad(lambda v: layer(scores, weight=v).sum())(w)

    expected = (slope(weight + step) - slope(weight - step)) / 2e-6
    assert expected.abs().sum() > 0.1
    torch.testing.assert_close(torch.einsum("ijkl,kl->ij", bent, along), expected, atol=1e-7, rtol=1e-6)


def test_forward_mode_goes_through_sets_that_are_not_polyhedral():
    x = cp.Variable(2)
    layer = ol.OptLayer(ol.Polytope(x, [cp.norm(x) <= 1]), ol.SparseMAP(), projector=ol.CvxpyLayers())
    scores, along = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    _, moved = jvp(layer, (scores,), (along,))
    # s / |s| turns by what of the direction is orthogonal to s, over |s|.
    expected = (along - 0.6 * torch.tensor([0.6, 0.8], dtype=torch.float64)) / 5.0
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0.0)


def test_wrong_scores_under_vmap_are_named():
    scores = draw(4, 2, 3)
    scores[2, 1, 0] = torch.nan
    layer = ol.OptLayer(simplex(3), ol.SparseMAP())
    with pytest.raises(ValueError, match=r"nan at batch index \(2, 1\), entry \[0\]"):
        vmap(layer)(scores)


def test_wrong_auxiliary_scores_under_vmap_are_named():
    layer, scores, pairs = ol.OptLayer(linear_chain(3, 2), ol.SparseMAP()), draw(3, 2), draw(4, 3, 2, 2)
    pairs[2, 1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"transition hold nan at batch index 2, entry \[1, 0, 1\]"):
        vmap(lambda t: layer(scores, transition=t))(pairs)


def test_failures_under_vmap_are_named_or_nan():
    scores, loads = 0.3 * draw(4, 3, 4), torch.full((4, 4), 3.0, dtype=torch.float64)
    loads[2] = 1.0
    with pytest.raises(ol.SolveError, match=r"1 of 4 .*\n.*instance 2 is INFEASIBLE"):
        vmap(lambda s, load: ol.OptLayer(review(), ol.SparseMAP())(s, load=load))(scores, loads)
    tolerant = ol.OptLayer(review(), ol.SparseMAP(), on_failure="nan")
    value = vmap(lambda s, load: tolerant(s, load=load))(scores, loads)
    assert value.isnan().flatten(1).all(1).tolist() == [False, False, True, False]
    gradient = vmap(grad(lambda s, load: tolerant(s, load=load)[0, 0]))(scores, loads)
    assert (gradient[2] == 0).all() and gradient[[0, 1, 3]].abs().flatten(1).sum(1).min() > 0.1


def test_negative_parameters_under_vmap_are_named():
    layer, loads = ol.OptLayer(review(), ol.SparseMAP()), torch.full((3, 4), 3.0)
    loads[1, 2] = -1.0
    with pytest.raises(ValueError, match=r"parameter load\[2\] must be nonnegative, but is -1.0 in instance 1"):
        vmap(lambda s, load: layer(s, load=load))(draw(3, 3, 4), loads)


def test_forbidden_parts_under_vmap():
    scores = draw(4, 3, 3)
    scores[1, 0, :2] = -torch.inf
    scores[3, 2, 1] = -torch.inf
    layer = ol.OptLayer(matching(3), ol.SparseMAP())
    torch.testing.assert_close(vmap(layer)(scores), layer(scores))
    gradient = vmap(grad(lambda s: layer(s)[0, 2]))(scores)
    assert (gradient[scores.isneginf()] == 0).all() and gradient[3].abs().sum() > 0.1


def test_a_family_under_vmap():
    layer, scores = ol.OptLayer(ol.Family(simplex), ol.SparseMAP()), draw(4, 3, 5)
    expected = layer(scores, sizes=[[2, 5, 3]] * 4)
    torch.testing.assert_close(vmap(lambda s: layer(s, sizes=[2, 5, 3]))(scores), expected)
    scores[3, 1, 4] = torch.nan
    with pytest.raises(ValueError, match=r"nan at batch index \(3, 1\), entry \[4\]"):
        vmap(lambda s: layer(s, sizes=[2, 5, 3]))(scores)


def test_failures_of_a_family_under_vmap_are_named():
    layer = ol.OptLayer(ol.Family(subset), ol.SparseMAP())
    with pytest.raises(ol.SolveError, match=r"instance \(2, 1\) is INFEASIBLE"):
        vmap(lambda s, b: layer(s, sizes=[5, 3], budget=b))(draw(3, 2, 5), torch.tensor([1.0, 2.0, 4.0]))


def test_sizes_under_vmap_are_refused():
    layer = ol.OptLayer(ol.Family(simplex), ol.SparseMAP())
    with pytest.raises(TypeError, match="sizes must be plain integers, but under vmap they have no values"):
        vmap(lambda s, sizes: layer(s, sizes=sizes))(draw(4, 3, 5), torch.full((4, 3), 2))


def test_solve_is_refused_under_transforms():
    layer, scores = ol.OptLayer(matching(3), ol.SparseMAP()), draw(4, 3, 3)
    for transform in (vmap, grad):
        with pytest.raises(NotImplementedError, match=r"solve\(\) gives verdicts, which are numbers"):
            transform(lambda s: layer.solve(s).value.sum())(scores)


def test_an_objective_under_transforms():
    layer, scores = ol.OptLayer(simplex(3), ol.SparseMAP()), draw(4, 3)
    target = draw(4, 3, seed=1)
    found = vmap(grad(lambda s, t: layer(s, objective=lambda x: ((x - t) ** 2).sum(-1))))(scores, target)
    torch.testing.assert_close(found, vmap(grad(lambda s, t: ((layer(s) - t) ** 2).sum()))(scores, target))


@final
@dataclass(frozen=True)
class Losing(AbstractVertexRule):
    """Works with losses, and draws."""

    needs_objective = True
    draws = True

    def backward(self, polytope, saved, grad, context):
        raise AssertionError("is not reached")


@final
@dataclass(frozen=True)
class Drawing(AbstractVertexRule):
    """The best vertex of noise."""

    draws = True

    def forward(self, polytope, scores, context):
        noise = torch.randn(scores.shape, generator=context.generator, dtype=torch.float64)
        return super().forward(polytope, scores + 10.0 * noise, context)

    def backward(self, polytope, saved, grad, context):
        raise AssertionError("is not reached")


def test_a_rule_that_works_with_losses_is_refused_under_transforms():
    layer = ol.OptLayer(simplex(3), Losing())
    for transform in (vmap, grad):
        with pytest.raises(NotImplementedError, match=r"Losing\(\) works with losses and cannot be transformed"):
            transform(lambda s: layer(s, objective=lambda x: x.sum(-1)))(draw(1, 3))


def test_a_rule_that_draws_needs_different_randomness():
    layer, scores = ol.OptLayer(simplex(3), Drawing()), torch.zeros(50, 3)
    for randomness in ("error", "same"):
        with pytest.raises(RuntimeError, match=r"Drawing\(\) draws random numbers, others for every instance"):
            vmap(layer, randomness=randomness)(scores)
    torch.manual_seed(0)
    assert (vmap(layer, randomness="different")(scores).sum(0) > 5).all()


# Second derivatives

CHECKED = [
    e for e in CATALOGUE if e.name in {"simplex", "cube", "subset", "matching", "sequence", "path", "tree", "ranking"}
]


@pytest.mark.many(3)
@pytest.mark.parametrize("rule", SMOOTH, ids=repr)
@pytest.mark.parametrize("entry", CHECKED, ids=repr)
def test_gradients_are_those_of_finite_differences(entry, rule):
    layer = ol.OptLayer(entry.polytope, rule)
    leaf = draw(2, *entry.polytope.shape, seed=3).requires_grad_()
    assert gradcheck(lambda s: layer(s, **entry.parameters), leaf, eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_second_derivatives_are_those_of_finite_differences(name):
    layer = ol.OptLayer(SMALL[name], ol.SparseMAP())
    shape = SMALL[name].shape
    leaf, weights = draw(1, *shape, seed=3).requires_grad_(), draw(1, *shape, seed=4).requires_grad_()
    assert gradgradcheck(lambda s: layer(s), leaf, weights, eps=1e-5, atol=1e-6)


@pytest.mark.many(4)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("rule", [rule for rule in REPEATABLE if rule not in JUMPING], ids=repr)
def test_gradients_of_rules_have_the_derivative_of_finite_differences(rule, name):
    layer = ol.OptLayer(SMALL[name], rule)
    shape = SMALL[name].shape
    leaf, weights = draw(1, *shape, seed=3).requires_grad_(), draw(1, *shape, seed=4).requires_grad_()

    def gradient(s: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(layer(s), s, w, create_graph=True)[0]

    assert gradcheck(gradient, (leaf, weights), eps=1e-5, atol=1e-6)


@pytest.mark.many(3)
@pytest.mark.parametrize("entry", [e for e in CATALOGUE if "four" not in e.name], ids=repr)
def test_second_derivatives_of_marginals_over_the_catalogue(entry):
    layer = ol.OptLayer(entry.polytope, ol.StructuredAttention())
    leaf = draw(1, *entry.polytope.shape, seed=3).requires_grad_()
    weights = draw(1, *entry.polytope.shape, seed=4).requires_grad_()
    assert gradgradcheck(lambda s: layer(s, **entry.parameters), leaf, weights, eps=1e-5, atol=1e-6)


def test_second_derivatives_through_parameters():
    layer = ol.OptLayer(review(), ol.SparseMAP())
    leaf = draw(1, 3, 4, seed=3).requires_grad_()
    loads = (1.2 + torch.rand(1, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).requires_grad_()
    weights = draw(1, 3, 4, seed=4).requires_grad_()
    gradients = torch.autograd.grad(layer(leaf, load=loads), (leaf, loads), weights)
    assert min(g.abs().sum() for g in gradients) > 0.1
    assert gradcheck(lambda s, b: layer(s, load=b), (leaf, loads), eps=1e-5, atol=1e-6)
    assert gradgradcheck(lambda s, b: layer(s, load=b), (leaf, loads), weights, eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", SMOOTH, ids=repr)
def test_second_derivatives_through_scored_auxiliary_variables(rule):
    layer = ol.OptLayer(linear_chain(3, 2), rule)
    leaves = draw(1, 3, 2, seed=3).requires_grad_(), draw(1, 3, 2, 2, seed=5).requires_grad_()
    assert gradcheck(lambda s, t: layer(s, transition=t), leaves, eps=1e-5, atol=1e-6)
    assert gradgradcheck(lambda s, t: layer(s, transition=t), leaves, eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", SMOOTH, ids=repr)
def test_second_derivatives_beside_forbidden_parts(rule):
    layer = ol.OptLayer(matching(3), rule)
    leaf, mask = draw(2, 3, 3, seed=3).requires_grad_(), torch.zeros(2, 3, 3, dtype=torch.bool)
    mask[1, 0, 1] = True
    assert gradgradcheck(lambda s: layer(s.masked_fill(mask, -torch.inf)), leaf, eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [ol.SparseMAP(), ol.StructuredAttention(), ol.Spigot(0.5)], ids=repr)
def test_second_derivatives_under_transforms(rule):
    layer, scores, target = ol.OptLayer(matching(3), rule), draw(3, 3, 3), draw(3, 3, 3, seed=1)

    def loss(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return ((layer(s) - t) ** 4).sum()

    def penalty(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (grad(loss)(s, t) ** 2).sum()

    leaf = scores.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
    (expected,) = torch.autograd.grad((slope**2).sum(), leaf)
    assert expected.abs().sum() > 1e-3 or isinstance(rule, ol.Spigot)
    torch.testing.assert_close(vmap(grad(penalty))(scores, target), expected)
    if isinstance(rule, ol.Spigot):  # its backward pass is not linear, so one direction does not follow from others
        return
    curvature = vmap(jacrev(jacrev(loss)))(scores, target)
    torch.testing.assert_close(2 * torch.einsum("bijkl,bij->bkl", curvature, slope.detach()), expected)


def test_a_gradient_penalty_on_spigot_reaches_the_loss_behind_it():
    layer = ol.OptLayer(cube_of_three(), ol.Spigot(0.25))
    leaf, weights = draw(2, 3).requires_grad_(), (0.1 * draw(2, 3, seed=1)).requires_grad_()
    (slope,) = torch.autograd.grad(layer(leaf), leaf, weights, create_graph=True)
    vertex = layer(leaf).detach()
    moves = (vertex - 0.25 * weights).detach().clamp(0.0, 1.0) - vertex != 0  # SPIGOT on a cube, by hand
    found = torch.autograd.grad(slope.sum(), (leaf, weights), allow_unused=True)
    assert found[0] is None or not found[0].any()
    torch.testing.assert_close(found[1], 0.25 * moves.double())


def cube_of_three() -> ol.Polytope:
    x = cp.Variable(3)
    return ol.Polytope(x, [x >= 0, x <= 1])


@final
@dataclass(frozen=True)
class Squared(AbstractVertexRule):
    """The square of the gradient."""

    def backward(self, polytope, saved, grad, context):
        return ol.Gradient(grad**2)


@final
@dataclass(frozen=True)
class ByNumPy(AbstractVertexRule):
    """The square of the gradient, out of sight of autograd."""

    def backward(self, polytope, saved, grad, context):
        return ol.Gradient(torch.from_numpy(grad.detach().numpy() ** 2))


@pytest.mark.parametrize("rule", [Squared(), ol.Hard(Squared())], ids=repr)
def test_rules_have_derivatives_of_higher_order_though_they_say_nothing_of_them(rule):
    layer, leaf = ol.OptLayer(simplex(3), rule), draw(2, 3).requires_grad_()
    weights = draw(2, 3, seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(layer(leaf), leaf, weights, create_graph=True)
    assert torch.equal(slope.detach(), weights.detach() ** 2)
    (second,) = torch.autograd.grad((slope**2).sum(), weights, create_graph=True)
    torch.testing.assert_close(second.detach(), 4 * weights.detach() ** 3)
    (third,) = torch.autograd.grad(second.sum(), weights)
    torch.testing.assert_close(third, 12 * weights.detach() ** 2)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (ByNumPy(), "its backward leaves autograd, by detach"),
        (ol.Interpolation(5.0), "best vertices and drawn structures jump"),
        (ol.LPGD(5.0), "best vertices and drawn structures jump"),
        (ol.IMLE(strength=50.0), "it draws, adapts or works with losses"),
        (ol.Spigot(ol.AdaptiveStep()), "it draws, adapts or works with losses"),
    ],
    ids=repr,
)
def test_a_missing_second_derivative_is_said_when_it_is_taken(rule, reason):
    layer = ol.OptLayer(simplex(3), rule)
    leaf = draw(2, 3).requires_grad_()
    (slope,) = torch.autograd.grad((layer(leaf) ** 2).sum(), leaf, create_graph=True)
    assert slope.requires_grad
    with pytest.raises(NotImplementedError, match=rf"no second derivative.*: {reason}"):
        slope.square().sum().backward()


def test_a_rule_that_says_its_second_derivative_is_still_asked_for_it():
    @final
    @dataclass(frozen=True)
    class Twice(AbstractVertexRule):
        def backward(self, polytope, saved, grad, context):
            return ol.Gradient(3.0 * grad)

        def second_backward(self, polytope, saved, grad, direction, context):
            return ol.SecondGradient(7.0 * direction.scores)

    leaf, weights = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(ol.OptLayer(simplex(3), Twice())(leaf), leaf, weights, create_graph=True)
    with pytest.warns(DeprecationWarning, match="Twice.second_backward is deprecated"):
        (second,) = torch.autograd.grad(slope.sum(), weights)
    assert (second == 7.0).all()


@pytest.mark.parametrize("name", SMALL)
def test_third_derivatives_are_those_of_finite_differences(name):
    layer, shape = ol.OptLayer(SMALL[name], ol.StructuredAttention()), SMALL[name].shape
    leaf, weights = draw(1, *shape, seed=3).requires_grad_(), draw(1, *shape, seed=4)

    def second(s: torch.Tensor) -> torch.Tensor:
        (first,) = torch.autograd.grad(layer(s), s, weights, create_graph=True)
        return torch.autograd.grad((first**2).sum(), s, create_graph=True)[0]

    assert second(leaf).abs().sum() > 1e-3
    assert gradcheck(second, leaf, eps=1e-5, atol=1e-6)


def test_parameters_in_the_matrix_have_second_and_third_derivatives():
    layer = ol.OptLayer(weighted(), ol.SparseMAP())
    leaf = draw(2, 3).requires_grad_()
    weight = (1.0 + torch.rand(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    assert gradgradcheck(lambda s, w: layer(s, weight=w), (leaf, weight), eps=1e-5, atol=1e-6)

    def bend(s: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        slopes = torch.autograd.grad((layer(s, weight=w) ** 3).sum(), (s, w), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in slopes), (s, w), create_graph=True)

    assert gradcheck(bend, (leaf, weight), eps=1e-5, atol=1e-5)


def test_sets_that_are_not_polyhedral_have_no_second_derivative():
    x = cp.Variable(2)
    layer = ol.OptLayer(ol.Polytope(x, [cp.norm(x) <= 1]), ol.SparseMAP(), projector=ol.CvxpyLayers())
    leaf = draw(2).mul(10).requires_grad_()
    (slope,) = torch.autograd.grad(layer(leaf)[0], leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="on polyhedral sets only"):
        slope.sum().backward()


def test_failed_instances_have_no_second_derivative_and_the_others_do():
    scores, loads = draw(3, 3, 4), torch.full((3, 4), 1.6, dtype=torch.float64)
    loads[1] = 1.0
    found = []
    for rows in ([0, 1, 2], [0, 2]):
        leaf = scores[rows].clone().requires_grad_()
        value = ol.OptLayer(review(), ol.SparseMAP(), on_failure="nan")(leaf, load=loads[rows])
        (slope,) = torch.autograd.grad((value.nan_to_num() ** 3).sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad((slope**2).sum(), leaf)[0])
    assert (found[0][1] == 0).all() and found[1].abs().sum() > 0.1
    torch.testing.assert_close(found[0][[0, 2]], found[1])


# torch.compile


class Model(nn.Module):
    def __init__(self, rule: ol.AbstractRule) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Linear(4, 9), ol.OptLayer(matching(3), rule), nn.Linear(9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.layer(self.before(x).reshape(-1, 3, 3)).flatten(1))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_the_model(backend):
    torch.manual_seed(0)
    torch.compiler.reset()
    model = Model(ol.SparseMAP())
    compiled = torch.compile(model, backend=backend)
    for count in (5, 3):
        x = torch.randn(count, 4)
        found = []
        for function in (model, compiled):
            model.zero_grad()
            value = function(x)
            value.square().sum().backward()
            found.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
        torch.testing.assert_close(found[1], found[0])
        assert found[0][1].abs().sum() > 0


def test_a_compiled_call_passes_all_its_arguments_on():
    torch.compiler.reset()
    layer = ol.OptLayer(ol.Family(subset), ol.SparseMAP())
    scores = draw(3, 5)

    def loss(s: torch.Tensor) -> torch.Tensor:
        return layer(2.0 * s, sizes=[5, 3, 4], budget=2.0, objective=lambda x: x.square().sum(-1)).sum()

    torch.testing.assert_close(torch.compile(loss, backend="eager")(scores), loss(scores))
    one = ol.OptLayer(subset(5), ol.SparseMAP())
    weights = torch.compile(lambda s: one.solve(2.0 * s, budget=2.0).check().value, backend="eager")(scores)
    torch.testing.assert_close(weights, one(2.0 * scores, budget=2.0))


def test_a_compiled_model_has_a_graph_before_the_layer_and_one_behind_it():
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compile(Model(ol.SparseMAP()), backend=count)(torch.randn(2, 4))
    assert len(graphs) == 2


def test_a_full_graph_is_refused_by_the_compiler():
    torch.compiler.reset()
    compiled = torch.compile(Model(ol.SparseMAP()), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(torch.randn(2, 4))


# Autocast and other manners


@pytest.mark.parametrize("rule", REPEATABLE, ids=repr)
def test_autocast_changes_nothing(rule):
    for name, polytope in SMALL.items():
        layer = ol.OptLayer(polytope, rule)
        weights = draw(3, *polytope.shape, seed=1).to(torch.bfloat16)
        found = []
        for enabled in (False, True):
            leaf = draw(3, *polytope.shape).to(torch.bfloat16).requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                value = layer(leaf)
                value.backward(weights)
            assert value.dtype == leaf.grad.dtype == torch.bfloat16
            found.append((value.detach(), leaf.grad))
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True)), name


def test_autocast_stays_out_of_functions_of_users():
    x = cp.Variable(3, nonneg=True)

    def log_partition(scores: torch.Tensor) -> torch.Tensor:
        lifted = torch.nn.functional.linear(scores.float().double(), torch.eye(3, dtype=torch.float64))
        return torch.logsumexp(lifted.float() @ torch.eye(3), dim=-1).double()

    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x) == 1], log_partition=log_partition), ol.StructuredAttention())
    scores = draw(4, 3)
    plain = layer(scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(scores), plain, atol=0.0, rtol=0.0)


def test_checkpoint_gives_the_same_gradients():
    torch.manual_seed(0)
    model, x = Model(ol.SparseMAP()), torch.randn(5, 4)
    found = []
    for reentrant in (None, True, False):
        leaf = x.clone().requires_grad_()
        value = model(leaf) if reentrant is None else checkpoint(model, leaf, use_reentrant=reentrant)
        found.append(torch.autograd.grad(value.square().sum(), leaf)[0] if not reentrant else backward_of(value, leaf))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def backward_of(value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    value.square().sum().backward()
    return leaf.grad


def test_functional_call_and_per_sample_gradients():
    torch.manual_seed(0)
    model, x = Model(ol.SparseMAP()), torch.randn(5, 4)
    weights = dict(model.named_parameters())

    def loss(given: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        return functional_call(model, given, (one[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    model(x).square().sum().backward()
    for name, parameter in weights.items():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


def test_scores_changed_in_place_are_no_concern_of_a_first_derivative():
    layer, leaf = ol.OptLayer(simplex(3), ol.SparseMAP()), draw(3).requires_grad_()
    scores = leaf * 1.0
    value = layer(scores)
    scores.mul_(2.0)
    torch.autograd.grad(value[0], leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value[0], leaf, create_graph=True)
