"""A declaration that is not polyhedral, as arrays: a linear system with cones, and what it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from optlayers.common.caches import WeakCache, cached_property
from optlayers.form.compile import affine_entries, canonical, parameter_columns
from optlayers.form.declaration import parameter_specs
from optlayers.form.standard import DeclarationError
from optlayers.polytope import Polytope

__all__ = ["ConeLayout", "ConeNumbers", "ConeProgram", "OtherCones", "cone_program", "program_of", "why_not_our_cones"]

LARGEST = 600
"""So many rows and columns together: linear algebra over a cone program is dense."""
TAKEN = {"Zero", "NonNeg", "SOC", "SvecPSD", "PSD"}

Varying = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Rows, columns, entries of (1, θ) and values of what parameters add to a matrix."""


@final
class OtherCones(DeclarationError):
    """A declaration needs other cones than those of norms and of semidefinite matrices, or is large."""


@final
@dataclass(frozen=True)
class ConeLayout:
    """The cones of the rows, in this order: zero, nonnegative, second order (the first entry is the largest), and
    positive semidefinite: the upper triangle by columns, entries beside the diagonal times the root of 2."""

    zero: int
    nonnegative: int
    second_order: tuple[int, ...]
    semidefinite: tuple[int, ...]

    @cached_property
    def rows(self) -> int:
        triangles = sum(n * (n + 1) // 2 for n in self.semidefinite)
        return self.zero + self.nonnegative + sum(self.second_order) + triangles

    @cached_property
    def block(self) -> Int64[np.ndarray, " rows"]:
        """Which rows belong together: those of one cone; rows of equalities and of inequalities stand alone."""
        alone = self.zero + self.nonnegative
        sizes = [*self.second_order, *(n * (n + 1) // 2 for n in self.semidefinite)]
        return np.concatenate([np.arange(alone), alone + np.repeat(np.arange(len(sizes)), np.array(sizes, dtype=int))])


@final
@dataclass(frozen=True)
class ConeNumbers:
    r"""``min ½ zᵀ P z + <q, z>`` with ``b - A z`` in the cones, for a batch. A and P may be shared by all instances."""

    matrix: Float64[np.ndarray, "batch_or_1 rows columns"]
    rhs: Float64[np.ndarray, "batch rows"]
    curvature: Float64[np.ndarray, "batch_or_one columns columns"]
    cost: Float64[np.ndarray, "batch columns"]

    def __len__(self) -> int:
        return len(self.rhs)

    def take(self, index: np.ndarray) -> ConeNumbers:
        """Some of the instances."""
        matrix = self.matrix if len(self.matrix) == 1 else self.matrix[index]
        curvature = self.curvature if len(self.curvature) == 1 else self.curvature[index]
        return ConeNumbers(matrix, self.rhs[index], curvature, self.cost[index])


@final
@dataclass(frozen=True, eq=False)
class ConeProgram:
    """A, b, P and q by parameters θ: at θ = 0, and what each entry of θ adds."""

    layout: ConeLayout
    structure: Int64[np.ndarray, " size"]
    """The columns of the scored entries, in C order."""
    matrix: Float64[np.ndarray, "rows columns"]
    matrix_varying: Varying
    rhs: Float64[np.ndarray, "terms rows"]
    """b at θ = 0, then its derivatives."""
    curvature: Float64[np.ndarray, "columns columns"]
    curvature_varying: Varying
    cost: Float64[np.ndarray, "terms columns"]
    """q at θ = 0, then its derivatives."""
    row_names: tuple[str, ...]

    @property
    def columns(self) -> int:
        return int(self.matrix.shape[1])

    @cached_property
    def pattern(self) -> Bool[np.ndarray, "rows columns"]:
        """Where A has entries."""
        found: np.ndarray = self.matrix != 0.0
        found[self.matrix_varying[0], self.matrix_varying[1]] = True
        return found

    def numbers(
        self,
        theta: Float64[np.ndarray, "batch parameters"],
        scores: Float64[np.ndarray, "batch size"],
        weights: Float64[np.ndarray, "batch_or_1 size"] | None,
        forbidden: Bool[np.ndarray, "batch size"] | None,
    ) -> ConeNumbers:
        """The numbers of a batch that maximizes <scores, x>, less half of the weighted squares of the structure.

        Forbidden parts leave the rows and keep a square of their own, so that they are 0.
        """
        terms = np.concatenate([np.ones((len(theta), 1)), theta], axis=1)
        matrix, rhs = _filled(self.matrix, self.matrix_varying, terms), terms @ self.rhs
        curvature, cost = _filled(self.curvature, self.curvature_varying, terms), terms @ self.cost
        cost[:, self.structure] -= scores
        if weights is not None:
            curvature = np.repeat(curvature, max(len(weights) // len(curvature), 1), axis=0)
            curvature[:, self.structure, self.structure] += weights
        if forbidden is not None and forbidden.any():
            held = np.zeros((len(theta), self.columns), dtype=bool)
            held[:, self.structure] = forbidden
            matrix = np.where(held[:, None, :], 0.0, matrix)
            curvature = np.where(held[:, None, :] | held[:, :, None], 0.0, curvature)
            curvature[:, np.arange(self.columns), np.arange(self.columns)] += held
            cost[held] = 0.0
        return ConeNumbers(matrix, rhs, curvature, cost)

    def of_parameters(
        self,
        z: Float64[np.ndarray, "batch columns"],
        y: Float64[np.ndarray, "batch rows"],
        along: tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"]],
        *,
        half: bool = False,
    ) -> Float64[np.ndarray, "batch parameters"]:
        r"""The derivative of :math:`u^\top (P z + q + A^\top y) + v^\top (A z - b)` by θ, for ``along`` = (u, v), with
        ``half`` of the term in P."""
        u, v = along
        found: np.ndarray = (u @ self.cost[1:].T) - (v @ self.rhs[1:].T)
        row, column, theta, value = self.matrix_varying
        np.add.at(found.T, theta - 1, (value * (u[:, column] * y[:, row] + v[:, row] * z[:, column])).T)
        row, column, theta, value = self.curvature_varying
        np.add.at(found.T, theta - 1, (0.5 if half else 1.0) * (value * u[:, row] * z[:, column]).T)
        return found


def _filled(constant: np.ndarray, varying: Varying, terms: np.ndarray) -> np.ndarray:
    """A matrix for every instance, or one for all where no parameter enters it."""
    row, column, theta, value = varying
    if len(row) == 0:
        return np.array(constant[None])
    filled = np.repeat(constant[None], len(terms), axis=0)
    every = np.arange(len(terms))[:, None]
    np.add.at(filled, (every, row[None], column[None]), value * terms[:, theta])
    return filled


_programs: WeakCache[Polytope, ConeProgram | str] = WeakCache()


def why_not_our_cones(polytope: Polytope) -> str | None:
    """Why a declaration is no :class:`ConeProgram`, in words; None where it is."""
    found = _programs.get(polytope, _program_or_reason)
    return found if isinstance(found, str) else None


def program_of(polytope: Polytope) -> ConeProgram:
    """A declaration without an objective, compiled once.

    Raises
    ------
    OtherCones : see :func:`cone_program`.
    """
    found = _programs.get(polytope, _program_or_reason)
    if isinstance(found, str):
        raise OtherCones(found)
    return found


def _program_or_reason(polytope: Polytope) -> ConeProgram | str:
    try:
        return cone_program(polytope)
    except OtherCones as error:
        return str(error)


def cone_program(polytope: Polytope, objective: cp.Expression | None = None) -> ConeProgram:
    """Compile a declaration, and a convex expression of its variables that is minimized.

    Raises
    ------
    OtherCones : where it needs other cones than those of norms and semidefinite matrices, or is too large.
    """
    specs = parameter_specs(polytope)
    made = canonical(polytope, polytope.constraints, 0.0 if objective is None else objective)
    program, dims = made.program, made.dims
    others = sorted(set(made.other_cones) - TAKEN)
    if others:
        raise OtherCones(f"it needs {', '.join(others)} cones")
    layout = ConeLayout(int(dims.zero), int(dims.nonneg), tuple(dims.soc), tuple(dims.psd))
    if layout.rows + program.x.size > LARGEST:
        raise OtherCones(f"it has {layout.rows + program.x.size} rows and columns, more than {LARGEST}")
    matrix, matrix_varying, rhs = affine_entries(program, polytope, specs)
    curvature, curvature_varying, cost = _objective(program, polytope, specs)
    return ConeProgram(
        layout, made.order, matrix.toarray(), matrix_varying, rhs, curvature, curvature_varying, cost, made.names
    )


def _objective(program: Any, polytope: Polytope, specs: Sequence[Any]) -> tuple[np.ndarray, Varying, np.ndarray]:
    """P at θ = 0, what θ adds to it, and q with its derivatives, as cvxpy stores them; see :func:`affine_entries`."""
    columns, count = program.x.size, 1 + sum(spec.size for spec in specs)
    theta = parameter_columns(program, polytope, specs)
    linear = sp.coo_array(program.q)
    known = linear.coords[0] < columns
    cost = np.zeros((count, columns))
    np.add.at(cost, (theta[linear.coords[1][known]], linear.coords[0][known]), linear.data[known])
    curvature, nothing = np.zeros((columns, columns)), np.zeros(0, dtype=np.int64)
    if program.P is None:
        return curvature, (nothing, nothing, nothing, np.zeros(0)), cost
    squares = sp.coo_array(program.P)
    row, column = squares.coords[0] % columns, squares.coords[0] // columns
    term, some = theta[squares.coords[1]], squares.data != 0.0
    steady, moving = some & (term == 0), some & (term > 0)
    np.add.at(curvature, (row[steady], column[steady]), squares.data[steady])
    return curvature, (row[moving], column[moving], term[moving], squares.data[moving]), cost
