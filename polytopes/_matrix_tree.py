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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optlayers.common.kernel_cache import cached_njit
from optlayers.common.tensors import moved
from optlayers.solution import all_of
from optlayers.solvers.pool import for_each_chunk
from optlayers.sums.logspace import log_add, log_sum
from polytopes._compiled import compiled
from polytopes._third import third_derivatives

__all__ = ["log_partition"]

WORTH_A_THREAD = 3e5
"""Arithmetic operations."""
SMALLEST = 1e-100
"""An elimination in plain numbers is trusted while its t, of columns with a largest weight of 1, are larger than this:
what underflows is then nothing in comparison, and derivatives do not overflow."""
WELL_CONDITIONED = 1e4
"""Condition number up to which a Laplacian is factored: there log sums and marginals are right to 1e-12, and the
covariances of arcs to 1e-9, as compared with the elimination."""

_reordered = cached_njit(Path(__file__).parent, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
"""Sums may be taken in any order, and so in vectors."""


def log_partition(scores: Tensor, *, single_root: bool) -> Tensor:
    """Log of the sum over trees, ``(*batch, nodes, nodes)`` to ``(*batch,)``; -inf where there is none.

    Computed in float64: by a compiled elimination on the CPU, by factorization of the Laplacian elsewhere, and for the
    instances that these are too inexact for, by elimination in the log domain.
    """
    batch, nodes = scores.shape[:-2], scores.shape[-1]
    flat = moved(scores, (math.prod(batch), nodes, nodes), torch.float64, scores.device)
    if scores.device.type == "cpu":
        value, _, trusted = _Eliminated.apply(flat, single_root)  # type: ignore[no-untyped-call]
    else:
        value, _, trusted = _Factored.apply(_arcs(flat), single_root)  # type: ignore[no-untyped-call]
    if not all_of(trusted):
        rest = (~trusted).nonzero().squeeze(1)
        value = value.index_put((rest,), _in_log_domain(_arcs(flat[rest]), single_root))
    return moved(value, batch, scores.dtype, scores.device)


def _arcs(scores: Tensor) -> Tensor:
    """The columns of the words, ``(batch, nodes, words)``, in which no word is its own head."""
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.masked_fill(itself, -torch.inf)[:, :, 1:]


class _Eliminated(torch.autograd.Function):
    """Scores to the log sum, to marginals, and to whether to trust them; all are 0 for instances not trusted.

    Marginals are an output so that their derivatives, too, are looked for here. The numbers of the elimination,
    ``(3, batch, nodes, nodes)``, are kept so that these need not eliminate again; see :func:`_fill_marginals`.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, single_root: bool) -> tuple[Tensor, Tensor, Tensor]:
        plain = scores.detach().contiguous()
        value = plain.new_zeros(len(scores))
        numbers = plain.new_empty(3, *scores.shape)
        marginals = torch.zeros_like(plain)
        trusted = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        _in_threads(partial(_fill_marginals, single_root), plain, *numbers, value, marginals, trusted)
        ctx.single_root = single_root
        ctx.mark_non_differentiable(trusted)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores, marginals, trusted, numbers)
        return value, marginals, trusted

    @staticmethod
    def backward(ctx: Any, value: Tensor | None, direction: Tensor | None, _: None) -> Any:
        scores, marginals, trusted, numbers = ctx.saved_tensors
        result = None if value is None else value[:, None, None] * marginals
        if direction is not None:
            turned = _Turned.apply(scores, direction, trusted, numbers, ctx.single_root)  # type: ignore[no-untyped-call]
            result = turned if result is None else result + turned
        return result, None


class _Turned(torch.autograd.Function):
    """The derivatives of marginals along a direction."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, direction: Tensor, trusted: Tensor, numbers: Tensor, single_root: bool
    ) -> Tensor:
        turned = torch.zeros_like(scores, memory_format=torch.contiguous_format)
        fill = partial(_fill_derivatives, single_root)
        _in_threads(fill, *numbers, direction.detach().contiguous(), trusted, turned)
        ctx.single_root = single_root
        ctx.save_for_backward(scores, direction, trusted)
        return turned

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        scores, direction, trusted = ctx.saved_tensors
        found = third_derivatives(
            lambda s: _in_log_domain(_arcs(s), ctx.single_root),
            (scores,),
            (direction,),
            (grad.masked_fill(~trusted[:, None, None], 0.0),),
        )
        return *found, None, None, None


def _in_threads(fill: Callable[..., None], *tensors: Tensor) -> None:
    """Call ``fill`` on pieces of a batch of trees; the first tensor is ``(batch, nodes, nodes)``."""
    arrays = [tensor.numpy() for tensor in tensors]

    def work(which: np.ndarray) -> None:
        if len(which):
            piece = slice(which[0], which[-1] + 1)
            fill(*(array[piece] for array in arrays))

    batch, nodes = arrays[0].shape[:2]
    for_each_chunk(work, batch, smallest=math.ceil(WORTH_A_THREAD / nodes**3))


@compiled
def _fill_marginals(single_root, scores, weight, left, slope, value, marginals, trusted):  # type: ignore[no-untyped-def]
    """The weights of arcs; what is left of them when each word is eliminated, with its t on the diagonal; the
    derivatives of the log sum by the weights; and the log sum and the marginals, where they are to be trusted."""
    nodes = scores.shape[1]
    for b in range(len(scores)):
        shift = _weigh(scores[b], single_root, weight[b])
        left[b] = weight[b]
        trusted[b] = _eliminate(left[b], single_root)
        if not trusted[b]:
            continue
        _differentiate(left[b], single_root, slope[b])
        value[b] = shift
        for m in range(1, nodes):
            value[b] += np.log(left[b, m, m])
        for h in range(nodes):
            for m in range(1, nodes):
                marginals[b, h, m] = weight[b, h, m] * slope[b, h, m]


@compiled
def _fill_derivatives(single_root, weight, left, slope, direction, trusted, turned):  # type: ignore[no-untyped-def]
    """Of the marginals along a direction, which is their covariance times it."""
    nodes = weight.shape[1]
    left_turned, slope_turned = np.empty((nodes, nodes)), np.empty((nodes, nodes))
    for b in range(len(weight)):
        if not trusted[b]:
            continue
        for h in range(nodes):
            for m in range(nodes):
                left_turned[h, m] = weight[b, h, m] * direction[b, h, m]
        _eliminate_turned(left[b], single_root, left_turned)
        _differentiate_turned(left[b], slope[b], single_root, left_turned, slope_turned)
        for h in range(nodes):
            for m in range(1, nodes):
                turned[b, h, m] = weight[b, h, m] * (direction[b, h, m] * slope[b, h, m] + slope_turned[h, m])


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
def _eliminate(left, single_root):  # type: ignore[no-untyped-def]
    """In place; every word's t goes to the diagonal. Whether none of them is too small."""
    for k in range(len(left) - 1, 0, -1):
        total = 0.0
        for h in range(1 if single_root and k > 1 else 0, k):
            total += left[h, k]
        if not total > SMALLEST:
            return False
        left[k, k] = total
        for h in range(k):
            share = left[h, k] / total
            for m in range(1, k):
                left[h, m] += share * left[k, m]
    return True


@compiled
def _eliminate_turned(left, single_root, turned):  # type: ignore[no-untyped-def]
    """How ``left`` moves when weights do, as ``turned`` says; in place."""
    for k in range(len(left) - 1, 0, -1):
        total = 0.0
        for h in range(1 if single_root and k > 1 else 0, k):
            total += turned[h, k]
        turned[k, k] = total
        inverse = 1.0 / left[k, k]
        for h in range(k):
            share = left[h, k] * inverse
            share_turned = (turned[h, k] - share * total) * inverse
            for m in range(1, k):
                turned[h, m] += share_turned * left[k, m] + share * turned[k, m]


@_reordered
def _differentiate(left, single_root, slope):  # type: ignore[no-untyped-def]
    """Derivatives of the log sum by the weights, by going through the elimination backwards."""
    nodes = len(left)
    slope[:] = 0.0
    gain = np.empty(nodes)
    for k in range(1, nodes):
        inverse, mean = 1.0 / left[k, k], 0.0
        for h in range(k):
            share = left[h, k] * inverse
            inner = 0.0
            for m in range(1, k):
                inner += slope[h, m] * left[k, m]
                slope[k, m] += share * slope[h, m]
            gain[h] = inner
            mean += share * inner
        for h in range(k):
            slope[h, k] = (1.0 + gain[h] - mean) * inverse
        if single_root and k > 1:
            slope[0, k] = gain[0] * inverse


@_reordered
def _differentiate_turned(left, slope, single_root, left_turned, turned):  # type: ignore[no-untyped-def]
    """How ``slope`` moves when ``left`` does."""
    nodes = len(left)
    turned[:] = 0.0
    gain_turned = np.empty(nodes)
    for k in range(1, nodes):
        inverse, total_turned, mean_turned = 1.0 / left[k, k], left_turned[k, k], 0.0
        for h in range(k):
            share = left[h, k] * inverse
            share_turned = (left_turned[h, k] - share * total_turned) * inverse
            inner = inner_turned = 0.0
            for m in range(1, k):
                inner += slope[h, m] * left[k, m]
                inner_turned += turned[h, m] * left[k, m] + slope[h, m] * left_turned[k, m]
                turned[k, m] += share_turned * slope[h, m] + share * turned[h, m]
            gain_turned[h] = inner_turned
            mean_turned += share_turned * inner + share * inner_turned
        for h in range(k):
            # The root of a single one has no mean; see the derivatives themselves.
            mean = 0.0 if single_root and k > 1 and h == 0 else mean_turned
            turned[h, k] = (gain_turned[h] - mean - slope[h, k] * total_turned) * inverse


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
