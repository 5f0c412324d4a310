"""Tables and pictures of the runs of latent_category.py."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from latent_rules import MARKS, RULES
from latent_training import MEASURES, Run
from matplotlib.axes import Axes
from report_tables import markdown_table
from rich.box import SIMPLE
from rich.table import Table

__all__ = ["Result", "markdown", "plot_curves", "plot_results", "problem_name", "quartiles", "tables", "write_csv"]

ORDER = ("no structure", *RULES, "true scorer", "true structure")
EXTREMES = ("no structure", "true structure")
"""They decide on no structure, so there is none to compare with the truth."""
ACCURACY, AGREEMENT = "tab:blue", "tab:orange"


@dataclass(frozen=True)
class Result:
    """A run, its measures after every epoch in percent, and what it cost."""

    run: Run
    curve: dict[str, list[float]]
    seconds: float

    @classmethod
    def of(cls, run: Run, kept: dict[str, Any]) -> Result:
        """From what the run left on disk."""
        return cls(run, {name: kept[name] for name in MEASURES}, kept["seconds"])

    @property
    def epoch(self) -> int:
        """The first one of the best accuracy on dev."""
        return int(np.argmax(self.curve["dev_accuracy"]))

    def at_best(self, measure: str) -> float:
        """After that epoch."""
        return self.curve[measure][self.epoch]


Problems = dict[tuple[str, int], dict[str, list[Result]]]


def _problems(results: Sequence[Result]) -> Problems:
    """The results of each problem by rule, in the order of tables."""
    keys = dict.fromkeys((r.run.structure, r.run.size) for r in results)
    return {
        key: {
            name: mine
            for name in ORDER
            if (mine := [r for r in results if (r.run.structure, r.run.size) == key and r.run.rule == name])
        }
        for key in keys
    }


def problem_name(structure: str, size: int) -> str:
    """As people say it."""
    unit = {"category": "clusters", "tree": "words", "matching": "rows", "sequence": "steps"}[structure]
    return f"{structure} of {size} {unit}" if structure != "category" else f"{size} clusters"


def agreement_name(structure: str) -> str:
    """What agreement is."""
    parts = {"category": "V-measure", "tree": "arcs", "matching": "pairs", "sequence": "transitions"}
    return parts[structure] if structure == "category" else f"true {parts[structure]}"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    middle, low, high = np.quantile(values, (0.5, 0.25, 0.75))
    return float(middle), float(low), float(high)


def _cell(values: Sequence[float]) -> str:
    middle, low, high = quartiles(values)
    return f"{middle:.1f}" if len(values) == 1 else f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def _row(name: str, mine: Sequence[Result]) -> list[str]:
    run = mine[0].run
    return [
        name,
        _cell([r.at_best("test_accuracy") for r in mine]),
        "–" if name in EXTREMES else _cell([r.at_best("test_agreement") for r in mine]),
        "–" if run.strength is None else f"{run.strength:g}",
        f"{run.learning_rate:g}",
        f"{np.median([r.seconds for r in mine]):.1f}",
    ]


def _header(structure: str) -> list[str]:
    return ["rule", "accuracy", agreement_name(structure), "strength", "rate", "seconds"]


def tables(results: Sequence[Result]) -> list[Table]:
    """One for each problem, for a terminal."""
    made = []
    for (structure, size), rows in _problems(results).items():
        table = Table(
            title=f"{problem_name(structure, size)}: test, median [quartiles] over seeds".replace("[", r"\["),
            box=SIMPLE,
        )
        for column in _header(structure):
            table.add_column(column, justify="left" if column == "rule" else "right", no_wrap=column == "rule")
        for name, mine in rows.items():
            table.add_row(*(cell.replace("[", r"\[") for cell in _row(name, mine)))
        made.append(table)
    return made


def markdown(results: Sequence[Result]) -> str:
    """The tables as Markdown, for a document."""
    lines = []
    for (structure, size), rows in _problems(results).items():
        cells = [_row(name, mine) for name, mine in rows.items()]
        lines += [f"{problem_name(structure, size).capitalize()}:", "", *markdown_table(_header(structure), cells), ""]
    return "\n".join(lines)


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line per run and epoch; ``chosen`` marks the epoch that tables report."""
    with path.open("w", newline="") as stream:
        columns = [*asdict(results[0].run), "epoch", "chosen", *MEASURES, "seconds"]
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for result in results:
            for epoch in range(result.run.epochs):
                measures = {name: f"{result.curve[name][epoch]:.3f}" for name in MEASURES}
                more = {"epoch": epoch + 1, "chosen": int(epoch == result.epoch), "seconds": f"{result.seconds:.3f}"}
                writer.writerow({**asdict(result.run), **more, **measures})


def plot_results(results: Sequence[Result], path: Path) -> None:
    """Every rule on every problem: accuracy and agreement on test, with quartiles."""
    problems = _problems(results)
    names = [name for name in ORDER if any(name in rows for rows in problems.values())]
    figure, axes = plt.subplots(
        1,
        len(problems),
        figsize=(2.2 + 3.4 * len(problems), 1.3 + 0.3 * len(names)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, ((structure, size), rows) in zip(axes[0], problems.items(), strict=True):
        for place, name in enumerate(names):
            if name in rows:
                _point(axis, -place + 0.13, rows[name], "test_accuracy", ACCURACY, "o")
                if name not in EXTREMES:
                    _point(axis, -place - 0.13, rows[name], "test_agreement", AGREEMENT, "s")
        axis.set_title(problem_name(structure, size), fontsize=11)
        axis.set_xlabel(f"● accuracy, ■ {agreement_name(structure)} (%)", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
        for place in range(0, len(names), 2):
            axis.axhspan(-place - 0.5, -place + 0.5, color="black", alpha=0.04, lw=0)
    axes[0][0].set_yticks([-k for k in range(len(names))], names)
    axes[0][0].set_ylim(-len(names) + 0.5, 0.5)
    figure.suptitle("test, median and quartiles over seeds", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _point(axis: Axes, place: float, mine: Sequence[Result], measure: str, color: str, marker: str) -> None:
    middle, low, high = quartiles([r.at_best(measure) for r in mine])
    axis.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt=marker, color=color, ms=5, capsize=2)


def plot_curves(results: Sequence[Result], folder: Path) -> list[Path]:
    """A picture for each problem, in it a panel for each rule: how labels and structures were learned."""
    paths = []
    for (structure, size), rows in _problems(results).items():
        shown = [name for name in rows if name not in MARKS]
        if not shown:
            continue
        columns = min(5, len(shown))
        lines = math.ceil(len(shown) / columns)
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(2.5 * columns + 0.8, 2.0 * lines + 0.9),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, shown, strict=False):
            _panel(axis, name, rows)
        for axis in axes.flat[max(0, len(shown) - columns) : len(shown)]:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("epoch", fontsize=9)
        figure.suptitle(
            f"{problem_name(structure, size)}, on dev, median and quartiles over seeds: blue accuracy, orange "
            f"{agreement_name(structure)};\ndashed the accuracy without and with the true structure",
            fontsize=10,
        )
        paths.append(folder / f"curves_{structure}_{size}.png")
        figure.savefig(paths[-1], dpi=130)
        plt.close(figure)
    return paths


def _panel(axis: Axes, name: str, rows: dict[str, list[Result]]) -> None:
    for measure, color in (("dev_agreement", AGREEMENT), ("dev_accuracy", ACCURACY)):
        values = np.array([r.curve[measure] for r in rows[name]])
        epochs = np.arange(1, values.shape[1] + 1)
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        axis.plot(epochs, middle, color=color, lw=1.5)
        axis.fill_between(epochs, low, high, color=color, alpha=0.2, lw=0)
    for mark in EXTREMES:
        if mark in rows:
            values = np.array([r.curve["dev_accuracy"] for r in rows[mark]])
            axis.plot(np.arange(1, values.shape[1] + 1), np.median(values, axis=0), "--", color="gray", lw=1)
    axis.set_title(name, fontsize=10)
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.3)
