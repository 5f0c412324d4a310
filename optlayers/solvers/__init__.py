"""Solvers: a file each, and what they share."""

from optlayers.mixture import Decomposition
from optlayers.solvers.active_set import ActiveSet
from optlayers.solvers.auto import Auto
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver, Answer, Instances
from optlayers.solvers.clarabel import Clarabel
from optlayers.solvers.cvxpylayers import CvxpyLayers
from optlayers.solvers.dense import Dense
from optlayers.solvers.highs import Highs
from optlayers.solvers.interior_point import InteriorPoint
from optlayers.solvers.newton import DualNewton
from optlayers.solvers.oracle import Oracle

__all__ = [
    "AbstractMaximizer",
    "AbstractProjector",
    "AbstractSolver",
    "ActiveSet",
    "Answer",
    "Auto",
    "Clarabel",
    "CvxpyLayers",
    "Decomposition",
    "Dense",
    "DualNewton",
    "Highs",
    "Instances",
    "InteriorPoint",
    "Oracle",
]
