"""What check_rule finds: rules that hide a failed solve, of which others suffer for it, and that lie of themselves."""

import threading
from dataclasses import dataclass, replace
from typing import final

import pytest
import torch

import optlayers as ol
from optlayers.testing import check_rule
from polytopes import simplex, subset

OWN = ol.compile_polytope(simplex(3))
NEAR = ol.compile_polytope(simplex(3).without_oracle())


def found_good(solution: ol.Solution) -> ol.Solution:
    """A solution that says that all is well."""
    return replace(solution, value=solution.value.nan_to_num(), status=torch.zeros_like(solution.status), reasons={})


FORWARD = (
    r"LiesForward\(.* hides that (maximize|project) of a compiled polytope of its own failed in its forward pass: "
)
BACKWARD = r"LiesBackward\(.* hides that project of a compiled polytope of its own failed in its backward pass: "


@final
@dataclass(frozen=True)
class LiesForward(ol.AbstractVertexRule):
    """A straight-through rule that decides over a polytope of its own, and hides that it failed."""

    way: str

    def forward(self, polytope, scores, context):
        free = scores.masked_fill(~polytope.movable, -torch.inf)
        if self.way == "a verdict of its own":
            solution = found_good(OWN.maximize(free))
        elif self.way == "caught":
            try:
                solution = OWN.maximize(free).check()
            except ol.SolveError:
                solution = polytope.maximize(scores)
        elif self.way == "projected":
            solution = found_good(NEAR.project(free))
        else:
            value = NEAR.project(free.repeat(2, 1)).value[: len(scores)].nan_to_num()
            solution = replace(polytope.maximize(scores), value=value)
        return solution, (scores, solution.value)

    def backward(self, polytope, saved, grad, context):
        return ol.Gradient(grad)


@final
@dataclass(frozen=True)
class LiesBackward(ol.AbstractVertexRule):
    """SPIGOT over a polytope of its own, that hides that it failed."""

    way: str

    def backward(self, polytope, saved, grad, context):
        _, vertex = saved
        step = (vertex - grad).nan_to_num()
        if self.way == "NaN is 0":
            return ol.Gradient((vertex - NEAR.project(step).value).nan_to_num())
        if self.way == "the verdict is forgotten":
            found = NEAR.project(step)
            return ol.Gradient(vertex - torch.where(found.ok[:, None], found.value, step))
        if self.way == "twice as many":
            found = NEAR.project(torch.cat([step, step])).value[len(step) :]
            return ol.Gradient(torch.where(found.isnan(), grad, vertex - found))
        try:
            return ol.Gradient(vertex - NEAR.project(step).check().value)
        except ol.SolveError:
            return ol.Gradient(grad)


@pytest.mark.parametrize("way", ["a verdict of its own", "caught", "projected", "another's verdict"])
def test_a_rule_that_hides_a_failed_solve_of_its_forward_pass_is_found(way):
    with pytest.raises(AssertionError, match=FORWARD):
        check_rule(LiesForward(way), simplex(3))


@pytest.mark.parametrize("way", ["NaN is 0", "the verdict is forgotten", "twice as many", "caught"])
def test_a_rule_that_hides_a_failed_solve_of_its_backward_pass_is_found(way):
    with pytest.raises(AssertionError, match=BACKWARD):
        check_rule(LiesBackward(way), simplex(3))


@final
@dataclass(frozen=True)
class Honest(ol.AbstractVertexRule):
    """SPIGOT over a polytope of its own, and forward over one as well, with their verdicts."""

    def forward(self, polytope, scores, context):
        solution = OWN.maximize(scores.masked_fill(~polytope.movable, -torch.inf))
        return solution, (scores, solution.value)

    def backward(self, polytope, saved, grad, context):
        found = NEAR.project((saved[1] - grad).nan_to_num())
        return ol.Gradient(saved[1] - found.value, solutions=(found,))


def test_a_rule_that_tells_of_its_own_solves_keeps_the_contract():
    check_rule(Honest(), simplex(3))


SILENT = ol.OptLayer(simplex(3), ol.SparseMAP(), on_failure="nan")


@final
@dataclass(frozen=True)
class TakesARoad(ol.AbstractVertexRule):
    """SPIGOT that solves by another road than the polytope it is given, and hides that it failed."""

    road: str

    def backward(self, polytope, saved, grad, context):
        vertex = saved[1]
        step = (vertex - grad).nan_to_num()
        if self.road == "numbers":
            found = polytope.numbers.project(step).value
        elif self.road == "a bound polytope":
            found = NEAR.bind({}, None, len(step)).project(step).value
        elif self.road == "numbers of a bound polytope":
            found = NEAR.bind({}, None, len(step)).numbers.project(step).value
        elif self.road == "a layer":
            found = SILENT(step)
        elif self.road == "a solution of a layer":
            found = SILENT.solve(step).value
        elif self.road == "marginals of a bound polytope":
            found = OWN.bind({}, None, len(step)).marginals(step).means
        elif self.road == "a thread of its own":
            answers: list[torch.Tensor] = []
            thread = threading.Thread(target=lambda: answers.append(NEAR.project(step).value))
            thread.start()
            thread.join()
            found = answers[0]
        elif self.road == "a regularized point":
            found = NEAR.bind({}, None, len(step)).regularized(step, ol.Entropy()).value
        elif self.road == "the log of a sum":
            with torch.enable_grad():
                leaf = step.detach().requires_grad_()
                (found,) = torch.autograd.grad(OWN.bind({}, None, len(step)).log_partition(leaf).sum(), leaf)
        elif self.road == "the two best":
            found = OWN.bind({}, None, len(step)).best(step, 2).structures[:2].mean(0) if len(step) else step
        elif self.road == "one by one":
            found = torch.stack([NEAR.project(one).value for one in step]) if len(step) else step
        else:
            return ol.Gradient(NEAR.tangent(POINTS[len(step)], grad.nan_to_num()).scores)
        return ol.Gradient((vertex - found).nan_to_num())


POINTS = {count: NEAR.project(torch.full((count, 3), 1 / 3, dtype=torch.float64)) for count in range(6)}
ROADS = [
    "a bound polytope",
    "numbers of a bound polytope",
    "a layer",
    "a solution of a layer",
    "marginals of a bound polytope",
    "a thread of its own",
    "a regularized point",
    "the log of a sum",
    "the two best",
    "one by one",
    "a derivative",
]


def test_a_rule_that_asks_the_numbers_behind_its_polytope_is_found():
    with pytest.raises(AssertionError, match=r"TakesARoad.* hides that project failed in its backward pass"):
        check_rule(TakesARoad("numbers"), simplex(3))


@pytest.mark.parametrize("road", ROADS)
def test_a_rule_that_hides_a_failed_solve_on_any_road_is_found(road):
    solves = "project|regularized|marginals|log_partition|best|tangent|project and tangent"
    what = rf"hides that ({solves}) of a compiled polytope of its own failed in its backward pass"
    with pytest.raises(AssertionError, match=rf"TakesARoad.* {what}"):
        check_rule(TakesARoad(road), simplex(3))


@final
@dataclass(frozen=True)
class OneByOne(ol.AbstractVertexRule):
    """SPIGOT over a polytope of its own, one instance after the other, with their verdicts."""

    def backward(self, polytope, saved, grad, context):
        OWN.maximize(torch.ones(3))  # which is no instance
        step = (saved[1] - grad).nan_to_num()
        if not len(step):
            return ol.Gradient(step)
        each = [NEAR.project(one) for one in step]
        value, status = torch.stack([one.value for one in each]), torch.stack([one.status for one in each])
        numbers = torch.zeros(len(step), dtype=torch.float64)
        return ol.Gradient(saved[1] - value, solutions=(ol.Solution(value, status, numbers, numbers),))


def test_a_rule_that_tells_of_its_solves_one_by_one_keeps_the_contract():
    check_rule(OneByOne(), simplex(3))


@final
@dataclass(frozen=True)
class Spoils(ol.AbstractVertexRule):
    """SPIGOT of which all instances suffer when one fails."""

    way: str

    def backward(self, polytope, saved, grad, context):
        found = polytope.project(saved[1] - grad)
        if self.way == "raises":
            assert found.all_ok, "some instance has no projection"
        if self.way == "checks":
            found.check()
        if self.way == "gives up" and not found.all_ok:
            return ol.Gradient(torch.zeros_like(grad))
        return ol.Gradient(saved[1] - found.value)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("raises", r"Spoils\(way='raises'\) raises AssertionError where a solve of its .* pass fails for an inst"),
        ("checks", r"Spoils\(way='checks'\) raises SolveError where a solve of its .* pass fails for an instance"),
        ("gives up", r"where its .* pass fails for another instance, gives other gradients: they moved by"),
    ],
)
def test_other_instances_must_not_suffer(way, message):
    with pytest.raises(AssertionError, match=message):
        check_rule(Spoils(way), simplex(3))
    check_rule(Spoils("goes on"), simplex(3))


def test_solves_fail_in_the_rule_alone():
    """And not afterwards."""
    with pytest.raises(AssertionError):
        check_rule(LiesBackward("NaN is 0"), simplex(3))
    assert NEAR.project(torch.zeros(4, 3)).all_ok and OWN.maximize(torch.zeros(4, 3)).all_ok


@final
@dataclass(frozen=True)
class TrustsSums(ol.AbstractVertexRule):
    """A step along marginals that it makes of the log-partition function, which says by NaN that it has no value."""

    def backward(self, polytope, saved, grad, context):
        with torch.enable_grad():
            leaf = saved[0].detach().requires_grad_()
            total = polytope.log_partition(leaf)
            (means,) = torch.autograd.grad(total.sum(), leaf)
        return ol.Gradient(grad * means.nan_to_num())


def test_a_value_that_is_nan_is_a_failed_solve():
    with pytest.raises(AssertionError, match=r"TrustsSums\(\) hides that log_partition failed in its backward pass"):
        check_rule(TrustsSums(), simplex(3))


@final
@dataclass(frozen=True)
class LiesOfItself(ol.AbstractVertexRule):
    """A straight-through rule of which one thing that it says, or does besides, is wrong."""

    lie: str

    @property
    def has_jacobian(self):
        return self.lie == "bent"

    @property
    def takes_any_gradient(self):
        return self.lie in ("NaN is 0", "all NaN")

    @property
    def differentiates_parameters(self):
        return self.lie in ("nothing", "NaN", "of the batch")

    def initial_state(self):
        adapts = self.lie in ("last of the batch", "no number", "forward")
        return {"scale": torch.ones((), dtype=torch.float64)} if adapts else {}

    def adapt(self, state, seen):
        state["scale"].copy_(seen[0])

    def kept(self, sent, grad, state):
        parts = {"seven": grad.new_full((len(grad),), 7.0), "one for all": grad.new_ones(1)}
        return parts.get(self.lie)

    def forward(self, polytope, scores, context):
        turned = self.lie == "worst" or (self.lie == "another in use" and not context.needs_gradient)
        solution = polytope.maximize(torch.where(torch.isinf(scores), scores, -scores) if turned else scores)
        if self.lie == "forward":
            context.state["scale"].add_(1.0)
        return solution, (scores, solution.value)

    def backward(self, polytope, saved, grad, context):
        if self.lie == "bent":
            return ol.Gradient(grad.abs())
        if self.lie == "NaN is 0":
            return ol.Gradient(grad.nan_to_num())
        if self.lie == "all NaN":
            return ol.Gradient(grad if grad.isfinite().all() else torch.full_like(grad, torch.nan))
        if self.lie == "NaN":
            return ol.Gradient(grad, {"budget": grad.new_full((len(grad),), torch.nan)})
        if self.lie == "of the batch":
            return ol.Gradient(grad, {"budget": grad.sum().expand(len(grad)).clone()})
        last = grad[-1:].abs().sum().reshape(1)
        seen = {"last of the batch": last, "no number": grad.new_full((1,), torch.nan), "forward": grad.new_ones(1)}
        return ol.Gradient(grad, seen=seen.get(self.lie))


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("another in use", "where nobody waits for a gradient, gives other answers"),
        ("worst", "says that it optimizes, but on instance . its answer is .* from the best point"),
        ("bent", "says has_jacobian, but its backward is not linear"),
        ("NaN is 0", "says takes_any_gradient, but hides a gradient of NaN: it sends back numbers"),
        ("all NaN", "says takes_any_gradient, but beside a gradient of NaN gives other gradients"),
        ("seven", r"kept is \[7.0, .*no part of a step is below 0 or above 1"),
        ("one for all", r"kept has shape \(1,\), not one number for each of 4 instances"),
        ("last of the batch", "adapts by the order of the batch: rule_scale is"),
        ("no number", "adapts rule_scale to nan"),
        ("forward", "adapts in a forward pass: rule_scale is .* beside"),
        ("nothing", "says that budget has a gradient, but it has none"),
        ("NaN", r"the gradient of budget: it is \[nan"),
        ("of the batch", "the gradient of budget, instance 0 in another batch: it moved by"),
    ],
)
def test_what_a_rule_says_of_itself_is_true(lie, message):
    with pytest.raises(AssertionError, match=rf"LiesOfItself\(lie='{lie}'\).*{message}"):
        check_rule(LiesOfItself(lie), subset(4), budget=2.0)
    check_rule(LiesOfItself("none"), subset(4), budget=2.0)


@final
@dataclass(frozen=True)
class BestUnder(ol.AbstractVertexRule):
    """Its forward map is another one than that of the regularizer it names."""

    omega = ol.Entropy()

    def backward(self, polytope, saved, grad, context):
        return ol.Gradient(grad)


def test_the_best_point_is_that_of_the_regularizer_of_the_rule():
    with pytest.raises(AssertionError, match=r"BestUnder\(\) says that it optimizes, but on instance 2"):
        check_rule(BestUnder(), simplex(3))
