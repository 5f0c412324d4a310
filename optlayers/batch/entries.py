"""What has numbers in a call: the structure, scored auxiliary variables and parameters, in one ordered layout.

The one door. Shapes and names are checked when tensors :meth:`arrive <Entries.arrive>`; their numbers when they are
:meth:`packed <Entries.pack>` into flat float64 rows on the device where instances are solved, which happens where
PyTorch lets numbers be seen (inside of autograd functions, under ``vmap``). Answers and gradients go back the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float64
from scipy.linalg.blas import ddot
from torch import Tensor

from optlayers.common.tensors import (
    DTYPES,
    FEW,
    as_tensor,
    check_finite,
    check_scores,
    known_index,
    moved,
    owned,
)
from optlayers.form.standard import ParameterSpec, ScoredSpec, StandardForm

__all__ = [
    "CPU",
    "DOUBLE",
    "MASK",
    "Arrived",
    "Entries",
    "Packed",
    "auxiliary_tensors",
    "batch_of",
    "parameter_tensors",
]

CPU = torch.device("cpu")
DOUBLE = torch.finfo(torch.float64).eps
MASK = -1e8
"""A finite score may stand for a forbidden part from here on, see :mod:`optlayers.batch.masks`."""
LOWEST = {dtype: torch.finfo(dtype).min for dtype in DTYPES}
LEAST = {dtype: max(MASK, lowest) ** 2 for dtype, lowest in LOWEST.items()}
"""Squares of scores that may be masks are at least this."""
NOTHING: frozenset[str] = frozenset()


Positions = Callable[[], Tensor | None]


def no_positions() -> None:
    """Instances are known by their own indices."""


@final
@dataclass(slots=True)
class Arrived:
    """Tensors in the order of the layout, in the shape of the batch; nobody has looked at their numbers yet.

    ``once`` names the auxiliary variables whose scores are given once for all instances.
    """

    entries: Entries
    batch: torch.Size
    tensors: tuple[Tensor, ...]
    once: frozenset[str] = NOTHING


@final
@dataclass(slots=True)
class Packed:
    """The numbers of a batch as they are solved: flat, float64, in memory of their own, a row per instance.

    ``scores`` are 0 where ``forbidden`` (None where nothing is); ``theta`` are all parameters, None where there are
    none; ``precision`` is the machine epsilon that each of them came in. ``lowest`` is the lowest number of the dtype
    that scores came in, and ``low`` says whether some score is so low that it may stand for a forbidden part.
    """

    scores: Float64[Tensor, "batch size"]
    forbidden: Bool[Tensor, "batch size"] | None
    theta: Float64[Tensor, "batch parameters"] | None
    precision: Float64[np.ndarray, " parameters"]
    low: bool
    lowest: float


@final
class Entries:
    """The layout of one polytope: the structure first, then scored auxiliary variables, then parameters."""

    def __init__(self, form: StandardForm) -> None:
        self.shape = form.shape
        self.structure_size = form.structure_size
        self.size = form.size
        self.auxiliaries: tuple[ScoredSpec, ...] = form.scored_auxiliaries
        self.parameters: tuple[ParameterSpec, ...] = form.parameters
        self.parameter_count = form.parameter_count
        self.alone = not self.auxiliaries and not self.parameters
        self._no_precision = np.zeros(0)

    def arrive(self, scores: Tensor, named: Mapping[str, Any], name: str = "scores") -> Arrived:
        """Scores ``(*batch, *shape)``, and what is given by name.

        Raises
        ------
        TypeError : scores that are no real floating-point tensor; names that are missing or unexpected; values that are
            not real numbers.
        ValueError : wrong shapes.
        """
        if (
            not isinstance(scores, Tensor)
            or scores.dtype not in DTYPES
            or scores.layout is not torch.strided
            or scores.is_meta
        ):
            check_scores(scores, name)
        batch = batch_of(scores, self.shape)
        tensors, once = self.arrive_named(named, batch)
        return Arrived(self, batch, (scores, *tensors), once)

    def arrive_named(self, named: Mapping[str, Any], batch: torch.Size) -> tuple[list[Tensor], frozenset[str]]:
        """What is given by name, in order; and what is given once for all instances, of auxiliary variables."""
        if self.alone and not named:
            return [], NOTHING
        names = {spec.name for spec in self.auxiliaries}
        auxiliary, once = auxiliary_tensors(self.auxiliaries, named, batch)
        parameters = parameter_tensors(self.parameters, {n: v for n, v in named.items() if n not in names}, batch)
        return [*auxiliary, *parameters], once

    def theta(self, named: Mapping[str, Any], batch: torch.Size) -> Float64[Tensor, "batch parameters"]:
        """The parameters of a batch as one vector per instance, on the CPU, whatever else is given by name."""
        mine = {spec.name: named[spec.name] for spec in self.parameters if spec.name in named}
        count = math.prod(batch)
        if not self.parameters:
            return torch.zeros(count, 0, dtype=torch.float64, device=CPU)
        return self.packed_parameters(parameter_tensors(self.parameters, mine, batch), batch)[0]

    def pack(
        self,
        tensors: Sequence[Tensor],
        batch: torch.Size,
        home: torch.device = CPU,
        once: frozenset[str] = NOTHING,
        positions: Positions = no_positions,
        name: str = "scores",
    ) -> Packed:
        """The numbers of tensors that arrived, on the device ``home``; those of no use are refused, saying where.

        ``positions()``, ``(*batch, k)``, are the indices that a user knows the instances by, None for their own.

        Raises
        ------
        ValueError : scores that are NaN or +inf; parameters that are not finite or lack the declared sign.
        """
        scores = tensors[0]
        flat = _double(scores, (math.prod(batch), self.structure_size), home)
        lowest = LOWEST[scores.dtype]
        if len(tensors) == 1 and flat.is_cpu:
            numbers = flat.numpy().ravel()
            # No number is as large as the root of a sum of squares, which is finite only where all numbers are.
            if not len(numbers) or ddot(numbers, numbers) < LEAST[scores.dtype]:
                return Packed(flat, None, None, self._no_precision, False, lowest)
        return self._pack_with_names(flat, tensors, batch, home, once, positions(), name, lowest)

    def _pack_with_names(
        self,
        flat: Tensor,
        tensors: Sequence[Tensor],
        batch: torch.Size,
        home: torch.device,
        once: frozenset[str],
        positions: Tensor | None,
        name: str,
        lowest: float,
    ) -> Packed:
        depth, count = len(batch), len(flat)
        forbids = check_finite(tensors[0], depth, positions, name)
        auxiliary = tensors[1 : 1 + len(self.auxiliaries)]
        for spec, values in zip(self.auxiliaries, auxiliary, strict=True):
            if spec.name not in once:
                forbids |= check_finite(values, depth, positions, spec.name)
            elif values.numel():
                forbids |= check_finite(values[(0,) * depth], 0, None, spec.name)
        if auxiliary:
            further = [
                _double(values, (count, math.prod(spec.shape)), home)
                for spec, values in zip(self.auxiliaries, auxiliary, strict=True)
            ]
            flat = torch.cat([flat, *further], dim=1)
        forbidden = None
        if forbids:
            forbidden = flat == -torch.inf
            flat = flat.masked_fill(forbidden, 0.0)
        theta, precision = None, self._no_precision
        if self.parameters:
            given = tensors[1 + len(self.auxiliaries) :]
            theta, precision = self.packed_parameters(given, batch, home, positions)
        low = bool((flat <= max(MASK, lowest)).any())
        return Packed(flat, forbidden, theta, precision, low, lowest)

    def packed_parameters(
        self, given: Sequence[Tensor], batch: torch.Size, home: torch.device = CPU, positions: Tensor | None = None
    ) -> tuple[Float64[Tensor, "batch parameters"], Float64[np.ndarray, " parameters"]]:
        """The parameters ``(*batch, *shape)`` as one vector per instance, and the machine epsilon of each entry."""
        for spec, value in zip(self.parameters, given, strict=True):
            _check_values(spec, value.detach(), len(batch), positions)
        count = math.prod(batch)
        parts = [_double(value, (count, spec.size), home) for spec, value in zip(self.parameters, given, strict=True)]
        precision = np.concatenate(
            [np.full(s.size, torch.finfo(value.dtype).eps) for s, value in zip(self.parameters, given, strict=True)]
        )
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], precision

    def packed_with_graph(
        self, tensors: Sequence[Tensor], batch: torch.Size, home: torch.device, forbidden: Tensor | None
    ) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, "batch parameters"] | None]:
        """The numbers again, as functions of the tensors that autograd knows; they have been checked."""
        count = math.prod(batch)
        sizes = [self.structure_size, *(math.prod(s.shape) for s in self.auxiliaries)]
        sizes += [spec.size for spec in self.parameters]
        parts = [moved(t, (count, size), torch.float64, home) for t, size in zip(tensors, sizes, strict=True)]
        cut = 1 + len(self.auxiliaries)
        scores = parts[0] if cut == 1 else torch.cat(parts[:cut], dim=1)
        if forbidden is not None:
            scores = scores.masked_fill(forbidden, 0.0)
        return scores, torch.cat(parts[cut:], dim=1) if parts[cut:] else None

    def flat_structure(self, value: Tensor, home: torch.device) -> Float64[Tensor, "batch size"]:
        """Gradients or directions ``(*batch, *shape)`` as they are solved, 0 for auxiliary variables. A graph stays."""
        size = self.structure_size
        flat = moved(value, (value.numel() // size if size else 0, size), torch.float64, home)
        return flat if self.size == size else torch.nn.functional.pad(flat, (0, self.size - size))

    def split(self, scores: Float64[Tensor, "batch size"] | None) -> list[Float64[Tensor, "batch entries"] | None]:
        """Flat scored vectors as the structure and every scored auxiliary variable."""
        if scores is None:
            return [None] * (1 + len(self.auxiliaries))
        if not self.auxiliaries:
            return [scores]
        return [scores[:, : self.structure_size], *(scores[:, spec.span] for spec in self.auxiliaries)]

    def structures(
        self,
        flat: Float64[Tensor, "*apart batch size"],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        own: bool = False,
    ) -> Tensor:
        """The structures of flat points, in their shape, dtype and place; ``own`` ones in memory of their own."""
        if flat.shape == shape and flat.dtype is dtype and flat.device == device:  # as a rule
            return flat.clone() if own else flat
        if flat.shape[-1] != self.structure_size:
            flat = flat[..., : self.structure_size]
        return owned(flat, shape, dtype, device) if own else moved(flat, shape, dtype, device)

    def named(self, values: Float64[Tensor, "batch size"], batch: torch.Size, like: Tensor) -> dict[str, Tensor]:
        """The values of scored auxiliary variables ``(*batch, *shape)`` by name."""
        return {
            spec.name: values[:, spec.span].reshape((*batch, *spec.shape)).to(like.device, like.dtype, copy=True)
            for spec in self.auxiliaries
        }


def batch_of(scores: Tensor, shape: tuple[int, ...]) -> torch.Size:
    """The batch dimensions of scores for a structure of ``shape``."""
    given, head = scores.shape, scores.ndim - len(shape)
    if head < 0 or given[head:] != shape:
        raise ValueError(f"scores end in {tuple(given[max(head, 0) :])} but the polytope has shape {tuple(shape)}")
    return given[:head]


def _double(values: Tensor, shape: tuple[int, int], home: torch.device) -> Float64[Tensor, "batch entries"]:
    """Numbers in memory of their own, so that nobody's later change of them matters."""
    if values.requires_grad:
        values = values.detach()
    if values.is_neg():
        values = values.resolve_neg()
    if values.dtype is torch.float64 and values.device == home:
        if values.is_cpu and values.numel() <= FEW:
            return torch.from_numpy(np.array(values.numpy(), order="C").reshape(shape))
        copy = values.clone(memory_format=torch.contiguous_format)
    else:
        copy = values.to(home, torch.float64, copy=True, memory_format=torch.contiguous_format)
    return copy if copy.shape == shape else copy.view(shape)


def auxiliary_tensors(
    specs: Sequence[ScoredSpec], given: Mapping[str, Any], batch: torch.Size
) -> tuple[list[Tensor], frozenset[str]]:
    """Scores of auxiliary variables in the shape of a batch, and the names of those given once for all instances."""
    tensors: list[Tensor] = []
    once = set()
    for spec in specs:
        name = spec.name
        if name not in given:
            raise TypeError(f"the scores of {name} are missing: give {name}=, of shape {spec.shape} per instance")
        scores = given[name]
        check_scores(scores, name)
        head = scores.ndim - len(spec.shape)
        if head not in (0, len(batch)) or tuple(scores.shape) != (*batch[:head], *spec.shape):
            raise ValueError(
                f"{name} has shape {tuple(scores.shape)}, but it is declared with shape {spec.shape} and the batch is "
                f"{tuple(batch)}: give {spec.shape} for all instances or {(*batch, *spec.shape)} for each its own"
            )
        if head == 0:
            once.add(name)
        tensors.append(scores.expand((*batch, *spec.shape)))
    return tensors, frozenset(once)


def parameter_tensors(specs: Sequence[ParameterSpec], given: Mapping[str, Any], batch: torch.Size) -> list[Tensor]:
    """The values of all parameters in the shape of a batch, their numbers unseen."""
    expected = [spec.name for spec in specs]
    missing, extra = [n for n in expected if n not in given], [n for n in given if n not in expected]
    if missing or extra:
        told = "; ".join(f"{what} {names}" for what, names in (("missing", missing), ("unexpected", extra)) if names)
        raise TypeError(f"parameters do not match the declaration: {told}; the polytope declares {expected}")
    return [_parameter(spec, given[spec.name], batch) for spec in specs]


def _parameter(spec: ParameterSpec, value: Any, batch: torch.Size) -> Tensor:
    tensor = as_tensor(spec.name, value)
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"parameter {spec.name} must be real, but got {tensor.dtype}")
    if not tensor.dtype.is_floating_point:
        tensor = tensor.to(torch.float64)
    if tensor.ndim == 0:  # one number for every entry of all instances
        return tensor.expand((*batch, *spec.shape))
    head = tensor.ndim - len(spec.shape)
    if head < 0 or tuple(tensor.shape[head:]) != spec.shape or head > len(batch):
        raise ValueError(_shape_message(spec, tensor, batch))
    try:
        return tensor.broadcast_to((*batch, *spec.shape))
    except RuntimeError:
        raise ValueError(_shape_message(spec, tensor, batch)) from None


def _shape_message(spec: ParameterSpec, tensor: Tensor, batch: torch.Size) -> str:
    return (
        f"parameter {spec.name} has shape {tuple(tensor.shape)}, but it is declared with shape {spec.shape} and the "
        f"batch is {tuple(batch)}: give a number for all entries, {spec.shape} for all instances or "
        f"{(*batch, *spec.shape)} for each its own"
    )


_KEEPS = {
    "nonneg": (torch.ge, "nonnegative"),
    "nonpos": (torch.le, "nonpositive"),
    "pos": (torch.gt, "positive"),
    "neg": (torch.lt, "negative"),
}


def _check_values(spec: ParameterSpec, full: Tensor, batch_dimensions: int, positions: Tensor | None) -> None:
    bad, what = ~torch.isfinite(full), "finite"
    if bool(bad.any()) and any(spec.limitless):
        sign = torch.tensor(spec.limitless, dtype=full.dtype, device=full.device).reshape(spec.shape)
        bad &= ~(torch.isinf(full) & (full * sign > 0))
        what = "finite (or inf where it is the right-hand side of a <=, -inf where it is that of a >=)"
    if not bool(bad.any()) and spec.sign is not None:
        keeps, what = _KEEPS[spec.sign]
        bad = ~keeps(full, torch.zeros((), dtype=full.dtype, device=full.device))
    if bool(bad.any()):
        where = tuple(torch.nonzero(bad)[0].tolist())
        index = where[:batch_dimensions]
        whose = f" in instance {known_index(index, positions)}" if index else ""
        entry = "".join(f"[{i}]" for i in where[batch_dimensions:])
        number = full[where].item()
        if what == "finite" and math.isinf(number):
            whose += "; inf says that a <= does not bind whose right-hand side it is (-inf: a >=), to solvers of rows"
        raise ValueError(f"parameter {spec.name}{entry} must be {what}, but is {number}{whose}")
