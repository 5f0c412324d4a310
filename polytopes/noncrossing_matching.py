"""Matchings of points on a line that do not cross: foldings of RNA."""

import numpy as np

from optlayers import Polytope, plots
from polytopes._compiled import compiled
from polytopes._derivations import Derivations, within
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["crossed_or_single", "crossed_pairs", "noncrossing_matching"]


def noncrossing_matching(size: int, *, gap: int = 1, perfect: bool = False) -> Polytope:
    r"""Pairs of points on a line whose arcs do not cross: shape ``(size, size)``.

    Entry (i, j), i < j, is 1 when the points i and j are a pair; the diagonal and what is below it are 0. A point has
    one partner at most, exactly one if ``perfect``. No two pairs cross (i < k < j < l), so pairs are next to each other
    or within each other, as in the secondary structure of RNA. Pairs are at least ``gap`` apart, ``j - i >= gap``: for
    RNA, whose hairpins have 3 points or more, ``gap=4``. Pairs that cannot be, of bases that do not match, have the
    score -inf. There are as many structures as the Motzkin number of ``size`` for ``gap=1``, for ``perfect`` as the
    Catalan number of ``size / 2``.

    Declared by the algorithm of Nussinov et al. (1978) in its form without ambiguity (McCaskill, 1990): in the points
    i..j, either i is alone, or it has a partner k, and the points i+1..k-1 and k+1..j are matched by themselves. Flows
    say how often each is taken,

    .. math:: x_{ik} = \sum_j f_{ikj},\qquad
              f_{ij} + \sum_k f_{ikj} = \text{how often the points } i..j \text{ are matched by themselves},

    about ``size**3 / 6`` of them. Integral, as in :func:`polytopes.constituency_tree`: these steps form an acyclic
    hypergraph in which an interval enters a structure at most once (Martin, Rardin and Campbell, 1990). The best vertex
    and the sum over all structures are found in ``size**3 / 6`` steps. Ties are decided for each interval from the
    whole inwards: its first point stays alone, else has the nearest of the best partners.

    References
    ----------
    Nussinov, Pieczenik, Griggs and Kleitman (1978), Algorithms for loop matchings, SIAM Journal
    on Applied Mathematics. McCaskill (1990), The equilibrium partition function and base pair binding probabilities for
    RNA secondary structure, Biopolymers. Martin, Rardin and Campbell (1990), Polyhedral characterization of discrete
    dynamic programming, Operations Research.

    >>> import optlayers as ol, torch
    >>> scores = torch.full((4, 4), -1.0)
    >>> scores[0, 3], scores[1, 2], scores[0, 2] = 1.0, 1.0, 1.5
    >>> ol.OptLayer(noncrossing_matching(4), ol.Pipeline())(scores).nonzero().tolist()
    [[0, 3], [1, 2]]
    """
    at_least_one(size=size, gap=gap)
    if perfect and size % 2:
        raise ValueError(f"size must be even for perfect matchings, but got {size}")
    if perfect and gap > 1:
        raise ValueError(f"a perfect matching without crossings has pairs of neighbours, which gap={gap} forbids")
    i, j = np.triu_indices(size, gap)
    nothing, no_part = np.zeros_like(i), np.full_like(i, size**2)
    alone = np.stack([_interval(i, j, size, gap), _interval(i + 1, j, size, gap), nothing, no_part], axis=1)
    which, partner = within(i + gap, j + 1)
    i, j = i[which], j[which]
    made, inside = _interval(i, j, size, gap), _interval(i + 1, partner - 1, size, gap)
    paired = np.stack([made, inside, _interval(partner + 1, j, size, gap), i * size + partner], axis=1)
    draw = drawn_by(plots.arcs)
    if perfect:
        even = ((j - i) % 2 == 1) & ((partner - i) % 2 == 1)
        return Derivations.of(size**2, paired[even]).polytope((size, size), membership=crossed_or_single, draw=draw)
    steps = np.concatenate([alone, paired])
    return Derivations.of(size**2, steps).polytope((size, size), membership=crossed_pairs, draw=draw)


def _interval(start: np.ndarray, end: np.ndarray, size: int, gap: int) -> np.ndarray:
    """The number of the points from start to end, larger for longer ones; 0 where none of them can be a pair."""
    return np.where(end - start >= gap, (end - start) * size + start, 0)


@compiled
def crossed_pairs(pairs):  # type: ignore[no-untyped-def]
    """How many pairs cross or share a point with an earlier one."""
    size = len(pairs)
    wrong = 0.0
    partner = np.full(size, -1)
    for i in range(size):
        for j in range(size):
            if pairs[i, j] < 0.5:
                continue
            wrong += pairs[i, j] - 1.0
            if i >= j or partner[i] >= 0 or partner[j] >= 0:
                wrong += 1.0
                continue
            partner[i], partner[j] = j, i
    for i in range(size):
        for k in range(i + 1, partner[i]):
            wrong += 0.0 if i < partner[k] < partner[i] or partner[k] < 0 else 1.0
    return wrong


@compiled
def crossed_or_single(pairs):  # type: ignore[no-untyped-def]
    """Those of :func:`crossed_pairs`, and points without a partner."""
    size = len(pairs)
    single = 0.0
    for i in range(size):
        count = 0.0
        for j in range(size):
            count += pairs[i, j] + pairs[j, i]
        single += 1.0 if count < 0.5 else 0.0
    return crossed_pairs(pairs) + single
