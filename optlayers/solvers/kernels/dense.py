r"""Projections and best vertices in batched dense torch, on any device: nothing here leaves the device of its input.

The problem is the standard form with every number filled in: maximize :math:`c^\top z - \tfrac12 z^\top H z` over
:math:`A z = b,\ l \le z \le u`, where H is diagonal, 1 on columns with curvature and 0 on the others. A dual point y
leaves the reduced costs :math:`c - H z - A^\top y`; a positive one pushes its column to the upper bound. No instance is
treated alone: one that is done stays where it is while the others go on, and the host only asks whether all are done.
A batch takes a few times ``8 · batch · rows · (rows + columns)`` bytes; there is at least one column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.solvers.kernels import ties
from optlayers.solvers.kernels.batched import (
    cholesky,
    clipped,
    gram_of,
    largest_of,
    solve_with,
    times,
    times_transpose,
)
from optlayers.solvers.kernels.optimality import (
    FAR,
    FLOOR,
    HELD,
    HUGE,
    LOST,
    NOISE,
    ROUNDING,
    TOLERANCE,
    TOUCHES,
)
from optlayers.solvers.kernels.vertex import CLEAR

__all__ = [
    "DenseAnswer",
    "DenseProblem",
    "are_exact",
    "are_vertices",
    "best_vertex",
    "certify",
    "dual_newton",
    "interior_point",
    "polish",
    "pull_back",
]

TINY = torch.finfo(torch.float64).tiny
EPSILON = torch.finfo(torch.float64).eps
POLISHED = 1e-13
"""A relative certificate below this needs no polishing."""
CERTIFIED = 1e-9
"""A relative certificate above this sends an instance to another way of solving it."""
CLIPPED = 1e5
"""On that other way, scores beyond this (a part that is forbidden by -1e12) are this; certified are the true ones."""

# Dual Newton
NEWTON = 1e-13
"""The residual at which steps end, relative to the right-hand side, for rows of unit norm."""
SMALLEST_SHIFT = 1e-8
"""δ of the last steps, for rows of unit norm."""
SHIFT = 1e-3
"""How much of the residual is added to δ: far from the end the Hessian may be singular, and says little."""
ARMIJO = 1e-4
"""The part of the predicted descent that is enough."""
SHORTER = 0.25
TRIALS = 40
"""A step that was shortened so often and still does not descend is rounding."""

# Interior point
CENTRAL = 1e-12
"""Residuals and complementarity at which it ends, for an objective of unit size."""
PATIENCE = 12
"""So many steps without progress are the end of it, too."""
ENDED = 1e-6
"""Residuals and complementarity at which room and multiplier can be told apart."""
MARGIN = 0.1
"""The first point keeps this part of a column's width from its bounds."""
BACK = 0.995
"""The part of the way to the nearest bound that a step goes."""
PROXIMAL = 1e-9
"""ρ, for columns without bound or curvature; it damps the step alone."""
DEPENDENT = 1e-12
"""δ of the normal equations, relative to their diagonal, for rows that depend on each other next to the end."""

# Best vertices
STAGES = 10 + ties.ROUNDS
"""How many objectives in turn may be needed to decide a vertex."""
KEPT = 1e-2
"""A column keeps a bound when its room is so much smaller than its multiplier; in doubt it may move."""
TIE = 1e-12
"""Differences of scores below this, relative to the largest score that is still undecided, are rounding."""
WIDE = 1e4
"""Columns with reduced costs up to so many times an objective take part again when that is maximized."""
BLUNT = 1e-3
"""A dual point whose rounding is more than this part of an objective is no start for it."""
UNDECIDED = 1e-9
"""A face on which the probe varies by less than this is a vertex."""
SNAP = 1e-9
"""Values of a vertex this close to a bound or to an integer are that number."""

# Active sets
ROUNDS = 8
"""How often a guessed active set is corrected."""
SIGN = 1e-11
"""Violations of bounds and of multiplier signs below this, relative to the numbers involved, are rounding."""
REGULARIZATION = 1e-6
"""δ where columns have no curvature; factors grow to 1/δ and cancel to δ, so δ² must stay well above rounding."""
CURVED_REGULARIZATION = 1e-9
"""δ where all columns do: then nothing grows to 1/δ."""
STEPS = 40
"""At most so many proximal steps; a well-conditioned system takes two or three."""
PRECISION = 2e-15
"""Proximal steps end when the residual is below this, relative to the right-hand side."""
SOLVED = 1e-11
"""A residual below this, relative to the right-hand side, is a solution."""
RESCUE_CUTOFF = 1e-13
"""Eigenvalues below this are 0 in a rescue; where that is wrong, what is left shows it."""


@final
@dataclass(frozen=True)
class DenseProblem:
    """Maximize ``c·z - ½ z·H z`` subject to ``A z = b`` and ``lower <= z <= upper``, for a batch.

    ``matrix`` is A, shared ``(rows, columns)`` or one per instance. Bounds may be infinite; ``lower == upper`` fixes a
    column. ``curvature`` is the diagonal of H: 1 on scored columns and 0 on auxiliary and slack ones for a projection,
    0 everywhere for a linear program. The last ``slack`` columns are the slack of as many last rows.
    """

    matrix: Float64[Tensor, "*shared rows columns"]
    rhs: Float64[Tensor, "batch rows"]
    lower: Float64[Tensor, "batch columns"]
    upper: Float64[Tensor, "batch columns"]
    linear: Float64[Tensor, "batch columns"]
    curvature: Float64[Tensor, " columns"]
    slack: int = 0

    def __len__(self) -> int:
        return len(self.rhs)

    @property
    def movable(self) -> Bool[Tensor, "batch columns"]:
        """The columns that are not fixed by their bounds."""
        return self.lower < self.upper

    def take(self, index: Int64[Tensor, " some"] | slice) -> DenseProblem:
        """Some of the instances."""
        matrix = self.matrix if self.matrix.ndim == 2 else self.matrix[index]
        rhs, lower, upper, linear = (part[index] for part in (self.rhs, self.lower, self.upper, self.linear))
        return DenseProblem(matrix, rhs, lower, upper, linear, self.curvature, self.slack)

    def activity(self, point: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch rows"]:
        """``A z`` without slack."""
        return times(self.matrix, _without_slack(self, point))

    def with_slack(self, point: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch columns"]:
        """Points with what their rows leave as slack, as far as bounds allow."""
        if not self.slack:
            return point
        left = (self.rhs - self.activity(point))[:, -self.slack :]
        return torch.cat([point[:, : -self.slack], torch.maximum(left, self.lower[:, -self.slack :])], dim=1)


@final
@dataclass(frozen=True)
class DenseAnswer:
    """Points with their certificates; ``free`` marks the columns that no bound holds on the active set found."""

    point: Float64[Tensor, "batch columns"]
    dual: Float64[Tensor, "batch rows"]
    free: Bool[Tensor, "batch columns"]
    residual: Float64[Tensor, " batch"]
    gap: Float64[Tensor, " batch"]
    relative: Float64[Tensor, " batch"]
    iterations: Int64[Tensor, " batch"]


def certify(
    problem: DenseProblem, point: Float64[Tensor, "batch columns"], dual: Float64[Tensor, "batch rows"]
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """The largest violation, the gap, and how wrong the point may be, relative to the numbers involved.

    The twin of :func:`optlayers.solvers.certify.certify`, whose docstring has the formulas. Slack columns are columns
    like others here, in the unit of the terms of their rows, so that a dual of the wrong sign is a reduced cost along
    an infinite bound, and all blocks are one. Rounding is added to what it may hide. That a point
    is a vertex, :func:`are_vertices` says.
    """
    matrix, curved = problem.matrix, problem.curvature > 0
    projection = bool(curved.any())
    scale = largest_of(torch.where(problem.movable, problem.linear, 0.0))
    if not projection:
        dual = torch.where(scale[:, None] > 0, dual, 0.0)  # next to scores of 0 every point is best
    reduced = problem.linear - problem.curvature * point - times_transpose(matrix, dual)
    sizes = matrix.abs()
    own = problem.linear.abs() + problem.curvature * point.abs() + times_transpose(sizes, dual.abs())
    noise = EPSILON * (2.0 + (matrix != 0).sum(dim=-2)) * own
    unit = _units(problem, point)
    room = torch.where(reduced > 0, problem.upper - point, point - problem.lower)
    finite_room = torch.where(torch.isfinite(room), room, 2.0 * point.abs().clamp(min=1.0)).clamp(min=0.0)
    distance = torch.where(room > TOUCHES * unit, reduced.abs() + noise, 0.0)
    slackness = problem.rhs - times(matrix, point)
    outside = torch.maximum(problem.lower - point, point - problem.upper).clamp(min=0.0)
    floor, size = FLOOR * times(sizes, _without_slack(problem, unit)), problem.rhs.abs() + times(sizes, point.abs())
    of_rows = torch.where(slackness.abs() > floor, slackness.abs() / size, 0.0)
    of_bounds = torch.where(outside > FLOOR * unit, outside / unit, 0.0)
    if projection:
        moved = torch.where(curved, distance, 0.0).norm(dim=1)
        charged = torch.where(curved, 0.0, distance * finite_room).sum(1).sqrt()
        of_columns = (moved + charged) / (FAR * _smallest(problem, unit))
    else:
        of_columns = torch.where(scale > 0, largest_of(distance / _score_scale(problem, own, scale[:, None])), 0.0)
    residual = torch.maximum(largest_of(slackness), largest_of(outside))
    gap = (reduced.abs() * finite_room).sum(1) + (dual * slackness).abs().sum(1)
    error = torch.stack([largest_of(of_rows), largest_of(of_bounds), of_columns]).amax(0)
    known = torch.isfinite(gap) & torch.isfinite(error)
    return residual, gap, torch.where(known, error, torch.inf)


def are_exact(
    problem: DenseProblem,
    point: Float64[Tensor, "batch columns"],
    dual: Float64[Tensor, "batch rows"],
    free: Bool[Tensor, "batch columns"],
) -> Bool[Tensor, " batch"]:
    """Whether active sets are those of the points: the columns that are not ``free`` are at a bound, and no bound holds
    those that are. The twin of ``exact`` in :mod:`optlayers.solvers.kernels.optimality`.
    """
    unit, reduced = _units(problem, point), _reduced(problem, point, dual).abs()
    own = problem.linear.abs() + problem.curvature * point.abs() + times_transpose(problem.matrix.abs(), dual.abs())
    terms = torch.maximum(_smallest(problem, unit), largest_of(_without_slack(problem, own)))
    held = largest_of(torch.where(free, (reduced - HELD * own).clamp(min=0.0), 0.0))
    at_bounds = torch.minimum(point - problem.lower, problem.upper - point) <= TOUCHES * unit
    return (free | at_bounds).all(1) & (held <= NOISE * terms)


def _smallest(problem: DenseProblem, unit: Tensor) -> Float64[Tensor, " batch"]:
    """The smallest unit of a column with curvature that is not held, 1 where there is none."""
    inverse = largest_of(torch.where(problem.movable & (problem.curvature > 0), 1.0 / unit, 0.0))
    return torch.where(inverse > 0, 1.0 / inverse, 1.0)


def _score_scale(problem: DenseProblem, own: Tensor, largest: Tensor) -> Tensor:
    """What reduced costs are relative to; the twin of the function in :mod:`optlayers.solvers.kernels.optimality`."""
    cost = problem.linear.abs()
    some = (cost > 0) & problem.movable
    inverse = largest_of(torch.where(some, 1.0 / cost, 0.0))[:, None]
    least = 1.0 / inverse  # inf where there is none
    scale = torch.minimum(own, largest) + ROUNDING / TOLERANCE * largest
    if problem.slack:
        scale[:, -problem.slack :] = largest
    return torch.where(
        largest > HUGE, torch.minimum(scale, LOST / TOLERANCE * torch.where(cost > 0, cost, least)), scale
    )


def are_vertices(
    problem: DenseProblem,
    point: Float64[Tensor, "batch columns"],
    dual: Float64[Tensor, "batch rows"],
    scored: int,
) -> Bool[Tensor, " batch"]:
    """Whether it is proved that points are vertices: columns that are at no bound leave the scored ones no direction to
    move in. Bounds on auxiliary columns count where they have a price; see
    :mod:`optlayers.solvers.kernels.vertex`.
    """
    unit = _units(problem, point)
    free = (point - problem.lower > TOUCHES * unit) & (problem.upper - point > TOUCHES * unit)
    cut = point.shape[1] - problem.slack
    if scored < cut:
        beside = torch.zeros_like(free)
        beside[:, scored:cut] = True
        if problem.slack:
            beside[:, cut:] = (problem.matrix[..., -problem.slack :, scored:cut] != 0).any(dim=-1)
        clear = CLEAR * largest_of(torch.where(problem.movable, problem.linear, 0.0))[:, None]
        free |= beside & problem.movable & (times_transpose(problem.matrix, dual).abs() <= clear)
    rest, _ = _ActiveSet(problem.matrix, torch.ones_like(problem.curvature), free).left_over(_probe(problem, scored))
    return largest_of(rest[:, :scored]) <= UNDECIDED


def _units(problem: DenseProblem, point: Tensor) -> Tensor:
    """The size of numbers in each column: that of the terms of its row for slack, else that of :func:`_own_units`."""
    unit = _own_units(problem, point)
    if not problem.slack:
        return unit
    terms = problem.rhs.abs() + times(problem.matrix.abs(), _without_slack(problem, point).abs())
    return torch.cat([unit[:, : -problem.slack], terms[:, -problem.slack :]], dim=1)


def _own_units(problem: DenseProblem, point: Tensor) -> Tensor:
    """1, or what a column holds if that is more; never more than its bounds allow."""
    return torch.minimum(torch.maximum(problem.lower.abs(), problem.upper.abs()), point.abs().clamp(min=1.0))


def _without_slack(problem: DenseProblem, columns: Tensor) -> Tensor:
    """Numbers of columns, with 0 for slack columns."""
    return torch.nn.functional.pad(columns[:, : columns.shape[1] - problem.slack], (0, problem.slack))


def dual_newton(problem: DenseProblem, *, iteration_limit: int = 200) -> DenseAnswer:
    r"""Projections by semismooth Newton steps on the dual; every column must have curvature 1.

    For fixed y the best point is :math:`z(y) = \operatorname{clip}(c - A^\top y, l, u)`, and the dual
    :math:`b^\top y + \max_z (\dots)` is convex in y with gradient :math:`b - A z(y)`. It is quadratic between kinks, so
    the steps end on the exact active set. What they leave uncertified goes to :func:`interior_point`.
    """
    matrix, rhs, norms = _unit_rows(problem)
    floor = NEWTON * (1 + largest_of(rhs))

    def at(push: Tensor) -> tuple[Tensor, Tensor]:
        point = clipped(push, problem.lower, problem.upper)
        return point, times(matrix, point) - rhs

    y = torch.zeros_like(rhs)
    push = problem.linear
    point, excess = at(push)
    best = largest_of(excess)
    done = ~(best > floor)  # so that NaN is done
    iterations = torch.zeros_like(best, dtype=torch.int64)
    for _ in range(iteration_limit):
        if bool(done.all()):
            break
        inside = (push > problem.lower) & (push < problem.upper)
        shift = SMALLEST_SHIFT + SHIFT * largest_of(excess).clamp(max=0.1) / (1 + largest_of(problem.linear)).sqrt()
        factor = cholesky(gram_of(matrix, inside.to(rhs.dtype)), shift[:, None].expand_as(rhs))
        ahead = solve_with(factor, excess)
        turn, descent = times_transpose(matrix, ahead), (ahead * excess).sum(1)
        step, settled = torch.ones_like(best), done
        for _ in range(TRIALS):
            trial, trial_excess = at(push - step[:, None] * turn)
            # The change of the dual objective without its cancellation, which at large scores leaves only rounding.
            change = ((trial - point) * (push - 0.5 * (point + trial))).sum(1) - step * (ahead * trial_excess).sum(1)
            fine = (change <= -ARMIJO * step * descent) | (largest_of(trial_excess) <= 0.5 * best)
            settled = settled | fine
            if bool(settled.all()):
                break
            step = torch.where(settled, step, SHORTER * step)
        moving = settled & ~done
        y = torch.where(moving[:, None], y + step[:, None] * ahead, y)
        iterations += moving
        push = problem.linear - times_transpose(matrix, y)
        point, excess = at(push)
        left = largest_of(excess)
        # Free columns carry the rounding of the numbers they are differences of.
        size = largest_of(torch.where(inside, problem.linear.abs() + push.abs(), 0.0))
        done = done | ~settled | ~(left > floor + 8 * EPSILON * size)
        best = torch.minimum(best, left)
    free = (push > problem.lower) & (push < problem.upper)
    answer = _answer(problem, point, y / norms, free, iterations)
    answer = _where_above(POLISHED, problem, answer, polish)
    return _where_above(CERTIFIED, problem, answer, lambda some, _: interior_point(some))


def interior_point(problem: DenseProblem, *, iteration_limit: int = 100) -> DenseAnswer:
    """Projections and linear programs by Mehrotra's predictor and corrector, polished to the exact active set.

    Where several points of a linear program are best, the answer lies between them: see :func:`best_vertex`.
    """
    answer = _follow_and_polish(problem, problem.linear, iteration_limit)

    def again(some: DenseProblem, _: DenseAnswer) -> DenseAnswer:
        return _follow_and_polish(some, some.linear.clamp(-CLIPPED, CLIPPED), iteration_limit)

    return _where_above(CERTIFIED, problem, answer, again)


def _follow_and_polish(problem: DenseProblem, linear: Tensor, iteration_limit: int) -> DenseAnswer:
    """The path of another objective, and the problem's answer from its end."""
    path = _follow_path(replace(problem, linear=linear), iteration_limit)
    return polish(problem, _answer(problem, path.point, path.dual, path.inside, path.iterations))


def best_vertex(problem: DenseProblem, scored: int, *, iteration_limit: int = 100) -> DenseAnswer:
    """A vertex per instance that maximizes ``linear``, which is 0 beyond the first ``scored`` columns.

    The interior point ends inside the optimal face: columns whose multiplier is far above their room keep their bound,
    the others may move. What the objective still says along that face is maximized over it at its own scale, until that
    is rounding; then the objectives of :mod:`optlayers.solvers.kernels.ties` decide, in turn, as in all solvers. An
    instance that stays undecided has an infinite relative certificate.
    """
    problem = replace(problem, curvature=torch.zeros_like(problem.curvature))

    def again(some: DenseProblem, _: DenseAnswer) -> DenseAnswer:
        return _decide(some, some.linear.clamp(-CLIPPED, CLIPPED), scored, iteration_limit)

    return _where_above(CERTIFIED, problem, _decide(problem, problem.linear, scored, iteration_limit), again)


def _decide(true: DenseProblem, linear: Tensor, scored: int, iteration_limit: int) -> DenseAnswer:
    """Best vertices of another objective, judged by the true one."""
    problem = replace(true, linear=linear)
    curved, probe, objectives = (
        torch.ones_like(problem.curvature),
        _probe(problem, scored),
        _objectives(problem, scored),
    )
    face, best, point = problem.movable, problem.movable, torch.where(problem.movable, 0.0, problem.lower)
    dual, iterations = torch.zeros_like(problem.rhs), torch.zeros_like(point[:, 0], dtype=torch.int64)
    silent, lost = (torch.zeros_like(iterations, dtype=torch.bool) for _ in range(2))
    rounds = torch.zeros_like(iterations)
    undecided = torch.arange(len(problem), device=point.device)
    for _ in range(STAGES):
        mine, movable = problem.take(undecided), face[undecided]
        system = _ActiveSet(mine.matrix, curved, movable)
        rest, fresh = system.left_over(mine.linear)
        choice, _ = system.left_over(probe[undecided])
        tie, _ = system.left_over(objectives[rounds[undecided].clamp(max=ties.ROUNDS - 1)])
        real = (largest_of(rest) > 0) & ~silent[undecided]
        several = (largest_of(choice[:, :scored]) > UNDECIDED) & (rounds[undecided] < ties.ROUNDS)
        going = (real | several) & ~lost[undecided]
        wide, start = _widen(mine, movable, largest_of(rest), system.price(mine.linear, dual[undecided]), fresh)
        wide = torch.where(real[:, None], wide, movable)
        objective = torch.where(real[:, None], mine.linear - times_transpose(mine.matrix, start), tie)
        undecided, movable, real, wide, start, objective = (
            part[going] for part in (undecided, movable, real, wide, start, objective)
        )
        if len(undecided) == 0:
            break
        path = _follow_path(_on_face(problem.take(undecided), wide, point[undecided], objective), iteration_limit)
        # An objective that is not constant on a face makes it smaller: else it was rounding.
        same = (path.inside == movable).all(1) & path.ended
        silent[undecided] |= same & real
        rounds[undecided] += ~real
        lost[undecided] |= ~path.ended
        face[undecided], point[undecided] = path.inside, path.settled
        # Objectives that decide ties leave the best face and its dual point as they are.
        best[undecided] = torch.where(real[:, None], path.inside, best[undecided])
        dual[undecided] = torch.where(real[:, None], start + path.dual, dual[undecided])
        iterations[undecided] += path.iterations
    point = _vertex_on(problem, face, point)
    # Columns at a bound need a reduced cost of the right sign, but it is 0 all over the best face, if that is right.
    strict = problem.movable & (problem.lower < point) & (point < problem.upper)
    first, second = (
        _answer(true, point, _ActiveSet(problem.matrix, curved, some).price(linear, dual), face, iterations)
        for some in (best, strict)
    )
    answer = _better(first, second)
    lost[undecided] = True
    return replace(answer, relative=torch.where(lost, torch.inf, answer.relative))


def _on_face(problem: DenseProblem, face: Tensor, point: Tensor, objective: Tensor) -> DenseProblem:
    """Another objective on the part of the problem where the columns outside of a face keep their values."""
    lower, upper = torch.where(face, problem.lower, point), torch.where(face, problem.upper, point)
    return replace(problem, linear=torch.where(face, objective, 0.0), lower=lower, upper=upper)


def _widen(problem: DenseProblem, face: Tensor, size: Tensor, dual: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """A face with the columns that a change of the dual point by ``size`` could free, and the dual point to start from.

    They were found to keep their bounds, but next to other scores; here they defend their reduced costs. A dual point
    with large numbers from earlier objectives is rounding at this size: then a ``fresh`` one is taken.
    """
    rounding = EPSILON * largest_of(times_transpose(problem.matrix.abs(), dual.abs()))
    start = torch.where((rounding <= BLUNT * size)[:, None], dual, fresh)
    reduced = problem.linear - times_transpose(problem.matrix, start)
    return face | (problem.movable & (reduced.abs() <= WIDE * size[:, None])), start


def pull_back(
    problem: DenseProblem, answer: DenseAnswer, direction: Float64[Tensor, "batch columns"]
) -> tuple[Float64[Tensor, "batch columns"], Float64[Tensor, "batch rows"], Bool[Tensor, " batch"]]:
    r"""The derivative of a projection applied to ``direction``: ``(p, q, ok)``, with p = 0 outside ``answer.free``.

    On the free columns F, :math:`H p + A_F^\top q = d` and :math:`A_F p = 0`; d is 0 on columns without curvature. Then
    p is the gradient of the linear term, q that of b, and :math:`d - A^\top q` that of a bound that holds its column.
    ``ok`` says where that is solved to :data:`SOLVED`.
    """
    nothing, size = torch.zeros_like(problem.rhs), largest_of(direction)
    system = _ActiveSet(problem.matrix, problem.curvature, answer.free)
    p, q, left = system.solve(direction, nothing, (torch.zeros_like(direction), nothing), size)
    weak = torch.nonzero((left > SOLVED) & torch.isfinite(size))[:, 0]
    if len(weak):
        some = problem.take(weak)
        p[weak], q[weak], left[weak] = _by_spectrum(some.matrix, some.curvature, answer.free[weak], direction[weak])
    return p, q, left <= SOLVED


def _by_spectrum(matrix: Tensor, curvature: Tensor, free: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The KKT system for ``(side, 0)`` by its eigenvectors, for rows too nearly dependent for proximal steps."""
    matrix = matrix * free[:, None, :]
    rows, columns = matrix.shape[1:]
    norms = torch.linalg.vector_norm(matrix, dim=2)
    norms = torch.where(norms > 0, norms, 1.0)
    matrix = matrix / norms[:, :, None]
    whole = matrix.new_zeros(len(matrix), columns + rows, columns + rows)
    whole[:, columns:, :columns], whole[:, :columns, columns:] = matrix, matrix.mT
    whole[:, :columns, :columns] = torch.diag_embed(torch.where(free, curvature, 1.0))
    values, vectors = torch.linalg.eigh(whole)
    inverse = torch.where(values.abs() > RESCUE_CUTOFF, 1 / values, 0.0)
    side = torch.cat([torch.where(free, side, 0.0), side.new_zeros(len(side), rows)], dim=1)
    found, rest = torch.zeros_like(side), side
    for _ in range(2):
        found = found + times(vectors, inverse * times(vectors.mT, rest))
        rest = side - times(whole, found)
    p, q = found[:, :columns], found[:, columns:]
    # Relative to the terms that cancel: the multipliers of nearly dependent rows are large, and so is their rounding.
    size = torch.maximum(largest_of(side), largest_of(found)).clamp(min=TINY)
    return torch.where(free, p, 0.0), q / norms, largest_of(rest) / size


@final
@dataclass(frozen=True)
class _Path:
    """Where a central path ends, and whether close to an optimum.

    ``inside`` are the columns that no multiplier holds at a bound; ``settled`` is the point with the others there.
    """

    point: Tensor
    dual: Tensor
    inside: Tensor
    settled: Tensor
    ended: Tensor
    iterations: Tensor


@final
@dataclass(frozen=True)
class _Iterate:
    """An interior point. Rooms to the bounds are kept beside it: next to a bound their difference is rounding."""

    point: Tensor
    dual: Tensor
    room_low: Tensor
    room_high: Tensor
    press_low: Tensor
    press_high: Tensor


def _follow_path(problem: DenseProblem, iteration_limit: int) -> _Path:
    """Predictor and corrector steps until residuals and complementarity are :data:`CENTRAL`."""
    inner = _Interior(problem)
    now = best = inner.start()
    least = torch.full_like(inner.size[:, 0], torch.inf)
    done = torch.zeros_like(least, dtype=torch.bool)
    waited, iterations = torch.zeros_like(least, dtype=torch.int64), torch.zeros_like(least, dtype=torch.int64)
    for _ in range(iteration_limit + 1):
        merit = inner.merit(now)
        better = (merit < least) & ~done
        waited = torch.where(merit < 0.9 * least, 0, waited + 1)
        best, least = _choose(better, now, best), torch.where(better, merit, least)
        done = done | ~(merit > CENTRAL) | (waited >= PATIENCE)  # so that NaN is done
        if bool(done.all()):
            break
        iterations += ~done
        now = _choose(~done, inner.advance(now), now)
    low = inner.has_low & (best.room_low < KEPT * best.press_low)
    high = inner.has_high & (best.room_high < KEPT * best.press_high) & ~low
    return _Path(
        best.point,
        best.dual * inner.size / inner.norms,
        inner.movable & ~(low | high),
        torch.where(low, problem.lower, torch.where(high, problem.upper, best.point)),
        least <= ENDED,
        iterations,
    )


@final
class _Interior:
    """A problem with rows of unit norm and an objective of unit size, for interior points.

    Fixed columns have no weight in the normal equations, and so leave the system. The unknown bounds of the others do
    not count: their rooms are 1 and their multipliers 0.
    """

    def __init__(self, problem: DenseProblem) -> None:
        self.matrix, self.rhs, self.norms = _unit_rows(problem)
        self.lower, self.upper, self.movable = problem.lower, problem.upper, problem.movable
        self.has_low = torch.isfinite(self.lower) & self.movable
        self.has_high = torch.isfinite(self.upper) & self.movable
        self.pairs = (self.has_low.sum(1) + self.has_high.sum(1)).clamp(min=1)
        curved = problem.curvature.max()
        size = torch.maximum(largest_of(problem.linear), curved)
        self.size = torch.where(size > 0, size, 1.0)[:, None]
        self.linear, self.curvature = problem.linear / self.size, problem.curvature / self.size
        self.flat = curved == 0

    def start(self) -> _Iterate:
        """A point near ``A z = b`` well inside its bounds, and multipliers that balance its reduced costs."""
        both = self.has_low & self.has_high
        low, high = torch.where(self.has_low, self.lower, 0.0), torch.where(self.has_high, self.upper, 0.0)
        width = torch.where(both, high - low, 2.0)
        middle = torch.where(self.has_low, low + 0.5 * width, torch.where(self.has_high, high - 0.5 * width, 0.0))
        middle = torch.where(self.movable, middle, self.lower)
        weight = torch.where(self.movable, (0.5 * width).clamp(max=1.0) ** 2, 0.0)
        gram = gram_of(self.matrix, weight)
        factor = cholesky(gram, SMALLEST_SHIFT * (1 + gram.diagonal(dim1=1, dim2=2)))
        away = solve_with(factor, self.rhs - times(self.matrix, middle))
        point = middle + weight * times_transpose(self.matrix, away)
        point = torch.where(self.has_low, torch.maximum(point, low + MARGIN * width), point)
        point = torch.where(self.has_high, torch.minimum(point, high - MARGIN * width), point)
        costs = self.linear - self.curvature * point
        dual = solve_with(factor, times(self.matrix, weight * costs))
        reduced = costs - times_transpose(self.matrix, dual)
        return _Iterate(
            point,
            dual,
            torch.where(self.has_low, point - low, 1.0),
            torch.where(self.has_high, high - point, 1.0),
            torch.where(self.has_low, (-reduced).clamp(min=0.0) + 1, 0.0),
            torch.where(self.has_high, reduced.clamp(min=0.0) + 1, 0.0),
        )

    def merit(self, now: _Iterate) -> Tensor:
        """The largest of both residuals and of the mean complementarity."""
        infeasible = largest_of(self.rhs - times(self.matrix, now.point)) / (1 + largest_of(self.rhs))
        unbalanced = largest_of(self._pull(now) + now.press_low - now.press_high)
        return torch.maximum(torch.maximum(infeasible, unbalanced), self._complementarity(now))

    def advance(self, now: _Iterate) -> _Iterate:
        """A step of Mehrotra's predictor and corrector (1992)."""
        stiff_low, stiff_high = now.press_low / now.room_low, now.press_high / now.room_high
        weight = torch.where(self.movable, 1 / (self.curvature + PROXIMAL + stiff_low + stiff_high), 0.0)
        gram = gram_of(self.matrix, weight)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        factor = cholesky(gram, DEPENDENT * torch.where(diagonal > 0, diagonal, 1.0))
        infeasible, pull = self.rhs - times(self.matrix, now.point), self._pull(now)

        def step(low_side: Tensor, high_side: Tensor) -> _Iterate:
            """The Newton step to rooms times multipliers of these values."""
            side = pull + low_side / now.room_low - high_side / now.room_high
            goal = times(self.matrix, weight * side) - infeasible
            turn = solve_with(factor, goal)
            turn = turn + solve_with(factor, goal - times(gram, turn))
            move = weight * (side - times_transpose(self.matrix, turn))
            press_low = low_side / now.room_low - now.press_low - stiff_low * move
            press_high = high_side / now.room_high - now.press_high + stiff_high * move
            return _Iterate(move, turn, move, -move, press_low, press_high)

        nothing = torch.zeros_like(pull)
        guess = step(nothing, nothing)
        mean = self._complementarity(now)
        target = self._complementarity(self._moved(now, guess, 1.0)) ** 3 / mean.clamp(min=TINY) ** 2
        low_side = (target[:, None] - guess.room_low * guess.press_low) * self.has_low
        high_side = (target[:, None] - guess.room_high * guess.press_high) * self.has_high
        return self._moved(now, step(low_side, high_side), BACK)

    def _pull(self, now: _Iterate) -> Tensor:
        """Reduced costs, which the multipliers of the bounds have to balance."""
        reduced = self.linear - self.curvature * now.point - times_transpose(self.matrix, now.dual)
        return torch.where(self.movable, reduced, 0.0)

    def _complementarity(self, now: _Iterate) -> Tensor:
        return ((now.room_low * now.press_low).sum(1) + (now.room_high * now.press_high).sum(1)) / self.pairs

    def _moved(self, now: _Iterate, step: _Iterate, part: float) -> _Iterate:
        """As far as rooms and multipliers stay positive, times ``part``; a full step at most."""
        primal = torch.minimum(
            _longest(now.room_low, step.room_low, self.has_low), _longest(now.room_high, step.room_high, self.has_high)
        )
        dual = torch.minimum(
            _longest(now.press_low, step.press_low, self.has_low),
            _longest(now.press_high, step.press_high, self.has_high),
        )
        primal, dual = (part * primal).clamp(max=1.0), (part * dual).clamp(max=1.0)
        # Curvature ties both sides together.
        both = torch.minimum(primal, dual)
        primal, dual = torch.where(self.flat, primal, both)[:, None], torch.where(self.flat, dual, both)[:, None]
        room_low = torch.where(self.has_low, now.room_low + primal * step.room_low, 1.0)
        room_high = torch.where(self.has_high, now.room_high + primal * step.room_high, 1.0)
        point = now.point + primal * step.point
        near_low = self.has_low & (~self.has_high | (room_low <= room_high))
        point = torch.where(near_low, self.lower + room_low, torch.where(self.has_high, self.upper - room_high, point))
        return _Iterate(
            point,
            now.dual + dual * step.dual,
            room_low,
            room_high,
            torch.where(self.has_low, now.press_low + dual * step.press_low, 0.0),
            torch.where(self.has_high, now.press_high + dual * step.press_high, 0.0),
        )


def _choose(mask: Tensor, first: _Iterate, second: _Iterate) -> _Iterate:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return _Iterate(*(torch.where(mask[:, None], a, b) for a, b in pairs))


def _longest(value: Tensor, move: Tensor, counts: Tensor) -> Tensor:
    """The longest step for which all values that count stay positive."""
    ratio = torch.where(counts & (move < 0), -value / move, torch.inf)
    return ratio.amin(1).clamp(max=1e10)


def polish(problem: DenseProblem, answer: DenseAnswer) -> DenseAnswer:
    """Solve on the active set, correct it, and keep what has the best certificate; see :mod:`optlayers.solvers.polish`.

    The larger of room and multiplier tells whether a bound is active.
    """
    reduced = _reduced(problem, answer.point, answer.dual)
    low = answer.point - problem.lower < -reduced
    high = (problem.upper - answer.point < reduced) & ~low
    fixed = ~problem.movable
    low, high = low | fixed, high & ~fixed
    size = 1 + largest_of(problem.rhs)
    best = replace(answer, free=~(low | high))
    changed = torch.ones_like(answer.gap, dtype=torch.bool)
    for _ in range(ROUNDS):
        held = torch.where(low, problem.lower, torch.where(high, problem.upper, 0.0))
        free = ~(low | high)
        rest = problem.rhs - times(problem.matrix, held)
        system = _ActiveSet(problem.matrix, problem.curvature, free)
        p, q, _ = system.solve(problem.linear, rest, (answer.point, answer.dual), size)
        point, dual = torch.where(free, p, held), q
        found = _answer(problem, point, dual, free, answer.iterations)
        best = _better(best, found, changed)
        reduced = _reduced(problem, point, dual)
        margin = SIGN * (1 + problem.linear.abs() + (problem.linear - reduced).abs())
        release = ((low & (reduced > margin)) | (high & (reduced < -margin))) & ~fixed
        below = free & (point < problem.lower - SIGN * (1 + point.abs()))
        above = free & (point > problem.upper + SIGN * (1 + point.abs()))
        changed = changed & (release | below | above).any(1)
        if not bool(changed.any()):
            break
        low, high = (low & ~release) | below, (high & ~release) | above
    return best


@final
class _ActiveSet:
    r"""The linear system of an active set, factored: :math:`H p + A_F^\top q = r_1` and :math:`A_F p = r_2`.

    It is singular as soon as active rows depend on each other, or columns without curvature can move alone. No rank is
    decided, for rounding would pass for a constraint: proximal steps with δ on the diagonal are repeated on what is
    left of the system without it, and converge where it can be solved. Columns are eliminated, rows factored.
    """

    def __init__(self, matrix: Tensor, curvature: Tensor, free: Tensor) -> None:
        self.matrix, self.curvature, self.free = matrix, curvature, free
        flat = free & (curvature == 0)
        self.weight = torch.where(free, 1 / torch.where(flat, REGULARIZATION, curvature), 0.0)
        norms = times(matrix * matrix, free.to(matrix.dtype)).sqrt()
        self.binding = norms > 0
        self.norms = torch.where(self.binding, norms, 1.0)
        shift = torch.where(flat.any(1), REGULARIZATION, CURVED_REGULARIZATION)[:, None] * self.norms**2
        self.factor = cholesky(gram_of(matrix, self.weight), shift)

    def solve(
        self, column_side: Tensor, row_side: Tensor, start: tuple[Tensor, Tensor], size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(p, q, left)`` by proximal steps from a start, and what is left of both sides where p is of this size."""
        free, weight, matrix = self.free, self.weight, self.matrix
        p, q = torch.where(free, start[0], 0.0), start[1]
        column_size = (size + largest_of(torch.where(free, column_side, 0.0))).clamp(min=TINY)
        row_size = (size + largest_of(torch.where(self.binding, row_side / self.norms, 0.0))).clamp(min=TINY)
        left = best = torch.full_like(column_size, torch.inf)
        best_p, best_q = p, q
        done = torch.zeros_like(column_size, dtype=torch.bool)
        for _ in range(STEPS):
            e1, e2 = self.missing(column_side, row_side, p, q)
            before, left = left, torch.maximum(largest_of(e1) / column_size, largest_of(e2 / self.norms) / row_size)
            better = (left < best) & ~done
            best = torch.where(better, left, best)
            best_p = torch.where(better[:, None], p, best_p)
            best_q = torch.where(better[:, None], q, best_q)
            done = done | ~(left > PRECISION) | (left > 0.9 * before)
            if bool(done.all()):
                break
            dq = solve_with(self.factor, times(matrix, weight * e1) - e2)
            p, q = p + weight * (e1 - times_transpose(matrix, dq)), q + dq
        return best_p, best_q, best

    def missing(self, column_side: Tensor, row_side: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of both sides. Rows without a free column have nothing to say."""
        e1 = column_side - self.curvature * p - times_transpose(self.matrix, q)
        e2 = row_side - times(self.matrix, p)
        return torch.where(self.free, e1, 0.0), torch.where(self.binding, e2, 0.0)

    def price(self, objective: Tensor, dual: Tensor) -> Tensor:
        """The dual point nearest to ``dual`` that leaves least of the objective on the free columns."""
        objective = torch.where(self.free, objective, 0.0)
        start = torch.zeros_like(objective), dual
        return self.solve(objective, torch.zeros_like(dual), start, largest_of(objective))[1]

    def left_over(self, objective: Tensor) -> tuple[Tensor, Tensor]:
        """What ``objective - Aᵀ y`` still says on the free columns for the best y, with 0 for rounding; and y."""
        dual = self.price(objective, torch.zeros_like(self.norms))
        rest = torch.where(self.free, objective - times_transpose(self.matrix, dual), 0.0)
        size = largest_of(torch.where(self.free, objective, 0.0))
        return torch.where(rest.abs() <= TIE * size[:, None], 0.0, rest), dual


def _probe(problem: DenseProblem, scored: int) -> Tensor:
    """What is constant on no face but vertices, for every instance."""
    values = torch.tensor(ties.probe(scored, problem.linear.shape[1]), device=problem.linear.device)
    return values.expand_as(problem.linear)


def _objectives(problem: DenseProblem, scored: int) -> Tensor:
    """The objectives that decide ties, one after the other, ``(rounds, columns)``."""
    columns = problem.linear.shape[1]
    table = [torch.from_numpy(ties.objective(k, scored, columns).copy()) for k in range(ties.ROUNDS)]
    return torch.stack(table).to(problem.linear.device)


def _vertex_on(problem: DenseProblem, face: Tensor, point: Tensor) -> Tensor:
    """The point of ``A z = b`` on a face that has only one, with the numbers that are meant."""
    held = torch.where(face, 0.0, point)
    rest = problem.rhs - times(problem.matrix, held)
    system = _ActiveSet(problem.matrix, torch.ones_like(problem.curvature), face)
    moved, _, _ = system.solve(point, rest, (point, torch.zeros_like(rest)), 1 + largest_of(problem.rhs))
    found = torch.where(face, moved, held)
    meant = found
    for near in (found.round(), problem.upper, problem.lower):
        close = torch.isfinite(near) & ((meant - near).abs() <= SNAP * _own_units(problem, near))
        meant = torch.where(close, near, meant)
    # Unless they are others: next to a right-hand side of 1e-11, 0 is not meant.
    off, rest = (problem.rhs - times(problem.matrix, part) for part in (meant, found))
    keeps = ((off.abs() <= SNAP * problem.rhs.abs()) | (off.abs() <= 4 * rest.abs())).all(1)
    return torch.where(keeps[:, None], meant, found)


def _reduced(problem: DenseProblem, point: Tensor, dual: Tensor) -> Tensor:
    return problem.linear - problem.curvature * point - times_transpose(problem.matrix, dual)


def _answer(problem: DenseProblem, point: Tensor, dual: Tensor, free: Tensor, iterations: Tensor) -> DenseAnswer:
    point = problem.with_slack(point)
    return DenseAnswer(point, dual, free, *certify(problem, point, dual), iterations)


def _where_above(
    tolerance: float,
    problem: DenseProblem,
    answer: DenseAnswer,
    improve: Callable[[DenseProblem, DenseAnswer], DenseAnswer],
) -> DenseAnswer:
    """Improve the instances whose certificate is above a tolerance, and leave the others as they are."""
    some = torch.nonzero(answer.relative > tolerance)[:, 0]
    if len(some) == 0:
        return answer
    before = DenseAnswer(*(values[some] for values in vars(answer).values()))
    after = _better(before, improve(problem.take(some), before))
    pairs = zip(vars(answer).values(), vars(after).values(), strict=True)
    return DenseAnswer(*(whole.index_copy(0, some, part) for whole, part in pairs))


def _better(first: DenseAnswer, second: DenseAnswer, allowed: Tensor | None = None) -> DenseAnswer:
    """Per instance the second answer where its certificate is better, else the first."""
    better = second.relative < first.relative
    better = better if allowed is None else better & allowed
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return DenseAnswer(*(torch.where(better.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in pairs))


def _unit_rows(problem: DenseProblem) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and right-hand side scaled to unit norm, and the norms."""
    norms = torch.linalg.vector_norm(problem.matrix, dim=-1)
    norms = torch.where(norms > 0, norms, 1.0)
    return problem.matrix / norms[..., None], problem.rhs / norms, norms
