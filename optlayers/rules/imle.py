"""Implicit maximum likelihood: differences of best vertices under the same noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.hyperparameters import at_least_one, positive
from optlayers.rules.noise import AbstractNoise, Gumbel, check_noise
from optlayers.rules.samples import mean_of_samples, with_one_verdict
from optlayers.solution import Solution

__all__ = ["IMLE"]


@final
@dataclass(frozen=True)
class IMLE(AbstractRule):
    r"""The mean of best vertices :math:`\hat z_k = \hat z(s + \tau \epsilon_k)` under noise.

    Backward, over the same noise, the mean of
    :math:`\frac1\lambda [\hat z(s + \tau \epsilon_k) - \hat z(s - \lambda g + \tau \epsilon_k)]`: the gradient of the
    likelihood of a better distribution, a step of λ against g away. Use it where there is nothing but a fast maximizer
    and structures must be discrete: with one sample they are. A small λ gives gradients that are mostly 0, a large one
    gradients of a large bias; :class:`AdaptiveIMLE` finds it.

    Parameters
    ----------
    samples : how many structures per instance, 1 by default.
    strength : λ, 10.0 by default; a good one depends on the scales of scores and of gradients. Under ``loss.mean()``
        gradients shrink with the batch, and most instances get none;
        ``OptLayer(..., gradient_unit="norm")`` makes λ independent of that.
    scale : τ, 1.0 by default, the temperature of the noise.
    noise : :class:`Gumbel` by default. Where all structures have the same number of parts, :class:`SumOfGamma`; where
        parts are bits of their own, :class:`Logistic`.

    References
    ----------
    Niepert, Minervini and Franceschi (2021), Implicit MLE: backpropagating through discrete exponential family
    distributions, NeurIPS.
    """

    samples: int = 1
    strength: float = 10.0
    scale: float = 1.0
    noise: AbstractNoise = field(default_factory=Gumbel)

    draws = True
    differentiates_parameters = False

    def __post_init__(self) -> None:
        at_least_one(samples=self.samples)
        positive(strength=self.strength, scale=self.scale)
        check_noise(self.noise)

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The mean of the best vertices."""
        noise = self.noise.draw((self.samples, *scores.shape), context.generator, scores.device)
        perturbed = torch.add(scores, noise, alpha=self.scale)
        best = polytope.repeated(self.samples).maximize(perturbed.flatten(0, 1))
        mean = mean_of_samples(with_one_verdict(best, self.samples))
        return mean, (perturbed, mean.value)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The mean difference to the structures that are better for the loss."""
        perturbed, mean = saved
        target = torch.add(perturbed, grad, alpha=-self.strength)
        best = polytope.repeated(self.samples).maximize(target.flatten(0, 1))
        better = mean_of_samples(with_one_verdict(best, self.samples))
        return Gradient((mean - better.value) / self.strength)
