"""What rules share that look at several samples of an instance. Sample k of instance i is row ``k * batch + i``."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.solution import Solution

__all__ = ["less_mean_of_others", "mean_of_samples", "with_one_verdict"]


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
