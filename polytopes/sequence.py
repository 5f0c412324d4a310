"""Tag sequences: paths through a trellis."""

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from optlayers import Polytope, plots
from polytopes._chain import best_states, chain_log_partition
from polytopes._compiled import compiled
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["edge_scores", "sequence", "states_of"]


def sequence(steps: int, states: int) -> Polytope:
    r"""Paths of a linear chain, one state per step, as their edges: shape ``(steps, states, states)``.

    Entry (t, i, j) is 1 when step t is in state j and step t - 1 was in state i. Before step 0 there is only a start,
    which is kept in row i = 0; the other rows of step 0 are 0. The polytope is that of unit flows through the trellis,

    .. math:: \{x \ge 0 : \sum_j x_{00j} = 1,\; \sum_i x_{tij} = \sum_k x_{t+1,jk}\},

    integral because its matrix is a network matrix. Its best vertex is the Viterbi path; of tied ones the one whose
    last state is the smallest, then the one before it, and so on. Its marginals are those of a linear-chain CRF. Unary
    and transition scores are folded into edges by :func:`edge_scores`; :func:`states_of` reads the states off the
    edges. In :func:`polytopes.linear_chain` they stay apart, and only the states count for distances.

    References
    ----------
    Viterbi (1967), Error bounds for convolutional codes and an asymptotically optimum decoding algorithm.
    Lafferty, McCallum and Pereira (2001), Conditional random fields, ICML. Wainwright and Jordan (2008), Graphical
    models, exponential families, and variational inference (the marginal polytope of a tree is its local polytope).

    >>> import optlayers as ol, torch
    >>> viterbi = ol.OptLayer(sequence(3, 2), ol.Pipeline())
    >>> unary = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.5]])
    >>> states_of(viterbi(edge_scores(unary, torch.zeros(2, 2)))).argmax(-1)
    tensor([1, 0, 1])
    """
    at_least_one(steps=steps, states=states)
    x = cp.Variable((steps, states, states), nonneg=True)
    entered, left = cp.sum(x, axis=1), cp.sum(x, axis=2)
    start = [cp.sum(x[0, 0]) == 1]
    if states > 1:
        start.append(x[0, 1:] == 0)
    constraints = [*start, entered[:-1] == left[1:]] if steps > 1 else start
    return Polytope(
        x,
        constraints,
        oracle=_best_path,
        log_partition=_log_partition,
        integral=True,
        rows="exact",
        draw=drawn_by(plots.lanes),
    )


@compiled
def _best_path(scores):  # type: ignore[no-untyped-def]
    steps, states, _ = scores.shape
    unary = np.zeros((steps, states))
    unary[0] = scores[0, 0]
    path = best_states(unary, scores[1:])
    if path[0] < 0:
        return np.full(scores.shape, np.nan)
    x = np.zeros(scores.shape)
    x[0, 0, path[0]] = 1.0
    for t in range(1, steps):
        x[t, path[t - 1], path[t]] = 1.0
    return x


def _log_partition(scores: Tensor) -> Tensor:
    start, edges = scores.split([1, scores.shape[-3] - 1], dim=-3)  # type: ignore[no-untyped-call]
    return chain_log_partition(start[..., 0, 0, :], edges)


def edge_scores(
    unary: Float[Tensor, "*batch steps states"],
    transition: Float[Tensor, "*transition_batch states states"],
    start: Float[Tensor, "*start_batch states"] | None = None,
) -> Float[Tensor, "*batch steps states states"]:
    """Scores of the edges: the unary score of the state that an edge enters, plus that of the transition.

    Parameters
    ----------
    unary : ``(*batch, steps, states)``.
    transition : ``(states, states)`` from row to column, for all instances or ``(*batch, states, states)``.
    start : ``(states,)`` or ``(*batch, states)``, the scores of a first state; 0 by default.
    """
    *batch, steps, states = unary.shape
    if tuple(transition.shape[-2:]) != (states, states):
        raise ValueError(f"transition ends in {tuple(transition.shape[-2:])} but there are {states} states")
    if start is not None and start.shape[-1:] != (states,):
        raise ValueError(f"start ends in {tuple(start.shape[-1:])} but there are {states} states")
    first = torch.zeros_like(unary[..., 0, :]) if start is None else start.expand(*batch, states)
    first = first[..., None, :].expand(*batch, states, states)
    later = transition[..., None, :, :].expand(*batch, steps - 1, states, states)
    return unary[..., None, :] + torch.cat([first[..., None, :, :], later], dim=-3)


def states_of(edges: Float[Tensor, "*batch steps states states"]) -> Float[Tensor, "*batch steps states"]:
    """States from edges: how much each step is in each state.

    Parameters
    ----------
    edges : ``(*batch, steps, states, states)``; entry (t, i, j) is the weight of going from state i to j at step t.

    Returns
    -------
    ``(*batch, steps, states)``, the sum over i. It can be differentiated.
    """
    return edges.sum(dim=-2)
