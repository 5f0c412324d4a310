"""Perturbed optimizers: the mean of best vertices under noise, and its derivative."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.rules.hyperparameters import at_least_one, positive
from optlayers.rules.noise import AbstractNoise, Gaussian, check_noise
from optlayers.rules.samples import less_mean_of_others, mean_of_samples, with_one_verdict
from optlayers.solution import Solution

__all__ = ["AbstractPerturbed", "PerturbedAdditive", "PerturbedMultiplicative"]

Scores = Float64[Tensor, "batch size"]
Samples = Float64[Tensor, "samples batch size"]


class AbstractPerturbed(AbstractRule):
    r"""The mean of best vertices at scores with noise, all samples of all instances solved in one batch.

    Its derivative is that of the density of noise, so that backward solves nothing: a mean of
    :math:`\langle g, \hat z_k \rangle` times what the noise says. Each may be taken less the mean of the others (a
    control variate): the expectation stays, the variance is far less.
    """

    draws = True
    differentiates_parameters = False
    samples: int
    control_variate: bool

    def _check_samples(self) -> None:
        at_least_one(samples=self.samples)
        if self.control_variate and self.samples < 2:
            raise ValueError(
                f"samples must be at least 2 with a control variate, the mean of the others, but got {self.samples}; "
                "or set control_variate=False"
            )

    @abstractmethod
    def _draw(self, shape: tuple[int, ...], context: Context, device: torch.device) -> Samples:
        """The noise."""

    @abstractmethod
    def _perturbed(self, polytope: AbstractBoundPolytope, scores: Scores, noise: Samples) -> Samples:
        """The scores with noise."""

    @abstractmethod
    def _derivative(self, scores: Scores, noise: Samples, values: Float64[Tensor, "samples batch"]) -> Scores:
        """The mean of the values of samples times the score of their noise, towards the scores of parts."""

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The mean of the best vertices."""
        noise = self._draw((self.samples, *scores.shape), context, scores.device)
        perturbed = self._perturbed(polytope, scores, noise)
        best = polytope.repeated(self.samples).maximize(perturbed.flatten(0, 1))
        solution = with_one_verdict(best, self.samples)
        return mean_of_samples(solution), (scores, noise, solution.value)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The derivative of the mean, estimated from the same samples; 0 for parts that cannot move."""
        scores, noise, vertices = saved
        values = torch.einsum("kbn,bn->kb", vertices, grad)
        if self.control_variate:
            values = less_mean_of_others(values)
        derivative = self._derivative(scores, noise, values)
        return Gradient(torch.where(polytope.movable, derivative, 0.0))


@final
@dataclass(frozen=True)
class PerturbedAdditive(AbstractPerturbed):
    r"""The mean of best vertices under additive noise, :math:`\mathbb E[\hat z(s + \varepsilon Z)]`.

    Backward :math:`\frac1\varepsilon \mathbb E[\langle g, \hat z(s + \varepsilon Z) \rangle\, \nu(Z)]`, where
    :math:`\nu = -\nabla \log \rho` is the score of the noise: an unbiased estimate of the true derivative. With
    Gumbel noise of scale 1 on the simplex it is the softmax. It needs nothing but best vertices: use it where a
    structure has neither fast marginals nor fast projections, and a soft structure will do.

    Parameters
    ----------
    samples : how many, 10 by default. The cost of forward grows with them, that of backward hardly does.
    scale : ε, 1.0 by default. A larger one is smoother, and its gradient has less variance.
    noise : :class:`Gaussian` by default, or :class:`Gumbel`.
    control_variate : subtract the mean of the other samples, True by default; it needs 2 samples.

    Raises
    ------
    TypeError : samples that are no int, noise that is none.
    ValueError : too few samples, a scale that is not positive, noise without a known density.

    References
    ----------
    Berthet, Blondel, Teboul, Cuturi, Vert and Bach (2020), Learning with differentiable perturbed optimizers, NeurIPS.
    Abernethy, Lee and Tewari (2016), Perturbation techniques in online learning and optimization (the derivative).
    """

    samples: int = 10
    scale: float = 1.0
    noise: AbstractNoise = field(default_factory=Gaussian)
    control_variate: bool = True

    def __post_init__(self) -> None:
        self._check_samples()
        positive(scale=self.scale)
        check_noise(self.noise)
        if not self.noise.has_score:
            raise ValueError(
                f"PerturbedAdditive differentiates the density of its noise, which is not known for {self.noise!r}; "
                "take Gaussian() or Gumbel()"
            )

    def _draw(self, shape: tuple[int, ...], context: Context, device: torch.device) -> Samples:
        return self.noise.draw(shape, context.generator, device)

    def _perturbed(self, polytope: AbstractBoundPolytope, scores: Scores, noise: Samples) -> Samples:
        return torch.add(scores, noise, alpha=self.scale)

    def _derivative(self, scores: Scores, noise: Samples, values: Float64[Tensor, "samples batch"]) -> Scores:
        return torch.einsum("kb,kbn->bn", values, self.noise.score(noise)) / (self.samples * self.scale)


@final
@dataclass(frozen=True)
class PerturbedMultiplicative(AbstractPerturbed):
    r"""The mean under multiplicative noise, :math:`\mathbb E[\hat z(s \odot e^{\varepsilon Z - \varepsilon^2/2})]`.

    Z is standard normal, so the mean of the factor is 1, and every score keeps its sign: use it instead of
    :class:`PerturbedAdditive` where signs mean something to the maximizer, such as costs of paths that must not be
    negative. Backward :math:`\mathbb E[\langle g, \hat z \rangle\, Z] \oslash (\varepsilon s)`, the true derivative
    without bias. Where a score nears 0 its derivative has a large variance, and at 0 there is none.

    Parameters
    ----------
    samples : how many, 10 by default.
    scale : ε, 1.0 by default.
    control_variate : whether the mean of the other samples is subtracted from each, which lowers the variance; True by
        default. It takes 2 samples or more.

    Raises
    ------
    ValueError : too few samples or a scale that is not positive; when called, a score of 0 of a part that can move.

    References
    ----------
    Dalle, Baty, Bouvier and Parmentier (2022), Learning with combinatorial optimization layers: a probabilistic
    approach.
    """

    samples: int = 10
    scale: float = 1.0
    control_variate: bool = True

    takes_zero = False

    def __post_init__(self) -> None:
        self._check_samples()
        positive(scale=self.scale)

    def _draw(self, shape: tuple[int, ...], context: Context, device: torch.device) -> Samples:
        return Gaussian().draw(shape, context.generator, device)

    def _perturbed(self, polytope: AbstractBoundPolytope, scores: Scores, noise: Samples) -> Samples:
        lost = (scores == 0.0) & polytope.movable
        if bool(lost.any()):
            instance, entry = torch.nonzero(lost)[0].tolist()
            raise ValueError(
                f"PerturbedMultiplicative cannot move a score of 0: instance {instance} has one at flat entry {entry} "
                f"({int(lost.sum())} such scores in all); forbid the part by -inf, shift the scores, or take "
                "PerturbedAdditive()"
            )
        return scores * torch.exp(self.scale * noise - 0.5 * self.scale**2)

    def _derivative(self, scores: Scores, noise: Samples, values: Float64[Tensor, "samples batch"]) -> Scores:
        return torch.einsum("kb,kbn->bn", values, noise) / (self.samples * self.scale * scores)
