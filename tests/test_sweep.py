"""Runs on Ray: done once, in order, whole or not at all, whatever dies."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import ray
import sweep
import torch
from kept_runs import run_file
from rich.console import Console
from sweep import Machines, RunError, SweepError, add_arguments, in_a_line, run_all

resource = pytest.importorskip("resource", reason="the tests take signals and limits of POSIX")
QUIET = Console(quiet=True)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


@dataclass(frozen=True)
class Sum:
    """Settings of a run."""

    first: int
    second: float = 0.5


def add(run, log, wrong=None, deadly=None):
    """A run that leaves a line for every time that it begins; it may fail, or lose its process once."""
    with log.open("a") as stream:
        stream.write(f"{run.first}\n")
    if run.first == wrong:
        raise ZeroDivisionError("nothing to divide")
    if run.first == deadly and log.read_text().split().count(str(deadly)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"sum": run.first + run.second, "threads": torch.get_num_threads(), "process": os.getpid()}


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def times(log, first):
    return log.read_text().split().count(str(first))


@pytest.mark.usefixtures("started_ray")
def test_runs_are_done_once_and_keep_their_order(tmp_path, log):
    go = partial(run_all, work=partial(add, log=log), folder=tmp_path, console=QUIET)
    first = go([Sum(3), Sum(1), Sum(3)])
    assert [r["sum"] for r in first] == [3.5, 1.5, 3.5]
    assert {r["threads"] for r in first} == {1} and os.getpid() not in {r["process"] for r in first}
    assert sorted(log.read_text().split()) == ["1", "3"]
    assert [r["sum"] for r in go([Sum(2), Sum(1), Sum(1, 0.25)])] == [2.5, 1.5, 1.25]
    assert sorted(log.read_text().split()) == ["1", "1", "2", "3"]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == sorted(
        run_file(run, tmp_path).name for run in (Sum(1), Sum(2), Sum(3), Sum(1, 0.25))
    )


@pytest.mark.usefixtures("started_ray")
def test_a_run_that_fails_is_named_and_the_others_are_done(tmp_path, log):
    runs = [Sum(1), Sum(7), *(Sum(k) for k in range(10, 20))]
    go = partial(run_all, folder=tmp_path, console=QUIET)
    told = r"1 of 12 runs failed; .*\n.*Sum\(first=7, second=0.5\) failed: ZeroDivisionError: nothing"
    with pytest.raises(RunError, match=told):
        go(runs, partial(add, log=log, wrong=7))
    assert not run_file(Sum(7), tmp_path).exists() and times(log, 7) == 1
    assert all(run_file(run, tmp_path).exists() for run in runs if run.first != 7)
    assert [r["sum"] for r in go(runs, partial(add, log=log))] == [run.first + 0.5 for run in runs]
    assert times(log, 1) == 1 and times(log, 7) == 2


@pytest.mark.usefixtures("started_ray")
def test_a_run_whose_process_dies_begins_anew(tmp_path, log):
    results = run_all([Sum(1), Sum(2)], partial(add, log=log, deadly=2), folder=tmp_path, console=QUIET)
    assert [r["sum"] for r in results] == [1.5, 2.5] and times(log, 2) == 2


def fail(run):
    """Runs that fail in several ways, and one that does not."""
    if run.first == 1:
        return {"a": object()}
    if run.first == 2:
        return [1.0]
    if run.first == 3:
        return {}["lost key"]
    return {"sum": run.first}


@pytest.mark.usefixtures("started_ray")
def test_failures_keep_their_tracebacks_and_what_json_cannot_hold_is_one(tmp_path):
    runs = [Sum(k) for k in range(1, 6)]
    with pytest.raises(RunError, match="3 of 5 runs failed") as caught:
        run_all(runs, fail, folder=tmp_path, console=QUIET)
    assert "TypeError: Object of type object is not JSON serializable" in str(caught.value)
    assert "TypeError: a run must return a dictionary, but returned list" in str(caught.value)
    assert "KeyError: 'lost key'; see" in str(caught.value)
    told = tmp_path / "failed" / f"{run_file(runs[2], tmp_path).stem}.txt"
    assert "Sum(first=3" in told.read_text() and 'return {}["lost key"]' in told.read_text()
    assert run_all([runs[2], runs[4]], lambda run: {"sum": 0}, folder=tmp_path, console=QUIET)[1] == {"sum": 5}
    assert not told.exists()


def die(run):
    """A run that kills its process every time."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("started_ray")
def test_a_run_that_always_kills_its_process_is_given_up(tmp_path):
    with pytest.raises(RunError, match=r"Sum\(first=2, second=0.5\) failed: WorkerCrashedError"):
        run_all([Sum(2)], die, folder=tmp_path, console=QUIET)


def test_what_is_no_result_of_these_runs_is_refused_before_any_run(tmp_path, log):
    (tmp_path / "runs").mkdir()
    runs = [Sum(1), Sum(2), Sum(3)]
    go = partial(run_all, runs, partial(add, log=log), folder=tmp_path, console=QUIET)
    run_file(runs[0], tmp_path).write_text('{"settings": {"kind": "Sum", "first": 2, "second": 0.5}, "result": {}}')
    run_file(runs[1], tmp_path).write_text('{"settings"')
    run_file(runs[2], tmp_path).write_bytes(b"\xff\xfe")
    with pytest.raises(SweepError, match="remove what is named") as caught:
        go()
    told = str(caught.value).splitlines()
    assert f"{run_file(runs[0], tmp_path)} does not hold the run Sum(first=1, second=0.5)" in told
    assert f"{run_file(runs[1], tmp_path)} is damaged" in told[1] and f"{run_file(runs[2], tmp_path)} is dam" in told[2]
    with pytest.raises(TypeError, match="frozen dataclass of settings, but got 3"):
        run_all([3], add, folder=tmp_path, console=QUIET)
    assert not log.exists()


@pytest.mark.usefixtures("started_ray")
def test_a_folder_of_runs_on_something_else_is_refused(tmp_path, log):
    go = partial(run_all, work=partial(add, log=log), folder=tmp_path, console=QUIET)
    go([Sum(1)], shared={"data": "a.sdp", "words": 7})
    assert go([Sum(1)], shared={"data": "a.sdp", "words": 7})[0]["sum"] == 1.5 and times(log, 1) == 1
    with pytest.raises(SweepError, match=r"holds runs with words 7, not 20; choose another folder"):
        go([Sum(1)], shared={"data": "a.sdp", "words": 20})
    with pytest.raises(SweepError, match=r"holds runs with data 'a.sdp', not None, words 7, not None"):
        go([Sum(1)])
    (tmp_path / "shared.json").unlink()
    with pytest.raises(SweepError, match="does not say of what"):
        go([Sum(1)], shared={"data": "a.sdp", "words": 7})


@pytest.mark.usefixtures("started_ray")
def test_a_full_disk_keeps_what_is_finished(tmp_path, log):
    go = partial(run_all, folder=tmp_path, console=QUIET, work=partial(add, log=log))
    go([Sum(1)])
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        with pytest.raises(
            OSError, match=r"could not be written \(File too large\); 1 finished runs are kept beside it"
        ):
            go([Sum(1), Sum(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [run_file(Sum(1), tmp_path).name]
    assert [r["sum"] for r in go([Sum(1), Sum(2)])] == [1.5, 2.5] and times(log, 1) == 1


@pytest.mark.usefixtures("started_ray")
def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path, log, monkeypatch):
    replace, full = Path.replace, iter([True, True, False])

    def sometimes(path, target):
        if next(full, False):
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", sometimes)
    runs = [Sum(k) for k in range(6)]
    results = run_all(runs, partial(add, log=log), folder=tmp_path, console=QUIET)
    assert [r["sum"] for r in results] == [k + 0.5 for k in range(6)] and len(log.read_text().split()) == 6
    assert sorted(tmp_path.glob("runs/*")) == sorted(run_file(run, tmp_path) for run in runs)


@pytest.mark.usefixtures("started_ray")
def test_more_gpus_than_there_are(tmp_path):
    with pytest.raises(SweepError, match=r"--gpus 2 for every run, but no machine has more than 0"):
        run_all([Sum(1)], die, folder=tmp_path, console=QUIET, machines=Machines(gpus=2.0))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9 within 1 seconds"),
        ("ray://127.0.0.1:9", "no Ray cluster answers at ray://127.0.0.1:9 within 1 seconds"),
        ("[::1", r"no Ray cluster answers at \[::1 \("),
        ("nonsense", r"no Ray cluster answers at nonsense \(expected auto, host:port or ray://host:port"),
        ("host:port", r"no Ray cluster answers at host:port \("),
    ],
)
def test_an_address_where_nobody_answers_is_told_at_once(tmp_path, address, message, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(sweep, "REACH", 1.0)
    with pytest.raises(SweepError, match=message):
        run_all([Sum(1)], die, folder=tmp_path, console=QUIET, machines=Machines(address=address))


def test_something_else_that_listens_is_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(sweep, "REACH", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        machines = Machines(address=f"127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(SweepError, match="within 1 seconds"):
            run_all([Sum(1)], die, folder=tmp_path, console=QUIET, machines=machines)


def test_the_command_line(capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert Machines.of(parser.parse_args([])) == Machines()
    given = ["--jobs", "3", "--address", "auto", "--gpus", "0.5"]
    assert Machines.of(parser.parse_args(given)) == Machines(3, "auto", 0.5)
    for given, message in (
        (["--jobs", "0"], "must be a whole number from 1 on, but is 0"),
        (["--jobs", "all"], "must be a whole number from 1 on, but is all"),
        (["--gpus=-1"], "must be a number from 0 on, but is -1"),
        (["--gpus", "nan"], "must be a number from 0 on, but is nan"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(given)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [RunError("words"), SweepError("words"), OSError("words")])
def test_what_can_be_mended_ends_the_program_in_a_line(error):
    with pytest.raises(SystemExit, match=r"^words$"), in_a_line():
        raise error
    with pytest.raises(ValueError, match="a fault"), in_a_line():
        raise ValueError("a fault")


PROGRAM = """
import sys
from pathlib import Path
from rich.console import Console
from sweep import Machines, in_a_line, run_all
from sweep_of_waits import Wait, work

with in_a_line():
    run_all([Wait(k) for k in range(4)], work, folder=Path(sys.argv[1]), console=Console(), machines=Machines(jobs=1))
"""
WORK = """
import time
from dataclasses import dataclass

@dataclass(frozen=True)
class Wait:
    number: int

def work(run):
    time.sleep(600.0 if run.number == 1 else 0.0)
    return {"number": run.number}
"""


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "sweep_of_waits.py").write_text(WORK)
    path = os.pathsep.join([str(Path(__file__).parent.parent / "examples"), *sys.path])
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "out")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # programs in the background ignore it
    ) as program:
        deadline = time.monotonic() + 120.0
        while not list((tmp_path / "out").glob("runs/*.json")):
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.1)
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does
        told, errors = program.communicate(timeout=60.0)
    assert "stopped; 1 of 4 runs are in" in told.replace("\n", " ") and program.returncode == 130
    assert "Traceback" not in errors
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1
    deadline = time.monotonic() + 30.0
    while subprocess.run(["pgrep", "-s", str(program.pid)], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.2)


OTHER = """
import sys
from pathlib import Path
from rich.console import Console
from sweep import Machines, run_all
from sweep_of_waits import Wait, work

run_all([Wait(0)], work, folder=Path(sys.argv[1]), console=Console(), machines=Machines(address="auto"))
"""


@pytest.mark.slow
def test_auto_does_not_take_the_ray_of_another_program(tmp_path, request):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "other.py").write_text(OTHER)
    (tmp_path / "sweep_of_waits.py").write_text(WORK)
    path = os.pathsep.join([str(Path(__file__).parent.parent / "examples"), *sys.path])
    short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # where auto looks; names of sockets must be short
    request.addfinalizer(partial(shutil.rmtree, short, ignore_errors=True))
    env = os.environ | {"PYTHONPATH": path, "RAY_TMPDIR": short}
    start = partial(subprocess.Popen, text=True, env=env, stderr=subprocess.PIPE)
    first = start([sys.executable, str(tmp_path / "program.py"), str(tmp_path / "out")], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120.0
        while not list((tmp_path / "out").glob("runs/*.json")):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.1)
        other = start([sys.executable, str(tmp_path / "other.py"), str(tmp_path / "other")])
        errors = other.communicate(timeout=120.0)[1]
        assert "is the Ray of another program, and ends with it; start a cluster" in errors
    finally:
        first.terminate()
        first.communicate(timeout=60.0)


def where(run):
    """The node that a run was done on, and where its code came from."""
    time.sleep(0.5)
    return {"node": ray.get_runtime_context().get_node_id(), "module": sys.modules["sweep"].__file__}


@pytest.mark.slow
def test_a_cluster_of_two_nodes_one_of_which_is_lost(tmp_path):
    from ray.cluster_utils import Cluster

    ray.shutdown()  # what other tests left
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    machines = Machines(address=cluster.address)
    try:
        results = run_all([Sum(k) for k in range(8)], where, folder=tmp_path / "a", console=QUIET, machines=machines)
        assert len({r["node"] for r in results}) == 2
        assert all("working_dir" in r["module"] for r in results)  # the folder of the examples was sent there
        work = partial(lose, log=tmp_path / "log", pid=second.all_processes["raylet"][0].process.pid)
        results = run_all([Sum(k) for k in range(8)], work, folder=tmp_path / "b", console=QUIET, machines=machines)
        assert [r["sum"] for r in results] == [k + 0.5 for k in range(8)]
        assert (tmp_path / "log").read_text() == "lost\n"
    finally:
        cluster.shutdown()


def lose(run, log, pid):
    """The fourth run kills the other node, once."""
    if run.first == 3 and not log.exists():
        log.write_text("lost\n")
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    return {"sum": run.first + run.second}
