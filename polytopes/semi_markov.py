"""Segmentations: labelled segments of limited length, one behind the other."""

import numpy as np

from optlayers import Polytope, plots
from polytopes._derivations import Derivations
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["semi_markov"]


def semi_markov(steps: int, labels: int, longest: int) -> Polytope:
    r"""Segmentations of n = ``steps`` tokens into labelled segments: shape ``(steps, longest, labels)``.

    Entry (i, l, y) is 1 when a segment of l + 1 tokens with the label y starts at token i. Segments have at most
    ``longest`` tokens; entries of segments that would end behind the last token are 0. The polytope is that of unit
    flows from the front of the first token to the end of the last one, in which a segment is an arc from its front to
    its end:

    .. math:: \{x \ge 0 : \sum_{l, y} x_{t l y} - \sum_{i + l + 1 = t,\; y} x_{i l y} = [t = 0] - [t = n]\},

    integral because it is a network matrix; said otherwise, every token is in exactly one segment, and the columns of
    that matrix are intervals. Its best vertex is found in ``steps * longest * labels`` additions (Sarawagi and Cohen,
    2004). Of tied ones it has the longest last segment, with the smallest label, then the longest one before it, and so
    on. Its marginals are those of a semi-Markov CRF whose segments do not see each other's labels: for scores of pairs
    of labels, declare :func:`polytopes.dag_path` over nodes (token, label).

    References
    ----------
    Sarawagi and Cohen (2004), Semi-Markov conditional random fields for information extraction, NeurIPS. Fulkerson and
    Gross (1965), Incidence matrices and interval graphs, Pacific Journal of Mathematics.

    >>> import optlayers as ol, torch
    >>> scores = torch.zeros(4, 2, 2)  # 4 tokens, segments of 1 or 2, labels 0 and 1
    >>> scores[1, 1, 1] = 2.0  # tokens 1 and 2 as one segment with label 1
    >>> ol.OptLayer(semi_markov(4, labels=2, longest=2), ol.Pipeline())(scores).nonzero().tolist()
    [[0, 0, 0], [1, 1, 1], [3, 0, 0]]
    """
    at_least_one(steps=steps, labels=labels, longest=longest)
    shape = (steps, longest, labels)
    front, length, _ = np.indices(shape).reshape(3, -1)
    end, part = front + length + 1, np.arange(front.size)
    ways = Derivations.of(part.size, np.stack([end, front, np.zeros_like(part), part], axis=1)[end <= steps])
    return ways.polytope(shape, draw=drawn_by(plots.segments))
