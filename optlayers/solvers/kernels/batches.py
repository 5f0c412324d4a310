"""Between batches, a row per instance, and vectors of instances."""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.lanes import LANES, jit

__all__ = ["per_instance", "read", "read_entries", "read_rows", "write", "write_flags", "write_rows"]


def per_instance(array: np.ndarray) -> np.ndarray:
    """A batch as kernels take it: one row that all instances share, or one for each, in C order and writable.

    One layout means one compiled version of every kernel.
    """
    if len(array) > 1 and array.strides[0] == 0:
        array = array[:1]
    if array.flags.c_contiguous and array.flags.writeable:
        return array
    return np.array(array, order="C")


@jit
def read(batch, which, first, out):  # type: ignore[no-untyped-def]
    """Vectors of the rows ``which[first], …``; the last one fills up. A single row is everyone's."""
    for w in range(LANES):
        k = which[min(first + w, len(which) - 1)] if len(batch) > 1 else 0
        for j in range(batch.shape[1]):
            out[LANES * j + w] = batch[k, j]


@jit
def read_rows(system, batch, which, first, out):  # type: ignore[no-untyped-def]
    """Right-hand sides, in the order and scale of the system's rows."""
    for w in range(LANES):
        k = which[min(first + w, len(which) - 1)] if len(batch) > 1 else 0
        for i in range(len(system.order)):
            out[LANES * i + w] = batch[k, system.order[i]] * system.scale[i]


@jit
def read_entries(system, batch, which, first, out):  # type: ignore[no-untyped-def]
    """Entries of A, scaled like its rows."""
    for w in range(LANES):
        k = which[min(first + w, len(which) - 1)] if len(batch) > 1 else 0
        for t in range(batch.shape[1]):
            out[LANES * t + w] = batch[k, t] * system.scale[system.column_row[t]]


@jit
def write(vectors, which, first, batch):  # type: ignore[no-untyped-def]
    """The rows ``which[first], …`` of a batch."""
    for w in range(min(LANES, len(which) - first)):
        k = which[first + w]
        for j in range(batch.shape[1]):
            batch[k, j] = vectors[LANES * j + w]


@jit
def write_flags(vectors, which, first, batch):  # type: ignore[no-untyped-def]
    """The rows ``which[first], …`` of a batch of booleans: where vectors are not 0."""
    for w in range(min(LANES, len(which) - first)):
        k = which[first + w]
        for j in range(batch.shape[1]):
            batch[k, j] = vectors[LANES * j + w] != 0.0


@jit
def write_rows(system, vectors, which, first, batch):  # type: ignore[no-untyped-def]
    """Multipliers of rows, in the order and scale of the caller."""
    for w in range(min(LANES, len(which) - first)):
        k = which[first + w]
        for i in range(len(system.order)):
            batch[k, system.order[i]] = vectors[LANES * i + w] * system.scale[i]
