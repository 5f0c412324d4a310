r"""Structures that are derived step by step: paths, bracketings, foldings.

An *item* is what a structure is put together from: a node that a path has come to, a span of words. A *step* makes an
item of none, one or two items, and may use a *part*, an entry of the scored array. The structures are the derivations
of the last item, the *goal*; every one has a single derivation. Steps and items are an acyclic hypergraph.

As often as an item is made, it is used. Where no derivation uses an item twice, these equations and :math:`x_p =
\sum_{k \text{ uses } p} f_k` over flows :math:`f \ge 0` of steps describe the convex hull of the structures (Martin,
Rardin and Campbell, 1990, Polyhedral characterization of discrete dynamic programming, Operations Research).

Sums are those of the inside and outside algorithms (Baker, 1979). What is kept of the first pass is each step's share
of the ways to make its item; marginals and their derivatives are sums and products of shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, final

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from optlayers import CompiledOracle, Polytope
from optlayers.common.tensors import moved
from optlayers.solvers.pool import for_each_chunk
from optlayers.sums.logspace import log_sum
from polytopes._compiled import compiled
from polytopes._third import third_derivatives

__all__ = ["Derivations", "within"]

WORTH_A_THREAD = 3e4
"""Steps."""


@final
@dataclass(frozen=True, eq=False)
class Derivations:
    """The steps by which structures are derived, in the order of what they make; item 0 is nothing, the last the goal.

    Parameters
    ----------
    size : how many parts there are; a step with the part ``size`` uses none.
    first, second, part : ``(steps,)``, the items and the part that each step uses.
    start : ``(items + 1,)``: item m is made by the steps from ``start[m]`` to before ``start[m + 1]``. Of steps that
        are equally good the first one is taken.
    """

    size: int
    first: np.ndarray
    second: np.ndarray
    part: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, size: int, steps: np.ndarray) -> Derivations:
        """Of steps ``(steps, 4)``: made, first, second, part. What is used has a smaller number than what is made.

        The largest number is the goal. What does not lead to it is left out. Without steps there is one structure, that
        of no parts.
        """
        if not len(steps):
            steps = np.array([[1, 0, 0, size]])
        steps = steps[np.argsort(steps[:, 0], kind="stable")].astype(np.int64)
        steps = steps[_useful(steps)]
        assert len(steps), "the goal cannot be derived"
        items, counts = np.unique(steps[:, 0], return_counts=True)
        number = np.zeros(items[-1] + 1, dtype=np.int64)
        number[items] = np.arange(1, len(items) + 1)
        start = np.concatenate([[0, 0], np.cumsum(counts)])
        first, second = number[steps[:, 1]], number[steps[:, 2]]
        return cls(size, first, second, np.ascontiguousarray(steps[:, 3]), start)

    @property
    def made(self) -> np.ndarray:
        """What each step makes."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    def polytope(
        self,
        shape: tuple[int, ...],
        *,
        membership: Callable[..., Any] | None = None,
        draw: Callable[..., Any] | None = None,
    ) -> Polytope:
        """The convex hull of the structures, as arrays of this shape."""
        x = cp.Variable(shape, nonneg=True)
        return Polytope(
            x,
            partial(self.constraints, x),
            oracle=CompiledOracle(_best_derivation, [self.first, self.second, self.part, self.start]),
            log_partition=partial(self.log_partition, dimensions=len(shape)),
            integral=True,
            rows="exact",
            membership=membership,
            draw=draw,
        )

    def constraints(self, x: cp.Variable) -> list[cp.Constraint]:
        """Those of the convex hull; flows are auxiliary where several steps use a part, or a step uses none."""
        steps, items, parts = len(self.part), len(self.start) - 1, cp.vec(x, order="C")
        uses = np.bincount(self.part, minlength=self.size + 1)
        uses[self.size] = 2
        known = uses[self.part] == 1  # the flow is x itself
        step = np.arange(steps)
        of_parts = _matrix(np.ones(known.sum()), step[known], self.part[known], (steps, self.size))
        makes = _matrix(np.ones(steps), self.made, step, (items, steps))
        # An item that a single step uses, without anything else, is used as often as it is made.
        single = np.bincount(np.concatenate([self.first, self.second]), minlength=items) == 1
        ends = (self.part == self.size) & (self.second == 0) & (self.first > 0) & single[self.first]
        ends &= (makes @ (~known))[self.first] == 0
        of_parts = (
            of_parts + _matrix(np.ones(ends.sum()), step[ends], self.first[ends], (steps, items)) @ makes @ of_parts
        )
        known |= ends
        row = np.concatenate([self.first, self.second])
        balance = (makes - _matrix(np.ones(2 * steps), row, np.tile(step, 2), (items, steps)))[1:]
        goal = np.zeros(items - 1)
        goal[-1] = 1.0
        unused = np.flatnonzero(uses[: self.size] == 0)
        constraints = [parts[unused] == 0] if len(unused) else []
        if known.all():
            return [*constraints, balance @ of_parts @ parts == goal]
        flow = cp.Variable(steps - int(known.sum()), nonneg=True)
        of_flow = sp.csr_array(sp.eye_array(steps))[:, ~known]
        shared = np.flatnonzero(uses[: self.size] > 1)
        if len(shared):
            use = _matrix(np.ones(steps), self.part, step, (self.size + 1, steps))
            constraints.append(parts[shared] == use[shared] @ of_flow @ flow)
        return [*constraints, balance @ of_parts @ parts + balance @ of_flow @ flow == goal]

    def log_partition(self, scores: Tensor, *, dimensions: int) -> Tensor:
        """Log of the sum over the structures, over the last dimensions; -inf where there is none.

        Compiled on the CPU; elsewhere, for all items at once that are made by as many steps in a row.
        """
        batch = scores.shape[: scores.ndim - dimensions]
        flat = moved(scores, (math.prod(batch), self.size), torch.float64, scores.device)
        if scores.device.type == "cpu":
            value, _ = _Summed.apply(flat, self)  # type: ignore[no-untyped-call]
        else:
            value = self.by_levels(flat)
        return moved(value, batch, scores.dtype, scores.device)

    def by_levels(self, scores: Tensor) -> Tensor:
        """The log sum of ``(batch, size)`` by operations that torch differentiates itself."""
        ends = [scores.new_zeros(len(scores), 1), scores.new_full((len(scores), 1), -torch.inf)]
        padded, sums = torch.cat([scores, *ends], dim=1), scores.new_zeros(len(scores), 1)
        for part, first, second in self._levels:
            terms = _taken(padded, part) + _taken(sums, first) + _taken(sums, second)
            sums = torch.cat([sums, log_sum(terms, -1)], dim=1)
        return sums[:, -1]

    @cached_property
    def _levels(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Parts and used items of steps, ``(items, most steps)``, of items that are made of those of earlier levels.

        Items are given by their place in the order of levels. Rows are filled with the part ``size + 1``, which has the
        score -inf.
        """
        depth = _depth(self.first, self.second, self.start)
        order = np.lexsort([np.arange(len(depth)), depth])
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        levels = []
        for items in np.split(order, np.flatnonzero(np.diff(depth[order])) + 1)[1:]:
            counts = self.start[items + 1] - self.start[items]
            column = np.arange(counts.max())
            there = column < counts[:, None]
            step = np.where(there, self.start[items][:, None] + column, 0)
            levels.append(
                (
                    np.where(there, self.part[step], self.size + 1),
                    np.where(there, place[self.first[step]], 0),
                    np.where(there, place[self.second[step]], 0),
                )
            )
        return levels


def within(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers from each low to before its high, behind each other: which pair they are of, and the numbers.

    >>> [array.tolist() for array in within(np.array([0, 3]), np.array([2, 6]))]
    [[0, 0, 1, 1, 1], [0, 1, 3, 4, 5]]
    """
    counts = np.maximum(high - low, 0)
    which = np.repeat(np.arange(len(low)), counts)
    return which, np.arange(len(which)) + (low - np.cumsum(counts) + counts)[which]


def _matrix(value: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    return sp.csr_array((value, (row, column)), shape=shape)


def _taken(values: Tensor, places: np.ndarray) -> Tensor:
    chosen = torch.from_numpy(places.reshape(-1)).to(values.device)
    return values.index_select(1, chosen).unflatten(1, places.shape)  # type: ignore[no-untyped-call, no-any-return]


@compiled
def _useful(steps):  # type: ignore[no-untyped-def]
    """Which steps are in some derivation of the last item; they are sorted by what they make."""
    count = len(steps)
    goal = steps[count - 1, 0]
    useful = np.zeros(count, np.bool_)
    can_be_made, wanted = np.zeros(goal + 1, np.bool_), np.zeros(goal + 1, np.bool_)
    can_be_made[0] = wanted[goal] = True
    for k in range(count):
        useful[k] = can_be_made[steps[k, 1]] and can_be_made[steps[k, 2]]
        if useful[k]:
            can_be_made[steps[k, 0]] = True
    for k in range(count - 1, -1, -1):
        useful[k] = useful[k] and wanted[steps[k, 0]]
        if useful[k]:
            wanted[steps[k, 1]] = wanted[steps[k, 2]] = True
    return useful


@compiled
def _depth(first, second, start):  # type: ignore[no-untyped-def]
    """How many steps in a row make each item, at most."""
    depth = np.zeros(len(start) - 1, np.int64)
    for item in range(1, len(depth)):
        for k in range(start[item], start[item + 1]):
            depth[item] = max(depth[item], 1 + max(depth[first[k]], depth[second[k]]))
    return depth


@compiled
def _best_derivation(scores, first, second, part, start):  # type: ignore[no-untyped-def]
    """A best structure; NaN where there is none without forbidden parts."""
    items = len(start) - 1
    padded = np.zeros(scores.size + 1)  # behind the scores, that of no part
    padded[:-1] = scores.ravel()
    best, chosen = np.zeros(items), np.zeros(items, np.int64)
    for item in range(1, items):
        highest, which = -np.inf, 0
        for k in range(start[item], start[item + 1]):
            value = best[first[k]] + best[second[k]] + padded[part[k]]
            if value > highest:
                highest, which = value, k
        best[item], chosen[item] = highest, which
    if best[items - 1] == -np.inf:
        return np.full(scores.shape, np.nan)
    padded[:] = 0.0
    todo = np.zeros(items + 1, np.int64)
    todo[0] = items - 1
    count = 1
    while count > 0:
        count -= 1
        item = todo[count]
        if item > 0:
            k = chosen[item]
            padded[part[k]] = 1.0
            todo[count], todo[count + 1] = first[k], second[k]
            count += 2
    return padded[:-1].copy().reshape(scores.shape)


class _Summed(torch.autograd.Function):
    """Scores ``(batch, size)`` to the log sum and the marginals, which are an output so that their derivatives, too,
    are looked for here."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, steps: Derivations) -> tuple[Tensor, Tensor]:
        plain = scores.detach().contiguous()
        value, marginals = plain.new_empty(len(plain)), torch.empty_like(plain)
        shares = plain.new_empty(len(plain), len(steps.part))
        _in_threads(_fill_marginals, steps, plain, shares, value, marginals)
        ctx.steps = steps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores, marginals, shares)
        return value, marginals

    @staticmethod
    def backward(ctx: Any, value: Tensor | None, direction: Tensor | None) -> Any:
        scores, marginals, shares = ctx.saved_tensors
        result = None if value is None else value[:, None] * marginals
        if direction is not None:
            turned = _Turned.apply(scores, direction, shares, ctx.steps)  # type: ignore[no-untyped-call]
            result = turned if result is None else result + turned
        return result, None


class _Turned(torch.autograd.Function):
    """The derivatives of marginals along a direction."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, direction: Tensor, shares: Tensor, steps: Derivations) -> Tensor:
        turned = torch.empty_like(scores, memory_format=torch.contiguous_format)
        _in_threads(_fill_derivatives, steps, direction.detach().contiguous(), shares, turned)
        ctx.steps = steps
        ctx.save_for_backward(scores, direction)
        return turned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        scores, direction = ctx.saved_tensors
        found = third_derivatives(ctx.steps.by_levels, (scores,), (direction,), (grad,))
        return *found, None, None


def _in_threads(fill: Callable[..., None], steps: Derivations, *tensors: Tensor) -> None:
    """Call ``fill`` on pieces of a batch."""
    arrays = [tensor.numpy() for tensor in tensors]
    call = partial(fill, steps.first, steps.second, steps.part, steps.start)

    def work(which: np.ndarray) -> None:
        if len(which):
            call(*(array[which[0] : which[-1] + 1] for array in arrays))

    for_each_chunk(work, len(arrays[0]), smallest=math.ceil(WORTH_A_THREAD / len(steps.part)))


@compiled
def _fill_marginals(first, second, part, start, scores, shares, value, marginals):  # type: ignore[no-untyped-def]
    """The share of every step in the ways to make its item, the log sum, and how often each part is used."""
    items, size = len(start) - 1, scores.shape[1]
    sums, weight, padded = np.zeros(items), np.empty(items), np.zeros(size + 1)
    for b in range(len(scores)):
        padded[:size], padded[size] = scores[b], 0.0
        share = shares[b]
        for item in range(1, items):
            low, high = start[item], start[item + 1]
            highest, total = -np.inf, 0.0
            for k in range(low, high):
                share[k] = sums[first[k]] + sums[second[k]] + padded[part[k]]
                highest = max(highest, share[k])
            if highest == -np.inf:
                sums[item] = -np.inf
                share[low:high] = 0.0
                continue
            for k in range(low, high):
                share[k] = np.exp(share[k] - highest)
                total += share[k]
            sums[item] = highest + np.log(total)
            for k in range(low, high):
                share[k] /= total
        value[b] = sums[items - 1]
        weight[:], padded[:] = 0.0, 0.0
        weight[items - 1] = 1.0
        for item in range(items - 1, 0, -1):
            if weight[item] > 0.0:
                for k in range(start[item], start[item + 1]):
                    used = weight[item] * share[k]
                    weight[first[k]] += used
                    weight[second[k]] += used
                    padded[part[k]] += used
        marginals[b] = padded[:size]


@compiled
def _fill_derivatives(first, second, part, start, direction, shares, turned):  # type: ignore[no-untyped-def]
    """Of the marginals along a direction, which is their covariance times it."""
    items, size = len(start) - 1, direction.shape[1]
    change, padded = np.zeros(items), np.zeros(size + 1)
    weight, weight_turned = np.empty(items), np.empty(items)
    for b in range(len(direction)):
        padded[:size], padded[size] = direction[b], 0.0
        share = shares[b]
        for item in range(1, items):
            total = 0.0
            for k in range(start[item], start[item + 1]):
                total += share[k] * (change[first[k]] + change[second[k]] + padded[part[k]])
            change[item] = total
        result = np.zeros(size + 1)
        weight[:], weight_turned[:] = 0.0, 0.0
        weight[items - 1] = 1.0
        for item in range(items - 1, 0, -1):
            if weight[item] > 0.0 or weight_turned[item] != 0.0:
                for k in range(start[item], start[item + 1]):
                    gain = change[first[k]] + change[second[k]] + padded[part[k]] - change[item]
                    used = weight[item] * share[k]
                    moves = weight_turned[item] * share[k] + used * gain
                    weight[first[k]] += used
                    weight[second[k]] += used
                    weight_turned[first[k]] += moves
                    weight_turned[second[k]] += moves
                    result[part[k]] += moves
        turned[b] = result[:size]
