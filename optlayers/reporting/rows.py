"""The rows of a declaration for one value of its parameters, as they were written and in integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, final

import numpy as np
import scipy.sparse as sp

from optlayers.common.caches import cached_property
from optlayers.form.compile import UNNAMED, canonical_rows
from optlayers.form.declaration import parameter_specs
from optlayers.form.names import scored_name
from optlayers.polytope import Polytope
from optlayers.reporting.rationals import scaled_to_integers
from optlayers.variables import name_given

__all__ = ["Rows", "TooManyRows", "expression", "rows_of"]


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """``matrix @ z == sides`` where ``equality``, ``<=`` elsewhere; the scored parts come first in z.

    Rows are multiplied by positive numbers, so that all that is in them is an integer. Where a number is no short
    fraction, a row is left as it is and ``exact`` is False: nothing is proved then.
    """

    matrix: sp.csr_array
    sides: np.ndarray
    equality: np.ndarray
    names: tuple[str, ...]
    scored: int
    parts: tuple[str, ...]
    auxiliary_names: tuple[str, ...]
    exact: bool
    units: np.ndarray
    """The declared row times its unit is this one."""

    @property
    def columns(self) -> int:
        """How many there are, auxiliary ones included."""
        return int(self.matrix.shape[1])

    @property
    def count(self) -> int:
        """How many rows there are."""
        return int(self.matrix.shape[0])

    @property
    def auxiliary(self) -> int:
        """How many columns have no scores."""
        return self.columns - self.scored

    @cached_property
    def whole(self) -> sp.csr_array:
        """The matrix in 64-bit integers."""
        return sp.csr_array(
            (np.rint(self.matrix.data).astype(np.int64), self.matrix.indices, self.matrix.indptr), self.matrix.shape
        )

    @cached_property
    def whole_sides(self) -> np.ndarray:
        """The right-hand sides in 64-bit integers."""
        sides: np.ndarray = np.rint(self.sides).astype(np.int64)
        return sides

    @cached_property
    def largest(self) -> np.ndarray:
        """The largest absolute value in every row."""
        found = abs(self.matrix).max(axis=1) if self.matrix.nnz else None
        sizes: np.ndarray = np.zeros(self.count) if found is None else found.toarray().ravel()
        return sizes

    @cached_property
    def reach(self) -> int:
        """The largest sum of absolute values in a row or a column, with its right-hand side."""
        if not self.matrix.nnz:
            return 1
        absolute = abs(self.matrix)
        by_row = absolute.sum(axis=1) + np.abs(self.sides)
        return int(max(by_row.max(), absolute.sum(axis=0).max(), np.abs(self.sides).sum()))

    def fits(self, largest: int) -> bool:
        """Whether sums of products with numbers of this size stay within 64 bits."""
        return self.reach * max(1, largest) < 2**62

    def has_unimodular_scale(self) -> bool:
        """Whether every row is a multiple of one of 0, 1 and -1 with an integer on the right, without rounding."""
        if not self.exact:
            return False
        sizes = np.repeat(self.largest, np.diff(self.matrix.indptr))
        whole = self.whole_sides % np.maximum(np.rint(self.largest).astype(np.int64), 1) == 0
        return bool((np.abs(self.matrix.data) == sizes).all() and whole.all())

    def slacks(self, numerators: np.ndarray, denominator: int) -> np.ndarray | None:
        """``denominator * sides - matrix @ numerators``, without rounding; None where numbers are no fractions."""
        if not self.exact:
            return None
        if self.fits(max(denominator, max(map(abs, numerators.tolist()), default=0))):
            return denominator * self.whole_sides - self.whole @ numerators.astype(np.int64)  # type: ignore[no-any-return]
        point = numerators.tolist()  # Python's integers have no limit
        told = [
            denominator * self.side(i) - sum(a * point[j] for j, a in self.row(i).items()) for i in range(self.count)
        ]
        return np.array(told, dtype=object)

    def holds(self, numerators: np.ndarray, denominator: int) -> bool:
        """Whether a point of fractions satisfies all rows, shown without rounding."""
        slack = self.slacks(numerators, denominator)
        return slack is not None and bool(np.where(self.equality, slack == 0, slack >= 0).all())

    def row(self, index: int) -> dict[int, Fraction | int]:
        """The entries of one row: integers, or what its floating-point numbers stand for bit by bit."""
        span = slice(self.matrix.indptr[index], self.matrix.indptr[index + 1])
        columns, data = self.matrix.indices[span].tolist(), self.matrix.data[span].tolist()
        return {j: int(v) if v == int(v) else Fraction(v) for j, v in zip(columns, data, strict=True)}

    def side(self, index: int) -> Fraction | int:
        """The right-hand side of one row: an integer, or what a floating-point number stands for bit by bit."""
        value = float(self.sides[index])
        return int(value) if value == int(value) else Fraction(value)

    def text(self, index: int) -> str:
        """One row as it would be written down."""
        span = slice(self.matrix.indptr[index], self.matrix.indptr[index + 1])
        columns, unit = self.matrix.indices[span], float(self.units[index])
        values = self.matrix.data[span] / unit
        told = {int(j): _short(float(v)) for j, v in zip(columns.tolist(), values.tolist(), strict=True)}
        sign = "==" if self.equality[index] else "<="
        side = _short(self.sides[index] / unit)
        if told and all(v < 0 for v in told.values()) and not self.equality[index]:
            told, sign, side = {j: -v for j, v in told.items()}, ">=", -side
        return f"{expression(told, self.parts + self.auxiliary_names)} {sign} {_number(side)}"

    @cached_property
    def unread(self) -> tuple[int, ...]:
        """Rows with numbers that are no short fractions."""
        whole = self.matrix.data == np.rint(self.matrix.data)
        in_row = np.repeat(np.arange(self.count), np.diff(self.matrix.indptr))
        odd = np.union1d(in_row[~whole], np.flatnonzero(self.sides != np.rint(self.sides)))
        return tuple(odd.tolist())

    def name(self, index: int) -> str:
        """The constraint of a row, as error messages call it."""
        return "an attribute of the variable" if self.names[index] == UNNAMED else self.names[index]

    def named(self, indices: Iterable[int]) -> list[str]:
        """Some rows by their constraints: all rows of one, a single row, or how many of them."""
        of_constraint: dict[str, list[int]] = {}
        for index in indices:
            of_constraint.setdefault(self.name(index), []).append(index)
        total: dict[str, int] = {}
        for index in range(self.count):
            total[self.name(index)] = total.get(self.name(index), 0) + 1
        told = []
        for name, mine in of_constraint.items():
            if total[name] == 1:
                told.append(name)
            elif len(mine) == total[name]:
                told.append(f"{name}, all {len(mine)} rows")
            else:
                shown = "; ".join(self.text(i) for i in mine[:3])
                more = f" and {len(mine) - 3} more" if len(mine) > 3 else ""
                told.append(f"{name}, {len(mine)} of {total[name]} rows: {shown}{more}")
        return told

    def only(self, chosen: np.ndarray) -> Rows:
        """Some of the rows."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return replace(
            self,
            matrix=sp.csr_array(self.matrix[index]),
            sides=self.sides[index],
            equality=self.equality[index],
            names=tuple(self.names[i] for i in index),
            units=self.units[index],
        )


class TooManyRows(ValueError):
    """The rows are too many to be read one by one; the message says how many."""


def rows_of(polytope: Polytope, theta: np.ndarray, largest: int | None = None) -> Rows:
    """The rows of a declaration, integers relaxed, for one vector of parameters.

    Raises
    ------
    NotPolyhedral : where rows do not describe the set.
    TooManyRows : where rows times columns are more than ``largest``.
    """
    raw, program = canonical_rows(polytope, parameter_specs(polytope), polytope.relaxed().constraints)
    row, column, which, value = raw.varying
    shape = raw.matrix.shape
    added = sp.csr_array((value * np.concatenate([[1.0], theta])[which], (row, column)), shape=shape)
    matrix = sp.csr_array(raw.matrix + added)
    with np.errstate(invalid="ignore"):
        sides = raw.rhs[0] + theta @ raw.rhs[1:]
    auxiliary = np.setdiff1d(np.arange(shape[1]), raw.structure)
    matrix = sp.csr_array(matrix[:, np.concatenate([raw.structure, auxiliary])])
    matrix.eliminate_zeros()
    matrix.sort_indices()
    says = (np.diff(matrix.indptr) > 0) | (sides < 0) | (raw.equality & (sides != 0))
    kept = np.flatnonzero(np.isfinite(sides) & says)
    if largest is not None and len(kept) * shape[1] > largest:
        raise TooManyRows(f"{len(kept)} rows of {shape[1]} variables")
    matrix, sides = sp.csr_array(matrix[kept]), sides[kept]
    exact, units = True, np.ones(len(kept))
    for i in range(len(kept)):
        span = slice(matrix.indptr[i], matrix.indptr[i + 1])
        values = [*matrix.data[span].tolist(), float(sides[i])]
        whole = scaled_to_integers(values)
        if whole is None:
            exact = False
            continue
        largest = max(range(len(values)), key=lambda k: abs(values[k]))
        units[i] = whole[largest] / values[largest] if values[largest] else 1.0
        matrix.data[span], sides[i] = whole[:-1], whole[-1]
    name = name_given(polytope.variable)
    shown = name if name is not None and name.isidentifier() else "x"
    scored = len(raw.structure)
    parts = tuple(scored_name(polytope, j, shown) for j in range(scored))
    names = tuple(raw.row_names[i] for i in kept)
    others = _column_names(program)
    found = Rows(
        *(matrix, sides, raw.equality[kept], names, scored, parts),
        *(tuple(others[j] for j in auxiliary), exact, units),
    )
    return replace(found, auxiliary_names=_entries_that_they_are(found))


def _column_names(program: Any) -> list[str]:
    """Columns by the variables of cvxpy."""
    names = [""] * program.x.size
    for variable in program.variables:
        first = program.var_id_to_col[variable.id]
        for place in np.ndindex(variable.shape):
            index = int(np.ravel_multi_index(place, variable.shape, order="F")) if place else 0
            names[first + index] = variable.name() + (str(list(place)) if place else "")
    return names


def _entries_that_they_are(rows: Rows) -> tuple[str, ...]:
    """Names of auxiliary columns, by parts where a row says that they are the same, as of symmetric variables."""
    names = list(rows.auxiliary_names)
    for index in np.flatnonzero(rows.equality & (rows.sides == 0.0) & (np.diff(rows.matrix.indptr) == 2)):
        span = slice(rows.matrix.indptr[index], rows.matrix.indptr[index + 1])
        (first, second), (a, b) = rows.matrix.indices[span].tolist(), rows.matrix.data[span].tolist()
        if first < rows.scored <= second and a == -b:
            names[second - rows.scored] = rows.parts[first]
    return tuple(names)


def expression(coefficients: Mapping[int, Any], names: tuple[str, ...]) -> str:
    """A sum of parts as cvxpy reads it: ``x[0] + 2*x[1] - x[2]``."""
    told = ""
    for j, a in sorted(coefficients.items()):
        if not a:
            continue
        size = "" if abs(a) == 1 else f"{_number(abs(a))}*"
        sign = ("-" if a < 0 else "") if not told else (" - " if a < 0 else " + ")
        told += f"{sign}{size}{names[j]}"
    return told or "0"


def _short(value: float) -> float:
    near = round(value)
    return near if abs(value - near) <= 1e-9 * max(1.0, abs(value)) else value


def _number(value: int | float | Fraction) -> str:
    return str(value) if isinstance(value, (int, Fraction)) else f"{value:g}"
