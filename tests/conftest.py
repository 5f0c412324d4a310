"""Shapes and dtypes in annotations are checked while the tests run.

Not those of the doors (Polytope, compile_polytope, OptLayer, rules, solvers): they check their arguments themselves, in
words of their own that tests read.
"""

from jaxtyping import install_import_hook

install_import_hook(
    [
        "optlayers.diagnosis",
        "optlayers.presolve",
        "optlayers.rules.base",
        "optlayers.rules.pipeline",
        "optlayers.rules.sparsemap",
        "optlayers.rules.straight_through",
        "optlayers.solvers.base",
        "optlayers.solvers.ask",
        "optlayers.solvers.certify",
        "optlayers.solvers.derivative",
        "optlayers.solvers.polish",
        "optlayers.solvers.rescue",
        "optlayers.solvers.vertices",
        "optlayers.standard_form",
    ],
    "beartype.beartype",
)
