"""The log-partition function of a batch at a temperature, as PyTorch differentiates it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.autograd.calls import AbstractCall, FirstDerivative
from optlayers.autograd.higher_order import Tensors
from optlayers.batch.masks import answered
from optlayers.batch.shares import Share
from optlayers.bound.base import Marginals
from optlayers.bound.polytope import BoundPolytope
from optlayers.gibbs.door import Door
from optlayers.solution import Solution

__all__ = ["PartitionCall", "check_temperature"]


@final
@dataclass(slots=True)
class _Part:
    """The instances of one polytope in a call, and what forward leaves of them to backward.

    ``column`` are the temperatures; ``added`` is what every part of a structure gets on top, where a call is about
    given structures.
    """

    share: Share
    polytope: BoundPolytope
    forbidden: Bool[Tensor, "batch size"] | None
    scores: Float64[Tensor, "batch size"]
    column: Float64[Tensor, "batch 1"]
    added: Float64[Tensor, "batch size"] | None
    marginals: Marginals
    failed: Bool[Tensor, " batch"] | None
    again: BoundPolytope | None = None


@final
@dataclass(slots=True)
class PartitionCall(AbstractCall):
    r"""The log of the sum of :math:`e^{\langle s, z \rangle / T}` over structures, ``(*batch,)`` in float64.

    Its tensors are scores, what is given by name for each polytope, and the temperature ``(*batch,)``. With
    ``structures`` ``(*batch, *padded)`` the sum is over those vertices alone that have the given structure: over all
    that auxiliary variables may be beside it.
    """

    door: Door
    structures: Tensor | None = None
    parts: Sequence[_Part] | None = None
    retained: bool = True
    inside: AbstractCall | None = None
    like: list[torch.Size] | None = None

    @property
    def name(self) -> str:
        """That of the distribution."""
        return "Gibbs"

    @property
    def home(self) -> torch.device:
        """Where instances are solved."""
        return self.door.home

    @property
    def solved(self) -> bool:
        """Whether forward has been there."""
        return self.parts is not None

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """The totals; 0 for instances of size 0, which have one structure."""
        door, temperature = self.door, tensors[-1]
        check_temperature(temperature)
        parts, totals = door.in_turn(door.every, partial(self._solved, tensors)), []
        for part in parts:
            total = part.marginals.total.detach()
            if part.added is not None:  # what the structures have in common is taken off again
                total = total - part.added.sum(dim=1)
            if part.failed is not None:
                total = total.masked_fill(part.failed, torch.nan)
            totals.append((part.share, total))
        self.parts, self.like = parts, [t.shape for t in tensors]
        return door.numbers(totals, device=door.home)

    def _solved(self, tensors: Sequence[Tensor], share: Share) -> _Part:
        door = self.door
        packed, column = door.packed(share, tensors), door.column(share, tensors[-1])

        def ask(
            polytope: BoundPolytope, scores: Tensor
        ) -> tuple[Solution, tuple[BoundPolytope, Marginals, Tensor | None]]:
            scores, added = scores / column, None
            if self.structures is not None:
                flat = share.entries.flat_structure(share.of(self.structures, door.batch), share.home)
                polytope, constant = polytope.completing(scores, flat)
                added = constant[:, None] * flat
                scores = scores + added
            marginals = polytope.marginals(scores)
            return marginals.solution, (polytope, marginals, added)

        bind = partial(BoundPolytope.of, share.compiled, packed)
        _, forbidden, scores, solution, (polytope, marginals, added) = answered(bind, packed, ask)
        failed = door.failing(share, [solution, *polytope.failed])
        return _Part(share, polytope, forbidden, scores, column, added, marginals, failed)

    def pull_back(self, wanted: Sequence[bool], grad: Tensor) -> Tensors:
        """The marginals, and minus the mean score by the temperature, times the gradients of the totals."""
        parts, like = self._known()
        found = []
        for part in parts:
            of_total, mean = self.door.column(part.share, grad), part.marginals.means
            found.append(self._slopes(part, of_total, mean, part.scores, part.column))
        return self._assembled(wanted, like, found)

    def gradients_with_graph(self, wanted: Sequence[bool], grad: Tensor, tensors: Sequence[Tensor]) -> Tensors:
        """Marginals are asked for once more, as functions of scores and temperatures."""
        parts, like = self._known()
        found = []
        for part in parts:
            share = part.share
            mine = self.door.mine(share, tensors)
            scores = share.entries.packed_with_graph(mine, share.batch, share.home, part.forbidden)[0]
            column = self.door.column(share, tensors[-1])
            asked = scores / column
            if part.failed is not None:
                asked = asked.masked_fill(part.failed[:, None], 0.0)
            if part.added is not None:
                asked = asked + part.added
            part.again = BoundPolytope(part.polytope.numbers)
            mean = part.again.marginals(asked, differentiable=asked.requires_grad).means
            found.append(self._slopes(part, self.door.column(share, grad), mean, scores, column))
        return self._assembled(wanted, like, found)

    def _known(self) -> tuple[Sequence[_Part], list[torch.Size]]:
        if self.parts is None or self.like is None:
            raise RuntimeError("the gradients of a log-partition function came before its value")
        return self.parts, self.like

    @staticmethod
    def _slopes(
        part: _Part, of_total: Tensor, mean: Tensor, scores: Tensor, column: Tensor
    ) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, " batch"]]:
        """Gradients of scores and of temperatures; 0 where there is no total."""
        of_scores = of_total / column * mean
        of_temperature = -(of_total / column.square() * (mean * scores).sum(dim=1, keepdim=True))[:, 0]
        if part.forbidden is not None:
            of_scores = of_scores.masked_fill(part.forbidden, 0.0)
        if part.failed is not None:
            of_scores = of_scores.masked_fill(part.failed[:, None], 0.0)
            of_temperature = of_temperature.masked_fill(part.failed, 0.0)
        return of_scores, of_temperature

    def _assembled(
        self, wanted: Sequence[bool], like: list[torch.Size], found: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensors:
        """Gradients of all tensors that are wanted, from those of every part."""
        door, parts = self.door, self._known()[0]
        out: list[Tensor | None] = [
            torch.zeros(shape, dtype=torch.float64, device=door.home) if needs and not parts else None
            for shape, needs in zip(like, wanted, strict=True)
        ]
        for part, (of_scores, _) in zip(parts, found, strict=True):
            split = part.share.entries.split(of_scores)
            for place, value in zip(door.auxiliary_places(part.share, len(like)), split[1:], strict=True):
                if wanted[place] and value is not None:
                    out[place] = value.reshape(like[place])
        if wanted[0]:
            each = [(part.share, of_scores) for part, (of_scores, _) in zip(parts, found, strict=True)]
            out[0] = door.structures(each, torch.float64, door.home, fresh=True)
        if wanted[-1]:
            each = [(part.share, of_temperature) for part, (_, of_temperature) in zip(parts, found, strict=True)]
            out[-1] = door.numbers(each, device=door.home, fresh=True)
        return tuple(out)

    def gradients(
        self, leaves: Sequence[Tensor | None], *, create_graph: bool
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """The slopes times the gradients of the totals, which they are a linear function of."""
        incoming = torch.zeros(self.door.batch, dtype=torch.float64, device=self.home, requires_grad=True)
        wanted = tuple(leaf is not None and leaf.requires_grad for leaf in leaves)
        return [incoming], list(FirstDerivative(self, wanted).graph(incoming, *leaves))

    def verify(self) -> None:
        """Raise for instances whose derivative of higher order does not exist."""
        for part in self.parts or ():
            if part.again is not None:
                self.door.failing(part.share, part.again.failed)

    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> AbstractCall:
        """The call for ``size`` times the batch."""
        if self.structures is not None:
            raise NotImplementedError(
                "the probability of a structure without auxiliary values cannot be transformed by torch.func.vmap; "
                "give their values too, or the whole batch"
            )
        batch = torch.Size((size, *self.door.batch))
        every = [share.under_vmap(size, batch, batched) for share in self.door.every]
        return PartitionCall(replace(self.door, every=every, batch=batch))


def check_temperature(temperature: Float64[Tensor, "*batch"]) -> None:
    """Refuse temperatures that are no positive, finite numbers, saying where."""
    good = torch.isfinite(temperature) & (temperature > 0.0)
    if not bool(good.all()):
        where = tuple(torch.nonzero(~good)[0].tolist())
        index = where[0] if len(where) == 1 else where
        of = f", of instance {index}" if where else ""
        raise ValueError(
            f"temperature must be positive and finite, but got {temperature.detach()[where].item()}{of}; to make the "
            "best structures less likely than the worst, change the sign of the scores"
        )
