"""Runs side by side: done once, in order, whole or not at all."""

import os
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from parallel_runs import RunError, run_all, run_file
from rich.console import Console

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Sum:
    """Settings of a run for the runner."""

    first: int
    second: float = 0.5


def add(run, tick, log, wrong=None):
    """A run that leaves a line for every time that it is done."""
    with log.open("a") as stream:
        stream.write(f"{run.first}\n")
    tick(0.5)
    if run.first == wrong:
        raise ZeroDivisionError("nothing to divide")
    return {"sum": run.first + run.second, "threads": torch.get_num_threads(), "process": os.getpid()}


def test_runs_are_done_once_and_keep_their_order(tmp_path):
    log = tmp_path / "log"
    go = partial(run_all, work=partial(add, log=log), jobs=2, folder=tmp_path, console=QUIET)
    first = go([Sum(3), Sum(1), Sum(3)])
    assert [r["sum"] for r in first] == [3.5, 1.5, 3.5]
    assert {r["threads"] for r in first} == {1} and os.getpid() not in {r["process"] for r in first}
    assert sorted(log.read_text().split()) == ["1", "3"]
    assert [r["sum"] for r in go([Sum(2), Sum(1), Sum(1, 0.25)])] == [2.5, 1.5, 1.25]
    assert sorted(log.read_text().split()) == ["1", "1", "2", "3"]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == sorted(
        run_file(run, tmp_path).name for run in (Sum(1), Sum(2), Sum(3), Sum(1, 0.25))
    )


def test_a_run_that_fails_is_named_and_the_others_stay(tmp_path):
    log = tmp_path / "log"
    go = partial(run_all, jobs=1, folder=tmp_path, console=QUIET)
    with pytest.raises(RunError, match=r"Sum\(first=7, second=0.5\) failed: ZeroDivisionError: nothing to divide"):
        go([Sum(1), Sum(7), *(Sum(k) for k in range(10, 40))], partial(add, log=log, wrong=7))
    assert run_file(Sum(1), tmp_path).exists() and not run_file(Sum(7), tmp_path).exists()
    go([Sum(1), Sum(7)], partial(add, log=log))
    assert log.read_text().split().count("1") == 1 and log.read_text().split().count("7") == 2


def test_a_file_that_is_not_what_it_says_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    path = run_file(Sum(1), tmp_path)
    go = partial(run_all, [Sum(1)], add, jobs=1, folder=tmp_path, console=QUIET)
    path.write_text('{"settings": {"kind": "Sum", "first": 2, "second": 0.5}, "result": {}}')
    with pytest.raises(ValueError, match=r"holds the run .*'first': 2.*remove it"):
        go()
    path.write_text('{"settings"')
    with pytest.raises(ValueError, match="is damaged"):
        go()
    with pytest.raises(TypeError, match="frozen dataclass of settings, but got 3"):
        run_all([3], add, jobs=1, folder=tmp_path, console=QUIET)
