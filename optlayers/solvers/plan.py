"""A standard form as the kernels take it, worked out once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp

from optlayers.common.caches import WeakCache, cached_property
from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels.batches import of_each
from optlayers.solvers.kernels.lanes import LANES
from optlayers.solvers.kernels.normal_equations import System, analyze
from optlayers.solvers.pool import for_each_chunk

__all__ = ["KernelInput", "Plan", "plan_of"]

WORTH_A_THREAD = 1e6
"""Arithmetic operations below which handing work to another thread costs more than it saves."""

DENSE_PRODUCTS = 5e6
"""Products of entries in one column that a plan lists at most."""
DENSE_ENTRIES = 100_000
DENSE_SHARE = 0.25
"""A factor with more entries than this, and with this share of all, is dense."""

_plans: WeakCache[StandardForm, Plan] = WeakCache()


@final
class Plan:
    """The normal equations of a form, its curvature, and what one solve costs."""

    def __init__(self, form: StandardForm) -> None:
        self.matrix = form.matrix
        self.equalities = form.equalities
        self.varies = not form.matrix_is_constant
        self.curvature = np.zeros(form.columns)
        self.curvature[: form.curved] = 1.0
        self.scored = form.scored
        self.row_scale = form.row_scale[None]
        self.start = np.ascontiguousarray(form.matrix.indptr, dtype=np.int32)
        self.row = np.ascontiguousarray(form.matrix.indices, dtype=np.int32)
        self.entries = np.array(form.matrix.data)[None]
        entries = np.arange(form.matrix.nnz)
        self.column_sums = sp.csr_array(
            (np.ones(len(entries)), entries, form.matrix.indptr), shape=(form.columns, len(entries))
        )

    def prices(self, matrix: np.ndarray, dual: np.ndarray) -> np.ndarray:
        """``Aᵀ y`` for every instance, from the entries of A in a row per instance, or in a single one."""
        prices: np.ndarray = (self.column_sums @ (matrix * dual[:, self.row]).T).T
        return prices

    @cached_property
    def by_row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A row by row: where each begins, columns, and the places of entries in the column-wise arrays."""
        numbered = sp.csc_array((np.arange(self.matrix.nnz), self.row, self.start), shape=self.matrix.shape).tocsr()
        start, column, place = (
            np.ascontiguousarray(part, dtype=np.int32) for part in (numbered.indptr, numbered.indices, numbered.data)
        )
        return start, column, place

    @cached_property
    def _block_of(self) -> np.ndarray:
        """The independent block of every row, then of every column; slack columns do not tie rows together."""
        rows, columns = self.matrix.shape
        row, column = self.row, np.repeat(np.arange(columns), np.diff(self.start))
        size = rows + columns
        graph = sp.csr_array((np.ones(len(row), dtype=np.int8), (row, rows + column)), shape=(size, size))
        block: np.ndarray = sp.csgraph.connected_components(graph, directed=False)[1].astype(np.int32)
        return block

    @cached_property
    def row_block(self) -> np.ndarray:
        """The independent block of every row."""
        return np.ascontiguousarray(self._block_of[: self.matrix.shape[0]])

    @cached_property
    def column_block(self) -> np.ndarray:
        """The independent block of every column."""
        return np.ascontiguousarray(self._block_of[self.matrix.shape[0] :])

    @cached_property
    def blocks(self) -> int:
        """How many blocks there are."""
        return int(self._block_of.max(initial=-1)) + 1

    @cached_property
    def system(self) -> System:
        """The normal equations, analyzed when they are first asked for."""
        return analyze(self.matrix)

    @cached_property
    def slack_row(self) -> np.ndarray:
        """The place of the row of every slack column."""
        place = np.empty(self.matrix.shape[0], dtype=np.int64)
        place[self.system.order] = np.arange(len(place))
        return place[self.equalities :]

    @cached_property
    def dense(self) -> bool:
        """Whether the normal equations are large and hardly sparse, so that LAPACK serves better than a plan."""
        width = np.diff(self.matrix.indptr).astype(np.float64)
        if float((width * (width + 1)).sum()) / 2 > DENSE_PRODUCTS:
            return True  # not even looked at: the plan would take gigabytes
        entries = len(self.system.factor_row)
        return entries > DENSE_ENTRIES and entries > DENSE_SHARE * self.matrix.shape[0] ** 2

    @cached_property
    def separable(self) -> bool:
        """Whether no two rows share a column."""
        return not self.dense and len(self.system.factor_row) == 0

    @cached_property
    def operations(self) -> float:
        """Of one assembled, factored and solved system, about."""
        entries: int = self.matrix.nnz + self.matrix.shape[1]
        if self.dense:
            return 1.0 + entries
        below = 1.0 + np.diff(self.system.factor_start)
        return 1.0 + float((below**2).sum()) + 2.0 * len(self.system.product_column) + 20.0 * entries

    @cached_property
    def certified_alone(self) -> int:
        """The smallest batch that several threads certify."""
        return self.worth_threads(1)

    def worth_threads(self, solves: int) -> int:
        """The smallest batch that several threads work on, where an instance takes so many systems."""
        return 2 * max(LANES, int(WORTH_A_THREAD / (self.operations * solves)))

    def spread(self, work: Callable[[np.ndarray], None], count: int, solves: int) -> None:
        """Call ``work`` on pieces of the batch, in threads where that pays; an instance takes ``solves`` systems."""
        smallest = max(LANES, int(WORTH_A_THREAD / (self.operations * solves)))
        for_each_chunk(work, count, smallest=smallest, multiple=LANES)


def plan_of(form: StandardForm) -> Plan:
    """The plan of a form, made when it is first asked for."""
    return _plans.get(form, Plan)


@final
@dataclass(slots=True)
class KernelInput:
    """Instances in the one memory layout that kernels are compiled for."""

    scores: np.ndarray
    rhs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, plan: Plan, instances: Instances) -> KernelInput:
        """Arrays with a row per instance, or a single row where all instances share it."""
        rhs, lower, upper, matrix = instances.shared
        return cls(of_each(instances.scores), rhs, lower, upper, plan.entries if matrix is None else matrix)

    def take(self, index: np.ndarray) -> KernelInput:
        """A part of the batch."""
        return KernelInput(
            self.scores[index],
            *(a[index] if len(a) > 1 else a for a in (self.rhs, self.lower, self.upper, self.matrix)),
        )
