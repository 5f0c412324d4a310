"""One compilation of a declaration, for all layers and losses over it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, final

import torch

from optlayers.caches import Cache
from optlayers.compiled import CompiledPolytope, compile_polytope
from optlayers.polytope import Family, Polytope
from optlayers.sizes import named_size
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector
from optlayers.warn import warn_caller

__all__ = ["compiled_of_size", "compiled_once", "refuse_other_answers"]

DRAWS = 8
"""So many scores tell whether two sizes have the same answers,"""
NEAR = 1e-6
"""to so much."""
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

    def make(size: tuple[int, ...]) -> CompiledPolytope:
        if size in sizes.seen and not sizes.warned:
            sizes.warned = True
            warn_caller(
                f"{family!r} keeps {family.cache_size} sizes compiled, but {len(sizes.seen)} have been asked for, and "
                f"size {named_size(size)} is compiled again, which takes longer than to use it: "
                f"give it room for all, Family(..., cache_size={_enough(len(sizes.seen))}), or make batches of "
                "instances of similar size, or round sizes up, round_to="
            )
        sizes.seen.add(size)
        return compile_polytope(family(*size), maximizer=maximizer, projector=projector)

    return sizes.kept.get(size, make)


def refuse_other_answers(
    family: Family,
    maximizer: AbstractMaximizer | None,
    projector: AbstractProjector | None,
    size: tuple[int, ...],
    rounded: tuple[int, ...],
) -> None:
    """Refuse a size that is not the rounded one without its further parts, as far as some scores tell.

    Every size is compared once, which takes a compilation of its own polytope.
    """
    compared: set[Any] = family.__dict__.setdefault("_compared", set())
    if (size, rounded) in compared:
        return
    large = compiled_of_size(family, maximizer, projector, *rounded)
    for spec in large.entries.parameters:
        if spec.shape:
            raise NotImplementedError(
                f"round_to is for families whose parameters are numbers, but {spec.name} has shape {spec.shape}, and "
                "nobody knows its values for parts that an instance does not have"
            )
    small = compile_polytope(family(*size), maximizer=maximizer, projector=projector)
    # In a thread of its own, which no transform of torch.func and no default device is around.
    with ThreadPoolExecutor(1) as alone:
        different = alone.submit(_compare, small, large).result()
    if different is not None:
        raise ValueError(
            f"{family!r} cannot be rounded: the polytope of size {named_size(size)} is not that of size "
            f"{named_size(rounded)} without its further parts{different}; leave round_to out"
        )
    compared.add((size, rounded))


def _compare(small: CompiledPolytope, large: CompiledPolytope) -> str | None:
    """Why the answers of the larger polytope without its further parts are others; None where they are the same."""
    names = [[(spec.name, spec.sign) for spec in one.entries.parameters] for one in (small, large)]
    if names[0] != names[1]:
        return f", as its parameters are {[n for n, _ in names[0]]} and not {[n for n, _ in names[1]]}"
    own = tuple(slice(0, length) for length in small.shape)
    scores = torch.randn(DRAWS, *small.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wider = torch.full((DRAWS, *large.shape), -torch.inf, dtype=torch.float64)
    wider[(slice(None), *own)] = scores
    for number in (1.0, 2.0) if names[0] else (1.0,):
        given = {name: -number if sign in ("nonpos", "neg") else number for name, sign in names[0]}
        for ask in ("maximize", "project") if small.has_vertices else ("project",):
            one, other = (getattr(compiled, ask)(s, **given) for compiled, s in ((small, scores), (large, wider)))
            mine = other.value[(slice(None), *own)]
            same = torch.isclose(one.value, mine, atol=NEAR, rtol=NEAR).flatten(1).all(dim=1)
            if not bool((other.ok == one.ok).all()):
                return f" ({(other.failures or one.failures)[0].reason})"
            if not bool((same | ~one.ok).all()):
                return ""
    return None


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
