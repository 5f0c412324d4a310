"""What the benchmark of devices found: its lines in a table, what is wrong with it, and the files that keep it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compare import BACKWARD, FORWARD
from measuring import brief, markdown
from peers import OURS

__all__ = ["Result", "by_question", "heads_of", "lines", "not_reached", "write", "wrong"]

CLOSE = 1e-6
"""Answers of ours on a device that are farther from those of the CPU are wrong; of others they are worth a word."""


@dataclass(frozen=True)
class Result:
    """One peer at one task: milliseconds per instance, or why there are none."""

    question: str
    problem: str
    batch: int
    measured: str
    peer: str
    version: str
    milliseconds: float | None = None
    ratio: float | None = None
    """By the time of ours on the device."""
    distance: float | None = None
    gradient_distance: float | None = None
    rounds: int = 0
    failure: str | None = None
    """In a few words; a message of a library may follow."""
    message: str | None = None


def by_question(results: Iterable[Result]) -> Mapping[str, list[Result]]:
    """The results of each question, in the order in which they were asked."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.question, []).append(result)
    return found


def heads_of(results: Sequence[Result]) -> list[str]:
    """Of a table: ours forward and with backward, others with backward where that was measured."""
    others = dict.fromkeys(r.peer for r in results if r.peer != OURS)
    return ["problem", "batch", *(f"{OURS}, {m}" for m in (FORWARD, BACKWARD)), *others, "distance"]


def lines(results: Iterable[Result]) -> list[dict[str, str]]:
    """Rows of a table of one question, under ``heads_of``: a line per problem and batch."""
    results = list(results)
    order = list(dict.fromkeys(r.problem for r in results))
    made: dict[tuple[int, int], dict[str, str]] = {}
    for result in results:
        line = made.setdefault((order.index(result.problem), result.batch), {})
        line |= {"problem": result.problem, "batch": f"{result.batch:,}"}
        head = f"{OURS}, {result.measured}" if result.peer == OURS else result.peer
        line[head] = cell(result)  # of others, that with backward comes last and stays
        if result.distance is not None and result.measured == FORWARD:
            far = f"{result.distance:.0e}" if result.distance else "0"
            if result.peer == OURS:
                line["distance"] = far
            elif result.distance > CLOSE:
                line["distance"] = "; ".join([*filter(None, [line.get("distance")]), f"{result.peer} {far}"])
    return [made[place] for place in sorted(made)]


def cell(result: Result) -> str:
    """A time with its ratio, or why there is none."""
    if result.milliseconds is None:
        return result.failure or ""
    by_ours = "" if result.peer == OURS or result.ratio is None else f" ({brief(result.ratio)}×)"
    return brief(result.milliseconds) + by_ours


def wrong(results: Iterable[Result]) -> list[str]:
    """Where ours failed, but for want of time or memory, or gave another answer than on the CPU."""
    found = []
    for r in results:
        place = f"{r.question} of {r.problem}, batch {r.batch}, {r.measured}: {r.peer}"
        if not r.peer.startswith(OURS):
            continue
        if r.failure is not None:
            found += [f"{place} {r.failure}: {r.message}"] if r.failure.startswith("failed") else []
        elif r.distance is None:
            found.append(f"{place} was not compared, for our CPU has no answer")
        else:
            far = [d for d in (r.distance, r.gradient_distance) if d is not None and not d <= CLOSE]
            found += [f"{place} is {far[0]:.0e} from the CPU"] if far else []
    return found


def write(folder: Path, title: str, results: Sequence[Result], open_tasks: Sequence[str]) -> None:
    """Tables as Markdown, everything as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [title]
    for question, mine in by_question(results).items():
        parts.append(f"### {question.capitalize()}\n\n{markdown(heads_of(mine), lines(mine))}")
    if open_tasks:
        parts.append(not_reached(open_tasks))
    (folder / "device.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    told = {
        "title": title,
        "results": [asdict(r) for r in results],
        "not reached": list(open_tasks),
    }
    (folder / "device.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def not_reached(open_tasks: Sequence[str]) -> str:
    """The tasks that the time did not reach, by name."""
    return "Not reached: " + "; ".join(open_tasks) + "."
