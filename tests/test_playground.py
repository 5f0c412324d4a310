"""The playground without a browser: what is read and refused, what is computed, and what goes on after an error."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import sys
import threading
import time

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("panel", reason="the playground needs Panel: pip install 'optlayers[playground]'")

from playground import serve
from playground.__main__ import main
from playground.catalogue import READY
from playground.declaration import Refused, read
from playground.geometry import outline, view
from playground.picture import Picture
from playground.polytope_tab import PolytopeTab
from playground.scene import REGULARIZERS, Scene
from playground.sentence_tab import SentenceTab
from playground.steps import LOSSES, RULES, Sent, loss_at, sent_back
from playground.trees import EXAMPLE, KINDS, beginning, trees_of, words_of
from playground.trial import Trial

import optlayers as ol

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of names that Panel 1.6 lacks
SIMPLEX = "x = Variable(3, nonneg=True)\nsum(x) == 1"
CUBE = "x = Variable(3)\n0 <= x <= 1"
SQUARED = "squared distance to the target"
PLAIN = {"step_size": 0.5, "regularizer": "Entropy", "temperature": 0.7}


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores) / np.exp(scores).sum()


def rows(points) -> set[tuple[float, ...]]:
    return {tuple(np.round(point, 6) + 0.0) for point in np.asarray(points)}


# The language


@pytest.mark.parametrize(
    ("text", "vertices"),
    [
        ("x = Variable(2, nonneg=True)\nx <= 1\nsum(x) <= 1.5", {(0, 0), (1, 0), (0, 1), (1, 0.5), (0.5, 1)}),
        ("x = cp.Variable(2)\n[x >= 0, x <= 1]  # as in the README", set(itertools.product((0, 1), repeat=2))),
        ("x = Variable(2)\n-1 <= x <= 1\nabs(x[0] - x[1]) <= 0", {(-1, -1), (1, 1)}),
        ("A = [[1, 1], [1, -1]]\nx = Variable(2)\n-2 <= A @ x\nA @ x <= 2", {(2, 0), (-2, 0), (0, 2), (0, -2)}),
        ("x = Variable(2, nonneg=True)\nx <= [1, 1] * 3  # a product", {(0, 0), (3, 0), (0, 3), (3, 3)}),
        ("x = Variable(2)\nnorm(x, 1) <= 1", {(1, 0), (-1, 0), (0, 1), (0, -1)}),
        ("x = Variable(2)\nnorm(x, inf) <= 1", set(itertools.product((-1, 1), repeat=2))),
        ("x = Variable(2)\nmax(x) <= 1\nmin(x) >= -1", set(itertools.product((-1, 1), repeat=2))),
        ("x = Variable(2, nonneg=True)\nmax(x[0], 2 * x[1]) <= 1", {(0, 0), (1, 0), (0, 0.5), (1, 0.5)}),
        ("x = Variable(2, nonneg=True)\nx / 2 + 1 <= [2, 3]", {(0, 0), (2, 0), (0, 4), (2, 4)}),
        ("x = Variable(3, boolean=True)\nsum(x) == 1", {(1, 0, 0), (0, 1, 0), (0, 0, 1)}),
        ("x = Variable(2, integer=True, bounds=[0, 3])\nsum(x) <= 1.5", {(0, 0), (1, 0), (0, 1)}),
        ("x = Variable(2)\ny = Variable((2, 2), boolean=True)\nsum(y, axis=0) == 1\nx == y @ [1, 2]",
         {(0, 3), (1, 2), (2, 1), (3, 0)} - {(1, 2), (2, 1)}),
        ("x = Variable(2)\ny = Variable(bounds=[0, 1])\nx[0:2] == y", {(0, 0), (1, 1)}),
        ("x = Variable(2, bounds=[-1, 2])\nx[-1] == +1", {(-1, 1), (2, 1)}),
    ],
    ids=lambda value: value.splitlines()[-1] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_read_means_what_cvxpy_means(text, vertices):
    found = ol.compile_polytope(read(text)).vertices()
    assert rows(found) == {tuple(float(entry) for entry in vertex) for vertex in vertices}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("x[0] ** 2 <= 1", "powers are not in it: write norm"),
        ("x[0] * x[1] <= 1", "a product of two variables is not convex"),
        ("x @ x <= 1", "products of variables are not convex"),
        ("x < 1", "write <="),
        ("x != 1", "leave the line out"),
        ("x <= 1 and x >= 0", "two constraints in two lines"),
        ("x <= y", "names so far are: x. Declare it in a line above"),
        ("x <= 'one'", "texts and the like are no numbers: it is a str"),
        ("x <= True", "True and False belong to variables"),
        ("x <= 1e5", "between 0.0001 and 10000"),
        ("x <= 1e-9", "between 0.0001 and 10000"),
        ("x <= 1e999", "between 0.0001 and 10000"),
        ("x <= 10000 * 10000", "multiply to more than 1e+06"),
        ("x / 0 <= 1", "other than 0"),
        ("x / x[0] <= 1", "other than 0"),
        ("x <= [1, [2, 3]]", "rows of numbers that are equally long"),
        ("x <= []", "rows of numbers that are equally long"),
        ("x[7] <= 1", "cvxpy says: Index 7 is out of bounds"),
        ("x[0.5] <= 1", "a whole number"),
        ("[[1, 2, 3]] @ x <= 1", "cvxpy says: Incompatible dimensions"),
        ("log(x) <= 1", "Functions are sum, norm, abs, max, min"),
        ("sum(x, keepdims=True) <= 1", "sum takes an expression"),
        ("norm(x, 3) <= 1", "norms are norm(x), norm(x, 1) and norm(x, inf)"),
        ("x", "says nothing about x"),
        ("1 <= 2", "compares at least one variable"),
        ("x = Variable(2)", "the name x is taken"),
        ("sum = 3", "the name sum is taken"),
        ("y = x[0] + 1", "names are for variables and constants"),
        ("y = Variable(30)", "1 to 24 entries"),
        ("y = Variable((5, 5))", "27 entries together, and 24 are allowed"),
        ("y = Variable(3, 4)", "Variable((2, 3)) for a matrix"),
        ("y = Variable(3, PSD=True)", "may have nonneg, boolean, integer, bounds, but got PSD"),
        ("y = Variable(3, nonneg=1)", "write True or False"),
        ("y = Variable(3, integer=True)", "integers need bounds"),
        ("y = Variable(3, bounds=[1, 0])", "the smaller one first"),
        ("y = Variable(13, boolean=True)", "8,192 combinations of values, and 4,096 are allowed"),
        ("y = Variable(2, integer=True, bounds=[0, 99])", "10,000 combinations"),
        ("y = Variable(2, boolean=True, nonneg=True)", "leave the other words out"),
        ("for k in x: x[k] <= 1", "one constraint for each case"),
        ("x += 1", "take another name"),
        ("x ==", "this is not Python"),
        ("[[1]] @ " * 20 + "x <= 1", "cvxpy says: Incompatible dimensions"),
    ],
)
def test_what_is_refused_says_the_line_and_what_to_write(line, says):
    with pytest.raises(Refused) as refusal:
        read(f"x = Variable(2)\n{line}")
    assert str(refusal.value).startswith("line 2: ") and says in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no x"),
        ("y = Variable(2)", "there is no x"),
        ("x = Variable(4)", "x has shape (4,), but 2 or 3 parts are drawn"),
        ("x = Variable((2, 2))", "x has shape (2, 2)"),
        ("x = Variable(2)\n" + "x <= 1\n" * 61, "122 rows up to here, and 120 are allowed"),
        ("x = Variable(2)\n" + "# long\n" * 400, "characters, and 2,000 are read"),
        ("x = Variable(2)\nx <= " + "+".join("1" * 500), "nested more than 30 deep"),
        ("x = Variable(2)\n" + "x<=1,\n" * 300, "operations, names and numbers, and 800 are read"),
        ("x = Variable(2)\nx <= [" + "1," * 121 + "]", "more than 120 entries"),
    ],
    ids=lambda value: value[:24],
)
def test_what_is_refused_as_a_whole(text, says):
    with pytest.raises(Refused) as refusal:
        read(text)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch hacked')",
        "x = Variable(2)\nx.__class__.__bases__[0].__subclasses__() <= 1",
        "x = Variable(2)\ncp.os.system('ls') <= x",
        "x = Variable(2)\nx <= (lambda: 1)()",
        "x = Variable(2)\nx <= [open('/etc/passwd') for _ in [1]]",
        "x = Variable(2)\nx <= eval('1')",
        "x = Variable(2)\nx <= exec",
        "x = Variable(2)\nx <= __builtins__",
        "x = Variable(2)\nx <= f'{x}'",
        "x = Variable(2)\nx <= (y := 3)",
        "x = Variable(2)\nx <= 9 ** 9 ** 9 ** 9",
        "x = Variable(2)\nx <= 1 << 10 ** 9",
        "x = Variable(10 ** 10)",
        "x = Variable(99999999999999999999)",
        "x = Variable(2)\nx <= " + "9" * 1900,
        "(" * 900 + ")" * 900,
        "[" * 990 + "]" * 990,
        "-" * 1990 + "1",
        "not " * 490 + "x",
        "x" + "[0]" * 600,
        "x" + "()" * 900,
        "lambda: " * 240 + "1",
        "x = Variable(2)\nx <= \0",
        "x = Variable(2)\nx <= '\\ud800'",
        "\ud800",
        "class x: pass",
        "import os",
        "def x(): x()\nx()",
        "while True: pass",
        "async def f(): await x",
        "x = Variable(*[2])",
        "x = Variable(**{'boolean': True})",
        "x = Variable(2)\nsum(*x) <= 1",
        "x = Variable(2)\nx <= {1: 2}",
        "x = Variable(2)\nx <= ...",
        "x = Variable(2)\nx <= 1j",
        "x = Variable(2)\nx <= None",
        "x = Variable(2)\nx[::-1] <= 1",
        "x = Variable(2)\ndel x",
        "x: int = 3",
        "x = y = Variable(2)",
        "try:\n  x\nfinally: x",
        "match x:\n  case 1: x",
    ],
    ids=lambda value: ascii(value)[-40:],
)
def test_hostile_texts_are_refused_at_once(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.perf_counter()
    with pytest.raises(Refused):
        read(text)
    assert time.perf_counter() - began < 2.0
    assert not list(tmp_path.iterdir())


PIECES = [
    *("x", "y", "A", "x[0]", "x[1]", "[1, 2]", "[[1, 2], [3, 4]]", "1", "-0.5", "9999", "True", "'a'", "inf", "cp"),
    *(" + ", " - ", " * ", " / ", " @ ", " <= ", " >= ", " == ", " < ", " ** ", " and ", " = ", "\n", ", ", ".", ":"),
    *("(", ")", "[", "]", "sum(", "norm(", "abs(", "max(", "min(", "Variable(", "axis=0", "boolean=True", "lambda "),
    *("nonneg=True", "bounds=", "integer=True", "x = Variable(2)\n", "y = Variable((2, 2))\n", "for ", "import "),
]


def is_read_or_refused(text: str) -> bool:
    """Any other exception is passed on."""
    try:
        return isinstance(read(text), ol.Polytope)
    except Refused as refusal:
        return bool(str(refusal))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from([one.text for one in READY]), st.integers(0, 99))
def test_whatever_is_typed_is_read_or_refused(pieces, ready, at):
    for text in ("".join(pieces), "x = Variable(2)\n" + "".join(pieces), ready[:at] + "".join(pieces) + ready[at:]):
        assert is_read_or_refused(text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    assert is_read_or_refused(text)


# What is computed


def test_on_a_simplex_points_are_those_of_the_formulas():
    scores = np.array([1.0, 0.6, 0.1])
    found = Scene(SIMPLEX).points(scores, "Entropy", 0.5)
    np.testing.assert_allclose(found.best, [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(found.nearest, [0.7, 0.3, 0.0], atol=1e-8)  # sparsemax: 0.3 less, and 0 below
    np.testing.assert_allclose(found.mean, softmax(scores), atol=1e-9)
    np.testing.assert_allclose(found.regularized, softmax(scores / 0.5), atol=1e-7)
    np.testing.assert_allclose(found.path[0], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.path[-1], softmax(scores / 50.0), atol=1e-6)


def test_on_a_cube_points_are_those_of_the_formulas():
    scores = np.array([0.8, 0.3, -0.4])
    found = Scene(CUBE).points(scores, "Barrier", 1.0)
    np.testing.assert_allclose(found.best, [1, 1, 0], atol=1e-9)
    np.testing.assert_allclose(found.nearest, np.clip(scores, 0, 1), atol=1e-8)
    np.testing.assert_allclose(found.mean, 1 / (1 + np.exp(-scores)), atol=1e-9)
    slope = 1 / found.regularized - 1 / (1 - found.regularized)  # of the barrier -log z - log(1 - z), negated
    np.testing.assert_allclose(scores + slope, 0, atol=1e-6)


def test_vertices_are_those_of_an_enumeration_and_fractions_are_marked():
    by_rows, by_booleans, rankings = (Scene(READY[k].text, READY[k].scores) for k in (2, 3, 4))
    whole = {p for p in itertools.product((0.0, 1.0), repeat=3) if sum(p) <= 1}
    assert rows(by_booleans.solid.points) == whole and not by_booleans.solid.fractional.any()
    assert rows(by_rows.solid.points[~by_rows.solid.fractional]) == whole
    assert rows(by_rows.solid.points[by_rows.solid.fractional]) == {(0.5, 0.5, 0.5)}
    assert rows(rankings.solid.points) == set(itertools.permutations((1.0, 2.0, 3.0)))


@pytest.mark.parametrize(
    ("text", "edges", "hidden"),
    [(CUBE, 12, 3), (SIMPLEX, 3, 0), ("x = Variable(3)\nnorm(x, 1) <= 1", 12, None), (READY[0].text, 5, 0)],
    ids=["cube", "simplex", "octahedron", "square"],
)
def test_edges_are_those_of_the_solid_and_three_of_a_cube_lie_behind(text, edges, hidden):
    solid = Scene(text).solid
    assert len(solid.edges) == edges
    assert len({frozenset(edge.ends) for edge in solid.edges}) == edges
    basis, toward = view(solid.points.shape[1], 32, 20)
    if hidden is not None:
        assert sum(edge.hidden(toward) for edge in solid.edges) == hidden
    if "0 <= x" in text:  # what lies behind meets in the corner that is farthest from the reader
        behind = [set(edge.ends) for edge in solid.edges if edge.hidden(toward)]
        assert set.intersection(*behind) == {int((solid.points @ toward).argmin())}
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(basis @ toward, 0.0, atol=1e-12)


def test_a_curved_set_has_a_boundary_and_no_vertices():
    scene = Scene("x = Variable(2)\nnorm(x) <= 2")
    np.testing.assert_allclose(np.linalg.norm(scene.solid.points, axis=1), 2.0, atol=1e-6)
    around = outline(scene.solid.points)
    area = 0.5 * abs(np.sum(around[:, 0] * np.roll(around[:, 1], -1) - around[:, 1] * np.roll(around[:, 0], -1)))
    assert 0.998 * 4 * np.pi < area < 4 * np.pi
    found = scene.points(np.array([3.0, 4.0]), "Euclidean (SparseMAP)", 1.0)
    np.testing.assert_allclose(found.nearest, [1.2, 1.6], atol=1e-6)
    assert "curved" in found.best and found.mean.startswith("no marginals: the set is curved")


def test_where_there_are_no_marginals_it_says_why():
    scene = Scene("x = Variable(2)\ny = Variable(2, boolean=True)\nx == 0.5 * y")
    assert scene.points(np.array([1.0, -1.0]), "Entropy", 1.0).mean.startswith("no marginals: ")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rule", ["SparseMAP()", "Regularized(Ω)", "StructuredAttention()"])
def test_gradients_are_those_of_differences_where_a_rule_is_a_smooth_map(rule, loss):
    scene, scores, target = Scene(READY[2].text), np.array([0.9, 0.35, 0.2]), np.array([0.13, 0.71, 0.29])

    def at(where: np.ndarray) -> Sent:
        found = sent_back(scene, rule, where, loss, target, **PLAIN)
        assert isinstance(found, Sent)
        return found

    sent, step = at(scores), 1e-5
    slopes = [(at(scores + step * unit).loss - at(scores - step * unit).loss) / (2 * step) for unit in np.eye(3)]
    np.testing.assert_allclose(sent.gradient, slopes, atol=1e-4)
    assert np.abs(sent.gradient).max() > 1e-3
    found = scene.points(scores, PLAIN["regularizer"], PLAIN["temperature"])
    forward = {"SparseMAP()": found.nearest, "Regularized(Ω)": found.regularized}.get(rule, found.mean)
    assert sent.loss == pytest.approx(loss_at(loss, target, forward), abs=1e-7)


def test_a_step_goes_against_the_gradient_and_its_loss_is_that_of_the_new_scores():
    scene, scores, target = Scene(SIMPLEX), np.array([1.0, 0.6, 0.1]), np.array([0.0, 0.0, 1.0])
    for rule in RULES:
        sent = sent_back(scene, rule, scores, SQUARED, target, **PLAIN)
        assert isinstance(sent, Sent), sent
        np.testing.assert_allclose(sent.scores_after, scores - 0.5 * sent.gradient, atol=1e-12)
        again = sent_back(scene, rule, sent.scores_after, SQUARED, target, **PLAIN)
        assert again.loss == pytest.approx(sent.after, abs=1e-9)
    straight = sent_back(scene, "StraightThrough()", scores, SQUARED, target, **PLAIN)
    np.testing.assert_allclose(straight.gradient, 2 * (np.array([1, 0, 0]) - target), atol=1e-12)
    assert (straight.loss, straight.after) == pytest.approx((2.0, 0.0))


def test_a_rule_that_cannot_says_why():
    curved = Scene("x = Variable(2)\nnorm(x) <= 1")
    why = sent_back(curved, "Spigot(1.0)", np.ones(2), SQUARED, np.zeros(2), **PLAIN)
    assert why.startswith("asks for the best vertex")


def all_trees(words: int) -> np.ndarray:
    """Heads of every word such that all come from the root, of which one word alone hangs."""
    found = []
    for heads in itertools.product(range(words + 1), repeat=words):
        reached = {0}
        for _ in range(words):
            reached |= {word for word, head in enumerate(heads, start=1) if head in reached}
        if len(reached) == words + 1 and heads.count(0) == 1:
            tree = np.zeros((words + 1, words + 1))
            tree[list(heads), range(1, words + 1)] = 1.0
            found.append(tree)
    return np.array(found)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_trees_are_those_of_an_enumeration(temperature):
    scores = np.random.default_rng(0).normal(size=(4, 4))
    found, every = trees_of(scores, "arcs may cross", temperature), all_trees(3)
    assert len(every) == 9
    values = (every * scores).sum((1, 2))
    np.testing.assert_array_equal(found.best, every[values.argmax()])
    np.testing.assert_allclose(found.marginals, np.tensordot(softmax(values / temperature), every, 1), atol=1e-9)
    weights = [weight for weight, _ in found.mixture]
    assert sum(weights) == pytest.approx(1.0) and weights == sorted(weights, reverse=True)
    near = sum(weight * tree for weight, tree in found.mixture)
    away = scores / temperature - near  # of a nearest point: no tree lies farther in its direction
    assert ((every - near) * away).sum((1, 2)).max() < 1e-7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [2, 8])
def test_the_shortest_and_the_longest_sentences_have_trees(words, kind):
    found = trees_of(beginning(["word"] * words), kind, 0.5)
    np.testing.assert_allclose(found.marginals[:, 1:].sum(axis=0), 1.0)
    assert found.best.sum() == words and found.best[0].sum() == 1


def test_sentences_that_cannot_be_drawn_are_refused():
    assert words_of("we  see it") == ["we", "see", "it"]
    for sentence, says in {
        "": "0 words, and 2 to 8 are drawn",
        "one": "1 words",
        "a b c d e f g h i": "9 words",
        "we disagreed internationalization": "shorten it",
    }.items():
        with pytest.raises(ValueError, match=says):
            words_of(sentence)
    assert beginning(words_of(EXAMPLE)).shape == (8, 8)


# What visitors do


class Pretended(Trial):
    """A trial that finds what this process finds, without another one."""

    def refusal(self, text):
        try:
            Scene(text)
        except ValueError as error:
            return str(error)
        return None


def test_after_a_declaration_that_fails_the_picture_stays_and_the_next_one_is_drawn():
    tab = PolytopeTab(Pretended())
    before = tab.scene
    for text, says in {
        "x = Variable(2)\nx <= 1\nx >= 2": "the polytope is empty",
        "x = Variable(2)\nx <= 1": "unbounded",
        "x = Variable(2)\nnorm(x) >= 1\n-2 <= x <= 2": "not convex",
        "x = Variable(2)\nimport os": "nothing is imported",
        "x = Variable(2)\nx <= '<script>'": "texts and the like are no numbers",
    }.items():
        tab.text.value = text
        asyncio.run(tab._declare(None))
        assert says in tab.said.object and "still shows the last declaration" in tab.said.object
        assert "<script" not in tab.said.object
        assert tab.scene is before and not tab.draw.disabled
    tab.text.value = CUBE
    asyncio.run(tab._declare(None))
    assert "Drawn" in tab.said.object and len(tab.scene.solid.points) == 8
    assert tab.parts[2].visible and tab.views.visible


def test_numbers_move_the_scores_and_steps_lower_the_loss():
    tab = PolytopeTab(Pretended())
    tab.parts[0].value = -0.25
    np.testing.assert_allclose(tab.scores, [-0.25, 0.9])
    assert list(tab.picture.sources["best"].data["x"]) == [0.0]
    tab.aims[0].value, tab.aims[1].value = 1.0, 0.0
    tab.by.value = "StraightThrough()"
    for _ in range(2):
        tab.step.clicks += 1
    assert len(tab.trail) == 2 and "→ 0.000" in tab.log[-1]
    assert tab.picture.sources["trail"].data["x"][0] == -0.25
    tab.back.clicks += 1
    np.testing.assert_allclose(tab.scores, READY[0].scores)
    assert not tab.trail


def test_all_that_can_be_chosen_is_shown_for_all_that_is_ready():
    tab = PolytopeTab(Pretended())
    tab.rules.value = []
    for one in READY[1:]:
        tab.ready.value = one.name
        for regularizer in REGULARIZERS:
            tab.regularizer.value = regularizer
        tab.step.clicks += 1
        assert tab.text.value == one.text and one.about in tab.about.object
        assert ("cannot step" if tab.scene.solid.curved else "step 1 by Spigot") in tab.log[-1]
    assert "Choose rules" in tab.sent.object
    tab.rules.value = list(RULES)
    assert all(rule in tab.sent.object for rule in RULES) and "asks for the best vertex" in tab.sent.object


def test_a_drag_moves_what_it_begins_at_within_the_page():
    moved: dict[str, np.ndarray] = {}
    picture = Picture(lambda name, point: moved.update({name: point}))
    scene = Scene(CUBE)
    scores, target = np.array([0.8, 0.3, -0.4]), np.array([0.0, 0.0, 1.0])
    picture.show(scene.solid, {"scores": scores, "target": target}, np.zeros((0, 3)), [], [], 32, 20)
    basis, toward = view(3, 32, 20)
    for name, start in (("scores", scores), ("target", target)):
        moved.clear()
        picture._begin(*(basis @ start))
        picture._go(*(basis @ start + [0.3, -0.2]), 0.0)
        assert set(moved) == {name}
        np.testing.assert_allclose(basis @ (moved[name] - start), [0.3, -0.2], atol=1e-12)
        assert toward @ (moved[name] - start) == pytest.approx(0.0)


def test_a_dragged_cell_changes_the_tree():
    tab = SentenceTab()
    tab.grid._begin(5.1, 2.2)  # with, below saw
    tab.grid._go(5.1, 2.2, -60.0)
    assert tab.scores[2, 5] == pytest.approx(beginning(tab.words)[2, 5] - 1.5)
    assert tab.score.value == pytest.approx(tab.scores[2, 5]) and "saw → with" in tab.score.name
    frames = dict(zip(zip(tab.grid.cells.data["y"], tab.grid.cells.data["x"], strict=True),
                      tab.grid.cells.data["width"], strict=True))  # fmt: skip
    assert frames[4, 5] == 3.5
    tab.grid._begin(3.0, 3.0)  # no arc from a word to itself
    tab.grid._go(3.0, 3.0, 40.0)
    tab.sentence.value = "only"
    assert "1 words" in tab.said.object and len(tab.words) == 7
    tab.sentence.value = "we <b>see</b> it"
    assert tab.said.object == "" and tab.scores.shape == (4, 4)
    assert "<b>" not in tab.told.object


# The process that tries declarations, and the start


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process is stopped here to stand for one that hangs")
def test_a_declaration_that_hangs_or_kills_does_no_harm():
    trial = Trial()
    try:
        assert "the polytope is empty" in trial.refusal("x = Variable(2)\nx <= 1\nx >= 2")
        assert trial._line.poll(60.0)  # it is ready for the next text
        os.kill(trial._process.pid, signal.SIGSTOP)
        trial.limit = 0.2
        assert "longer than 0.2 seconds and was given up" in trial.refusal(CUBE)
        trial.limit = 20.0
        assert trial.refusal(CUBE) is None
        assert trial._line.poll(60.0)  # it is ready for the next text
        os.kill(trial._process.pid, signal.SIGSTOP)
        threading.Timer(0.5, trial._process.kill).start()
        assert "ended the process that tried it" in trial.refusal(SIMPLEX)
        assert trial._process.is_alive()  # another one
    finally:
        trial.close()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_port_that_is_taken_is_named(when, capsys, monkeypatch):
    if when == "meanwhile":  # by a program that was not there when it was asked for
        monkeypatch.setattr(serve, "_free", lambda port: port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "--no-browser"]) == 2
    said = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1" in said and f"--port {port + 1}" in said


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "panel", None)
    assert main(["--no-browser"]) == 2
    assert "pip install 'optlayers[playground]'" in capsys.readouterr().err


def test_a_port_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--port", "70000"])
    assert ended.value.code == 2 and "from 0 (a free one) to 65535, but got 70000" in capsys.readouterr().err


def test_what_is_read_has_the_names_that_were_typed():
    with pytest.raises(ol.DeclarationError, match=r"x <= 1.0"):
        ol.compile_polytope(read("x = Variable(2)\nx <= 1\nx >= 2"))
    assert isinstance(read(CUBE).variable, cp.Variable) and torch.get_default_dtype() == torch.float32
