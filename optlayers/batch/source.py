"""Where the polytopes of calls come from: one of them, or a family, with the solvers that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import cvxpy as cp
import torch
from jaxtyping import Int64
from torch import Tensor

from optlayers.batch.entries import CPU
from optlayers.batch.shares import Share, Shares
from optlayers.batch.sizes import FirstOf, corner, named_corners, named_size, rows_by_size, size_table
from optlayers.common.caches import Cache
from optlayers.common.tensors import check_scores
from optlayers.compilation.compiled import CompiledPolytope, compile_polytope
from optlayers.compilation.compiled_once import CompiledSizes, compiled_once, sizes_of
from optlayers.compilation.rounded import Sameness, sameness
from optlayers.family import Family
from optlayers.form.standard import ParameterSpec, ScoredSpec
from optlayers.polytope import Polytope
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector

__all__ = ["Source", "beside"]

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
        self._sizes: CompiledSizes | None = None
        if isinstance(polytope, CompiledPolytope):
            if maximizer is not None or projector is not None:
                raise ValueError("a compiled polytope has its solvers already; give them to compile_polytope")
            self.only = polytope
        elif isinstance(polytope, Polytope):
            self.only = compiled_once(polytope, maximizer, projector)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sizes": None}  # a copy looks them up with its own family

    def compiled(self, *size: int) -> CompiledPolytope:
        """The compiled polytope; of a family, the one for a size."""
        if self.family is not None:
            if self._sizes is None:
                self._sizes = sizes_of(self.family, self.maximizer, self.projector)
            return self._sizes.compiled(*size)
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
    ) -> tuple[Shares, Sequence[Tensor]]:
        """A batch split among its polytopes, and its tensors: scores, then what is given by name, for each polytope.

        What does not fit is refused; nobody has looked at the numbers.
        """
        only = self.only
        if only is not None:
            if sizes is not None:
                check_scores(scores, name)
                raise TypeError("sizes= is for layers over a Family; this layer has one polytope")
            arrived = only.entries.arrive(scores, parameters, name)
            home = CPU if scores.is_cpu else only.home(scores.device)
            share = Share(only, only.entries, arrived.batch, home, arrived.once)
            return Shares((share,), arrived.batch, scores.shape[len(arrived.batch) :]), arrived.tensors
        check_scores(scores, name)
        table, batch = self.sizes_of(sizes, scores, compiled)
        padded, tensors, every = scores.shape[len(batch) :], [scores], list[Share]()
        rounded = table if self.family is None else self.family.rounded(table)
        for size, rows in rows_by_size(rounded):
            if 0 in size:
                continue
            whose, own = FirstOf(rows, batch), None if rounded is table else table[rows]
            one, beyond, accept = _compiled_for(compiled, size, own, whose), None, None
            entries, count = one.entries, torch.Size(rows.shape)
            if own is None:
                place = corner(one.shape, padded, size, whose)
            else:
                place, beyond, accept = self._beyond(one, size, own, rows, padded, batch)
            specs: list[ParameterSpec | ScoredSpec] = [*entries.parameters, *entries.auxiliaries]
            mine = named_corners(specs, parameters, rows, batch, size) if parameters else parameters
            try:
                named, once = entries.arrive_named(mine, count)
            except TypeError as error:
                raise TypeError(f"{error}; {_declared_otherwise(compiled, size, rounded, whose)}") from error
            span = slice(len(tensors), len(tensors) + len(named))
            tensors += named
            home = CPU if scores.is_cpu else one.home(scores.device)
            every.append(Share(one, entries, count, home, once, span, rows, place, batch, size, beyond, own, accept))
        if not every:  # no polytope says what is scored; what wants a gradient gets 0
            tensors += [value for value in parameters.values() if isinstance(value, Tensor) and value.requires_grad]
        return Shares(every, batch, padded), tensors

    def _beyond(
        self,
        compiled: CompiledPolytope,
        size: tuple[int, ...],
        table: Tensor,
        rows: Tensor,
        padded: torch.Size,
        batch: torch.Size,
    ) -> tuple[tuple[slice, ...], Tensor | None, Callable[[Tensor, Share], None]]:
        """For instances whose sizes are rounded up to ``size``: what they take together of their padded shape, the
        parts of the polytope that each of them does not have, and what refuses parameters."""
        family = self.family
        assert family is not None
        if compiled.entries.auxiliaries:
            raise NotImplementedError(
                "round_to is for families without scored auxiliary variables, whose padding has no fixed place"
            )
        beyond, rounding = torch.ones(len(rows), *compiled.shape, dtype=torch.bool, device="cpu"), []
        for own, mine in rows_by_size(table):
            whose = FirstOf(rows[mine], batch)
            place: tuple[Any, ...] = corner(family.shape_of(*own), padded, own, whose)
            beyond[(mine, *place)] = False
            if own != size:
                same = sameness(family, self.maximizer, self.projector, own, size, whose)
                if not compiled.entries.parameters:
                    same.refuse_other_answers(torch.zeros(1, 0, dtype=torch.float64, device="cpu"), whose)
                rounding.append(same)
        together = tuple(slice(0, min(have, need)) for have, need in zip(padded, compiled.shape, strict=True))
        return together, beyond, partial(_accept, tuple(rounding))


def beside(
    polytope: Polytope | CompiledPolytope | Family, parameters: Sequence[cp.Parameter]
) -> Polytope | CompiledPolytope | Family:
    """Polytopes with the parameters of a rule."""
    if not isinstance(polytope, CompiledPolytope):
        return polytope.beside(parameters) if parameters else polytope
    other = polytope.polytope.beside(parameters)
    if other is polytope.polytope:
        return polytope
    maximizer, projector = polytope.maximizer, polytope.projector  # those that need no oracle, which is left behind
    return compile_polytope(
        other,
        maximizer=None if maximizer.reads_declaration else maximizer,
        projector=None if projector.reads_declaration else projector,
        tolerance=polytope.tolerance,
    )


def _compiled_for(compiled: Compiled, size: tuple[int, ...], own: Tensor | None, whose: FirstOf) -> CompiledPolytope:
    """The polytope of some instances, whose ``own`` sizes may have been rounded up."""
    try:
        return compiled(*size)
    except Exception as error:
        if own is None or size in {tuple(row) for row in own.tolist()}:
            raise
        raise ValueError(
            f"{error}; that is for {whose}, whose size {named_size(own[0].tolist())} was rounded up to "
            f"{named_size(size)}: leave round_to out, or give the factory a larger limit"
        ) from error


def _declared_otherwise(compiled: Compiled, size: tuple[int, ...], table: Tensor, whose: FirstOf) -> str:
    """What is declared for the instances that something given by name does not fit."""
    said = f"so the declaration of size {named_size(size)} says, which {whose} has"
    for other, _ in rows_by_size(table):
        names = [[spec.name for spec in compiled(*of).entries.parameters] for of in (size, other) if 0 not in of]
        if len(names) == 2 and set(names[0]) != set(names[1]):
            return (
                f"{said}: its parameters are {names[0]}, and those of size {named_size(other)} {names[1]}, but all "
                "instances are given the same ones: declare the same parameters at all sizes of the family"
            )
    return said


def _accept(rounding: Sequence[Sameness], theta: Tensor, share: Share) -> None:
    """Refuse parameters of instances for which sizes that are rounded up have other answers."""
    own = share.own
    assert own is not None
    for same in rounding:
        mine = torch.nonzero((own == torch.tensor(same.size, device="cpu")).all(dim=1))[:, 0]
        index = share.index(int(mine[0]))
        whose = f"instance {index[0] if len(index) == 1 else index}" if index else "the instance"
        same.refuse_other_answers(theta[mine.to(theta.device)], whose)
