"""Diagram: exact answers over the integer points of a narrow declaration, by decision diagrams."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.common.caches import Cache, WeakCache
from optlayers.compiled_oracle import CompiledOracle
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.integer.diagram import END, NODE_LIMIT, DecisionDiagram, TooWide, compiled_diagram
from optlayers.integer.program import NoIntegers, integer_program
from optlayers.solvers.batch import make_instances
from optlayers.solvers.hulls import AbstractHullSolver
from optlayers.solvers.kernels import diagrams as kernels
from optlayers.solvers.kernels import implied, ties
from optlayers.solvers.plan import plan_of
from optlayers.solvers.pool import Pace

__all__ = ["Diagram", "Diagrams", "Passes", "diagrams_of"]

Refusal = TooWide | NoIntegers
KEPT = 64
"""For so many values of the parameters are diagrams kept."""
ROUNDS_AT_ONCE = 2
"""Objectives that decide ties are compared in pairs, as one number."""
BITS = 31
SHARPNESS = 2.0**12


@final
class Passes:
    """A diagram as kernels take it: its arrays, the entries that are the same in all points, how ties are decided."""

    def __init__(self, form: StandardForm, diagram: DecisionDiagram) -> None:
        self.diagram = diagram
        self.fixed = np.array(form.fixed)
        self.fixed[form.kept] = 0.0
        column = diagram.column.copy()
        column[:-1] = form.kept[column[:-1]]
        self.arrays = column, diagram.start, diagram.value, diagram.child, diagram.pairs
        self.reach: Float64[np.ndarray, " size"] = np.zeros(form.size)
        arcs = np.diff(diagram.start)
        np.maximum.at(self.reach, np.repeat(column, arcs), np.abs(diagram.value).astype(np.float64))
        self.spread = math.log(diagram.count) if diagram.count else 0.0
        self.pace_of_sums, self.pace_of_means = Pace(), Pace()
        self._on_devices: Cache[torch.device, list[tuple[int, Tensor, Tensor]]] = Cache()
        self._fixed = np.flatnonzero(self.fixed)
        self.first, self.second = (self._objective(form, round_) for round_ in (0, ROUNDS_AT_ONCE))

    @property
    def has_fixed(self) -> bool:
        """Whether entries that are the same in all points are not all 0."""
        return len(self._fixed) > 0

    def constant(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"] | float:
        """What entries that are the same in all points score; -inf where one that is not 0 is forbidden."""
        if not self.has_fixed:
            return 0.0
        mine = scores[:, torch.from_numpy(self._fixed).to(scores.device)]
        forbidden = torch.isneginf(mine)
        total = mine.masked_fill(forbidden, 0.0) @ torch.from_numpy(self.fixed[self._fixed]).to(scores.device)
        return total.masked_fill(forbidden.any(dim=1), -torch.inf)

    def by_columns(self, device: torch.device) -> list[tuple[int, Tensor, Tensor]]:
        """The nodes of every column, from the last one to the first: the column, and the values and the children of
        their arcs ``(nodes, arcs)``, with a child of -1 where a node has fewer."""
        return self._on_devices.get(device, self._by_columns)

    def _by_columns(self, device: torch.device) -> list[tuple[int, Tensor, Tensor]]:
        column, start, value, child, _ = self.arrays
        arcs = np.diff(start)[:-1]
        ends = np.flatnonzero(np.diff(column[:-1], append=END)) + 1
        parts = []
        for first, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            place = np.arange(arcs[first:end].max())
            index = np.minimum(start[first:end, None] + place, len(value) - 1)
            there = place < arcs[first:end, None]
            values = torch.from_numpy(np.where(there, value[index], 0).astype(np.float64)).to(device)
            parts.append((int(column[first]), values, torch.from_numpy(np.where(there, child[index], -1)).to(device)))
        return parts[::-1]

    @staticmethod
    def _objective(form: StandardForm, first: int) -> Int64[np.ndarray, " size"]:
        """Two objectives that decide ties, as one: sums of the first stand in the upper bits."""
        one, other = (ties.objective(first + k, form.scored, form.scored) * SHARPNESS for k in range(ROUNDS_AT_ONCE))
        numbers = np.zeros(form.size, dtype=np.int64)
        numbers[form.kept] = (one.astype(np.int64) << BITS) + other.astype(np.int64)
        return numbers


@final
class Diagrams:
    """Diagrams of the integer points of a form, compiled when a value of the parameters is first asked for.

    Parameters
    ----------
    form : whose rows are compiled.
    limit : the most nodes of a diagram.
    within_unit : whether scored columns are known to be 0 or 1, and all others integers, whatever the form says.
    """

    def __init__(self, form: StandardForm, limit: int = NODE_LIMIT, *, within_unit: bool = False) -> None:
        self.form, self.limit, self.within_unit = form, limit, within_unit
        self._known: Cache[bytes, Passes | Refusal] = Cache(KEPT)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.form, self.limit, self.within_unit)

    def of(self, theta: Float64[np.ndarray, " parameters"]) -> Passes:
        """The diagram for one value of the parameters.

        Raises
        ------
        TooWide : when it has too many nodes.
        NoIntegers : when rows cannot be read as rows of integers.
        """
        found = self._known.get(theta.tobytes(), self._make)
        if isinstance(found, (TooWide, NoIntegers)):
            raise found
        return found

    def _make(self, key: bytes) -> Passes | Refusal:
        try:
            return Passes(self.form, self._compiled(np.frombuffer(key).copy()[None]))
        except (TooWide, NoIntegers) as error:
            return error.with_traceback(None)

    def _compiled(self, theta: Float64[np.ndarray, "1 parameters"]) -> DecisionDiagram:
        form, width = self.form, self.form.unslacked
        if not self.within_unit and not form.integer.all():
            raise NoIntegers("some variables are not integers, and a decision diagram has values for integers alone")
        instances = make_instances(form, theta, None)
        entries = form.matrix.data if instances.matrix is None else instances.matrix[0]
        lower, upper = np.array(instances.lower[:1], order="C"), np.array(instances.upper[:1], order="C")
        if self.within_unit:
            scored = slice(0, form.scored)
            lower[:, scored], upper[:, scored] = np.maximum(lower[:, scored], 0), np.minimum(upper[:, scored], 1)
        skipped, rhs = np.zeros(form.rows, dtype=bool), np.array(instances.rhs[:1], order="C")
        declared = lower.copy(), upper.copy()
        implied.tighten(*plan_of(form).by_row, np.array(entries)[None], skipped, rhs, lower, upper)
        # What is declared stays: the rounding of rows with entries of very different size would take points away.
        lower = np.where(np.isfinite(declared[0]), declared[0], lower)
        upper = np.where(np.isfinite(declared[1]), declared[1], upper)
        program = integer_program(form, instances.rhs[0], entries, lower[0, :width], upper[0, :width])
        return compiled_diagram(program, self.limit)


_diagrams: WeakCache[StandardForm, dict[bool, Diagrams]] = WeakCache()


def diagrams_of(form: StandardForm, within_unit: bool) -> Diagrams:
    """The diagrams of a form with the usual limit, for all who ask."""
    known = _diagrams.get(form, lambda _: {})
    return known.setdefault(within_unit, Diagrams(form, within_unit=within_unit))


def _again(form: StandardForm, limit: int, within_unit: bool) -> Diagrams:
    return Diagrams(form, limit, within_unit=within_unit)


@final
@dataclass(frozen=True)
class Diagram(AbstractHullSolver):
    """Answer by a decision diagram of all integer points, compiled from the rows of the declaration.

    Columns are decided one after the other; choices that leave the same to be decided meet in one node of a graph, of
    which every path is a structure (see :mod:`optlayers.integer.diagram`). It is small where few constraints are open
    at any time: budgets, chains, alignments, small assignments. A best structure is a longest path, in a time that is
    linear in the graph; sums are those of float64, and what differs by less than their rounding ties. Ties are decided
    as by all solvers (:class:`optlayers.Highs`). Projections onto the convex hull
    go over the graph as an oracle (:class:`optlayers.ActiveSet`), and sums over all structures are exact: marginals,
    samples, counts.

    Parameters may enter right-hand sides, bounds and the matrix: a diagram is compiled for each of their values, and
    kept for the 64 that were asked for last.

    Parameters
    ----------
    node_limit : how many nodes a graph may have, before nodes that no structure reaches are taken out.
    otherwise : who answers where there are more nodes, or variables that are not integers; None: nobody. Then that is a
        :class:`optlayers.DeclarationError`, which says how wide the graph gets and at which constraints; where
        parameters decide, instances have no answer.
    """

    node_limit: int = NODE_LIMIT
    otherwise: AbstractHullSolver | None = None
    manner = "decision diagrams"

    def __post_init__(self) -> None:
        if self.node_limit < 1:
            raise ValueError(f"node_limit must be positive, but got {self.node_limit}")

    def oracle(self, form: StandardForm, why: str = "") -> Callable[..., Any]:
        """A longest path; compiled, where no parameters enter."""
        usual = self.node_limit == NODE_LIMIT
        diagrams = diagrams_of(form, False) if usual else Diagrams(form, self.node_limit)
        if form.parameter_count:
            other = None if self.otherwise is None else self.otherwise.oracle(form, "diagrams are too wide")
            return _ByParameters(diagrams, other)
        try:
            passes = diagrams.of(np.zeros(0))
        except (TooWide, NoIntegers) as error:
            if self.otherwise is None:
                raise DeclarationError(f"{self!r} has no answers: {error}") from None
            return self.otherwise.oracle(form, str(error))
        return _longest_path(passes)


def _longest_path(passes: Passes) -> CompiledOracle:
    return CompiledOracle(
        kernels.best,
        [*passes.arrays, passes.fixed, passes.first, passes.second],
        takes_flat=True,
        name="Diagram()",
        manner=f"a decision diagram: {in_words(passes.diagram)}",
    )


@final
class _ByParameters:
    """A longest path of the diagram for the parameters of an instance."""

    takes_flat = True
    manner = "decision diagrams, one for each value of the parameters"
    __name__ = "Diagram()"

    def __init__(self, diagrams: Diagrams, otherwise: Callable[..., Any] | None) -> None:
        self.diagrams, self.otherwise = diagrams, otherwise

    def __call__(self, scores: np.ndarray, theta: np.ndarray) -> np.ndarray:
        try:
            passes = self.diagrams.of(theta)
        except (TooWide, NoIntegers):
            if self.otherwise is None:
                raise
            answer: np.ndarray = self.otherwise(scores, theta)
            return answer
        best: np.ndarray = kernels.best(scores, *passes.arrays, passes.fixed, passes.first, passes.second)
        return best


def in_words(diagram: DecisionDiagram) -> str:
    """Its size."""
    count = f"{diagram.count:,}" if diagram.count < 10**6 else f"about 10^{math.log10(diagram.count):.1f}"
    return f"{diagram.nodes:,} nodes, at most {diagram.width:,} wide, for {count} structures"
