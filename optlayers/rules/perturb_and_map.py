"""Perturb-and-MAP: any rule at scores with noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.hyperparameters import positive
from optlayers.rules.noise import AbstractNoise, Gumbel, check_noise
from optlayers.rules.straight_through import StraightThrough
from optlayers.solution import Solution

if TYPE_CHECKING:
    from optlayers.compiled import CompiledPolytope

__all__ = ["PerturbAndMAP"]


@final
@dataclass(frozen=True)
class PerturbAndMAP(AbstractRule):
    r"""The wrapped rule at scores with noise, :math:`s + \sigma Z`, forward and backward, one draw per instance.

    The best vertex under noise is a structure drawn at random. With Gumbel noise on the simplex, and with logistic
    noise on the cube, it is drawn from the Gibbs distribution, elsewhere from another one: ``docs/results.md``,
    "Noise", says how far off. Use it to explore structures while training, with the gradient of the wrapped rule:
    ``PerturbAndMAP(SparseMAP())`` projects perturbed scores.

    Parameters
    ----------
    rule : ``StraightThrough()`` by default.
    scale : σ, 1.0 by default.
    noise : :class:`Gumbel` by default, :class:`SumOfGamma` where all structures have the same number of parts,
        :class:`Logistic` where parts are bits of their own, or :class:`Gaussian`.

    References
    ----------
    Papandreou and Yuille (2011), Perturb-and-MAP random fields: using discrete optimization to learn and sample from
    energy models, ICCV.
    """

    rule: AbstractRule = field(default_factory=StraightThrough)
    scale: float = 1.0
    noise: AbstractNoise = field(default_factory=Gumbel)

    draws = True

    def __post_init__(self) -> None:
        if not isinstance(self.rule, AbstractRule):
            raise TypeError(f"PerturbAndMAP wraps a rule such as StraightThrough(), but got {self.rule!r}")
        if self.rule.apart is not None:
            raise TypeError(
                f"PerturbAndMAP wraps rules that give one structure, but {self.rule!r} gives several; use it as it is"
            )
        positive(scale=self.scale)
        check_noise(self.noise)

    @property
    def maximizes(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule asks for vertices."""
        return self.rule.maximizes

    @property
    def needs_objective(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule works with losses."""
        return self.rule.needs_objective

    @property
    def differentiates_parameters(self) -> bool | None:  # type: ignore[override]
        """Whether the wrapped rule has a gradient for parameters."""
        return self.rule.differentiates_parameters

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

    def of_size(self, *size: int) -> PerturbAndMAP:
        """Around the rule for this size."""
        return replace(self, rule=self.rule.of_size(*size))

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse what the wrapped rule refuses."""
        self.rule.check(compiled)

    def remark(self, compiled: CompiledPolytope) -> str | None:
        """That of the rule behind it."""
        return self.rule.remark(compiled)

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The wrapped rule's, at perturbed scores."""
        noise = self.noise.draw(scores.shape, context.generator, scores.device)
        return self.rule.forward(polytope, torch.add(scores, noise, alpha=self.scale), context)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The wrapped rule's, at perturbed scores."""
        return self.rule.backward(polytope, saved, grad, context)
