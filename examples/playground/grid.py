"""The grid of arc scores: a cell for each head and each word, dragged up and down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from bokeh.plotting import figure
from playground.drag import draggable
from playground.look import AMBER, GREEN, INK

__all__ = ["Grid"]

PIXELS = 40.0
"""A drag over so many pixels changes a score by 1."""
LIMIT = 5.0


class Grid:
    """Draws scores and what follows; ``moved(head, word, score)`` is called while a cell is dragged."""

    def __init__(self, chosen: Callable[[int, int], None], moved: Callable[[int, int, float], None]) -> None:
        self.chosen, self.moved = chosen, moved
        self.scores = np.zeros((1, 1))
        self.dragged: tuple[int, int, float] | None = None
        self.plot = figure(
            width=480,
            height=420,
            sizing_mode="scale_width",
            tools="",
            toolbar_location=None,
            min_border=4,
            x_range=Range1d(0.5, 1.5),
            y_range=Range1d(1.5, -0.5),
            outline_line_color=None,
            name="grid",
            x_axis_location="above",
        )
        columns = ("x", "y", "color", "ink", "text", "line", "width", "left", "right", "bottom", "top")
        self.cells = ColumnDataSource({column: [] for column in columns}, name="cells")
        self.plot.rect(
            "x", "y", 0.92, 0.92, source=self.cells, fill_color="color", line_color="line", line_width="width"
        )
        self.plot.text(
            "x",
            "y",
            "text",
            source=self.cells,
            text_align="center",
            text_baseline="middle",
            color="ink",
            text_font_size="13px",
        )
        self.plot.quad("left", "right", "bottom", "top", source=self.cells, color=AMBER, line_alpha=0)
        self.mark = ColumnDataSource({"x": [], "y": []}, name="chosen cell")
        self.plot.rect("x", "y", 0.78, 0.78, source=self.mark, fill_alpha=0, line_color=INK, line_dash="dotted")
        self.plot.grid.visible = False
        self.plot.axis.axis_line_color = self.plot.axis.major_tick_line_color = None
        self.plot.axis.minor_tick_line_color = None
        self.plot.axis.major_label_text_font_size = "12px"
        self.plot.axis.axis_label_text_font_style = "normal"
        self.plot.xaxis.axis_label, self.plot.yaxis.axis_label = "word", "its head"
        self.plot.xaxis.major_label_orientation = 0.6
        draggable(self.plot, self._begin, self._go)

    def show(
        self, words: Sequence[str], scores: np.ndarray, best: np.ndarray, marginals: np.ndarray, chosen: tuple[int, int]
    ) -> None:
        """Scores as colours and numbers, the arcs of the best tree in frames, marginals as bars."""
        self.scores = scores
        count = len(words)
        places = [(h, d) for h in range(count + 1) for d in range(1, count + 1) if h != d]
        share = [float(np.clip(marginals[place], 0.0, 1.0)) for place in places]
        self.cells.data = {
            "x": [d for _, d in places],
            "y": [h for h, _ in places],
            "color": [_shade(float(scores[place])) for place in places],
            "ink": ["white" if scores[place] > 3.2 else INK for place in places],
            "text": [f"{scores[place]:.1f}".replace("-", "−") for place in places],
            "line": [GREEN if best[place] > 0.5 else "white" for place in places],
            "width": [3.5 if best[place] > 0.5 else 0.0 for place in places],
            "left": [d - 0.4 for _, d in places],
            "right": [d - 0.4 + 0.8 * part for (_, d), part in zip(places, share, strict=True)],
            "bottom": [h + 0.38 for h, _ in places],
            "top": [h + 0.29 for h, _ in places],
        }
        self.mark.data = {"x": [chosen[1]], "y": [chosen[0]]}
        self.plot.x_range.update(start=0.5, end=count + 0.5)
        self.plot.y_range.update(start=count + 0.5, end=-0.5)
        self.plot.xaxis.ticker = list(range(1, count + 1))
        self.plot.yaxis.ticker = list(range(count + 1))
        names = dict(enumerate(["root", *words]))
        self.plot.xaxis.major_label_overrides = self.plot.yaxis.major_label_overrides = names

    def _begin(self, x: float, y: float) -> None:
        head, word = round(y), round(x)
        inside = 0 <= head < len(self.scores) and 1 <= word < len(self.scores) and head != word
        self.dragged = (head, word, float(self.scores[head, word])) if inside else None
        if inside:
            self.chosen(head, word)

    def _go(self, x: float, y: float, up: float) -> None:
        if self.dragged is not None:
            head, word, before = self.dragged
            self.moved(head, word, float(np.clip(round(before + up / PIXELS, 2), -LIMIT, LIMIT)))


def _shade(score: float) -> str:
    """From orange over white to blue."""
    end = np.array([0, 114, 178] if score > 0 else [213, 94, 0])
    share = min(abs(score) / LIMIT, 1.0) ** 0.8
    red, green, blue = (255 + share * (end - 255)).astype(int).tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"
