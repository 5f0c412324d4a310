"""Train one parser with one rule and one seed, and measure it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from dependency_data import Sentence
from semantic_parser import Batch, SemanticParser, Vocabulary
from torch import Tensor

import optlayers as ol

__all__ = ["MARKS", "RULES", "Corpus", "Measure", "Result", "Run", "train"]

RULES: dict[str, ol.AbstractRule] = {
    "pipeline": ol.Pipeline(),
    "ste": ol.StraightThrough(),
    "structured_attention": ol.StructuredAttention(),
    "spigot": ol.Spigot(step_size=1.0),
    "spigot_in_units": ol.Spigot(step_size=1.0),
    "sparsemap": ol.SparseMAP(),
}
"""A new rule is a new line; one whose name ends in "in_units" sees gradients in units of their norms."""
MARKS = ("no tree", "gold tree")
"""What the roles reach without any tree, and with the true one: the room in which rules compete."""


@dataclass(frozen=True)
class Corpus:
    """Sentences to train on and to report on."""

    train: list[Sentence]
    dev: list[Sentence]

    @property
    def drawn(self) -> list[Sentence]:
        """The dev sentences whose trees are drawn: the first three with something to see, and room for it."""
        telling = [s for s in self.dev if 4 <= len(s) <= 12 and len(s.roles) >= 2]
        return (telling + self.dev)[:3]


@dataclass(frozen=True)
class Run:
    """One training run. ``name`` is a key of RULES or one of MARKS."""

    name: str
    seed: int
    epochs: int
    tree_fraction: float
    tree_weight: float
    signal: float
    clip_norm: float
    learning_rate: float = 2e-3
    batch_size: int = 32


@dataclass(frozen=True)
class Measure:
    """Percentages on dev: trees (unlabelled attachment), roles (F1 of pairs, and of labelled pairs)."""

    attachment: float
    unlabelled: float
    labelled: float


@dataclass(frozen=True)
class Result:
    """A run, its measure after every epoch, what it cost, and the trees of the sentences that are drawn."""

    run: Run
    curve: list[Measure]
    seconds_per_epoch: float
    trees: list[tuple[int, ...]]

    @property
    def final(self) -> Measure:
        """After the last epoch; no epoch is picked."""
        return self.curve[-1]


def train(run: Run, corpus: Corpus, report: Callable[[], None]) -> Result:
    """Train jointly on roles and on the trees of a fraction of the sentences; ``report`` is called after each epoch."""
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    vocabulary = Vocabulary.of(corpus.train)
    # The same sentences have trees whatever the rule.
    has_tree = torch.rand(len(corpus.train), generator=generator) < run.tree_fraction
    in_units = run.name.endswith("in_units")
    model = SemanticParser(
        vocabulary, RULES.get(run.name), clip_norm=run.clip_norm, signal=run.signal, in_units=in_units
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=run.learning_rate)
    curve, seconds = [], []
    for _ in range(run.epochs):
        start = time.perf_counter()
        model.train()
        for index in torch.randperm(len(corpus.train), generator=generator).split(run.batch_size):
            sentences = [corpus.train[i] for i in index.tolist()]
            batch = Batch.of(sentences, has_tree[index].tolist(), vocabulary)
            batch = batch.with_dropped_words(0.1, generator, len(vocabulary.words) + 1)
            optimizer.zero_grad()
            _loss(model, batch, run).backward()
            # The loss is a sum over sentences, so that the signal of a sentence does not depend on its batch.
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0 * len(sentences))
            optimizer.step()
        seconds.append(time.perf_counter() - start)
        curve.append(evaluate(model, corpus.dev, vocabulary, run))
        report()
    trees = predicted_heads(model, corpus.drawn, vocabulary)
    return Result(run, curve, median(seconds), trees)  # a process compiles in its first epoch


def _loss(model: SemanticParser, batch: Batch, run: Run) -> Tensor:
    if run.name == "no tree":
        return _role_loss(model.role_scores(batch, torch.zeros(batch.roles.shape)), batch)
    if run.name == "gold tree":
        return _role_loss(model.role_scores(batch, batch.gold_trees), batch)
    arcs = model.arc_scores(batch)
    tree = model.build_tree(arcs, batch)
    return _role_loss(model.role_scores(batch, tree), batch) + run.tree_weight * _tree_loss(arcs, batch)


def _role_loss(scores: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), batch.gold_roles.flatten(), ignore_index=-1, reduction="sum")


def _tree_loss(arcs: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of every word's head, over sentences whose tree may be seen."""
    position = torch.arange(arcs.shape[1])
    candidate = (position[None, :] <= batch.lengths[:, None])[:, :, None] & (position[:, None] != position)
    seen = batch.is_word & batch.has_tree[:, None]
    log_probability = arcs.masked_fill(~candidate, -torch.inf).log_softmax(dim=1)
    b, m = torch.nonzero(seen, as_tuple=True)
    return -log_probability[b, batch.heads[b, m], m].sum()


@torch.no_grad()
def evaluate(model: SemanticParser, sentences: Sequence[Sentence], vocabulary: Vocabulary, run: Run) -> Measure:
    """Attachment of the best tree; F1 of the roles with the tree that the rule builds."""
    model.eval()
    right_heads = words = found = gold = both = right = 0
    for batch in _batches(sorted(sentences, key=len), vocabulary):  # less padding; the order does not matter here
        if run.name in RULES:
            arcs = model.arc_scores(batch)
            heads = model.best_tree(arcs, sizes=batch.lengths).argmax(dim=1)
            right_heads += int((heads == batch.heads)[batch.is_word].sum())
            tree = model.build_tree(arcs, batch)
        else:
            tree = batch.gold_trees if run.name == "gold tree" else torch.zeros(batch.roles.shape)
            right_heads += int(batch.is_word.sum()) if run.name == "gold tree" else 0
        words += int(batch.is_word.sum())
        label = model.role_scores(batch, tree).argmax(dim=-1)
        pair = batch.gold_roles >= 0
        label, gold_label = label[pair], batch.gold_roles[pair]
        found += int((label > 0).sum())
        gold += int((gold_label > 0).sum())
        both += int(((label > 0) & (gold_label > 0)).sum())
        right += int(((label > 0) & (label == gold_label)).sum())
    attachment = 100 * right_heads / words if run.name != "no tree" else float("nan")
    return Measure(attachment, 200 * both / max(1, found + gold), 200 * right / max(1, found + gold))


def _batches(sentences: Sequence[Sentence], vocabulary: Vocabulary, size: int = 64) -> Iterator[Batch]:
    for start in range(0, len(sentences), size):
        part = sentences[start : start + size]
        yield Batch.of(part, [False] * len(part), vocabulary)


@torch.no_grad()
def predicted_heads(
    model: SemanticParser, sentences: Sequence[Sentence], vocabulary: Vocabulary
) -> list[tuple[int, ...]]:
    """The best tree of each sentence, as one head per word."""
    model.eval()
    heads = []
    for batch in _batches(sentences, vocabulary):
        trees = model.best_tree(model.arc_scores(batch), sizes=batch.lengths).argmax(dim=1)
        heads += [tuple(row[1 : n + 1].tolist()) for row, n in zip(trees, batch.lengths.tolist(), strict=True)]
    return heads
