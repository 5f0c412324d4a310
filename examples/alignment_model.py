"""What examples of word alignment share: padded batches of pairs, a model that scores pairs of words, measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from alignment_data import FEATURES, Pair, features_of
from torch import Tensor, nn

__all__ = ["Batch", "Measure", "Scorer", "best_cost", "logistic", "lost_links", "one_by_one", "soft_f1", "vocabulary"]


@dataclass(frozen=True)
class Batch:
    """Padded pairs: features ``(pairs, rows, columns, FEATURES)``, words, sizes ``(pairs, 2)``, and gold links as 0 or
    1: sure, and sure or possible. The structure is what losses compare with: sure links, until it is replaced."""

    features: Tensor
    source: Tensor
    target: Tensor
    sizes: Tensor
    sure: Tensor
    allowed: Tensor
    structure: Tensor

    @classmethod
    def of(cls, pairs: Sequence[Pair], words: dict[str, int]) -> Batch:
        """Some pairs; words that were not seen in training are word 0."""
        sizes = torch.tensor([[len(pair.source), len(pair.target)] for pair in pairs])
        count, rows, columns = len(pairs), int(sizes[:, 0].max()), int(sizes[:, 1].max())
        features = torch.zeros(count, rows, columns, FEATURES)
        source, target = torch.zeros(count, rows, dtype=torch.long), torch.zeros(count, columns, dtype=torch.long)
        sure, allowed = torch.zeros(count, rows, columns), torch.zeros(count, rows, columns)
        for k, pair in enumerate(pairs):
            n, m = len(pair.source), len(pair.target)
            features[k, :n, :m] = features_of(pair)
            source[k, :n] = torch.tensor([words.get(word.lower(), 0) for word in pair.source])
            target[k, :m] = torch.tensor([words.get(word.lower(), 0) for word in pair.target])
            for links, known in ((pair.sure, sure), (pair.sure | pair.possible, allowed)):
                for i, j in links:
                    known[k, i, j] = 1.0
        return cls(features, source, target, sizes, sure, allowed, sure)

    @property
    def inside(self) -> Tensor:
        """Which cells are no padding."""
        rows, columns = (torch.arange(size) for size in self.sure.shape[1:])
        return (rows[:, None] < self.sizes[:, 0, None, None]) & (columns < self.sizes[:, 1, None, None])

    def take(self, index: Tensor) -> Batch:
        """Some of the pairs, with no more padding than they need."""
        sizes = self.sizes[index]
        n, m = sizes.max(dim=0).values.tolist()
        cells = (a[index, :n, :m] for a in (self.sure, self.allowed, self.structure))
        return Batch(self.features[index, :n, :m], self.source[index, :n], self.target[index, :m], sizes, *cells)


class Scorer(nn.Module):
    """A score for every pair of words: a few features of both, and the product of their vectors."""

    def __init__(self, words: int, size: int = 16) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(FEATURES))
        self.vectors = nn.Embedding(words, size)
        nn.init.normal_(self.vectors.weight, std=0.1)

    def forward(self, batch: Batch) -> Tensor:
        """Scores ``(pairs, rows, columns)``."""
        both = self.vectors(batch.source) @ self.vectors(batch.target).mT
        return batch.features @ self.weights + both


def vocabulary(pairs: Sequence[Pair]) -> dict[str, int]:
    """Numbers from 1 on for the words of some pairs; 0 is for all others."""
    seen = sorted({word.lower() for pair in pairs for word in (*pair.source, *pair.target)})
    return {word: place for place, word in enumerate(seen, start=1)}


def soft_f1(soft: Tensor, gold: Tensor) -> Tensor:
    """F1 with parts in the place of links, over all pairs of a batch."""
    return 2.0 * (soft * gold).sum() / (soft.sum() + gold.sum())


def logistic(scores: Tensor, batch: Batch) -> Tensor:
    """Every pair of words decides by itself."""
    return F.binary_cross_entropy_with_logits(scores[batch.inside], batch.sure[batch.inside], reduction="sum")


def lost_links(links: Tensor, batch: Batch) -> Tensor:
    """How many gold links of a pair are lost, by the soft F1 of the pair.

    A part then has a gradient around 1, whatever the batch and the lengths of sentences, and steps and strengths of 1
    are those that rules are made for.
    """
    hits, found, sure = (each.sum(dim=(1, 2)) for each in (links * batch.sure, links, batch.sure))
    return (sure - 2.0 * hits * sure / (found + sure).clamp_min(1.0)).sum()


@dataclass(frozen=True)
class Measure:
    """Precision, recall and F1 for sure links, and the error rate of alignments."""

    precision: float
    recall: float
    f1: float
    error_rate: float

    @classmethod
    def of(cls, links: Tensor, batch: Batch) -> Measure:
        """Of links as 0 or 1."""
        found, sure = links.sum().item(), batch.sure.sum().item()
        hits, allowed = (links * batch.sure).sum().item(), (links * batch.allowed).sum().item()
        precision, recall = hits / max(found, 1.0), hits / max(sure, 1.0)
        f1 = 2.0 * hits / max(found + sure, 1.0)
        return cls(precision, recall, f1, 1.0 - (hits + allowed) / max(found + sure, 1.0))


Decoder = Callable[[Tensor, Batch, float], Tensor]
"""Links as 0 or 1 for scores, where a link costs something."""


def one_by_one(scores: Tensor, batch: Batch, cost: float) -> Tensor:
    """All pairs of words that score more than a link costs."""
    return ((scores > cost) & batch.inside).float()


def best_cost(scores: Tensor, batch: Batch, links: Decoder) -> tuple[float, float]:
    """The best F1, and the cost that leads to it.

    A cost is tried for each of several numbers of pairs of words whose score is above it: from half to eight times as
    many pairs as there are gold links.
    """
    ordered, count = scores[batch.inside].sort(descending=True).values, batch.sure.sum()
    places = [min(int(times * count), len(ordered) - 1) for times in (0.5, 0.7, 0.9, 1.2, 1.7, 3, 8)]
    return max((Measure.of(links(scores, batch, cost), batch).f1, cost) for cost in ordered[places].tolist())
