"""Imports run one way, those for type checkers included: a room can be read without those that are built on it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("optlayers", "polytopes")


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the project that a file names in an import anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            # "from package import module" needs the module; any other name needs the package.
            names |= {name if name in known else node.module for name in whole}
    return names & set(known)


def test_there_is_no_import_circle():
    known = modules()
    assert "optlayers.solvers.certify" in known and len(known) > 100
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    assert "optlayers.solution" in graph["optlayers.solvers.certify"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        raise AssertionError(f"an import circle: {' <- '.join(circle.args[1])}") from None


def test_solvers_have_not_heard_of_rules_nor_the_framework_of_structures():
    known = modules()
    for name, path in known.items():
        found = imports(path, known)
        if name.startswith("optlayers.solvers"):
            assert not any(
                other.startswith(("optlayers.rules", "optlayers.losses", "optlayers.layer")) for other in found
            )
        if name.startswith("optlayers"):
            assert not any(other.startswith("polytopes") for other in found), name
