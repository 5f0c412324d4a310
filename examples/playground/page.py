"""The page: a heading and two tabs."""

from __future__ import annotations

import panel as pn
from playground.look import html
from playground.polytope_tab import PolytopeTab
from playground.sentence_tab import SentenceTab
from playground.trial import Trial

__all__ = ["page"]

FRAME = """{% extends base %}
{% block postamble %}<meta name="viewport" content="width=device-width, initial-scale=1">{% endblock %}
{% block contents %}{{ embed(roots.page) }}{% endblock %}"""
"""As wide as the window, on a telephone too."""


def page(trial: Trial, port: int) -> pn.Template:
    """What one visitor sees; every visitor has a page of their own."""
    head = html(
        "<h1>optlayers playground</h1><p>Drag scores, and see the best structure, the nearest point, probabilities and "
        f"gradients. Your own machine serves this page at 127.0.0.1:{port}; no other machine can reach it.</p>"
    )
    tabs = pn.Tabs(
        ("Polytope", PolytopeTab(trial).layout),
        ("Sentence", SentenceTab().layout),
        sizing_mode="stretch_width",
        margin=0,
    )
    pn.state.onload(trial.start)
    frame = {"padding": "10px 14px", "box-sizing": "border-box"}
    framed = pn.Template(FRAME)
    framed.add_panel("page", pn.Column(head, tabs, sizing_mode="stretch_width", styles=frame))
    return framed
