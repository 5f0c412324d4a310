"""A predictor-corrector method; see :mod:`optlayers.solvers.kernels.smooth_interior_point`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from optlayers.solvers.kernels.batched import clipped, gram_of, largest_of, solve_with, times, times_transpose
from optlayers.solvers.kernels.curves import BITS, ENTROPY, POWER
from optlayers.solvers.smooth.problem import SmoothAnswer, SmoothProblem, factored, unit_rows

__all__ = ["interior_point"]

TINY = 1e-300
INTERIOR_STEPS = 150
CENTRAL = 1e-14
"""Residuals and complementarity at which it ends, for an objective of unit size."""
PATIENCE = 8
"""After so many steps without a better point nothing is to be hoped for: what is left is rounding,"""
CLOSE = 1e-9
"""where the point is so near already;"""
HOPE = 40
"""from afar, steps may get worse for so long."""
SHORTER = 0.995
"""The part of the way to the nearest bound that a step goes."""
SHORT = 0.1
"""A step of less than this says that products are too far from each other."""
PROXIMAL = 1e-8
"""Of columns without bound or curvature."""
MARGIN = 0.1
"""The first point of a barrier keeps this part of the room that the middle has."""
SMALL = 1e-2
GROWN = 4.0
"""A number whose slope is that of an entropy grows at most so many times in a step."""


@final
@dataclass(frozen=True)
class _Iterate:
    """An interior point: z, y, and the multipliers of lower and upper bounds."""

    point: Tensor
    dual: Tensor
    press_low: Tensor
    press_high: Tensor

    def chosen(self, which: Tensor, other: _Iterate) -> _Iterate:
        """These where ``which``, else the other ones."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Iterate(*(torch.where(which[:, None], mine, theirs) for mine, theirs in pairs))


def interior_point(problem: SmoothProblem, *, limit: int = INTERIOR_STEPS) -> SmoothAnswer:
    """Predictor and corrector steps, for every problem; ``free`` are the columns whose multiplier ends nearer to 0 than
    they are to their bounds."""
    inner = _Interior(problem)
    now = best = inner.start()
    least = torch.full_like(inner.unit[:, 0], torch.inf)
    since, done = torch.zeros_like(least), torch.zeros_like(least, dtype=torch.bool)
    short = done
    for step in range(limit + 1):
        merit = inner.merit(now)
        better = ~done & (merit < least)
        best, least = now.chosen(better, best), torch.where(better, merit, least)
        since = torch.where(better, 0.0, since + 1.0)
        patience = torch.where(least <= CLOSE, float(PATIENCE), float(HOPE))
        done = done | ~(merit > CENTRAL) | ~torch.isfinite(merit) | (since > patience)
        if step == limit or bool(done.all()):
            break
        ahead, length = inner.advance(now, short)
        now, short = ahead.chosen(~done, now), length < SHORT
    below, above = best.point - inner.lower, inner.upper - best.point
    low = inner.has_low & (below < best.press_low)
    high = inner.has_high & (above < best.press_high)
    both = low & high  # an interval so short that both bounds are near
    low, high = low & ~(both & (best.press_low < best.press_high)), high & ~(both & (best.press_low >= best.press_high))
    free = inner.movable if problem.curves.has_barrier else inner.movable & ~(low | high)
    return SmoothAnswer(best.point, best.dual * inner.unit / inner.norms, free)


@final
class _Interior:
    """A problem with rows of unit norm and an objective of unit size. Ends of the domain of an entropy are no bounds:
    its slope keeps the point away from them."""

    def __init__(self, problem: SmoothProblem) -> None:
        self.problem = problem
        self.matrix, self.rhs, self.norms = unit_rows(problem)
        self.movable = problem.movable
        bounded_low = self.movable & torch.isfinite(problem.lower)
        bounded_high = self.movable & torch.isfinite(problem.upper)
        self.lower = torch.where(torch.isfinite(problem.lower), problem.lower, 0.0)
        self.upper = torch.where(torch.isfinite(problem.upper), problem.upper, 0.0)
        self.bounded = bounded_low, bounded_high
        kind = problem.curves.kind
        self.bits, self.entropic = kind == BITS, (kind == ENTROPY) | (kind == BITS)
        self.steep = self.entropic | (kind == POWER)
        self.has_low = bounded_low & ~(self.entropic & (self.lower <= 0.0))
        self.has_high = bounded_high & ~(self.bits & (self.upper >= 1.0))
        self.pairs = (self.has_low.sum(1) + self.has_high.sum(1)).clamp(min=1)
        curves = problem.curves
        heaviest = torch.where(curves.curved, curves.weight, 0.0).amax(1)
        size = torch.maximum(
            torch.maximum(heaviest, curves.least), torch.linalg.vector_norm(problem.linear, torch.inf, 1)
        )
        self.unit = torch.where(size > 0.0, size, 1.0)[:, None]
        self.curves, self.linear = problem.curves.over(self.unit), problem.linear / self.unit
        self.least = self.curves.least[:, None]

    def start(self) -> _Iterate:
        """Well inside the bounds, with products of equal size; rows with room start with it."""
        low, high = self.bounded
        middle = self.lower + 0.5 * (self.upper - self.lower)
        z = torch.where(low & high, middle, torch.where(low, self.lower + 1.0, self.lower))
        z = torch.where(high & ~low, self.upper - 1.0, z)
        cost = self.linear - torch.where(low | high, self.curves.slope(z), 0.0)
        floor = self.least.clamp(min=1.0)
        press_low = torch.where(self.has_low, floor + (-cost).clamp(min=0.0), 0.0)
        press_high = torch.where(self.has_high, floor + cost.clamp(min=0.0), 0.0)
        if self.curves.has_barrier:
            return self._central_start(z, floor)
        slack = self.problem.slack
        if slack:
            own = self.matrix[..., -slack:, :].diagonal(offset=z.shape[1] - slack, dim1=-2, dim2=-1)
            room = z[:, -slack:] + (self.rhs - times(self.matrix, z))[:, -slack:] / own
            given = self.has_low[:, -slack:] & ~self.has_high[:, -slack:] & (room > 1.0)
            z[:, -slack:] = torch.where(given, room, z[:, -slack:])
            press_low[:, -slack:] = torch.where(given, 1.0 / room, press_low[:, -slack:])
        return _Iterate(z, torch.zeros_like(self.rhs), press_low, press_high)

    def _central_start(self, z: Tensor, floor: Tensor) -> _Iterate:
        """For a barrier, a point near ``A z = b`` well inside its bounds, with equal products: unequal ones stay so."""
        below, above = self._rooms(z)
        room = torch.where(self.movable, torch.minimum(below, above), 0.0)
        weight = room**2
        factor = factored(gram_of(self.matrix, weight))
        away = solve_with(factor, self.rhs - times(self.matrix, z))
        nearer = z + weight * times_transpose(self.matrix, away)
        low = torch.where(self.has_low, z - (1.0 - MARGIN) * below, -torch.inf)
        high = torch.where(self.has_high, z + (1.0 - MARGIN) * above, torch.inf)
        z = torch.where(self.movable, clipped(nearer, low, high), z)
        below, above = self._rooms(z)
        press_low = torch.where(self.has_low, floor / below, 0.0)
        return _Iterate(z, torch.zeros_like(self.rhs), press_low, torch.where(self.has_high, floor / above, 0.0))

    def _rooms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Those to bounds, 1 where there are none."""
        return torch.where(self.has_low, z - self.lower, 1.0), torch.where(self.has_high, self.upper - z, 1.0)

    def _pull(self, now: _Iterate) -> Tensor:
        """What is left of scores, for the multipliers of bounds to balance."""
        left = self.linear - self.curves.slope(now.point) - times_transpose(self.matrix, now.dual)
        return torch.where(self.movable, left, 0.0)

    def merit(self, now: _Iterate) -> Tensor:
        """The largest of residuals and complementarity."""
        below, above = self._rooms(now.point)
        first, second = now.press_low * below, now.press_high * above
        excess = torch.where(self.has_low, (first - self.least).abs(), 0.0).sum(1)
        excess = excess + torch.where(self.has_high, (second - self.least).abs(), 0.0).sum(1)
        value = torch.where(self.movable, now.point * self.linear, 0.0).sum(1)
        off = (self._pull(now) + now.press_low - now.press_high).abs()
        # Near its end an entropy is steep, and little depends on it.
        off = torch.where(self.steep & ~self.bits, off * now.point.abs().clamp(max=1.0), off)
        off = torch.where(self.bits, off * torch.minimum(now.point, 1.0 - now.point), off)
        rows = largest_of(self.rhs - times(self.matrix, now.point)) / largest_of(self.rhs).clamp(min=1.0)
        return torch.stack([rows, largest_of(off), excess / (1.0 + value.abs())]).amax(0)

    def advance(self, now: _Iterate, short: Tensor) -> tuple[_Iterate, Tensor]:
        """A step of Mehrotra's predictor and corrector (1992), towards products of ``least``, and how long it is.

        After one that was ``short`` a step goes to the middle alone.
        """
        z, first, second, goal = now.point, now.press_low, now.press_high, self.least
        below, above = self._rooms(z)
        stiffness = self.curves.bend(z) + first / below + second / above
        theta = torch.where(self.movable, 1.0 / torch.where(stiffness > 0.0, stiffness, PROXIMAL), 0.0)
        gram = gram_of(self.matrix, theta)
        factor = factored(gram)
        left, pull = self.rhs - times(self.matrix, z), self._pull(now)

        def turned(side: Tensor) -> tuple[Tensor, Tensor]:
            """``(A Θ Aᵀ) dy = A Θ g - left`` and ``dz = Θ (g - Aᵀ dy)``."""
            want = times(self.matrix, theta * side) - left
            turn = solve_with(factor, want)
            turn = turn + solve_with(factor, want - times(gram, turn))
            return theta * (side - times_transpose(self.matrix, turn)), turn

        def pushed(low: Tensor, high: Tensor) -> Tensor:
            """The multipliers of bounds as a side."""
            return torch.where(self.has_low, low / below, 0.0) - torch.where(self.has_high, high / above, 0.0)

        def presses(low: Tensor, high: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
            """Their steps to products of these values."""
            one, other = (low - below * first - first * dz) / below, (high - above * second + second * dz) / above
            return torch.where(self.has_low, one, 0.0), torch.where(self.has_high, other, 0.0)

        dz, _ = turned(pull + pushed(goal, goal))
        dl, du = presses(goal, goal, dz)
        length = self._length(now, dz, dl, du, 1.0)[:, None]
        ahead = torch.where(self.has_low, (z + length * dz - self.lower) * (first + length * dl), 0.0).sum(1)
        ahead = ahead + torch.where(self.has_high, (self.upper - z - length * dz) * (second + length * du), 0.0).sum(1)
        mean = ((first * below * self.has_low).sum(1) + (second * above * self.has_high).sum(1)) / self.pairs
        share = ahead / (self.pairs * mean).clamp(min=TINY)
        target = torch.maximum((torch.where(short, 1.0, share**3) * mean)[:, None], goal)
        error_low, error_high = (torch.where(short[:, None], 0.0, dz * move) for move in (dl, du))
        low, high = target - error_low, target + error_high
        dz, dy = turned(pull + pushed(low, high))
        dl, du = presses(low, high, dz)
        length = self._length(now, dz, dl, du, SHORTER)[:, None]
        ended = self._moved(z, dz, length), now.dual + length * dy, first + length * dl, second + length * du
        return _Iterate(*ended), length[:, 0]

    def _length(self, now: _Iterate, dz: Tensor, dl: Tensor, du: Tensor, share: float) -> Tensor:
        """How far rooms, multipliers and numbers with an entropy stay positive; those that are small leave it as it
        is, as little depends on them."""
        below, above = self._rooms(now.point)
        longest = torch.full_like(now.point[:, 0], 1.0 / share)
        for value, move, counts in (
            (below, dz, self.has_low),
            (above, -dz, self.has_high),
            (now.press_low, dl, self.has_low),
            (now.press_high, du, self.has_high),
        ):
            longest = torch.minimum(longest, torch.where(counts & (move < 0.0), -value / move, torch.inf).amin(1))
        longest, z = share * longest, now.point
        large = self.movable & (z >= SMALL)
        for value, move, counts, part in (
            (z, dz, large & self.entropic, share),
            (GROWN * z, -dz, large & self.steep & (dz > GROWN * z), 1.0),
            (1.0 - z, -dz, self.movable & self.bits & (1.0 - z >= SMALL), share),
        ):
            ratio = torch.where(counts & (move < 0.0), -part * value / move, torch.inf).amin(1)
            longest = torch.minimum(longest, ratio)
        return longest

    def _moved(self, z: Tensor, dz: Tensor, length: Tensor) -> Tensor:
        """The step; small numbers with an entropy stay positive each by itself, and grow no faster than it sees."""
        after, least = z + length * dz, 1.0 - SHORTER
        small = self.entropic & (z < SMALL)
        rest = 1.0 - z
        held = clipped(1.0 - after, least * rest, (1.0 + GROWN) * rest)
        found = torch.where(small, clipped(after, least * z, (1.0 + GROWN) * z), after)
        found = torch.where(self.bits & ~small & (rest < SMALL), 1.0 - held, found)
        return torch.where(self.movable, found, z)
