"""A proof that all vertices are integral: rows that form a totally unimodular matrix, with integers on the right."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp

from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import implied

__all__ = ["Block", "blocks_of"]

INTEGRAL = 1e-9
"""Right-hand sides and bounds this close to an integer, but for their own rounding, are that integer."""
LARGEST = 2**24
"""Entries of a matrix that is looked at; larger ones are not proved."""
SIGNED_ROWS = 10
"""Up to so many rows all ways to sign them are tried."""


@final
@dataclass(frozen=True)
class Block:
    """Rows and bounds of one instance that have no variable in common with its other rows.

    ``rows @ z`` equals ``rhs`` where ``equality``, and is at most ``rhs`` elsewhere. The scored variables come first;
    they are the ``entries`` of the scored vector.
    """

    entries: np.ndarray
    rows: sp.csc_array
    rhs: np.ndarray
    equality: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def within_unit(self) -> bool:
        """Whether bounds and rows, one by one or added up, say that scored variables are between 0 and 1. False says
        nothing."""
        there = np.isfinite(self.rhs)
        loose = np.flatnonzero(~self.equality[there])
        slack = sp.csr_array((np.ones(len(loose)), (loose, np.arange(len(loose)))), shape=(there.sum(), len(loose)))
        rows = sp.csr_array(sp.hstack([self.rows.tocsr()[there], slack]))
        lower = np.concatenate([self.lower, np.zeros(len(loose))])[None]
        upper = np.concatenate([self.upper, np.full(len(loose), np.inf)])[None]
        start, column = (np.ascontiguousarray(part, dtype=np.int32) for part in (rows.indptr, rows.indices))
        place, all_rows = np.arange(rows.nnz, dtype=np.int32), np.zeros(rows.shape[0], dtype=bool)
        implied.tighten(start, column, place, rows.data[None], all_rows, self.rhs[there][None], lower, upper)
        scored = slice(0, len(self.entries))
        if not (lower[0, scored] >= 0.0).all():
            return False
        if (upper[0, scored] > 1.0).any() and (lower >= 0.0).all():
            _sweep(rows, self.rhs[there], upper[0])
        return bool((upper[0, scored] <= 1.0).all())

    def is_integral(self) -> bool:
        """Whether total unimodularity proves that all vertices are integral (Hoffman and Kruskal, 1956).

        Rows that are multiples of rows of 0, 1 and -1 are taken as these. False says that there is no proof here.
        """
        if self.rows.shape[0] * self.rows.shape[1] > LARGEST:
            return False
        bounds = np.concatenate([self.lower, self.upper])
        if not _are_integers(bounds[np.isfinite(bounds)]):
            return False
        there = np.isfinite(self.rhs)
        matrix, rhs, equality = self.rows.toarray()[there], self.rhs[there], self.equality[there]
        scale = np.abs(matrix).max(axis=1, initial=0.0)
        matrix, rhs, equality = matrix[scale > 0], rhs[scale > 0], equality[scale > 0]
        matrix, rhs = matrix / scale[scale > 0, None], rhs / scale[scale > 0]
        if not _are_integers(rhs) or not np.isin(matrix, (-1.0, 0.0, 1.0)).all():
            return False
        signs = matrix.astype(np.int8)
        return _is_totally_unimodular(signs) or _is_totally_unimodular(_with_fewer_entries(signs, equality))


def _sweep(rows: sp.csr_array, rhs: np.ndarray, upper: np.ndarray) -> None:
    """Make upper bounds of variables that are at least 0 narrower by sums of rows, those of 0, 1 and -1 times a number
    with an integer on the right."""
    sizes, filled = np.abs(rows.data), np.diff(rows.indptr) > 0
    of_entry = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    largest, smallest = np.zeros(rows.shape[0]), np.full(rows.shape[0], np.inf)
    np.maximum.at(largest, of_entry, sizes)
    np.minimum.at(smallest, of_entry, sizes)
    right = rhs / np.where(largest > 0.0, largest, 1.0)
    fits = filled & (largest == smallest) & (largest > 0.0) & (right == np.round(right)) & (np.abs(right) < 2.0**31)
    signs = sp.csr_array((np.sign(rows.data).astype(np.int64), rows.indices, rows.indptr), shape=rows.shape)
    by_column = sp.csc_array(signs)
    index = (rows.indptr, rows.indices, by_column.indptr, by_column.indices)
    start, column, column_start, row = (np.ascontiguousarray(part, dtype=np.int32) for part in index)
    whole = np.where(fits, right, 0.0).astype(np.int64)
    implied.sweep(start, column, signs.data, column_start, row, by_column.data, whole, upper, ~fits)


def blocks_of(form: StandardForm, instances: Instances, *, together: bool) -> list[Block]:
    """The blocks of the first of some instances that have scored variables; or a single one of all ``together``."""
    width = form.unslacked
    data = form.matrix.data if instances.matrix is None else instances.matrix[0]
    whole = sp.csc_array((data, form.matrix.indices, form.matrix.indptr), shape=form.matrix.shape)
    body = whole[:, :width]
    pattern = sp.csc_array((np.ones(len(body.data)), body.indices, body.indptr), shape=body.shape)
    graph = sp.block_array([[None, pattern], [pattern.T, None]], format="csr") if body.nnz else None
    count = form.rows + width
    label = np.zeros(count, int) if together else np.arange(count)
    if graph is not None and not together:
        _, label = sp.csgraph.connected_components(graph, directed=False)
    of_row, of_column = label[: form.rows], label[form.rows :]
    blocks = []
    for one in np.unique(of_column[: form.scored]):
        columns, rows = np.flatnonzero(of_column == one), np.flatnonzero(of_row == one)
        blocks.append(
            Block(
                form.kept[columns[columns < form.scored]],
                sp.csc_array(body[:, columns][rows]),
                instances.rhs[0, rows],
                rows < form.equalities,
                instances.lower[0, columns],
                instances.upper[0, columns],
            )
        )
    return blocks


def _are_integers(values: np.ndarray) -> bool:
    rounding = 4.0 * np.finfo(np.float64).eps * np.abs(values)
    return bool((np.abs(values - np.round(values)) <= INTEGRAL + rounding).all())


def _with_fewer_entries(matrix: np.ndarray, equality: np.ndarray) -> np.ndarray:
    """Rows to which equality rows were added, or from which they were taken, while that left fewer entries.

    The polytope is the same, with integers on the right as before. Equations of flows become rows of nodes in this way.
    """
    matrix = matrix.copy()
    improved = True
    while improved:
        improved = False
        for row in np.flatnonzero(equality):
            mine = matrix[row]
            product = matrix @ mine.astype(np.int64)
            for sign in (-1, 1):
                others = np.flatnonzero(sign * product < 0)
                others = others[others != row]
                changed = matrix[others] + sign * mine
                better = (np.abs(changed) <= 1).all(axis=1)
                better &= np.count_nonzero(changed, axis=1) < np.count_nonzero(matrix[others], axis=1)
                if better.any():
                    matrix[others[better]] = changed[better]
                    improved = True
                    break
    return matrix


def _is_totally_unimodular(matrix: np.ndarray) -> bool:
    """Whether a matrix of 0, 1 and -1 is proved to be totally unimodular, by sufficient conditions.

    A row or column with a single entry, and one that another one repeats up to its sign, changes nothing. What is left
    falls into blocks: each must be a network matrix as it stands (Heller and Tompkins, 1956), or transposed, or have
    few rows or columns, of which all subsets can be signed so that their sum has entries of 0, 1 and -1 (Ghouila-Houri,
    1962).
    """
    if matrix.size == 0 or _is_network(matrix):  # as a rule, and quickly seen
        return True
    matrix = _reduced(matrix)
    if matrix.size == 0:
        return True
    pattern = sp.csr_array(matrix != 0)
    count = sum(matrix.shape)
    graph = sp.block_array([[None, pattern], [pattern.T, None]], format="csr")
    assert graph.shape == (count, count)
    blocks, label = sp.csgraph.connected_components(graph, directed=False)
    for block in range(blocks):
        inside = label == block
        part = matrix[inside[: len(matrix)]][:, inside[len(matrix) :]]
        if not (_is_network(part) or _is_network(part.T) or _can_be_signed(part) or _can_be_signed(part.T)):
            return False
    return True


def _reduced(matrix: np.ndarray) -> np.ndarray:
    while True:
        before = matrix.shape
        for _ in range(2):
            matrix = matrix[np.count_nonzero(matrix, axis=1) > 1]
            if len(matrix):
                first = matrix[np.arange(len(matrix)), (matrix != 0).argmax(axis=1)]
                matrix = np.unique(matrix * first[:, None], axis=0)
            matrix = matrix.T
        if matrix.shape == before or matrix.size == 0:
            return matrix


def _is_network(matrix: np.ndarray) -> bool:
    """Whether columns have two entries at most, and rows fall into two classes such that two entries of a column are
    in different classes where they have the same sign, and in the same class where they have not."""
    counts = np.count_nonzero(matrix, axis=0)
    if counts.max() > 2:
        return False
    columns = matrix.T[counts == 2]
    if len(columns) == 0:
        return True
    place = np.argsort(columns == 0, axis=1, kind="stable")[:, :2]
    one, other = place[:, 0], place[:, 1]
    same = columns[np.arange(len(columns)), one] == columns[np.arange(len(columns)), other]
    # Every row stands for itself in either class: it must not be joined to itself in the other one.
    rows = len(matrix)
    start, end = np.concatenate([one, one + rows]), np.concatenate([other + same * rows, other + ~same * rows])
    graph = sp.csr_array((np.ones(len(start)), (start, end)), shape=(2 * rows, 2 * rows))
    _, label = sp.csgraph.connected_components(graph, directed=False)
    return bool((label[:rows] != label[rows:]).all())


def _can_be_signed(matrix: np.ndarray) -> bool:
    rows, columns = matrix.shape
    if rows > SIGNED_ROWS or 3**rows * columns > LARGEST:
        return False
    signs = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=rows)))
    good = (np.abs(signs @ matrix.astype(np.float64)) <= 1.0).all(axis=1)
    subset = (signs != 0.0) @ (1 << np.arange(rows))
    return bool(len(np.unique(subset[good])) == 2**rows)
