"""What a distribution is over, what is handed in to it, and the list of its best structures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.distributions import constraints

from optlayers.batch.entries import CPU
from optlayers.common.modes import outside_graphs
from optlayers.common.tensors import check_dense

__all__ = [
    "WHOLE",
    "BestStructures",
    "Scores",
    "Structures",
    "no_structure",
    "temperature_of",
    "together",
    "value_of",
]

WHOLE = 1e-6
"""Entries of a value may be so far from those of a structure, next to their size; or by two roundings of its dtype."""


@final
class Structures(constraints.Constraint):
    """What a distribution is over: the vertices of the polytope of each instance, without forbidden parts."""

    is_discrete = True

    def __init__(self, is_structure: Callable[[Tensor], Tensor], event_dim: int) -> None:
        self._is_structure = is_structure
        self.event_dim = event_dim

    def check(self, value: Tensor) -> Tensor:
        """Which of the values are structures, ``(*sample_shape, *batch)``."""
        return self._is_structure(value)


@final
class Scores(constraints.Constraint):
    """Finite numbers, and -inf."""

    def check(self, value: Tensor) -> Tensor:
        """Which entries are such."""
        return ~(torch.isnan(value) | (value == torch.inf))


@final
@dataclass(frozen=True)
class BestStructures:
    """The best structures of every instance, best first; unpacked, they are the structures and their ``log_prob``.

    Attributes
    ----------
    structures : ``(most, *batch, *shape)``, in the dtype of the scores; ``most`` is the largest of the ``counts``.
    counts : ``(*batch,)`` integers, how many there are of each instance: as many as were asked for, or all that it has.
        Behind them structures are 0 and their ``log_prob`` is -inf.
    auxiliaries : the values of scored auxiliary variables by name, ``(most, *batch, *shape)``.
    """

    structures: Tensor
    counts: Int64[Tensor, "*batch"]
    auxiliaries: Mapping[str, Tensor]
    _log_prob: Callable[[], Tensor]

    @property
    @outside_graphs
    def log_prob(self) -> Tensor:
        """Log-probabilities ``(most, *batch)``, differentiable; worked out when they are asked for, as they need the
        sum over all structures.

        Raises
        ------
        ValueError : where there are too many structures to sum over, and the polytope declares no log_partition.
        """
        return self._log_prob()

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.structures, self.log_prob))


def temperature_of(temperature: Any, batch: torch.Size) -> Float[Tensor, "*batch"]:
    """A temperature for every instance."""
    if not isinstance(temperature, Tensor):
        if not isinstance(temperature, Real) or isinstance(temperature, bool):
            raise TypeError(f"temperature must be a number or a tensor, but got {temperature!r}")
        return torch.full(batch, float(temperature), dtype=torch.float64, device=CPU)
    check_dense(temperature, "temperature")
    if not temperature.is_floating_point():
        raise TypeError(f"temperature must be real and floating-point, but got {temperature.dtype}")
    try:
        return temperature.broadcast_to(batch)
    except RuntimeError:
        raise ValueError(
            f"temperature has shape {tuple(temperature.shape)}, but the batch is {tuple(batch)}: give a number, or a "
            "tensor with one for every instance"
        ) from None


def value_of(name: str, value: Any, shape: torch.Size, batch: torch.Size) -> tuple[Tensor, torch.Size, float]:
    """Values in float64, their batch, and how far they may be from those of a structure, next to the size of these.

    Raises
    ------
    TypeError, ValueError : no tensor of real numbers; shapes that fit neither the structures nor the batch.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but got {type(value).__name__}")
    check_dense(value, name)
    if value.dtype.is_complex:
        raise TypeError(f"{name} must be real, but got {value.dtype}")
    head = value.shape[: max(value.ndim - len(shape), 0)]
    if value.shape[len(head) :] != shape or together(head, batch) is None:
        wanted = ", ".join(map(str, (*batch, *shape)))
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but structures have shape {tuple(shape)} and the batch is "
            f"{tuple(batch)}: give (*sample_shape, {wanted})"
        )
    rounding = 2.0 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return value.detach().to(torch.float64), head, max(WHOLE, rounding)


def together(*shapes: torch.Size) -> torch.Size | None:
    """The shape that some broadcast to, None where they do not."""
    try:
        return torch.broadcast_shapes(*shapes)  # type: ignore[no-any-return, no-untyped-call]
    except RuntimeError:
        return None


def no_structure(missing: Bool[Tensor, "*batch"], value: Tensor) -> str:
    """In words, which value is no structure."""
    place = tuple(torch.nonzero(missing)[0].tolist())
    one = value[place]
    shown = one.tolist() if one.numel() <= 16 else f"a tensor of shape {tuple(one.shape)}"
    where = f"the value at {list(place)}" if place else "the value"
    return (
        f"{where}, {shown}, is no structure of its polytope, or has a forbidden part; so are {int(missing.sum())} "
        "values in all. With validate_args=False their log-probability is -inf"
    )
