"""Solvers: a file each, and what they share."""

from optlayers.mixture import Decomposition
from optlayers.solvers.active_set import ActiveSet
from optlayers.solvers.auto import Auto
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver, Answer, Instances
from optlayers.solvers.branch_and_bound import BranchAndBound
from optlayers.solvers.clarabel import Clarabel
from optlayers.solvers.cone_newton import ConeNewton
from optlayers.solvers.cvxpylayers import CvxpyLayers
from optlayers.solvers.dense import Dense
from optlayers.solvers.diagram import Diagram
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
    "BranchAndBound",
    "Clarabel",
    "ConeNewton",
    "CvxpyLayers",
    "Decomposition",
    "Dense",
    "Diagram",
    "DualNewton",
    "Highs",
    "Instances",
    "InteriorPoint",
    "Oracle",
]
