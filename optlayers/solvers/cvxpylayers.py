"""Clarabel by cvxpy, and cvxpylayers: projection onto any convex set that cvxpy can declare."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Bool

from optlayers.common.caches import Cache, cached_property
from optlayers.common.extras import needed
from optlayers.common.modes import outside_inference_mode
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.polytope import Polytope
from optlayers.solution import Status
from optlayers.solvers.base import AbstractProjector, Answer, Instances
from optlayers.solvers.declared import declaration_alone, solve

__all__ = ["CvxpyLayers", "DeclaredProblem", "DeclaredPullback", "cvxpylayers_for"]

STATUS = {
    cp.OPTIMAL: Status.OPTIMAL,
    cp.OPTIMAL_INACCURATE: Status.OPTIMAL,
    cp.INFEASIBLE: Status.INFEASIBLE,
    cp.INFEASIBLE_INACCURATE: Status.INFEASIBLE,
}


EXTRA = "cvxpylayers"


def cvxpylayers_for(use: str) -> Any:
    """The module ``cvxpylayers.torch``; without it, ``use`` begins the sentence that says what to install."""
    module = needed("cvxpylayers.torch", EXTRA, use)
    _diffcp()
    return module


def _diffcp() -> Any:
    """What cvxpylayers imports when it is first called, which is late."""
    return needed("diffcp", EXTRA, "cvxpylayers solves with diffcp")


@final
@dataclass(frozen=True)
class CvxpyLayers(AbstractProjector):
    """Project with Clarabel, which cvxpy hands the declaration, and differentiate with cvxpylayers.

    The projector for convex sets with other cones than :class:`ConeNewton` takes, such as exponential ones, and a
    second opinion on all others. It is slower than the others, and certified for scores up to some 1e3 times the size
    of the set: beyond, its gap is lost in the tolerance of Clarabel. The derivative (Agrawal et al., Differentiable
    Convex Optimization Layers, 2019) is a least-squares solution of diffcp, found when it is first asked for. Both come
    with ``pip install 'optlayers[cvxpylayers]'``.

    Parameters
    ----------
    tolerance : gap and feasibility at which Clarabel stops.
    """

    tolerance: float = 1e-10
    polyhedral_only = False
    accuracy = 1e-6
    manner = "a conic solver that reads the declaration"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, but got {self.tolerance}")

    def prepare(self, form: StandardForm) -> _State:
        if form.scored_auxiliaries:
            raise DeclarationError(
                f"CvxpyLayers projects the structure alone, but {[s.name for s in form.scored_auxiliaries]} are scored "
                "too; use Auto(), or ActiveSet() over an oracle"
            )
        cvxpylayers_for(f"{self!r} takes derivatives from cvxpylayers")  # refused before anything is solved
        return _State(form)

    def project(self, state: _State, instances: Instances) -> Answer:
        form = state.form
        answer = Answer.of_whole(form, len(instances))
        inputs = _inputs(form, instances)
        with declaration_alone(form.polytope):
            problem = state.problems.get(
                instances.forbidden is not None, partial(DeclaredProblem, form.polytope, self.tolerance)
            )
            answer.values = problem.nearest(inputs, answer.status)
        answer.scored_vectors[:] = answer.values[0].reshape(len(instances), form.size)
        answer.pullback = DeclaredPullback(form, problem, inputs, answer.status == Status.OPTIMAL)
        return answer


@final
@dataclass
class _State:
    form: StandardForm
    problems: Cache[bool, DeclaredProblem] = field(default_factory=Cache)
    """Without and with forbidden parts."""


def _inputs(form: StandardForm, instances: Instances) -> list[np.ndarray]:
    """What the parameters of a :class:`DeclaredProblem` are, for every instance."""
    batch = len(instances)
    size = np.maximum(np.abs(instances.scores).max(axis=1, initial=0.0), 1.0)
    inputs = [1.0 / size, (instances.scores / size[:, None]).reshape(batch, *form.shape)]
    inputs += [instances.parameters[:, spec.span].reshape(batch, *spec.shape) for spec in form.parameters]
    if instances.forbidden is not None:
        inputs.append(instances.forbidden.reshape(batch, *form.shape).astype(np.float64))
    return inputs


@final
class DeclaredProblem:
    r"""The point x of the declared set that is nearest to s minimizes :math:`\tfrac12 w \|x\|^2 - w \langle s, x
    \rangle`, for any w > 0. With w s of size 1, Clarabel meets numbers of one size.

    Its parameters are w, w s, those of the declaration, and where parts are forbidden, a 1 for each of these. With a
    function Ω in place of the squares, w is 1 and no parameter.
    """

    def __init__(self, polytope: Polytope, tolerance: float, masked: bool, omega: cp.Expression | None = None) -> None:
        x, weight = polytope.variable, cp.Parameter(nonneg=True)
        target = cp.Parameter(x.shape)
        self.given = [*([weight] if omega is None else []), target, *polytope.parameters]
        constraints = list(polytope.constraints)
        if masked:
            mask = cp.Parameter(x.shape, nonneg=True)
            self.given.append(mask)
            constraints.append(cp.multiply(mask, x) == 0)
        charged = 0.5 * weight * cp.sum_squares(x) if omega is None else omega
        self.problem = cp.Problem(cp.Minimize(charged - cp.sum(cp.multiply(target, x))), constraints)
        self.variables = list(polytope.variables)
        self.tolerance = tolerance

    def nearest(self, inputs: Sequence[np.ndarray], status: np.ndarray) -> list[np.ndarray]:
        """Values of all variables, for every instance; what is not found is NaN, and its status says why."""
        values = [np.full((len(status), *variable.shape), np.nan) for variable in self.variables]
        for k in range(len(status)):
            for parameter, numbers in zip(self.given, inputs, strict=True):
                parameter.value = numbers[k]
            status[k] = STATUS.get(solve(self.problem, self.tolerance), Status.FAILED)
            if status[k] == Status.OPTIMAL:
                for value, variable in zip(values, self.variables, strict=True):
                    value[k] = variable.value
        return values

    @cached_property
    def layer(self) -> Any:  # a CvxpyLayer
        """The nearest points as a function of the parameters of this problem that PyTorch can differentiate."""
        cvxpylayers = cvxpylayers_for("the derivative comes from cvxpylayers")
        with warnings.catch_warnings():
            # cvxpy says which backend it takes for variables of three dimensions; cvxpylayers cannot be told before.
            warnings.filterwarnings("ignore", message="The problem has an expression with dimension greater than 2")
            stop = {"tol_gap_abs": self.tolerance, "tol_gap_rel": self.tolerance, "tol_feas": self.tolerance}
            options = {"solve_method": "Clarabel", **stop}
            return cvxpylayers.CvxpyLayer(self.problem, self.given, self.variables, solver_args=options)


@final
@dataclass(eq=False)
class DeclaredPullback:
    """Gradients of scores and parameters from a direction, through the graph that cvxpylayers records."""

    form: StandardForm
    problem: DeclaredProblem
    inputs: Sequence[np.ndarray]
    solved: Bool[np.ndarray, " batch"]
    weighted: bool = True
    """Whether the first of the parameters is a weight that scores were multiplied by."""

    def __call__(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        right = self.solved.copy()
        scores, parameters = np.zeros((len(right), self.form.size)), np.zeros((len(right), self.form.parameter_count))
        with declaration_alone(self.form.polytope), outside_inference_mode(), torch.device("cpu"):
            index, leaves, point = self._graph
            right[self.solved] = np.isin(np.flatnonzero(self.solved), index)
            if len(index) == 0:
                return scores, parameters, right
            wanted = torch.from_numpy(direction[index]).reshape(point.shape)
            found: Any = torch.autograd.grad(point, leaves, wanted, retain_graph=True, allow_unused=True)
        flat = [
            np.zeros((len(index), v[0].numel())) if g is None else g.reshape(len(index), -1).numpy()
            for g, v in zip(found, leaves, strict=True)
        ]
        scores[index] = flat[0] * (self.inputs[0][index, None] if self.weighted else 1.0)
        parameters[index] = np.concatenate([parameters[index, :0], *flat[1:]], axis=1)
        return scores, parameters, right

    @cached_property
    def _graph(self) -> tuple[np.ndarray, list[torch.Tensor], torch.Tensor]:
        """The instances that cvxpylayers solves, too; their scores times the weight, and parameters; their points."""
        index = np.flatnonzero(self.solved)
        solved, leaves, point = self._solve(index)
        return (index, leaves, point) if solved.all() else (index[solved], *self._solve(index[solved])[1:])

    def _solve(self, index: np.ndarray) -> tuple[Bool[np.ndarray, " some"], list[torch.Tensor], torch.Tensor]:
        tensors = [torch.tensor(numbers[index]) for numbers in self.inputs]
        first = int(self.weighted)
        leaves = [tensor.requires_grad_() for tensor in tensors[first : first + 1 + len(self.form.parameters)]]
        solved = np.ones(len(index), dtype=bool)
        if len(index) == 0:
            return solved, leaves, leaves[0]
        unsolvable = _diffcp().SolverError
        with torch.enable_grad():
            try:
                return solved, leaves, self.problem.layer(*tensors)[0]
            except (unsolvable, RuntimeError):
                # One unsolvable instance makes the whole batch fail: find out which.
                for k in range(len(index)):
                    try:
                        self.problem.layer(*(tensor[k] for tensor in tensors))
                    except (unsolvable, RuntimeError):
                        solved[k] = False
        return solved, leaves, leaves[0]
