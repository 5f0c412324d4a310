"""A point of a polytope as the structure that it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.compilation.compiled import CompiledPolytope
from optlayers.plots.bars import bars
from optlayers.plots.canvas import axes_of
from optlayers.plots.heat import heat
from optlayers.plots.points import compiled_of, point_of
from optlayers.polytope import Polytope
from optlayers.solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["structure"]

SHOWN = 5
"""So many weights of a mixture are told."""


def structure(
    polytope: Polytope | CompiledPolytope, x: Any, *, words: Any = None, ax: Axes | None = None, **options: Any
) -> Axes:
    """A structure, or a mixture of several, as the declaration has it drawn: trees, matchings, paths, tags.

    The declaration brings the picture, ``Polytope(..., draw=...)``; those of the catalogue do, by the functions of
    :mod:`optlayers.plots`. Without one, matrices are heat maps and vectors are bars. Parts that are fractions, the
    weights of a mixture, are transparent.

    Parameters
    ----------
    polytope : a declaration, or a compiled one.
    x : a point of its shape, or the solution of one instance. If that mixes vertices (``weights``), the title says with
        which weights.
    words : names of what the structure is over, as the picture takes them: a list of words for trees, sequences and
        bars; a pair of lists, for rows and columns, for matchings, alignments and heat maps.
    ax : matplotlib Axes to draw on; by default those of a new figure (``ax.figure``).
    options : what else the picture takes, ``color=`` or ``states=``, say.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : x of another shape, with entries that are not finite, or not between 0 and 1 where they are weights;
        three dimensions or more without ``draw=``.
    TypeError : no polytope, no Axes, an option that the picture does not take.

    Examples
    --------
    >>> import optlayers as ol, torch
    >>> from polytopes import matching
    >>> best = ol.compile_polytope(matching(2)).maximize(torch.tensor([[1.0, 3.0], [1.0, 2.0]]))
    >>> ax = structure(matching(2), best, words=(["Ann", "Bob"], ["tea", "milk"]))
    >>> [text.get_text() for text in ax.texts]
    ['Ann', 'Bob', 'tea', 'milk']
    """
    declared = polytope.polytope if isinstance(polytope, CompiledPolytope) else polytope
    if not isinstance(declared, Polytope):
        compiled_of(declared)  # which refuses it
    values = point_of(x, declared.shape)
    if words is not None:
        options["words"] = words
    if declared.draw is not None:
        ax = axes_of(ax, *_size(declared.shape))
        declared.draw(ax, values, **options)
    elif values.ndim == 2:
        ax = heat(values, ax=ax, **options)
    elif values.ndim <= 1:
        ax = bars(values.reshape(-1), ax=ax, **options)
    else:
        raise ValueError(
            f"an array of shape {values.shape} has no picture of its own: declare one, Polytope(..., draw=...)"
        )
    if isinstance(x, Solution):
        _tell_mixture(ax, x)
    return ax


def _size(shape: tuple[int, ...]) -> tuple[float, float]:
    """Inches for a structure of this shape."""
    first, *rest = shape or (1,)
    width = np.clip(1.4 + 0.7 * first, 3.4, 14.0)
    height = np.clip(1.2 + 0.3 * (max(rest) if rest else 4), 2.2, 7.0)
    return float(width), float(height)


def _tell_mixture(ax: Axes, solution: Solution) -> None:
    if solution.mixture is None and (solution.evidence is None or solution.evidence.decomposition is None):
        return
    weights = solution.weights.detach().cpu().numpy().reshape(-1)
    weights = np.sort(weights[weights > 0.0])[::-1]
    if len(weights) > 1:
        told = " + ".join(f"{weight:.2f}" for weight in weights[:SHOWN]) + " + …" * (len(weights) > SHOWN)
        ax.set_title(f"a mixture of {len(weights)} structures:\n{told}", fontsize=9)
