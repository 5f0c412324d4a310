"""Sets that are not polyhedral: Clarabel, then Newton's method on the optimality conditions, and the derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import clarabel
import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int8

from optlayers.form.compile import UNNAMED
from optlayers.form.cones import ConeLayout, ConeNumbers, ConeProgram, program_of
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.solution import Status
from optlayers.solvers.base import AbstractJudged, AbstractProjector, Answer, Instances
from optlayers.solvers.clarabel import settings_of, status_of
from optlayers.solvers.cone_certificate import cones_hold_together, judge_cones, times, transposed
from optlayers.solvers.cone_projections import onto_dual, slopes
from optlayers.solvers.pool import for_each_chunk

__all__ = ["ConeNewton", "ConePoints", "ConePullback", "answer_over_cones"]

STOPS = ((1e-9, True), (1e-12, True), (1e-12, False))
"""Tolerances of Clarabel, and whether it scales rows and columns: the next ones where Newton's method gets stuck."""
STEPS = 12
KINKS = (0.0, 1e-4, -1e-4, 1e-2, -1e-2)
"""What is nearer to a kink, next to the largest entry, is tried without a price, and with one."""
CLOSE = 1e-13
"""Newton's method has arrived where the conditions hold so well, in units of the problem and over the size of costs."""
ENOUGH = 1e-9
"""What misses the conditions by more is asked of Clarabel once more."""
TIE = 1e-9
"""Eigenvalues of dual points less slacks that are smaller, next to the largest entry, are at the kink."""
RANK = 1e-9
"""Singular values of a derivative that are smaller, next to the largest one, are 0."""
RIGHT = 1e-7
"""A gradient solves its system up to so much of the direction."""
AT_ONCE = 2**22
"""Numbers in the matrices that are solved together."""
PRICED = 1e-6
"""Prices of a proof of infeasibility that are smaller, next to the largest one, name no constraint."""


@final
@dataclass(frozen=True)
class ConeNewton(AbstractProjector):
    """Project onto sets with cones of norms and semidefinite matrices: by Clarabel, then by Newton's method.

    Clarabel (Goulart & Chen, 2024) finds a point and its prices, instance by instance. Newton steps on the optimality
    conditions, written as one equation by projections onto the cones (Robinson's normal map; Qi & Sun, 1993), bring it
    to the last digits, for the whole batch at once. The derivative is one more linear system with the same matrix
    (Busseti, Moursi & Boyd, Solution refinement at regular points of conic problems, 2019). Linear algebra is dense.

    Parameters
    ----------
    iteration_limit : interior point iterations per instance.
    """

    iteration_limit: int = 100
    polyhedral_only = False
    manner = "Clarabel, then Newton steps and derivatives for the batch at once"

    def __post_init__(self) -> None:
        if self.iteration_limit < 1:
            raise ValueError(f"iteration_limit must be positive, but got {self.iteration_limit}")

    def prepare(self, form: StandardForm) -> _State:
        if form.scored_auxiliaries:
            raise DeclarationError(
                f"sets that are not polyhedral have scores for the structure alone, but "
                f"{[s.name for s in form.scored_auxiliaries]} are scored too"
            )
        return _State(form, program_of(form.polytope), self.iteration_limit)

    def project(self, state: _State, instances: Instances) -> Answer:
        weights = np.ones((1, state.form.size))
        return answer_over_cones(state.form, state.program, instances, weights, self.iteration_limit)


@final
@dataclass
class _State:
    form: StandardForm
    program: ConeProgram
    limit: int


@final
@dataclass
class ConePoints(AbstractJudged):
    """Points z of a batch of cone programs with their normal points w, which have prices for their parts in the dual
    cones and slacks for what is left, with the sign changed. Both are in ``units``, so that neither hides the other."""

    program: ConeProgram
    numbers: ConeNumbers
    z: Float64[np.ndarray, "batch columns"]
    w: Float64[np.ndarray, "batch rows"]
    units: Units
    weight_terms: tuple[slice, bool] | None = None
    """Where the parameters of the instances have the weights of squares, and whether these are one for all parts."""

    @property
    def y(self) -> Float64[np.ndarray, "batch rows"]:
        """The prices."""
        prices: np.ndarray = onto_dual(self.program.layout, self.w) * self.units.cost[:, None]
        return prices

    def judged(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Residual, gap and relative error."""
        return judge_cones(self.program.layout, self.numbers, self.z, self.y)

    def in_units(self, some: np.ndarray) -> ConeNumbers:
        """The problems of some instances, with right-hand sides, costs and squares of size 1."""
        return self.units.take(some).scaled(self.numbers.take(some))


@final
@dataclass
class Units:
    """The sizes of points and of costs of every instance: z is in units of ``point``, prices in those of ``cost``."""

    point: Float64[np.ndarray, " batch"]
    cost: Float64[np.ndarray, " batch"]

    @classmethod
    def of(cls, numbers: ConeNumbers) -> Units:
        """Those of the largest right-hand side, and of the largest cost or square next to it."""
        point = _size(np.abs(numbers.rhs).max(axis=1, initial=0.0))
        squares = point * np.abs(numbers.curvature).max(axis=(1, 2), initial=0.0)
        return cls(point, _size(np.maximum(np.abs(numbers.cost).max(axis=1, initial=0.0), squares)))

    def take(self, some: np.ndarray) -> Units:
        """Of some instances."""
        return Units(self.point[some], self.cost[some])

    def scaled(self, numbers: ConeNumbers) -> ConeNumbers:
        """Problems with their points and costs in these units."""
        ratio = self.point / self.cost
        ratio = ratio[:1] if len(numbers.curvature) == 1 and (ratio == ratio[:1]).all() else ratio
        return ConeNumbers(
            numbers.matrix,
            numbers.rhs / self.point[:, None],
            numbers.curvature * ratio[:, None, None],
            numbers.cost / self.cost[:, None],
        )


def _size(found: np.ndarray) -> Float64[np.ndarray, " batch"]:
    sizes: np.ndarray = np.where((found > 0.0) & np.isfinite(found), found, 1.0)
    return sizes


def answer_over_cones(
    form: StandardForm,
    program: ConeProgram,
    instances: Instances,
    weights: Float64[np.ndarray, "batch_or_1 size"] | None,
    limit: int = 100,
    weight_terms: tuple[slice, bool] | None = None,
) -> Answer:
    """The points that maximize <scores, x> less the objective of a program and half of the weighted squares of x."""
    count, answer = len(instances), Answer.of_whole(form, len(instances))
    numbers = program.numbers(instances.parameters, instances.whole, weights, instances.forbidden)
    z, w = np.full(numbers.cost.shape, np.nan), np.full(numbers.rhs.shape, np.nan)
    points = ConePoints(program, numbers, z, w, Units.of(numbers), weight_terms)
    width = (numbers.cost.shape[1] + numbers.rhs.shape[1]) ** 2
    step = max(1, AT_ONCE // max(width, 1))
    for start in range(0, count, step):
        some = np.arange(start, min(start + step, count))
        _solve(points, some, answer, limit)
    answer.scored_vectors[:] = points.z[:, program.structure]
    if instances.forbidden is not None:
        answer.scored_vectors[instances.forbidden & np.isfinite(answer.scored_vectors)] = 0.0
    answer.cones = points
    answer.pullback = pullback = ConePullback(points, instances.forbidden)
    answer.of_value = pullback.of_value
    return answer


def _solve(points: ConePoints, some: np.ndarray, answer: Answer, limit: int) -> None:
    """Fill in the points of some instances, and what is to be said of them."""
    layout, missed = points.program.layout, np.full(len(some), np.inf)
    open_ones = np.arange(len(some))
    scaled = points.in_units(some)
    for stop, scales in STOPS:
        mine = scaled.take(open_ones)
        z, y, status = _interior(points.program, mine, stop, scales, limit)
        feasible = status != Status.INFEASIBLE
        if not feasible.all():
            proved = ~feasible & ~cones_hold_together(layout, mine, y)
            for k in np.flatnonzero(proved).tolist():
                answer.status[some[open_ones[k]]] = Status.INFEASIBLE
                answer.reasons[int(some[open_ones[k]])] = _contradiction(points.program, y[k])
        with np.errstate(invalid="ignore", over="ignore"):
            w = y - (mine.rhs - times(mine.matrix, z))
            units = points.units.take(some[open_ones])
            z, w, wrong = _refined(layout, mine, z, w, CLOSE / np.maximum(1.0, units.cost / units.point))
        better = wrong < missed[open_ones]
        where = some[open_ones[better]]
        points.z[where], points.w[where] = z[better] * units.point[better, None], w[better]
        missed[open_ones[better]] = wrong[better]
        known = answer.status[some[open_ones]] == Status.INFEASIBLE
        answer.status[some[open_ones[~known]]] = np.where(wrong[~known] < np.inf, 0, status[~known])
        open_ones = open_ones[(missed[open_ones] > ENOUGH) & ~known]
        if len(open_ones) == 0:
            return
    for k in open_ones.tolist():
        if answer.status[some[k]] == Status.INFEASIBLE:  # not proved
            answer.status[some[k]] = Status.FAILED
            answer.reasons[int(some[k])] = "Clarabel finds it infeasible, and its proof is not good enough to be one"


def _interior(
    program: ConeProgram, numbers: ConeNumbers, stop: float, scales: bool, limit: int
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"], Int8[np.ndarray, " batch"]]:
    """Points, dual points and the word of Clarabel on every instance."""
    count, columns = numbers.cost.shape
    z, y = np.full((count, columns), np.nan), np.full(numbers.rhs.shape, np.nan)
    status = np.full(count, Status.FAILED, dtype=np.int8)
    column, row = np.nonzero(program.pattern.T)
    indptr = np.concatenate([[0], np.cumsum(program.pattern.sum(axis=0))])
    squares = np.triu((numbers.curvature != 0.0).any(axis=0))
    right, left = np.nonzero(squares.T)
    curved = np.concatenate([[0], np.cumsum(squares.sum(axis=0))])
    entries, weights = numbers.matrix[:, row, column], numbers.curvature[:, left, right]
    settings, cones = settings_of(stop, limit), _cones(program.layout)
    settings.equilibrate_enable = scales
    shape = program.pattern.shape
    known = np.isfinite(numbers.cost).all(axis=1) & np.isfinite(numbers.rhs).all(axis=1)

    def work(piece: np.ndarray) -> None:
        for k in piece.tolist():
            if not known[k]:
                continue
            matrix = sp.csc_matrix((entries[min(k, len(entries) - 1)], row, indptr), shape=shape)
            curvature = sp.csc_matrix((weights[min(k, len(weights) - 1)], left, curved), shape=(columns, columns))
            solver = clarabel.DefaultSolver(curvature, numbers.cost[k], matrix, numbers.rhs[k], cones, settings)
            found = solver.solve()
            z[k], y[k], status[k] = found.x, found.z, status_of(found.status)

    for_each_chunk(work, count)
    return z, y, status


def _refined(
    layout: ConeLayout, numbers: ConeNumbers, z: np.ndarray, w: np.ndarray, close: Float64[np.ndarray, " batch"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Newton steps on the optimality conditions while they help, and by how much these are missed in the end.

    Where several pieces of the conditions meet near the best point, the step of a wrong piece leads nowhere: then what
    is near a kink is tried on either side.
    """
    wrong = _missed(layout, numbers, z, w)
    index = np.flatnonzero(np.isfinite(wrong) & (wrong > close))
    for _ in range(STEPS):
        if len(index) == 0:
            break
        before = wrong[index]
        for share in KINKS:
            stuck = index[wrong[index] >= np.maximum(0.5 * before, close[index])]
            if len(stuck):
                _step(layout, numbers, (z, w, wrong), stuck, share)
        index = index[(wrong[index] > close[index]) & (wrong[index] < 0.5 * before)]
    return z, w, wrong


def _step(
    layout: ConeLayout,
    numbers: ConeNumbers,
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    index: np.ndarray,
    share: float,
) -> None:
    """A Newton step of some instances, taken where it helps; ``share`` of the largest entry is near a kink."""
    z, w, wrong = points
    some, columns = numbers.take(index), z.shape[1]
    system = _system(layout, some, w[index], share * np.abs(w[index]).max(axis=1, initial=0.0))
    step = _solved(system, -np.concatenate(_conditions(layout, some, z[index], w[index]), axis=1))
    new_z, new_w = z[index] + step[:, :columns], w[index] + step[:, columns:]
    now = _missed(layout, some, new_z, new_w)
    better = now < wrong[index]
    z[index[better]], w[index[better]], wrong[index[better]] = new_z[better], new_w[better], now[better]


def _conditions(
    layout: ConeLayout, numbers: ConeNumbers, z: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is 0 at best points: :math:`P z + q + A^\\top y` and :math:`A z + y - w - b`."""
    y = onto_dual(layout, w)
    first = times(numbers.curvature, z) + numbers.cost + transposed(numbers.matrix, y)
    return first, times(numbers.matrix, z) + (y - w) - numbers.rhs


def _missed(layout: ConeLayout, numbers: ConeNumbers, z: np.ndarray, w: np.ndarray) -> Float64[np.ndarray, " batch"]:
    """By how much the conditions are missed; inf where points are no numbers."""
    finite = np.isfinite(z).all(axis=1) & np.isfinite(w).all(axis=1)
    first, second = _conditions(layout, numbers, np.where(finite[:, None], z, 0.0), np.where(finite[:, None], w, 0.0))
    size = np.maximum(1.0, np.abs(numbers.rhs).max(axis=1, initial=0.0))
    wrong = np.maximum(np.abs(first).max(axis=1, initial=0.0), np.abs(second).max(axis=1, initial=0.0) / size)
    found: np.ndarray = np.where(finite & np.isfinite(wrong), wrong, np.inf)
    return found


def _system(
    layout: ConeLayout, numbers: ConeNumbers, w: np.ndarray, nothing: np.ndarray | None = None
) -> Float64[np.ndarray, "batch both both"]:
    """The derivative of the conditions by z and w."""
    count, rows = w.shape
    columns = numbers.cost.shape[1]
    slope = slopes(layout, w, nothing)
    system = np.empty((count, columns + rows, columns + rows))
    system[:, :columns, :columns] = numbers.curvature
    system[:, :columns, columns:] = numbers.matrix.transpose(0, 2, 1) @ slope
    system[:, columns:, :columns] = numbers.matrix
    system[:, columns:, columns:] = slope
    every = columns + np.arange(rows)
    system[:, every, every] -= 1.0
    return system


def _solved(system: np.ndarray, side: np.ndarray) -> np.ndarray:
    """The solutions of linear systems; the shortest nearest ones where systems have no full rank."""
    try:
        found: np.ndarray = np.linalg.solve(system, side[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        found = np.full(side.shape, np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(side).max(axis=1, initial=0.0)
        left = np.abs((system @ np.where(np.isfinite(found), found, 0.0)[:, :, None])[:, :, 0] - side)
        bad = ~np.isfinite(found).all(axis=1) | (left.max(axis=1, initial=0.0) > RANK * size)
        bad |= np.abs(found).max(axis=1, initial=0.0) > size / RANK
    for k in np.flatnonzero(bad).tolist():
        found[k] = np.linalg.lstsq(system[k], side[k], rcond=RANK)[0]
    return found


@final
@dataclass(eq=False)
class ConePullback:
    """Gradients of scores and parameters from a direction, by the transpose of the system of the points."""

    points: ConePoints
    forbidden: Bool[np.ndarray, "batch size"] | None

    def __call__(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points, program = self.points, self.points.program
        count, columns = points.z.shape
        side = np.zeros((count, columns + points.w.shape[1]))
        side[:, program.structure] = direction
        right = np.isfinite(points.z).all(axis=1) & np.isfinite(points.w).all(axis=1)
        scores = np.zeros(direction.shape)
        theta = np.zeros((count, len(program.rhs) - 1))
        step = max(1, AT_ONCE // max(side.shape[1] ** 2, 1))
        index = np.flatnonzero(right)
        for start in range(0, len(index), step):
            some = index[start : start + step]
            units = points.units.take(some)
            found, good = self._solved(some, units.point[:, None] * side[some])
            right[some] = good
            found[~good] = 0.0
            u, v = found[:, :columns] / units.cost[:, None], found[:, columns:] / units.point[:, None]
            scores[some] = u[:, program.structure]
            theta[some] = -program.of_parameters(points.z[some], points.y[some], (u, v))
            if points.weight_terms is not None:
                span, shared = points.weight_terms
                moved = -u[:, program.structure] * points.z[some][:, program.structure]
                theta[some, span] += moved.sum(axis=1, keepdims=True) if shared else moved
        if self.forbidden is not None:
            scores[self.forbidden] = 0.0
        return scores, theta, right

    def _solved(self, some: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points, layout = self.points, self.points.program.layout
        w = points.w[some]
        system = _system(layout, points.in_units(some), w, TIE * np.abs(w).max(axis=1, initial=0.0)).transpose(0, 2, 1)
        found = _solved(system, side)
        left = np.abs((system @ found[:, :, None])[:, :, 0] - side).max(axis=1, initial=0.0)
        good: np.ndarray = left <= RIGHT * np.abs(side).max(axis=1, initial=0.0)
        return found, good & np.isfinite(found).all(axis=1)

    def of_value(self) -> Float64[np.ndarray, "batch parameters"]:
        """The gradient of best values by parameters (envelope theorem)."""
        points, program = self.points, self.points.program
        z, y = np.nan_to_num(points.z), np.nan_to_num(points.y)
        theta = -program.of_parameters(z, y, (z, 0.0 * y), half=True)
        # u (P z + q + Aᵀ y) has the term in A already; that of b is its own.
        theta += y @ program.rhs[1:].T
        if points.weight_terms is not None:
            span, shared = points.weight_terms
            squares = -0.5 * np.square(z[:, program.structure])
            theta[:, span] += squares.sum(axis=1, keepdims=True) if shared else squares
        return theta


def _contradiction(program: ConeProgram, y: Float64[np.ndarray, " rows"]) -> str:
    """Which constraints a proof of infeasibility is made of."""
    priced = np.abs(y) > PRICED * np.abs(y).max(initial=0.0)
    named = list(dict.fromkeys(n for n, is_priced in zip(program.row_names, priced, strict=False) if is_priced))
    told = [name for name in named if name != UNNAMED] or named
    return f"{', '.join(told[:4])}{' …' if len(told) > 4 else ''} cannot hold together"


def _cones(layout: ConeLayout) -> list[Any]:
    cones: list[Any] = []
    if layout.zero:
        cones.append(clarabel.ZeroConeT(layout.zero))
    if layout.nonnegative:
        cones.append(clarabel.NonnegativeConeT(layout.nonnegative))
    cones += [clarabel.SecondOrderConeT(size) for size in layout.second_order]
    return cones + [clarabel.PSDTriangleConeT(order) for order in layout.semidefinite]
