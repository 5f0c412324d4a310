"""Two ways to one answer, measured one after the other: ratios that hold on a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from measuring import brief, repeats, seconds
from torch import Tensor

__all__ = ["HEADS", "Pair", "Pairs", "PairRow", "measured"]

HEADS = ["question", "next to", "ours, ms", "other, ms", "other / ours", "wanted", "apart"]


@dataclass(frozen=True)
class Pair:
    """Two ways to one answer; ``share`` is the part of the batch that the other one is asked about."""

    question: str
    other: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    wanted: float
    share: float = 1.0
    needs: str | None = None


Pairs = Callable[[], Iterator[Pair]]


@dataclass(frozen=True)
class PairRow:
    """One line, in milliseconds per batch."""

    question: str
    other: str
    ours: float
    theirs: float
    wanted: float
    apart: float

    def line(self) -> dict[str, str]:
        """Under ``HEADS``."""
        cells = (
            self.question,
            self.other,
            brief(1e3 * self.ours),
            brief(1e3 * self.theirs),
            brief(self.theirs / self.ours),
            brief(self.wanted),
            f"{self.apart:.0e}",
        )
        return dict(zip(HEADS, cells, strict=True))


SLOW = 20.0
"""A call that takes so many seconds is made once."""


def measured(pair: Pair, rounds: int) -> PairRow:
    """Medians of rounds, one after the other."""
    answers: list[Tensor] = []
    firsts: list[float] = []
    found: dict[str, list[float]] = {}
    for name, call in (("ours", pair.ours), ("theirs", pair.theirs)):
        start = time.perf_counter()
        answers.append(call())
        firsts.append(time.perf_counter() - start)
        found[name] = [firsts[-1]] if firsts[-1] > SLOW else []
    first, second = answers
    apart = float((first.detach() - second.detach()).abs().max()) if first.shape == second.shape else np.nan
    counts = {}
    for name, call in (("ours", pair.ours), ("theirs", pair.theirs)):
        if not found[name]:
            start = time.perf_counter()
            call()
            counts[name] = repeats(max(time.perf_counter() - start, 1e-6))
    for _ in range(rounds):
        for name, call in (("ours", pair.ours), ("theirs", pair.theirs)):
            if name in counts:
                found[name].append(seconds([call] * counts[name]))
    theirs = statistics.median(found["theirs"]) / pair.share
    return PairRow(pair.question, pair.other, statistics.median(found["ours"]), theirs, pair.wanted, apart)
