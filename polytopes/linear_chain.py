"""Tag sequences by their states, with scores for transitions."""

import cvxpy as cp
import numpy as np
from torch import Tensor

from optlayers import Polytope, plots
from polytopes._chain import best_states, chain_log_partition
from polytopes._compiled import compiled
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["linear_chain"]


def linear_chain(steps: int, states: int) -> Polytope:
    r"""Tag sequences, one state per step: shape ``(steps, states)``, with scores ``transition`` for pairs.

    Entry (t, j) is 1 when step t is in state j. The edges v of the path are a scored auxiliary variable called
    ``transition``, of shape ``(steps, states, states)``, the structure of :func:`polytopes.sequence`: entry (t, i, j)
    is 1 when step t is in state j and step t - 1 was in state i; before step 0 there is only a start, in row i = 0, and
    the other rows of step 0 are 0. Edges have scores without counting for distances, so a projection is that of
    LP-SparseMAP: only the states are regularized. The declaration is

    .. math:: x_{tj} = \sum_i v_{tij},\qquad
              v \ge 0,\; \sum_j v_{00j} = 1,\; \sum_i v_{tij} = \sum_k v_{t+1,jk},

    integral because the latter is the polytope of unit flows through the trellis (the local polytope of a chain:
    Wainwright and Jordan, 2008). Its best vertex is the Viterbi path; of tied ones the one whose last state is the
    smallest, then the one before it, and so on. Its marginals are those of a linear-chain CRF.

    References
    ----------
    Viterbi (1967), Error bounds for convolutional codes and an asymptotically optimum decoding algorithm.
    Lafferty, McCallum and Pereira (2001), Conditional random fields, ICML. Wainwright and Jordan (2008), Graphical
    models, exponential families, and variational inference. Niculae and Martins (2020), LP-SparseMAP: differentiable
    relaxed optimization for sparse structured prediction, ICML.

    >>> import optlayers as ol, torch
    >>> unary = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.5]])
    >>> transition = torch.zeros(3, 2, 2)
    >>> ol.OptLayer(linear_chain(3, 2), ol.Pipeline())(unary, transition=transition).argmax(-1)
    tensor([1, 0, 1])
    >>> transition[1:, 0, 1] = -3.0  # from state 0 to state 1
    >>> ol.OptLayer(linear_chain(3, 2), ol.Pipeline())(unary, transition=transition).argmax(-1)
    tensor([1, 0, 0])
    """
    at_least_one(steps=steps, states=states)
    x = cp.Variable((steps, states), nonneg=True)
    v = cp.Variable((steps, states, states), nonneg=True, name="transition")
    entered, left = cp.sum(v, axis=1), cp.sum(v, axis=2)
    constraints = [x == entered, cp.sum(v[0, 0]) == 1]
    if states > 1:
        constraints.append(v[0, 1:] == 0)
    if steps > 1:
        constraints.append(entered[:-1] == left[1:])
    return Polytope(
        x,
        constraints,
        oracle=_best_path,
        log_partition=_log_partition,
        integral=True,
        rows="exact",
        scored=[v],
        draw=drawn_by(plots.lanes),
    )


@compiled
def _best_path(scores, transition):  # type: ignore[no-untyped-def]
    unary = scores.copy()
    for j in range(scores.shape[1]):
        unary[0, j] += transition[0, 0, j]
    path = best_states(unary, transition[1:])
    if path[0] < 0:
        return np.full(scores.shape, np.nan), np.full(transition.shape, np.nan)
    x, v = np.zeros(scores.shape), np.zeros(transition.shape)
    for t in range(len(path)):
        x[t, path[t]] = 1.0
        v[t, path[t - 1] if t > 0 else 0, path[t]] = 1.0
    return x, v


def _log_partition(scores: Tensor, transition: Tensor) -> Tensor:
    first = scores[..., 0, :] + transition[..., 0, 0, :]
    return chain_log_partition(first, scores[..., 1:, None, :] + transition[..., 1:, :, :])
