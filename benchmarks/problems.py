"""The problems that are compared, their arrays for solvers that take arrays, and how good an answer is.

They are about general solvers, so declarations leave their oracles out; what these give is measured by structures.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

import optlayers as ol
from polytopes import arborescence, matching, sequence, simplex, subset

__all__ = ["ARGMAXES", "PROJECTIONS", "Arrays", "Problem"]


@dataclass(frozen=True)
class Problem:
    """A polytope, how many instances a batch has, and values of the parameters (scored auxiliary variables too)."""

    kind: str
    """The structure; a peer made for one structure asks for it."""
    sizes: tuple[int, ...]
    declare: Callable[[], ol.Polytope]
    batch: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    with_oracle: bool = False
    device: str = "cpu"
    """Where scores are; peers that can work there do."""

    @property
    def name(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.sizes))}"

    @cached_property
    def polytope(self) -> ol.Polytope:
        declared = self.declare()
        return declared if self.with_oracle else declared.without_oracle()

    @cached_property
    def arrays(self) -> Arrays:
        return Arrays.of(self)

    def prepare(self) -> None:
        """Compile what peers share, on no one's time."""
        _ = self.arrays

    def draw(self, generator: torch.Generator) -> Tensor:
        """A batch of numbers from N(0, 1), in float64; the same on every device."""
        drawn = torch.randn(self.batch, *self.polytope.shape, generator=generator, dtype=torch.float64)
        return drawn.to(self.device)

    def residual(self, value: Tensor) -> float:
        """By how much the worst answer of a batch violates the declaration, which is asked of cvxpy.

        The largest violation of a constraint or of a bound. Where there are auxiliary variables, whose values a peer
        does not give, it is the distance to the polytope in the maximum norm, which cvxpy finds to about 1e-10.
        """
        polytope = self.polytope
        if self.arrays.auxiliary:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Solution may be inaccurate")
                return float(ol.testing.distance(polytope, value, **self.parameters).max())
        for parameter in polytope.parameters:
            parameter.value = self.parameters[parameter.name()]
        return max(_violation(polytope, one) for one in value.numpy())


def _violation(polytope: ol.Polytope, value: np.ndarray) -> float:
    variable = polytope.variable
    variable.save_value(value)  # without the check of the attributes (nonneg, bounds)
    worst = float(np.abs(value - variable.project(value)).max())
    return max([worst, *(float(np.max(c.violation())) for c in polytope.constraints)])


@dataclass(frozen=True)
class Arrays:
    """A problem as arrays: ``equal z = equal_rhs``, ``less z <= less_rhs``, ``lower <= z <= upper``.

    They are those of :attr:`optlayers.CompiledPolytope.form`, so that peers too are given no fixed variable, no
    dependent row, and bounds in place of rows with a single entry. ``z`` is the entries of the structure that are not
    fixed, which have scores, then ``auxiliary`` others.
    """

    shape: tuple[int, ...]
    kept: np.ndarray
    fixed: np.ndarray
    auxiliary: int
    equal: sp.csc_matrix
    equal_rhs: np.ndarray
    less: sp.csc_matrix
    less_rhs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @staticmethod
    def of(problem: Problem) -> Arrays:
        form = ol.compile_polytope(problem.polytope).form
        if form is None:
            raise ValueError(f"{problem.name} is not polyhedral")
        values = [np.full(spec.size, problem.parameters[spec.name]) for spec in form.parameters]
        theta = np.concatenate([np.zeros(0), *values])[None]
        rhs, lower, upper = (made(theta)[0] for made in (form.rhs, form.lower, form.upper))
        rows, width = sp.csc_matrix(form.matrix), form.unslacked
        return Arrays(
            form.shape,
            form.kept,
            form.fixed,
            form.auxiliary,
            rows[: form.equalities, :width],
            rhs[: form.equalities],
            rows[form.equalities :, :width],
            rhs[form.equalities :],
            lower[:width].copy(),
            upper[:width].copy(),
        )

    @property
    def width(self) -> int:
        return len(self.lower)

    @cached_property
    def curvature(self) -> sp.csc_matrix:
        """The quadratic term of a projection: 1 for entries of the structure, 0 for auxiliary ones."""
        return sp.csc_matrix(sp.diags(np.repeat([1.0, 0.0], [len(self.kept), self.auxiliary])))

    @property
    def less_and_bounds(self) -> tuple[sp.csc_matrix, np.ndarray]:
        """The inequalities with the bounds as further rows, for solvers that know rows only."""
        return self.less_and_bounds_but(np.zeros(self.width, dtype=bool))

    def less_and_bounds_but(self, known: np.ndarray) -> tuple[sp.csc_matrix, np.ndarray]:
        """The inequalities with the bounds as further rows, without the lower bounds that a solver is told apart."""
        below, above = np.isfinite(self.lower) & ~known, np.isfinite(self.upper)
        unit = sp.eye(self.width, format="csr")
        rows = sp.vstack([self.less, -unit[below], unit[above]], format="csc")
        return sp.csc_matrix(rows), np.concatenate([self.less_rhs, -self.lower[below], self.upper[above]])

    def scores(self, scores: Tensor) -> np.ndarray:
        """Scores of ``z``, ``(batch, width)``: 0 for auxiliary entries."""
        flat = scores.detach().reshape(len(scores), -1).numpy()[:, self.kept]
        return np.pad(flat, [(0, 0), (0, self.auxiliary)])

    def structures(self, z: np.ndarray) -> Tensor:
        """Structures ``(batch, *shape)`` from ``z``."""
        full = np.tile(self.fixed, (len(z), 1))
        full[:, self.kept] = z[:, : len(self.kept)]
        return torch.from_numpy(full.reshape(len(z), *self.shape))


PROJECTIONS = [
    Problem("simplex", (50,), partial(simplex, 50), 128),
    Problem("matching", (10,), partial(matching, 10), 64),
    Problem("matching", (20,), partial(matching, 20), 32),
    Problem("sequence", (10, 5), partial(sequence, 10, 5), 64),
    Problem("5-subset", (50,), partial(subset, 50), 128, {"budget": 5.0}),
    Problem("arborescence", (6,), partial(arborescence, 6), 16),
    Problem("arborescence", (10,), partial(arborescence, 10), 8),
]
ARGMAXES = [
    Problem("matching", (10,), partial(matching, 10), 64),
    Problem("matching", (20,), partial(matching, 20), 32),
    Problem("sequence", (10, 5), partial(sequence, 10, 5), 64),
    Problem("sequence", (20, 10), partial(sequence, 20, 10), 32),
    Problem("arborescence", (6,), partial(arborescence, 6), 16),
]
