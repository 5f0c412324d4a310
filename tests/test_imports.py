"""Imports run one way, those for type checkers included: a room can be read without those that are built on it."""

import ast
import subprocess
import sys
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


def test_what_a_model_does_not_need_when_it_trains_is_imported_when_it_is_used():
    options = "cvxpylayers diffcp matplotlib pandas panel ray rich sklearn tensorboard"
    program = f"""
import sys, torch, cvxpy
before = set(sys.modules)
import optlayers as ol
rooms = {{"optlayers." + name for name in ("auditing", "plots", "reporting", "testing")}}
assert not rooms & set(sys.modules), rooms & set(sys.modules)
import polytopes
found = {{name.partition(".")[0] for name in set(sys.modules) - before}} & set("{options}".split())
assert not found, found
assert set(ol.__all__) <= set(dir(ol)) and all(hasattr(ol, name) for name in ol.__all__)
assert rooms <= set(sys.modules) and not hasattr(ol, "no_such_name")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
