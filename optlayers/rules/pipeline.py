"""Pipeline: a hard decision, and no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient

__all__ = ["Pipeline"]


@final
@dataclass(frozen=True)
class Pipeline(AbstractVertexRule):
    r"""The best vertex :math:`\hat z`; the gradient is 0.

    What comes before the layer learns from its own losses alone. Use it as the baseline, and for evaluation.
    """

    takes_any_gradient = True
    has_jacobian = True
    differentiates_parameters = False

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """Zero, whatever arrives."""
        return Gradient(torch.zeros_like(grad))
