"""Constraints that a declaration brings on demand, beside its rows: those that best points violate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import final

import numpy as np
import scipy.sparse as sp

from optlayers.polytope import Polytope
from optlayers.reporting.linear_program import LinearProgram
from optlayers.reporting.rationals import scaled_to_integers
from optlayers.reporting.rows import Rows
from optlayers.solvers.separation import Separation, SeparationError

__all__ = ["Brought"]

ROUNDS = 100
"""One objective is asked for again so many times at most."""


@final
class Brought:
    """The rows of a declaration, and behind them the constraints that ``separate`` has brought so far."""

    def __init__(self, polytope: Polytope, rows: Rows, theta: np.ndarray) -> None:
        self.separation, self.theta = Separation(polytope), theta
        self.rows, self.program = rows, LinearProgram(rows)
        self.declared = rows.count
        self._seen: set[tuple[float, ...]] = set()

    @property
    def count(self) -> int:
        """How many constraints were brought."""
        return self.rows.count - self.declared

    def bring(self, objectives: Iterable[np.ndarray], late: Callable[[], bool]) -> None:
        """Ask for best points, and bring what they violate until there is nothing."""
        for objective in objectives:
            for _ in range(ROUNDS):
                if late():
                    return
                best = self.program.maximize(objective)
                if best is None or not self.cut_off(best.point):
                    break

    def cut_off(self, point: np.ndarray) -> bool:
        """Bring what a point violates; whether there was something new."""
        try:
            cuts = self.separation.cuts(np.asarray(point[: self.rows.scored], dtype=np.float64), self.theta)
        except SeparationError:
            return False
        new = [[*(cut.coefficients / cut.scale).tolist(), cut.bound / cut.scale] for cut in cuts]
        new = [row for row in new if tuple(row) not in self._seen]
        self._seen |= {tuple(row) for row in new}
        if new:
            self._add(new)
        return bool(new)

    def _add(self, new: list[list[float]]) -> None:
        rows, exact, units = self.rows, self.rows.exact, []
        body = np.zeros((len(new), rows.columns))
        sides = np.zeros(len(new))
        for place, row in enumerate(new):
            whole = scaled_to_integers(row)
            exact &= whole is not None
            told = row if whole is None else whole
            largest = max(range(len(row)), key=lambda k: abs(row[k]))
            units.append(told[largest] / row[largest])
            body[place, : rows.scored], sides[place] = told[:-1], told[-1]
        self.rows = replace(
            rows,
            matrix=sp.csr_array(sp.vstack([rows.matrix, sp.csr_array(body)])),
            sides=np.concatenate([rows.sides, sides]),
            equality=np.concatenate([rows.equality, np.zeros(len(new), dtype=bool)]),
            names=(*rows.names, *(str(self.separation) for _ in new)),
            exact=exact,
            units=np.concatenate([rows.units, units]),
        )
        self.program = LinearProgram(self.rows)
