"""Colours, style sheets and small pieces of HTML that both tabs share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import panel as pn
from bokeh.plotting import figure

__all__ = [
    "AMBER",
    "BLUE",
    "FAINT",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "POINTS",
    "RULE_COLORS",
    "STYLE",
    "beside",
    "card",
    "chip",
    "clipped",
    "headed",
    "html",
    "message",
    "note",
    "numbers",
    "picture",
    "table",
]

BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
INK, GREY, FAINT = "#222222", "#5A6470", "#C8C8C8"
POINTS = {
    "best": (GREEN, "star", "★", "best vertex"),
    "nearest": (PURPLE, "square", "■", "projection"),
    "mean": (AMBER, "hex", "⬢", "marginal mean"),
    "regularized": (SKY, "inverted_triangle", "▼", "regularized point"),
}
"""Colour, marker, sign and name of each point: colours of Okabe and Ito, and shapes for those who see no colours."""
RULE_COLORS = ("#332288", "#AA4499", "#117733", "#882255", "#999933", "#661100", "#44AA99", "#6699CC")
"""Of arrows, by Paul Tol, apart from those of the points."""

STYLE = """
:root { font-family: system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; color: #222; }
body { margin: 0; background: #F6F7F9; }
.bk-root, .bk-Column { box-sizing: border-box; }
"""
INSIDE = """
:host { font-size: 13px; line-height: 1.4; color: #222; }
* { box-sizing: border-box; }
h1 { font-size: 20px; margin: 0; } h2 { font-size: 14px; margin: 0 0 2px; color: #0B3C5D; }
h2.short { display: inline; margin-right: 6px; } h2.short + p { display: inline; }
p { margin: 0; color: #5A6470; font-size: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 12px; }
th { text-align: right; font-weight: 600; color: #5A6470; border-bottom: 1px solid #DDE1E6; padding: 2px 4px; }
td { text-align: right; padding: 2px 4px; font-variant-numeric: tabular-nums; vertical-align: top; }
tr:nth-child(even) td { background: #F6F7F9; }
th:first-child, td:first-child, td.words { text-align: left; }
td.words { color: #5A6470; }
.clip { max-height: 2.8em; overflow: hidden; }
code { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 11.5px; }
details { font-size: 12px; color: #5A6470; } summary { cursor: pointer; color: #0072B2; }
details table { margin-top: 4px; }
.error, .fine, .busy { padding: 6px 8px; overflow-wrap: anywhere; white-space: pre-line; }
.error { background: #FDF1E9; border-left: 4px solid #D55E00; }
.fine { background: #EAF6F1; border-left: 4px solid #009E73; }
.busy { background: #EAF2F8; border-left: 4px solid #0072B2; }
"""
CARD = {
    "background": "white",
    "border": "1px solid #DDE1E6",
    "border-radius": "8px",
    "padding": "10px 12px",
    "box-sizing": "border-box",
}


def card(*parts: pn.viewable.Viewable, width: int, grow: int = 1) -> pn.Column:
    """A white box that is ``width`` pixels wide where there is room, and as wide as a telephone on one."""
    sides = {"flex": f"{grow} 1 {width}px", "min-width": "min(100%, 300px)", "max-width": "100%"}
    return pn.Column(*parts, styles=CARD | sides, sizing_mode="stretch_width", margin=0)


def beside(*parts: pn.viewable.Viewable) -> pn.Row:
    """Controls in one row."""
    return pn.Row(*parts, styles={"gap": "10px"}, sizing_mode="stretch_width", margin=0)


def picture(plot: figure) -> pn.pane.Bokeh:
    """A picture of Bokeh."""
    return pn.pane.Bokeh(plot, sizing_mode="stretch_width", margin=0)


def html(text: str, **options: object) -> pn.pane.HTML:
    """Text of our own; what visitors typed is escaped where it is put in."""
    given = {"margin": (2, 0), "sizing_mode": "stretch_width"} | options
    return pn.pane.HTML(text, stylesheets=[INSIDE], **given)


def note(title: str, text: str, *, short: bool = False) -> pn.pane.HTML:
    """The heading of some controls, and what they do; in the same line where it is short."""
    return html(headed(title, text, short=short))


def headed(title: str, text: str, *, short: bool = False) -> str:
    """A heading and a sentence below it or behind it."""
    return f"<h2{' class=short' * short}>{title}</h2><p>{text}</p>"


def message(kind: str, text: str) -> str:
    """A message in a box: ``error``, ``fine`` or ``busy``."""
    return f'<div class="{kind}" role="status">{escape(text)}</div>'


def chip(color: str, sign: str = "●") -> str:
    """A coloured sign."""
    return f'<span style="color:{color};font-size:14px">{sign}</span>'


def clipped(text: str) -> str:
    """Two lines of a long text, all of it where the mouse rests on it."""
    return f'<div class="clip" title="{escape(text)}">{escape(text)}</div>'


def numbers(values: Iterable[float], digits: int = 2) -> list[str]:
    """Numbers as they are read, with a minus sign, and without minus nothing."""
    return [f"{value:.{digits}f}".replace("-", "−") for value in np.round(list(values), digits) + 0.0]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells; a row that is shorter ends in words over the cells that it lacks."""
    body = ""
    for row in rows:
        lacks = len(head) - len(row)
        last = f'<td class="words" colspan="{lacks + 1}">{row[-1]}</td>' if lacks else f"<td>{row[-1]}</td>"
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in row[:-1]) + last + "</tr>"
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{body}</table>"
