"""Regularized points: which regularizer a case is asked about, and what is right, in numbers of 120 digits.

A point is right where it is at most APART from the best one (:mod:`fuzzing.judge`), next to the size of the polytope
and to 1, and to what the rounding of large scores moves. A gradient is right where it is the derivative at the best
point, if that has one and numbers are neither masks nor far apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, DecimalException
from fractions import Fraction

import numpy as np
import torch

import optlayers as ol
from fuzzing.asking import Answer, compiled, in_words, parameters_of, scores_of
from fuzzing.cases import Case
from fuzzing.declarations import Declaration
from fuzzing.exact import Empty, Polyhedron, Row, Unbounded
from fuzzing.judge import APART, MOVED, OUTSIDE, RIGHT, Verdict, nowhere, precision
from fuzzing.layers import noise_of, run_layer
from fuzzing.numbers import DTYPES, MASK
from fuzzing.smooth import Curve, Smooth, TooLarge, best_point
from fuzzing.truth import fractions_of

__all__ = ["answers_of", "draw_regularizer", "judge_regularized", "verdicts_on"]

JUDGED = 3
"""So many instances of a case are judged, which takes longer than to answer them."""
FAR = 1e6
"""Gradients are judged where scores are at most so many times the number of the regularizer."""
SLOPE = 1e-5
"""How much a gradient may be off, next to its largest entry."""
NEAR = Decimal("1e-6")
"""Rows that are so near to tight, or multipliers to 0, may have a kink."""
ATOMS = re.compile(r"cp\.(?!sum\(|cumsum|diff|vec|reshape|hstack|vstack|multiply|trace|diag)\w")
"""Functions of cvxpy that are not linear."""
REFUSED = ("regularized points need", "has the parameter", "not solved on constraints that are many")


def draw_regularizer(case: Case) -> str:
    """As text, by the seed of the case."""
    generator = np.random.default_rng([case.seed, 53])
    kind = generator.choice(["Euclidean", "weights", "Entropy", "Tsallis", "Barrier"], p=[0.15, 0.15, 0.4, 0.2, 0.1])
    if kind == "Euclidean":
        return f"ol.Euclidean({_number(generator, -3, 3)})"
    if kind == "weights":
        weights = np.array([_number(generator, -2, 2) for _ in range(case.declaration.size)])
        return f"ol.Euclidean({weights.reshape(case.declaration.shape).tolist()})"
    if kind == "Entropy":
        return f"ol.Entropy({_number(generator, -2.5, 2)})"
    if kind == "Tsallis":
        return f"ol.Tsallis({generator.choice([1.1, 1.25, 1.5, 2.0, 3.0]):g})"
    return f"ol.Barrier({_number(generator, -3, 1)})"


def _number(generator: np.random.Generator, low: float, high: float) -> float:
    """A round one, or any."""
    if generator.random() < 0.3:
        return float(generator.choice([0.1, 0.5, 1.0, 10.0]))
    return float(f"{10.0 ** generator.uniform(low, high):.3g}")


def _made(text: str) -> ol.AbstractRegularizer:
    made: ol.AbstractRegularizer = eval(text, {"ol": ol})
    return made


def answers_of(case: Case, text: str) -> list[Answer]:
    """Points for all instances in one batch; where that raises, for each by itself."""
    regularizer = _made(text)

    def ask(instances: list[int]) -> list[Answer]:
        polytope = compiled(case.declaration)
        solution = polytope.regularized(scores_of(case, instances), regularizer, **parameters_of(case, instances))
        values = solution.value.to(torch.float64).reshape(len(instances), -1).numpy()
        named = [ol.Status(int(status)).name for status in solution.status]
        return [
            Answer("regularized", text, k, status, value)
            for k, status, value in zip(instances, named, values, strict=True)
        ]

    def alone(instance: int) -> Answer:
        try:
            return ask([instance])[0]
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return Answer("regularized", text, instance, "error", None, message, in_words(error))

    try:
        return ask(list(range(len(case))))
    except Exception as error:
        found = [alone(k) for k in range(len(case))]
        if found and all(answer.status != "error" for answer in found):  # the batch is at fault, and no instance
            message = f"together, but not alone: {type(error).__name__}: {error}"
            found[0] = Answer("regularized", text, 0, "error", None, message, False)
        return found


def verdicts_on(case: Case, text: str) -> Iterator[tuple[int, str, Verdict, Answer]]:
    """Of some instances: the point, and where it is right the gradient."""
    generator = np.random.default_rng([case.seed, 59])
    chosen = sorted(generator.choice(len(case), min(JUDGED, len(case)), replace=False).tolist())
    answers = answers_of(case, text)
    gradients = None
    for k in chosen:
        try:
            verdict, best = judge_regularized(case, answers[k])
        except (TooLarge, Unbounded, DecimalException):
            continue
        yield k, "forward", verdict, answers[k]
        if best is None or verdict.kind != "right" or answers[k].status != "OPTIMAL" or "Barrier" in text:
            continue
        if gradients is None:
            gradients = run_layer(case.take(chosen), f"ol.Regularized({text})", "regularized", False, noise_of(case))
        place = chosen.index(k)
        given = gradients.answers[place]
        if given.status == "failed":
            yield k, "gradient", Verdict("open", given.message or "failed"), answers[k]
        elif given.status != "error" and gradients.scores is not None:
            found = _gradient(case, k, text, best, gradients.scores[place])
            if found is not None:
                yield k, "gradient", found, answers[k]


def judge_regularized(case: Case, answer: Answer) -> tuple[Verdict, Smooth | None]:
    """The verdict on a point, and the best one; a mask may count as minus infinity or as a number.

    Raises
    ------
    TooLarge, Unbounded : where nothing can be said.
    """
    verdict, best = _judge(case, answer, ())
    k = answer.instance
    if verdict.kind == "wrong" and case.is_masked(k):
        masked = np.flatnonzero(case.masked[k])  # type: ignore[index]
        numbers = case.scores[k][masked]
        if numbers.max() <= MASK or np.all(numbers == torch.finfo(DTYPES[case.dtype]).min):
            other, near = _judge(case, answer, masked.tolist())
            return (verdict, best) if other.kind == "wrong" else (other, near)
    return verdict, best


def _judge(case: Case, answer: Answer, forbidden: Sequence[int]) -> tuple[Verdict, Smooth | None]:
    truth, k = case.truth(answer.instance, forbid_masked=bool(forbidden)), answer.instance
    if answer.status == "error":
        if answer.told and any(words in answer.message for words in REFUSED):
            return Verdict("refused", answer.message), None
        if answer.told and "DeclarationError" in answer.message and (truth.empty or truth.unbounded):
            return RIGHT, None
        kind = "refused" if "ValueError: " in answer.message and answer.told else "a raw error"
        return Verdict("wrong", f"{kind}: {answer.message}"), None
    if answer.status not in ("OPTIMAL", "INFEASIBLE"):
        return Verdict("open", answer.status), None
    if truth.empty:
        if answer.status == "INFEASIBLE":
            return RIGHT, None
        assert answer.value is not None
        return nowhere(case, answer.value, truth), None
    scores = fractions_of(case.scores[k])
    regularizer = _made(answer.solver)
    barrier = isinstance(regularizer, ol.Barrier)
    if barrier and (_has_atoms(truth.declaration) or not _plain(truth.rows, truth.declaration.columns)):
        raise TooLarge
    curves = _curves(regularizer, case)
    weight = Fraction(float(regularizer.mu)) if isinstance(regularizer, ol.Barrier) else None  # type: ignore[arg-type]
    try:
        best = best_point(truth.rows, truth.declaration.columns, scores, curves, weight)
    except Empty:
        if answer.status == "INFEASIBLE":
            return RIGHT, None
        domain = "an answer, but the regularizer is finite nowhere"
        outside = -float(np.min(answer.value, initial=0.0)) if answer.value is not None else 0.0
        near = _touches(truth.rows, truth.declaration.columns, curves)
        return (RIGHT if near and outside < OUTSIDE else Verdict("wrong", domain)), None
    right = tuple(float(v) for v in best.point[: len(curves)])
    if answer.status == "INFEASIBLE":
        tight = max((float(r) for r in best.room), default=0.0)
        if barrier and (not best.room or tight < 1e-7 * truth.size):
            return RIGHT, None
        loosened = truth.loosened(float(np.finfo(np.float64).eps) / 2, equalities_alone=True)
        return Verdict("wrong", "called infeasible, but there is a point", right) if not loosened.empty else RIGHT, None
    assert answer.value is not None
    if not np.isfinite(answer.value).all():
        return Verdict("wrong", "not finite, but called optimal"), None
    size = max(truth.size, 1.0) if not barrier else truth.size
    bends = [float(c.bend(z)) for c, z in zip(curves, best.point, strict=False)]
    least = min((b for b in bends if b > 0.0), default=0.0)
    moved = 0.0
    if least > 0.0:
        used = sum(abs(float(s)) for s in scores)
        moved = min(32 * np.finfo(np.float64).eps * used / least, MOVED * size)
    apart = max((abs(float(g) - t) for g, t in zip(answer.value, right, strict=True)), default=0.0)
    if apart <= (APART + precision(case.dtype)) * size + moved:
        return RIGHT, best
    outside = truth.violation(answer.value, precision(case.dtype))
    return Verdict("wrong", f"{apart:.1e} from the best point, {outside:.1e} outside", right), best


def _touches(rows: Sequence[Row], columns: int, curves: Sequence[Curve]) -> bool:
    """Whether a point would be in the domain but for the rounding of numbers."""
    positive = [j for j, curve in enumerate(curves) if curve.positive]
    near = [Row(tuple(Fraction(-int(i == j)) for i in range(columns)), Fraction(OUTSIDE)) for j in positive]
    try:
        Polyhedron([*rows, *near], columns)
    except Empty:
        return False
    return True


def _curves(regularizer: ol.AbstractRegularizer, case: Case) -> list[Curve]:
    """Of every part."""
    size = case.declaration.size
    if isinstance(regularizer, ol.Barrier):
        return [Curve("none")] * size
    if isinstance(regularizer, ol.Euclidean):
        weights = np.broadcast_to(np.asarray(regularizer.number, dtype=float).reshape(-1), (size,))
        return [Curve("square", Decimal(float(w))) for w in weights]
    if isinstance(regularizer, ol.Tsallis):
        return [Curve("power", Decimal(1), Decimal(float(regularizer.alpha)))] * size  # type: ignore[arg-type]
    assert isinstance(regularizer, ol.Entropy)
    weight = Decimal(float(regularizer.temperature))  # type: ignore[arg-type]
    bits = _bits(case)
    if bits and "cumsum" in case.declaration.source():
        raise TooLarge  # cvxpy makes an equation of it, and of its parts no bits
    return [Curve("bits" if j in bits else "entropy", weight) for j in range(size)]


def _bits(case: Case) -> set[int]:
    """The parts that are in no equation, and between 0 and 1 by numbers that are no parameters."""
    low: dict[int, float] = {}
    high: dict[int, float] = {}
    together: set[int] = set()
    for line in case.declaration.lines:
        entries = {j: term for j, term in line.coefficients.items() if term.constant or term.parameters}
        if line.equality:
            together |= set(entries)
        elif len(entries) == 1 and not line.bound.parameters:
            ((j, term),) = entries.items()
            if not term.parameters:
                end = line.bound.constant / term.constant
                if term.constant > 0:
                    high[j] = min(high.get(j, np.inf), end)
                else:
                    low[j] = max(low.get(j, -np.inf), end)
    return {j for j in low.keys() & high.keys() if low[j] == 0.0 and high[j] == 1.0} - together


def _has_atoms(declaration: Declaration) -> bool:
    """Whether cvxpy writes a constraint by other inequalities than those of the judge, which have another barrier."""
    return any(ATOMS.search(constraint.text) for constraint in declaration.constraints)


def _plain(rows: Sequence[Row], columns: int) -> bool:
    """Whether all inequalities count once in a barrier: none repeats another, all have room, and all are of a size."""
    seen = set()
    for row in rows:
        if row.equality or not any(row.coefficients):
            if not row.equality or sum(1 for a in row.coefficients if a) < 2:
                return False
            continue
        largest = max(abs(a) for a in row.coefficients)
        direction = tuple(a / largest for a in row.coefficients)
        if direction in seen:
            return False
        seen.add(direction)
    try:
        polyhedron = Polyhedron(rows, columns)
        for row in rows:
            if not row.equality:
                room = row.bound + polyhedron.maximize(tuple(-a for a in row.coefficients)).value
                if room <= Fraction(1, 1000) * max(abs(a) for a in row.coefficients):
                    return False
    except (Empty, Unbounded):
        return False
    return True


def _gradient(case: Case, k: int, text: str, best: Smooth, found: np.ndarray) -> Verdict | None:
    """The verdict on a gradient, None where there is none to be had."""
    regularizer, scores = _made(text), case.scores[k]
    if not np.isfinite(found).all():
        return Verdict("wrong", "the gradient is not finite")
    if case.is_masked(k) or case.truth(k).empty:
        return None
    number = float(np.min(np.asarray(regularizer.number, dtype=float)))  # type: ignore[arg-type]
    finite = scores[np.isfinite(scores)]
    if np.abs(finite).max(initial=0.0) > FAR * min(number, 1.0) or case.truth(k).size > FAR:
        return None
    if isinstance(regularizer, ol.Tsallis) and float(regularizer.alpha) > 2.0:  # type: ignore[arg-type]
        return None  # which bends nowhere next to 0
    if any(width < NEAR for width in best.widths):
        return None  # what is open by rounding alone is fixed for the library
    assert case.gradients is not None
    right = best.pulled_back(fractions_of(case.gradients[k]), NEAR)
    if right is None:
        return None
    expected = np.array([float(v) for v in right])
    allowed = (SLOPE + 4 * precision(case.dtype)) * np.abs(expected).max(initial=0.0) + 1e-9 * max(1.0, 1.0 / number)
    if case.dtype == "float16":
        allowed += 1e-6
        found = np.where(np.isinf(found), expected, found)
    apart = float(np.abs(found - expected).max(initial=0.0))
    if apart <= allowed:
        return RIGHT
    return Verdict(
        "wrong", f"the gradient is off by {apart:.1e} of {np.abs(expected).max():.1e}", tuple(expected.tolist())
    )
