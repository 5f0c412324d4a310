"""Tables and pictures of the runs of decision_focused.py."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from decision_methods import METHODS, TWO_STAGE
from decision_training import Run
from matplotlib.axes import Axes
from report_tables import cell, markdown_table, mean_and_interval
from rich.table import Table

__all__ = ["Outcome", "markdown", "plot_differences", "plot_regrets", "tables", "write_csv"]

Setting = tuple[int, float]
"""Degree and noise."""
NAMES = (TWO_STAGE, *METHODS)
COLORS = dict(zip(NAMES, cycle(plt.get_cmap("tab10").colors), strict=False))
MARKERS = dict(zip(NAMES, cycle("Dos^v<>Xp*"), strict=False))


@dataclass(frozen=True)
class Outcome:
    """A run and what it found."""

    run: Run
    result: dict[str, Any]

    @property
    def percent(self) -> float:
        """The normalized regret on test."""
        return 100 * self.result["regret"]

    @property
    def setting(self) -> Setting:
        """What it shares with the runs of the same column."""
        return self.run.degree, self.run.noise


def _problems(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    names = dict.fromkeys(o.run.problem for o in outcomes)
    return {name: [o for o in outcomes if o.run.problem == name] for name in names}


def _settings(outcomes: Sequence[Outcome]) -> list[Setting]:
    return list(dict.fromkeys(o.setting for o in outcomes))


def _methods(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(o.run.method for o in outcomes))


def _by_seed(outcomes: Sequence[Outcome], method: str, setting: Setting) -> dict[int, float]:
    return {o.run.seed: o.percent for o in outcomes if o.run.method == method and o.setting == setting}


def _differences(outcomes: Sequence[Outcome], method: str, setting: Setting) -> list[float]:
    """To two-stage, paired by seed."""
    mark = _by_seed(outcomes, TWO_STAGE, setting)
    return [value - mark[seed] for seed, value in _by_seed(outcomes, method, setting).items()]


def _rows(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, list[list[str]]]]:
    """A heading and the cells, of the regrets and of their differences to two-stage."""
    methods, settings = _methods(outcomes), _settings(outcomes)
    yield (
        "normalized regret on test, %",
        [[m, *(cell(list(_by_seed(outcomes, m, s).values()), 2) for s in settings)] for m in methods],
    )
    others = [m for m in methods if m != TWO_STAGE]
    if TWO_STAGE in methods and others:
        yield (
            f"difference to {TWO_STAGE}, paired by seed",
            [[m, *(cell(_differences(outcomes, m, s), 2, "+") for s in settings)] for m in others],
        )


def _columns(outcomes: Sequence[Outcome]) -> list[str]:
    return ["method", *(f"degree {degree}, noise {noise:g}" for degree, noise in _settings(outcomes))]


def _seeds(outcomes: Sequence[Outcome]) -> str:
    count = len({o.run.seed for o in outcomes})
    return f"mean and 95 % interval over {count} seeds" if count > 1 else "one seed"


def tables(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Table]]:
    """For a terminal: two tables a problem, each with its heading."""
    for problem, mine in _problems(outcomes).items():
        for heading, rows in _rows(mine):
            made = Table()
            for k, column in enumerate(_columns(mine)):
                made.add_column(column, justify="right" if k else "left", no_wrap=not k)
            for row in rows:
                made.add_row(*row)
            yield f"{problem}: {heading}; {_seeds(mine)}", made


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The tables as Markdown, for a document."""
    lines = []
    for problem, mine in _problems(outcomes).items():
        for heading, rows in _rows(mine):
            columns = _columns(mine)
            lines += [f"{problem}: {heading}; {_seeds(mine)}", ""]
            lines += [*markdown_table(columns, rows), ""]
    return "\n".join(lines)


def write_csv(outcomes: Sequence[Outcome], runs: Path, candidates: Path) -> None:
    """One line per run, and one per candidate that the dev set chose among."""
    with runs.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*_RUN, *_CHOICE, "test_regret", "seconds"])
        for o in outcomes:
            last = [f"{o.result['regret']:.6f}", f"{o.result['seconds']:.3f}"]
            writer.writerow([*_run_cells(o), *_choice_cells(o.result), *last])
    with candidates.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*_RUN, *_CHOICE])
        for o in outcomes:
            writer.writerows([*_run_cells(o), *_choice_cells(candidate)] for candidate in o.result["candidates"])


_RUN = ("problem", "degree", "noise", "method", "seed")
_CHOICE = ("variant", "learning_rate", "epoch", "dev_regret")


def _run_cells(outcome: Outcome) -> list[Any]:
    return [getattr(outcome.run, name) for name in _RUN]


def _choice_cells(candidate: dict[str, Any]) -> list[Any]:
    return [candidate["variant"], candidate["learning_rate"], candidate["epoch"], f"{candidate['dev']:.6f}"]


Values = Callable[[Sequence[Outcome], str, Setting], list[float]]


def plot_regrets(outcomes: Sequence[Outcome], path: Path) -> None:
    """Regrets over degrees, for every problem and noise."""
    _plot(outcomes, _methods(outcomes), lambda *which: list(_by_seed(*which).values()), "normalized regret (%)", path)


def plot_differences(outcomes: Sequence[Outcome], path: Path) -> None:
    """Differences of regrets to two-stage over degrees, where it has run."""
    methods = [name for name in _methods(outcomes) if name != TWO_STAGE]
    if TWO_STAGE in _methods(outcomes) and methods:
        _plot(outcomes, methods, _differences, f"regret less that of {TWO_STAGE} (points)", path)


def _plot(outcomes: Sequence[Outcome], methods: Sequence[str], values: Values, label: str, path: Path) -> None:
    problems = _problems(outcomes)
    noises = sorted({o.run.noise for o in outcomes})
    size = (4.6 * len(noises) + 1.6, 3.4 * len(problems))
    figure, axes = plt.subplots(len(problems), len(noises), figsize=size, squeeze=False, layout="constrained")
    for row, (problem, mine) in zip(axes, problems.items(), strict=True):
        for axis, noise in zip(row, noises, strict=True):
            _plot_panel(axis, [o for o in mine if o.run.noise == noise], methods, values)
            axis.set_title(f"{problem}, noise {noise:g}", fontsize=10)
        row[0].set_ylabel(label)
    handles, labels = axes[0][0].get_legend_handles_labels()
    title = f"{_seeds(outcomes)};\ndots are seeds"
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, title=title, title_fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_panel(axis: Axes, outcomes: Sequence[Outcome], methods: Sequence[str], values: Values) -> None:
    settings = sorted(_settings(outcomes))
    width = 0.7 / max(6, len(methods) - 1)  # the gap between degrees is wider
    shown = []
    for place, method in enumerate(methods):
        drawn = [values(outcomes, method, setting) for setting in settings]
        x = np.arange(len(settings)) + (place - (len(methods) - 1) / 2) * width
        summary = [mean_and_interval(each) for each in drawn]
        axis.errorbar(
            x,
            [mean for mean, _ in summary],
            yerr=[0.0 if math.isnan(half) else half for _, half in summary],
            fmt=MARKERS[method],
            color=COLORS[method],
            capsize=2,
            markersize=5,
            label=method,
        )
        for at, each in zip(x, drawn, strict=True):
            axis.plot([at + width / 3] * len(each), each, ".", color=COLORS[method], markersize=4, alpha=0.5)
            shown += each
    margin = 0.15 * (max(shown) - min(shown)) or 1.0
    low = min(shown) - margin if min(shown) < -1e-6 else 0.0
    axis.set_ylim(low, max(0.0, max(shown)) + margin)  # the wide intervals of few seeds may be cut
    axis.axhline(0.0, color="black", lw=0.8)
    axis.set_xticks(range(len(settings)), [f"degree {degree}" for degree, _ in settings])
    axis.grid(axis="y", alpha=0.3)
