"""One compilation of a declaration, for all layers and losses over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

from optlayers.caches import Cache
from optlayers.compiled import CompiledPolytope, compile_polytope
from optlayers.polytope import Family, Polytope
from optlayers.sizes import named_size
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.warn import warn_caller

__all__ = ["compiled_of_size", "compiled_once"]

KEPT_SOLVERS = 8
"""For so many pairs of solvers is a declaration kept compiled."""


def compiled_once(
    polytope: Polytope, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None
) -> CompiledPolytope:
    """A polytope compiled for these solvers, made when it is first asked for, and kept with the declaration."""
    solvers = (_key(maximizer), _key(projector))
    kept: Cache[Any, CompiledPolytope] = polytope.__dict__.setdefault("_compiled", Cache(KEPT_SOLVERS))
    return kept.get(solvers, lambda _: compile_polytope(polytope, maximizer=maximizer, projector=projector))


def compiled_of_size(
    family: Family, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None, *size: int
) -> CompiledPolytope:
    """The polytope of one size of a family, compiled for these solvers, and kept with the family.

    Of more sizes than its ``cache_size`` the family keeps those that were asked for last. That a size has to be
    compiled again is said once.
    """
    solvers = (_key(maximizer), _key(projector))
    by_solvers: Cache[Any, _Sizes] = family.__dict__.setdefault("_compiled", Cache(KEPT_SOLVERS))
    sizes = by_solvers.get(solvers, lambda _: _Sizes(Cache(family.cache_size)))

    again = size in sizes.seen and sizes.kept.found(size) is None
    compiled = sizes.kept.get(
        size, lambda size: compile_polytope(family(*size), maximizer=maximizer, projector=projector)
    )
    sizes.seen.add(size)
    # Threads that ask for a new size at once all make it; only where there are more sizes than room has one gone.
    if again and len(sizes.seen) > family.cache_size and not sizes.warned:
        sizes.warned = True
        warn_caller(
            f"{family!r} keeps {family.cache_size} sizes compiled, but {len(sizes.seen)} have been asked for, and "
            f"size {named_size(size)} is compiled again, which takes longer than to use it: "
            f"give it room for all, Family(..., cache_size={_enough(len(sizes.seen))}), or make batches of "
            "instances of similar size, or round sizes up, round_to="
        )
    return compiled


@final
@dataclass(eq=False)
class _Sizes:
    """The sizes of a family that are compiled for two solvers, and all that ever were."""

    kept: Cache[tuple[int, ...], CompiledPolytope]
    seen: set[tuple[int, ...]] = field(default_factory=set)
    warned: bool = False


def _key(solver: Any) -> Any:
    """A solver as a key: by its value, as ours are, or by itself where it has no hash."""
    try:
        hash(solver)
    except TypeError:
        return _Itself(solver)
    return solver


@final
class _Itself:
    """An object that is equal to itself alone."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.it is self.it


def _enough(sizes: int) -> int:
    """A round number that has room for some more."""
    return 1 << (2 * sizes - 1).bit_length()
