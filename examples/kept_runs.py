"""Results of runs on disk: one file for each, whole or not at all; what all of them have in common beside them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

__all__ = ["Keeping", "SweepError", "check_shared", "hash_of", "read_all", "run_file"]


class SweepError(ValueError):
    """Something to mend before any run: the folder, a file in it, or the machines."""


def hash_of(data: Any) -> str:
    """Of the ``repr`` of data, for what a folder says of its runs: other data have another one."""
    return hashlib.sha256(repr(data).encode()).hexdigest()[:16]


def run_file(run: Any, folder: Path) -> Path:
    """Where the result of a run is, or will be."""
    text = json.dumps(_settings(run), sort_keys=True)
    return folder / "runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _settings(run: Any) -> dict[str, Any]:
    if not is_dataclass(run) or isinstance(run, type):
        raise TypeError(f"a run is a frozen dataclass of settings, but got {run!r}")
    return {"kind": type(run).__qualname__, **asdict(run)}


def check_shared(folder: Path, shared: dict[str, Any]) -> None:
    """Keep what all runs of a folder have in common, in ``shared.json``; make the folder where there is none.

    Raises
    ------
    SweepError : where the folder has runs on something else.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    path, now = folder / "shared.json", json.loads(json.dumps(shared))
    try:
        kept = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise SweepError(f"{path} is damaged ({error}); choose another folder, or remove it") from error
    if not isinstance(kept, dict):
        raise SweepError(f"{path} is damaged (no JSON object); choose another folder, or remove it")
    if now and not path.exists():
        if any((folder / "runs").iterdir()):
            raise SweepError(f"{folder} has runs, but does not say of what; choose another folder, or remove it")
        _replace(path, json.dumps(now, indent=1))
        kept = now
    if kept != now:
        names = [name for name in {**kept, **now} if kept.get(name) != now.get(name)]
        told = ", ".join(f"{name} {kept.get(name)!r}, not {now.get(name)!r}" for name in names)
        raise SweepError(f"{folder} holds runs with {told}; choose another folder, or remove it")


def read_all(files: dict[Any, Path]) -> dict[Any, dict[str, Any]]:
    """The results of those runs whose file is there.

    Raises
    ------
    SweepError : naming all files that are damaged, or hold another run.
    """
    results, wrong = {}, []
    for run, path in files.items():
        if not path.exists():
            continue
        try:
            kept = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            wrong.append(f"{path} is damaged ({error})")
            continue
        if (
            not isinstance(kept, dict)
            or "result" not in kept
            or kept.get("settings") != json.loads(json.dumps(_settings(run)))
        ):
            wrong.append(f"{path} does not hold the run {run!r}")
        else:
            results[run] = kept["result"]
    if wrong:
        raise SweepError("\n".join([*wrong, "remove what is named, and these runs are done again"]))
    return results


class Keeping:
    """Writes results as they come. One that cannot be written waits, and is tried again with the next."""

    def __init__(self, files: dict[Any, Path]) -> None:
        self.files = files
        self.waiting: dict[Any, dict[str, Any]] = {}

    def keep(self, run: Any, result: dict[str, Any]) -> str:
        """Write it, and what waits; what to tell where that failed, else nothing."""
        self.waiting[run] = result
        try:
            self.try_again()
        except OSError as error:
            return f"{error}; it is tried again when the next run ends"
        return ""

    def try_again(self) -> None:
        """Write what waits.

        Raises
        ------
        OSError : for the first one that cannot be written.
        """
        for run, result in list(self.waiting.items()):
            path = self.files[run]
            try:
                _replace(path, json.dumps({"settings": _settings(run), "result": result}))
                self._failure(path).unlink(missing_ok=True)
            except OSError as error:
                beside = sum(1 for _ in path.parent.glob("*.json"))
                text = f"{path} could not be written ({error.strerror}); {beside} finished runs are kept beside it"
                raise OSError(error.errno, text) from error
            del self.waiting[run]

    def keep_failure(self, run: Any, text: str) -> str:
        """Write what went wrong with a run; where it stands, or all of it where it cannot be written."""
        path = self._failure(self.files[run])
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{run!r}\n\n{text}\n")
        except OSError as error:
            return f"{path} could not be written ({error.strerror}):\n{text}"
        return f"see {path}"

    def _failure(self, path: Path) -> Path:
        return path.parent.parent / "failed" / f"{path.stem}.txt"


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
