"""Bars: on a terminal by rich, in a notebook as a part of the page, and none where nobody sees one."""

import io
import sys
from types import SimpleNamespace

import pytest

import optlayers as ol
from optlayers.common.progress import bar
from optlayers.reporting import clock
from polytopes import simplex


class Terminal(io.StringIO):
    """Standard error that somebody looks at."""

    def isatty(self):
        return True


class Notebook:
    """What IPython is in a kernel: pages are kept by their number, and may be replaced."""

    def __init__(self):
        self.pages = []
        self.shell = SimpleNamespace(kernel=object())

    def get_ipython(self):
        return self.shell

    def display(self, page, display_id):
        assert display_id is True
        self.pages.append(page)
        return SimpleNamespace(update=self.pages.append)


@pytest.fixture
def notebook(monkeypatch):
    found = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=found.get_ipython))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=found.display, HTML=str))
    return found


@pytest.fixture(autouse=True)
def aloud(monkeypatch):
    monkeypatch.delenv("OPTLAYERS_QUIET", raising=False)


def test_a_terminal_shows_what_is_done_and_nothing_stays(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    shown = bar(4, "begun")
    shown.show(2, "halves")
    shown._bar.refresh()
    assert "halves" in terminal.getvalue() and "50%" in terminal.getvalue()
    shown.close()
    assert terminal.getvalue().endswith("\x1b[2K")


def test_nobody_sees_a_bar_in_a_file_or_without_rich(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bar(4, "begun") is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("OPTLAYERS_QUIET", "1")
    assert bar(4, "begun") is None
    monkeypatch.setenv("OPTLAYERS_QUIET", "0")
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert bar(4, "begun") is None and bar(4, "begun", asked=True) is None


def test_a_notebook_shows_a_bar_in_its_page(notebook, monkeypatch, capsys):
    monkeypatch.setattr(clock, "PATIENCE", 0.0)
    ol.report(simplex(3), effort="quick")
    assert len(notebook.pages) == 10 and notebook.pages[-1] == "<span></span>"
    assert notebook.pages[1].startswith('<progress value="0" max="8"></progress> ')
    assert capsys.readouterr() == ("", "")


def test_text_beside_the_bar_of_a_page_is_escaped(notebook):
    bar(2, "<script>").show(1, "a < b")
    assert notebook.pages[0].endswith("&lt;script&gt;") and notebook.pages[1].endswith("a &lt; b")


def test_a_shell_in_a_terminal_is_no_notebook(notebook, monkeypatch):
    notebook.shell = SimpleNamespace()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bar(4, "begun") is None and not notebook.pages
