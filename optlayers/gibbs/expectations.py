"""Sums over all structures of a batch and what follows from them: marginals, variances, entropies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.autograd.calls import FirstDerivative
from optlayers.autograd.differentiate import applied
from optlayers.autograd.higher_order import Derived
from optlayers.batch.shares import Share
from optlayers.bound.polytope import BoundPolytope
from optlayers.common.modes import outside_inference_mode, transforms_active
from optlayers.gibbs.door import Door
from optlayers.gibbs.partition import PartitionCall

__all__ = ["Expectations"]


@final
@dataclass(frozen=True)
class Expectations:
    """Functions of the numbers of a batch, in float64 and differentiable where these require gradients.

    ``tensors`` are those of the ``door``: scores, what is given by name, and the temperature.
    """

    door: Door
    tensors: Sequence[Tensor]

    @property
    def temperature(self) -> Float64[Tensor, "*batch"]:
        """That of every instance."""
        return self.tensors[-1]

    def total(self, call: PartitionCall | None = None) -> Float64[Tensor, "*batch"]:
        """The log-partition function, or what another ``call`` sums."""
        return applied(PartitionCall(self.door) if call is None else call, *self.tensors)

    def _slopes(self, call: PartitionCall, times: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
        """The gradients of a total, ``times`` so much, for the tensors that are wanted; these have gradients too."""
        first = FirstDerivative(call, tuple(wanted))
        if torch.is_inference_mode_enabled():
            with outside_inference_mode():
                found = Derived.apply(first, times, *self.tensors)  # type: ignore[no-untyped-call]
        else:
            found = Derived.apply(first, times, *self.tensors)  # type: ignore[no-untyped-call]
        return [slope for slope in found if slope is not None]

    def means(self) -> list[Tensor]:
        """The marginals of the structure and of auxiliary variables, like the tensors of their scores."""
        door, call = self.door, PartitionCall(self.door)
        places = door.scored(self.tensors)
        total = self.total(call) if door.on_failure == "nan" else None
        wanted = [place in places for place in range(len(self.tensors))]
        means = self._slopes(call, self.temperature, wanted)
        if total is not None:
            failed = torch.isnan(total.detach()).reshape((*door.batch, *[1] * len(door.padded)))
            means[0] = torch.where(failed, torch.nan, means[0])
        return means

    def entropy(self) -> Float64[Tensor, "*batch"]:
        """The derivative of T log Z by T, which a call works out in float64."""
        call = PartitionCall(self.door)
        total = self.total(call)
        (slope,) = self._slopes(call, self.temperature, [False] * (len(self.tensors) - 1) + [True])
        return total + slope

    def variance(self) -> Float64[Tensor, "*batch_and_shape"]:
        """The variance of every part: by its mean where structures are 0/1, else a derivative for every part.

        Raises
        ------
        NotImplementedError : within ``torch.func``, where it is not by means alone.
        """
        if transforms_active() and any(share.entries.parameters for share in self.door.every):
            raise NotImplementedError("the variance of polytopes with parameters cannot be transformed by torch.func")
        if all(self._is_binary(share) for share in self.door.every):
            mean = self.means()[0]
            return (mean * (1.0 - mean)).clamp(min=0.0)
        if transforms_active():
            raise NotImplementedError("the variance of structures that are not 0/1 cannot be transformed by torch.func")
        return self._curvature()

    def _is_binary(self, share: Share) -> bool:
        if not share.entries.parameters:
            return share.compiled.is_binary(np.zeros(0))
        packed = self.door.packed(share, self.tensors)
        return BoundPolytope.of(share.compiled, packed, packed.forbidden).binary

    def _curvature(self) -> Float64[Tensor, "*batch_and_shape"]:
        """The diagonal of the derivative of the marginals, times the temperature."""
        door, scores, count = self.door, self.tensors[0], math.prod(self.door.padded)
        graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)
        with torch.enable_grad():
            leaf = scores if scores.requires_grad else scores.detach().requires_grad_()
            mean = replace(self, tensors=[leaf, *self.tensors[1:]]).means()[0]
            flat, columns = mean.reshape(door.count, count), []
            for part in range(count):
                (slope,) = torch.autograd.grad(flat[:, part].sum(), leaf, create_graph=graph, retain_graph=True)
                columns.append(slope.reshape(door.count, count)[:, part])
        diagonal = torch.stack(columns, dim=1).reshape(mean.shape) if columns else torch.zeros_like(mean)
        own = self.temperature.reshape((*door.batch, *[1] * len(door.padded)))
        found = own * diagonal + 0.0 * mean.detach()  # NaN where there is no answer
        return found if graph else found.detach()

    def weights(self, value: Tensor, auxiliaries: Mapping[str, Tensor]) -> Float64[Tensor, "*batch"]:
        """The products of scores and values by temperatures, -inf for values with a forbidden part."""
        door, parts = self.door, []
        for share in door.every:
            scores, points = door.flat_scores(share, self.tensors), door.points(share, value, auxiliaries)
            hidden = torch.isneginf(scores)
            each = (points * scores.masked_fill(hidden, 0.0)).sum(dim=1)
            parts.append((share, each.masked_fill((hidden & (points != 0.0)).any(dim=1), -torch.inf)))
        return door.numbers(parts) / self.temperature

    def crossed(self, other: Expectations) -> tuple[Float64[Tensor, "*batch"], list[Bool[Tensor, "instances size"]]]:
        """Minus the mean of the ``other`` log-probability, as if its masks were none; and the parts that these forbid,
        of every polytope. Both are of one batch."""
        door, tensors, call = other.door, other.tensors, PartitionCall(other.door)
        means = dict(zip(self.door.scored(self.tensors), self.means(), strict=True))
        total = other.total(call)
        sums, hidden = [], []
        for number, share in enumerate(door.every):
            scores = door.flat_scores(share, tensors)
            beside = [means[place] for place in door.auxiliary_places(share, len(tensors))]
            mean = door.joined(share, [share.of(means[0], door.batch), *beside])
            forbidden = torch.isneginf(scores)
            known = None if call.parts is None else call.parts[number].forbidden
            if known is not None:  # masks too
                forbidden = forbidden | known
            sums.append((share, (mean * scores.masked_fill(forbidden, 0.0)).sum(dim=1)))
            hidden.append(forbidden)
        return total - door.numbers(sums) / other.temperature, hidden
