"""Perturb-and-MAP: any rule at scores with noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.hyperparameters import positive
from optlayers.rules.noise import AbstractNoise, Gumbel, check_noise
from optlayers.rules.straight_through import StraightThrough
from optlayers.rules.wrapper import AbstractWrapper
from optlayers.solution import Solution

if TYPE_CHECKING:
    from optlayers.compilation.compiled import CompiledPolytope

__all__ = ["PerturbAndMAP"]


@final
@dataclass(frozen=True)
class PerturbAndMAP(AbstractWrapper):
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
        self.check_rule("StraightThrough()")
        positive(scale=self.scale)
        check_noise(self.noise)

    @property
    def maximizes(self) -> bool:  # type: ignore[override]
        """Whether the wrapped rule asks for vertices."""
        return self.rule.maximizes

    @property
    def differentiates_parameters(self) -> bool | None:  # type: ignore[override]
        """Whether the wrapped rule has a gradient for parameters."""
        return self.rule.differentiates_parameters

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse what the wrapped rule refuses."""
        self.rule.check(compiled)

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
