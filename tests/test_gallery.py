"""Every program of the gallery runs as it is, without a warning of ours, and leaves pictures."""

import ast
import itertools
import runpy
import warnings
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "examples" / "gallery"
OURS = (ROOT / "optlayers", ROOT / "polytopes", GALLERY)
TOPICS = [
    "alignment",
    "assignment_capacity",
    "dependency_trees",
    "fractional_vertex",
    "portfolio",
    "ranking",
    "rationales",
    "rna",
    "shortest_path",
    "sinkhorn",
    "tagging",
    "tour",
]


@pytest.fixture
def pyplot():
    """Matplotlib without a screen and without figures of others, before and after."""
    before = matplotlib.get_backend()
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    plt.close("all")
    yield plt
    plt.close("all")
    plt.switch_backend(before)


def test_there_is_one_program_for_each_topic():
    assert sorted(path.name for path in GALLERY.glob("*.py")) == [f"plot_{topic}.py" for topic in TOPICS]
    assert (GALLERY / "README.rst").read_text(encoding="utf-8").splitlines()[1] == "======="


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_has_a_title_and_fits(topic):
    text = (GALLERY / f"plot_{topic}.py").read_text(encoding="utf-8")
    title, line, *_ = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert title and line == "=" * len(title)
    assert "# %%\n" in text and "assert" in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    for above, below in itertools.pairwise(lines):
        if set(below) == {"#", " ", "-"}:
            assert len(above) == len(below), f"the line under {above!r} is of another length"


@pytest.mark.parametrize("topic", TOPICS)
def test_a_program_runs_and_draws(topic, pyplot, capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runpy.run_path(str(GALLERY / f"plot_{topic}.py"), run_name="__main__")
    ours = [w for w in caught if any(folder in Path(w.filename).parents for folder in OURS)]
    assert not ours, [str(w.message) for w in ours]
    assert pyplot.get_fignums()
    for number in pyplot.get_fignums():
        pyplot.figure(number).canvas.draw()
    assert 0 < len(capsys.readouterr().out.splitlines()) <= 6
