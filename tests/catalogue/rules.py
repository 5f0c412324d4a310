"""Rules, each with settings that contracts are crossed over."""

from __future__ import annotations

import optlayers as ol

RULES: list[ol.AbstractRule] = [
    ol.Pipeline(),
    ol.StraightThrough(),
    ol.Identity(),
    ol.Interpolation(2.0),
    ol.Spigot(),
    ol.Spigot(0.5, steps=3),
    ol.Spigot(ol.AdaptiveStep(), clip_norm=2.0),
    ol.SpigotCE(0.7),
    ol.SpigotEG(0.7),
    ol.SpigotCE(0.7, at="marginals"),
    ol.SpigotEG(0.7, at="marginals"),
    ol.LPGD(0.8),
    ol.LPGD(0.8, smoothing=0.5, side="both"),
    ol.SparseMAP(),
    ol.StructuredAttention(),
    ol.Hard(ol.SparseMAP()),
    ol.Hard(ol.StructuredAttention()),
    ol.WithParameters(ol.Spigot()),
    ol.GumbelStraightThrough(temperature=0.5),
    ol.PerturbedAdditive(samples=2),
    ol.PerturbedMultiplicative(samples=2),
    ol.PerturbAndMAP(ol.Spigot(), noise=ol.SumOfGamma(3)),
    ol.PerturbAndMAP(ol.SparseMAP()),
    ol.IMLE(samples=2),
    ol.AdaptiveIMLE(samples=2, symmetric=True),
    ol.ScoreFunction(samples=2),
    ol.SampledMarginals(),
]
RULES_BY_CONSTRAINTS: list[ol.AbstractRule] = [
    ol.Regularized(ol.Entropy(0.5)),
    ol.Regularized(ol.Tsallis(1.5)),
    ol.Regularized(ol.Euclidean(0.3)),
    ol.Regularized(ol.Barrier(0.1)),
    ol.CentralPath(0.1),
    ol.MirrorSpigot(ol.Tsallis(1.5), step_size=0.5),
]
"""Those for polytopes that constraints describe."""
EVERY_RULE = [*RULES, *RULES_BY_CONSTRAINTS]
PLAIN = [rule for rule in EVERY_RULE if not rule.needs_objective]
"""Whose layers give a structure for each instance, without losses."""
DETERMINISTIC = [rule for rule in PLAIN if not rule.draws]
"""Which draw nothing, too."""
REPEATABLE = [rule for rule in DETERMINISTIC if not rule.initial_state()]
"""Which adapt to nothing either: the same question has the same answer and the same gradient."""
NOISES: list[ol.AbstractNoise] = [
    ol.Gaussian(),
    ol.Gumbel(),
    ol.Logistic(),
    ol.SumOfGamma(3),
    ol.SumOfGamma(5.0, terms=4),
]
"""What rules draw."""
