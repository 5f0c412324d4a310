"""All vertices of a polytope, for exact sums over its structures where no formula is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.proofs.unimodular import Block
from optlayers.solution import Solution, Status
from optlayers.vertices.binary_vertices import (
    AT_ONCE,
    Ask,
    Unsolved,
    binary_vertices,
    is_hull,
    is_within_unit,
    seems_hull,
)
from optlayers.vertices.facets import TooManyFacets
from optlayers.vertices.hulls import DIMENSION_LIMIT, FACET_LIMIT, TooManyDimensions, hull_vertices

__all__ = ["VERTEX_LIMIT", "TooMany", "Unsolved", "enumerate_vertices"]

VERTEX_LIMIT = 5000
"""So many vertices are enumerated at most."""


class TooMany(ValueError):
    """There are too many vertices to enumerate, or to prove that there are no others; the message says no more, as what
    to do depends on what they are wanted for."""


Maximize = Callable[[Float64[Tensor, "batch size"]], Solution]


def enumerate_vertices(
    maximize: Maximize, size: int, blocks: Sequence[Block] | None, kept: np.ndarray, *, integral: bool
) -> Float64[np.ndarray, "vertices size"]:
    """All vertices of the polytope that ``maximize`` finds best vertices of, in a fixed order.

    Vertices of independent ``blocks`` are those of each, in all combinations. Vertices of 0 and 1 are found by
    splitting (see :mod:`optlayers.vertices.binary_vertices`). That a polytope has no others is proved: by a totally
    unimodular matrix (:mod:`optlayers.proofs.unimodular`), or by the facets of the hull of what was found; or it was
    declared by ``integral``. Other vertices are found by hulls (:mod:`optlayers.vertices.hulls`). Ties decide nothing:
    the objectives are
    generic where a vertex is asked for, and elsewhere only the best value counts.

    Parameters
    ----------
    maximize : a best point for each of some scores, which is a vertex where one vertex alone is best.
    size : how many entries points have.
    blocks : which entries depend on each other, where all rows are known; None elsewhere.
    kept : the entries that are not the same for all points.
    integral : whether all vertices are declared to be integral.

    Raises
    ------
    TooMany : when there are more than :data:`VERTEX_LIMIT` vertices; when they are not 0/1 in a block of more than
        ``hulls.DIMENSION_LIMIT`` dimensions, or their hull has too many facets, or the proof that all are 0/1 fails for
        that reason.
    ValueError : when the declaration says ``integral=True`` and they are not.
    Unsolved : when a question has no certified answer.
    """
    anywhere = maximize(torch.zeros(1, size, dtype=torch.float64, device="cpu"))
    if int(anywhere.status) == Status.INFEASIBLE:
        return np.zeros((0, size))
    base = _checked(anywhere)[0]
    entries = [kept] if blocks is None else [block.entries for block in blocks]
    found: list[tuple[np.ndarray, np.ndarray]] = []
    count = 1
    for place in sorted((k for k, mine in enumerate(entries) if len(mine)), key=lambda k: len(entries[k])):
        mine = entries[place]
        block = None if blocks is None else blocks[place]
        vertices = _of_block(_asking(maximize, size, mine), len(mine), block, integral=integral, beside=count)
        count *= len(vertices)
        found.append((mine, vertices))
    vertices = _combined(base, count, found)
    return vertices[np.lexsort(vertices.T[::-1])]


def _asking(maximize: Maximize, size: int, entries: np.ndarray) -> Ask:
    """Questions about some entries; whatever the others are."""

    def ask(scores: np.ndarray) -> np.ndarray:
        points = np.empty(scores.shape)
        step = max(1, AT_ONCE // size)
        for start in range(0, len(scores), step):
            piece = slice(start, start + step)
            whole = np.zeros((len(scores[piece]), size))
            whole[:, entries] = scores[piece]
            points[piece] = _checked(maximize(torch.from_numpy(whole)))[:, entries]
        return points

    return ask


def _checked(solution: Solution) -> np.ndarray:
    if not solution.all_ok:
        first = solution.failures[0]
        raise Unsolved(f"its vertices cannot be enumerated: a best one is {first.status.name}, {first.reason}")
    return solution.value.numpy()


def _combined(base: np.ndarray, count: int, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The vertices of blocks in all combinations; ``base`` has the entries of no block."""
    vertices = np.tile(base, (count, 1))
    places = np.unravel_index(np.arange(count), tuple(len(mine) for _, mine in found)) if found else ()
    for (entries, mine), place in zip(found, places, strict=True):
        vertices[:, entries] = mine[place]
    return vertices


def _of_block(ask: Ask, size: int, block: Block | None, *, integral: bool, beside: int) -> np.ndarray:
    """The vertices of one of independent blocks, next to ``beside`` combinations of others."""

    def refuse_many(count: int) -> None:
        if count * beside > VERTEX_LIMIT:
            raise TooMany(f"of its vertices there are more than {VERTEX_LIMIT}, too many to enumerate")

    try:
        vertices = binary_vertices(ask, size, refuse_many)
        if vertices is not None:
            vertices = vertices[np.lexsort(vertices.T[::-1])]
            if _are_all(ask, vertices, block, integral=integral):
                return vertices
        vertices = hull_vertices(ask, size, refuse_many, _refuse_facets)
        refuse_many(len(vertices))  # in all combinations with those of other blocks
    except TooManyDimensions:
        raise TooMany(
            f"its vertices are not 0/1 and have more than {DIMENSION_LIMIT} dimensions, too many to enumerate"
        ) from None
    off = np.abs(vertices - np.round(vertices)).max(initial=0.0)
    if integral and off > 0.0:
        raise ValueError(f"the declaration says integral=True, but it has a vertex with an entry that is {off:.3g} off")
    return vertices


def _are_all(ask: Ask, vertices: np.ndarray, block: Block | None, *, integral: bool) -> bool:
    """Whether a polytope has no other vertices than some of 0 and 1, in lexicographic order."""
    if block is not None and block.is_integral():
        return block.within_unit() or is_within_unit(ask, vertices.shape[1])
    if integral:
        return is_within_unit(ask, vertices.shape[1]) and seems_hull(ask, vertices)
    try:
        return is_hull(ask, vertices)
    except TooManyFacets:
        raise TooMany(
            f"of its vertices {len(vertices)} of 0 and 1 were found, but their hull has too many facets to prove that "
            "there are no others: no proof is needed where the declaration says integral=True"
        ) from None


def _refuse_facets(count: int) -> None:
    if count > FACET_LIMIT:
        raise TooMany(
            f"its vertices cannot be enumerated: the hull of these has more than {FACET_LIMIT} facets, too many to "
            "enumerate"
        )
