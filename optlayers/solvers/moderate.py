"""Numbers without limit (a capacity of 1e15, an infinite one) made moderate: solvers meet numbers of one size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from optlayers.common.caches import WeakCache
from optlayers.form.standard import StandardForm
from optlayers.solvers.base import Instances

__all__ = ["LARGE", "has_large_constants", "may_be_extreme", "moderated"]

LARGE = 1e6
"""Right-hand sides and bounds beyond this may be without limit."""
MODERATE = 1e3
"""They are taken to be this many times the largest of the others, and of the scores that are not large themselves."""
BEYOND = 2.0
"""Or, in rows, this many times the most that the bounds of columns allow: then they do not bind for sure."""

_large_constants: WeakCache[StandardForm, bool] = WeakCache()


def moderated(form: StandardForm, instances: Instances, *, below: float = LARGE) -> Instances | None:
    """The instances with smaller right-hand sides of inequalities and smaller bounds; None where nothing is large.

    What is made smaller may bind then, where the true number does not. So the answer is held to the true numbers, and
    given up where it does not hold. Numbers up to ``below`` are ordinary; with inf, only infinite ones are smaller.
    """
    sides, lower, upper = instances.rhs[:, form.equalities :], instances.lower, instances.upper
    cap = MODERATE * _ordinary(instances, below)
    less = sides > cap, np.isfinite(lower) & (lower < -cap), np.isfinite(upper) & (upper > cap)
    if not any(where.any() for where in less):
        return None
    rhs = instances.rhs.copy()
    rhs[:, form.equalities :] = np.where(less[0], np.minimum(cap, BEYOND * _reach(form, instances)), sides)
    return replace(instances, rhs=rhs, lower=np.where(less[1], -cap, lower), upper=np.where(less[2], cap, upper))


def _reach(form: StandardForm, instances: Instances) -> Float64[np.ndarray, "batch inequalities"]:
    """The most that inequalities come to within the bounds of their columns, at least 1; infinite without bounds."""
    inner = form.entry_column < form.unslacked
    row, column = form.matrix.indices[inner], form.entry_column[inner]
    entries = (form.matrix.data[None] if instances.matrix is None else instances.matrix)[:, inner]
    with np.errstate(invalid="ignore"):  # an entry may be 0 where a bound is infinite
        parts = np.maximum(entries * instances.lower[:, column], entries * instances.upper[:, column])
    total = np.zeros((form.rows, len(instances)))
    np.add.at(total, row, np.where(entries == 0.0, 0.0, parts).T)
    return np.maximum(total[form.equalities :].T, 1.0)


def may_be_extreme(form: StandardForm, instances: Instances) -> bool:
    """Whether there may be numbers to make smaller; to look at them all takes longer."""
    if has_large_constants(form) or instances.row_scale is not None:
        return True
    if form.parameter_count == 0:
        return False
    sides = instances.rhs[:, form.equalities :]
    if sides.strides[0] != 0 and bool(np.isposinf(sides).any()):  # else every instance has the constants of the form
        return True
    varying = ((form.rhs, instances.rhs), (form.lower, instances.lower), (form.upper, instances.upper))
    # A parameter may be infinite itself; then so is its number, which is not finite in all instances.
    return any(
        not part.is_constant and bool((np.abs(numbers[:, np.diff(part.matrix.indptr) > 0]) > LARGE).any())
        for part, numbers in varying
    )


def has_large_constants(form: StandardForm) -> bool:
    """Whether numbers that no parameter enters are large."""
    return _large_constants.get(form, _has_large_constants)


def _has_large_constants(form: StandardForm) -> bool:
    parts = (form.rhs.constant[form.equalities :], form.lower.constant, form.upper.constant)
    return any(bool((np.abs(part[np.isfinite(part)]) > LARGE).any()) for part in parts)


def _ordinary(instances: Instances, below: float) -> Float64[np.ndarray, "batch 1"]:
    """The largest ordinary number of every instance, at least 1."""
    parts = (instances.rhs, instances.lower, instances.upper, instances.scores)
    within = [np.isfinite(part) & (np.abs(part) <= below) for part in parts]
    ordinary = [np.where(k, np.abs(p), 0.0).max(axis=1, initial=1.0) for k, p in zip(within, parts, strict=True)]
    largest: np.ndarray = np.maximum.reduce(ordinary)[:, None]
    return largest
