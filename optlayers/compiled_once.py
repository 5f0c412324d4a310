"""One compilation of a declaration, for all layers and losses over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

from optlayers.caches import Cache
from optlayers.compiled import CompiledPolytope, compile_polytope
from optlayers.polytope import Family, Polytope
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.warn import warn_caller

__all__ = ["compiled_of_size", "compiled_once"]

KEPT_SOLVERS = 8
"""For so many pairs of solvers is a declaration kept compiled."""


def compiled_once(
    polytope: Polytope, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None
) -> CompiledPolytope:
    """A polytope compiled for these solvers, made when it is first asked for, and kept with the declaration."""
    solvers = (maximizer, projector)
    if not _may_be_keys(solvers):
        return compile_polytope(polytope, maximizer=maximizer, projector=projector)
    kept: Cache[Any, CompiledPolytope] = polytope.__dict__.setdefault("_compiled", Cache(KEPT_SOLVERS))
    return kept.get(solvers, lambda _: compile_polytope(polytope, maximizer=maximizer, projector=projector))


def compiled_of_size(
    family: Family, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None, *size: int
) -> CompiledPolytope:
    """The polytope of one size of a family, compiled for these solvers, and kept with the family.

    Of more sizes than its ``cache_size`` the family keeps those that were asked for last. That a size has to be
    compiled again is said once.
    """
    solvers = (maximizer, projector)
    if not _may_be_keys(solvers):
        return compile_polytope(family(*size), maximizer=maximizer, projector=projector)
    by_solvers: Cache[Any, _Sizes] = family.__dict__.setdefault("_compiled", Cache(KEPT_SOLVERS))
    sizes = by_solvers.get(solvers, lambda _: _Sizes(Cache(family.cache_size)))

    def make(size: tuple[int, ...]) -> CompiledPolytope:
        if size in sizes.seen and not sizes.warned:
            sizes.warned = True
            warn_caller(
                f"{family!r} keeps {family.cache_size} sizes compiled, but {len(sizes.seen)} have been asked for, and "
                f"size {size[0] if len(size) == 1 else size} is compiled again, which takes longer than to use it: "
                f"give it room for all, Family(..., cache_size={_enough(len(sizes.seen))}), or make batches of "
                "instances of similar size"
            )
        sizes.seen.add(size)
        return compile_polytope(family(*size), maximizer=maximizer, projector=projector)

    return sizes.kept.get(size, make)


@final
@dataclass(eq=False)
class _Sizes:
    """The sizes of a family that are compiled for two solvers, and all that ever were."""

    kept: Cache[tuple[int, ...], CompiledPolytope]
    seen: set[tuple[int, ...]] = field(default_factory=set)
    warned: bool = False


def _may_be_keys(solvers: tuple[Any, ...]) -> bool:
    """Whether solvers are values, as ours are, that tell whether they are equal; others are not looked for."""
    try:
        hash(solvers)
    except TypeError:
        return False
    return True


def _enough(sizes: int) -> int:
    """A round number that has room for some more."""
    return 1 << (2 * sizes - 1).bit_length()
