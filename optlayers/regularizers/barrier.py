"""The logarithmic barrier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import cvxpy as cp
import numpy as np
from jaxtyping import Float64
from torch import Tensor

from optlayers.form.standard import StandardForm
from optlayers.regularizers.base import AbstractWholeRegularizer, checked_number
from optlayers.solvers.curves import Curves
from optlayers.solvers.kernels.curves import LINEAR

__all__ = ["Barrier"]

NOT_OF_PARTS = "a barrier is of constraints: it is no sum over the parts of a structure, and is infinite at structures"


@final
@dataclass(frozen=True, eq=False)
class Barrier(AbstractWholeRegularizer):
    r"""The logarithmic barrier, :math:`\Omega(z) = -\mu \sum_i \log(\text{room of inequality } i)`.

    It counts every bound and every inequality of the declaration, those of auxiliary variables too, as
    :func:`optlayers.compile_polytope` finds them: the same polytope declared by other inequalities has another barrier.
    The regularized point is that of the central path which interior point methods follow to a best vertex: strictly
    inside of all inequalities, and as :math:`\mu` falls to 0 at the middle of the best face. There is no such point
    where an inequality is an equality in disguise, and no Fenchel-Young loss, as structures lie at bounds. What
    forbidden parts leave no room is left out.

    Parameters
    ----------
    mu : positive: a number, or a ``cp.Parameter`` for one of the instance.

    References
    ----------
    Wright (1997), Primal-dual interior-point methods.
    """

    mu: float | cp.Parameter = 0.1
    number_name = "mu"
    why_whole = NOT_OF_PARTS
    without_loss = "is infinite at structures, so that no loss of them is finite"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mu", checked_number("mu", self.mu, "Barrier"))

    @property
    def number(self) -> float | cp.Parameter:
        """μ."""
        return self.mu

    def check_shape(self, form: StandardForm) -> None:
        """One number for all constraints."""
        if isinstance(self.mu, cp.Parameter) and self.mu.shape != ():
            raise ValueError(
                f"mu of Barrier is one number, but the parameter {self.mu.name()} has shape {self.mu.shape}"
            )

    def curves(self, form: StandardForm, theta: Float64[Tensor, "batch parameters"] | None) -> Curves:
        """A barrier at all bounds of all columns."""
        mu = self.checked(form, theta)
        kind = np.full(form.columns, LINEAR, dtype=np.int64)
        ones = np.ones((len(mu), form.columns))
        return Curves(kind, ones, ones, mu[:, 0])

    def __repr__(self) -> str:
        return f"Barrier(mu={self.mu.name() if isinstance(self.mu, cp.Parameter) else f'{self.mu:g}'})"
