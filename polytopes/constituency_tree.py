"""Constituency trees: binary bracketings."""

import numpy as np

from optlayers import Polytope, plots
from polytopes._compiled import compiled
from polytopes._derivations import Derivations, within
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["constituency_tree", "crossed_spans"]


def constituency_tree(words: int) -> Polytope:
    r"""Binary bracketings of ``words`` words: shape ``(words, words)``.

    Entry (i, j), i < j, is 1 when the words i to j are a constituent. There are ``words - 1`` of them, among them the
    whole, (0, words - 1). Single words are constituents of every tree and are left out: the diagonal and what is below
    it are 0. As many trees as the Catalan number of ``words - 1``.

    Trees with labels come from scores ``(words, words, labels)``. The best tree takes each span's best label: give
    ``scores.amax(-1)``, and read labels off ``scores.argmax(-1)`` at the spans of the tree. Marginals are those of all
    labelled trees for ``scores.logsumexp(-1)``; multiplied by ``scores.softmax(-1)`` they are those of spans with
    labels (Stern, Andreas and Klein, 2017).

    Declared by the algorithm of Cocke, Kasami and Younger: a flow says how often the span i..j is split behind word k,

    .. math:: x_{ij} = \sum_k f_{ikj},\qquad x_{0, n-1} = 1,\qquad
              x_{ij} = \sum_{l > j} f_{ijl} + \sum_{h < i} f_{h,i-1,j},

    that is, every span except for the whole is a part of one split as often as it is a constituent. There are about
    ``words**3 / 6`` flows, and ``words**2`` equalities. Integral, as splits and spans form an acyclic hypergraph in
    which a span enters a tree at most once: points of the flow polytope are mixtures of trees (Martin, Rardin and
    Campbell, 1990). Its best vertex and the sum over all trees are found in ``words**3 / 6`` steps; of tied trees it is
    the one with the earliest split of the whole, then of its parts.

    References
    ----------
    Younger (1967), Recognition and parsing of context-free languages in time n³. Stern, Andreas and Klein (2017), A
    minimal span-based neural constituency parser, ACL. Martin, Rardin and Campbell (1990), Polyhedral characterization
    of discrete dynamic programming, Operations Research. Baker (1979), Trainable grammars for speech recognition (the
    inside algorithm).

    >>> import optlayers as ol, torch
    >>> scores = torch.zeros(4, 4)
    >>> scores[1, 2] = 1.0
    >>> ol.OptLayer(constituency_tree(4), ol.Pipeline())(scores).nonzero().tolist()
    [[0, 3], [1, 2], [1, 3]]
    """
    at_least_one(words=words)
    start, end = np.triu_indices(words, 1)
    which, split = within(start, end)
    start, end = start[which], end[which]
    part = start * words + end
    steps = np.stack([_span(start, end, words), _span(start, split, words), _span(split + 1, end, words), part], axis=1)
    return Derivations.of(words**2, steps).polytope(
        (words, words), membership=crossed_spans, draw=drawn_by(plots.brackets)
    )


def _span(start: np.ndarray, end: np.ndarray, words: int) -> np.ndarray:
    """The number of a span, larger for longer ones; 0 for a single word, which is made of nothing."""
    return np.where(start < end, (end - start) * words + start, 0)


@compiled
def crossed_spans(spans):  # type: ignore[no-untyped-def]
    """How many pairs of spans cross, and how many spans there are too many or too few.

    That is all: n words have at most n - 1 spans of several words that do not cross, and only if these are a tree.
    """
    words = len(spans)
    wrong, count = 0.0, 0
    ends = np.zeros((words * words, 2), np.int64)
    for i in range(words):
        for j in range(words):
            if spans[i, j] < 0.5:
                continue
            wrong += spans[i, j] - 1.0
            if i >= j:
                wrong += 1.0
                continue
            for k in range(count):
                a, b = ends[k]
                if a < i <= b < j or i < a <= j < b:
                    wrong += 1.0
            ends[count, 0], ends[count, 1] = i, j
            count += 1
    return wrong + abs(count - (words - 1))
