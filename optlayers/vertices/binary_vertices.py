"""All vertices of 0 and 1 of a polytope, by splitting it into faces that have a single one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float64

from optlayers.vertices.facets import half_spaces_of

__all__ = ["Ask", "Unsolved", "binary_vertices", "is_hull", "is_within_unit", "seems_hull"]

Ask = Callable[[Float64[np.ndarray, "batch size"]], Float64[np.ndarray, "batch size"]]
"""A best point for each of some scores. Where a single vertex is best, it is that one."""
WHOLE = 1e-7
"""Entries of a vertex this close to an integer are that integer."""
PROBES = 256
DRAWS = 3
"""So often is a face asked about, each time with other steps, before an answer that is not 0/1 is believed."""
FEW, MANY = 64, 256
"""Of fewer faces further vertices are asked for at the same time, at most so many of each."""
AT_ONCE = 2**18
"""Numbers in an array of scores."""


class Unsolved(Exception):
    """The vertices of one instance are not known, since a solver or an oracle failed; the message says how."""


@final
@dataclass(frozen=True)
class _Face:
    """The part of a polytope that agrees with one of its vertices on the parts that are ``held``."""

    vertex: Bool[np.ndarray, " size"]
    held: Bool[np.ndarray, " size"]
    many: int
    """How many further vertices are asked for, once it is known that there are any."""


def binary_vertices(
    ask: Ask, size: int, refuse_many: Callable[[int], None]
) -> Bool[np.ndarray, "vertices size"] | None:
    """All vertices of 0 and 1 of a polytope; None where an answer shows that it has others.

    Of every face one vertex is known, and the one that differs from it in most parts is asked for. If that is the
    vertex itself, it is the only one: the next would score at least 1 more, and so rounding decides nothing. Otherwise
    a part in which the two differ splits the face in two, with one of them in each; so N vertices take 2 N - 1
    questions, and a few more that are asked at the same time.

    Parts count for 1 to 1.5, in generic steps, so that a single vertex is best. Parts that are held count for more
    than all others together. A point of 0 and 1 is a vertex of any polytope between 0 and 1.

    Raises
    ------
    Unsolved : when an answer is worse than a vertex that is known.
    """
    generator = np.random.default_rng(0)
    first = _binary(ask(1.0 + generator.random((1, size))))
    if first is None:
        return None
    found, open_faces = [first[0]], [_Face(first[0], np.zeros(size, bool), 1)]
    while open_faces:
        refuse_many(len(found))
        answers = _other_vertices(ask, open_faces, generator)
        if answers is None:
            return None
        divided = [
            (face, answer)
            for face, answer in zip(open_faces, answers, strict=True)
            if (answer != face.vertex).any()  # else it is settled
        ]
        # A large face beside many small ones would be asked about alone, once for each of its vertices.
        many = [face.many if len(divided) < FEW else 0 for face, _ in divided]
        again = [face for (face, _), times in zip(divided, many, strict=True) for _ in range(times)]
        further = _other_vertices(ask, again, generator)
        if further is None:
            return None
        open_faces, start = [], 0
        for (face, answer), times in zip(divided, many, strict=True):
            some = np.vstack([face.vertex, answer, *further[start : start + times]])
            start += times
            parts = _told_apart(np.unique(some, axis=0), face)
            found += [part.vertex for part in parts if (part.vertex != face.vertex).any()]
            open_faces += parts
    return np.stack(found)


def _other_vertices(
    ask: Ask, faces: list[_Face], generator: np.random.Generator
) -> Bool[np.ndarray, "faces size"] | None:
    """The vertex of each face that differs most from the one that is known; None where an answer is not 0/1."""
    if not faces:
        return np.zeros((0, 0), bool)
    answers = np.zeros((len(faces), len(faces[0].vertex)), bool)
    open_ones = np.arange(len(faces))
    for _ in range(DRAWS):
        piece_length = max(1, AT_ONCE // answers.shape[1])
        left = []
        for piece in np.split(open_ones, range(piece_length, len(open_ones), piece_length)):
            vertex = np.stack([faces[k].vertex for k in piece])
            held = np.stack([faces[k].held for k in piece])
            steps = 1.0 + 0.5 * generator.random(vertex.shape)
            steps = np.where(held, 1.0 + 1.5 * np.count_nonzero(~held, axis=1)[:, None], steps)
            scores = np.where(vertex == held, steps, -steps)
            points = ask(scores)
            near = np.round(points)
            good = (np.abs(points - near) <= WHOLE).all(axis=1) & np.isin(near, (0.0, 1.0)).all(axis=1)
            answers[piece[good]] = near[good] == 1.0
            left.append(piece[~good])
            if (good & ((answers[piece] != vertex) & held).any(axis=1)).any():
                raise Unsolved("its vertices cannot be enumerated: a best one of them is worse than another one")
        open_ones = np.concatenate(left)
        if len(open_ones) == 0:
            return answers
    return None


def _told_apart(vertices: Bool[np.ndarray, "vertices size"], face: _Face) -> list[_Face]:
    """Faces of a face, each with one of some vertices."""
    many, waiting, done = min(MANY, 2 * (len(vertices) - 1)), [(vertices, face.held)], []
    while waiting:
        some, held = waiting.pop()
        if len(some) == 1:
            done.append(_Face(some[0], held, many))
            continue
        having = np.count_nonzero(some, axis=0)
        part = int(np.abs(having - 0.5 * len(some)).argmin())
        held = held.copy()
        held[part] = True
        waiting += [(some[some[:, part]], held), (some[~some[:, part]], held)]
    return done


def _binary(points: np.ndarray) -> Bool[np.ndarray, "points size"] | None:
    near = np.round(points)
    if (np.abs(points - near) > WHOLE).any() or not np.isin(near, (0.0, 1.0)).all():
        return None
    ones: np.ndarray = near == 1.0
    return ones


def is_hull(ask: Ask, vertices: Bool[np.ndarray, "vertices size"]) -> bool:
    """Whether the polytope is the hull of some vertices, in lexicographic order: no facet of that is passed.

    Raises
    ------
    TooManyFacets : where they cannot be worked out.
    """
    return _bounds(ask, *half_spaces_of(vertices.astype(np.int64)))


def is_within_unit(ask: Ask, size: int) -> bool:
    """Whether all entries of the polytope are between 0 and 1."""
    step = max(1, AT_ONCE // size)
    for first in range(0, size, step):
        parts = np.arange(first, min(first + step, size))
        ends = (parts[:, None] == np.arange(size)).astype(np.float64)
        if not (_bounds(ask, ends, np.ones(len(parts))) and _bounds(ask, -ends, np.zeros(len(parts)))):
            return False
    return True


def seems_hull(ask: Ask, vertices: Bool[np.ndarray, "vertices size"]) -> bool:
    """Whether random objectives find nothing beyond the hull of some vertices; where somebody vouches for that."""
    probes = np.random.default_rng(1).standard_normal((PROBES, vertices.shape[1]))
    probes[::2] = np.sign(probes[::2])
    best = [(piece @ vertices.T).max(axis=1) for piece in np.array_split(probes, 16)]
    return _bounds(ask, probes, np.concatenate(best))


def _bounds(ask: Ask, normals: np.ndarray, offsets: np.ndarray) -> bool:
    best = (ask(normals) * normals).sum(axis=1)
    return bool((best <= offsets + WHOLE * np.abs(normals).sum(axis=1)).all())
