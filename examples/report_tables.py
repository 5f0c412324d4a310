"""What the reports of several examples share: means and gains with their intervals, and tables for a document."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Gain", "cell", "markdown_table", "mean_and_interval", "over_cases"]

RESAMPLES = 2000


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval (Student's t); NaN for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def over_cases(statistic: Callable[..., NDArray[np.float64]], count: int) -> tuple[Any, Any]:
    """The 95 % interval of a statistic over cases such as sentences: percentiles of a bootstrap that draws cases.

    ``statistic(index, axis)`` is that of the cases ``index``, which lie along an axis; it may have several values. NaN
    for a single case.
    """
    if count < 2:
        unknown = np.full_like(statistic(np.arange(count), axis=-1), np.nan)
        return unknown, unknown
    settings = {"n_resamples": RESAMPLES, "batch": 100, "vectorized": True, "method": "percentile", "rng": 0}
    return tuple(stats.bootstrap((np.arange(count),), statistic, **settings).confidence_interval)


@dataclass(frozen=True)
class Gain:
    """How much more of a measure one rule has than another.

    ``by_seed`` is half the width of the 95 % interval over runs with other seeds (Student's t, paired by seed): would
    other runs show it? ``by_sentence`` is the 95 % interval over sentences (a bootstrap, both rules on the same ones,
    all seeds together): would other sentences show it? Either is NaN for one of its kind. Neither knows of other
    comparisons: of 20 without a difference one is expected outside.
    """

    mean: float
    by_seed: float
    by_sentence: tuple[float, float]

    @property
    def sure(self) -> bool:
        """Whether both intervals leave 0 out."""
        return abs(self.mean) > self.by_seed and (self.by_sentence[0] > 0 or self.by_sentence[1] < 0)

    def __str__(self) -> str:
        low, high = (_number(value, 1, "+") for value in self.by_sentence)
        by_sentence = "" if math.isnan(self.by_sentence[0]) else f" [{low}, {high}]"
        return f"{_mean(self.mean, self.by_seed, 1, '+')}{by_sentence}{' *' if self.sure else ''}"


def cell(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """A mean with half its interval, where there is one; "+" shows the sign."""
    return _mean(*mean_and_interval(values), digits, sign)


def _mean(mean: float, half: float, digits: int, sign: str) -> str:
    return _number(mean, digits, sign) + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def _number(value: float, digits: int, sign: str) -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")  # + 0.0 makes 0 of -0


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    first, *others = (f"| {' | '.join(line)} |" for line in (header, *rows))
    return [first, "|" + "---|" * len(header), *others]
