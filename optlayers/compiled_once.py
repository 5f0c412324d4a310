"""One compilation of a declaration, for all layers and losses over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch

from optlayers.caches import Cache
from optlayers.compiled import CompiledPolytope, compile_polytope
from optlayers.polytope import Family, Polytope
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
    """Refuse a family of which a size is not the larger one without its further parts, as far as some scores tell.

    The first size that is rounded is compared; it takes another compilation, once for a family.
    """
    by_solvers: Cache[Any, None] = family.__dict__.setdefault("_compared", Cache(1))

    def compare(_: Any) -> None:
        small, large = (
            compile_polytope(family(*each), maximizer=maximizer, projector=projector) for each in (size, rounded)
        )
        own = tuple(slice(0, length) for length in small.shape)
        given = [_given(compiled) for compiled in (small, large)]
        scores = torch.randn(DRAWS, *small.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        wider = torch.full((DRAWS, *large.shape), -torch.inf, dtype=torch.float64)
        wider[(slice(None), *own)] = scores
        for ask in ("maximize", "project") if small.has_vertices else ("project",):
            one, other = (
                getattr(compiled, ask)(s, **named)
                for compiled, s, named in zip((small, large), (scores, wider), given, strict=True)
            )
            mine = other.value[(slice(None), *own)]
            same = torch.isclose(one.value, mine, atol=NEAR, rtol=NEAR).flatten(1).all(dim=1) & other.ok
            if not bool((same | ~one.ok).all()):
                raise ValueError(
                    f"{family!r} cannot be rounded: the polytope of size {_word(size)} is not that of size "
                    f"{_word(rounded)} without its further parts"
                    + ("" if bool(other.ok[one.ok].all()) else f" ({other.failures[0].reason})")
                    + "; leave round_to out"
                )

    by_solvers.get("compared", compare)


def _given(compiled: CompiledPolytope) -> dict[str, float]:
    """Numbers for the parameters, the same for both sizes: 1, or -1 where that is their sign."""
    return {spec.name: -1.0 if spec.sign in ("nonpos", "neg") else 1.0 for spec in compiled.entries.parameters}


def _word(size: tuple[int, ...]) -> str:
    return str(size[0] if len(size) == 1 else size)


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
