r"""Sparse systems with the matrix :math:`A \Theta A^\top + \delta I`, for a diagonal Θ of every instance.

The pattern is the same for all instances and all steps, so order, fill and the place of every product are found once
(:func:`analyze`); numbers are assembled, factored and solved for a vector of instances at a time
(:mod:`optlayers.solvers.kernels.lanes`). The factorization is left-looking, with a dense accumulator (Davis, Direct
Methods for Sparse Linear Systems, 2006, chapters 4 and 6).

Rows are kept in the fill-reducing order and scaled to about unit norm inside; callers bring right-hand sides into that
order by :attr:`System.order` and :attr:`System.scale`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, final

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from numba import types

from optlayers.solvers.kernels.flat import flat, keep, opening, row, table
from optlayers.solvers.kernels.lanes import fill, jit, load, part, spread, stay_apart, store, where_less

__all__ = [
    "System",
    "analyze",
    "assemble",
    "factor",
    "factor_size",
    "multiply",
    "multiply_transpose",
    "opened",
    "solve",
]

DROPPED = 1e128
"""Pivot of a dependent row: its unknown becomes 0 to rounding."""


@final
@dataclass(frozen=True, eq=False)
class System:
    """A matrix with the plan of its normal equations; rows are permuted and scaled. Kernels get its ``table``."""

    order: np.ndarray
    """``(rows,)`` original row of every row here."""
    scale: np.ndarray
    """``(rows,)`` powers of two that bring rows to unit norm."""
    column_start: np.ndarray
    column_row: np.ndarray
    column_value: np.ndarray
    row_start: np.ndarray
    row_column: np.ndarray
    row_value: np.ndarray
    row_entry: np.ndarray
    """Place in the column-wise arrays of every entry of the row-wise ones."""
    product_start: np.ndarray
    """Products of entries that sum to each diagonal entry, then to each entry of the factor's pattern."""
    product_column: np.ndarray
    product_value: np.ndarray
    product_left: np.ndarray
    product_right: np.ndarray
    factor_start: np.ndarray
    """Columns of the strictly lower triangle of L."""
    factor_row: np.ndarray
    update_start: np.ndarray
    """For every row j of L its entries, as places in ``factor_row``, and their columns."""
    update_entry: np.ndarray
    update_column: np.ndarray

    @cached_property
    def table(self) -> np.ndarray:
        """Where its arrays lie, in their order here; of a copy they lie elsewhere."""
        return table([getattr(self, field.name) for field in fields(self)])

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


_FLOATS = ("scale", "column_value", "row_value", "product_value")
opened = opening(
    "System",
    {
        field.name: types.int64 if field.name == "order" else types.float64 if field.name in _FLOATS else types.int32
        for field in fields(System)
    },
)
"""In kernels, the system of a table."""


def analyze(matrix: sp.csc_array) -> System:
    """Order the rows, find the fill, and say where every product of two entries goes."""
    rows, columns = matrix.shape
    pattern = sp.csc_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
    graph = sp.csc_array(pattern @ pattern.T)
    order = _order(graph)
    place = np.empty(rows, dtype=np.int64)
    place[order] = np.arange(rows)
    scale = _scale(matrix)[order]
    factor_start, factor_row = _fill(graph, place)
    row = place[matrix.indices]
    value = matrix.data * scale[row]
    by_row = np.argsort(row, kind="stable")
    column = np.repeat(np.arange(columns), np.diff(matrix.indptr))
    factor_column = np.repeat(np.arange(rows), np.diff(factor_start))
    by_factor_row = np.argsort(factor_row, kind="stable")
    products = _products(rows, matrix.indptr, row, factor_column, factor_row)
    left, right, target = products
    return System(
        order=order,
        scale=scale,
        column_start=_index(matrix.indptr),
        column_row=_index(row),
        column_value=value,
        row_start=_index(np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])),
        row_column=_index(column[by_row]),
        row_value=value[by_row],
        row_entry=_index(by_row),
        product_start=_index(np.concatenate([[0], np.cumsum(np.bincount(target, minlength=rows + len(factor_row)))])),
        product_column=_index(column[left]),
        product_value=value[left] * value[right],
        product_left=_index(left),
        product_right=_index(right),
        factor_start=_index(factor_start),
        factor_row=_index(factor_row),
        update_start=_index(np.concatenate([[0], np.cumsum(np.bincount(factor_row, minlength=rows))])),
        update_entry=_index(by_factor_row),
        update_column=_index(factor_column[by_factor_row]),
    )


def factor_size(system: System) -> int:
    """Vectors that hold an assembled or factored matrix: the diagonal, then the entries below it."""
    return len(system.order) + len(system.factor_row)


def _index(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int32)


def _scale(matrix: sp.csc_array) -> np.ndarray:
    norms = np.sqrt(np.bincount(matrix.indices, matrix.data**2, minlength=matrix.shape[0]))
    norms[norms == 0] = 1.0
    return 2.0 ** -np.round(np.log2(norms))  # multiplication is exact


def _order(graph: sp.csc_array) -> np.ndarray:
    """The rows in an order of little fill: SuperLU's minimum degree of the graph."""
    rows = graph.shape[0]
    if rows <= 2:
        return np.arange(rows)
    dominant = sp.csc_array(graph + sp.diags_array(np.full(rows, float(graph.nnz))))
    lu = scipy.sparse.linalg.splu(
        dominant, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
    return np.argsort(lu.perm_c)


def _fill(graph: sp.csc_array, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the strictly lower triangle of L: starts, and rows in ascending order."""
    rows = len(place)
    coo = graph.tocoo()
    i, j = place[coo.coords[0]], place[coo.coords[1]]
    below = i > j
    lower = sp.csr_array((np.ones(int(below.sum())), (i[below], j[below])), shape=(rows, rows))
    lower.sort_indices()
    filled, count = _rows_of_factor(lower.indptr.astype(np.int64), lower.indices.astype(np.int64))
    filled_row, filled_column = filled[:, :count]
    by_column = np.lexsort((filled_row, filled_column))
    counts = np.bincount(filled_column, minlength=rows)
    return np.concatenate([[0], np.cumsum(counts)]), filled_row[by_column]


@jit("(int64[::1], int64[::1])")  # type: ignore[untyped-decorator]
def _rows_of_factor(starts: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows and columns of the entries of L, in memory that may be longer: paths in the elimination tree, row by row."""
    start, column = flat(starts), flat(columns)
    rows = len(start) - 1
    tree = np.empty((2, rows), np.int64)
    parent, mark = row(tree, 0), row(tree, 1)
    fill(parent, -1)
    fill(mark, -1)
    capacity = 4 * len(column) + 16
    found = np.empty((2, capacity), np.int64)
    count = 0
    for i in range(rows):
        mark[i] = i
        for t in range(start[i], start[i + 1]):
            k = column[t]
            while mark[k] != i:
                if parent[k] == -1:
                    parent[k] = i
                if count == capacity:
                    capacity *= 2
                    longer = np.empty((2, capacity), np.int64)
                    for e in range(count):  # a slice takes numba seconds to compile
                        longer[0, e] = found[0, e]
                        longer[1, e] = found[1, e]
                    found = longer
                found[0, count] = i
                found[1, count] = k
                count += 1
                mark[k] = i
                k = parent[k]
    keep(tree)
    return found, count


def _products(
    rows: int, start: np.ndarray, row: np.ndarray, factor_column: np.ndarray, factor_row: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of entries in one column, ordered by the diagonal or factor entry that their product is a part of."""
    counts = np.diff(start)
    width = np.repeat(counts, counts)  # for every entry, how many share its column
    left = np.repeat(np.arange(len(row)), width)
    first = np.repeat(np.repeat(start[:-1], counts), width)
    offset = np.arange(len(left)) - np.repeat(np.cumsum(width) - width, width)
    right = first + offset
    below = row[left] >= row[right]
    left, right = left[below], right[below]
    keys = factor_column * rows + factor_row
    place = np.searchsorted(keys, row[right] * rows + row[left])
    target = np.where(row[left] == row[right], row[left], rows + place)
    by_target = np.argsort(target, kind="stable")
    return left[by_target], right[by_target], target[by_target]


@part
def multiply(system, varies, entries, x, out):  # type: ignore[no-untyped-def]
    """``out = A x``; ``entries`` are vectors of entries, column by column, where they ``vary``."""
    stay_apart()
    for i in range(len(system.row_start) - 1):
        total = spread(0.0)
        if varies:
            for t in range(system.row_start[i], system.row_start[i + 1]):
                total = total + load(entries, system.row_entry[t]) * load(x, system.row_column[t])
        else:
            for t in range(system.row_start[i], system.row_start[i + 1]):
                total = total + system.row_value[t] * load(x, system.row_column[t])
        store(out, i, total)


@part
def multiply_transpose(system, varies, entries, y, out):  # type: ignore[no-untyped-def]
    """``out = Aᵀ y``."""
    stay_apart()
    for j in range(len(system.column_start) - 1):
        total = spread(0.0)
        if varies:
            for t in range(system.column_start[j], system.column_start[j + 1]):
                total = total + load(entries, t) * load(y, system.column_row[t])
        else:
            for t in range(system.column_start[j], system.column_start[j + 1]):
                total = total + system.column_value[t] * load(y, system.column_row[t])
        store(out, j, total)


@part
def assemble(system, varies, entries, theta, shift, factored):  # type: ignore[no-untyped-def]
    """Write ``A diag(theta) Aᵀ + diag(shift)`` to ``factored``."""
    stay_apart()
    rows = len(system.order)
    for i in range(len(system.product_start) - 1):
        total = spread(0.0)
        if varies:
            for t in range(system.product_start[i], system.product_start[i + 1]):
                both = load(entries, system.product_left[t]) * load(entries, system.product_right[t])
                total = total + both * load(theta, system.product_column[t])
        else:
            for t in range(system.product_start[i], system.product_start[i + 1]):
                total = total + system.product_value[t] * load(theta, system.product_column[t])
        if i < rows:
            total = total + load(shift, i)
        store(factored, i, total)


@part
def factor(system, factored, column, dependent):  # type: ignore[no-untyped-def]
    """Replace an assembled matrix by D and L of ``L D Lᵀ``; ``column`` is memory for a vector per row.

    A pivot below ``dependent`` times its diagonal entry is what rounding leaves of a row that depends on earlier ones;
    it becomes :data:`DROPPED`.
    """
    stay_apart()
    rows = len(system.order)
    start, row = system.factor_start, system.factor_row
    for j in range(rows):
        pivot = load(factored, j)
        least = pivot * dependent
        for p in range(start[j], start[j + 1]):
            store(column, row[p], load(factored, rows + p))
        for t in range(system.update_start[j], system.update_start[j + 1]):
            p, k = system.update_entry[t], system.update_column[t]
            entry = load(factored, rows + p)
            times = entry * load(factored, k)
            pivot = pivot - entry * times
            for q in range(p + 1, start[k + 1]):
                store(column, row[q], load(column, row[q]) - load(factored, rows + q) * times)
        pivot = where_less(least, pivot, pivot, spread(DROPPED))
        store(factored, j, pivot)
        inverse = 1.0 / pivot
        for p in range(start[j], start[j + 1]):
            store(factored, rows + p, load(column, row[p]) * inverse)


@part
def solve(system, factored, x):  # type: ignore[no-untyped-def]
    """Solve in place with a factored matrix."""
    stay_apart()
    rows = len(system.order)
    start, row = system.factor_start, system.factor_row
    for j in range(rows):
        known = load(x, j)
        for p in range(start[j], start[j + 1]):
            store(x, row[p], load(x, row[p]) - load(factored, rows + p) * known)
    for back in range(rows):
        j = rows - 1 - back
        value = load(x, j) / load(factored, j)
        for p in range(start[j], start[j + 1]):
            value = value - load(factored, rows + p) * load(x, row[p])
        store(x, j, value)
