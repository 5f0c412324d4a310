"""A Chvátal-Gomory cut for a fractional vertex: an inequality of integers that it alone violates, with its proof."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from optlayers.reporting.fractional import Witness
from optlayers.reporting.missing import MissingInequality, kind_of, simplified
from optlayers.reporting.rationals import read_together
from optlayers.reporting.rows import Rows, expression
from optlayers.reporting.statement import PROOF

__all__ = ["cut_for"]


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
    cut = best[1]
    told = {j: int(cut[j]) for j in np.flatnonzero(cut[:-1]).tolist()}
    side = int(cut[-1])
    assert sum((a * witness.point[j] for j, a in told.items()), Fraction(0)) > side
    line = f"{expression(told, rows.parts)} <= {side}"
    return MissingInequality(told, side, False, line, kind_of(told, side, False), witness.point, PROOF, witness)
