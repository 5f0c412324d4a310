"""The pictures of docs/plots.md: polytopes, what rules send back, structures, and points under regularizers.

python examples/plots_gallery.py --output docs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optlayers as ol
import polytopes
from optlayers import plots

SENTENCE = ["the", "old", "man", "the", "boats"]


def scores(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """The same ones every time."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relaxed_stable_sets() -> ol.Polytope:
    """Of three nodes, each next to the others, one at most: the relaxation by edges has a fractional vertex."""
    x = cp.Variable(3, nonneg=True)
    return ol.Polytope(x, [x[0] + x[1] <= 1, x[1] + x[2] <= 1, x[0] + x[2] <= 1])


def draw_polytopes() -> Figure:
    """A relaxation with a fractional vertex, all rankings of four with a soft one, and a shadow."""
    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.2)  # for the names of the first vertical axis
    first, second = (figure.add_subplot(1, 3, k, projection="3d") for k in (1, 2))
    plots.polytope(relaxed_stable_sets(), ax=first)
    first.view_init(elev=18, azim=35)
    ranking = ol.compile_polytope(polytopes.permutahedron(4))
    soft = {"soft ranks": ranking.project(torch.tensor([1.0, 2.2, 2.4, 4.0], dtype=torch.float64))}
    plots.polytope(ranking, points=soft, ax=second)
    matching, asked = ol.compile_polytope(polytopes.matching(4)), scores(4, 4, seed=1, scale=1.5)
    points = {"best vertex": matching.maximize(asked), "projection": matching.project(asked)}
    plots.polytope(matching, points=points, ax=figure.add_subplot(1, 3, 3))
    return figure


def polygon() -> ol.Polytope:
    """The unit square without a corner."""
    x = cp.Variable(2, nonneg=True)
    return ol.Polytope(x, [x <= 1, cp.sum(x) <= 1.5])


def draw_fields() -> Figure:
    """Six rules over a polygon, for the distance to a point outside."""
    target = torch.tensor([0.4, 1.2], dtype=torch.float64)
    rules = [
        ol.StraightThrough(),
        ol.Spigot(step_size=0.3),
        ol.SparseMAP(),
        ol.Interpolation(strength=1.0),
        ol.Hard(ol.StructuredAttention()),
        ol.PerturbedAdditive(samples=100),
    ]
    figure = Figure(figsize=(12.5, 7.4), layout="constrained")
    for rule, ax in zip(rules, figure.subplots(2, 3).flat, strict=True):
        plots.rule_field(rule, polygon(), lambda z: (z - target).square().sum(-1), ax=ax)
    return figure


def draw_structures() -> Figure:
    """One of each kind, and mixtures."""
    attention = ol.StructuredAttention()

    def soft(polytope: ol.Polytope, given: torch.Tensor, **more: Any) -> torch.Tensor:
        return ol.OptLayer(polytope, attention)(given, **more)

    def best(polytope: ol.Polytope, given: torch.Tensor, **more: Any) -> torch.Tensor:
        return ol.OptLayer(polytope, ol.Pipeline())(given, **more)

    tags, labels = ["det", "noun", "verb"], ["name", "other"]
    tree, spans, pairs = polytopes.projective_tree(5), polytopes.constituency_tree(5), polytopes.matching(4)
    chain, cuts, path = polytopes.linear_chain(5, 3), polytopes.semi_markov(5, 2, 3), polytopes.grid_path(3, 4)
    align, tour, fold = polytopes.monotone_alignment(4, 5), polytopes.tour(7), polytopes.noncrossing_matching(12, gap=4)
    ranks = polytopes.permutahedron(5)
    moves = {"transition": torch.zeros(5, 3, 3, dtype=torch.float64)}
    people, tasks = ["Ann", "Bob", "Cyd", "Dan"], ["cook", "shop", "wash", "rest"]
    letters = ["ACGU"[k] for k in (2, 2, 0, 1, 3, 0, 0, 1, 2, 3, 1, 1)]
    near = scores(4, 5, seed=3, scale=1.5)[:, :, None].expand(4, 5, 3)
    pictures: list[tuple[str, Callable[[Axes], Any]]] = [
        ("projective_tree", lambda ax: plots.structure(tree, best(tree, scores(6, 6)), words=SENTENCE, ax=ax)),
        (
            "projective_tree, marginals",
            lambda ax: plots.structure(tree, soft(tree, scores(6, 6, scale=2)), words=SENTENCE, ax=ax),
        ),
        ("constituency_tree", lambda ax: plots.structure(spans, best(spans, scores(5, 5)), words=SENTENCE, ax=ax)),
        (
            "constituency_tree, marginals",
            lambda ax: plots.structure(spans, soft(spans, scores(5, 5, scale=2)), words=SENTENCE, ax=ax),
        ),
        (
            "matching, marginals",
            lambda ax: plots.structure(pairs, soft(pairs, scores(4, 4)), words=(people, tasks), ax=ax),
        ),
        (
            "linear_chain, marginals",
            lambda ax: plots.structure(
                chain, soft(chain, scores(5, 3, scale=2), **moves), words=SENTENCE, states=tags, ax=ax
            ),
        ),
        (
            "semi_markov, marginals",
            lambda ax: plots.structure(cuts, soft(cuts, scores(5, 3, 2)), words=SENTENCE, states=labels, ax=ax),
        ),
        ("grid_path, marginals", lambda ax: plots.structure(path, soft(path, scores(17)), ax=ax)),
        (
            "monotone_alignment, marginals",
            lambda ax: plots.structure(
                align, soft(align, near), words=(list("kind"), list("child")), view="grid", ax=ax
            ),
        ),
        ("tour", lambda ax: plots.structure(tour, best(tour, scores(7, 7)), ax=ax)),
        (
            "noncrossing_matching, marginals",
            lambda ax: plots.structure(fold, soft(fold, scores(12, 12)), words=letters, ax=ax),
        ),
        (
            "permutahedron, projection",
            lambda ax: plots.structure(
                ranks, ol.OptLayer(ranks, ol.SparseMAP())(scores(5)), words=["a", "b", "c", "d", "e"], ax=ax
            ),
        ),
    ]
    figure = Figure(figsize=(13.0, 10.0), layout="constrained")
    for (title, draw), ax in zip(pictures, figure.subplots(4, 3).flat, strict=True):
        draw(ax)
        ax.set_title(title, fontsize=10)
    return figure


def draw_paths() -> Figure:
    """A choice as its temperature falls, and a matching as its barrier does."""
    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = torch.logspace(-2, 1.5, 60)
    simplex, choice = polytopes.simplex(4), torch.tensor([1.0, 0.8, 0.3, -0.5])
    plots.regularization_path(simplex, choice, ol.Entropy, numbers, words=["tea", "milk", "juice", "water"], ax=left)
    plots.regularization_path(polytopes.matching(4), scores(4, 4), ol.Barrier, numbers, ax=right)
    left.set_title("Entropy on simplex(4)", fontsize=10)
    right.set_title("Barrier on matching(4)", fontsize=10)
    return figure


def draw_all_rules() -> Figure:
    """Every rule on the polygon, in the order of the table of docs/rules.md."""
    target = torch.tensor([0.4, 1.2], dtype=torch.float64)
    rules: dict[str, ol.AbstractRule] = {
        "Pipeline()": ol.Pipeline(),
        "StraightThrough()": ol.StraightThrough(),
        "Spigot()": ol.Spigot(),
        "SpigotCE()": ol.SpigotCE(),
        "SpigotEG()": ol.SpigotEG(),
        "Interpolation(1)": ol.Interpolation(1.0),
        "LPGD(1, smoothing=1)": ol.LPGD(1.0, smoothing=1.0),
        "Identity()": ol.Identity(),
        "SparseMAP()": ol.SparseMAP(),
        "Regularized(Entropy())": ol.Regularized(ol.Entropy()),
        "Regularized(Tsallis(1.5))": ol.Regularized(ol.Tsallis(1.5)),
        "MirrorSpigot(Entropy())": ol.MirrorSpigot(ol.Entropy()),
        "CentralPath()": ol.CentralPath(),
        "StructuredAttention()": ol.StructuredAttention(),
        "Hard(SparseMAP())": ol.Hard(ol.SparseMAP()),
        "Hard(StructuredAttention())": ol.Hard(ol.StructuredAttention()),
        "PerturbedAdditive(100)": ol.PerturbedAdditive(100),
        "PerturbedMultiplicative(100)": ol.PerturbedMultiplicative(100),
        "PerturbAndMAP()": ol.PerturbAndMAP(),
        "GumbelStraightThrough()": ol.GumbelStraightThrough(),
        "IMLE(100, strength=1)": ol.IMLE(100, strength=1.0),
        "AdaptiveIMLE(100)": ol.AdaptiveIMLE(100),
        "ScoreFunction(100)": ol.ScoreFunction(100),
        "SampledMarginals()": ol.SampledMarginals(),
    }
    figure = Figure(figsize=(11.0, 17.0), layout="constrained")
    grid = figure.subplots(6, 4)
    for (name, rule), ax in zip(rules.items(), grid.flat, strict=True):
        plots.rule_field(rule, polygon(), lambda z: (z - target).square().sum(-1), arrows=10, ax=ax)
        figure.axes[-1].remove()  # the bar of colours, which all of them share
        ax.set(title=name, xlabel="", ylabel="", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        ax.title.set_fontsize(9)
    for ax in grid[-1]:
        ax.set_xlabel("score of x[0]", fontsize=9)
    for ax in grid[:, 0]:
        ax.set_ylabel("score of x[1]", fontsize=9)
    return figure


PICTURES = {
    "polytope": draw_polytopes,
    "rules": draw_all_rules,
    "rule_field": draw_fields,
    "structure": draw_structures,
    "regularization_path": draw_paths,
}


def main(given: list[str] | None = None) -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/plots"), help="where the pictures go")
    parser.add_argument("--only", choices=list(PICTURES), nargs="+", default=list(PICTURES))
    options = parser.parse_args(given)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        path = options.output / f"plots_{name}.png"
        PICTURES[name]().savefig(path, dpi=100)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
