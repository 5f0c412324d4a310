"""Linear systems with the curvature at points, on active sets: Newton steps, and derivatives; see
:mod:`optlayers.solvers.kernels.smooth_face`."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.solvers.kernels.batched import cholesky, clipped, gram_of, largest_of, solve_with, times, times_transpose
from optlayers.solvers.kernels.curves import BITS, ENTROPY, QUADRATIC
from optlayers.solvers.smooth.problem import SmoothAnswer, SmoothProblem, unit_rows

__all__ = ["polish", "polish_again", "pull_back"]

EPSILON = torch.finfo(torch.float64).eps
TINY = 1e-300
POLISHED = 3
"""So many Newton steps are made on the active sets that an interior point ends near."""
LEAST_SHARE = 0.1
"""None of them takes more of a number whose curvature changes."""
COLUMN_SHIFT = 1e-6
"""Curvature of columns without any."""
SMALL_SHIFT = 1e-12
"""δ of rows in linear systems where all columns are curved,"""
ROW_SHIFT = 1e-8
"""and where some are not."""
STEPS = 30
PRECISION = 1e-14
"""Proximal steps end when the residual is below this, relative to the numbers of the system."""
CONVERGED = 1e-11
"""A residual below this, relative to the right-hand side, is a solution."""
LARGEST = 1e250
"""A column of more curvature stays where it is."""
RESCUE_CUTOFF = 1e-13
"""Eigenvalues below this are 0 in a rescue; where that is wrong, what is left shows it."""


def polish(problem: SmoothProblem, answer: SmoothAnswer, near: float) -> SmoothAnswer:
    """Points moved by Newton steps onto the active sets that they are near to: of columns at bounds that are their own
    guess, and so ``near``."""
    lower, upper, point = problem.lower, problem.upper, answer.point
    at_low = ~answer.free & (point - lower <= (upper - point).clamp(max=near))
    at_high = ~answer.free & ~at_low & (upper - point <= near)
    point = torch.where(at_low, lower, torch.where(at_high, upper, point))
    return polish_again(problem, _without_idle_rows(problem, SmoothAnswer(point, answer.dual, ~(at_low | at_high))))


def _without_idle_rows(problem: SmoothProblem, answer: SmoothAnswer) -> SmoothAnswer:
    """The multiplier of a row with room is 0, and steps leave it as it is."""
    if not problem.slack:
        return answer
    dual = answer.dual.clone()
    dual[:, -problem.slack :] = torch.where(answer.free[:, -problem.slack :], 0.0, dual[:, -problem.slack :])
    return replace(answer, dual=dual)


def polish_again(problem: SmoothProblem, answer: SmoothAnswer) -> SmoothAnswer:
    """Some Newton steps, each on the active set that the one before it leads to: what leaves its bounds is held by
    them, and what a multiplier of the wrong sign holds is let go (Hintermüller, Ito and Kunisch, 2002, The primal-dual
    active set strategy as a semismooth Newton method)."""
    curves, lower, upper, matrix = problem.curves, problem.lower, problem.upper, problem.matrix
    curved, entropic = curves.curved, (curves.kind == ENTROPY) | (curves.kind == BITS)
    stays, sizes = ~problem.movable, problem.matrix.abs()
    for _ in range(POLISHED):
        slope = curves.slope(answer.point).nan_to_num(posinf=0.0, neginf=0.0)
        side = problem.linear - times_transpose(matrix, answer.dual) - slope
        rest = problem.rhs - times(matrix, answer.point)
        p, q, _ = _Face(problem, answer).solve(side, rest, rescue=False)
        low = torch.where(curves.kind > QUADRATIC, LEAST_SHARE * answer.point, -torch.inf)
        high = torch.where(curves.kind == BITS, 1.0 - LEAST_SHARE * (1.0 - answer.point), torch.inf)
        point, free, dual = clipped(answer.point + p, low, high), answer.free, answer.dual + q
        reduced = problem.linear - times_transpose(matrix, dual)
        rounding = 64.0 * EPSILON * largest_of(times_transpose(sizes, dual.abs()))[:, None]
        best = curves.meet(reduced)
        at_low = torch.where(free, point < lower, (answer.point == lower) & (reduced <= rounding))
        at_high = torch.where(free, point > upper, (answer.point == upper) & (reduced >= -rounding))
        at_low = torch.where(curved, ~entropic & (best <= lower), at_low) | stays
        at_high = torch.where(curved, ~entropic & (best >= upper), at_high) & ~at_low
        let_go = ~free & ~at_low & ~at_high & curved
        point = torch.where(let_go, clipped(best, lower, upper), point)
        point = torch.where(at_low, lower, torch.where(at_high, upper, point))
        answer = _without_idle_rows(problem, SmoothAnswer(point, dual, ~(at_low | at_high)))
    return answer


def pull_back(
    problem: SmoothProblem, answer: SmoothAnswer, direction: Float64[Tensor, "batch columns"]
) -> tuple[Float64[Tensor, "batch columns"], Float64[Tensor, "batch rows"], Bool[Tensor, " batch"]]:
    r"""The derivative of the points applied to ``direction``: ``(p, q, ok)``, with p = 0 outside of ``answer.free``.

    On the free columns F, with the curvature H, :math:`H p + A_F^\top q = d` and :math:`A_F p = 0`. ``ok`` says where
    that is solved.
    """
    p, q, left = _Face(problem, answer).solve(direction, torch.zeros_like(problem.rhs), rescue=True)
    return p, q, left <= CONVERGED


@final
class _Face:
    r"""The linear system of active sets, factored: :math:`H p + A_F^\top q = g` and :math:`A_F p = h`.

    No rank is decided: proximal steps with δ on the diagonal are repeated on what is left of the system without it. A
    curvature may be infinite: its column stays where it is.
    """

    def __init__(self, problem: SmoothProblem, answer: SmoothAnswer) -> None:
        self.unit = problem.curves.unit
        self.matrix, _, self.norms = unit_rows(problem)
        bend = problem.bend(answer.point) / self.unit
        self.moves = answer.free & torch.isfinite(bend) & (bend < LARGEST)
        self.bend = torch.where(self.moves, bend, 0.0)
        theta = 1.0 / torch.where(self.bend > 0.0, self.bend, COLUMN_SHIFT)
        self.theta = torch.where(self.moves, theta, 0.0)
        slack, self.idle = problem.slack, torch.zeros_like(problem.rhs, dtype=torch.bool)
        if slack and not problem.curves.has_barrier:  # a row with room says nothing, and its slack is what it leaves
            self.idle[:, -slack:] = self.moves[:, -slack:]
        self.slack = slack if not problem.curves.has_barrier else 0
        if self.slack:
            keeps = torch.ones_like(self.moves)
            keeps[:, -slack:] = False
            self.moves, self.theta = self.moves & keeps, torch.where(keeps, self.theta, 0.0)
            self.bend = torch.where(keeps, self.bend, 0.0)
        smooth = problem.curves.has_barrier or problem.curves.count >= problem.linear.shape[1] - slack
        gram = gram_of(self.matrix, self.theta)
        gram = torch.where(self.idle[:, :, None] | self.idle[:, None, :], 0.0, gram)
        shift = torch.where(self.idle, 1.0, SMALL_SHIFT if smooth else ROW_SHIFT)
        self.factor = cholesky(gram, shift)

    def solve(self, side: Tensor, row_side: Tensor, *, rescue: bool) -> tuple[Tensor, Tensor, Tensor]:
        """``(p, q, left)``: the solutions, and what is left of the system next to its numbers.

        Of columns what is left counts in the units of what they move, Θ times it; how much one without curvature moves
        is for the others to say.
        """
        g, h = torch.where(self.moves, side / self.unit, 0.0), torch.where(self.idle, 0.0, row_side / self.norms)
        loosest = torch.where(self.bend > 0.0, self.theta, 0.0).amax(1)
        loosest = torch.where(loosest > 0.0, loosest, 1.0)[:, None]
        least = torch.maximum(largest_of(g) * loosest[:, 0], largest_of(h)).clamp(min=TINY)
        p, q, left = torch.zeros_like(g), torch.zeros_like(h), torch.full_like(least, torch.inf)
        for step in range(STEPS + 1):
            first = torch.where(self.moves, g - self.bend * p - times_transpose(self.matrix, q), 0.0)
            second = torch.where(self.idle, 0.0, h - times(self.matrix, p))
            moved = self.theta * first
            of_columns = largest_of(torch.where(self.bend > 0.0, moved, loosest * first))
            left = torch.maximum(of_columns, largest_of(second)) / torch.maximum(least, largest_of(p))
            going = left > PRECISION
            if step == STEPS or not bool(going.any()):
                break
            turn = solve_with(self.factor, torch.where(self.idle, 0.0, times(self.matrix, moved) - second))
            move = self.theta * (first - times_transpose(self.matrix, turn))
            p, q = torch.where(going[:, None], p + move, p), torch.where(going[:, None], q + turn, q)
        weak = torch.nonzero(~(left <= CONVERGED) & torch.isfinite(least) & rescue)[:, 0]
        if len(weak):
            p[weak], q[weak], left[weak] = self._by_spectrum(weak, g[weak], h[weak])
        if self.slack:
            rooms = (row_side / self.norms - times(self.matrix, p))[:, -self.slack :]
            own = self.matrix[..., -self.slack :, :].diagonal(offset=p.shape[1] - self.slack, dim1=-2, dim2=-1)
            p[:, -self.slack :] = torch.where(self.idle[:, -self.slack :], rooms / own, 0.0)
        return p, q * self.unit / self.norms, left

    def _by_spectrum(self, some: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By eigenvectors, with columns in the units that they move in, for rows too nearly dependent."""
        matrix = self.matrix if self.matrix.ndim == 2 else self.matrix[some]
        moves, bend, idle = self.moves[some], self.bend[some], self.idle[some]
        scale = torch.where(bend > 0.0, 1.0 / torch.where(bend > 0.0, bend, 1.0).sqrt(), 1.0)
        scale = torch.where(moves, scale, 0.0)
        body = torch.where(idle[:, :, None], 0.0, matrix * scale[:, None, :])
        rows, columns = body.shape[1:]
        whole = body.new_zeros(len(body), columns + rows, columns + rows)
        whole[:, columns:, :columns], whole[:, :columns, columns:] = body, body.mT
        whole[:, :columns, :columns] = torch.diag_embed(torch.where(moves & (bend == 0.0), 0.0, 1.0))
        sides = torch.cat([scale * g, h], dim=1)
        known = torch.isfinite(whole).flatten(1).all(1) & torch.isfinite(sides).all(1)
        whole = torch.where(known[:, None, None], whole, 0.0)
        sides = torch.where(known[:, None], sides, 0.0)
        values, vectors = torch.linalg.eigh(whole)
        large = values.abs() > RESCUE_CUTOFF * values.abs().amax(1, keepdim=True)
        inverse = torch.where(large, 1.0 / torch.where(large, values, 1.0), 0.0)
        found, rest = torch.zeros_like(sides), sides
        for _ in range(2):
            found = found + times(vectors, inverse * times(vectors.mT, rest))
            rest = sides - times(whole, found)
        left = torch.where(known, largest_of(rest) / largest_of(sides).clamp(min=TINY), torch.inf)
        return scale * found[:, :columns], found[:, columns:], left
