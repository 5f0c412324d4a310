"""Classify sentiment through a latent semantic graph: backward rules compared on one joint model.

The second experiment of Peng, Thomson and Smith (2018, Backpropagating through Structured Argmax using a SPIGOT). A
BiLSTM is pretrained to score semantic graphs: which words are predicates, and which words fill their roles. Then it is
trained with a classifier of sentiment, by the labels of sentences alone: an OptLayer over the polytope of graphs builds
a graph, in which the words of the classifier see their heads and their arguments. The rules are those of the paper
(pipeline, whose parser stays fixed, straight-through, structured attention, SPIGOT), SparseMAP, SPIGOT-EG and Gumbel
straight-through; beside them a classifier without a graph, and one with the true graph where it is known.

    python examples/semantics_to_sentiment.py              corpora that it draws itself, two or three minutes
    python examples/semantics_to_sentiment.py --graphs train.sdp --train train --dev dev --seeds 0 1 2 3 4 --tries 8

``--graphs`` takes an .sdp file (see dependency_data.py), the others files of sentences with labels (see
sentiment_data.py). With ``--tries`` every rule gets that many settings of learning rate, signal and strength (its own
hyperparameter), the defaults and the same points of a Halton sequence for all, on a seed that is not reported; the best
on dev is run with all seeds. Without, the defaults below are taken. Every run reports the epoch that is best on dev;
``--test`` is looked at once, after that epoch. Finished runs are kept in ``--output``, and a second start goes on from
there.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dependency_data import FormatError
from halton import log_points
from rich.console import Console
from sentiment_data import Corpus, read_graphs, read_opinions, sample_graphs, sample_opinions
from sentiment_model import MARKS, RULES
from sentiment_report import Result, markdown, plot_graphs, plot_results, tables, write_csv
from sentiment_training import Run, work
from sweep import Machines, add_arguments, in_a_line, run_all

DRAWN = {"graph_sentences": 600, "train_sentences": 800, "dev_sentences": 300}
DRAWN |= {"epochs": 10, "parser_epochs": 15, "hidden": 64, "parser_rate": 5e-3}
FILES = {"graph_sentences": None, "train_sentences": None, "dev_sentences": None}
FILES |= {"epochs": 8, "parser_epochs": 6, "hidden": 100, "parser_rate": 2e-3}
"""What options are by default, for corpora that are drawn and for files."""
DRAWN_TEST = 500
TRY_SEED = 1000
"""Of the runs that choose settings."""
RATE, SIGNAL = 5e-3, 0.03
RATES, SIGNALS = (5e-4, 1e-2), (3e-3, 0.3)
"""Defaults, and where settings are tried."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_argument_group("files (default: corpora that are drawn)")
    files.add_argument("--graphs", type=Path, help="sentences with semantic graphs, .sdp")
    files.add_argument("--graphs-dev", type=Path, help="to measure parsing on (default: every tenth of --graphs)")
    files.add_argument("--train", type=Path, help="sentences with labels to train on")
    files.add_argument("--dev", type=Path, help="to choose epochs and settings by")
    files.add_argument("--test", type=Path, help="to report on, once (default: none)")
    parser.add_argument(
        "--rules", nargs="+", choices=list(RULES), default=list(RULES), metavar="RULE", help=f"of {', '.join(RULES)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and orders (default 0 1 2)")
    parser.add_argument("--tries", type=int, default=0, help="settings tried for every rule (default 0: the defaults)")
    parser.add_argument(
        "--max-words",
        type=int,
        default=60,
        help="longer sentences are left out of --graphs; a longer sentence with a label has a graph over "
        "its first words only, and counts like every other (default 60)",
    )
    for name in ("graph_sentences", "train_sentences", "dev_sentences"):
        parser.add_argument(
            _flag(name), type=int, help=f"at most so many (default: {DRAWN[name]} drawn, all of a file)"
        )
    for name in ("epochs", "parser_epochs", "hidden"):
        parser.add_argument(_flag(name), type=int, help=f"default: {DRAWN[name]} drawn, {FILES[name]} for files")
    parser.add_argument("--clip-norm", type=float, default=1.0, help="of the gradient that reaches a graph (default 1)")
    parser.add_argument("--output", type=Path, default=Path("out/semantics_to_sentiment"))
    add_arguments(parser)
    options = parser.parse_args(given)
    _check(parser, options)
    for name, value in (FILES if options.graphs else DRAWN).items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    return options


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    needed = {"--graphs": options.graphs, "--train": options.train, "--dev": options.dev}
    others = {"--graphs-dev": options.graphs_dev, "--test": options.test}
    missing = [name for name, path in needed.items() if path is None]
    if missing and any(path is not None for path in (needed | others).values()):
        parser.error(f"files are given, but not {' and '.join(missing)}; --graphs, --train and --dev belong together")
    for name, least in (
        ("tries", 0),
        ("max_words", 1),
        ("graph_sentences", 10),
        ("train_sentences", 2),
        ("dev_sentences", 1),
        ("epochs", 1),
        ("parser_epochs", 1),
        ("hidden", 1),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"{_flag(name)} must be at least {least}, but is {value}")
    if not options.clip_norm > 0:
        parser.error(f"--clip-norm must be above 0, but is {options.clip_norm}")
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        parser.error(f"--seeds must be different and not negative, but are {' '.join(map(str, options.seeds))}")
    if options.tries and TRY_SEED in options.seeds:
        parser.error(f"--seeds must not have {TRY_SEED}, on which settings are tried: what was chosen is not reported")


def load_corpus(options: argparse.Namespace) -> Corpus:
    """The corpus of the files, or one that is drawn (always the same).

    Raises
    ------
    FormatError : for a malformed file, or one with too few sentences.
    OSError : for a file that cannot be read.
    """
    if options.graphs is None:
        graphs = sample_graphs(options.graph_sentences, seed=0)
        train, dev = sample_opinions(options.train_sentences, seed=1), sample_opinions(options.dev_sentences, seed=2)
        return Corpus(*_tenth_apart(graphs), train, dev, sample_opinions(DRAWN_TEST, seed=3), options.max_words)
    graphs = _spread(read_graphs(options.graphs, options.max_words), options.graph_sentences)
    if options.graphs_dev is not None:
        graphs_dev = read_graphs(options.graphs_dev, options.max_words)
    elif len(graphs) >= 10:
        graphs, graphs_dev = _tenth_apart(graphs)
    else:
        raise FormatError(
            f"{options.graphs}: expected at least 10 sentences of at most {options.max_words} words, to hold a tenth "
            f"out, found {len(graphs)}; or give --graphs-dev"
        )
    train = _spread(read_opinions(options.train), options.train_sentences)
    if len({o.label for o in train}) < 2:
        raise FormatError(
            f"{options.train}: expected sentences of both labels to train on, found {len(train)} with label "
            f"{train[0].label}"
        )
    dev = _spread(read_opinions(options.dev), options.dev_sentences)
    test = [] if options.test is None else read_opinions(options.test)
    return Corpus(graphs, graphs_dev, train, dev, test, options.max_words)


def _spread(sentences: list[Any], most: int | None) -> list[Any]:
    """At most so many, evenly from all of a file: files are often sorted by label or by source."""
    if most is None or len(sentences) <= most:
        return sentences
    return [sentences[k * len(sentences) // most] for k in range(most)]


def _tenth_apart(sentences: list[Any]) -> tuple[list[Any], list[Any]]:
    return [s for k, s in enumerate(sentences) if k % 10 != 9], sentences[9::10]


def described(corpus: Corpus) -> str:
    """How many sentences there are, and how many have a graph over all of their words."""
    most = corpus.max_words
    parts = {"train": corpus.train, "dev": corpus.dev, "test": corpus.test}
    labelled = [
        f"{len(opinions)} {name} ({sum(len(o) > most for o in opinions)} longer)"
        for name, opinions in parts.items()
        if opinions
    ]
    return (
        f"{len(corpus.graphs)} sentences with graphs to learn parsing, {len(corpus.graphs_dev)} to measure it, of at "
        f"most {most} words\n{', '.join(labelled)} sentences with labels; a longer one has a graph over its first "
        f"{most} words, and counts like the others"
    )


def shared(options: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """What all runs of a folder have in common. Not --test: a run with a test is another run, and tries have none."""
    return {
        "graphs": [_named(options.graphs), len(corpus.graphs)],
        "graphs_dev": [_named(options.graphs_dev), len(corpus.graphs_dev)],
        "train": [_named(options.train), len(corpus.train)],
        "dev": [_named(options.dev), len(corpus.dev)],
        "max_words": corpus.max_words,
    }


def _named(path: Path | None) -> str:
    """A file by its name and what it holds."""
    if path is None:
        return "drawn"
    with path.open("rb") as stream:
        return f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()[:12]}"


def default_run(name: str, options: argparse.Namespace) -> Run:
    """With the defaults of learning rate, signal and strength; its seed is yet to come."""
    strength = RULES[name].strength if name in RULES else None
    return Run(
        name,
        -1,
        options.epochs,
        RATE,
        SIGNAL,
        strength,
        options.clip_norm,
        options.hidden,
        options.parser_epochs,
        options.parser_rate,
    )


def tried(run: Run, tries: int) -> list[Run]:
    """The defaults, then settings on a logarithmic scale, the same for every rule; some rules have no strength."""
    ranges = [RATES, SIGNALS, (RULES[run.rule].range if run.rule in RULES else None) or (1.0, 10.0)]
    drawn = [
        replace(run, learning_rate=rate, signal=signal, strength=None if run.strength is None else strength)
        for rate, signal, strength in log_points(tries - 1, ranges, seed=TRY_SEED)
    ]
    return [run, *drawn]


@dataclass(frozen=True)
class Study:
    """What is asked for, the corpus for it, and ``ask``, which does runs or finds their results in the folder."""

    options: argparse.Namespace
    corpus: Corpus
    console: Console
    ask: Callable[..., list[dict[str, Any]]]

    def pretrained(self, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
        """A parser for each seed: its weights and its labelled F1."""
        self.console.print(f"{len(seeds)} parsers to pretrain:")
        runs = [replace(default_run("no graph", self.options), seed=seed).parser for seed in seeds]
        return dict(zip(seeds, self.ask(runs, partial(work, corpus=self.corpus, parsers={})), strict=True))

    def results(self, runs: Sequence[Run], parsers: dict[int, dict[str, Any]]) -> list[Result]:
        """Of runs that start from these parsers."""
        weights = {seed: kept["weights"] for seed, kept in parsers.items()}
        kept = self.ask(runs, partial(work, corpus=self.corpus, parsers=weights))
        return [Result(r, k, parsers[r.seed]["f1_best"]) for r, k in zip(runs, kept, strict=True)]

    def chosen(self, runs: Sequence[Run], parsers: dict[int, dict[str, Any]]) -> list[Run]:
        """Each run with the settings that are best on dev, among as many tries for each; without tries as it is."""
        count = self.options.tries
        if not count:
            return list(runs)
        self.console.print(f"{count} settings for each of {len(runs)} rules, of which the best on dev are taken:")
        tries = [replace(run, seed=TRY_SEED) for one in runs for run in tried(one, count)]
        results = self.results(tries, parsers)
        write_csv(results, self.options.output / "tries.csv")
        groups = [results[k : k + count] for k in range(0, len(results), count)]
        return [max(group, key=lambda r: r.accuracy("dev")).run for group in groups]

    def report(self, results: Sequence[Result]) -> None:
        """Print the tables; write CSV, Markdown and pictures."""
        folder = self.options.output
        write_csv(results, folder / "runs.csv")
        (folder / "table.md").write_text(markdown(results))
        plot_results(results, folder / "results.png")
        plot_graphs(results, self.corpus.drawn, folder / "graphs.png")
        for table in tables(results):
            self.console.print(table)
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        self.console.print(f"wrote {', '.join(files)} to {folder}")


def main(given: list[str] | None = None) -> list[Result]:
    """Pretrain parsers, choose settings, run, and report."""
    options = arguments(given)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        corpus = load_corpus(options)
        common = shared(options, corpus)
        test = _named(options.test) if corpus.test else ""
    except (FormatError, OSError) as error:
        raise SystemExit(str(error)) from error
    console.print(described(corpus), soft_wrap=True)

    def ask(runs: Sequence[Any], of: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
        machines = Machines.of(options)
        with in_a_line():
            return run_all(runs, of, folder=options.output, shared=common, machines=machines, console=console)

    study = Study(options, corpus, console, ask)
    known = any(o.sentence.roles for o in corpus.train)
    names = [name for name in (*MARKS, *dict.fromkeys(options.rules)) if name != "gold graph" or known]
    parsers = study.pretrained([*options.seeds, *([TRY_SEED] if options.tries else [])])
    best = study.chosen([default_run(name, options) for name in names], parsers)
    console.print(f"{len(best)} rules with seeds {' '.join(map(str, options.seeds))}:")
    runs = [replace(run, seed=seed, test=test) for run in reversed(best) for seed in options.seeds]  # slow ones first
    results = study.results(runs, parsers)
    study.report(results)
    return results


if __name__ == "__main__":
    main()
