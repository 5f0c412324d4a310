"""Verdicts where numbers of very different size meet: what is called optimal is right in every part of an answer."""

import itertools
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol
from polytopes import matching, simplex


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Says(ol.AbstractMaximizer, ol.AbstractProjector):
    """Gives the same answer to whatever it is asked."""

    point: tuple[float, ...]
    dual: tuple[float, ...] = ()
    free: tuple[bool, ...] | None = None
    whole: bool = False

    def prepare(self, form):
        return form

    def maximize(self, form, instances):
        count = len(instances)
        if self.whole:
            answer = ol.Answer.of_whole(form, count)
            answer.whole[:] = self.point
            return answer
        answer = ol.Answer.empty(form, count)
        answer.point[:] = 0.0
        answer.point[:, : len(self.point)], answer.dual[:] = self.point, self.dual or 0.0
        answer.free = None if self.free is None else np.tile(self.free, (count, 1))
        return answer

    def project(self, form, instances):
        return self.maximize(form, instances)


@pytest.mark.parametrize("offset", [1e7, 1e9, 1e12, 1e15, -1e8, -1e12, -1e15])
def test_what_all_structures_score_alike_does_not_hide_their_differences(offset):
    compiled = ol.compile_polytope(simplex(4).without_oracle())
    assert compiled.maximize(offset + numbers(0.0, 1.0, 2.0, 0.5)).check().value.argmax() == 2
    grid = offset + numbers(1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 3.0, 0.0).reshape(3, 3)
    found = ol.compile_polytope(matching(3).without_oracle()).maximize(grid).check()
    assert found.value.argmax(-1).tolist() == [0, 2, 1]


MASKS = [-1e9, -1e12, -1e15, float(torch.finfo(torch.float32).min), -1e32]


@pytest.mark.many(2)
@pytest.mark.parametrize("mask", MASKS)
def test_masks_that_every_structure_needs(mask):
    """Of a row that is masked as a whole; and of two rows of which one must take a masked part."""
    compiled = ol.compile_polytope(matching(3).without_oracle())
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 3, 3, generator=generator, dtype=torch.float64)
    structures = list(itertools.permutations(range(3)))

    def best(k):
        def order(p):
            parts = [float(scores[k, i, j]) for i, j in enumerate(p)]
            return sum(s < -1e8 for s in parts), -sum(s for s in parts if s >= -1e8)

        return list(min(structures, key=order))

    scores[:, 0] = mask
    found = compiled.maximize(scores).check().value
    assert all(found[k].argmax(1).tolist() == best(k) for k in range(60))
    scores = torch.randn(60, 3, 3, generator=generator, dtype=torch.float64)
    scores[:, :2, 1:] = mask
    found = compiled.maximize(scores)
    assert all(found.value[k].argmax(1).tolist() == best(k) for k in torch.nonzero(found.ok).flatten().tolist())


def test_a_small_column_next_to_a_large_one():
    x = cp.Variable(2)
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= 0, x[0] <= 1, x[1] <= 1e12, cp.sum(x) <= 0.75e12]))
    found = compiled.project(numbers(0.3, 0.4e12)).check()
    torch.testing.assert_close(found.value, numbers(0.3, 0.4e12), rtol=1e-9, atol=0)
    assert torch.equal(compiled.tangent(found, numbers(1.0, 0.0)).scores, numbers(1.0, 0.0))
    box = ol.Polytope(x, [x >= 0, x <= np.array([1.0, 1e9]), cp.sum(x) <= 2e9])
    lied = ol.compile_polytope(box, projector=Says((0.0, 1e9), (0.0,), (False, False, True)))
    assert not lied.project(numbers(1.0, 1e9)).ok or lied.project(numbers(1.0, 1e9)).value[0] == 1


@pytest.mark.many(7)
@pytest.mark.parametrize("seed", range(40))
def test_boxes_of_all_sizes_under_one_row(seed):
    """Held to a bisection on the multiplier of the row."""
    generator = np.random.default_rng(seed)
    size = 10.0 ** generator.uniform(-3, 9, 3)
    scores, room = generator.uniform(0.0, 1.5, 3) * size, generator.uniform(0.2, 1.0) * size.sum()
    x = cp.Variable(3)
    found = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= size, cp.sum(x) <= room])).project(
        torch.from_numpy(scores)
    )
    low, high = 0.0, scores.max()
    if np.clip(scores, 0, size).sum() <= room:
        high = 0.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.clip(scores - middle, 0, size).sum() > room else (low, middle)
    expected = np.clip(scores - high, 0, size)
    if found.ok:
        off = np.abs(found.value.numpy() - expected) / np.minimum(size, np.maximum(1.0, expected))
        assert off.max() <= 1e-4


def test_a_vertex_next_to_one_large_score():
    y = cp.Variable(4)
    polytope = ol.Polytope(y, [y >= 0, y <= 1, cp.sum(y) == 2])
    scores = numbers(1e9, 0.0, 1.0, 2.0)
    assert ol.compile_polytope(polytope).maximize(scores).check().value.tolist() == [1, 0, 0, 1]
    assert not ol.compile_polytope(polytope, maximizer=Says((1.0, 1.0, 0.0, 0.0), (0.5,))).maximize(scores).ok


def test_structures_are_an_oracle_s_or_nobody_s():
    y = cp.Variable(4)
    rows = [y >= 0, y <= 1, cp.sum(y) == 2]
    for point in ((1.0, 1.0, 0.0, 0.0), (0.5, 0.5, 0.5, 0.5)):
        found = ol.compile_polytope(ol.Polytope(y, rows), maximizer=Says(point, whole=True)).maximize(
            numbers(0.0, 0.0, 1.0, 2.0)
        )
        assert not found.ok and "not by an oracle" in found.failures[0].reason
    halves = ol.Polytope(y, rows, oracle=lambda scores: np.full(4, 0.5))
    found = ol.compile_polytope(halves).maximize(torch.zeros(4))
    assert not found.ok and "no vertex" in found.failures[0].reason


def test_an_oracle_outside_of_large_bounds():
    x = cp.Variable(3)
    polytope = ol.Polytope(x, [x >= 0, x <= 1e15, cp.sum(x) == 1], oracle=lambda scores: np.array([1.0, 1.0, 0.0]))
    assert "left the polytope by 1" in ol.compile_polytope(polytope).maximize(torch.zeros(3)).failures[0].reason


def test_equalities_among_fixed_numbers_hold_up_to_rounding():
    x, p, q = cp.Variable(2), cp.Parameter(name="p"), cp.Parameter(3, name="q")
    fixed = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 1, x[0] == 0.1, x[1] == 0.2, cp.sum(x) == p]))
    for value in (numbers(0.3)[0], torch.tensor(0.3)):
        assert fixed.project(torch.zeros(2), p=value).ok
    assert int(fixed.project(torch.zeros(2), p=numbers(0.31)[0]).status) == ol.Status.INFEASIBLE
    shares = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 1, cp.sum(q) == 1]))
    mass = torch.softmax(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), -1)
    assert shares.project(torch.zeros(20, 2), q=mass).all_ok
    assert not shares.project(torch.zeros(2), q=torch.full((3,), 0.4)).ok
    meeting = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 1, x[0] == p, x[0] == 0.3]))
    assert meeting.project(torch.zeros(2), p=numbers(0.1 + 0.2)[0]).ok
    assert meeting.project(torch.zeros(2), p=torch.tensor(0.3)).ok
    assert int(meeting.project(torch.zeros(2), p=numbers(0.3001)[0]).status) == ol.Status.INFEASIBLE


def test_convex_sets_are_held_to_each_constraint():
    z = cp.Variable(2)
    small = ol.Polytope(z, [cp.norm(z, 2) <= 2, 1e-9 * cp.sum(z) <= 1e-9, z >= 0])

    @dataclass(frozen=True)
    class Beyond(ol.AbstractProjector):
        polyhedral_only = False

        def prepare(self, form):
            return form

        def project(self, form, instances):
            answer = ol.Answer.of_whole(form, len(instances))
            answer.whole[:] = 1.0, 0.9
            answer.values = [answer.whole.copy()]
            return answer

    assert not ol.compile_polytope(small, projector=Beyond()).project(numbers(1.0, 0.9)).ok


@dataclass(frozen=True)
class Despairs(ol.AbstractMaximizer, ol.AbstractProjector):
    """Calls everything unbounded, or empty."""

    says: ol.Status = ol.Status.UNBOUNDED

    def prepare(self, form):
        return form

    def maximize(self, form, instances):
        answer = ol.Answer.empty(form, len(instances))
        answer.status[:] = int(self.says)
        return answer

    def project(self, form, instances):
        return self.maximize(form, instances)


def test_unbounded_is_said_of_what_is():
    """An infinite parameter may leave a part without a bound; a nearest point there is all the same."""
    x, top, weight = cp.Variable(2), cp.Parameter(name="top"), cp.Parameter(2, name="weight")
    polytope = ol.Polytope(x, [x >= 0, x[0] <= top, x[1] <= 1])
    given, scores = numbers(2.0, torch.inf), torch.ones(2, 2, dtype=torch.float64)
    for solver in (None, Despairs()):
        solution = ol.compile_polytope(polytope, maximizer=solver).maximize(scores, top=given)
        assert [ol.Status(int(s)).name for s in solution.status][1] == "UNBOUNDED"
        assert ol.Status(int(solution.status[0])).name == ("OPTIMAL" if solver is None else "FAILED")
    torch.testing.assert_close(ol.compile_polytope(polytope).project(scores, top=given).check().value, scores)
    refused = ol.compile_polytope(polytope, projector=Despairs()).project(scores, top=given)
    assert {ol.Status(int(s)).name for s in refused.status} == {"FAILED"}
    row = ol.Polytope(x, [x >= 0, x[0] <= 1, weight @ x <= 1])
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    status = ol.compile_polytope(row).maximize(scores, weight=weights).status
    assert [ol.Status(int(s)).name for s in status] == ["OPTIMAL", "UNBOUNDED"]


@pytest.mark.parametrize("ask", ["maximize", "project"])
@pytest.mark.parametrize("count", [1, 4, 40])
@pytest.mark.parametrize("says", [ol.Status.INFEASIBLE, ol.Status.FAILED, ol.Status.LIMIT])
def test_no_solver_is_believed_that_a_polytope_is_empty_or_not(says, count, ask):
    """In a batch of any size: of five instances, the one with a budget beyond all parts is empty."""
    x, budget = cp.Variable(3), cp.Parameter(name="budget")
    polytope = ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) >= budget, cp.sum(x) + x[0] <= 4])
    solver, budgets = Despairs(says), torch.arange(count, dtype=torch.float64) % 5
    compiled = ol.compile_polytope(polytope, maximizer=solver, projector=solver)
    status = getattr(compiled, ask)(torch.zeros(count, 3, dtype=torch.float64), budget=budgets).status
    otherwise = ol.Status.FAILED if says is ol.Status.INFEASIBLE else says
    assert status.tolist() == [ol.Status.INFEASIBLE if b > 3 else otherwise for b in budgets.tolist()]


def test_a_forbidden_part_that_is_fixed_is_no_other_polytope_alone():
    """Next to an instance that has no answer for another reason, and no part that is forbidden."""
    x = cp.Variable(3, nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [x <= 1, x[2] == 1]), projector=Despairs(ol.Status.FAILED))
    scores = torch.zeros(3, 3, dtype=torch.float64)
    scores[1, 2] = -torch.inf
    found = compiled.project(scores)
    assert found.status.tolist() == [ol.Status.FAILED, ol.Status.INFEASIBLE, ol.Status.FAILED]
    assert "the constraints fix it at 1" in found.reasons[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_contradicts_itself_by_rounding_is_not_called_empty(dtype):
    """Two parts that parameters fix, next to a bound on their sum, which their rounding breaks by half an epsilon."""
    x, each, most = cp.Variable(3), cp.Parameter(2, name="each"), cp.Parameter(name="most")
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= 0, x <= 1, x[:2] == each, x[0] + x[1] + x[2] <= most]))
    shares = torch.rand(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 2
    scores, sums = torch.zeros(64, 3, dtype=torch.float64), shares.sum(dim=1)
    given = {"each": shares.to(dtype), "most": sums.to(dtype)}
    by_rounding = given["each"].double().sum(dim=1) > given["most"].double()
    assert by_rounding.sum() > 10
    for found in (compiled.maximize(scores, **given), compiled.project(scores, **given)):
        assert not (found.status == ol.Status.INFEASIBLE).any()
        assert found.ok[~by_rounding].all()
        if dtype is not torch.float32:  # whose rounding is below what constraints may miss by
            for k in torch.nonzero(~found.ok)[:, 0].tolist():
                assert "no more than the rounding of its parameters" in found.reasons[k]
    given["most"] = (sums - 0.1).to(dtype)
    assert (compiled.project(scores, **given).status == ol.Status.INFEASIBLE).all()


@pytest.mark.parametrize("limit", [2.0, torch.inf])
def test_the_rounding_of_sums_counts_beside_an_infinite_limit_too(limit):
    """Supplies and demands in float16, and scores that leave no verdict, so that the linear program is asked."""
    x = cp.Variable((3, 2), nonneg=True)
    supply, demand, most = cp.Parameter(3, name="supply"), cp.Parameter(2, name="demand"), cp.Parameter(name="most")
    polytope = ol.Polytope(x, [cp.sum(x, axis=1) == supply, cp.sum(x, axis=0) == demand, x <= most])
    compiled = ol.compile_polytope(polytope, projector=Despairs(ol.Status.FAILED))
    half = torch.float16
    given = {"supply": torch.tensor([1.3, 1.8, 1.1], dtype=half), "demand": torch.tensor([1.8, 2.4], dtype=half)}
    assert given["supply"].double().sum() != given["demand"].double().sum()
    found = compiled.project(torch.zeros(3, 2, dtype=torch.float64), most=numbers(limit).to(half)[0], **given)
    assert found.status == ol.Status.FAILED and "no more than the rounding" in found.reasons[0]
    given["demand"] += 0.25
    found = compiled.project(torch.zeros(3, 2, dtype=torch.float64), most=numbers(limit).to(half)[0], **given)
    assert found.status == ol.Status.INFEASIBLE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_parameter_that_must_agree_with_a_single_point(dtype):
    """No column and no row is left, only the condition on the parameter."""
    x, total = cp.Variable(3, nonneg=True), cp.Parameter(name="total")
    compiled = ol.compile_polytope(ol.Polytope(x, [x == np.array([0.3, 0.3, 0.3]), cp.sum(x) == total]))
    for ask in (compiled.maximize, compiled.project):
        found = ask(torch.zeros(3, 3, dtype=torch.float64), total=torch.tensor([0.9, 0.5, 2.0]).to(dtype).double())
        rounded = ask(torch.zeros(3, 3, dtype=torch.float64), total=torch.tensor([0.9, 0.5, 2.0], dtype=dtype))
        assert rounded.status.tolist() == [ol.Status.OPTIMAL, ol.Status.INFEASIBLE, ol.Status.INFEASIBLE]
        assert found.status.tolist()[1:] == [ol.Status.INFEASIBLE, ol.Status.INFEASIBLE]
        assert "contradicts other equalities by 0.4" in rounded.reasons[1]


def test_the_rounding_of_an_entry_of_a_row_counts_as_well():
    """A third, in bfloat16, in the row, and in float64 at its right: they contradict each other by rounding."""
    x, entry, most = cp.Variable(2), cp.Parameter(name="entry", nonneg=True), cp.Parameter(name="most")
    compiled = ol.compile_polytope(ol.Polytope(x, [x >= 0.5, x <= 1, entry * cp.sum(x) <= most]))
    third = torch.tensor(1 / 3, dtype=torch.float64)
    found = compiled.maximize(torch.zeros(2, dtype=torch.float64), entry=third.to(torch.bfloat16), most=third)
    assert found.status == ol.Status.FAILED and "no more than the rounding" in found.reasons[0]
    found = compiled.maximize(torch.zeros(2, dtype=torch.float64), entry=third.to(torch.bfloat16), most=0.9 * third)
    assert found.status == ol.Status.INFEASIBLE


@pytest.mark.parametrize("size", [1e4, 1e7, 1e10, 1e13, 1e16, 1e33])
def test_mixtures_next_to_scores_that_hide_the_point(size):
    """An oracle sees scores minus the point; where rounding leaves nothing of the point, it says nothing about it."""
    small = torch.tensor([[0, 0, 0], [0, 0, -1], [0.5, 0.25, 0], [0.1, 0, 0.3]], dtype=torch.float64)
    compiled = ol.compile_polytope(simplex(3), projector=ol.ActiveSet())
    found = compiled.project(size + small)
    right = ol.compile_polytope(simplex(3)).project((size + small) - size).check()
    assert found.ok[:3].all() or size > 1e5
    torch.testing.assert_close(found.value[found.ok], right.value[found.ok], atol=1e-5, rtol=0)
    masked = compiled.project(torch.tensor([[-size, 0.5, 0.25]], dtype=torch.float64)).check()
    torch.testing.assert_close(masked.value, numbers(0.0, 0.625, 0.375)[None], atol=1e-6, rtol=0)
