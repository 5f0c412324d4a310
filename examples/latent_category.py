"""Which rules find a hidden structure that nobody shows them?

The synthetic study of Mihaylova, Niculae and Martins (2020, Understanding the mechanics of SPIGOT: surrogate gradients
for latent structure learning, EMNLP): points come from clusters, a label depends on the point and its cluster, and a
model with a categorical variable in the middle learns from labels alone. Then the same with a tree, a matching or a
sequence in the middle. See latent_data.py for the stories, latent_models.py for the models, latent_rules.py for the
rules, latent_training.py for a run.

    python examples/latent_category.py                a few rules, a minute or two
    python examples/latent_category.py --rules all --clusters 3 10 --structures category tree matching sequence \
        --grid-seeds 100 --seeds 0 1 2 3 4 5 6 7 8 9   the whole study

With ``--grid-seeds`` every rule gets the learning rate and the strength (its own hyperparameter) of the best accuracy
on dev; without, the middle one of each. Test is looked at after the epoch that is best on dev. Runs that are finished
are kept in ``--output``, and a second start goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from latent_data import SIZES, SPLITS, STRUCTURES
from latent_report import Result, markdown, plot_curves, plot_results, tables, write_csv
from latent_rules import MARKS, RULES
from latent_training import Run, train
from rich.console import Console
from sweep import Machines, add_arguments, in_a_line, run_all

EPOCHS = {"category": 30, "tree": 8, "matching": 8, "sequence": 8}
"""Accuracy grows little after them."""
LEARNING_RATES = {"category": [0.03, 0.1, 0.3], "tree": [0.01, 0.03, 0.1]}
LEARNING_RATES |= {"matching": LEARNING_RATES["tree"], "sequence": LEARNING_RATES["tree"]}
DEMONSTRATED = ["straight-through", "spigot", "sparsemap", "structured attention"]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=["all", *RULES],
        default=DEMONSTRATED,
        metavar="RULE",
        help=f"all, or some of: {', '.join(RULES)} (default: {', '.join(DEMONSTRATED)})",
    )
    parser.add_argument("--structures", nargs="+", choices=["category", *STRUCTURES], default=["category", "tree"])
    parser.add_argument("--clusters", nargs="+", type=int, default=[3], help="of categories (default 3)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the runs that are reported")
    parser.add_argument("--grid-seeds", nargs="*", type=int, default=[], help="of the runs that choose (default: none)")
    parser.add_argument("--learning-rates", nargs="+", type=float, help=f"default: {LEARNING_RATES}")
    parser.add_argument(
        "--strengths", nargs="+", default=[], metavar="RULE=VALUE,VALUE", help="instead of those of latent_rules.py"
    )
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--train-size", type=int, default=SPLITS["train"], help="training instances (default 5000)")
    parser.add_argument("--output", type=Path, default=Path("out/latent_category"))
    add_arguments(parser)
    options = parser.parse_args(given)
    options.rules = list(RULES) if "all" in options.rules else options.rules
    options.strengths = dict(_strengths(parser, text) for text in options.strengths)
    for name, least in (("epochs", 1), ("train_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, but is {value}")
    if min(options.clusters) < 2:
        parser.error(f"--clusters must be at least 2, but are {options.clusters}")
    if set(options.seeds) & set(options.grid_seeds):
        parser.error("--seeds and --grid-seeds must differ: what was chosen on a problem is not reported on it")
    return options


def _strengths(parser: argparse.ArgumentParser, text: str) -> tuple[str, tuple[float, ...]]:
    name, _, values = text.partition("=")
    if name not in RULES or not RULES[name].strengths:
        able = ", ".join(name for name, choice in RULES.items() if choice.strengths)
        parser.error(f"--strengths {text}: expected RULE=VALUE,VALUE with one of {able}")
    try:
        return name, tuple(float(value) for value in values.split(","))
    except ValueError:
        return parser.error(f"--strengths {text}: {values!r} are no numbers separated by commas")


def candidates(options: argparse.Namespace) -> list[list[Run]]:
    """For every problem and every rule and mark, the runs among which one is chosen; their seed is yet to come."""
    problems = [("category", clusters) for clusters in options.clusters if "category" in options.structures]
    problems += [(structure, SIZES[structure]) for structure in options.structures if structure != "category"]
    return [
        [
            Run(structure, size, name, strength, rate, -1, epochs, train_size=options.train_size)
            for rate in options.learning_rates or LEARNING_RATES[structure]
            for strength in (options.strengths.get(name) or _own_strengths(name))
        ]
        for structure, size in problems
        for epochs in [options.epochs or EPOCHS[structure]]
        for name in (*MARKS, *options.rules)
    ]


def _own_strengths(name: str) -> Sequence[float | None]:
    return (name in RULES and RULES[name].strengths) or (None,)


def chosen(groups: list[list[Run]], results: Sequence[Result], grid_seeds: Sequence[int]) -> list[Run]:
    """Of each group the run with the best accuracy on dev, over the grid's seeds; without any, the middle one."""
    if not grid_seeds:
        return [_middle(group) for group in groups]
    scores: dict[Run, list[float]] = defaultdict(list)
    for result in results:
        scores[replace(result.run, seed=-1)].append(result.at_best("dev_accuracy"))
    return [max(group, key=lambda run: mean(scores[run])) for group in groups]


def _middle(group: list[Run]) -> Run:
    """The middle learning rate with the middle strength."""
    rates = list(dict.fromkeys(run.learning_rate for run in group))
    strengths = list(dict.fromkeys(run.strength for run in group))
    rate, strength = rates[len(rates) // 2], strengths[len(strengths) // 2]
    return next(run for run in group if (run.learning_rate, run.strength) == (rate, strength))


def main(given: list[str] | None = None) -> list[Result]:
    """Choose, run, print the tables, write CSV, Markdown and pictures."""
    options = arguments(given)
    console = Console(width=None if sys.stdout.isatty() else 110)
    groups = candidates(options)

    def results_of(runs: list[Run]) -> list[Result]:
        kept = run_all(runs, train, folder=options.output, console=console, machines=Machines.of(options))
        return [Result.of(run, one) for run, one in zip(runs, kept, strict=True)]

    options.output.mkdir(parents=True, exist_ok=True)
    grid: list[Result] = []
    if options.grid_seeds:
        console.print("grid:")
        grid = results_of([replace(run, seed=seed) for group in groups for run in group for seed in options.grid_seeds])
        write_csv(grid, options.output / "grid.csv")
    best = chosen(groups, grid, options.grid_seeds)
    console.print(f"{len(best)} settings with seeds {' '.join(map(str, options.seeds))}:")
    results = results_of([replace(run, seed=seed) for run in best for seed in options.seeds])
    write_csv(results, options.output / "runs.csv")
    (options.output / "table.md").write_text(markdown(results))
    plot_results(results, options.output / "results.png")
    plot_curves(results, options.output)
    for table in tables(results):
        console.print(table)
    files = sorted(path.name for path in options.output.iterdir() if path.is_file())
    console.print(f"wrote {', '.join(files)} to {options.output}")
    return results


if __name__ == "__main__":
    with in_a_line():
        main()
