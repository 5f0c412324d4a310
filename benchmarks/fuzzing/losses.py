"""Losses: their values and gradients, by formulas around exact best values and nearest points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from fuzzing.backward import Judged
from fuzzing.cases import Case
from fuzzing.judge import APART, RIGHT, Verdict, judge, precision
from fuzzing.layers import Returned, noise_of, run_loss
from fuzzing.numbers import rounded
from fuzzing.setting import Setting
from fuzzing.truth import fractions_of

__all__ = ["LOSSES", "judge_loss", "targets_of"]

Pair = tuple[np.ndarray, np.ndarray]
"""Values ``(instances,)`` and gradients ``(instances, size)``; NaN where nothing is known."""
ORDINARY = 1e4


def _value(scores: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (scores * points).sum(axis=1)


def _perceptron(setting: Setting, targets: np.ndarray, extra: np.ndarray) -> Pair:
    best = setting.vertex
    return _value(setting.scores, best - targets), best - targets


def _sparsemap(setting: Setting, targets: np.ndarray, extra: np.ndarray) -> Pair:
    near = setting.nearest(setting.scores)
    value = _value(setting.scores, near - targets) - 0.5 * (near**2).sum(axis=1) + 0.5 * (targets**2).sum(axis=1)
    return value, near - targets


def _crf(setting: Setting, targets: np.ndarray, extra: np.ndarray) -> Pair:
    value = np.full(len(targets), np.nan)
    for k in np.flatnonzero(setting.comparable):
        if setting.weights(setting.scores[k], k) is not None:
            values = setting.vertices(k) @ setting.scores[k]
            value[k] = values.max() + np.log(np.exp(values - values.max()).sum()) - setting.scores[k] @ targets[k]
    return value, setting.means(setting.scores) - targets


def _hinge(setting: Setting, targets: np.ndarray, extra: np.ndarray) -> Pair:
    best = setting.best(setting.scores + extra)
    return _value(setting.scores + extra, best - targets), best - targets


def _spo_plus(setting: Setting, targets: np.ndarray, extra: np.ndarray) -> Pair:
    known, asked = setting.best(extra), 2.0 * setting.scores - extra
    best = setting.best(asked)
    return _value(asked, best - known), 2.0 * (best - known)


LOSSES: dict[str, Callable[[Setting, np.ndarray, np.ndarray], Pair]] = {
    "ol.StructuredPerceptronLoss": _perceptron,
    "ol.SparseMAPLoss": _sparsemap,
    "ol.CRFLoss": _crf,
    "ol.StructuredHingeLoss": _hinge,
    "ol.SPOPlusLoss": _spo_plus,
}


def judge_loss(case: Case, loss: str) -> Iterator[Judged]:
    """A loss is asked and judged, for the instances that have a structure without masked parts."""
    usable = [k for k in range(len(case)) if not case.truth(k, forbid_masked=True).empty]
    some = case.take(usable)
    if not usable:
        return
    targets, extra = targets_of(some, loss)
    returned = run_loss(some, loss, targets, extra)
    for k, part, verdict in _verdicts(some, loss, returned, noise_of(some), targets, extra):
        yield usable[k], part, verdict


def targets_of(case: Case, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """A vertex per instance that has no masked part, and costs or true scores, of an instance always the same."""
    targets, extra = np.zeros(case.scores.shape), np.zeros(case.scores.shape)
    for k, number in enumerate(case.numbers):
        generator = np.random.default_rng([case.seed, 37, number])
        wanted = fractions_of(generator.integers(-64, 65, case.declaration.size) / 64.0)
        targets[k] = [float(v) for v in case.truth(k, forbid_masked=True).best(wanted).point]
        extra[k] = np.round(16 * generator.standard_normal(case.declaration.size)) / 16
    if "SPOPlus" in loss:
        unwanted = np.isneginf(case.scores) | (False if case.masked is None else case.masked)
        extra = np.where(unwanted, case.scores, extra)
    return targets, extra


def _verdicts(
    case: Case, loss: str, returned: Returned, noise: np.ndarray, targets: np.ndarray, extra: np.ndarray
) -> Iterator[Judged]:
    setting = Setting(case, noise)
    finite = np.where(np.isneginf(extra), 0.0, extra)
    values, gradients = LOSSES[loss](setting, targets, finite)
    for answer in returned.answers:
        k = answer.instance
        if answer.status in ("error", "failed"):
            yield k, "forward", _refusal(case, answer.message) or judge(case, replace(answer, question="maximize"))
            continue
        assert answer.value is not None and returned.scores is not None
        back, told = returned.scores[k], ~np.isneginf(case.scores[k])
        if case.is_masked(k):
            told &= ~case.masked[k]  # type: ignore[index]
        largest = np.abs(setting.scores[k][told]).max(initial=1.0)
        truth = case.truth(k)
        if np.isnan(values[k]) or np.isnan(gradients[k]).any() or largest > ORDINARY or truth.empty:
            continue
        rounding = precision(case.dtype)
        scale = max(1.0, truth.size) * max(1.0, largest, truth.size) * case.declaration.size
        right = rounded(np.array([values[k]]), case.dtype)[0]
        if np.isinf(right) and float(answer.value[0]) == right:  # the format holds no such number
            yield k, "forward", RIGHT
            continue
        apart = abs(float(answer.value[0]) - float(values[k]))
        if not apart <= (APART + 4 * rounding) * scale:
            yield k, "forward", Verdict("wrong", f"the loss is off by {apart:.1e}", (float(values[k]),))
            continue
        yield k, "forward", RIGHT
        off = float(np.abs(back - gradients[k])[told].max(initial=0.0))
        if returned.complaint or not off <= (APART + 4 * rounding) * truth.size * 4:
            reason = returned.complaint or f"the gradient is off by {off:.1e}"
            yield k, "gradient", Verdict("wrong", reason, tuple(gradients[k].tolist()))
            continue
        yield k, "gradient", RIGHT


def _refusal(case: Case, message: str) -> Verdict | None:
    """What losses may refuse: targets that are rounded by the format of the scores, and sums over many vertices."""
    if "marginals" in message or ("target" in message and precision(case.dtype)):
        return Verdict("refused", message)
    if "SolveError" in message:
        return Verdict("open", message)
    return None
