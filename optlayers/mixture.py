"""Mixtures of vertices, and the gradient of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64
from torch import Tensor

__all__ = ["Decomposition", "differentiable_weights"]


@final
@dataclass(frozen=True)
class Decomposition:
    """Points as mixtures of vertices: instance k has the vertices ``first[k]:first[k + 1]``, with these weights.

    Vertex v is 0 but for the entries ``index[start[v]:start[v + 1]]`` of the flat structure, which are ``value``.
    """

    size: int
    first: Int64[np.ndarray, " instances_and_one"]
    weight: Float64[np.ndarray, " vertices"]
    start: Int64[np.ndarray, " vertices_and_one"]
    index: Int32[np.ndarray, " stored"]
    value: Float64[np.ndarray, " stored"]

    @classmethod
    def joined(cls, pieces: Sequence[tuple[np.ndarray, ...]], size: int) -> Decomposition:
        """From consecutive pieces of a batch: counts per instance, weights, starts, indices and values."""
        if not pieces:
            pieces = [(np.zeros(0, np.int64), np.zeros(0), np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0))]
        counts, weights, starts, indices, values = zip(*pieces, strict=True)
        ends = np.cumsum([0] + [len(i) for i in indices])
        whole = [np.zeros(1, np.int64)] + [s[1:] + end for s, end in zip(starts, ends[:-1], strict=True)]
        return cls(
            size,
            np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))]),
            np.concatenate(weights),
            np.concatenate(whole),
            np.concatenate(indices),
            np.concatenate(values),
        )

    @classmethod
    def of_one(cls, vertex: Float64[np.ndarray, " size"], count: int) -> Decomposition:
        """Every one of ``count`` instances is this vertex."""
        index = np.flatnonzero(vertex).astype(np.int32)
        one = (np.ones(1, np.int64), np.ones(1), np.array([0, len(index)]), index, vertex[index])
        return cls.joined([one] * count, len(vertex))

    def scattered(self, rest: np.ndarray, count: int) -> Decomposition:
        """The mixtures of the instances ``rest`` of a batch; the others have no vertices."""
        counts = np.zeros(count, np.int64)
        counts[rest] = np.diff(self.first)
        return replace(self, first=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))

    def dense(self) -> tuple[Float64[np.ndarray, "batch most size"], Float64[np.ndarray, "batch most"]]:
        """Vertices and weights with as many places for each instance as the richest has; the others are 0."""
        counts = np.diff(self.first)
        instance = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(instance)) - np.repeat(self.first[:-1], counts)
        most = int(counts.max(initial=0))
        vertices, weights = np.zeros((len(counts), most, self.size)), np.zeros((len(counts), most))
        weights[instance, place] = self.weight
        vertex = np.repeat(np.arange(len(instance)), np.diff(self.start))
        vertices[instance[vertex], place[vertex], self.index] = self.value
        return vertices, weights


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
