"""Compiling ahead covers every kernel, and what is compiled on the way is announced in one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import pytest
from numba.core.sigutils import normalize_signature
from test_kernel_cache import BARE

from optlayers import warm
from optlayers.common import kernel_cache
from optlayers.solvers.kernels import normal_equations

FOLDER = Path(__file__).parent.parent
ORACLES = ("min_norm_point", "calling", "structures")
"""Kernels whose arguments are no plain arrays: calls of the catalogue bring them."""
CALLS = """
import optlayers as ol, torch
from polytopes import arborescence, matching, simplex
for polytope in (matching(4).without_oracle(), simplex(4), arborescence(3)):
    scores = torch.zeros(2, *polytope.shape, dtype=torch.float64, requires_grad=True)
    layer = ol.OptLayer(polytope, ol.SparseMAP())
    layer(scores).square().sum().backward()
    layer.compiled().maximize(scores.detach())
"""
KERNEL = """
from pathlib import Path
from optlayers.common.kernel_cache import cached_njit
@cached_njit(Path(__file__).parent)
def first():
    return 1
@cached_njit(Path(__file__).parent)
def second():
    return 2
"""


def told(code: str, folder: Path, cache: Path, **environment: str) -> str:
    """What a process says on stderr."""
    path = os.pathsep.join([str(folder), str(FOLDER), *sys.path])
    variables = os.environ | {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(cache)} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    ).stderr


def test_processes_announce_it_once_on_a_machine(tmp_path):
    """One after the other, and at once."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    ask, line = BARE + "import kernel; kernel.{}()", kernel_cache.NOTICE + "\n"
    assert told(ask.format("first"), tmp_path, tmp_path / "in turn") == line
    assert told(ask.format("second"), tmp_path, tmp_path / "in turn") == ""
    with ThreadPoolExecutor() as pool:
        said = pool.map(lambda _: told(ask.format("first"), tmp_path, tmp_path / "at once"), range(4))
    assert sorted(said) == ["", "", "", line]


def test_it_is_announced_again_for_another_version_and_where_nobody_can_take_note(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert [kernel_cache._is_first_to_say(normal_equations._rows_of_factor) for _ in range(3)] == [True, False, False]
    with monkeypatch.context() as other:
        other.setattr(numba, "__version__", "another")
        assert kernel_cache._is_first_to_say(normal_equations._rows_of_factor)
    assert not kernel_cache._is_first_to_say(normal_equations._rows_of_factor)
    monkeypatch.setattr(Path, "touch", raises(PermissionError))
    assert kernel_cache._is_first_to_say(normal_equations._rows_of_factor)


def raises(error: type[Exception]) -> Callable[..., None]:
    def touch(*_: object, **__: object) -> None:
        raise error

    return touch


def test_compiling_is_announced_once_and_not_when_all_is_on_disk(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    ask, line = BARE + "import kernel; kernel.first(), kernel.second()", kernel_cache.NOTICE + "\n"
    assert told(ask, tmp_path, tmp_path / "quiet", OPTLAYERS_QUIET="1") == ""
    assert told(ask, tmp_path, tmp_path / "cache") == line
    assert told(ask, tmp_path, tmp_path / "cache") == ""


def test_every_kernel_is_compiled_ahead():
    functions = warm._functions()
    names = {name for name in functions if name.startswith("optlayers.")}
    assert len(names) > 20
    called = {name for name in names if name.split(".")[-2] in ORACLES}
    assert called | {task for task in warm.tasks() if task != warm.CATALOGUE} == names


def test_signatures_have_an_entry_for_every_argument():
    for name, (function, signatures) in warm._functions().items():
        for signature in signatures:
            kinds, _ = normalize_signature(signature)
            assert len(kinds) == function.py_func.__code__.co_argcount, name


def test_nothing_is_done_where_all_is_on_disk(monkeypatch, capsys):
    monkeypatch.setattr(warm, "is_on_disk", lambda function: True)
    assert warm.main() == 0
    assert "on disk already" in capsys.readouterr().out


def test_what_fails_is_named(monkeypatch, capsys):
    monkeypatch.setattr(warm, "tasks", lambda: ["optlayers.no_such_kernel"])
    monkeypatch.setattr(warm, "is_on_disk", lambda function: "leave_bounds" not in function.py_func.__name__)
    assert warm.main() == 1
    said = capsys.readouterr().err
    assert "optlayers.no_such_kernel: KeyError" in said
    assert "optlayers.solvers.kernels.optimality.leave_bounds: it is not on disk" in said


@pytest.mark.slow
def test_after_warming_nothing_is_compiled(tmp_path):
    command = [sys.executable, "-m", "optlayers.warm"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(FOLDER), *sys.path]),
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "compiled functions are on disk" in first
    assert told(CALLS, tmp_path, tmp_path) == ""
