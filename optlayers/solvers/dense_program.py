"""Quadratic programs with a full matrix over a polytope of few rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from optlayers.common.caches import WeakCache, cached_property
from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import dense_program
from optlayers.solvers.kernels.batches import per_instance
from optlayers.solvers.pool import for_each_chunk

__all__ = ["DenseProgram", "DenseSolved"]

LARGEST = 400
"""Of more entries the matrix is left to a method that does not factor it so often."""
ROWS = 0.5
"""So many rows for each entry are few."""
STEPS = 40
"""After so many changes of active sets another method is asked; as a rule there are 4 to 8."""
BEYOND = 1e3
"""A point may be so many units from where it should be: see ``certify``."""
WORTH_A_THREAD = 2e6
"""Operations below which another thread costs more than it saves."""

_rows: WeakCache[StandardForm, np.ndarray] = WeakCache()


def _dense_rows(form: StandardForm) -> Float64[np.ndarray, "rows scored"]:
    return np.ascontiguousarray(form.matrix[:, : form.scored].toarray())


@final
@dataclass
class DenseProgram:
    r"""Maximize :math:`s^\top x - \tfrac12 x^\top Q x` over the instances of a form, with a Q each or one for all."""

    form: StandardForm
    instances: Instances
    matrices: Float64[np.ndarray, "matrices scored scored"]

    @staticmethod
    def takes(form: StandardForm) -> bool:
        """Whether a form is one of scored columns and few rows, the same in all instances."""
        few = form.rows <= ROWS * form.scored and form.scored <= LARGEST
        return few and form.auxiliary == 0 and form.keeps_all and form.curved == form.scored and form.matrix_is_constant

    def solved(self) -> DenseSolved:
        r"""Points with their certificate.

        For every y, the optimal value is at most :math:`b^\top y` and what the reduced scores
        :math:`r = s - Q x - A^\top y` gain between the bounds beyond the value of x. ``gap`` is that bound less the
        value of x, and bounds half of the squared distance from the best point in the norm of Q. The error is the
        largest of the violations of rows, relative to their terms, of bounds, of reduced scores where bounds are
        infinite, relative to their terms, and of that distance over 1000. What is no more than rounding of its terms is
        not counted among the reduced scores: the point is best for scores that differ by so much.
        """
        form, count, size = self.form, len(self.instances), self.form.scored
        rhs, lower, upper, _ = self.instances.shared
        low, high = (per_instance(np.ascontiguousarray(bound[:, :size])) for bound in (lower, upper))
        scores, rows = np.ascontiguousarray(self.instances.scores), _rows.get(form, _dense_rows)
        point, dual = np.zeros((count, size)), np.zeros((count, form.rows))
        sides, active = np.zeros((count, size), dtype=np.int8), np.zeros((count, form.rows), dtype=bool)
        steps = np.zeros(count, dtype=np.int64)
        residual, gap, error = np.empty(count), np.empty(count), np.empty(count)
        numbers = self.matrices, rows, form.equalities, scores, rhs, low, high

        def work(which: np.ndarray) -> None:
            dense_program.optimize(*numbers, which, STEPS, point, dual, sides, active, steps)
            dense_program.certify(*numbers, which, BEYOND, point, dual, residual, gap, error)

        for_each_chunk(work, count, smallest=max(1, int(WORTH_A_THREAD / max(size, 1) ** 3)))
        error[steps < 0] = np.inf
        return DenseSolved(form, self.instances, self.matrices, rows, point, dual, sides, active, residual, gap, error)


@final
@dataclass
class DenseSolved:
    """Points of quadratic programs, their prices, active sets and certificates."""

    form: StandardForm
    instances: Instances
    matrices: Float64[np.ndarray, "matrices scored scored"]
    rows: Float64[np.ndarray, "rows scored"]
    point: Float64[np.ndarray, "batch scored"]
    dual: Float64[np.ndarray, "batch rows"]
    sides: Int8[np.ndarray, "batch scored"]
    active: Bool[np.ndarray, "batch rows"]
    residual: Float64[np.ndarray, " batch"]
    gap: Float64[np.ndarray, " batch"]
    error: Float64[np.ndarray, " batch"]

    def take(self, some: Int64[np.ndarray, " some"]) -> DenseSolved:
        """Some of the instances."""
        matrices = self.matrices if len(self.matrices) == 1 else self.matrices[some]
        names = ("point", "dual", "sides", "active", "residual", "gap", "error")
        parts = {name: getattr(self, name)[some] for name in names}
        return replace(self, instances=self.instances.take(some), matrices=matrices, **parts)

    @cached_property
    def whole(self) -> Float64[np.ndarray, "batch columns"]:
        """Points of the standard form."""
        left = self.instances.rhs[:, self.form.equalities :] - self.point @ self.rows[self.form.equalities :].T
        return np.concatenate([self.point, np.where(self.active[:, self.form.equalities :], 0.0, left)], axis=1)

    @cached_property
    def free(self) -> Bool[np.ndarray, "batch columns"]:
        """The columns that no bound holds."""
        return np.concatenate([self.sides == 0, ~self.active[:, self.form.equalities :]], axis=1)

    @cached_property
    def sides_high(self) -> Bool[np.ndarray, "batch columns"]:
        """The columns that are at their upper bounds."""
        return np.concatenate([self.sides > 0, np.zeros((len(self.sides), self.form.slack), dtype=bool)], axis=1)

    def times(self, points: Float64[np.ndarray, "batch scored"]) -> Float64[np.ndarray, "batch scored"]:
        """Q times points, by its symmetric part."""
        symmetric = 0.5 * (self.matrices + self.matrices.transpose(0, 2, 1))
        product: np.ndarray = (
            points @ symmetric[0] if len(symmetric) == 1 else (symmetric @ points[:, :, None])[:, :, 0]
        )
        return product

    def pull_back(
        self, direction: Float64[np.ndarray, "batch scored"]
    ) -> tuple[Float64[np.ndarray, "batch scored"], Float64[np.ndarray, "batch rows"], Bool[np.ndarray, " batch"]]:
        """How points move with scores along a direction, the prices of rows for that, and where it is right."""
        count = len(direction)
        moved, prices, right = np.empty(direction.shape), np.empty(self.dual.shape), np.empty(count, dtype=bool)
        parts = self.matrices, self.rows, self.form.equalities, direction, self.sides, self.active
        dense_program.pull_back(*parts, np.arange(count), moved, prices, right)
        return moved, prices, right
