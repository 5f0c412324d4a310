"""Every contract, crossed: polytopes with solvers, rules and losses; and whether something is in none of them."""

import inspect
from collections.abc import Iterable

import pytest
from catalogue import (
    BY_CONSTRAINTS,
    LOSSES,
    NOISES,
    POLYTOPES,
    RULES,
    RULES_BY_CONSTRAINTS,
    SOLVERS,
    VALUES,
    Entry,
    LossCase,
    declared_regularizer,
    solvers_of,
)

import optlayers as ol
import polytopes
from optlayers.testing import check_log_partition, check_loss, check_oracle, check_polytope, check_rule, check_solver

WITH_ORACLE = [entry for entry in POLYTOPES if entry.polytope.oracle is not None]
WITHOUT_ANY = [entry for entry in POLYTOPES if entry.polytope.oracle is None and not entry.name.endswith(", declared")]
"""Of which the catalogue knows no oracle: integers, constraints on demand, rows alone."""
WITH_LOG_PARTITION = [entry for entry in WITH_ORACLE if entry.polytope.log_partition is not None]
# Of every solver, rule and loss all polytopes in a row: an even choice of cases leaves out none of them.
INTEGERS = [entry for entry in POLYTOPES if entry.polytope.has_integers]
WITH_SOLVERS = [(solver, entry) for entry in (*WITH_ORACLE, *INTEGERS) for solver in solvers_of(entry)]
WITH_SOLVERS.sort(key=lambda case: type(case[0]).__name__)
ANY_SOLVER = (ol.Pipeline, ol.StraightThrough, ol.Spigot, ol.SparseMAP, ol.StructuredAttention, ol.Hard)
"""Rules that meet polytopes without oracles, too: other rules ask the same questions of them."""
WITH_RULES = [
    (rule, entry)
    for rule in RULES
    for entry in (POLYTOPES if isinstance(rule, ANY_SOLVER) else [*WITH_ORACLE, *WITHOUT_ANY])
]
WITH_RULES += [(rule, entry) for rule in RULES_BY_CONSTRAINTS for entry in BY_CONSTRAINTS if entry.count > 1]
WITH_RULES += [
    (ol.Regularized(declared_regularizer(entry.polytope)), entry)
    for entry in BY_CONSTRAINTS
    if entry.name in ("simplex", "cube, declared", "matching, declared")
]
WITH_LOSSES = [(loss, entry) for loss in (*LOSSES, *VALUES) for entry in POLYTOPES if loss.takes(entry)]


def name(case: object) -> str:
    return type(case).__name__ if isinstance(case, ol.AbstractSolver) else repr(case)


@pytest.mark.many(7)
@pytest.mark.parametrize("entry", [*WITH_ORACLE, *WITHOUT_ANY], ids=repr)
def test_declarations(entry: Entry):
    check_polytope(entry.polytope, samples=6, integral=True, **entry.parameters)


@pytest.mark.many(5)
@pytest.mark.parametrize("entry", WITH_ORACLE, ids=repr)
def test_oracles(entry: Entry):
    check_oracle(entry.polytope, **entry.parameters)


@pytest.mark.many(5)
@pytest.mark.parametrize("entry", WITH_LOG_PARTITION, ids=repr)
def test_log_partitions(entry: Entry):
    check_log_partition(entry.polytope, **entry.parameters)


@pytest.mark.many(20)
@pytest.mark.parametrize(("solver", "entry"), WITH_SOLVERS, ids=name)
def test_solvers(solver: ol.AbstractSolver, entry: Entry):
    check_solver(solver, entry.polytope, samples=4, **entry.parameters)


@pytest.mark.many(69)
@pytest.mark.parametrize(("rule", "entry"), WITH_RULES, ids=name)
def test_rules(rule: ol.AbstractRule, entry: Entry):
    check_rule(rule, entry.polytope, **entry.parameters)


@pytest.mark.many(18)
@pytest.mark.parametrize(("loss", "entry"), WITH_LOSSES, ids=name)
def test_losses(loss: LossCase, entry: Entry):
    check_loss(loss.make, entry.polytope, **loss.told, **entry.parameters)


def exported(kind: type) -> dict[str, object]:
    """What optlayers exports of a kind, to be used as it is."""
    found = {name: getattr(ol, name) for name in ol.__all__}
    return {
        name: cls
        for name, cls in found.items()
        if inspect.isclass(cls) and issubclass(cls, kind) and not name.startswith("Abstract")
    }


def declarations() -> dict[str, object]:
    """The functions of ``polytopes`` that return a polytope."""
    found = {name: getattr(polytopes, name) for name in polytopes.__all__}
    kinds = (ol.Polytope, ol.Family)
    return {name: f for name, f in found.items() if inspect.signature(f, eval_str=True).return_annotation in kinds}


def refuse_missing(what: str, exports: dict[str, object], crossed: Iterable[object]) -> None:
    """Name the exports that no case of the contract tests is made of."""
    known = list(crossed)
    missing = sorted(name for name, export in exports.items() if export not in known)
    assert not missing, f"no contract test has the {what} {', '.join(missing)}: list them in tests/catalogue"


KINDS = {
    "rules": (exported(ol.AbstractRule), [type(rule) for rule, _ in WITH_RULES]),
    "losses": (exported(ol.AbstractLoss), [loss.kind for loss, _ in WITH_LOSSES]),
    "solvers": (exported(ol.AbstractSolver), [type(solver) for solver, _ in WITH_SOLVERS]),
    "regularizers": (
        exported(ol.AbstractRegularizer),
        [type(rule.omega) for rule, _ in WITH_RULES if rule.omega is not None],
    ),
    "noises": (exported(ol.AbstractNoise), [type(noise) for noise in NOISES]),
    "polytopes": (declarations(), [entry.declare for entry in POLYTOPES]),
}
OTHERS = {
    "what a user writes and gets": (
        *("CompiledOracle", "CompiledPolytope", "DeclarationError", "Failure", "Family", "Polytope", "Solution"),
        *("SolveError", "Status", "compile_polytope", "log_add", "log_sum", "plots", "testing"),
    ),
    "what those who write rules, losses and solvers need": (
        *("AdaptiveStep", "Answer", "BoundPolytope", "Context", "Decomposition", "Gradient", "Instances"),
        *("Prediction", "SecondGradient", "StandardForm", "Tangent"),
    ),
    "layers, metrics and reports, each with tests of its own": (
        *("Elastic", "Gibbs", "GradientAudit", "GradientMonitor", "OptLayer", "PolytopeReport"),
        *("audit", "regret", "report"),
    ),
}
"""Of what optlayers exports, that which no contract is for."""


@pytest.mark.parametrize("what", KINDS)
def test_nothing_that_is_exported_is_without_its_contract(what):
    exports, crossed = KINDS[what]
    assert len(exports) >= 4
    refuse_missing(what, exports, crossed)


@pytest.mark.parametrize("what", KINDS)
def test_whatever_is_left_out_is_named(what):
    exports, crossed = KINDS[what]
    for name, export in exports.items():
        with pytest.raises(AssertionError, match=f"no contract test has the {what} {name}: list them in tests/"):
            refuse_missing(what, exports, [one for one in crossed if one is not export])


def test_every_export_has_a_contract_or_is_named_as_one_without():
    """A new kind of thing is not left without a contract because nobody thought of its kind."""
    known = {name for exports, _ in KINDS.values() for name in exports}
    others = [name for names in OTHERS.values() for name in names]
    abstract = {name for name in ol.__all__ if name.startswith("Abstract")}
    assert len(set(others)) == len(others) and not known & set(others)
    new = sorted(set(ol.__all__) - known - set(others) - abstract)
    assert not new, f"no contract is known for {', '.join(new)}: give them one, or name them in OTHERS"
    gone = sorted(set(others) - set(ol.__all__))
    assert not gone, f"OTHERS names what is not exported: {', '.join(gone)}"


def test_solvers_are_listed_once():
    assert len({type(solver) for solver in SOLVERS}) == len(SOLVERS)
