"""Log-partition functions of users: what their contract catches, and instances that they fail for."""

import pickle
import warnings

import cvxpy as cp
import pytest
import torch
from catalogue import CATALOGUE
from drawing import draw
from torch.utils._python_dispatch import TorchDispatchMode

import optlayers as ol
import polytopes
from optlayers.sums import vertex_sums
from optlayers.testing import check_log_partition, check_rule

WITH_FORMULA = [e for e in CATALOGUE if e.polytope.log_partition is not None]
X = cp.Variable((3, 2), nonneg=True)


def choice(function):
    """One of six parts."""
    return ol.Polytope(X, [cp.sum(X) == 1], log_partition=function)


class WrongSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return torch.logsumexp(scores.flatten(1), 1)

    @staticmethod
    def backward(ctx, grad):
        (scores,) = ctx.saved_tensors
        share = torch.softmax(1.1 * scores.flatten(1), 1).nan_to_num()
        return grad[:, None, None] * share.reshape(scores.shape)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return torch.logsumexp(scores.flatten(1), 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (scores,) = ctx.saved_tensors
        return grad[:, None, None] * torch.softmax(scores.flatten(1), 1).nan_to_num().reshape(scores.shape)


def writing(scores):
    with torch.no_grad():
        scores[0, 0, 0] = 1.0
    return ol.log_sum(scores, (1, 2))


def raising(scores):
    if scores.isneginf().flatten(1).all(1).any():
        raise ValueError("nothing is left")
    return ol.log_sum(scores, (1, 2))


def added(scores):
    first, second, third = ol.log_sum(scores).unbind(1)
    return ol.log_add(ol.log_add(first, second), third)


def added_by_torch(scores):
    first, second, third = ol.log_sum(scores).unbind(1)
    return torch.logaddexp(torch.logaddexp(first, second), third)


UNSAFE = {
    "nested": (
        lambda s: torch.logsumexp(torch.logsumexp(s, -1), -1),
        r"\[0, :\] is forbidden: its gradient is NaN.*log_sum",
    ),
    "plain": (lambda s: torch.logsumexp(s.flatten(1), 1), "6 of 6 parts are forbidden: its gradient is NaN"),
    "added": (added_by_torch, "is NaN, but is finite by the sum; torch.logsumexp and .*log_add"),
    "too much": (lambda s: ol.log_sum(s, (1, 2)) + 1e-6, "the log of the sum over all 6 vertices is"),
    "a part too few": (lambda s: ol.log_sum(s[:, :2], (1, 2)), "at random scores: it is .* 6 vertices"),
    "no shift": (lambda s: s.exp().sum((1, 2)).log(), "at scores of size 10000: it is inf"),
    "a shift of the batch": (lambda s: (s - s.max()).exp().sum((1, 2)).log() + s.max(), "it is -inf, but the log of"),
    "a large number for -inf": (lambda s: ol.log_sum(s.clamp(min=-1e9), (1, 2)), "but no structure is left"),
    "float32": (lambda s: ol.log_sum(s.float(), (1, 2)), "returns torch.float32 for scores of float64"),
    "detached": (lambda s: ol.log_sum(s.detach(), (1, 2)), "has no gradient: it is written in torch"),
    "one number": (lambda s: ol.log_sum(s, (1, 2)).sum(), r"returns shape \(\) .* must return \(\d+,\), a number per"),
    "no tensor": (lambda s: 1.0, "returns float; it must return a tensor"),
    "wrong slope": (WrongSlope.apply, "its gradient is .* but right is"),
    "one derivative": (Once.apply, "has no second derivative, which is what the gradient of marginals is"),
    "writes": (writing, "writes to its arguments; work on copies"),
    "raises": (raising, "raises ValueError: nothing is left; where no structure is left it returns -inf"),
    "sees the batch": (
        lambda s: ol.log_sum(s, (1, 2)) + 1e-3 * (len(s) == 1),
        "its value depends on the rest of the b",
    ),
}


@pytest.mark.many(3)
@pytest.mark.parametrize("what", UNSAFE)
def test_the_contract_catches(what):
    function, message = UNSAFE[what]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AssertionError, match=f"log_partition .*{message}"):
            check_log_partition(choice(function))


@pytest.mark.parametrize("function", [lambda s: ol.log_sum(s, (1, 2)), lambda s: ol.log_sum(ol.log_sum(s)), added])
def test_what_is_safe_passes_and_forbidden_blocks_have_gradients(function):
    check_log_partition(choice(function))
    scores = torch.tensor([[[0.0, 0.0], [-torch.inf, -torch.inf], [0.0, 0.0]]], requires_grad=True)
    value = ol.OptLayer(choice(function), ol.StructuredAttention())(scores)
    assert torch.equal(value, torch.tensor([[[0.25, 0.25], [0.0, 0.0], [0.25, 0.25]]]))
    value.square().sum().backward()
    assert scores.grad.isfinite().all()


def test_a_parameter_of_another_instance_is_caught():
    subset = polytopes.subset(4)

    def of_the_first(scores, budget):
        return subset.log_partition(scores, budget[:1].expand_as(budget))

    declared = ol.Polytope(subset.variable, subset.constraints, log_partition=of_the_first)
    with pytest.raises(AssertionError, match="of_the_first: its value depends on the budget of other instances"):
        check_log_partition(declared, budget=2.0)


def test_what_the_contract_wants():
    with pytest.raises(TypeError, match="takes a declaration with one"):
        check_log_partition(polytopes.matching(3))
    with pytest.raises(ValueError, match="too many to enumerate"):
        check_log_partition(polytopes.cube(13))


def test_sums_of_logarithms_take_several_dimensions():
    scores = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[0, 1] = -torch.inf
    for dim in (-1, 0, (0, 2), (1, -1), [2]):
        theirs = torch.logsumexp(scores, dim)
        assert torch.equal(ol.log_sum(scores, dim), theirs)
        assert torch.equal(ol.log_sum(scores, dim, keepdim=True), torch.logsumexp(scores, dim, keepdim=True))
    assert torch.equal(torch.vmap(ol.log_sum)(scores), ol.log_sum(scores))
    scores.requires_grad_()
    (slope,) = torch.autograd.grad(ol.log_sum(scores, (1, 2)).sum(), scores)
    torch.testing.assert_close(slope.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    assert (slope[0, 1] == 0).all()


def test_a_derivative_that_is_not_finite_is_said():
    scores = torch.zeros(1, 3, 2)
    scores[0, 1] = -torch.inf
    nested = choice(UNSAFE["nested"][0])
    value = ol.OptLayer(nested, ol.StructuredAttention())(scores.requires_grad_())
    with pytest.raises(
        ol.SolveError, match=r"second derivative of log_partition is not .*; torch\.logsumexp .*log_sum"
    ):
        value.square().sum().backward()
    inside = choice(lambda s: (lambda r: torch.logsumexp(r - r[..., :1].detach(), -1))(ol.log_sum(s)) + s[:, 0, 0])
    with pytest.raises(ol.SolveError, match=r"log_partition is nan; torch\.logsumexp"):
        ol.OptLayer(inside, ol.StructuredAttention())(torch.where(torch.arange(3)[:, None] == 0, -torch.inf, scores))
    nowhere = choice(lambda s: ol.log_sum(s, (1, 2)) * torch.nan)
    with pytest.raises(ol.SolveError, match="instance 0 is FAILED: log_partition is nan"):
        ol.OptLayer(nowhere, ol.StructuredAttention())(torch.zeros(1, 3, 2))


# Instances that a function fails for


def limited(scores, budget):
    """Choices of one part, with some budgets that raise."""
    if (budget > 6).any():
        raise ValueError(f"{float(budget.max()):g} is too much")
    return ol.log_sum(scores)


def with_budget(function=limited):
    x, budget = cp.Variable(5), cp.Parameter(name="budget")
    return ol.Polytope(x, [x >= 0, cp.sum(x) == 1, x <= budget], log_partition=function)


FAILING = {
    "own": (
        with_budget(),
        torch.tensor([2.0, 7.0, 3.0, 8.0]),
        [1, 3],
        "FAILED: log_partition limited raised ValueError: 7 is too",
    ),
    "subset": (polytopes.subset(5), torch.tensor([2.0, 7.0, 3.0, 9.0]), [1, 3], "INFEASIBLE: "),
    "fraction": (
        polytopes.subset(5),
        torch.tensor([2.0, 2.5, 3.0, 0.1]),
        [1, 3],
        "FAILED: log_partition _log_partition raised ValueError: budget is 2.5",
    ),
}
each_failing = pytest.mark.parametrize("what", FAILING)
BACKWARD = [ol.Hard(ol.StructuredAttention()), ol.SpigotEG(), ol.SpigotCE(), ol.GumbelStraightThrough()]


@each_failing
def test_the_others_have_their_marginals_and_gradients(what):
    polytope, budget, bad, reason = FAILING[what]
    good = [k for k in range(4) if k not in bad]
    layer = ol.OptLayer(polytope, ol.StructuredAttention(), on_failure="nan")
    scores, alone = draw(4, 5).requires_grad_(), draw(4, 5)[good].requires_grad_()
    found, expected = layer(scores, budget=budget), layer(alone, budget=budget[good])
    assert found[bad].isnan().all() and torch.equal(found[good], expected)
    gradients = (
        torch.autograd.grad(found[good].square().sum(), scores)[0],
        torch.autograd.grad(expected.square().sum(), alone)[0],
    )
    assert (gradients[0][good] - gradients[1]).abs().max() <= 1e-15 and (gradients[0][bad] == 0).all()
    with pytest.raises(
        ol.SolveError, match=f"2 of 4 instances could not be solved\n  instance 1 is {reason}"
    ) as caught:
        ol.OptLayer(polytope, ol.StructuredAttention())(scores, budget=budget)
    assert [failure.index for failure in caught.value.failures] == [(1,), (3,)]


@each_failing
@pytest.mark.parametrize("count", [1, 2, 33])
def test_wherever_they_are_in_a_batch(what, count):
    polytope, budget, *_ = FAILING[what]
    layer = ol.OptLayer(polytope, ol.StructuredAttention(), on_failure="nan")
    for bad in {0, count - 1, count // 2}:
        budgets = torch.full((count,), 1.0)
        budgets[bad] = budget[1]
        found = layer(draw(count, 5), budget=budgets)
        assert torch.equal(found.isnan().any(1), torch.arange(count) == bad)
    assert layer(draw(count, 5), budget=budget[1]).isnan().all()
    assert layer(draw(2, 2, 5), budget=budget.reshape(2, 2)).isnan().any(2).tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("rule", BACKWARD, ids=repr)
def test_where_marginals_are_for_the_backward_pass_alone(rule):
    """There the other instances have their gradients, and the failure is told under its own index."""
    polytope, budget = with_budget(), torch.tensor([2.0, 7.0, 3.0])

    def gradient(which, on_failure):
        scores = draw(3, 5)[which].requires_grad_()
        layer = ol.OptLayer(polytope, rule, on_failure=on_failure)
        torch.manual_seed(0)
        layer(scores, budget=budget[which]).square().sum().backward()
        return scores.grad

    mixed = gradient([0, 1, 2], "nan")
    assert (mixed[1] == 0).all() and mixed.isfinite().all()
    if not rule.draws:
        torch.testing.assert_close(mixed[[0, 2]], gradient([0, 2], "raise"))
    with pytest.raises(
        ol.SolveError, match=r"1 of 3 .*\n  instance 1 is FAILED: .* limited raised ValueError: 7 is too"
    ):
        gradient([0, 1, 2], "raise")


@each_failing
def test_drawn_structures_and_losses(what):
    polytope, budget, bad, reason = FAILING[what]
    layer = ol.OptLayer(polytope, ol.ScoreFunction(samples=4), on_failure="nan")
    scores, seen = draw(4, 5).requires_grad_(), []

    def objective(structures):
        seen.append(structures)
        return structures.sum(-1)

    losses = layer(scores, objective=objective, budget=budget)
    assert losses.isnan().tolist() == [k in bad for k in range(4)]
    assert all(torch.equal(one.isnan().any(1), losses.isnan()) for one in seen)
    losses.nan_to_num().sum().backward()
    assert scores.grad.isfinite().all() and (scores.grad[bad] == 0).all()
    target = torch.eye(5, dtype=torch.float64)[:4]
    if what == "own":
        with pytest.raises(ol.SolveError, match=f"instance 1 is {reason}"):
            ol.CRFLoss(polytope)(draw(4, 5), target, budget=budget)


class Singular(torch.autograd.Function):
    """A log sum whose derivative takes no batch in which a first score is larger than 6."""

    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return torch.logsumexp(scores, 1)

    @staticmethod
    def backward(ctx, grad):
        (scores,) = ctx.saved_tensors
        if (scores[:, 0] > 6).any():
            raise torch.linalg.LinAlgError("the matrix is singular")
        return grad[:, None] * torch.softmax(scores, 1)


@pytest.mark.parametrize("bad", [[], [1], [0, 3], [0, 1, 2, 3]], ids=str)
def test_a_derivative_that_raises_for_some_instances(bad):
    x = cp.Variable(5, nonneg=True)
    polytope = ol.Polytope(x, [cp.sum(x) == 1], log_partition=Singular.apply)
    scores, direction = draw(4, 5).requires_grad_(), draw(4, 5, seed=1)
    with torch.no_grad():
        scores[bad, 0] = 7.0
    good = [k for k in range(4) if k not in bad]
    for rule in (ol.StructuredAttention(), ol.Hard(ol.StructuredAttention())):
        layer = ol.OptLayer(polytope, rule, on_failure="nan")
        value = layer(scores)
        (found,) = torch.autograd.grad((value * direction)[good].sum(), scores)
        share = torch.softmax(scores, 1)
        (right,) = torch.autograd.grad((share * direction)[good].sum(), scores)
        torch.testing.assert_close(found, right)
        if isinstance(rule, ol.StructuredAttention):
            torch.testing.assert_close(value[good], share[good])
            assert value[bad].isnan().all()
    if bad:
        reason = (
            f"instance {bad[0]} is FAILED: the derivative of log_partition apply raised .*Error: the matrix is sing"
        )
        with pytest.raises(ol.SolveError, match=reason):
            ol.OptLayer(polytope, ol.StructuredAttention())(scores)


def test_in_a_family_instances_have_their_own_index():
    def of_size(size):
        x, budget = cp.Variable(size), cp.Parameter(name="budget")
        return ol.Polytope(x, [x >= 0, cp.sum(x) == 1, x <= budget], log_partition=limited)

    sizes, budget = [3, 5, 3, 4, 5], torch.tensor([2.0, 2.0, 7.0, 2.0, 9.0])
    layer = ol.OptLayer(ol.Family(of_size), ol.StructuredAttention(), on_failure="nan")
    found = layer(draw(5, 5), sizes=sizes, budget=budget)
    assert found.isnan().any(1).tolist() == [False, False, True, False, True]
    assert torch.allclose(found[[0, 1, 3]].sum(1), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ol.SolveError) as caught:
        ol.OptLayer(ol.Family(of_size), ol.StructuredAttention())(draw(5, 5), sizes=sizes, budget=budget)
    assert [(f.index, "is too much" in f.reason) for f in caught.value.failures] == [((2,), True), ((4,), True)]


def test_a_function_is_asked_once_where_it_does_not_raise():
    asked = []

    def counted(scores):
        asked.append(len(scores))
        return ol.log_sum(scores)

    x = cp.Variable(3, nonneg=True)
    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x) == 1], log_partition=counted), ol.StructuredAttention())
    layer(torch.zeros(8, 3, requires_grad=True)).sum().backward()
    assert asked == [8]
    assert layer(torch.zeros(0, 3)).shape == (0, 3) and asked == [8]


def test_what_is_no_answer_for_any_instance_is_said():
    def layer(function):
        return ol.OptLayer(choice(function), ol.StructuredAttention())

    with pytest.raises(TypeError, match=r"log_partition returned float; it must return a tensor \(2,\)"):
        layer(lambda s: 1.0)(torch.zeros(2, 3, 2))
    with pytest.raises(TypeError, match=r"log_partition has no gradient .* without detach\(\)"):
        layer(lambda s: ol.log_sum(s.detach(), (1, 2)))(torch.zeros(2, 3, 2))
    learned = torch.zeros((), requires_grad=True)
    with pytest.raises(TypeError, match="log_partition has no gradient for the scores"):
        layer(lambda s: ol.log_sum(s.detach(), (1, 2)) + learned)(torch.zeros(2, 3, 2))
    with pytest.raises(ol.SolveError, match=r"RuntimeError: shape .* \(test_log_partition.py, line \d+\)|is FAILED"):
        layer(lambda s: s.reshape(-1, 7))(torch.zeros(2, 3, 2))


def test_functions_that_cannot_be_pickled_are_checked_without_pickling():
    x = cp.Variable(3, nonneg=True)
    polytope = ol.Polytope(x, [cp.sum(x) == 1], log_partition=lambda s: ol.log_sum(s))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(ol.OptLayer(polytope, ol.StructuredAttention()))
    for rule in (ol.StructuredAttention(), ol.Hard(ol.StructuredAttention()), ol.Pipeline()):
        with pytest.warns(UserWarning, match="not pickled the layer, for log_partition <lambda> cannot be pickled"):
            check_rule(rule, polytope)
    hidden = cp.Variable(3, nonneg=True)
    rows = [x == hidden, cp.sum(hidden) == 1]
    member = ol.Polytope(x, rows, oracle=polytopes.simplex(3).oracle, membership=lambda z: abs(z.sum() - 1.0))
    with pytest.warns(UserWarning, match="for membership function <lambda> cannot be pickled"):
        check_rule(ol.Pipeline(), member)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_rule(ol.Pipeline(), polytopes.simplex(3))


def test_rules_that_cannot_be_pickled_are_said():
    class Local(ol.AbstractVertexRule):
        def backward(self, polytope, saved, grad, context):
            return ol.Gradient(grad)

    with pytest.raises(AssertionError, match="cannot be pickled, so layers that have it cannot be saved"):
        check_rule(Local(), polytopes.simplex(3))


class Largest(TorchDispatchMode):
    """The entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return made


def test_large_batches_over_many_vertices_are_summed_in_parts():
    layer = ol.OptLayer(polytopes.matching(6), ol.StructuredAttention())
    scores = draw(9000, 6, 6).requires_grad_()
    assert vertex_sums.AT_ONCE < 9000 * 720
    layer(scores[:1])
    with Largest() as largest:
        value = layer(scores)
        (gradient,) = torch.autograd.grad(value.square().sum(), scores)
    assert 9000 * 36 <= largest.entries <= vertex_sums.AT_ONCE
    alone = scores.detach()[-2:].requires_grad_()
    torch.testing.assert_close(layer(alone), value[-2:])
    torch.testing.assert_close(torch.autograd.grad(layer(alone).square().sum(), alone)[0], gradient[-2:])
