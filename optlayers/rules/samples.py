"""What rules share that look at several samples of an instance. Sample k of instance i is row ``k * batch + i``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.solution import Solution

__all__ = ["check_count", "check_positive", "less_mean_of_others", "mean_of_samples", "with_one_verdict"]


def check_count(least: int = 1, **named: Any) -> None:
    """Integers of at least so much, each by its name."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, but got {value!r} of type {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but got {value}")


def check_positive(**named: Any) -> None:
    """Positive and finite numbers, each by its name."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, but got {value!r} of type {type(value).__name__}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, but got {value}")


def with_one_verdict(solution: Solution, samples: int) -> Solution:
    """The samples ``(samples, batch, size)`` with a verdict for each instance, that of its worst sample.

    An instance fails when one of its samples does, for the reason of the first that did; its residual and its gap are
    the largest of all.
    """
    batch = len(solution.status) // samples
    status = solution.status.reshape(samples, batch)
    verdict, reasons = status[0], {}
    if not solution.all_ok:
        first = (status != 0).to(torch.int8).argmax(dim=0)  # 0 where none failed
        verdict = status.gather(0, first[None])[0]
        rows = (first * batch + torch.arange(batch, device=first.device)).tolist()
        reasons = {k: solution.reasons[row] for k, row in enumerate(rows) if row in solution.reasons}
    return Solution(
        solution.value.reshape(samples, batch, solution.value.shape[1]),
        verdict,
        solution.primal_residual.reshape(samples, batch).amax(dim=0),
        solution.gap.reshape(samples, batch).amax(dim=0),
        reasons,
    )


def mean_of_samples(solution: Solution) -> Solution:
    """The mean structure ``(batch, size)`` of samples ``(samples, batch, size)`` that have one verdict."""
    return replace(solution, value=solution.value.mean(dim=0))


def less_mean_of_others(values: Float64[Tensor, "samples batch"]) -> Float64[Tensor, "samples batch"]:
    """Every value less the mean of the other samples of its instance: independent of it, and so without bias."""
    samples = len(values)
    return (samples * values - values.sum(dim=0)) / (samples - 1)
