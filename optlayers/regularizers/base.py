"""What a regularizer is: a convex function of points, a sum over parts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from optlayers.form.cones import ConeProgram
from optlayers.form.quadratic import QuadraticProgram
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.polytope import Polytope
from optlayers.solvers.conic import ConicProgram
from optlayers.solvers.curves import Curves
from optlayers.solvers.kernels.curves import LINEAR, QUADRATIC

__all__ = ["AbstractRegularizer", "AbstractWholeRegularizer", "checked_number"]


class AbstractRegularizer(ABC):
    r"""A convex function :math:`\Omega(z) = \sum_j \omega_j(z_j)` of the parts of a structure, a number for each.

    A value: it can be printed, compared and reused. Its number (a weight, a temperature, a power) is one for all parts
    or one for each, and may be a :class:`cvxpy.Parameter`: then it is data of the instance, given by its name in every
    call, and has a gradient. Everything is written in torch operations, so that it can be differentiated again, on
    float64 tensors: points ``(batch, size)`` in C order, numbers ``(batch or 1, size or 1)``.
    """

    above: float = 0.0
    """Numbers must be finite, and above this."""
    of_parts: bool = True
    """Whether it is a sum over parts; one that is not is infinite at structures, and is differentiated once."""
    without_loss: str = ""
    """Why there is no Fenchel-Young loss, where it is no sum over parts."""
    kind_of_fixed: int = QUADRATIC
    """The kind of parts that have no column, as constraints fix them."""

    @property
    @abstractmethod
    def number(self) -> float | np.ndarray | cp.Parameter:
        """The number of all parts, or of each."""

    @property
    @abstractmethod
    def number_name(self) -> str:
        """How it is called."""

    @abstractmethod
    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """The kind of every column of the structure in a standard form."""

    @abstractmethod
    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """ω of every part; inf outside of its domain."""

    @abstractmethod
    def slope(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """ω' of every part inside of its domain."""

    @abstractmethod
    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """ω'' of every part inside of its domain."""

    def columns(
        self, number: Float64[np.ndarray, "rows curved"]
    ) -> tuple[Float64[np.ndarray, "rows curved"], Float64[np.ndarray, "rows curved"]]:
        """The weights and the powers of columns that have these numbers."""
        return number, np.full(number.shape, 2.0)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._key == self._key

    def __hash__(self) -> int:
        return hash((type(self), self._key))

    @property
    def _key(self) -> Any:
        # "==" makes a constraint of cvxpy parameters.
        number = self.number
        return id(number) if isinstance(number, cp.Parameter) else (np.shape(number), tuple(np.ravel(number).tolist()))

    @property
    def projects(self) -> float | None:
        """w, where regularized points are the nearest points to s / w, for which constraints need not be known."""
        return None

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """The parameter that is its number, if it is one."""
        return (self.number,) if isinstance(self.number, cp.Parameter) else ()

    def over(self, polytope: Polytope) -> QuadraticProgram | ConicProgram | None:
        """The program that it is over a polytope; None for a sum over parts."""
        return None

    def over_cones(self, polytope: Polytope) -> ConeProgram | ConicProgram | None:
        """The program that it is over a set that is not polyhedral; None for weights of the squares of parts.

        Raises
        ------
        DeclarationError : where there is none.
        """
        raise DeclarationError(
            f"{self!r} is for polytopes, and this set is not polyhedral: there, regularizers are Euclidean(weights), "
            "Entropy(temperature) and convex expressions of cvxpy"
        )

    def kinds(self, form: StandardForm) -> Int64[Tensor, " size"]:
        """The kind of every part of the structure; one that constraints fix has a kind, too."""
        found = np.full(form.structure_size, self.kind_of_fixed, dtype=np.int64)
        found[form.kept[: form.curved]] = self.kind_of(form)
        return torch.from_numpy(found)

    def numbers(
        self, form: StandardForm, theta: Float64[Tensor, "batch parameters"] | None
    ) -> Float64[Tensor, "rows parts"]:
        """The number of every part, from the parameters of instances where it is one of them."""
        number = self.number
        if isinstance(number, cp.Parameter):
            spec = next((spec for spec in form.parameters if spec.name == number.name()), None)
            if spec is None or theta is None:
                raise TypeError(
                    f"the polytope does not know the parameter {number.name()} of {self!r}: layers and losses make it "
                    "known; for a compiled polytope, compile polytope.beside([parameter])"
                )
            return theta[:, spec.span]
        flat = np.atleast_1d(np.asarray(number, dtype=np.float64)).reshape(1, -1)
        return torch.from_numpy(flat.copy()).to("cpu" if theta is None else theta.device)

    def check_shape(self, form: StandardForm) -> None:
        """Refuse numbers that are neither one for all parts nor one for each."""
        shape = tuple(np.shape(self.number) if not isinstance(self.number, cp.Parameter) else self.number.shape)
        if shape not in ((), form.shape):
            raise ValueError(
                f"{self.number_name} of {type(self).__name__} has shape {shape}, but the polytope has shape "
                f"{form.shape}: give one number for all parts, or one for each"
            )

    def checked(
        self, form: StandardForm, theta: Float64[Tensor, "batch parameters"] | None
    ) -> Float64[np.ndarray, "rows parts"]:
        """The number of every part.

        Raises
        ------
        ValueError : numbers out of range, naming the instance.
        """
        self.check_shape(form)
        number: np.ndarray = self.numbers(form, theta).detach().cpu().numpy()
        bad = ~(np.isfinite(number) & (number > self.above))
        if bad.any():
            k, entry = (int(i) for i in np.argwhere(bad)[0])
            whose = f" in instance {k}" if len(number) > 1 else ""
            raise ValueError(
                f"{self.number_name} of {type(self).__name__} must be finite and above {self.above:g}, but is "
                f"{number[k, entry]:g}{whose}"
            )
        return number

    def curves(self, form: StandardForm, theta: Float64[Tensor, "batch parameters"] | None) -> Curves:
        """The regularizer over the columns of a form; those beside the structure have no curvature."""
        number = self.checked(form, theta)
        of_columns = number if number.shape[1] == 1 else number[:, form.kept[: form.curved]]
        weights, powers = self.columns(np.broadcast_to(of_columns, (len(number), form.curved)))
        kind = np.full(form.columns, LINEAR, dtype=np.int64)
        weight, power = np.ones((len(number), form.columns)), np.full((len(number), form.columns), 2.0)
        kind[: form.curved] = self.kind_of(form)
        weight[:, : form.curved], power[:, : form.curved] = weights, powers
        return Curves(kind, weight, power, np.zeros(1))


class AbstractWholeRegularizer(AbstractRegularizer):
    """A regularizer that is no sum over parts: parts have no function of their own, and no curvature."""

    of_parts = False
    kind_of_fixed = LINEAR
    why_whole: str
    """Why not, in words."""

    def kind_of(self, form: StandardForm) -> Int64[np.ndarray, " curved"]:
        """No curvature of its own for each."""
        return np.full(form.curved, LINEAR, dtype=np.int64)

    def worth(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """There is none for a part."""
        raise NotImplementedError(self.why_whole)

    def slope(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """There is none for a part."""
        raise NotImplementedError(self.why_whole)

    def curvature(
        self, points: Float64[Tensor, "batch size"], kind: Int64[Tensor, " size"], number: Float64[Tensor, "rows parts"]
    ) -> Float64[Tensor, "batch size"]:
        """There is none for a part."""
        raise NotImplementedError(self.why_whole)


def checked_number(name: str, value: Any, owner: str, *, above: float = 0.0) -> float | cp.Parameter:
    """A finite number above another one, or a parameter for one, or an error that says what was given."""
    if isinstance(value, cp.Parameter):
        return value
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"{name} of {owner} is a tensor that requires a gradient: declare it as "
                f'cp.Parameter(pos=True, name="{name}") and give it in every call, layer(scores, {name}=tensor)'
            )
        value = value.item() if value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} of {owner} is a number, but got {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and value > above):
        raise ValueError(f"{name} of {owner} must be finite and above {above:g}, but got {value!r}")
    return float(value)
