"""A loss as a function of structures, for rules that look at it more than once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = ["FlatObjective", "Objective"]

Function = Callable[[Float[Tensor, "*batch_and_shape"]], Float[Tensor, "*batch"]]


@final
class Objective:
    """What a layer was called with: ``function`` from structures ``(*batch, *shape)`` to losses ``(*batch,)``.

    It remembers the losses of the forward pass and, in the backward pass, with which weight each of them enters what is
    minimized: 1 / batch for a mean. Later evaluations happen in the autocast mode of the call.
    """

    def __init__(self, function: Function, batch: torch.Size, like: Tensor) -> None:
        if not callable(function):
            raise TypeError(f"objective must be a function of structures, but got {type(function).__name__}")
        self.function = function
        self.batch = batch
        self.dtype, self.device = like.dtype, like.device
        self.structures: Tensor | None = None
        self.losses: Tensor | None = None
        self.weights: Tensor | None = None
        kind = like.device.type
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def __call__(
        self, structures: Float[Tensor, "*apart_batch_and_shape"], apart: int | None
    ) -> Float[Tensor, "*batch"]:
        """The losses of one structure per instance, or their mean over ``apart`` ones."""
        self.structures = structures.detach().clone()  # the function may write to what it gets
        return _Recorded.apply(self, self._each(structures, apart), structures)  # type: ignore[no-any-return, no-untyped-call]

    def mean(self, structures: Float[Tensor, "*apart_batch_and_shape"], apart: int | None) -> Float[Tensor, "*batch"]:
        """The mean of the losses over ``apart`` structures, without a record, for rules that do not look at losses."""
        return self._each(structures, apart).mean(dim=0)

    def _each(self, structures: Tensor, apart: int | None) -> Tensor:
        if apart is None:
            return self.evaluate(structures)[None]
        # Of what iteration gives, several views at once, none may be written to.
        return torch.stack([self.evaluate(structures[k]) for k in range(apart)])

    def evaluate(self, structures: Float[Tensor, "*batch_and_shape"]) -> Float[Tensor, "*batch"]:
        """The losses, refused unless there is one for every instance."""
        kind, dtype, enabled = self._autocast
        with torch.autocast(kind, dtype=dtype, enabled=enabled):
            losses = self.function(structures)
        if not isinstance(losses, Tensor):
            raise TypeError(f"objective must return a tensor of losses, but returned {type(losses).__name__}")
        if losses.shape != self.batch:
            hint = "; leave out its mean or sum over the batch" if losses.ndim < len(self.batch) else ""
            raise ValueError(
                f"objective must return one loss per instance, of shape {tuple(self.batch)}, but returned shape "
                f"{tuple(losses.shape)}{hint}"
            )
        return losses


class _Recorded(torch.autograd.Function):
    """The mean over samples. Structures are an input so that their rule is asked for a gradient in any case."""

    @staticmethod
    def forward(ctx: Any, objective: Objective, losses: Tensor, structures: Tensor) -> Tensor:
        ctx.objective, ctx.samples, ctx.shape = objective, len(losses), structures.shape
        objective.losses = losses.detach().clone()
        return losses.mean(dim=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        objective: Objective = ctx.objective
        objective.weights = grad.detach().clone()
        each = (grad / ctx.samples).expand(ctx.samples, *grad.shape)
        return None, each, torch.zeros((), dtype=objective.dtype, device=objective.device).expand(ctx.shape)


@final
class FlatObjective:
    """The objective of the instances ``rows`` of a batch, which take the leading ``corner`` of their shape.

    Rules meet it flat, as float64 on the device ``home`` where their instances are solved.
    """

    def __init__(
        self,
        objective: Objective,
        rows: Tensor | None,
        corner: tuple[slice, ...],
        shape: tuple[int, ...],
        home: torch.device,
    ) -> None:
        self._objective = objective
        self._rows = rows
        self._corner = corner
        self._shape = shape
        self._size = math.prod(shape)
        self._home = home
        self._unit: Float64[Tensor, " batch"] | None = None

    def in_units(self, unit: Float64[Tensor, " batch"]) -> FlatObjective:
        """The objective whose weights are divided by a number for each instance."""
        other = copy.copy(self)
        other._unit = unit
        return other

    @property
    def losses(self) -> Float64[Tensor, "samples batch"]:
        """Of the structures that went forward."""
        losses = self._objective.losses
        if losses is None:
            raise RuntimeError("losses are known in the backward pass only")
        return self._mine(losses.reshape(len(losses), -1), 1)

    @property
    def weights(self) -> Float64[Tensor, " batch"]:
        """With which factor the loss of every instance enters what is minimized."""
        weights = self._objective.weights
        if weights is None:
            raise RuntimeError("weights are known in the backward pass only")
        mine = self._mine(weights.reshape(-1), 0)
        return mine if self._unit is None else mine / self._unit

    def _mine(self, values: Tensor, dim: int) -> Tensor:
        mine = values if self._rows is None else values.index_select(dim, self._rows.to(values.device))
        return mine.to(self._home, torch.float64)

    def gradient(self, values: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        """Of the weighted losses with respect to structures, at others than those that went forward."""
        objective, batch = self._objective, self._objective.batch
        if objective.structures is None:
            raise RuntimeError("other structures are tried in the backward pass only")
        whole = objective.structures.clone()
        shape = whole.shape[len(batch) :]
        flat = whole.reshape(math.prod(batch), *shape)
        own = (slice(None), *self._corner)
        mine = values[:, : self._size].to(objective.device, objective.dtype).reshape(-1, *self._shape)[own]
        rows = torch.arange(len(flat), device=flat.device) if self._rows is None else self._rows.to(flat.device)
        padded = flat[rows]
        place = (slice(None), *self._corner)
        padded[place] = mine.reshape(padded[place].shape)
        flat[rows] = padded
        with torch.enable_grad():
            leaf = flat.reshape(whole.shape).requires_grad_()
            losses = objective.evaluate(leaf.clone())  # not the leaf, which the function could not write to
        if not losses.requires_grad:  # a loss without a derivative
            return torch.zeros_like(values)
        (found,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses), materialize_grads=True)
        slope = torch.zeros(len(values), *self._shape, dtype=torch.float64, device=self._home)
        slope[own] = found.reshape(flat.shape)[rows][place].to(self._home, torch.float64).reshape(slope[own].shape)
        padded = torch.nn.functional.pad(slope.flatten(1), (0, values.shape[1] - self._size))
        return padded * self.weights[:, None]
