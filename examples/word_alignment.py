"""Word alignment by partial matchings that are declared in two lines: every loss and every rule with the same scorer.

Two sentences that say the same have words that go together; a word has at most one partner. The polytope of such
partial matchings is declared below, once for sentences of all lengths (``ol.Family``). A small model scores pairs of
words, and learns from gold links by a *loss*, which compares its scores with a gold structure, or through a *rule*, by
the soft F1 of what a layer makes of its scores.

    python examples/word_alignment.py                           an invented language, a minute
    python examples/word_alignment.py --data SURE --possible ALL --folds 5 --jobs 2
                                        gold.train.sure.json and gold.train.sure+poss.json of the Edinburgh paraphrases

Gold has words with several partners, and then it is no structure: losses refuse it, and are given the nearest point of
the polytope instead, in which such a word has a part of each partner, a mixture of matchings. F1 takes gold as it is.

Every pair is in the test part of one fold. Learning rate (of several), epoch and the cost of a link are chosen on
another part, dev. Scores become links in two ways: the best matching, where every link costs that much; or "one by
one", every pair of words whose score is above a threshold, which finds words with several partners, too. "best within
gold" is the best that a matching can do. "AER" is the error rate of alignments; without ``--possible`` it is 1 less F1.
Gains over the first line are paired by fold. Intervals are over folds, whose models share most of their pairs, and so
are a little narrow.

A conditional random field is missing: the sum over matchings is a permanent, and ``CRFLoss`` and
``StructuredAttention`` end at some 9 words. The Fenchel-Young loss with the entropy of parts comes closest.

Reference: Och and Ney (2003), A systematic comparison of various statistical alignment models.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cvxpy as cp
import torch
from alignment_data import Pair, read_pairs, sample_pairs, three_parts
from alignment_model import Batch, Measure, Scorer, best_cost, logistic, lost_links, one_by_one, vocabulary
from alignment_report import best_on_dev, draw, table_of
from kept_runs import hash_of
from rich.console import Console
from sweep import Machines, add_arguments, in_a_line, run_all
from torch import Tensor

import optlayers as ol


def partial_matching(rows: int, columns: int) -> ol.Polytope:
    """Every word has at most one partner."""
    x = cp.Variable((rows, columns), nonneg=True)
    return ol.Polytope(x, [cp.sum(x, axis=1) <= 1, cp.sum(x, axis=0) <= 1])


ALIGNMENTS = ol.Family(partial_matching, round_to=4, cache_size=256)
BEST = ol.OptLayer(ALIGNMENTS, ol.Pipeline())
NEAREST = ol.OptLayer(ALIGNMENTS, ol.SparseMAP())

FOLDS = 30
"""At most, for parts that are worth a test."""
Objective = Callable[[Tensor, Batch], Tensor]
"""What is to become small, a sum over pairs, of the scores of a batch."""
OPTIONS: dict[str, Any] = {"reduction": "sum", "validate": False}  # structures are projections, and so in the polytope
LOSSES: dict[str, ol.AbstractLoss] = {
    "perceptron": ol.StructuredPerceptronLoss(ALIGNMENTS, **OPTIONS),
    "hinge": ol.StructuredHingeLoss(ALIGNMENTS, **OPTIONS),
    "SparseMAP loss": ol.SparseMAPLoss(ALIGNMENTS, **OPTIONS),
    "Fenchel-Young, entropy": ol.FenchelYoungLoss(ALIGNMENTS, ol.Entropy(), **OPTIONS),
    "Fenchel-Young, Tsallis 1.5": ol.FenchelYoungLoss(ALIGNMENTS, ol.Tsallis(1.5), **OPTIONS),
    "Fenchel-Young, perturbed": ol.PerturbedFenchelYoungLoss(ALIGNMENTS, **OPTIONS),
}
RULES: dict[str, ol.AbstractRule] = {
    "SparseMAP": ol.SparseMAP(),
    "entropy": ol.Regularized(ol.Entropy()),
    "straight-through": ol.StraightThrough(),
    "identity": ol.Identity(),
    "SPIGOT": ol.Spigot(),
    "hard SparseMAP": ol.Hard(ol.SparseMAP()),
    "interpolation": ol.Interpolation(1.0),
    "I-MLE": ol.IMLE(strength=1.0),
    "perturbed": ol.PerturbedAdditive(),
}
ALONE: dict[str, Objective] = {
    "no structure, logistic": logistic,
    "no structure, soft F1": lambda scores, batch: lost_links(torch.sigmoid(scores) * batch.inside, batch),
}
LINES = [*ALONE, *LOSSES, *RULES]


def objective_of(line: str) -> Objective:
    """How a line of the table learns."""
    if line in LOSSES:
        loss = LOSSES[line]
        return lambda scores, batch: loss(scores, batch.structure, sizes=batch.sizes)
    if line in RULES:
        layer = ol.OptLayer(ALIGNMENTS, RULES[line])
        return lambda scores, batch: lost_links(layer(scores, sizes=batch.sizes), batch)
    return ALONE[line]


def matching(scores: Tensor, batch: Batch, cost: float) -> Tensor:
    """The best partial matching when every link costs something."""
    return BEST(scores - cost, sizes=batch.sizes)


@dataclass(frozen=True)
class Run:
    """A line of the table with a learning rate, learned without the pairs of a fold."""

    line: str
    fold: int
    rate: float
    epochs: int


def train(run: Run, *, pairs: Sequence[Pair], held_out: Sequence[Pair], folds: int) -> dict[str, Any]:
    """Adam; of the epoch that is best on dev, what :func:`alignment_report.table_of` asks for."""
    torch.manual_seed(run.fold)
    parts = three_parts(pairs, run.fold, folds, held_out)
    words = vocabulary(parts[0])
    learn, dev, test = (Batch.of(part, words) for part in parts)
    if run.line in LOSSES:
        learn = replace(learn, structure=NEAREST(learn.sure, sizes=learn.sizes))
    model, objective = Scorer(len(words) + 1), objective_of(run.line)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.rate)
    best, cost, kept, seconds = -1.0, 0.0, model.state_dict(), 0.0
    for _ in range(run.epochs):
        start = time.perf_counter()
        for index in torch.randperm(len(learn.sizes)).split(32):
            batch = learn.take(index)
            optimizer.zero_grad()
            objective(model(batch), batch).backward()
            optimizer.step()
        seconds += (time.perf_counter() - start) / run.epochs
        with torch.no_grad():
            f1, at = best_cost(model(dev), dev, matching)
        if f1 > best:
            best, cost, kept = f1, at, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    with torch.no_grad():
        scores = model(test)
        links = matching(scores, test, cost)
        alone = one_by_one(scores, test, best_cost(model(dev), dev, one_by_one)[1])
    measured = {"dev": best, "test": asdict(Measure.of(links, test)), "alone": Measure.of(alone, test).f1}
    return {**measured, "links": [each.nonzero().tolist() for each in links], "seconds": seconds}


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line, with the pairs that it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file of the corpus with sure links (default: invented pairs)")
    parser.add_argument("--possible", type=Path, help="the same pairs with all links, for the error rate of alignments")
    parser.add_argument("--test", type=Path, help="pairs to report on, instead of a fold")
    parser.add_argument("--max-words", type=int, default=100, help="sentences have at most so many (100)")
    parser.add_argument("--lines", nargs="+", choices=LINES, default=LINES, metavar="LINE", help=", ".join(LINES))
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.02, 0.1], help="learning rates (0.02 0.1)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("out/word_alignment"))
    add_arguments(parser)
    options = parser.parse_args(given)
    if not 3 <= options.folds <= FOLDS or options.epochs < 1 or not min(options.rates) > 0:
        parser.error(f"--folds must be from 3 to {FOLDS}, --epochs at least 1, --rates positive")
    if options.possible and not options.data:
        parser.error("--possible has further links of the pairs of --data, which is not given")
    options.pairs, options.held_out = sample_pairs(120, random.Random(0)), []
    try:
        if options.data:
            options.pairs = read_pairs(options.data, options.max_words, options.possible, least=options.folds)
        if options.test:
            options.held_out = read_pairs(options.test, options.max_words)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return options


def main(given: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Run all lines, folds and learning rates; print the table of the rates that are best on dev; draw."""
    options = arguments(given)
    console = Console(width=None if sys.stdout.isatty() else 140)
    runs = [Run(*each, options.epochs) for each in product(options.lines, range(options.folds), options.rates)]
    work = partial(train, pairs=options.pairs, held_out=options.held_out, folds=options.folds)
    shared = {"pairs": hash_of(options.pairs), "held out": hash_of(options.held_out), "folds": options.folds}
    results = run_all(runs, work, folder=options.output, shared=shared, machines=Machines.of(options), console=console)
    chosen = best_on_dev(runs, results)
    tests = [three_parts(options.pairs, k, options.folds, options.held_out)[2] for k in range(options.folds)]
    bound = [Measure.of(matching(gold.sure, gold, 0.5), gold) for gold in (Batch.of(test, {}) for test in tests)]
    console.print(f"{len(options.pairs)} pairs, {len(tests[0])} of them in the test part of the first fold")
    console.print(table_of(chosen, bound))
    draw(chosen, tests[0], options.output / "alignments.png")
    console.print(f"wrote {options.output / 'alignments.png'}")
    return chosen


if __name__ == "__main__":
    from word_alignment import main  # not this one of __main__, which other processes cannot import

    with in_a_line():
        main()
