"""Make a system of rows smaller without changing the polytope it describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.linalg
import scipy.sparse as sp

__all__ = ["AffineRows", "Infeasible", "Presolved", "presolve"]

RANK_TOLERANCE = 1e-10
"""An equality row is dependent when its pivot is below this fraction of the largest pivot of its block."""
DENSE_ROWS = 1500
"""Blocks with more equality rows than this are not searched for dependent rows: the search is cubic."""
MEET = 8 * np.finfo(np.float64).eps
"""Bounds closer than this, relative to their size, are one number; crossed ones were refused or are rounding."""
FEASIBILITY = 1e-9
"""Relative tolerance for contradictions that are visible without solving."""


class Infeasible(Exception):
    """The rows contradict each other; the message names them."""


@final
@dataclass(frozen=True)
class AffineRows:
    """Rows ``A z = b`` (where ``equality``) and ``A z <= b``, with A and b affine in the parameters θ.

    ``matrix`` is A at θ = 0. Entry ``k`` of ``varying = (row, column, theta, value)`` adds ``value * θ[theta - 1]``
    to A. ``rhs[0]`` is b at θ = 0, and ``rhs[1 + i]`` its derivative in ``θ[i]``. ``structure`` holds the columns of
    the scored entries, in C order.
    """

    matrix: sp.csr_array
    varying: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    rhs: np.ndarray
    equality: np.ndarray
    row_names: tuple[str, ...]
    structure: np.ndarray
    entry_name: Callable[[int], str]


@final
@dataclass(frozen=True)
class Presolved:
    """What is left: columns are the scored entries ``kept``, then auxiliary ones; bounds and b as in AffineRows."""

    matrix: sp.csr_array
    varying: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    rhs: np.ndarray
    equality: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    kept: np.ndarray
    fixed: np.ndarray
    consistency: np.ndarray
    row_names: tuple[str, ...]
    bound_names: tuple[tuple[str, str], ...]
    consistency_names: tuple[str, ...]
    notes: tuple[str, ...]


def presolve(raw: AffineRows) -> Presolved:
    """Turn single-entry rows into bounds, drop fixed columns and empty and dependent rows.

    Raises
    ------
    Infeasible : when a contradiction is met on the way.
    """
    work = _Work(raw)
    while work.rows_to_bounds() | work.drop_fixed():
        pass
    work.drop_empty_rows()
    work.drop_dependent_rows()
    return work.result()


class _Work:
    """The system while it shrinks: live rows and columns are marked, nothing is renumbered until the end."""

    def __init__(self, raw: AffineRows) -> None:
        self.raw = raw
        self.matrix = sp.csr_array(raw.matrix)
        self.matrix.eliminate_zeros()
        self.rhs = raw.rhs.copy()
        rows, columns = self.matrix.shape
        self.live_row = np.ones(rows, dtype=bool)
        self.live_column = np.ones(columns, dtype=bool)
        self.fixed = np.zeros(columns)
        self.lower = np.zeros((len(self.rhs), columns))
        self.upper = np.zeros((len(self.rhs), columns))
        self.lower[0], self.upper[0] = -np.inf, np.inf
        self.low_name = ["no constraint"] * columns
        self.high_name = ["no constraint"] * columns
        self.varies = np.zeros(rows, dtype=bool)
        self.varies[raw.varying[0]] = True
        self.tried = np.zeros(rows, dtype=bool)
        self.dropped: dict[str, int] = {}
        self.consistency: list[np.ndarray] = []
        self.consistency_names: list[str] = []
        self.entry_of = np.full(columns, -1)
        self.entry_of[raw.structure] = np.arange(len(raw.structure))

    def rows_to_bounds(self) -> bool:
        """Rows with one constant entry become bounds; True when one did."""
        live = self.matrix[:, self.live_column]
        single = (np.diff(live.indptr) == 1) & self.live_row & ~self.varies & ~self.tried
        columns = np.flatnonzero(self.live_column)
        changed = False
        for row in np.flatnonzero(single):
            self.tried[row] = True
            position = live.indptr[row]
            taken = self._take_bound(int(row), int(columns[live.indices[position]]), float(live.data[position]))
            self.live_row[row] &= not taken
            changed |= taken
        return changed

    def _take_bound(self, row: int, column: int, coefficient: float) -> bool:
        value = self.rhs[:, row] / coefficient + 0.0  # not -0.0
        name = self.raw.row_names[row]
        if self.raw.equality[row]:
            if value[1:].any() or self.lower[1:, column].any() or self.upper[1:, column].any():
                return False  # a bound pair that moves together leaves no interior; it stays an equality
            self._tighten(self.lower, self.low_name, column, value, name, np.maximum)
            self._tighten(self.upper, self.high_name, column, value, name, np.minimum)
        elif coefficient > 0:
            if not self._tighten(self.upper, self.high_name, column, value, name, np.minimum):
                return False
        elif not self._tighten(self.lower, self.low_name, column, value, name, np.maximum):
            return False
        self._count("single-entry rows turned into bounds")
        self._refuse_crossed(column)
        return True

    def _tighten(
        self, bound: np.ndarray, names: list[str], column: int, value: np.ndarray, name: str, better: np.ufunc
    ) -> bool:
        """Take over a bound, unless the tighter of two depends on the parameters: that is not affine."""
        old = bound[:, column]
        if np.isfinite(old[0]) and (old[1:].any() or value[1:].any()):
            return False
        if better(value[0], old[0]) != old[0]:
            bound[:, column] = value
            names[column] = name
        return True

    def _refuse_crossed(self, column: int) -> None:
        if self.lower[1:, column].any() or self.upper[1:, column].any():
            return
        low, high = self.lower[0, column], self.upper[0, column]
        if low > high + FEASIBILITY * (1 + abs(high)):
            raise Infeasible(
                f"{self._column_name(column)} must be >= {low:g} by {self.low_name[column]} "
                f"and <= {high:g} by {self.high_name[column]}"
            )

    def _column_name(self, column: int) -> str:
        entry = self.entry_of[column]
        return self.raw.entry_name(int(entry)) if entry >= 0 else "an auxiliary variable"

    def drop_fixed(self) -> bool:
        """Columns whose bounds meet move to the right-hand side; True when one did."""
        varying = self.lower[1:].any(axis=0) | self.upper[1:].any(axis=0)
        low, high = self.lower[0], self.upper[0]
        finite = self.live_column & ~varying & np.isfinite(low) & np.isfinite(high)
        meet = np.zeros_like(finite)
        meet[finite] = high[finite] - low[finite] <= MEET * np.abs(low[finite])
        if not meet.any():
            return False
        self.fixed[meet] = (low[meet] + high[meet]) / 2
        moved = np.where(meet, self.fixed, 0.0)
        self.rhs[0] -= self.matrix @ moved
        row, column, theta, value = self.raw.varying
        np.subtract.at(self.rhs, (theta, row), value * moved[column])
        self.live_column &= ~meet
        self._count("fixed variables removed", int(meet.sum()))
        return True

    def drop_empty_rows(self) -> None:
        """Rows without a live entry hold, or not, whatever the variables do."""
        live = self.matrix[:, self.live_column]
        entries = np.diff(live.indptr)
        row, column, _, _ = self.raw.varying
        np.add.at(entries, row[self.live_column[column]], 1)
        for index in np.flatnonzero((entries == 0) & self.live_row):
            if self.rhs[1:, index].any():
                continue  # a condition on the parameters: the certificate looks at it in every instance
            value, name = self.rhs[0, index], self.raw.row_names[index]
            wrong = abs(value) if self.raw.equality[index] else -value
            if wrong > FEASIBILITY * (1 + abs(self.raw.rhs[0, index])):
                raise Infeasible(f"{name} cannot hold: it misses by {wrong:g} for all values of its variables")
            self.live_row[index] = False
            self._count("empty rows removed")

    def drop_dependent_rows(self) -> None:
        """Equality rows that are combinations of others go; what b must satisfy for that is kept."""
        candidates = np.flatnonzero(self.live_row & self.raw.equality & ~self.varies)
        if len(candidates) < 2:
            return
        body = self.matrix[candidates][:, self.live_column]
        graph = abs(body) @ abs(body).T
        blocks, label = sp.csgraph.connected_components(graph, directed=False)
        for block in range(blocks):
            inside = label == block
            if inside.sum() > DENSE_ROWS:
                self._count("blocks too large to search for dependent rows")
            elif inside.sum() > 1:
                self._drop_dependent(candidates[inside], body[inside])

    def _drop_dependent(self, rows: np.ndarray, body: sp.csr_array) -> None:
        used = np.unique(body.indices)
        dense = body[:, used].toarray()
        triangle, pivots = scipy.linalg.qr(dense.T, mode="r", pivoting=True)
        diagonal = np.abs(np.diag(triangle))
        rank = int(np.sum(diagonal > RANK_TOLERANCE * diagonal[0])) if diagonal[0] > 0 else 0
        if rank == len(rows):
            return
        weights = scipy.linalg.solve_triangular(triangle[:rank, :rank], triangle[:rank, rank:])
        basis, dependent = rows[pivots[:rank]], rows[pivots[rank:]]
        rest = self.rhs[:, dependent] - self.rhs[:, basis] @ weights
        scale = 1 + np.abs(self.rhs[:, dependent]) + np.abs(self.rhs[:, basis]) @ np.abs(weights)
        rest[np.abs(rest) <= FEASIBILITY * scale] = 0
        for position, row in enumerate(dependent):
            name = self.raw.row_names[row]
            if rest[1:, position].any():
                self.consistency.append(rest[:, position])
                self.consistency_names.append(name)
            elif rest[0, position]:
                raise Infeasible(f"{name} contradicts other equalities by {abs(rest[0, position]):g}")
            self.live_row[row] = False
            self._count("dependent equality rows removed")

    def _count(self, what: str, how_many: int = 1) -> None:
        self.dropped[what] = self.dropped.get(what, 0) + how_many

    def result(self) -> Presolved:
        """Renumber what is left."""
        used = np.zeros(len(self.live_column), dtype=bool)
        used[self.matrix[self.live_row].indices] = True
        row, column, theta, value = self.raw.varying
        used[column[self.live_row[row]]] = True
        # An auxiliary column without rows still has bounds, and parameters may make them cross.
        used |= self.lower[1:].any(axis=0) | self.upper[1:].any(axis=0)
        structure = self.raw.structure[self.live_column[self.raw.structure]]
        is_structure = np.zeros(len(used), dtype=bool)
        is_structure[self.raw.structure] = True
        columns = np.concatenate([structure, np.flatnonzero(self.live_column & used & ~is_structure)])
        renumbered_column = np.full(len(used), -1)
        renumbered_column[columns] = np.arange(len(columns))
        renumbered_row = np.full(len(self.live_row), -1)
        renumbered_row[self.live_row] = np.arange(int(self.live_row.sum()))
        alive = self.live_row[row] & self.live_column[column]
        fixed = self.fixed[self.raw.structure].copy()
        rows = np.flatnonzero(self.live_row)
        return Presolved(
            matrix=self.matrix[rows][:, columns],
            varying=(renumbered_row[row[alive]], renumbered_column[column[alive]], theta[alive], value[alive]),
            rhs=self.rhs[:, rows],
            equality=self.raw.equality[rows],
            lower=self.lower[:, columns],
            upper=self.upper[:, columns],
            kept=np.flatnonzero(self.live_column[self.raw.structure]),
            fixed=fixed,
            consistency=np.array(self.consistency).reshape(len(self.consistency), -1).T
            if self.consistency
            else np.zeros((len(self.rhs), 0)),
            row_names=tuple(self.raw.row_names[i] for i in rows),
            bound_names=tuple((self.low_name[j], self.high_name[j]) for j in columns),
            consistency_names=tuple(self.consistency_names),
            notes=tuple(f"{count} {what}" for what, count in self.dropped.items()),
        )
