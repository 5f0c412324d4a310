"""Points and edges of a convex set in two or three dimensions, and how three are drawn on a page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import ConvexHull

import optlayers as ol

__all__ = ["Edge", "Solid", "outline", "solid_of", "view"]

SAME = 1e-7
"""Next to the extent of the points, what lies so near to each other is one plane."""


@dataclass(frozen=True)
class Edge:
    """Two points by their numbers, and the outward normals of the faces that meet there (none for flat sets)."""

    ends: tuple[int, int]
    normals: tuple[tuple[float, ...], ...] = ()

    def hidden(self, toward: np.ndarray) -> bool:
        """Whether both faces look away from the reader."""
        return bool(self.normals) and all(float(np.dot(normal, toward)) < -SAME for normal in self.normals)


@dataclass(frozen=True, eq=False)
class Solid:
    """A convex set as a picture needs it: its vertices, or points of its boundary where it is curved."""

    points: np.ndarray
    edges: tuple[Edge, ...]
    curved: bool
    centre: np.ndarray
    reach: float
    """The picture shows what lies so near to the centre, along every axis."""

    @property
    def fractional(self) -> np.ndarray:
        """Which points are vertices with an entry that is no integer."""
        away = np.abs(self.points - np.round(self.points)).max(axis=1) > 1e-6
        return away & (not self.curved)


def solid_of(compiled: ol.CompiledPolytope, scores: np.ndarray) -> Solid:
    """The set, with room in the picture for itself, for the origin and for scores to begin with.

    Raises
    ------
    ValueError : more than 5,000 vertices.
    """
    curved = not compiled.has_vertices
    points = _boundary(compiled) if curved else compiled.vertices().numpy()
    shown = np.vstack([points, scores, np.zeros_like(scores)])
    low, high = shown.min(axis=0), shown.max(axis=0)
    reach = max(0.8 * float((high - low).max()), 0.05)
    step = 10.0 ** np.floor(np.log10(reach)) / 10.0
    return Solid(points, tuple(_edges(points)), curved, (low + high) / 2.0, float(np.ceil(reach / step) * step))


def _boundary(compiled: ol.CompiledPolytope) -> np.ndarray:
    """Where points from far away, in all directions, are projected to."""
    (size,) = compiled.shape
    centre = compiled.project(torch.zeros(size, dtype=torch.float64)).check().value.numpy()
    if size == 2:
        angles = np.linspace(0.0, 2.0 * np.pi, 180, endpoint=False)
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:  # a spiral over the sphere, by the golden angle
        height = 1.0 - (2.0 * np.arange(240) + 1.0) / 240
        angles = np.pi * (3.0 - np.sqrt(5.0)) * np.arange(240)
        around = np.column_stack([np.cos(angles), np.sin(angles), height])
        around[:, :2] *= np.sqrt(1.0 - height**2)[:, None]
    near = compiled.project(torch.from_numpy(centre + 4.0 * around)).check().value.numpy()
    extent = float(np.abs(near - centre).max())
    far = compiled.project(torch.from_numpy(near.mean(axis=0) + 4.0 * max(extent, 1e-3) * around)).check().value.numpy()
    return np.unique(np.round(np.vstack([near, far]), 9), axis=0)


def _edges(points: np.ndarray) -> list[Edge]:
    """The edges of the hull. Qhull cuts faces into triangles; sides between two of one plane are none."""
    centred = points - points.mean(axis=0)
    extent = np.abs(centred).max()
    if extent == 0.0:
        return []
    _, sizes, directions = np.linalg.svd(centred / extent, full_matrices=False)
    rank = int((sizes > SAME * sizes[0]).sum())
    flat = centred / extent @ directions[:rank].T
    if rank == 1:
        return [Edge((int(flat.argmin()), int(flat.argmax())))]
    if rank == 2:
        around = [int(k) for k in ConvexHull(flat).vertices]
        return [Edge(pair) for pair in zip(around, [*around[1:], around[0]], strict=True)]
    hull = ConvexHull(centred / extent)
    edges = []
    for first, neighbours in enumerate(hull.neighbors):
        for place, second in enumerate(neighbours):
            planes = hull.equations[[first, second]]
            if first < second and np.abs(planes[0] - planes[1]).max() > SAME:
                one, other = np.delete(hull.simplices[first], place)
                edges.append(Edge((int(one), int(other)), tuple(tuple(plane[:3].tolist()) for plane in planes)))
    return edges


def view(size: int, turn: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Two directions that are right and up on the page, ``(2, size)``, and the one toward the reader.

    Three dimensions are drawn in parallel perspective, turned and tilted by so many degrees; two as they are.
    """
    if size == 2:
        return np.eye(2), np.zeros(2)
    a, e = np.deg2rad([turn, tilt])
    right = [-np.sin(a), np.cos(a), 0.0]
    up = [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)]
    return np.array([right, up]), np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])


def outline(placed: np.ndarray) -> np.ndarray:
    """The corners around points on the page, to be filled: ``(corners, 2)``, none where points are in line."""
    centred = placed - placed.mean(axis=0)
    sizes = np.linalg.svd(centred, compute_uv=False)
    if len(placed) < 3 or sizes[1] <= 1e-6 * max(sizes[0], 1e-300):
        return placed[:0]
    return placed[ConvexHull(placed).vertices]
