"""What rules around another rule share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import cvxpy as cp
from jaxtyping import Float64
from torch import Tensor

from optlayers.rules.base import AbstractRule

if TYPE_CHECKING:
    from optlayers.compilation.compiled import CompiledPolytope

__all__ = ["AbstractWrapper"]


class AbstractWrapper(AbstractRule):
    """A rule around another one, ``rule``: a dataclass that has what the other one has, unless it says otherwise."""

    rule: AbstractRule

    def check_rule(self, example: str) -> None:
        """Refuse what is no rule, and a rule that gives several structures."""
        name = type(self).__name__
        if not isinstance(self.rule, AbstractRule):
            raise TypeError(f"{name} wraps a rule such as {example}, but got {self.rule!r}")
        if self.rule.apart is not None:
            raise TypeError(
                f"{name} wraps rules that give one structure, but {self.rule!r} gives several; use it as it is"
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

    def of_size(self, *size: int) -> AbstractRule:
        """Around the rule for this size."""
        return replace(self, rule=self.rule.of_size(*size))  # type: ignore[type-var]

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse what this rule and the wrapped one refuse."""
        super().check(compiled)
        self.rule.check(compiled)

    def remark(self, compiled: CompiledPolytope) -> str | None:
        """That of the wrapped rule."""
        return self.rule.remark(compiled)
