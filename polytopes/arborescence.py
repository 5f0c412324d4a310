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

    What flows into k comes over the arcs of its one head, :math:`f^k_{hk} = x_{hk}`, and nothing flows out of it, so
    ``words * (words - 1)**2`` flow variables are enough.

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
    if words > 1:
        arcs = cp.vec(x, order="C")
        capacity, flow_balance, tree_balance = _flows(nodes)
        flow = cp.Variable(capacity.shape[0], nonneg=True)
        constraints += [flow <= capacity @ arcs, flow_balance @ flow == tree_balance @ arcs]
    return Polytope(x, constraints)


def _flows(nodes: int) -> tuple[sp.csr_array, sp.csr_array, sp.csr_array]:
    """Of every flow variable the arc it uses; per (commodity, word) what flows in minus out, and the arc that ends.

    The variables are the triples (commodity k, head h, modifier m) with k, h, m different and m, k not the root.
    """
    k, h, m = (axis.reshape(-1) for axis in np.meshgrid(*[np.arange(nodes)] * 3, indexing="ij"))
    used = (k != 0) & (m != 0) & (h != m) & (h != k) & (m != k)
    k, h, m = k[used], h[used], m[used]
    count, ones = len(k), np.ones(len(k))
    capacity = sp.csr_array((ones, (np.arange(count), h * nodes + m)), shape=(count, nodes**2))
    # Balance of commodity k at word m: inflow - outflow to words other than k = x[m, k].
    leaves = h != 0
    row = np.concatenate([k * nodes + m, (k * nodes + h)[leaves]])
    column = np.concatenate([np.arange(count), np.arange(count)[leaves]])
    value = np.concatenate([ones, -ones[leaves]])
    flow_balance = sp.csr_array((value, (row, column)), shape=(nodes**2, count))
    pairs = np.array([(a, b) for a in range(1, nodes) for b in range(1, nodes) if a != b])
    tree_balance = sp.csr_array(
        (np.ones(len(pairs)), (pairs[:, 0] * nodes + pairs[:, 1], pairs[:, 1] * nodes + pairs[:, 0])),
        shape=(nodes**2, nodes**2),
    )
    kept = pairs[:, 0] * nodes + pairs[:, 1]
    return capacity, flow_balance[kept], tree_balance[kept]
