"""Verdicts on what layers and losses give, forward and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch

import optlayers as ol
from fuzzing.asking import Answer
from fuzzing.cases import Case
from fuzzing.derivatives import (
    SAMPLES,
    Interval,
    best_value,
    between,
    nearest_along,
    nearest_nearby,
    slopes,
    smoothed_value,
    value_of_nearest,
)
from fuzzing.formulas import Formula
from fuzzing.judge import APART, RIGHT, Verdict, judge, nowhere, precision
from fuzzing.layers import Returned, loss_of, run_layer
from fuzzing.numbers import DTYPES
from fuzzing.setting import Setting
from fuzzing.truth import Truth, fractions_of

__all__ = ["judge_layer", "judge_parameters", "judge_projection_gradient"]

Judged = tuple[int, str, Verdict]
"""An instance, what of it ("forward", "gradient", "gradient of parameters"), and the verdict."""
ENTRIES = 6
"""Of so many entries of the parameters are derivatives looked at, per instance."""
ORDINARY = 1e4
"""Gradients of parameters are judged next to scores up to this: multipliers have their size and their rounding."""


def judge_layer(case: Case, formula: Formula, returned: Returned, noise: np.ndarray) -> Iterator[Judged]:
    """All verdicts on one call of a layer. A weak mask may count as minus infinity or as a number."""
    setting = Setting(case, noise)
    others: dict[tuple[int, str], str] | None = None
    for k, part, verdict in _verdicts(setting, formula, returned):
        if verdict.kind == "wrong" and setting.mask_is_weak(k):
            if others is None:
                numbers = _verdicts(Setting(case, noise, as_numbers=True), formula, returned)
                others = {(j, other): v.kind for j, other, v in numbers}
            if others.get((k, part), "right") == "right":
                verdict = RIGHT
        yield k, part, verdict


def _verdicts(setting: Setting, formula: Formula, returned: Returned) -> Iterator[Judged]:
    noise = setting.noise
    drawn_apart = formula.draws and "one by one" in returned.extra  # other numbers than in the batch
    forward, back = formula.of(setting) if formula.of is not None and not drawn_apart else (None, None)
    for answer in returned.answers:
        k = answer.instance
        verdict = _forward(setting, formula, answer, None if forward is None else forward[k])
        yield k, "forward", verdict
        if answer.status != "OPTIMAL" or verdict.kind != "right":
            continue
        if returned.complaint:
            yield k, "gradient", Verdict("wrong", returned.complaint)
            continue
        assert returned.scores is not None
        if drawn_apart or setting.case.truth(k).empty:
            continue
        if formula.question == "drawn":
            yield from _drawn(setting, k, returned)
            continue
        yield k, "gradient", _confirmed(setting, formula, noise, k, _scores(setting, formula, k, returned, back))
        if returned.parameters is not None and setting.comparable[k]:
            found = judge_parameters(setting, formula, k, returned.parameters[k])
            yield k, "gradient of parameters", _confirmed(setting, formula, noise, k, found)


def _forward(setting: Setting, formula: Formula, answer: Answer, expected: np.ndarray | None) -> Verdict:
    case, k = setting.case, answer.instance
    truth = case.truth(k)
    if answer.status == "failed":
        return RIGHT if truth.empty else Verdict("open", answer.message or "failed")
    if answer.status == "error":
        refusals = ("marginals need", "cannot move a score of 0", "gradients of parameters need")
        if answer.told and any(words in answer.message for words in refusals):
            return Verdict("refused", answer.message)
        return judge(case, answer)
    assert answer.value is not None
    if not np.isfinite(answer.value).all():
        return Verdict("wrong", "not finite, but no failure")
    if formula.question in ("maximize", "project"):
        return judge(case, replace(answer, question=formula.question))
    if truth.empty:
        return nowhere(case, None, truth)
    if expected is None or np.isnan(expected).any():
        return RIGHT
    apart = float(np.abs(answer.value - expected).max(initial=0.0))
    if apart > (APART + 2 * precision(case.dtype)) * truth.size:
        return Verdict("wrong", f"{apart:.1e} from the formula", tuple(expected.tolist()))
    return RIGHT


def _scores(setting: Setting, formula: Formula, k: int, returned: Returned, back: np.ndarray | None) -> Verdict:
    case = setting.case
    assert returned.scores is not None and case.gradients is not None
    found = returned.scores[k]
    if not np.isfinite(found).all() and not _overflows(case, None if back is None else back[k], found):
        return Verdict("wrong", "the gradient is not finite")
    if np.any(found[np.isneginf(case.scores[k])] != 0.0):
        return Verdict("wrong", "a forbidden part has a gradient")
    if not setting.comparable[k]:
        return RIGHT
    if back is None:
        return judge_projection_gradient(setting, k, found)
    expected = back[k].copy()
    if case.is_masked(k):
        expected[case.masked[k]] = np.nan  # type: ignore[index]
    expected[np.isneginf(case.scores[k])] = 0.0
    told = ~np.isnan(expected)
    if np.isnan(back[k]).all() or not told.any():
        return RIGHT
    told &= np.isfinite(found)  # others are beyond the largest number of the dtype
    if not told.any():
        return RIGHT
    scale = max(case.truth(k).size, np.abs(case.gradients[k]).max(initial=0.0), np.abs(expected[told]).max())
    apart = float(np.abs(found - expected)[told].max())
    if apart > _allowed(case) * scale:
        return Verdict("wrong", f"the gradient is off by {apart:.1e}", tuple(expected.tolist()))
    return RIGHT


def _overflows(case: Case, expected: np.ndarray | None, found: np.ndarray) -> bool:
    """Whether all that is not finite is larger than the dtype of the scores can say, where the formula tells."""
    if expected is None or np.isnan(found).any():
        return False
    largest = float(torch.finfo(DTYPES[case.dtype]).max)
    return not (np.abs(expected[np.isinf(found)]) <= 0.99 * largest).any()


def _arriving(setting: Setting, k: int) -> tuple[Fraction, ...]:
    """The gradient that arrives, 0 at forbidden parts, which do not move."""
    return fractions_of(np.where(np.isneginf(setting.read.scores[k]), 0.0, setting.gradients[k]))


def _allowed(case: Case) -> float:
    return APART + 8 * precision(case.dtype)


def judge_projection_gradient(setting: Setting, k: int, found: np.ndarray) -> Verdict:
    """The derivative of the nearest point, applied to the gradient: on either side, or between what meets at a kink."""
    case, truth = setting.case, setting.read.truth(k)
    scores, gradient = fractions_of(setting.read.scores[k]), _arriving(setting, k)
    expected = np.array([float(v) for v in nearest_along(truth, scores, gradient)])
    allowed = _allowed(case) * max(1e-3, float(np.abs(setting.gradients[k]).max(initial=0.0)))
    told = np.ones(len(expected), dtype=bool)
    if case.is_masked(k):
        told = ~case.masked[k]  # type: ignore[index]
    if np.abs(found - expected)[told].max(initial=0.0) <= allowed:
        return RIGHT
    intervals = between(truth, scores, gradient, case.seed)
    misses = max((i.misses(v) for i, v, t in zip(intervals, found, told, strict=True) if t), default=0.0)
    if misses <= allowed:
        return RIGHT
    for piece in nearest_nearby(truth, scores, gradient, case.seed, SAMPLES[1]):  # or all of one that is rare
        if np.abs(found - np.array([float(v) for v in piece]))[told].max(initial=0.0) <= allowed:
            return RIGHT
    return Verdict("wrong", f"the gradient is off by {misses:.1e}", tuple(expected.tolist()))


def judge_parameters(setting: Setting, formula: Formula, k: int, found: np.ndarray) -> Verdict:
    """Derivatives by a few entries of the parameters, or by two at once where one alone would leave nothing."""
    case, truth = setting.case, setting.read.truth(k)
    if not np.isfinite(found).all():
        return Verdict("wrong", "the gradient of a parameter is not finite")
    scores = setting.read.scores[k]
    if np.abs(scores[np.isfinite(scores)]).max(initial=0.0) > ORDINARY:
        return RIGHT
    limited = [p for p in range(len(found)) if np.isfinite(setting.read.theta[k, p])]
    if np.any(found[[p for p in range(len(found)) if p not in limited]] != 0.0):
        return Verdict("wrong", "a limit that is infinite has a gradient")
    generator = np.random.default_rng([case.seed, case.numbers[k]])
    chosen = generator.permutation(limited)[:ENTRIES].tolist() if limited else []
    for place in chosen:
        for places in ([place], sorted({place, int(generator.choice(limited))})):
            verdict = _slope(setting, formula, truth, k, places, float(found[places].sum()))
            if verdict is not None:
                if verdict.kind == "wrong":
                    return verdict
                break
    return RIGHT


def _slope(
    setting: Setting, formula: Formula, truth: Truth, k: int, places: Sequence[int], found: float
) -> Verdict | None:
    """The derivative by some entries of the parameters, all moved alike; None where that leaves nothing."""
    case = setting.case
    for wide in (0, *SAMPLES):
        interval = _slope_of(setting, formula, truth, k, places, wide)
        if interval is None:
            return None
        size = max(1.0, abs(interval.low), abs(interval.high), abs(found) * 1e-3)
        rounding = precision(case.parameter_dtype) + precision(case.dtype)
        if interval.misses(found) <= (APART + 16 * rounding) * size:
            return RIGHT
    low, high = f"{interval.low:.4g}", f"{interval.high:.4g}"
    told = low if low == high else f"{low} to {high}"
    return Verdict("wrong", f"the gradient of entry {list(places)} of the parameters is {found:.4g}, not {told}")


def _slope_of(
    setting: Setting, formula: Formula, truth: Truth, k: int, places: Sequence[int], wide: int
) -> Interval | None:
    scores, gradient = fractions_of(setting.read.scores[k]), _arriving(setting, k)
    seed = setting.case.seed
    if "SparseMAP" in formula.rule:
        return slopes(value_of_nearest(gradient), truth, scores, places, wide, seed)
    here = slopes(best_value, truth, scores, places, wide, seed)
    if "smoothing" in formula.rule:
        vertex = setting.vertex[k]
        if here is None or np.isnan(vertex).any():
            return None
        strength = Fraction(1, 4)
        moved = tuple(s - strength * g for s, g in zip(scores, gradient, strict=True))
        lower = slopes(smoothed_value(fractions_of(vertex), Fraction(2)), truth, moved, places, wide, seed)
        return _quotient(here, lower, 0.25)
    both = "both" in formula.rule
    strength = Fraction(1, 2) if both else Fraction(3, 2)
    moved = tuple(s - strength * g for s, g in zip(scores, gradient, strict=True))
    lower = slopes(best_value, truth, moved, places, wide, seed)
    if both:
        ahead = tuple(s + strength * g for s, g in zip(scores, gradient, strict=True))
        here = slopes(best_value, truth, ahead, places, wide, seed)
    return _quotient(here, lower, 1.0 if both else 1.5)


def _quotient(upper: Interval | None, lower: Interval | None, width: float) -> Interval | None:
    if upper is None or lower is None:
        return None
    return Interval((upper.low - lower.high) / width, (upper.high - lower.low) / width)


def _confirmed(setting: Setting, formula: Formula, noise: np.ndarray, k: int, verdict: Verdict) -> Verdict:
    """A gradient that is wrong may be that of a failed backward pass, of which a layer that raises would tell."""
    if verdict.kind != "wrong":
        return verdict
    try:
        alone = run_layer(
            setting.case.take([k]), formula.rule, formula.question, formula.parameters, noise[:, k : k + 1], "raise"
        )
    except ol.SolveError as error:
        return Verdict("open", str(error))
    if alone.answers[0].status == "failed":
        return Verdict("open", alone.answers[0].message)
    return verdict


def _drawn(setting: Setting, k: int, returned: Returned) -> Iterator[Judged]:
    """Structures that are drawn are vertices, and what comes back is made of them and their losses."""
    case = setting.case
    if "one by one" in returned.extra or not returned.extra["drawn"]:
        return
    structures = np.stack([d[k].numpy() for d in _flat(returned.extra["drawn"])])
    truth = case.truth(k)
    for structure in structures:
        if truth.violation(structure, precision(case.dtype)) > APART * truth.size:
            yield k, "forward", Verdict("wrong", "a structure that is drawn lies outside", tuple(structure.tolist()))
            return
    losses = loss_of(structures)
    count = len(losses)
    centred = (losses - losses.mean()) * count / (count - 1)
    expected = (centred[:, None] * structures).mean(axis=0)
    expected[np.isneginf(case.scores[k])] = 0.0
    assert returned.scores is not None
    apart = float(np.abs(returned.scores[k] - expected).max(initial=0.0))
    scale = max(truth.size**3 / 2**14, 1e-3)
    wrong = apart > (_allowed(case) * 16) * scale
    yield k, "gradient", Verdict("wrong", f"the gradient is off by {apart:.1e}", tuple(expected)) if wrong else RIGHT


def _flat(drawn: Sequence[object]) -> list:
    """One array ``(instances, size)`` per sample."""
    found = []
    for part in drawn:
        array = part  # (samples, instances, size) or (instances, size)
        found += list(array) if array.ndim == 3 else [array]  # type: ignore[attr-defined]
    return found
