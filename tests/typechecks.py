"""Shapes, dtypes and types, which are checked while the tests run: of which modules, and how.

Type checkers take an int for a float, and so does the check.
"""

from pathlib import Path

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

ROOT = Path(__file__).parent.parent

COMPILED = ("optlayers.solvers.kernels", "polytopes")
"""numba compiles the function under its decorator, and it cannot compile one with checks around it."""

DOORS = (
    "optlayers.compiled",
    "optlayers.compiled_once",
    "optlayers.distribution",
    "optlayers.losses.base",
    "optlayers.losses.fenchel_young",
    "optlayers.losses.hinge",
    "optlayers.losses.perturbed",
    "optlayers.losses.regret",
    "optlayers.losses.spo_plus",
    "optlayers.objective",
    "optlayers.rules.adaptive_imle",
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
    "optlayers.rules.score_function",
    "optlayers.rules.spigot",
    "optlayers.rules.spigot_ce",
    "optlayers.rules.spigot_eg",
    "optlayers.support",
    "optlayers.testing.loss",
)
"""They check their arguments in words of their own, which tests read."""

OFTEN = (
    "optlayers.bound.host",
    "optlayers.bound.polytope",
    "optlayers.differentiate",
    "optlayers.entries",
    "optlayers.layer",
    "optlayers.locks",
    "optlayers.logspace",
    "optlayers.losses.call",
    "optlayers.losses.prediction",
    "optlayers.losses.question",
    "optlayers.modes",
    "optlayers.polytope",
    "optlayers.prepared",
    "optlayers.sizes",
    "optlayers.solution",
    "optlayers.solvers.addresses",
    "optlayers.solvers.auto",
    "optlayers.solvers.batch",
    "optlayers.solvers.highs",
    "optlayers.solvers.interior_point",
    "optlayers.solvers.oracle",
    "optlayers.solvers.plan",
    "optlayers.solvers.pool",
    "optlayers.solvers.scored_rows",
    "optlayers.tensors",
    "optlayers.testing.failures",
    "optlayers.testing.oracle",
)
"""Every call goes through them many times: a check takes some 20 µs, and theirs would make tests half as long again."""

UNCHECKABLE = ("optlayers.bound.base", "optlayers.caches", "optlayers.solvers.models")
"""The checker evaluates a mapping that is worked out when it is looked at, and takes neither Self nor a protocol."""


def checked_modules() -> list[str]:
    """The modules of both packages, without those above."""
    found = []
    for package in ("optlayers", "polytopes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if path.stem != "__init__" and not name.startswith(COMPILED) and name not in DOORS + OFTEN + UNCHECKABLE:
                found.append(name)
    return found
