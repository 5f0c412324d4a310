"""Layers and losses in the modes of PyTorch that a program may be in: inference mode, another default device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import cvxpy as cp
import pytest
import torch
from catalogue import EVERY_RULE, LOSSES, PLAIN, PROJECTORS, LossCase
from torch import Tensor

import optlayers as ol
from polytopes import (
    arborescence,
    edge_scores,
    grid_path,
    head_choice,
    linear_chain,
    matching,
    permutahedron,
    projective_tree,
    sequence,
    simplex,
    states_of,
    subset,
)

POLYTOPES: dict[str, Callable[[], ol.Polytope]] = {
    "simplex": partial(simplex, 4),
    "simplex, declared": lambda: simplex(4).without_oracle(),
    "tree": partial(arborescence, 2),
}


def seeded() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def some(*shape: int) -> Tensor:
    return 0.1 + torch.rand(*shape, generator=seeded(), dtype=torch.float64, device="cpu")


def square(z: Tensor) -> Tensor:
    return z.square().flatten(1).sum(1) if z.ndim > 1 else z.square().sum()


def review() -> ol.Polytope:
    """Two reviewers for each of 3 papers; what 4 reviewers can bear differs per instance."""
    x, load = cp.Variable((3, 4)), cp.Parameter(4, name="load", nonneg=True)
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x, axis=1) == 2, cp.sum(x, axis=0) <= load])


def loads() -> Tensor:
    return torch.full((2, 4), 2.5, dtype=torch.float64, device="cpu")


def forward_of_rule(rule: ol.AbstractRule) -> list[Tensor]:
    """Losses of a rule on some polytopes and on a family."""
    given = {"objective": square, "generator": seeded()}
    layers = [ol.OptLayer(make(), rule) for make in POLYTOPES.values()]
    found = [layer(some(2, *layer.compiled().shape), **given) for layer in layers]
    found += [ol.OptLayer(ol.Family(simplex), rule)(some(3, 5), sizes=[5, 0, 3], **given)]
    return found


def forward_of_loss(case: LossCase) -> list[Tensor]:
    """A loss against structures, against a mask, and beside scored auxiliary variables, in a family."""
    draws = {"generator": seeded()} if case.draws else {}
    target = torch.eye(3, dtype=torch.float64, device="cpu").expand(2, 3, 3)
    found = [case.make(matching(3))(some(2, 3, 3), target, **draws)]
    if case.knows_structures:
        found += [case.make(matching(3))(some(2, 3, 3), target == target, **draws)]
    tags = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]], device="cpu")
    if case.by_constraints:  # which describe no auxiliary variables with scores
        return found
    chain = case.make(ol.Family(partial(linear_chain, states=2)))
    return [*found, chain(some(2, 3, 2), tags.double(), sizes=[3, 2], transition=some(2, 3, 2, 2), **draws)]


def forward_of_others() -> list[Tensor]:
    """Solutions, solvers of all kinds, metrics and helpers."""
    tree = ol.OptLayer(arborescence(3), ol.SparseMAP())
    solution = tree.solve(some(2, 4, 4))
    z, lifted = ol.OptLayer(linear_chain(3, 2), ol.SparseMAP()).lifted(some(2, 3, 2), transition=some(3, 2, 2))
    found = [solution.value, solution.weights, z, lifted["transition"]]
    for projector in (*PROJECTORS, ol.CvxpyLayers()):
        compiled = ol.compile_polytope(review(), projector=projector)
        found += [ol.OptLayer(compiled, ol.SparseMAP())(some(2, 3, 4), load=loads())]
        found += [compiled.tangent(compiled.project(some(2, 3, 4), load=loads()), some(2, 3, 4)).scores]
    for maximizer in (ol.Highs(), ol.Dense(), ol.InteriorPoint()):
        found += [ol.OptLayer(review(), ol.Pipeline(), maximizer=maximizer)(some(2, 3, 4), load=loads())]
    found += [ol.regret(matching(3), some(2, 3, 3), some(2, 3, 3).flip(0))]
    found += [states_of(edge_scores(some(3, 2), some(2, 2)))]
    found += [ol.OptLayer(subset(4), ol.StructuredAttention())(some(2, 4), budget=2)]
    for polytope in (sequence(3, 2), grid_path(3, 3), head_choice(2), permutahedron(3), projective_tree(2)):
        found += [ol.OptLayer(polytope, ol.StructuredAttention())(some(2, *polytope.shape))]
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.nan_to_num(nan=9.0), theirs.nan_to_num(nan=9.0))


# Inference mode


@pytest.mark.many(3)
@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_a_rule_in_inference_mode_gives_what_it_gives_without_gradients(rule):
    with torch.no_grad():
        expected = forward_of_rule(rule)
    with torch.inference_mode():
        assert_same(forward_of_rule(rule), expected)


@pytest.mark.many(2)
@pytest.mark.parametrize("case", LOSSES, ids=repr)
def test_a_loss_in_inference_mode_gives_what_it_gives_without_gradients(case):
    with torch.no_grad():
        expected = forward_of_loss(case)
    with torch.inference_mode():
        assert_same(forward_of_loss(case), expected)


def test_solutions_in_inference_mode_are_those_without_gradients():
    with torch.no_grad():
        expected = forward_of_others()
    with torch.inference_mode():
        assert_same(forward_of_others(), expected)


@pytest.mark.many(8)
@pytest.mark.parametrize("make", POLYTOPES.values(), ids=POLYTOPES)
@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_a_layer_of_inference_mode_can_be_trained_afterwards(rule, make):
    """With all that it keeps made in inference mode."""
    gradients = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            layer = ol.OptLayer(make(), rule)
            scores = some(2, *layer.compiled().shape)
            layer(scores, objective=square)
        leaf = some(2, *layer.compiled().shape).requires_grad_()
        layer(leaf, objective=lambda z: (z * some(*z.shape)).flatten(1).sum(1), generator=seeded()).sum().backward()
        gradients.append(leaf.grad)
        layer(scores, objective=square)  # tensors of inference mode outside of it
    assert torch.equal(*gradients)


@pytest.mark.many(3)
@pytest.mark.parametrize("rule", PLAIN, ids=repr)
def test_gradients_may_come_from_inference_mode(rule):
    found, kept = [], ol.compile_polytope(matching(3))
    with torch.inference_mode():
        weights = some(2, 3, 3)
    for given in (some(2, 3, 3), weights):
        leaf = some(2, 3, 3).requires_grad_()
        value = ol.OptLayer(kept, rule)(leaf, generator=seeded())
        found.append(torch.autograd.grad(value, leaf, given)[0])
    leaf = some(2, 3, 3).requires_grad_()
    value = ol.OptLayer(kept, rule)(leaf, generator=seeded())
    with torch.inference_mode():
        found.append(torch.autograd.grad(value, leaf, weights)[0])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_scores_of_inference_mode_may_meet_parameters_that_are_learned():
    layer = ol.OptLayer(review(), ol.SparseMAP())
    with torch.inference_mode():
        scores, fixed = some(2, 3, 4), loads()
    found = []
    for given in (scores, scores.clone()):
        load = (0.65 * loads()).requires_grad_()  # some of them bind
        layer(given, load=load).square().sum().backward()
        found.append(load.grad)
    assert torch.equal(*found) and found[0].abs().sum() > 0
    leaf = some(2, 3, 4).requires_grad_()
    layer(leaf, load=fixed).square().sum().backward()
    assert leaf.grad.abs().sum() > 0


# Another default device


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def backward_of_rule(rule: ol.AbstractRule) -> list[Tensor]:
    """The gradient, too, of single instances and families."""
    found = []
    for layer, sizes in [(ol.OptLayer(make(), rule), {}) for make in POLYTOPES.values()] + [
        (ol.OptLayer(ol.Family(simplex), rule), {"sizes": [4, 0, 3]})
    ]:
        shape = (3, 4) if sizes else (2, *layer.compiled().shape)
        leaf = some(*shape).requires_grad_()
        losses = layer(leaf, objective=square, generator=seeded(), **sizes)
        losses.sum().backward()
        found += [losses.detach(), leaf.grad]
    return found


@pytest.mark.many(3)
@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_a_rule_works_beside_any_default_device(rule):
    expected = backward_of_rule(rule)
    with default_device("meta"):
        assert_same(backward_of_rule(rule), expected)


@pytest.mark.many(2)
@pytest.mark.parametrize("case", LOSSES, ids=repr)
def test_a_loss_works_beside_any_default_device(case):
    expected = forward_of_loss(case)
    with default_device("meta"):
        assert_same(forward_of_loss(case), expected)


def test_solutions_come_beside_any_default_device():
    expected = forward_of_others()
    with default_device("meta"):
        assert_same(forward_of_others(), expected)


@pytest.mark.many(4)
@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_the_default_device_may_change_between_making_and_calling(rule):
    layer = ol.OptLayer(matching(3), rule)
    with torch.device("meta"):
        leaf = some(2, 3, 3).requires_grad_()
        layer(leaf, objective=square, generator=seeded()).sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("projector", PROJECTORS, ids=repr)
def test_failures_are_told_beside_any_default_device(projector):
    too_little = torch.tensor([[2.5] * 4, [0.1] * 4])
    forbidding = some(2, 3, 4)
    forbidding[0, 0, 0] = -torch.inf
    with default_device("meta"):
        layer = ol.OptLayer(review(), ol.SparseMAP(), projector=projector)
        with pytest.raises(ol.SolveError, match="instance 1 is INFEASIBLE"):
            layer(forbidding, load=too_little)
        single = layer(forbidding[0], load=[2.5] * 4)
        layer.on_failure = "nan"
        value = layer(forbidding, load=too_little)
    assert value.isnan().flatten(1).all(1).tolist() == [False, True] and torch.allclose(value[0], single, atol=1e-4)


def test_transforms_and_second_derivatives_work_beside_any_default_device():
    layer, scores = ol.OptLayer(matching(3), ol.SparseMAP()), some(4, 3, 3)

    def penalty(s: Tensor) -> Tensor:
        return torch.func.grad(lambda t: layer(t).square().sum())(s).square().sum()

    family = ol.OptLayer(ol.Family(simplex), ol.SparseMAP())
    rows = some(4, 3, 5)
    expected = torch.func.vmap(torch.func.grad(penalty))(scores)
    with default_device("meta"):
        assert torch.equal(torch.func.vmap(torch.func.grad(penalty))(scores), expected)
        assert torch.func.vmap(lambda s: family(s, sizes=[2, 5, 3]))(rows).isfinite().all()


def test_contracts_hold_beside_any_default_device():
    with default_device("meta"):
        ol.testing.check_polytope(review(), load=torch.full((4,), 2.5, device="cpu"))
        ol.testing.check_oracle(arborescence(2))
        ol.testing.check_solver(ol.Auto(), simplex(3).without_oracle())
        for rule in (ol.Spigot(), ol.IMLE(), ol.ScoreFunction(), ol.SparseMAP()):
            ol.testing.check_rule(rule, simplex(3))
        ol.testing.check_loss(ol.SparseMAPLoss, simplex(3))
