"""What is audited: scores of a batch, what they are solved for, and the losses of best vertices at any other scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.func import vmap

from optlayers.calls.layer_call import call_behind
from optlayers.layer import OptLayer

__all__ = ["Problem"]

AT_ONCE = 1 << 22
"""So many scores are solved at once."""


@final
@dataclass(frozen=True)
class Problem:
    """The instances of a batch, flat, with what is known of them.

    ``layer`` has best vertices. ``numbers`` are the scores in float64, -inf where a part is forbidden, ``movable`` the
    parts whose scores can matter, and ``spread`` is the standard deviation of their scores, or 1 where they have none.
    ``losses`` are those of the best vertices.
    """

    layer: OptLayer
    objective: Callable[[Tensor], Tensor]
    scores: Tensor
    sizes: Any
    parameters: Mapping[str, Any]
    batch: torch.Size
    padded: torch.Size
    numbers: Float64[Tensor, "instances size"]
    movable: Bool[Tensor, "instances size"]
    spread: Float64[Tensor, " instances"]
    losses: Float64[Tensor, " instances"]

    @classmethod
    def of(
        cls,
        layer: OptLayer,
        objective: Callable[[Tensor], Tensor],
        scores: Tensor,
        sizes: Any,
        parameters: Mapping[str, Any],
    ) -> Problem:
        """The problem, refused as a layer refuses it.

        Raises
        ------
        SolveError, TypeError, ValueError : see :meth:`OptLayer.forward`; losses that are not finite.
        """
        with torch.enable_grad():
            leaf = scores.detach().clone().requires_grad_()
            losses = layer(leaf, sizes=sizes, objective=objective, **parameters)
        found = call_behind(losses)
        assert found is not None
        call, shares = found[1], found[1].shares
        count = shares.count
        if count == 0:
            raise ValueError(f"a batch without instances has nothing to audit: scores have shape {tuple(scores.shape)}")
        flat = losses.detach().reshape(-1).to("cpu", torch.float64)
        if not bool(torch.isfinite(flat).all()):
            first = int(torch.nonzero(~torch.isfinite(flat))[0])
            raise ValueError(f"objective gives a loss of {flat[first].item()} for the best vertex of instance {first}")
        movable, forbidden = (part.reshape(count, -1).to("cpu") for part in call.movable())
        numbers = scores.detach().reshape(count, -1).to("cpu", torch.float64)
        numbers = numbers.masked_fill(forbidden, -torch.inf)
        tolerant = layer.with_failures_as_nan()
        of = scores.detach()
        spread = _spread(numbers, movable)
        batch, padded = shares.batch, shares.padded
        return cls(tolerant, objective, of, sizes, parameters, batch, padded, numbers, movable, spread, flat)

    @property
    def count(self) -> int:
        """How many instances there are."""
        return len(self.numbers)

    @property
    def root(self) -> Float64[Tensor, " instances"]:
        """The root of the number of parts that can move: noise of scale 1 has about this norm."""
        return self.movable.sum(dim=1).to(torch.float64).sqrt()

    def losses_at(
        self,
        numbers: Float64[Tensor, "stack instances size"],
        layer: OptLayer | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Float64[Tensor, "stack instances"]:
        """The losses of best vertices at other scores, or of what a ``layer`` without random numbers has there; NaN for
        instances without an answer."""
        layer = self.layer if layer is None else layer
        named = self.parameters if parameters is None else parameters
        at_once = max(1, AT_ONCE // max(1, self.numbers.numel()))

        found = []
        for stack in (numbers[k : k + at_once] for k in range(0, len(numbers), at_once)):
            found += [self.losses_of(structures) for structures in self._solved(stack, layer, named)]
        return torch.stack(found)

    def structures_at(self, numbers: Float64[Tensor, "instances size"]) -> Tensor:
        """The best vertices at other scores, ``(*batch, *padded)``; NaN for instances without one."""
        return self._solved(numbers[None], self.layer, self.parameters)[0]

    def losses_of(self, structures: Tensor) -> Float64[Tensor, " instances"]:
        """The losses of structures ``(*batch, *padded)``, which the objective may write to a copy of."""
        with torch.no_grad():
            losses = self.objective(structures.to(self.scores.dtype, copy=True))
        return losses.detach().reshape(-1).to("cpu", torch.float64)

    def _solved(self, stack: Tensor, layer: OptLayer, named: Mapping[str, Any]) -> Tensor:
        def solve(one: Tensor) -> Tensor:
            return layer(one, sizes=self.sizes, **named)  # type: ignore[no-any-return]

        with torch.no_grad():
            shaped = stack.reshape(len(stack), *self.batch, *self.padded).to(self.scores.device)
            return vmap(solve)(shaped)

    def shaped(self, flat: Tensor) -> Tensor:
        """Flat numbers ``(..., instances, size)`` in the shape of the scores."""
        return flat.reshape(*flat.shape[:-2], *self.batch, *self.padded)


def _spread(numbers: Tensor, movable: Tensor) -> Tensor:
    """The standard deviation of the scores that can matter; 1 where they are all the same."""
    count = movable.sum(dim=1).clamp(min=1)
    kept = torch.where(movable, numbers, 0.0)
    mean = kept.sum(dim=1) / count
    deviation = torch.where(movable, numbers - mean[:, None], 0.0)
    largest = kept.abs().amax(dim=1) if kept.shape[1] else torch.zeros(len(kept), dtype=torch.float64)
    spread = torch.linalg.vector_norm(deviation, dim=1) / count.to(torch.float64).sqrt()
    return torch.where(spread > math.sqrt(torch.finfo(torch.float64).eps) * largest, spread, 1.0)
