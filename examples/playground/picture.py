"""The picture of a polytope: its edges, the points in it, and arrows, on a plane that may be dragged on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from bokeh.models import ColumnDataSource, LabelSet, Range1d
from bokeh.plotting import figure
from playground.drag import draggable
from playground.geometry import Solid, outline, view
from playground.look import BLUE, FAINT, INK, ORANGE, POINTS

__all__ = ["Picture"]

WIDE, NARROW = 62, 14
"""Borders, with room for numbers; pairs of them are equal, so that the frame is a square."""
NEAR = 0.16
"""A drag moves the target where it begins so near to it, as a share of the reach; else the scores come there."""
EMPTY: dict[str, list[float]] = {"x": [], "y": []}


class Picture:
    """Draws what it is given; tells where handles are dragged to, in the coordinates of the parts.

    ``moved(name, point)`` is called for ``"scores"`` and ``"target"``.
    """

    def __init__(self, moved: Callable[[str, np.ndarray], None]) -> None:
        self.moved = moved
        self.handles: dict[str, np.ndarray] = {}
        self.basis, self.toward = view(2, 0.0, 0.0)
        self.half = 1.0
        self.drawn: tuple[Solid, float, float] | None = None
        self.dragged: tuple[str, np.ndarray, np.ndarray] | None = None
        self.plot = figure(
            width=520,
            height=520,
            sizing_mode="scale_width",
            tools="",
            toolbar_location=None,
            min_border_left=WIDE,
            min_border_bottom=WIDE,
            min_border_right=NARROW,
            min_border_top=NARROW,
            x_range=Range1d(-1, 1),
            y_range=Range1d(-1, 1),
            outline_line_color=None,
            name="polytope",
        )
        self.sources: dict[str, ColumnDataSource] = {}
        self._draw()
        draggable(self.plot, self._begin, self._go)

    def _source(self, name: str, *columns: str) -> ColumnDataSource:
        self.sources[name] = ColumnDataSource({column: [] for column in columns}, name=name)
        return self.sources[name]

    def _draw(self) -> None:
        plot = self.plot
        plot.grid.grid_line_color = "#EEF0F2"
        plot.axis.axis_line_color = plot.axis.major_tick_line_color = FAINT
        plot.axis.minor_tick_line_color = None
        plot.axis.axis_label_text_font_style = "normal"
        ends = ("x0", "y0", "x1", "y1")
        lines = {"x0": "x0", "y0": "y0", "x1": "x1", "y1": "y1"}
        plot.segment(**lines, source=self._source("axes", *ends), color="#9AA3AD", line_width=1)
        plot.patch("x", "y", source=self._source("inside", "x", "y"), color=BLUE, fill_alpha=0.10, line_alpha=0)
        plot.segment(**lines, source=self._source("behind", *ends), color=BLUE, line_dash=[3, 4], line_alpha=0.45)
        plot.segment(
            **lines,
            source=self._source("front", *ends, "width", "alpha"),
            color=BLUE,
            line_width="width",
            line_alpha="alpha",
        )
        plot.segment(**lines, source=self._source("ray", *ends), color=INK, line_width=1.2, line_alpha=0.5)
        plot.segment(**lines, source=self._source("drop", *ends), color=POINTS["nearest"][0], line_dash="dotted")
        plot.line("x", "y", source=self._source("path", "x", "y"), color=POINTS["regularized"][0], line_width=3)
        plot.scatter(
            "x",
            "y",
            source=self._source("corners", "x", "y", "color", "marker"),
            color="color",
            marker="marker",
            size=9,
        )
        plot.scatter("x", "y", source=self._source("trail", "x", "y"), color=INK, alpha=0.35, size=6)
        plot.segment(**lines, source=self._source("shafts", *ends, "color"), color="color", line_width=2.4)
        plot.scatter(
            "x",
            "y",
            source=self._source("heads", "x", "y", "color", "angle"),
            color="color",
            size=11,
            marker="triangle",
            angle="angle",
        )
        for name, (color, marker, _, _) in POINTS.items():
            plot.scatter(
                "x",
                "y",
                source=self._source(name, "x", "y"),
                color=color,
                marker=marker,
                line_color=INK,
                line_width=0.8,
                size=20 if marker == "star" else 12,
            )
        plot.scatter(
            "x",
            "y",
            source=self._source("target", "x", "y"),
            marker="circle_cross",
            size=18,
            fill_color="white",
            line_color=ORANGE,
            line_width=2.2,
        )
        plot.scatter(
            "x", "y", source=self._source("scores", "x", "y"), size=15, color=INK, line_color="white", line_width=2
        )
        words = self._source("words", "x", "y", "text", "color")
        plot.add_layout(
            LabelSet(
                x="x",
                y="y",
                text="text",
                text_color="color",
                source=words,
                x_offset=11,
                y_offset=10,
                text_font_size="12px",
                text_font_style="bold",
            )
        )

    def show(
        self,
        solid: Solid,
        places: Mapping[str, np.ndarray],
        path: np.ndarray,
        arrows: Sequence[tuple[str, np.ndarray, np.ndarray]],
        trail: Sequence[np.ndarray],
        turn: float,
        tilt: float,
    ) -> None:
        """Draw all of it: ``places`` by their names, arrows as colours, starts and ends, long ones below."""
        arrows = sorted(arrows, key=lambda arrow: -float(np.linalg.norm(arrow[2] - arrow[1])))
        size = solid.points.shape[1]
        self.basis, self.toward = view(size, turn, tilt)
        self.handles = {name: places[name] for name in ("scores", "target")}
        if self.drawn != (solid, turn, tilt):
            self._frame(size, solid)
            self._solid(solid)
            self.drawn = (solid, turn, tilt)
        for name in (*POINTS, "scores", "target"):
            self.sources[name].data = self._xy(places[name][None]) if name in places else EMPTY
        self.sources["path"].data = self._xy(path)
        self.sources["trail"].data = self._xy(np.array(trail).reshape(-1, size))
        origin = np.zeros(size)
        self.sources["ray"].data = self._lines([(origin, places["scores"])])
        nearest = [(places["scores"], places["nearest"])] if "nearest" in places else []
        self.sources["drop"].data = self._lines(nearest)
        self._arrows(arrows)
        axes = [] if size == 2 else [(f"x[{k}]", end) for k, end in enumerate(self._axes(solid))]
        words = [*axes, ("scores", places["scores"]), ("target", places["target"])]
        self.sources["words"].data = self._xy(np.array([place for _, place in words])) | {
            "text": [text for text, _ in words],
            "color": ["#7A838D"] * len(axes) + [INK, ORANGE],
        }

    def _frame(self, size: int, solid: Solid) -> None:
        middle, half = solid.centre, solid.reach
        if size == 3:  # as large at every turn, in the middle of the page
            placed = np.vstack([solid.points, self._axes(solid)]) @ self.basis.T
            middle, half = (placed.min(axis=0) + placed.max(axis=0)) / 2.0, solid.reach
        ranges, axes = (self.plot.x_range, self.plot.y_range), (self.plot.xaxis, self.plot.yaxis)
        for k, (along, axis) in enumerate(zip(ranges, axes, strict=True)):
            along.update(start=float(middle[k] - half), end=float(middle[k] + half))
            axis.axis_label = f"x[{k}], and its score" if size == 2 else None
        self.half = half
        self.plot.axis.visible = self.plot.grid.visible = size == 2
        if size == 2:  # as wide as the page
            lines = [(unit * -9.0 * (half + 1.0), unit * 9.0 * (half + 1.0)) for unit in np.eye(2)]
        else:
            lines = [(np.zeros(3), end) for end in self._axes(solid)]
        self.sources["axes"].data = self._lines(lines)

    def outside(self, point: np.ndarray) -> bool:
        """Whether a point lies beyond the frame."""
        ranges = (self.plot.x_range, self.plot.y_range)
        placed = self.basis @ point
        return any(not along.start <= at <= along.end for along, at in zip(ranges, placed, strict=True))

    def _axes(self, solid: Solid) -> np.ndarray:
        """Where the axes of three dimensions end."""
        return np.diag(1.1 * np.maximum(solid.points.max(axis=0), 0.4 * solid.reach))

    def _solid(self, solid: Solid) -> None:
        corners = outline(solid.points @ self.basis.T)
        self.sources["inside"].data = {"x": corners[:, 0], "y": corners[:, 1]}
        hidden = [edge.hidden(self.toward) for edge in solid.edges]
        ends = [tuple(solid.points[list(edge.ends)]) for edge in solid.edges]
        mesh = solid.curved and solid.points.shape[1] == 3
        front = [pair for pair, away in zip(ends, hidden, strict=True) if not away]
        self.sources["front"].data = self._lines(front) | {
            "width": [0.6 if mesh else 2.0] * len(front),
            "alpha": [0.35 if mesh else 0.9] * len(front),
        }
        self.sources["behind"].data = self._lines(
            [] if mesh else [pair for pair, away in zip(ends, hidden, strict=True) if away]
        )
        points = solid.points[:0] if solid.curved else solid.points
        fractional = solid.fractional[: len(points)]
        self.sources["corners"].data = self._xy(points) | {
            "color": np.where(fractional, ORANGE, BLUE).tolist(),
            "marker": np.where(fractional, "diamond", "circle").tolist(),
        }

    def _arrows(self, arrows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
        colors = [color for color, _, _ in arrows]
        lines = self._lines([(start, end) for _, start, end in arrows])
        across, up = lines["x1"] - lines["x0"], lines["y1"] - lines["y0"]
        seen = np.hypot(across, up) > 1e-3 * self.half
        self.sources["shafts"].data = lines | {"color": colors}
        self.sources["heads"].data = {
            "x": lines["x1"][seen],
            "y": lines["y1"][seen],
            "color": [color for color, there in zip(colors, seen, strict=True) if there],
            "angle": np.arctan2(up, across)[seen] - np.pi / 2.0,  # triangles point up
        }

    def _xy(self, points: np.ndarray) -> dict[str, np.ndarray]:
        placed = points @ self.basis.T
        return {"x": placed[:, 0], "y": placed[:, 1]}

    def _lines(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        placed = np.array(pairs, dtype=np.float64).reshape(len(pairs), 2, -1 if pairs else 1)
        placed = placed @ self.basis.T if pairs else np.zeros((0, 2, 2))
        return {"x0": placed[:, 0, 0], "y0": placed[:, 0, 1], "x1": placed[:, 1, 0], "y1": placed[:, 1, 1]}

    def _begin(self, x: float, y: float) -> None:
        away = {name: np.linalg.norm(self.basis @ place - [x, y]) for name, place in self.handles.items()}
        name = "target" if away["target"] < min(away["scores"], NEAR * self.half) else "scores"
        self.dragged = (name, self.handles[name], self.basis @ self.handles[name])
        self._go(x, y, 0.0)

    def _go(self, x: float, y: float, up: float) -> None:
        """Within the plane of the page; what is toward the reader stays."""
        if self.dragged is not None:
            name, start, placed = self.dragged
            self.moved(name, start + (np.array([x, y]) - placed) @ self.basis)
