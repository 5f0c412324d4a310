"""One compilation of a declaration, for all layers and losses over it."""

from __future__ import annotations

from typing import Any, final

from optlayers.batch.sizes import named_size
from optlayers.common.caches import Cache
from optlayers.common.warn import warn_caller
from optlayers.compilation.compiled import CompiledPolytope, compile_polytope
from optlayers.family import Family
from optlayers.polytope import Polytope
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector

__all__ = ["CompiledSizes", "compiled_of_size", "compiled_once", "sizes_of"]

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
    """The polytope of one size of a family, compiled for these solvers; see :class:`CompiledSizes`."""
    return sizes_of(family, maximizer, projector).compiled(*size)


def sizes_of(family: Family, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None) -> CompiledSizes:
    """The sizes of a family for these solvers, kept with the family."""
    solvers = (_key(maximizer), _key(projector))
    kept: Cache[Any, CompiledSizes] = family.__dict__.setdefault("_compiled", Cache(KEPT_SOLVERS))
    return kept.get(solvers, lambda _: CompiledSizes(family, maximizer, projector))


@final
class CompiledSizes:
    """The polytopes of a family, compiled for two solvers.

    Of more sizes than the ``cache_size`` of the family those are kept that were asked for last. That a size has to be
    compiled again is said once.
    """

    def __init__(
        self, family: Family, maximizer: AbstractMaximizer | None, projector: AbstractProjector | None
    ) -> None:
        self.family, self.maximizer, self.projector = family, maximizer, projector
        self._kept: Cache[tuple[int, ...], CompiledPolytope] = Cache(family.cache_size)
        self._seen: set[tuple[int, ...]] = set()
        self._warned = False

    def compiled(self, *size: int) -> CompiledPolytope:
        """The polytope of one size, compiled when it is first asked for."""
        again = size in self._seen and self._kept.found(size) is None
        compiled = self._kept.get(size, self._compile)
        self._seen.add(size)
        # Threads that ask for a new size at once all make it; only where there are more sizes than room has one gone.
        if again and len(self._seen) > self.family.cache_size and not self._warned:
            self._warned = True
            warn_caller(
                f"{self.family!r} keeps {self.family.cache_size} sizes compiled, but {len(self._seen)} have been asked "
                f"for, and size {named_size(size)} is compiled again, which takes longer than to use it: "
                f"give it room for all, Family(..., cache_size={_enough(len(self._seen))}), or make batches of "
                "instances of similar size, or round sizes up, round_to="
            )
        return compiled

    def _compile(self, size: tuple[int, ...]) -> CompiledPolytope:
        return compile_polytope(self.family(*size), maximizer=self.maximizer, projector=self.projector)


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
