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
    Context,
    Gradient,
    Hard,
    Pipeline,
    SecondGradient,
    SparseMAP,
    Spigot,
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
    "Instances",
    "InteriorPoint",
    "OptLayer",
    "Oracle",
    "Pipeline",
    "Polytope",
    "SecondGradient",
    "Solution",
    "SolveError",
    "SparseMAP",
    "Spigot",
    "StandardForm",
    "Status",
    "StraightThrough",
    "StructuredAttention",
    "Tangent",
    "compile_polytope",
    "testing",
]
__version__ = "0.1.0"
