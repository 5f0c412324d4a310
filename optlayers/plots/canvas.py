"""Where pictures are drawn: matplotlib when it is first used, axes, colours, names and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optlayers.common.extras import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "BLUE",
    "COLORS",
    "FAINT",
    "INK",
    "ORANGE",
    "axes_of",
    "bare",
    "legend_of",
    "module",
    "names_of",
    "shaded",
    "titled",
    "weight_legend",
    "words_below",
]

BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
"""Colours that people with any colour vision tell apart (Okabe and Ito, 2008)."""
INK, FAINT = "#222222", "#C8C8C8"
"""Of text and lines that are not data, and of what is there but not chosen."""
LETTER = 0.6
"""A letter is so wide on average, next to the size of the font."""


def module(name: str) -> Any:
    """A module of matplotlib.

    Raises
    ------
    ImportError : when matplotlib is not installed.
    """
    return needed(name, "plots", "optlayers.plots draws with matplotlib")


def axes_of(ax: Axes | None, width: float = 5.0, height: float = 4.0, *, three: bool = False) -> Axes:
    """The axes that were given, or those of a new figure of this size in inches, which pyplot knows nothing of."""
    if ax is None:
        figure = module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
        made: Axes = figure.add_subplot(projection="3d" if three else None)
        return made
    if not isinstance(ax, module("matplotlib.axes").Axes):
        raise TypeError(f"ax must be matplotlib Axes, such as plt.subplots()[1], but got {type(ax).__name__}")
    if (ax.name == "3d") != three:
        raise ValueError(
            "three directions are drawn on 3-D axes: figure.add_subplot(projection='3d')"
            if three
            else "this is drawn on plain axes, but got 3-D ones"
        )
    given: Axes = ax
    return given


def shaded(color: str, weights: np.ndarray) -> np.ndarray:
    """A colour for each weight, as transparent as that is small: ``(weights, 4)``."""
    rgba = np.tile(module("matplotlib.colors").to_rgba(color), (len(weights), 1))
    rgba[:, 3] = np.clip(weights, 0.0, 1.0)
    return rgba


def names_of(words: Sequence[Any] | None, count: int, what: str, first: int = 0) -> list[str]:
    """Names of some things: numbers from ``first`` on where none are given."""
    if words is None:
        return [str(k) for k in range(first, first + count)]
    if isinstance(words, str):
        raise TypeError(f"names of {what} must be a list of words, but got the text {words!r}: split it")
    names = [str(word) for word in words]
    if len(names) != count:
        raise ValueError(f"there are {count} {what}, but {len(names)} names")
    return names


def bare(ax: Axes) -> None:
    """Without a frame, and without ticks but for names."""
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)


def words_below(ax: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Names below the axes, one unit apart, slanted where they would run into each other."""
    width = ax.get_window_extent().width * 72.0 / ax.figure.dpi
    longest = max((len(name) for name in names), default=0)
    size = 9.0
    low, high = ax.get_xlim()
    slanted = len(names) > 1 and (longest + 1) * LETTER * size > width / max(high - low, 1e-9)
    style: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    ax.set_xticks(list(places), list(names), fontsize=size, color=INK, **style)


def weight_legend(ax: Axes, color: str, weights: np.ndarray, beside: float = 1.0) -> None:
    """What transparency means, where some weight is a fraction."""
    if not np.any((weights > 0.0) & (np.abs(weights - np.round(weights)) > 1e-6)):
        return
    line = module("matplotlib.lines").Line2D
    shown = (0.25, 0.5, 1.0)
    handles = [line([], [], color=color, alpha=w, linewidth=3, label=f"{w:g}") for w in shown]
    legend_of(ax, handles, title="weight", beside=beside, handlelength=1.2)


def legend_of(ax: Axes, handles: Sequence[Any], *, title: str | None = None, beside: float = 1.0, **style: Any) -> None:
    """A legend beside the axes where the figure has no others and keeps room for it; else within them, at the top.

    Beside axes of a grid it would lie on the next ones. Within axes the upper limit is moved, so that it covers
    nothing; three dimensions have room in their corner.
    """
    style |= {"title": title, "title_fontsize": 8, "fontsize": 8, "frameon": False, "labelcolor": INK}
    if is_alone(ax):
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(beside, 1.0), **style)
        return
    if ax.name == "3d":
        ax.legend(handles=handles, loc="upper left", handletextpad=0.2, borderaxespad=0.0, **style)
        return
    ax.apply_aspect()
    box = ax.get_window_extent()
    width, height = (side * 72.0 / ax.figure.dpi for side in (box.width, box.height))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = int(np.clip(width // (LETTER * 8.0 * longest + 28.0), 1, len(handles)))
    lines = -(-len(handles) // columns) + (title is not None)
    share = float(np.clip((11.5 * lines + 6.0) / max(height, 1.0), 0.0, 0.5))
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / (1.0 - share))
    style = {"handlelength": 1.6} | style
    style |= {"columnspacing": 0.9, "handletextpad": 0.4, "borderaxespad": 0.2, "labelspacing": 0.3}
    ax.legend(handles=handles, loc="upper center", ncols=columns, **style)


def is_alone(ax: Axes) -> bool:
    """Whether axes are the only ones in the grid of their figure, which lays them out with room for a legend."""
    place, engine = ax.get_subplotspec(), ax.figure.get_layout_engine()
    single = place is not None and place.get_gridspec().get_geometry() == (1, 1)
    return single and isinstance(engine, module("matplotlib.layout_engine").ConstrainedLayoutEngine)


def titled(ax: Axes, title: str, size: float) -> None:
    """A title, in two lines where one would be wider than the axes and run into the next ones."""
    ax.apply_aspect()
    width = ax.get_window_extent().width * 72.0 / ax.figure.dpi
    if not is_alone(ax) and LETTER * size * max(map(len, title.split("\n"))) > width:
        title = title.replace("; ", ";\n")
    ax.set_title(title, fontsize=size)
