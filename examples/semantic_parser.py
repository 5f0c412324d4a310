"""A small model with a latent tree in the middle: words, dependency arcs, a tree, semantic roles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from dependency_data import Sentence
from torch import Tensor, nn

import optlayers as ol
from polytopes import arborescence

__all__ = ["Batch", "SemanticParser", "Vocabulary"]


@dataclass(frozen=True)
class Vocabulary:
    """Numbers for words, endings of words, tags and labels; 0 is padding, and the label "no role".

    An unknown word has the number behind the last one, and so has an unknown ending.
    """

    words: dict[str, int]
    endings: dict[str, int]
    tags: dict[str, int]
    labels: dict[str, int]

    @classmethod
    def of(cls, sentences: Sequence[Sentence]) -> Vocabulary:
        """Of a training set: words and endings seen at least twice, all tags, all labels."""
        words = Counter(w.lower() for s in sentences for w in s.words)
        endings = Counter(ending_of(w) for s in sentences for w in s.words)
        tags = sorted({t for s in sentences for t in s.tags})
        labels = sorted({r for s in sentences for r in s.roles.values()})
        return cls(
            {w: k for k, w in enumerate(sorted(w for w, c in words.items() if c >= 2), start=1)},
            {e: k for k, e in enumerate(sorted(e for e, c in endings.items() if c >= 2), start=1)},
            {t: k for k, t in enumerate(tags, start=1)},
            {r: k for k, r in enumerate(labels, start=1)},
        )


def ending_of(word: str) -> str:
    """What an unknown word may be known by: its last three letters, and whether it is capitalized or a number."""
    return ("^" if word[:1].isupper() else "") + ("0" if word[-1:].isdecimal() else word.lower()[-3:])


@dataclass(frozen=True)
class Batch:
    """Padded tensors of some sentences; position 0 is the root, words are 1 … n.

    ``has_tree`` is False where the tree is not to be seen. ``roles[b, p, a]`` is the label of argument a of predicate
    p, 0 for none, -1 where there is no such pair.
    """

    words: Tensor
    endings: Tensor
    tags: Tensor
    predicates: Tensor
    lengths: Tensor
    heads: Tensor
    has_tree: Tensor
    roles: Tensor

    @classmethod
    def of(cls, sentences: Sequence[Sentence], has_tree: Sequence[bool], vocabulary: Vocabulary) -> Batch:
        """Pad to the longest sentence."""
        words = _padded([_numbers([w.lower() for w in s.words], vocabulary.words) for s in sentences])
        endings = _padded([_numbers([ending_of(w) for w in s.words], vocabulary.endings) for s in sentences])
        tags = _padded([[vocabulary.tags.get(t, 0) for t in s.tags] for s in sentences])
        heads = _padded([s.heads for s in sentences])
        predicates = _padded([[k in s.predicates for k in range(1, len(s) + 1)] for s in sentences]).bool()
        is_word = _padded([[1] * len(s) for s in sentences]).bool()
        roles = torch.where(predicates[:, :, None] & is_word[:, None], 0, -1)
        labelled = [
            (b, predicate, argument, vocabulary.labels.get(label, 0))
            for b, sentence in enumerate(sentences)
            for (predicate, argument), label in sentence.roles.items()
        ]
        b, p, a, label = torch.tensor(labelled, dtype=torch.long).reshape(-1, 4).unbind(1)
        roles[b, p, a] = label
        lengths = torch.tensor([len(s) for s in sentences])
        return cls(words, endings, tags, predicates, lengths, heads, torch.tensor(list(has_tree)), roles)

    def to(self, device: torch.device) -> Batch:
        """On a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def is_word(self) -> Tensor:
        """``(batch, positions)``, without root and padding."""
        position = torch.arange(self.words.shape[1], device=self.words.device)
        return (position >= 1) & (position <= self.lengths[:, None])

    @property
    def gold_roles(self) -> Tensor:
        """``(predicates of the batch, argument)``, as :meth:`SemanticParser.role_scores` scores them."""
        return self.roles[self.predicates]

    @property
    def gold_trees(self) -> Tensor:
        """``(batch, head, modifier)`` in {0, 1}."""
        trees = torch.zeros(self.roles.shape, device=self.words.device)
        b, m = torch.nonzero(self.is_word, as_tuple=True)
        trees[b, self.heads[b, m], m] = 1.0
        return trees

    def with_dropped_words(self, rate: float, generator: torch.Generator, unknown: int) -> Batch:
        """Some words become unknown, so that the unknown word is trained too."""
        dropped = (torch.rand(self.words.shape, generator=generator) < rate) & self.is_word
        return replace(self, words=self.words.masked_fill(dropped, unknown))


def _numbers(names: Sequence[str], known: dict[str, int]) -> list[int]:
    return [known.get(name, len(known) + 1) for name in names]


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """A row per sentence, 0 at the root and behind the last word."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[0, *row, *[0] * (longest - len(row))] for row in rows])


class Encoder(nn.Module):
    """Embeddings and a bidirectional LSTM: ``(batch, positions, 2 * hidden)``."""

    def __init__(self, vocabulary: Vocabulary, hidden: int, sees_predicates: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(len(vocabulary.words) + 2, 64)
        self.endings = nn.Embedding(len(vocabulary.endings) + 2, 32)
        self.tags = nn.Embedding(len(vocabulary.tags) + 1, 24)
        self.predicates = nn.Embedding(2, 8) if sees_predicates else None
        width = 64 + 32 + 24 + (8 if sees_predicates else 0)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.25)

    def forward(self, batch: Batch) -> Tensor:
        parts = [self.words(batch.words), self.endings(batch.endings), self.tags(batch.tags)]
        if self.predicates is not None:
            parts.append(self.predicates(batch.predicates.long()))
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(torch.cat(parts, dim=-1)), (batch.lengths + 1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=batch.words.shape[1]
        )
        return self.dropout(states)


class ArcScorer(nn.Module):
    """Biaffine scores of arcs, ``(batch, head, modifier)`` (Dozat and Manning, 2017)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.modifier = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.weight = nn.Parameter(torch.empty(hidden, hidden))
        nn.init.xavier_uniform_(self.weight)
        self.bias = nn.Linear(hidden, 1)

    def forward(self, states: Tensor) -> Tensor:
        head = self.head(states)
        return head @ self.weight @ self.modifier(states).transpose(1, 2) + self.bias(head)


class RoleScorer(nn.Module):
    """Scores of every label for every (predicate, argument), from words and from their places in the tree.

    For a pair (p, a) the tree z gives: a is a child of p, its parent, a sibling, a grandchild, a grandparent. For
    each word it gives its expected parent, ``zᵀ r``. All of it is a product with z, so that a gradient flows to z.
    Only the rows of predicates are scored; one word in five is a predicate in PropBank.
    """

    def __init__(self, width: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.predicate = nn.Linear(2 * width, hidden)
        self.argument = nn.Linear(2 * width, hidden)
        self.relation = nn.Linear(5, hidden, bias=False)
        self.gates = nn.Linear(5, hidden, bias=False)
        self.content = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, labels)

    def forward(self, states: Tensor, tree: Tensor, predicates: Tensor) -> Tensor:
        up = tree.transpose(1, 2)
        with_parent = torch.cat([states, up @ states], dim=-1)
        b, p = torch.nonzero(predicates, as_tuple=True)
        relations = torch.stack([tree, up, up @ tree, tree @ tree, up @ up], dim=-1)[b, p]
        mixed = self.predicate(with_parent[b, p])[:, None] + self.argument(with_parent)[b]
        mixed = mixed + self.relation(relations) + self.gates(relations) * self.content(states)[b]
        return self.out(torch.relu(mixed))


class SemanticParser(nn.Module):
    """Scores arcs, lets a layer build the tree, and scores roles with it.

    Parameters
    ----------
    rule : the backward rule of the tree layer; None for a tree that is given from outside.
    clip_norm : the gradient that reaches the tree of a sentence is clipped to this norm, as the SPIGOT paper does.
    signal : a factor on the gradient that leaves the layer for the arc scores.
    in_units : whether the rule sees the gradient of each sentence in units of its norm.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rule: ol.AbstractRule | None,
        *,
        clip_norm: float,
        signal: float,
        in_units: bool = False,
        hidden: int = 80,
    ) -> None:
        super().__init__()
        self.syntax = Encoder(vocabulary, hidden, sees_predicates=False)
        self.arcs = ArcScorer(2 * hidden, hidden)
        self.semantics = Encoder(vocabulary, hidden, sees_predicates=True)
        self.roles = RoleScorer(2 * hidden, hidden, len(vocabulary.labels) + 1)
        family = ol.Family(arborescence)
        unit: Literal["norm"] | None = "norm" if in_units else None
        self.tree = None if rule is None else ol.OptLayer(family, rule, gradient_unit=unit)
        self.best_tree = ol.OptLayer(family, ol.Pipeline())
        self.clip_norm, self.signal = clip_norm, signal

    @property
    def device(self) -> torch.device:
        """Of its parameters."""
        return self.arcs.weight.device

    def arc_scores(self, batch: Batch) -> Tensor:
        """``(batch, head, modifier)``."""
        return self.arcs(self.syntax(batch))

    def build_tree(self, arc_scores: Tensor, batch: Batch) -> Tensor:
        """The layer's tree, with the gradient clipped on its way in and scaled on its way out."""
        if self.tree is None:
            raise ValueError("this parser has no tree layer; hand it a tree")
        if arc_scores.requires_grad:
            arc_scores = arc_scores * 1.0  # a node of its own, so that the other loss is not scaled too
            arc_scores.register_hook(lambda gradient: self.signal * gradient)
        tree = self.tree(arc_scores, sizes=batch.lengths)
        if tree.requires_grad:
            tree.register_hook(self._clip)
        return tree

    def _clip(self, gradient: Tensor) -> Tensor:
        norm = gradient.flatten(1).norm(dim=1).clamp_min(self.clip_norm)
        return gradient * (self.clip_norm / norm)[:, None, None]

    def role_scores(self, batch: Batch, tree: Tensor) -> Tensor:
        """``(predicates of the batch, argument, label)``; label 0 is none."""
        return self.roles(self.semantics(batch), tree, batch.predicates)
