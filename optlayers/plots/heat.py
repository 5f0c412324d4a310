"""Matrices as heat maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.plots.canvas import INK, axes_of, bare, names_of, words_below
from optlayers.plots.points import array_of, pairs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["heat"]

WRITTEN = 12
"""Matrices of so many rows and columns have their numbers in their cells."""


def heat(x: Any, *, words: Any = None, numbers: bool | None = None, ax: Axes | None = None) -> Axes:
    """A matrix as colours: from white at 0 to blue, and to brown for negative numbers.

    The darkest blue is 1, or the largest number where that is larger. Small matrices have their numbers in their cells,
    large ones a bar of colours beside them.

    Parameters
    ----------
    x : ``(rows, columns)``, any numbers.
    words : a pair, names of the rows and names of the columns, None for numbers.
    numbers : whether cells have their numbers; by default those of up to 12 rows and columns have, and larger
        ones have a bar of colours; with False there is neither.
    ax : matplotlib Axes to draw on; by default those of a new figure.

    Returns
    -------
    Axes : those that were drawn on.

    Raises
    ------
    ValueError : x of another shape, or not finite; names that are too few or too many.

    Examples
    --------
    >>> import torch
    >>> ax = heat(torch.eye(2), words=(["a", "b"], ["A", "B"]))
    >>> ax.images[0].get_array().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    values = array_of(x)
    if values.ndim != 2:
        raise ValueError(f"heat is drawn for a matrix (rows, columns), but x has shape {values.shape}")
    rows, columns = values.shape
    of_rows, of_columns = pairs_of(words, "heat")
    left, below = names_of(of_rows, rows, "rows"), names_of(of_columns, columns, "columns")
    width, height = np.clip(0.5 * columns + 1.2, 2.4, 9.0), np.clip(0.42 * rows + 0.9, 1.8, 9.0)
    ax = axes_of(ax, float(width), float(height))
    most = max(1.0, float(np.abs(values).max(initial=0.0)))
    negative = bool((values < 0.0).any())
    image = ax.imshow(
        values, cmap="PuOr" if negative else "Blues", vmin=-most if negative else 0.0, vmax=most, aspect="auto"
    )
    if max(rows, columns) <= WRITTEN if numbers is None else numbers:
        for i, j in np.ndindex(rows, columns):
            if values[i, j]:
                dark = abs(values[i, j]) > 0.6 * most
                ax.text(
                    j, i, f"{values[i, j]:.2g}", ha="center", va="center", fontsize=8, color="white" if dark else INK
                )
    elif numbers is None:
        ax.figure.colorbar(image, ax=ax)
    ax.set_yticks(range(rows), left, fontsize=9, color=INK)
    words_below(ax, range(columns), below)
    bare(ax)
    return ax
