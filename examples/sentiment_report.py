"""Tables and pictures of the runs of semantics_to_sentiment.py."""

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
from dependency_data import Sentence
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from report_tables import Gain, cell, markdown_table, mean_and_interval, over_cases
from rich.box import SIMPLE
from rich.table import Table
from sentiment_data import ROLES, graph_of
from sentiment_model import MARKS, RULES
from sentiment_training import Run

from optlayers import plots

__all__ = ["Result", "gain", "markdown", "plot_graphs", "plot_results", "tables", "write_csv"]

ORDER = ("no graph", *RULES, "gold graph")
BASES = ("no graph", "pipeline")
"""Every rule is compared with them, over the same seeds and the same sentences."""
DEV, TEST, PARSER = "#0072B2", "#D55E00", "#009E73"
COLORS = dict(zip(ROLES, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F"), strict=True))


@dataclass(frozen=True)
class Result:
    """A run, what it left on disk, and the labelled F1 of the parser that it started from."""

    run: Run
    kept: dict[str, Any]
    parser_f1: float

    def right(self, part: str) -> np.ndarray:
        """For every sentence of "dev" or "test" 100 where its label was found, else 0; empty where none was asked."""
        return 100.0 * np.array([mark == "1" for mark in self.kept[f"{part}_right"]], dtype=float)

    def accuracy(self, part: str) -> float:
        """In percent, after the epoch that is best on dev."""
        return float(self.right(part).mean())

    @property
    def parser_change(self) -> float:
        """What training on sentiment adds to the labelled F1 of the parser."""
        return self.kept["graph_f1"] - self.parser_f1


def gain(mine: Sequence[Result], base: Sequence[Result], part: str) -> Gain:
    """Paired twice: by seed (Student's t), and by sentence, over which seeds are averaged (bootstrap, percentiles).

    The first interval says what another seed would give, the second what other sentences would; each is NaN where there
    is one only.
    """
    ours = {r.run.seed: r for r in mine}
    theirs = {r.run.seed: r for r in base}
    seeds = sorted(ours.keys() & theirs.keys())
    more = np.array([ours[s].right(part) - theirs[s].right(part) for s in seeds])
    mean, half = mean_and_interval(more.mean(axis=1))
    by_sentence = more.mean(axis=0)
    low, high = over_cases(lambda index, axis: by_sentence[index].mean(axis=axis), len(by_sentence))
    return Gain(mean, half, (float(low), float(high)))


def by_rule(results: Sequence[Result]) -> dict[str, list[Result]]:
    """In the order of tables."""
    return {name: mine for name in ORDER if (mine := [r for r in results if r.run.rule == name])}


def _parts(results: Sequence[Result]) -> list[str]:
    return ["dev", "test"] if all(r.kept["test_right"] for r in results) else ["dev"]


def _accuracies(results: Sequence[Result]) -> list[list[str]]:
    parts = _parts(results)
    lines = [
        ["rule", *(f"accuracy on {part}" for part in parts), "graph F1 before", "its change", "ms / batch", "chosen"]
    ]
    for name, mine in by_rule(results).items():
        parsed = name in RULES
        run = mine[0].run
        chosen = [f"rate {run.learning_rate:.2g}"]
        chosen += [f"signal {run.signal:.2g}"] if parsed and name != "pipeline" else []
        chosen += [f"strength {run.strength:.2g}"] if run.strength is not None else []
        lines.append(
            [
                name,
                *(cell([r.accuracy(part) for r in mine]) for part in parts),
                cell([r.parser_f1 for r in mine]) if parsed else "–",
                cell([r.parser_change for r in mine], sign="+") if parsed else "–",
                cell([1000.0 * r.kept["seconds_per_batch"] for r in mine], digits=0),
                ", ".join(chosen),
            ]
        )
    return lines


def _differences(results: Sequence[Result], part: str) -> list[list[str]]:
    rules = by_rule(results)
    bases = [base for base in BASES if base in rules]
    lines = [["rule", *(f"over {base}" for base in bases)]]
    for name, mine in rules.items():
        lines.append([name, *("" if name == base else str(gain(mine, rules[base], part)) for base in bases)])
    return lines


def _tables(results: Sequence[Result]) -> dict[str, list[list[str]]]:
    made = {"Mean ± 95 % interval over seeds, after the epoch that is best on dev": _accuracies(results)}
    for part in _parts(results):
        title = f"Accuracy gained on {part}: mean ± 95 % interval over seeds, [95 % interval over sentences]"
        made[title] = _differences(results, part)
    return made


def tables(results: Sequence[Result]) -> list[Table]:
    """Accuracies and what happened to the parser, and differences on dev and on test; for a terminal."""
    made = []
    for title, (header, *lines) in _tables(results).items():
        table = Table(title=title.replace("[", r"\["), box=SIMPLE)
        for column in header:
            table.add_column(column, justify="left" if column in ("rule", "chosen") else "right")
        for line in lines:
            table.add_row(*(text.replace("[", r"\[") for text in line))
        made.append(table)
    return made


def markdown(results: Sequence[Result]) -> str:
    """The tables as Markdown, for a document."""
    text = []
    for title, (header, *lines) in _tables(results).items():
        text += [f"{title}:", "", *markdown_table(header, lines), ""]
    return "\n".join(text)


def write_csv(results: Sequence[Result], path: Path) -> None:
    """One line per run and epoch; ``chosen`` marks the epoch that tables report."""
    with path.open("w", newline="") as stream:
        more = ["epoch", "chosen", "dev", "test_at_chosen", "parser_f1", "graph_f1_at_chosen", "seconds_per_batch"]
        writer = csv.DictWriter(stream, [*asdict(results[0].run), *more])
        writer.writeheader()
        for result in results:
            kept = result.kept
            for epoch, accuracy in enumerate(kept["dev"]):
                line = {
                    "epoch": epoch + 1,
                    "chosen": int(epoch == kept["epoch"]),
                    "dev": f"{accuracy:.3f}",
                    "test_at_chosen": f"{result.accuracy('test'):.3f}" if kept["test_right"] else "",
                    "parser_f1": f"{result.parser_f1:.3f}",
                    "graph_f1_at_chosen": "" if kept["graph_f1"] is None else f"{kept['graph_f1']:.3f}",
                    "seconds_per_batch": f"{kept['seconds_per_batch']:.4f}",
                }
                writer.writerow({**asdict(result.run), **line})


def plot_results(results: Sequence[Result], path: Path) -> None:
    """Accuracy of every rule with intervals over seeds, and how the parser's F1 changed."""
    rules, parts = by_rule(results), _parts(results)
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.4 + 0.36 * len(rules)), sharey=True, layout="constrained")
    for place, (name, mine) in enumerate(rules.items()):
        for shift, (part, color, marker) in enumerate((("dev", DEV, "o"), ("test", TEST, "s"))):
            if part in parts:
                _point(axes[0], -place - 0.25 * shift, [r.accuracy(part) for r in mine], color, marker)
        if name in RULES:
            _point(axes[1], -place - 0.12, [r.parser_change for r in mine], PARSER, "D")
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(max(low, -1.0), min(high, 101.0))  # an interval of few seeds may leave what is possible
    axes[1].axvline(0.0, color="0.6", lw=1, zorder=1)
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle("mean and 95 % interval over seeds, after the epoch that is best on dev", fontsize=10)
    axes[0].set_yticks([-k - 0.12 for k in range(len(rules))], list(rules))
    axes[0].set_xlabel(f"accuracy (%): {', '.join(['● dev', '■ test'][: len(parts)])}")
    axes[1].set_xlabel("labelled F1 of the parser: change (points)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _point(axis: Axes, place: float, values: Sequence[float], color: str, marker: str) -> None:
    mean, half = mean_and_interval(values)
    axis.errorbar(mean, place, xerr=0.0 if math.isnan(half) else half, fmt=marker, color=color, capsize=3, zorder=3)


def plot_graphs(results: Sequence[Result], sentences: Sequence[Sentence], path: Path) -> None:
    """The graphs of a few sentences by the first seed of every rule, and the true ones where they are known."""
    rules = {name: mine[0].kept["graphs"] for name, mine in by_rule(results).items() if name not in MARKS}
    if not rules:
        return
    if any(s.roles for s in sentences):
        rules = {"gold": [[[*part, 1.0] for part in graph_of(s)] for s in sentences], **rules}
    widest = max(len(s) for s in sentences)
    columns = 1 if widest > 12 else 2
    lines = math.ceil(len(rules) / columns)
    figure, axes = plt.subplots(
        lines * len(sentences),
        columns,
        figsize=(columns * (0.62 * widest + 1.0), 2.1 * lines * len(sentences)),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for k, sentence in enumerate(sentences):
        for place, (name, graphs) in enumerate(rules.items()):
            axis = axes[k * lines + place // columns][place % columns]
            axis.set_visible(True)
            _draw_graph(axis, sentence, graphs[k], name)
    handles = [Line2D([], [], color=color, lw=2, label=role) for role, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_graph(axis: Axes, sentence: Sentence, parts: Sequence[Sequence[float]], title: str) -> None:
    """An arc has the colour of its heaviest role; predicates are in capitals."""
    words = len(sentence)
    weights = np.zeros((words, words, len(ROLES)))
    for p, a, role, weight in parts:
        weights[p, a, role] = weight
    predicates = weights[range(words), range(words), 0] > 0.5
    weights[range(words), range(words)] = 0.0
    colors = np.array([COLORS[role] for role in ROLES])[weights.argmax(axis=-1)]
    names = [w.upper() if is_one else w for w, is_one in zip(sentence.words, predicates, strict=True)]
    plots.arcs(np.minimum(weights.sum(axis=-1), 1.0), words=names, directed=True, color=colors, ax=axis)
    axis.set_title(title, fontsize=10, loc="left")
