"""Hard: a decision forward, another rule's gradient backward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, AbstractVertexRule, Gradient

__all__ = ["Hard"]


@final
@dataclass(frozen=True)
class Hard(AbstractVertexRule):
    r"""The best vertex :math:`\hat z`; backward what the wrapped rule gives at the same scores.

    ``Hard(SparseMAP())`` decides like :class:`Pipeline` and learns like :class:`SparseMAP`: a straight-through
    gradient that knows the polytope. The wrapped rule's forward map is computed only when a gradient is asked for.

    Parameters
    ----------
    rule : the rule whose gradient is taken.
    """

    rule: AbstractRule

    def __post_init__(self) -> None:
        if not isinstance(self.rule, AbstractRule):
            raise TypeError(f"Hard wraps a rule such as SparseMAP(), but got {self.rule!r}")

    def backward(self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"]) -> Gradient:
        """The wrapped rule's gradient."""
        scores, _ = saved
        with torch.enable_grad():  # it is asked to go backward at once
            solution, soft = self.rule.forward(polytope, scores)
        gradient = self.rule.backward(polytope, soft, grad)
        return replace(gradient, solutions=(solution, *gradient.solutions))
