"""Declare a polytope in cvxpy; find its best vertex or nearest point for a batch; differentiate by a rule."""

from optlayers import testing
from optlayers.bound import AbstractBoundPolytope, Tangent
from optlayers.compiled import BoundPolytope, CompiledPolytope, compile_polytope
from optlayers.layer import OptLayer
from optlayers.oracle import CompiledOracle
from optlayers.polytope import Family, Polytope
from optlayers.rules import (
    AbstractRule,
    AbstractVertexRule,
    AdaptiveStep,
    Context,
    Gradient,
    Hard,
    Identity,
    Interpolation,
    Pipeline,
    SparseMAP,
    Spigot,
    SpigotCE,
    SpigotEG,
    StraightThrough,
    StructuredAttention,
)
from optlayers.solution import Failure, Solution, SolveError, Status
from optlayers.solvers import (
    AbstractMaximizer,
    AbstractProjector,
    AbstractSolver,
    ActiveSet,
    Answer,
    Auto,
    Clarabel,
    CvxpyLayers,
    Decomposition,
    Dense,
    DualNewton,
    Highs,
    Instances,
    InteriorPoint,
    Oracle,
)
from optlayers.standard_form import DeclarationError, StandardForm

__all__ = [
    "AbstractBoundPolytope",
    "AbstractMaximizer",
    "AbstractProjector",
    "AbstractRule",
    "AbstractSolver",
    "AbstractVertexRule",
    "ActiveSet",
    "AdaptiveStep",
    "Answer",
    "Auto",
    "BoundPolytope",
    "Clarabel",
    "CompiledOracle",
    "CompiledPolytope",
    "Context",
    "CvxpyLayers",
    "DeclarationError",
    "Decomposition",
    "Dense",
    "DualNewton",
    "Failure",
    "Family",
    "Gradient",
    "Hard",
    "Highs",
    "Identity",
    "Instances",
    "InteriorPoint",
    "Interpolation",
    "OptLayer",
    "Oracle",
    "Pipeline",
    "Polytope",
    "Solution",
    "SolveError",
    "SparseMAP",
    "Spigot",
    "SpigotCE",
    "SpigotEG",
    "StandardForm",
    "Status",
    "StraightThrough",
    "StructuredAttention",
    "Tangent",
    "compile_polytope",
    "testing",
]
__version__ = "0.1.0"
