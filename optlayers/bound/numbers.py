"""What polytopes of a batch have in common that are solved, on the CPU or on a device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope, Best, Marginals, Tangent, by_name, tangent_of
from optlayers.bound.curved import worth_gradient
from optlayers.bound.on_host import OnHost
from optlayers.bound.regularized import by_constraints, of_parts, whole_worth
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.standard import ParameterSpec
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solution import Solution
from optlayers.sums.best_structures import best_in_order, best_of, best_structures
from optlayers.sums.marginals import LogPartition, by_value

__all__ = ["AbstractNumbers"]

AT_ONCE = 2**22
"""Numbers in an array of scores."""
MARGIN = 40.0
"""Structures that have a part less weigh less than exp(-40) of those that have all: nothing beside rounding."""


class AbstractNumbers(AbstractBoundPolytope):
    """A compiled polytope with the numbers of a batch; what it says of the declaration is that of ``prepared``."""

    prepared: AbstractPrepared
    precision: Float64[np.ndarray, " parameters"]

    @abstractmethod
    def _sums(self) -> LogPartition:
        """The log-partition function, with these numbers."""

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """What has numbers besides scores; see :class:`AbstractBoundPolytope`."""
        return self.prepared.projection_form.parameters

    @property
    def equally_long(self) -> bool:
        """Whether all structures have the same sum of parts; see :class:`AbstractBoundPolytope`."""
        return self.prepared.equally_long

    @property
    @abstractmethod
    def given(self) -> Float64[Tensor, "batch parameters"]:
        """The parameters of every instance."""

    @property
    @abstractmethod
    def hidden(self) -> Bool[Tensor, "batch size"] | None:
        """The forbidden parts, None for none."""

    @property
    def binary(self) -> bool:
        """Whether all structures are known to be of 0 and 1; see :class:`AbstractBoundPolytope`."""
        theta = self.given.detach().cpu().numpy()
        return all(self.prepared.is_binary(row) for row in np.unique(theta, axis=0))

    @property
    def binary_throughout(self) -> bool:
        """Whether all vertices are known to be of 0 and 1, their auxiliary values too."""
        theta = self.given.detach().cpu().numpy()
        return all(self.prepared.is_binary(row, auxiliaries=True) for row in np.unique(theta, axis=0))

    @abstractmethod
    def among(
        self, rows: Int64[Tensor, " rows"], forbidden: Bool[Tensor, "rows size"] | None = None
    ) -> AbstractNumbers:
        """The polytopes of some instances, in any order and number, with further forbidden parts."""

    def enumerated(self, theta: Float64[np.ndarray, " parameters"]) -> Float64[np.ndarray, "vertices size"]:
        """All vertices for one vector of parameters."""
        return self.prepared.enumerated(theta)

    @property
    def polyhedral(self) -> bool:
        """Whether the set is polyhedral; see :class:`AbstractBoundPolytope`."""
        return self.prepared.polyhedral

    @property
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides alone; see :class:`AbstractBoundPolytope`."""
        return self.prepared.parameters_shift

    def worth(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Float64[Tensor, "batch size"]:
        """What parts contribute to a regularizer; see :class:`AbstractBoundPolytope`."""
        if not regularizer.of_parts:
            total = self._whole(points, regularizer)[0]
            return torch.nn.functional.pad(total[:, None], (0, points.shape[1] - 1))
        return of_parts(self.prepared, points, regularizer, regularizer.worth, self.given if self.parameters else None)

    def slope(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Float64[Tensor, "batch size"]:
        """The gradient of a regularizer; see :class:`AbstractBoundPolytope`."""
        return of_parts(self.prepared, points, regularizer, regularizer.slope, self.given if self.parameters else None)

    def worth_gradient(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> Mapping[str, Tensor]:
        """The gradient of a regularizer by parameters; see :class:`AbstractBoundPolytope`."""
        if not regularizer.of_parts:
            return by_name(self.parameters, self._whole(points, regularizer)[1])
        form = by_constraints(self.prepared).projection_form
        return by_name(self.parameters, worth_gradient(form, points, regularizer, self.given))

    def _whole(
        self, points: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
    ) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, "batch parameters"]]:
        """A regularizer that is no sum over parts, and its gradient by parameters, by the CPU."""
        host = self.prepared.bind_on_host(self.given.detach().cpu(), None, self.precision)
        assert isinstance(host, OnHost)
        return whole_worth(host, points, regularizer)

    def structure(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """Scored vectors with 0 for auxiliary variables; see :class:`AbstractBoundPolytope`."""
        size = self.prepared.projection_form.structure_size
        return values if values.shape[1] == size else torch.cat([values[:, :size], 0.0 * values[:, size:]], dim=1)

    def log_partition(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        """Log of the sum of ``exp <scores, v>`` over vertices; see :class:`AbstractBoundPolytope`."""
        return self._sums().value(scores, {})

    def log_count(self) -> Marginals:
        """The log of the number of vertices; see :class:`AbstractBoundPolytope`."""
        given = self.given
        scores = torch.zeros(len(given), self.prepared.entries.size, dtype=torch.float64, device=given.device)
        return self.marginals(scores)

    def best(self, scores: Float64[Tensor, "batch size"], k: int) -> Best:
        """The k best vertices; see :class:`AbstractBoundPolytope`."""
        paths = {row.tobytes(): self.prepared.paths(row) for row in self.given.detach().cpu().numpy()}
        if paths and all(found is not None for found in paths.values()):
            return self._best_paths(scores, k)
        if self.binary_throughout:
            movable = self.movable.expand(len(scores), -1).cpu().numpy()
            return best_structures(self._ask_some, scores, movable, k)
        return best_of(self._support("the best structures are not known"), scores, k)

    def _best_paths(self, scores: Float64[Tensor, "batch size"], k: int) -> Best:
        """By the diagram for the parameters of every instance."""
        if self.hidden is not None:
            scores = scores.masked_fill(self.hidden, -torch.inf)
        counts, parts = torch.zeros(len(scores), dtype=torch.int64, device=scores.device), []
        for rows, paths in by_value(self.given.detach(), self.prepared.paths, {}):
            assert paths is not None
            found, _, counts[rows] = paths.best(scores[rows], k)
            parts.append((rows, found.transpose(0, 1)))
        most = int(counts.max()) if len(counts) else 0
        structures = scores.new_zeros(most, *scores.shape)
        for rows, mine in parts:
            structures[: len(mine), rows] = mine[:most]
        return best_in_order(structures, counts)

    def _ask_some(self, scores: Float64[Tensor, "rows size"], rows: Int64[Tensor, " rows"]) -> Solution:
        """Best vertices of some instances, a part of them at a time."""
        step = max(1, AT_ONCE // max(1, scores.shape[1]))
        starts = range(0, len(scores), step)
        parts = [self.among(rows[k : k + step]).maximize(scores[k : k + step]) for k in starts]
        reasons = {place * step + k: reason for place, part in enumerate(parts) for k, reason in part.reasons.items()}
        value, status, residual, gap = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("value", "status", "primal_residual", "gap")
        )
        return Solution(value, status, residual, gap, reasons)

    def are_vertices(
        self, points: Float64[Tensor, "batch size"], tolerance: float, *, structures_alone: bool
    ) -> tuple[Bool[Tensor, " batch"], Solution]:
        """Which points are vertices; see :class:`AbstractBoundPolytope`.

        A point v of 0 and 1 is one if it is the best vertex at scores of 1 for its parts and -1 for all others: every
        other vertex scores at least 1 less.
        """
        cut = self.prepared.entries.structure_size if structures_alone else points.shape[1]
        near, nothing = points[:, :cut].round(), torch.full_like(points[:, 0], torch.nan)
        known = self.binary if structures_alone else self.binary_throughout
        if not known:
            inside = torch.zeros_like(nothing, dtype=torch.bool)
            whole_points = cut == points.shape[1]
            if whole_points and (walked := self._on_paths(points, tolerance)) is not None:
                return walked, Solution(points, torch.zeros_like(inside, dtype=torch.int8), nothing, nothing)
            for k, mine in enumerate(self._support("whether a point is a structure is not known")):
                apart = (mine[:, :cut] - points[k, :cut]).abs() / mine[:, :cut].abs().clamp(min=1.0)
                inside[k] = (apart <= tolerance).all(dim=1).any()
            return inside, Solution(points, torch.zeros_like(inside, dtype=torch.int8), nothing, nothing)
        whole = ((points[:, :cut] - near).abs() <= tolerance).all(dim=1)
        whole &= ((near == 0.0) | (near == 1.0)).all(dim=1)
        scores = torch.zeros_like(points)
        scores[:, :cut] = torch.where(whole[:, None], 2.0 * near - 1.0, 0.0)
        found = self.maximize(scores)
        return whole & found.ok & (found.value[:, :cut].round() == near).all(dim=1), found

    def _on_paths(self, points: Float64[Tensor, "batch size"], tolerance: float) -> Bool[Tensor, " batch"] | None:
        """Which points are structures, where diagrams of integer points tell; None elsewhere."""
        inside = torch.zeros_like(points[:, 0], dtype=torch.bool)
        for rows, paths in by_value(self.given.detach(), self.prepared.paths, {}):
            if paths is None:
                return None
            mine = paths.has(points[rows].cpu().numpy(), tolerance)
            inside[rows] = torch.from_numpy(mine).to(points.device)
        return inside if self.hidden is None else inside & ~(self.hidden & (points != 0.0)).any(dim=1)

    def completing(
        self, scores: Float64[Tensor, "batch size"], structures: Float64[Tensor, "batch size"]
    ) -> tuple[AbstractBoundPolytope, Float64[Tensor, " batch"]]:
        """Polytopes of those vertices alone that have a structure; see :class:`AbstractBoundPolytope`."""
        if not self.binary:
            raise ValueError(
                "the probability of a structure without auxiliary values needs structures of 0 and 1; give the "
                "values of the auxiliary variables too"
            )
        cut, scores = self.prepared.entries.structure_size, scores.detach()
        forbidden = torch.zeros_like(scores, dtype=torch.bool)
        forbidden[:, :cut] = structures[:, :cut] < 0.5
        within = self.among(torch.arange(len(scores), device=scores.device), forbidden)
        if self.equally_long:
            return within, torch.zeros_like(scores[:, 0])
        held = self.structure(structures)
        large = 2.0 * scores.abs().sum(dim=1, keepdim=True) + 1.0
        completed = within.maximize(scores + large * held).value
        best = (scores.masked_fill(forbidden, 0.0) * completed).sum(dim=1)
        return within, MARGIN + (within.log_partition(scores) - best).clamp(min=0.0).nan_to_num(nan=0.0, posinf=0.0)

    def support(self) -> list[Float64[Tensor, "vertices size"]]:
        """All vertices of every instance without a forbidden part; see :class:`AbstractBoundPolytope`."""
        return self._support("the structures are not known")

    def _support(self, what: str) -> list[Float64[Tensor, "vertices size"]]:
        given, hidden, reasons = self.given.detach(), self.hidden, dict[int, str]()
        found: list[Tensor] = [given.new_zeros(0, self.prepared.entries.size)] * len(given)
        try:
            for rows, array in by_value(given, self.prepared.structures, reasons):
                vertices = torch.from_numpy(array).to(given.device)
                for k in rows.tolist():
                    found[k] = vertices if hidden is None else vertices[(vertices[:, hidden[k]] == 0.0).all(dim=1)]
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        if reasons:
            raise ValueError(f"{what}: {next(iter(reasons.values()))}")
        return found

    def tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection, for a flat direction; see :meth:`optlayers.CompiledPolytope.tangent`."""
        return tangent_of(self.prepared.projection_form, solution, direction)

    def value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values with respect to parameters; see :class:`AbstractBoundPolytope`."""
        if solution.evidence is None:
            raise ValueError("value_gradient takes a solution that maximize() or project() returned")
        return by_name(self.parameters, solution.evidence.value_gradient(solution.ok.reshape(-1)))
