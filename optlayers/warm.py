"""Compile all kernels ahead, in parallel: ``python -m optlayers.warm``.

Otherwise each is compiled when it is called for the first time on a machine. What is on disk already is left alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from numba.core.sigutils import normalize_signature

from optlayers.common.kernel_cache import cached_functions, is_on_disk
from optlayers.solvers import kernels

__all__ = ["main", "missing", "tasks"]

CATALOGUE = "polytopes"
"""The package of declarations that comes with optlayers; its module ``_ahead`` says what to call there."""


def main() -> int:
    """Compile what is missing on disk; 0 when all is there then, else 1."""
    start = time.perf_counter()
    there = len(_functions())
    if not missing():
        print(f"all {there} compiled functions of optlayers are on disk already")
        return 0
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    print(f"compiling {len(missing())} functions of optlayers for this machine, in {workers} processes ...", flush=True)
    failed = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_be_quiet) as pool:
        futures = {pool.submit(run, task): task for task in tasks()}
        for future in _with_progress(as_completed(futures), len(futures)):
            if future.exception() is not None:
                failed.append(f"{futures[future]}: {future.exception()!r}")
    failed += [f"{name}: it is not on disk; is the cache of numba writable?" for name in missing()]
    if failed:
        print("optlayers could not compile:\n  " + "\n  ".join(failed), file=sys.stderr)
        return 1
    print(f"done in {time.perf_counter() - start:.0f} s; {there} compiled functions are on disk")
    return 0


def tasks() -> list[str]:
    """What one process does after the other, longest first: all calls of the catalogue, and kernel by kernel."""
    ahead = [CATALOGUE] if importlib.util.find_spec(CATALOGUE) else []
    return ahead + [name for name, (_, signatures) in _functions().items() if signatures]


def run(task: str) -> None:
    """Do one task: compile a function for its signatures, or call everything of the catalogue."""
    if task == CATALOGUE:
        calls: dict[str, Callable[[], object]] = importlib.import_module(f"{CATALOGUE}._ahead").calls()
        for call in calls.values():
            call()
        return
    function, signatures = _functions()[task]
    for signature in signatures:
        arguments, _ = normalize_signature(signature)
        function.compile(arguments)  # a text would be another key on disk than the kinds that a call has


def missing() -> list[str]:
    """The functions of optlayers and of the catalogue that are not on disk."""
    return [name for name, (function, _) in _functions().items() if not is_on_disk(function)]


def _functions() -> dict[str, tuple[Any, tuple[str, ...]]]:
    """All cached functions by name, those of modules too that nobody has imported yet."""
    packages = [kernels]
    if importlib.util.find_spec(CATALOGUE):
        packages.append(importlib.import_module(CATALOGUE))
    for package in packages:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    own = ("optlayers.", f"{CATALOGUE}.")
    return {
        f"{function.py_func.__module__}.{function.py_func.__qualname__}": (function, signatures)
        for function, signatures in cached_functions().items()
        if function.py_func.__module__.startswith(own)
    }


def _be_quiet() -> None:
    """In a process of its own: what is compiled there has been said."""
    os.environ["OPTLAYERS_QUIET"] = "1"


def _with_progress(done: Iterable[Future[None]], count: int) -> Iterator[Future[None]]:
    """A bar where rich is installed, else a line of dots."""
    try:
        from rich.progress import track
    except ImportError:
        for future in done:
            print(".", end="", flush=True)
            yield future
        print()
        return
    yield from track(done, description="compiling", total=count)


if __name__ == "__main__":
    sys.exit(main())
