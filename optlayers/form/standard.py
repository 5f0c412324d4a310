"""The standard form: a declaration as arrays, with parameters to be filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from optlayers.common.caches import cached_property
from optlayers.form.names import NO_NAMES, ColumnNames, scored_name
from optlayers.polytope import Polytope

__all__ = [
    "AffineMap",
    "DeclarationError",
    "NotPolyhedral",
    "ParameterSpec",
    "ScoredSpec",
    "StandardForm",
]


class DeclarationError(ValueError):
    """A polytope is declared in a way that cannot be compiled; the message says what to change."""


@final
class NotPolyhedral(DeclarationError):
    """The declared set is convex, but it has no standard form."""


@final
@dataclass(frozen=True)
class ParameterSpec:
    """Name, shape and place of one cvxpy parameter in the vector of all parameters (C order)."""

    name: str
    shape: tuple[int, ...]
    start: int
    sign: str | None
    """The sign that was declared (``nonneg``, ``nonpos``, ``pos``, ``neg``), which values have to keep."""
    limitless: tuple[int, ...] = ()
    """Per entry 1 where inf, -1 where -inf takes a limit away, 0 where values are finite; empty stands for zeros."""

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> slice:
        """The parameter's entries in the vector of all parameters."""
        return slice(self.start, self.start + self.size)


@final
@dataclass(frozen=True)
class ScoredSpec:
    """Name, shape and place of an auxiliary variable in the scored vector, behind the structure."""

    name: str
    shape: tuple[int, ...]
    span: slice


@final
@dataclass(frozen=True)
class AffineMap:
    """``constant + matrix @ parameters``."""

    constant: Float64[np.ndarray, " entries"]
    matrix: sp.csr_array

    @cached_property
    def is_constant(self) -> bool:
        return bool(self.matrix.nnz == 0)

    def __call__(self, parameters: Float64[np.ndarray, "batch parameters"]) -> Float64[np.ndarray, "batch entries"]:
        """The values for every instance; one row again and again, not to be written to, when no parameter enters."""
        if self.is_constant and len(self.constant):
            # np.broadcast_to says the same, in ten times the time.
            return np.ndarray((len(parameters), len(self.constant)), buffer=self.constant, strides=(0, 8))
        values: np.ndarray = self.constant + (self.matrix @ parameters.T).T
        return values

    def transposed(self, gradient: Float64[np.ndarray, "batch entries"]) -> Float64[np.ndarray, "batch parameters"]:
        """The gradient that reaches the parameters."""
        if self.is_constant:
            return np.zeros((len(gradient), self.matrix.shape[1]))
        pulled: np.ndarray = (self.matrix.T @ gradient.T).T
        return pulled


@final
@dataclass(frozen=True, eq=False)
class StandardForm:
    r"""``A z = b(θ)``, ``lower(θ) <= z <= upper(θ)`` with ``z = (scored, auxiliary, slack)``.

    The scored vector is the flattened structure (C order), then the flattened auxiliary variables that are scored too.
    The first ``scored`` columns are those of its entries that presolve did not fix: entry ``i`` is ``fixed[i]`` unless
    it is in ``kept``, and ``z[j]`` is entry ``kept[j]``. Distances count the first ``curved`` columns alone, which
    belong to the structure.
    The first ``equalities`` rows have no slack; row ``equalities + k`` has slack column ``scored + auxiliary + k``.
    θ is the vector of all parameters, each flattened in C order. Rows are the declared ones times ``row_scale``, powers
    of two that bring their largest entries to about 1; consistency is in the units of the declaration.
    """

    polytope: Polytope
    kept: np.ndarray
    fixed: Float64[np.ndarray, " size"]
    scored: int
    auxiliary: int
    equalities: int
    matrix: sp.csc_array
    matrix_map: sp.csr_array
    """``(entries of A, parameters)``: what the parameters add to ``matrix.data``."""
    rhs: AffineMap
    row_scale: Float64[np.ndarray, " rows"]
    lower: AffineMap
    upper: AffineMap
    consistency: AffineMap
    """Values that must be 0: what the parameters must satisfy for dropped rows to hold."""
    parameters: tuple[ParameterSpec, ...]
    row_names: tuple[str, ...]
    bound_names: tuple[tuple[str, str], ...]
    """Per column, the constraints behind its lower and its upper bound."""
    consistency_names: tuple[str, ...]
    blocks: int
    notes: tuple[str, ...]
    """What presolve did, in words."""
    integer: Bool[np.ndarray, " unslacked"]
    """Which columns are declared to be integer."""
    compiled_columns: Int64[np.ndarray, " auxiliary"] | None = None
    """What the auxiliary columns were before presolve, which is what ``column_names`` are of."""
    column_names: ColumnNames = NO_NAMES

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the structure."""
        return self.polytope.shape

    @property
    def size(self) -> int:
        """Number of entries of the scored vector."""
        return len(self.fixed)

    @cached_property
    def structure_size(self) -> int:
        """Number of entries of the structure, which come first."""
        return math.prod(self.shape)

    @cached_property
    def scored_auxiliaries(self) -> tuple[ScoredSpec, ...]:
        """The auxiliary variables that are scored too."""
        ends = np.cumsum([self.structure_size, *(v.size for v in self.polytope.scored)]).tolist()
        return tuple(
            ScoredSpec(v.name(), tuple(v.shape), slice(start, end))
            for v, start, end in zip(self.polytope.scored, ends[:-1], ends[1:], strict=True)
        )

    @cached_property
    def curved(self) -> int:
        """Number of scored columns that belong to the structure; the others count for nothing in distances."""
        return int(np.searchsorted(self.kept, self.structure_size))

    @cached_property
    def rows(self) -> int:
        count: int = self.matrix.shape[0]
        return count

    @cached_property
    def columns(self) -> int:
        count: int = self.matrix.shape[1]
        return count

    @cached_property
    def slack(self) -> int:
        """Number of inequality rows, one slack column each."""
        return self.rows - self.equalities

    @cached_property
    def unslacked(self) -> int:
        """Number of columns that are not slack; they come first."""
        return self.scored + self.auxiliary

    @cached_property
    def uncurved(self) -> int:
        """Number of columns that count for nothing in distances, slack columns left out."""
        return self.unslacked - self.curved

    @cached_property
    def parameter_count(self) -> int:
        """Length of θ."""
        return sum(p.size for p in self.parameters)

    @cached_property
    def matrix_is_constant(self) -> bool:
        return bool(self.matrix_map.nnz == 0)

    @cached_property
    def bounds_are_constant(self) -> bool:
        """Whether no parameter enters a bound."""
        return self.lower.is_constant and self.upper.is_constant

    @cached_property
    def keeps_all(self) -> bool:
        """Whether presolve fixed no entry of the scored vector."""
        return self.scored == self.size

    @cached_property
    def entry_column(self) -> np.ndarray:
        """The column of every stored entry of A; ``matrix.indices`` are the rows."""
        return np.repeat(np.arange(self.columns), np.diff(self.matrix.indptr))

    @cached_property
    def slack_entries(self) -> slice:
        """The entries of slack columns, which come last."""
        return slice(int(self.matrix.indptr[self.unslacked]), self.matrix.nnz)

    def entry_name(self, flat: int) -> str:
        """The name of an entry of the scored vector, as a user would index it."""
        return scored_name(self.polytope, flat)

    def column_name(self, column: int) -> str:
        """The name of the entry that a column, other than slack, is of; of a scored one as a user would index it."""
        if column < self.scored:
            return self.entry_name(int(self.kept[column]))
        compiled, place = self.compiled_columns, column - self.scored
        return self.column_names.of(-1 if compiled is None or place >= len(compiled) else int(compiled[place]))

    def expand(self, scored: Float64[np.ndarray, "batch scored"]) -> Float64[np.ndarray, "batch size"]:
        """Flat scored vectors from their kept entries, in an array of their own."""
        if self.keeps_all:
            return scored.copy()
        full = np.broadcast_to(self.fixed, (len(scored), self.size)).copy()
        full[:, self.kept] = scored
        return full
