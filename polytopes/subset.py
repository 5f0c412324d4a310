"""A subset of a given size."""

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from optlayers import Polytope
from optlayers.sums.logspace import log_sum
from polytopes._compiled import compiled
from polytopes._sizes import at_least_one

__all__ = ["subset"]

ROUNDING = 1e-9
"""A budget so close to an integer means that integer."""
COARSE = 1e-7
"""Marginals take budgets that are further off, relative to the sum of parts, as rounding in float32 leaves them."""


def subset(size: int) -> Polytope:
    r"""Relaxed k-subsets :math:`\{x \in [0,1]^n : \sum_i x_i = k\}` of shape ``(size,)``; k is called ``budget``.

    Integral when the budget is an integer: the hypersimplex, whose vertices are the indicators of the subsets with k
    elements (its matrix, a row of ones over a box, is totally unimodular). The best vertex has the k largest scores,
    of equal ones the first; for a fractional budget the next part gets the fraction. The budget is a number per
    instance, and SparseMAP has a gradient for it.

    Marginals (for integer budgets) come from the elementary symmetric polynomial of degree k in :math:`e^{s_i}`, by
    multiplying the polynomials :math:`1 + e^{s_i} z` in pairs, the products in pairs, and so on, up to the degree k:
    about ``size * budget`` operations in ``log2(size)`` rounds. A budget above the size leaves no subset, and is
    infeasible; for a fractional one there are no marginals, and the instance fails with that reason.

    References
    ----------
    Blondel, Martins and Niculae (2020), Learning with Fenchel–Young losses, JMLR (budget polytopes).
    Chen, Dempster and Liu (1994), Weighted finite population sampling to maximize entropy, Biometrika (the distribution
    and its sums).

    >>> import optlayers as ol, torch
    >>> ol.OptLayer(subset(4), ol.Pipeline())(torch.tensor([0.3, -1.0, 2.0, 0.1]), budget=2)
    tensor([1., 0., 1., 0.])
    """
    at_least_one(size=size)
    x = cp.Variable(size)
    budget = cp.Parameter(name="budget", nonneg=True)
    constraints = [x >= 0, x <= 1, cp.sum(x) == budget]
    return Polytope(x, constraints, oracle=_largest, log_partition=_log_partition, rows="exact")


@compiled
def _largest(scores, budget):  # type: ignore[no-untyped-def]
    size, rest = len(scores), budget[()]
    if abs(rest - np.rint(rest)) <= ROUNDING:
        rest = np.rint(rest)
    if not 0.0 <= rest <= size:
        return np.full(size, np.nan)
    x = np.zeros(size)
    chosen = int(np.ceil(rest))
    if chosen == 0:
        return x
    least = _in_order(scores.copy(), size - chosen)
    if least == -np.inf:
        return np.full(size, np.nan)
    for i in range(size):
        if scores[i] > least:
            x[i] = 1.0
            rest -= 1.0
    for i in range(size):
        if scores[i] == least:
            x[i] = min(1.0, rest)
            rest -= x[i]
    return x


@compiled
def _in_order(values, k):  # type: ignore[no-untyped-def]
    """The value at place k of the sorted ones (Hoare, 1961), which move. NumPy's own compiles far longer."""
    low, high = 0, len(values) - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i, j = i + 1, j - 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break  # between them all are equal
    return values[k]


def _log_partition(scores: Tensor, budget: Tensor | float) -> Tensor:
    *batch, size = scores.shape
    degree = _integers(budget, batch).to(scores.device)
    possible = (degree >= 0) & (degree <= size)
    degree = degree.masked_fill(~possible, 0)
    largest = int(degree.max()) if degree.numel() else 0
    # Entry k of a polynomial: the log of the sum over the subsets with k elements of some parts.
    sums = torch.stack([torch.zeros_like(scores), scores], dim=-1)
    while sums.shape[-2] > 1:
        if sums.shape[-2] % 2:
            one = torch.full_like(sums[..., :1, :], -torch.inf)
            one[..., 0] = 0.0
            sums = torch.cat([sums, one], dim=-2)
        sums = _product(sums[..., ::2, :], sums[..., 1::2, :], largest)
    return sums[..., 0, :].gather(-1, degree.unsqueeze(-1)).squeeze(-1).masked_fill(~possible, -torch.inf)


def _product(left: Tensor, right: Tensor, largest: int) -> Tensor:
    """Products of polynomials with logarithms for coefficients, up to the degree ``largest``."""
    terms = left.shape[-1]
    degree = torch.arange(min(2 * terms - 2, largest) + 1, device=left.device)
    other = degree.unsqueeze(-1) - torch.arange(terms, device=left.device)
    other = torch.where((other < 0) | (other >= terms), terms, other)  # the place of a zero behind the coefficients
    right = torch.cat([right, torch.full_like(right[..., :1], -torch.inf)], dim=-1)
    spread = right.index_select(-1, other.flatten()).unflatten(-1, other.shape)  # type: ignore[no-untyped-call]
    return log_sum(left.unsqueeze(-2) + spread, -1)


def _integers(budget: Tensor | float, batch: list[int]) -> Tensor:
    """The budgets as whole numbers ``(*batch,)``, or a refusal that names an instance."""
    given = budget.detach() if isinstance(budget, Tensor) else torch.tensor(budget, device="cpu")
    given = given.to(torch.float64).expand(batch)
    whole = given.round()
    wrong = ~((given - whole).abs() <= COARSE * (1.0 + whole.abs()))
    if wrong.any():
        where = wrong.nonzero()[0].tolist()
        instance = f" of instance {where[0] if len(where) == 1 else tuple(where)}" if given.numel() > 1 else ""
        raise ValueError(
            f"budget{instance} is {float(given[tuple(where)]):.9g}; marginals of subsets need an integer, for else "
            "vertices are no subsets"
        )
    return whole.long()
