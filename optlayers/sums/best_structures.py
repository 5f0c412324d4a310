"""The best structures of every instance, best first, by partitioning on forced and forbidden parts (Lawler, 1972).

The structures of an instance are kept in cells: all that agree on some parts, with the best of them. The best of all
cells is the next to be listed. What is left of its cell is divided by the first part in which a structure differs from
it, so that no structure is in two cells. The best structures of all cells that come about in one round, of all
instances, are asked for together.

To hold a part, a constant is added to its score, or taken off where the part is left out. It is larger than what two
structures can differ by, so that the answer has all parts that are held unless no structure does, and then the cell is
empty. The answer then says so itself; what it is worth is counted by the scores as they are.

References
----------
Lawler (1972), A procedure for computing the K best solutions to discrete optimization problems, Management Science 18.
Murty (1968), An algorithm for ranking all the assignments in order of increasing cost, Operations Research 16: where no
structure has all parts of another one and more, cells are divided by parts of the best structure alone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.bound.base import Best
from optlayers.solution import Solution, Status
from optlayers.sums.vertex_sums import log_weights

__all__ = ["best_in_order", "best_of", "best_structures"]

WHOLE = 1e-6
"""Entries this close to 0 and 1 are these."""
SLACK = 1e-6
"""An answer may be better than that of a larger cell by so much, next to the constant that holds parts."""
NOT_BINARY = "a best structure has entries that are neither 0 nor 1, where all were known to be"
NOT_BEST = (
    "among fewer structures a better one was found than among all of them: the maximizer does not find the best ones; "
    "see optlayers.testing.check_oracle"
)
TOO_LARGE = "its scores are too large for sums of them; rescale the scores"

Ask = Callable[[Float64[Tensor, "rows size"], Int64[Tensor, " rows"]], Solution]
"""A best structure for each of some scores, of the instances ``rows``."""


@final
@dataclass(order=True)
class _Cell:
    """The structures that agree with one of them on the parts that are ``held``; ``structure`` is the best of them."""

    cost: float
    """Minus what the best structure scores."""
    key: bytes
    """The best structure: decides which comes first where several score the same."""
    structure: Bool[np.ndarray, " size"] = field(compare=False)
    held: Bool[np.ndarray, " size"] = field(compare=False)


@final
@dataclass
class _Instance:
    """What is known of one instance. ``constant`` holds parts; ``alike`` says whether all structures have as many."""

    scores: Float64[np.ndarray, " size"]
    movable: Bool[np.ndarray, " size"]
    constant: float
    alike: bool
    cells: list[_Cell]
    listed: list[_Cell] = field(default_factory=list)
    status: int = 0
    reason: str | None = None

    def cell(self, structure: Bool[np.ndarray, " size"], held: Bool[np.ndarray, " size"]) -> _Cell:
        """A cell by its best structure, which is worth the exact sum of its scores, rounded once."""
        return _Cell(-math.fsum(self.scores[structure].tolist()), structure.tobytes(), structure, held)

    def divided(self, k: int) -> tuple[np.ndarray, np.ndarray, float] | None:
        """List the best structure that is left; what the other ones of its cell have to agree on, if more are wanted.

        For every new cell the parts that are held, and a structure that has them as they are held; and the cost of the
        structure that was listed.
        """
        if self.status or not self.cells or len(self.listed) >= k:
            return None
        best = heapq.heappop(self.cells)
        self.listed.append(best)
        open_places = k - len(self.listed)
        if len(self.cells) > open_places:  # a cell beyond these is never reached
            self.cells = heapq.nsmallest(open_places, self.cells)
        if open_places == 0:
            return None
        free = self.movable & ~best.held
        parts = np.flatnonzero(free & best.structure if self.alike else free)
        if len(parts) == 0:
            return None
        held, wanted = np.tile(best.held, (len(parts), 1)), np.tile(best.structure, (len(parts), 1))
        held[:, parts] |= np.tri(len(parts), dtype=bool)
        place = np.arange(len(parts))
        wanted[place, parts] = ~wanted[place, parts]
        return held, wanted, best.cost

    def fail(self, status: int, reason: str) -> None:
        """There is no list of this instance."""
        self.status, self.reason, self.listed, self.cells = status, reason, [], []


def best_structures(
    ask: Ask, scores: Float64[Tensor, "batch size"], movable: Bool[np.ndarray, "batch size"], k: int
) -> Best:
    """The k best structures of every instance, of polytopes that have vertices of 0 and 1 alone.

    Of structures that score the same, the smaller one in lexicographic order comes first among those that are listed.
    Everything depends on the scores of the instance alone. ``movable`` are the parts that structures may differ in.
    """
    flat = np.ascontiguousarray(scores.detach().cpu().numpy())
    instances = _first(ask, scores, flat, movable)
    for _ in range(k):
        divided = [(row, one.divided(k)) for row, one in enumerate(instances)]
        new = [(row, *cells) for row, cells in divided if cells is not None]
        if new:
            _ask_cells(ask, instances, new, scores.device)
        elif not any(one.cells and len(one.listed) < k for one in instances):
            break
    return _listed(instances, scores)


def _first(ask: Ask, scores: Tensor, flat: np.ndarray, movable: np.ndarray) -> list[_Instance]:
    """The best structure of every instance; how far structures are apart comes from the worst one, and whether all have
    as many parts from the longest and the shortest one."""
    batch = len(flat)
    ones = torch.ones_like(scores)
    rows = torch.arange(batch, device=scores.device)
    ends = ask(torch.cat([scores, -scores, ones, -ones]), rows.repeat(4)) if batch else None
    instances = []
    for row in range(batch):
        assert ends is not None
        one = _Instance(flat[row], movable[row], 0.0, False, [])
        instances.append(one)
        largest = float(np.abs(flat[row]).max(initial=0.0))
        if not 16.0 * flat.shape[1] * largest < np.finfo(np.float64).max:
            one.fail(int(Status.FAILED), TOO_LARGE)
        found = [_of_answer(ends, row + turn * batch, one) for turn in range(4)]
        if one.status:
            continue
        best, worst, longest, shortest = (structure for structure in found if structure is not None)
        first = one.cell(best, ~movable[row])
        reach = math.fsum([-first.cost, one.cell(worst, first.held).cost])
        one.constant = 2.0 * max(reach, 0.0) + largest or 1.0
        one.alike = np.count_nonzero(longest) == np.count_nonzero(shortest)
        one.cells = [first]
    return instances


def _of_answer(solution: Solution, place: int, instance: _Instance) -> Bool[np.ndarray, " size"] | None:
    """An answer as a structure; None where there is none, which the instance fails for."""
    if instance.status:
        return None
    status = int(solution.status[place])
    if status:
        instance.fail(status, solution.reasons.get(place, Status(status).meaning))
        return None
    point = solution.value[place].detach().cpu().numpy()
    structure: np.ndarray = point > 0.5
    if np.abs(point - structure).max(initial=0.0) > WHOLE:
        instance.fail(int(Status.FAILED), NOT_BINARY)
        return None
    return structure


def _ask_cells(
    ask: Ask,
    instances: Sequence[_Instance],
    new: Sequence[tuple[int, np.ndarray, np.ndarray, float]],
    device: torch.device,
) -> None:
    """The best structures of all new cells of all instances, asked for together."""
    rows = np.concatenate([np.full(len(held), row) for row, held, _, _ in new])
    asked = np.concatenate(
        [
            instances[row].scores + instances[row].constant * np.where(held, np.where(wanted, 1.0, -1.0), 0.0)
            for row, held, wanted, _ in new
        ]
    )
    solution = ask(torch.from_numpy(asked).to(device), torch.from_numpy(rows).to(device))
    place = 0
    for row, helds, wanteds, cost in new:
        one = instances[row]
        for held, wanted in zip(helds, wanteds, strict=True):
            structure = _of_answer(solution, place, one)
            place += 1
            if structure is None or ((structure != wanted) & held).any():  # none has the parts as they are held
                continue
            cell = one.cell(structure, held.copy())  # not a view, which would keep all of them
            if cell.cost < cost - SLACK * one.constant:
                one.fail(int(Status.FAILED), NOT_BEST)
                continue
            heapq.heappush(one.cells, cell)


def _listed(instances: Sequence[_Instance], scores: Float64[Tensor, "batch size"]) -> Best:
    most = max((len(one.listed) for one in instances), default=0)
    structures = np.zeros((most, *scores.shape))
    for row, one in enumerate(instances):
        for place, cell in enumerate(sorted(one.listed)):
            structures[place, row] = cell.structure
    counts = torch.tensor([len(one.listed) for one in instances], dtype=torch.int64)
    status = torch.tensor([one.status for one in instances], dtype=torch.int8)
    reasons = {row: one.reason for row, one in enumerate(instances) if one.reason is not None}
    return _best(torch.from_numpy(structures).to(scores.device), counts.to(scores.device), status, reasons)


def _best(structures: Tensor, counts: Tensor, status: Tensor, reasons: dict[int, str]) -> Best:
    value = structures[0] if len(structures) else structures.sum(dim=0)
    nothing = torch.full_like(counts, torch.nan, dtype=torch.float64)
    return Best(structures, counts, Solution(value, status.to(counts.device), nothing, nothing, reasons))


def best_of(support: Sequence[Float64[Tensor, "_ size"]], scores: Float64[Tensor, "batch size"], k: int) -> Best:
    """The k best vertices of every instance, out of all of its vertices in lexicographic order."""
    found = [_sorted(vertices, scores[row])[:k] for row, vertices in enumerate(support)]
    most = max((len(mine) for mine in found), default=0)
    structures = scores.new_zeros(most, *scores.shape)
    for row, mine in enumerate(found):
        structures[: len(mine), row] = mine
    counts = torch.tensor([len(mine) for mine in found], dtype=torch.int64)
    status = torch.where(counts == 0, int(Status.INFEASIBLE), 0).to(torch.int8)
    return _best(structures, counts.to(scores.device), status, {})


def best_in_order(structures: Float64[Tensor, "most batch size"], counts: Int64[Tensor, " batch"]) -> Best:
    """The best structures that are known already, 0 behind their ``counts``."""
    return _best(structures, counts, torch.where(counts == 0, int(Status.INFEASIBLE), 0).to(torch.int8), {})


def _sorted(vertices: Float64[Tensor, "vertices size"], scores: Float64[Tensor, " size"]) -> Tensor:
    weights = log_weights(vertices, scores[None])[0]
    return vertices[torch.sort(weights, descending=True, stable=True).indices]
