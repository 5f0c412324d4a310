"""Declare a polytope in cvxpy; find its best vertex or nearest point for a batch; differentiate by a rule."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from optlayers.bound.base import AbstractBoundPolytope, Tangent
from optlayers.bound.polytope import BoundPolytope
from optlayers.compilation.compiled import CompiledPolytope, compile_polytope
from optlayers.compiled_oracle import CompiledOracle
from optlayers.elastic import Elastic
from optlayers.family import Family
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.gibbs.distribution import Gibbs
from optlayers.gradient_monitor import GradientMonitor
from optlayers.layer import OptLayer
from optlayers.losses import (
    AbstractFenchelYoungLoss,
    AbstractLoss,
    CRFLoss,
    FenchelYoungLoss,
    OptimalValue,
    PerturbedFenchelYoungLoss,
    Prediction,
    SparseMAPLoss,
    SPOPlusLoss,
    StructuredHingeLoss,
    StructuredPerceptronLoss,
    regret,
)
from optlayers.polytope import Polytope
from optlayers.regularizers import AbstractRegularizer, Barrier, Declared, Entropy, Euclidean, Tsallis
from optlayers.rules import (
    IMLE,
    LPGD,
    AbstractNoise,
    AbstractRule,
    AbstractVertexRule,
    AdaptiveIMLE,
    AdaptiveStep,
    CentralPath,
    Context,
    Gaussian,
    Gradient,
    Gumbel,
    GumbelStraightThrough,
    Hard,
    Identity,
    Interpolation,
    Logistic,
    MirrorSpigot,
    PerturbAndMAP,
    PerturbedAdditive,
    PerturbedMultiplicative,
    Pipeline,
    Regularized,
    SampledMarginals,
    ScoreFunction,
    SecondGradient,
    SparseMAP,
    Spigot,
    SpigotCE,
    SpigotEG,
    StraightThrough,
    StructuredAttention,
    SumOfGamma,
    WithParameters,
)
from optlayers.solution import Failure, Solution, SolveError, Status
from optlayers.solvers import (
    AbstractMaximizer,
    AbstractProjector,
    AbstractSolver,
    ActiveSet,
    Answer,
    Auto,
    BranchAndBound,
    Clarabel,
    ConeNewton,
    CvxpyLayers,
    Decomposition,
    Dense,
    Diagram,
    DualNewton,
    Highs,
    Instances,
    InteriorPoint,
    Oracle,
)
from optlayers.sums.logspace import log_add, log_sum

if TYPE_CHECKING:
    from optlayers import plots, testing
    from optlayers.auditing import GradientAudit, audit
    from optlayers.reporting import PolytopeReport, report

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
    "AbstractBoundPolytope",
    "AbstractFenchelYoungLoss",
    "AbstractLoss",
    "AbstractMaximizer",
    "AbstractProjector",
    "AbstractRegularizer",
    "AbstractRule",
    "AbstractSolver",
    "AbstractVertexRule",
    "ActiveSet",
    "AdaptiveStep",
    "Answer",
    "Auto",
    "Barrier",
    "BranchAndBound",
    "BoundPolytope",
    "CRFLoss",
    "CentralPath",
    "Clarabel",
    "CompiledOracle",
    "CompiledPolytope",
    "Context",
    "ConeNewton",
    "CvxpyLayers",
    "DeclarationError",
    "Declared",
    "Decomposition",
    "Dense",
    "Diagram",
    "DualNewton",
    "Elastic",
    "Entropy",
    "Euclidean",
    "Failure",
    "Family",
    "FenchelYoungLoss",
    "Gibbs",
    "Gradient",
    "GradientAudit",
    "GradientMonitor",
    "Hard",
    "Highs",
    "Identity",
    "Instances",
    "InteriorPoint",
    "Interpolation",
    "LPGD",
    "MirrorSpigot",
    "OptLayer",
    "OptimalValue",
    "Oracle",
    "Pipeline",
    "Polytope",
    "PerturbedFenchelYoungLoss",
    "PolytopeReport",
    "Prediction",
    "Regularized",
    "SPOPlusLoss",
    "SecondGradient",
    "Solution",
    "SolveError",
    "SparseMAP",
    "SparseMAPLoss",
    "Spigot",
    "SpigotCE",
    "SpigotEG",
    "StandardForm",
    "Status",
    "StraightThrough",
    "StructuredAttention",
    "WithParameters",
    "StructuredHingeLoss",
    "StructuredPerceptronLoss",
    "Tangent",
    "Tsallis",
    "audit",
    "compile_polytope",
    "log_add",
    "log_sum",
    "plots",
    "regret",
    "report",
    "testing",
]
__version__ = "0.2.0"

LATER = {"GradientAudit": "auditing", "PolytopeReport": "reporting", "audit": "auditing", "report": "reporting"}
"""Names that a model does not need when it trains, and whose modules are imported when they are first asked for."""


def __getattr__(name: str) -> Any:
    if name in ("plots", "testing"):
        return import_module(f"optlayers.{name}")
    if name in LATER:
        found = globals()[name] = getattr(import_module(f"optlayers.{LATER[name]}"), name)
        return found
    raise AttributeError(f"module 'optlayers' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What users call; rooms of the package are found by their own names."""
    return sorted(__all__)
