"""Monotone alignments of two sequences."""

import numpy as np

from optlayers import Polytope
from polytopes._compiled import compiled
from polytopes._derivations import Derivations
from polytopes._drawn import aligned, in_time
from polytopes._sizes import at_least_one

__all__ = ["ctc_alignment", "monotone_alignment"]

RIGHT, DIAGONAL, DOWN = 0, 1, 2
"""Moves, in the order of torch-struct."""


def monotone_alignment(rows: int, columns: int, *, local: bool = False) -> Polytope:
    r"""Paths through a grid of cells, by moves right, diagonally and down: shape ``(rows, columns, 3)``.

    Entry (i, j, m) is 1 when the path comes to cell (i, j) by move m: 0 from the left, 1 diagonally, 2 from above. It
    starts in cell (0, 0), to which it comes diagonally, and ends in the last one, ``(rows - 1, columns - 1)``. The
    cells of the path, ``x.sum(-1)``, say which row goes with which column, as in dynamic time warping. Parts and moves
    are those of torch-struct's ``AlignmentCRF``.

    For edit distances and for gaps (Needleman and Wunsch, 1970) let a cell say how many tokens of both sides are read:
    two sides of m and n tokens have ``m + 1`` rows and ``n + 1`` columns, a move right skips a token of one side, a
    move down one of the other, and a diagonal one matches two.

    With ``local`` the path starts in any cell, to which it comes diagonally, and ends in any cell (Smith and Waterman,
    1981). The empty alignment, without any cell, is a structure as well: it has the score 0, and is the best one when
    no path has a larger score.

    The polytope is that of unit flows through the grid. Globally moves are its arcs, and an entry of x is a flow,

    .. math:: \{x \ge 0 : \sum_m x_{i j m} = x_{i,j+1,0} + x_{i+1,j+1,1} + x_{i+1,j,2}\},

    with a flow of 1 into the first cell; locally auxiliary variables divide diagonal moves into those that start a path
    and those that go on, and say where paths end. Both are integral since their matrix is a network matrix; there are
    as many structures globally as the Delannoy number of ``rows - 1`` and ``columns - 1``. The best vertex and
    the sum over all take about ``3 * rows * columns`` additions. Ties are decided from the end of the path: diagonal
    moves come before those right, and those before moves down. Local paths are as short as possible in front, and of
    several ends the first one, row by row, is taken.

    References
    ----------
    Needleman and Wunsch (1970), A general method applicable to the search for similarities in the
    amino acid sequence of two proteins, Journal of Molecular Biology. Smith and Waterman (1981), Identification of
    common molecular subsequences, the same journal. Sakoe and Chiba (1978), Dynamic programming algorithm optimization
    for spoken word recognition. Cuturi and Blondel (2017), Soft-DTW, ICML.

    >>> import optlayers as ol, torch
    >>> near = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 2.0]])
    >>> path = ol.OptLayer(monotone_alignment(2, 3), ol.Pipeline())(near[:, :, None].expand(2, 3, 3))
    >>> path.sum(-1)
    tensor([[1., 0., 0.],
            [0., 1., 1.]])
    """
    at_least_one(rows=rows, columns=columns)
    i, j = (axis.reshape(-1) for axis in np.indices((rows, columns)))
    cell = 1 + np.arange(i.size)
    ways = []
    starts = np.ones_like(i, dtype=bool) if local else cell == 1
    for move, before, there in (
        (DIAGONAL, np.zeros_like(cell), starts),
        (DIAGONAL, cell - columns - 1, (i > 0) & (j > 0)),
        (RIGHT, cell - 1, j > 0),
        (DOWN, cell - columns, i > 0),
    ):
        ways.append(_steps(cell, before, 3 * (cell - 1) + move)[there])
    size = 3 * i.size
    if local:
        ends = np.concatenate([[0], cell])
        ways.append(_steps(np.full_like(ends, i.size + 1), ends, np.full_like(ends, size)))
    derived = Derivations.of(size, np.concatenate(ways))
    return derived.polytope((rows, columns, 3), membership=broken_path if local else None, draw=aligned)


def ctc_alignment(steps: int, positions: int, *, skips: bool = False) -> Polytope:
    r"""Each step is at one position, which stays or moves on: shape ``(steps, positions, 2)``, or 3 with ``skips``.

    Entry (t, j, m) is 1 when step t is at position j and step t - 1 was at position j - m: it stays (m = 0), goes on
    (m = 1), or skips a position (m = 2, with ``skips`` alone). Before the first step the position is -1. The last step
    is at the last position; with ``skips``, there or at the one before, which skips the last. ``x.sum(-1)`` is the
    position of every step.

    Without skips these are the segmentations of the steps into ``positions`` segments, one for each position (hidden
    Markov models from left to right, speech and its phones): ``binomial(steps - 1, positions - 1)``. With skips they
    are those of connectionist temporal classification: for a target of n labels there are ``2 * n + 1`` positions, a
    blank before, between and behind the labels. Scores are the log-probabilities of what is at the position, for all
    moves; ``-inf`` forbids to skip a label (m = 2 into a blank), and the blank between two equal labels. The
    log-partition is then the log-likelihood of the target, as ``torch.nn.functional.ctc_loss`` has it negated.

    The polytope is that of unit flows,

    .. math:: \{x \ge 0 : \sum_m x_{t j m} = \sum_m x_{t + 1, j + m, m}\},

    with a flow of 1 into the first step, integral since its matrix is a network matrix. The best vertex and the sum
    over all take about ``steps * positions`` additions for each move. Ties are decided from the last step back: the
    last position comes first, then to stay, to go on, to skip.

    References
    ----------
    Graves, Fernández, Gomez and Schmidhuber (2006), Connectionist temporal classification, ICML. Rabiner (1989), A
    tutorial on hidden Markov models and selected applications in speech recognition.

    >>> import optlayers as ol, torch
    >>> scores = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> path = ol.OptLayer(ctc_alignment(3, 2), ol.Pipeline())(scores[:, :, None].expand(3, 2, 2))
    >>> path.sum(-1).argmax(-1)
    tensor([0, 1, 1])
    """
    at_least_one(steps=steps, positions=positions)
    most = 2 * steps + 1 if skips else steps
    if positions > most:
        raise ValueError(f"positions must be at most {most} for steps={steps} and skips={skips}, but got {positions}")
    moves = 3 if skips else 2
    t, j, m = (axis.reshape(-1) for axis in np.indices((steps, positions, moves)))
    here, part = 1 + t * positions + j, np.arange(t.size)
    before = np.where(t > 0, here - positions - m, 0)
    there = np.where(t > 0, j >= m, m == j + 1)
    ways = [_steps(here, before, part)[there]]
    if skips:
        ends = steps * positions - np.arange(min(2, positions))
        ways.append(_steps(np.full_like(ends, steps * positions + 1), ends, np.full_like(ends, part.size)))
    return Derivations.of(part.size, np.concatenate(ways)).polytope((steps, positions, moves), draw=in_time)


def _steps(made: np.ndarray, first: np.ndarray, part: np.ndarray) -> np.ndarray:
    return np.stack([made, first, np.zeros_like(made), part], axis=1)


@compiled
def broken_path(path):  # type: ignore[no-untyped-def]
    """How many parts of a local alignment do not hang together: moves are too many for a cell, or from outside of the
    path, which a single diagonal one may be; or a cell is left by several."""
    rows, columns, _ = path.shape
    wrong, starts = 0.0, 0
    for i in range(rows):
        for j in range(columns):
            moves = 0
            for m in range(3):
                if path[i, j, m] < 0.5:
                    continue
                moves += 1
                wrong += path[i, j, m] - 1.0
                before_i, before_j = i - (1 if m > 0 else 0), j - (1 if m < 2 else 0)
                there = False
                if before_i >= 0 and before_j >= 0:
                    for other in range(3):
                        there = there or path[before_i, before_j, other] > 0.5
                if not there:
                    starts += 1
                    wrong += 0.0 if m == 1 else 1.0
            wrong += max(0, moves - 1)
            if moves > 0:
                onwards = 0
                if j + 1 < columns and path[i, j + 1, 0] > 0.5:
                    onwards += 1
                if i + 1 < rows and j + 1 < columns and path[i + 1, j + 1, 1] > 0.5:
                    onwards += 1
                if i + 1 < rows and path[i + 1, j, 2] > 0.5:
                    onwards += 1
                wrong += max(0, onwards - 1)
    return wrong + max(0, starts - 1)
