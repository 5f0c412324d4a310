"""Tables and pictures of the runs of syntax_to_semantics.py."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from dependency_data import Sentence
from matplotlib.axes import Axes
from rich.table import Table
from scipy import stats
from semantic_training import MARKS, RULES, Result

from optlayers import plots

__all__ = ["markdown", "mean_and_interval", "plot_results", "plot_trees", "summary", "table", "write_csv"]

COLUMNS = ("tree attachment", "semantic F1", "labelled F1", "seconds / epoch")
RIGHT, WRONG = "#0072B2", "#D55E00"
"""Of arcs that the gold tree has, and that it lacks."""
COLORS = dict(zip((*RULES, *MARKS), plt.get_cmap("tab10").colors, strict=False))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval (Student's t); NaN for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def _values(results: Sequence[Result], column: str) -> list[float]:
    return {
        "tree attachment": [r.final.attachment for r in results],
        "semantic F1": [r.final.unlabelled for r in results],
        "labelled F1": [r.final.labelled for r in results],
        "seconds / epoch": [r.seconds_per_epoch for r in results],
    }[column]


def _rows(results: Sequence[Result]) -> dict[str, list[Result]]:
    names = list(dict.fromkeys(r.run.name for r in results))
    order = [n for n in ("no tree", *RULES, "gold tree") if n in names]
    return {name: [r for r in results if r.run.name == name] for name in order}


def _cell(values: Sequence[float]) -> str:
    mean, half = mean_and_interval(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def table(results: Sequence[Result], title: str) -> Table:
    """Mean and 95 % interval over seeds, for a terminal."""
    made = Table(title=title)
    made.add_column("rule", no_wrap=True)
    for column in COLUMNS:
        made.add_column(column, justify="right")
    for name, mine in _rows(results).items():
        made.add_row(name, *(_cell(_values(mine, column)) for column in COLUMNS))
    return made


def summary(result: Result) -> str:
    """A run in a line."""
    measures = ", ".join(f"{column} {_cell(_values([result], column))}" for column in COLUMNS)
    return f"{result.run.name}, seed {result.run.seed}: {measures}"


def markdown(results: Sequence[Result]) -> str:
    """The table as Markdown, for a document."""
    lines = ["| rule | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name, mine in _rows(results).items():
        lines.append(f"| {name} | " + " | ".join(_cell(_values(mine, c)) for c in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line per run and epoch."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["rule", "seed", "signal", "epoch", "attachment", "unlabelled", "labelled", "seconds_per_epoch"]
        )
        for result in results:
            for epoch, measure in enumerate(result.curve, start=1):
                writer.writerow(
                    [
                        result.run.name,
                        result.run.seed,
                        result.run.signal,
                        epoch,
                        f"{measure.attachment:.3f}",
                        f"{measure.unlabelled:.3f}",
                        f"{measure.labelled:.3f}",
                        f"{result.seconds_per_epoch:.3f}",
                    ]
                )


def plot_results(results: Sequence[Result], path: Path) -> None:
    """Final measures with intervals, and how trees and roles were learned."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1.2, 1, 1), layout="constrained")
    _plot_final(axes[0], _rows(results))
    _plot_curves(axes[1], _rows(results), "attachment", "tree attachment on dev (%)")
    _plot_curves(axes[2], _rows(results), "labelled", "labelled semantic F1 on dev (%)")
    axes[2].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_final(axis: Axes, rows: dict[str, list[Result]]) -> None:
    for offset, column in enumerate(("semantic F1", "labelled F1")):
        for place, (name, mine) in enumerate(rows.items()):
            mean, half = mean_and_interval(_values(mine, column))
            axis.errorbar(
                mean,
                -place - 0.25 * offset,
                xerr=0.0 if math.isnan(half) else half,
                fmt="os"[offset],
                color=COLORS[name],
                capsize=3,
            )
    axis.set_yticks([-k - 0.12 for k in range(len(rows))], list(rows))
    axis.set_xlabel("dev F1 (%): ● unlabelled, ■ labelled; 95 % intervals over seeds")
    axis.grid(axis="x", alpha=0.3)


def _plot_curves(axis: Axes, rows: dict[str, list[Result]], measure: str, title: str) -> None:
    for name, mine in rows.items():
        curves = np.array([[getattr(m, measure) for m in r.curve] for r in mine])
        if np.isnan(curves).any() or (measure == "attachment" and name in MARKS):
            continue
        epochs = np.arange(1, curves.shape[1] + 1)
        axis.plot(epochs, curves.mean(axis=0), color=COLORS[name], label=name, ls="--" if name in MARKS else "-")
        axis.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=COLORS[name], alpha=0.15, lw=0)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch (band: range over seeds)")
    axis.grid(alpha=0.3)


def plot_trees(results: Sequence[Result], sentences: Sequence[Sentence], path: Path) -> None:
    """The trees of a few sentences by the first seed of every rule; arcs that the gold tree lacks are orange."""
    rules = [(name, mine[0]) for name, mine in _rows(results).items() if name in RULES]
    if not rules:
        return
    count = len(rules[0][1].trees)
    widest = max(len(s) for s in sentences[:count])
    figure, axes = plt.subplots(
        count,
        len(rules) + 1,
        figsize=((len(rules) + 1) * (0.4 * widest + 1.0), 2.4 * count),
        squeeze=False,
        layout="constrained",
    )
    for row, sentence in enumerate(sentences[:count]):
        _draw_tree(axes[row][0], sentence, sentence.heads, "gold")
        for column, (name, result) in enumerate(rules, start=1):
            _draw_tree(axes[row][column], sentence, result.trees[row], name)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_tree(axis: Axes, sentence: Sentence, heads: tuple[int, ...], title: str) -> None:
    nodes = len(sentence) + 1
    tree, colors = np.zeros((nodes, nodes)), np.full((nodes, nodes), WRONG)
    tree[heads, np.arange(1, nodes)] = 1.0
    colors[sentence.heads, np.arange(1, nodes)] = RIGHT
    plots.arcs(tree, words=sentence.words, directed=True, rooted=True, color=colors, ax=axis)
    right = sum(h == g for h, g in zip(heads, sentence.heads, strict=True))
    axis.set_title(title if title == "gold" else f"{title} ({right}/{len(sentence)})", fontsize=11)
