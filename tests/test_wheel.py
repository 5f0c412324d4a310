"""The wheel holds what it should, and nothing else is needed: installed outside of the checkout, it runs the README."""

from __future__ import annotations

import email
import email.message
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.policy import default
from pathlib import Path

import pytest
from test_readme import blocks

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("optlayers", "polytopes")
MADE_BY_SETUPTOOLS = re.compile(r"(PKG-INFO|setup\.cfg|optlayers\.egg-info/.*)")

RUN_PAGE = """
import contextlib, io, json, sys
import optlayers, polytopes
environment, page = sys.argv[1:]
for package in (optlayers, polytopes):
    assert package.__file__.startswith(environment), package.__file__
namespace = {"__name__": "__main__"}
for line, code, expected, _ in json.load(open(page, encoding="utf-8")):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile("\\n" * line + code, "README.md", "exec"), namespace)
    if expected is not None:
        assert printed.getvalue() == expected, (line, printed.getvalue(), expected)
print(optlayers.__version__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def tracked() -> list[str]:
    """The files of the checkout that git knows, by their paths."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if listed.returncode != 0:
        pytest.skip("this is no checkout of git: what belongs to the project is not known")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with an sdist, and the wheel that is built from it alone."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in tracked():  # leftovers of earlier builds stay behind
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.EmailMessage:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"optlayers-{PROJECT['version']}.dist-info/METADATA")
    found = email.message_from_bytes(text, policy=default)
    assert isinstance(found, email.message.EmailMessage)
    return found


def environment(folder: Path, *, pip: bool) -> tuple[Path, Path]:
    """A fresh environment: its Python, and where it has its packages."""
    venv.create(folder, with_pip=pip)
    windows = os.name == "nt"
    python = folder / ("Scripts/python.exe" if windows else "bin/python")
    return python, Path(sysconfig.get_path("purelib", "nt_venv" if windows else "posix_venv", {"base": str(folder)}))


def run_readme(python: Path, folder: Path, where: Path) -> str:
    """Run the README where the checkout cannot be seen; the version that ran it."""
    page = where / "readme.json"
    page.write_text(json.dumps(blocks((ROOT / "README.md").read_text(encoding="utf-8"))), encoding="utf-8")
    return run(python, "-I", "-c", RUN_PAGE, folder, page, cwd=where).strip()


def test_the_wheel_holds_both_packages_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    about = f"optlayers-{PROJECT['version']}.dist-info"
    assert names >= {"optlayers/py.typed", "polytopes/py.typed", f"{about}/licenses/LICENSE"}
    ours = {name for name in names if not name.startswith(f"{about}/")}
    assert ours == {name for name in tracked() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}


def test_an_sdist_is_the_checkout(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {name for name in names if not MADE_BY_SETUPTOOLS.fullmatch(name)} == set(tracked())


def test_the_wheel_says_what_the_project_says(metadata):
    assert metadata["Name"] == "optlayers" and metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == PROJECT["license"]
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert (
        metadata.get_payload(decode=True).decode().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    )
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert needed == PROJECT["dependencies"]


def test_no_dependency_is_needed_by_one_option_alone(metadata):
    """What brings cvxpylayers, pictures, bars, Ray or a playground is an extra."""
    needed = {re.match(r"[\w-]+", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert needed == {"torch", "cvxpy", "numpy", "scipy", "highspy", "clarabel", "jaxtyping", "numba"}
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras >= {"cvxpylayers", "docs", "examples", "peers", "plots", "ray", "report", "tensorboard"}


def test_the_installed_wheel_runs_the_readme(wheel, tmp_path):
    """Dependencies are those of this environment, behind the packages of the fresh one; a link to the checkout, which
    is there where it is installed as editable, is not followed."""
    folder = tmp_path / "environment"
    python, packages = environment(folder, pip=False)
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    behind = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "behind.pth").write_text("\n".join(sorted(behind)), encoding="utf-8")
    for package in PACKAGES:  # machine code of the same sources, which would take minutes to compile again
        for cache in (ROOT / package).rglob("*.nb[ci]"):
            place = packages / cache.relative_to(ROOT)
            place.parent.mkdir(exist_ok=True)
            shutil.copy(cache, place)
    assert run_readme(python, folder, tmp_path) == PROJECT["version"]


@pytest.mark.slow
def test_the_wheel_installs_with_what_it_needs_and_runs_the_readme(wheel, tmp_path):
    """All packages come from the index, which takes minutes, and kernels are compiled."""
    folder = tmp_path / "environment"
    python, _ = environment(folder, pip=True)
    run(python, "-m", "pip", "install", "--constraint", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    there = {
        one["name"].lower() for one in json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    }
    assert not there & {"cvxpylayers", "diffcp", "matplotlib", "pandas", "panel", "ray", "rich", "scikit-learn"}
    run(python, "-m", "pip", "check", cwd=tmp_path)
    assert run_readme(python, folder, tmp_path) == PROJECT["version"]
