"""A polytope in two or three directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optlayers.compilation.compiled import CompiledPolytope
from optlayers.plots.canvas import BLUE, COLORS, INK, ORANGE, axes_of, legend_of, module, titled
from optlayers.plots.outline import SAME, outline, principal
from optlayers.plots.points import array_of, compiled_of, directions_of
from optlayers.polytope import Polytope
from optlayers.solution import Solution
from optlayers.vertices.enumeration import TooMany

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plane_of", "polytope", "vertices_of"]

SAMPLES = 1000
"""So many random objectives are asked for a vertex where not all can be enumerated."""
MARKERS = "*PXs^v"


def polytope(
    polytope: Polytope | CompiledPolytope,
    *,
    directions: Any = None,
    dimensions: int | None = None,
    points: Any = None,
    samples: int | None = None,
    ax: Axes | None = None,
    **parameters: Any,
) -> Axes:
    """A polytope, or its shadow in two or three directions: vertices, edges of their hull, and points among them.

    Vertices with an entry that is no integer are marked. A shadow is drawn with the edges of its own hull; vertices
    inside of it are corners of the polytope that lie behind it.

    Parameters
    ----------
    polytope : a declaration, or a compiled one.
    directions : 2 or 3 arrays of the shape of the polytope; a point is drawn at its inner products with them. By
        default the axes where the polytope fills a space of 2 or 3 dimensions, else the directions in which vertices
        vary most, seen from their mean.
    dimensions : 2 or 3 for so many default directions; by default those of the polytope, 3 at most, or what ``ax``
        has.
    points : points to be drawn on top, by their names: ``{"projection": x}``, each of them an array of the shape of the
        polytope, several, ``(count, *shape)``, or a solution. One without a name is taken as well.
    samples : so many random objectives are asked for their best vertex. By default all vertices are enumerated, and
        where there are more than 5,000, or no proof that they are all, 1,000 objectives are asked, the same ones every
        time. The title says so.
    ax : matplotlib Axes to draw on, 3-D ones for three directions; by default those of a new figure (``ax.figure``).
    parameters : the value of each parameter of the polytope, by its name.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : a set that is not polyhedral and has no vertices; parameters that leave no point; directions or points
        of another shape, or that are not finite.
    TypeError : no polytope; missing parameters; no Axes.

    Examples
    --------
    >>> import optlayers as ol, torch
    >>> from polytopes import permutahedron
    >>> soft = ol.OptLayer(permutahedron(3), ol.SparseMAP())(torch.tensor([2.0, 2.2, 0.0]))
    >>> ax = polytope(permutahedron(3), points={"soft ranks": soft})
    >>> ax.get_title()
    '6 vertices'
    """
    compiled = compiled_of(polytope)
    if dimensions not in (None, 2, 3):
        raise ValueError(f"dimensions must be 2 or 3, but got {dimensions!r}")
    vertices, said = vertices_of(compiled, samples, parameters)
    flat = vertices.reshape(len(vertices), -1)
    if directions is None:
        wanted = dimensions or (3 if ax is None else {"3d": 3}.get(getattr(ax, "name", ""), 2))
        chosen, centre, names, rank = plane_of(
            flat, wanted, at_least=2 if dimensions is None and ax is None else wanted
        )
    else:
        chosen, centre = directions_of(directions, compiled.shape), np.zeros(flat.shape[1])
        if dimensions not in (None, len(chosen)):
            raise ValueError(f"there are {len(chosen)} directions, but dimensions={dimensions}")
        names, rank = [f"direction {k + 1}" for k in range(len(chosen))], principal(flat, 1)[1]
    placed = (flat - centre) @ chosen.T
    overlaid = {
        name: (_points_of(given, compiled.shape, name) - centre) @ chosen.T for name, given in _named(points).items()
    }
    three = len(chosen) == 3
    ax = axes_of(ax, 5.2, 4.6, three=three)
    panel: Any = ax
    _hull(ax, placed, three=three)
    fractional = np.abs(flat - np.round(flat)).max(axis=1) > 1e-6
    size = float(np.clip(300.0 / np.sqrt(len(flat)), 4.0, 36.0))
    whole = "" if not fractional.any() else "integral "
    for mine, color, marker, what in ((~fractional, BLUE, "o", whole), (fractional, ORANGE, "D", "fractional ")):
        if mine.any():
            style: dict[str, Any] = {
                "color": color,
                "marker": marker,
                "s": size,
                "zorder": 3,
                "label": _counted(mine.sum(), what),
            }
            panel.scatter(*placed[mine].T, **style)
    for k, (name, where) in enumerate(overlaid.items()):
        style = {"marker": MARKERS[k % len(MARKERS)], "color": COLORS[2 + k % 4], "edgecolors": INK, "linewidths": 0.6}
        style |= {"s": 90 if len(where) == 1 else 30, "zorder": 4, "label": name}
        panel.scatter(*where.T, **style)
    if rank > len(chosen):
        said += f"; a shadow in {len(chosen)} of {rank} dimensions"
    titled(ax, said, 10.0)
    _name_axes(panel, names)
    if fractional.any() or overlaid:
        legend_of(ax, ax.get_legend_handles_labels()[0], beside=1.08 if three else 1.0)
    return ax


def _name_axes(panel: Any, names: Sequence[str]) -> None:
    """Names of the directions, one unit as long along each of them; ticks but where there is no direction."""
    panel.tick_params(labelsize=8)
    axes = "xyz"[: len(names)]
    for axis, name in zip(axes, names, strict=True):
        getattr(panel, f"set_{axis}label")(name, fontsize=9)
        if name:
            panel.locator_params(axis=axis, nbins=7 - len(axes))
        else:
            getattr(panel, f"set_{axis}ticks")([])
    if len(axes) == 3:  # smaller than by default, which cuts names off
        lengths = [np.ptp(getattr(panel, f"get_{axis}lim")()) for axis in axes]
        panel.set_box_aspect(lengths, zoom=0.85)
    else:
        panel.set_aspect("equal")


def _counted(count: int, what: str = "") -> str:
    return f"{count:,} {what}{'vertex' if count == 1 else 'vertices'}"


def vertices_of(
    compiled: CompiledPolytope, samples: int | None, parameters: Mapping[str, Any]
) -> tuple[np.ndarray, str]:
    """Vertices, and in words which ones."""
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ValueError(f"samples must be a positive integer, but got {samples!r}")
    if not compiled.has_vertices:
        raise ValueError(
            "the declared set is not polyhedral: it has no finite list of vertices, and a polytope is drawn by its "
            "vertices"
        )
    if samples is None:
        try:
            found = compiled.vertices(**parameters).numpy()
        except TooMany:
            samples = SAMPLES
        else:
            if not len(found):
                raise ValueError("there is nothing to draw: no point satisfies the constraints with these parameters")
            return found, _counted(len(found))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(samples, *compiled.shape, generator=generator, dtype=torch.float64)
    every = compiled.maximize(scores, **parameters).check().value.numpy().reshape(samples, -1)
    _, first = np.unique(np.round(every / SAME), axis=0, return_index=True)
    found = every[np.sort(first)].reshape(-1, *compiled.shape)
    return found, f"{_counted(len(found))} found by {samples:,} random objectives;\nthere may be more"


def plane_of(vertices: np.ndarray, count: int, *, at_least: int) -> tuple[np.ndarray, np.ndarray, list[str], int]:
    """Default directions for flat vertices, where they are seen from, their names, and how many dimensions they fill.

    There are ``count`` of them where vertices differ in so many, else as many, but ``at_least`` some number.
    """
    size = vertices.shape[1]
    chosen, rank = principal(vertices, count)
    if rank == size and size <= count:
        chosen, centre, names = np.eye(size), np.zeros(size), [f"x[{k}]" for k in range(size)]
    else:
        centre, names = vertices.mean(axis=0), [f"principal direction {k + 1}" for k in range(len(chosen))]
    missing = max(0, at_least - len(chosen))
    return np.vstack([chosen, np.zeros((missing, size))]), centre, [*names, *[""] * missing], rank


def _named(points: Any) -> dict[str, Any]:
    if points is None:
        return {}
    if isinstance(points, Mapping):
        return {str(name): given for name, given in points.items()}
    return {"points": points}


def _points_of(given: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """One point or several, flat: ``(count, size)``."""
    values = array_of(given.check().value if isinstance(given, Solution) else given, name)
    if values.shape[-len(shape) :] != shape and shape:
        raise ValueError(f"{name} ends in {values.shape[-len(shape) :]} but the polytope has shape {shape}")
    return values.reshape(-1, int(np.prod(shape)))


def _hull(ax: Any, placed: np.ndarray, *, three: bool) -> None:
    """The edges of the hull as segments, and its faces, lightly."""
    edges, faces = outline(placed)
    segments = [placed[[i, j]] for i, j in edges]
    polygons = [placed[face] for face in faces]
    if three:
        solid = module("mpl_toolkits.mplot3d.art3d")
        if polygons:  # of equal length: matplotlib 3.11 fills shorter ones up with what memory holds, limits included
            longest = max(len(polygon) for polygon in polygons)
            polygons = [np.vstack([one, np.repeat(one[-1:], longest - len(one), axis=0)]) for one in polygons]
            ax.add_collection3d(solid.Poly3DCollection(polygons, facecolor=BLUE, alpha=0.06, edgecolor="none"))
        ax.add_collection3d(solid.Line3DCollection(segments, colors=INK, linewidths=1.0, alpha=0.7))
    else:
        collections = module("matplotlib.collections")
        ax.add_collection(collections.PolyCollection(polygons, facecolor=BLUE, alpha=0.08, edgecolor="none"))
        ax.add_collection(collections.LineCollection(segments, colors=INK, linewidths=1.0, alpha=0.7))
