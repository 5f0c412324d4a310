"""The verdict on an answer, in plain scalar loops that share nothing with the solvers."""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.lanes import jit

__all__ = ["certify"]


@jit
def certify(  # type: ignore[no-untyped-def]
    start,
    row,
    matrix,
    equalities,
    scores,
    curved,
    rhs,
    lower,
    upper,
    which,
    rounding,
    point,
    dual,
    residual,
    gap,
    relative,
):
    """Residual, gap and relative error of the instances ``which``; the formulas are in solvers/certificate.py."""
    rows, columns, scored = dual.shape[1], point.shape[1], scores.shape[1]
    slackness, prices = np.empty(rows), np.empty(rows)
    for k in which:
        entries = matrix[k if len(matrix) > 1 else 0]
        b = rhs[k if len(rhs) > 1 else 0]
        l, u = lower[k if len(lower) > 1 else 0], upper[k if len(upper) > 1 else 0]
        sides, noise = 0.0, 0.0
        for i in range(rows):
            slackness[i] = b[i]
            prices[i] = dual[k, i] if i < equalities else max(dual[k, i], 0.0)
            sides = max(sides, abs(b[i]))
            noise += abs(prices[i]) * (1.0 + abs(b[i]))
        open_gap, worst, largest, value, check = 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(columns):
            x = point[k, j]
            objective = 0.0
            if j < scored:
                objective = scores[k, j] - x if j < curved else scores[k, j]
                value += abs(objective * x)
            reduced = objective
            for t in range(start[j], start[j + 1]):
                slackness[row[t]] -= entries[t] * x
                reduced -= entries[t] * prices[row[t]]
            above, below, size = u[j] - x, x - l[j], abs(x)
            room = above if reduced > 0.0 else below
            room = room if room < np.inf else max(1.0, size)
            open_gap += abs(reduced) * max(room, 0.0)  # beyond a bound there is no credit
            worst = max(worst, -below, -above)
            largest = max(largest, size)
            check += x
        valid = np.isfinite(check)
        for i in range(rows):
            open_gap += abs(prices[i] * slackness[i])
            worst = max(worst, abs(slackness[i]))
            valid = valid and np.isfinite(prices[i])
        if valid:
            residual[k] = worst
            gap[k] = max(open_gap, 0.0)
            error = max(worst / (1.0 + max(sides, largest)), max(open_gap - rounding * noise, 0.0) / (1.0 + value))
            relative[k] = error if error == error else np.inf
        else:
            residual[k] = np.nan
            gap[k] = np.nan
            relative[k] = np.inf
