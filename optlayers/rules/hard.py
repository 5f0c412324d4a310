"""Hard: a decision forward, another rule's gradient backward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, AbstractVertexRule, Context, Gradient
from optlayers.rules.wrapper import AbstractWrapper

__all__ = ["Hard"]


@final
@dataclass(frozen=True)
class Hard(AbstractWrapper, AbstractVertexRule):
    r"""The best vertex :math:`\hat z`; backward what the wrapped rule gives at the same scores.

    ``Hard(SparseMAP())`` decides like :class:`Pipeline` and learns like :class:`SparseMAP`: a straight-through
    gradient that knows the polytope. The wrapped rule's forward map is computed only when a gradient is asked for.

    Parameters
    ----------
    rule : the rule whose gradient is taken.
    """

    rule: AbstractRule

    def __post_init__(self) -> None:
        self.check_rule("SparseMAP()")

    @property
    def has_jacobian(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule has one."""
        return self.rule.has_jacobian

    @property
    def differentiates_parameters(self) -> bool | None:  # type: ignore[override]
        """Whether the wrapped rule has a gradient for parameters."""
        return self.rule.differentiates_parameters

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The wrapped rule's gradient."""
        scores, _ = saved
        now = replace(context, needs_gradient=True)
        _, soft = self.rule.forward(polytope, scores, now)
        return self.rule.backward(polytope, soft, grad, now)
