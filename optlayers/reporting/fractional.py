"""Best points of many objectives: which of them are fractional, and what they are worth beside integer points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np
import scipy.linalg

from optlayers.reporting.linear_program import LinearProgram, Optimum, exact_point, proved_bound
from optlayers.reporting.rationals import Elimination, read_together
from optlayers.reporting.rows import Rows

__all__ = ["Sampled", "Witness", "objectives_of", "point_text", "sampled_objectives", "scores_of", "witness_of"]

WHOLE = 1e-6
"""Entries so near to an integer are integers."""
TIGHT = 1e-7


@final
@dataclass(frozen=True)
class Witness:
    """A fractional point that is best for some scores: there is a vertex that is no structure."""

    point: tuple[Fraction, ...]
    scores: tuple[int, ...]
    """For which this point is best, and alone where there are no auxiliary variables."""
    proved: bool
    inside: bool
    """Whether it is shown without rounding that the point satisfies the rows."""
    basis: tuple[int, ...]
    """Rows that it satisfies as equalities, as many as determine it; empty where there are auxiliary variables."""

    def text(self, parts: tuple[str, ...]) -> str:
        """The parts that are not 0."""
        return point_text(self.point, parts, exact=self.inside)


def point_text(point: Sequence[Fraction], parts: tuple[str, ...], *, exact: bool) -> str:
    """The parts of a point that are not 0: as fractions, or to six digits where it is known to rounding only."""
    told = [f"{parts[j]} = {v if exact else format(float(v), '.6g')}" for j, v in enumerate(point) if v]
    return ", ".join(told[:12]) + (f" and {len(told) - 12} more" if len(told) > 12 else "") if told else "0"


@final
@dataclass(frozen=True)
class Sampled:
    """Best points of the rows for random objectives, and for structured ones."""

    random: int
    structured: int
    fractional: int
    """Of the random objectives, how many end in a fractional point."""
    witnesses: tuple[Witness, ...]
    gap: float | None
    """By how much the rows promise more than integer points have, at most, next to the difference between the best and
    the worst of these."""
    gap_scores: tuple[float, ...]
    gaps_of: int


def objectives_of(size: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Structured objectives, and ``count`` random ones, with whether they are random."""
    rng = np.random.default_rng(seed)
    yield np.ones(size), False
    yield -np.ones(size), False
    for sign in (1.0, -1.0):
        for j in range(size):
            unit = np.zeros(size)
            unit[j] = sign
            yield unit, False
    for objective in (*rng.choice([-1.0, 1.0], (8, size)), *rng.integers(0, 3, (8, size))):
        yield objective.astype(np.float64), False
    for _ in range(count):
        yield rng.standard_normal(size), True


def sampled_objectives(
    rows: Rows,
    program: LinearProgram,
    count: int,
    seed: int,
    ends_of_integers: Callable[[np.ndarray], tuple[float, float] | None],
    wanted: int,
    late: Callable[[], bool],
) -> Sampled:
    """Ask for the best points of ``count`` random objectives and of structured ones: parts, sums, signs, small
    integers. Structured ones come first: where their best points are not unique, they find what random ones miss."""
    rng = np.random.default_rng(seed)
    size = rows.scored
    witnesses: list[Witness] = []
    seen: set[tuple[Fraction, ...]] = set()
    fractional, done, worst, worst_scores, gaps = 0, 0, 0.0, np.zeros(0), 0
    structured_done = 0
    for objective, is_random in objectives_of(size, count, seed):
        if late():
            break
        best = program.maximize(objective)
        if best is None:
            continue
        done += is_random
        structured_done += not is_random
        is_fractional = not _is_whole(rows, best.point)
        fractional += is_random and is_fractional
        if not is_fractional:
            continue
        if len(witnesses) < wanted:
            witness = witness_of(rows, program, best, objective, rng)
            if witness is not None and witness.point not in seen:
                seen.add(witness.point)
                witnesses.append(witness)
        if gaps < 64:
            ends = ends_of_integers(objective)
            if ends is not None and best.value - ends[0] > TIGHT * max(1.0, abs(ends[0])) and ends[0] > ends[1] + WHOLE:
                gaps += 1
                gap = (best.value - ends[0]) / (ends[0] - ends[1])
                if gap > worst:
                    worst, worst_scores = gap, objective
    known = worst if gaps else None
    return Sampled(done, structured_done, fractional, tuple(witnesses), known, tuple(worst_scores.tolist()), gaps)


def _is_whole(rows: Rows, point: np.ndarray) -> bool:
    """Whether parts are integers: to rounding, and where rows tell, the integers satisfy them."""
    part = point[: rows.scored]
    near = np.round(part)
    if (np.abs(part - near) > WHOLE).any():
        return False
    return bool(rows.auxiliary) or not rows.exact or rows.holds(near.astype(np.int64), 1)


def witness_of(
    rows: Rows, program: LinearProgram, best: Optimum, objective: np.ndarray, rng: np.random.Generator
) -> Witness | None:
    """A fractional best point as fractions, with integer scores for which it alone is best; None for an integer one."""
    if rows.auxiliary:
        return _shadow_witness(rows, program, objective, rng)
    exact = exact_point(rows, program, best)
    found = exact or read_together(best.point)
    if found is None:
        return None
    numerators, unit = found
    point = tuple(Fraction(int(a), unit) for a in numerators)
    if all(v.denominator == 1 for v in point):
        return None
    slack = rows.slacks(numerators, unit)
    if slack is None or exact is None:
        return Witness(point, (), False, False, ())
    basis = _basis(rows, np.flatnonzero(slack == 0))
    if len(basis) < rows.columns:
        return None  # inside a face
    # The sum of the rows of a basis is largest where all of them hold as equalities, and there alone.
    return Witness(point, scores_of(rows, basis), True, True, tuple(basis))


def scores_of(rows: Rows, basis: list[int]) -> tuple[int, ...]:
    """The sum of some inequality rows: scores for which the one point with all of them as equalities is best."""
    total: np.ndarray = rows.whole[[i for i in basis if not rows.equality[i]]].sum(axis=0)
    return tuple(np.asarray(total).ravel()[: rows.scored].tolist())


def _basis(rows: Rows, tight: np.ndarray) -> list[int]:
    """Rows of full rank among those that hold as equalities, or fewer where there are none; equalities first."""
    order = np.concatenate([tight[rows.equality[tight]], tight[~rows.equality[tight]]])
    matrix = rows.matrix[order].toarray().T
    if matrix.shape[1] > 4 * matrix.shape[0]:  # many rows: a few of them do, chosen in floating point
        order = order[scipy.linalg.qr(matrix, mode="r", pivoting=True)[1][: 2 * matrix.shape[0]]]
    elimination, chosen = Elimination(range(rows.columns)), []
    for i in order.tolist():
        if elimination.add(rows.row(i)):
            chosen.append(i)
        if len(chosen) == rows.columns:
            break
    return chosen


def _shadow_witness(
    rows: Rows, program: LinearProgram, objective: np.ndarray, rng: np.random.Generator
) -> Witness | None:
    """Where there are auxiliary variables: scores of integers near the objective, whose best point is fractional.

    It is proved where the best value of these scores is no integer, which it would be at integer points.
    """
    for scale in (3.0, 50.0, 1000.0):
        largest = float(np.abs(objective).max()) or 1.0
        scores = np.round(objective / largest * scale + rng.uniform(-0.5, 0.5, len(objective)) * (scale > 3.0))
        best = program.maximize(scores)
        if best is None:
            continue
        found = read_together(best.point)
        part = best.point[: rows.scored]
        if found is None or (np.abs(part - np.round(part)) <= WHOLE).all():
            continue
        numerators, unit = found
        point = tuple(Fraction(int(a), unit) for a in numerators[: rows.scored])
        bound = proved_bound(rows, scores, best.multipliers)
        inside = rows.holds(numerators, unit)
        reached = sum((int(s) * v for s, v in zip(scores, point, strict=True)), Fraction(0))
        if inside and bound == reached and reached.denominator != 1:
            return Witness(point, tuple(scores.astype(int).tolist()), True, True, ())
        if inside and _is_alone(rows, scores, best, rng):
            return Witness(point, tuple(scores.astype(int).tolist()), False, True, ())
    return None


def _is_alone(rows: Rows, scores: np.ndarray, best: Optimum, rng: np.random.Generator) -> bool:
    """Whether no other point scores as much: on the face of best points, a random direction is constant."""
    face = LinearProgram(rows)
    held = np.flatnonzero(np.abs(best.multipliers) > TIGHT)
    for i in held.tolist():
        face.hold(i)
    direction = rng.standard_normal(rows.scored)
    ends = face.maximize(direction), face.maximize(-direction)
    return all(e is not None for e in ends) and abs(sum(e.value for e in ends if e is not None)) <= WHOLE
