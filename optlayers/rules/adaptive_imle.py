"""Adaptive implicit maximum likelihood: the step is found while training."""

from __future__ import annotations

from collections.abc import Mapping
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

__all__ = ["AdaptiveIMLE"]

CHANGED = 1e-6
"""Vertices differ in a part when they do by more than this; solvers round."""


@final
@dataclass(frozen=True)
class AdaptiveIMLE(AbstractRule):
    r""":class:`IMLE` with a λ that adapts, so that on average ``target`` parts per sample change between structures.

    For each instance :math:`\lambda = \alpha \|s\| / \|g\|` over the parts that can move, which makes α free of the
    scales of scores and gradients. After each backward pass, with m the mean number of parts in which the structures at
    both ends differ,

    .. math:: \bar m \leftarrow \gamma \bar m + (1 - \gamma) m, \qquad
        \alpha \leftarrow \max(0, \alpha \pm \eta),

    up where the moving average :math:`\bar m` is below the target and down where it is not. Both are buffers of the
    layer, saved by ``state_dict``. Instances without a gradient, or with scores that are all 0, get the gradient 0 (as
    their λ has no size) and have no part in the average. Use it in place of :class:`IMLE` where λ would have to be
    searched for.

    Parameters
    ----------
    samples : structures per instance, 1 by default; their mean goes forward.
    scale : τ, how large the noise is, 1.0 by default.
    noise : its distribution, ``Gumbel()`` by default.
    target : 1.0 by default: how many parts per sample shall change. More are more bias and less variance.
    initial : the first α, 1.0 by default.
    step : η, 1e-3 by default.
    decay : γ, 0.9 by default.
    symmetric : a central difference, :math:`\frac1{2\lambda} [\hat z(s + \lambda g + \tau \epsilon_k) - \hat z(s -
        \lambda g + \tau \epsilon_k)]`, of less bias for twice the cost of backward; False by default.

    References
    ----------
    Minervini, Franceschi and Niepert (2023), Adaptive perturbation-based gradient estimation for discrete latent
    variable models, AAAI.
    """

    samples: int = 1
    target: float = 1.0
    scale: float = 1.0
    noise: AbstractNoise = field(default_factory=Gumbel)
    initial: float = 1.0
    step: float = 1e-3
    decay: float = 0.9
    symmetric: bool = False

    draws = True
    differentiates_parameters = False

    def __post_init__(self) -> None:
        at_least_one(samples=self.samples)
        positive(target=self.target, scale=self.scale, initial=self.initial, step=self.step)
        check_noise(self.noise)
        if isinstance(self.decay, bool) or not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be at least 0 and below 1, but got {self.decay}")

    def initial_state(self) -> dict[str, Tensor]:
        """``alpha``, and ``changed``, the moving average, which begins on the target."""
        return {
            "alpha": torch.tensor(self.initial, dtype=torch.float64, device="cpu"),
            "changed": torch.tensor(self.target, dtype=torch.float64, device="cpu"),
        }

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The mean of the best vertices."""
        noise = self.noise.draw((self.samples, *scores.shape), context.generator, scores.device)
        perturbed = torch.add(scores, noise, alpha=self.scale)
        best = polytope.repeated(self.samples).maximize(perturbed.flatten(0, 1))
        solution = with_one_verdict(best, self.samples)
        return mean_of_samples(solution), (scores, perturbed, solution.value)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The mean difference over λ, after which α takes its step."""
        scores, perturbed, vertices = saved
        length = torch.where(polytope.movable, scores, 0.0).norm(dim=1)
        slope = torch.where(polytope.movable, grad, 0.0).norm(dim=1)
        alpha = context.state["alpha"].to(scores.device, torch.float64)
        strength = torch.where(slope > 0.0, alpha * length / slope, 0.0)[:, None]
        solution = self._ends(polytope, perturbed, strength * grad)
        worse = solution.value[self.samples :] if self.symmetric else vertices
        difference = worse - solution.value[: self.samples]
        counts = (length > 0.0) & (slope > 0.0) & solution.ok
        changed = (difference.abs() > CHANGED).sum(dim=2).to(torch.float64).mean(dim=0)
        seen = torch.stack([torch.where(counts, changed, 0.0).sum(), counts.sum().to(torch.float64)])
        width = 2.0 * strength if self.symmetric else strength
        # Where λ is 0 both ends are the same, and their difference is 0.
        gradient = difference.mean(dim=0) / torch.where(width > 0.0, width, 1.0)
        return Gradient(gradient, seen=seen)

    def adapt(self, state: Mapping[str, Tensor], seen: Float64[Tensor, " sums"]) -> None:
        """By how many parts have changed, and of how many instances; without a look at the numbers, which may be on an
        accelerator."""
        alpha, changed = state["alpha"], state["changed"]
        some = seen[1] > 0.0
        now = self.decay * changed.to(seen) + (1.0 - self.decay) * seen[0] / seen[1].clamp(min=1.0)
        moved = (alpha.to(seen) + torch.where(now < self.target, self.step, -self.step)).clamp(min=0.0)
        changed.copy_(torch.where(some, now, changed.to(seen)))
        alpha.copy_(torch.where(some, moved, alpha.to(seen)))

    def _ends(
        self,
        polytope: AbstractBoundPolytope,
        perturbed: Float64[Tensor, "samples batch size"],
        move: Float64[Tensor, "batch size"],
    ) -> Solution:
        """Best vertices a step against the gradient, and behind them, if symmetric, those a step along it."""
        asked = torch.cat([perturbed - move, perturbed + move]) if self.symmetric else perturbed - move
        return with_one_verdict(polytope.repeated(len(asked)).maximize(asked.flatten(0, 1)), len(asked))
