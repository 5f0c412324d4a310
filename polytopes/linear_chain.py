"""Tag sequences by their states, with scores for transitions."""

import cvxpy as cp
import numpy as np
from torch import Tensor

from optlayers import Polytope
from polytopes._chain import best_states, chain_log_partition
from polytopes._compiled import compiled
from polytopes._semiring import logsumexp
from polytopes._sizes import at_least_one

__all__ = ["linear_chain"]


def linear_chain(steps: int, states: int) -> Polytope:
    r"""Tag sequences, one state per step: shape ``(steps, states)``, with scores ``transition`` for pairs.

    Entry (t, j) is 1 when step t is in state j. The transitions v, of shape ``(steps - 1, states, states)``, are scored
    auxiliary variables: entry (t, i, j) is 1 when step t is in state i and step t + 1 in state j. They have scores
    without counting for distances, so a projection is that of LP-SparseMAP: only the states are regularized. A chain
    of one step has no transitions. In :func:`polytopes.sequence` the edges themselves are the structure. The
    declaration is the local polytope of a chain,

    .. math:: \{x, v \ge 0 : \sum_j x_{0j} = 1,\; \sum_j v_{tij} = x_{ti},\; \sum_i v_{tij} = x_{t+1,j}\},

    integral because a chain is a tree (Wainwright and Jordan, 2008): it is the polytope of unit flows through the
    trellis. Its best vertex is the Viterbi path; of tied ones the one whose last state is the smallest, then the one
    before it, and so on. Its marginals are those of a linear-chain CRF.

    References
    ----------
    Viterbi (1967), Error bounds for convolutional codes and an asymptotically optimum decoding algorithm.
    Lafferty, McCallum and Pereira (2001), Conditional random fields, ICML. Wainwright and Jordan (2008), Graphical
    models, exponential families, and variational inference. Niculae and Martins (2020), LP-SparseMAP: differentiable
    relaxed optimization for sparse structured prediction, ICML.

    >>> chain = linear_chain(3, 2)
    >>> x, transition = chain.oracle(np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.5]]), np.zeros((2, 2, 2)))
    >>> x.argmax(1)
    array([1, 0, 1])
    """
    at_least_one(steps=steps, states=states)
    x = cp.Variable((steps, states), nonneg=True)
    one_state = cp.sum(x[0]) == 1
    if steps == 1:
        return Polytope(x, [one_state], oracle=_best_state, log_partition=_log_partition_of_one_step)
    transition = cp.Variable((steps - 1, states, states), nonneg=True, name="transition")
    constraints = [one_state, cp.sum(transition, axis=2) == x[:-1], cp.sum(transition, axis=1) == x[1:]]
    return Polytope(x, constraints, oracle=_best_path, log_partition=_log_partition, scored=[transition])


@compiled
def _best_path(scores, transition):  # type: ignore[no-untyped-def]
    path = best_states(scores, transition)
    if path[0] < 0:
        return np.full(scores.shape, np.nan), np.full(transition.shape, np.nan)
    x, v = np.zeros(scores.shape), np.zeros(transition.shape)
    x[0, path[0]] = 1.0
    for t in range(1, len(path)):
        x[t, path[t]] = 1.0
        v[t - 1, path[t - 1], path[t]] = 1.0
    return x, v


@compiled
def _best_state(scores):  # type: ignore[no-untyped-def]
    path = best_states(scores, np.empty((0, scores.shape[1], scores.shape[1])))
    if path[0] < 0:
        return np.full(scores.shape, np.nan)
    x = np.zeros(scores.shape)
    x[0, path[0]] = 1.0
    return x


def _log_partition(scores: Tensor, transition: Tensor) -> Tensor:
    return chain_log_partition(scores[..., 0, :], scores[..., 1:, None, :] + transition)


def _log_partition_of_one_step(scores: Tensor) -> Tensor:
    return logsumexp(scores[..., 0, :], -1)
