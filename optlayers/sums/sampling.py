r"""Structures drawn exactly from the Gibbs distribution :math:`p(v) \propto e^{\langle s, v \rangle}` over vertices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.form.standard import StandardForm
from optlayers.solution import Solution
from optlayers.sums.marginals import LogPartition, Reasons, by_value
from optlayers.sums.structure_sums import AbstractSums

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

Verdict = Callable[[Float64[Tensor, "batch size"], Float64[Tensor, " batch"], Reasons], Solution]


def uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Float64[Tensor, "*shape"]:
    """Numbers of [0, 1) on ``device``, drawn where the generator lives; torch's own for None."""
    home = device if generator is None else generator.device
    return torch.rand(*shape, generator=generator, dtype=torch.float64, device=home).to(device)


def sample(
    function: LogPartition,
    scores: Float64[Tensor, "batch size"],
    samples: int,
    generator: torch.Generator | None,
    verdict: Verdict,
) -> Solution:
    """Structures ``(samples, batch, size)``, with a verdict per instance.

    By the chain rule where the declaration has a log-partition function, else over all vertices. What is drawn for an
    instance depends on its own scores and on its place in the batch.
    """
    marginals, _, solution = function.marginals(scores, verdict)
    if function.form.polytope.log_partition is None:
        if function.forbidden is not None:
            scores = scores.masked_fill(function.forbidden, -torch.inf)
        numbers = uniform((samples, len(scores)), generator, scores.device)
        return _with_samples(solution, _by_sums(function.theta, scores, numbers, function.sums), None)
    late: Reasons = {}

    def marginals_of(rows: Int64[Tensor, " rows"], asked: Float64[Tensor, "rows size"]) -> Tensor:
        reasons: Reasons = {}
        means, total = function.take(rows).gradient(asked, reasons)
        late.update({int(rows[k]): reason for k, reason in reasons.items()})
        return means.masked_fill(torch.isnan(total)[:, None], torch.nan)

    choices = _Choices(function.form, function.theta)
    drawn, whole = _by_chain_rule(marginals_of, choices, scores, marginals, samples, generator)
    for k, reason in late.items():
        solution = solution.failing(torch.arange(len(scores), device=scores.device) == k, reason)
    return _with_samples(solution, drawn, whole)


def _with_samples(
    solution: Solution, drawn: Float64[Tensor, "samples batch size"], whole: Bool[Tensor, "samples batch"] | None
) -> Solution:
    if whole is not None:
        solution = solution.failing(~whole.all(dim=0), NOT_BINARY)
    return Solution(drawn, solution.status, solution.primal_residual, solution.gap, solution.reasons)


def _by_sums(
    theta: Float64[Tensor, "batch parameters"],
    scores: Float64[Tensor, "batch size"],
    numbers: Float64[Tensor, "samples batch"],
    sums: Callable[[np.ndarray], AbstractSums],
) -> Float64[Tensor, "samples batch size"]:
    """One number per structure picks it; instances without any get 0."""
    drawn = scores.new_zeros(*numbers.shape, scores.shape[1])
    for rows, mine in by_value(theta, sums, {}):
        drawn[:, rows] = mine.drawn(scores[rows], numbers[:, rows])
    return drawn


def _by_chain_rule(
    marginals_of: Callable[[Tensor, Tensor], Tensor],
    choices: _Choices,
    scores: Float64[Tensor, "batch size"],
    first: Float64[Tensor, "batch size"],
    samples: int,
    generator: torch.Generator | None,
) -> tuple[Float64[Tensor, "samples batch size"], Bool[Tensor, "samples batch"]]:
    r"""One question after the other, given the answers before, and whether what comes out is 0 or 1 everywhere.

    A question is which of the open parts to take where the declaration says that it is exactly one of some, and else
    whether to take the part whose marginal is nearest to 1/2. Which one is asked depends on the answers before and on
    nothing else, so that the chain rule holds. A part that is left out gets the score -inf, which holds the one that is
    taken of several. To the score of a single one that is taken, :math:`C = 40 - \log p` is added, where p is the
    probability of all answers so far: the structures that lack such a part then weigh less than :math:`e^{-40}` of
    those that have them all, whatever the size of the scores.
    """
    batch, size = scores.shape
    count = samples * batch
    values = first.repeat(samples, 1)
    taken = torch.zeros(count, size, dtype=torch.bool, device=scores.device)
    left, held = torch.zeros_like(taken), torch.zeros_like(taken)
    log_past = scores.new_zeros(count)
    rows = torch.arange(count, device=scores.device)
    for _ in range(size):
        unknown = ((values[rows] - 0.5).abs() < 0.5 - SURE) & ~taken[rows] & ~left[rows]
        rows, unknown = _where_any(rows, unknown)
        if len(rows) == 0:
            break
        # All rows draw, those that are done too: what one draws does not depend on the others.
        numbers = uniform((count,), generator, scores.device)[rows]
        asked, single = choices.question(rows % batch, values[rows], unknown)
        share = (values[rows] * asked).cumsum(dim=1)
        whole = torch.where(single, 1.0, share[:, -1])
        # Below the whole, so that one of the parts of a choice is always found.
        wanted = torch.minimum(numbers * whole, torch.nextafter(whole, torch.zeros_like(whole)))
        place = torch.searchsorted(share, wanted[:, None], right=True)
        takes = place[:, 0] < size  # else the single part is left out
        answer = torch.zeros_like(asked).scatter_(1, place.clamp(max=size - 1), takes[:, None])
        chance = (values[rows] * answer).sum(dim=1) / whole
        log_past[rows] += torch.log(torch.where(takes, chance, 1.0 - share[:, -1]))
        taken[rows] |= answer
        held[rows] |= answer & single[:, None]
        left[rows] |= asked & ~answer
        raised = scores[rows % batch] + (MARGIN - log_past[rows])[:, None] * held[rows]
        values[rows] = marginals_of(rows % batch, raised.masked_fill(left[rows], -torch.inf))
    drawn = torch.where(taken, 1.0, values.round().masked_fill(left, 0.0))
    whole_numbers = ((drawn - values).abs() <= ROUNDING) & (drawn >= 0.0) & (drawn <= 1.0)
    return drawn.reshape(samples, batch, size), whole_numbers.all(dim=1).reshape(samples, batch)


def _where_any(rows: Int64[Tensor, " rows"], flags: Bool[Tensor, "rows size"]) -> tuple[Tensor, Tensor]:
    some = flags.any(dim=1)
    return rows[some], flags[some]


@final
class _Choices:
    """Equalities between parts with coefficients of 1 and -1: once they say "one of these", they are a question."""

    def __init__(self, form: StandardForm, theta: Float64[Tensor, "batch parameters"]) -> None:
        matrix = form.matrix.tocsr()
        lengths = np.diff(matrix.indptr)
        row = np.repeat(np.arange(len(lengths)), lengths)
        strange = (np.abs(matrix.data) != 1.0) | (matrix.indices >= form.scored)
        usable = (lengths > 0) & (np.bincount(row, strange, minlength=len(lengths)) == 0) & form.matrix_is_constant
        usable[form.equalities :] = False
        self.rhs = torch.from_numpy(form.rhs(theta.cpu().numpy())[:, usable]).to(theta.device)
        used = usable[row]
        entries = np.stack([(np.cumsum(usable) - 1)[row[used]], form.kept[matrix.indices[used]]])
        positive = matrix.data[used] > 0

        def of_sign(which: np.ndarray) -> Tensor:
            index = torch.from_numpy(np.ascontiguousarray(entries[:, which]))
            ones = torch.ones(index.shape[1], dtype=torch.float64, device="cpu")
            shape = (int(usable.sum()), form.size)
            return torch.sparse_coo_tensor(index, ones, shape, device=theta.device, check_invariants=True).coalesce()

        self.plus, self.minus = of_sign(positive), of_sign(~positive)

    def question(
        self,
        instance: Int64[Tensor, " rows"],
        values: Float64[Tensor, "rows size"],
        unknown: Bool[Tensor, "rows size"],
    ) -> tuple[Bool[Tensor, "rows size"], Bool[Tensor, " rows"]]:
        """The parts that are asked about, and whether it is a single one, which may be left out."""
        nearest = (values - 0.5).abs().masked_fill(~unknown, torch.inf).argmin(dim=1, keepdim=True)
        asked = torch.zeros_like(unknown).scatter_(1, nearest, True)
        single = torch.ones_like(unknown[:, 0])
        if self.rhs.shape[1] == 0:
            return asked, single
        known = values.round().masked_fill(unknown, 0.0)
        rest = self.rhs[instance] - (self.plus @ known.T - self.minus @ known.T).T
        some = unknown.to(torch.float64).T
        above, below = (self.plus @ some).T, (self.minus @ some).T
        one = torch.where(
            (rest == 1.0) & (below == 0.0), above, torch.where((rest == -1.0) & (above == 0.0), below, 0.0)
        )
        many, which = one.max(dim=1)
        groups = (self.plus + self.minus).index_select(0, which).to_dense() > 0.0
        single = many < 1.5
        return torch.where(single[:, None], asked, groups & unknown), single
