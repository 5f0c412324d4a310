"""Train the parser of semantic_parser.py with a rule, and measure it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from dependency_data import Sentence
from semantic_parser import Batch, SemanticParser, Vocabulary
from semantic_rules import MARKS, RULES
from sweep import device
from torch import Tensor

__all__ = ["COUNTS", "Corpus", "Run", "batches_alike", "fit", "train", "trees_seen"]

COUNTS = ("words", "right heads", "found", "gold", "both", "right")
"""What is counted in every sentence: words and their heads, pairs with a role found and in truth, pairs in both, and
those whose label is right."""
POOL = 20
"""So many batches are drawn together and sorted by length: sentences of a batch are much alike, with less padding."""


@dataclass(frozen=True)
class Corpus:
    """Sentences to train on, to choose by, and to report on once (none: only dev is reported)."""

    train: list[Sentence]
    dev: list[Sentence]
    test: list[Sentence]

    @property
    def drawn(self) -> list[Sentence]:
        """The dev sentences whose trees are drawn: the first three with something to see, and room for it."""
        telling = [s for s in self.dev if 4 <= len(s) <= 12 and len(s.roles) >= 2]
        return (telling + self.dev)[:3]


@dataclass(frozen=True)
class Run:
    """One training run. ``name`` is a key of RULES or one of MARKS; ``signal`` and ``step`` are as in RULES.

    ``test`` says what the test sentences are, "" where none are measured.
    """

    name: str
    seed: int
    tree_fraction: float
    signal: float
    step: float
    epochs: int
    tree_weight: float = 1.0
    clip_norm: float = 1.0
    learning_rate: float = 4e-3
    batch_size: int = 32
    test: str = ""


def train(run: Run, corpus: Corpus) -> dict[str, Any]:
    """Train, and measure dev after every epoch, and test, if there is one, after the last; no epoch is picked.

    The result has the sums of COUNTS over dev after every epoch (``curve``), COUNTS of every sentence of dev and test
    after the last one, the seconds of an epoch in median, and the trees of the sentences that are drawn.
    """
    vocabulary = Vocabulary.of(corpus.train)
    model, curve, seconds = None, [], []
    for model, lasted in fit(run, corpus.train, vocabulary):
        seconds.append(lasted)
        dev = evaluate(model, corpus.dev, vocabulary, run)
        curve.append(dev.sum(0).tolist())
    if model is None:
        raise ValueError(f"epochs must be at least 1, but is {run.epochs}")
    return {
        "curve": curve,
        "dev": dev.tolist(),
        "test": evaluate(model, corpus.test, vocabulary, run).tolist() if run.test else None,
        "seconds": median(seconds),  # a process compiles in its first epoch
        "trees": predicted_heads(model, corpus.drawn, vocabulary),
    }


def fit(run: Run, sentences: Sequence[Sentence], vocabulary: Vocabulary) -> Iterator[tuple[SemanticParser, float]]:
    """Train jointly on roles and on the trees of a fraction of the sentences; the model after every epoch, and seconds.

    Adam, with a learning rate that falls linearly to 0. The same sentences have trees whatever the rule.
    """
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    has_tree = trees_seen(run, len(sentences), generator)
    model = model_for(run, vocabulary).to(device())
    optimizer = torch.optim.Adam(model.parameters(), lr=run.learning_rate)
    steps = run.epochs * -(-len(sentences) // run.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(run.epochs):
        start = time.perf_counter()
        model.train()
        for index in batches_alike([len(s) for s in sentences], run.batch_size, generator):
            batch = Batch.of([sentences[i] for i in index], has_tree[index].tolist(), vocabulary)
            batch = batch.with_dropped_words(0.1, generator, len(vocabulary.words) + 1).to(model.device)
            optimizer.zero_grad()
            _loss(model, batch, run).backward()
            # The loss is a sum over sentences, so that the signal of a sentence does not depend on its batch.
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0 * len(index))
            optimizer.step()
            schedule.step()
        yield model, time.perf_counter() - start


def trees_seen(run: Run, count: int, generator: torch.Generator) -> Tensor:
    """Which of the training sentences show their tree, as a fresh generator of the run's seed draws them."""
    return torch.rand(count, generator=generator) < run.tree_fraction


def model_for(run: Run, vocabulary: Vocabulary) -> SemanticParser:
    """Fresh, from torch's own generator."""
    choice = RULES.get(run.name)
    if choice is None and run.name not in MARKS:
        raise ValueError(f"{run.name!r} is no rule; there are {', '.join((*RULES, *MARKS))}")
    return SemanticParser(
        vocabulary,
        None if choice is None else choice.make(run.step),
        clip_norm=run.clip_norm,
        signal=run.signal,
        in_units=choice is not None and choice.in_units,
    )


def batches_alike(lengths: Sequence[int], size: int, generator: torch.Generator) -> list[list[int]]:
    """Every index once, in batches of similar lengths; the batches are in no order of lengths."""
    batches: list[list[int]] = []
    for pool in torch.randperm(len(lengths), generator=generator).split(size * POOL):
        alike = sorted(pool.tolist(), key=lengths.__getitem__)
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _loss(model: SemanticParser, batch: Batch, run: Run) -> Tensor:
    if run.name == "no tree":
        return _role_loss(model.role_scores(batch, torch.zeros_like(batch.gold_trees)), batch)
    if run.name == "gold tree":
        return _role_loss(model.role_scores(batch, batch.gold_trees), batch)
    arcs = model.arc_scores(batch)
    tree = model.build_tree(arcs, batch)
    return _role_loss(model.role_scores(batch, tree), batch) + run.tree_weight * _tree_loss(arcs, batch)


def _role_loss(scores: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), batch.gold_roles.flatten(), ignore_index=-1, reduction="sum")


def _tree_loss(arcs: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of every word's head, over sentences whose tree may be seen."""
    position = torch.arange(arcs.shape[1], device=arcs.device)
    candidate = (position[None, :] <= batch.lengths[:, None])[:, :, None] & (position[:, None] != position)
    seen = batch.is_word & batch.has_tree[:, None]
    log_probability = arcs.masked_fill(~candidate, -torch.inf).log_softmax(dim=1)
    b, m = torch.nonzero(seen, as_tuple=True)
    return -log_probability[b, batch.heads[b, m], m].sum()


@torch.no_grad()
def evaluate(model: SemanticParser, sentences: Sequence[Sentence], vocabulary: Vocabulary, run: Run) -> Tensor:
    """COUNTS of every sentence, ``(sentences, 6)``: heads of the best tree, roles with the tree that the rule builds.

    "No tree" has no heads right, the gold tree has all.
    """
    model.eval()
    counts = torch.zeros(len(sentences), len(COUNTS), dtype=torch.long)
    order = torch.tensor(sorted(range(len(sentences)), key=lambda i: len(sentences[i])))  # less padding
    for index in order.split(64):
        batch = Batch.of([sentences[i] for i in index.tolist()], [False] * len(index), vocabulary)
        counts[index] = _counts(model, batch.to(model.device), run).cpu()
    return counts


def _counts(model: SemanticParser, batch: Batch, run: Run) -> Tensor:
    right_heads = batch.is_word if run.name == "gold tree" else torch.zeros_like(batch.is_word)
    if run.name in RULES:
        arcs = model.arc_scores(batch)
        decided = model.best_tree(arcs, sizes=batch.lengths)
        right_heads = (decided.argmax(dim=1) == batch.heads) & batch.is_word
        tree = model.build_tree(arcs, batch) if RULES[run.name].soft else decided
    else:
        tree = batch.gold_trees if run.name == "gold tree" else torch.zeros_like(batch.gold_trees)
    label = model.role_scores(batch, tree).argmax(dim=-1)
    gold, pair = batch.gold_roles, batch.gold_roles >= 0
    found, true = (label > 0) & pair, gold > 0
    counted = torch.stack([found, true, found & true, found & (label == gold)], dim=-1).sum(dim=1)
    sentence = torch.nonzero(batch.predicates)[:, 0]
    roles = counted.new_zeros(len(batch.lengths), 4).index_add(0, sentence, counted)
    return torch.cat([batch.lengths[:, None], right_heads.sum(1, keepdim=True), roles], dim=1)


@torch.no_grad()
def predicted_heads(model: SemanticParser, sentences: Sequence[Sentence], vocabulary: Vocabulary) -> list[list[int]]:
    """The best tree of each sentence, as one head per word."""
    model.eval()
    if not sentences:
        return []
    batch = Batch.of(sentences, [False] * len(sentences), vocabulary).to(model.device)
    trees: Tensor = model.best_tree(model.arc_scores(batch), sizes=batch.lengths).argmax(dim=1)
    return [row[1 : n + 1].tolist() for row, n in zip(trees, batch.lengths.tolist(), strict=True)]
