"""Pretrain a parser of semantic graphs, then train it with a classifier of sentiment, and measure both."""

from __future__ import annotations

import base64
import copy
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from dependency_data import Sentence
from semantic_parser import Batch, Vocabulary
from semantic_training import batches_alike
from sentiment_data import Corpus, Opinion
from sentiment_model import GRAPHS, RULES, GraphParser, SentimentModel, gold_graphs
from sweep import device
from torch import Tensor

import optlayers as ol

__all__ = ["Pretraining", "Run", "pretrain", "train", "work"]


@dataclass(frozen=True)
class Pretraining:
    """How the parser of a seed is trained on graphs alone; all rules of the seed start from it."""

    seed: int
    epochs: int
    hidden: int
    learning_rate: float
    batch_size: int = 32


@dataclass(frozen=True)
class Run:
    """One training run on sentiment. ``rule`` is a key of RULES or one of MARKS.

    ``signal`` is the parser's learning rate as a fraction of the classifier's. It stands for a factor on the gradient
    that leaves the layer, which would change little: nothing else trains the parser here, and the steps of Adam do
    not depend on the scale of gradients. ``test`` is the name of what is reported on in the end, "" for nothing.
    """

    rule: str
    seed: int
    epochs: int
    learning_rate: float
    signal: float
    strength: float | None
    clip_norm: float
    hidden: int
    parser_epochs: int
    parser_rate: float
    batch_size: int = 32
    test: str = ""

    @property
    def parser(self) -> Pretraining:
        """The run whose parser this one starts from."""
        return Pretraining(self.seed, self.parser_epochs, self.hidden, self.parser_rate)


def work(run: Run | Pretraining, corpus: Corpus, parsers: Mapping[int, str]) -> dict[str, Any]:
    """Do a run of either kind; ``parsers`` holds the weights of a pretrained parser for each seed."""
    if isinstance(run, Pretraining):
        return pretrain(run, corpus)
    return train(run, corpus, parsers[run.seed])


def pretrain(run: Pretraining, corpus: Corpus) -> dict[str, Any]:
    """Train a parser on gold graphs, by their probability (a CRF over graphs).

    Returns
    -------
    dict : ``f1``, the labelled F1 on ``corpus.graphs_dev`` after every epoch; ``f1_best``, the best of them, and
        ``weights`` after that epoch, as text; ``seconds_per_epoch``.
    """
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    vocabulary = Vocabulary.of(corpus.graphs)
    parser = GraphParser(vocabulary, run.hidden).to(device())
    loss = ol.CRFLoss(GRAPHS, reduction="sum")
    optimizer = torch.optim.Adam(parser.parameters(), lr=run.learning_rate)
    f1, seconds, best = [], [], ""
    for _ in range(run.epochs):
        start = time.perf_counter()
        parser.train()
        for index in batches_alike([len(s) for s in corpus.graphs], run.batch_size, generator):
            sentences = [corpus.graphs[i] for i in index]
            batch = _training_batch(sentences, vocabulary, generator)
            optimizer.zero_grad()
            loss(parser(batch), gold_graphs(sentences).to(device()), sizes=batch.lengths).backward()
            torch.nn.utils.clip_grad_norm_(parser.parameters(), 5.0 * len(sentences))
            optimizer.step()
        seconds.append(time.perf_counter() - start)
        f1.append(labelled_f1(parser, corpus.graphs_dev, vocabulary))
        if f1[-1] == max(f1):
            best = _to_text(parser.state_dict())
    return {"f1": f1, "f1_best": max(f1), "weights": best, "seconds_per_epoch": median(seconds)}


def train(run: Run, corpus: Corpus, parser: str) -> dict[str, Any]:
    """Train classifier and parser for the labels of sentiment alone, from the weights ``parser``.

    Returns
    -------
    dict : ``dev``, the accuracy on dev after every epoch in percent; ``epoch``, the first of the best ones, from 0.
        Of the model after that epoch, ``dev_right`` and ``test_right`` (a character for each sentence, 1 where it is
        right; test only if the run names it), ``graph_f1`` of the parser on ``corpus.graphs_dev`` (None for marks), and
        ``graphs``, the parts of those of ``corpus.drawn`` as (predicate, argument, role, weight). ``seconds_per_batch``
        is that of training.
    """
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    parser_words = Vocabulary.of(corpus.graphs)
    vocabulary = Vocabulary.of([o.sentence for o in corpus.train])
    model = model_for(run, parser_words, vocabulary, corpus.max_words).to(device())
    model.parser.load_state_dict(_from_text(parser))
    # Without a rule nothing reaches the parser, and pipeline is a parser that stays as it was.
    moves = run.rule in RULES and run.rule != "pipeline"
    model.parser.requires_grad_(moves)
    groups = [{"params": [p for name, p in model.named_parameters() if not name.startswith("parser.")]}]
    if moves:
        groups.append({"params": list(model.parser.parameters()), "lr": run.learning_rate * run.signal})
    optimizer = torch.optim.Adam(groups, lr=run.learning_rate)
    dev, seconds, best = [], [], model.state_dict()
    for _ in range(run.epochs):
        model.train()
        model.parser.encoder.dropout.eval()  # a graph in training is the graph at test time
        for index in batches_alike([len(o) for o in corpus.train], run.batch_size, generator):
            start = time.perf_counter()
            opinions = [corpus.train[i] for i in index]
            optimizer.zero_grad()
            _loss(model, run, opinions, parser_words, vocabulary, generator).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0 * len(opinions))
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        right = _right(model, run, corpus.dev, parser_words, vocabulary)
        dev.append(100.0 * right.count("1") / len(right))
        if dev[-1] > max(dev[:-1], default=-1.0):
            best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    return {
        "dev": dev,
        "epoch": dev.index(max(dev)),
        "dev_right": _right(model, run, corpus.dev, parser_words, vocabulary),
        "test_right": _right(model, run, corpus.test, parser_words, vocabulary) if run.test else "",
        "graph_f1": labelled_f1(model.parser, corpus.graphs_dev, parser_words) if run.rule in RULES else None,
        "graphs": _parts(model, run, corpus.drawn, parser_words),
        "seconds_per_batch": median(seconds),
    }


def model_for(run: Run, parser_words: Vocabulary, vocabulary: Vocabulary, max_words: int) -> SentimentModel:
    """The model of a run, with fresh weights."""
    choice = RULES.get(run.rule)
    strength = float("nan") if run.strength is None else run.strength
    rule = None if choice is None else choice.make(strength)
    return SentimentModel(
        parser_words, vocabulary, rule, hidden=run.hidden, clip_norm=run.clip_norm, max_words=max_words
    )


def _batch(sentences: Sequence[Sentence], vocabulary: Vocabulary) -> Batch:
    return Batch.of(sentences, [False] * len(sentences), vocabulary).to(device())


def _training_batch(sentences: Sequence[Sentence], vocabulary: Vocabulary, generator: torch.Generator) -> Batch:
    """With some words unknown, so that the unknown word is trained too."""
    batch = Batch.of(sentences, [False] * len(sentences), vocabulary)
    return batch.with_dropped_words(0.1, generator, len(vocabulary.words) + 1).to(device())


def _graphs(
    model: SentimentModel,
    run: Run,
    sentences: Sequence[Sentence],
    parser_words: Vocabulary,
    generator: torch.Generator | None,
) -> Tensor:
    """What the classifier reads. Without a generator a rule that draws takes the best graph, as at test time."""
    if run.rule in RULES:
        best = generator is None and model.layer.rule.draws
        return model.graphs(_batch(sentences, parser_words), generator, best=best)
    gold = gold_graphs(sentences).to(device())
    return gold if run.rule == "gold graph" else torch.zeros_like(gold)


def _loss(
    model: SentimentModel,
    run: Run,
    opinions: Sequence[Opinion],
    parser_words: Vocabulary,
    vocabulary: Vocabulary,
    generator: torch.Generator,
) -> Tensor:
    """A sum over sentences, so that what a graph receives does not depend on the batch."""
    sentences = [o.sentence for o in opinions]
    batch = _training_batch(sentences, vocabulary, generator)
    logits = model.logits(batch, _graphs(model, run, sentences, parser_words, generator))
    return F.cross_entropy(logits, torch.tensor([o.label for o in opinions], device=logits.device), reduction="sum")


def _in_order_of_length(lengths: Sequence[int], size: int = 64) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def _right(
    model: SentimentModel, run: Run, opinions: Sequence[Opinion], parser_words: Vocabulary, vocabulary: Vocabulary
) -> str:
    """A character for every sentence, whatever its length: 1 where its label is found."""
    model.eval()
    right = [""] * len(opinions)
    for index in _in_order_of_length([len(o) for o in opinions]):
        sentences = [opinions[i].sentence for i in index]
        graphs = _graphs(model, run, sentences, parser_words, None)
        labels = model.logits(_batch(sentences, vocabulary), graphs).argmax(dim=1).tolist()
        for i, label in zip(index, labels, strict=True):
            right[i] = "1" if label == opinions[i].label else "0"
    return "".join(right)


@torch.no_grad()
def labelled_f1(parser: GraphParser, sentences: Sequence[Sentence], vocabulary: Vocabulary) -> float:
    """Of arcs with their roles, in percent, for the best graphs; predicates are not counted."""
    parser.eval()
    best = ol.OptLayer(GRAPHS, ol.Pipeline())
    found = gold = both = 0
    for index in _in_order_of_length([len(s) for s in sentences]):
        some = [sentences[i] for i in index]
        batch = _batch(some, vocabulary)
        arcs = ~torch.eye(batch.words.shape[1] - 1, dtype=torch.bool)
        graphs, true = (g[:, arcs] > 0.5 for g in (best(parser(batch), sizes=batch.lengths).cpu(), gold_graphs(some)))
        found += int(graphs.sum())
        gold += int(true.sum())
        both += int((graphs & true).sum())
    return 200.0 * both / max(1, found + gold)


@torch.no_grad()
def _parts(
    model: SentimentModel, run: Run, sentences: Sequence[Sentence], parser_words: Vocabulary
) -> list[list[list[float]]]:
    model.eval()
    if run.rule not in RULES:
        return []
    graphs = [_graphs(model, run, [sentence], parser_words, None)[0] for sentence in sentences]
    return [[[*part, round(float(g[tuple(part)]), 3)] for part in (g > 0.01).nonzero().tolist()] for g in graphs]


def _to_text(weights: Mapping[str, Tensor]) -> str:
    """As JSON can hold it, so that runs on other machines find it where the results are."""
    stream = io.BytesIO()
    torch.save({name: weight.cpu() for name, weight in weights.items()}, stream)
    return base64.b85encode(stream.getvalue()).decode()


def _from_text(text: str) -> dict[str, Tensor]:
    return torch.load(io.BytesIO(base64.b85decode(text)), weights_only=True)
