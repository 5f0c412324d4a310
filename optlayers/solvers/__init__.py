"""Solvers: a file each, and what they share."""

from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver, Answer, Instances
from optlayers.solvers.clarabel import Clarabel
from optlayers.solvers.cvxpylayers import CvxpyLayers
from optlayers.solvers.highs import Highs
from optlayers.solvers.oracle import Oracle

__all__ = [
    "AbstractMaximizer",
    "AbstractProjector",
    "AbstractSolver",
    "Answer",
    "Clarabel",
    "CvxpyLayers",
    "Highs",
    "Instances",
    "Oracle",
]
