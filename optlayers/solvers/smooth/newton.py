"""A Newton method on the dual, along a path of growing scores; see :mod:`optlayers.solvers.kernels.smooth_newton`."""

from __future__ import annotations

import torch
from torch import Tensor

from optlayers.solvers.kernels.batched import clipped, gram_of, largest_of, solve_with, times, times_transpose
from optlayers.solvers.kernels.curves import QUADRATIC
from optlayers.solvers.kernels.smooth_newton import (
    CORRECTIONS,
    FAR,
    GROWTH,
    LEAST_STEP,
    MOST,
    NEAR,
    READY,
    SHIFT,
    SPREAD,
    SUFFICIENT,
    TRIALS,
)
from optlayers.solvers.smooth.problem import DenseCurves, SmoothAnswer, SmoothProblem, factored, unit_rows

__all__ = ["dual_newton"]

EPSILON = torch.finfo(torch.float64).eps
NEWTON_STEPS = 100
STEEP = 0.5
"""A step at whose end ψ falls as steeply as this share of its first slope is made longer where a limit is known,"""
SEARCHES = 30
"""up to so many times."""
QUICK = 3
"""So many lengths are those of the secant; further ones halve what is left."""
GIVEN_UP = 20
"""After so many steps without half of the residual an instance is for another method."""


def dual_newton(problem: SmoothProblem, *, limit: int = NEWTON_STEPS) -> SmoothAnswer:
    """Newton steps on the dual along a path of growing scores; every column must be curved, without inequalities."""
    unit = problem.curves.unit
    curves, s = problem.curves.over(unit), problem.linear / unit
    matrix, b, norms = unit_rows(problem)
    l, u, movable = problem.lower, problem.upper, problem.movable

    def at_dual(y: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points, residuals, ψ and the largest residual."""
        v = at[:, None] * s - times_transpose(matrix, y)
        z = torch.where(movable, clipped(curves.meet(v), l, u), l)
        left = times(matrix, z) - b
        return z, left, (b * y).sum(1) + (z * v - curves.worth(z)).sum(1), largest_of(left)

    relative = s / curves.weight
    smooth = movable & (curves.kind != QUADRATIC)
    high = torch.where(smooth, relative, -torch.inf).amax(1)
    wide = high - torch.where(smooth, relative, torch.inf).amin(1)
    at = torch.where(wide > SPREAD, SPREAD / wide, 1.0)
    size = largest_of(b)
    goal = 16.0 * EPSILON * (1.0 + size) + 4.0 * EPSILON * largest_of(relative)
    size = torch.where(size > 0.0, size, 1.0)
    y = torch.zeros_like(b)
    z, r, psi, largest = at_dual(y, at)
    best, worse = torch.full_like(at, torch.inf), torch.zeros_like(at)
    growth, done = torch.full_like(at, GROWTH), torch.zeros_like(at, dtype=torch.bool)
    for _ in range(limit):
        advances = ~done & (at < 1.0) & (largest <= READY * size)
        by = torch.where(advances, torch.minimum(at * (growth - 1.0), 1.0 - at), 0.0)
        ends = ~done & (at >= 1.0)
        worse = torch.where(ends & ~(largest < 0.5 * best), worse + 1.0, 0.0)
        best = torch.where(ends, torch.minimum(best, largest), torch.inf)
        rounding = (worse >= 3.0) & (largest <= (1e4 * goal).clamp(max=NEAR))
        done = done | ~torch.isfinite(psi) | (ends & ((largest <= goal) | rounding | (worse >= GIVEN_UP)))
        if bool(done.all()):
            break
        theta = _stiffness(curves, z, l, u)
        gram = gram_of(matrix, theta)
        # Along the path next to nothing, for a step is as long as scores are large.
        far = torch.where(advances, 0.0, SHIFT * largest.clamp(max=0.1) * largest.clamp(max=1.0))
        factor = factored(gram, far[:, None])
        d = solve_with(factor, times(matrix, by[:, None] * theta * s) + r)
        slope = -(r * d).sum(1)
        length, short, long = torch.where(done, 0.0, 1.0), torch.zeros_like(at), torch.full_like(at, torch.inf)
        falls, rises, waiting = slope, torch.full_like(at, torch.inf), ~done
        for count in range(TRIALS):
            trial = at_dual(y + length[:, None] * d, at + length * by)
            _, trial_left, trial_psi, trial_largest = trial
            finite = torch.isfinite(trial_psi) & torch.isfinite(trial_largest)
            end = -(trial_left * d).sum(1)
            enough = psi + SUFFICIENT * length * slope + 8.0 * EPSILON * psi.abs()
            # ψ is convex, so a step at whose end it still falls is good whatever rounding says of its value.
            good = finite & torch.where(advances, trial_largest <= FAR * size, ~(end > 0.0) | (trial_psi <= enough))
            # Next to a kink, most of a fall may be between this step and a longer one that was too long.
            goes_on = good & ~advances & torch.isfinite(long) & (end < STEEP * slope) & (count < SEARCHES)
            falls, short = (torch.where(goes_on, new, old) for new, old in ((end, falls), (length, short)))
            rises, long = (torch.where(good, old, new) for new, old in ((end, rises), (length, long)))
            waiting = waiting & (goes_on | ~good)
            if not bool(waiting.any()):
                break
            secant = (falls / (falls - rises)).nan_to_num(nan=0.1).clamp(0.1, 0.6)
            share = torch.where(finite, secant, 0.1) if count < QUICK else torch.full_like(at, 0.5)
            within = short + torch.where(advances, 0.4, share) * (long - short)
            length = torch.where(waiting, within, length)
        arrives = advances & (length == 1.0) & (by == 1.0 - at)
        after = torch.where(arrives, 1.0, at + length * by)
        faster = torch.where(length == 1.0, (2.0 * growth).clamp(max=16.0), 1.0 + 2.0 * (after / at - 1.0))
        growth = torch.where(advances, faster, growth)
        stuck = advances & (after - at <= LEAST_STEP * at)
        moves = ~done
        y = torch.where(moves[:, None], y + length[:, None] * d, y)
        z, r = (torch.where(moves[:, None], new, old) for new, old in ((trial[0], z), (trial[1], r)))
        psi, largest = (torch.where(moves, new, old) for new, old in ((trial[2], psi), (trial[3], largest)))
        at, done = torch.where(moves, after, at), done | stuck
    theta = _stiffness(curves, z, l, u)
    factor = factored(gram_of(matrix, theta))
    for _ in range(CORRECTIONS):  # what rounding of large scores leaves of rows
        move = theta * times_transpose(matrix, solve_with(factor, times(matrix, z) - b))
        z = torch.where(move.abs() < MOST * z.abs(), clipped(z - move, l, u), z)
    return SmoothAnswer(z, y * unit / norms, (z > l) & (z < u))


def _stiffness(curves: DenseCurves, z: Tensor, l: Tensor, u: Tensor) -> Tensor:
    """Θ: 0 at bounds, and where the curvature is infinite."""
    inside = (l < z) & (z < u)
    return torch.where(inside, 1.0 / curves.bend(torch.where(inside, z, 0.5)), 0.0)
