"""The site: every public name has its page in the reference, every page is reached, and the README is one screen."""

import re
from pathlib import Path

import pytest

import optlayers
import polytopes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGES = {module.__name__: module for module in (optlayers, optlayers.plots, optlayers.testing, polytopes)}
MODULES = {"optlayers.plots", "optlayers.testing"}
"""Public names of optlayers that are modules, with a group of their own."""


def named(page: str) -> list[str]:
    """The names of a page's autosummary, by their full path."""
    module = re.search(r"^\.\. currentmodule:: (\S+)$", page, re.MULTILINE)
    listing = re.search(r"^\.\. autosummary::\n(?:   :.*\n)+\n((?:   \S+\n)+)", page, re.MULTILINE)
    assert module and listing, "a page of the reference has a currentmodule and an autosummary"
    return [f"{module[1]}.{name}" for name in listing[1].split()]


def test_every_public_name_has_one_page_in_the_reference():
    listed = [
        name
        for path in (DOCS / "api").glob("*.rst")
        if path.stem != "index"
        for name in named(path.read_text(encoding="utf-8"))
    ]
    public = {f"{package}.{name}" for package, module in PACKAGES.items() for name in module.__all__} - MODULES
    assert len(listed) == len(set(listed)), "a name is listed twice in docs/api/*.rst"
    assert not public - set(listed), f"list them in docs/api/*.rst: {sorted(public - set(listed))}"
    assert not set(listed) - public, f"docs/api/*.rst lists what is not public: {sorted(set(listed) - public)}"


def test_the_index_of_the_reference_names_every_group():
    index = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    groups = {path.stem for path in (DOCS / "api").glob("*.rst")} - {"index"}
    assert groups == set(re.findall(r"^   (\w+)$", index, re.MULTILINE))


def test_the_front_page_reaches_every_page():
    front = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = "\n".join(re.findall(r"^```\{toctree\}\n(.*?)^```", front, re.MULTILINE | re.DOTALL))
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert {line for line in trees.splitlines() if re.fullmatch(r"[\w-]+", line)} == pages


def test_the_readme_fits_a_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_a_page_of_the_checkout_links_to_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (ROOT / link).exists()] == []


def test_pictures_of_pages_are_there_and_all_of_them_are_shown():
    shown = set()
    for path in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            picture = (path.parent / link).resolve()
            assert picture.is_file(), f"{path.name} shows {link}, which is not there"
            shown.add(picture)
    assert {path.resolve() for path in DOCS.glob("*.png")} == shown
