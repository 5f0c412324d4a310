r"""Best paths and sums over paths of a chain: what tag sequences have in common.

A chain is given by the scores of its first states ``(*batch, states)`` and of its edges ``(*batch, steps - 1, states,
states)``, from row to column. With :math:`a_t` the sums over all beginnings, :math:`b_t` those over all ends,

.. math:: a_{t,j} = \log \sum_i e^{a_{t-1,i} + s_{tij}}, \qquad b_{t-1,i} = \log \sum_j e^{s_{tij} + b_{t,j}},

the log partition is :math:`Z = \log \sum_j e^{a_{T,j}}` and the marginal of an edge is
:math:`\mu_{tij} = e^{a_{t-1,i} + s_{tij} + b_{tj} - Z}` (Baum, Petrie, Soules and Weiss, 1970). Derivatives of
marginals in a direction follow from the derivatives of the same recursions, which are linear. Both directions of time
run in the same operations, stacked, since a small operation of torch costs as much as two of them at once.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from optlayers.sums.logspace import finite_or_zero, log_sum
from polytopes._compiled import compiled
from polytopes._third import third_derivatives

__all__ = ["best_states", "chain_log_partition"]


@compiled
def best_states(unary, transition):  # type: ignore[no-untyped-def]
    """The best state of every step (Viterbi, 1967), -1 if there is no path.

    Of tied paths it is the one whose last state is the smallest, then the one before it, and so on.
    """
    steps, states = unary.shape
    best = np.empty((steps, states))
    best[0] = unary[0]
    for t in range(1, steps):
        best[t] = -np.inf
        i = 0
        while i + 4 <= states:  # four rows at a time, along them, without branches: this is where the time goes
            first, second, third, fourth = best[t - 1, i], best[t - 1, i + 1], best[t - 1, i + 2], best[t - 1, i + 3]
            for j in range(states):
                one, two = first + transition[t - 1, i, j], second + transition[t - 1, i + 1, j]
                three, four = third + transition[t - 1, i + 2, j], fourth + transition[t - 1, i + 3, j]
                one, three = one if one > two else two, three if three > four else four
                one = one if one > three else three
                best[t, j] = one if one > best[t, j] else best[t, j]
            i += 4
        while i < states:
            first = best[t - 1, i]
            for j in range(states):
                one = first + transition[t - 1, i, j]
                best[t, j] = one if one > best[t, j] else best[t, j]
            i += 1
        for j in range(states):
            best[t, j] += unary[t, j]
    path = np.full(steps, -1)
    last = 0
    for j in range(states):
        if best[-1, j] > best[-1, last]:
            last = j
    if best[-1, last] == -np.inf:
        return path
    path[-1] = last
    for t in range(steps - 1, 0, -1):
        before, highest = 0, -np.inf
        for i in range(states):
            value = best[t - 1, i] + transition[t - 1, i, path[t]]
            if value > highest:
                before, highest = i, value
        path[t - 1] = before
    return path


def chain_log_partition(first: Tensor, edges: Tensor) -> Tensor:
    """The log of the sum over all paths, ``(*batch,)``, differentiable to any order; -inf where there is no path."""
    result: Tensor = _LogPartition.apply(first, edges)  # type: ignore[no-untyped-call]
    return result


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, edges: Tensor) -> Tensor:
        begun, ended = _sums(first, edges)
        total = torch.logsumexp(begun[-1], -1)
        ctx.save_for_backward(first, edges, begun, ended, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        first, edges = _Marginals.apply(*ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return grad[..., None] * first, grad[..., None, None, None] * edges


class _Marginals(torch.autograd.Function):
    """Marginals of the first states and of the edges; the sums that they are made of count as constants."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, edges: Tensor, begun: Tensor, ended: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = finite_or_zero(total)
        start = torch.exp(begun[0] + ended[0] - total[..., None])
        a, b = begun[:-1].movedim(0, -2), ended[1:].movedim(0, -2)
        inner = (a - total[..., None, None]).unsqueeze(-1) + edges
        inner += b.unsqueeze(-2)
        inner.exp_()
        ctx.save_for_backward(first, edges, begun, ended, start, inner)
        return start, inner

    @staticmethod
    def backward(ctx: Any, to_first: Tensor, to_edges: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The covariance of parts times a direction."""
        first, edges = _Turned.apply(*ctx.saved_tensors, to_first, to_edges)  # type: ignore[no-untyped-call]
        return first, edges, None, None, None


class _Turned(torch.autograd.Function):
    """The covariance of parts times a direction."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        edges: Tensor,
        begun: Tensor,
        ended: Tensor,
        start: Tensor,
        inner: Tensor,
        to_first: Tensor,
        to_edges: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(first, edges, to_first, to_edges)
        sums = torch.stack([begun, ended.flip(0)], 1)
        # The share of every state before in the sum after, in both directions of time.
        share = _both_ways(edges)
        share += sums[:-1].movedim(-1, 1).unsqueeze(-1)
        share -= finite_or_zero(sums[1:]).unsqueeze(1)
        share.exp_()
        gain = (share * _both_ways(to_edges)).sum(1)
        change = torch.empty_like(sums)
        change[0, 0], change[0, 1] = to_first, 0.0
        for t, step in enumerate(share):
            torch.sum(step.mul_(change[t].movedim(-1, 0).unsqueeze(-1)), 0, out=change[t + 1])
            change[t + 1] += gain[t]
        begins, ends = change[:, 0], change[:, 1].flip(0)
        whole = (start * (begins[0] + ends[0])).sum(-1)
        turned = start * (begins[0] + ends[0] - whole[..., None])
        towards = to_edges + (begins[:-1].movedim(0, -2) - whole[..., None, None]).unsqueeze(-1)
        towards += ends[1:].movedim(0, -2).unsqueeze(-2)
        return turned, towards * inner

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_edges: Tensor) -> tuple[Tensor | None, ...]:
        first, edges, to_first, to_edges = ctx.saved_tensors
        found = third_derivatives(_recursion, (first, edges), (to_first, to_edges), (grad_first, grad_edges))
        return (*found[:2], None, None, None, None, *found[2:])


def _recursion(first: Tensor, edges: Tensor) -> Tensor:
    """The log partition by operations that torch differentiates itself."""
    begun = first
    for step in edges.unbind(-3):
        begun = log_sum(begun.unsqueeze(-1) + step, -2)
    return log_sum(begun, -1)


def _sums(first: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of the recursions, ``(steps, *batch, states)`` each."""
    both = _both_ways(edges)
    sums = first.new_zeros(len(both) + 1, 2, *first.shape)
    sums[0, 0] = first
    for t, step in enumerate(both):
        torch.logsumexp(step.add_(sums[t].movedim(-1, 0).unsqueeze(-1)), 0, out=sums[t + 1])
    return sums[:, 0], sums[:, 1].flip(0)


def _both_ways(edges: Tensor) -> Tensor:
    """Edges in the order of time and against it, ``(steps - 1, states before, 2, *batch, states after)``.

    Sums are over the first dimension of a step, along rows of memory.
    """
    onwards = edges.movedim((-3, -2), (0, 1))
    backwards = edges.movedim((-3, -1), (0, 1)).flip(0)
    return torch.stack([onwards, backwards], 2)
