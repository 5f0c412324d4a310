"""Batches of mixed length: which size every instance has, and which corner of its padded shape that takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from optlayers.common.tensors import as_tensor
from optlayers.form.standard import ParameterSpec, ScoredSpec

__all__ = ["FirstOf", "corner", "named_corners", "named_size", "rows_by_size", "size_table"]


def size_table(
    sizes: Any, scores: Tensor, takes: Callable[[int], bool], rank: Callable[[int], int]
) -> tuple[Int64[Tensor, "instances k"], torch.Size]:
    """One row of sizes per instance, and the batch shape, for layers over a family that ``takes`` so many sizes.

    Sizes are ``(*batch,)``, one of each instance, or ``(*batch, k)``. Where they can be read either way (one size, of
    one instance), the ``rank`` of a structure of this size decides: how many dimensions it has.

    Raises
    ------
    TypeError : when sizes are missing or no integers.
    ValueError : when they are negative or fit no leading dimensions of the scores.
    """
    if sizes is None:
        raise TypeError("a layer over a Family needs sizes=: the size of every instance, (*batch,) integers")
    table = _integers(sizes)
    shape, given = tuple(table.shape), tuple(scores.shape)
    readings = [(shape, 1), (shape[:-1], shape[-1])] if shape else [(shape, 1)]
    fitting = [
        (batch, count)
        for batch, count in readings
        if batch == given[: len(batch)] and len(batch) < len(given) and (count > 0 or 0 in batch)
    ]
    read = [(batch, count) for batch, count in fitting if takes(count)]
    if not read:  # the family says that it takes no such sizes, unless there are none
        read = fitting[:1] if table.numel() == 0 else fitting[-1:]
    if not read:
        raise ValueError(
            f"sizes have shape {shape} but scores have shape {given}: give (*batch,) or (*batch, k) with the batch "
            "dimensions of the scores"
        )
    if bool((table < 0).any()):
        where = tuple(torch.nonzero(table < 0)[0].tolist())
        raise ValueError(f"sizes must not be negative, but one is {int(table[where])}, at {list(where)}")
    batch, count = read[0]
    known = table[table > 0].tolist() if len(read) > 1 else []
    if known and len(given) - len(batch) != rank(known[0]):
        batch, count = read[1]
    return table.reshape(math.prod(batch), count), torch.Size(batch)


def _integers(sizes: Any) -> Int64[Tensor, "*shape"]:
    """Sizes as they may be handed in: a tensor, a NumPy array, or lists of numbers or of tensors."""
    if isinstance(sizes, (list, tuple)) and sizes and all(isinstance(size, Tensor) for size in sizes):
        if len({size.shape for size in sizes}) > 1:
            raise ValueError(f"sizes must have one shape, but got tensors of {[tuple(size.shape) for size in sizes]}")
        sizes = torch.stack([size.cpu() for size in sizes])
    if isinstance(sizes, Tensor):
        sizes, dtype = sizes.detach().cpu(), sizes.dtype
        try:
            sizes.tolist()
        except RuntimeError as error:
            raise TypeError(
                "sizes must be plain integers, but under vmap they have no values; keep them out of vmap (all samples "
                "then have the same sizes), or give the layer the whole batch"
            ) from error
        whole = not (sizes.dtype.is_floating_point or sizes.dtype.is_complex)
        array = sizes.numpy() if whole else np.empty(sizes.shape)
    else:
        try:
            array = np.asarray(sizes)
        except ValueError:
            raise TypeError(f"sizes must be integers in lists of equal length, but got {sizes}") from None
        dtype = array.dtype
    if array.size == 0:
        array = array.astype(np.int64)  # an empty list has no dtype to complain of
    if array.dtype.kind not in "iu":
        named = {"O": f"{type(sizes).__name__} of objects", "U": "str"}.get(array.dtype.kind, dtype)
        raise TypeError(f"sizes must be integers, but got {named}")
    if array.dtype.kind == "u" and array.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"sizes must be sizes of scores, but one is {array.max()}")
    return torch.from_numpy(np.array(array, dtype=np.int64, order="C"))


def rows_by_size(
    table: Int64[Tensor, "instances k"],
) -> list[tuple[tuple[int, ...], Int64[Tensor, " rows"]]]:
    """The sizes that occur, in order, with the places of their instances in the flat batch."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, size in enumerate(table.tolist()):
        rows.setdefault(tuple(size), []).append(row)
    return [(size, torch.tensor(rows[size], dtype=torch.int64, device="cpu")) for size in sorted(rows)]


def corner(
    shape: Sequence[int], padded: Sequence[int], size: tuple[int, ...], instance: object, name: str = "scores"
) -> tuple[slice, ...]:
    """The leading corner of the ``padded`` shape that a polytope of ``shape`` takes; ``instance`` says for whom."""
    shape, padded = tuple(shape), tuple(padded)
    if len(shape) != len(padded) or any(s > r for s, r in zip(shape, padded, strict=True)):
        more = len(padded) - len(shape)
        hint = f"; give sizes= for the whole batch, {padded[:more]}" if more > 0 and padded[more:] >= shape else ""
        raise ValueError(
            f"{instance}: size {named_size(size)} needs {name} of shape {shape} per instance, but they have "
            f"{padded}{hint}"
        )
    return tuple([slice(0, s) for s in shape])


def _refuse_narrow(
    name: str, tensor: Tensor, shape: tuple[int, ...], rows: Tensor, batch: torch.Size, size: tuple[int, ...]
) -> None:
    """Refuse a parameter that is smaller than an instance needs."""
    head = tensor.ndim - len(shape)
    if head < 0 or any(have < need for have, need in zip(tensor.shape[max(head, 0) :], shape, strict=False)):
        raise ValueError(
            f"parameter {name} has shape {tuple(tensor.shape)}, but {FirstOf(rows, batch)} of size "
            f"{named_size(size)} needs {shape}: give a number for all entries, the largest shape "
            f"that occurs for all instances, or that for each instance, behind the batch {tuple(batch)}"
        )


@final
@dataclass(slots=True)
class FirstOf:
    """How a user knows the first of the instances at these places of the flat batch, as text when it is asked for."""

    rows: Tensor
    batch: torch.Size

    def __str__(self) -> str:
        index = [int(i) for i in np.unravel_index(int(self.rows[0]), self.batch)] if self.batch else []
        return f"instance {index[0] if len(index) == 1 else tuple(index)}" if index else "the instance"


def named_size(size: Sequence[int]) -> str:
    """How messages call a size: a number, or several in parentheses."""
    return str(size[0] if len(size) == 1 else tuple(size))


def named_corners(
    specs: Sequence[ParameterSpec | ScoredSpec],
    given: Mapping[str, Any],
    rows: Tensor,
    batch: torch.Size,
    size: tuple[int, ...],
) -> dict[str, Any]:
    """The parameters of some instances of a family: their rows, and the corners that their size takes."""
    shapes = {spec.name: spec.shape for spec in specs}
    scored = {spec.name for spec in specs if isinstance(spec, ScoredSpec)}
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name not in shapes:
            chosen[name] = value  # refused by name later on
            continue
        shape = shapes[name]
        tensor = as_tensor(name, value)
        if tensor.ndim == 0:  # a number for all entries
            chosen[name] = tensor
            continue
        if name not in scored:
            _refuse_narrow(name, tensor, shape, rows, batch, size)
        if name in scored and tensor.ndim >= len(shape):
            corner(shape, tensor.shape[tensor.ndim - len(shape) :], size, FirstOf(rows, batch), name)
        if tensor.ndim > len(shape):
            if tuple(tensor.shape[: len(batch)]) != tuple(batch):
                raise ValueError(
                    f"parameter {name} has shape {tuple(tensor.shape)}, but the batch is {tuple(batch)}: give one "
                    "value for all instances, or one for each"
                )
            tensor = tensor.reshape(math.prod(batch), *tensor.shape[len(batch) :])[rows.to(tensor.device)]
        for axis, length in enumerate(shape, start=tensor.ndim - len(shape)):
            tensor = tensor.narrow(axis, 0, min(length, tensor.shape[axis]))
        chosen[name] = tensor
    return chosen
