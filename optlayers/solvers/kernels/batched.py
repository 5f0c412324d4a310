"""Products and factors of dense matrices in batches, on any device: one matrix for all instances, or one for each."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cholesky", "clipped", "gram_of", "largest_of", "solve_with", "times", "times_transpose"]

RETRIES = 4
"""A factorization that fails is repeated with a shift 100 times larger."""


def gram_of(matrix: Tensor, weight: Tensor) -> Tensor:
    """``A W Aᵀ`` for every instance."""
    return (matrix * weight[:, None, :]) @ matrix.mT


def cholesky(gram: Tensor, shift: Tensor) -> Tensor:
    """Cholesky factors of ``gram + diag(shift)``; where that fails, shifts grow."""
    factor: Tensor
    factor, wrong = torch.linalg.cholesky_ex(gram + torch.diag_embed(shift))
    for _ in range(RETRIES):
        if not bool(wrong.any()):
            break
        shift = torch.where(wrong[:, None] > 0, 100 * shift, shift)
        factor, wrong = torch.linalg.cholesky_ex(gram + torch.diag_embed(shift))
    return factor


def solve_with(factor: Tensor, side: Tensor) -> Tensor:
    """The solutions of systems that are factored."""
    return torch.cholesky_solve(side[:, :, None], factor)[:, :, 0]


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """``A z`` for every instance, with a shared matrix or one per instance."""
    return vector @ matrix.mT if matrix.ndim == 2 else (matrix @ vector[:, :, None])[:, :, 0]


def times_transpose(matrix: Tensor, vector: Tensor) -> Tensor:
    """``Aᵀ y`` for every instance."""
    return vector @ matrix if matrix.ndim == 2 else (matrix.mT @ vector[:, :, None])[:, :, 0]


def clipped(values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The nearest numbers between bounds."""
    return torch.minimum(torch.maximum(values, lower), upper)


def largest_of(values: Tensor) -> Tensor:
    """The largest size of a number of every instance, 0 for none."""
    return torch.linalg.vector_norm(values, torch.inf, dim=1) if values.shape[1] else values.new_zeros(len(values))
