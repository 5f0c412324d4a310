"""What only an option needs may be missing: who takes the option is told what to install, before any work is done."""

import sys

import cvxpy as cp
import pytest
import torch

import optlayers as ol
from optlayers.common.extras import needed
from polytopes import simplex

SCORES = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)


@pytest.fixture
def without(monkeypatch):
    """Packages as if they were not installed."""

    def hide(*names: str) -> None:
        for module in [module for module in sys.modules if module.partition(".")[0] in names]:
            monkeypatch.delitem(sys.modules, module)
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


def exponential() -> ol.Polytope:
    """A set that needs exponential cones."""
    x = cp.Variable(3)
    return ol.Polytope(x, [cp.sum(cp.exp(x)) <= 3, x >= -2])


INSTALL = r"cvxpylayers, which is not installed: pip install 'optlayers\[cvxpylayers\]'"


@pytest.mark.parametrize(
    "build",
    [
        lambda: ol.compile_polytope(exponential()),
        lambda: ol.OptLayer(exponential(), ol.SparseMAP()),
        lambda: ol.compile_polytope(simplex(3), projector=ol.CvxpyLayers()),
    ],
    ids=["compiled", "layer", "by name"],
)
def test_sets_that_need_cvxpylayers_say_so_when_they_are_compiled(without, build):
    without("cvxpylayers", "diffcp")
    with pytest.raises(ImportError, match=rf"^CvxpyLayers\(.*\) takes derivatives from {INSTALL}$"):
        build()


def test_what_cvxpylayers_itself_needs_is_missed_as_early(without):
    without("diffcp")
    with pytest.raises(ImportError, match=r"^cvxpylayers solves with diffcp, which is not installed: pip install"):
        ol.compile_polytope(exponential())


def test_regularizers_that_need_cvxpylayers_say_why(without):
    without("cvxpylayers")
    x = cp.Variable(3, nonneg=True)
    polytope = ol.Polytope(x, [cp.sum(x) == 1])
    with pytest.raises(ImportError, match=rf"log_sum_exp\(.*; derivatives then come from {INSTALL}$"):
        ol.OptLayer(polytope, ol.Regularized(cp.log_sum_exp(x)))


def test_a_package_that_another_one_needs_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_another.py").write_text("import no_such_package.inside")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ImportError, match=r"^It draws with needs_another, for which no_such_package is not installed: pip"
    ):
        needed("needs_another", "plots", "It draws with needs_another")


def test_everything_else_works_without_the_options(without):
    without("cvxpylayers", "diffcp", "matplotlib", "rich", "sklearn", "ray")
    scores = SCORES.clone().requires_grad_()
    ol.OptLayer(simplex(3), ol.SparseMAP())(scores).square().sum().backward()
    x = cp.Variable(3)
    ball = ol.OptLayer(ol.Polytope(x, [cp.norm(x) <= 1]), ol.SparseMAP())
    ball(scores).sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert ol.report(simplex(3), effort="quick").integral


def test_pictures_say_what_to_install(without):
    found = ol.audit([ol.Spigot()], simplex(3), lambda z: z.square().sum(-1), SCORES.expand(8, 3))
    without("matplotlib")
    for draw in (lambda: ol.plots.bars([1.0]), found.plot):
        with pytest.raises(ImportError, match=r"which is not installed: pip install 'optlayers\[plots\]'"):
            draw()


def test_an_error_within_a_package_that_is_there_is_no_missing_one(tmp_path, monkeypatch):
    (tmp_path / "half_a_package.py").write_text("raise ImportError('its library is of another version')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"^its library is of another version$"):
        needed("half_a_package", "plots", "The page is drawn with half_a_package")
