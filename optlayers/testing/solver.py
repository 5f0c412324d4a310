"""What a solver keeps: certified answers, the best there are, decided by each instance alone."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import torch
from torch import Tensor

from optlayers.bound.base import by_name
from optlayers.compiled import CompiledPolytope, compile_polytope
from optlayers.entries import Entries
from optlayers.form.compile import form_without_rows
from optlayers.polytope import Polytope
from optlayers.solution import Solution
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver
from optlayers.testing.answers import check_projection, total
from optlayers.testing.draws import draw, with_scores
from optlayers.testing.geometry import distance

__all__ = ["check_solver"]


def check_solver(
    solver: AbstractSolver, polytope: Polytope, *, samples: int = 8, seed: int = 0, **parameters: Any
) -> None:
    """Check a solver on a polytope: certified, equal to the reference solvers, and blind to the rest of the batch.

    The best values of a maximizer are compared with those of HiGHS, to which cvxpy hands the declaration. The answers
    of a projector must lie in the declared set, asked of cvxpy, and satisfy the variational inequality ``<s - x, v - x>
    <= 0`` for the best v. Both must be certified, and the same alone, in a batch and in reverse order.

    Parameters
    ----------
    solver : a maximizer, a projector, or both. One of limited ``accuracy`` is held to that, and not asked with large
        scores.
    polytope : the declaration of a polytope that the solver takes.
    samples : how many scores are tried: random, tied, all equal and large ones.
    seed : of the random scores.
    parameters : one value for all samples per declared parameter, and scores of scored auxiliary variables, which are
        drawn where they are not given.

    Raises
    ------
    AssertionError : naming the solver, and by how much it is wrong.
    SolveError : where an answer is not certified.
    """
    parameters = with_scores(polytope, parameters, seed)
    scores = draw(polytope.shape, samples, seed)
    if solver.accuracy > 0:
        scores = scores.clamp(-5.0, 5.0)
    size = 1 + scores.flatten(1).norm(dim=1)
    if isinstance(solver, AbstractMaximizer):
        compiled = compile_polytope(polytope, maximizer=solver)
        found = compiled.maximize(scores, **parameters).check()
        value = total(scores, parameters, found)
        reference = _reference_values(compiled, scores, parameters)
        worst = float(((value - reference).abs() / size).max())
        assert worst <= max(1e-7, solver.accuracy), f"{solver!r} misses the best value by {worst:.3g} (relative)"
        _check_order(compiled.maximize, scores, found, parameters, solver)
    if isinstance(solver, AbstractProjector):
        compiled = compile_polytope(polytope, projector=solver)
        found = compiled.project(scores, **parameters).check()
        far = float((distance(polytope, found.value, **parameters) / size).max())
        assert far <= 1e-6, f"{solver!r} ends {far:.3g} outside of the polytope (relative)"
        if solver.polyhedral_only:
            check_projection(compiled, scores, found, parameters)
        _check_order(compiled.project, scores, found, parameters, solver)


def _reference_values(compiled: CompiledPolytope, scores: Tensor, parameters: dict[str, Any]) -> Tensor:
    """The best values by a cold solve of the declaration through cvxpy."""
    polytope = compiled.polytope
    direction = cp.Parameter(polytope.shape)
    gain = cp.sum(cp.multiply(direction, polytope.variable))
    for variable in polytope.scored:
        gain = gain + cp.sum(cp.multiply(parameters[variable.name()].numpy(), variable))
    problem = cp.Problem(cp.Maximize(gain), list(polytope.constraints))
    entries = Entries(form_without_rows(polytope))
    given = by_name(entries.parameters, entries.theta(parameters, torch.Size([len(scores)])))
    values = []
    for k in range(len(scores)):
        direction.value = scores[k].numpy()
        for parameter in polytope.parameters:
            parameter.value = given[parameter.name()][k].detach().numpy()
        values.append(float(problem.solve(solver=cp.HIGHS, canon_backend=cp.SCIPY_CANON_BACKEND)))
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _check_order(
    solve: Any, scores: Tensor, found: Solution, parameters: dict[str, Any], solver: AbstractSolver
) -> None:
    backward = solve(scores.flip(0), **parameters).check().value.flip(0)
    single = torch.cat([solve(scores[k : k + 1], **parameters).check().value for k in range(len(scores))])
    tolerance = max(1e-8, solver.accuracy) * (1 + float(found.value.abs().max()))
    for other, what in ((backward, "the order of the batch"), (single, "the rest of the batch")):
        moved = float((other - found.value).abs().max())
        assert moved <= tolerance, f"the answer of {solver!r} depends on {what}: it moved by {moved:.3g}"
