"""Learn latent syntax from semantic roles: backward rules compared on one joint model.

A BiLSTM scores dependency arcs, an OptLayer over the arborescence polytope turns them into a tree, and the tree feeds
a scorer of semantic roles. As in Peng, Thomson and Smith (2018, Backpropagating through Structured Argmax using a
SPIGOT), both are trained together: roles everywhere, and trees on a fraction of the sentences. Predicates are given,
as is usual in semantic role labelling; the task is to find and label their arguments. The rules are those of the
paper (pipeline, straight-through, structured attention, SPIGOT) and SparseMAP.

    python examples/syntax_to_semantics.py                              a corpus that it draws itself, about a minute
    python examples/syntax_to_semantics.py --data DIR --max-words 20    .sdp files with trees, *train.sdp and *dev.sdp

Trees of any size come from the oracle of the arborescence: Chu-Liu-Edmonds for the best one, an active set over it for
projections, the matrix-tree theorem for marginals.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from dependency_data import read_sdp, sample_corpus
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from semantic_report import markdown, plot_results, plot_trees, summary, table, write_csv
from semantic_training import MARKS, RULES, Corpus, Result, Run, train

SIGNAL = {
    "pipeline": 1.0,
    "ste": 0.03,
    "structured_attention": 1.0,
    "spigot": 0.1,
    "spigot_in_units": 0.1,
    "sparsemap": 1.0,
}
"""The factor on each rule's gradient: the best of 1, 0.3, 0.1 and 0.03 on dev, see docs/results.md."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=list(RULES),
        default=[name for name in RULES if not name.endswith("in_units")],
        metavar="RULE",
        help=", ".join(RULES) + " (default: all but those in units)",
    )
    parser.add_argument(
        "--marks", action=argparse.BooleanOptionalAction, default=True, help="also without and with gold trees"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="a folder with *train.sdp and *dev.sdp; default: a drawn corpus")
    parser.add_argument("--max-words", type=int, default=7, help="longer sentences are left out (default 7)")
    parser.add_argument("--train-sentences", type=int, default=600, help="at most so many (default 600)")
    parser.add_argument("--dev-sentences", type=int, default=200, help="at most so many (default 200)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--tree-fraction", type=float, default=0.2, help="of training trees that may be seen (default 0.2)"
    )
    parser.add_argument(
        "--tree-weight", type=float, default=1.0, help="of the tree loss beside the role loss (default 1)"
    )
    parser.add_argument("--clip-norm", type=float, default=1.0, help="of the gradient that reaches a tree (default 1)")
    parser.add_argument("--signal", nargs="+", default=[], metavar="RULE=FACTOR", help=f"defaults: {SIGNAL}")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--output", type=Path, default=Path("out/syntax_to_semantics"))
    options = parser.parse_args(given)
    options.signal = SIGNAL | dict(_factor(parser, text) for text in options.signal)
    for name in ("max_words", "train_sentences", "dev_sentences", "epochs", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= options.tree_fraction <= 1:
        parser.error("--tree-fraction must be between 0 and 1")
    return options


def _factor(parser: argparse.ArgumentParser, text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in RULES:
        parser.error(f"--signal {text}: expected RULE=FACTOR with one of {', '.join(RULES)}")
    try:
        return name, float(value)
    except ValueError:
        return parser.error(f"--signal {text}: {value!r} is no number")


def load_corpus(options: argparse.Namespace) -> Corpus:
    """The corpus of ``--data``, or one drawn from the grammar (always the same)."""
    if options.data is None:
        count = options.train_sentences + options.dev_sentences
        drawn = sample_corpus(count, options.max_words, seed=0)
        return Corpus(drawn[: options.train_sentences], drawn[options.train_sentences :])
    parts = {}
    for part in ("train", "dev"):
        files = sorted(options.data.glob(f"*{part}.sdp"))
        if len(files) != 1:
            raise SystemExit(f"expected one file *{part}.sdp in {options.data}, found {len(files)}")
        parts[part] = read_sdp(files[0], options.max_words)
        if not parts[part]:
            raise SystemExit(f"{files[0]} has no sentence of at most {options.max_words} words")
    return Corpus(parts["train"][: options.train_sentences], parts["dev"][: options.dev_sentences])


def planned(options: argparse.Namespace) -> list[Run]:
    """Every rule and mark with every seed, the slow ones first."""
    names = [*reversed(options.rules), *(MARKS if options.marks else ())]
    return [
        Run(
            name,
            seed,
            options.epochs,
            options.tree_fraction,
            options.tree_weight,
            options.signal.get(name, 1.0),
            options.clip_norm,
        )
        for name in names
        for seed in options.seeds
    ]


def work(run: Run, corpus: Corpus, messages: Any) -> Result:
    """One run in a process of its own; an epoch is a message."""
    torch.set_num_threads(1)
    return train(run, corpus, lambda: messages.put(run.name))


def run_all(runs: list[Run], corpus: Corpus, jobs: int, console: Console, csv: Path) -> list[Result]:
    """All runs, ``jobs`` at a time, with a progress bar over epochs; ``csv`` grows with every run that ends."""
    context = multiprocessing.get_context("spawn")
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
        Progress(*columns, console=console) as progress,
    ):
        messages = manager.Queue()
        bar = progress.add_task("epochs", total=sum(r.epochs for r in runs))
        waiting: set[Future[Result]] = set()
        finished: list[Result] = []
        futures = [pool.submit(work, run, corpus, messages) for run in runs]
        waiting.update(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                finished.append(future.result())  # an error of a run ends the program here
            if done:
                write_csv(finished, csv)
                if not console.is_terminal:  # where a bar does not show
                    console.print(f"{len(finished)} of {len(runs)} runs: {summary(finished[-1])}", soft_wrap=True)
            _drain(messages, progress, bar)
        return [future.result() for future in futures]


def _drain(messages: Any, progress: Progress, bar: Any) -> None:
    while True:
        try:
            name = messages.get_nowait()
        except queue.Empty:
            return
        progress.update(bar, advance=1, description=f"epochs ({name})")


def main(given: list[str] | None = None) -> list[Result]:
    """Run, print the table, write CSV, Markdown and pictures."""
    options = arguments(given)
    console = Console()
    corpus = load_corpus(options)
    source = options.data.name if options.data else "a drawn corpus"
    console.print(
        f"{len(corpus.train)} training and {len(corpus.dev)} dev sentences of at most {options.max_words} words from "
        f"{source}; {options.tree_fraction:.0%} of the training trees are seen"
    )
    runs = planned(options)
    options.output.mkdir(parents=True, exist_ok=True)
    results = run_all(runs, corpus, min(options.jobs, len(runs)), console, options.output / "runs.csv")
    write_csv(results, options.output / "runs.csv")
    (options.output / "table.md").write_text(markdown(results))
    plot_results(results, options.output / "results.png")
    plot_trees(results, corpus.drawn, options.output / "trees.png")
    console.print(table(results, f"dev, mean and 95 % interval over {len(options.seeds)} seeds"))
    console.print(f"wrote {', '.join(p.name for p in sorted(options.output.iterdir()))} to {options.output}")
    return results


if __name__ == "__main__":
    main()
