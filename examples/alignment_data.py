"""Pairs of sentences that say the same, with gold word alignments, read or drawn; and features of words."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["FEATURES", "Pair", "features_of", "read_pairs", "sample_pairs"]

Links = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Pair:
    """Two sentences, and which words go together: ``sure`` links, and further ``possible`` ones; (source, target)."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    sure: Links
    possible: Links = frozenset()


def read_pairs(path: Path, max_words: int) -> list[Pair]:
    """The pairs whose two sentences have at most ``max_words`` words, from a file of the Edinburgh paraphrase corpus.

    The file is a JSON list of objects with ``source`` and ``target`` (words with spaces between them) and ``sureAlign``
    and ``possibleAlign`` (such as ``0-0 1-2``).

    Raises
    ------
    ValueError : a link to a word that is not there.

    References
    ----------
    Cohn, Callison-Burch and Lapata (2008), Constructing corpora for the development and evaluation of paraphrase
    systems, Computational Linguistics.
    """
    pairs = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        source, target = entry["source"].split(), entry["target"].split()
        sure, possible = (_links(entry.get(name, "")) for name in ("sureAlign", "possibleAlign"))
        for i, j in sure | possible:
            if not (i < len(source) and j < len(target)):
                raise ValueError(
                    f"{path}: pair {entry['id']} has the link {i}-{j}, but {len(source)} and {len(target)} words"
                )
        if max(len(source), len(target)) <= max_words:
            pairs.append(Pair(tuple(source), tuple(target), sure, possible))
    return pairs


def _links(text: str) -> Links:
    return frozenset((int(i), int(j)) for i, j in (link.split("-") for link in text.split()))


ENDINGS = ("", "s", "ed", "ing")
FILLERS = ("well", "so", "then", "indeed", ",")


def sample_pairs(count: int, rng: random.Random) -> list[Pair]:
    """Pairs of an invented language: what a sentence says in two halves, the other one says in words of its own.

    A concept has a stem and a synonym of another stem, each with endings. The second sentence keeps the stem, inflects
    it, takes the synonym, says it in two words (both are linked), or leaves it out; it may swap the halves, and has
    fillers in between.
    """
    stems = ["".join(rng.choice("bdfgklmnprstv") + rng.choice("aeiou") for _ in range(3)) for _ in range(160)]
    concepts = list(zip(stems[:80], stems[80:], strict=True))
    pairs = []
    for _ in range(count):
        said = rng.sample(concepts, rng.randint(4, 9))
        source = [stem + rng.choice(ENDINGS) for stem, _ in said]
        order = list(range(len(said)))
        if rng.random() < 0.4:
            half = len(order) // 2
            order = order[half:] + order[:half]
        target: list[str] = []
        links = set()
        for i in order:
            stem, synonym = said[i]
            way = rng.random()
            if way < 0.1:
                continue
            words = [source[i]] if way < 0.35 else [(stem if way < 0.6 else synonym) + rng.choice(ENDINGS)]
            if way > 0.9:
                words.append(stem)
            for word in words:
                links.add((i, len(target)))
                target.append(word)
            if rng.random() < 0.15:
                target.append(rng.choice(FILLERS))
        if target:
            pairs.append(Pair(tuple(source), tuple(target), frozenset(links)))
    return pairs


FEATURES = 9
"""Of two words at their places."""


def features_of(pair: Pair) -> Tensor:
    """What two words have in common, ``(source, target, FEATURES)``.

    They are the same; they begin alike; shared groups of three letters; both are no words but signs; how far their
    places are from each other; their neighbours on the left and on the right are alike; the longer one; and 1.
    """
    rows = [[_similar(a, b) for b in pair.target] for a in pair.source]
    own = torch.tensor(rows)
    places = torch.linspace(0, 1, len(pair.source))[:, None] - torch.linspace(0, 1, len(pair.target))[None]
    left, right = torch.zeros_like(own[..., 2]), torch.zeros_like(own[..., 2])
    left[1:, 1:], right[:-1, :-1] = own[:-1, :-1, 2], own[1:, 1:, 2]
    more = torch.stack([places.abs(), left, right, torch.ones_like(left)], dim=-1)
    return torch.cat([own, more], dim=-1)


def _similar(first: str, second: str) -> list[float]:
    a, b = first.lower(), second.lower()
    threes = [{f" {word} "[k : k + 3] for k in range(len(word))} for word in (a, b)]
    shared = len(threes[0] & threes[1]) / max(1, len(threes[0] | threes[1]))
    signs = float(not a[0].isalnum() and not b[0].isalnum())
    return [float(a == b), float(a[:4] == b[:4]), shared, signs, min(10, max(len(a), len(b))) / 10]
