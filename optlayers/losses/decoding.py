"""Structures for new scores, in agreement with the loss that the scores were learned by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.numbers import AbstractNumbers
from optlayers.bound.polytope import BoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution, Status
from optlayers.sums.marginals import by_value

__all__ = ["Decoding", "best_less", "nearest_vertex"]

ADVICE = (
    "; say integral=True in the declaration where all structures are of 0 and 1, or decode by "
    "compile_polytope(...).maximize(scores)"
)


@final
@dataclass(frozen=True)
class Decoding(AbstractRule):
    """The structures that ``ask`` gives, without a gradient: a loss in the place of a rule."""

    ask: Callable[[BoundPolytope, Float64[Tensor, "batch size"]], Solution]

    differentiates_parameters = False

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The structures."""
        assert isinstance(polytope, BoundPolytope)
        return self.ask(polytope, scores.detach()), None

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """There is none."""
        raise NotImplementedError("decoded structures have no gradient")


Worth = Callable[[Float64[Tensor, "batch size"]], Float64[Tensor, "batch size"]]


def nearest_vertex(polytope: BoundPolytope, scores: Float64[Tensor, "batch size"]) -> Solution:
    r"""The vertex with the best :math:`\langle s, v \rangle - \tfrac12 \|v\|^2`, which is nearest to the scores; see
    :func:`best_less`. Auxiliary variables have scores, and no norm."""
    return best_less(polytope, scores, lambda points: 0.5 * polytope.structure(points).square())


def best_less(polytope: BoundPolytope, scores: Float64[Tensor, "batch size"], worth: Worth) -> Solution:
    r"""The vertex with the best :math:`\langle s, v \rangle - \Omega(v)`, for what parts contribute to Ω.

    Structures of 0 and 1 are the best ones for scores less what a part adds. Others are compared one by one, where
    there are few.

    Raises
    ------
    ValueError : vertices that are not known to be of 0 and 1, and too many to enumerate.
    """
    if polytope.binary:
        return polytope.maximize(scores - (worth(torch.ones_like(scores)) - worth(torch.zeros_like(scores))))
    numbers = polytope.numbers
    assert isinstance(numbers, AbstractNumbers)
    theta, forbidden, reasons = numbers.given, numbers.hidden, dict[int, str]()
    value, status = torch.zeros_like(scores), torch.full((len(scores),), int(Status.FAILED), dtype=torch.int8)
    status = status.to(scores.device)
    try:
        for rows, array in by_value(theta, numbers.enumerated, reasons, advice=ADVICE):
            vertices = torch.from_numpy(array).to(scores.device)
            gains = scores[rows] @ vertices.T - worth(vertices).sum(dim=1)
            if forbidden is not None:
                used = forbidden[rows].to(gains.dtype) @ (vertices != 0.0).to(gains.dtype).T
                gains = gains.masked_fill(used > 0.5, -torch.inf)
            if not len(vertices):
                status[rows] = int(Status.INFEASIBLE)
                continue
            best, which = gains.max(dim=1)
            value[rows] = vertices[which]
            status[rows] = torch.where(torch.isneginf(best), int(Status.INFEASIBLE), 0).to(torch.int8)
    except ValueError as error:
        raise ValueError(f"the structure of the smallest loss is not known: {error}") from None
    zeros = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    return polytope.seen(Solution(value, status, zeros, torch.full_like(zeros, np.nan), reasons))
