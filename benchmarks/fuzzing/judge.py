"""Right, wrong, without a verdict, or refused: answers are held against what is true, in exact arithmetic.

What is allowed is relative to the size of a polytope, the largest number among its points:

- a structure lies at most :data:`OUTSIDE` outside, per row after division by its largest coefficient;
- a projection is at most :data:`APART` from the nearest point. Certificates bound the square of that distance, so a
  certified one may be 1e-4 away in principle; ours end on the exact active set and are off by rounding, 1e-12. Where
  scores are large, what their own rounding moves is allowed too, up to :data:`MOVED`; beyond, nothing is certain, and
  an answer must not pretend that it is;
- a best vertex loses at most :data:`LESS` of the numbers in which it differs from the true one, so that a part that is
  masked by -1e38 excuses nothing about the others; and it is a vertex, by the rank of its tight rows.

Numbers in a format of few digits add its precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from fuzzing.asking import Answer
from fuzzing.cases import Case
from fuzzing.nearest import dot
from fuzzing.numbers import DTYPES, MASK
from fuzzing.truth import Truth, fractions_of

__all__ = ["APART", "LESS", "OUTSIDE", "Verdict", "judge", "judge_ties", "nowhere", "precision"]

OUTSIDE, APART, LESS, MOVED = 1e-6, 1e-5, 1e-7, 1e-4
CONE = 1e-3
"""In place of APART for cone solvers of a layer, which promise no more."""
ROUNDING = 2.0**-47
"""Of sums of some products."""
MANY = 8
"""So many roundings of each parameter may come together."""


@dataclass(frozen=True)
class Verdict:
    """On one answer: "right", "wrong", "open" (there is no answer, and that is said) or "refused"."""

    kind: str
    reason: str = ""
    right: tuple[float, ...] | None = None
    """What would have been right, or one of several."""


RIGHT = Verdict("right")


def precision(dtype: str) -> float:
    """The relative rounding of a format, 0 for float64, whose rounding is below all that is allowed."""
    return 0.0 if dtype == "float64" else float(torch.finfo(DTYPES[dtype]).eps)


def judge(case: Case, answer: Answer, may_refuse: bool = False) -> Verdict:
    """The verdict on an answer; a solver that was asked for by name ``may_refuse`` polytopes that it is not for."""
    truth = case.truth(answer.instance)
    verdict = _judge(case, answer, truth, may_refuse)
    if verdict.kind == "wrong" and case.is_masked(answer.instance):
        numbers = case.scores[answer.instance][case.masked[answer.instance]]  # type: ignore[index]
        if numbers.max() <= MASK or np.all(numbers == torch.finfo(DTYPES[case.dtype]).min):
            forbidden = _judge(case, answer, case.truth(answer.instance, forbid_masked=True), may_refuse)
            verdict = verdict if forbidden.kind == "wrong" else forbidden
    return verdict


def _judge(case: Case, answer: Answer, truth: Truth, may_refuse: bool) -> Verdict:
    if answer.status == "error":
        return _error(answer, truth, may_refuse)
    if answer.status == "INFEASIBLE":
        if truth.empty:
            # Equalities that depend on each other contradict each other by rounding; a bound is a bound.
            if truth.loosened(_rounding(case) / 2, equalities_alone=True).empty:
                return RIGHT
            return Verdict("wrong", "called infeasible for the rounding of its numbers")
        return Verdict("wrong", "called infeasible, but there is a point", _some(truth, case, answer))
    if answer.status == "UNBOUNDED":
        if answer.question == "maximize" and truth.unbounded:
            return RIGHT
        return Verdict("wrong", "called unbounded, but it is not")
    if answer.status != "OPTIMAL":
        return Verdict("open", answer.status)
    assert answer.value is not None
    if not np.isfinite(answer.value).all():
        return Verdict("wrong", "not finite, but called optimal")
    if truth.empty:
        return nowhere(case, answer.value, truth)
    if answer.question == "maximize":
        return _vertex(case, answer, truth)
    return _projection(case, answer, truth)


def _error(answer: Answer, truth: Truth, may_refuse: bool) -> Verdict:
    if not answer.told:
        return Verdict("wrong", f"a raw error: {answer.message}")
    if "empty" in answer.message and "DeclarationError" in answer.message:
        if truth.empty:
            return RIGHT
        return Verdict("wrong", f"refused as empty, but there is a point: {answer.message}")
    if "unbounded" in answer.message and "DeclarationError" in answer.message and truth.unbounded:
        return RIGHT
    if may_refuse and ("DeclarationError" in answer.message or "to solvers of rows" in answer.message):
        return Verdict("refused", answer.message)
    return Verdict("wrong", f"refused: {answer.message}")


def _some(truth: Truth, case: Case, answer: Answer) -> tuple[float, ...]:
    scores = fractions_of(case.scores[answer.instance])
    point = truth.best(scores).point if answer.question == "maximize" else truth.nearest(scores)
    return tuple(float(v) for v in point)


def _rounding(case: Case) -> float:
    """How far a parameter may be from the number that was meant, twice that is."""
    return precision(case.parameter_dtype) or float(np.finfo(np.float64).eps)


def nowhere(case: Case, structure: np.ndarray | None, truth: Truth) -> Verdict:
    """An answer where there is no point: allowed when the numbers contradict each other by their rounding alone."""
    loosened = truth.loosened(MANY * _rounding(case))
    if loosened.empty:
        return Verdict("wrong", "an answer, but nothing satisfies the constraints")
    outside = 0.0 if structure is None else loosened.violation(structure, precision(case.dtype))
    if outside > OUTSIDE * loosened.size:
        return Verdict("wrong", f"outside by {outside:.1e}, more than the rounding of the numbers")
    return RIGHT


def _vertex(case: Case, answer: Answer, truth: Truth) -> Verdict:
    scores, given = fractions_of(case.scores[answer.instance]), answer.value
    best = truth.best(scores)
    right = tuple(float(v) for v in best.point)
    rounding = precision(case.dtype)
    tolerance = (APART + rounding) * truth.size
    if _apart(given, best.point) <= tolerance and (best.unique or not case.declaration.lifted):
        return RIGHT
    outside = truth.violation(given, rounding)
    if outside > OUTSIDE * truth.size:
        return Verdict("wrong", f"outside by {outside:.1e}", right)
    loss, numbers, held, largest = _loss(scores, best.point, given, tolerance)
    allowed = Fraction(LESS + 2 * rounding) * numbers + Fraction(rounding) * held + Fraction(ROUNDING) * largest
    if loss > allowed:
        rounded = truth.best_that_rounds_to(given, rounding, scores)  # some parts may be tied, and off by rounding
        if rounded is None or best.value - rounded > Fraction(LESS) * numbers:
            return Verdict("wrong", f"worth {_told(loss)} less than the best vertex", right)
    if not truth.is_vertex(given, 4 * OUTSIDE * truth.size, rounding):
        return Verdict("wrong", "no vertex", right)
    return RIGHT


def _loss(
    scores: tuple[Fraction, ...], best: tuple[Fraction, ...], given: np.ndarray, tolerance: float
) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """What is lost against the best, the numbers by which the two differ, where they do what is given, and all."""
    steps = [b - g if abs(b - g) > tolerance else Fraction(0) for b, g in zip(best, fractions_of(given), strict=True)]
    numbers = sum((abs(s * d) for s, d in zip(scores, steps, strict=True)), Fraction(0))
    largest = [abs(s) * max(abs(b), abs(b - d)) for s, b, d in zip(scores, best, steps, strict=True)]
    held = sum((abs(s * (b - d)) for s, b, d in zip(scores, best, steps, strict=True) if d), Fraction(0))
    return dot(scores, steps), numbers, held, sum(largest, Fraction(0))


def _projection(case: Case, answer: Answer, truth: Truth) -> Verdict:
    scores, given = fractions_of(case.scores[answer.instance]), answer.value
    assert given is not None
    nearest = truth.nearest(scores)
    right = tuple(float(v) for v in nearest)
    # Scores of 1e9 are themselves rounded by 1e-7, which moves the nearest point by up to that.
    used = [abs(s) for s, x, g in zip(scores, nearest, given, strict=True) if x or abs(g) > OUTSIDE * truth.size]
    moved = min(Fraction(32 * np.finfo(np.float64).eps) * sum(used, Fraction(0)), Fraction(MOVED * truth.size))
    accuracy = CONE if answer.solver == "CvxpyLayers" else APART
    apart = _apart(given, nearest)
    if apart <= (accuracy + precision(case.dtype)) * truth.size + float(moved):
        return RIGHT
    outside = truth.violation(given, precision(case.dtype))
    return Verdict("wrong", f"{apart:.1e} from the nearest point, {outside:.1e} outside", right)


def _told(number: Fraction) -> str:
    try:
        return f"{float(number):.3g}"
    except OverflowError:
        return "more than 1e308"


def _apart(given: np.ndarray | None, true: tuple[Fraction, ...]) -> float:
    assert given is not None
    return max((abs(float(g) - float(t)) for g, t in zip(given, true, strict=True)), default=0.0)


def judge_ties(case: Case, first: Answer, second: Answer) -> Verdict:
    """Two answers for the same scores, both right by themselves: another solver, or the same alone and in a batch.

    Where vertices tie exactly, the choice between them is a matter of the scores alone. Where they differ by rounding,
    either may be taken.
    """
    if first.value is None or second.value is None or first.status != "OPTIMAL" or second.status != "OPTIMAL":
        return RIGHT
    truth = case.truth(first.instance)
    if truth.empty:
        return RIGHT
    tolerance = (APART + precision(case.dtype)) * truth.size
    steps = [
        Fraction(float(a)) - Fraction(float(b)) if abs(a - b) > 2 * tolerance else Fraction(0)
        for a, b in zip(first.value, second.value, strict=True)
    ]
    if not any(steps):
        return RIGHT
    scores = fractions_of(case.scores[first.instance])
    if dot(scores, steps) == 0:
        return Verdict("wrong", f"a tie is decided otherwise by {second.solver}", tuple(float(v) for v in first.value))
    return RIGHT
