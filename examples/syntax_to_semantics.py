"""Learn latent syntax from semantic roles: backward rules compared on one joint model.

A BiLSTM scores dependency arcs, an OptLayer over the arborescence polytope turns them into a tree, and the tree feeds
a scorer of semantic roles. As in Peng, Thomson and Smith (2018, Backpropagating through Structured Argmax using a
SPIGOT), both are trained together: roles everywhere, and trees on a fraction of the sentences. Predicates are given,
as is usual in semantic role labelling; the task is to find and label their arguments. The rules are those of the
paper (pipeline, straight-through, structured attention, SPIGOT), SparseMAP and SPIGOT-EG.

    python examples/syntax_to_semantics.py                              a corpus that it draws itself, about a minute
    python examples/syntax_to_semantics.py --data DIR --max-words 20    .sdp files with trees, *train.sdp and *dev.sdp
    python examples/syntax_to_semantics.py --data DIR --max-words 20 --tree-fractions 0.2 0.01 0.05 1 --tries 6 \
        --seeds 0 1 2 3 4 --test FILE                                   the study of docs/results.md

With ``--tries`` every rule is trained so often, with as many factors on its gradient and step sizes, on a seed that is
not reported and the first of the fractions; what is best on dev is taken, so that dev is optimistic for rules that have
something to choose. ``--test FILE`` is measured once for every run, after its last epoch, and reported in place of dev.
Runs that are finished are kept in ``--output``, and a second start goes on from there.

Trees of any size come from the oracle of the arborescence: Chu-Liu-Edmonds for the best one, an active set over it for
projections, the matrix-tree theorem for marginals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dependency_data import FormatError, Sentence, read_sdp, sample_corpus
from kept_runs import hash_of
from rich.console import Console
from semantic_measures import Result
from semantic_report import gains_table, markdown, plot_fractions, plot_results, plot_trees, table, write_csv
from semantic_rules import MARKS, RULES, tries
from semantic_training import Corpus, Run, train
from sweep import Machines, add_arguments, in_a_line, run_all

DEFAULT = ["pipeline", "ste", "structured_attention", "spigot", "sparsemap"]
DRAWN = (600, 200)
"""So many training and dev sentences are drawn where no files are given."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=list(RULES),
        default=DEFAULT,
        metavar="RULE",
        help=f"some of {', '.join(RULES)} (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--marks", action=argparse.BooleanOptionalAction, default=True, help="also without and with gold trees"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="a folder with *train.sdp and *dev.sdp; default: a drawn corpus")
    parser.add_argument("--test", type=Path, help="an .sdp file to report on in place of dev")
    parser.add_argument("--max-words", type=int, default=7, help="longer sentences are left out (default 7)")
    parser.add_argument("--train-sentences", type=int, help=f"at most so many (default: all; {DRAWN[0]} drawn ones)")
    parser.add_argument("--dev-sentences", type=int, help=f"at most so many (default: all; {DRAWN[1]} drawn ones)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="falls linearly to 0 (default 0.004)")
    parser.add_argument(
        "--tree-fractions",
        nargs="+",
        type=float,
        default=[0.2],
        help="of training trees that may be seen (default 0.2)",
    )
    parser.add_argument(
        "--tree-weight", type=float, default=1.0, help="of the tree loss beside the role loss (default 1)"
    )
    parser.add_argument("--clip-norm", type=float, default=1.0, help="of the gradient that reaches a tree (default 1)")
    parser.add_argument("--tries", type=int, default=0, help="so many settings of every rule are tried (default: none)")
    parser.add_argument("--try-seed", type=int, default=100, help="of the runs that choose (default 100)")
    parser.add_argument("--try-epochs", type=int, help="of the runs that choose (default: as many as --epochs)")
    parser.add_argument(
        "--signal", nargs="+", default=[], metavar="RULE=FACTOR", help="on its gradient; defaults in semantic_rules.py"
    )
    parser.add_argument("--step", nargs="+", default=[], metavar="RULE=SIZE", help="step size; defaults likewise")
    parser.add_argument("--output", type=Path, default=Path("out/syntax_to_semantics"))
    add_arguments(parser)
    options = parser.parse_args(given)
    options.signal = dict(_number(parser, "--signal", text) for text in options.signal)
    options.step = dict(_number(parser, "--step", text) for text in options.step)
    for name in ("max_words", "train_sentences", "dev_sentences", "epochs", "try_epochs", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, but is {value}")
    for name in ("learning_rate", "clip_norm"):
        if not 0 < getattr(options, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be above 0, but is {getattr(options, name)}")
    if not 0 <= options.tree_weight < float("inf"):
        parser.error(f"--tree-weight must be at least 0, but is {options.tree_weight}")
    if not all(0 <= fraction <= 1 for fraction in options.tree_fractions):
        parser.error(f"--tree-fractions must be between 0 and 1, but are {options.tree_fractions}")
    if options.tries < 0:
        parser.error(f"--tries must be at least 0, but is {options.tries}")
    if options.tries and options.try_seed in options.seeds:
        parser.error("--try-seed must not be one of --seeds: what was chosen on a seed is not reported on it")
    return options


def _number(parser: argparse.ArgumentParser, option: str, text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in RULES:
        parser.error(f"{option} {text}: expected RULE=NUMBER with one of {', '.join(RULES)}")
    able = [rule for rule, choice in RULES.items() if (choice.steps if option == "--step" else choice.sends)]
    if name not in able:
        parser.error(f"{option} {text}: {name} has none; expected one of {', '.join(able)}")
    try:
        return name, float(value)
    except ValueError:
        return parser.error(f"{option} {text}: {value!r} is no number")


def load_corpus(options: argparse.Namespace) -> Corpus:
    """The corpus of ``--data``, or one drawn from the grammar (always the same); ``--test`` beside it."""
    test = read_part(options.test, options.max_words) if options.test is not None else []
    if options.data is None:
        sizes = options.train_sentences or DRAWN[0], options.dev_sentences or DRAWN[1]
        drawn = sample_corpus(sum(sizes), options.max_words, seed=0)
        return Corpus(drawn[: sizes[0]], drawn[sizes[0] :], test)
    parts = {}
    for part in ("train", "dev"):
        files = sorted(options.data.glob(f"*{part}.sdp"))
        if len(files) != 1:
            raise SystemExit(f"expected one file *{part}.sdp in {options.data}, found {len(files)}")
        parts[part] = read_part(files[0], options.max_words)
    return Corpus(parts["train"][: options.train_sentences], parts["dev"][: options.dev_sentences], test)


def read_part(path: Path, max_words: int) -> list[Sentence]:
    """The sentences of a file; ends the program where there is no file or no sentence, or a line is malformed."""
    try:
        sentences = read_sdp(path, max_words)
    except (OSError, FormatError) as error:
        raise SystemExit(str(error)) from error
    if not sentences:
        raise SystemExit(f"{path} has no sentence of at most {max_words} words")
    return sentences


def runs_of(
    options: argparse.Namespace, chosen: dict[str, tuple[float, float]], test: Sequence[Sentence] = ()
) -> list[Run]:
    """Every rule and mark with every fraction and seed, those of the first fraction first; marks see no trees.

    ``test`` is what is reported on in place of dev.
    """
    reported = identity_of(test) if test else ""
    seeds, rules = dict.fromkeys(options.seeds), dict.fromkeys(options.rules)
    marks = [run_of(options, name, seed, 0.0, (1.0, 1.0)) for name in MARKS for seed in seeds] if options.marks else []
    ruled = [
        run_of(options, name, seed, fraction, chosen[name])
        for fraction in dict.fromkeys(options.tree_fractions)
        for seed in seeds
        for name in rules
    ]
    return [replace(run, test=reported) for run in (*marks, *ruled)]


def run_of(options: argparse.Namespace, name: str, seed: int, fraction: float, setting: tuple[float, float]) -> Run:
    """One run, with a signal factor and a step size."""
    return Run(
        name,
        seed,
        fraction,
        *setting,
        epochs=options.epochs,
        tree_weight=options.tree_weight,
        clip_norm=options.clip_norm,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
    )


def tried_runs(options: argparse.Namespace) -> list[Run]:
    """The runs that choose: every rule on one seed and the first fraction, ``--tries`` times."""
    epochs = options.try_epochs or options.epochs
    return [
        replace(run_of(options, name, options.try_seed, options.tree_fractions[0], setting), epochs=epochs)
        for name, default in defaults(options).items()
        for setting in tries(name, options.tries, default)
    ]


def defaults(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Signal factor and step size of every rule, as the file of rules or the command line has them."""
    return {n: (options.signal.get(n, RULES[n].signal), options.step.get(n, RULES[n].step)) for n in options.rules}


def chosen_of(results: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """For every rule the setting with the best labelled F1 on dev."""
    best: dict[str, Result] = {}
    for result in results:
        name = result.run.name
        if name not in best or result.on_dev["labelled F1"] > best[name].on_dev["labelled F1"]:
            best[name] = result
    return {name: (result.run.signal, result.run.step) for name, result in best.items()}


def identity_of(sentences: Sequence[Sentence]) -> str:
    """How many sentences there are, and a hash of what they hold."""
    held = [(s.words, s.tags, s.heads, sorted(s.predicates), sorted(s.roles.items())) for s in sentences]
    return f"{len(held)} sentences {hash_of(held)}"


def results_of(
    runs: list[Run], corpus: Corpus, options: argparse.Namespace, folder: Path, console: Console
) -> list[Result]:
    """Do the runs that are not done yet."""
    kept = run_all(
        runs,
        partial(train, corpus=corpus),
        folder=folder,
        console=console,
        machines=Machines.of(options),
        shared={"train": identity_of(corpus.train), "dev": identity_of(corpus.dev)},
    )
    return [Result(run, one) for run, one in zip(runs, kept, strict=True)]


def main(given: list[str] | None = None) -> list[Result]:
    """Choose, run, print the tables, write CSV, Markdown and pictures."""
    options = arguments(given)
    console = Console(width=None if sys.stdout.isatty() else 140)
    corpus = load_corpus(options)
    source = options.data.name if options.data else "a drawn corpus"
    fractions = ", ".join(f"{fraction:.0%}" for fraction in options.tree_fractions)
    console.print(
        f"{len(corpus.train)} training and {len(corpus.dev)} dev sentences of at most {options.max_words} words from "
        f"{source}{f', {len(corpus.test)} to test' if corpus.test else ''}; {fractions} of the training trees are seen"
    )
    chosen = defaults(options)
    if options.tries:
        tried = results_of(tried_runs(options), corpus, options, options.output / "tries", console)
        write_csv(tried, options.output / "tries.csv")
        chosen = chosen_of(tried)
        for name, (signal, step) in chosen.items():
            console.print(f"{name}: signal {signal:g}" + (f", step {step:g}" if RULES[name].steps else ""))
    results = results_of(runs_of(options, chosen, corpus.test), corpus, options, options.output, console)
    write_csv(results, options.output / "runs.csv")
    (options.output / "table.md").write_text(markdown(results))
    plot_results(results, options.output / "results.png")
    plot_fractions(results, options.output / "fractions.png")
    plot_trees(results, corpus.drawn, options.output / "trees.png")
    for fraction in dict.fromkeys(options.tree_fractions):
        console.print(table(results, fraction))
        console.print(gains_table(results, fraction))
    written = sorted(path.name for path in options.output.iterdir() if path.suffix in (".csv", ".md", ".png"))
    console.print(f"wrote {', '.join(written)} to {options.output}")
    return results


if __name__ == "__main__":
    with in_a_line():
        main()
