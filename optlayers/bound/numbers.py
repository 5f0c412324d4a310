"""What polytopes of a batch have in common that are solved, on the CPU or on a device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope, Tangent, by_name, tangent_of
from optlayers.form.standard import ParameterSpec
from optlayers.marginals import LogPartition
from optlayers.prepared import AbstractPrepared
from optlayers.solution import Solution

__all__ = ["AbstractNumbers"]


class AbstractNumbers(AbstractBoundPolytope):
    """A compiled polytope with the numbers of a batch; what it says of the declaration is that of ``prepared``."""

    prepared: AbstractPrepared

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

    def structure(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """Scored vectors with 0 for auxiliary variables; see :class:`AbstractBoundPolytope`."""
        size = self.prepared.projection_form.structure_size
        return values if values.shape[1] == size else torch.cat([values[:, :size], 0.0 * values[:, size:]], dim=1)

    def log_partition(self, scores: Float64[Tensor, "batch size"]) -> Float64[Tensor, " batch"]:
        """Log of the sum of ``exp <scores, v>`` over vertices; see :class:`AbstractBoundPolytope`."""
        return self._sums().value(scores, {})

    def tangent(self, solution: Solution, direction: Float64[Tensor, "batch size"]) -> Tangent:
        """The derivative of a projection, for a flat direction; see :meth:`optlayers.CompiledPolytope.tangent`."""
        return tangent_of(self.prepared.projection_form, solution, direction)

    def value_gradient(self, solution: Solution) -> Mapping[str, Tensor]:
        """The gradient of optimal values with respect to parameters; see :class:`AbstractBoundPolytope`."""
        if solution.evidence is None:
            raise ValueError("value_gradient takes a solution that maximize() or project() returned")
        return by_name(self.parameters, solution.evidence.value_gradient(solution.ok.reshape(-1)))
