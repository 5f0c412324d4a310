"""The structures of a batch: the best ones, draws, all of them, and which values are structures; no gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.batch.shares import Share
from optlayers.bound.polytope import BoundPolytope
from optlayers.gibbs.door import Door, Found
from optlayers.gibbs.support import WHOLE
from optlayers.solution import Solution

__all__ = ["Listing"]


@final
@dataclass(frozen=True)
class Listing:
    """What the polytopes of a batch answer; ``tensors`` are those of the ``door``."""

    door: Door
    tensors: Sequence[Tensor]

    def best(self) -> Float64[Tensor, "*batch_and_shape"]:
        """The best structure of every instance."""

        def ask(share: Share, polytope: BoundPolytope, scores: Tensor, column: Tensor) -> tuple[Solution, Tensor]:
            found = polytope.maximize(scores)
            return found, found.value[None]

        return self.door.unpacked(self.door.ask(self.tensors, ask), 1, self.tensors[0])[0][0]

    def drawn(
        self, shape: torch.Size, generator: torch.Generator | None, like: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Structures ``(*shape, *batch, *padded)`` like the scores, and values of auxiliary variables by name."""
        count = math.prod(shape)

        def ask(share: Share, polytope: BoundPolytope, scores: Tensor, column: Tensor) -> tuple[Solution, Tensor]:
            drawn = polytope.sample(scores / column, count, generator)
            return drawn, drawn.value

        drawn = self.door.ask(self.tensors, ask, generator, draws=True)
        found, auxiliaries = self.door.unpacked(drawn, count, like)
        return (
            found.reshape((*shape, *found.shape[1:])),
            {name: value.reshape((*shape, *value.shape[1:])) for name, value in auxiliaries.items()},
        )

    def k_best(self, k: int) -> tuple[Found[Tensor], Int64[Tensor, "*batch"], int]:
        """The k best structures of every polytope's instances, how many each instance has, and the most of these."""
        door = self.door

        def ask(
            share: Share, polytope: BoundPolytope, scores: Tensor, column: Tensor
        ) -> tuple[Solution, tuple[Tensor, Tensor]]:
            best = polytope.best(scores, k)
            return best.solution, (best.structures, best.counts)

        answers = door.ask(self.tensors, ask)
        each = [(share, mine) for share, (_, mine), _ in answers]
        counts = door.numbers(each, torch.int64, door.home, otherwise=1)  # of size 0: padding alone
        most = int(counts.max()) if counts.numel() else 0
        found: Found[Tensor] = [
            (share, torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])]), failed)
            for share, (mine, _), failed in answers
        ]
        return found, counts, most

    def log_count(self) -> Float64[Tensor, "*batch"]:
        """The log of the number of structures, -inf for none."""

        def ask(share: Share, polytope: BoundPolytope, scores: Tensor, column: Tensor) -> tuple[Solution, Tensor]:
            counted = polytope.log_count()
            return counted.solution, counted.total.masked_fill(counted.solution.status == 1, -torch.inf)

        answers = self.door.ask(self.tensors, ask, may_be_empty=True)
        each = [
            (share, total if failed is None else total.masked_fill(failed, torch.nan))
            for share, total, failed in answers
        ]
        return self.door.numbers(each, device=self.door.home)

    def every(self) -> list[Float64[Tensor, "count *padded"]]:
        """All structures of every instance, in lexicographic order."""
        door = self.door
        every = [torch.zeros(1, *door.padded, dtype=torch.float64, device=door.home)] * door.count

        def ask(share: Share, polytope: BoundPolytope, scores: Tensor, column: Tensor) -> tuple[Solution, list[Tensor]]:
            mine = polytope.support()
            status = torch.tensor([0 if len(one) else 1 for one in mine], dtype=torch.int8)
            return Solution(scores, status.to(column.device), column[:, 0], column[:, 0]), mine

        for share, supports, _ in door.ask(self.tensors, ask, may_be_empty=True):
            rows = range(door.count) if share.rows is None else share.rows.tolist()
            entries = share.entries
            corner = (slice(None), *(slice(0, min(n, p)) for n, p in zip(entries.shape, door.padded, strict=True)))
            for row, one in zip(rows, supports, strict=True):
                own = torch.unique(one[:, : entries.structure_size], dim=0) if entries.auxiliaries else one
                every[row] = one.new_zeros(len(own), *door.padded)
                every[row][corner] = own.reshape(len(own), *entries.shape)[corner]
        return every

    def inside(self, value: Tensor, auxiliaries: Mapping[str, Tensor], tolerance: float) -> Bool[Tensor, "*batch"]:
        """Which values of the batch are structures without forbidden parts."""
        door = self.door
        padding = door.empty_in_padding(value)

        def ask(share: Share, polytope: BoundPolytope, scores: Tensor, column: Tensor) -> tuple[Solution, Tensor]:
            points = door.points(share, value, auxiliaries)
            inside, found = polytope.are_vertices(points, tolerance, structures_alone=not auxiliaries)
            return found, inside

        each = [(share, inside) for share, inside, _ in door.ask(self.tensors, ask, may_be_empty=True)]
        return padding & door.numbers(each, torch.bool, door.home, otherwise=True)

    def reaching(self, parts: Sequence[Bool[Tensor, "instances size"]]) -> Bool[Tensor, "*batch"]:
        """The instances that have a structure with one of some parts of the polytope of each."""
        of_share = {id(share): mine for share, mine in zip(self.door.every, parts, strict=True)}

        def ask(share: Share, polytope: BoundPolytope, scores: Tensor, column: Tensor) -> tuple[Solution, Tensor]:
            both = torch.cat([of_share[id(share)], of_share[id(share)]]).to(torch.float64)
            both[len(scores) :] *= -1.0
            found = polytope.repeated(2).maximize(both)
            used = ((found.value * both).abs() > WHOLE).any(dim=1).reshape(2, len(scores)).any(dim=0)
            return Solution(scores, found.status[: len(scores)], column[:, 0], column[:, 0]), used

        answers = self.door.ask(self.tensors, ask)
        each = [(share, reached if failed is None else reached & ~failed) for share, reached, failed in answers]
        return self.door.numbers(each, torch.bool, self.door.home)
