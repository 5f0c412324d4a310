"""Dragging in a picture while the mouse or the finger still moves."""

from __future__ import annotations

from collections.abc import Callable

from bokeh.events import MouseMove, Pan, PanStart, PointEvent, Press, PressUp
from bokeh.models import PointDrawTool
from bokeh.plotting import figure

__all__ = ["Later", "draggable"]

TOGETHER = 25
"""Events within so many milliseconds are answered together: the last one counts."""


class Later:
    """Calls a function soon, once for all who asked meanwhile."""

    def __init__(self, call: Callable[[], None], plot: figure) -> None:
        self._call, self._plot, self._waiting = call, plot, False

    def __call__(self) -> None:
        if self._plot.document is None:
            self._call()
        elif not self._waiting:
            self._waiting = True
            self._plot.document.add_timeout_callback(self._now, TOGETHER)

    def _now(self) -> None:
        self._waiting = False
        self._call()


def draggable(plot: figure, begin: Callable[[float, float], None], go: Callable[[float, float, float], None]) -> None:
    """Call ``begin(x, y)`` where a drag begins, and ``go(x, y, up)`` wherever it comes: ``up`` pixels above its start.

    Tools of Bokeh tell the server when the mouse is let go, and not before; so the one that is active here does nothing
    but keep a finger on the picture from scrolling the page. To hold the button for a moment before moving is a press
    for Bokeh, and no drag; here it is the same.
    """
    idle = PointDrawTool(renderers=[], add=False, drag=False)
    plot.add_tools(idle)
    plot.toolbar.active_drag = idle
    start = 0.0
    held = False

    def started(event: PointEvent) -> None:
        nonlocal start
        if event.x is not None and event.y is not None:
            start = event.sy
            begin(event.x, event.y)

    def went(event: PointEvent) -> None:
        if event.x is not None and event.y is not None:
            go(event.x, event.y, start - event.sy)

    def pressed(event: PointEvent) -> None:
        nonlocal held
        held = True
        started(event)

    def let_go(event: PointEvent) -> None:
        nonlocal held
        held = False

    plot.on_event(PanStart, started)
    plot.on_event(Pan, went)
    plot.on_event(Press, pressed)
    plot.on_event(MouseMove, lambda event: went(event) if held else None)
    plot.on_event(PressUp, let_go)
