"""cvxpylayers: projection onto any convex set that cvxpy can declare."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, final

import cvxpy as cp
import diffcp
import numpy as np
import torch
from cvxpylayers.torch import CvxpyLayer

from optlayers.modes import outside_inference_mode
from optlayers.polytope import Polytope
from optlayers.solution import Status
from optlayers.solvers.base import AbstractProjector, Answer, Instances
from optlayers.solvers.declared import declaration_alone
from optlayers.standard_form import DeclarationError, StandardForm

__all__ = ["CvxpyLayers"]


@final
@dataclass(frozen=True)
class CvxpyLayers(AbstractProjector):
    """Project, and differentiate, with cvxpylayers (Agrawal et al., 2019), which solves with Clarabel through diffcp.

    The only projector for sets that are convex but not polyhedral, such as norm balls, and a second opinion on
    the others. It is slower than the others, and its derivative is a least-squares solution. diffcp takes no
    quadratic objective: it is handed a second-order cone instead, and the distance ends near ``1e-5`` however small
    the tolerance. So its answers are held to a relative gap of ``1e-4``, and their gap says how far they are.

    Parameters
    ----------
    tolerance : gap and feasibility at which Clarabel stops.
    """

    tolerance: float = 1e-10
    polyhedral_only = False
    accuracy = 1e-4
    manner = "a conic solver that reads the declaration"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, but got {self.tolerance}")

    def prepare(self, form: StandardForm) -> _State:
        if form.auxiliaries:
            raise DeclarationError(
                f"CvxpyLayers projects the structure alone, but {[s.name for s in form.auxiliaries]} are scored too; "
                "use Auto(), or ActiveSet() over an oracle"
            )
        return _State(form, self.tolerance)

    def project(self, state: _State, instances: Instances) -> Answer:
        with declaration_alone(state.form.polytope), outside_inference_mode(), torch.device("cpu"):
            return state.project(instances)


@final
@dataclass
class _State:
    form: StandardForm
    tolerance: float
    problems: dict[bool, _Problems] = field(default_factory=dict)

    def project(self, instances: Instances) -> Answer:
        masked = instances.forbidden is not None
        if masked not in self.problems:
            self.problems[masked] = _Problems(self.form.polytope, masked, self.tolerance)
        problems = self.problems[masked]
        answer = Answer.of_whole(self.form, len(instances))
        inputs = self._inputs(instances)
        if len(instances) == 0:
            answer.values = [np.empty((0, *variable.shape)) for variable in problems.variables]
            return answer
        everything, solved = problems.solve(inputs)
        answer.values = [value.detach().numpy() for value in everything]
        answer.scored_vectors[:] = answer.values[0].reshape(len(instances), -1)
        answer.status[~solved.numpy()] = Status.FAILED
        for k in np.flatnonzero(~solved.numpy()):
            if problems.is_infeasible([v[k].detach().numpy() for v in inputs]):
                answer.status[k] = Status.INFEASIBLE
        answer.pullback = _Pullback(everything[0], inputs, solved)
        return answer

    def _inputs(self, instances: Instances) -> list[torch.Tensor]:
        """Targets, parameters and the mask of forbidden parts, as leaves of a graph of their own."""
        batch = len(instances)
        inputs = [torch.tensor(instances.scores).reshape(batch, *self.form.shape).requires_grad_()]
        for spec in self.form.parameters:
            values = torch.tensor(np.ascontiguousarray(instances.parameters[:, spec.span]))
            inputs.append(values.reshape(batch, *spec.shape).requires_grad_())
        if instances.forbidden is not None:
            inputs.append(torch.tensor(instances.forbidden, dtype=torch.float64).reshape(batch, *self.form.shape))
        return inputs


class _Problems:
    """The projection as a layer."""

    def __init__(self, polytope: Polytope, masked: bool, tolerance: float) -> None:
        x = polytope.variable
        self.target = cp.Parameter(x.shape)
        self.given = [self.target, *polytope.parameters]
        self.constraints = list(polytope.constraints)
        if masked:
            mask = cp.Parameter(x.shape, nonneg=True)
            self.given.append(mask)
            self.constraints.append(cp.multiply(mask, x) == 0)
        projection = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - self.target)), self.constraints)
        self.variables = list(polytope.variables)
        options = {"tol_gap_abs": tolerance, "tol_gap_rel": tolerance, "tol_feas": tolerance}
        with warnings.catch_warnings():
            # cvxpy says which backend it takes for variables of three dimensions; cvxpylayers cannot be told before.
            warnings.filterwarnings("ignore", message="The problem has an expression with dimension greater than 2")
            self.layer = CvxpyLayer(
                projection, self.given, self.variables, solver_args={"solve_method": "Clarabel", **options}
            )

    def solve(self, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Values of all variables, and which instances were solved."""
        batch = len(inputs[0])
        solved = torch.ones(batch, dtype=torch.bool)
        with torch.enable_grad():
            try:
                return list(self.layer(*inputs)), solved
            except (diffcp.SolverError, RuntimeError):
                # One unsolvable instance makes the whole batch fail: find out which.
                parts = []
                for k in range(batch):
                    try:
                        parts.append(self.layer(*(v[k] for v in inputs)))
                    except (diffcp.SolverError, RuntimeError):
                        solved[k] = False
                        parts.append(tuple(torch.full(v.shape, torch.nan, dtype=torch.float64) for v in self.variables))
                return [torch.stack(values) for values in zip(*parts, strict=True)], solved

    def is_infeasible(self, values: list[np.ndarray]) -> bool:
        """Whether Clarabel finds that no point satisfies the constraints, for the numbers of one instance."""
        for parameter, value in zip(self.given, values, strict=True):
            parameter.value = value
        problem = cp.Problem(cp.Minimize(0), self.constraints)
        try:
            problem.solve(solver=cp.CLARABEL, canon_backend=cp.SCIPY_CANON_BACKEND)
        except cp.SolverError:
            return False
        return problem.status in (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE)


@final
class _Pullback:
    """Gradients of scores and parameters from a direction, through the graph that cvxpylayers recorded."""

    def __init__(self, point: torch.Tensor, inputs: list[torch.Tensor], solved: torch.Tensor) -> None:
        self.point = point
        self.inputs = [v for v in inputs if v.requires_grad]
        self.solved = solved

    def __call__(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        wanted = torch.from_numpy(direction.copy()).reshape(self.point.shape)
        wanted[~self.solved] = 0.0
        with torch.device("cpu"):
            gradients: Any = torch.autograd.grad(self.point, self.inputs, wanted, retain_graph=True, allow_unused=True)
        batch = len(direction)
        flat = [
            np.zeros((batch, v[0].numel())) if g is None else g.reshape(batch, -1).numpy()
            for g, v in zip(gradients, self.inputs, strict=True)
        ]
        parameters = np.concatenate(flat[1:], axis=1) if flat[1:] else np.zeros((batch, 0))
        return flat[0], parameters, self.solved.numpy()
