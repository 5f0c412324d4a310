"""Rows that are no combinations of others, by a look at which columns they share."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

__all__ = ["are_independent"]


def are_independent(rows: sp.csr_array) -> bool:
    """Whether rows are proved to be linearly independent, and well so. False says that there is no proof here.

    Entries must have one size. A column with one entry joins its row to the ground, one with two entries joins two
    rows. Where all rows are joined to the ground in this way, columns that form a tree are a square matrix whose
    inverse has entries of 0, 1 and -1 times that size: so it is for the flows of a network.
    """
    if rows.nnz == 0 or (np.abs(rows.data) != np.abs(rows.data[0])).any():
        return False
    by_column = sp.csc_array(rows)
    counts, begin = np.diff(by_column.indptr), by_column.indptr[:-1]
    ground = rows.shape[0]
    single, double = begin[counts == 1], begin[counts == 2]
    row = by_column.indices
    one = np.concatenate([row[single], row[double]])
    other = np.concatenate([np.full(len(single), ground), row[double + 1]])
    graph = sp.csr_array((np.ones(len(one)), (one, other)), shape=(ground + 1, ground + 1))
    return bool(sp.csgraph.connected_components(graph, directed=False, return_labels=False) == 1)
