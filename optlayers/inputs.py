"""The doors: what callers hand in is checked here, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from optlayers.solvers.kernels import finite
from optlayers.standard_form import ParameterSpec, ScoredSpec

__all__ = [
    "all_finite",
    "all_finite_in",
    "any_below",
    "auxiliary_scores",
    "auxiliary_tensors",
    "batch_shape",
    "check_auxiliary",
    "check_dense",
    "check_finite",
    "check_generator",
    "check_parameters",
    "check_scores",
    "corner",
    "flatten_parameter",
    "flatten_scored",
    "flatten_scores",
    "moved",
    "of_structure",
    "owned",
    "padded",
    "parameter_corners",
    "parameter_shapes",
    "parameter_tensors",
    "positions",
    "precision",
    "size_table",
    "split_forbidden",
    "split_named",
    "with_auxiliary",
]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DOUBLE = torch.finfo(torch.float64).eps
NONE: frozenset[str] = frozenset()


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
        index, entry = _known_index(where[:batch_dimensions], positions), list(where[batch_dimensions:])
        raise ValueError(
            f"{name} hold {value} at batch index {index}, entry {entry} "
            f"({int(bad.sum())} such values in all); scores are finite, or -inf for a part that is forbidden"
        )
    return bool((scores == -torch.inf).any())


def all_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity."""
    if values.is_cpu and values.dtype in (torch.float64, torch.float32) and not values.is_neg():
        return all_finite_in((values.detach() if values.requires_grad else values).numpy())
    return bool(torch.isfinite(values).all())


def all_finite_in(values: np.ndarray) -> bool:
    """Whether an array has neither NaN nor infinity."""
    return bool(finite.all_finite(values.reshape(-1)))


def any_below(values: Tensor, limit: float) -> bool:
    """Whether some number is at most ``limit``."""
    if values.is_cpu and values.dtype in (torch.float64, torch.float32):
        return bool(finite.any_below((values.detach() if values.requires_grad else values).numpy().reshape(-1), limit))
    return bool((values <= limit).any())


def batch_shape(scores: Tensor, shape: tuple[int, ...]) -> torch.Size:
    """The batch dimensions of scores for a structure of ``shape``."""
    given, head = scores.shape, scores.ndim - len(shape)
    if head < 0 or given[head:] != shape:
        raise ValueError(f"scores end in {tuple(given[max(head, 0) :])} but the polytope has shape {tuple(shape)}")
    return given[:head]


def flatten_scores(
    scores: Tensor, shape: tuple[int, ...], home: torch.device | str = "cpu"
) -> Float[Tensor, "batch size"]:
    """float64 on the device where they are solved, one row per instance."""
    batch = batch_shape(scores, shape)
    return moved(scores.detach(), (math.prod(batch), math.prod(shape)), torch.float64, torch.device(home))


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


def split_named(
    auxiliaries: Sequence[ScoredSpec], given: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """What is given by name: the scores of auxiliary variables, and the rest."""
    if not auxiliaries:
        return {}, given
    names = {spec.name for spec in auxiliaries}
    return {n: v for n, v in given.items() if n in names}, {n: v for n, v in given.items() if n not in names}


def auxiliary_scores(
    specs: Sequence[ScoredSpec], given: Mapping[str, Any], batch: torch.Size, positions: Tensor | None = None
) -> tuple[dict[str, Tensor], bool]:
    """The scores of every scored auxiliary variable, ``(*batch, *shape)``, in the order of the declaration.

    And whether some part is forbidden.

    Raises
    ------
    TypeError, ValueError : as for the scores themselves; scores that are missing.
    """
    found, once = auxiliary_tensors(specs, given, batch)
    forbids = False
    for name, scores in found.items():
        forbids |= check_auxiliary(name, scores, len(batch), name in once, positions)
    return found, forbids


def auxiliary_tensors(
    specs: Sequence[ScoredSpec], given: Mapping[str, Any], batch: torch.Size
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Scores of auxiliary variables in the shape of a batch, their numbers unseen, and the names of those that are
    given once for all instances."""
    if not specs:
        return {}, NONE
    found: dict[str, Tensor] = {}
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
        found[name] = scores.expand((*batch, *spec.shape))
    return found, frozenset(once)


def check_auxiliary(
    name: str, scores: Tensor, batch_dimensions: int, once: bool, positions: Tensor | None = None
) -> bool:
    """Refuse NaN and +inf in the scores of an auxiliary variable; whether some part is forbidden."""
    if not once:
        return check_finite(scores, batch_dimensions, positions, name)
    return bool(scores.numel()) and check_finite(scores[(0,) * batch_dimensions], 0, None, name)


def flatten_scored(
    scores: Tensor, size: tuple[int, int], auxiliary: Collection[Tensor], batch_dimensions: int, home: torch.device
) -> Float[Tensor, "batch size"]:
    """The scored vector of every instance, float64: the scores of the structure, then those of auxiliary variables.

    ``size`` counts instances, and entries of a structure.
    """
    flat = moved(scores.detach() if scores.requires_grad else scores, size, torch.float64, home)
    return with_auxiliary(flat, auxiliary, batch_dimensions, home) if auxiliary else flat


def with_auxiliary(
    flat: Float[Tensor, "batch structure_size"],
    auxiliary: Iterable[Tensor],
    batch_dimensions: int,
    home: torch.device | str = "cpu",
) -> Float[Tensor, "batch size"]:
    """Flat scores of the structure, then the ones of auxiliary variables."""
    further = [
        moved(a.detach(), (len(flat), math.prod(a.shape[batch_dimensions:])), torch.float64, torch.device(home))
        for a in auxiliary
    ]
    return torch.cat([flat, *further], dim=1) if further else flat


def padded(flat: Float[Tensor, "batch structure_size"], size: int) -> Float[Tensor, "batch size"]:
    """A vector over the structure, with zeros for scored auxiliary variables."""
    missing = size - flat.shape[1]
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


def of_structure(
    flat: Float[Tensor, "*apart batch size"], structure_size: int
) -> Float[Tensor, "*apart batch structure_size"]:
    """The part of a scored vector that is the structure."""
    return flat if flat.shape[-1] == structure_size else flat[..., :structure_size]


def split_forbidden(
    scores: Float[Tensor, "batch size"],
) -> tuple[Float[Tensor, "batch size"], Bool[Tensor, "batch size"]]:
    """Finite scores, and the forbidden parts."""
    forbidden = scores == -torch.inf
    return scores.masked_fill(forbidden, 0.0), forbidden


def flatten_parameter(value: Tensor, instances: int, batch_dimensions: int, home: torch.device | str = "cpu") -> Tensor:
    """float64 on the device where the instances are solved, ``(instances, *shape)``."""
    return value.detach().to(home, torch.float64).reshape(instances, *value.shape[batch_dimensions:])


def precision(given: Mapping[str, Tensor]) -> dict[str, float]:
    """The machine epsilon of parameters: what is known of sums of them."""
    return {name: torch.finfo(value.dtype).eps for name, value in given.items()}


def _known_index(index: Sequence[int], positions: Tensor | None) -> int | tuple[int, ...]:
    if positions is not None:
        index = positions[tuple(index)].tolist()
    return int(index[0]) if len(index) == 1 else tuple(index)


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
    shape, room = tuple(table.shape), tuple(scores.shape)
    readings = [(shape, 1), (shape[:-1], shape[-1])] if shape else [(shape, 1)]
    fitting = [
        (batch, count)
        for batch, count in readings
        if batch == room[: len(batch)] and len(batch) < len(room) and (count > 0 or 0 in batch)
    ]
    read = [(batch, count) for batch, count in fitting if takes(count)]
    if not read:  # the family says that it takes no such sizes, unless there are none
        read = fitting[:1] if table.numel() == 0 else fitting[-1:]
    if not read:
        raise ValueError(
            f"sizes have shape {shape} but scores have shape {room}: give (*batch,) or (*batch, k) with the batch "
            "dimensions of the scores"
        )
    if bool((table < 0).any()):
        raise ValueError(f"sizes must not be negative, but one is {int(table.min())}")
    batch, count = read[0]
    known = table[table > 0].tolist() if len(read) > 1 else []
    if known and len(room) - len(batch) != rank(known[0]):
        batch, count = read[1]
    return table.reshape(math.prod(batch), count), torch.Size(batch)


def _integers(sizes: Any) -> Int64[Tensor, "*shape"]:
    """Sizes as they may be handed in: a tensor, a NumPy array, or lists of numbers or of tensors."""
    if isinstance(sizes, (list, tuple)) and sizes and all(isinstance(size, Tensor) for size in sizes):
        if len({size.shape for size in sizes}) > 1:
            raise ValueError(f"sizes must have one shape, but got tensors of {[tuple(size.shape) for size in sizes]}")
        sizes = torch.stack([size.cpu() for size in sizes])
    if isinstance(sizes, Tensor):
        sizes, dtype = sizes.detach().cpu(), str(sizes.dtype)
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
        dtype = {"O": f"{type(sizes).__name__} of objects", "U": "str"}.get(array.dtype.kind, str(array.dtype))
    if array.size == 0:
        array = array.astype(np.int64)  # an empty list has no dtype to complain of
    if array.dtype.kind not in "iu":
        raise TypeError(f"sizes must be integers, but got {dtype}")
    if array.dtype.kind == "u" and array.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"sizes must be sizes of scores, but one is {array.max()}")
    return torch.from_numpy(np.array(array, dtype=np.int64, order="C"))


def positions(rows: Int64[Tensor, " rows"], batch: torch.Size) -> Int64[Tensor, "rows dimensions"]:
    """The indices of some instances in a batch, from their places in the flat one."""
    return torch.stack(torch.unravel_index(rows, batch), dim=1) if batch else rows.new_zeros(len(rows), 0)


def corner(shape: Sequence[int], room: Sequence[int], size: tuple[int, ...], name: str = "scores") -> tuple[slice, ...]:
    """The leading corner of ``room`` that a polytope of ``shape`` takes."""
    shape, room = tuple(shape), tuple(room)
    if len(shape) != len(room) or any(s > r for s, r in zip(shape, room, strict=True)):
        named = size[0] if len(size) == 1 else size
        more = len(room) - len(shape)
        hint = f"; give sizes= for the whole batch, {room[:more]}" if more > 0 and room[more:] >= shape else ""
        raise ValueError(f"size {named} needs {name} of shape {shape} per instance, but they have {room}{hint}")
    return tuple(slice(0, s) for s in shape)


def parameter_corners(
    specs: Sequence[ParameterSpec | ScoredSpec], given: Mapping[str, Any], rows: Tensor, batch: torch.Size
) -> dict[str, Any]:
    """The parameters of some instances of a family: their rows, and the corners that their size takes."""
    shapes = {spec.name: spec.shape for spec in specs}
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name not in shapes:
            chosen[name] = value  # refused by name later on
            continue
        shape = shapes[name]
        tensor = _as_tensor(name, value)
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


def parameter_tensors(
    specs: Sequence[ParameterSpec], given: Mapping[str, Any], batch: torch.Size, positions: Tensor | None = None
) -> dict[str, Tensor]:
    """One tensor ``(*batch, *shape)`` per parameter, broadcast over the batch where it was given once.

    Raises
    ------
    TypeError : for missing or unexpected names, and for values that are not real numbers.
    ValueError : for wrong shapes, values that are not finite, and signs that differ from the declared one.
    """
    found = parameter_shapes(specs, given, batch)
    check_parameters(specs, found.values(), len(batch), positions)
    return found


def parameter_shapes(specs: Sequence[ParameterSpec], given: Mapping[str, Any], batch: torch.Size) -> dict[str, Tensor]:
    """The values of all parameters in the shape of a batch, their numbers unseen."""
    if not specs and not given:
        return {}
    expected = [spec.name for spec in specs]
    missing, extra = [n for n in expected if n not in given], [n for n in given if n not in expected]
    if missing or extra:
        told = "; ".join(f"{what} {names}" for what, names in (("missing", missing), ("unexpected", extra)) if names)
        raise TypeError(f"parameters do not match the declaration: {told}; the polytope declares {expected}")
    return {spec.name: _parameter(spec, given[spec.name], batch) for spec in specs}


def check_parameters(
    specs: Sequence[ParameterSpec], given: Iterable[Tensor], batch_dimensions: int, positions: Tensor | None = None
) -> None:
    """Refuse parameters ``(*batch, *shape)`` that are not finite or lack the declared sign, saying where."""
    for spec, value in zip(specs, given, strict=True):
        _check_values(spec, value.detach(), batch_dimensions, positions)


def _parameter(spec: ParameterSpec, value: Any, batch: torch.Size) -> Tensor:
    tensor = _as_tensor(spec.name, value)
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"parameter {spec.name} must be real, but got {tensor.dtype}")
    if not tensor.dtype.is_floating_point:
        tensor = tensor.to(torch.float64)
    head = tensor.ndim - len(spec.shape)
    if head < 0 or tuple(tensor.shape[head:]) != spec.shape or head > len(batch):
        raise ValueError(_shape_message(spec, tensor, batch))
    try:
        return tensor.broadcast_to((*batch, *spec.shape))
    except RuntimeError:
        raise ValueError(_shape_message(spec, tensor, batch)) from None


def _as_tensor(name: str, value: Any) -> Tensor:
    """A tensor, with its gradient, or the numbers of anything else that holds some, on the CPU."""
    if _holds_tensors(value):
        try:
            value = torch.stack([_as_tensor(name, part) for part in value])
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


def _shape_message(spec: ParameterSpec, tensor: Tensor, batch: torch.Size) -> str:
    return (
        f"parameter {spec.name} has shape {tuple(tensor.shape)}, but it is declared with shape {spec.shape} and the "
        f"batch is {tuple(batch)}: give {spec.shape} for all instances or {(*batch, *spec.shape)} for each its own"
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
        whose = f" in instance {_known_index(index, positions)}" if index else ""
        entry = "".join(f"[{i}]" for i in where[batch_dimensions:])
        found = full[where].item()
        if what == "finite" and math.isinf(found):
            whose += "; inf says that a <= does not bind whose right-hand side it is (-inf: a >=), to solvers of rows"
        raise ValueError(f"parameter {spec.name}{entry} must be {what}, but is {found}{whose}")
