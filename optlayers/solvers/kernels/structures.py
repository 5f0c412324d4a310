"""The certificate of structures, and of mixtures of them, whoever found them.

A structure is held to the rows and bounds among scored columns, to integrality where it is declared, and to the
membership function for everything else. A mixture of structures is in the polytope when all of them are. That no
structure is better is asked of an oracle.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.calling import (
    FOUND,
    FRACTIONAL,
    MEMBERSHIP,
    MISSED,
    MIXED,
    NOTHING,
    OF_MEMBERSHIP,
    OUTSIDE,
    UNSTEADY,
    ask,
    fill_scores,
    missed,
    new_workspace,
)
from optlayers.solvers.kernels.extended import add_product
from optlayers.solvers.kernels.lanes import jit, part, stay_apart
from optlayers.solvers.kernels.optimality import FAR, FLOOR

__all__ = ["FEASIBLE", "certify", "certify_mixtures", "judged", "stands", "violation", "violations"]

FEASIBLE = 1e-7
"""A structure may violate a constraint by so much, relative to the size of its terms; it may be so far from integers,
and miss being a structure by so much."""
SHARE = 1e-12
"""Weights sum to 1, and mix to the point in its units, to this."""


@part
def violation(rows, k, out, sums):  # type: ignore[no-untyped-def]
    """By how much a flat structure violates rows and bounds of instance ``k``, in their units and relative to the size
    of their terms, and how far an entry is from an integer. NaN, infinity and NaN if it holds a NaN.

    ``sums`` is ``(3, rows)``: activities, the sizes of their terms, and what of them is rounding.
    """
    stay_apart()
    a, b = k if len(rows.matrix) > 1 else 0, k if len(rows.rhs) > 1 else 0
    low, high = k if len(rows.lower) > 1 else 0, k if len(rows.upper) > 1 else 0
    scale = rows.scale[k if len(rows.scale) > 1 else 0]
    worst, relative = 0.0, 0.0
    fraction, numbers = 0.0, True
    for i in range(sums.shape[1]):
        sums[0, i], sums[1, i], sums[2, i] = 0.0, 0.0, 0.0
    for i in range(len(out)):
        value = out[i]
        if value == 0.0 and rows.may_be_zero[i]:
            continue
        numbers = numbers and not np.isnan(value)
        fraction = max(fraction, abs(value - np.rint(value)))
        j = rows.column[i]
        if j < 0:
            outside, unit = abs(value - rows.fixed[i]), max(1.0, abs(rows.fixed[i]))
        else:
            l, u = rows.lower[low, j], rows.upper[high, j]
            outside, unit = max(l - value, value - u, 0.0), min(max(abs(l), abs(u)), max(1.0, abs(value)))
            if value != 0.0:
                for e in range(rows.start[j], rows.start[j + 1]):
                    product = rows.matrix[a, e] * value
                    sums[0, rows.row[e]] += product
                    sums[1, rows.row[e]] += abs(product)
                    sums[2, rows.row[e]] += abs(rows.matrix[a, e]) * FLOOR * unit
        if outside > FLOOR * unit:
            worst, relative = max(worst, outside), max(relative, outside / unit if unit > 0.0 else np.inf)
    for i in range(sums.shape[1]):
        left = rows.rhs[b, i] - sums[0, i]
        outside = abs(left) if i < rows.equalities[0] else -left
        if not rows.loose[i] and outside > sums[2, i]:
            size = abs(rows.rhs[b, i]) + sums[1, i]
            worst = max(worst, outside / scale[i])
            relative = max(relative, outside / size if size > 0.0 else np.inf)
    if not numbers:
        worst, relative, fraction = np.nan, np.inf, np.nan
    return worst, relative, fraction


@part
def stands(integral, relative, fraction):  # type: ignore[no-untyped-def]
    """Whether nothing is wrong with a structure as far as :func:`violation` sees."""
    return relative <= FEASIBLE and not (integral and fraction > FEASIBLE)


@part
def judged(integral, residual, relative, fraction, said, amount):  # type: ignore[no-untyped-def]
    """What is wrong with a structure, FOUND if nothing is; by how much, and by how much of what it is relative to.

    From what :func:`violation` and ``missed`` returned, the latter where the structure :func:`stands`: as numbers,
    since a function that takes all arrays and calls others counts references to each of them, and that costs more than
    the check.
    """
    if not relative <= FEASIBLE:
        return OUTSIDE, residual, np.inf
    if integral and fraction > FEASIBLE:
        return FRACTIONAL, fraction, np.inf
    if said != FOUND:
        return OF_MEMBERSHIP + said, amount, np.inf
    if amount > FEASIBLE:
        return MISSED, amount, np.inf
    return FOUND, max(residual, amount), 0.0


@jit
def certify(call, rows, theta, which, point, code, residual, error):  # type: ignore[no-untyped-def]
    """Judge the structures ``which`` that were FOUND; how many of all have something wrong with them."""
    asking, sums = new_workspace(call, point.shape[1], theta.shape[1]), np.empty((3, rows.rhs.shape[1]))
    has_membership = len(call.functions) > MEMBERSHIP
    wrong = 0
    for k in which:
        residual[k], error[k] = np.nan, np.inf
        if code[k] == FOUND:
            far, relative, fraction = violation(rows, k, point[k], sums)
            said, amount = FOUND, 0.0
            if has_membership and stands(rows.integral, relative, fraction):
                said, amount = missed(call, theta[k], point[k], asking)
            code[k], residual[k], error[k] = judged(rows.integral, far, relative, fraction, said, amount)
        wrong += 0 if code[k] == FOUND else 1
    return wrong


@jit
def violations(rows, structures, residual, relative):  # type: ignore[no-untyped-def]
    """By how much each of some flat structures violates its rows and bounds, and that relative to their terms."""
    sums = np.empty((3, rows.rhs.shape[1]))
    for k in range(len(structures)):
        residual[k], relative[k], _ = violation(rows, k, structures[k], sums)


@part
def _better(goal, best, vertex):  # type: ignore[no-untyped-def]
    """By how much one structure is better than another for an objective, in twice the precision."""
    high, low, scale = 0.0, 0.0, 0.0
    for i in range(len(goal)):
        step = best[i] - vertex[i]
        if step != 0.0:
            high, low = add_product(high, low, goal[i], step)
            scale += abs(goal[i] * step)
    return high + low, scale


@part
def _lost(first, second):  # type: ignore[no-untyped-def]
    """What rounding loses of a difference, exactly (Knuth, TAOCP 2, 4.2.2)."""
    whole = first - second
    other = whole - first
    return (first - (whole - other)) - (second + other)


@jit
def certify_mixtures(  # type: ignore[no-untyped-def]
    call,
    rows,
    scores,
    forbidden,
    theta,
    size,
    which,
    point,
    first,
    weight,
    start,
    index,
    value,
    code,
    residual,
    gap,
    error,
):
    """Judge points ``which`` as mixtures of structures, and ask once more whether there is a better structure.

    Entries from ``size`` on are scored but not regularized. ``code`` comes as FOUND where there is an answer.

    The oracle is asked about the gradient ``s - x`` as it is rounded. For these numbers x is at most the root of the
    gap from the nearest point; and a projection moves by no more than the scores do, of which rounding is a part.
    """
    entries = point.shape[1]
    full, goal = np.empty(entries), np.empty(entries)
    best, vertex = np.empty(entries), np.zeros(entries)
    asking, sums = new_workspace(call, entries, theta.shape[1]), np.empty((3, rows.rhs.shape[1]))
    has_membership, mixed = len(call.functions) > MEMBERSHIP, np.empty(entries)
    for k in which:
        residual[k], gap[k], error[k] = np.nan, np.nan, np.inf
        if code[k] != FOUND:
            continue
        worst, unit = 0.0, 0.0
        total, finite = 0.0, True
        for i in range(entries):
            mixed[i] = 0.0
            unit = max(unit, abs(point[k, i]), 1.0)
        for v in range(first[k], first[k + 1]):
            for e in range(start[v], start[v + 1]):
                vertex[index[e]] = value[e]
                mixed[index[e]] += weight[v] * value[e]
            total += weight[v]
            finite = finite and weight[v] >= 0.0
            far, relative, fraction = violation(rows, k, vertex, sums)
            said, amount = FOUND, 0.0
            if has_membership and stands(rows.integral, relative, fraction):
                said, amount = missed(call, theta[k], vertex, asking)
            code[k], far, _ = judged(rows.integral, far, relative, fraction, said, amount)
            for e in range(start[v], start[v + 1]):
                vertex[index[e]] = 0.0
            if code[k] != FOUND:
                residual[k] = far
                break
            worst = max(worst, far)
        if code[k] != FOUND:
            continue
        for i in range(entries):
            finite = finite and abs(mixed[i] - point[k, i]) <= SHARE * unit
        if not finite or not abs(total - 1.0) <= SHARE:
            code[k] = MIXED
            continue
        residual[k] = worst
        fill_scores(rows, k, scores, forbidden, full)
        off = 0.0
        for i in range(entries):
            goal[i] = full[i] - point[k, i] if i < size else full[i]
            off += _lost(full[i], point[k, i]) ** 2 if i < size and not np.isinf(full[i]) else 0.0
        code[k] = ask(call, goal, theta[k], asking, best)
        if code[k] != FOUND:
            code[k] = UNSTEADY if code[k] == NOTHING else code[k]
            continue
        open_gap, scale = 0.0, 0.0
        for v in range(first[k], first[k + 1]):
            for e in range(start[v], start[v + 1]):
                vertex[index[e]] = value[e]
            better, terms = _better(goal, best, vertex)
            open_gap += weight[v] * better
            scale = max(scale, terms)
            for e in range(start[v], start[v + 1]):
                vertex[index[e]] = 0.0
        gap[k] = open_gap
        if np.isfinite(open_gap):
            # Where a vertex is better than the best one, by rounding of the oracle, this much is not known either.
            error[k] = (np.sqrt(abs(open_gap)) + np.sqrt(off)) / (FAR * unit)
            for i in range(entries):
                scale = max(scale, abs(goal[i])) if goal[i] != -np.inf else scale
            if open_gap < -FEASIBLE * scale:
                error[k] = np.inf
