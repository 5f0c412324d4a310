"""Learn to predict the scores of a linear program, by losses and rules that look at the decision.

A linear model predicts the costs of arcs (shortest path on a grid) or the values of items (relaxed knapsack) from
features. The truth is a polynomial of the features; with a degree above 1 no linear model is right, and the one with
the least squared error need not be the one that decides best. Each method trains the model for its own loss, and all
are measured by the normalized regret of their decisions on test instances.

    python examples/decision_focused.py              degree 4 with noise, 2 seeds, about a minute
    python examples/decision_focused.py --degrees 1 2 4 --noise 0 0.5 --seeds 0 1 2 3 4 5 6 7 8 9 --epochs 12 \
        --output out/decision_study                  the study of docs/results.md

Finished runs stay in the output folder and are not done again.

References: Elmachtoub and Grigas (2022), Smart "predict, then optimize"; Berthet et al. (2020), perturbed optimizers;
Niculae et al. (2018), SparseMAP; Vlastelica et al. (2020), blackbox interpolation; Sahoo et al. (2023), identity; Peng,
Thomson and Smith (2018), SPIGOT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from decision_methods import METHODS, TWO_STAGE
from decision_problems import PROBLEMS
from decision_report import Outcome, markdown, plot_differences, plot_regrets, tables, write_csv
from decision_training import Run, train
from rich.console import Console
from sweep import Machines, add_arguments, in_a_line, run_all

DEFAULT_METHODS = [TWO_STAGE, *(name for name in METHODS if not name.endswith(("-hamming", "-units")))]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--degrees", nargs="+", type=int, default=[4], help="of the polynomial (default 4)")
    parser.add_argument("--noise", nargs="+", type=float, default=[0.5], help="half-widths (default 0.5)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[TWO_STAGE, *METHODS],
        default=DEFAULT_METHODS,
        metavar="METHOD",
        help=", ".join([TWO_STAGE, *METHODS]) + " (default: all but those with a Hamming loss or in units)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train-instances", type=int, default=1000)
    parser.add_argument("--dev-instances", type=int, default=250)
    parser.add_argument("--test-instances", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("out/decision_focused"))
    add_arguments(parser)
    options = parser.parse_args(given)
    for name in ("epochs", "train_instances", "dev_instances", "test_instances"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, but is {getattr(options, name)}")
    if min(options.degrees) < 1:
        parser.error(f"--degrees must be at least 1, but are {options.degrees}")
    if not all(0 <= noise <= 1 for noise in options.noise):
        parser.error(f"--noise must be between 0 and 1, but is {options.noise}")
    return options


def planned(options: argparse.Namespace) -> list[Run]:
    """Every method on every draw of every problem."""
    sizes = (options.train_instances, options.dev_instances, options.test_instances)
    return [
        Run(problem, degree, noise, method, seed, options.epochs, sizes)
        for problem in dict.fromkeys(options.problems)
        for degree in dict.fromkeys(options.degrees)
        for noise in dict.fromkeys(options.noise)
        for method in dict.fromkeys(options.methods)
        for seed in dict.fromkeys(options.seeds)
    ]


def main(given: list[str] | None = None) -> list[Outcome]:
    """Run, print the tables, write CSV, Markdown and pictures."""
    options = arguments(given)
    console = Console()
    runs = planned(options)
    console.print(
        f"{len(runs)} runs; each learns from {options.train_instances} instances, chooses on {options.dev_instances} "
        f"and is measured on {options.test_instances}"
    )
    results = run_all(runs, train, folder=options.output, console=console, machines=Machines.of(options))
    outcomes = [Outcome(run, result) for run, result in zip(runs, results, strict=True)]
    write_csv(outcomes, options.output / "runs.csv", options.output / "candidates.csv")
    (options.output / "table.md").write_text(markdown(outcomes))
    plot_regrets(outcomes, options.output / "regrets.png")
    plot_differences(outcomes, options.output / "differences.png")
    for heading, table in tables(outcomes):
        console.print(heading, table, sep="\n")
    written = sorted(path.name for path in options.output.iterdir() if path.is_file())
    console.print(f"wrote {', '.join(written)} to {options.output}")
    return outcomes


if __name__ == "__main__":
    with in_a_line():
        main()
