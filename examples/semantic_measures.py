"""What the runs of syntax_to_semantics.py come to, and how sure a difference between two rules is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report_tables import Gain, mean_and_interval, over_cases
from semantic_training import COUNTS, Run

__all__ = ["MEASURES", "Result", "gain"]

MEASURES = ("tree attachment", "semantic F1", "labelled F1")


@dataclass(frozen=True)
class Result:
    """A run, and what :func:`semantic_training.train` says of it."""

    run: Run
    kept: dict[str, Any]

    @property
    def split(self) -> str:
        """What is reported: "test" where there is one, else "dev"."""
        return "dev" if self.kept["test"] is None else "test"

    @property
    def counts(self) -> NDArray[np.int64]:
        """COUNTS of every sentence that is reported, after the last epoch."""
        return np.array(self.kept[self.split])

    @property
    def final(self) -> dict[str, float]:
        """MEASURES of what is reported, in %."""
        return _named(measures_of(self.counts.sum(axis=0)))

    @property
    def on_dev(self) -> dict[str, float]:
        """MEASURES of dev, by which is chosen."""
        return self.curve[-1]

    @property
    def curve(self) -> list[dict[str, float]]:
        """MEASURES of dev after every epoch."""
        return [_named(measures_of(np.array(counts))) for counts in self.kept["curve"]]


def measures_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """MEASURES in % of sums of COUNTS, ``(..., 6)`` to ``(..., 3)``; the attachment of no tree is 0.

    Attachment is unlabelled, with punctuation. F1 is that of (predicate, argument) pairs, without and with labels.
    """
    words, heads, found, gold, both, right = (counts[..., COUNTS.index(name)] for name in COUNTS)
    pairs = np.maximum(1, found + gold)
    return np.stack([100 * heads / np.maximum(1, words), 200 * both / pairs, 200 * right / pairs], axis=-1)


def _named(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(MEASURES, values.tolist(), strict=True))


def gain(mine: Sequence[Result], other: Sequence[Result]) -> dict[str, Gain]:
    """Of every measure: runs of one rule against those of another with the same seeds, in any order.

    Raises
    ------
    ValueError : when the seeds are not the same.
    """
    mine, other = (sorted(results, key=lambda r: r.run.seed) for results in (mine, other))
    if [r.run.seed for r in mine] != [r.run.seed for r in other]:
        raise ValueError("gains are paired by seed, but the runs have other seeds")
    both = np.stack([sum(r.counts for r in results) for results in (mine, other)])

    def difference(index: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        first, second = measures_of(both[:, index].sum(axis=axis - 1 if axis < 0 else axis + 1))
        return np.moveaxis(first - second, -1, 0)

    low, high = over_cases(difference, both.shape[1])
    gains = {}
    for k, name in enumerate(MEASURES):
        differences = [a.final[name] - b.final[name] for a, b in zip(mine, other, strict=True)]
        mean, half = mean_and_interval(differences)
        gains[name] = Gain(mean, half, (float(low[k]), float(high[k])))
    return gains
