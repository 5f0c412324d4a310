"""The parts of a regularized point as a number of its regularizer moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optlayers.compilation.compiled import CompiledPolytope
from optlayers.plots.canvas import COLORS, FAINT, axes_of, legend_of, names_of
from optlayers.plots.points import array_of, compiled_of
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["regularization_path"]

NAMED = 8
"""So many lines have colours and names; these move most."""


def regularization_path(
    polytope: Polytope | CompiledPolytope,
    scores: Any,
    regularizer: Callable[[float], AbstractRegularizer],
    numbers: Sequence[float],
    *,
    words: Sequence[Any] | None = None,
    ax: Axes | None = None,
    **parameters: Any,
) -> Axes:
    r"""Each part of :math:`\operatorname{argmax}_z \langle s, z \rangle - \Omega(z)` as a number of Ω moves.

    Of many parts the eight that move most have colours and names, and the others are grey.

    Parameters
    ----------
    polytope : a declaration, or a compiled one.
    scores : of one instance, in the shape of the polytope.
    regularizer : from a number to Ω: ``ol.Entropy`` for temperatures, ``ol.Barrier``, ``ol.Tsallis``.
    numbers : what it is called with, in the order in which they are drawn; on a logarithmic axis where all are positive
        and the largest is at least 20 times the smallest.
    words : names of the parts, ``shape`` of them, row by row; by default their indices.
    ax : matplotlib Axes to draw on; by default those of a new figure (``ax.figure``).
    parameters : the value of each parameter of the polytope, by its name.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : scores of another shape or that are not finite, no numbers, names that are too few or too many.
    TypeError : no polytope, no regularizer, no Axes.
    optlayers.SolveError : when a point was not found.

    Examples
    --------
    >>> import optlayers as ol, torch
    >>> from polytopes import simplex
    >>> ax = regularization_path(simplex(3), torch.tensor([1.0, 0.5, 0.0]), ol.Entropy, [0.01, 0.1, 1.0, 100.0])
    >>> ax.get_xlabel()
    'temperature'
    """
    compiled = compiled_of(polytope)
    where = array_of(list(numbers) if not hasattr(numbers, "shape") else numbers, "numbers")
    if where.ndim != 1 or not len(where):
        raise ValueError(f"numbers must be a list of at least one number, but their shape is {where.shape}")
    given = array_of(scores, "scores")
    if given.shape != compiled.shape:
        raise ValueError(f"scores have shape {given.shape} but the polytope has shape {compiled.shape}")
    instance = torch.from_numpy(given.copy())
    label, curves = None, []
    for number in where.tolist():
        made = regularizer(number)
        if not isinstance(made, AbstractRegularizer):
            raise TypeError(f"regularizer({number:g}) must be one such as Entropy({number:g}), but got {made!r}")
        label = label or _field_of(made, number)
        curves.append(compiled.regularized(instance, made, **parameters).check().value.numpy().ravel())
    drawn = np.stack(curves)
    indices = [", ".join(map(str, index)) for index in np.ndindex(compiled.shape)]
    names = names_of(words, drawn.shape[1], "parts") if words is not None else [f"x[{index}]" for index in indices]

    ax = axes_of(ax, 5.6, 3.6)
    moved = np.ptp(drawn, axis=0)
    named = sorted(np.argsort(-moved, kind="stable")[:NAMED].tolist(), key=lambda part: -drawn[0, part])
    for part in sorted(set(range(drawn.shape[1])) - set(named)):
        ax.plot(where, drawn[:, part], color=FAINT, linewidth=1.0, zorder=1)
    for place, part in enumerate(named):
        color, style = COLORS[place % len(COLORS)], "-" if place < len(COLORS) else "--"
        ax.plot(where, drawn[:, part], color=color, linestyle=style, linewidth=1.8, label=names[part], zorder=2)
    if where.min() > 0.0 and where.max() >= 20.0 * where.min():
        ax.set_xscale("log")
    ax.set_xlabel(label or "number", fontsize=9)
    ax.set_ylabel("part of the regularized point", fontsize=9)
    ax.tick_params(labelsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    rest = drawn.shape[1] - len(named)
    more = f"grey: {rest} that move less" if rest else None
    legend_of(ax, ax.get_legend_handles_labels()[0], title=more)
    return ax


def _field_of(regularizer: AbstractRegularizer, number: float) -> str | None:
    """The name of the number in the regularizer."""
    if is_dataclass(regularizer):
        for field in fields(regularizer):
            value = getattr(regularizer, field.name, None)
            if isinstance(value, (int, float)) and value == number:
                return field.name
    return None
