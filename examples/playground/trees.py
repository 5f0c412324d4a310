"""What belongs to a sentence and the scores of its arcs: trees and their probabilities, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

import optlayers as ol
import polytopes

__all__ = ["EXAMPLE", "KINDS", "Trees", "beginning", "trees_of", "words_of"]

EXAMPLE = "she saw the man with a telescope"
KINDS = {"arcs may cross": polytopes.arborescence, "no crossing arcs": polytopes.projective_tree}
MOST, LONGEST = 8, 12
KNOWN = {(0, 2): 4.0, (2, 1): 4.0, (4, 3): 4.0, (2, 4): 4.0, (2, 5): 3.2, (4, 5): 2.8, (7, 6): 4.0, (5, 7): 4.0}
"""Scores of the example, whose fifth word may belong to the second one or to the fourth."""


@dataclass(frozen=True)
class Trees:
    """Entry (h, d) of each array is the arc from word h to word d; word 0 is the root."""

    best: np.ndarray
    mixture: tuple[tuple[float, np.ndarray], ...]
    """The trees that the nearest point mixes and their weights, largest first."""
    marginals: np.ndarray


def words_of(sentence: str) -> list[str]:
    """The words that were typed.

    Raises
    ------
    ValueError : too few words, too many, or one that is too long to be drawn.
    """
    words = sentence.split()
    if not 2 <= len(words) <= MOST:
        raise ValueError(f"the sentence has {len(words)} words, and 2 to {MOST} are drawn: separate words by spaces")
    longest = max(words, key=len)
    if len(longest) > LONGEST:
        raise ValueError(f"the word {longest[:20]} has {len(longest)} letters, and {LONGEST} are drawn: shorten it")
    return words


def beginning(words: list[str]) -> np.ndarray:
    """Scores to begin with, made up: words attract their neighbours, short ones the next; the example has its own."""
    count = len(words) + 1
    place = np.arange(count)
    scores = 1.0 - 0.5 * np.abs(place[:, None] - place[None, :])
    scores[0] = -0.5
    scores[0, 2] = 1.5
    if " ".join(words) == EXAMPLE:
        for arc, score in KNOWN.items():
            scores[arc] = score
    else:
        for place, (word, following) in enumerate(pairwise(words), start=1):
            scores[place + 1, place] += len(word) <= 3 < len(following)
    return np.round(scores, 1)


@lru_cache(maxsize=2 * MOST)
def _compiled(kind: str, words: int) -> ol.CompiledPolytope:
    return ol.compile_polytope(KINDS[kind](words), projector=ol.ActiveSet())  # whose answers are mixtures


def trees_of(scores: np.ndarray, kind: str, temperature: float) -> Trees:
    """The best tree, the mixture of trees that is nearest to the scores over a temperature, and the marginals there.

    Raises
    ------
    optlayers.SolveError : where an answer has no certificate.
    """
    compiled = _compiled(kind, len(scores) - 1)
    asked = torch.tensor(scores)
    near = compiled.project(asked / temperature).check()
    order = torch.argsort(near.weights, descending=True)
    mixture = tuple((float(near.weights[k]), near.vertices[k].numpy()) for k in order if near.weights[k] > 1e-9)
    marginals = ol.Gibbs(compiled, asked, temperature=temperature).mean
    return Trees(compiled.maximize(asked).check().value.numpy(), mixture, marginals.numpy())
