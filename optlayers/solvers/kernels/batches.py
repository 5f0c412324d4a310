"""Between batches, a row per instance, and vectors of instances."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from optlayers.solvers.kernels.flat import FlatType, flat, row
from optlayers.solvers.kernels.lanes import LANES, fill, pack, part, stay_apart, store

__all__ = [
    "Group",
    "grouped",
    "of_each",
    "per_instance",
    "read",
    "read_entries",
    "read_flags",
    "read_group",
    "read_multipliers",
    "read_rows",
    "write",
    "write_flags",
    "write_rows",
]


def per_instance(array: np.ndarray) -> np.ndarray:
    """A batch as kernels take it: one row that all instances share, or one for each, in C order and writable.

    One layout means one compiled version of every kernel.
    """
    if len(array) > 1 and array.strides[0] == 0 and array.size:  # of arrays without columns strides say nothing
        array = array[:1]
    if array.flags.c_contiguous and array.flags.writeable:
        return array
    return np.array(array, order="C")


def of_each(array: np.ndarray) -> np.ndarray:
    """A batch as kernels take it that want a row for every instance, even where memory holds one for all."""
    return array if array.flags.carray else np.require(array, requirements=("C", "W"))


@part
def _places(batch, which, first):  # type: ignore[no-untyped-def]
    """The rows of four instances; the last one fills up, and a single row is everyone's."""
    if len(batch) == 1:
        return 0, 0, 0, 0
    last = len(which) - 1
    return which[first], which[min(first + 1, last)], which[min(first + 2, last)], which[min(first + 3, last)]


@part
def read(batch, which, first, out):  # type: ignore[no-untyped-def]
    """Vectors of the rows ``which[first], …``."""
    stay_apart()
    a, b, c, d = _places(batch, which, first)
    for j in range(batch.shape[1]):
        store(out, j, pack(batch[a, j], batch[b, j], batch[c, j], batch[d, j]))


@part
def read_flags(batch, which, first, out):  # type: ignore[no-untyped-def]
    """Vectors of the rows ``which[first], …`` of booleans: 1 where they are set."""
    stay_apart()
    a, b, c, d = _places(batch, which, first)
    for j in range(batch.shape[1]):
        store(out, j, pack(1.0 * batch[a, j], 1.0 * batch[b, j], 1.0 * batch[c, j], 1.0 * batch[d, j]))


@part
def read_rows(system, batch, which, first, out):  # type: ignore[no-untyped-def]
    """Right-hand sides, in the order and scale of the system's rows."""
    stay_apart()
    a, b, c, d = _places(batch, which, first)
    for i in range(len(system.order)):
        k = system.order[i]
        store(out, i, system.scale[i] * pack(batch[a, k], batch[b, k], batch[c, k], batch[d, k]))


@part
def read_multipliers(system, batch, which, first, out):  # type: ignore[no-untyped-def]
    """Multipliers of rows, in the order and scale of the system's rows."""
    stay_apart()
    a, b, c, d = _places(batch, which, first)
    for i in range(len(system.order)):
        k = system.order[i]
        store(out, i, pack(batch[a, k], batch[b, k], batch[c, k], batch[d, k]) / system.scale[i])


@part
def read_entries(system, batch, which, first, out):  # type: ignore[no-untyped-def]
    """Entries of A, scaled like its rows."""
    stay_apart()
    a, b, c, d = _places(batch, which, first)
    for t in range(batch.shape[1]):
        entry = pack(batch[a, t], batch[b, t], batch[c, t], batch[d, t])
        store(out, t, system.scale[system.column_row[t]] * entry)


class Group(NamedTuple):
    """Room for the numbers of four instances: scores (0 beyond the scored columns), bounds, right-hand sides, A."""

    scores: FlatType
    lower: FlatType
    upper: FlatType
    rhs: FlatType
    entries: FlatType


@part
def grouped(wide, tall, entries):  # type: ignore[no-untyped-def]
    """A group to be read into: the first three rows of ``wide``, the first one of ``tall``, and ``entries``."""
    group = Group(row(wide, 0), row(wide, 1), row(wide, 2), row(tall, 0), flat(entries))
    fill(group.scores, 0.0)
    return group


@part
def read_group(system, varies, matrix, scores, rhs, lower, upper, which, first, group):  # type: ignore[no-untyped-def]
    """The instances ``which[first], …``; bounds that all share are read once, as no kernel writes to them."""
    stay_apart()
    read(scores, which, first, group.scores)
    if first == 0 or len(lower) > 1:
        read(lower, which, first, group.lower)
    if first == 0 or len(upper) > 1:
        read(upper, which, first, group.upper)
    read_rows(system, rhs, which, first, group.rhs)
    if varies:
        read_entries(system, matrix, which, first, group.entries)


@part
def write(vectors, which, first, batch):  # type: ignore[no-untyped-def]
    """The rows ``which[first], …`` of a batch."""
    stay_apart()
    for w in range(min(LANES, len(which) - first)):
        k = which[first + w]
        for j in range(batch.shape[1]):
            batch[k, j] = vectors[LANES * j + w]


@part
def write_flags(vectors, which, first, batch):  # type: ignore[no-untyped-def]
    """The rows ``which[first], …`` of a batch of booleans: where vectors are not 0."""
    stay_apart()
    for w in range(min(LANES, len(which) - first)):
        k = which[first + w]
        for j in range(batch.shape[1]):
            batch[k, j] = vectors[LANES * j + w] != 0.0


@part
def write_rows(system, vectors, which, first, batch):  # type: ignore[no-untyped-def]
    """Multipliers of rows, in the order and scale of the caller."""
    stay_apart()
    for w in range(min(LANES, len(which) - first)):
        k = which[first + w]
        for i in range(len(system.order)):
            batch[k, system.order[i]] = vectors[LANES * i + w] * system.scale[i]
