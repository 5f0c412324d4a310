"""Regularized problems: who solves them, and the verdict on what is found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from optlayers.common.caches import cached_property
from optlayers.form.standard import DeclarationError, StandardForm
from optlayers.solution import Status
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.certify import Certificate
from optlayers.solvers.curves import Curves
from optlayers.solvers.kernels import smooth_face, smooth_interior_point, smooth_newton
from optlayers.solvers.kernels.active_set import CONVERGED, ROW_SHIFT, TINY
from optlayers.solvers.kernels.batches import of_each, per_instance
from optlayers.solvers.kernels.curves import BITS, ENTROPY, LINEAR, POWER, QUADRATIC
from optlayers.solvers.plan import Plan, plan_of

__all__ = ["Regularizing", "certify_regularized", "pull_back"]

NEWTON_STEPS = 300
INTERIOR_STEPS = 150
TOLERANCE = 1e-14
POLISHED = 3
"""So many Newton steps are made on the active sets that an interior point ends near,"""
ATTEMPTS = 4
"""and again, up to so many times, while an instance has no certificate."""
LEAST_SHARE = 0.1
"""None of them takes more of a number whose curvature changes."""
SMALL_SHIFT = 1e-12
"""δ of rows in linear systems where all columns are curved."""
LARGEST = 1e250
"""A column of more curvature stays where it is."""
AT_BOUND = 1e-10
"""Beside entropies, what is nearer to its bound is at it."""
GUESSED_STEPS = 15
"""What is told to the thread pool about the work of one instance."""
EPSILON = 2.220446049250313e-16
SURELY_MET = 1e-10
"""Rows that miss less, relative to their terms, are met whatever these are next to."""
BEYOND = 1e3
"""A point may be so many times its unit from where it should be, as for projections: see ``certify``."""


@final
@dataclass
class Regularizing:
    """A batch of regularized problems, and what is found: points, dual points, and the columns that no bound holds.

    Its instances have the bounds that the regularizer leaves: columns that stay where they are have two that meet.
    """

    form: StandardForm
    instances: Instances
    curves: Curves
    answer: Answer

    @classmethod
    def of(
        cls,
        form: StandardForm,
        instances: Instances,
        curves: Curves,
        fixed: Bool[np.ndarray, "batch columns"] | None,
        at: Float64[np.ndarray, "batch columns"] | None,
        tolerance: float,
    ) -> Regularizing:
        """Solve a batch: by Newton steps on the dual where all columns are curved, else by an interior point method,
        which also takes what the former leaves.

        Columns that are ``fixed``, because constraints leave them one value, stay ``at`` it.
        """
        plan = plan_of(form)
        if plan.dense:
            raise DeclarationError(
                "regularized problems are not solved on constraints that are many and hardly sparse: this polytope has "
                f"{form.rows} rows with {form.matrix.nnz} entries"
            )
        rhs, lower, upper, matrix = instances.shared
        if fixed is not None and at is not None:
            lower, upper = np.where(fixed, at, lower), np.where(fixed, at, upper)
        lower, upper = curves.domain(lower, upper)
        entries = plan.entries if matrix is None else matrix
        batch = _Batch(plan, form, entries, instances.scores, rhs, per_instance(lower), per_instance(upper), curves)
        answer = Answer.to_fill(form, len(instances))
        answer.free = np.empty(answer.point.shape, dtype=bool)
        every = np.arange(len(instances))
        smooth = curves.bends(form.unslacked) and not curves.has_barrier
        late = every
        if smooth and not ((curves.kind == POWER) & (curves.power > 2.0)).any():
            late = batch.by_newton(every, answer)
        if len(late):
            batch.by_interior_point(late, answer)
        bounds = np.broadcast_to(batch.lower, answer.point.shape), np.broadcast_to(batch.upper, answer.point.shape)
        answer.free &= bounds[0] < bounds[1]
        held = replace(instances, lower=bounds[0], upper=bounds[1])
        solved = cls(form, held, curves, answer)
        return solved.polished(late, tolerance) if len(late) and not curves.has_barrier else solved

    @cached_property
    def bend(self) -> Float64[np.ndarray, "batch columns"]:
        """The curvature at the points; inf for columns that stay where they are."""
        found = self.curves.bend(self.answer.point)
        if self.curves.has_barrier:
            with np.errstate(divide="ignore"):
                rooms = self.answer.point - self.instances.lower, self.instances.upper - self.answer.point
                found = found + sum(self.curves.least[:, None] / room**2 for room in rooms)
        found[self.instances.lower == self.instances.upper] = np.inf
        return found

    def polished(self, which: Int64[np.ndarray, " some"], tolerance: float) -> Regularizing:
        """With points moved onto their active sets by Newton steps, of those instances that this brings nearer.

        What is tied to a part with an entropy is never at its bound, but often next to it. So there are two guesses
        beside entropies: that columns are at bounds which they are nearer to than their multiplier is to 0, and that
        only those are which are so near that it makes no difference.
        """
        answer = self.answer
        assert answer.free is not None
        some = self._among(which)
        error = certify_regularized(some).error
        # What is tried for an instance must not depend on others, so that each has the answer that it has alone.
        left = np.arange(len(which))
        for guess in (np.inf, AT_BOUND) if self.curves.steep else (np.inf,):
            tried = some._among(left)._on_guess(guess)
            for attempt in range(ATTEMPTS):
                tried = tried._by_newton()
                assert tried.answer.free is not None
                after = certify_regularized(tried).error
                nearer = np.flatnonzero(after < error[left])
                index = which[left[nearer]]
                answer.point[index], answer.dual[index] = tried.answer.point[nearer], tried.answer.dual[nearer]
                answer.free[index] = tried.answer.free[nearer]
                error[left] = np.fmin(error[left], after)
                still = np.flatnonzero(~(error[left] <= tolerance))
                left = left[still]
                if len(left) == 0 or attempt + 1 == ATTEMPTS:
                    break
                tried = tried._among(still)
            if len(left) == 0:
                break
        return Regularizing(self.form, self.instances, self.curves, answer)

    def _among(self, index: Int64[np.ndarray, " some"]) -> Regularizing:
        return Regularizing(self.form, self.instances.take(index), self.curves.take(index), self.answer.take(index))

    def _on_guess(self, near: float) -> Regularizing:
        """With columns at those bounds that are their own guess and so ``near``."""
        answer = self.answer.take(np.arange(len(self.answer.point)))
        lower, upper, point = self.instances.lower, self.instances.upper, answer.point
        assert answer.free is not None
        at_low = ~answer.free & (point - lower <= np.minimum(upper - point, near))
        at_high = ~answer.free & ~at_low & (upper - point <= near)
        answer.point = np.where(at_low, lower, np.where(at_high, upper, point))
        answer.free = ~(at_low | at_high)
        self._let_idle_rows_go(answer)
        return Regularizing(self.form, self.instances, self.curves, answer)

    def _let_idle_rows_go(self, answer: Answer) -> None:
        """The multiplier of a row with room is 0, and steps leave it as it is."""
        assert answer.free is not None
        answer.dual[:, self.form.equalities :][answer.free[:, self.form.unslacked :]] = 0.0

    def _by_newton(self) -> Regularizing:
        """Some Newton steps on the active set, each with the active set that the one before it leads to: what leaves
        its bounds is held by them, and what a multiplier of the wrong sign holds is let go (Hintermüller, Ito and
        Kunisch, 2002, The primal-dual active set strategy as a semismooth Newton method)."""
        form, curves, some, plan = self.form, self.curves, self.instances, plan_of(self.form)
        answer, lower, upper = self.answer.take(np.arange(len(self.answer.point))), some.lower, some.upper
        matrix = plan.entries if some.matrix is None else some.matrix
        curved, ends = curves.kind != LINEAR, (curves.kind != ENTROPY) & (curves.kind != BITS)
        every, stays = np.ones(len(answer.point), dtype=bool), lower == upper
        assert answer.free is not None
        for _ in range(POLISHED):
            side = -plan.prices(matrix, answer.dual) - np.nan_to_num(curves.slope(answer.point), posinf=0.0, neginf=0.0)
            side[:, : form.scored] += some.scores
            rest = some.rhs - activities(form, matrix, answer.point)[0]
            p, q, _ = Regularizing(form, some, curves, answer).on_active_set(side, rest, every, relative=False)
            low = np.where(curves.kind > QUADRATIC, LEAST_SHARE * answer.point, -np.inf)
            high = np.where(curves.kind == BITS, 1.0 - LEAST_SHARE * (1.0 - answer.point), np.inf)
            point, free = np.clip(answer.point + p, low, high), answer.free
            answer.dual = answer.dual + q
            prices = plan.prices(matrix, answer.dual)
            reduced, terms = -prices, plan.prices(np.abs(matrix), np.abs(answer.dual))
            rounding = 64.0 * EPSILON * terms.max(axis=1, keepdims=True, initial=0.0)
            reduced[:, : form.scored] += some.scores
            best = curves.meet(reduced)
            leaves_low, leaves_high = point < lower, point > upper
            at_low = np.where(free, leaves_low, (answer.point == lower) & (reduced <= rounding))
            at_high = np.where(free, leaves_high, (answer.point == upper) & (reduced >= -rounding))
            at_low = np.where(curved, ends & (best <= lower), at_low) | stays
            at_high = np.where(curved, ends & (best >= upper), at_high) & ~at_low
            let_go = ~free & ~at_low & ~at_high & curved
            point = np.where(let_go, np.clip(best, lower, upper), point)
            answer.point = np.where(at_low, lower, np.where(at_high, upper, point))
            answer.free = ~(at_low | at_high)
            self._let_idle_rows_go(answer)
        return Regularizing(form, some, curves, answer)

    def on_active_set(
        self,
        side: Float64[np.ndarray, "batch some_columns"],
        row_side: Float64[np.ndarray, "batch_or_1 rows"],
        ok: Bool[np.ndarray, " batch"],
        *,
        relative: bool = True,
    ) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"], Float64[np.ndarray, " batch"]]:
        """Solve the linear system of the points on their active sets, and say what is left of it; see
        :mod:`optlayers.solvers.kernels.smooth_face`. Shifts ``relative`` to rows are for derivatives; in steps towards
        a point, which are corrected by the next ones, rows next to nothing had better not move."""
        form, plan, instances, free = self.form, plan_of(self.form), self.instances, self.answer.free
        count, unit = len(side), self.curves.unit
        assert free is not None
        p, q, left = np.empty((count, form.columns)), np.empty((count, form.rows)), np.empty(count)
        matrix = plan.entries if instances.matrix is None else instances.shared.matrix
        sides = of_each(np.where(ok[:, None], side, 0.0) / unit)
        with np.errstate(over="ignore"):  # what is bent as much stays where it is
            bend = of_each(np.where(ok[:, None], self.bend, np.inf) / unit)
        of_rows, flags = per_instance(row_side), of_each(free)
        # Next to columns without curvature, rounding is larger.
        delta = SMALL_SHIFT if self.curves.has_barrier or self.curves.bends(form.unslacked) else ROW_SHIFT
        # What has a barrier has curvature, slack columns too.
        slack_row = plan.slack_row[:0] if self.curves.has_barrier else plan.slack_row

        def work(which: np.ndarray) -> None:
            smooth_face.solve_on_curve(
                plan.system.table,
                slack_row,
                plan.varies,
                matrix,
                flags,
                bend,
                sides,
                of_rows,
                delta,
                relative,
                which,
                p,
                q,
                left,
            )

        plan.spread(work, count, solves=3)
        for k in np.flatnonzero(~(left <= CONVERGED)).tolist():
            found = self._densely(k, sides[k], of_rows[k if len(of_rows) > 1 else 0], bend[k])
            if found is not None:
                p[k], q[k], left[k] = found
        return p, q * unit, left

    def _densely(
        self, k: int, side: np.ndarray, row_side: np.ndarray, bend: np.ndarray
    ) -> tuple[Float64[np.ndarray, " columns"], Float64[np.ndarray, " rows"], float] | None:
        """The linear system of one instance by least squares, with columns in the units that they move in and rows of
        unit size; None where its numbers are none."""
        form, columns = self.form, self.form.columns
        assert self.answer.free is not None
        matrix = self.instances.matrix_of(form, k).toarray()
        side = np.concatenate([side, np.zeros(columns - len(side))])
        moves = np.flatnonzero(self.answer.free[k] & np.isfinite(bend) & (bend < LARGEST))
        scale = np.where(bend[moves] > 0.0, 1.0 / np.sqrt(np.where(bend[moves] > 0.0, bend[moves], 1.0)), 1.0)
        body = matrix[:, moves] * scale
        sizes = np.abs(body).max(axis=1, initial=0.0)
        sizes[sizes == 0.0] = 1.0
        body /= sizes[:, None]
        system = np.block([[np.diag(1.0 * (bend[moves] > 0.0)), body.T], [body, np.zeros((form.rows, form.rows))]])
        sides = np.concatenate([scale * side[moves], row_side / sizes])
        if not (np.isfinite(system).all() and np.isfinite(sides).all()):
            return None
        found = np.linalg.lstsq(system, sides, rcond=1e-14)[0]
        left = np.abs(system @ found - sides).max(initial=0.0) / max(np.abs(sides).max(initial=0.0), TINY)
        p = np.zeros(columns)
        p[moves] = scale * found[: len(moves)]
        return p, found[len(moves) :] / sizes, left


@dataclass
class _Batch:
    plan: Plan
    form: StandardForm
    matrix: np.ndarray
    scores: np.ndarray
    rhs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    curves: Curves

    def _some(self, which: np.ndarray) -> list[np.ndarray]:
        return [a[which] if len(a) > 1 else a for a in (self.matrix, self.rhs, self.lower, self.upper)]

    def by_newton(self, which: np.ndarray, answer: Answer) -> np.ndarray:
        """Solve instances, and say which are left."""
        plan, curves, unit = self.plan, self.curves, self.curves.unit
        steps = np.empty(len(self.scores), dtype=np.int64)
        theta = np.empty(answer.point.shape)
        scores, weight = of_each(self.scores / unit), of_each(curves.weight / unit)

        def work(some: np.ndarray) -> None:
            smooth_newton.optimize(
                plan.system.table,
                plan.slack_row,
                plan.varies,
                self.matrix,
                curves.kind,
                weight,
                curves.power,
                scores,
                self.rhs,
                self.lower,
                self.upper,
                some,
                NEWTON_STEPS,
                answer.point,
                answer.dual,
                theta,
                steps,
            )

        plan.spread(work, len(which), GUESSED_STEPS)
        answer.dual *= unit
        assert answer.free is not None
        answer.free[:] = (answer.point > self.lower) & (answer.point < self.upper)
        return np.flatnonzero(steps < 0)

    def by_interior_point(self, which: np.ndarray, answer: Answer) -> None:
        """Solve instances; their status says which are left."""
        plan, curves, count = self.plan, self.curves, len(which)
        matrix, rhs, lower, upper = self._some(which)
        scores, curves = self.scores[which], curves.take(which)
        unit = np.maximum(np.abs(scores).max(axis=1, initial=0.0), curves.weight.max(axis=1))[:, None]
        point, dual = np.empty((count, self.form.columns)), np.empty((count, self.form.rows))
        low, high = np.empty(point.shape, dtype=bool), np.empty(point.shape, dtype=bool)
        steps = np.empty(count, dtype=np.int64)
        scaled, weight = of_each(scores / unit), of_each(curves.weight / unit)
        least = np.broadcast_to(curves.least, (count,)) / unit[:, 0]

        def work(some: np.ndarray) -> None:
            smooth_interior_point.optimize(
                plan.system.table,
                plan.varies,
                matrix,
                curves.kind,
                weight,
                curves.power,
                least,
                scaled,
                rhs,
                lower,
                upper,
                some,
                INTERIOR_STEPS,
                TOLERANCE,
                point,
                dual,
                low,
                high,
                steps,
            )

        plan.spread(work, count, GUESSED_STEPS)
        assert answer.free is not None
        if curves.has_barrier:
            low[:], high[:] = False, False
        answer.point[which], answer.dual[which] = point, dual * unit
        answer.free[which] = ~(low | high)
        answer.status[which[steps < 0]] = Status.LIMIT


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def certify_regularized(solved: Regularizing) -> Certificate:
    r"""How wrong the answers to regularized problems may be, from their points alone.

    For every y the optimal value is at most

    .. math:: b^\top y + \sum_j \max_{l_j \le z_j \le u_j} r_j z_j - \omega_j(z_j)

    with the reduced scores :math:`r = s - A^\top y`. ``gap`` is what a column of the point loses against that: for a
    column that is best at x, at most :math:`(z - x) (\omega'(z) - r)`. As Ω is strongly convex, the gap bounds the
    distance from the best point.
    The error is the largest of the violations of rows and bounds, relative to the size of their terms, and of that
    distance over 1000 units.
    """
    form, instances, curves, point = solved.form, solved.instances, solved.curves, solved.answer.point
    plan = plan_of(form)
    matrix = plan.entries if instances.matrix is None else instances.matrix
    missed, relative = _missed(solved, matrix)
    outside = np.maximum(instances.lower - point, point - instances.upper).max(axis=1, initial=0.0)
    residual = np.maximum(missed.max(axis=1, initial=0.0), outside)
    error = np.maximum(relative.max(axis=1, initial=0.0), outside)
    reduced = -plan.prices(matrix, solved.answer.dual)
    reduced[:, : form.scored] += instances.scores
    terms = plan.prices(np.abs(matrix), np.abs(solved.answer.dual))
    terms[:, : form.scored] += np.abs(instances.scores)
    if curves.has_barrier:
        gap, off, distance = _from_barrier(solved, matrix, missed, reduced, terms)
    else:
        gap, off, distance = _from_best(solved, reduced, terms)
    error = np.maximum(np.maximum(error, off), distance / BEYOND)
    error = np.where(np.isfinite(error), error, np.inf)
    return Certificate(residual, gap, error, np.ones(len(point), dtype=bool))


Judged = tuple[Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"], Float64[np.ndarray, " batch"]]
"""The gap, what multipliers miss, relative to their terms, and the distance from the best point that follows."""


def _missed(
    solved: Regularizing, matrix: Float64[np.ndarray, "batch_or_1 entries"]
) -> tuple[Float64[np.ndarray, "batch rows"], Float64[np.ndarray, "batch rows"]]:
    """By how much rows are missed, and that relative to the size of their terms."""
    form, instances = solved.form, solved.instances
    total, size = activities(form, matrix, solved.answer.point)
    missed = np.abs(total - instances.rhs)
    size += np.abs(instances.rhs)
    relative = np.where(missed > 0.0, missed / np.maximum(size, 1e-300), 0.0)
    doubtful = np.flatnonzero((relative > SURELY_MET).any(axis=1))
    if len(doubtful):
        # A row whose terms are all next to 0 is met where what it misses moves none of its columns by much.
        unit = np.minimum(1.0, (instances.upper - instances.lower)[doubtful])
        unit = np.where(unit > 0.0, unit, 1.0)
        floor = np.full((len(doubtful), form.rows), np.inf)
        of_entries = np.abs(matrix if len(matrix) == 1 else matrix[doubtful]) * unit[:, form.entry_column]
        np.minimum.at(floor, (np.arange(len(doubtful))[:, None], form.matrix.indices[None]), of_entries)
        mine = missed[doubtful] / np.maximum(size[doubtful], np.where(np.isfinite(floor), floor, 1e-300))
        relative[doubtful] = np.where(missed[doubtful] > 0.0, mine, 0.0)
    return missed, relative


def _from_barrier(
    solved: Regularizing,
    matrix: Float64[np.ndarray, "batch_or_1 entries"],
    missed: Float64[np.ndarray, "batch rows"],
    reduced: Float64[np.ndarray, "batch columns"],
    terms: Float64[np.ndarray, "batch columns"],
) -> Judged:
    """By Newton's decrement, which bounds the gap of self-concordant functions where it is small, and in the units of
    rooms."""
    form, instances, curves, point = solved.form, solved.instances, solved.curves, solved.answer.point
    low, high = point - instances.lower, instances.upper - point
    push = curves.least[:, None] / low - curves.least[:, None] / high
    moves = instances.lower < instances.upper
    off, bend = np.where(moves, reduced - curves.slope(point) + push, 0.0), np.where(moves, solved.bend, 1.0)
    bent = bend > 0.0
    gap = np.where(bent, off**2 / np.where(bent, bend, 1.0), 0.0).sum(axis=1)
    loose = np.where(bent, 0.0, np.abs(off) / np.maximum(terms, curves.least[:, None]))
    rooms = np.where(moves, np.minimum(low, high), np.inf)
    # A room that what its row misses could close is none: two inequalities may leave nothing between them.
    closed = missed[:, form.matrix.indices] / np.maximum(np.abs(matrix) * rooms[:, form.entry_column], 1e-300)
    distance = np.maximum(np.sqrt(gap / curves.least), closed.max(axis=1, initial=0.0))
    return gap, loose.max(axis=1, initial=0.0), np.where((rooms > 0.0).all(axis=1), distance, np.inf)


def _from_best(
    solved: Regularizing, reduced: Float64[np.ndarray, "batch columns"], terms: Float64[np.ndarray, "batch columns"]
) -> Judged:
    """By what every column loses against its best number for the multipliers."""
    form, instances, curves, point = solved.form, solved.instances, solved.curves, solved.answer.point
    lower, upper = instances.lower, instances.upper
    curved = (curves.kind != LINEAR) & (curves.weight > 0.0)
    best = np.clip(curves.meet(reduced), lower, upper)
    moved = point - best
    gap = moved * (curves.slope(point) - reduced)
    if not np.isfinite(gap).all():
        exact = curves.worth(point) - curves.worth(best) - reduced * moved
        gap = np.where(np.isfinite(gap), gap, exact)
    gap = np.where(curved & (moved != 0.0), gap, 0.0)
    rounding = 64.0 * EPSILON * terms.max(axis=1, keepdims=True, initial=0.0)
    off = forgiven = np.zeros(len(point))
    if not curved.all():
        # What is left of multipliers, where columns without curvature have none.
        pressed = np.where(np.abs(reduced) > rounding, reduced, 0.0)
        up, down = np.maximum(pressed, 0.0), np.maximum(-pressed, 0.0)
        above, below = np.isinf(upper), np.isinf(lower)
        unbounded = np.where(above, up, 0.0) + np.where(below, down, 0.0)
        loose = np.where(above, 0.0, up * (upper - point)) + np.where(below, 0.0, down * (point - lower))
        forgiven = np.where(curved, 0.0, np.abs(reduced - pressed)).max(axis=1, initial=0.0)
        gap = np.where(curved | (lower == upper), gap, loose)
        off = np.where(curved, 0.0, unbounded / np.maximum(terms, curves.unit)).max(axis=1, initial=0.0)
    whole, strength = np.maximum(gap, 0.0).sum(axis=1), curves.strength(point)
    firm = strength > 0.0
    distance = np.sqrt(2.0 * whole / np.maximum(strength, 1e-300))
    if not firm.all():
        worth = np.abs(instances.scores * point[:, : form.scored]).sum(axis=1) + np.abs(curves.worth(point)).sum(axis=1)
        distance = np.where(firm, distance, BEYOND * whole / np.maximum(worth, 1.0))
    flat = (curves.kind == POWER) & (curves.power > 2.0)
    if flat.any():
        # Next to 0 these are flat, and the gap says little: but a point is best for scores that differ by no more than
        # what makes it best for them. What the rounding of these moves it by is not known either.
        least, most = (np.clip(curves.meet(reduced + r), lower, upper) for r in (-rounding, rounding))
        missing = np.where(flat, np.maximum(np.abs(moved), most - least), 0.0)
        distance = np.maximum(distance, missing.max(axis=1, initial=0.0))
    # Points follow scores of such a size on straight pieces.
    return whole, off, distance + np.where(firm, forgiven / np.maximum(strength, 1e-300), 0.0)


def pull_back(
    solved: Regularizing, direction: Float64[np.ndarray, "batch scored"], ok: Bool[np.ndarray, " batch"]
) -> tuple[Float64[np.ndarray, "batch columns"], Float64[np.ndarray, "batch rows"], Bool[np.ndarray, " batch"]]:
    """The derivative for a direction: that of the points by the scores, and the multipliers of rows; 0 where it is not
    right."""
    p, q, left = solved.on_active_set(direction, np.zeros((1, solved.form.rows)), ok)
    right = ok & (left <= CONVERGED)
    p[~right], q[~right] = 0.0, 0.0
    return p, q, right


def activities(
    form: StandardForm, matrix: Float64[np.ndarray, "batch_or_1 entries"], point: Float64[np.ndarray, "batch columns"]
) -> tuple[Float64[np.ndarray, "batch rows"], Float64[np.ndarray, "batch rows"]]:
    """A z for every instance, and the sums of the sizes of its terms."""
    terms, count = matrix * point[:, form.entry_column], len(point)
    place = (np.arange(count)[:, None] * form.rows + form.matrix.indices).ravel()

    def summed(of_entries: np.ndarray) -> np.ndarray:
        sums = np.bincount(place, of_entries.ravel(), count * form.rows)
        return sums.astype(np.float64).reshape(count, form.rows)  # without entries they are integers

    return summed(terms), summed(np.abs(terms))
