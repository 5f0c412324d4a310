"""Points with a declared regularizer that is one quadratic form, on polytopes of few rows, and what belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound.declared import ONCE, TIED
from optlayers.form.quadratic import DenseTerm
from optlayers.form.standard import ParameterSpec, StandardForm
from optlayers.solution import AbstractEvidence, Proof
from optlayers.solvers.base import Instances
from optlayers.solvers.dense_program import DenseProgram, DenseSolved
from optlayers.solvers.derivative import PulledBack, value_gradient_of
from optlayers.solvers.kernels import dense_program

__all__ = ["DenseEvidence", "EvidenceOfParts", "matrix_span", "solved_densely"]


def solved_densely(
    form: StandardForm, instances: Instances, term: DenseTerm, theta: Float64[np.ndarray, "batch parameters"]
) -> DenseSolved:
    """Points with their certificates, for a form that :class:`DenseProgram` takes."""
    size, span = form.size, matrix_span(form, term)
    if span is None:
        matrices = 2.0 * term.factor * np.asarray(term.matrix, dtype=np.float64)[None]
    else:
        given = theta[:, span.span]
        shared = len(given) > 1 and bool((given == given[:1]).all())
        matrices = 2.0 * term.factor * (given[:1] if shared else given).reshape(-1, size, size)
    return DenseProgram(form, instances, np.ascontiguousarray(matrices)).solved()


def matrix_span(form: StandardForm, term: DenseTerm) -> ParameterSpec | None:
    """The parameter that is the matrix, None for a constant one."""
    name = term.matrix
    return next((s for s in form.parameters if s.name == name), None) if isinstance(name, str) else None


@final
@dataclass(eq=False)
class DenseEvidence(AbstractEvidence):
    """What belongs to these points: active sets, and the matrix."""

    form: StandardForm
    solved: DenseSolved
    term: DenseTerm
    once = ONCE
    without_derivative = TIED

    @property
    def proof(self) -> Proof:
        """The points; see :class:`AbstractEvidence`."""
        solved = self.solved
        return Proof(solved.whole, solved.dual, solved.free, np.ones(len(solved.point), dtype=bool))

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """On the active sets; see :class:`AbstractEvidence`."""
        solved, device = self.solved, direction.device
        mine = np.ascontiguousarray(direction.detach().cpu().numpy())
        p, q, right = solved.pull_back(mine)
        if ok is not None:
            right &= ok.cpu().numpy()
            p[~right], q[~right] = 0.0, 0.0

        def of_parameters() -> Tensor:
            form, instances = self.form, solved.instances
            moved = np.zeros(solved.whole.shape)
            moved[:, : form.scored] = p
            # What presses on a bound is what neither rows nor the matrix take up.
            pressing = mine if form.bounds_are_constant else mine - solved.times(p)
            found = PulledBack(form, instances, solved.free, pressing, moved, q, right)
            theta = found.parameters(solved.whole, solved.dual, solved.sides_high)
            theta[np.isinf(instances.parameters)] = 0.0
            return torch.from_numpy(self._with_matrix(theta, p, solved.point)).to(device)

        return torch.from_numpy(p).to(device), of_parameters, torch.from_numpy(right).to(device)

    def _with_matrix(
        self,
        theta: Float64[np.ndarray, "batch parameters"],
        moved: Float64[np.ndarray, "batch scored"],
        point: Float64[np.ndarray, "batch scored"],
    ) -> Float64[np.ndarray, "batch parameters"]:
        r"""θ and the gradient of Q in :math:`a x^\top Q x`, which is :math:`-a (p x^\top + x p^\top)`."""
        theta, spec = np.ascontiguousarray(theta), matrix_span(self.form, self.term)
        if spec is not None:
            dense_program.add_outer(theta, spec.start, -self.term.factor, moved, point)
        return theta

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """From dual points; see :class:`AbstractEvidence`."""
        solved, good = self.solved, ok.cpu().numpy()
        slope = np.zeros(solved.whole.shape)
        slope[:, : self.form.scored] = solved.times(solved.point)
        slope[solved.free] = 0.0
        theta = value_gradient_of(self.form, solved.instances, solved.whole, solved.dual, good, slope, solved.free)
        theta = np.where(np.isinf(solved.instances.parameters), 0.0, theta)
        point = np.where(good[:, None], solved.point, 0.0)
        return torch.from_numpy(self._with_matrix(theta, 0.5 * point, point)).to(ok.device)


@final
@dataclass(eq=False)
class EvidenceOfParts(AbstractEvidence):
    """What belongs to a batch whose instances were solved in two ways: which instances, and their evidence."""

    form: StandardForm
    parts: Sequence[tuple[np.ndarray, AbstractEvidence]]
    once = ONCE
    without_derivative = TIED

    @property
    def proof(self) -> Proof:
        """There is none: see :class:`AbstractEvidence`."""
        raise ValueError("points that were solved in two ways have no common proof")

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """By those of the parts; see :class:`AbstractEvidence`."""
        scores, right = torch.zeros_like(direction), torch.zeros(len(direction), dtype=torch.bool)
        right, by_part = right.to(direction.device), []
        for index, evidence in self.parts:
            some = torch.from_numpy(index).to(direction.device)
            mine, of_parameters, good = evidence.tangent(direction[some], None if ok is None else ok[some])
            scores[some], right[some] = mine, good
            by_part.append((some, of_parameters))

        def of_all() -> Tensor:
            theta = direction.new_zeros(len(direction), self.form.parameter_count)
            for some, of_parameters in by_part:
                theta[some] = of_parameters()
            return theta

        return scores, of_all, right

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """By those of the parts; see :class:`AbstractEvidence`."""
        theta = torch.zeros(len(ok), self.form.parameter_count, dtype=torch.float64, device=ok.device)
        for index, evidence in self.parts:
            some = torch.from_numpy(index).to(ok.device)
            theta[some] = evidence.value_gradient(ok[some])
        return theta
