"""Make a system of rows smaller without changing the polytope it describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from optlayers.form.independence import are_independent
from optlayers.form.names import NO_NAMES, ColumnNames

__all__ = ["AffineRows", "Infeasible", "Presolved", "presolve"]

RANK_TOLERANCE = 1e-10
"""An equality row is dependent when its pivot is below this; rows have unit norm."""
DENSE_ROWS = 1500
"""Blocks with more equality rows than this are not searched for dependent rows: the search is cubic."""
MEET = 8 * np.finfo(np.float64).eps
"""Bounds closer than this, relative to their size, are one number; crossed ones were refused or are rounding."""
FEASIBILITY = 1e-9
"""Contradictions that are visible without solving are larger than this, relative to the numbers that contradict each
other."""
NOISE = 16 * np.finfo(np.float64).eps
"""What rounding leaves of a 0."""


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
    integer: np.ndarray
    """Which columns are declared to be integer."""
    column_names: ColumnNames = NO_NAMES


@final
@dataclass(frozen=True)
class Presolved:
    """What is left: columns are the scored entries ``kept``, then auxiliary ones; bounds and b as in AffineRows.

    Rows are the declared ones times ``row_scale``, powers of two that bring their largest entries to about 1.
    ``consistency`` is in the units of the declaration.
    """

    matrix: sp.csr_array
    varying: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    rhs: np.ndarray
    row_scale: np.ndarray
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
    integer: np.ndarray
    compiled_columns: np.ndarray
    """The auxiliary columns among those of AffineRows."""


def presolve(raw: AffineRows) -> Presolved:
    """Bring rows to one scale, turn single-entry rows into bounds, drop fixed columns and empty and dependent rows.

    Nothing is decided by the scale in which a row was written down.

    Raises
    ------
    Infeasible : when a contradiction is met on the way.
    """
    work = _Work(raw)
    work.drop_rows_without_limit()
    while work.rows_to_bounds() | work.drop_fixed():
        pass
    work.drop_empty_rows()
    work.drop_dependent_rows()
    return work.result()


def _scales(matrix: sp.csr_array, row: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Powers of two, which multiply without rounding, that bring the largest entry of every row to about 1.

    Entries of a parameter are ``value`` in ``row``; the parameter counts as 1.
    """
    largest = np.zeros(matrix.shape[0])
    np.maximum.at(largest, np.repeat(np.arange(len(largest)), np.diff(matrix.indptr)), np.abs(matrix.data))
    np.maximum.at(largest, row, np.abs(value))
    return np.exp2(-np.round(np.log2(np.where(largest > 0, largest, 1.0))))


class _Work:
    """The system while it shrinks: live rows and columns are marked, nothing is renumbered until the end."""

    def __init__(self, raw: AffineRows) -> None:
        self.raw = raw
        row, column, theta, value = raw.varying
        self.scale = _scales(raw.matrix, row, value)
        self.varying = row, column, theta, value * self.scale[row]
        self.matrix = sp.csr_array(sp.diags_array(self.scale) @ raw.matrix)
        self.matrix.eliminate_zeros()
        with np.errstate(invalid="ignore"):  # a right-hand side may be infinite
            self.rhs = raw.rhs * self.scale
        self.size = np.abs(self.rhs)
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
        self.varies[row] = True
        self.tried = np.zeros(rows, dtype=bool)
        self.dropped: dict[str, int] = {}
        self.consistency: list[np.ndarray] = []
        self.consistency_names: list[str] = []
        self.entry_of = np.full(columns, -1)
        self.entry_of[raw.structure] = np.arange(len(raw.structure))

    def drop_rows_without_limit(self) -> None:
        """Inequality rows whose right-hand side is inf say nothing."""
        infinite = np.isinf(self.rhs[0])
        for row in np.flatnonzero(infinite | np.isnan(self.rhs[0])):
            name, side = self.raw.row_names[row], float(self.rhs[0, row])
            if np.isnan(side):
                raise Infeasible(f"{name} cannot hold: a constant in it is NaN")
            if self.raw.equality[row] or side < 0:
                raise Infeasible(f"{name} cannot hold: it asks for an infinite value")
            if self.rhs[1:, row].any():
                raise Infeasible(f"{name} has an infinite constant beside a parameter; leave out the constraint")
            self.live_row[row] = False
            self._count("rows without a limit removed")
        self.rhs[:, infinite] = 0.0
        self.size[:, infinite] = 0.0

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
        low, high = float(self.lower[0, column]), float(self.upper[0, column])
        if low <= high or self.lower[1:, column].any() or self.upper[1:, column].any():
            return
        if low > high + FEASIBILITY * max(abs(low), abs(high)) + NOISE:
            raise Infeasible(
                f"{self._column_name(column)} must be >= {low:g} by {self.low_name[column]} "
                f"and <= {high:g} by {self.high_name[column]}"
            )

    def _column_name(self, column: int) -> str:
        entry = self.entry_of[column]
        return self.raw.entry_name(int(entry)) if entry >= 0 else self.raw.column_names.of(column)

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
        self._refuse_fractions(np.flatnonzero(meet & self.raw.integer))
        moved = np.where(meet, self.fixed, 0.0)
        self.rhs[0] -= self.matrix @ moved
        self.size[0] += abs(self.matrix) @ np.abs(moved)
        row, column, theta, value = self.varying
        np.subtract.at(self.rhs, (theta, row), value * moved[column])
        np.add.at(self.size, (theta, row), np.abs(value * moved[column]))
        self.live_column &= ~meet
        self._count("fixed variables removed", int(meet.sum()))
        return True

    def _refuse_fractions(self, columns: np.ndarray) -> None:
        """Integer columns that constraints fix are integers but for rounding, which goes."""
        whole = np.round(self.fixed[columns])
        off = np.abs(self.fixed[columns] - whole) > FEASIBILITY * np.maximum(1.0, np.abs(whole))
        for column in columns[off].tolist():
            raise Infeasible(
                f"{self._column_name(column)} is integer, but {self.low_name[column]} and {self.high_name[column]} fix "
                f"it at {self.fixed[column]:g}"
            )
        self.fixed[columns] = whole

    def drop_empty_rows(self) -> None:
        """Rows without a live entry hold, or not, whatever the variables do."""
        live = self.matrix[:, self.live_column]
        entries = np.diff(live.indptr)
        row, column, _, _ = self.varying
        np.add.at(entries, row[self.live_column[column]], 1)
        for index in np.flatnonzero((entries == 0) & self.live_row):
            if self.rhs[1:, index].any():
                if not self.raw.equality[index]:
                    continue  # a condition on the parameters: the certificate looks at it in every instance
                self.consistency.append(self.rhs[:, index] / self.scale[index])
                self.consistency_names.append(self.raw.row_names[index])
                self.live_row[index] = False
                continue
            value, name = self.rhs[0, index], self.raw.row_names[index]
            wrong = abs(value) if self.raw.equality[index] else -value
            if wrong > FEASIBILITY * self.size[0, index] + NOISE:
                raise Infeasible(
                    f"{name} cannot hold: it misses by {wrong / self.scale[index]:g} for all values of its variables"
                )
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
            elif inside.sum() > 1 and not are_independent(body[inside]):
                self._drop_dependent(candidates[inside], body[inside])

    def _drop_dependent(self, rows: np.ndarray, body: sp.csr_array) -> None:
        used = np.unique(body.indices)
        dense = body[:, used].toarray()
        # Fixed columns are gone, and may have had the largest entries.
        norm = np.linalg.norm(dense, axis=1)
        triangle, pivots = scipy.linalg.qr((dense / norm[:, None]).T, mode="r", pivoting=True)
        rank = int(np.sum(np.abs(np.diag(triangle)) > RANK_TOLERANCE))
        if rank == len(rows):
            return
        basis, rest = pivots[:rank], pivots[rank:]
        unit = np.exp2(-np.round(np.log2(norm)))  # by which rows are not rounded
        scaled = (dense * unit[:, None]).T
        weights = scipy.linalg.solve_triangular(triangle[:rank, :rank], triangle[:rank, rank:])
        weights *= (norm * unit)[rest] / (norm * unit)[basis, None]
        missed = scaled[:, rest] - scaled[:, basis].astype(np.longdouble) @ weights
        weights += scipy.linalg.lstsq(scaled[:, basis], missed.astype(float), lapack_driver="gelsy")[0]
        # The weights of rows that are no part of others are rounding, next to right-hand sides of any size.
        weights[np.abs(weights) <= NOISE * np.abs(weights).max(axis=0, initial=1.0)] = 0.0
        rhs, size = self.rhs[:, rows] * unit, self.size[:, rows] * unit
        missing = rhs[:, rest] - rhs[:, basis] @ weights
        terms, noise = size[:, rest] + size[:, basis] @ np.abs(weights), NOISE * (1 + np.abs(weights).sum(axis=0))
        missing[np.abs(missing) <= FEASIBILITY * terms + noise] = 0
        dependent = rows[rest]
        missing /= unit[rest] * self.scale[dependent]  # in the units of the declaration
        for position, row in enumerate(dependent):
            name = self.raw.row_names[row]
            if missing[1:, position].any():
                self.consistency.append(missing[:, position])
                self.consistency_names.append(name)
            elif missing[0, position]:
                raise Infeasible(f"{name} contradicts other equalities by {abs(missing[0, position]):g}")
            self.live_row[row] = False
            self._count("dependent equality rows removed")

    def _count(self, what: str, how_many: int = 1) -> None:
        self.dropped[what] = self.dropped.get(what, 0) + how_many

    def result(self) -> Presolved:
        """Renumber what is left."""
        used = np.zeros(len(self.live_column), dtype=bool)
        used[self.matrix[self.live_row].indices] = True
        row, column, theta, value = self.varying
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
        varying = renumbered_row[row[alive]], renumbered_column[column[alive]], theta[alive], value[alive]
        body = self.matrix[rows][:, columns]
        unit = _scales(body, varying[0], varying[3])
        return Presolved(
            matrix=sp.csr_array(sp.diags_array(unit) @ body),
            varying=(*varying[:3], varying[3] * unit[varying[0]]),
            rhs=self.rhs[:, rows] * unit,
            row_scale=self.scale[rows] * unit,
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
            integer=self.raw.integer[columns],
            compiled_columns=columns[len(structure) :],
        )
