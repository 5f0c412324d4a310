"""Tables and pictures of the runs of syntax_to_semantics.py."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from dependency_data import Sentence
from matplotlib.axes import Axes
from report_tables import Gain, cell, markdown_table, mean_and_interval
from rich.box import SIMPLE
from rich.table import Table
from semantic_measures import MEASURES, Result, gain
from semantic_rules import MARKS, RULES

from optlayers import plots

__all__ = ["gains_table", "markdown", "plot_fractions", "plot_results", "plot_trees", "table", "write_csv"]

RIGHT, WRONG = "#0072B2", "#D55E00"
"""Of arcs that the gold tree has, and that it lacks."""
PAIRS = plt.get_cmap("tab20").colors
COLORS = dict(zip((*RULES, *MARKS), [*PAIRS[::2], *PAIRS[1::2]], strict=False))
BASES = ("no tree", "pipeline")
"""What the others are compared with."""


def _fractions(results: Sequence[Result]) -> list[float]:
    """Of the runs of rules, in order; marks have none."""
    return list(dict.fromkeys(r.run.tree_fraction for r in results if r.run.name in RULES)) or [0.0]


def _rows(results: Sequence[Result], fraction: float) -> dict[str, list[Result]]:
    """The runs of every rule at this fraction, and of the marks, in the order of tables."""
    mine = [r for r in results if r.run.name in MARKS or r.run.tree_fraction == fraction]
    names = [n for n in ("no tree", *RULES, "gold tree") if any(r.run.name == n for r in mine)]
    return {name: [r for r in mine if r.run.name == name] for name in names}


def _value(name: str, mine: Sequence[Result], measure: str) -> str:
    if name == "no tree" and measure == "tree attachment":
        return "–"
    return cell([r.final[measure] for r in mine])


def _cells(name: str, mine: Sequence[Result]) -> list[str]:
    chosen = f"{mine[0].run.signal:g}" if name in RULES and RULES[name].sends else "–"
    if name in RULES and RULES[name].steps:
        chosen += f", {mine[0].run.step:g}"
    seconds = median(r.kept["seconds"] for r in mine)
    return [name, *(_value(name, mine, measure) for measure in MEASURES), chosen, f"{seconds:.1f}"]


HEAD = ["rule", *MEASURES, "signal, step", "s / epoch"]


def _gain_rows(results: Sequence[Result], fraction: float) -> list[list[str]]:
    rows = _rows(results, fraction)
    return [
        [f"{name} − {base}", *(_gain_cell(base, measure, g) for measure, g in gain(mine, rows[base]).items())]
        for base in BASES
        if base in rows
        for name, mine in rows.items()
        if name != base and name not in BASES[: BASES.index(base)]
    ]


def _gain_cell(base: str, measure: str, one: Gain) -> str:
    return "–" if base == "no tree" and measure == "tree attachment" else str(one)


def _titles(results: Sequence[Result], fraction: float) -> tuple[str, str]:
    split, seeds = results[0].split, len({r.run.seed for r in results})
    first = f"{fraction:.0%} of the trees; {split}, mean and 95 % interval over {seeds} seeds"
    return first, "gains, 95 % intervals: ± over seeds, in brackets over sentences; * where both leave 0 out"


def table(results: Sequence[Result], fraction: float) -> Table:
    """Mean and 95 % interval over seeds of all rules at a fraction, for a terminal."""
    made = Table(title=_titles(results, fraction)[0], box=SIMPLE)
    for column in HEAD:
        made.add_column(column, justify="left" if column == "rule" else "right", no_wrap=True)
    for name, mine in _rows(results, fraction).items():
        made.add_row(*_cells(name, mine))
    return made


def gains_table(results: Sequence[Result], fraction: float) -> Table:
    """What every rule has more than no tree, and more than pipeline, for a terminal."""
    made = Table(title=_titles(results, fraction)[1], box=SIMPLE)
    for column in ("", *MEASURES):
        made.add_column(column, no_wrap=True)
    for row in _gain_rows(results, fraction):
        made.add_row(*row)
    return made


def markdown(results: Sequence[Result]) -> str:
    """The tables as Markdown, for a document."""
    lines = []
    for fraction in _fractions(results):
        first, second = _titles(results, fraction)
        rows = [_cells(name, mine) for name, mine in _rows(results, fraction).items()]
        lines += [f"{first}:", "", *markdown_table(HEAD, rows), "", f"{second}:", ""]
        lines += [*markdown_table(["", *MEASURES], _gain_rows(results, fraction)), ""]
    return "\n".join(lines)


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line per run and epoch, measured on dev; the last line of a run has its measures on test, if there is one."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        names = [measure.replace(" ", "_") for measure in MEASURES]
        writer.writerow(
            [
                "rule",
                "seed",
                "tree_fraction",
                "signal",
                "step",
                "epoch",
                *names,
                *(f"test_{n}" for n in names),
                "seconds",
            ]
        )
        for result in results:
            run, last = result.run, len(result.curve)
            for epoch, measure in enumerate(result.curve, start=1):
                reported = result.final if epoch == last and result.split == "test" else {}
                writer.writerow(
                    [
                        *(run.name, run.seed, run.tree_fraction, run.signal, run.step, epoch),
                        *(f"{measure[name]:.3f}" for name in MEASURES),
                        *(f"{reported[name]:.3f}" if reported else "" for name in MEASURES),
                        f"{result.kept['seconds']:.3f}",
                    ]
                )


def plot_results(results: Sequence[Result], path: Path) -> None:
    """Final measures with intervals, and how trees and roles were learned, at the first fraction."""
    rows = _rows(results, _fractions(results)[0])
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1.2, 1, 1), layout="constrained")
    _plot_final(axes[0], rows, results[0].split)
    _plot_curves(axes[1], rows, "tree attachment")
    _plot_curves(axes[2], rows, "labelled F1")
    axes[2].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_final(axis: Axes, rows: dict[str, list[Result]], split: str) -> None:
    for offset, measure in enumerate(MEASURES[1:]):
        for place, (name, mine) in enumerate(rows.items()):
            value, half = mean_and_interval([r.final[measure] for r in mine])
            error = 0.0 if math.isnan(half) else half
            axis.errorbar(value, -place - 0.25 * offset, None, error, "os"[offset], color=COLORS[name], capsize=3)
    axis.set_yticks([-k - 0.12 for k in range(len(rows))], list(rows))
    axis.set_xlabel(f"{split} F1 (%): ● unlabelled, ■ labelled; 95 % intervals over seeds")
    axis.grid(axis="x", alpha=0.3)


def _plot_curves(axis: Axes, rows: dict[str, list[Result]], measure: str) -> None:
    for name, mine in rows.items():
        if measure == "tree attachment" and name in MARKS:
            continue
        curves = np.array([[after[measure] for after in r.curve] for r in mine])
        epochs = np.arange(1, curves.shape[1] + 1)
        axis.plot(epochs, curves.mean(axis=0), color=COLORS[name], label=name, ls="--" if name in MARKS else "-")
        axis.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=COLORS[name], alpha=0.15, lw=0)
    axis.set_title(f"{measure} on dev (%)", fontsize=10)
    axis.set_xlabel("epoch (band: range over seeds)")
    axis.grid(alpha=0.3)


def plot_fractions(results: Sequence[Result], path: Path) -> None:
    """Attachment and labelled F1 over the fraction of trees that are seen; marks are lines across."""
    fractions = sorted(_fractions(results))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, measure in zip(axes, ("tree attachment", "labelled F1"), strict=True):
        at = {fraction: _rows(results, fraction) for fraction in fractions}
        names = list(dict.fromkeys(name for rows in at.values() for name in rows))
        for number, name in enumerate(names):
            if name in MARKS:
                if measure != "tree attachment":
                    level = mean(r.final[measure] for r in at[fractions[0]][name])
                    axis.axhline(level, color=COLORS[name], ls="--", label=name)
                continue
            both = [mean_and_interval([r.final[measure] for r in at[fraction][name]]) for fraction in fractions]
            places = [fraction * 1.04 ** (number - len(names) / 2) for fraction in fractions]  # side by side
            halves = [0.0 if math.isnan(half) else half for _, half in both]
            axis.errorbar(
                places, [value for value, _ in both], halves, color=COLORS[name], label=name, capsize=3, marker="o"
            )
        axis.set_xscale("symlog", linthresh=0.01)
        axis.set_xticks(fractions, [f"{fraction:.0%}" for fraction in fractions])
        axis.minorticks_off()
        axis.set_title(f"{measure}, {results[0].split} (%)", fontsize=10)
        axis.set_xlabel("training trees that are seen")
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_trees(results: Sequence[Result], sentences: Sequence[Sentence], path: Path) -> None:
    """The trees of a few sentences by the first run of every rule; arcs that the gold tree lacks are orange."""
    rules = [(name, mine[0]) for name, mine in _rows(results, _fractions(results)[0]).items() if name in RULES]
    if not rules or not sentences:
        return
    widest = max(len(s) for s in sentences)
    size = ((len(rules) + 1) * (0.4 * widest + 1.0), 2.4 * len(sentences))
    figure, axes = plt.subplots(len(sentences), len(rules) + 1, figsize=size, squeeze=False, layout="constrained")
    for row, sentence in enumerate(sentences):
        _draw_tree(axes[row][0], sentence, sentence.heads, "gold")
        for column, (name, result) in enumerate(rules, start=1):
            _draw_tree(axes[row][column], sentence, result.kept["trees"][row], name)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_tree(axis: Axes, sentence: Sentence, heads: Sequence[int], title: str) -> None:
    nodes = len(sentence) + 1
    tree, colors = np.zeros((nodes, nodes)), np.full((nodes, nodes), WRONG)
    tree[heads, np.arange(1, nodes)] = 1.0
    colors[sentence.heads, np.arange(1, nodes)] = RIGHT
    plots.arcs(tree, words=sentence.words, directed=True, rooted=True, color=colors, ax=axis)
    right = sum(h == g for h, g in zip(heads, sentence.heads, strict=True))
    axis.set_title(title if title == "gold" else f"{title} ({right}/{len(sentence)})", fontsize=11)
