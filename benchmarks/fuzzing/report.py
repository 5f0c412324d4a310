"""What a run has found: counts by kind, a line per seed, and a small program for each kind of fault."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from fuzzing.cases import draw_case
from fuzzing.crew import Done, Signature
from fuzzing.numbers import KINDS
from fuzzing.program import as_json, as_program
from fuzzing.session import SHARE, Finding, run_seed
from fuzzing.smaller import smallest, sort_of

__all__ = ["Folder", "done_with", "rows_of_table", "signature_of", "totals"]

PROGRAMS = 3
"""So many programs has a seed at most."""
VERDICTS = ("right", "wrong", "open", "refused")


def signature_of(finding: Finding, kind: str) -> Signature:
    """What makes faults one and the same kind."""
    question = finding.question
    solver = question.solver.split("(")[0]
    if " " in solver:  # of a maximizer and a projector the one that answered
        solver = solver.split()[question.what == "project"]
    return question.what, solver, finding.part, sort_of(finding.verdict.reason), kind


def done_with(seed: int, known: set[Signature] | None, draws: int = 1, share: float = SHARE) -> Done:
    """Run a seed, and make small programs of what is wrong and not yet known; none for None."""
    try:
        outcome = run_seed(seed, draws, share)
    except Exception:
        return Done(seed, crash=traceback.format_exc(limit=-6))
    done = Done(seed, outcome.instances)
    done.tallies = [(*key, count) for key, count in outcome.tallies.items()]
    case, seen = draw_case(seed, draws), set(known or ())
    for finding in outcome.wrong:
        kind = case.kinds[finding.instance]
        told = f"{finding.question.what} {finding.question.solver}, {finding.part}: {finding.verdict.reason}"
        done.wrong.append(f"seed {seed}, instance {finding.instance} ({kind}), {told}")
        signature = signature_of(finding, kind)
        if known is not None and signature not in seen and len(done.programs) < PROGRAMS:
            seen.add(signature)
            small, found = smallest(case, finding)
            done.programs.append((signature, as_program(small, found), as_json(small, found)))
    done.seconds = outcome.seconds
    return done


class Folder:
    """The folder of a run: what is done stays done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seeds = path / "seeds.jsonl"
        self.failures = path / "failures.jsonl"
        self.programs = path / "failures"
        self.known: dict[Signature, int] = {}

    def load(self) -> list[Done]:
        """What earlier runs have done; a line that was cut off is done again."""
        if not self.seeds.exists():
            return []
        found, whole = [], []
        for line in self.seeds.read_text(encoding="utf-8").splitlines():
            try:
                told = json.loads(line)
            except json.JSONDecodeError:
                continue
            whole.append(line + "\n")
            told["programs"] = [(tuple(s), "", "") for s in told["programs"]]
            done = Done(**told)
            found.append(done)
            self._count(done)
        self.seeds.write_text("".join(whole), encoding="utf-8")
        return found

    def keep(self, done: Done) -> None:
        """Write down what a seed gave."""
        self.path.mkdir(parents=True, exist_ok=True)
        for number, (signature, program, line) in enumerate(done.programs):
            self.programs.mkdir(exist_ok=True)
            name = f"{done.seed:07d}_{number}_{'_'.join(signature[:1])}.py"
            (self.programs / name).write_text(program, encoding="utf-8")
            with self.failures.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        told = asdict(done) | {"programs": [list(signature) for signature, _, _ in done.programs]}
        with self.seeds.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(told) + "\n")
        self._count(done)

    def _count(self, done: Done) -> None:
        for signature, _, _ in done.programs:
            self.known[signature] = self.known.get(signature, 0) + 1


def totals(all_done: Iterable[Done]) -> Counter[tuple[str, str, str]]:
    """Counts by question, kind and verdict."""
    found: Counter[tuple[str, str, str]] = Counter()
    for done in all_done:
        for question, kind, verdict, count in done.tallies:
            found[question, kind, verdict] += count
        if done.crash:
            found["crashes", "-", "wrong"] += 1
    return found


def rows_of_table(counts: Counter[tuple[str, str, str]]) -> list[dict[str, str]]:
    """A row for every question and kind of numbers."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    keys = sorted({key[:2] for key in counts}, key=lambda k: (k[0], order.get(k[1], -1)))
    rows = []
    for question, kind in keys:
        by_verdict = {verdict: counts[question, kind, verdict] for verdict in VERDICTS}
        rows.append(
            {
                "question": question,
                "numbers": kind,
                "answers": str(sum(by_verdict.values())),
                "wrong": str(by_verdict["wrong"]),
                "without verdict": str(by_verdict["open"]),
                "refused": str(by_verdict["refused"]),
            }
        )
    return rows
