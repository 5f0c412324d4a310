"""Word alignment by entropic partial matchings: temperatures, SparseMAP and no structure next to each other.

Two sentences that say the same have words that go together. A score for every pair of words comes from a small model:
a few features of both, and vectors of words. A layer turns scores into a soft alignment, in which a word has at most
one partner in total: the point of the polytope {x >= 0, rows and columns of at most 1} under an entropy with a
temperature, or the nearest one (SparseMAP). All batches hold sentences of mixed length (``ol.Family``). Models are
trained for the soft F1 of what the layer gives, against gold links; the gradient goes through the layer.

    python examples/entropic_alignment.py                  an invented language, a minute
    python examples/entropic_alignment.py --data FILE      gold.train.sure+poss.json of the Edinburgh paraphrase corpus

A soft alignment is turned into links in two ways: its best matching, one to one; and all parts above a threshold that
is chosen on dev, so that a word that is half in two places may have both. The table has the error rate of alignments
(Och and Ney, 2003) and F1 for sure links. The picture has one pair under each temperature, and the trade between
precision and recall.

What to look for: "no structure" (each pair of words by itself, logistic) is what the matching adds to. Scores can grow
while the temperature stays, so that a temperature is no more than where training starts: see the learned one. What
differs is the zeros: SparseMAP has them and sends nothing back there.

References: Och and Ney (2003), A systematic comparison of various statistical alignment models. Cuturi (2013), Sinkhorn
distances. Niculae et al. (2018), SparseMAP.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cvxpy as cp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from alignment_data import Pair, read_pairs, sample_pairs
from alignment_model import Batch, Measure, Scorer, soft_f1, vocabulary
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import optlayers as ol

FAINT = 0.1
"""A matching has no links of less."""
THRESHOLDS = torch.arange(0.05, 1.0, 0.05)
LEARNED = cp.Parameter(pos=True, name="temperature")
RULES: dict[str, ol.AbstractRule | None] = {
    "no structure": None,
    "SparseMAP": ol.SparseMAP(),
    "entropy, T = 0.1": ol.Regularized(ol.Entropy(0.1)),
    "entropy, T = 0.3": ol.Regularized(ol.Entropy(0.3)),
    "entropy, T = 1": ol.Regularized(ol.Entropy(1.0)),
    "entropy, T = 3": ol.Regularized(ol.Entropy(3.0)),
    "entropy, T learned": ol.Regularized(ol.Entropy(LEARNED)),
}
"""How scores become a soft alignment."""


def partial_matching(rows: int, columns: int) -> ol.Polytope:
    """Every word has at most one partner."""
    x = cp.Variable((rows, columns), nonneg=True)
    return ol.Polytope(x, [cp.sum(x, axis=1) <= 1, cp.sum(x, axis=0) <= 1])


ALIGNMENTS = ol.Family(partial_matching, round_to=4, cache_size=256)


class Aligner(nn.Module):
    """Scores of words, and what a rule makes of them."""

    def __init__(self, words: int, rule: ol.AbstractRule | None) -> None:
        super().__init__()
        self.scorer = Scorer(words)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.layer = None if rule is None else ol.OptLayer(ALIGNMENTS, rule)
        self.best = ol.OptLayer(ALIGNMENTS, ol.Pipeline())
        self.learns = rule == RULES["entropy, T learned"]

    def forward(self, batch: Batch) -> Tensor:
        """The soft alignment, 0 in the padding."""
        scores = self.scorer(batch)
        if self.layer is None:
            return torch.sigmoid(scores) * batch.inside
        numbers = {"temperature": self.log_temperature.exp()} if self.learns else {}
        return self.layer(scores, sizes=batch.sizes, **numbers)

    def matching(self, soft: Tensor, batch: Batch) -> Tensor:
        """Links one to one: the matching that has most of a soft alignment, without links that are faint there."""
        return self.best(soft - FAINT, sizes=batch.sizes)


@dataclass
class Outcome:
    """What a rule came to on test, for one seed."""

    rule: str
    matching: Measure
    threshold: Measure
    zeros: float
    """The share of parts that are exactly 0."""
    temperature: float | None
    seconds: float
    curve: list[Measure] = field(repr=False, default_factory=list)
    example: Tensor | None = field(repr=False, default=None)


def train(rule: str, parts: tuple[Batch, Batch, Batch], words: int, epochs: int, seed: int) -> Outcome:
    """Adam on the soft F1; the epoch of the best F1 of matchings on dev is the one that counts."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    learn, dev, test = parts
    model = Aligner(words, RULES[rule])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    best, kept = -1.0, model.state_dict()
    for _ in range(epochs):
        for index in torch.randperm(len(learn.sizes)).split(32):
            batch = learn.take(index)
            optimizer.zero_grad()
            (-soft_f1(model(batch), batch.sure)).backward()
            optimizer.step()
        with torch.no_grad():
            found = Measure.of(model.matching(model(dev), dev), dev).f1
        if found > best:
            best, kept = found, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    with torch.no_grad():
        on_dev, soft = model(dev), model(test)
        chosen = max(THRESHOLDS.tolist(), key=lambda t: Measure.of((on_dev > t).float(), dev).f1)
        curve = [Measure.of((soft > t).float(), test) for t in THRESHOLDS.tolist()]
        matching = Measure.of(model.matching(soft, test), test)
        zeros = (soft[test.inside] == 0).float().mean().item()
    temperature = model.log_temperature.exp().item() if model.learns else None
    by_threshold = Measure.of((soft > chosen).float(), test)
    seconds = time.perf_counter() - start
    return Outcome(rule, matching, by_threshold, zeros, temperature, seconds, curve, soft[longest(test)])


def longest(batch: Batch) -> int:
    """The pair with the most words, which is shown."""
    return int(batch.sizes.sum(dim=1).argmax())


def parts_of(pairs: Sequence[Pair], seed: int) -> tuple[tuple[Batch, Batch, Batch], int]:
    """Three fifths to learn from, one to choose on, one to report on; and how many words there are."""
    pairs = random.Random(seed).sample(list(pairs), len(pairs))
    first, second = 3 * len(pairs) // 5, 4 * len(pairs) // 5
    words = vocabulary(pairs[:first])
    split = pairs[:first], pairs[first:second], pairs[second:]
    return (Batch.of(split[0], words), Batch.of(split[1], words), Batch.of(split[2], words)), len(words) + 1


def mean(values: Sequence[float]) -> float:
    """Of some numbers."""
    return sum(values) / len(values)


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """A row for each rule, means over seeds."""
    table = Table(title="test, means over seeds, in percent", box=SIMPLE)
    for column in ("rule", "AER", "F1", "AER, threshold", "F1, threshold", "zeros", "T", "s"):
        table.add_column(column, justify="left" if column == "rule" else "right", no_wrap=column == "rule")
    for rule in dict.fromkeys(o.rule for o in outcomes):
        mine = [o for o in outcomes if o.rule == rule]
        numbers = [
            [o.matching.error_rate for o in mine],
            [o.matching.f1 for o in mine],
            [o.threshold.error_rate for o in mine],
            [o.threshold.f1 for o in mine],
            [o.zeros for o in mine],
        ]
        known = [o.temperature for o in mine if o.temperature is not None]
        shown = f"{mean(known):.2f}" if known else ""
        table.add_row(rule, *(f"{100 * mean(n):.1f}" for n in numbers), shown, f"{mean([o.seconds for o in mine]):.1f}")
    return table


def draw(outcomes: Sequence[Outcome], gold: Tensor, sizes: Sequence[int], path: Path) -> None:
    """One pair of the first seed under each rule, and precision against recall as the threshold moves."""
    first = list({o.rule: o for o in reversed(outcomes)}.values())[::-1]
    figure = plt.figure(figsize=(11, 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.4])
    n, m = sizes
    panels = above.subplots(1, len(first) + 1, sharex=True, sharey=True)
    for panel, (title, soft) in zip(panels, [("gold", gold), *((o.rule, o.example) for o in first)], strict=True):
        ol.plots.heat(soft[:n, :m], numbers=False, ax=panel)
        panel.set_title(title, fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
    axis = below.subplots()
    for o in first:
        points = [c for c in o.curve if c.recall > 0]
        axis.plot([c.recall for c in points], [c.precision for c in points], label=o.rule, marker=".", markersize=4)
    axis.set_xlabel("recall")
    axis.set_ylabel("precision")
    axis.set_title("links above a threshold, test", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(given: list[str] | None = None) -> list[Outcome]:
    """Train, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file of the Edinburgh paraphrase corpus (default: invented pairs)")
    parser.add_argument("--pairs", type=int, default=240, help="so many invented pairs (240)")
    parser.add_argument("--max-words", type=int, default=20, help="sentences of the file have at most so many (20)")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), metavar="RULE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("out/entropic_alignment"))
    options = parser.parse_args(given)
    console, outcomes = Console(), []
    for seed in options.seeds:
        if options.data is None:
            pairs = sample_pairs(options.pairs, random.Random(seed))
        else:
            pairs = read_pairs(options.data, options.max_words)
        parts, words = parts_of(pairs, seed)
        if seed == options.seeds[0]:
            shown = longest(parts[2])
            example = parts[2].sure[shown], parts[2].sizes[shown].tolist()
        for rule in options.rules:
            outcomes.append(train(rule, parts, words, options.epochs, seed))
    counts = ", ".join(str(len(part.sizes)) for part in parts)
    console.print(f"{len(pairs)} pairs; {counts} to learn, choose and report")
    console.print(table_of(outcomes))
    draw(outcomes, *example, options.output / "alignments.png")
    console.print(f"wrote {options.output / 'alignments.png'}")
    return outcomes


if __name__ == "__main__":
    main()
