"""No answer is believed: what a solver claims is held against the constraints and the dual bound."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import optlayers as ol
from polytopes import arborescence, matching, simplex


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
