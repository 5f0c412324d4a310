"""Backward rules, a file each."""

from optlayers.rules.adaptive_imle import AdaptiveIMLE
from optlayers.rules.base import AbstractRule, AbstractVertexRule, Context, Gradient, SecondGradient
from optlayers.rules.central_path import CentralPath
from optlayers.rules.gumbel_straight_through import GumbelStraightThrough
from optlayers.rules.hard import Hard
from optlayers.rules.identity import Identity
from optlayers.rules.imle import IMLE
from optlayers.rules.interpolation import Interpolation
from optlayers.rules.lpgd import LPGD
from optlayers.rules.mirror_spigot import MirrorSpigot
from optlayers.rules.noise import AbstractNoise, Gaussian, Gumbel, Logistic, SumOfGamma
from optlayers.rules.perturb_and_map import PerturbAndMAP
from optlayers.rules.perturbed import PerturbedAdditive, PerturbedMultiplicative
from optlayers.rules.pipeline import Pipeline
from optlayers.rules.regularized import Regularized
from optlayers.rules.sampled_marginals import SampledMarginals
from optlayers.rules.score_function import ScoreFunction
from optlayers.rules.sparsemap import SparseMAP
from optlayers.rules.spigot import AdaptiveStep, Spigot
from optlayers.rules.spigot_ce import SpigotCE
from optlayers.rules.spigot_eg import SpigotEG
from optlayers.rules.straight_through import StraightThrough
from optlayers.rules.structured_attention import StructuredAttention
from optlayers.rules.with_parameters import WithParameters

__all__ = [
    "AbstractNoise",
    "AdaptiveIMLE",
    "Gaussian",
    "Gumbel",
    "GumbelStraightThrough",
    "IMLE",
    "Logistic",
    "PerturbAndMAP",
    "PerturbedAdditive",
    "PerturbedMultiplicative",
    "SampledMarginals",
    "ScoreFunction",
    "SumOfGamma",
    "AbstractRule",
    "AbstractVertexRule",
    "AdaptiveStep",
    "CentralPath",
    "Context",
    "Gradient",
    "Hard",
    "Identity",
    "Interpolation",
    "LPGD",
    "MirrorSpigot",
    "Pipeline",
    "Regularized",
    "SecondGradient",
    "SparseMAP",
    "Spigot",
    "SpigotCE",
    "SpigotEG",
    "StraightThrough",
    "StructuredAttention",
    "WithParameters",
]
