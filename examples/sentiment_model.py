"""A semantic graph in the middle: a parser scores its arcs, a layer builds it, a classifier of sentiment reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from dependency_data import Sentence
from semantic_parser import Batch, Encoder, Vocabulary
from sentiment_data import CORE, OTHERS, ROLES, graph_of
from torch import Tensor, nn

import optlayers as ol
from polytopes import semantic_graph

__all__ = ["GRAPHS", "MARKS", "RULES", "Choice", "GraphParser", "SentimentModel", "gold_graphs"]

GRAPHS = ol.Family(partial(semantic_graph, core=len(CORE), others=len(OTHERS)), cache_size=128)
"""Of every number of words, compiled once in a process for all runs."""


class Choice(NamedTuple):
    """``make(strength)`` is a rule; ``range`` is where its strength is tried, None for a rule that has none."""

    make: Callable[[float], ol.AbstractRule]
    strength: float | None = None
    range: tuple[float, float] | None = None


RULES: dict[str, Choice] = {
    "pipeline": Choice(lambda _: ol.Pipeline()),
    "ste": Choice(lambda _: ol.StraightThrough()),
    "spigot": Choice(lambda step: ol.Spigot(step_size=step), 1.0, (0.1, 10.0)),
    "structured attention": Choice(lambda _: ol.StructuredAttention()),
    "sparsemap": Choice(lambda _: ol.SparseMAP()),
    "spigot-eg": Choice(lambda step: ol.SpigotEG(step_size=step), 0.3, (0.1, 10.0)),
    "gumbel": Choice(lambda heat: ol.GumbelStraightThrough(heat, noise=ol.Logistic()), 1.0, (0.3, 3.0)),
}
"""The rules of the paper, SparseMAP, and two of those that found hidden structures well in docs/results.md. Logistic
noise is that of graphs, which differ in their number of arcs. A new rule is a new line."""
MARKS = ("no graph", "gold graph")
"""What the classifier reaches without any graph, and with the true one where that is known."""


class GraphScorer(nn.Module):
    """Biaffine scores of labelled arcs, ``(batch, words, words, roles)``, with those of predicates at (p, p, 0)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.predicate = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.argument = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.weight = nn.Parameter(torch.empty(len(ROLES), hidden, hidden))
        nn.init.xavier_uniform_(self.weight)
        self.by_predicate = nn.Linear(hidden, len(ROLES))
        self.by_argument = nn.Linear(hidden, len(ROLES), bias=False)
        self.alone = nn.Linear(hidden, 1)
        nn.init.constant_(self.by_predicate.bias, -3.0)  # few pairs of words are an arc

    def forward(self, states: Tensor) -> Tensor:
        predicate, argument = self.predicate(states), self.argument(states)
        scores = torch.einsum("bpi,rij,baj->bpar", predicate, self.weight, argument)
        scores = scores + self.by_predicate(predicate)[:, :, None] + self.by_argument(argument)[:, None]
        itself = torch.eye(states.shape[1], dtype=torch.bool, device=states.device)[..., None]
        return torch.where(itself, self.alone(predicate)[:, :, None], scores)  # roles behind the first are 0 anyway


class GraphParser(nn.Module):
    """From words to scores of graphs."""

    def __init__(self, vocabulary: Vocabulary, hidden: int) -> None:
        super().__init__()
        self.encoder = Encoder(vocabulary, hidden, sees_predicates=False)
        self.scorer = GraphScorer(2 * hidden, hidden)

    def forward(self, batch: Batch) -> Tensor:
        """``(batch, words, words, roles)``; the encoder's root is no word of a graph."""
        return self.scorer(self.encoder(batch)[:, 1:])


class GraphReader(nn.Module):
    """Every word's state, mixed with those of its heads and of its arguments, role by role.

    All of it is a product with the graph, so that a gradient flows to it. Soft arcs count by their weight.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, hidden)
        self.heads = nn.Linear(width, len(ROLES) * hidden, bias=False)
        self.arguments = nn.Linear(width, len(ROLES) * hidden, bias=False)
        self.predicate = nn.Linear(1, hidden, bias=False)

    def forward(self, states: Tensor, graph: Tensor) -> Tensor:
        itself = torch.eye(graph.shape[1], dtype=torch.bool, device=graph.device)[..., None]
        arcs = graph.masked_fill(itself, 0.0)
        is_predicate = graph.diagonal(dim1=1, dim2=2)[:, 0, :, None]
        heads = self.heads(states).unflatten(-1, (len(ROLES), -1))
        arguments = self.arguments(states).unflatten(-1, (len(ROLES), -1))
        mixed = self.own(states) + self.predicate(is_predicate)
        mixed = mixed + torch.einsum("bpar,bprk->bak", arcs, heads)
        return mixed + torch.einsum("bpar,bark->bpk", arcs, arguments)


class SentimentModel(nn.Module):
    """Scores arcs, lets a layer build the graph, and classifies a sentence by its words and their arcs.

    Parameters
    ----------
    parser_words, words : the vocabularies of the parser and of the classifier.
    rule : the backward rule of the layer; None for graphs that are given from outside.
    clip_norm : the gradient that reaches the graph of a sentence is clipped to this norm, as the SPIGOT paper does.
    max_words : a graph is over so many words of a sentence, the first ones; the others have no arcs.
    """

    def __init__(
        self,
        parser_words: Vocabulary,
        words: Vocabulary,
        rule: ol.AbstractRule | None,
        *,
        hidden: int,
        clip_norm: float,
        max_words: int,
    ) -> None:
        super().__init__()
        self.parser = GraphParser(parser_words, hidden)
        self.encoder = Encoder(words, hidden, sees_predicates=False)
        self.reader = GraphReader(2 * hidden, hidden)
        self.out = nn.Sequential(nn.ReLU(), nn.Dropout(0.25), nn.Linear(hidden, hidden), nn.ReLU())
        self.label = nn.Linear(hidden, 2)
        self.layer = None if rule is None else ol.OptLayer(GRAPHS, rule)
        self.best_graph = ol.OptLayer(GRAPHS, ol.Pipeline())
        self.clip_norm, self.max_words = clip_norm, max_words

    def graphs(self, batch: Batch, generator: torch.Generator | None = None, *, best: bool = False) -> Tensor:
        """``(batch, words, words, roles)``, of the layer or the best ones, with gradients clipped on their way in.

        Raises
        ------
        ValueError : where there is no layer.
        """
        if self.layer is None:
            raise ValueError("this model has no layer of graphs; hand it graphs")
        sizes = batch.lengths.clamp_max(self.max_words)
        room = int(sizes.max())
        scores = self.parser(batch)[:, :room, :room]
        graphs = self.best_graph(scores, sizes=sizes) if best else self.layer(scores, sizes=sizes, generator=generator)
        if graphs.requires_grad:
            graphs.register_hook(self._clip)
        beyond = batch.words.shape[1] - 1 - room
        return F.pad(graphs, (0, 0, 0, beyond, 0, beyond))

    def _clip(self, gradient: Tensor) -> Tensor:
        norm = gradient.flatten(1).norm(dim=1).clamp_min(self.clip_norm)
        return gradient * (self.clip_norm / norm)[:, None, None, None]

    def logits(self, batch: Batch, graphs: Tensor) -> Tensor:
        """``(batch, 2)``: negative, positive."""
        mixed = self.out(self.reader(self.encoder(batch)[:, 1:], graphs))
        return self.label(mixed.masked_fill(~batch.is_word[:, 1:, None], 0.0).amax(dim=1))  # all others are ≥ 0


def gold_graphs(sentences: Sequence[Sentence]) -> Tensor:
    """``(batch, words, words, roles)`` in {0, 1}, padded to the longest sentence."""
    longest = max(len(s) for s in sentences)
    graphs = torch.zeros(len(sentences), longest, longest, len(ROLES))
    parts = [(b, *part) for b, sentence in enumerate(sentences) for part in graph_of(sentence)]
    graphs[torch.tensor(parts, dtype=torch.long).reshape(-1, 4).unbind(1)] = 1.0
    return graphs
