"""The door of a distribution: numbers of a batch on their way to its polytopes, and structures on their way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.batch.entries import LOWEST, MASK, Packed
from optlayers.batch.masks import answered
from optlayers.batch.shares import Share, Shares
from optlayers.bound.polytope import BoundPolytope, failed_instances, first_failures
from optlayers.common.generators import remember
from optlayers.common.modes import outside_inference_mode, transforms_active
from optlayers.solution import Solution, SolveError, Status

__all__ = ["Ask", "Door", "Found"]

T = TypeVar("T")
Ask = Callable[[Share, BoundPolytope, Tensor, Tensor], tuple[Solution, T]]
"""A question to a polytope of a batch, with its scores and, as a column, its temperatures: a verdict, and what it is
about."""
Found = list[tuple[Share, T, Tensor | None]]
"""What the polytopes of a batch answer, and the instances of each that failed, None for none."""
TRANSFORMED = (
    "structures are numbers, and cannot be transformed by torch.func (vmap, grad, ...): ask for them outside of "
    "transforms, with the whole batch; mean, log_partition, entropy() and log_prob() can be"
)


@final
@dataclass(slots=True)
class Door(Shares):
    """The polytopes of a batch, and where its numbers are.

    Questions and calls have the same ``tensors``: the scores, in float64 at ``home`` where instances are solved, what
    is given by name for every polytope, and the temperature ``(*batch,)``. ``dtype`` is that in which scores were
    given. ``auxiliaries`` are the shapes in which scores of auxiliary variables come for an instance, with padding.
    """

    home: torch.device
    dtype: torch.dtype
    on_failure: Literal["raise", "nan"]
    auxiliaries: Mapping[str, torch.Size]

    def scored(self, tensors: Sequence[Tensor]) -> list[int]:
        """The places of scores among the tensors: of the structure, and of auxiliary variables."""
        found = [0]
        for share in self.every:
            found += self.auxiliary_places(share, len(tensors))
        return found

    @staticmethod
    def auxiliary_places(share: Share, tensors: int) -> range:
        """Those of the auxiliary variables of one polytope, among so many tensors."""
        return range(*share.named.indices(tensors - 1))[: len(share.entries.auxiliaries)]

    def mine(self, share: Share, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of one polytope, without the temperature."""
        return share.tensors(tensors[:-1], self.batch)

    def packed(self, share: Share, tensors: Sequence[Tensor]) -> Packed:
        """The numbers of one polytope's instances; those of no use are refused."""
        packed = share.pack(self.mine(share, tensors))
        packed.lowest = LOWEST[self.dtype]  # scores that were given in a lower precision have masks of their own
        packed.low = bool((packed.scores <= max(MASK, packed.lowest)).any())
        return packed

    def flat_scores(self, share: Share, tensors: Sequence[Tensor]) -> Float64[Tensor, "instances size"]:
        """The scores of one polytope's instances, with their graph and with -inf; nobody looks at the numbers."""
        return self.joined(share, self.mine(share, tensors)[: 1 + len(share.entries.auxiliaries)])

    @staticmethod
    def joined(share: Share, parts: Sequence[Tensor]) -> Tensor:
        """A tensor for the structure and one for every auxiliary variable, as flat points of one polytope."""
        sizes = [share.entries.structure_size, *(math.prod(spec.shape) for spec in share.entries.auxiliaries)]
        count = math.prod(share.batch)
        flat = [part.reshape(count, size) for part, size in zip(parts, sizes, strict=True)]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def column(self, share: Share, numbers: Float64[Tensor, "*batch"]) -> Float64[Tensor, "instances 1"]:
        """Of a number for each instance of the batch those of one polytope's instances, as a column."""
        flat = numbers.reshape(-1)
        return (flat if share.rows is None else flat.index_select(0, share.rows_on(flat)))[:, None]

    def failing(self, share: Share, solutions: Sequence[Solution]) -> Bool[Tensor, " instances"] | None:
        """The instances of one polytope that failed in some of these solves, None for none.

        Raises
        ------
        SolveError : where failures are raised.
        """
        solutions = [solution for solution in solutions if not solution.all_ok]
        if not solutions:
            return None
        count = math.prod(share.batch)
        failed = failed_instances(solutions, count)
        if self.on_failure == "raise":
            failures = first_failures(solutions, count)
            rows = torch.nonzero(failed).flatten().tolist()
            raise SolveError([share.told(failures[k], k) for k in rows], self.count)
        return failed

    def ask(
        self,
        tensors: Sequence[Tensor],
        ask: Ask[T],
        generator: torch.Generator | None = None,
        *,
        draws: bool = False,
        may_be_empty: bool = False,
    ) -> Found[T]:
        """What every polytope of the batch answers; outside of transforms, and without a graph.

        ``draws`` says whether random numbers are drawn; where an instance ``may_be_empty``, to have no structure is no
        failure.
        """
        if transforms_active():
            raise NotImplementedError(TRANSFORMED)

        def one(share: Share) -> tuple[Share, T, Tensor | None]:
            packed, column = self.packed(share, tensors), self.column(share, tensors[-1].detach())
            bind = partial(BoundPolytope.of, share.compiled, packed)
            drawn = partial(remember, generator, share.home) if draws else None
            polytope, _, _, solution, answer = answered(
                bind, packed, lambda bound, scores: ask(share, bound, scores, column), drawn
            )
            solves = [solution, *polytope.failed]
            if may_be_empty:
                empty = int(Status.INFEASIBLE)
                solves = [replace(s, status=s.status.masked_fill(s.status == empty, 0)) for s in solves]
            return share, answer, self.failing(share, solves)

        with outside_inference_mode():
            return self.in_turn(self.every, one)

    def unpacked(self, found: Found[Tensor], count: int, like: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Flat points ``(count, instances, size)`` of all polytopes as structures ``(count, *batch, *padded)`` like the
        scores, NaN where there is no answer, and the values of auxiliary variables by name."""
        mine = [(s, v if failed is None else v.masked_fill(failed[:, None], torch.nan)) for s, v, failed in found]
        structures = self.structures(mine, like.dtype, like.device, (count,))
        auxiliaries = {n: self.auxiliary(mine, n, shape, like, (count,)) for n, shape in self.auxiliaries.items()}
        return structures, auxiliaries

    def points(
        self, share: Share, value: Tensor, auxiliaries: Mapping[str, Tensor]
    ) -> Float64[Tensor, "instances size"]:
        """Values of a batch as flat points of one polytope, 0 for auxiliary variables that are not given."""
        entries = share.entries
        parts = [share.of(value, self.batch)]
        if not entries.auxiliaries:
            return self.joined(share, parts)
        if not auxiliaries:
            flat = parts[0].reshape(math.prod(share.batch), entries.structure_size)
            return torch.nn.functional.pad(flat, (0, entries.size - entries.structure_size))
        for spec in entries.auxiliaries:
            given = auxiliaries[spec.name]
            given = given.reshape(self.count, *given.shape[len(self.batch) :])
            mine = given if share.rows is None else given.index_select(0, share.rows_on(given))
            corner: tuple[Any, ...] = (slice(None), *(slice(0, length) for length in spec.shape))
            parts.append(mine[corner])
        return self.joined(share, parts)

    def empty_in_padding(self, value: Tensor) -> Bool[Tensor, "*batch"]:
        """Whether values of a batch are 0 where their instances have no parts."""
        rest = value.reshape(self.count, *self.padded).clone()
        for share in self.every:
            if share.rows is None:
                return torch.ones(self.batch, dtype=torch.bool, device=self.home)
            share.put(rest, torch.zeros((), dtype=rest.dtype, device=rest.device))
        return (rest == 0.0).reshape(*self.batch, math.prod(self.padded)).all(dim=-1)
