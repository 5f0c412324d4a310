"""A batch as the kernels of oracles take it, and the rows that structures are held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np

from optlayers.common.caches import WeakCache
from optlayers.form.standard import StandardForm
from optlayers.solvers.addresses import OracleCall
from optlayers.solvers.base import Instances
from optlayers.solvers.kernels.batches import per_instance

__all__ = ["OracleBatch", "ScoredRows"]

NOTHING_FORBIDDEN = np.zeros((0, 0), dtype=np.bool_)


class ScoredRows(NamedTuple):
    """Rows and bounds that structures are checked against, for entries of the whole structure."""

    column: np.ndarray
    """``(size,)`` the column of every entry, -1 for the fixed ones."""
    fixed: np.ndarray
    may_be_zero: np.ndarray
    """``(size,)`` entries that violate nothing of their own when they are 0, whatever the instance."""
    start: np.ndarray
    row: np.ndarray
    equalities: np.ndarray
    loose: np.ndarray
    """Rows that cannot be checked, since unscored auxiliary columns enter them."""
    matrix: np.ndarray
    rhs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    scale: np.ndarray
    """``(1 or batch, rows)``: a row here is the declared one times this."""
    integral: bool
    """Whether structures are declared to be integral."""

    @classmethod
    def of(cls, form: StandardForm, instances: Instances) -> ScoredRows:
        """The rows of a batch; where neither parameters nor forbidden parts enter, those of all batches."""
        rows = _rows.get(form, cls._of_form)
        varies = not (form.matrix_is_constant and form.rhs.is_constant and form.bounds_are_constant)
        if instances.forbidden is None and not varies:
            return rows
        return rows._replace(
            matrix=rows.matrix if instances.matrix is None else per_instance(instances.matrix),
            rhs=per_instance(instances.rhs),
            lower=per_instance(instances.lower),
            upper=per_instance(instances.upper),
            scale=rows.scale if instances.row_scale is None else rows.scale * instances.row_scale,
        )

    @classmethod
    def _of_form(cls, form: StandardForm) -> ScoredRows:
        """The rows that hold for parameters of 0."""
        column = np.full(form.size, -1, dtype=np.int64)
        column[form.kept] = np.arange(form.scored)
        numbers = (form.matrix.data, form.rhs.constant, form.lower.constant, form.upper.constant)
        loose = np.zeros(form.rows, dtype=np.bool_)
        loose[form.matrix.indices[form.matrix.indptr[form.scored] : form.matrix.indptr[form.unslacked]]] = True
        may_be_zero = form.fixed == 0.0
        if form.bounds_are_constant:
            may_be_zero[form.kept] = (numbers[2] <= 0.0)[: form.scored] & (numbers[3] >= 0.0)[: form.scored]
        else:
            may_be_zero[form.kept] = False
        return cls(
            column,
            np.array(form.fixed),
            may_be_zero,
            np.array(form.matrix.indptr, dtype=np.uint32),  # compiled code looks at signs of indices that have them
            np.array(form.matrix.indices, dtype=np.uint32),
            np.array([form.equalities]),
            loose,
            matrix=np.array(numbers[0])[None],
            rhs=np.array(numbers[1])[None],
            lower=np.array(numbers[2])[None],
            upper=np.array(numbers[3])[None],
            scale=np.array(form.row_scale)[None],
            integral=form.polytope.integral,
        )


_rows: WeakCache[StandardForm, ScoredRows] = WeakCache()


@final
@dataclass(slots=True)
class OracleBatch:
    """What kernels are told about a batch: whole scores, forbidden columns and parameters, a row for every instance."""

    call: OracleCall
    rows: ScoredRows
    scores: np.ndarray
    forbidden: np.ndarray
    theta: np.ndarray

    @classmethod
    def of(cls, form: StandardForm, call: OracleCall, instances: Instances) -> OracleBatch:
        """The batch of an oracle."""
        if instances.forbidden is None:
            forbidden = NOTHING_FORBIDDEN
        else:
            forbidden = np.ascontiguousarray(instances.forbidden[:, : form.scored])
        scores, theta = _rows_of_their_own(instances.whole), _rows_of_their_own(instances.parameters)
        return cls(call, ScoredRows.of(form, instances), scores, forbidden, theta)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """In the order in which kernels take them."""
        return self.call.call, self.rows, self.scores, self.forbidden, self.theta


def _rows_of_their_own(array: np.ndarray) -> np.ndarray:
    """A row in memory for every instance, also where all of them are one."""
    flags = array.flags
    return array if flags.c_contiguous and flags.writeable else np.array(array, order="C")
