"""The instances of each polytope in a batch; what is found for them, together in the shape of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.batch.entries import NOTHING, Entries, Packed
from optlayers.batch.sizes import named_size
from optlayers.common.tensors import owned
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.solution import Failure, SolveError, Status

__all__ = ["Share", "Shares"]

P = TypeVar("P")
T = TypeVar("T")


@final
@dataclass(slots=True)
class Share:
    """The instances of one polytope in a batch.

    Of a whole batch ``rows`` is None. Else they are the places of the instances in the flat batch, and ``corner`` is
    what an instance takes of its padded shape. ``batch`` is the shape of the share, ``named`` are the places of its
    tensors among those of the call, behind the scores, and ``once`` the auxiliary variables whose scores are given
    once for all instances. ``around`` is the shape of the whole batch, ``home`` the device where instances are solved.
    """

    compiled: AbstractPrepared
    entries: Entries
    batch: torch.Size
    home: torch.device
    once: frozenset[str] = NOTHING
    named: slice = field(default_factory=partial(slice, 1, None))
    rows: Tensor | None = None
    corner: tuple[slice, ...] = ()
    around: torch.Size | None = None
    size: tuple[int, ...] = ()
    beyond: Bool[Tensor, "instances *shape"] | None = None
    """The parts of the polytope that instances do not have, where sizes are rounded up; None for none."""
    own: Int64[Tensor, "instances k"] | None = None
    """The sizes of the instances, where they are rounded up."""
    accept: Callable[[Float64[Tensor, "instances parameters"], Share], None] | None = None
    """What refuses parameters for which rounding up changes answers."""

    def positions(self) -> Int64[Tensor, "*batch dimensions"] | None:
        """The indices that a user knows the instances by, where they are not their own."""
        if self.rows is None or self.around is None:
            return None
        if not self.around:
            return self.rows.new_zeros(len(self.rows), 0)
        return torch.stack(torch.unravel_index(self.rows, self.around), dim=1)

    def pack(self, tensors: Sequence[Tensor], name: str = "scores") -> Packed:
        """The numbers of these instances; see :meth:`Entries.pack`."""
        packed = self.entries.pack(tensors, self.batch, self.home, self.once, self.positions, name)
        if self.accept is not None and packed.theta is not None:
            self.accept(packed.theta, self)
        return packed

    def told(self, failure: Failure, k: int) -> Failure:
        """The failure of the instance ``k`` as a user knows it."""
        reason = failure.reason
        if self.own is not None and self.beyond is not None and failure.status == Status.INFEASIBLE:
            own = tuple(self.own[k].tolist())
            if own != self.size:
                reason += (
                    f"; its size {named_size(own)} is rounded up to {named_size(self.size)}, and parts beyond its size "
                    "are forbidden"
                )
        return replace(failure, index=self.index(k), reason=reason)

    def tensors(self, of_all: Sequence[Tensor], batch: torch.Size) -> list[Tensor]:
        """Those of these instances, scores first, among those of a call for the whole ``batch``."""
        return [self.scores_of(of_all[0], batch), *of_all[self.named]]

    def scores_of(self, scores: Tensor, batch: torch.Size) -> Tensor:
        """The scores of these instances, ``(*batch, *shape)``; parts that they do not have are forbidden."""
        return self.of(scores, batch, outside=-math.inf)

    def of(self, whole: Tensor, batch: torch.Size, apart: tuple[int, ...] = (), *, outside: float = 0.0) -> Tensor:
        """The numbers of these instances, ``(*apart, *batch, *shape)``, of those of the whole ``batch``."""
        if self.rows is None:
            return whole
        head = len(apart)
        flat = whole.reshape(*apart, math.prod(batch), *whole.shape[head + len(batch) :])
        place: tuple[Any, ...] = (..., *self.corner)
        mine = flat.index_select(head, self.rows_on(whole))[place]
        if self.beyond is None:
            return mine
        shape = (*mine.shape[: head + 1], *self.beyond.shape[1:])
        if mine.shape != shape:  # the padding of the batch ends before the polytope does
            wider = mine.new_zeros(shape)
            wider[place] = mine
            mine = wider
        return mine.masked_fill(self.beyond.to(mine.device), outside)

    def put(self, flat: Tensor, values: Tensor) -> None:
        """Write numbers of these instances, or one number, into ``(*apart, instances, *padded)``."""
        place: tuple[Any, ...] = (..., self.rows_on(flat), *self.corner)
        if self.beyond is not None:
            own: tuple[Any, ...] = (..., *self.corner)
            beyond = self.beyond[own].to(flat.device)
            values = torch.where(beyond, flat[place], values[own] if values.ndim else values)
        flat[place] = values

    def places(self, like: Tensor) -> Tensor | slice:
        """Where the instances are in a flat batch, on the device of ``like``."""
        return slice(None) if self.rows is None else self.rows_on(like)

    def rows_on(self, like: Tensor) -> Tensor:
        """The places of the instances, beside the tensor that they are places of."""
        if self.rows is None:
            raise RuntimeError("this share is the whole batch")
        return self.rows if self.rows.device == like.device else self.rows.to(like.device)

    def index(self, k: int) -> tuple[int, ...]:
        """Under which index in the batch a user knows the instance ``k``."""
        batch = self.batch if self.rows is None or self.around is None else self.around
        place = k if self.rows is None else int(self.rows[k])
        return tuple(int(i) for i in np.unravel_index(place, batch)) if batch else ()

    def under_vmap(self, size: int, batch: torch.Size, batched: Sequence[bool]) -> Share:
        """The share of ``size`` times the batch, which is ``batch``; ``batched`` says which tensors differ in these."""
        rows, mine = self.rows, torch.Size((size, *self.batch))
        if rows is not None:
            each = math.prod(batch) // size
            rows = (torch.arange(size, device=rows.device)[:, None] * each + rows).reshape(-1)
            mine = torch.Size((len(rows),))
        specs = self.entries.auxiliaries
        differ = {s.name for s, differs in zip(specs, batched[self.named][: len(specs)], strict=True) if differs}
        beyond = None if self.beyond is None else self.beyond.repeat(size, *[1] * (self.beyond.ndim - 1))
        own = None if self.own is None else self.own.repeat(size, 1)
        return replace(self, batch=mine, once=self.once - differ, rows=rows, around=batch, beyond=beyond, own=own)


@dataclass(slots=True)
class Shares:
    """A batch of the shape ``batch``, split into the shares of ``every`` polytope, and how what is found for these
    comes together again: in memory of its own and no view, so that it can be written to under autograd. ``padded`` is
    the shape of an instance in the batch.
    """

    every: Sequence[Share]
    batch: torch.Size
    padded: torch.Size

    @property
    def count(self) -> int:
        """How many instances there are."""
        return math.prod(self.batch)

    @property
    def whole(self) -> bool:
        """Whether one polytope is that of all instances."""
        return len(self.every) == 1 and self.every[0].rows is None

    def in_turn(self, parts: Iterable[P], ask: Callable[[P], T]) -> list[T]:
        """What is found for one part of the batch after the other. Where some instances have no answer, all parts are
        asked before the batch is given up.

        Raises
        ------
        SolveError : for all instances without an answer, in the order of the batch.
        """
        found, failures = [], list[Failure]()
        for part in parts:
            try:
                found.append(ask(part))
            except SolveError as error:
                failures += error.failures
        if failures:
            raise SolveError(sorted(failures, key=lambda failure: failure.index), self.count)
        return found

    def structures(
        self,
        found: Sequence[tuple[Share, Tensor]],
        dtype: torch.dtype,
        device: torch.device,
        apart: Sequence[int] = (),
        *,
        fresh: bool = False,
    ) -> Tensor:
        """Flat points ``(*apart, instances, size)`` of every share as structures ``(*apart, *batch, *padded)``; 0 in
        padding. Scored auxiliary variables, which are behind the structure, are left out. Nobody else has the memory
        of ``fresh`` points."""
        shape = (*apart, *self.batch, *self.padded)
        if found and found[0][0].rows is None:  # of the whole batch
            ((share, values),) = found
            if values.shape[-1] != share.entries.structure_size:
                values, fresh = values[..., : share.entries.structure_size], False
            return _shaped(values, shape, dtype, device, fresh)
        out = torch.zeros(shape, dtype=dtype, device=device)
        for share, values in found:
            entries = share.entries
            mine = values[..., : entries.structure_size].reshape((*values.shape[:-1], *entries.shape))
            # A new view each time: what was written before may have given the whole a graph, which an old one lacks.
            share.put(out.view(*apart, self.count, *self.padded), mine.to(device, dtype))
        return out

    def auxiliary(
        self,
        found: Iterable[tuple[Share, Tensor]],
        name: str,
        padded: Sequence[int],
        like: Tensor,
        apart: Sequence[int] = (),
    ) -> Tensor:
        """The values ``(*apart, *batch, *padded)`` of an auxiliary variable in flat points of every share, 0 where a
        polytope does not have it."""
        out = torch.zeros((*apart, *self.batch, *padded), dtype=like.dtype, device=like.device)
        for share, values in found:
            for spec in share.entries.auxiliaries:
                if spec.name == name:
                    flat = out.view(*apart, self.count, *padded)
                    mine = values[..., spec.span].reshape((*values.shape[:-1], *spec.shape))
                    place = (..., share.places(flat), *(slice(0, length) for length in spec.shape))
                    flat[place] = mine.to(like.device, like.dtype)
        return out

    def numbers(
        self,
        found: Sequence[tuple[Share, Tensor]],
        dtype: torch.dtype = torch.float64,
        device: torch.device | None = None,
        otherwise: float = 0,
        *,
        fresh: bool = False,
    ) -> Tensor:
        """A number for each instance, ``(*apart, instances)`` of every share, as ``(*apart, *batch)``; for instances of
        size 0 what they are ``otherwise``. The device is by default that of the numbers, and nobody else has the memory
        of ``fresh`` ones."""
        apart = found[0][1].shape[:-1] if found else ()
        shape = (*apart, *self.batch)
        if device is None:
            device = found[0][1].device if found else torch.device("cpu")
        if found and found[0][0].rows is None:  # of the whole batch
            return _shaped(found[0][1], shape, dtype, device, fresh)
        out = torch.full((*apart, self.count), otherwise, dtype=dtype, device=device)
        for share, values in found:
            out = out.index_copy(len(apart), share.rows_on(out), values.to(device, dtype))
        return out if out.shape == shape else out.reshape(shape).clone()


def _shaped(values: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device, fresh: bool) -> Tensor:
    """Values in another shape, dtype and place, and in memory of their own; ``fresh`` ones have such already."""
    same = values.shape == shape and values.dtype is dtype and values.device == device
    return values if fresh and same else owned(values, shape, dtype, device)
