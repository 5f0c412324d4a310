"""What a solver keeps: certified answers, the best there are, decided by each instance alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import cvxpy as cp
import torch
from torch import Tensor

from optlayers.batch.entries import Entries
from optlayers.bound.base import by_name
from optlayers.compilation.compiled import CompiledPolytope, compile_polytope
from optlayers.form.compile import form_without_rows
from optlayers.form.standard import DeclarationError
from optlayers.polytope import Polytope
from optlayers.solution import Solution
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver
from optlayers.testing.answers import check_projection, total
from optlayers.testing.confined import ROOM, confined
from optlayers.testing.draws import SPECIAL, draw, with_scores
from optlayers.testing.failures import MARKED
from optlayers.testing.geometry import distance

__all__ = ["check_solver"]


def check_solver(
    solver: AbstractSolver, polytope: Polytope, *, samples: int = 8, seed: int = 0, **parameters: Any
) -> None:
    """Check a solver on a polytope: certified, equal to the reference solvers, and blind to the rest of the batch.

    The best values of a maximizer are compared with those of HiGHS, to which cvxpy hands the declaration. The answers
    of a projector must lie in the declared set, asked of cvxpy, and satisfy the variational inequality ``<s - x, v - x>
    <= 0`` for the best v, and their derivative must be that of the projector that is chosen when none is asked for.
    Answers must be certified, the same alone, in a batch and in reverse order, and come for empty batches and where
    parts are forbidden. Where the solver takes the polytope with one more constraint, an instance that this makes
    infeasible has no answer and no others suffer; what was prepared for the first polytope answers as before. A solver
    is a value, which can be copied.

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
    _check_copied(solver)
    if isinstance(solver, AbstractMaximizer):
        compiled = compile_polytope(polytope, maximizer=solver)
        found = compiled.maximize(scores, **parameters).check()
        value = total(scores, parameters, found)
        reference = _reference_values(compiled, scores, parameters)
        worst = float(((value - reference).abs() / size).max())
        assert worst <= max(1e-7, solver.accuracy), f"{solver!r} misses the best value by {worst:.3g} (relative)"
        asked = _Asked(solver, polytope, "maximize", parameters)
        asked.check(compiled.maximize, scores, found)
        _check_forbidden(asked, compiled.maximize, scores, found)
    if isinstance(solver, AbstractProjector):
        compiled = compile_polytope(polytope, projector=solver)
        found = compiled.project(scores, **parameters).check()
        far = float((distance(polytope, found.value, **parameters) / size).max())
        assert far <= 1e-6, f"{solver!r} ends {far:.3g} outside of the polytope (relative)"
        if solver.polyhedral_only:
            check_projection(compiled, scores, found, parameters)
        asked = _Asked(solver, polytope, "project", parameters)
        asked.check(compiled.project, scores, found)
        _check_forbidden(asked, compiled.project, scores, found)
        _check_derivative(asked, compiled, found, scores, seed)


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


@final
@dataclass(frozen=True)
class _Asked:
    """A solver that is asked for best vertices, or for nearest points, of a polytope."""

    solver: AbstractSolver
    polytope: Polytope
    question: Literal["maximize", "project"]
    parameters: dict[str, Any]

    @cached_property
    def reference(self) -> CompiledPolytope:
        """The polytope with the solvers that are chosen when none are asked for."""
        return compile_polytope(self.polytope)

    @property
    def arguments(self) -> dict[str, Any]:
        """The solver as an argument of :func:`compile_polytope`."""
        return {"maximizer" if self.question == "maximize" else "projector": self.solver}

    def tolerance(self, values: Tensor) -> float:
        """How far two answers to a question may be apart."""
        return max(1e-8, self.solver.accuracy) * (1 + float(values.abs().max()))

    def check(self, solve: Any, scores: Tensor, found: Solution) -> None:
        """Ask in other batches, beside an infeasible instance, and after another polytope."""
        values = found.value

        def ask(some: Tensor) -> Tensor:
            answer: Tensor = solve(some, **self.parameters).check().value
            return answer

        self.same(ask(scores.flip(0)).flip(0), values, "the order of the batch")
        single = torch.cat([ask(scores[k : k + 1]) for k in range(len(scores))])
        self.same(single, values, "the rest of the batch")
        empty = ask(scores[:0])
        assert empty.shape == scores[:0].shape, f"{self.solver!r} answers an empty batch by shape {tuple(empty.shape)}"
        if self._infeasible_is_told(scores, found):
            try:
                again = ask(scores)
            except Exception as error:
                raise AssertionError(
                    f"{self.solver!r} has no answers to a polytope any more once it was prepared for another one "
                    f"({type(error).__name__}: {error}); what it builds lives in the state of prepare"
                ) from error
            self.same(again, values, "the polytopes that it is prepared for besides")

    def same(self, other: Tensor, values: Tensor, what: str) -> None:
        """Hold an answer to that of another question."""
        moved = float((other - values).abs().max())
        assert moved <= self.tolerance(values), (
            f"the answer of {self.solver!r} depends on {what}: it moved by {moved:.3g}"
        )

    def _infeasible_is_told(self, scores: Tensor, found: Solution) -> bool:
        """Whether the solver takes the polytope with one more constraint, which leaves no room to an instance."""
        polytope = self.polytope
        if polytope.rows == "relaxation" or polytope.has_integers or not self.solver.polyhedral_only:
            return False
        ones = torch.ones(polytope.shape, dtype=torch.float64, device="cpu")
        least = float(self.reference.maximize(-ones, **self.parameters).check().value.sum())
        try:
            compiled = compile_polytope(confined(polytope, least), **self.arguments)
        except (DeclarationError, TypeError, ValueError):  # which says what it does not take
            return False
        rooms = found.value.flatten(1).sum(1) + 1.0  # which the answers do not touch
        rooms[MARKED] = least - 1.0
        try:
            solution = getattr(compiled, self.question)(scores, **self.parameters, **{ROOM: rooms})
        except Exception as error:
            raise AssertionError(
                f"{self.solver!r} raises {type(error).__name__} where an instance is infeasible; its status says so, "
                f"and the others go on: {error}"
            ) from error
        assert not bool(solution.ok[MARKED]), f"{self.solver!r} answers an instance that is infeasible"
        others = torch.arange(len(scores), device="cpu") != MARKED
        failed = torch.nonzero(others & ~solution.ok).flatten().tolist()
        assert not failed, (
            f"{self.solver!r} has no answer to instance {failed[0]} where another one is infeasible: "
            f"{next(f for f in solution.failures if f.index == (failed[0],))}"
        )
        if self.question == "project":
            self.same(solution.value[others], found.value[others], "an infeasible instance beside it")
        return True


def _check_copied(solver: AbstractSolver) -> None:
    try:
        copy.deepcopy(solver)
    except Exception as error:
        raise AssertionError(
            f"{solver!r} cannot be copied ({type(error).__name__}: {error}); a solver is a value, and what it builds "
            "lives in the state of prepare"
        ) from error


def _check_forbidden(asked: _Asked, solve: Any, scores: Tensor, found: Solution) -> None:
    """Forbid one part per instance that its answer does without: the answer is the same."""
    unused = (found.value == 0).flatten(1)
    having, part = unused.any(dim=1), unused.to(torch.int8).argmax(dim=1)
    masked = scores.flatten(1).clone()
    masked[having, part[having]] = -torch.inf
    solution = solve(masked.reshape(scores.shape), **asked.parameters)
    for failure in solution.failures:
        raise AssertionError(f"{asked.solver!r} has no answer where a part is forbidden: {failure.reason}")
    hidden = torch.isinf(masked).reshape(scores.shape)
    used = float(solution.value[hidden].abs().max()) if bool(hidden.any()) else 0.0
    assert used <= asked.tolerance(found.value), f"{asked.solver!r} uses a forbidden part: it is {used:.3g}"
    if asked.question == "project":
        asked.same(solution.value, found.value, "a part that is forbidden and was not used")
    else:
        lost = (total(scores, asked.parameters, found) - total(scores, asked.parameters, solution)).abs()
        size = 1 + scores.flatten(1).norm(dim=1)
        worst = float((lost / size).max())
        assert worst <= max(1e-7, asked.solver.accuracy), (
            f"{asked.solver!r} misses the best value by {worst:.3g} (relative) where a part is forbidden"
        )


def _check_derivative(asked: _Asked, compiled: CompiledPolytope, found: Solution, scores: Tensor, seed: int) -> None:
    """The derivative at scores that are no ties, pulled back in a random direction."""
    plain = [k for k in range(len(scores)) if k not in SPECIAL]
    if compiled.rows_are_not_all or not compiled.polyhedral or not plain:
        return
    some = scores[plain]
    direction = draw(asked.polytope.shape, len(scores), seed + 5)[plain].clamp(-3.0, 3.0)
    mine, theirs = (
        one.tangent(one.project(some, **asked.parameters).check(), direction) for one in (compiled, asked.reference)
    )
    both = mine.ok & theirs.ok
    moved = float((mine.scores - theirs.scores)[both].abs().max()) if bool(both.any()) else 0.0
    assert moved <= max(1e-6, 1e3 * asked.solver.accuracy), (
        f"the derivative of {asked.solver!r} is {moved:.3g} from that of {asked.reference.projector!r}"
    )
