"""Sums over all structures of one polytope: over its vertices, or over the paths of its decision diagram."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.path_sums import log_sum_over_paths
from optlayers.solvers.diagram import Passes
from optlayers.solvers.kernels import diagrams as kernels
from optlayers.solvers.pool import Pace
from optlayers.vertex_sums import log_sum_over, log_weights, pieces

__all__ = ["AbstractSums", "PathSums", "VertexSums"]

INSIDE = 1e-7
"""Entries of vertices beyond this are not 0."""


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
        nothing = torch.zeros(1, len(self.passes.fixed), dtype=torch.float64, device="cpu")
        found: np.ndarray = self.best(nothing, max(count, 1))[0][0, :count].numpy()
        return found[np.lexsort(found.T[::-1])] if found.size else found

    def best(self, scores: Float64[Tensor, "batch size"], most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best structures ``(batch, most, size)``, best first, their scores, and how many there are.

        Of those that tie for the last place, the ones that all solvers agree upon are listed
        (:class:`optlayers.Highs`); of those that are listed and score the same, the smaller one in lexicographic order
        comes first.
        """
        passes = self.passes
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
