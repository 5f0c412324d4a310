"""Chvátal-Gomory cuts for fractional vertices: inequalities of integers that these violate, with their proof."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np

from optlayers.reporting.fractional import Witness
from optlayers.reporting.linear_program import LinearProgram, proved_bound
from optlayers.reporting.missing import MissingInequality, kind_of, line_of, simplified
from optlayers.reporting.rationals import read_together
from optlayers.reporting.rows import Rows
from optlayers.reporting.statement import PROOF

__all__ = ["cut_beside_auxiliaries", "cut_for"]

FEW = 100
"""So many sums of few parts are tried."""


def cut_for(rows: Rows, witness: Witness) -> MissingInequality | None:
    """Of all cuts by one part of a fractional vertex the one that it violates most, next to its length.

    The rows that hold as equalities at the vertex are a matrix B, and part j is :math:`e_j B^{-1} b`. With the
    fractional parts u of :math:`e_j B^{-1}`, or of its negative, :math:`u B x \\le \\lfloor u b \\rfloor` holds for all
    integer points: u is at least 0 and u B is integral (Gomory, 1958; Chvátal, 1973). None where variables are not all
    scored, or numbers are too large.
    """
    if rows.auxiliary or len(witness.basis) < rows.columns:
        return None
    basis = list(witness.basis)
    body, sides = rows.whole[basis].toarray(), rows.whole_sides[basis]
    try:
        read = read_together(np.linalg.inv(body.astype(np.float64)))
    except np.linalg.LinAlgError:
        return None
    if read is None:
        return None
    inverse, unit = read
    if not np.array_equal(inverse @ body, unit * np.eye(len(body), dtype=np.int64)):
        return None
    equations = np.concatenate([rows.whole.toarray(), rows.whole_sides[:, None]], axis=1)[rows.equality]
    best: tuple[float, np.ndarray] | None = None
    point = np.array([float(v) for v in witness.point])
    for part, value in enumerate(witness.point):
        if value.denominator == 1:
            continue
        for sign in (1, -1):
            weights = (sign * inverse[part]) % unit
            coefficients, side = (weights @ body) // unit, int(weights @ sides) // unit
            cut = simplified(np.append(coefficients, side), equations)
            violated = float(cut[:-1] @ point - cut[-1])
            score = violated / float(np.linalg.norm(cut[:-1]))
            if violated > 0 and (best is None or score > best[0] + 1e-12):
                best = score, cut
    if best is None:
        return None
    return _told(best[1], rows, witness)


def cut_beside_auxiliaries(rows: Rows, program: LinearProgram, witness: Witness) -> MissingInequality | None:
    r"""A cut for a fractional point of what is scored, where auxiliary variables may be fractions.

    Rows whose sum has no auxiliary variables, and integers a before the parts, say :math:`\langle a, x \rangle \le b`,
    so that integer points satisfy :math:`\langle a, x \rangle \le \lfloor b \rfloor`. Tried are sums: of two and three
    parts that are fractions, of all that are, of those that are not 0, of all parts; then the scores for which the
    point is best. None where none of these cuts it off.
    """
    equations = np.concatenate([rows.whole.toarray(), rows.whole_sides[:, None]], axis=1)[rows.equality]
    equations = equations[~equations[:, rows.scored : -1].any(axis=1)]
    equations = np.delete(equations, np.s_[rows.scored : rows.columns], axis=1)
    point, size = witness.point, len(witness.point)
    broken = [j for j, value in enumerate(point) if value.denominator > 1]
    few = itertools.chain(itertools.combinations(broken, 2), itertools.combinations(broken, 3))
    chosen = [*itertools.islice(few, FEW), broken, [j for j, value in enumerate(point) if value], range(size)]
    for given in (*([int(j in some) for j in range(size)] for some in chosen), witness.scores):
        if not any(given):
            continue
        objective = np.array(given) // math.gcd(*given)
        best = program.maximize(objective.astype(np.float64))
        bound = None if best is None else proved_bound(rows, objective, best.multipliers)
        if bound is None or sum((int(a) * v for a, v in zip(objective, point, strict=True)), Fraction(0)) <= bound // 1:
            continue
        return _told(simplified(np.append(objective, int(bound // 1)), equations), rows, witness)
    return None


def _told(cut: np.ndarray, rows: Rows, witness: Witness) -> MissingInequality:
    told = {j: int(cut[j]) for j in np.flatnonzero(cut[:-1]).tolist()}
    side = int(cut[-1])
    assert sum((a * witness.point[j] for j, a in told.items()), Fraction(0)) > side
    line = line_of(told, side, False, rows.parts)
    return MissingInequality(told, side, False, line, kind_of(told, side, False), witness.point, PROOF, witness)
