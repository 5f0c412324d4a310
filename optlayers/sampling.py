r"""Structures drawn exactly from the Gibbs distribution :math:`p(v) \propto e^{\langle s, v \rangle}` over vertices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.enumeration import log_weights
from optlayers.marginals import by_value, log_partition, marginals_and_total
from optlayers.solution import Solution
from optlayers.standard_form import StandardForm

__all__ = ["sample", "uniform"]

SURE = 1e-9
"""A part whose marginal is this close to 0 or 1 is decided."""
MARGIN = 40.0
"""Structures without the parts that were drawn keep a probability below exp(-40) together: nothing beside rounding."""
ROUNDING = 1e-6
NOT_BINARY = (
    "drawing by log_partition needs vertices of 0 and 1, but a marginal is neither when all parts are decided; "
    "declare the polytope without log_partition to have its vertices enumerated"
)

Verdict = Callable[[Float64[Tensor, "batch size"], Float64[Tensor, " batch"]], Solution]


def uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Float64[Tensor, "*shape"]:
    """Numbers of [0, 1) on ``device``, drawn where the generator lives; torch's own for None."""
    home = device if generator is None else generator.device
    return torch.rand(*shape, generator=generator, dtype=torch.float64, device=home).to(device)


def sample(
    form: StandardForm,
    theta: Float64[Tensor, "batch parameters"],
    forbidden: Bool[Tensor, "batch size"] | None,
    scores: Float64[Tensor, "batch size"],
    samples: int,
    generator: torch.Generator | None,
    vertices: Callable[[np.ndarray], np.ndarray],
    verdict: Verdict,
) -> Solution:
    """Structures ``(samples, batch, size)``, with a verdict per instance.

    By the chain rule where the declaration has a log-partition function, else over ``vertices(parameters)``. What is
    drawn for an instance depends on its own scores and on its place in the batch.
    """

    def total_of(rows: Int64[Tensor, " rows"] | None, asked: Float64[Tensor, "rows size"]) -> Tensor:
        mine = theta if rows is None else theta[rows]
        hidden = forbidden if rows is None or forbidden is None else forbidden[rows]
        return log_partition(form, mine, hidden, asked, vertices)

    marginals, total = marginals_and_total(lambda asked: total_of(None, asked), scores)
    solution = verdict(marginals, total)
    if form.polytope.log_partition is None:
        if forbidden is not None:
            scores = scores.masked_fill(forbidden, -torch.inf)
        drawn = _by_vertices(theta, scores, uniform((samples, len(scores)), generator, scores.device), vertices)
        return _with_samples(solution, drawn, None)
    drawn, whole = _by_chain_rule(
        lambda rows, asked: marginals_and_total(lambda leaf: total_of(rows, leaf), asked)[0],
        scores,
        marginals,
        samples,
        generator,
    )
    return _with_samples(solution, drawn, whole)


def _with_samples(
    solution: Solution, drawn: Float64[Tensor, "samples batch size"], whole: Bool[Tensor, "samples batch"] | None
) -> Solution:
    if whole is not None:
        solution = solution.failing(~whole.all(dim=0), NOT_BINARY)
    return Solution(drawn, solution.status, solution.primal_residual, solution.gap, solution.reasons)


def _by_vertices(
    theta: Float64[Tensor, "batch parameters"],
    scores: Float64[Tensor, "batch size"],
    numbers: Float64[Tensor, "samples batch"],
    vertices: Callable[[np.ndarray], np.ndarray],
) -> Float64[Tensor, "samples batch size"]:
    """One number per structure picks a vertex; instances without any get 0."""
    drawn = scores.new_zeros(*numbers.shape, scores.shape[1])
    for rows, mine in by_value(theta, vertices):
        if len(mine) == 0:
            continue
        weights = log_weights(mine, scores[rows])
        top = weights.amax(dim=1, keepdim=True)
        share = torch.exp(weights - top.clamp(min=torch.finfo(torch.float64).min)).cumsum(dim=1)
        whole = share[:, -1:]
        # Below the whole, so that a vertex of weight 0 at the end is never the first to pass it.
        wanted = torch.minimum(numbers[:, rows].T * whole, torch.nextafter(whole, torch.zeros_like(whole)))
        place = torch.searchsorted(share, wanted.contiguous(), right=True).clamp(max=len(mine) - 1)
        picked = torch.where(torch.isneginf(top)[..., None], 0.0, mine[place])
        drawn[:, rows] = picked.transpose(0, 1)
    return drawn


def _by_chain_rule(
    marginals_of: Callable[[Tensor, Tensor], Tensor],
    scores: Float64[Tensor, "batch size"],
    first: Float64[Tensor, "batch size"],
    samples: int,
    generator: torch.Generator | None,
) -> tuple[Float64[Tensor, "samples batch size"], Bool[Tensor, "samples batch"]]:
    r"""One part after the other, given those before, and whether what comes out is 0 or 1 everywhere.

    The next part is the open one whose marginal is nearest to 1/2. Which it is depends on what was drawn before and on
    nothing else, so that the chain rule holds. A part that is left out gets the score -inf. For one that is taken in,
    :math:`C = 40 - \log p` is added to its score, where p is the probability of all that was drawn so far: the
    structures that lack such a part then weigh less than :math:`e^{-40}` of those that have them all, whatever the size
    of the scores.
    """
    batch, size = scores.shape
    count = samples * batch
    values = first.repeat(samples, 1)
    taken = torch.zeros(count, size, dtype=torch.bool, device=scores.device)
    left = torch.zeros_like(taken)
    log_past = scores.new_zeros(count)
    rows = torch.arange(count, device=scores.device)
    for _ in range(size):
        marginals = values[rows]
        away = (marginals - 0.5).abs()
        away = away.masked_fill(taken[rows] | left[rows] | ~(away < 0.5 - SURE), torch.inf)
        nearest, part = away.min(dim=1)
        open_ones = torch.isfinite(nearest)
        rows, part, marginals = rows[open_ones], part[open_ones], marginals[open_ones]
        if len(rows) == 0:
            break
        # All rows draw, those that are done too: what one draws does not depend on the others.
        numbers = uniform((count,), generator, scores.device)[rows]
        chance = marginals.gather(1, part[:, None])[:, 0]
        takes = numbers < chance
        taken[rows, part], left[rows, part] = takes, ~takes
        log_past[rows] += torch.log(torch.where(takes, chance, 1.0 - chance))
        instance = rows % batch
        asked = scores[instance] + (MARGIN - log_past[rows])[:, None] * taken[rows]
        values[rows] = marginals_of(instance, asked.masked_fill(left[rows], -torch.inf))
    drawn = values.round()
    drawn = torch.where(taken, 1.0, drawn.masked_fill(left, 0.0))
    whole = ((drawn - values).abs() <= ROUNDING).all(dim=1) & (drawn.abs() <= 1.0).all(dim=1)
    return drawn.reshape(samples, batch, size), whole.reshape(samples, batch)
