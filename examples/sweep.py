"""Many training runs, on the cores of this machine or on a Ray cluster; what is finished stays on disk.

A run is a frozen dataclass of settings that JSON can hold. ``work(run)`` does it in a process of its own with one
thread, somewhere on the machines, and returns a dictionary that JSON can hold. The dictionary comes back to the program
that asked, and becomes the file ``folder/runs/KEY.json`` there, KEY being a hash of the settings. A second start reads
the files that are there and does only the rest; they answer for the settings, not for the code, so a change of the code
wants another folder. Ray (Moritz et al., 2018) distributes the runs and starts anew those whose machine was lost.

    python examples/latent_category.py --jobs 4                             four at a time on this machine
    python examples/latent_category.py --address auto                       on the cluster that this machine belongs to
    python examples/latent_category.py --address ray://head:10001 --gpus 1  on another one, a GPU for every run

Every machine of a cluster needs Python, Ray and optlayers in the versions of this one; the folder of the examples is
sent to it. Data are read here, and sent once.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers about every start

try:
    import grpc
    import ray
except ModuleNotFoundError as error:
    raise SystemExit("runs are distributed by Ray, which is not here; pip install 'optlayers[ray]'") from error
import torch
from kept_runs import Keeping, SweepError, check_shared, read_all, run_file
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Machines", "RunError", "SweepError", "Work", "add_arguments", "connected", "device", "in_a_line", "run_all"]

Work = Callable[[Any], dict[str, Any]]
"""A function of a module, or ``functools.partial`` of one."""

RETRIES = 3
"""So often a run begins anew whose process or machine was lost."""

PATIENCE = 15.0
"""Seconds between two lines of progress where no bar can be drawn."""

REACH = 10.0
"""Seconds in which a cluster has to answer."""

PRIVATE = "of_one_program"
"""A resource that marks the Ray that a program starts for itself, which ``auto`` would find."""


class RunError(RuntimeError):
    """Runs failed; the message has their settings."""


@dataclass(frozen=True)
class Machines:
    """Where runs are done.

    Parameters
    ----------
    jobs : runs at a time; None for one on every core of this machine, or as many as the cluster takes.
    address : of a cluster: ``auto`` for the one that this machine belongs to, ``host:port`` of its head, or
        ``ray://host:port`` from outside; None for this machine alone.
    gpus : for every run; 0.5 puts two runs on one.
    """

    jobs: int | None = None
    address: str | None = None
    gpus: float = 0.0

    @classmethod
    def of(cls, options: argparse.Namespace) -> Machines:
        """From a command line with the options of :func:`add_arguments`."""
        return cls(options.jobs, options.address, options.gpus)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options ``--jobs``, ``--address`` and ``--gpus``."""
    group = parser.add_argument_group("machines")
    group.add_argument("--jobs", type=_positive, help="runs at a time (default: all cores, or what the cluster takes)")
    group.add_argument("--address", help="of a Ray cluster: auto, host:port or ray://host:port (default: this machine)")
    group.add_argument("--gpus", type=_at_least_0, default=0.0, help="for every run; 0.5 puts two on one (default 0)")


def device() -> torch.device:
    """What to compute on: a GPU that the process sees, else the CPU. In a run Ray hides GPUs not asked for."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, but is {text}")
    return int(text)


def _at_least_0(text: str) -> float:
    value = float(text) if text.replace(".", "", 1).isdecimal() else -1.0
    if value < 0.0:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, but is {text}")
    return value


@contextmanager
def in_a_line() -> Iterator[None]:
    """End the program by what the error says, where the user can mend it; other errors keep their traceback."""
    try:
        yield
    except (RunError, SweepError, OSError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run_all(
    runs: Sequence[Any],
    work: Work,
    *,
    folder: Path,
    console: Console,
    machines: Machines = Machines(),
    shared: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The results of all runs, in their order; those whose file is there are only read.

    Equal runs are done once. A run that fails does not stop the others. Ctrl-C does, and what is finished stays.

    Parameters
    ----------
    runs : frozen dataclasses of settings.
    work : what a run does.
    folder : where results are kept.
    console : for progress: a bar in a terminal, else a line now and then.
    machines : where runs are done.
    shared : what all runs of the folder have in common and their settings do not say, such as the files of data. It is
        kept in ``folder/shared.json``, and a second start with something else is refused.

    Raises
    ------
    RunError : when runs failed, after the others are done; with their settings and errors.
    SweepError : before any run, when files are damaged or the folder is one of other runs, when no cluster answers, or
        when no machine has so many GPUs.
    OSError : when results cannot be written, after all runs: it is tried again whenever a run ends.
    """
    files = {run: run_file(run, folder) for run in runs}
    check_shared(folder, shared or {})
    results = read_all(files)
    missing = [run for run in files if run not in results]
    if results:
        console.print(f"{len(results)} of {len(files)} runs are in {folder / 'runs'} already")
    failures: list[str] = []
    kept = Keeping(files)
    try:
        for run, outcome in _outcomes(missing, len(files), work, machines, console):
            if isinstance(outcome, dict):
                results[run] = outcome
                told = kept.keep(run, outcome)
            else:
                told = f"{run!r} failed: {_words(outcome)}; {kept.keep_failure(run, str(outcome))}"
                failures.append(told)
            if told:
                console.print(told, style="red", soft_wrap=True, markup=False)
    except KeyboardInterrupt:
        count = len(results) - len(kept.waiting)
        console.print(f"stopped; {count} of {len(files)} runs are in {folder / 'runs'}, and are not done again")
        raise
    finally:
        kept.try_again()
    if failures:
        text = "\n".join(failures)
        raise RunError(f"{len(failures)} of {len(files)} runs failed; the others are in {folder / 'runs'}:\n{text}")
    return [results[run] for run in runs]


@contextmanager
def connected(machines: Machines) -> Iterator[None]:
    """Ray, on this machine or on the cluster; left at the end, whatever happens.

    Raises
    ------
    SweepError : when no cluster answers, or no machine has so many GPUs.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if ray.is_initialized():  # by the program, which keeps it
        if machines.address is not None:
            raise SweepError(f"this program is connected to a Ray already, and cannot go to {machines.address}")
        _check_gpus(machines)
        yield
        return
    if machines.address is None:
        cores = machines.jobs or os.cpu_count()
        ray.init("local", num_cpus=cores, resources={PRIVATE: 1.0}, include_dashboard=False, **quiet)
    else:
        _reach(machines.address)
        code = {"working_dir": str(Path(__file__).parent), "excludes": ["__pycache__"]}
        try:
            ray.init(machines.address, runtime_env=code, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SweepError(f"no Ray cluster answers at {machines.address} ({error})") from error
    try:
        if machines.address is not None and PRIVATE in ray.cluster_resources():
            raise SweepError(
                f"what answers at {machines.address} is the Ray of another program, and ends with it; start a cluster "
                "(ray start --head), and give its host:port"
            )
        _check_gpus(machines)
        yield
    finally:
        ray.shutdown()


def _check_gpus(machines: Machines) -> None:
    most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if machines.gpus > most:
        raise SweepError(f"--gpus {machines.gpus:g} for every run, but no machine has more than {most:g}")


def _reach(address: str) -> None:
    """Say at once that nobody answers; Ray would wait for more than a minute, and end the program."""
    if address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if not parts.hostname or not parts.port:
            raise ValueError("expected auto, host:port or ray://host:port")
        channel = grpc.insecure_channel(f"{parts.hostname}:{parts.port}")  # Ray speaks gRPC at both kinds of address
        grpc.channel_ready_future(channel).result(timeout=REACH)
        channel.close()
    except grpc.FutureTimeoutError as error:
        raise SweepError(f"no Ray cluster answers at {address} within {REACH:g} seconds") from error
    except ValueError as error:
        raise SweepError(f"no Ray cluster answers at {address} ({error})") from error


def _words(error: Exception) -> str:
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return f"{type(cause).__name__}: {cause}"


def _do(work: Work, run: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    result = work(run)
    if not isinstance(result, dict):
        raise TypeError(f"a run must return a dictionary, but returned {type(result).__name__}")
    json.dumps(result)  # what JSON cannot hold is an error of this run alone
    return result


def _outcomes(
    runs: list[Any], total: int, work: Work, machines: Machines, console: Console
) -> Iterator[tuple[Any, dict[str, Any] | Exception]]:
    """Every run with its result, or with what went wrong, as they end."""
    if not runs:
        return
    queue, running, most = deque(runs), {}, machines.jobs or len(runs)
    with connected(machines), _Board(len(runs), total, console) as board:
        task = ray.remote(num_cpus=1, num_gpus=machines.gpus, max_retries=RETRIES)(_do)
        sent = ray.put(work)
        while queue or running:
            while queue and len(running) < most:
                run = queue.popleft()
                running[task.remote(sent, run)] = run
            ended, _ = ray.wait(list(running), timeout=1.0)
            for reference in ended:
                outcome: dict[str, Any] | Exception
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as error:  # of the work itself, or lost too often
                    outcome = error
                yield running.pop(reference), outcome
            board.show(len(runs) - len(queue) - len(running))


class _Board:
    """Progress: a bar in a terminal, else a line every quarter of a minute."""

    def __init__(self, count: int, total: int, console: Console) -> None:
        self.count, self.before, self.console = count, total - count, console
        self.start = self.spoke = time.monotonic()
        columns = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
        self.bar = Progress(TextColumn("runs"), *columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("runs", total=total, completed=self.before)

    def __enter__(self) -> _Board:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, done: int) -> None:
        """So many of the runs have ended."""
        self.bar.update(self.task, completed=self.before + done)
        now = time.monotonic()
        if self.console.is_terminal or (now - self.spoke < PATIENCE and done < self.count):
            return
        self.spoke = now
        minutes = (now - self.start) / 60
        self.console.print(f"{self.before + done} of {self.before + self.count} runs, {minutes:.1f} minutes")
