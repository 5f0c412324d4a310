"""What tensors must be that are handed in, and their numbers in another shape, dtype or place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg.blas import ddot
from torch import Tensor

__all__ = [
    "all_finite",
    "all_finite_in",
    "as_tensor",
    "check_dense",
    "check_direction",
    "check_finite",
    "check_generator",
    "check_scores",
    "known_index",
    "moved",
    "of_structure",
    "owned",
    "padded",
    "sum_of_squares",
]

FEW = 10_000
"""So many numbers at most NumPy copies quicker than torch, which has threads for more."""
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_scores(scores: Tensor, name: str = "scores") -> None:
    """Scores are a real floating-point tensor without NaN and +inf."""
    if not isinstance(scores, Tensor):
        hint = "; torch.stack makes one of several" if isinstance(scores, (list, tuple)) else ""
        raise TypeError(f"{name} must be a torch.Tensor, but got {type(scores).__name__}{hint}")
    if scores.dtype not in DTYPES:
        raise TypeError(f"{name} must be real and floating-point (float64, float32, bfloat16), but got {scores.dtype}")
    if scores.layout is not torch.strided or scores.is_meta:
        check_dense(scores, name)


def check_dense(values: Tensor, name: str) -> None:
    """Refuse tensors that have no number in memory for every entry."""
    if values.is_meta:
        raise TypeError(f"{name} must hold numbers, but a tensor on the device meta has none")
    if values.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, but got layout {values.layout}; use to_dense()")


def check_generator(generator: Any) -> None:
    """Random numbers come from a :class:`torch.Generator`, or from torch's own for None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, but got {type(generator).__name__}; make one by "
            "torch.Generator().manual_seed(0)"
        )


def check_finite(scores: Tensor, batch_dimensions: int, positions: Tensor | None = None, name: str = "scores") -> bool:
    """Refuse NaN and +inf, saying where; whether some part is forbidden, by -inf.

    ``positions`` ``(*batch, k)`` are the indices that a user knows the instances by, where they are not their own.
    """
    if all_finite(scores):
        return False
    bad = torch.isnan(scores) | (scores == torch.inf)
    if bool(bad.any()):
        where = tuple(torch.nonzero(bad)[0].tolist())
        value = scores.detach()[where].item()
        index, entry = known_index(where[:batch_dimensions], positions), list(where[batch_dimensions:])
        raise ValueError(
            f"{name} hold {value} at batch index {index}, entry {entry} "
            f"({int(bad.sum())} such values in all); scores are finite, or -inf for a part that is forbidden"
        )
    return bool((scores == -torch.inf).any())


def check_direction(direction: Tensor, answered: Tensor, name: str = "direction") -> None:
    """Refuse numbers that are not finite, saying where, for the instances ``(*batch,)`` that are ``answered``."""
    if all_finite(direction):
        return
    depth = answered.ndim
    mine = answered.to(direction.device).reshape(*answered.shape, *[1] * (direction.ndim - depth))
    bad = ~torch.isfinite(direction) & mine
    if bool(bad.any()):
        where = tuple(torch.nonzero(bad)[0].tolist())
        raise ValueError(
            f"{name} holds {direction.detach()[where].item()} at batch index {known_index(where[:depth], None)}, entry "
            f"{list(where[depth:])} ({int(bad.sum())} such values in all); directions are finite"
        )


def known_index(index: Sequence[int], positions: Tensor | None) -> int | tuple[int, ...]:
    """Under which index a user knows an instance; ``positions`` says where it was in the whole batch."""
    if positions is not None:
        index = positions[tuple(index)].tolist()
    return int(index[0]) if len(index) == 1 else tuple(index)


def all_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity."""
    quick = values.is_cpu and values.dtype is torch.float64 and not values.is_neg()
    if quick and sum_of_squares(values) < math.inf:  # which is finite only where all numbers are
        return True
    return bool(torch.isfinite(values).all())


def sum_of_squares(values: Tensor) -> float:
    """Of float64 on the CPU, infinite or NaN without a warning."""
    numbers = (values.detach() if values.requires_grad else values).numpy().ravel()
    return float(ddot(numbers, numbers)) if len(numbers) else 0.0  # 0.1 µs, where a product of torch takes 3


def all_finite_in(values: np.ndarray) -> bool:
    """Whether an array has neither NaN nor infinity."""
    return bool(np.count_nonzero(np.isfinite(values)) == values.size)


def moved(value: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers of a tensor in another shape and dtype, elsewhere; one that has all of that already is not touched.

    It has its numbers in memory, where one that is lazily negated (the imaginary part of a conjugate) has others.
    """
    if value.is_neg():
        value = value.resolve_neg()
    if value.dtype is not dtype or value.device != device:
        value = value.to(device, dtype)
    if value.shape == shape:
        return value
    return value.reshape(*shape) if shape else value.reshape(())  # torch takes much longer over a torch.Size


def owned(value: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers of a tensor in another shape and dtype, elsewhere, in memory of their own by one copy.

    It is made last, so that autograd does not take the result for a view, which could not be written to.
    """
    if value.shape != shape:
        value = value.reshape(*shape) if shape else value.reshape(())
    if value.dtype is dtype and value.device == device:
        return value.clone()
    return value.to(device, dtype, copy=True)


def padded(flat: Float[Tensor, "batch structure_size"], size: int) -> Float[Tensor, "batch size"]:
    """A vector over the structure, with zeros for scored auxiliary variables."""
    missing = size - flat.shape[1]
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


def of_structure(
    flat: Float[Tensor, "*apart batch size"], structure_size: int
) -> Float[Tensor, "*apart batch structure_size"]:
    """The part of a scored vector that is the structure."""
    return flat if flat.shape[-1] == structure_size else flat[..., :structure_size]


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor, with its gradient, or the numbers of anything else that holds some, on the CPU."""
    if _holds_tensors(value):
        try:
            value = torch.stack([as_tensor(name, part) for part in value])
        except RuntimeError as error:
            raise ValueError(f"the tensors in the list that is parameter {name} do not fit together: {error}") from None
    if isinstance(value, Tensor):
        check_dense(value, f"parameter {name}")
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"parameter {name} must hold real numbers, but got {array.dtype}")
    if array.dtype.kind in "iu" or array.dtype.itemsize > 8:
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) or _holds_tensors(v) for v in value)
