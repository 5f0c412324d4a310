"""Where scores of all directions in a plane lead under a regularizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optlayers.compilation.compiled import CompiledPolytope
from optlayers.plots.canvas import INK, axes_of, module
from optlayers.plots.field import plane_of_scores
from optlayers.plots.outline import outline
from optlayers.plots.points import array_of, compiled_of
from optlayers.plots.shadow import vertices_of
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.regularizers.declared import regularizer_of

if TYPE_CHECKING:
    import cvxpy as cp
    from matplotlib.axes import Axes

__all__ = ["regularized_circles"]

AROUND = 361
"""So many scores on a circle, the first one again at the end."""


def regularized_circles(
    polytope: Polytope | CompiledPolytope,
    regularizer: AbstractRegularizer | cp.Expression,
    sizes: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    *,
    directions: Any = None,
    ax: Axes | None = None,
    **parameters: Any,
) -> Axes:
    r"""The points :math:`\operatorname{argmax}_z \langle s, z \rangle - \Omega(z)` for scores s on circles of a plane.

    A line is where all scores of one norm lead. It shows what Ω does: whether points keep away from the sides, how soon
    they are in a corner, which directions it holds back.

    Parameters
    ----------
    polytope : a declaration, or a compiled one.
    regularizer : Ω, such as ``ol.Entropy(0.5)``, or a convex expression of the variables of the declaration.
    sizes : the norms of the scores.
    directions : two arrays of the shape of the polytope that span the plane, in which points are seen as well. By
        default the axes for polytopes of two parts, else the directions in which vertices vary most.
    ax : matplotlib Axes to draw on; by default those of a new figure (``ax.figure``).
    parameters : the value of each parameter of the polytope, by its name.

    Returns
    -------
    Axes : those that were drawn on, with a labelled line for each size and no legend.

    Raises
    ------
    ValueError : sizes that are not positive; directions of another shape, or that are not finite.
    TypeError : no polytope, no regularizer, no Axes.
    optlayers.SolveError : when a point was not found.

    Examples
    --------
    >>> import optlayers as ol
    >>> from polytopes import simplex
    >>> ax = regularized_circles(simplex(3), ol.Entropy(), sizes=[0.5, 5.0])
    >>> [line.get_label() for line in ax.get_lines()]
    ['0.5', '5']
    """
    compiled, omega = compiled_of(polytope), regularizer_of(regularizer)
    norms = array_of(list(sizes) if not hasattr(sizes, "shape") else sizes, "sizes")
    if norms.ndim != 1 or not len(norms) or not (norms > 0.0).all():
        raise ValueError(f"sizes must be a list of positive numbers, but got {sizes!r}")
    plane, names = plane_of_scores(compiled, directions, parameters)
    vertices, _ = vertices_of(compiled, None, parameters)
    corners = vertices.reshape(len(vertices), -1) @ plane.T
    angle = np.linspace(0.0, 2.0 * math.pi, AROUND)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane

    ax = axes_of(ax, 4.6, 4.2)
    lines = module("matplotlib.collections").LineCollection
    ax.add_collection(lines([corners[[i, j]] for i, j in outline(corners)[0]], colors=INK, linewidths=1.0))
    shades = module("matplotlib").colormaps["viridis"](np.linspace(0.0, 0.9, len(norms)))
    for norm, shade in zip(norms.tolist(), shades, strict=True):
        scores = torch.from_numpy(norm * circle).reshape(AROUND, *compiled.shape)
        points = compiled.regularized(scores, omega, **parameters).check().value.numpy()
        ax.plot(*(points.reshape(AROUND, -1) @ plane.T).T, color=shade, linewidth=1.8, label=f"{norm:g}")
    ax.set_aspect("equal")
    ax.set_xlabel(names[0], fontsize=9)
    ax.set_ylabel(names[1], fontsize=9)
    ax.tick_params(labelsize=8)
    ax.set_title(repr(omega), fontsize=10)
    return ax
