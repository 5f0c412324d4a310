"""What the tab of polytopes says in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
from playground.look import BLUE, INK, ORANGE, POINTS, chip, clipped, numbers, table
from playground.scene import Points, Scene
from playground.steps import Sent, loss_at

__all__ = ["LANGUAGE", "table_of_points", "table_of_rules"]

LANGUAGE = """<details><summary>What can be written</summary>
<table><tr><th>line</th><th>for example</th></tr>
<tr><td>the scored variable, of 2 or 3 parts</td><td class="words"><code>x = Variable(3, nonneg=True)</code></td></tr>
<tr><td>further variables</td><td class="words"><code>y = Variable((2, 3), boolean=True)</code></td></tr>
<tr><td>integers</td><td class="words"><code>x = Variable(2, integer=True, bounds=[0, 6])</code></td></tr>
<tr><td>a constant</td><td class="words"><code>A = [[1, 2], [3, 4]]</code></td></tr>
<tr><td>a constraint</td><td class="words"><code>A @ x + 1 &lt;= 2 * y[0, 1]</code></td></tr>
<tr><td>functions</td><td class="words"><code>sum norm abs max min</code></td></tr></table>
Nothing that is typed is executed: it is read as this language, and everything else is refused.</details>"""


def table_of_points(scene: Scene, points: Points, loss: str, target: np.ndarray, *, outside: bool) -> str:
    """The points of a picture with their losses, below what its signs mean."""
    rows: list[list[str]] = []
    for name, (color, _, sign, said) in POINTS.items():
        where = getattr(points, name)
        if isinstance(where, str):
            rows.append([f"{chip(color, sign)} {said}", clipped(where)])
        else:
            rows.append([f"{chip(color, sign)} {said}", *numbers([*where, loss_at(loss, target, where)])])
    fractional = int(scene.solid.fractional.sum())
    count = f"{chip(BLUE)} {len(scene.solid.points) - fractional} integral vertices"
    if fractional:
        count += f" · {chip(ORANGE, '◆')} {fractional} fractional"
    if scene.solid.curved:
        count = "The set is curved: it has no vertices."
    signs = f"{chip(INK)} scores · {chip(ORANGE, '⊕')} target · {count}"
    if outside:
        signs += "<br>The scores lie outside of the picture: drag them in, or go back to the start."
    return f"<p>{signs}</p>" + table(["point", *(f"x[{k}]" for k in range(scene.size)), "loss"], rows)


def table_of_rules(scene: Scene, sent: Mapping[str, Sent | str], colors: Mapping[str, str]) -> str:
    """What rules send back."""
    rows: list[list[str]] = []
    for rule, one in sent.items():
        name = f"{chip(colors[rule], '➔')} {escape(rule)}"
        if isinstance(one, str):
            rows.append([name, clipped(one)])
        else:
            rows.append([name, *numbers(one.gradient), *numbers([one.loss, one.after])])
    if not rows:
        return "<p>Choose rules.</p>"
    head = ["rule", *(f"∂/∂s[{k}]" for k in range(scene.size)), "loss", "after"]
    return table(head, rows) + "<p>loss: of what the rule sends forward, now and after its step</p>"
