"""What a declaration keeps: certified answers that agree with each other, in the set that cvxpy knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch

from optlayers.compilation.compiled import compile_polytope
from optlayers.polytope import Polytope
from optlayers.solvers import BranchAndBound, Highs
from optlayers.testing.answers import check_projection, in_a_row
from optlayers.testing.draws import draw, with_scores
from optlayers.testing.geometry import are_vertices, distance
from optlayers.testing.oracle import check_oracle

__all__ = ["PolytopeCheck", "check_polytope"]


@final
@dataclass(frozen=True)
class PolytopeCheck:
    """What :func:`optlayers.testing.check_polytope` saw of a declaration that keeps its contract."""

    samples: int
    """How many scores were tried."""
    integral: bool
    """Whether every vertex that was found is integral."""
    largest_violation: float
    """By how much the farthest of all answers misses the declared constraints."""
    largest_gap: float
    """The largest duality gap of all answers."""
    explanation: str
    """What :meth:`optlayers.CompiledPolytope.explain` says."""


def check_polytope(
    polytope: Polytope, *, samples: int = 12, seed: int = 0, integral: bool | None = None, **parameters: Any
) -> PolytopeCheck:
    """Check a declaration: it compiles, is nonempty and bounded, and its solvers give certified, agreeing answers.

    Scores are random, tied, all equal and large. Best vertices must lie in the polytope (asked of cvxpy), be
    vertices, and be what an oracle, if there is one, attains; projections must lie in the polytope and satisfy the
    variational inequality ``<s - x, v - x> <= 0`` for the best v, with what scored auxiliary variables add on both
    sides.

    Parameters
    ----------
    polytope : the declaration.
    samples : how many scores are tried.
    seed : of the random scores.
    integral : whether vertices must be integral; None reports it only, unless the declaration says ``integral=True``.
    parameters : one value for all samples per declared parameter, and scores of scored auxiliary variables, which are
        drawn where they are not given.

    Returns
    -------
    PolytopeCheck : whether vertices are integral, the largest violation and gap, and how the polytope is solved.

    Raises
    ------
    AssertionError : with what is wrong, and by how much.
    DeclarationError : when the declaration does not compile.
    SolveError : where an answer is not certified.
    """
    parameters = with_scores(polytope, parameters, seed)
    compiled = compile_polytope(polytope)
    scores = draw(polytope.shape, samples, seed)
    reference = BranchAndBound() if compiled.rows_are_not_all else Highs()
    best = compile_polytope(polytope, maximizer=reference).maximize(scores, **parameters).check()
    near = compiled.project(scores, **parameters).check()
    farthest = max(float(distance(polytope, points, **parameters).max()) for points in (best.value, near.value))
    assert farthest <= 1e-6, f"an answer lies {farthest:.3g} outside of the declared polytope"
    form, whole_points = compiled.form, in_a_row(best.value, best.scored)
    assert form is not None
    if not compiled.rows_are_not_all:  # whose best points are held to be integers, and to all inequalities
        vertices = are_vertices(form, whole_points, parameters, torch.Size([samples]), 1e-6)
        assert bool(vertices.all()), "an argmax is no vertex"
    check_projection(compiled, scores, near, parameters)
    if polytope.oracle is not None:
        check_oracle(polytope, samples=samples, seed=seed, **parameters)
    whole = bool((best.value - best.value.round()).abs().max() <= 1e-6)
    assert integral is None or integral == whole, f"integral={integral} was expected, but vertices say {whole}"
    assert whole or not polytope.integral, "the declaration says integral=True, but vertices are fractional"
    gap = float(torch.maximum(best.gap.max(), near.gap.max()))
    return PolytopeCheck(samples, whole, farthest, gap, compiled.explain())
