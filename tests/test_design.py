"""docs/design.md lists the files that there are, and imports keep the order that it states."""

import re
from pathlib import Path

import pytest
from test_imports import ROOT, imports, modules

PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
GATHER = {"optlayers", "optlayers.batch", "optlayers.bound", "optlayers.compilation", "polytopes"}
"""What only gathers names from below: nothing in optlayers imports it."""


def block(heading: str) -> list[str]:
    """The lines of the code block below a heading."""
    found = re.search(rf"^## {heading}\n.*?^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"the page has no listing under {heading!r}"
    return found[1].splitlines()


def listed_files() -> list[str]:
    """The files of the listing, by their paths: a folder ends in / and holds what is indented below it."""
    files, folders = [], []
    for line in block("The rooms"):
        depth, names = (len(line) - len(line.lstrip())) // 2, line.strip().partition("  ")[0].split()
        folders = folders[:depth]
        if names[0].endswith("/"):
            folders.append(names[0])
        else:
            files += ["".join(folders) + name for name in names]
    return files


def order() -> dict[str, int]:
    """The line of every module: the whole folder's where the page names a folder."""
    lines = {}
    for text in block("The order of the imports"):
        number, *names = text.split()
        for name in names:
            path = name if name.startswith("polytopes/") else f"optlayers/{name}"
            lines[path.removesuffix("/").removesuffix(".py").replace("/", ".")] = int(number)
    return lines


def place(module: str, lines: dict[str, int]) -> tuple[str, int]:
    """The name by which the page knows a module, and its line: the most exact name there is."""
    name = module
    while name not in lines:
        name, dot, _ = name.rpartition(".")
        assert dot, f"docs/design.md gives {module} no place in the order of the imports"
    return name, lines[name]


def test_the_listing_names_exactly_the_files_that_there_are():
    listed = listed_files()
    assert len(listed) == len(set(listed)), "a file is listed twice"
    there = {path.relative_to(ROOT).as_posix() for path in modules().values()}
    assert not there - set(listed), f"list them under The rooms of docs/design.md: {sorted(there - set(listed))}"
    assert not set(listed) - there, f"docs/design.md lists what is not there: {sorted(set(listed) - there)}"


def test_imports_keep_the_order_of_the_page():
    lines, known = order(), modules()
    wrong = []
    for module, path in known.items():
        if module in GATHER - {"polytopes"}:
            continue
        name, line = place(module, lines)
        for other in imports(path, known) - {module}:
            if other in GATHER:
                assert module.startswith("polytopes"), f"{module} imports {other}"
                continue
            below, other_line = place(other, lines)
            if below != name and other_line >= line:
                wrong.append(f"{module} (line {line}) imports {other} (line {other_line})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(order()))
def test_the_order_names_what_there_is(name):
    path = ROOT.joinpath(*name.split("."))
    assert path.is_dir() or Path(f"{path}.py").is_file()
