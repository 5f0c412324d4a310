"""A batch of problems, made from parameters and forbidden parts."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from optlayers.form.standard import AffineMap, StandardForm
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels import structures as kernel
from optlayers.solvers.scored_rows import ScoredRows

__all__ = [
    "balancing",
    "broken_conditions",
    "distance_from_rows",
    "in_scaled_rows",
    "infeasible_instances",
    "make_instances",
    "rounding_of",
]

CONSISTENT = 1e-8
"""How far parameters may violate a dependent row that presolve dropped, relative to the size of its terms."""
ROUNDINGS = 4.0
"""Parameters of a low precision are what a computation of so many roundings left of the numbers that are meant."""
BALANCED = 2.0**10
"""Rows whose largest entry is this far from 1 are scaled."""


def make_instances(
    form: StandardForm, theta: np.ndarray, forbidden: np.ndarray | None, precision: np.ndarray | None = None
) -> Instances:
    """The numbers of every instance, from θ ``(batch, parameters)`` and the forbidden entries ``(batch, size)``.

    ``precision`` is the machine epsilon of the dtype in which each entry of θ came, None for that of float64.
    """
    lower, upper = form.lower(theta), form.upper(theta)
    if not form.bounds_are_constant:
        lower = _meeting(form, theta, precision, lower, upper)
    masked = None
    if forbidden is not None:
        masked = np.zeros((len(theta), form.columns), dtype=bool)
        masked[:, : form.scored] = forbidden[:, form.kept]
        # The part becomes exactly 0. A bound that excludes 0 stays, so that the instance is seen to be infeasible.
        lower = np.where(masked, np.maximum(lower, 0.0), lower)
        upper = np.where(masked, np.minimum(upper, 0.0), upper)
    matrix, rhs, scale = None, form.rhs(theta), None
    if not form.matrix_is_constant:
        matrix = form.matrix.data + (form.matrix_map @ theta.T).T
        scale = _row_scale(form, matrix)
        if scale is not None:
            matrix, rhs = matrix * scale[:, form.matrix.indices], rhs * scale
            matrix[:, form.slack_entries] = 1.0
    whole, kept = np.zeros((len(theta), form.size)), None if form.keeps_all else form.kept
    return Instances(whole, kept, rhs, lower, upper, matrix, masked, theta, scale)


def _meeting(
    form: StandardForm, theta: np.ndarray, precision: np.ndarray | None, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Lower bounds, which meet the upper ones where they cross these by rounding: ``x == p`` next to ``x == 0.3``."""
    if not (lower > upper).any():
        return lower
    allowed = rounding_of(form.lower, theta, precision) + rounding_of(form.upper, theta, precision)
    with np.errstate(invalid="ignore"):  # infinite bounds do not cross by rounding
        near = (lower > upper) & (lower - upper <= allowed)
    return np.where(near, upper, lower)


def rounding_of(
    part: AffineMap, theta: Float64[np.ndarray, "batch parameters"], precision: np.ndarray | None
) -> Float64[np.ndarray, "batch entries"]:
    """What ``ROUNDINGS`` roundings of the parameters, and of a sum in float64, do to numbers that depend on them."""
    terms, double = abs(part.matrix), np.finfo(np.float64).eps
    size = np.abs(part.constant) + (terms @ np.abs(theta).T).T
    epsilon = double if precision is None else precision
    allowed: np.ndarray = ROUNDINGS * (double * size + (terms @ (np.abs(theta) * (0.5 * epsilon)).T).T)
    return allowed


def _row_scale(form: StandardForm, matrix: Float64[np.ndarray, "batch entries"]) -> np.ndarray | None:
    """Powers of two for rows that parameters make large or small; None where there are none such.

    Slack columns keep an entry of 1: slack is counted in the scaled row.
    """
    sizes = np.abs(matrix)
    sizes[:, form.slack_entries] = 0.0
    largest = np.zeros((len(matrix), form.rows))
    np.maximum.at(largest.T, form.matrix.indices, sizes.T)
    scale: np.ndarray = balancing(largest, np)
    return None if (scale == 1.0).all() else scale


def balancing(largest: Any, library: ModuleType) -> Any:
    """The powers of two that bring the largest entries of rows to about 1 where they are far from it, else 1.

    ``library`` is that of the array, numpy or torch.
    """
    usual = (largest <= BALANCED) & (largest >= 1.0 / BALANCED) | (largest == 0.0)
    return library.where(usual, 1.0, library.exp2(-library.round(library.log2(library.where(usual, 1.0, largest)))))


def in_scaled_rows(
    form: StandardForm,
    point: Float64[np.ndarray, "batch columns"],
    dual: Float64[np.ndarray, "batch rows"],
    scale: Float64[np.ndarray, "batch rows"] | None,
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"]]:
    """Points with their slack, and multipliers, of rows times ``scale``, from those of the rows themselves."""
    if scale is None:
        return point, dual
    slack = point[:, form.unslacked :] * scale[:, form.equalities :]
    return np.concatenate([point[:, : form.unslacked], slack], axis=1), dual / scale


def broken_conditions(
    form: StandardForm, theta: Float64[np.ndarray, "batch parameters"], precision: Float64[np.ndarray, " parameters"]
) -> tuple[Float64[np.ndarray, " batch"], Bool[np.ndarray, " batch"]] | None:
    """By how much parameters violate the rows that presolve dropped as dependent, and for which instances that is more
    than rounding. None where no row depends on parameters in that way.

    Each row is allowed the roundings of its own parameters: ``precision`` is the machine epsilon of the dtype in which
    each entry of θ came.
    """
    if not form.consistency_names:
        return None
    missing = np.abs(form.consistency(theta))
    terms = abs(form.consistency.matrix)
    size = np.abs(form.consistency.constant) + (terms @ np.abs(theta).T).T
    rounding = (terms @ (np.abs(theta) * (0.5 * precision)).T).T
    return missing.max(axis=1), (missing > CONSISTENT * size + ROUNDINGS * rounding).any(axis=1)


def infeasible_instances(
    form: StandardForm, broken: Bool[np.ndarray, " batch"] | None, forbidden: Bool[np.ndarray, "batch size"] | None
) -> Bool[np.ndarray, " batch"] | None:
    """Instances that break what presolve took for granted: dropped rows, and parts that it fixed at others than 0.

    None when there is nothing that could be broken.
    """
    if forbidden is None:
        return broken
    fixed: np.ndarray = (forbidden & (form.fixed != 0)).any(axis=1)
    return fixed if broken is None else fixed | broken


def distance_from_rows(
    form: StandardForm, instances: Instances, structures: Float64[np.ndarray, "batch size"]
) -> tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"]]:
    """The largest violation of a bound, of a fixed entry, or of a row that needs no unscored auxiliary variable.

    And the same relative to the size of the terms of each.
    """
    residual, relative = np.empty(len(structures)), np.empty(len(structures))
    kernel.violations(ScoredRows.of(form, instances), np.ascontiguousarray(structures), residual, relative)
    return residual, relative
