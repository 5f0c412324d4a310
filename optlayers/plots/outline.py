"""The edges and faces of the hull of points in two or three dimensions."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull

__all__ = ["SAME", "outline", "principal"]

SAME = 1e-7
"""Next to the extent of the points, what lies so near to each other is one point, one line, one plane."""

Edges = list[tuple[int, int]]
Faces = list[list[int]]


def principal(points: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """The directions in which points vary most, ``(count or fewer, size)``, and the dimension of their affine hull.

    A direction has its largest entry positive, the first one of several.
    """
    centred = points - points.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    rank = int((sizes > SAME * max(sizes.max(initial=0.0), 1e-300)).sum()) if len(points) > 1 else 0
    chosen = directions[: min(count, rank)]
    for one in chosen:
        one *= np.sign(one[np.argmax(np.abs(one) > (1.0 - SAME) * np.abs(one).max())])
    return chosen, rank


def outline(points: np.ndarray) -> tuple[Edges, Faces]:
    """Pairs of points that are the edges of their hull, and the faces as cycles of points.

    What lies on an edge or on a face without being a corner is in none. Of points in the same place the first one
    stands for all.
    """
    lowest, extent = points.min(axis=0), float(np.ptp(points, axis=0).max(initial=0.0))
    if extent == 0.0:
        return [], []
    scaled = (points - lowest) / extent
    _, first = np.unique(np.round(scaled / SAME), axis=0, return_index=True)
    scaled = scaled[first]
    directions, rank = principal(scaled, 3)
    if rank == 1:
        along = scaled @ directions[0]
        return [(int(first[along.argmin()]), int(first[along.argmax()]))], []
    if rank == 2:
        polygon = _polygon(scaled @ directions.T)
        faces = [polygon]
    else:
        faces = _faces(scaled)
    edges = {(min(pair), max(pair)) for face in faces for pair in zip(face, [*face[1:], face[0]], strict=True)}
    return (
        sorted((min(pair), max(pair)) for pair in ((int(first[i]), int(first[j])) for i, j in edges)),
        [[int(first[k]) for k in face] for face in faces],
    )


def _faces(points: np.ndarray) -> Faces:
    """Qhull cuts faces into triangles, whose sides within a face are no edges: faces are found by their planes."""
    planes: list[np.ndarray] = []
    for plane in ConvexHull(points).equations:
        if not planes or np.abs(np.stack(planes) - plane).max(axis=1).min() > 10.0 * SAME:
            planes.append(plane)
    faces = []
    for plane in planes:
        on = np.flatnonzero(np.abs(points @ plane[:3] + plane[3]) <= 10.0 * SAME)
        basis = np.linalg.svd(plane[None, :3])[2][1:]
        faces.append([int(on[k]) for k in _polygon(points[on] @ basis.T)])
    return faces


def _polygon(points: np.ndarray) -> list[int]:
    """The corners of the hull of points in a plane, around it."""
    around = list(ConvexHull(points).vertices)
    corners = []
    for before, here, after in zip([around[-1], *around[:-1]], around, [*around[1:], around[0]], strict=True):
        (a, b), (c, d) = points[here] - points[before], points[after] - points[here]
        if a * d - b * c > SAME * np.hypot(a, b) * np.hypot(c, d):
            corners.append(int(here))
    return corners
