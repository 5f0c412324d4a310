"""Backward rules, a file each."""

from optlayers.rules.base import AbstractRule, AbstractVertexRule, Context, Gradient, SecondGradient
from optlayers.rules.hard import Hard
from optlayers.rules.pipeline import Pipeline
from optlayers.rules.sparsemap import SparseMAP
from optlayers.rules.spigot import Spigot
from optlayers.rules.straight_through import StraightThrough
from optlayers.rules.structured_attention import StructuredAttention

__all__ = [
    "AbstractRule",
    "AbstractVertexRule",
    "Context",
    "Gradient",
    "Hard",
    "Pipeline",
    "SecondGradient",
    "SparseMAP",
    "Spigot",
    "StraightThrough",
    "StructuredAttention",
]
