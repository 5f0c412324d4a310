"""How wrong the answers to regularized problems may be, in batched torch on any device.

The twin of :func:`optlayers.solvers.regularized.certify_regularized`, whose docstring has the formulas, for dense
matrices. It shares nothing with the solvers of :mod:`optlayers.solvers.smooth` but the problem: what the
functions of columns are is written here once more.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.solvers.kernels.curves import BITS, ENTROPY, LINEAR, POWER, QUADRATIC
from optlayers.solvers.smooth.problem import DenseCurves, SmoothProblem

__all__ = ["certify"]

EPSILON = 2.220446049250313e-16
BEYOND = 1e3
"""A point may be so many times its unit from where it should be, as for projections: see ``certify_regularized``."""
TINY = 1e-300


def certify(
    problem: SmoothProblem, point: Float64[Tensor, "batch columns"], dual: Float64[Tensor, "batch rows"]
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """The gap, and how wrong the point may be, next to the numbers involved; inf where something is not finite."""
    curves, lower, upper, scores = problem.curves, problem.lower, problem.upper, problem.linear
    matrix, sizes = problem.matrix, problem.matrix.abs()
    error = torch.maximum(_missed(problem, point), _most(torch.maximum(lower - point, point - upper)).clamp(min=0.0))
    reduced = scores - _priced(matrix, dual)
    terms = scores.abs() + _priced(sizes, dual.abs())
    if curves.has_barrier:
        gap, off, inside = _of_barrier(problem, point, reduced, terms)
        whole = gap.clamp(min=0.0).sum(1)
        error = torch.maximum(error, _most(off))
        distance = torch.sqrt(whole / curves.least) / BEYOND
        error = torch.where(inside, torch.maximum(error, distance), torch.inf)
        return whole, torch.where(torch.isfinite(error), error, torch.inf)
    curved = curves.kind != LINEAR
    best = torch.minimum(torch.maximum(_meeting(curves, reduced), lower), upper)
    gap = (point - best) * (_slope(curves, point) - reduced)
    at_once = _worth(curves, point) - _worth(curves, best) - reduced * (point - best)
    gap = torch.where(curved, torch.where(torch.isfinite(gap), gap, at_once), 0.0)
    gap = torch.where(point == best, 0.0, gap)
    above, below = upper - point, point - lower
    # What is left of multipliers, where columns without curvature have none.
    rounding = 64.0 * EPSILON * _most(terms)[:, None]
    pressed = torch.where(reduced.abs() > rounding, reduced, 0.0)
    up, down = pressed.clamp(min=0.0), (-pressed).clamp(min=0.0)
    unbounded = torch.where(torch.isinf(above), up, 0.0) + torch.where(torch.isinf(below), down, 0.0)
    loose = torch.where(torch.isinf(above), 0.0, up * above) + torch.where(torch.isinf(below), 0.0, down * below)
    forgiven = _most(torch.where(curved, 0.0, (reduced - pressed).abs()))
    gap = torch.where(curved | (lower == upper), gap, loose)
    error = torch.maximum(error, _most(torch.where(curved, 0.0, unbounded / torch.maximum(terms, curves.unit))))
    whole = gap.clamp(min=0.0).sum(1)
    strength = _strength(curves, point)
    bends = strength > 0.0
    least = torch.where(bends, strength, 1.0)
    worth = (scores * point).abs().sum(1) + _worth(curves, point).abs().sum(1)
    distance = torch.where(bends, torch.sqrt(2.0 * whole / least) / BEYOND, whole / worth.clamp(min=1.0))
    if POWER in curves.kinds:
        # Next to 0 high powers are flat, and the gap says little: but a point is best for scores that differ by no
        # more than what makes it best for them.
        flat, exponent = (curves.kind == POWER) & (curves.power > 2.0), (curves.power - 1.0).clamp(min=1.0)
        hidden = (curves.power * rounding / curves.weight) ** (1.0 / exponent)
        missing = torch.where(flat, ((point - best).abs() - hidden).clamp(min=0.0), 0.0)
        distance = torch.maximum(distance, _most(missing) / BEYOND)
    # Points follow scores of such a size on straight pieces.
    distance = distance + torch.where(bends, forgiven / least / BEYOND, 0.0)
    error = torch.maximum(error, distance)
    return whole, torch.where(torch.isfinite(error), error, torch.inf)


def _missed(problem: SmoothProblem, point: Tensor) -> Tensor:
    """What rows miss, relative to the size of their terms."""
    matrix, sizes = problem.matrix, problem.matrix.abs()
    missed = (_activity(matrix, point) - problem.rhs).abs()
    # A row whose terms are all next to 0 is met where what it misses moves none of its columns by much.
    unit = (problem.upper - problem.lower).clamp(max=1.0)
    unit = torch.where(unit > 0.0, unit, 1.0)
    floor = torch.where(sizes > 0.0, sizes * unit[:, None, :], torch.inf).amin(2)
    size = _activity(sizes, point.abs()) + problem.rhs.abs()
    relative = missed / torch.maximum(size, torch.where(torch.isfinite(floor), floor, TINY))
    return _most(torch.where(missed > 0.0, relative, torch.where(missed == 0.0, 0.0, torch.inf)))


def _of_barrier(problem: SmoothProblem, point: Tensor, reduced: Tensor, terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's decrement, which bounds the gap of self-concordant functions where it is small; what is left beside it;
    and whether points are strictly inside."""
    least, moves = problem.curves.least[:, None], problem.lower < problem.upper
    below, above = point - problem.lower, problem.upper - point
    off = torch.where(moves, reduced + least / below - least / above, 0.0)
    bend = torch.where(moves, least / below**2 + least / above**2, 1.0)
    bent = bend > 0.0
    gap = torch.where(bent, off**2 / torch.where(bent, bend, 1.0), 0.0)
    beside = torch.where(bent, 0.0, off.abs() / torch.maximum(terms, least))
    inside = torch.where(moves, (below > 0.0) & (above > 0.0), True).all(1)
    return gap, beside, inside


def _slope(curves: DenseCurves, x: Tensor) -> Tensor:
    """ω' of every column, 0 for those without curvature."""
    log, a, p = torch.log(x), curves.weight, curves.power
    found = torch.where(curves.kind == QUADRATIC, a * x, 0.0)
    if ENTROPY in curves.kinds:
        found = torch.where(curves.kind == ENTROPY, a + a * log, found)
    if BITS in curves.kinds:
        found = torch.where(curves.kind == BITS, a * log - a * torch.log1p(-x), found)
    if POWER in curves.kinds:
        found = torch.where(curves.kind == POWER, a / p + a * torch.expm1((p - 1.0) * log) / (p - 1.0), found)
    return found


def _meeting(curves: DenseCurves, reduced: Tensor) -> Tensor:
    """Where ω' is ``reduced``, or the nearest end of the domain; 0 for columns without curvature."""
    t, p = reduced / curves.weight, curves.power
    found = torch.where(curves.kind == QUADRATIC, t, 0.0)
    if ENTROPY in curves.kinds:
        found = torch.where(curves.kind == ENTROPY, torch.exp(t - 1.0), found)
    if BITS in curves.kinds:
        low = torch.exp(t.clamp(max=0.0))
        both = torch.where(t < -1.0, low / (1.0 + low), 0.5 + 0.5 * torch.tanh(0.5 * t))
        found = torch.where(curves.kind == BITS, both, found)
    if POWER in curves.kinds:
        inside = (p - 1.0) * (t - 1.0 / p)
        grown = torch.exp(torch.log1p(inside.clamp(min=-1.0)) / (p - 1.0))
        found = torch.where(curves.kind == POWER, torch.where(inside > -1.0, grown, 0.0), found)
    return found


def _worth(curves: DenseCurves, x: Tensor) -> Tensor:
    """ω of every column at points of its domain, 0 for those without curvature."""
    a, p, log = curves.weight, curves.power, torch.log(torch.where(x > 0.0, x, 1.0))
    found = torch.where(curves.kind == QUADRATIC, a * x * x / 2.0, 0.0)
    if ENTROPY in curves.kinds:
        found = torch.where(curves.kind == ENTROPY, a * x * log, found)
    if BITS in curves.kinds:
        rest = torch.where(x < 1.0, 1.0 - x, 1.0)
        found = torch.where(curves.kind == BITS, a * (x * log + (1.0 - x) * torch.log(rest)), found)
    if POWER in curves.kinds:
        gain = torch.where(x > 0.0, x * torch.expm1((p - 1.0) * log), 0.0)
        found = torch.where(curves.kind == POWER, a * gain / (p * (p - 1.0)), found)
    return found


def _strength(curves: DenseCurves, point: Tensor) -> Tensor:
    r"""A σ with :math:`\Omega(z + d) \ge \Omega(z) + \langle \Omega'(z), d \rangle + \tfrac\sigma2 \|d\|^2` between
    points no larger than these; 0 for none."""
    kind = curves.kind
    largest = torch.where(kind != LINEAR, point.abs(), 0.0).amax(1).clamp(min=1.0)
    found = torch.full_like(largest, torch.inf)
    for one in curves.kinds:
        if one == LINEAR:
            continue
        mine = kind == one
        least = torch.where(mine, curves.weight, torch.inf).amin(1)
        if one in (ENTROPY, BITS):
            least = least / largest
        elif one == POWER:
            exponent = torch.where(mine, curves.power, 0.0).amax(1) - 2.0
            least = torch.where(exponent <= 0.0, least * largest**exponent, 0.0)
        found = torch.minimum(found, least)
    return torch.where(torch.isfinite(found), found, 1.0)


def _activity(matrix: Tensor, point: Tensor) -> Tensor:
    """A z."""
    return point @ matrix.mT if matrix.ndim == 2 else torch.einsum("brc,bc->br", matrix, point)


def _priced(matrix: Tensor, dual: Tensor) -> Tensor:
    """Aᵀ y."""
    return dual @ matrix if matrix.ndim == 2 else torch.einsum("brc,br->bc", matrix, dual)


def _most(values: Tensor) -> Tensor:
    """The largest number of every instance; NaN where one is, 0 where there are none."""
    return values.amax(1) if values.shape[1] else values.sum(1)
