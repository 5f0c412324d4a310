"""No answer is believed: what a solver claims is held against the constraints and the dual bound."""

from dataclasses import dataclass
from typing import final

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol
from optlayers.solvers.batch import make_instances
from optlayers.solvers.certify import Certificate, certify
from polytopes import arborescence, matching, partial_matching, simplex


@dataclass(frozen=True)
class Liar(ol.AbstractMaximizer, ol.AbstractProjector):
    """Solves, then spoils the answer and keeps calling it optimal."""

    spoil: str

    def prepare(self, form):
        highs, clarabel = ol.Highs(), ol.Clarabel()
        return highs, highs.prepare(form), clarabel, clarabel.prepare(form)

    def maximize(self, state, instances):
        return self._spoiled(state[0].maximize(state[1], instances), instances)

    def project(self, state, instances):
        return self._spoiled(state[2].project(state[3], instances), instances)

    def _spoiled(self, answer, instances):
        if self.spoil == "outside of the rows":
            answer.point += 1e-3
        elif self.spoil == "outside of the bounds":
            answer.point[:, 0] = instances.lower[:, 0] - 1e-3
        elif self.spoil == "another vertex":
            answer.point[:] = answer.point[::-1].copy()
        elif self.spoil == "no numbers":
            answer.point[:] = np.nan
        elif self.spoil == "another dual":
            answer.dual += 1.0
        answer.status[:] = ol.Status.OPTIMAL
        return answer


SPOILED = ["outside of the rows", "outside of the bounds", "another vertex", "no numbers", "another dual"]


def scores_for(polytope: ol.Polytope) -> torch.Tensor:
    return torch.randn(6, *polytope.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("polytope", [matching(4), arborescence(3)], ids=["matching", "tree"])
def test_a_maximizer_that_lies_is_caught(polytope, spoil):
    found = ol.compile_polytope(polytope, maximizer=Liar(spoil)).maximize(scores_for(polytope))
    assert (found.status == ol.Status.INACCURATE).all()
    with pytest.raises(ol.SolveError, match=r"6 of 6 instances .*\n.*the residual or the gap of its answer exceeds"):
        found.check()


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("polytope", [matching(4), arborescence(3)], ids=["matching", "tree"])
def test_a_projector_that_lies_is_caught_or_put_right(polytope, spoil):
    """Polishing repairs what is near the answer; whatever is called optimal afterwards is."""
    scores = scores_for(polytope)
    found = ol.compile_polytope(polytope, projector=Liar(spoil)).project(scores)
    right = ol.compile_polytope(polytope).project(scores).check().value
    near = (found.value - right).flatten(1).abs().amax(1) <= 1e-6
    assert torch.equal(found.ok & near, found.ok)
    if spoil == "no numbers":
        assert not found.ok.any()


@dataclass(eq=False)
class Forger(ol.AbstractMaximizer, ol.AbstractProjector):
    """Proposes wrong points, and forges all that could speak for them."""

    way: str
    seed: int = 0
    reach: float = 1.0

    def prepare(self, form):
        highs, clarabel = ol.Highs(), ol.Clarabel()
        return form, highs, highs.prepare(form), clarabel, clarabel.prepare(form)

    def maximize(self, state, instances):
        return self._forged(state[0], state[1].maximize(state[2], instances), instances)

    def project(self, state, instances):
        return self._forged(state[0], state[3].project(state[4], instances), instances)

    def _forged(self, form, answer, instances):
        generator = np.random.default_rng(self.seed)
        count, shape = len(instances), answer.point.shape
        if self.reach > 0:
            answer.point[:] = answer.point + self.reach * generator.standard_normal(shape)
        else:  # a point of the polytope, but that of another instance
            answer.point[:] = np.roll(answer.point, 1, axis=0)
        nothing = np.zeros(count)
        answer.status[:] = ol.Status.OPTIMAL
        if self.way == "certificate":
            answer.certificate = Certificate(nothing.copy(), nothing.copy(), nothing.copy(), np.ones(count, dtype=bool))
        elif self.way == "residual":
            answer.residual = nothing
        elif self.way == "gap":
            answer.residual, answer.gap, answer.error = nothing, nothing, nothing
        elif self.way == "dual":
            answer.dual[:] = generator.standard_normal(answer.dual.shape) * 10.0 ** generator.integers(-3, 300)
        elif self.way == "active set":
            answer.free = generator.random(shape) < generator.random()
        elif self.way == "guess":
            answer.low, answer.high = generator.random(shape) < 0.5, generator.random(shape) < 0.2
        return answer


WAYS = ["certificate", "residual", "gap", "status", "dual", "active set", "guess"]
TARGETS = {
    "simplex": simplex(4).without_oracle(),
    "matching": matching(3).without_oracle(),
    "partial matching": partial_matching(2, 3).without_oracle(),
    "tree": arborescence(3).without_oracle(),
}


@pytest.mark.many(4)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TARGETS)
def test_no_forgery_passes(name, way):
    """Whatever is called optimal is right, and so is its gradient."""
    polytope = TARGETS[name]
    honest = ol.compile_polytope(polytope)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, *polytope.shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(scores.shape, generator=generator, dtype=torch.float64)
    best, near = honest.maximize(scores).check().value, honest.project(scores).check()
    tangent = honest.tangent(near, direction).scores
    refused = 0
    forger = Forger(way)
    compiled = ol.compile_polytope(polytope, maximizer=forger, projector=forger)
    for forger.seed in range(4):
        for forger.reach in (0.0, 1e-6, 1e-3, 1.0, 7.0):
            found, nearer = compiled.maximize(scores), compiled.project(scores)
            refused += int((~found.ok).sum()) + int((~nearer.ok).sum())
            assert ((found.value - best)[found.ok].abs() <= 1e-6).all()
            assert ((nearer.value - near.value)[nearer.ok].abs() <= 1e-6).all()
            mine = compiled.tangent(nearer, direction)
            assert ((mine.scores - tangent)[nearer.ok & mine.ok].abs() <= 1e-6).all()
    assert refused > 40


def test_a_far_point_is_not_put_right():
    """Polishing is for what is nearly right: a solver that says (7, 7, 7) has found nothing."""
    compiled = ol.compile_polytope(simplex(3), projector=Forger("status", 0, 50.0))
    found = compiled.project(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    assert (found.status == ol.Status.INACCURATE).all()


@dataclass(frozen=True)
class ForgedStructures(ol.AbstractMaximizer, ol.AbstractProjector):
    """Claims to read the declaration, and answers with points of its own."""

    decomposed: bool = False
    reads_declaration = True

    def prepare(self, form):
        return form

    def maximize(self, form, instances):
        answer = ol.Answer.of_whole(form, len(instances))
        answer.whole[:] = 0.5
        return answer

    def project(self, form, instances):
        answer = ol.Answer.of_whole(form, len(instances))
        answer.whole[:] = np.eye(form.size)[0]
        if self.decomposed:  # the vertex itself, and a function that finds nothing better
            answer.decomposition = ol.Decomposition.of_one(np.eye(form.size)[0], len(instances))
        return answer


@pytest.mark.parametrize("decomposed", [False, True])
def test_structures_that_nobody_found_are_refused(decomposed):
    forger = ForgedStructures(decomposed)
    compiled = ol.compile_polytope(simplex(3), maximizer=forger, projector=forger)
    scores = torch.tensor([[0.0, 3.0, 1.0]], dtype=torch.float64)
    assert int(compiled.maximize(scores).status) == ol.Status.INACCURATE
    nearest = compiled.project(scores)
    assert int(nearest.status) == ol.Status.INACCURATE
    assert "it is not given as a mixture of structures" in nearest.failures[0].reason


def test_users_see_what_is_taken_on_trust():
    scores = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    proved = ol.compile_polytope(matching(4).without_oracle())
    assert proved.maximize(scores).word is None and proved.project(scores).word is None
    by_oracle = ol.compile_polytope(matching(4))
    assert "that no structure scores more is the word of oracle" in by_oracle.maximize(scores).word
    assert by_oracle.project(scores).word is None  # by its rows
    tree = ol.compile_polytope(arborescence(3))
    assert "is the word of oracle" in tree.project(scores).word and "membership" not in tree.project(scores).word
    x = cp.Variable(2)
    ball = ol.compile_polytope(ol.Polytope(x, [cp.norm(x, 2) <= 1]), projector=ol.CvxpyLayers())
    solution = ball.project(torch.tensor([3.0, 4.0], dtype=torch.float64)).check()
    assert "is the word of Clarabel" in solution.word


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_an_answer_that_is_best_but_no_vertex_is_refused(scale):
    """Half of either of two parts that tie; of a cycle that any share of would do."""

    @dataclass(frozen=True)
    class Between(ol.AbstractMaximizer):
        def prepare(self, form):
            return form

        def maximize(self, form, instances):
            answer = ol.Answer.empty(form, len(instances))
            answer.point[:] = 0.5
            answer.dual[:] = np.linalg.lstsq(form.matrix.toarray().T, instances.scores[0], rcond=None)[0]
            return answer

    for polytope in (simplex(2).without_oracle(), matching(2).without_oracle()):
        found = ol.compile_polytope(polytope, maximizer=Between()).maximize(
            scale * torch.ones(1, *polytope.shape).double()
        )
        assert int(found.status) == ol.Status.INACCURATE
        assert "is no vertex of the polytope" in found.failures[0].reason


def test_each_row_is_held_to_its_own_size():
    """A point that misses a small row by all of it, next to a large one."""
    x = cp.Variable(2)
    rows = [x >= 0, x <= 1, 1e-9 * (x[0] + x[1]) <= 1e-9, x[0] - x[1] <= 1e6]
    form = ol.compile_polytope(ol.Polytope(x, rows)).form
    instances = make_instances(form, np.zeros((1, 0)), None).with_scores(np.ones((1, 2)))
    answer = ol.Answer.empty(form, 1)
    answer.point[0] = [1.0, 1.0, *(form.rhs.constant - form.matrix.toarray()[:, :2].sum(1))]
    answer.dual[:] = 0.0
    certificate = certify(form, instances, answer, projection=False)
    assert float(certificate.error[0]) >= 0.2 and float(certificate.residual[0]) == pytest.approx(1e-9)


def test_gap_and_residual_say_how_far():
    polytope = matching(4)
    scores = scores_for(polytope)
    honest = ol.compile_polytope(polytope).maximize(scores).check()
    swapped = ol.compile_polytope(polytope, maximizer=Liar("another vertex")).maximize(scores)
    lost = (scores * (honest.value - swapped.value)).flatten(1).sum(1)
    torch.testing.assert_close(swapped.gap, lost)
    shifted = ol.compile_polytope(polytope, maximizer=Liar("outside of the rows")).maximize(scores)
    torch.testing.assert_close(shifted.primal_residual, torch.full((6,), 4e-3, dtype=torch.float64))


def test_a_point_beyond_its_bounds_earns_no_credit():
    """Next to scores of 1e38 a violation of 1e-12 would outweigh any gap."""
    compiled = ol.compile_polytope(simplex(50), projector=ol.Clarabel())
    scores = torch.randn(8, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masked = torch.rand(8, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    exact = compiled.project(scores.masked_fill(masked, -torch.inf)).check().value
    found = compiled.project(scores.masked_fill(masked, torch.finfo(torch.float32).min))
    wrong = (found.value - exact).abs().amax(1) > 1e-6
    assert not (wrong & found.ok).any()
    best = ol.compile_polytope(simplex(50)).project(scores.masked_fill(masked, torch.finfo(torch.float32).min)).check()
    torch.testing.assert_close(best.value, exact, atol=1e-7, rtol=0)


def test_a_kept_solver_is_not_misled_by_scores_of_another_size():
    compiled = ol.compile_polytope(arborescence(3), projector=ol.Clarabel())
    generator = torch.Generator().manual_seed(3186)
    for _ in range(30):
        scores = torch.randn(8, 4, 4, generator=generator, dtype=torch.float64)
        assert compiled.project(1e-3 * scores).ok.all()
        for size in (1e3, 1e5, 1e7):
            assert compiled.project(size * scores).ok.all(), size


@final
@dataclass(frozen=True)
class OfOtherShapes(ol.AbstractMaximizer, ol.AbstractProjector):
    """Proposes one array of its answer with a column too few, or an instance too few."""

    name: str
    column: bool

    def prepare(self, form):
        return ol.Highs().prepare(form), ol.Clarabel().prepare(form)

    def maximize(self, state, instances):
        return self._cut(ol.Highs().maximize(state[0], instances))

    def project(self, state, instances):
        return self._cut(ol.Clarabel().project(state[1], instances))

    def _cut(self, answer):
        part = getattr(answer, self.name)
        part = np.ones(answer.point.shape, dtype=bool) if part is None else part
        setattr(answer, self.name, part[..., :-1] if self.column else part[:-1])
        return answer


@pytest.mark.parametrize("question", ["maximize", "project"])
@pytest.mark.parametrize(
    ("name", "column"),
    [(name, column) for name in ("point", "dual", "free") for column in (True, False)] + [("status", True)],
)
def test_answers_of_other_shapes_are_refused(name, column, question):
    """Kernels read them without a look at their shapes."""
    solver = OfOtherShapes(name, column)
    compiled = ol.compile_polytope(TARGETS["simplex"], maximizer=solver, projector=solver)
    with pytest.raises(
        ValueError, match=rf"OfOtherShapes\(.* proposed an answer whose {name} has shape \(.*it must be"
    ):
        getattr(compiled, question)(scores_for(TARGETS["simplex"]))
