"""Sizes of a family rounded up: fewer polytopes, the same answers and gradients."""

import copy
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import cvxpy as cp
import pytest
import torch
from catalogue import EVERY_RULE
from drawing import draw

import optlayers as ol
from optlayers.compilation import rounded
from polytopes import (
    arborescence,
    cube,
    linear_chain,
    matching,
    partial_matching,
    permutahedron,
    sequence,
    simplex,
    subset,
)


def budgeted(size: int) -> ol.Polytope:
    x, budget = cp.Variable(size), cp.Parameter(name="budget", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= 0.6, cp.sum(x) <= budget])


def cumulative(size: int) -> ol.Polytope:
    x, most = cp.Variable(size), cp.Parameter(size, name="most", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.cumsum(x) <= most])


def other_from_five_on(size: int) -> ol.Polytope:
    x = cp.Variable(size)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == max(1, size // 4)])


RULES = [rule for rule in EVERY_RULE if not rule.draws]
SIZES = [3, 7, 1, 4, 0, 5]


def of(weights):
    return lambda z: (z * weights).flatten(1).sum(1) + 0.1 * z.square().flatten(1).sum(1)


def compared(factory, rule, scores, weights, **given):
    """Answers and gradients of a family as it is, and of one that is rounded."""
    found = []
    for family in (ol.Family(factory), ol.Family(factory, round_to=4)):
        layer, leaf = ol.OptLayer(family, rule), scores.clone().requires_grad_()
        losses = layer(leaf, objective=of(weights), **given)
        losses.sum().backward()
        value = losses.detach() if rule.needs_objective else layer(scores, **given)
        found.append((value, leaf.grad))
    return found


@pytest.mark.many(16)
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("factory", [simplex, cube])
def test_answers_and_gradients_are_the_same(factory, rule):
    scores, weights = draw(6, 7), draw(6, 7, seed=1)
    scores[1, 2] = -torch.inf
    (value, gradient), (rounded, other) = compared(factory, rule, scores, weights, sizes=SIZES)
    torch.testing.assert_close(rounded, value, atol=1e-12, rtol=0)
    torch.testing.assert_close(other, gradient, atol=1e-10, rtol=0)


def test_two_sizes_parameters_and_higher_derivatives():
    scores, weights = draw(2, 2, 5, 6), draw(2, 2, 5, 6, seed=1)
    sizes = torch.tensor([[[5, 3], [2, 6]], [[1, 1], [4, 4]]])
    for round_to in (4, (2, 3)):
        plain = ol.OptLayer(ol.Family(partial_matching), ol.SparseMAP())
        rounded = ol.OptLayer(ol.Family(partial_matching, round_to=round_to), ol.SparseMAP())
        found = []
        for layer in (plain, rounded):
            leaf = scores.clone().requires_grad_()
            value = layer(leaf, sizes=sizes)
            (slope,) = torch.autograd.grad((value * weights).sum(), leaf, create_graph=True)
            (twice,) = torch.autograd.grad(slope.square().sum(), leaf, allow_unused=True, materialize_grads=True)
            found.append((value, slope, twice))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other, one, atol=1e-10, rtol=0)
    scores, budget = draw(3, 5), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    values = []
    for family in (ol.Family(budgeted), ol.Family(budgeted, round_to=4)):
        wants = budget.clone().requires_grad_()
        value = ol.OptLayer(family, ol.SparseMAP())(scores, sizes=[5, 2, 3], budget=wants)
        values.append((value.detach(), *torch.autograd.grad(value.square().sum(), wants)))
    torch.testing.assert_close(values[1], values[0], atol=1e-10, rtol=0)


def test_losses_decoding_verdicts_and_targets_in_the_padding():
    scores, sizes = draw(4, 6), [6, 2, 3, 5]
    target = torch.zeros(4, 6)
    target[torch.arange(4), torch.tensor([5, 1, 0, 4])] = 1.0
    for make in (ol.SparseMAPLoss, ol.CRFLoss, ol.StructuredHingeLoss, ol.StructuredPerceptronLoss):
        found = []
        for family in (ol.Family(simplex), ol.Family(simplex, round_to=(4,))):
            loss, leaf = make(family, reduction="none"), scores.clone().requires_grad_()
            losses = loss(leaf, target, sizes=sizes)
            losses.sum().backward()
            mask = torch.zeros(4, 6, dtype=torch.bool)
            mask[:, :2] = True
            found.append(
                (losses.detach(), leaf.grad, loss.decode(scores, sizes=sizes), loss(scores, mask, sizes=sizes))
            )
        torch.testing.assert_close(found[1], found[0], atol=1e-10, rtol=0)
    loss = ol.SparseMAPLoss(ol.Family(simplex, round_to=4))
    wrong = torch.eye(6)[[5, 1, 3, 4]]  # instance 2 has three parts
    with pytest.raises(ValueError, match=r"target must be 0 in the padding, but entry \[3\] of instance 2 is 1"):
        loss(scores, wrong, sizes=sizes)
    verdicts = ol.OptLayer(ol.Family(simplex, round_to=4), ol.SparseMAP()).solve(scores, sizes=sizes)
    assert verdicts.all_ok and (verdicts.value[1, 2:] == 0).all()
    truth, lost = -draw(4, 6, seed=5).abs(), []  # what an instance does not have scores no more than what it has
    for family in (ol.Family(simplex), ol.Family(simplex, round_to=4)):
        leaf = scores.clone().requires_grad_()
        spo = ol.SPOPlusLoss(family, reduction="none")(leaf, truth, sizes=sizes)
        spo.sum().backward()
        lost.append((ol.regret(family, scores, truth, sizes=sizes), spo.detach(), leaf.grad))
    torch.testing.assert_close(lost[1], lost[0])


def test_fewer_sizes_are_compiled():
    made = []

    def factory(size: int) -> ol.Polytope:
        made.append(size)
        return simplex(size)

    family = ol.Family(factory, round_to=8, cache_size=2)
    layer = ol.OptLayer(family, ol.SparseMAP())
    layer(draw(16, 16), sizes=list(range(1, 17)))
    assert layer.compiled(8).shape == (8,)
    assert len(made) == 16 + 14 + 2  # shapes, comparisons, what is compiled
    layer(draw(16, 16), sizes=list(range(1, 17)))
    assert len(made) == 16 + 14 + 2
    for copied in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(ol.OptLayer(ol.Family(simplex, round_to=8), ol.SparseMAP()))),
    ):
        assert copied(draw(2, 5), sizes=[5, 3]).shape == (2, 5)


@pytest.mark.parametrize("factory", [matching, arborescence, lambda size: sequence(size, 2)])
def test_structures_that_are_not_larger_ones_without_some_parts_are_refused(factory):
    family = ol.Family(factory, round_to=4)
    shape = factory(3).shape
    with pytest.raises(ValueError, match="cannot be rounded: the polytope of size 3 is not that of size 4 without its"):
        ol.OptLayer(family, ol.SparseMAP())(draw(2, *shape), sizes=[3, 3])


def test_every_size_is_compared_and_parameters_are_numbers():
    layer = ol.OptLayer(ol.Family(other_from_five_on, round_to=4), ol.SparseMAP())
    layer(draw(1, 4), sizes=[3])
    with pytest.raises(ValueError, match="the polytope of size 5 is not that of size 8 without its further parts"):
        layer(draw(1, 8), sizes=[5])
    with pytest.raises(NotImplementedError, match=r"parameters are numbers, but most has shape \(4,\)"):
        ol.OptLayer(ol.Family(cumulative, round_to=4), ol.SparseMAP())(draw(1, 3), sizes=[3], most=torch.ones(1, 3))

    def named(size: int) -> ol.Polytope:
        x, other = cp.Variable(size), cp.Parameter(name="even" if size % 2 == 0 else "odd", nonneg=True)
        return ol.Polytope(x, [x >= 0, x <= other])

    with pytest.raises(ValueError, match=r"as its parameters are \['odd'\] and not \['even'\]"):
        ol.OptLayer(ol.Family(named, round_to=4), ol.SparseMAP())(draw(1, 3), sizes=[3], even=1.0)


def test_what_does_not_fit_is_refused():
    for bad in (0, -1, 2.5, True, "4", (4, 0), [], ()):
        with pytest.raises((ValueError, TypeError), match="round_to is a positive integer, or one for each size"):
            ol.Family(simplex, round_to=bad)
    with pytest.raises(ValueError, match=r"round_to has 2 steps \(2, 3\), but instances have 1 size"):
        ol.OptLayer(ol.Family(simplex, round_to=(2, 3)), ol.SparseMAP())(draw(2, 5), sizes=[5, 3])
    with pytest.raises(ValueError, match=r"instance 1: size 6 needs scores of shape \(6,\) per instance, but"):
        ol.OptLayer(ol.Family(simplex, round_to=4), ol.SparseMAP())(draw(2, 5), sizes=[5, 6])
    budget = ol.OptLayer(ol.Family(subset, round_to=4), ol.SparseMAP())
    assert budget(draw(2, 5), sizes=[5, 3], budget=2.0).sum(1).tolist() == pytest.approx([2.0, 2.0])
    chains = ol.OptLayer(ol.Family(lambda size: linear_chain(size, 2), round_to=2), ol.SparseMAP())
    with pytest.raises(NotImplementedError, match="round_to is for families without scored auxiliary variables"):
        chains(draw(1, 3, 2), sizes=[3], transition=draw(1, 3, 2, 2))


def test_under_vmap():
    plain, rounded = (ol.OptLayer(ol.Family(simplex, round_to=step), ol.SparseMAP()) for step in (1, 4))
    scores = draw(3, 2, 6)
    found = [torch.func.vmap(lambda s, layer=layer: layer(s, sizes=[6, 3]))(scores) for layer in (plain, rounded)]
    torch.testing.assert_close(found[1], found[0])
    cubes = ol.OptLayer(ol.Family(cube, round_to=4), ol.SparseMAP())
    slope = torch.func.grad(lambda s: cubes(s, sizes=[6, 3]).sum())(scores[0])
    assert (slope[1, 3:] == 0).all()
    with torch.device("meta"):
        assert ol.OptLayer(ol.Family(simplex, round_to=2), ol.SparseMAP())(scores[0], sizes=[5, 3]).device.type == "cpu"
    slopes = [
        torch.func.vmap(torch.func.grad(lambda s, layer=layer: layer(s, sizes=[6, 3]).square().sum()))(scores)
        for layer in (plain, rounded)
    ]
    torch.testing.assert_close(slopes[1], slopes[0])


def at_most_seven(size: int) -> ol.Polytope:
    if size > 7:
        raise ValueError(f"sizes go up to 7, but this is {size}")
    return simplex(size)


def test_a_size_that_is_rounded_beyond_the_limit_of_a_factory_is_named():
    layer = ol.OptLayer(ol.Family(at_most_seven, round_to=4), ol.SparseMAP())
    said = (
        "sizes go up to 7, but this is 8; that is for instance 1, whose size 6 was rounded up to 8: leave round_to out"
    )
    with pytest.raises(ValueError, match=said):
        layer(draw(2, 7), sizes=[3, 6])
    with pytest.raises(ValueError, match=r"this is 8$"):  # which nobody rounded
        ol.OptLayer(ol.Family(at_most_seven, round_to=4), ol.SparseMAP())(draw(1, 8), sizes=[8])


def with_a_budget_from_three_on(size: int) -> ol.Polytope:
    return budgeted(size) if size >= 3 else simplex(size)


@pytest.mark.parametrize("given", [{}, {"budget": 1.0}])
def test_declarations_of_different_parameters_are_named_by_their_size(given):
    layer = ol.OptLayer(ol.Family(with_a_budget_from_three_on), ol.SparseMAP())
    (size, instance), other = ((2, 1), 5) if given else ((5, 0), 2)
    own, others = (f"\\[{names}\\]" for names in (("", "'budget'") if given else ("'budget'", "")))
    said = (
        f"size {size} says, which instance {instance} has: its parameters are {own}, and those of size {other} {others}"
    )
    with pytest.raises(
        TypeError, match=f"parameters do not match.*{said}, but all .* declare the same parameters at all"
    ):
        layer(draw(2, 5), sizes=[5, 2], **given)
    with pytest.raises(TypeError, match=r"the declaration of size 3 says, which instance 1 has$"):
        layer(draw(2, 5), sizes=[5, 3])


def at_most_all_but_one(size: int) -> ol.Polytope:
    x = cp.Variable(size)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) <= size - 1])


def bounded_twice(size: int) -> ol.Polytope:
    x, most = cp.Variable(size), cp.Parameter(name="most", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) <= most, cp.sum(x) <= max(3, size / 2)])


def test_other_answers_that_few_scores_have_are_found():
    """The larger polytope has one vertex more, at all ones: 10 instead of 9."""
    layer = ol.OptLayer(ol.Family(at_most_all_but_one, round_to=4), ol.Pipeline())
    with pytest.raises(
        ValueError, match="the polytope of size 10 is not that of size 12 without its further parts; in"
    ):
        layer(torch.full((2, 10), 2.0), sizes=[10, 12])


def test_parameters_are_compared_at_the_values_that_are_given():
    plain, larger = (ol.OptLayer(ol.Family(bounded_twice, round_to=step), ol.Pipeline()) for step in (1, 4))
    scores = torch.full((2, 9), 2.0)
    assert plain(scores, sizes=[9, 9], most=5.0).sum(1).tolist() == [4.5, 4.5]  # by the half of 9
    for value in (1.0, 2.0, 4.0):  # which the larger one has, too
        assert larger(scores, sizes=[9, 9], most=value).sum(1).tolist() == [value, value]
    with pytest.raises(
        ValueError, match="size 9 is not that of size 12 without its further parts, with most=5; instance 1"
    ):
        larger(torch.ones(2, 12), sizes=[12, 9], most=torch.tensor([6.0, 5.0]))
    for loss in (ol.SparseMAPLoss, ol.StructuredHingeLoss):
        lost = loss(ol.Family(bounded_twice, round_to=4))
        with pytest.raises(ValueError, match=r"with most=4\.75; instance 0 has that size"):
            lost(scores[:1], torch.zeros(1, 9), sizes=[9], most=4.75)
    with pytest.raises(ValueError, match=r"with most=6; instance \(0, 0\) has that"):
        torch.func.vmap(lambda s, b: larger(s, sizes=[9], most=b))(scores[:, None], torch.tensor([3.0, 6.0]))


def weighted(size: int) -> ol.Polytope:
    x, weight = cp.Variable(size), cp.Parameter(name="weight", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= 1, weight * cp.sum(x) <= 2])


def first_of_all(size: int) -> ol.Polytope:
    x, most = cp.Variable(size), cp.Parameter(name="most")  # which may be negative: then only the larger one is empty
    return ol.Polytope(x, [x >= -1, x <= 1, x[0] <= 1, *([x[3] <= most] if size > 3 else [])])


SAME = [(simplex, 3, 4), (simplex, 1, 4), (cube, 3, 8), (subset, 2, 4), (budgeted, 5, 8), (weighted, 3, 4)]
OTHER = [
    (matching, 3, 4),
    (arborescence, 3, 4),
    (permutahedron, 2, 4),
    (at_most_all_but_one, 9, 12),
    (bounded_twice, 9, 12),
    (other_from_five_on, 5, 8),
    (first_of_all, 3, 4),
]


def test_that_rows_are_the_same_is_proved_without_a_solve(monkeypatch):
    pairs = [(ol.compile_polytope(f(a)), ol.compile_polytope(f(b))) for f, a, b in SAME + OTHER]
    pairs += [(ol.compile_polytope(partial_matching(1, 3)), ol.compile_polytope(partial_matching(4, 4)))]
    for ask in ("maximize", "project"):
        monkeypatch.setattr(ol.CompiledPolytope, ask, None)
    found = [rounded.are_the_same(*pair) for pair in pairs]
    assert found == [True] * len(SAME) + [False] * len(OTHER) + [True]


def test_an_infeasible_instance_is_told_of_parts_beyond_its_size():
    layer = ol.OptLayer(ol.Family(subset, round_to=4), ol.SparseMAP())
    with pytest.raises(
        ol.SolveError,
        match=r"instance 0 is INFEASIBLE.*; its size 3 is rounded up to 4, and parts beyond its size are forbidden; ch",
    ):
        layer(draw(2, 4), sizes=[3, 4], budget=4.0)


def test_a_family_shows_what_is_not_the_default():
    assert repr(ol.Family(simplex)) == "Family(simplex)"
    assert repr(ol.Family(simplex, round_to=4)) == "Family(simplex, round_to=4)"
    assert repr(ol.Family(simplex, round_to=(4, 2), cache_size=3)) == "Family(simplex, cache_size=3, round_to=(4, 2))"


def test_a_size_is_said_to_be_compiled_again_only_where_one_had_to_go():
    begin = threading.Barrier(3)

    def meeting(size: int) -> ol.Polytope:
        if size == 2:
            begin.wait(timeout=60)  # three threads make it at once
        return simplex(size)

    failed = []

    def fails_once(size: int) -> ol.Polytope:
        if not failed:
            failed.append(size)
            raise RuntimeError("not yet")
        return simplex(size)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = ol.OptLayer(ol.Family(meeting), ol.Pipeline())
        with ThreadPoolExecutor(3) as three:
            for one in [three.submit(layer.compiled, 2) for _ in range(3)]:
                assert one.result().shape == (2,)
        layer = ol.OptLayer(ol.Family(fails_once, cache_size=1), ol.Pipeline())
        with pytest.raises(RuntimeError, match="not yet"):
            layer.compiled(3)
        layer.compiled(3)
        layer.compiled(4)
    with pytest.warns(
        UserWarning, match=r"keeps 1 sizes compiled, but 2 have been asked for, and size 3 is compiled again"
    ):
        layer.compiled(3)
