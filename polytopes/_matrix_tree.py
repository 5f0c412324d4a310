"""Sums over dependency trees: the matrix-tree theorem, by eliminations that do not subtract.

Arcs h -> m have weights exp(score). Words are eliminated one after the other, the last one first. One whose heads weigh
t altogether contributes a factor t to the sum over trees, and hands its modifiers over to its heads, each in proportion
to its weight. This is the determinant of the Laplacian by Gauss, with the diagonal formed by sums rather than by
differences (Grassmann, Taksar and Heyman, 1985), and so without cancellation.

For a single root, let arcs from the root have the weight ε: what is wanted is the coefficient of ε. A word's t is then
the weight of the words among its heads, and only the last word's that of its arc from the root.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optlayers.kernel_cache import cached_njit
from optlayers.solvers.pool import for_each_chunk
from polytopes._compiled import compiled
from polytopes._logspace import log_add, log_sum
from polytopes._third import third_derivatives

__all__ = ["log_partition"]

WORTH_A_THREAD = 1e5
"""Arithmetic operations."""
SMALLEST = 1e-100
"""An elimination in plain numbers is trusted while its t, of columns with a largest weight of 1, are larger than this:
what underflows is then nothing in comparison, and derivatives do not overflow."""
STEP = 1e-100
"""Of derivatives by a complex step; the rounding is that of products, whatever its size."""
WELL_CONDITIONED = 1e4
"""Condition number up to which a Laplacian is factored: there log sums and marginals are right to 1e-12, and the
covariances of arcs to 1e-9, as compared with the elimination."""


def log_partition(scores: Tensor, *, single_root: bool) -> Tensor:
    """Log of the sum over trees, ``(*batch, nodes, nodes)`` to ``(*batch,)``; -inf where there is none.

    Computed in float64: by a compiled elimination on the CPU, by factorization of the Laplacian elsewhere, and for the
    instances that these are too inexact for, by elimination in the log domain.
    """
    batch, nodes = scores.shape[:-2], scores.shape[-1]
    flat = scores.reshape(math.prod(batch), nodes, nodes).to(torch.float64)
    if scores.device.type == "cpu":
        value, _, trusted = _Eliminated.apply(flat, single_root)
    else:
        value, _, trusted = _Factored.apply(_arcs(flat), single_root)
    if not trusted.all():
        rest = (~trusted).nonzero().squeeze(1)
        value = value.index_put((rest,), _in_log_domain(_arcs(flat[rest]), single_root))
    return value.reshape(batch).to(scores.dtype)


def _arcs(scores: Tensor) -> Tensor:
    """The columns of the words, ``(batch, nodes, words)``, in which no word is its own head."""
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.masked_fill(itself, -torch.inf)[:, :, 1:]


class _Eliminated(torch.autograd.Function):
    """Scores to the log sum, to marginals, and to whether to trust them; all are 0 for instances not trusted.

    Marginals are an output so that their derivatives, too, are looked for here.
    """

    @staticmethod
    def forward(scores: Tensor, single_root: bool) -> tuple[Tensor, Tensor, Tensor]:
        value = scores.new_zeros(len(scores))
        marginals = torch.zeros_like(scores, memory_format=torch.contiguous_format)
        trusted = torch.zeros(len(scores), dtype=torch.bool)
        _in_threads(lambda s, *out: _fill_marginals(s, single_root, *out), _numpy(scores), value, marginals, trusted)
        return value, marginals, trusted

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        scores, ctx.single_root = inputs
        _, marginals, trusted = output
        ctx.mark_non_differentiable(trusted)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores, marginals, trusted)

    @staticmethod
    def backward(ctx: Any, value: Tensor | None, direction: Tensor | None, _: None) -> Any:
        scores, marginals, trusted = ctx.saved_tensors
        result = None if value is None else value[:, None, None] * marginals
        if direction is not None:
            turned = _Turned.apply(scores, direction, trusted, ctx.single_root)
            result = turned if result is None else result + turned
        return result, None


class _Turned(torch.autograd.Function):
    """The derivatives of marginals along a direction."""

    @staticmethod
    def forward(scores: Tensor, direction: Tensor, trusted: Tensor, single_root: bool) -> Tensor:
        turned = torch.zeros_like(scores, memory_format=torch.contiguous_format)
        _in_threads(
            lambda s, d, t, out: _fill_derivatives(s, d, t, single_root, out),
            _numpy(scores),
            torch.from_numpy(_numpy(direction)),
            trusted,
            turned,
        )
        return turned

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        scores, direction, trusted, ctx.single_root = inputs
        ctx.save_for_backward(scores, direction, trusted)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        scores, direction, trusted = ctx.saved_tensors
        found = third_derivatives(
            lambda s: _in_log_domain(_arcs(s), ctx.single_root),
            (scores,),
            (direction,),
            (grad.masked_fill(~trusted[:, None, None], 0.0),),
        )
        return *found, None, None


def _in_threads(fill: Callable[..., None], scores: np.ndarray, *tensors: Tensor) -> None:
    """Call ``fill`` on pieces of a batch of trees."""
    arrays = [tensor.numpy() for tensor in tensors]

    def work(which: np.ndarray) -> None:
        if len(which):
            piece = slice(which[0], which[-1] + 1)
            fill(scores[piece], *(array[piece] for array in arrays))

    for_each_chunk(work, len(scores), smallest=math.ceil(WORTH_A_THREAD / scores.shape[1] ** 3))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


@compiled
def _fill_marginals(scores, single_root, value, marginals, trusted):  # type: ignore[no-untyped-def]
    nodes = scores.shape[1]
    weight = np.empty((nodes, nodes))
    left, slope = np.empty_like(weight), np.empty_like(weight)
    total = np.empty(nodes)
    for b in range(len(scores)):
        shift = _weigh(scores[b], single_root, weight)
        left[:] = weight
        trusted[b] = _eliminate(left, single_root, total)
        if trusted[b]:
            _slopes(left, single_root, total, slope)
            value[b] = shift + np.log(total[1:]).sum()
            for h in range(nodes):
                for m in range(1, nodes):
                    if h != m:
                        marginals[b, h, m] = weight[h, m] * slope[h, m]


@compiled
def _fill_derivatives(scores, direction, trusted, single_root, turned):  # type: ignore[no-untyped-def]
    """Of the marginals along a direction, which is their covariance times it: the imaginary part of marginals at
    ``scores + i STEP direction`` (Squire and Trapp, 1998)."""
    nodes = scores.shape[1]
    real = np.empty((nodes, nodes))
    weight = np.zeros((nodes, nodes), dtype=np.complex128)
    left, slope = np.empty_like(weight), np.empty_like(weight)
    total = np.empty(nodes, dtype=np.complex128)
    for b in range(len(scores)):
        if not trusted[b]:
            continue
        _weigh(scores[b], single_root, real)
        for h in range(nodes):
            for m in range(1, nodes):
                if h != m:
                    weight[h, m] = real[h, m] * complex(1.0, STEP * direction[b, h, m])
        left[:] = weight
        _eliminate(left, single_root, total)
        _slopes(left, single_root, total, slope)
        for h in range(nodes):
            for m in range(1, nodes):
                if h != m:
                    turned[b, h, m] = (weight[h, m] * slope[h, m]).imag / STEP


@compiled
def _weigh(scores, single_root, weight):  # type: ignore[no-untyped-def]
    """Weights of the arcs, such that every word's heaviest is 1, and for a single root that of the root's arcs by
    itself; and the log of the factor that this takes out of the sum."""
    nodes = len(scores)
    first = 1 if single_root else 0
    highest = np.full(nodes, -np.inf)
    for h in range(first, nodes):
        for m in range(1, nodes):
            if h != m and scores[h, m] > highest[m]:
                highest[m] = scores[h, m]
    shift = 0.0
    for m in range(1, nodes):
        if highest[m] == -np.inf:
            highest[m] = 0.0
        shift += highest[m]
    weight[:, 0] = 0.0
    root = 0.0
    if single_root:
        root = -np.inf
        for m in range(1, nodes):
            root = max(root, scores[0, m] - highest[m])
        if root == -np.inf:
            root = 0.0
    for h in range(nodes):
        extra = root if h == 0 else 0.0
        for m in range(1, nodes):
            weight[h, m] = 0.0 if h == m else np.exp(scores[h, m] - highest[m] - extra)
    return shift + root


@compiled
def _eliminate(left, single_root, total):  # type: ignore[no-untyped-def]
    """In place; ``total`` is every word's t. Whether none of them is too small."""
    for k in range(len(left) - 1, 0, -1):
        weight = 0.0 * left[0, k]
        for h in range(1 if single_root and k > 1 else 0, k):
            weight += left[h, k]
        if not weight.real > SMALLEST:
            return False
        total[k] = weight
        inverse, modifiers = 1.0 / weight, left[k]
        for h in range(k):
            share, row = left[h, k] * inverse, left[h]
            for m in range(1, k):
                row[m] += share * modifiers[m]
    return True


@cached_njit(Path(__file__).parent, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _slopes(left, single_root, total, slope):  # type: ignore[no-untyped-def]
    """Derivatives of the log sum by the weights, by going through the elimination backwards."""
    nodes = len(left)
    slope[:] = 0.0
    gain = np.empty_like(total)
    for k in range(1, nodes):
        inverse, modifiers, out = 1.0 / total[k], left[k], slope[k]
        mean = 0.0 * inverse
        for h in range(k):
            share, row = left[h, k] * inverse, slope[h]
            inner = 0.0 * inverse
            for m in range(1, k):
                inner += row[m] * modifiers[m]
            for m in range(1, k):
                out[m] += share * row[m]
            gain[h] = inner
            mean += share * inner
        for h in range(k):
            slope[h, k] = (1.0 + gain[h] - mean) * inverse
        if single_root and k > 1:
            slope[0, k] = gain[0] * inverse
        out[k] = 0.0


class _Factored(torch.autograd.Function):
    """Arcs ``(batch, nodes, words)`` to the log-determinant of the Laplacian, its inverse, and whether to trust it.

    With word m's column scaled to a largest weight of 1, the Laplacian has the total of the column on the diagonal and
    -weight(h, m) at word h. A single root replaces the row of the first word by the weights of the root (Koo et al.,
    2007). The inverse is an output so that derivatives of the gradient find their way through it. Both are 0 for
    instances that are not trusted.
    """

    @staticmethod
    def forward(arcs: Tensor, single_root: bool) -> tuple[Tensor, Tensor, Tensor]:
        shift = _shift(arcs, single_root)
        weight = torch.exp(arcs - shift)
        laplacian = -weight[:, 1:]
        diagonal = laplacian.diagonal(dim1=1, dim2=2)
        diagonal.copy_(weight[:, 1:].sum(1) if single_root else weight.sum(1))
        if single_root:
            laplacian[:, 0] = weight[:, 0]
        factors, pivots, _ = torch.linalg.lu_factor_ex(laplacian)
        unit = torch.eye(laplacian.shape[1], dtype=arcs.dtype, device=arcs.device)
        inverse = torch.linalg.lu_solve(factors, pivots, unit.expand_as(laplacian))
        value = factors.diagonal(dim1=1, dim2=2).abs().log().sum(1) + shift[:, 1].sum(1)
        if single_root:
            value = value + (shift[:, 0, 0] - shift[:, 1, 0])
        condition = laplacian.abs().sum(1).amax(1) * inverse.abs().sum(1).amax(1)
        trusted = condition <= WELL_CONDITIONED  # false for NaN
        return value.where(trusted, 0.0), inverse.where(trusted[:, None, None], 0.0), trusted

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        arcs, ctx.single_root = inputs
        _, inverse, trusted = output
        ctx.mark_non_differentiable(trusted)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(arcs, inverse)

    @staticmethod
    def backward(ctx: Any, value: Tensor | None, inverse_grad: Tensor | None, _: None) -> Any:
        arcs, inverse = ctx.saved_tensors
        transposed = inverse.mT
        laplacian = torch.zeros_like(transposed) if value is None else value[:, None, None] * transposed
        if inverse_grad is not None:
            laplacian = laplacian - transposed @ inverse_grad @ transposed
        weight = torch.exp(arcs - _shift(arcs.detach(), ctx.single_root))
        root = laplacian[:, :1]
        if ctx.single_root:
            laplacian = torch.cat([torch.zeros_like(root), laplacian[:, 1:]], dim=1)
        total = laplacian.diagonal(dim1=1, dim2=2)[:, None]
        words = total - laplacian
        return torch.cat([root if ctx.single_root else total, words], dim=1) * weight, None


def _shift(arcs: Tensor, single_root: bool) -> Tensor:
    """What is subtracted from scores: a constant per word's column, and for a single root one of the root's row."""
    heads = arcs[:, 1:] if single_root else arcs
    column = _finite(heads.amax(1, keepdim=True))
    shift = column.expand_as(arcs)
    if single_root:
        row = _finite((arcs[:, :1] - column).amax(2, keepdim=True))
        shift = torch.cat([column + row, shift[:, 1:]], dim=1)
    return shift


def _finite(values: Tensor) -> Tensor:
    """With 0 for -inf."""
    return values.masked_fill(values == -torch.inf, 0.0)


def _in_log_domain(arcs: Tensor, single_root: bool) -> Tensor:
    """The elimination with logarithms, at any spread of scores; arcs ``(batch, nodes, words)``.

    For a single root, apart from the words' arcs there are ``late`` ones, from the root and of the order of ε. The root
    has none of order 1 until a word is left with late heads only, to which it is then attached for good; that happens
    once, or there is no tree.
    """
    column = _finite(arcs.detach().amax(1, keepdim=True))
    heads = arcs - column
    total = column.sum((1, 2))
    roots = torch.ones_like(total)
    if single_root:
        late, heads = heads[:, 0], torch.cat([torch.full_like(heads[:, :1], -torch.inf), heads[:, 1:]], dim=1)
        roots = torch.zeros_like(total)
    for k in range(arcs.shape[2], 0, -1):
        mine, modifiers = heads[:, :k, k - 1], heads[:, k, None, : k - 1]
        weight = log_sum(mine, 1)
        if single_root:
            attached = weight == -torch.inf
            roots = roots + attached
            weight = torch.where(attached, late[:, k - 1], weight)
            share = (late[:, k - 1] - _finite(weight))[:, None]
            late = log_add(late[:, : k - 1], share + modifiers[:, 0])
            share = mine - _finite(weight)[:, None]
            share = torch.cat([share[:, :1].masked_fill(attached[:, None], 0.0), share[:, 1:]], dim=1)
        else:
            share = mine - _finite(weight)[:, None]
        total = total + weight
        heads = log_add(heads[:, :k, : k - 1], share[:, :, None] + modifiers)
    return total.masked_fill((roots != 1) | (total == -torch.inf), -torch.inf)
