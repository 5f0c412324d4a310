"""Pictures of trees over words: arcs, one tree or several below each other, as dark as their weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from bokeh.plotting import figure
from playground.look import GREY, INK

__all__ = ["Arcs"]

LEAST = 0.02
"""Arcs of less weight are not drawn."""
ROW, TOP = 3.4, 2.6
"""The height of one tree with its words, and that of its longest arc."""


class Arcs:
    """Up to ``rows`` trees; each is a title and an array of weights."""

    def __init__(self, name: str, color: str, rows: int = 1) -> None:
        self.rows = rows
        self.plot = figure(
            width=560,
            height=20 + 88 * rows,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            min_border=2,
            x_range=Range1d(0, 1),
            y_range=Range1d(-1, 1),
            outline_line_color=None,
            name=name,
        )
        self.plot.axis.visible = self.plot.grid.visible = False
        self.arcs = ColumnDataSource({"xs": [], "ys": [], "alpha": []}, name=f"{name} arcs")
        self.tips = ColumnDataSource({"x": [], "y": [], "alpha": []})
        self.words = ColumnDataSource({"x": [], "y": [], "text": []})
        self.said = ColumnDataSource({"x": [], "y": [], "text": []}, name=f"{name} weights")
        self.titles = ColumnDataSource({"x": [], "y": [], "text": []}, name=f"{name} titles")
        self.plot.multi_line("xs", "ys", source=self.arcs, color=color, line_width=2.2, line_alpha="alpha")
        self.plot.scatter("x", "y", source=self.tips, marker="inverted_triangle", size=8, color=color, alpha="alpha")
        self.plot.text(
            "x",
            "y",
            "text",
            source=self.words,
            text_align="center",
            text_baseline="top",
            color=INK,
            text_font_size="12px",
        )
        self.plot.text(
            "x",
            "y",
            "text",
            source=self.said,
            text_align="center",
            text_baseline="middle",
            color=GREY,
            text_font_size="10px",
            background_fill_color="white",
        )
        self.plot.text("x", "y", "text", source=self.titles, text_baseline="top", color=GREY, text_font_size="12px")

    def show(self, words: Sequence[str], trees: Sequence[tuple[str, np.ndarray]]) -> None:
        """Draw trees, the first one at the top."""
        lines: list[tuple[np.ndarray, np.ndarray, float]] = []
        said: list[tuple[float, float, str]] = []
        names: list[tuple[float, float, str]] = []
        titles: list[tuple[float, float, str]] = []
        for row, (title, weights) in enumerate(trees[: self.rows]):
            ground = -ROW * row
            titles.append((0.45, ground + TOP + 0.35, title))
            names += [(place, ground - 0.12, word) for place, word in enumerate(words, start=1)]
            for head, word in np.argwhere(weights > LEAST).tolist():
                across, up = _arc(head, word, len(words))
                weight = float(weights[head, word])
                lines.append((across, up + ground, weight))
                if 0.1 < weight < 0.995:
                    top = int(up.argmax()) if head else 6
                    said.append((float(across[top]), float(up[top] + ground), f"{weight:.2f}"))
        self.plot.x_range.update(start=0.4, end=len(words) + 0.6)
        rows = min(max(len(trees), 2), self.rows)
        self.plot.y_range.update(start=-ROW * (rows - 1) - 0.75, end=TOP + 0.45)
        self.arcs.data = {
            "xs": [across for across, _, _ in lines],
            "ys": [up for _, up, _ in lines],
            "alpha": [0.15 + 0.85 * weight for _, _, weight in lines],
        }
        self.tips.data = {
            "x": [across[-1] for across, _, _ in lines],
            "y": [up[-1] + 0.06 for _, up, _ in lines],
            "alpha": [0.15 + 0.85 * weight for _, _, weight in lines],
        }
        for source, texts in ((self.said, said), (self.words, names), (self.titles, titles)):
            source.data = {"x": [x for x, _, _ in texts], "y": [y for _, y, _ in texts], "text": [t for *_, t in texts]}


def _arc(head: int, word: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """From head to word; from the root straight down. Arcs leave a word beside where others arrive."""
    if head == 0:
        return np.full(9, float(word)), np.linspace(TOP, 0.0, 9)
    side = 0.16 if head < word else -0.16
    begin, end = head + side, word - side / 3.0
    angle = np.linspace(0.0, np.pi, 25)
    height = 0.35 + (TOP - 0.75) * abs(head - word) / max(words - 1, 1)
    return (begin + end) / 2.0 + (begin - end) / 2.0 * np.cos(angle), height * np.sin(angle)
