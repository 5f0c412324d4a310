"""All vertices of a polytope of few dimensions, by the facets of the hull of those that are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import scipy.spatial
from jaxtyping import Float64

from optlayers.vertices.binary_vertices import AT_ONCE, WHOLE, Ask, Unsolved

__all__ = ["DIMENSION_LIMIT", "FACET_LIMIT", "TooManyDimensions", "hull_vertices"]

DIMENSION_LIMIT = 8
"""Hulls have too many facets in more dimensions."""
FACET_LIMIT = 50_000
FEW = 16
"""So many vertices are added at a time, or a quarter of those that are known."""
ASKED = 256
"""So many facets are asked about at a time."""
CONSTANT = 1e-11
"""An entry that varies by so little, relative to its size, does not."""
FLAT = 1e-8
"""A polytope that is so thin, where its entries go from 0 to 1, has a dimension less."""
BEYOND = 1e-7
"""A point that is so far outside of a hull of unit size is a new one."""
FRACTIONS, ROUNDING = 720720.0, 1e-13
"""A number that has all denominators up to 16, and what is rounding beside a multiple of its inverse, or 1."""
NOISE = 1e-10
"""Errors of answers, where entries go from 0 to 1."""
CLOSE = "its vertices cannot be enumerated: some are too close to each other to be told apart"
TURNS = (1e-2, 1e-4, 1e-6)
"""By so much is an objective turned, so that a single vertex is best."""


class TooManyDimensions(Exception):
    """The polytope has more dimensions than hulls are made in."""


def hull_vertices(
    ask: Ask, size: int, refuse_many: Callable[[int], None], refuse_facets: Callable[[int], None]
) -> Float64[np.ndarray, "vertices size"]:
    """All vertices of a polytope.

    Whatever lies beyond a facet of the hull of the vertices that are known brings another vertex (Lassez, 1990). What
    is best along the normal of a facet need not be a vertex, where a whole face is; so the normal is turned a little,
    in a generic way, and what is best then is a vertex. It counts if it is beyond the facet: so none is counted twice.

    Raises
    ------
    TooManyDimensions : when there are more than :data:`DIMENSION_LIMIT`.
    Unsolved : when vertices are too close to each other.
    """
    low, high = _ends(ask, size)
    moving = high - low > CONSTANT * np.maximum(np.abs(low), np.abs(high))
    base, span = low[moving], (high - low)[moving]

    def ask_unit(scores: np.ndarray) -> np.ndarray:
        """In coordinates from 0 to 1, of the entries that move."""
        whole = np.zeros((len(scores), size))
        whole[:, moving] = scores / span
        unit: np.ndarray = (ask(whole)[:, moving] - base) / span
        return unit

    units = np.zeros((1, 0))
    if moving.any():
        units = _of_unit_size(ask_unit, len(span), refuse_many, refuse_facets)
    points = np.tile(low, (len(units), 1))
    points[:, moving] = base + units * span
    near = np.round(points * FRACTIONS) / FRACTIONS
    points = np.where(np.abs(points - near) <= ROUNDING * np.maximum(1.0, np.abs(near)), near, points)
    return np.where(np.abs(points) <= WHOLE * np.abs(points).max(axis=0), 0.0, points)


def _ends(ask: Ask, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value of every entry."""
    found = np.empty((2, size))
    step = max(1, AT_ONCE // size)
    for first in range(0, size, step):
        parts = np.arange(first, min(first + step, size))
        ends = (parts[:, None] == np.arange(size)).astype(np.float64)
        found[0, parts] = (ask(-ends) * ends).sum(axis=1)
        found[1, parts] = (ask(ends) * ends).sum(axis=1)
    return found[0], found[1]


def _of_unit_size(
    ask: Ask, size: int, refuse_many: Callable[[int], None], refuse_facets: Callable[[int], None]
) -> np.ndarray:
    generator = np.random.default_rng(0)
    points = ask(generator.standard_normal((2, size)))
    directions, lengths = np.zeros((0, size)), np.zeros(0)
    for _ in range(size):
        # A random direction beyond those known meets the polytope in a point unless there is no such direction.
        probe = generator.standard_normal(size)
        probe -= directions.T @ (directions @ probe)
        ends = _vertices_along(ask, np.stack([probe, -probe]), generator)
        rest = ends - points[0]
        rest -= (rest @ directions.T) @ directions
        length = np.linalg.norm(rest, axis=1)
        farther = int(length.argmax())
        points = np.vstack([points, ends])
        if length[farther] <= FLAT:
            break
        directions = np.vstack([directions, rest[farther] / length[farther]])
        lengths = np.append(lengths, length[farther])
        if len(directions) > DIMENSION_LIMIT:
            raise TooManyDimensions
    frame = directions / lengths[:, None]
    if len(frame) == 1:
        return ask(np.vstack([frame, -frame]))
    tolerance = BEYOND + NOISE / float(lengths.min())
    return _grown(ask, points, frame, tolerance, generator, refuse_many, refuse_facets)


def _vertices_along(ask: Ask, probes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A vertex that is best along each of some probes. What is best may be any point of a face, as a probe that is
    orthogonal to edges is not generic; so it is turned as little as that takes."""
    ends = ask(probes)
    best, missing = (ends * probes).sum(axis=1), np.arange(len(probes))
    for turn in TURNS:
        vertices = ask(probes[missing] + turn * generator.standard_normal((len(missing), probes.shape[1])))
        good = (vertices * probes[missing]).sum(axis=1) >= best[missing] - NOISE
        ends[missing[good]] = vertices[good]
        missing = missing[~good]
        if len(missing) == 0:
            break
    return ends


def _grown(
    ask: Ask,
    points: np.ndarray,
    frame: np.ndarray,
    tolerance: float,
    generator: np.random.Generator,
    refuse_many: Callable[[int], None],
    refuse_facets: Callable[[int], None],
) -> np.ndarray:
    """From the first vertices, of full dimension in the ``frame``, to all of them."""
    points = _distinct(points, frame, tolerance)
    settled: set[bytes] = set()
    while True:
        normals = _outward(points @ frame.T)
        refuse_facets(len(normals))
        passed = _passed(ask, normals, points, frame, tolerance, settled, generator)
        if len(passed) == 0:
            return points
        new = _vertices_beyond(ask, passed, (passed @ frame @ points.T).max(axis=1), frame, tolerance, generator)
        if len(new) == 0:
            raise Unsolved(CLOSE)
        points = np.vstack([points, _distinct(new, frame, tolerance)])
        refuse_many(len(points))


def _passed(
    ask: Ask,
    normals: np.ndarray,
    points: np.ndarray,
    frame: np.ndarray,
    tolerance: float,
    settled: set[bytes],
    generator: np.random.Generator,
) -> np.ndarray:
    """Some facets that the polytope passes, if there are any; those that it does not are ``settled``.

    A few at a time: more vertices have many more facets, of which too many are to be seen before they are made.
    """
    normals = normals[[normal.tobytes() not in settled for normal in normals]]
    normals = generator.permutation(normals)
    enough, found = max(FEW, len(points) // 4), np.zeros((0, len(frame)))
    for piece in np.split(normals, range(ASKED, len(normals), ASKED)):
        known = (piece @ frame @ points.T).max(axis=1, initial=-np.inf)
        best = (ask(piece @ frame) * (piece @ frame)).sum(axis=1)
        beyond = best > known + tolerance
        settled.update(normal.tobytes() for normal in piece[~beyond])
        found = np.vstack([found, piece[beyond]])
        if len(found) >= enough:
            return found[:enough]
    return found


def _outward(points: np.ndarray) -> np.ndarray:
    """The normals of the facets of a hull, each once."""
    try:
        hull = scipy.spatial.ConvexHull(points)
    except scipy.spatial.QhullError:
        try:
            hull = scipy.spatial.ConvexHull(points, qhull_options="QJ")  # moved a little, where too many are in a plane
        except scipy.spatial.QhullError as error:
            raise Unsolved(CLOSE) from error
    return np.unique(np.round(hull.equations[:, :-1], 9), axis=0)


def _vertices_beyond(
    ask: Ask,
    normals: np.ndarray,
    known: np.ndarray,
    frame: np.ndarray,
    tolerance: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """A vertex beyond each of some facets, as far as there is one."""
    found = []
    for turn in TURNS:
        turned = normals + turn * generator.standard_normal(normals.shape)
        vertices = ask(turned @ frame)
        good = ((vertices @ frame.T) * normals).sum(axis=1) > known + 0.5 * tolerance
        found.append(vertices[good])
        normals, known = normals[~good], known[~good]
        if len(normals) == 0:
            break
    return np.vstack(found)


def _distinct(points: np.ndarray, frame: np.ndarray, tolerance: float) -> np.ndarray:
    """One of those that are rounding apart."""
    pairs = scipy.spatial.cKDTree(points @ frame.T).query_pairs(tolerance, output_type="ndarray")
    count = len(points)
    graph = sp.csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = sp.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    return points[first]
