"""What users do with a layer."""

import copy
import io
import pickle
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import DETERMINISTIC, EVERY_RULE
from drawing import draw

import optlayers as ol
from optlayers.bound.host import HostPolytope
from polytopes import (
    arborescence,
    linear_chain,
    matching,
    partial_matching,
    rectangular_matching,
    sequence,
    simplex,
    subset,
)


@pytest.mark.many(5)
@pytest.mark.parametrize("batch", [(), (1,), (0,), (3,), (2, 3), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("rule", DETERMINISTIC, ids=repr)
def test_any_batch_dimensions(rule, batch):
    layer = ol.OptLayer(matching(3), rule)
    scores = draw(*batch, 3, 3).requires_grad_()
    value = layer(scores)
    value.sum().backward()
    assert value.shape == scores.shape == scores.grad.shape
    flat = layer(scores.detach().reshape(-1, 3, 3)).reshape(scores.shape)
    torch.testing.assert_close(value.detach(), flat)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_answers_come_in_the_dtype_of_the_scores(dtype):
    layer = ol.OptLayer(simplex(4), ol.SparseMAP())
    scores = draw(5, 4, dtype=dtype).requires_grad_()
    value = layer(scores)
    (value * draw(5, 4, seed=1, dtype=dtype)).sum().backward()
    assert value.dtype == scores.grad.dtype == dtype
    exact = layer(scores.detach().to(torch.float64))
    torch.testing.assert_close(value.detach().to(torch.float64), exact, atol=1e-2, rtol=1e-2)


def test_strided_scores():
    layer = ol.OptLayer(matching(3), ol.SparseMAP())
    scores = draw(3, 3, 4).permute(2, 1, 0)
    torch.testing.assert_close(layer(scores), layer(scores.contiguous()))


def test_no_grad_records_nothing():
    layer = ol.OptLayer(simplex(3), ol.SparseMAP())
    scores = draw(2, 3).requires_grad_()
    with torch.no_grad():
        assert not layer(scores).requires_grad
    assert layer(scores).requires_grad


def test_forbidden_parts_are_zero_and_get_no_gradient():
    for rule in DETERMINISTIC:
        scores = draw(4, 3, 3)
        scores[1, 0, :2] = -torch.inf
        scores[2, :, 1] = -torch.inf
        scores[2, 2, 1] = 0.0
        leaf = scores.clone().requires_grad_()
        value = ol.OptLayer(matching(3), rule)(leaf)
        (value * draw(4, 3, 3, seed=2)).sum().backward()
        masked = torch.isinf(scores)
        assert (value[masked] == 0).all() and (leaf.grad[masked] == 0).all()
        assert torch.isfinite(leaf.grad).all()
        torch.testing.assert_close(value[1, 0, 2], torch.ones((), dtype=torch.float64))


def test_forbidding_a_part_equals_declaring_it_zero():
    x = cp.Variable((3, 3), nonneg=True)
    rows = [cp.sum(x, axis=0) == 1, cp.sum(x, axis=1) == 1]
    declared = ol.OptLayer(ol.Polytope(x, [*rows, x[0, 1] == 0]), ol.SparseMAP())
    masked = ol.OptLayer(ol.Polytope(x, rows), ol.SparseMAP())
    for seed in range(5):
        plain = draw(3, 3, seed=seed).requires_grad_()
        hidden = plain.detach().clone()
        hidden[0, 1] = -torch.inf
        hidden.requires_grad_()
        weights = draw(3, 3, seed=100 + seed)
        expected, found = declared(plain), masked(hidden)
        torch.testing.assert_close(found, expected)
        (expected * weights).sum().backward()
        (found * weights).sum().backward()
        torch.testing.assert_close(
            hidden.grad, plain.grad.index_put((torch.tensor(0), torch.tensor(1)), torch.zeros((), dtype=torch.float64))
        )


@pytest.mark.many(5)
@pytest.mark.parametrize("rule", DETERMINISTIC, ids=repr)
def test_copies_and_pickles_answer_alike(rule):
    layer = ol.OptLayer(matching(3), rule)
    scores = draw(2, 3, 3)
    expected = layer(scores)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (
        copy.deepcopy(layer),
        copy.deepcopy(torch.nn.Sequential(layer))[0],
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
    ):
        torch.testing.assert_close(other(scores), expected)
    assert set(layer.state_dict()) == {f"rule_{name}" for name in rule.initial_state()}


def test_family_layers_can_be_pickled():
    layer = ol.OptLayer(ol.Family(partial(sequence, states=2)), ol.SparseMAP())
    scores, sizes = draw(3, 4, 2, 2), torch.tensor([4, 1, 3])
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(scores, sizes=sizes), layer(scores, sizes=sizes))


def test_a_shared_parameter_collects_the_gradient_of_all_instances():
    layer = ol.OptLayer(subset(4), ol.SparseMAP())
    scores, weights = draw(6, 4), draw(6, 4, seed=1)
    shared = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    each = torch.full((6,), 2.0, dtype=torch.float64, requires_grad=True)
    (layer(scores, budget=shared) * weights).sum().backward()
    (layer(scores, budget=each) * weights).sum().backward()
    torch.testing.assert_close(shared.grad, each.grad.sum())


@pytest.mark.many(5)
@pytest.mark.parametrize("rule", DETERMINISTIC, ids=repr)
def test_mixed_lengths_equal_one_by_one(rule):
    layer = ol.OptLayer(ol.Family(arborescence), rule)
    sizes = torch.tensor([3, 1, 4, 3])
    scores = draw(4, 6, 6).requires_grad_()
    weights = draw(4, 6, 6, seed=1)
    value = layer(scores, sizes=sizes)
    (value * weights).sum().backward()
    for k, words in enumerate(sizes.tolist()):
        inner = slice(0, words + 1)
        leaf = scores.detach()[k, inner, inner].clone().requires_grad_()
        alone = ol.OptLayer(arborescence(words), rule)(leaf)
        (alone * weights[k, inner, inner]).sum().backward()
        torch.testing.assert_close(value[k, inner, inner], alone, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(scores.grad[k, inner, inner], leaf.grad, atol=1e-7, rtol=1e-7)
        padding = torch.ones(6, 6, dtype=torch.bool)
        padding[inner, inner] = False
        assert (value[k][padding] == 0).all() and (scores.grad[k][padding] == 0).all()


def test_padding_may_hold_anything():
    layer = ol.OptLayer(ol.Family(simplex), ol.SparseMAP())
    scores = draw(2, 5)
    scores[0, 3:] = torch.nan
    leaf = scores.clone().requires_grad_()
    value = layer(leaf, sizes=[3, 5])
    value.square().sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(leaf.grad).all() and (value[0, 3:] == 0).all()


def test_families_of_two_sizes_and_with_parameters():
    from polytopes import rectangular_matching

    layer = ol.OptLayer(ol.Family(rectangular_matching), ol.Pipeline())
    value = layer(draw(3, 4, 5), sizes=torch.tensor([[2, 3], [4, 5], [3, 1]]))
    assert value.flatten(1).sum(1).tolist() == [2.0, 4.0, 1.0]
    budgets = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    family = ol.OptLayer(ol.Family(subset), ol.SparseMAP())
    value = family(draw(3, 5), sizes=[2, 5, 4], budget=budgets)
    torch.testing.assert_close(value.sum(1), budgets)
    value.square().sum().backward()
    assert torch.isfinite(budgets.grad).all() and (budgets.grad != 0).any()


def test_family_compiles_a_size_once_and_forgets_the_oldest():
    made = []

    def factory(size: int) -> ol.Polytope:
        made.append(size)
        return simplex(size)

    layer = ol.OptLayer(ol.Family(factory, cache_size=2), ol.SparseMAP())
    for sizes in ([2, 3, 2], [3, 2, 3], [4, 4, 2]):
        layer(draw(3, 5), sizes=sizes)
    with pytest.warns(UserWarning, match="size 3 is compiled again"):
        layer(draw(3, 5), sizes=[3, 3, 3])
    assert made == [2, 3, 4, 3]


def infeasible_in_the_middle() -> tuple[ol.Polytope, torch.Tensor, torch.Tensor]:
    x = cp.Variable((6, 4))
    load = cp.Parameter(4, name="load", nonneg=True)
    review = ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x, axis=1) == 2, cp.sum(x, axis=0) <= load])
    loads = torch.full((5, 4), 4.0, dtype=torch.float64)
    loads[3] = torch.tensor([3.0, 3.0, 2.0, 2.0])
    return review, draw(5, 6, 4), loads


@pytest.mark.many(5)
@pytest.mark.parametrize("rule", DETERMINISTIC, ids=repr)
def test_a_failed_instance_is_nan_and_the_others_are_right(rule):
    polytope, scores, loads = infeasible_in_the_middle()
    leaf, capacity = scores.clone().requires_grad_(), loads.clone().requires_grad_(rule.differentiates_parameters)
    value = ol.OptLayer(polytope, rule, on_failure="nan")(leaf, load=capacity)
    weights = draw(5, 6, 4, seed=3)
    torch.nansum(value * weights).backward()
    assert torch.isnan(value[3]).all()
    assert (leaf.grad[3] == 0).all() and (capacity.grad is None or (capacity.grad[3] == 0).all())
    good = [0, 1, 2, 4]
    rest = scores[good].clone().requires_grad_()
    alone = ol.OptLayer(polytope, rule)(rest, load=loads[good])
    (alone * weights[good]).sum().backward()
    torch.testing.assert_close(value[good], alone)
    torch.testing.assert_close(leaf.grad[good], rest.grad)


@pytest.mark.many(5)
@pytest.mark.parametrize("rule", DETERMINISTIC, ids=repr)
def test_a_failed_instance_is_named(rule):
    polytope, scores, loads = infeasible_in_the_middle()
    marginals = isinstance(rule, ol.StructuredAttention)  # which enumerate, and find nothing to sum over
    why = "it has no structure" if marginals else "miss by 2 .*load"
    with pytest.raises(ol.SolveError, match=rf"instance 3 is INFEASIBLE.*{why}") as caught:
        ol.OptLayer(polytope, rule)(scores, load=loads)
    assert [f.index for f in caught.value.failures] == [(3,)]
    assert caught.value.failures[0].status == ol.Status.INFEASIBLE


def test_a_failed_instance_of_a_family_is_named_by_its_place_in_the_batch():
    layer = ol.OptLayer(ol.Family(subset), ol.SparseMAP())
    with pytest.raises(ol.SolveError, match=r"instance \(1, 0\)"):
        layer(draw(2, 2, 5), sizes=[[5, 4], [2, 5]], budget=3.0)


@pytest.mark.many(16)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "polytope", [matching(3), matching(3).without_oracle(), arborescence(2)], ids=["", "rows", "tree"]
)
@pytest.mark.parametrize("rule", DETERMINISTIC, ids=repr)
def test_gradients_that_are_not_finite_pass_through_as_nan(rule, polytope, bad):
    """And only in their own instance, whatever solver would have met them."""
    layer = ol.OptLayer(polytope, rule)
    leaf = draw(3, *polytope.shape).requires_grad_()
    weights = draw(3, *polytope.shape, seed=1)
    expected = torch.autograd.grad(layer(leaf), leaf, weights)[0] if not layer.state_dict() else None
    weights[1, 1, 2] = bad
    (found,) = torch.autograd.grad(layer(leaf), leaf, weights)
    if rule == ol.Pipeline():
        assert (found == 0).all()
    elif rule == ol.StraightThrough():
        assert torch.equal(found.nan_to_num(), weights.nan_to_num())
    else:
        assert found[1].isnan().all() and found[::2].isfinite().all()
        assert expected is None or (found[::2] - expected[::2]).abs().max() <= 1e-12


@pytest.mark.many(12)
@pytest.mark.parametrize("rule", DETERMINISTIC, ids=repr)
def test_gradients_that_are_not_finite_pass_where_there_is_one_structure(rule):
    """No solver is asked then; and the sizes of a family agree."""
    layer = ol.OptLayer(ol.Family(simplex), rule)
    leaf = draw(3, 3).requires_grad_()
    weights = torch.full((3, 3), torch.nan, dtype=torch.float64)
    weights[2] = 1.0
    (found,) = torch.autograd.grad(layer(leaf, sizes=[1, 3, 1]), leaf, weights)
    expected = [[False] * 3] * 2 if rule == ol.Pipeline() else [[True, False, False], [True] * 3]
    assert found[:2].isnan().tolist() == expected
    assert found[2].isfinite().all()


@pytest.mark.parametrize("rule", [ol.Spigot(), ol.Interpolation(1.0), ol.LPGD(1.0)], ids=repr)
def test_instances_that_failed_forward_are_solved_for_once_backward(rule, monkeypatch):
    """Their value is NaN, and so is what a loss makes of it; nothing is new in that."""
    asked = []
    for name in ("maximize", "project"):
        plain = getattr(HostPolytope, name)
        monkeypatch.setattr(HostPolytope, name, lambda *a, _f=plain, **k: (asked.append(0), _f(*a, **k))[1])
    x, load = cp.Variable(4, bounds=[0, 1]), cp.Parameter(name="load")
    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x) == load]), rule, on_failure="nan")
    leaf = draw(3, 4).requires_grad_()
    value = layer(leaf, load=torch.tensor([1.0, 7.0, 2.0]))
    asked.clear()
    (gradient,) = torch.autograd.grad((value**2).sum(), leaf)
    assert len(asked) == 1 and gradient.isfinite().all() and (gradient[1] == 0).all()


def test_solves_that_fail_by_themselves_are_not_taken_for_gradients_that_are_not_finite():
    """Finite numbers whose step is none: the solve fails, and the layer says so."""
    layer = ol.OptLayer(matching(3), ol.Interpolation(1e200))
    leaf = draw(2, 3, 3).requires_grad_()
    with pytest.raises(ol.SolveError, match="instance 0"):
        torch.autograd.grad(layer(leaf), leaf, torch.full((2, 3, 3), 1e200, dtype=torch.float64))


def test_scores_may_be_changed_in_place_after_the_layer():
    layer = ol.OptLayer(simplex(3), ol.Hard(ol.SparseMAP()))
    leaf = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    scores = leaf * 1.0
    value = layer(scores)
    scores.add_(torch.tensor([100.0, 0.0, 0.0]))
    (found,) = torch.autograd.grad(value[0], leaf)
    torch.testing.assert_close(found, torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64) / 3)


def test_two_sizes_are_told_from_a_structure_with_an_axis_of_two():
    layer = ol.OptLayer(ol.Family(partial_matching), ol.Pipeline())
    sizes = torch.tensor([[2, 7], [1, 3], [2, 2], [1, 1], [2, 5]])
    value = layer(draw(5, 2, 7).abs(), sizes=sizes)
    assert value.flatten(1).sum(1).tolist() == sizes.min(1).values.tolist()


def test_an_empty_batch_of_a_family():
    layer = ol.OptLayer(ol.Family(simplex), ol.SparseMAP())
    for sizes in ([], torch.zeros(0, dtype=torch.int64)):
        leaf = draw(0, 3).requires_grad_()
        layer(leaf, sizes=sizes).sum().backward()
        assert leaf.grad.shape == (0, 3)


@pytest.mark.many(13)
@pytest.mark.parametrize("size", [3, [3], (3,), torch.tensor(3), torch.tensor([3]), np.uint16(3)], ids=repr)
@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_one_size_and_no_batch_are_a_batch_of_one(rule, size):
    layer, found = ol.OptLayer(ol.Family(simplex), rule), []
    for scores, sizes in ((draw(5), size), (draw(1, 5), [3])):
        leaf = scores.clone().requires_grad_()
        asked = copy.deepcopy(layer)
        losses = asked(leaf, sizes=sizes, objective=lambda z: z.square().sum(-1), generator=torch.manual_seed(0))
        losses.sum().backward()
        found.append((losses.detach().reshape(-1), leaf.grad.reshape(1, 5)))
        assert losses.shape == scores.shape[:-1]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert (found[0][1][:, 3:] == 0).all()


def test_one_size_and_no_batch_of_structures_with_more_dimensions():
    trees = ol.OptLayer(ol.Family(arborescence), ol.Pipeline())
    scores = draw(5, 5)
    assert torch.equal(trees(scores, sizes=3), trees(scores[None], sizes=[3])[0])
    two = ol.OptLayer(ol.Family(rectangular_matching), ol.SparseMAP())
    assert torch.equal(two(scores, sizes=[2, 3]), two(scores[None], sizes=[[2, 3]])[0])
    assert trees(scores, sizes=0).count_nonzero() == 0
    chains = ol.OptLayer(ol.Family(partial(linear_chain, states=2)), ol.SparseMAP())
    unary, pairs = draw(4, 2), draw(4, 2, 2, seed=1)
    one, more = chains.lifted(unary, sizes=3, transition=pairs)
    many, more_of_many = chains.lifted(unary[None], sizes=[3], transition=pairs[None])
    assert torch.equal(one, many[0]) and torch.equal(more["transition"], more_of_many["transition"][0])
    counts = ol.OptLayer(ol.Family(subset), ol.SparseMAP())
    budget = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    counts(scores[0], sizes=4, budget=budget)[0].backward()
    assert budget.grad is not None
    with pytest.raises(ol.SolveError, match="the instance is INFEASIBLE"):
        counts(scores[0], sizes=1, budget=2.0)
    wrong = scores[0].clone()
    wrong[1] = torch.nan
    with pytest.raises(ValueError, match=r"nan at batch index \(\), entry \[1\]"):
        counts(wrong, sizes=4, budget=2.0)


def test_one_size_is_read_by_the_rank_of_its_structure():
    """Which says whether there is a batch dimension, of length 1, or none."""
    layer = ol.OptLayer(ol.Family(matching), ol.SparseMAP())
    for shape in ((1, 1), (1, 1, 1)):
        assert layer(torch.zeros(shape), sizes=[1]).shape == shape
    assert ol.OptLayer(ol.Family(simplex), ol.SparseMAP())(torch.zeros(1, 1), sizes=[1]).tolist() == [[1.0]]
    with pytest.raises(
        ValueError, match=r"size 3 needs scores of shape \(3,\) .* have \(4, 5\); give sizes= .* \(4,\)"
    ):
        ol.OptLayer(ol.Family(simplex), ol.SparseMAP())(torch.zeros(4, 5), sizes=3)


@pytest.mark.parametrize("sizes", [[], torch.zeros(0), torch.zeros(0, 2, dtype=torch.int64)], ids=["[]", "0", "0 x 2"])
@pytest.mark.parametrize("columns", [2, 5])
@pytest.mark.parametrize("rule", [ol.Pipeline(), ol.SparseMAP(), ol.IMLE(), ol.ScoreFunction()], ids=repr)
def test_an_empty_batch_of_two_sizes(rule, columns, sizes):
    layer = ol.OptLayer(ol.Family(rectangular_matching), rule)
    leaf = draw(0, columns, 4).requires_grad_()
    losses = layer(leaf, sizes=sizes, objective=lambda z: z.flatten(1).sum(1))
    losses.sum().backward()
    assert losses.shape == (0,) and leaf.grad.shape == (0, columns, 4)
    if not rule.needs_objective:
        assert layer(leaf, sizes=sizes).shape == leaf.shape and layer.lifted(leaf, sizes=sizes)[1] == {}


def test_sizes_are_integers_of_any_kind():
    layer, scores = ol.OptLayer(ol.Family(simplex), ol.SparseMAP()), draw(2, 5)
    expected = layer(scores, sizes=[3, 4])
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(layer(scores, sizes=torch.tensor([3, 4]).to(dtype)), expected)
    assert torch.equal(layer(scores, sizes=np.array([3, 4], dtype=np.uint16)), expected)
    for sizes in ("ab", ["3", "4"], np.array(["3", "4"]), object(), [None, 3]):
        with pytest.raises(TypeError, match="sizes must be integers, but got"):
            layer(scores, sizes=sizes)


def test_all_failures_of_a_family_are_listed():
    layer = ol.OptLayer(ol.Family(subset), ol.SparseMAP())
    with pytest.raises(ol.SolveError, match="2 of 5 instances") as caught:
        layer(draw(5, 4), sizes=[1, 4, 2, 4, 3], budget=2.0 + torch.zeros(5).index_fill(0, torch.tensor([2]), 1.0))
    assert [f.index for f in caught.value.failures] == [(0,), (2,)]


def test_one_polytope_may_be_used_by_layers_with_other_rules_and_solvers():
    compiled = ol.compile_polytope(matching(3))
    scores = draw(2, 3, 3)
    hard, soft = ol.OptLayer(compiled, ol.Pipeline()), ol.OptLayer(compiled, ol.SparseMAP())
    assert hard.compiled() is soft.compiled() is compiled
    other = ol.OptLayer(matching(3), ol.SparseMAP(), projector=ol.Clarabel(tolerance=1e-9), maximizer=ol.Highs(1e-8))
    torch.testing.assert_close(soft(scores), other(scores))


class Unhashable:
    __hash__ = None

    def __call__(self, scores):
        return np.eye(len(scores))[scores.argmax()]


def test_a_declaration_is_compiled_once_for_layers_and_losses():
    made = []

    def factory(size: int) -> ol.Polytope:
        made.append(size)
        return simplex(size)

    family = ol.Family(factory)
    layers = [ol.OptLayer(family, rule) for rule in (ol.SparseMAP(), ol.Pipeline())]
    loss = ol.SparseMAPLoss(family)
    for _ in range(2):
        for layer in layers:
            layer(draw(3, 5), sizes=[2, 3, 2])
        loss(draw(2, 3), torch.eye(3)[:2], sizes=[2, 3])
    assert made == [2, 3]
    assert layers[0].compiled(2) is layers[1].compiled(2) is loss.layer.compiled(2)
    others = ol.OptLayer(family, ol.SparseMAP(), projector=ol.InteriorPoint())
    assert others.compiled(2) is not layers[0].compiled(2)
    unhashable = ol.Oracle(Unhashable())  # a solver that is no value
    for _ in range(3):
        layer = ol.OptLayer(family, ol.Pipeline(), maximizer=unhashable)
        layer(draw(2, 5), sizes=[5, 5])
    assert made[-1:] == [5] and made.count(5) == 1
    polytope = matching(3)
    assert ol.OptLayer(polytope, ol.SparseMAP()).compiled() is ol.CRFLoss(polytope).layer.compiled()
    copied = pickle.loads(pickle.dumps(polytope))
    assert ol.OptLayer(copied, ol.Pipeline()).compiled() is not ol.OptLayer(polytope, ol.Pipeline()).compiled()


def test_a_family_that_compiles_sizes_again_says_so_once_and_what_to_do():
    layer = ol.OptLayer(ol.Family(simplex, cache_size=2), ol.SparseMAP())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(draw(3, 5), sizes=[2, 3, 4])
    with pytest.warns(
        UserWarning, match=r"keeps 2 sizes compiled, but 3 have .* size 2 is compiled again.*cache_size=8\)"
    ):
        layer(draw(1, 5), sizes=[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(draw(3, 5), sizes=[2, 3, 4])


def test_a_number_is_a_parameter_for_every_entry():
    x, cap = cp.Variable(4), cp.Parameter(4, name="cap", nonneg=True)
    layer = ol.OptLayer(ol.Polytope(x, [x >= 0, x <= cap]), ol.SparseMAP())
    number = torch.tensor(0.5, requires_grad=True)
    layer(torch.tensor([[2.0, 2.0, -1.0, 0.1]] * 3), cap=number).sum().backward()
    assert number.grad == 6.0
    assert layer(torch.ones(4), cap=0.25).tolist() == [0.25] * 4


def capped(size: int) -> ol.Polytope:
    x, cap = cp.Variable(size), cp.Parameter(size, name="cap", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= cap])


def test_messages_of_a_family_name_the_batch_and_the_instance_of_the_user():
    layer, scores = ol.OptLayer(ol.Family(capped), ol.SparseMAP()), draw(4, 5)
    assert layer(scores, sizes=[5, 3, 4, 3], cap=0.5).max() <= 0.5
    with pytest.raises(ValueError, match=r"cap has shape \(4, 4\), but instance 0 of size 5 needs .* batch \(4,\)"):
        layer(scores, sizes=[5, 3, 4, 3], cap=torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"instance \(1, 0\): size 6 needs scores of shape \(6,\) per instance"):
        layer(scores.reshape(2, 2, 5), sizes=[[5, 3], [6, 3]], cap=0.5)
    with pytest.raises(ValueError, match=r"must not be negative, but one is -6, at \[2\]"):
        layer(scores, sizes=[5, 3, -6, 3], cap=0.5)


def test_solve_gives_the_verdicts_of_a_family():
    def narrow(size: int) -> ol.Polytope:
        x, load = cp.Variable(size), cp.Parameter(name="load", nonneg=True)
        return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == load])

    layer, scores = ol.OptLayer(ol.Family(narrow), ol.SparseMAP(), on_failure="nan"), 0.1 * draw(2, 2, 5)
    load, sizes = torch.tensor([[1.0, 2.0], [4.0, 1.0]]), [[5, 2], [3, 0]]
    found = layer.solve(scores.requires_grad_(), sizes=sizes, load=load)
    assert found.status.tolist() == [[ol.Status.OPTIMAL, ol.Status.OPTIMAL], [ol.Status.INFEASIBLE, ol.Status.OPTIMAL]]
    assert found.value.shape == (2, 2, 5) and found.primal_residual.shape == found.gap.shape == (2, 2)
    assert [f.index for f in found.failures] == [(1, 0)] and found.gap[1, 1] == 0
    with pytest.raises(ol.SolveError, match=r"instance \(1, 0\) is INFEASIBLE"):
        found.check()
    for index in ((0, 0), (0, 1)):
        size = sizes[index[0]][index[1]]
        alone = ol.OptLayer(narrow(size), ol.SparseMAP()).solve(scores[index][:size], load=load[index])
        torch.testing.assert_close(found.value[index][:size], alone.value)
        assert found.gap[index] == alone.gap and found.status[index] == alone.status
    found.value[found.ok].square().sum().backward()
    assert scores.grad[0].abs().max() > 0 and (scores.grad[1] == 0).all()
    with pytest.raises(ValueError, match="not given as a mixture"):
        _ = found.vertices
    with pytest.raises(TypeError, match="needs sizes="):
        layer.solve(scores, load=load)
    with pytest.raises(TypeError, match="sizes= is for layers over a Family"):
        ol.OptLayer(simplex(5), ol.SparseMAP()).solve(scores, sizes=sizes)
    chains = ol.OptLayer(ol.Family(partial(linear_chain, states=2)), ol.SparseMAP())
    pairs = draw(2, 3, 2, 2)
    solution = chains.solve(draw(2, 3, 2), sizes=[3, 2], transition=pairs)
    value, lifted = chains.lifted(draw(2, 3, 2), sizes=[3, 2], transition=pairs)
    assert torch.equal(solution.value, value) and torch.equal(solution.scored["transition"], lifted["transition"])


# What arrives is looked at once


def entered(function: Callable[[], object]) -> Counter[str]:
    """How often functions are entered by name, on a second call."""
    function()
    names: Counter[str] = Counter()

    def note(frame, event, argument):
        if event == "call":
            names[frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


def test_scores_sizes_and_names_are_checked_once():
    scores, target = torch.randn(3, 4), torch.eye(4)[:3]
    family, one = ol.OptLayer(ol.Family(simplex), ol.SparseMAP()), ol.OptLayer(simplex(4), ol.SparseMAP())
    found = entered(lambda: family(scores, sizes=[4, 2, 3], objective=lambda z: z.sum(-1)))
    assert found["size_table"] == found["check_scores"] == 1
    for call in (lambda: one(scores, objective=lambda z: z.sum(-1)), lambda: one.solve(scores)):
        found = entered(call)
        assert found["arrive"] == 1 and found["check_scores"] == 0
    loss = ol.SparseMAPLoss(simplex(4))
    found = entered(lambda: loss(scores, target))
    assert found["arrive"] == found["_refuse_taken"] == 1 and found["check_scores"] == 0


def test_numbers_that_were_packed_are_known_to_be_finite():
    scores, target = torch.randn(3, 4), torch.eye(4)[:3]
    perceptron = ol.StructuredPerceptronLoss(subset(4), validate=False)
    for rule in (ol.SparseMAP(), ol.Pipeline()):
        found = entered(partial(ol.OptLayer(subset(4), rule), scores, budget=2.0))
        assert found["_answered"] == 1 and found["all_finite_in"] == 0
    found = entered(lambda: perceptron(scores, target, budget=1.0))
    assert found["_answered"] == 1 and found["all_finite_in"] == 0
