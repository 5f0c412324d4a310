"""All questions to one case, and what became of them."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from fuzzing.asking import MAXIMIZERS, PROJECTORS, Answer, Asked
from fuzzing.backward import judge_layer
from fuzzing.cases import Case, draw_case
from fuzzing.formulas import FORMULAS
from fuzzing.judge import Verdict, judge, judge_ties
from fuzzing.layers import noise_of, run_layer
from fuzzing.losses import LOSSES, judge_loss
from fuzzing.regularized import draw_regularizer, verdicts_on
from fuzzing.setting import VERTICES

__all__ = ["SHARE", "Finding", "Outcome", "Question", "findings", "plan", "run_seed", "verdicts"]

SHARE = 0.1
"""So many cases are asked for regularized points."""
PATIENCE = 600.0
"""A question may take so many seconds of the processor, with its judgement."""
SUMS = ("StructuredAttention", "SpigotCE", "SpigotEG", "GumbelStraightThrough", "ScoreFunction", "CRFLoss")
"""What needs all vertices, of which there are to be few."""
RARE = ("DualNewton", "ActiveSet", "CvxpyLayers")
"""Solvers that do not take every polytope, or take long."""
Tally = tuple[str, str, str]
"""What was asked, the kind of numbers, the verdict."""


@dataclass(frozen=True)
class Question:
    """What a case is asked: a best vertex or nearest point of some solver, or of two of them, a rule, or a loss."""

    what: str
    """"maximize", "project", "ties", "alone", "rule", "loss" or "regularized"."""
    solver: str = "default"
    """A maximizer and a projector, or a rule, a loss or a regularizer by its text."""

    @property
    def label(self) -> str:
        """In the table."""
        named = "" if self.solver == "default" else ", solver by name"
        return {
            "maximize": f"best vertices{named}",
            "project": f"nearest points{named}",
            "ties": "ties, two solvers",
            "alone": "ties, alone and in a batch",
            "rule": "rules",
            "loss": "losses",
            "regularized": "regularized points",
        }[self.what]


@dataclass(frozen=True)
class Finding:
    """A verdict on one instance."""

    question: Question
    part: str
    instance: int
    verdict: Verdict
    answer: Answer | None = None


@dataclass
class Outcome:
    """What a seed gave."""

    seed: int
    instances: int = 0
    tallies: Counter[Tally] = field(default_factory=Counter)
    wrong: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    """Of the processor."""


def plan(case: Case, share: float = SHARE) -> list[Question]:
    """What a case is asked, by its seed: always what users get by default, and some of everything else; a ``share`` of
    cases also for regularized points."""
    generator = np.random.default_rng([case.seed, 41])
    asked = [Question("maximize"), Question("project"), Question("alone")]
    if case.all_ties:
        return [Question("maximize"), Question("ties", _pair(generator, False))]
    oracle = case.declaration.vertices is not None or case.declaration.made_by is not None
    for _ in range(2):
        pair = _pair(generator, oracle)
        asked += [Question("maximize", pair), Question("project", pair), Question("ties", pair)]
    some = [f.rule for f in FORMULAS if f.parameters]  # those with most of their own
    rules = [generator.choice([f.rule for f in FORMULAS]), *generator.choice(some, int(generator.random() < 0.3))]
    losses = generator.choice(list(LOSSES), int(generator.random() < 0.15))
    questions = [Question("rule", str(rule)) for rule in rules] + [Question("loss", str(loss)) for loss in losses]
    few = generator.random() < 0.01 or _few_vertices(case)
    if np.random.default_rng([case.seed, 61]).random() < share:
        asked.append(Question("regularized", draw_regularizer(case)))
    return asked + [q for q in questions if few or not any(name in q.solver for name in SUMS)]


def _few_vertices(case: Case) -> bool:
    """Whether sums over all vertices are short, for an instance that stands for all."""
    truth = case.truth(0)
    return not truth.empty and not case.declaration.lifted and truth.vertices(VERTICES) is not None


class _OutOfPatience(BaseException):
    """No error of what is asked, which catches its own."""


@contextmanager
def _patience(allowed: float) -> Iterator[None]:
    """Give up when the body takes so many seconds of the processor, on whatever machine; where no signal says so, as on
    Windows, there is no limit."""
    if not hasattr(signal, "SIGPROF"):
        yield
        return

    def stop(*_: object) -> None:
        raise _OutOfPatience(f"more than {allowed:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, allowed)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _pair(generator: np.random.Generator, oracle: bool) -> str:
    """A maximizer and a projector."""
    if generator.random() < 0.08:
        return "DualNewton DualNewton"  # which takes few polytopes, and then neither question
    projectors = _weighted(PROJECTORS) + ["ActiveSet"] * 6 * oracle
    projector = "CvxpyLayers" if generator.random() < 0.01 else str(generator.choice(projectors))
    return f"{generator.choice(_weighted(MAXIMIZERS))} {projector}"


def _weighted(solvers: Sequence[str]) -> list[str]:
    """Those that take every polytope; Dense, which takes ten times as long as others, a third as often."""
    return [s for s in solvers if s not in RARE for _ in range(1 if s == "Dense" else 3)]


def findings(case: Case, question: Question) -> Iterator[Finding]:
    """The verdicts on one question, for all instances."""
    if question.what in ("maximize", "project"):
        asked = _asked(case, question)
        for answer in asked.answers(question.what):
            named = question.solver != "default"
            yield Finding(question, "forward", answer.instance, judge(case, answer, may_refuse=named), answer)
    elif question.what == "ties":
        yield from _ties(case, question)
    elif question.what == "alone":
        yield from _alone(case, question)
    elif question.what == "rule":
        formula = next(f for f in FORMULAS if f.rule == question.solver)
        noise = noise_of(case)
        returned = run_layer(case, formula.rule, formula.question, formula.parameters, noise)
        answers = {answer.instance: answer for answer in returned.answers}
        for k, part, verdict in judge_layer(case, formula, returned, noise):
            yield Finding(question, part, k, verdict, answers[k])
    elif question.what == "regularized":
        for k, part, verdict, answer in verdicts_on(case, question.solver):
            yield Finding(question, part, k, verdict, answer)
    else:
        for k, part, verdict in judge_loss(case, question.solver):
            yield Finding(question, part, k, verdict)


def verdicts(case: Case, share: float = SHARE) -> Iterator[Finding]:
    """Everything that a case is asked; a question that takes too long is wrong."""
    for question in plan(case, share):
        found: list[Finding] = []
        try:
            with _patience(PATIENCE):
                for finding in findings(case, question):
                    found.append(finding)
        except _OutOfPatience as error:
            found = [Finding(question, "forward", 0, Verdict("wrong", f"no end: {error}"))]
        yield from found


def _asked(case: Case, question: Question) -> Asked:
    maximizer, _, projector = question.solver.partition(" ")
    return Asked(case, maximizer, projector or "default")


def _ties(case: Case, question: Question) -> Iterator[Finding]:
    """What the library takes by default, without any oracle, next to a solver by name."""
    if question.solver.startswith("Auto "):
        return
    oracle = case.declaration.vertices is not None or case.declaration.made_by is not None
    first, second = Asked(case, maximizer="Auto" if oracle else "default"), _asked(case, question)
    pairs = zip(first.answers("maximize"), second.answers("maximize"), strict=True)
    for ours, theirs in pairs:
        if ours.status == theirs.status == "OPTIMAL":
            yield Finding(question, "forward", ours.instance, _of_right(case, ours, theirs), theirs)


def _of_right(case: Case, first: Answer, second: Answer) -> Verdict:
    verdict = judge_ties(case, first, second)
    if verdict.kind == "wrong" and {judge(case, first).kind, judge(case, second).kind} != {"right"}:
        return Verdict("right")  # one of them is wrong by itself, which is counted there
    return verdict


def _alone(case: Case, question: Question) -> Iterator[Finding]:
    """Two of the instances in a batch of their own, which must not change anything."""
    asked = Asked(case)
    generator = np.random.default_rng([case.seed, 43])
    together = {q: asked.answers(q) for q in ("maximize", "project")}
    for k in generator.choice(len(case), min(2, len(case)), replace=False).tolist():
        best = asked.alone("maximize", k)
        if best.status == together["maximize"][k].status:
            verdict = _of_right(case, replace(together["maximize"][k], solver="the batch"), best)
        else:
            verdict = Verdict("wrong", f"{best.status} alone, {together['maximize'][k].status} in a batch")
        yield Finding(question, "forward", k, verdict, best)


def run_seed(seed: int, draws: int = 1, share: float = SHARE) -> Outcome:
    """All of a seed, and of as many draws of scores."""
    start = time.process_time()
    case = draw_case(seed, draws)
    outcome = Outcome(seed, len(case))
    for finding in verdicts(case, share):
        kind = case.kinds[finding.instance]
        outcome.tallies[finding.question.label, kind, finding.verdict.kind] += 1
        if finding.verdict.kind == "wrong":
            outcome.wrong.append(finding)
    outcome.seconds = time.process_time() - start
    return outcome
