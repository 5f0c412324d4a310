"""Tables and pictures of the runs of grid_paths_from_images.py."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from grid_paths_data import PIXELS
from grid_paths_rules import RULES
from grid_paths_training import MEASURES, Run, splits
from matplotlib.axes import Axes
from report_tables import cell, markdown_table
from rich.box import SIMPLE
from rich.table import Table

__all__ = ["Outcome", "markdown", "plot_curves", "plot_paths", "table_of", "write_csv"]

HEADS = ("rule", "optimal, %", "exact, %", "cost / least", "seconds / epoch")
DIGITS = {"optimal": 1, "exact": 1, "ratio": 3, "seconds": 2}
COLORS = dict(zip(RULES, cycle(plt.get_cmap("tab10").colors), strict=False))
MAPS = 3
"""So many maps are drawn."""


@dataclass(frozen=True)
class Outcome:
    """A run and what it found."""

    run: Run
    result: dict[str, Any]

    def last(self, measure: str) -> float:
        """After the last epoch; of ``seconds`` the median of all."""
        values = self.result[measure]
        return float(np.median(values)) if measure == "seconds" else values[-1]


def _by_rule(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    names = dict.fromkeys(o.run.rule for o in outcomes)
    return {name: [o for o in outcomes if o.run.rule == name] for name in names}


def _cells(rule: str, mine: Sequence[Outcome]) -> list[str]:
    return [rule, *(cell([o.last(measure) for o in mine], digits) for measure, digits in DIGITS.items())]


def _title(outcomes: Sequence[Outcome]) -> str:
    run, seeds = outcomes[0].run, {o.run.seed for o in outcomes}
    over = f"mean and 95 % interval over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return (
        f"{run.size} × {run.size} cells, {run.train_maps} maps to learn from, {run.test_maps} others for the report, "
        f"{run.epochs} epochs; {over}"
    )


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """For a terminal."""
    made = Table(title=_title(outcomes), box=SIMPLE)
    for head in HEADS:
        made.add_column(head, justify="left" if head == "rule" else "right", no_wrap=head == "rule")
    for rule, mine in _by_rule(outcomes).items():
        made.add_row(*_cells(rule, mine))
    return made


def markdown(outcomes: Sequence[Outcome]) -> str:
    """For a document."""
    rows = [_cells(rule, mine) for rule, mine in _by_rule(outcomes).items()]
    return "\n".join([f"{_title(outcomes)}:", "", *markdown_table(HEADS, rows), ""])


def write_csv(outcomes: Sequence[Outcome], path: Path) -> None:
    """One line per run and epoch."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*asdict(outcomes[0].run), "epoch", *DIGITS])
        writer.writeheader()
        for outcome in outcomes:
            for epoch in range(outcome.run.epochs):
                measures = {name: f"{outcome.result[name][epoch]:.6g}" for name in DIGITS}
                writer.writerow({**asdict(outcome.run), "epoch": epoch + 1, **measures})


def plot_curves(outcomes: Sequence[Outcome], path: Path) -> None:
    """The share of cheapest paths after every epoch: means over seeds, and from the least to the largest."""
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for rule, mine in _by_rule(outcomes).items():
        values = np.array([o.result[MEASURES[0]] for o in mine])
        epochs = np.arange(1, values.shape[1] + 1)
        axis.plot(epochs, values.mean(axis=0), "o-", ms=3, color=COLORS[rule], label=rule)
        axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=COLORS[rule], alpha=0.15, lw=0)
    axis.set_xlabel("epoch")
    axis.set_ylabel("cheapest paths on maps not seen (%)")
    axis.set_ylim(0, 100)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_paths(outcomes: Sequence[Outcome], path: Path) -> None:
    """Maps that nobody has learned from, with a cheapest path and what every rule decides, of the first seed."""
    first = outcomes[0].run
    _, test = splits(first)
    mine = [o for o in outcomes if o.run.seed == first.seed]
    shown = min(MAPS, len(mine[0].result["paths"]))
    figure, axes = plt.subplots(
        shown, 1 + len(mine), figsize=(1.9 * (1 + len(mine)), 2.1 * shown + 0.5), squeeze=False, layout="constrained"
    )
    for row, axis_row in enumerate(axes):
        true, costs = test.paths[row].numpy(), test.costs[row].numpy()
        for axis in axis_row:
            axis.imshow(test.images[row].permute(1, 2, 0).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
        _dots(axis_row[0], true, "white")
        axis_row[0].set_title("a cheapest path", fontsize=9)
        for axis, outcome in zip(axis_row[1:], mine, strict=True):
            decided = np.array(outcome.result["paths"][row])
            _dots(axis, decided * true, "white")
            _dots(axis, decided * (1 - true), "red")
            ratio = (costs * decided).sum() / (costs * true).sum()
            axis.set_title(f"{outcome.run.rule}: {ratio:.2f}", fontsize=9)
    figure.suptitle("white: cells of the path on the left, red: others; cost by the least cost", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _dots(axis: Axes, cells: np.ndarray, color: str) -> None:
    rows, columns = np.nonzero(cells)
    middle = (PIXELS - 1) / 2
    axis.scatter(PIXELS * columns + middle, PIXELS * rows + middle, s=14, color=color, edgecolors="black", lw=0.5)
