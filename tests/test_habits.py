"""What is written in several places agrees: versions, tools, systems; and each habit is asked for where it must be."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typechecks
import yaml
from jaxtyping import TypeCheckError

import optlayers
from optlayers.sums.vertex_sums import log_sum_over

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
IGNORE = re.compile(r"# type: ignore(?!\[[a-z, -]+\])")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def constraints() -> dict[str, str]:
    return dict(line.split("==") for line in read("constraints.txt").split() if "==" in line)


def test_types_are_strict_everywhere_and_what_is_ignored_is_named():
    settings = PROJECT["tool"]["mypy"]
    assert settings["strict"] is True
    assert settings["files"] == ["optlayers", "polytopes"]
    assert all(set(one) == {"module", "ignore_missing_imports", "follow_imports"} for one in settings["overrides"])
    for package in settings["files"]:
        for path in (ROOT / package).rglob("*.py"):
            assert not IGNORE.search(path.read_text(encoding="utf-8")), f"an ignore without its code in {path}"


def test_no_two_classes_of_the_library_have_one_name():
    """What is for one file alone begins with an underscore."""
    where: dict[str, str] = {}
    for package in ("optlayers", "polytopes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE):
                assert name not in where, f"class {name} is in {where[name]} and in {path}: one word has one meaning"
                where[name] = str(path)
    assert len(where) > 200


def test_shapes_are_checked_in_all_modules_but_those_that_are_named(monkeypatch):
    for name in (*typechecks.PLAIN, *typechecks.DOORS, *typechecks.OFTEN, *typechecks.UNCHECKABLE):
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file(), f"{name} is gone"
    found = typechecks.checked_modules()
    assert len(found) > 90 and {"polytopes.matching", "optlayers.solvers.kernels.dense"} <= set(found)
    monkeypatch.setenv(typechecks.EVERYTHING, "1")
    assert set(typechecks.checked_modules()) == {*found, *typechecks.OFTEN}
    assert f"{typechecks.EVERYTHING}=1" in read("Makefile")
    vertices = torch.eye(3, dtype=torch.float64)
    log_sum_over(vertices, torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(TypeCheckError, match="scores"):
        log_sum_over(vertices, torch.zeros(2, 4, dtype=torch.float64))


def test_the_workflow_covers_what_the_project_supports():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    named = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c]
    assert matrix["python-version"] == named == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True


def test_the_workflow_calls_what_make_calls():
    # YAML 1.1 takes the key "on" for a truth value; the jobs are all that is asked for here.
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    called = {step["run"].removeprefix("python ") for job in jobs.values() for step in job["steps"] if "run" in step}
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", read("Makefile"), re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().removeprefix("$(RUN) ") for line in recipe[1].splitlines()]
    assert commands and set(commands) <= called
    assert any(command.startswith("-m pytest") and '-m "not slow"' in command for command in called)


def test_the_oldest_packages_that_are_admitted_can_be_asked_for():
    project = PROJECT["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["cvxpylayers"]
    assert all(re.fullmatch(r"[a-z]+>=[0-9.]+", line) for line in asked)
    recipe = re.search(r"^OLDEST := ((?:.*\\\n)*.*)\n", read("Makefile"), re.MULTILINE)
    assert recipe is not None
    program = recipe[1].replace("\\\n", "")
    for given, first in ([], "torch==2.4"), (["2.13.0"], "torch==2.13.0"):
        done = subprocess.run([sys.executable, "-c", program, *given], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split() == [first, *(line.replace(">=", "==") for line in asked[1:])], done.stderr


def test_the_version_is_the_same_everywhere():
    version = PROJECT["project"]["version"]
    assert optlayers.__version__ == version
    assert f"\n## [{version}] - " in read("CHANGELOG.md")


def test_the_citation_has_the_version_and_the_license_of_the_project():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert f"## [{citation['version']}] - {citation['date-released']}\n" in read("CHANGELOG.md")
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == [{"name": "The optlayers authors"}]
    assert [reference["doi"] for reference in citation["references"]] == ["10.18653/v1/P18-1173"]


def test_hooks_use_the_versions_that_lint_uses():
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert {"ruff-check", "ruff-format", "mypy"} <= set(hooks)
    known = constraints()
    for hook in hooks.values():
        for pinned in hook.get("additional_dependencies", []):
            package, version = pinned.split("==")
            assert version == known.get(package, version), f"{hook['id']} uses another {package}"
    assert all("additional_dependencies" in hook or hook["language"] == "system" for hook in hooks.values())


def test_coverage_has_a_floor_and_leaves_out_only_what_it_cannot_see():
    settings = PROJECT["tool"]["coverage"]
    assert settings["run"]["source"] == ["optlayers", "polytopes"]
    assert settings["run"]["omit"] == ["optlayers/solvers/kernels/*"]
    assert settings["report"]["fail_under"] >= 80


def test_the_packages_can_be_imported_where_there_are_no_forks():
    program = "import os, cvxpy, numba, torch; del os.register_at_fork; import optlayers, polytopes"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
