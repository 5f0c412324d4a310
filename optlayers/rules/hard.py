"""Hard: a decision forward, another rule's gradient backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import cvxpy as cp
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, AbstractVertexRule, Context, Gradient

if TYPE_CHECKING:
    from optlayers.compiled import CompiledPolytope

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
        if self.rule.apart is not None:
            raise TypeError(
                f"Hard wraps rules that give one structure, but {self.rule!r} gives several; use it as it is"
            )

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """Those of the wrapped rule."""
        return self.rule.parameters

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule draws random numbers."""
        return self.rule.draws

    @property
    def needs_objective(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule works with losses."""
        return self.rule.needs_objective

    @property
    def has_jacobian(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule has one."""
        return self.rule.has_jacobian

    @property
    def differentiates_parameters(self) -> bool | None:  # type: ignore[override]
        """Whether the wrapped rule has a gradient for parameters."""
        return self.rule.differentiates_parameters

    @property
    def takes_zero(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule takes scores of 0."""
        return self.rule.takes_zero

    def initial_state(self) -> dict[str, Tensor]:
        """That of the wrapped rule."""
        return self.rule.initial_state()

    def adapt(self, state: Mapping[str, Tensor], seen: Float64[Tensor, " sums"]) -> None:
        """As the wrapped rule does."""
        self.rule.adapt(state, seen)

    def kept(
        self, sent: Float64[Tensor, "batch size"], grad: Float64[Tensor, "batch size"], state: Mapping[str, Tensor]
    ) -> Float64[Tensor, " batch"] | None:
        """What the wrapped rule's steps are left."""
        return self.rule.kept(sent, grad, state)

    def of_size(self, *size: int) -> Hard:
        """Around the rule for this size."""
        return replace(self, rule=self.rule.of_size(*size))

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse a polytope without vertices, and what the wrapped rule refuses."""
        super().check(compiled)
        self.rule.check(compiled)

    def remark(self, compiled: CompiledPolytope) -> str | None:
        """That of the rule behind it."""
        return self.rule.remark(compiled)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The wrapped rule's gradient."""
        scores, _ = saved
        now = replace(context, needs_gradient=True)
        _, soft = self.rule.forward(polytope, scores, now)
        return self.rule.backward(polytope, soft, grad, now)
