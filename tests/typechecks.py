"""Shapes, dtypes and types, which are checked while the tests run: of which modules, and how.

Type checkers take an int for a float, and so does the check.
"""

import ast
import os
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook
from jaxtyping._import_hook import JaxtypingTransformer

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

ROOT = Path(__file__).parent.parent

KERNELS = "optlayers.solvers.kernels"
PLAIN = (f"{KERNELS}.dense", f"{KERNELS}.ties")
"""Kernels extend numba by functions that it keeps on disk with all that they refer to; these are of torch alone."""

DOORS = (
    "optlayers.auditing.audit",
    "optlayers.compilation.compiled",
    "optlayers.compilation.compiled_once",
    "optlayers.gibbs.distribution",
    "optlayers.elastic",
    "optlayers.batch.entries",
    "optlayers.gradient_monitor",
    "optlayers.layer",
    "optlayers.losses.base",
    "optlayers.losses.fenchel_young",
    "optlayers.losses.hinge",
    "optlayers.losses.perturbed",
    "optlayers.losses.regret",
    "optlayers.losses.regularized",
    "optlayers.losses.spo_plus",
    "optlayers.rules.objective",
    "optlayers.plots.arcs",
    "optlayers.plots.bars",
    "optlayers.plots.brackets",
    "optlayers.plots.canvas",
    "optlayers.plots.circles",
    "optlayers.plots.field",
    "optlayers.plots.graph",
    "optlayers.plots.heat",
    "optlayers.plots.lanes",
    "optlayers.plots.links",
    "optlayers.plots.moves",
    "optlayers.plots.path",
    "optlayers.plots.points",
    "optlayers.plots.shadow",
    "optlayers.plots.structure",
    "optlayers.family",
    "optlayers.polytope",
    "optlayers.regularizers.barrier",
    "optlayers.regularizers.base",
    "optlayers.regularizers.entropy",
    "optlayers.regularizers.euclidean",
    "optlayers.regularizers.tsallis",
    "optlayers.reporting.asked",
    "optlayers.reporting.study",
    "optlayers.rules.adaptive_imle",
    "optlayers.rules.central_path",
    "optlayers.rules.gumbel_straight_through",
    "optlayers.rules.hard",
    "optlayers.rules.hyperparameters",
    "optlayers.rules.identity",
    "optlayers.rules.imle",
    "optlayers.rules.interpolation",
    "optlayers.rules.lpgd",
    "optlayers.rules.noise",
    "optlayers.rules.perturb_and_map",
    "optlayers.rules.perturbed",
    "optlayers.rules.regularized",
    "optlayers.rules.score_function",
    "optlayers.rules.spigot",
    "optlayers.rules.spigot_ce",
    "optlayers.rules.spigot_eg",
    "optlayers.rules.with_parameters",
    "optlayers.gibbs.support",
    "optlayers.batch.shares",
    "optlayers.batch.sizes",
    "optlayers.solvers.auto",
    "optlayers.batch.source",
    "optlayers.solvers.highs",
    "optlayers.solvers.interior_point",
    "optlayers.solvers.oracle",
    "optlayers.common.tensors",
    "optlayers.testing.loss",
    "polytopes.sequence",
)
"""They check their arguments in words of their own, which tests read."""

OFTEN = (
    "optlayers.bound.graphs",
    "optlayers.bound.host",
    "optlayers.bound.host_evidence",
    "optlayers.bound.polytope",
    "optlayers.calls.call_part",
    "optlayers.autograd.differentiate",
    "optlayers.calls.layer_call",
    "optlayers.common.locks",
    "optlayers.sums.logspace",
    "optlayers.losses.call",
    "optlayers.losses.prediction",
    "optlayers.losses.question",
    "optlayers.common.modes",
    "optlayers.compilation.prepared",
    "optlayers.solution",
    "optlayers.solvers.addresses",
    "optlayers.solvers.batch",
    "optlayers.solvers.plan",
    "optlayers.solvers.pool",
    "optlayers.solvers.scored_rows",
    "optlayers.testing.failures",
    "optlayers.testing.oracle",
)
"""Every call goes through them many times: a check takes some 20 µs, and theirs would make tests half as long again. So
only `make proofs` checks them, which sets"""
EVERYTHING = "OPTLAYERS_CHECK_EVERYTHING"
"""to something."""

UNCHECKABLE = ("optlayers.bound.base", "optlayers.common.caches", "optlayers.solvers.models")
"""The checker evaluates a mapping that is worked out when it is looked at, and takes neither Self nor a protocol."""


def checked_modules() -> list[str]:
    """The modules of both packages, without those above."""
    out = DOORS + UNCHECKABLE + (() if os.environ.get(EVERYTHING) else OFTEN)
    found = []
    for package in ("optlayers", "polytopes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            left_out = name in out or (name.startswith(KERNELS) and name not in PLAIN)
            if path.stem != "__init__" and not left_out:
                found.append(name)
    return found


def install() -> None:
    """Check what is imported from now on.

    A function without annotations has nothing to be checked, and is left as it is: numba compiles such functions under
    their decorators, and it cannot compile one with checks around it. One within another would get its checks anew in
    every call, which takes a millisecond: `make proofs` has them.
    """
    visit = JaxtypingTransformer.visit_FunctionDef

    def visit_annotated(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.AST:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        if node.returns is None and not any(argument is not None and argument.annotation for argument in every):
            return node
        if any(isinstance(parent, ast.FunctionDef) for parent in self._parents) and not os.environ.get(EVERYTHING):
            return node
        return visit(self, node)

    JaxtypingTransformer.visit_FunctionDef = visit_annotated
    install_import_hook(checked_modules(), "typechecks.checked")
