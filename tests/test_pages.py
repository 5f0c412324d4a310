"""What a notebook shows of the central objects: well-formed, escaped, quick, and never an exception."""

from functools import partial
from html.parser import HTMLParser

import cvxpy as cp
import pytest
import torch
from catalogue import CATALOGUE

import optlayers as ol
from optlayers.common import pages
from polytopes import arborescence, linear_chain, simplex, tour

HOSTILE = '<script>alert("1")</script> & "Größe" \'x\' ≤ 日本 \ud800'
EMPTY = {"br", "img", "hr"}


class Page(HTMLParser):
    """The text of a page and its tags, which must be closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.seen, self.text, self.cells = [], set(), [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        assert {name for name, _ in attributes} <= {"style", "alt", "src"}
        if tag not in EMPTY:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def page_of(thing) -> Page:
    made = thing._repr_html_()
    assert made is not None
    made.encode("utf-8")
    found = Page(made)
    assert not found.seen & {"script", "style", "b"}
    return found


def fact(page: Page, name: str) -> str:
    """What stands beside a name."""
    return page.cells[page.cells.index(name) + 1]


def review() -> ol.Polytope:
    x, load = cp.Variable((3, 2), name="x"), cp.Parameter(2, name="load", nonneg=True)
    least = (cp.sum(x, axis=1) == 1).set_label(HOSTILE)
    return ol.Polytope(x, [x >= 0, least, cp.sum(x, axis=0) <= load])


def answers(count: int, *, empty: int = 0) -> ol.Solution:
    loads = torch.full((count, 2), 2.0)
    loads[:empty] = 1.0
    return ol.compile_polytope(review()).project(torch.zeros(count, 3, 2), load=loads)


def test_a_polytope_shows_its_declaration():
    page = page_of(review())
    assert fact(page, "parameters") == "load (2,)" and fact(page, "scored variable") == "x (3, 2)"
    lines = "".join(page.text)
    assert "3 constraints:" in lines and HOSTILE.replace("\ud800", "?") in lines and "Sum(x, 0, False) <= load" in lines
    chain = page_of(linear_chain(3, 2))
    assert (
        fact(chain, "scored besides") == "transition (3, 2, 2)" and fact(chain, "vertices") == "integral, as declared"
    )
    x, flow = cp.Variable(2, boolean=True, name="x"), cp.Variable(name="flow")
    integers = page_of(ol.Polytope(x, [cp.sum(x) == flow, flow <= 1]))
    assert fact(integers, "auxiliary variables") == "flow" and fact(integers, "integer variables") == "x (2,)"


def test_constraints_are_not_built_for_a_page():
    def build():
        raise AssertionError("nobody asked for the constraints")

    assert "are built by build when they are first asked for" in "".join(
        page_of(ol.Polytope(cp.Variable(2), build)).text
    )


def test_many_constraints_are_counted():
    x = cp.Variable(40, nonneg=True)
    page = page_of(ol.Polytope(x, [x[k] <= 1 for k in range(40)]))
    assert page.text[-1] == "and 28 more"


@pytest.mark.parametrize("entry", CATALOGUE, ids=str)
def test_pages_of_the_catalogue(entry):
    assert page_of(entry.polytope).text[0].startswith("Polytope")
    assert fact(page_of(ol.compile_polytope(entry.polytope)), "projections")


def test_a_compiled_polytope_shows_what_explain_says(monkeypatch):
    x = cp.Variable(3)
    for polytope in (review(), arborescence(3), tour(4), ol.Polytope(x, [cp.norm(x) <= 1])):
        compiled = ol.compile_polytope(polytope)
        text = compiled.explain()
        with monkeypatch.context() as patch:
            patch.setattr("optlayers.compilation.explain.beyond_oracle", None)  # a page asks no solver
            page = page_of(compiled)
        assert fact(page, "projections") in text and fact(page, "derivative of projections") in text
        if fact(page, "best vertices") != "none, since it is not polyhedral":
            assert fact(page, "best vertices") in text and fact(page, "rows").partition(";")[0] in text


def test_a_solution_shows_its_verdicts_and_what_failed():
    page = page_of(answers(30, empty=28))
    assert page.text[0] == "Solution of 30 instances"
    assert fact(page, "OPTIMAL") == "2" and fact(page, "INFEASIBLE") == "28"
    assert fact(page, "worst gap").endswith("of instances with an answer")
    assert fact(page, "what to try") == "0" and "cannot hold together" in fact(
        page, page.cells[page.cells.index("0") + 3]
    )
    assert page.text[-1].startswith("And 23 more, 5, 6, ") and page.text[-1].count(",") == 21
    assert "what to try" not in page_of(answers(3)).cells


def test_solutions_of_all_shapes_have_a_page():
    assert page_of(answers(0)).text[0] == "Solution of 0 instances"
    compiled = ol.compile_polytope(simplex(3))
    assert page_of(compiled.maximize(torch.zeros(3))).text[0] == "Solution of 1 instance"
    assert page_of(compiled.maximize(torch.zeros(2, 4, 3))).text[0] == "Solution of 8 instances in a batch (2, 4)"
    assert fact(page_of(compiled.maximize(torch.zeros(2, 3))), "worst gap") == "not known"
    assert page_of(ol.compile_polytope(simplex(3)).project(torch.zeros(2, 3, requires_grad=True)))
    by_size = ol.OptLayer(ol.Family(simplex), ol.SparseMAP()).solve(torch.zeros(2, 3), sizes=[3, 0])
    assert page_of(by_size).text[0] == "Solution of 2 instances"
    elastic = ol.Elastic(ol.OptLayer(review(), ol.SparseMAP())).solve(torch.zeros(2, 3, 2), load=torch.ones(2, 2))
    assert fact(page_of(elastic), "worst violation")


def test_a_page_of_a_huge_batch_is_short():
    status = torch.zeros(1_000_000, dtype=torch.int8)
    status[7:] = 5
    number = torch.zeros(1_000_000, dtype=torch.float64)
    page = page_of(ol.Solution(torch.zeros(1_000_000, 2), status, number, number))
    assert fact(page, "FAILED") == "999,993" and sum(map(len, page.text)) < 3000


@pytest.mark.parametrize("family", [False, True])
def test_a_layer_shows_its_rule_and_keeps_its_repr(family):
    rule = ol.Spigot(step_size=ol.AdaptiveStep(), clip_norm=2.0)
    layer = ol.OptLayer(ol.Family(arborescence) if family else review(), rule, on_failure="nan")
    before = repr(layer)
    page = page_of(layer)
    assert page.text[0] == "OptLayer with Spigot" and fact(page, "clip_norm") == "2.0"
    assert fact(page, "step_size").startswith("AdaptiveStep(") and fact(page, "step_size, now") == "1.0"
    assert fact(page, "on_failure") == "'nan'"
    assert fact(page, "projections by") == ("what is chosen for each size" if family else "Auto(tolerance=1e-08)")
    assert repr(layer) == before == repr(torch.nn.Sequential(layer)[0])


def test_code_of_a_user_that_fails_does_not_stop_a_page():
    class Unspeakable:
        def __repr__(self):
            raise RuntimeError("no words")

    assert pages.told(Unspeakable()) == "(Unspeakable, whose repr raises RuntimeError)"
    layer = ol.OptLayer(simplex(3), ol.Hard(ol.SparseMAP()))
    object.__setattr__(layer.rule, "rule", Unspeakable())
    assert fact(page_of(layer), "rule") == "(Unspeakable, whose repr raises RuntimeError)"

    class Broken:
        @pages.page
        def _repr_html_(self):
            yield pages.sentence("so far")
            raise RuntimeError("and no further")

    assert page_of(Broken()).text == ["no page can be made of this Broken: RuntimeError: and no further; print() it"]


def test_long_texts_are_cut():
    assert len(pages.shown("&" * 9000)) == len("&amp;") * 499 + 1


def test_partial_oracles_have_names():
    def oracle(scores, size):
        return scores

    x = cp.Variable(2, nonneg=True)
    assert fact(page_of(ol.Polytope(x, [x <= 1], oracle=partial(oracle, size=2))), "best structures by") == "oracle"
