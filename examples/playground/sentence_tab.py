"""The tab of sentences: words, scores of arcs, the best tree, the mixture of trees, and marginals."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import panel as pn
from playground.arcs import Arcs
from playground.drag import Later
from playground.grid import LIMIT, Grid
from playground.look import AMBER, BLUE, GREEN, beside, card, chip, headed, html, message, note, picture
from playground.scene import TROUBLE
from playground.trees import EXAMPLE, KINDS, beginning, trees_of, words_of

__all__ = ["SentenceTab"]

SHOWN = 3
"""So many trees of a mixture are drawn."""


class SentenceTab:
    """Widgets, and what each of them changes."""

    def __init__(self) -> None:
        self.words = words_of(EXAMPLE)
        self.scores = beginning(self.words)
        self.cell = (2, 5)
        self.quiet = False
        self.grid = Grid(self._choose, self._moved)
        self.later = Later(self.update, self.grid.plot)
        self.best, self.marginals = Arcs("best tree", GREEN), Arcs("marginals", AMBER)
        self.mixture = Arcs("mixture", BLUE, rows=SHOWN)
        wide = {"sizing_mode": "stretch_width", "margin": (2, 0)}
        self.sentence = pn.widgets.TextInput(name="Sentence", value=EXAMPLE, max_length=120, **wide)
        self.said = html("")
        self.kind = pn.widgets.Select(name="Trees", options=list(KINDS), **wide)
        temperatures = [float(f"{t:.2g}") for t in np.geomspace(0.1, 10.0, 41)]
        self.temperature = pn.widgets.DiscreteSlider(name="Temperature", options=temperatures, value=1.0, **wide)
        self.score = pn.widgets.EditableFloatSlider(start=-LIMIT, end=LIMIT, step=0.05, value=0.0, **wide)
        self.back = pn.widgets.Button(name="Back to the first scores", **wide)
        self.told, self.took = html(""), html("")
        self.sentence.param.watch(self._typed, "value")
        self.score.param.watch(self._set, "value")
        for widget in (self.kind, self.temperature):
            widget.param.watch(lambda _: self.later(), "value")
        self.back.on_click(lambda _: self._open(self.words))
        self.layout = self._lay_out()
        self.update()

    def _lay_out(self) -> pn.FlexBox:
        left = card(
            note("1 · A sentence", "Type up to eight words. The scores to begin with are made up."),
            self.sentence,
            self.said,
            note("2 · Scores of arcs", "Drag a cell up or down: the score of the arc from a head (row) to a word."),
            picture(self.grid.plot),
            self.score,
            html(
                f"<p>{chip(GREEN, '▢')} in the best tree · {chip(AMBER, '▬')} marginal, from 0 to the whole width</p>"
            ),
            self.back,
            width=440,
        )
        right = card(
            note("3 · Temperature", "Cold: one tree. Hot: all trees alike. The best tree does not depend on it."),
            beside(self.kind, self.temperature),
            note("The best tree", "has the largest sum of scores.", short=True),
            picture(self.best.plot),
            self.told,
            picture(self.mixture.plot),
            note("Marginals", "say how probable an arc is, for trees with p ∝ exp(score / temperature).", short=True),
            picture(self.marginals.plot),
            self.took,
            width=520,
            grow=2,
        )
        return pn.FlexBox(left, right, gap="10px", sizing_mode="stretch_width", margin=0)

    def _open(self, words: list[str]) -> None:
        self.words, self.scores = words, beginning(words)
        self.cell = (0, 2)
        self.update()

    def _typed(self, event: object) -> None:
        try:
            words = words_of(self.sentence.value)
        except ValueError as error:
            self.said.object = message("error", f"{error}. The pictures still show the last sentence.")
            return
        self.said.object = ""
        self._open(words)

    def _choose(self, head: int, word: int) -> None:
        self.cell = (head, word)
        self.later()

    def _moved(self, head: int, word: int, score: float) -> None:
        self.scores[head, word] = score
        self.later()

    def _set(self, event: object) -> None:
        if not self.quiet:
            self._moved(*self.cell, float(np.clip(self.score.value, -LIMIT, LIMIT)))

    def update(self) -> None:
        """Work out and show everything for the scores as they are now."""
        began = perf_counter()
        try:
            found = trees_of(self.scores, self.kind.value, float(self.temperature.value))
        except TROUBLE as error:
            self.said.object = message("error", str(error))
            return
        with pn.io.hold():
            self.quiet = True
            names = ["root", *self.words]
            head, word = self.cell
            self.score.param.update(name=f"score of {names[head]} → {names[word]}", value=float(self.scores[self.cell]))
            self.quiet = False
            self.grid.show(self.words, self.scores, found.best, found.marginals, self.cell)
            self.best.show(self.words, [("", found.best)])
            self.mixture.show(self.words, [(f"weight {weight:.2f}", tree) for weight, tree in found.mixture])
            self.marginals.show(self.words, [("", found.marginals)])
            count, rest = len(found.mixture), sum(weight for weight, _ in found.mixture[SHOWN:])
            of = f"of {count} {'tree' if count == 1 else 'trees'}"
            more = f" The {SHOWN} heaviest are drawn; the others have weight {rest:.2f} together." if rest else ""
            said = f"(SparseMAP) {of} lies nearest to scores / temperature.{more}"
            self.told.object = headed("The mixture", said, short=True)
            self.took.object = f"<p>worked out in {1000 * (perf_counter() - began):.0f} ms</p>"
