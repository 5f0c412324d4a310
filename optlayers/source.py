"""Where the polytopes of calls come from: one of them, or a family, with the solvers that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor

from optlayers.caches import Cache
from optlayers.compiled import CompiledPolytope
from optlayers.compiled_once import compiled_of_size, compiled_once, refuse_other_answers
from optlayers.entries import CPU
from optlayers.form.standard import ParameterSpec, ScoredSpec
from optlayers.polytope import Family, Polytope
from optlayers.sizes import Share, corner, named_corners, named_instance, rows_by_size, size_table
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.tensors import check_scores

__all__ = ["Source"]

Compiled = Callable[..., CompiledPolytope]


@final
class Source:
    """A polytope, or a family of them, and the tensors of a call in the shares of its polytopes.

    ``only`` is the compiled polytope, None for a ``family``.
    """

    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family,
        maximizer: AbstractMaximizer | None = None,
        projector: AbstractProjector | None = None,
    ) -> None:
        self.family = polytope if isinstance(polytope, Family) else None
        self.maximizer, self.projector = maximizer, projector
        self.only: CompiledPolytope | None = None
        self._takes: Cache[int, bool] = Cache(4)
        if isinstance(polytope, CompiledPolytope):
            if maximizer is not None or projector is not None:
                raise ValueError("a compiled polytope has its solvers already; give them to compile_polytope")
            self.only = polytope
        elif isinstance(polytope, Polytope):
            self.only = compiled_once(polytope, maximizer, projector)

    def compiled(self, *size: int) -> CompiledPolytope:
        """The compiled polytope; of a family, the one for a size."""
        if self.family is not None:
            return compiled_of_size(self.family, self.maximizer, self.projector, *size)
        if size or self.only is None:
            raise TypeError("a layer over one polytope has one size; call compiled() without arguments")
        return self.only

    def is_that_of(self, other: Source) -> bool:
        """Whether the polytopes are those of one declaration, whatever solves them."""
        if self.only is None or other.only is None:
            return self.family is other.family and self.only is other.only
        return self.only.polytope is other.only.polytope

    def sizes_of(
        self, sizes: Any, scores: Tensor, compiled: Compiled
    ) -> tuple[Int64[Tensor, "instances k"], torch.Size]:
        """For a family: one row of sizes per instance, and the shape of the batch, from what was given."""
        family = self.family
        if family is None:
            raise TypeError("sizes= is for layers over a Family; this layer has one polytope")

        takes = partial(self._takes.get, make=family.takes)
        return size_table(sizes, scores, takes, lambda size: len(compiled(size).shape))

    def shares(
        self, scores: Tensor, sizes: Any, parameters: Mapping[str, Any], name: str, compiled: Compiled
    ) -> tuple[torch.Size, Sequence[Tensor], Sequence[Share]]:
        """The shape of a batch, its tensors (scores, then what is given by name, for each polytope), and its polytopes.

        What does not fit is refused; nobody has looked at the numbers.
        """
        only = self.only
        if only is not None:
            if sizes is not None:
                check_scores(scores, name)
                raise TypeError("sizes= is for layers over a Family; this layer has one polytope")
            arrived = only.entries.arrive(scores, parameters, name)
            home = CPU if scores.is_cpu else only.home(scores.device)
            return arrived.batch, arrived.tensors, (Share(only, only.entries, arrived.batch, home, arrived.once),)
        check_scores(scores, name)
        table, batch = self.sizes_of(sizes, scores, compiled)
        padded, tensors, shares = scores.shape[len(batch) :], [scores], []
        rounded = table if self.family is None else self.family.rounded(table)
        for size, rows in rows_by_size(rounded):
            if 0 in size:
                continue
            one, beyond = compiled(*size), None
            entries, count = one.entries, torch.Size([len(rows)])
            if rounded is table:
                place = corner(one.shape, padded, size, named_instance(rows, batch))
            else:
                place, beyond = self._beyond(one, size, table, rows, padded, batch)
            specs: list[ParameterSpec | ScoredSpec] = [*entries.parameters, *entries.auxiliaries]
            mine = named_corners(specs, parameters, rows, batch, size) if parameters else parameters
            named, once = entries.arrive_named(mine, count)
            span = slice(len(tensors), len(tensors) + len(named))
            tensors += named
            home = CPU if scores.is_cpu else one.home(scores.device)
            shares.append(Share(one, entries, count, home, once, span, rows, place, batch, size, beyond))
        if not shares:  # no polytope says what is scored; what wants a gradient gets 0
            tensors += [value for value in parameters.values() if isinstance(value, Tensor) and value.requires_grad]
        return batch, tensors, shares

    def _beyond(
        self,
        compiled: CompiledPolytope,
        size: tuple[int, ...],
        table: Tensor,
        rows: Tensor,
        padded: torch.Size,
        batch: torch.Size,
    ) -> tuple[tuple[slice, ...], Tensor | None]:
        """For instances whose sizes are rounded up to ``size``: what they take together of their padded shape, and the
        parts of the polytope that each of them does not have."""
        family = self.family
        assert family is not None
        if compiled.entries.auxiliaries:
            raise NotImplementedError(
                "round_to is for families without scored auxiliary variables, whose padding has no fixed place"
            )
        beyond = torch.ones(len(rows), *compiled.shape, dtype=torch.bool, device="cpu")
        for own, mine in rows_by_size(table[rows]):
            place: tuple[Any, ...] = corner(family.shape_of(*own), padded, own, named_instance(rows[mine], batch))
            beyond[(mine, *place)] = False
            if own != size:
                refuse_other_answers(family, self.maximizer, self.projector, own, size)
        together = tuple(slice(0, min(have, need)) for have, need in zip(padded, compiled.shape, strict=True))
        return together, beyond
