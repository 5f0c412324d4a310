"""Projections onto cones, and their derivatives, for a batch at a time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from optlayers.form.cones import ConeLayout

__all__ = ["onto_dual", "slopes"]

Points = Float64[np.ndarray, "batch rows"]


def onto_dual(layout: ConeLayout, points: Points) -> Points:
    """The nearest points of the dual cones, in which dual points lie: all cones but that of 0 are their own dual."""
    found = points.copy()
    start = layout.zero
    span = slice(start, start + layout.nonnegative)
    found[:, span] = np.maximum(points[:, span], 0.0)
    start += layout.nonnegative
    for size in layout.second_order:
        span = slice(start, start + size)
        found[:, span] = _onto_second_order(points[:, span])
        start += size
    for order in layout.semidefinite:
        size = order * (order + 1) // 2
        values, vectors = np.linalg.eigh(_square(points[:, start : start + size], order))
        kept = np.maximum(values, 0.0)
        found[:, start : start + size] = _flat((vectors * kept[:, None, :]) @ vectors.transpose(0, 2, 1))
        start += size
    return found


def slopes(
    layout: ConeLayout, points: Points, nothing: Float64[np.ndarray, " batch"] | None = None
) -> Float64[np.ndarray, "batch rows rows"]:
    """The derivatives of :func:`onto_dual`, which are symmetric. What is no further from 0 than ``nothing`` is at a
    kink, where pieces meet: the derivative is that of the piece without a price, or with one where ``nothing`` has a
    negative sign."""
    count, rows = points.shape
    nothing = np.zeros(count) if nothing is None else nothing
    found = np.zeros((count, rows, rows))
    every = np.arange(rows)
    start = layout.zero
    found[:, every[:start], every[:start]] = 1.0
    alone = every[start : start + layout.nonnegative]
    found[:, alone, alone] = points[:, alone] > nothing[:, None]
    start += layout.nonnegative
    for size in layout.second_order:
        span = slice(start, start + size)
        found[:, span, span] = _slope_of_second_order(points[:, span], nothing)
        start += size
    for order in layout.semidefinite:
        size = order * (order + 1) // 2
        span = slice(start, start + size)
        found[:, span, span] = _slope_of_semidefinite(points[:, span], order, nothing)
        start += size
    return found


def _onto_second_order(points: np.ndarray) -> np.ndarray:
    """Of :math:`(t, v)` with eigenvalues :math:`t \\pm \\|v\\|`."""
    length, unit = _direction(points)
    first, second = np.maximum(points[:, 0] + length, 0.0), np.maximum(points[:, 0] - length, 0.0)
    half = 0.5 * (first - second)
    return np.concatenate([0.5 * (first + second)[:, None], half[:, None] * unit], axis=1)


def _direction(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.abs(points[:, 1:]).max(axis=1, initial=0.0)
    scaled = points[:, 1:] / np.where(size > 0.0, size, 1.0)[:, None]
    length = np.sqrt(np.square(scaled).sum(axis=1))
    return size * length, scaled / np.where(length > 0.0, length, 1.0)[:, None]


def _slope_of_second_order(points: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    length, unit = _direction(points)
    high, low = points[:, 0] + length, points[:, 0] - length
    first, second = (high > nothing).astype(float), (low > nothing).astype(float)
    near = np.abs(nothing)
    apart = np.where(length > near, length, 1.0)
    both = np.where(length > near, 0.5 * (np.maximum(high, 0.0) - np.maximum(low, 0.0)) / apart, first)
    both = np.where(first == second, first, both)
    found = np.empty((*points.shape, points.shape[1]))
    found[:, 0, 0] = 0.5 * (first + second)
    found[:, 0, 1:] = found[:, 1:, 0] = 0.5 * (first - second)[:, None] * unit
    outer = unit[:, :, None] * unit[:, None, :]
    found[:, 1:, 1:] = (0.5 * (first + second) - both)[:, None, None] * outer
    found[:, 1:, 1:] += both[:, None, None] * np.eye(points.shape[1] - 1)
    return found


def _places(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the upper triangle by columns, and what entries are multiplied by."""
    column, row = np.tril_indices(order)
    return row, column, np.where(row == column, 1.0, np.sqrt(2.0))


def _square(flat: np.ndarray, order: int) -> np.ndarray:
    row, column, scale = _places(order)
    found = np.empty((len(flat), order, order))
    found[:, row, column] = found[:, column, row] = flat / scale
    return found


def _flat(square: np.ndarray) -> np.ndarray:
    row, column, scale = _places(square.shape[1])
    flat: np.ndarray = square[:, row, column] * scale
    return flat


def _slope_of_semidefinite(points: np.ndarray, order: int, nothing: np.ndarray) -> np.ndarray:
    r"""With :math:`X = U \Lambda U^\top`, directions :math:`u_i u_j^\top + u_j u_i^\top` are eigenvectors, with the
    slopes :math:`(\lambda_i^+ - \lambda_j^+) / (\lambda_i - \lambda_j)`."""
    values, vectors = np.linalg.eigh(_square(points, order))
    at_kink = np.where(nothing < 0.0, np.finfo(np.float64).tiny, 0.0)[:, None]
    values = np.where(np.abs(values) > np.abs(nothing)[:, None], values, at_kink)
    row, column, scale = _places(order)
    first, second = values[:, row], values[:, column]
    apart = np.where(first == second, 1.0, first - second)
    between = (np.maximum(first, 0.0) - np.maximum(second, 0.0)) / apart
    same = (first > 0.0) & (second > 0.0)
    slope = np.where(same, 1.0, np.where((first <= 0.0) & (second <= 0.0), 0.0, between))
    outer = vectors[:, :, None, row] * vectors[:, None, :, column]
    outer = 0.5 * (outer + outer.transpose(0, 2, 1, 3)) * scale
    basis = outer[:, row, column, :] * scale[:, None]  # (batch, entries of the triangle, directions)
    return np.asarray((basis * slope[:, None, :]) @ basis.transpose(0, 2, 1))
