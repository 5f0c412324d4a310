r"""Derivatives where parameters are at a kink, or at the edge of their domain.

The projection is piecewise affine in right-hand sides and bounds. Where the free columns of an active set cannot
follow a change of the parameters, pieces meet: at an edge of the domain the polytope is empty on one side (a capacity
of 0), at a kink the active set is another one on either side (a budget of 2 that is spent on two whole parts). The
active set of the point itself then says nothing of how it moves.

In a direction d of the parameters the point moves by the tangent v of least curvature among the best ones (Bonnans and
Shapiro, Perturbation Analysis of Optimization Problems, 2000, section 5.3): with c the scores minus the point, v is the
projection of :math:`M c`, for M without limit, onto the polyhedron of tangents, where columns at a bound keep to its
side and tight rows stay tight. So it is found by the solvers for projections, and its active set is that of the piece.
At a kink the gradient is the mean of those of both sides, in a direction in which all parameters move. At an edge there
is one side, where pieces may meet too: each entry of the parameters that can move alone has its own derivative, and
others (supplies and demands, whose sums must agree) have that of a direction into the domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

import numpy as np
import scipy.optimize
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int64

from optlayers.common.caches import WeakCache
from optlayers.form.standard import StandardForm
from optlayers.solution import Status
from optlayers.solvers.ask import ask
from optlayers.solvers.auto import Auto
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.faces import faces, on_face
from optlayers.solvers.kernels.optimality import TOUCHES
from optlayers.solvers.plan import KernelInput, plan_of
from optlayers.solvers.vertices import ROUNDING

__all__ = ["Kinks", "Piece", "mean_over_pieces"]

IDLE = 1e-6
"""The price of a row that holds nothing."""
CLEAR = 1e3
"""A column that is held by more than this, next to M, is held in all directions."""
TOLERANCE = 1e-8
NEAR = 1e-3
"""A tangent of a larger error is none that rounding hides."""
TOGETHER = 4096
"""So many tangents are looked for at a time."""
HELD = 1e-6
"""How far from its bound a column may be that an active set holds, in units of the column."""


@final
@dataclass(frozen=True)
class Large:
    """What stands for numbers without limit when a tangent is looked for."""

    steep: float
    """M, for scores of unit size."""
    loose: float
    """The right-hand side of rows with room, next to which tangents are small: where one binds, there is no piece."""


SIZES, SMALLER_SIZES = Large(1e6, 1e5), Large(1e4, 1e3)
"""The second is for tangents that are lost in the rounding of the first."""

_states: WeakCache[StandardForm, Any] = WeakCache()
_agreements: WeakCache[StandardForm, _Agreement] = WeakCache()


@final
@dataclass(frozen=True)
class Piece:
    """The pieces on one side of some instances: their active sets, the bounds that hold columns, and dual points.

    An instance may be there several times, for other ``entries`` of the parameters each time.
    """

    index: Int64[np.ndarray, " some"]
    entries: Bool[np.ndarray, "some parameters"]
    free: Bool[np.ndarray, "some columns"]
    high: Bool[np.ndarray, "some columns"]
    dual: Float64[np.ndarray, "some rows"]
    sure: Bool[np.ndarray, " some"]
    """Whether the piece is that of every other direction into the domain, too."""

    def joined(self, other: Piece) -> Piece:
        """The instances of both, and their pieces."""
        both = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(Piece)]
        return Piece(*(np.concatenate(pair) for pair in both))


@final
class Kinks:
    """The instances of a batch of points at which pieces meet in the parameters, and these pieces.

    ``curved`` columns have :math:`-\\tfrac12 z^2` in the objective: all of the structure for projections, none for best
    vertices. ``free`` are the active sets, where they are told; ``ok`` the instances that are looked at.
    """

    def __init__(
        self,
        form: StandardForm,
        instances: Instances,
        point: Float64[np.ndarray, "batch columns"],
        dual: Float64[np.ndarray, "batch rows"],
        free: Bool[np.ndarray, "batch columns"] | None,
        curved: int,
        ok: Bool[np.ndarray, " batch"],
    ) -> None:
        self.form, self.curved = form, curved
        self._agreement = _agreements.get(form, _Agreement)
        self._whole, self._point, self._dual = instances, point, dual
        unit = self._units()
        # What is held is at its bound, though a point next to huge scores, or a vertex next to others that are as good,
        # may be as exact as HELD alone.
        held = self._dear() if free is None else ~free
        near = np.where(held, HELD, TOUCHES) * unit
        self._low, self._high = point - instances.lower <= near, instances.upper - point <= near
        self._low[:, form.unslacked :] &= np.isfinite(instances.rhs[:, form.equalities :])
        direction = self._agreement.direction
        self.index = np.flatnonzero(ok & (self._opens() | ~self._follows(direction, ok)))

    def _units(self) -> Float64[np.ndarray, "batch columns"]:
        """The size of numbers in each column: 1, or what it holds if that is more; never more than its bounds allow.

        That of slack is the size of the terms of its row; where they are all 0, of what its columns may hold, or 1.
        """
        form, whole, cut = self.form, self._whole, self.form.unslacked
        holds = np.where(np.arange(form.columns) < cut, np.abs(self._point), 0.0)
        ends = np.maximum(np.abs(whole.lower), np.abs(whole.upper))
        unit: np.ndarray = np.minimum(ends, np.maximum(1.0, holds))
        unit[:, cut:] = 0.0
        sides = np.where(np.isfinite(whole.rhs), np.abs(whole.rhs), 0.0)
        terms, may_hold = sides + self._times(holds, sizes=True), self._times(unit, sizes=True)
        unit[:, cut:] = np.maximum(terms, np.minimum(1.0, may_hold))[:, form.equalities :]
        return unit

    def _dear(self) -> Bool[np.ndarray, "batch columns"]:
        """The columns of best vertices that have a reduced cost."""
        form, plan, whole = self.form, plan_of(self.form), self._whole
        reduced = -plan.prices(KernelInput.of(plan, whole).matrix, self._dual)
        reduced[:, : form.scored] += whole.scores
        dear: np.ndarray = np.abs(reduced) > IDLE * np.abs(whole.scores).max(axis=1, initial=0.0)[:, None]
        return dear

    def _opens(self) -> Bool[np.ndarray, " batch"]:
        """Where a column is held by two bounds that parameters move apart."""
        form = self.form
        apart = np.diff((form.lower.matrix - form.upper.matrix).tocsr().indptr) > 0
        held = (self._whole.lower == self._whole.upper) & apart
        if self._whole.forbidden is not None:
            held &= ~self._whole.forbidden
        opens: np.ndarray = held.any(axis=1)
        return opens

    def _follows(self, direction: Float64[np.ndarray, " parameters"], ok: np.ndarray) -> Bool[np.ndarray, " batch"]:
        """Where free columns can make up for a change of the parameters."""
        form, count = self.form, len(self._point)
        free = ~(self._low | self._high) & ok[:, None]
        moved = np.where(
            self._low, form.lower.matrix @ direction, np.where(self._high, form.upper.matrix @ direction, 0.0)
        )
        side = self._sides(np.arange(count), np.tile(direction, (count, 1))) - self._times(moved)
        _, _, follows = on_face(form, self._whole, free, np.zeros((count, form.columns)), side)
        return follows

    def _sides(
        self, index: Int64[np.ndarray, " some"], direction: Float64[np.ndarray, "some parameters"]
    ) -> Float64[np.ndarray, "some rows"]:
        """How much the rows ``b - A z`` change along directions of the parameters, the points held."""
        form, scale = self.form, self._whole.row_scale
        side = np.ascontiguousarray((form.rhs.matrix @ direction.T).T)
        if not form.matrix_is_constant:
            entries = (form.matrix_map @ direction.T).T * self._point[index][:, form.entry_column]
            np.subtract.at(side.T, form.matrix.indices, entries.T)
        return side if scale is None else side * (scale[index] if len(scale) > 1 else scale)

    def _times(
        self, columns: Float64[np.ndarray, "batch columns"], *, sizes: bool = False
    ) -> Float64[np.ndarray, "batch rows"]:
        """``A v`` for every instance; with the sizes of its entries, ``|A| v``."""
        form, out = self.form, np.zeros((len(columns), self.form.rows))
        entries = form.matrix.data if self._whole.matrix is None else self._whole.matrix
        entries = np.abs(entries) if sizes else entries
        np.add.at(out.T, form.matrix.indices, (entries * columns[:, form.entry_column]).T)
        return out

    def pieces(self) -> list[Piece]:
        """The pieces of all instances at kinks and edges; each instance is in one or two of them."""
        if len(self.index) == 0:
            return []
        direction = self._agreement.direction
        found = [self._piece(self.index, np.tile(sign * direction, (len(self.index), 1))) for sign in (1.0, -1.0)]
        settled = np.concatenate([piece.index[piece.sure] for piece in found])  # by one piece in all directions
        lost = np.setdiff1d(self.index, np.concatenate([piece.index for piece in found]))
        if len(lost):  # several parameters are at edges, and each wants a sign of its own
            inward = np.stack([self._inward(int(k)) for k in lost])
            found.append(self._piece(lost, inward))
        number = np.bincount(np.concatenate([piece.index for piece in found]), minlength=len(self._point))
        edges = np.setdiff1d(np.flatnonzero(number == 1), settled)
        if len(edges) and self.form.parameter_count > 1:
            alone = self._alone(edges)
            others = ~self._told(alone)
            found = [replace(piece, entries=piece.entries & others[piece.index]) for piece in found] + alone
        return [piece for piece in found if len(piece.index)]

    def _alone(self, edges: Int64[np.ndarray, " some"]) -> list[Piece]:
        """The pieces that single entries of the parameters lead to, by growing and by shrinking."""
        index, entry = self._touched(edges)
        found = []
        for start in range(0, len(index), TOGETHER):
            which = index[start : start + TOGETHER]
            entries = np.zeros((len(which), self.form.parameter_count), dtype=bool)
            entries[np.arange(len(which)), entry[start : start + TOGETHER]] = True
            steps = entries.astype(float)
            found += [self._piece(which, side * steps, entries) for side in (1.0, -1.0)]
        return found

    def _told(self, pieces: Sequence[Piece]) -> Bool[np.ndarray, "batch parameters"]:
        """The entries whose derivatives pieces tell."""
        told = np.zeros((len(self._point), self.form.parameter_count), dtype=bool)
        for piece in pieces:
            np.logical_or.at(told, piece.index, piece.entries)
        return told

    def _touched(
        self, edges: Int64[np.ndarray, " some"]
    ) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
        """Instances and entries of the parameters that move a row or a bound that is met; no other matters."""
        form = self.form
        tight = np.ones((len(edges), form.rows), dtype=bool)
        tight[:, form.equalities :] = self._low[edges, form.unslacked :]
        pairs = []
        for entry in np.flatnonzero(~self._agreement.bound):
            unit = np.zeros(form.parameter_count)
            unit[entry] = 1.0
            moves = (self._sides(edges, np.tile(unit, (len(edges), 1))) != 0.0) & tight
            lower, upper = form.lower.matrix @ unit != 0.0, form.upper.matrix @ unit != 0.0
            met = (self._low[edges] & lower) | (self._high[edges] & upper)
            some = edges[moves.any(axis=1) | met.any(axis=1)]
            pairs.append(np.stack([some, np.full(len(some), entry)]))
        index, entries = np.concatenate([np.zeros((2, 0), dtype=np.int64), *pairs], axis=1)
        return index, entries

    def _piece(
        self,
        index: Int64[np.ndarray, " some"],
        direction: Float64[np.ndarray, "some parameters"],
        entries: Bool[np.ndarray, "some parameters"] | None = None,
    ) -> Piece:
        """The pieces of those instances whose polytope is not empty in a direction."""
        told = np.ones(direction.shape, dtype=bool) if entries is None else entries
        piece, near = self._try(index, direction, told, SIZES)
        if len(near) == 0:
            return piece
        return piece.joined(self._try(index[near], direction[near], told[near], SMALLER_SIZES)[0])

    def _try(
        self,
        index: Int64[np.ndarray, " some"],
        direction: Float64[np.ndarray, "some parameters"],
        told: Bool[np.ndarray, "some parameters"],
        sizes: Large,
    ) -> tuple[Piece, Int64[np.ndarray, " near"]]:
        """The pieces that are found, and which of the others are lost by rounding, as far as can be seen."""
        form, some, low, high = self.form, self._whole.take(index), self._low[index], self._high[index]
        lower = np.where(low, (form.lower.matrix @ direction.T).T, -np.inf)
        upper = np.where(high, (form.upper.matrix @ direction.T).T, np.inf)
        if some.forbidden is not None:
            lower, upper = np.where(some.forbidden, 0.0, lower), np.where(some.forbidden, 0.0, upper)
        rhs = self._sides(index, direction)
        cut = form.unslacked  # rows that have room are nearly without limit
        rhs[:, form.equalities :] = np.where(low[:, cut:], rhs[:, form.equalities :], sizes.loose)
        lower[:, cut:] = 0.0
        costs, prices, largest = self._left(some, index)
        scale = sizes.steep / np.where(largest > 0.0, largest, 1.0)
        tangent = Instances(
            costs * scale, some.kept, rhs, lower, upper, some.matrix, some.forbidden, some.parameters, some.row_scale
        )
        state = _states.get(form, Auto().prepare)
        verdict = ask(form, tangent, Auto(), state, projection=True, tolerance=TOLERANCE)
        answer = verdict.answer
        if answer.free is None:
            raise RuntimeError("a projection has an active set")
        # Where auxiliary columns may be anything, a row with room may be met that has no price: it holds nothing.
        idle = np.abs(answer.dual[:, form.equalities :]) <= IDLE
        answer.free[:, cut:] |= ~low[:, cut:] & idle
        unlimited = (answer.free[:, cut:] | low[:, cut:]).all(axis=1)
        good = np.flatnonzero((verdict.status == Status.OPTIMAL) & verdict.certificate.exact & unlimited)
        nearer_high = upper - answer.point < answer.point - lower
        found = tangent.take(good)
        free = faces(form, found, answer.point[good], answer.dual[good], answer.free[good])
        dual = prices[good] + self._priced(found, free, answer.dual[good] / scale[good], costs[good])
        sure = ~((free & (low | high)[good]) | self._unclear(found, answer.take(good))).any(axis=1)
        near = np.setdiff1d(np.flatnonzero(verdict.certificate.error <= NEAR), good)
        return Piece(index[good], told[good], free, nearer_high[good], dual, sure), near

    def _left(
        self, some: Instances, index: Int64[np.ndarray, " some"]
    ) -> tuple[Float64[np.ndarray, "some size"], Float64[np.ndarray, "some rows"], Float64[np.ndarray, "some 1"]]:
        """What the prices of equalities leave of the scores minus the point, these prices, and the unit of both.

        On tight rows a tangent is worth the same by both but for a constant, and what is left tells small differences
        from what all tangents have in common.
        """
        form, scored = self.form, self.form.scored
        apart = np.arange(form.rows) < form.equalities
        beside = slice(form.matrix.indptr[scored], form.matrix.indptr[form.unslacked])
        apart[form.matrix.indices[beside]] = False  # auxiliary columns have no scores, and prices would give a cost
        prices = np.where(apart, self._dual[index], 0.0)
        costs, noise, curve = some.scores.copy(), ROUNDING * np.abs(some.scores), self._point[index][:, : self.curved]
        costs[:, : self.curved] -= curve
        # Off its bounds a point is exact to so much, and what that leaves of a score is no difference.
        inexact = np.where((self._low | self._high)[index, : self.curved], 0.0, np.abs(curve))
        noise[:, : self.curved] += TOUCHES * inexact.max(axis=1, initial=0.0)[:, None] * (inexact > 0.0)
        plan, matrix = plan_of(form), KernelInput.of(plan_of(form), some).matrix
        prices[~np.isfinite(plan.prices(matrix, prices)).all(axis=1)] = 0.0
        left = costs - plan.prices(matrix, prices)[:, :scored]
        prices, left = self._less(some, prices, left)
        noise += ROUNDING * plan.prices(np.abs(matrix), np.abs(prices))[:, :scored]
        whole = np.zeros_like(some.whole)
        whole[:, form.kept] = np.where(np.abs(left) <= noise, 0.0, left)
        # A column that is held may have a price of any size, next to which others must not vanish.
        ends = [np.abs(part).max(axis=1, initial=0.0)[:, None] for part in (whole, costs)]
        return whole, prices, np.where(ends[0] > 0.0, np.minimum(*ends), 0.0)

    def _less(
        self, some: Instances, prices: Float64[np.ndarray, "some rows"], left: Float64[np.ndarray, "some size"]
    ) -> tuple[Float64[np.ndarray, "some rows"], Float64[np.ndarray, "some size"]]:
        """The prices that leave the least squares of what can move, where these leave less than those given."""
        form, side = self.form, np.zeros(some.lower.shape)
        side[:, : form.scored] = left
        moves = (some.lower < some.upper) & (True if some.forbidden is None else ~some.forbidden)
        moves[:, form.unslacked :] = True  # the prices of inequalities would give slack a cost
        _, more, _ = on_face(form, some, moves, side)
        rest = left - plan_of(form).prices(KernelInput.of(plan_of(form), some).matrix, more)[:, : form.scored]
        moving = moves[:, : form.scored]
        now, then = (np.abs(np.where(moving, part, 0.0)).max(axis=1, initial=0.0)[:, None] for part in (left, rest))
        return np.where(then < now, prices + more, prices), np.where(then < now, rest, left)

    def _unclear(self, tangent: Instances, answer: Answer) -> Bool[np.ndarray, "some columns"]:
        """Columns that are held by less than the largest scores: a tangent of another direction may let go of them."""
        form, plan = self.form, plan_of(self.form)
        reduced = -plan.prices(KernelInput.of(plan, tangent).matrix, answer.dual)
        reduced[:, : form.scored] += tangent.scores
        reduced[:, : self.curved] -= answer.point[:, : self.curved]
        if answer.free is None:
            raise RuntimeError("a projection has an active set")
        unclear: np.ndarray = ~answer.free & (tangent.lower < tangent.upper) & (np.abs(reduced) < CLEAR)
        return unclear

    def _priced(
        self, tangent: Instances, free: np.ndarray, dual: np.ndarray, costs: np.ndarray
    ) -> Float64[np.ndarray, "some rows"]:
        """The dual points near those given that leave free columns no reduced cost, as for M without limit."""
        form, plan = self.form, plan_of(self.form)
        side = -plan.prices(KernelInput.of(plan, tangent).matrix, dual)
        side[:, : form.scored] += costs[:, form.kept]
        _, q, _ = on_face(form, tangent, free, side)
        priced: np.ndarray = dual + q
        return priced

    def _inward(self, k: int) -> Float64[np.ndarray, " parameters"]:
        """A direction of the parameters of instance ``k`` in which as many constraints as possible get room."""
        form, whole = self.form, self._whole
        columns, count = form.columns, form.parameter_count
        low, high = self._low[k], self._high[k]
        if whole.forbidden is not None:
            low, high = low & ~whole.forbidden[k], high & ~whole.forbidden[k]
        matrix = whole.matrix_of(form, k)
        change = sp.csc_array(self._sides(np.full(count, k), np.eye(count)).T)
        # Unknowns: the tangent, the direction, and the room of every bound that is met.
        at_low, at_high = np.flatnonzero(low), np.flatnonzero(high)
        rooms = len(at_low) + len(at_high)
        pick = sp.eye_array(columns, format="csr")
        room = sp.eye_array(rooms, format="csr")
        together = self._agreement.rows
        equal = sp.block_array(
            [[matrix, -change, sp.csc_array((form.rows, rooms))], [None, together, None]], format="csc"
        )
        above = sp.hstack([-pick[at_low], form.lower.matrix[at_low], room[: len(at_low)]])
        below = sp.hstack([pick[at_high], -form.upper.matrix[at_high], room[len(at_low) :]])
        free = np.where(whole.lower[k] == whole.upper[k], 0.0, np.inf) if whole.forbidden is not None else np.inf
        bounds = np.concatenate(
            [
                np.stack([np.broadcast_to(-free, columns), np.broadcast_to(free, columns)], axis=1),
                np.tile([-np.inf, np.inf], (count, 1)),  # rooms are limited, so that none has to give way to another
                np.tile([0.0, 1.0], (rooms, 1)),
            ]
        )
        found = scipy.optimize.linprog(
            np.concatenate([np.zeros(columns + count), -np.ones(rooms)]),
            A_ub=sp.vstack([above, below], format="csc"),
            b_ub=np.zeros(rooms),
            A_eq=equal,
            b_eq=np.zeros(equal.shape[0]),
            bounds=bounds,
            method="highs",
        )
        if found.x is None:
            return np.zeros(count)
        inward: np.ndarray = found.x[columns : columns + count]
        return inward / max(1.0, float(np.abs(inward).max(initial=0.0)))


@final
class _Agreement:
    """The conditions under which parameters agree, for equalities that depend on each other; each of unit size."""

    def __init__(self, form: StandardForm) -> None:
        matrix = form.consistency.matrix.toarray()
        size = np.abs(matrix).max(axis=1, initial=0.0)
        rows: np.ndarray = matrix[size > 0.0] / size[size > 0.0, None]
        self.rows = sp.csc_array(rows)
        self.bound: np.ndarray = (rows != 0.0).any(axis=0)
        """The entries of the parameters that cannot move alone."""
        grows = 0.5 + np.random.default_rng(0).random(form.parameter_count)
        self.direction: np.ndarray = grows - np.linalg.lstsq(rows, rows @ grows)[0] if len(rows) else grows
        """All parameters grow, none as fast as another: capacities and budgets at an edge mostly leave it so. Of those
        that must agree, as the sums of supplies and demands, what keeps them in agreement is left; some may shrink."""


def mean_over_pieces(
    smooth: Float64[np.ndarray, "batch parameters"],
    index: Int64[np.ndarray, " some"],
    pieces: Sequence[tuple[Piece, Float64[np.ndarray, "_ parameters"]]],
) -> Float64[np.ndarray, "batch parameters"]:
    """Gradients: the mean of those of its pieces for every entry of the instances of ``index``, NaN where none was
    found; for others the ``smooth`` ones."""
    total, number = np.zeros(smooth.shape), np.zeros(smooth.shape)
    for piece, gradient in pieces:
        np.add.at(total, piece.index, np.where(piece.entries, gradient, 0.0))
        np.add.at(number, piece.index, piece.entries)
    with np.errstate(invalid="ignore"):
        mean = total[index] / number[index]
    theta = smooth.copy()
    theta[index] = mean
    return theta
