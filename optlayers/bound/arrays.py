"""The arrays of a standard form on a device."""

from __future__ import annotations

from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.common.caches import Cache
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.standard import AffineMap, StandardForm

__all__ = ["DeviceArrays", "finite"]


@final
class DeviceArrays:
    """The arrays of a standard form as dense tensors on a device, made once."""

    def __init__(self, form: StandardForm, device: torch.device) -> None:
        self.form = form
        self.kept = torch.from_numpy(form.kept).to(device)
        self.fixed = torch.from_numpy(form.fixed).to(device)
        self.matrix = torch.from_numpy(form.matrix.toarray()).to(device)
        self.row = torch.from_numpy(form.matrix.indices.astype(np.int64)).to(device)
        self.column = torch.from_numpy(form.entry_column.astype(np.int64)).to(device)
        self.matrix_map = torch.from_numpy(form.matrix_map.toarray()).to(device)
        self.limitless = any(any(spec.limitless) for spec in form.parameters)
        self.held: Cache[bytes, tuple[Tensor, Tensor] | None] = Cache()
        """Without parameters, the columns that constraints leave one value, and these values; None for none."""
        self.row_scale = torch.from_numpy(form.row_scale).to(device)
        self.maps = {
            name: self._map(part, device)
            for name, part in (
                ("rhs", form.rhs),
                ("lower", form.lower),
                ("upper", form.upper),
                ("consistency", form.consistency),
            )
        }

    @classmethod
    def of(cls, prepared: AbstractPrepared, device: torch.device) -> DeviceArrays:
        """Those of a polytope, made when they are first asked for."""
        if prepared.rows is None:
            raise TypeError("sets that are not polyhedral are solved on the CPU")
        arrays: DeviceArrays = prepared.on_devices.get(device, partial(cls, prepared.rows))
        return arrays

    @staticmethod
    def _map(part: AffineMap, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(part.constant).to(device), torch.from_numpy(part.matrix.toarray()).to(device)

    def values(self, name: str, theta: Float64[Tensor, "batch parameters"]) -> Float64[Tensor, "batch entries"]:
        """The numbers of every instance, infinite where a parameter that enters them is."""
        constant, matrix = self.maps[name]
        values = constant + finite(theta) @ matrix.mT
        if not self.limitless:
            return values
        beyond = torch.where(torch.isinf(theta), theta.sign(), 0.0) @ matrix.mT
        return torch.where(beyond == 0.0, values, beyond * torch.inf)


def finite(theta: Float64[Tensor, "batch parameters"]) -> Float64[Tensor, "batch parameters"]:
    """The parameters with 0 for those without limit: products of 0 and an infinite number are none."""
    return torch.where(torch.isinf(theta), 0.0, theta)
