"""The verdict on an answer, whoever gave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float64

from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import certificate as kernel
from optlayers.solvers.plan import Batch, Plan, plan_of
from optlayers.standard_form import StandardForm

__all__ = ["Certificate", "certify", "times_transpose"]

ROUNDING = 64 * np.finfo(np.float64).eps
"""Relative error of a sum of products. Next to scores of 1e9 the dual point has such entries too, and the bound is no
sharper than their rounding."""


@final
@dataclass(frozen=True)
class Certificate:
    """Per instance: the largest violation, the gap, and both relative to the size of the numbers involved."""

    residual: Float64[np.ndarray, " batch"]
    gap: Float64[np.ndarray, " batch"]
    relative: Float64[np.ndarray, " batch"]

    @classmethod
    def room(cls, batch: int) -> Certificate:
        """To be written to, all of it."""
        return cls(np.empty(batch), np.empty(batch), np.empty(batch))

    @classmethod
    def empty(cls, batch: int) -> Certificate:
        """Of instances without an answer."""
        return cls(np.full(batch, np.nan), np.full(batch, np.nan), np.full(batch, np.inf))

    def replace(self, index: np.ndarray, other: Certificate, which: np.ndarray) -> None:
        """Take over the verdicts ``which`` of ``other`` for the instances ``index``."""
        self.residual[index], self.gap[index] = other.residual[which], other.gap[which]
        self.relative[index] = other.relative[which]

    def holds(self, tolerance: float) -> Bool[np.ndarray, " batch"]:
        """Which instances are certified."""
        return self.relative <= tolerance

    def all_hold(self, tolerance: float) -> bool:
        """Whether every instance is certified."""
        return bool(np.count_nonzero(self.relative <= tolerance) == len(self.relative))

    def judge(
        self,
        form: StandardForm,
        plan: Plan,
        batch: Batch,
        projection: bool,
        which: np.ndarray,
        point: np.ndarray,
        dual: np.ndarray,
    ) -> None:
        """Fill in the instances ``which``; see :func:`certify`."""
        kernel.certify(
            plan.start,
            plan.row,
            batch.matrix,
            form.equalities,
            batch.scores,
            form.curved if projection else 0,
            batch.rhs,
            batch.lower,
            batch.upper,
            which,
            ROUNDING,
            point,
            dual,
            self.residual,
            self.gap,
            self.relative,
        )


def certify(
    form: StandardForm,
    instances: Instances,
    point: Float64[np.ndarray, "batch columns"],
    dual: Float64[np.ndarray, "batch rows"],
    *,
    projection: bool,
) -> Certificate:
    r"""How far ``point`` is from the best one, proved by ``dual``.

    For any y, :math:`\max_z c^\top z \le b^\top y + \sum_i \max_{l_i \le z_i \le u_i} (c - A^\top y)_i z_i`. The gap is
    that bound minus the value of ``point``; for a maximum c are the scores. A projection x of s is certified by the
    same bound with ``c = s - x``: it is optimal exactly when x maximizes that. A reduced cost that points along an
    infinite bound is charged at ``max(1, |z_i|)``; it is rounding noise in a correct answer.
    """
    plan = plan_of(form)
    certificate, batch = Certificate.room(len(instances)), Batch.of(plan, instances)
    point, dual = np.ascontiguousarray(point), np.ascontiguousarray(dual)
    plan.spread(
        lambda which: certificate.judge(form, plan, batch, projection, which, point, dual), len(instances), solves=1
    )
    return certificate


def times_transpose(
    form: StandardForm, instances: Instances, dual: Float64[np.ndarray, "batch rows"]
) -> Float64[np.ndarray, "batch columns"]:
    """``Aᵀ y`` for every instance."""
    plan = plan_of(form)
    return plan.prices(plan.entries if instances.matrix is None else instances.matrix, dual)
