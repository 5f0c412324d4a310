"""Compiled functions on disk are compiled again when a file beside them changes."""

import gc
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import event

import optlayers as ol
import polytopes
from optlayers.common import kernel_cache
from optlayers.common.kernel_cache import cached_njit
from optlayers.solvers.kernels import min_norm_point
from optlayers.solvers.kernels.lanes import jit, part

BARE = f"""
import sys, types
bare = sys.modules["optlayers"] = types.ModuleType("optlayers")
bare.__path__ = {ol.__path__!r}
"""
"""The package without what it imports itself, which takes a process seconds."""
PART = "import numba\n@numba.njit\ndef part():\n    return {}\n"
WHOLE = """
from pathlib import Path
from optlayers.common import kernel_cache
from optlayers.common.kernel_cache import cached_njit
from part import part
@cached_njit(Path(__file__).parent)
def whole():
    return 10 * part()
"""
ASK = "import whole; print(whole.whole(), sum(whole.whole.stats.cache_hits.values()))"


def ask(folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "NUMBA_CACHE_DIR": ""}
    command = [sys.executable, "-c", BARE + ASK]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_a_change_in_another_file_of_the_folder_is_noticed(tmp_path):
    (tmp_path / "part.py").write_text(PART.format(1))
    (tmp_path / "whole.py").write_text(textwrap.dedent(WHOLE))
    assert ask(tmp_path) == "10 0"
    assert ask(tmp_path) == "10 1"
    (tmp_path / "part.py").write_text(PART.format(2))
    assert ask(tmp_path) == "20 0"


def test_kernels_and_oracles_are_cached_in_this_way():
    stamps = {
        kernel._cache._cache_file._source_stamp for kernel in (min_norm_point.decompose, polytopes.simplex(3).oracle)
    }
    assert len(stamps) == 2 and all(len(stamp) == 64 for stamp in stamps)


def test_an_index_of_a_version_with_other_modules_counts_for_nothing(tmp_path):
    """Such as one that an upgrade leaves behind: it is written anew."""
    (tmp_path / "part.py").write_text(PART.format(1))
    (tmp_path / "whole.py").write_text(textwrap.dedent(WHOLE))
    assert ask(tmp_path) == "10 0"
    (index,) = (tmp_path / "__pycache__").glob("whole.*.nbi")
    version = pickle.dumps(numba.__version__)
    gone = b"cmodule_that_is_gone\nKind\n."
    index.write_bytes(version + gone)
    assert ask(tmp_path) == "10 0"
    assert ask(tmp_path) == "10 1"


TWO = """
import sys
from pathlib import Path
from optlayers.common import kernel_cache
from optlayers.common.kernel_cache import cached_njit
@cached_njit(Path(__file__).parent)
def half(number):
    return number / 2
kind = {"int": int, "float": float}[sys.argv[1]]
print(half(kind(7)), sum(half.stats.cache_hits.values()))
"""


def test_code_of_another_signature_is_not_taken(tmp_path):
    """Two processes that compile at the same time may write to one file what is of two signatures."""
    script = tmp_path / "two.py"
    script.write_text(BARE + TWO)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": ""}

    def half(kind: str) -> str:
        command = [sys.executable, str(script), kind]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert [half("int"), half("float"), half("int")] == ["3.5 0", "3.5 0", "3.5 1"]
    first, second = sorted((tmp_path / "__pycache__").glob("*.nbc"))
    of_int, of_float = first.read_bytes(), second.read_bytes()
    first.write_bytes(of_float)
    second.write_bytes(of_int)
    assert half("int") == "3.5 0"
    assert half("int") == "3.5 1"
    assert half("float") == "3.5 0"


@pytest.fixture
def nothing_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("OPTLAYERS_QUIET", "1")
    return tmp_path


class Collector(event.Listener):
    """Whether the garbage collector is on when numba begins to compile something, and when it ends."""

    def __init__(self):
        self.begins, self.ends = [], []

    def on_start(self, _):
        self.begins.append(gc.isenabled())

    def on_end(self, _):
        self.ends.append(gc.isenabled())


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_rests_while_something_is_compiled(nothing_on_disk, on):
    compiled = cached_njit(nothing_on_disk)
    inner = compiled(lambda number: number + 1)
    outer = compiled(lambda number: inner(number) + 1)
    wrong = compiled(lambda number: inner(number).no_such_attribute)
    others = numba.njit(lambda number: number + 1)
    try:
        if not on:
            gc.disable()
        with event.install_listener("numba:compile", Collector()) as seen:
            assert outer(1) == 3
            with pytest.raises(numba.TypingError):
                wrong(1.0)
            assert (seen.begins, seen.ends) == ([False] * 4, [False, on, False, on])
            assert gc.isenabled() == on
            assert others(1) == 2
            assert seen.begins[-1] == on
    finally:
        gc.enable()


def test_a_part_has_no_machine_code_but_in_kernels(nothing_on_disk):
    twice = part(lambda number: 2 * number)
    numbers = part(lambda count, number: twice(number) * np.ones(count))
    first = jit(lambda count: numbers(count, 1.0))
    second = jit(lambda count: numbers(count, 3.0) + twice(1.0))
    assert first(2).tolist() == [2.0, 2.0]
    assert second(2).tolist() == [8.0, 8.0]
    (compiled,) = twice.overloads.values()
    assert compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name) == 0
    again = jit(second.py_func)
    assert again(2).tolist() == [8.0, 8.0]
    assert sum(again.stats.cache_hits.values()) == 1
    with pytest.raises((TypeError, ValueError)):
        twice(1.0)


def test_without_a_folder_that_can_be_written_to_kernels_are_not_kept(monkeypatch):
    given = numba.njit

    def without_a_folder(*function, cache: bool = False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return given(*function, **options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    kernel_cache._warn_of_no_folder.cache_clear()
    with pytest.warns(UserWarning, match="set NUMBA_CACHE_DIR to one"):
        twice = kernel_cache.cached_njit(Path(__file__).parent)(lambda x: 2.0 * x)
    assert twice(1.5) == 3.0
