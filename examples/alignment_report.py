"""Tables and pictures of word alignments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from alignment_data import Pair
from alignment_model import Measure
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from report_tables import cell
from rich.box import SIMPLE
from rich.table import Table

__all__ = ["best_on_dev", "draw", "table_of"]

Result = Mapping[str, Any]
"""What a run came to: F1 on ``dev``, measures on ``test``, F1 of links one by one as ``alone``, ``seconds`` per
epoch, and the ``links`` of every pair of the test part."""
LEGIBLE = 14
"""Sentences of more words are too long for a picture."""


def _percent(values: Sequence[float], sign: str = "") -> str:
    return cell([100.0 * value for value in values], sign=sign)


def table_of(results: Mapping[str, Sequence[Result]], bound: Sequence[Measure]) -> Table:
    """A row for each line, and the ``bound`` that no matching exceeds; gains over the first line are paired by fold."""
    table = Table(title=f"test, in percent: mean and 95 % interval over {len(bound)} folds", box=SIMPLE)
    names = ("precision", "recall", "F1", "gain", "AER", "F1, one by one", "s / epoch")
    for column in ("learned by", *names):
        table.add_column(column, justify="left" if column == "learned by" else "right", no_wrap=True)
    measures = ("precision", "recall", "f1", "error_rate")
    first = next(iter(results))
    for line, folds in results.items():
        cells = [_percent([fold["test"][name] for fold in folds]) for name in measures]
        pairs = zip(folds, results[first], strict=True)
        gain = _percent([mine["test"]["f1"] - other["test"]["f1"] for mine, other in pairs], "+")
        cells.insert(3, "" if line == first else gain)
        seconds = float(np.mean([fold["seconds"] for fold in folds]))
        table.add_row(line, *cells, _percent([fold["alone"] for fold in folds]), f"{seconds:.2f}")
    table.add_section()
    best = [_percent([asdict(one)[name] for one in bound]) for name in measures]
    table.add_row("best within gold", *best[:3], "", best[3])
    return table


def best_on_dev(runs: Sequence[Any], results: Sequence[Result]) -> dict[str, list[Result]]:
    """For each line the result of each fold, with the learning rate that has the best F1 on dev there."""
    best: dict[str, dict[int, Result]] = {run.line: {} for run in runs}
    for run, result in zip(runs, results, strict=True):
        so_far = best[run.line].get(run.fold)
        if so_far is None or result["dev"] > so_far["dev"]:
            best[run.line][run.fold] = result
    return {line: [by_fold[fold] for fold in sorted(by_fold)] for line, by_fold in best.items()}


def draw(results: Mapping[str, Sequence[Result]], pairs: Sequence[Pair], path: Path) -> None:
    """Links for the one of the pairs of the first fold on which lines differ most, among those that are legible."""
    found = {line: folds[0]["links"] for line, folds in results.items()}
    lengths = [max(len(pair.source), len(pair.target)) for pair in pairs]
    legible = [k for k, length in enumerate(lengths) if length <= max(LEGIBLE, min(lengths))]
    chosen = max(legible, key=lambda k: len({str(links[k]) for links in found.values()}))
    pair, columns = pairs[chosen], min(5, len(results))
    rows, n, m = math.ceil(len(results) / columns), len(pair.source), len(pair.target)
    size = (1.2 + columns * (0.2 + 0.16 * m), 1.2 + rows * (0.4 + 0.16 * n))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for place, (axis, (line, links)) in enumerate(zip(axes.flat, found.items(), strict=False)):
        _panel(axis, pair, links[chosen])
        axis.set_title(line, fontsize=7)
        left, lowest = place % columns == 0, place + columns >= len(results)
        axis.set_yticks(range(n), pair.source if left else [""] * n, fontsize=6)
        axis.set_xticks(range(m), pair.target if lowest else [""] * m, fontsize=6, rotation=90)
        axis.tick_params(length=0)
    for axis in axes.flat[len(results) :]:
        axis.set_axis_off()
    figure.suptitle("gray: gold, possible links lighter; blue: right; red: wrong", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Axes, pair: Pair, links: Sequence[Sequence[int]]) -> None:
    gold = np.zeros((len(pair.source), len(pair.target)))
    for known, shade in ((pair.possible, 1), (pair.sure, 2)):
        for i, j in known:
            gold[i, j] = shade
    axis.imshow(gold, cmap=ListedColormap(["white", "0.9", "0.75"]), vmin=0, vmax=2)
    for i, j in links:
        right = gold[i, j] > 0
        axis.plot(j, i, marker="o" if right else "x", color="tab:blue" if right else "tab:red", markersize=4)
