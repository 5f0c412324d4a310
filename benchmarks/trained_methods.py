"""The ways to learn by decisions that optlayers and PyEPO both have: a loss from either side for every one of them.

PyEPO minimizes costs and draws noise for them; ours maximizes scores, the costs negated. Strengths, samples and scales
are PyEPO's defaults. Rules give a decision, and the loss of it is the one of PyEPO's tutorials, but summed over the
parts of an instance where these take the mean: with that the gradient that a rule gets is so small that most of its
answers are 0. All losses are means over the batch.

The methods are the same but for these:

- Adaptive I-MLE: ours has a step for every instance and aims at a number of parts that change, PyEPO has one step for
  the batch, which can only grow.
- Projection (SparseMAP): PyEPO approaches it by Frank-Wolfe in float32 until the gap is below 1e-6 or for 10,000 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

import optlayers as ol

__all__ = ["METHODS", "Known", "Loss", "Method", "OnCosts"]

SAMPLES, SIGMA, STRENGTH = 10, 1.0, 10.0
KAPPA = 5
"""Of the noise of I-MLE, a sum of gamma distributed numbers."""
WIDTH = 0.1
"""Of the difference quotient of the perturbation gradient."""


@dataclass(frozen=True)
class Known:
    """What is known of a batch: true costs and best paths ``(batch, parts)``, and what these cost, ``(batch,)``."""

    costs: Tensor
    paths: Tensor
    least: Tensor

    def at(self, index: Tensor) -> Known:
        """Of some instances."""
        return Known(self.costs[index], self.paths[index], self.least[index])


Loss = Callable[[Tensor, Known], Tensor]
"""From predicted costs ``(batch, parts)`` to the mean of losses."""


@dataclass(frozen=True)
class Method:
    """``ours(compiled, generator)`` and ``theirs(model, seed)`` make a loss; noise is drawn by generator or seed.

    A method is ``random`` when it draws noise; one that is ``positive`` wants predicted costs above 0.
    """

    name: str
    ours: Callable[[ol.CompiledPolytope, torch.Generator], Loss]
    theirs: Callable[[Any, int], Loss]
    random: bool = False
    positive: bool = False


@final
@dataclass(frozen=True)
class OnCosts(ol.AbstractNoise):
    """Noise that is added to costs, as scores see it: negated."""

    noise: ol.AbstractNoise = field(default_factory=ol.Gumbel)

    @property
    def has_score(self) -> bool:  # type: ignore[override]
        """Where that of the noise is known."""
        return self.noise.has_score

    @property
    def mean(self) -> float:  # type: ignore[override]
        """That of the noise, negated."""
        return -self.noise.mean

    def _draw(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.noise._draw(out, generator).neg_()

    def score(self, noise: Tensor) -> Tensor:
        """That of the noise, negated."""
        return -self.noise.score(-noise)


def _regret(decided: Tensor, known: Known) -> Tensor:
    """What decisions cost more than the best ones."""
    return ((known.costs * decided).sum(1) - known.least).abs().mean()


def _distance(decided: Tensor, known: Known) -> Tensor:
    """The sum of absolute differences from the best decision."""
    return (decided - known.paths).abs().sum(1).mean()


def _square(decided: Tensor, known: Known) -> Tensor:
    """The sum of squared differences from the best decision."""
    return (decided - known.paths).square().sum(1).mean()


def _through(
    rule: ol.AbstractRule, measure: Callable[[Tensor, Known], Tensor]
) -> Callable[[ol.CompiledPolytope, torch.Generator], Loss]:
    """What a rule decides, measured."""

    def make(compiled: ol.CompiledPolytope, generator: torch.Generator) -> Loss:
        decide = ol.OptLayer(compiled, rule)
        drawn = {"generator": generator} if rule.draws else {}
        return lambda costs, known: measure(decide(-costs, **drawn), known)

    return make


def _their(
    name: str, measure: Callable[[Tensor, Known], Tensor], seeded: bool = False, **settings: Any
) -> Callable[[Any, int], Loss]:
    """What a module of PyEPO decides, measured."""

    def make(model: Any, seed: int) -> Loss:
        from pyepo import func

        decide = getattr(func, name)(model, **settings, **({"seed": seed} if seeded else {}))
        return lambda costs, known: measure(decide(costs), known)

    return make


def _their_implicit(name: str, **settings: Any) -> Callable[[Any, int], Loss]:
    """I-MLE, whose noise takes the seed."""

    def make(model: Any, seed: int) -> Loss:
        from pyepo import func
        from pyepo.func.utils import sumGammaDistribution

        noise = sumGammaDistribution(kappa=KAPPA, seed=seed)
        decide = getattr(func, name)(model, SAMPLES, SIGMA, distribution=noise, **settings)
        return lambda costs, known: _distance(decide(costs), known)

    return make


def _their_loss(name: str, *given: str, seeded: bool = False, **settings: Any) -> Callable[[Any, int], Loss]:
    """A loss of PyEPO that is given some of what is known."""

    def make(model: Any, seed: int) -> Loss:
        from pyepo import func

        loss = getattr(func, name)(model, **settings, **({"seed": seed} if seeded else {}))
        return lambda costs, known: loss(costs, *(getattr(known, each) for each in given))

    return make


def _spo_plus(compiled: ol.CompiledPolytope, _: torch.Generator) -> Loss:
    loss = ol.SPOPlusLoss(compiled, validate=False)
    return lambda costs, known: loss(-costs, -known.costs, decisions=known.paths)


def _perturbation_gradient(compiled: ol.CompiledPolytope, _: torch.Generator) -> Loss:
    """The difference quotient of the least cost, between predicted costs and these less a little of the true ones."""
    value = ol.OptimalValue(compiled)
    return lambda costs, known: ((value(WIDTH * known.costs - costs) - value(-costs)) / WIDTH).mean()


def _perturbed_loss(compiled: ol.CompiledPolytope, generator: torch.Generator) -> Loss:
    loss = ol.PerturbedFenchelYoungLoss(compiled, samples=SAMPLES, scale=SIGMA, validate=False)
    return lambda costs, known: loss(-costs, known.paths, generator=generator)


def _sparsemap_loss(compiled: ol.CompiledPolytope, _: torch.Generator) -> Loss:
    loss = ol.SparseMAPLoss(compiled, validate=False)
    return lambda costs, known: loss(-costs, known.paths)


IMPLICIT = {"samples": SAMPLES, "scale": SIGMA, "noise": OnCosts(ol.SumOfGamma(KAPPA))}
DRAWN = {"n_samples": SAMPLES, "sigma": SIGMA, "seeded": True}
METHODS = [
    Method("SPO+", _spo_plus, _their_loss("SPOPlus", "costs", "paths", "least")),
    Method(
        "perturbation gradient",
        _perturbation_gradient,
        _their_loss("perturbationGradient", "costs", sigma=WIDTH),
    ),
    Method("blackbox", _through(ol.Interpolation(STRENGTH), _regret), _their("blackboxOpt", _regret, lambd=STRENGTH)),
    Method(
        "negative identity",
        _through(ol.Identity(center=False, normalize=False), _regret),
        _their("negativeIdentity", _regret),
    ),
    Method(
        "perturbed optimizer",
        _through(ol.PerturbedAdditive(SAMPLES, SIGMA), _square),
        _their("perturbedOpt", _square, **DRAWN),
        random=True,
    ),
    Method(
        "perturbed optimizer, times",
        _through(ol.PerturbedMultiplicative(SAMPLES, SIGMA), _square),
        _their("perturbedOptMul", _square, **DRAWN),
        random=True,
        positive=True,
    ),
    Method(
        "perturbed Fenchel-Young",
        _perturbed_loss,
        _their_loss("perturbedFenchelYoung", "paths", **DRAWN),
        random=True,
    ),
    Method(
        "I-MLE",
        _through(ol.IMLE(strength=STRENGTH, **IMPLICIT), _distance),
        _their_implicit("implicitMLE", lambd=STRENGTH),
        random=True,
    ),
    Method(
        "adaptive I-MLE",
        _through(ol.AdaptiveIMLE(**IMPLICIT), _distance),
        _their_implicit("adaptiveImplicitMLE"),
        random=True,
    ),
    Method("projection", _through(ol.SparseMAP(), _square), _their("regularizedFrankWolfeOpt", _square)),
    Method("projection's loss", _sparsemap_loss, _their_loss("regularizedFrankWolfeFenchelYoung", "paths")),
]
