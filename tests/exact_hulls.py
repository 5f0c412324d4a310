"""The nearest point of a convex hull, in exact arithmetic: a solver that stops early is no judge."""

import numpy as np
from fuzzing.nearest import dot, nearest
from fuzzing.truth import fractions_of

__all__ = ["nearest_of"]


def nearest_of(vertices: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The point of the hull of ``vertices`` that is nearest to ``scores``, rounded to float64 once."""
    corners = [fractions_of(vertex) for vertex in vertices]
    point = nearest(lambda objective: max(corners, key=lambda corner: dot(objective, corner)), fractions_of(scores))
    return np.array([float(x) for x in point]).reshape(np.shape(scores))
