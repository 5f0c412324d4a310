"""Learn what terrain costs from images of maps and their cheapest paths.

Maps are drawn: smooth regions of grass, sand, forest, rocks and water, eight by eight noisy pixels for a cell. A path
leads from the top left to the bottom right over all eight neighbours, and costs what its cells cost. A small ResNet
predicts a cost for every cell, and is told the cheapest path of every map for training, but no costs: the gradient
comes through the shortest path, by one rule or another, or from a loss. The mark ``two-stage`` is told the costs. All
decide by the cheapest path for their predictions on maps that they have not seen. Reported are the share of decisions
that are a cheapest path (``optimal``), of those that are the one that is listed as such (``exact``; there may be
several cheapest paths), and the mean of costs by the least costs.

    python examples/grid_paths_from_images.py                                  small, about a minute
    python examples/grid_paths_from_images.py --train-maps 2000 --test-maps 1000 --epochs 20 --seeds 0 1 2 3 4 \
        --output out/grid_paths_study

Finished runs stay in the output folder and are not done again.

References: Vlastelica et al. (2020), the task, on maps of a game, and interpolation; Sahoo et al. (2023), identity;
Niepert et al. (2021), I-MLE; Berthet et al. (2020), perturbed optimizers; Peng, Thomson and Smith (2018), SPIGOT;
Niculae et al. (2018), SparseMAP.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grid_paths_report import Outcome, markdown, plot_curves, plot_paths, table_of, write_csv
from grid_paths_rules import RULES
from grid_paths_training import Run, train
from rich.console import Console
from sweep import Machines, add_arguments, in_a_line, run_all


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--size", type=int, default=12, help="cells per side of a map (default 12)")
    parser.add_argument("--train-maps", type=int, default=500, help="to learn from (default 500)")
    parser.add_argument("--test-maps", type=int, default=250, help="for the report (default 250)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=0.003, help="at the beginning (default 0.003)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("out/grid_paths"))
    add_arguments(parser)
    options = parser.parse_args(given)
    least = {"size": 2, "train_maps": 1, "test_maps": 1, "epochs": 1, "batch_size": 1}
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} must be at least {smallest}, but is {getattr(options, name)}")
    if not 0 < options.learning_rate < float("inf"):
        parser.error(f"--learning-rate must be above 0, but is {options.learning_rate}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must be at least 0, but are {options.seeds}")
    return options


def planned(options: argparse.Namespace) -> list[Run]:
    """Every rule with every seed."""
    return [
        Run(
            rule,
            seed,
            options.size,
            options.train_maps,
            options.test_maps,
            options.epochs,
            options.learning_rate,
            options.batch_size,
        )
        for rule in dict.fromkeys(options.rules)
        for seed in dict.fromkeys(options.seeds)
    ]


def main(given: list[str] | None = None) -> list[Outcome]:
    """Run, print the table, write CSV, Markdown and pictures."""
    options = arguments(given)
    console = Console(width=None if sys.stdout.isatty() else 110)
    runs = planned(options)
    results = run_all(runs, train, folder=options.output, console=console, machines=Machines.of(options))
    outcomes = [Outcome(run, result) for run, result in zip(runs, results, strict=True)]
    write_csv(outcomes, options.output / "runs.csv")
    (options.output / "table.md").write_text(markdown(outcomes), encoding="utf-8")
    plot_curves(outcomes, options.output / "curves.png")
    plot_paths(outcomes, options.output / "paths.png")
    console.print(table_of(outcomes))
    written = sorted(path.name for path in options.output.iterdir() if path.is_file())
    console.print(f"wrote {', '.join(written)} to {options.output}")
    return outcomes


if __name__ == "__main__":
    with in_a_line():
        main()
