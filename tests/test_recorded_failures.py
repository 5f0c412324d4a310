"""No failure behind a structure or a gradient goes unseen, whatever the rule says of it."""

from dataclasses import dataclass
from typing import final

import cvxpy as cp
import pytest
import torch
from drawing import draw

import optlayers as ol
from optlayers.bound.host_evidence import HostEvidence
from optlayers.rules import AbstractVertexRule
from polytopes import cube, simplex


def capped() -> ol.Polytope:
    """Points of the unit cube whose parts sum to ``total``, which may be too much."""
    x, total = cp.Variable(3), cp.Parameter(name="total")
    return ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == total])


def narrow() -> ol.Polytope:
    """A total in a cube of half the size: empty where it exceeds 1.5."""
    x, total = cp.Variable(3), cp.Parameter(name="total")
    return ol.Polytope(x, [x >= 0, x <= 0.5, cp.sum(x) == total])


NARROW = narrow()


@final
@dataclass(frozen=True)
class Forgetful(AbstractVertexRule):
    """Solves something in its backward pass, and says nothing of it. It fails for the third instance."""

    way: str

    def backward(self, polytope, saved, grad, context):
        scores, vertex = saved
        wrong = scores.clone()
        wrong[2] = torch.nan
        if self.way == "maximize":
            value = polytope.maximize(wrong).value
        elif self.way == "project":
            value = polytope.project(wrong).value
        elif self.way == "repeated":
            value = polytope.repeated(3).project(torch.cat([scores, wrong, scores])).value[: len(scores)]
        elif self.way == "repeated twice":
            asked = torch.cat([scores] * 5 + [wrong])
            value = polytope.repeated(3).repeated(2).maximize(asked).value[: len(scores)]
        elif self.way == "relaxed":
            value = polytope.relaxed(NARROW).project(scores).value
        elif self.way == "relaxed, repeated":
            value = polytope.relaxed(NARROW).repeated(2).maximize(scores.repeat(2, 1)).value[: len(scores)]
        else:
            raise AssertionError(self.way)
        return ol.Gradient(torch.nan_to_num(vertex - value))


WAYS = ["maximize", "project", "repeated", "repeated twice", "relaxed", "relaxed, repeated"]


def totals() -> torch.Tensor:
    return torch.tensor([1.0, 1.2, 2.0, 0.5], dtype=torch.float64)  # the third is too much for the narrow polytope


@pytest.mark.parametrize("way", WAYS)
def test_a_solve_that_fails_backward_raises_though_the_rule_forgets_it(way):
    layer, leaf = ol.OptLayer(capped(), Forgetful(way)), draw(4, 3).requires_grad_()
    value = layer(leaf, total=totals())
    with pytest.raises(ol.SolveError, match="1 of 4 instances could not be solved\n  instance 2 is") as caught:
        value.sum().backward()
    assert [f.index for f in caught.value.failures] == [(2,)]


@pytest.mark.parametrize("way", WAYS)
def test_a_solve_that_fails_backward_leaves_no_gradient_though_the_rule_forgets_it(way):
    layer, scores = ol.OptLayer(capped(), Forgetful(way), on_failure="nan"), draw(4, 3)
    leaf = scores.clone().requires_grad_()
    layer(leaf, total=totals()).sum().backward()
    assert (leaf.grad[2] == 0).all() and leaf.grad.isfinite().all()
    others = [0, 1, 3]
    polytope = ol.compile_polytope(capped()).bind({"total": totals()[:, None]}, None, 4)
    saved = scores, polytope.maximize(scores).value
    expected = Forgetful(way).backward(polytope, saved, torch.ones(4, 3, dtype=torch.float64), ol.Context()).scores
    torch.testing.assert_close(leaf.grad[others], expected[others], atol=0.0, rtol=0.0)


@pytest.mark.parametrize("way", WAYS)
def test_failures_have_the_index_that_the_user_knows(way):
    layer = ol.OptLayer(capped(), Forgetful(way))
    leaf = draw(2, 2, 3).requires_grad_()
    with pytest.raises(ol.SolveError, match=r"instance \(1, 0\) is"):
        layer(leaf, total=totals().reshape(2, 2)).sum().backward()
    family = ol.OptLayer(ol.Family(lambda size: capped()), Forgetful(way))
    leaf = draw(5, 3).requires_grad_()
    value = family(leaf, sizes=[3, 0, 3, 3, 3], total=torch.cat([totals()[:1], totals()]))
    with pytest.raises(ol.SolveError, match="instance 3 is"):
        value.sum().backward()


@final
@dataclass(frozen=True)
class ForgetfulForward(AbstractVertexRule):
    """Goes by a polytope that some instances leave empty, and answers for them all the same."""

    def forward(self, polytope, scores, context):
        polytope.relaxed(NARROW).project(scores)
        return super().forward(polytope, scores, context)

    def backward(self, polytope, saved, grad, context):
        return ol.Gradient(grad)


def test_a_solve_that_fails_forward_is_seen_too():
    with pytest.raises(ol.SolveError, match="instance 2 is INFEASIBLE"):
        ol.OptLayer(capped(), ForgetfulForward())(draw(4, 3), total=totals())
    tolerant, leaf = ol.OptLayer(capped(), ForgetfulForward(), on_failure="nan"), draw(4, 3).requires_grad_()
    value = tolerant(leaf, total=totals())
    torch.nansum(value).backward()
    assert value.isnan().all(1).tolist() == [False, False, True, False]
    assert (leaf.grad == torch.tensor([[1.0], [1.0], [0.0], [1.0]])).all()
    solution = tolerant.solve(draw(4, 3), total=totals())
    assert solution.status.tolist() == [0, 0, int(ol.Status.INFEASIBLE), 0]
    assert [f.index for f in solution.failures] == [(2,)] and "miss by 0.5" in solution.failures[0].reason


@final
@dataclass(frozen=True)
class KeepsThePolytope(AbstractVertexRule):
    """Asks the polytope of the forward pass in the backward pass."""

    def forward(self, polytope, scores, context):
        solution, saved = super().forward(polytope, scores, context)
        return solution, (polytope, *saved)

    def backward(self, polytope, saved, grad, context):
        first, scores, vertex = saved
        return ol.Gradient(vertex - first.maximize(scores.masked_fill(grad != 0, torch.nan)).value.nan_to_num())


def test_a_polytope_that_a_rule_keeps_records_as_well():
    layer, leaf = ol.OptLayer(simplex(3), KeepsThePolytope()), draw(2, 3).requires_grad_()
    value = layer(leaf)
    for _ in range(2):
        with pytest.raises(ol.SolveError, match="instance 1 is"):
            torch.autograd.grad(value, leaf, torch.tensor([[0.0] * 3, [1.0] * 3]), retain_graph=True)
    # What failed before is no failure of a later pass.
    torch.autograd.grad(value, leaf, torch.zeros(2, 3, dtype=torch.float64))


@final
@dataclass(frozen=True)
class SpeaksOfAnother(AbstractVertexRule):
    """Asks a polytope of its own, and says so."""

    other: ol.CompiledPolytope

    def backward(self, polytope, saved, grad, context):
        solution = self.other.project(saved[0], total=torch.tensor([1.0, 1.2, 2.0, 0.5]))
        return ol.Gradient(grad, solutions=(solution,))


def test_solves_that_a_rule_speaks_of_count():
    layer = ol.OptLayer(capped(), SpeaksOfAnother(ol.compile_polytope(narrow())))
    with pytest.raises(ol.SolveError, match="instance 2 is INFEASIBLE"):
        layer(draw(4, 3).requires_grad_(), total=totals()).sum().backward()


@final
@dataclass(frozen=True)
class ForgetfulOfTangents(AbstractVertexRule):
    """The derivative of a projection, whether there is one or not."""

    def backward(self, polytope, saved, grad, context):
        return ol.Gradient(polytope.tangent(polytope.project(saved[0]), grad).scores)


@pytest.mark.parametrize("rule", [ForgetfulOfTangents(), ol.SparseMAP(), ol.Hard(ol.SparseMAP())], ids=repr)
def test_a_derivative_that_does_not_exist_is_a_failed_solve(rule, monkeypatch):
    """However it comes about that a solver has none."""
    plain = HostEvidence.tangent

    def blind(self, direction, ok):
        """The derivative of the second instance is unknown."""
        scores, of_parameters, right = plain(self, direction, ok)
        right = right.clone()
        right[1] = False
        return scores, of_parameters, right

    expected = ol.OptLayer(simplex(3).without_oracle(), rule)
    compiled = ol.compile_polytope(simplex(3).without_oracle())
    monkeypatch.setattr(HostEvidence, "tangent", blind)
    leaf = draw(3, 3).requires_grad_()
    with pytest.raises(ol.SolveError, match="instance 1 is FAILED: its active constraints are too nearly dependent"):
        ol.OptLayer(compiled, rule)(leaf)[:, 0].sum().backward()
    ol.OptLayer(compiled, rule, on_failure="nan")(leaf)[:, 0].sum().backward()
    monkeypatch.undo()
    expected = torch.autograd.grad(expected(leaf)[:, 0].sum(), leaf)[0]
    expected[1] = 0.0
    torch.testing.assert_close(leaf.grad, expected, atol=0.0, rtol=0.0)


def test_second_derivatives_are_watched_as_well():
    @final
    @dataclass(frozen=True)
    class Twice(AbstractVertexRule):
        def backward(self, polytope, saved, grad, context):
            return ol.Gradient(grad)

        def second_backward(self, polytope, saved, grad, direction, context):
            polytope.project(direction.scores.masked_fill(direction.scores != 0, torch.nan))
            return ol.SecondGradient(direction.scores)

    layer, leaf = ol.OptLayer(simplex(3), Twice()), draw(2, 3).requires_grad_()
    weights = draw(2, 3, seed=1).requires_grad_()
    (slope,) = torch.autograd.grad(layer(leaf), leaf, weights, create_graph=True)
    with pytest.raises(ol.SolveError, match="instance 1 is"):
        slope.backward(torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64))


def blind(self, direction, ok):
    """A derivative that the second instance has not."""
    scores, of_parameters, right = PLAIN(self, direction, ok)
    right = right.clone()
    right[1] = False
    return scores.masked_fill(~right[:, None], 0.0), of_parameters, right


PLAIN = HostEvidence.tangent


def test_a_derivative_that_only_a_second_one_needs_is_watched_too(monkeypatch):
    """SPIGOT solves for its first derivative, and differentiates the solve for the second one."""
    scores, weights = draw(3, 3), 0.1 * draw(3, 3, seed=1)
    monkeypatch.setattr(HostEvidence, "tangent", blind)
    for on_failure in ("raise", "nan"):
        leaf, along = scores.clone().requires_grad_(), weights.clone().requires_grad_()
        layer = ol.OptLayer(simplex(3).without_oracle(), ol.Spigot(0.5), on_failure=on_failure)
        (slope,) = torch.autograd.grad(layer(leaf), leaf, along, create_graph=True)
        if on_failure == "raise":
            with pytest.raises(ol.SolveError, match="instance 1 is FAILED: its active constraints are too nearly"):
                torch.autograd.grad(slope.sum(), along)
        else:
            (found,) = torch.autograd.grad(slope.square().sum(), along)
            assert (found[1] == 0).all() and found[0].abs().sum() > 0


def test_a_loss_watches_derivatives_of_its_gradient(monkeypatch):
    made, target = ol.SparseMAPLoss(simplex(3).without_oracle()), torch.eye(3, dtype=torch.float64)
    leaf = draw(3, 3).requires_grad_()
    (slope,) = torch.autograd.grad(made(leaf, target), leaf, create_graph=True)
    monkeypatch.setattr(HostEvidence, "tangent", blind)
    with pytest.raises(ol.SolveError, match="instance 1 is FAILED: its active constraints are too nearly dependent"):
        torch.autograd.grad(slope.square().sum(), leaf)


def test_a_shared_polytope_has_a_record_for_every_call():
    compiled = ol.compile_polytope(simplex(3))
    first, second = (compiled.bind({}, None, 2) for _ in range(2))
    assert first.numbers is second.numbers
    first.maximize(torch.full((2, 3), torch.nan, dtype=torch.float64))
    assert len(first.failed) == 1 and second.failed == []


@final
@dataclass(frozen=True)
class Silent(AbstractVertexRule):
    """SPIGOT, by a batch that is repeated, without a word on its solves."""

    def backward(self, polytope, saved, grad, context):
        step = saved[1] - grad
        return ol.Gradient(saved[1] - polytope.repeated(2).project(torch.cat([step, step])).value[len(grad) :])


def test_a_rule_that_says_nothing_of_its_solves_passes_its_contract():
    for polytope in (simplex(3), cube(2)):
        ol.testing.check_rule(Silent(), polytope)
