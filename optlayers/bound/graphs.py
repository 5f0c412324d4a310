"""Answers of bound polytopes as PyTorch differentiates them: a projection, regularized points, and what follows.

The ``polytope`` of every function is the :class:`optlayers.BoundPolytope` that was asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from optlayers.autograd.higher_order import NoDerivative
from optlayers.bound.base import Tangent
from optlayers.solution import Solution

__all__ = ["Moved", "OfValues", "OnCurve", "Projected", "PulledThrough", "RegularizedPoints", "Underived", "VALUES"]

CURVED = "projections have one on polyhedral sets only"
IN_THE_MATRIX = (
    "projections have none with respect to parameters that enter the constraint matrix or a curved constraint; detach "
    "these parameters, or take one derivative only"
)
VALUES = (
    "gradients of optimal values with respect to parameters have derivatives by the scores of nearest points alone; "
    "detach the parameters, or take one derivative only"
)


class Projected(torch.autograd.Function):
    """A projection, with its derivative by scores and θ."""

    @staticmethod
    def forward(ctx: Any, polytope: Any, solution: Solution, scores: Tensor, theta: Tensor | None) -> Tensor:
        ctx.polytope, ctx.solution = polytope, solution
        ctx.save_for_backward(scores)
        return solution.value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor | None]:
        (scores,) = ctx.saved_tensors
        return None, None, *ctx.polytope.pulled_back(ctx.solution, grad, scores)


class RegularizedPoints(torch.autograd.Function):
    """Regularized points, with their derivative by scores and θ."""

    @staticmethod
    def forward(ctx: Any, polytope: Any, solution: Solution, scores: Tensor, theta: Tensor | None) -> Tensor:
        ctx.polytope, ctx.solution = polytope, solution
        value = solution.value.clone()
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor | None]:
        (value,) = ctx.saved_tensors
        polytope = ctx.polytope
        tangent = polytope.tangent(replace(ctx.solution, value=value), grad)
        theta = None
        if ctx.needs_input_grad[3]:
            parts = [tangent.parameters[spec.name].reshape(len(grad), spec.size) for spec in polytope.parameters]
            theta = torch.cat(parts, dim=1)
        return None, None, tangent.scores, theta


class OnCurve(torch.autograd.Function):
    r"""The derivative of regularized points applied to a direction g: the p with the best :math:`\langle g, p \rangle -
    \tfrac12 p^\top H p` among directions that stay on the active set, where H is the curvature. It is linear in g and
    symmetric, and its derivative by H is :math:`-(J g)(J \cdot)`, entry by entry."""

    @staticmethod
    def forward(ctx: Any, polytope: Any, solution: Solution, direction: Tensor, curvature: Tensor) -> Tensor:
        ctx.polytope, ctx.solution = polytope, solution
        found: Tensor = polytope.plain_tangent(solution, direction).scores
        ctx.save_for_backward(direction, curvature, found)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor | None]:
        _, curvature, found = ctx.saved_tensors
        back = OnCurve.apply(ctx.polytope, ctx.solution, grad, curvature)  # type: ignore[no-untyped-call]
        return None, None, back, -back * found if ctx.needs_input_grad[3] else None


class PulledThrough(torch.autograd.Function):
    """The derivative of a projection applied to a direction. On polyhedra it is the same nearby, and symmetric in the
    scores, so that it depends on the direction alone."""

    @staticmethod
    def forward(
        ctx: Any,
        polytope: Any,
        solution: Solution,
        tangent: Tangent,
        direction: Tensor,
        at: Tensor | None,
        theta: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.polytope, ctx.solution = polytope, solution
        ctx.set_materialize_grads(False)
        return tangent.scores, None if theta is None else tangent.theta()

    @staticmethod
    def backward(ctx: Any, of_scores: Tensor | None, of_theta: Tensor | None) -> tuple[Tensor | None, ...]:
        polytope, solution = ctx.polytope, ctx.solution
        if not polytope.polyhedral and ctx.needs_input_grad[4]:
            raise NoDerivative(CURVED)
        if not polytope.parameters_shift and (
            ctx.needs_input_grad[5] or (of_theta is not None and ctx.needs_input_grad[4])
        ):
            raise NoDerivative(IN_THE_MATRIX)
        total, of_auxiliary = None, None
        if of_scores is not None:
            structure = polytope.structure(of_scores)
            total = polytope.pulled_back(solution, structure, None)[0]
            of_auxiliary = of_scores - structure
        if of_theta is not None or (of_auxiliary is not None and bool(of_auxiliary.any())):
            of_auxiliary = torch.zeros_like(solution.value) if of_auxiliary is None else of_auxiliary
            moved = Moved.apply(polytope, solution, of_auxiliary, of_theta)  # type: ignore[no-untyped-call]
            total = moved if total is None else total + moved
        return None, None, None, total, None, None


class Moved(torch.autograd.Function):
    """How a projection moves with the scores of auxiliary variables and with θ; its transpose is the derivative."""

    @staticmethod
    def forward(ctx: Any, polytope: Any, solution: Solution, of_auxiliary: Tensor, of_theta: Tensor | None) -> Tensor:
        ctx.polytope, ctx.solution = polytope, solution
        moved: Tensor = polytope.pushed(solution, of_auxiliary, of_theta)
        return moved

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor | None]:
        polytope = ctx.polytope
        scores, theta = polytope.pulled_back(ctx.solution, grad, None)
        return None, None, scores - polytope.structure(scores), theta if ctx.needs_input_grad[3] else None


class OfValues(torch.autograd.Function):
    """The gradient of the values of nearest points by θ. Its derivative by the scores is that of the points by θ, as
    second derivatives are symmetric; that by θ itself is not known."""

    @staticmethod
    def forward(
        ctx: Any, polytope: Any, solution: Solution, gradient: Tensor, scores: Tensor, theta: Tensor | None
    ) -> Tensor:
        ctx.polytope, ctx.solution = polytope, solution
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[4]:
            raise NoDerivative(VALUES)
        if not ctx.polytope.parameters_shift:
            raise NoDerivative(IN_THE_MATRIX)
        nothing = torch.zeros_like(ctx.solution.value)
        return None, None, None, Moved.apply(ctx.polytope, ctx.solution, nothing, grad), None  # type: ignore[no-untyped-call]


class Underived(torch.autograd.Function):
    """Numbers that depend on others in a way that has no derivative, which is refused when it is asked for."""

    @staticmethod
    def forward(ctx: Any, reason: str, value: Tensor, *by: Tensor | None) -> Tensor:
        ctx.reason = reason
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        raise NoDerivative(ctx.reason)
