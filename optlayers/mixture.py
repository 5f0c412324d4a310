"""Mixtures of vertices whose weights have a gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.solvers.base import Decomposition

__all__ = ["differentiable_weights"]


def differentiable_weights(
    decomposition: Decomposition, scores: Float64[Tensor, "batch size"], structure_size: int
) -> tuple[Float64[Tensor, "batch most size"], Float64[Tensor, "batch most"]]:
    r"""Vertices, and their weights as a function of ``scores``, the scored vector without its infinities.

    As long as the active vertices X (rows) stay the same, weights solve :math:`Q\lambda = X s + \kappa 1` with
    :math:`1^\top\lambda = 1` and :math:`Q = X X^\top + \omega 1 1^\top`, where products count the structure alone, so

    .. math:: \mathrm d\lambda = \Big(Q^{-1} - \frac{Q^{-1} 1 1^\top Q^{-1}}{1^\top Q^{-1} 1}\Big) X\, \mathrm d s.

    The weights are those of the solution, exactly; only their derivative is computed here.
    """
    dense, given = decomposition.dense()
    vertices, weights = torch.from_numpy(dense), torch.from_numpy(given)
    if weights.numel() == 0:
        return vertices, weights
    there = weights > 0.0
    structures = vertices[:, :, :structure_size]
    products = structures @ structures.mT
    # Of the size of the products, so that the factorization stays well conditioned.
    shift = 1.0 + torch.diagonal(products, dim1=1, dim2=2).amax(1, keepdim=True)[:, :, None]
    both = there[:, :, None] & there[:, None, :]
    system = torch.where(both, products + shift, torch.eye(there.shape[1], dtype=torch.float64, device="cpu"))
    ones = there.to(torch.float64)[:, :, None]
    factor = torch.linalg.cholesky(system)
    values = torch.einsum("bvs,bs->bv", vertices, scores)[:, :, None]
    moved = torch.cholesky_solve(values, factor)
    direction = torch.cholesky_solve(ones, factor)
    balance = (ones * moved).sum(1, keepdim=True) / (ones * direction).sum(1, keepdim=True).clamp_min(1e-300)
    change = ((moved - balance * direction) * ones)[:, :, 0]
    return vertices, weights + (change - change.detach())
