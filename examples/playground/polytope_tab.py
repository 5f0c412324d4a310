"""The tab of polytopes: a declaration, scores, points, a loss, and what rules send back for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from html import escape
from time import perf_counter

import numpy as np
import panel as pn
import param
from playground.catalogue import READY
from playground.drag import Later
from playground.look import POINTS, RULE_COLORS, beside, card, html, message, note, numbers, picture
from playground.picture import Picture
from playground.scene import REGULARIZERS, TEMPERATURES, TROUBLE, Scene, scene_of
from playground.steps import LOSSES, RULES, Sent, sent_back
from playground.tables import LANGUAGE, table_of_points, table_of_rules
from playground.trial import Trial

__all__ = ["PolytopeTab"]

SHOWN = ["StraightThrough()", "Spigot(1.0)", "SparseMAP()", "Hard(StructuredAttention())"]
KEPT = 4
"""So many lines of past steps are shown."""


class PolytopeTab:
    """Widgets, and what each of them changes."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.scene: Scene = scene_of(READY[0].text, READY[0].scores)
        self.scores, self.target = self.scene.begin.copy(), self.scene.target()
        self.trail: list[np.ndarray] = []
        self.log: list[str] = []
        self.quiet = False
        self.picture = Picture(self._moved)
        self.later = Later(self.update, self.picture.plot)
        self._make_widgets()
        self.layout = self._lay_out()
        self._open(self.scene)

    # What there is to set

    def _make_widgets(self) -> None:
        wide = {"sizing_mode": "stretch_width", "margin": (2, 0)}
        self.ready = pn.widgets.Select(name="Ready declarations", options=[one.name for one in READY], **wide)
        self.about = html(f"<p>{READY[0].about}</p>")
        self.text = pn.widgets.TextAreaInput(
            name="Declaration",
            value=READY[0].text,
            rows=6,
            auto_grow=True,
            max_rows=10,
            max_length=4000,
            stylesheets=["textarea { font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace; font-size: 12px; }"],
            **wide,
        )
        self.draw = pn.widgets.Button(name="Draw this declaration", button_type="primary", **wide)
        self.said = html("")
        self.parts = [self._number(f"score of x[{k}]", wide) for k in range(3)]
        self.aims = [pn.widgets.FloatInput(name=f"target x[{k}]", step=0.1, value=0.0, **wide) for k in range(3)]
        self.turn = pn.widgets.IntSlider(name="turn, in degrees", start=-180, end=180, value=32, **wide)
        self.tilt = pn.widgets.IntSlider(name="tilt, in degrees", start=-90, end=90, value=20, **wide)
        self.regularizer = pn.widgets.Select(name="Regularizer Ω", options=list(REGULARIZERS), **wide)
        temperatures = [float(f"{t:.2g}") for t in np.geomspace(*TEMPERATURES, 41)]
        self.temperature = pn.widgets.DiscreteSlider(
            name="Temperature", options=temperatures, value=min(temperatures, key=lambda t: abs(t - 0.5)), **wide
        )
        self.loss = pn.widgets.Select(name="Loss", options=list(LOSSES), **wide)
        self.rules = pn.widgets.MultiChoice(
            name="Rules whose arrows are drawn", options=list(RULES), value=SHOWN, **wide
        )
        self.step_size = pn.widgets.EditableFloatSlider(
            name="Step size", start=0.05, end=2.0, step=0.05, value=0.5, **wide
        )
        self.by = pn.widgets.Select(name="Step by", options=list(RULES), value="Spigot(1.0)", **wide)
        self.step = pn.widgets.Button(name="Step", button_type="primary", **wide)
        self.back = pn.widgets.Button(name="Back to the start", **wide)
        self.points, self.sent, self.steps, self.took = html(""), html(""), html(""), html("")
        self.ready.param.watch(self._choose, "value")
        self.draw.on_click(self._declare)
        for numbers_of in (self.parts, self.aims):
            for widget in numbers_of:
                widget.param.watch(self._typed, "value")
        settings = (self.turn, self.tilt, self.regularizer, self.temperature, self.loss, self.rules, self.step_size)
        for widget in settings:
            widget.param.watch(lambda _: self.later(), "value")
        self.step.on_click(self._step)
        self.back.on_click(lambda _: self._open(self.scene))

    def _number(self, name: str, wide: Mapping[str, object]) -> pn.widgets.EditableFloatSlider:
        return pn.widgets.EditableFloatSlider(name=name, start=-1.0, end=1.0, step=0.01, value=0.0, **wide)

    def _lay_out(self) -> pn.FlexBox:
        self.views = beside(self.turn, self.tilt)
        left = card(
            note("1 · A polytope", "Choose one, or write your own: constraints on x, as in cvxpy."),
            self.ready,
            self.about,
            self.text,
            self.draw,
            self.said,
            html(LANGUAGE),
            note("2 · Scores", "Drag the black dot, or set exact numbers. The best vertex lies farthest along them."),
            *self.parts,
            width=290,
        )
        middle = card(
            html("<h2>Drag the black dot, which is the scores, or the orange target</h2>"),
            picture(self.picture.plot),
            self.views,
            self.points,
            self.took,
            width=470,
            grow=3,
        )
        right = card(
            note("3 · A regularizer", "The blue path: argmax ⟨scores, z⟩ − T Ω(z), from cold (a vertex) to hot."),
            beside(self.regularizer, self.temperature),
            note(
                "4 · A loss, and what rules send back",
                "An arrow is a step of the scores against the gradient of the loss that a rule sends back.",
            ),
            self.loss,
            beside(*self.aims),
            self.rules,
            self.sent,
            html("<p>A step moves the scores along one arrow; its length is the step size times the gradient.</p>"),
            beside(self.by, self.step_size),
            beside(self.step, self.back),
            self.steps,
            width=370,
            grow=2,
        )
        return pn.FlexBox(left, middle, right, gap="10px", sizing_mode="stretch_width", margin=0)

    # What happens

    def _choose(self, event: object) -> None:
        one = next(one for one in READY if one.name == self.ready.value)
        self.about.object = f"<p>{one.about}</p>"
        self.text.value = one.text
        self.said.object = ""
        self._open(scene_of(one.text, one.scores))

    async def _declare(self, event: object) -> None:
        """Read what was typed; the page goes on meanwhile, and the last picture stays where there is no new one."""
        text, self.draw.disabled = self.text.value, True
        self.said.object = message("busy", "reading, compiling and looking for vertices …")
        try:
            why = await asyncio.to_thread(self.trial.refusal, text)
            scene = None if why else scene_of(text)
        except TROUBLE as error:
            why, scene = str(error), None
        finally:
            self.draw.disabled = False
        if scene is None:
            self.said.object = message("error", f"{why}\nThe picture still shows the last declaration that was drawn.")
            return
        self.about.object = "<p>Your own declaration.</p>"
        self.said.object = message("fine", "Drawn.")
        self._open(scene)

    def _open(self, scene: Scene) -> None:
        """Begin with a scene."""
        self.scene, self.trail, self.log = scene, [], []
        self.scores, self.target = scene.begin.copy(), scene.target()
        with pn.io.hold():
            self._fit(scene)
            self.update()

    def _fit(self, scene: Scene) -> None:
        """As many numbers as there are parts, within the picture."""
        self.quiet = True
        middle, reach = scene.solid.centre.tolist(), scene.solid.reach
        for k, (part, aim) in enumerate(zip(self.parts, self.aims, strict=True)):
            part.visible = aim.visible = k < scene.size
            if k < scene.size:
                part.param.update(start=round(middle[k] - reach, 2), end=round(middle[k] + reach, 2))
        self.quiet = False
        self.views.visible = scene.size == 3

    def _moved(self, name: str, point: np.ndarray) -> None:
        if name == "scores":
            self.scores = point
        else:
            self.target = point
        self.later()

    def _typed(self, event: param.parameterized.Event) -> None:
        """One number was set; the others keep all their digits."""
        if self.quiet or event.new is None:
            return
        self.scores, self.target = self.scores.copy(), self.target.copy()
        for widgets, point in ((self.parts, self.scores), (self.aims, self.target)):
            if event.obj in widgets:
                point[widgets.index(event.obj)] = float(event.new)
        self.later()

    def _sent(self, rule: str) -> Sent | str:
        return sent_back(
            self.scene,
            rule,
            self.scores,
            self.loss.value,
            self.target,
            step_size=float(self.step_size.value),
            regularizer=self.regularizer.value,
            temperature=float(self.temperature.value),
        )

    def _step(self, event: object) -> None:
        sent = self._sent(self.by.value)
        if isinstance(sent, str):
            self.log.append(f"{self.by.value} cannot step: {escape(sent)}")
        else:
            self.trail.append(self.scores)
            self.scores = sent.scores_after
            before, after = numbers([sent.loss, sent.after], 3)
            where = ", ".join(numbers(self.scores))
            self.log.append(f"step {len(self.trail)} by {sent.rule}: loss {before} → {after}, scores ({where})")
        self.update()

    # What is shown

    def update(self) -> None:
        """Work out and show everything for the scores as they are now."""
        began = perf_counter()
        points = self.scene.points(self.scores, self.regularizer.value, float(self.temperature.value))
        sent = {rule: self._sent(rule) for rule in self.rules.value}
        with pn.io.hold():
            self._set_numbers()
            self.sent.object = table_of_rules(self.scene, sent, self._colors())
            places = {name: where for name in POINTS if not isinstance(where := getattr(points, name), str)}
            colors = self._colors()
            step = float(self.step_size.value)
            arrows = [
                (colors[rule], self.scores, self.scores - step * one.gradient)
                for rule, one in sent.items()
                if isinstance(one, Sent)
            ]
            self.picture.show(
                self.scene.solid,
                places | {"scores": self.scores, "target": self.target},
                points.path,
                arrows,
                self.trail,
                self.turn.value,
                self.tilt.value,
            )
            self.points.object = table_of_points(
                self.scene, points, self.loss.value, self.target, outside=self.picture.outside(self.scores)
            )
            self.steps.object = "".join(f"<p>{line}</p>" for line in self.log[-KEPT:])
            took = f"{1000 * (perf_counter() - began):.0f}"
            self.took.object = f"<p>worked out in {took} ms</p>"

    def _set_numbers(self) -> None:
        self.quiet = True
        for widgets, point in ((self.parts, self.scores), (self.aims, self.target)):
            for widget, value in zip(widgets, point.tolist(), strict=False):
                widget.value = round(value, 3) + 0.0
        self.quiet = False

    def _colors(self) -> dict[str, str]:
        return {rule: RULE_COLORS[k % len(RULE_COLORS)] for k, rule in enumerate(self.rules.value)}
