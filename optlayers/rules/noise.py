"""Noise that rules add to scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from optlayers.rules.hyperparameters import at_least_one, positive

__all__ = ["AbstractNoise", "Gaussian", "Gumbel", "Logistic", "SumOfGamma", "check_noise"]


class AbstractNoise(ABC):
    """A distribution over the real numbers, drawn from independently for every part. A noise is a value."""

    has_score: bool = True
    """Whether :meth:`score` is known."""
    mean: float = 0.0
    """Of the numbers that are drawn."""

    def draw(
        self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device
    ) -> Float64[Tensor, "*shape"]:
        """Numbers of unit scale on ``device``, drawn where the generator lives; torch's own for None.

        They have the 24 random bits of float32, which torch draws five times as fast as float64.
        """
        home = device if generator is None else generator.device
        return self._draw(torch.empty(*shape, dtype=torch.float32, device=home), generator).to(device, torch.float64)

    @abstractmethod
    def _draw(self, out: Float32[Tensor, "*shape"], generator: torch.Generator | None) -> Float32[Tensor, "*shape"]:
        """Numbers in ``out``, which may be overwritten."""

    @abstractmethod
    def score(self, noise: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        r"""Minus the derivative of the log density, :math:`-\nabla \log \rho(z)`; its mean is 0."""


@final
@dataclass(frozen=True)
class Gaussian(AbstractNoise):
    r"""Standard normal noise, independent for every part, of mean 0 and variance 1.

    Its score, minus the derivative of the log-density, is z itself. It is the noise of :class:`PerturbedAdditive`
    unless another one is named.
    """

    def _draw(self, out: Float32[Tensor, "*shape"], generator: torch.Generator | None) -> Float32[Tensor, "*shape"]:
        return out.normal_(generator=generator)

    def score(self, noise: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """The noise."""
        return noise


@final
@dataclass(frozen=True)
class Gumbel(AbstractNoise):
    r"""Standard Gumbel noise of location 0, with the density :math:`e^{-z - e^{-z}}`; its mean is 0.5772.

    The largest of scores with this noise is distributed like the softmax (Gumbel, 1954). So structures of which exactly
    one part is there are drawn from the Gibbs distribution. Where structures differ in their number of parts, a mean
    above 0 favours those with many: a bit of score 0 (``polytopes.cube(1)``) is 1 with probability
    :math:`1 - 1/e = 0.632`. There, take :class:`Logistic`.
    """

    mean = 0.5772156649015329

    def _draw(self, out: Float32[Tensor, "*shape"], generator: torch.Generator | None) -> Float32[Tensor, "*shape"]:
        out.exponential_(generator=generator).clamp_min_(torch.finfo(out.dtype).tiny)  # a 0 would be infinite noise
        return out.log_().neg_()

    def score(self, noise: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        r""":math:`1 - e^{-z}`."""
        return -torch.expm1(-noise)


@final
@dataclass(frozen=True)
class Logistic(AbstractNoise):
    r"""Standard logistic noise, with the density :math:`1 / (2 \cosh(z/2))^2`; its mean is 0.

    It is the difference of two Gumbels: one of a part that is there, one of a part that is not. A bit of score s
    (``polytopes.cube``) is then 1 with probability :math:`1 / (1 + e^{-s})`, as in the Gibbs distribution.

    References
    ----------
    Maddison, Mnih and Teh (2017), The concrete distribution, ICLR (the binary case).
    """

    def _draw(self, out: Float32[Tensor, "*shape"], generator: torch.Generator | None) -> Float32[Tensor, "*shape"]:
        return Gumbel()._draw(out, generator).sub_(Gumbel()._draw(torch.empty_like(out), generator))

    def score(self, noise: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        r""":math:`\tanh(z/2)`."""
        return torch.tanh(noise / 2)


@final
@dataclass(frozen=True)
class SumOfGamma(AbstractNoise):
    r"""Noise whose sum over the k parts of a structure is nearly Gumbel, for structures that all have k parts.

    With s terms, :math:`\frac1k (\sum_{i=1}^s \Gamma(1/k, k/i) - \log s)`, by shape and scale. Structures that share
    parts share their noise, so that the best of them is not drawn from the Gibbs distribution: it was farther from it
    than with a Gumbel for every part in most of the structures of ``docs/results.md``, "Noise". Its density is not
    known, so rules that differentiate the density do not take it.

    Parameters
    ----------
    parts : k, how many parts a structure has: the words of a tree, the steps of a sequence, the budget of a subset.
    terms : s, 10 by default; the sum is exactly Gumbel in the limit of many.

    References
    ----------
    Niepert, Minervini and Franceschi (2021), Implicit MLE: backpropagating through discrete exponential family
    distributions, NeurIPS.
    """

    parts: float
    terms: int = 10

    has_score = False

    @property
    def mean(self) -> float:  # type: ignore[override]
        """The harmonic number of the terms less their logarithm, for k parts."""
        return (sum(1.0 / i for i in range(1, self.terms + 1)) - math.log(self.terms)) / self.parts

    def __post_init__(self) -> None:
        positive(parts=self.parts)
        at_least_one(terms=self.terms)

    def _draw(self, out: Float32[Tensor, "*shape"], generator: torch.Generator | None) -> Float32[Tensor, "*shape"]:
        shape = torch.full_like(out, 1.0 / self.parts)
        out.fill_(-math.log(self.terms) / self.parts)
        for i in range(1, self.terms + 1):
            # torch.distributions draws by the same function, but takes no generator.
            out.add_(torch._standard_gamma(shape, generator=generator), alpha=1.0 / i)
        return out

    def score(self, noise: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """Not known."""
        raise NotImplementedError("the density of SumOfGamma is not known, nor is its score")


def check_noise(noise: Any) -> None:
    """A noise is a value such as ``Gumbel()``."""
    if not isinstance(noise, AbstractNoise):
        hint = f"; make it a value: {noise.__name__}()" if isinstance(noise, type) else ""
        raise TypeError(f"noise must be Gaussian(), Gumbel(), Logistic() or SumOfGamma(parts), but got {noise!r}{hint}")
