"""The playground as a visitor meets it: in Chromium, without WebGL, and without any other machine."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("panel", reason="the playground needs Panel: pip install 'optlayers[playground]'")
api = pytest.importorskip("playwright.sync_api", reason="a browser is led by playwright: pip install playwright")

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine to open the page in")
QUIET = "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update"
PLAIN = "--disable-sync --disable-gpu --disable-webgl --disable-webgl2 --disable-3d-apis"
MODEL = "const model = Bokeh.documents[0].get_model_by_name(name);"
COLUMNS = f"""(name) => {{ {MODEL}
    return Object.fromEntries(Object.entries(model.data).map(([key, column]) => [key, Array.from(column)])) }}"""
PLACE = f"""([name, x, y]) => {{ {MODEL}
    const view = Bokeh.index.find_one(model), box = view.el.getBoundingClientRect();
    return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)] }}"""
INTO_VIEW = f"(name) => {{ {MODEL} Bokeh.index.find_one(model).el.scrollIntoView({{block: 'center'}}) }}"


@pytest.fixture(scope="module")
def port():
    """A playground that runs, started by its folder as ``make playground`` does."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        free = asked.getsockname()[1]
    command = [sys.executable, "examples/playground", "--no-browser", "--port", str(free)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert f"http://127.0.0.1:{free}/" in server.stdout.readline()
        for _ in range(300):  # it says so a moment before it listens
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", free), timeout=5):
                break
            time.sleep(0.1)
        yield free
        server.terminate()


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as led:
        opened = led.chromium.launch(executable_path=CHROMIUM, args=[*QUIET.split(), *PLAIN.split()])
        yield opened
        opened.close()


class Visitor:
    """A page, what went wrong on it, and whom it asked."""

    def __init__(self, browser, port: int, width: int, height: int, **options) -> None:
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        for event in ("request", "websocket"):
            self.page.on(event, lambda asked: self.hosts.add(asked.url.split("/")[2]))
        self.page.on("requestfailed", lambda asked: self.errors.append(f"failed: {asked.url}"))
        self.page.goto(f"http://127.0.0.1:{port}/")
        self.page.get_by_text("worked out in").first.wait_for(timeout=60_000)
        self.port = port

    def columns(self, name: str) -> dict[str, list]:
        return self.page.evaluate(COLUMNS, name)

    def at(self, name: str) -> list[float]:
        found = self.columns(name)
        return [found["x"][0], found["y"][0]]

    def place(self, plot: str, x: float, y: float) -> list[float]:
        return self.page.evaluate(PLACE, [plot, x, y])

    def drag(self, plot: str, start: list[float], end: list[float], *, after: float = 0.0) -> None:
        """By the mouse, from one point of a plot to another, moved ``after`` so many seconds of holding."""
        self.page.evaluate(INTO_VIEW, plot)
        begin, goal = np.array(self.place(plot, *start)), np.array(self.place(plot, *end))
        self.page.mouse.move(*begin)
        self.page.mouse.down()
        time.sleep(after)
        for share in np.linspace(0.1, 1.0, 10):
            self.page.mouse.move(*(begin + share * (goal - begin)))
        self.page.mouse.up()

    def until(self, holds, what: str) -> None:
        """Wait until something holds, ten seconds at most."""
        for _ in range(200):
            if holds():
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"after ten seconds: not {what}")

    def comes_to(self, name: str, point: list[float]) -> None:
        self.until(lambda: np.abs(np.subtract(self.at(name), point)).max() < 0.02, f"{name} at {point}")

    def declare(self, text: str) -> None:
        self.page.locator("textarea").fill(text)
        self.page.get_by_role("button", name="Draw this declaration").click()

    def leaves_well(self) -> None:
        assert not self.errors
        assert self.hosts == {f"127.0.0.1:{self.port}"}


def test_a_polytope_is_dragged_typed_and_stepped(browser, port):
    visitor = Visitor(browser, port, 1280, 800)
    page = visitor.page
    assert page.evaluate("document.createElement('canvas').getContext('webgl')") is None
    assert visitor.at("best") == [1.0, 0.5]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280

    visitor.drag("polytope", visitor.at("scores"), [0.2, 1.4])
    visitor.until(lambda: visitor.at("best") == [0.5, 1.0], "another best vertex")
    visitor.comes_to("scores", [0.2, 1.4])
    visitor.comes_to("nearest", [0.2, 1.0])
    visitor.drag("polytope", visitor.at("scores"), [-0.3, 1.2], after=0.6)  # for Bokeh a press, and no drag
    visitor.until(lambda: visitor.at("best") == [0.0, 1.0], "another best vertex after a slow press")
    visitor.comes_to("scores", [-0.3, 1.2])
    visitor.drag("polytope", visitor.at("target"), [1.0, 0.25])
    visitor.comes_to("target", [1.0, 0.25])
    before = visitor.at("scores")
    page.get_by_role("button", name="Step", exact=True).click()
    page.get_by_text("step 1 by Spigot(1.0): loss").wait_for()
    assert visitor.at("scores") != before and visitor.at("trail") == before

    visitor.declare("x = Variable(2)\nx <= 1\nimport os")
    page.get_by_text("line 3: import os: nothing is imported").wait_for()
    visitor.declare("x = Variable(2)\nx <= 1\nx >= 2")
    page.get_by_text("the polytope is empty").wait_for(timeout=60_000)  # the process that tries it starts meanwhile
    assert len(visitor.columns("corners")["x"]) == 5
    visitor.declare("x = Variable(3)\nnorm(x, 1) <= 1")
    page.get_by_text("Drawn.").wait_for()
    visitor.until(lambda: len(visitor.columns("corners")["x"]) == 6, "an octahedron")
    assert len(visitor.columns("front")["x0"]) + len(visitor.columns("behind")["x0"]) == 12
    best = visitor.at("best")
    visitor.drag("polytope", visitor.at("scores"), [1.2, 0.1])
    visitor.until(lambda: visitor.at("best") != best, "another best vertex in three dimensions")
    page.get_by_label("Ready declarations").select_option("A disc with a flat side")
    page.get_by_text("no best vertex: the set is curved").wait_for()
    visitor.leaves_well()


def test_arcs_are_dragged(browser, port):
    visitor = Visitor(browser, port, 1280, 800)
    visitor.page.get_by_text("Sentence", exact=True).first.click()
    visitor.page.get_by_text("lies nearest to scores").wait_for()

    visitor.page.wait_for_timeout(300)
    before = visitor.columns("best tree arcs")["xs"]
    visitor.drag("grid", [5.0, 4.0], [5.0, 2.0])  # with, from man: up
    visitor.until(lambda: visitor.columns("best tree arcs")["xs"] != before, "another tree")
    visitor.until(lambda: visitor.columns("mixture titles")["text"] == ["weight 1.00"], "a mixture of one tree")
    visitor.drag("grid", [5.0, 4.0], [5.0, 7.0])
    visitor.until(lambda: visitor.columns("best tree arcs")["xs"] == before, "the first tree")
    visitor.page.get_by_label("Sentence").last.fill("dogs bark")
    visitor.page.keyboard.press("Enter")
    visitor.until(lambda: len(visitor.columns("cells")["x"]) == 4, "a grid of two words")
    visitor.page.get_by_label("Sentence").last.fill("dogs")
    visitor.page.keyboard.press("Enter")
    visitor.page.get_by_text("the sentence has 1 words").wait_for()
    assert len(visitor.columns("cells")["x"]) == 4, "a sentence that is refused leaves the last one"
    visitor.leaves_well()


def test_a_telephone_shows_it_and_is_dragged_by_a_finger(browser, port):
    visitor = Visitor(browser, port, 420, 900, has_touch=True, is_mobile=True)
    page = visitor.page
    assert page.evaluate("[window.innerWidth, document.documentElement.scrollWidth]") == [420, 420]
    page.evaluate(INTO_VIEW, "polytope")
    page.wait_for_timeout(300)
    start = np.array(visitor.place("polytope", *visitor.at("scores")))
    goal = np.array(visitor.place("polytope", 0.3, 1.3))
    scrolled = page.evaluate("window.scrollY")
    finger = page.context.new_cdp_session(page)
    finger.send(
        "Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [dict(zip("xy", start, strict=True))]}
    )
    for share in np.linspace(0.1, 1.0, 10):
        point = dict(zip("xy", start + share * (goal - start), strict=True))
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    visitor.until(lambda: visitor.at("best") == [0.5, 1.0], "another best vertex")
    visitor.comes_to("scores", [0.3, 1.3])
    assert page.evaluate("window.scrollY") == scrolled
    page.get_by_text("Sentence", exact=True).first.click()
    page.get_by_text("lies nearest to scores").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 420
    visitor.leaves_well()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of this machine")
def test_no_other_address_of_the_machine_answers(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
