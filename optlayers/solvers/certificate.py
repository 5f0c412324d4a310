"""The verdict on an answer, whoever gave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64

from optlayers.solvers.base import Instances
from optlayers.standard_form import StandardForm

__all__ = ["Certificate", "certify", "times_matrix", "times_transpose"]

ROUNDING = 64 * np.finfo(np.float64).eps
"""Relative error of a sum of products."""


@final
@dataclass(frozen=True)
class Certificate:
    """Per instance: the largest violation, the gap, and both relative to the size of the numbers involved."""

    residual: Float64[np.ndarray, " batch"]
    gap: Float64[np.ndarray, " batch"]
    relative: Float64[np.ndarray, " batch"]

    def holds(self, tolerance: float) -> np.ndarray:
        """Which instances are certified."""
        return self.relative <= tolerance


def times_matrix(
    form: StandardForm, instances: Instances, point: Float64[np.ndarray, "batch columns"]
) -> Float64[np.ndarray, "batch rows"]:
    """``A z`` for every instance."""
    if instances.matrix is None:
        return (form.matrix @ point.T).T
    return (form.row_sums @ (instances.matrix * point[:, form.entry_column]).T).T


def times_transpose(
    form: StandardForm, instances: Instances, dual: Float64[np.ndarray, "batch rows"]
) -> Float64[np.ndarray, "batch columns"]:
    """``Aᵀ y`` for every instance."""
    if instances.matrix is None:
        return (form.matrix.T @ dual.T).T
    return (form.column_sums @ (instances.matrix * dual[:, form.matrix.indices]).T).T


def certify(
    form: StandardForm,
    instances: Instances,
    objective: Float64[np.ndarray, "batch scored"],
    point: Float64[np.ndarray, "batch columns"],
    dual: Float64[np.ndarray, "batch rows"],
) -> Certificate:
    r"""How far ``point`` is from maximizing ``<objective, z>``, proved by ``dual``.

    For any y, :math:`\max_z c^\top z \le b^\top y + \sum_i \max_{l_i \le z_i \le u_i} (c - A^\top y)_i z_i`. The gap is
    that bound minus the value of ``point``. A projection x of s is certified by the same bound with ``c = s - x``:
    it is optimal exactly when x maximizes that. A reduced cost that points along an infinite bound is charged at
    ``max(1, |z_i|)``; it is rounding noise in a correct answer.
    """
    dual = dual.copy()
    np.maximum(dual[:, form.equalities :], 0.0, out=dual[:, form.equalities :])
    slackness = instances.rhs - times_matrix(form, instances, point)
    reduced = -times_transpose(form, instances, dual)
    reduced[:, : form.scored] += objective
    room = np.where(reduced > 0, instances.upper - point, point - instances.lower)
    room = np.where(np.isfinite(room), room, np.maximum(1.0, np.abs(point)))
    with np.errstate(over="ignore", invalid="ignore"):  # a failed instance holds NaN
        gap = np.sum(np.abs(reduced) * room, axis=1) + np.sum(dual * slackness, axis=1)
        outside = np.maximum(instances.lower - point, point - instances.upper)
        residual = np.maximum(_largest(np.abs(slackness)), np.maximum(_largest(outside), 0.0))
        room_scale = 1.0 + np.maximum(_largest(np.abs(instances.rhs)), _largest(np.abs(point)))
        gap_scale = 1.0 + np.sum(np.abs(objective * point[:, : form.scored]), axis=1)
        # Next to scores of 1e9 the dual point has such entries too, and the bound is no sharper than their rounding.
        rounding = ROUNDING * np.sum(np.abs(dual) * (1.0 + np.abs(instances.rhs)), axis=1)
        relative = np.maximum(residual / room_scale, np.maximum(gap - rounding, 0.0) / gap_scale)
    return Certificate(residual, np.maximum(gap, 0.0), np.where(np.isnan(relative), np.inf, relative))


def _largest(values: np.ndarray) -> np.ndarray:
    return values.max(axis=1, initial=0.0)
