"""Every Python block of the README and of the docs runs, in order, and prints what the page says that it prints."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[int, str, str | None]]:
    """Of every Python block its line, its code, and the text block right below it, which is its output."""
    found = list(BLOCK.finditer(page))
    result = []
    for block, after in itertools.zip_longest(found, found[1:]):
        if block[1] == "python":
            told = after is not None and after[1] == "text" and not page[block.end() : after.start()].strip()
            line = page[: block.start(2)].count("\n")
            result.append((line, block[2], after[2] if told and after is not None else None))
    return result


def pages() -> list[Path]:
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    return [page for page in candidates if blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code, expected in blocks(page.read_text(encoding="utf-8")):
        # Line breaks in front, so that a traceback points into the page.
        program = compile("\n" * line + code, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(program, namespace)
        if expected is not None:
            assert printed.getvalue() == expected, f"{page.name}:{line + 1} prints something else"


def test_the_readme_has_examples():
    assert ROOT / "README.md" in pages()


def test_blocks_know_their_output():
    assert blocks("no block at all") == []
    page = "a\n```python\nprint(1)\n```\n```text\n1\n```\n\n```python\nx = 2\n```\nwords\n```text\nno output\n```\n"
    assert blocks(page) == [(2, "print(1)\n", "1\n"), (9, "x = 2\n", None)]
