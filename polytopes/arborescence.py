"""Dependency trees."""

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from optlayers import Polytope
from polytopes._sizes import at_least_one

__all__ = ["arborescence"]


def arborescence(words: int, *, single_root: bool = True) -> Polytope:
    r"""Dependency trees over ``words`` words and a dummy root: shape ``(words + 1, words + 1)``.

    Entry (h, m) is 1 when node h is the head of node m. Node 0 is the root: column 0 and the diagonal are 0. With
    ``single_root`` exactly one word hangs from the root, as treebanks want.

    Declared by flows of several commodities (Martins, Smith and Xing, 2009): every word has one head, and every word k
    receives one unit of a flow of its own from the root, over arcs with the capacity of the tree:

    .. math:: \sum_h x_{hm} = 1,\qquad 0 \le f^k_{hm} \le x_{hm},\qquad
              \sum_h f^k_{hm} = \sum_j f^k_{mj} \quad (m \ne k).

    Flow variables that are known are left out. What flows into k comes over the arcs of its one head,
    :math:`f^k_{hk} = x_{hk}`, and nothing flows out of it; with a single root the unit leaves it over arcs whose
    capacities sum to 1, so :math:`f^k_{0m} = x_{0m}`. There remain ``words * (words - 1) * (words - 2)`` flow variables
    for a single root, ``words * (words - 1)**2`` for several.

    Integral on x: by max-flow min-cut the flows say that every set of words is entered by at least one arc, which
    together with one head per word describes the arborescence polytope (Edmonds, 1967). Every arborescence has at
    least one root arc, so those with a single one are a face of it, and integral too.

    References
    ----------
    Martins, Smith and Xing (2009), Concise integer linear programming formulations for dependency parsing, ACL.
    Edmonds (1967), Optimum branchings. Wong (1984), A dual ascent approach for Steiner tree problems on a directed
    graph (the flow formulation).

    >>> import optlayers as ol, torch
    >>> scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 3.0, 0.0]])
    >>> ol.OptLayer(arborescence(2), ol.Pipeline())(scores)
    tensor([[0., 0., 1.],
            [0., 0., 0.],
            [0., 1., 0.]])
    """
    at_least_one(words=words)
    nodes = words + 1
    x = cp.Variable((nodes, nodes), nonneg=True)
    constraints = [x[:, 0] == 0, cp.diag(x) == 0, cp.sum(x[:, 1:], axis=0) == 1]
    if single_root:
        constraints.append(cp.sum(x[0]) == 1)
    arcs = cp.vec(x, order="C")
    capacity, flow_balance, tree_balance = _flows(nodes, root_flows_known=single_root)
    if capacity.shape[0]:  # else every flow is known, and the heads (with the root) say it all
        flow = cp.Variable(capacity.shape[0], nonneg=True)
        constraints += [flow <= capacity @ arcs, flow_balance @ flow == tree_balance @ arcs]
    return Polytope(x, constraints)


def _flows(nodes: int, *, root_flows_known: bool) -> tuple[sp.csr_array, sp.csr_array, sp.csr_array]:
    """Of every flow variable the arc it uses; then, per (commodity k, word m), both sides of the balance.

    The variables are the triples (commodity k, head h, modifier m), all different, with k and m words. At word m what
    comes in minus what leaves for words other than k, over flow variables, equals what leaves for k, which is
    ``x[m, k]``, minus what comes from the root if that is known, which is ``x[0, m]``.
    """
    commodity, head, modifier = (axis.reshape(-1) for axis in np.meshgrid(*[np.arange(nodes)] * 3, indexing="ij"))
    used = (commodity != 0) & (modifier != 0) & (head != modifier) & (head != commodity) & (modifier != commodity)
    if root_flows_known:
        used &= head != 0
    k, h, m = commodity[used], head[used], modifier[used]
    flow = np.arange(len(k))
    capacity = _ones(flow, h * nodes + m, (len(k), nodes**2))
    inner = h != 0
    inflow = _ones(k * nodes + m, flow, (nodes**2, len(k)))
    outflow = _ones((k * nodes + h)[inner], flow[inner], (nodes**2, len(k)))

    k, m = (axis.reshape(-1) for axis in np.meshgrid(np.arange(nodes), np.arange(nodes), indexing="ij"))
    balanced = (k != 0) & (m != 0) & (k != m)
    k, m = k[balanced], m[balanced]
    row = np.arange(len(k))
    tree_balance = _ones(row, m * nodes + k, (len(k), nodes**2))
    if root_flows_known:
        tree_balance = tree_balance - _ones(row, m, (len(k), nodes**2))
    return capacity, (inflow - outflow)[k * nodes + m], tree_balance


def _ones(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    return sp.csr_array((np.ones(len(row)), (row, column)), shape=shape)
