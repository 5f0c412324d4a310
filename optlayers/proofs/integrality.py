"""Whether the rows of an integer declaration describe the convex hull of its integer points, by proof."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np
import scipy.sparse as sp

from optlayers.common.caches import WeakCache
from optlayers.form.compile import Forms
from optlayers.form.standard import StandardForm
from optlayers.proofs.unimodular import blocks_of
from optlayers.solvers.batch import make_instances

__all__ = ["has_long_fractions", "rows_are"]

SHORT = 10_000
"""The largest denominator of fractions that people write down,"""
READ = 1e-12
"""which numbers are that differ from them by no more, next to their size."""

_known: WeakCache[Forms, Literal["exact", "relaxation"]] = WeakCache()


def rows_are(forms: Forms) -> Literal["exact", "relaxation"] | None:
    """What rows are, next to the polytope: all that is to know of it, or a relaxation; None where that is not known.

    The rows of an integer declaration are exact where that is declared, or where their matrix is totally unimodular and
    all numbers beside it are integers (Hoffman and Kruskal, 1956). What is not proved is taken for a relaxation.
    """
    polytope = forms.polytope
    if polytope.rows is not None or not polytope.has_integers:
        return polytope.rows
    return _known.get(forms, _proved)


def _proved(forms: Forms) -> Literal["exact", "relaxation"]:
    form = forms.full
    if form.parameter_count:
        return "relaxation"
    blocks = blocks_of(form, make_instances(form, np.zeros((1, 0)), None), together=True)
    return "exact" if all(block.is_integral() for block in blocks) else "relaxation"


def has_long_fractions(form: StandardForm) -> bool:
    """Whether the coefficients of some equality are no multiples of each other by short fractions, as 1 and pi."""
    rows = sp.csr_array(form.matrix)
    for row in range(form.equalities):
        mine = rows.data[rows.indptr[row] : rows.indptr[row + 1]]
        mine = mine[mine != 0.0]
        for ratio in (mine / np.abs(mine).min(initial=np.inf)).tolist():
            if abs(float(Fraction(ratio).limit_denominator(SHORT)) - ratio) > READ * abs(ratio):
                return True
    return False
