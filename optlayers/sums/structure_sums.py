"""Sums over all structures of one polytope: over its vertices, or over the paths of its decision diagram."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.solvers.diagram import Passes
from optlayers.solvers.kernels import diagrams as kernels
from optlayers.solvers.pool import Pace
from optlayers.sums.path_sums import log_sum_over_paths
from optlayers.sums.vertex_sums import log_sum_over, log_weights, pieces

__all__ = ["AbstractSums", "PathSums", "VertexSums"]

INSIDE = 1e-7
"""Entries of vertices beyond this are not 0."""
LISTED = 5
"""So many numbers are kept of each of the best paths from every node,"""
MEMORY = 2**29
"""and so many in all at most: 4 GB."""


class AbstractSums(ABC):
    """Sums of ``exp <scores, v>`` over all structures v of one polytope."""

    @abstractmethod
    def log_sum(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        """The logarithm of the sum over structures without parts of score -inf, with derivatives of all orders."""

    @abstractmethod
    def without_a_face(self, scores: Float64[Tensor, "batch size"]) -> Bool[Tensor, " batch"]:
        """Instances of which a part of score -inf is below 0 in one structure and above 0 in another one."""

    @abstractmethod
    def drawn(
        self, scores: Float64[Tensor, "batch size"], numbers: Float64[Tensor, "samples batch"]
    ) -> Float64[Tensor, "samples batch size"]:
        """Structures by their shares of the sum, each from one number of [0, 1); 0 where there are none."""


@final
class VertexSums(AbstractSums):
    """Over vertices, which are enumerated, one by one."""

    def __init__(self, vertices: Float64[np.ndarray, "vertices size"]) -> None:
        self._array = vertices

    def vertices(self, like: Tensor) -> Float64[Tensor, "vertices size"]:
        """Beside a tensor."""
        return torch.from_numpy(self._array).to(like.device)

    def log_sum(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        return log_sum_over(self.vertices(scores), scores)

    def without_a_face(self, scores: Float64[Tensor, "batch size"]) -> Bool[Tensor, " batch"]:
        vertices = self.vertices(scores)
        both = (vertices < -INSIDE).any(dim=0) & (vertices > INSIDE).any(dim=0)
        return (torch.isneginf(scores) & both).any(dim=1)

    def drawn(
        self, scores: Float64[Tensor, "batch size"], numbers: Float64[Tensor, "samples batch"]
    ) -> Float64[Tensor, "samples batch size"]:
        mine, drawn = self.vertices(scores), scores.new_zeros(*numbers.shape, scores.shape[1])
        for rows in pieces(len(scores), len(mine)):
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


@final
class PathSums(AbstractSums):
    """Over integer points, as the paths of a decision diagram, in a time that is linear in its size."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self._pace = Pace()

    def log_sum(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        return log_sum_over_paths(self.passes, scores)

    def without_a_face(self, scores: Float64[Tensor, "batch size"]) -> Bool[Tensor, " batch"]:
        """None: the structures without a part are those integer points of which it is 0."""
        return torch.zeros(len(scores), dtype=torch.bool, device=scores.device)

    def drawn(
        self, scores: Float64[Tensor, "batch size"], numbers: Float64[Tensor, "samples batch"]
    ) -> Float64[Tensor, "samples batch size"]:
        passes = self.passes
        asked, seeds = (part.cpu().contiguous().numpy() for part in (scores.detach(), numbers))
        out = np.empty((*numbers.shape, scores.shape[1]))

        def work(which: np.ndarray) -> None:
            kernels.sample(*passes.arrays, passes.reach, passes.spread, passes.fixed, asked, seeds, which, out)

        self._pace.spread(work, len(asked))
        return torch.from_numpy(out).to(scores.device)

    def points(self, most: int) -> Float64[np.ndarray, "structures size"]:
        """All structures, in lexicographic order.

        Raises
        ------
        ValueError : when there are more than ``most``.
        """
        count = self.passes.diagram.count
        if count > most:
            raise ValueError(f"there are {count} integer points, more than {most}, too many to enumerate")
        column, start, value, child, _ = self.passes.arrays
        points, node = np.tile(self.passes.fixed, (min(count, 1), 1)), np.zeros(min(count, 1), dtype=np.int64)
        while len(open_ones := np.flatnonzero(node < len(column) - 1)):  # paths, of which each has a completion
            here = node[open_ones]
            arcs = start[here + 1] - start[here]
            path = np.repeat(open_ones, arcs)
            arc = np.repeat(start[here], arcs) + np.arange(len(path)) - np.repeat(np.cumsum(arcs) - arcs, arcs)
            longer = points[path]
            longer[np.arange(len(path)), column[node[path]]] = value[arc]
            ended = node == len(column) - 1
            points, node = np.concatenate([points[ended], longer]), np.concatenate([node[ended], child[arc]])
        return points[np.lexsort(points.T[::-1])] if points.size else points

    def has(self, points: Float64[np.ndarray, "points size"], tolerance: float) -> Bool[np.ndarray, " points"]:
        """Which points are structures, to within a tolerance next to the size of their entries: by a walk over the
        diagram, however many structures there are."""
        column, start, value, child, _ = self.passes.arrays
        fixed, last, arcs = self.passes.fixed, len(column) - 1, np.diff(start)
        near = np.round(points)
        open_entries: np.ndarray = np.abs(points - fixed) > tolerance * np.maximum(1.0, np.abs(fixed))
        inside = np.full(len(points), not self.passes.diagram.empty)
        node = np.zeros(len(points), dtype=np.int64)
        while len(walking := np.flatnonzero(inside & (node < last))):
            here = node[walking]
            entry = column[here]
            off = np.abs(points[walking, entry] - near[walking, entry])
            whole = off <= tolerance * np.maximum(1.0, np.abs(near[walking, entry]))
            open_entries[walking, entry] = False
            inside[walking] = False
            for place in range(int(arcs[here].max())):
                arc = np.minimum(start[here] + place, len(value) - 1)
                taken = whole & (place < arcs[here]) & (value[arc] == near[walking, entry])
                inside[walking[taken]], node[walking[taken]] = True, child[arc[taken]]
        return inside & ~open_entries.any(axis=1)

    def best(self, scores: Float64[Tensor, "batch size"], most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best structures ``(batch, most, size)``, best first, their scores, and how many there are.

        Of those that tie for the last place, the ones that all solvers agree upon are listed
        (:class:`optlayers.Highs`); of those that are listed and score the same, the smaller one in lexicographic order
        comes first.

        Raises
        ------
        ValueError : when lists of so many, one for every node, take too much memory.
        """
        passes = self.passes
        nodes, most = passes.diagram.nodes, max(1, min(most, passes.diagram.count))
        if (numbers := most * (LISTED * nodes + scores.numel())) > MEMORY:
            raise ValueError(
                f"the {most:,} best structures take {8e-9 * numbers:,.0f} GB of memory by a decision diagram of "
                f"{nodes:,} nodes for {len(scores):,} instances; ask for at most "
                f"{MEMORY // (LISTED * nodes + scores.numel()):,}"
            )
        asked = scores.detach().cpu().contiguous().numpy()
        points, totals = np.zeros((len(asked), most, asked.shape[1])), np.full((len(asked), most), -np.inf)
        counts = np.zeros(len(asked), dtype=np.int64)

        def work(which: np.ndarray) -> None:
            kernels.k_best(
                *passes.arrays, passes.fixed, passes.first, passes.second, asked, most, which, points, totals, counts
            )

        self._pace.spread(work, len(asked))
        for mine, sums, count, row in zip(points, totals, counts.tolist(), asked, strict=True):
            _put_in_order(mine[:count], sums[:count], row)
        found: Any = (points, totals, counts)
        points_, totals_, counts_ = (torch.from_numpy(part).to(scores.device) for part in found)
        return points_, totals_, counts_


def _put_in_order(
    points: Float64[np.ndarray, "count size"],
    totals: Float64[np.ndarray, " count"],
    scores: Float64[np.ndarray, " size"],
) -> None:
    """Sort what is best first and may tie, in place: by sums that are rounded once, then in lexicographic order."""
    finite = np.where(np.isneginf(scores), 0.0, scores)
    with np.errstate(over="ignore"):
        size = float((np.abs(points) @ np.abs(finite)).max(initial=0.0))
    rounding = len(scores) * np.finfo(np.float64).eps * size
    if not np.isfinite(rounding) or not (np.abs(np.diff(totals)) <= rounding).any():
        return
    sums = [math.fsum((point * finite)[point != 0.0].tolist()) for point in points]
    order = sorted(range(len(points)), key=lambda k: (-sums[k], points[k].tolist()))
    points[:], totals[:] = points[order], totals[order]
