"""All vertices of a polytope, for exact sums over its structures where no formula is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.spatial
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.solution import Solution, Status

__all__ = ["VERTEX_LIMIT", "enumerate_vertices", "log_sum_over", "log_weights"]

VERTEX_LIMIT = 5000
"""So many vertices are enumerated at most."""
DIMENSION_LIMIT = 8
"""Vertices that are not 0/1 are found by convex hulls, which have too many facets in more dimensions."""
PROBES = 256
HULL_DIMENSIONS, HULL_POINTS = 6, 200
"""Up to these the hull of vertices is cheap."""
WHOLE = 1e-6
"""Entries of a vertex this close to 0 or 1 are that number."""

Maximize = Callable[[Float64[Tensor, "batch size"]], Solution]


def enumerate_vertices(maximize: Maximize, size: int) -> Float64[np.ndarray, "vertices size"]:
    """All vertices of the polytope that ``maximize`` finds best vertices of, in a fixed order.

    Vertices of 0 and 1 are found by splitting: with one of them in hand, the others differ from it first at part 0, or
    first at part 1, and so on; whether there are any is one maximization (Lawler, 1972). Others are found by the
    convex hull of those known: every facet that can be passed brings a new one (Lassez, 1990).

    Raises
    ------
    ValueError : when there are more than :data:`VERTEX_LIMIT` vertices, or vertices that are not 0/1 in more than
        :data:`DIMENSION_LIMIT` dimensions.
    """
    anything = maximize(torch.zeros(1, size, dtype=torch.float64, device="cpu"))
    if int(anything.status) == Status.INFEASIBLE:
        return np.zeros((0, size))
    first = _vertices(maximize, np.zeros((1, size)))
    found = _by_splitting(maximize, first)
    if found is None or _something_is_better(maximize, found):
        found = _by_hulls(maximize, first)
    return found[np.lexsort(found.T[::-1])]


def _something_is_better(maximize: Maximize, found: np.ndarray) -> bool:
    """Whether the polytope reaches beyond these vertices, which are all of 0 and 1: then it has others.

    In few dimensions every facet of their hull is tried, which proves that there is nothing beyond. In more, random
    objectives are, of which many find a polytope that is not integral.
    """
    size = found.shape[1]
    generator = np.random.default_rng(1)
    tried = generator.standard_normal((PROBES, size))
    tried[::2] = np.sign(tried[::2])
    around = _directions(found)
    if 0 < len(around) <= HULL_DIMENSIONS and len(found) <= HULL_POINTS:
        tried = np.vstack([tried, _outward(found @ around.T) @ around])
    best = (_vertices(maximize, tried) * tried).sum(1)
    return bool((best > (tried @ found.T).max(1) + WHOLE * np.abs(tried).sum(1)).any())


def _directions(points: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the differences of some points."""
    _, lengths, axes = np.linalg.svd(points - points[0], full_matrices=False)
    return axes[lengths > WHOLE * max(1.0, float(lengths.max(initial=0.0)))]


def _vertices(maximize: Maximize, scores: np.ndarray) -> np.ndarray:
    vertices = maximize(torch.from_numpy(np.ascontiguousarray(scores))).check().value.numpy()
    near = np.round(vertices)
    return np.where(np.abs(vertices - near) <= WHOLE, near, vertices)


def _by_splitting(maximize: Maximize, first: np.ndarray) -> np.ndarray | None:
    """Vertices of 0 and 1; None when another one is met."""
    size, found = first.shape[1], [first[0]]
    if not np.isin(first, (0.0, 1.0)).all():
        return None
    # (vertex, fixed): all structures that agree with the vertex on the first ``fixed`` parts, of which it is known.
    waiting = [(first[0], 0)]
    while waiting:
        scores, fixed = [], []
        for vertex, start in waiting:
            signs = np.where(vertex == 1.0, 1.0, -1.0)
            for part in range(start, size):
                wanted = np.zeros(size)
                wanted[:part] = signs[:part]
                wanted[part] = -signs[part]
                scores.append(wanted)
                fixed.append(part + 1)
        if not scores:
            break
        wanted_ones, vertices = np.stack(scores), _vertices(maximize, np.stack(scores))
        if not np.isin(vertices, (0.0, 1.0)).all():
            return None
        there = (vertices * wanted_ones).sum(1) >= (wanted_ones == 1.0).sum(1) - WHOLE
        waiting = [(vertices[k], fixed[k]) for k in np.flatnonzero(there)]
        found += [vertex for vertex, _ in waiting]
        _refuse_many(len(found))
    return np.stack(found)


def _by_hulls(maximize: Maximize, first: np.ndarray) -> np.ndarray:
    """Vertices of any kind, in the affine hull of the polytope."""
    found: list[np.ndarray] = list(first)
    size = first.shape[1]
    directions = np.zeros((0, size))
    generator = np.random.default_rng(0)
    for _ in range(size + 1):
        # A random direction beyond those known meets the polytope in a point unless there is no such direction.
        probe = generator.standard_normal((1, size))[0]
        probe -= directions.T @ (directions @ probe)
        ends = _vertices(maximize, np.stack([probe, -probe]))
        farther = int(np.argmax(np.abs((ends - found[0]) @ probe)))
        new = ends[farther] - found[0]
        new = new - directions.T @ (directions @ new)
        if np.linalg.norm(new) <= WHOLE:
            break
        found += list(ends)
        directions = np.vstack([directions, new / np.linalg.norm(new)])
        if len(directions) > DIMENSION_LIMIT:
            raise ValueError(
                f"marginals need the sum over all vertices, but these are not 0/1 and have more than {DIMENSION_LIMIT} "
                "dimensions, too many to enumerate; declare the polytope with log_partition="
            )
    points = _distinct(np.stack(found))
    if len(directions) == 0:
        return points
    while True:
        normals = _outward(points @ directions.T) @ directions
        ends = _distinct(np.vstack([points, _vertices(maximize, normals)]))
        if len(ends) == len(points):
            return points[_extreme(points @ directions.T)]
        points = ends
        _refuse_many(len(points))


def _distinct(points: np.ndarray) -> np.ndarray:
    """Points that are rounding apart are one."""
    size = max(1.0, float(np.abs(points).max(initial=0.0)))
    _, first = np.unique(np.round(points / size, 9), axis=0, return_index=True)
    return points[np.sort(first)]


def _outward(points: np.ndarray) -> np.ndarray:
    if points.shape[1] == 1:
        return np.array([[1.0], [-1.0]])
    return np.unique(np.round(scipy.spatial.ConvexHull(points).equations[:, :-1], 12), axis=0)


def _extreme(points: np.ndarray) -> np.ndarray:
    if points.shape[1] == 1:
        return np.array([points.argmin(), points.argmax()])
    return scipy.spatial.ConvexHull(points).vertices


def _refuse_many(count: int) -> None:
    if count > VERTEX_LIMIT:
        raise ValueError(
            f"marginals need the sum over all vertices, but there are more than {VERTEX_LIMIT}, too many to enumerate; "
            "declare the polytope with log_partition=, or use a rule that only projects, such as SparseMAP()"
        )


def log_weights(
    vertices: Float64[Tensor, "vertices size"], scores: Float64[Tensor, "batch size"]
) -> Float64[Tensor, "batch vertices"]:
    """The products ``<scores, v>``; -inf for vertices that use a part of score -inf."""
    forbidden = torch.isneginf(scores)
    values = scores.masked_fill(forbidden, 0.0) @ vertices.T
    used = (forbidden.to(values.dtype) @ (vertices != 0.0).to(values.dtype).T) > 0.5
    return values.masked_fill(used, -torch.inf)


def log_sum_over(
    vertices: Float64[Tensor, "vertices size"], scores: Float64[Tensor, "batch size"]
) -> Float64[Tensor, " batch"]:
    """Log of the sum of ``exp <scores, v>``; vertices that use a part of score -inf have none."""
    if len(vertices) == 0:
        return torch.where(torch.ones_like(scores[:, 0], dtype=torch.bool), -torch.inf, scores.sum(dim=1))
    values = log_weights(vertices, scores)
    # Without any vertex left the sum is 0; a -inf everywhere would have NaN for a derivative.
    nothing = torch.isneginf(values).all(dim=1)
    total = torch.logsumexp(values.masked_fill(nothing[:, None], 0.0), dim=1)
    return torch.where(nothing, -torch.inf, total)
