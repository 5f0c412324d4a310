"""Pairs of sentences that say the same, with gold word alignments, read or drawn; and features of words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["FEATURES", "Pair", "features_of", "read_pairs", "sample_pairs", "three_parts"]

Links = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Pair:
    """Two sentences, and which words go together: ``sure`` links, and further ``possible`` ones; (source, target)."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    sure: Links
    possible: Links = frozenset()


def read_pairs(path: Path, max_words: int, possible: Path | None = None, *, least: int = 1) -> list[Pair]:
    """The pairs whose two sentences have at most ``max_words`` words, from a file of the Edinburgh paraphrase corpus.

    The file is a JSON list of objects with ``source`` and ``target`` (words with spaces between them), and with
    ``sureAlign`` and, if there are any, ``possibleAlign`` (such as ``0-0 1-2``). The corpus comes in two files of the
    same pairs: one has the sure links, the other one has all links as if they were sure. Where the latter is given as
    ``possible``, what it has beyond the former is possible.

    Raises
    ------
    OSError : a file that cannot be read.
    ValueError : a file that is no such list, has fewer than ``least`` such pairs, or has a link to a word that is not
        there; files that do not hold the same pairs in the same order.

    References
    ----------
    Cohn, Callison-Burch and Lapata (2008), Constructing corpora for the development and evaluation of paraphrase
    systems, Computational Linguistics.
    """
    pairs = _all_pairs(path)
    if possible is not None:
        further = _all_pairs(possible)
        if [(pair.source, pair.target) for pair in pairs] != [(pair.source, pair.target) for pair in further]:
            raise ValueError(f"{possible} must hold the {len(pairs)} pairs of {path} in their order, but does not")
        pairs = [
            replace(pair, possible=(pair.possible | more.sure | more.possible) - pair.sure)
            for pair, more in zip(pairs, further, strict=True)
        ]
    short = [pair for pair in pairs if max(len(pair.source), len(pair.target)) <= max_words]
    if len(short) < least:
        raise ValueError(
            f"{path} must hold {least} pairs of at most {max_words} words, but has {len(short)} such of {len(pairs)}"
        )
    return short


def _all_pairs(path: Path) -> list[Pair]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor, perhaps, text
        raise ValueError(f"{path} must be a JSON list of pairs, but: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must be a JSON list of pairs, but is {entries!r:.80}")
    return [_pair(entry, f"{path}, entry {index}") for index, entry in enumerate(entries)]


def _pair(entry: object, place: str) -> Pair:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected an object with source, target and sureAlign, but got {entry!r:.80}")
    if lost := [name for name in ("source", "target", "sureAlign") if name not in entry]:
        raise ValueError(f"{place}: expected source, target and sureAlign, but there is no {' and no '.join(lost)}")
    texts = {name: entry.get(name, "") for name in ("source", "target", "sureAlign", "possibleAlign")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{place}: {name} must be text, but is {text!r:.80}")
    source, target = tuple(texts["source"].split()), tuple(texts["target"].split())
    if not (source and target):
        raise ValueError(f"{place}: source and target need words, but have {len(source)} and {len(target)}")
    sure, possible = _links(texts["sureAlign"], place), _links(texts["possibleAlign"], place)
    for i, j in sorted(sure | possible):
        if not (i < len(source) and j < len(target)):
            called = entry.get("id", "without an id")
            raise ValueError(
                f"{place}: pair {called} has the link {i}-{j}, but {len(source)} and {len(target)} words (from 0 on)"
            )
    return Pair(source, target, sure, possible - sure)


def _links(text: str, place: str) -> Links:
    links = text.split()
    for link in links:
        if not re.fullmatch(r"[0-9]+-[0-9]+", link):
            raise ValueError(f"{place}: expected links such as 0-2, but got {link!r:.80}")
    return frozenset((int(i), int(j)) for i, j in (link.split("-") for link in links))


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


def three_parts(pairs: Sequence[Pair], fold: int, folds: int, held_out: Sequence[Pair] = ()) -> list[list[Pair]]:
    """To learn from, to choose on and to report on: a fold is left out for each of the latter two, in turn.

    Where pairs are ``held_out``, they are reported on, and learned from are all folds but one.
    """
    mixed = random.Random(0).sample(list(pairs), len(pairs))
    parts = [mixed[k::folds] for k in range(folds)]
    dev = parts.pop(fold)
    test = list(held_out) or parts.pop(fold % len(parts))
    return [[pair for part in parts for pair in part], dev, test]


FEATURES = 9
"""Of two words at their places."""


@cache
def features_of(pair: Pair) -> Tensor:
    """What two words have in common, ``(source, target, FEATURES)``; kept, and so not to be written to.

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
