"""Backward rules, a file each."""

from optlayers.rules.base import AbstractRule, AbstractVertexRule, Context, Gradient
from optlayers.rules.hard import Hard
from optlayers.rules.identity import Identity
from optlayers.rules.interpolation import Interpolation
from optlayers.rules.pipeline import Pipeline
from optlayers.rules.sparsemap import SparseMAP
from optlayers.rules.spigot import AdaptiveStep, Spigot
from optlayers.rules.spigot_ce import SpigotCE
from optlayers.rules.spigot_eg import SpigotEG
from optlayers.rules.straight_through import StraightThrough
from optlayers.rules.structured_attention import StructuredAttention

__all__ = [
    "AbstractRule",
    "AbstractVertexRule",
    "AdaptiveStep",
    "Context",
    "Gradient",
    "Hard",
    "Identity",
    "Interpolation",
    "Pipeline",
    "SparseMAP",
    "Spigot",
    "SpigotCE",
    "SpigotEG",
    "StraightThrough",
    "StructuredAttention",
]
