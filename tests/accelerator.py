"""The device of the tests marked ``device``, as OPTLAYERS_DEVICE names it.

``cuda`` is a GPU, ``cpu`` the CPU in the part of a device. ``pretended`` is computed by the CPU too, but its tensors
are not there: as on a GPU they do not meet those of the CPU in one operation, and NumPy cannot read them. That is slow,
so only tests of where tensors live take it when nothing is named; the others take ``cpu``.
"""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["AWAY", "DEVICE", "Pretended", "moved"]


def _named(default: str) -> torch.device:
    """PyTorch's device ``meta`` bears the pretended one: autograd knows it in every build."""
    name = os.environ.get("OPTLAYERS_DEVICE") or default
    return torch.device("meta" if name == "pretended" else name)


DEVICE, AWAY = _named("cpu"), _named("pretended")


def moved(given: Any, device: torch.device = DEVICE) -> Any:
    """A tensor, or the tensors of a dictionary or of a dataclass, on a device."""
    if isinstance(given, Tensor):
        return given.to(device)
    if isinstance(given, dict):
        return {name: moved(value, device) for name, value in given.items()}
    assert is_dataclass(given) and not isinstance(given, type)
    values = {f.name: getattr(given, f.name) for f in fields(given) if f.init}
    return replace(given, **{name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)})


class There(Tensor):
    """A tensor of the pretended device; ``numbers`` are on the CPU."""

    is_meta = False
    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device="meta",
        )
        made.numbers = numbers
        return made

    def __init__(self, _: Tensor) -> None:
        super().__init__()

    def tolist(self) -> Any:
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        return _computed(operation, given, named or {})


class Pretended(TorchDispatchMode):
    """While it is entered, the device ``meta`` has numbers. (``torch.tensor(numbers, device=...)`` does not ask it.)"""

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        return _computed(operation, given, named or {})


def _computed(operation: Any, given: Any, named: dict[str, Any]) -> Any:
    name = operation._schema.name.removeprefix("aten::")
    tensors = [t for t in tree_flatten((given, named))[0] if isinstance(t, Tensor)]
    there = any(isinstance(t, There) for t in tensors)
    if there:
        _refuse_two_devices(name, given, tensors)
    inside, options = tree_map(lambda t: t.numbers if isinstance(t, There) else t, (given, named))
    asked = options.get("device")
    if asked is not None:
        there = torch.device(asked).type == "meta"
        options["device"] = torch.device("cpu")
    elif name == "copy_":
        there = isinstance(given[0], There)
    found = operation(*inside, **options)
    if not there:
        return found
    wrapped = tree_map(lambda t: There(t) if isinstance(t, Tensor) else t, found)
    return wrapped if asked is not None else return_and_correct_aliasing(operation, given, named, wrapped)


def _refuse_two_devices(name: str, given: Any, tensors: list[Tensor]) -> None:
    """As CUDA does: but for copies, numbers without dimensions, and indices from the CPU."""
    if name in ("copy_", "_to_copy"):
        return
    if name.startswith(("index.", "index_put", "_index_put")) or name == "index":
        tensors = [given[0], *given[2:3]]
    if any(not isinstance(t, There) and t.dim() > 0 for t in tensors):
        shapes = [tuple(t.shape) for t in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {shapes}")
