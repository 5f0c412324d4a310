"""Every Python block of the README and of the docs runs, in order, and prints what the page says that it prints."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import re
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:^<!-- needs: ([\w, ]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block may say in a comment which packages it needs that the tests do not bring; it is left out without them."""


class Block(NamedTuple):
    """A Python block: its line, its code, the text block right below it, which is its output, and what it needs."""

    line: int
    code: str
    output: str | None = None
    needs: tuple[str, ...] = ()


def blocks(page: str) -> list[Block]:
    """The Python blocks of a page."""
    found = list(BLOCK.finditer(page))
    result = []
    for block, after in itertools.zip_longest(found, found[1:]):
        if block[2] == "python":
            told = after is not None and after[2] == "text" and not page[block.end() : after.start()].strip()
            needs = tuple(name.strip() for name in block[1].split(",")) if block[1] else ()
            line = page[: block.start(3)].count("\n")
            result.append(Block(line, block[3], after[3] if told and after is not None else None, needs))
    return result


def pages() -> list[Path]:
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in candidates if blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.filterwarnings("ignore:.*does not define `arg_constraints`:UserWarning")  # of torch-struct
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program_of_page = types.ModuleType("__main__")  # classes of a page can be pickled, as those of a script can
    monkeypatch.setitem(sys.modules, "__main__", program_of_page)
    for line, code, expected, needs in blocks(page.read_text(encoding="utf-8")):
        if any(importlib.util.find_spec(name) is None for name in needs):
            continue
        # Line breaks in front, so that a traceback points into the page.
        program = compile("\n" * line + code, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(program, program_of_page.__dict__)
        if expected is not None:
            assert printed.getvalue() == expected, f"{page.name}:{line + 1} prints something else"


def test_the_readme_has_examples():
    assert ROOT / "README.md" in pages()


def test_blocks_know_their_output():
    assert blocks("no block at all") == []
    page = "a\n```python\nprint(1)\n```\n```text\n1\n```\n\n```python\nx = 2\n```\nwords\n```text\nno output\n```\n"
    assert blocks(page) == [Block(2, "print(1)\n", "1\n"), Block(9, "x = 2\n")]
    assert blocks("b\n<!-- needs: one, two -->\n```python\nx\n```\n") == [Block(3, "x\n", None, ("one", "two"))]
